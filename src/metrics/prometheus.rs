//! Totals in Prometheus's text format, version 0.0.4: <https://prometheus.io/docs/instrumenting/exposition_formats>.

use super::totals::Totals;
use super::{COUNTERS, Stability};

/// A family of samples.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// `counter` or `gauge`.
    pub kind: &'static str,
    /// What a sample counts, in the plural.
    pub unit: &'static str,
    /// Whether the name may change.
    pub stability: Stability,
    /// What it is, in one line.
    pub help: &'static str,
}

/// All families, in the order of the text. Every sample has the labels `space`, `controller` and `identity`.
pub const FAMILIES: &[Family] = &[
    gauge("holofs_mounted", "spaces", "1 while the space is mounted, else 0."),
    counter("holofs_mounts_total", "mounts", "Mounts of the space."),
    gauge("holofs_files", "files", "Regular files of the environment."),
    gauge("holofs_files_with_relocations", "files", "Files of the environment with relocations."),
    gauge("holofs_files_touched", "files", "Files of which bytes were asked for, each counted once."),
    counter(
        super::COPIES,
        "files",
        "Private copies of library files. Label method: reflink, copy_file_range, copy.",
    ),
    counter(
        "holofs_relocated_copies_total",
        "files",
        "Private copies of relocated files that were only read.",
    ),
    counter("holofs_private_copy_bytes_total", "bytes", "Size of all private copies."),
    counter(
        "holofs_private_copy_shared_bytes_total",
        "bytes",
        "Size of the private copies that share extents.",
    ),
    counter("holofs_served_bytes_total", "bytes", "Bytes that the daemon answered reads with."),
    counter("holofs_blob_cache_hits_total", "blobs", "Blobs that were found unpacked in the blob cache."),
    counter(
        "holofs_blob_cache_hit_bytes_total",
        "bytes",
        "Unpacked size of the blobs that were found in the cache.",
    ),
    counter("holofs_blobs_fetched_total", "blobs", "Blobs that were read from the library and verified."),
    counter(
        "holofs_blob_fetched_bytes_total",
        "bytes",
        "Unpacked size of the blobs that were read from the library.",
    ),
    counter(
        "holofs_blobs_refused_total",
        "blobs",
        "Blobs that were missing or corrupt when they were needed.",
    ),
    unstable("holofs_remote_requests_total", "requests", "Requests to the object store of the library."),
    unstable("holofs_remote_bytes_total", "bytes", "Bytes that came from the object store."),
    unstable(
        "holofs_remote_retries_total",
        "requests",
        "Requests to the object store that failed and were sent again.",
    ),
    unstable("holofs_remote_failures_total", "requests", "Requests to the object store that were given up."),
    counter(super::OPENS, "opens", "Opens that the daemon answered. Label mode: passthrough, cached."),
    counter(
        ERRORS,
        "requests",
        "Requests that were answered with an error. Label errno: its name; ENODATA and ENOTTY are ordinary answers.",
    ),
    gauge("holofs_corrupt_files", "files", "Files that could not be read because their blob is corrupt."),
];

const ERRORS: &str = "holofs_request_errors_total";

const fn gauge(name: &'static str, unit: &'static str, help: &'static str) -> Family {
    Family { name, kind: "gauge", unit, stability: Stability::Stable, help }
}

const fn unstable(name: &'static str, unit: &'static str, help: &'static str) -> Family {
    Family { stability: Stability::Unstable, ..counter(name, unit, help) }
}

const fn counter(name: &'static str, unit: &'static str, help: &'static str) -> Family {
    Family { name, kind: "counter", unit, stability: Stability::Stable, help }
}

/// The totals of one space, and the labels of its samples.
#[derive(Clone, Copy, Debug)]
pub struct Labelled<'a> {
    /// Name and value of each label.
    pub labels: [(&'static str, &'a str); 3],
    /// Whether it is mounted.
    pub is_mounted: bool,
    /// Its totals.
    pub totals: &'a Totals,
}

/// The text for these spaces.
#[must_use]
pub fn text(spaces: &[Labelled<'_>]) -> String {
    let mut out = String::new();
    for family in FAMILIES {
        out.push_str(&format!(
            "# HELP {} {}\n# TYPE {} {}\n",
            family.name, family.help, family.name, family.kind
        ));
        for space in spaces {
            for (label, value) in samples(family, space) {
                let labels =
                    space.labels.iter().copied().chain(label.iter().map(|(name, of)| (*name, of.as_str())));
                let labels: Vec<String> =
                    labels.map(|(name, of)| format!("{name}=\"{}\"", escaped(of))).collect();
                out.push_str(&format!("{}{{{}}} {value}\n", family.name, labels.join(",")));
            }
        }
    }
    out
}

/// The samples of one space: a label of their own, and the value.
fn samples(family: &Family, space: &Labelled<'_>) -> Vec<(Option<(&'static str, String)>, u64)> {
    let totals = space.totals;
    let one = |value| vec![(None, value)];
    match family.name {
        "holofs_mounted" => one(u64::from(space.is_mounted)),
        "holofs_mounts_total" => one(totals.mounts),
        "holofs_files" => one(totals.files),
        "holofs_files_with_relocations" => one(totals.relocated),
        "holofs_files_touched" => one(totals.touched),
        "holofs_corrupt_files" => one(totals.corrupt.len() as u64),
        ERRORS => totals.errors().map(|(errno, n)| (Some(("errno", errno.to_owned())), n)).collect(),
        name => COUNTERS
            .iter()
            .filter(|counter| counter.family.0 == name)
            .map(|counter| {
                let (_, label, value) = counter.family;
                (Some((label, value.to_owned())).filter(|_| !label.is_empty()), totals.get(counter.name))
            })
            .collect(),
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Parses a sample as Prometheus does: name, labels with escapes, value.
    fn parse(line: &str) -> (String, Vec<(String, String)>, f64) {
        let (name, rest) = line.split_once('{').unwrap();
        let mut chars = rest.chars();
        let mut labels = Vec::new();
        loop {
            let label: String = chars.by_ref().take_while(|c| *c != '=').collect();
            assert_eq!(chars.next(), Some('"'), "{line}");
            let mut value = String::new();
            loop {
                match chars.next().unwrap() {
                    '"' => break,
                    '\\' => value.push(match chars.next().unwrap() {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        c => panic!("\\{c} in {line}"),
                    }),
                    '\n' => panic!("{line}"),
                    c => value.push(c),
                }
            }
            labels.push((label, value));
            match chars.next().unwrap() {
                ',' => {}
                '}' => break,
                c => panic!("{c} in {line}"),
            }
        }
        (name.to_owned(), labels, chars.as_str().trim_start().parse().unwrap())
    }

    fn is_name(name: &str) -> bool {
        name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') && !name.is_empty()
    }

    #[test]
    fn text_is_what_prometheus_reads() {
        let mut totals = Totals { files: 10, mounts: 1, ..Totals::default() };
        for (n, counter) in COUNTERS.iter().enumerate() {
            totals.counters.insert(counter.name.to_owned(), n as u64 + 1);
        }
        totals.counters.insert("errors.EIO".to_owned(), 3);
        totals.counters.insert("errors.133".to_owned(), 1);
        let odd = "a\"b\\c\nd";
        let spaces = [odd, "other"].map(|name| Labelled {
            labels: [("space", name), ("controller", "rcc.user"), ("identity", "x")],
            is_mounted: true,
            totals: &totals,
        });
        let text = text(&spaces);
        assert!(text.ends_with('\n'));
        let (mut seen, mut current) = (HashSet::new(), None);
        let mut values = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(
                    is_name(name) && !help.is_empty() && seen.insert(("family", name.to_owned())),
                    "{line}"
                );
                current = Some(name);
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(Some(name), current);
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            } else {
                let (name, labels, value) = parse(line);
                assert_eq!(Some(name.as_str()), current, "a sample outside of its family");
                assert!(labels.iter().all(|(label, _)| is_name(label)), "{line}");
                assert!(
                    seen.insert(("sample", line.rsplit_once(' ').unwrap().0.to_owned())),
                    "twice: {line}"
                );
                values.push((name, labels, value));
            }
        }
        assert!(values.iter().any(|(_, labels, _)| labels[0].1 == odd));
        let of = |name: &str| values.iter().filter(|(found, ..)| found == name).count();
        assert_eq!((of(super::super::COPIES), of(ERRORS), of("holofs_files")), (6, 4, 2));
        assert!(FAMILIES.iter().all(|family| of(family.name) > 0));
    }

    #[test]
    fn every_counter_has_a_family_or_is_left_out_on_purpose() {
        let without: Vec<&str> = COUNTERS
            .iter()
            .filter(|counter| counter.family.0.is_empty())
            .map(|counter| counter.name)
            .collect();
        assert_eq!(without, ["files_touched", "requests_failed"]);
        for counter in COUNTERS.iter().filter(|counter| !counter.family.0.is_empty()) {
            assert!(FAMILIES.iter().any(|family| family.name == counter.family.0), "{}", counter.name);
        }
    }

    /// The page documents each name with its unit, and no other name.
    #[test]
    fn the_page_documents_every_name() {
        let page = include_str!("../../docs/METRICS.md");
        let rows: Vec<Vec<&str>> = page
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.split('|').map(|cell| cell.trim().trim_matches('`')).collect())
            .collect();
        let documented: Vec<(&str, &str, &str)> = rows.iter().map(|row| (row[1], row[2], row[3])).collect();
        let stability = |stability: Stability| match stability {
            Stability::Stable => "stable",
            Stability::Unstable => "unstable",
        };
        let counters = COUNTERS.iter().map(|one| (one.name, one.unit, stability(one.stability)));
        let families = FAMILIES.iter().map(|one| (one.name, one.unit, stability(one.stability)));
        assert_eq!(documented, counters.chain(families).collect::<Vec<_>>());
        for (row, counter) in rows.iter().zip(COUNTERS) {
            assert_eq!(row[4].replace('`', ""), counter.meaning.replace('`', ""));
        }
        for (row, family) in rows.iter().skip(COUNTERS.len()).zip(FAMILIES) {
            assert_eq!(row[4], family.help);
        }
    }
}
