//! Checks that every test, function and file that the documents name exists.

use std::path::{Path, PathBuf};

/// The source files of a test's module: `mounted::links` is `mounted/links.rs`, or `mounted.rs` and everything below
/// it.
fn sources(module: &[&str]) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (base, rest) = match module {
        ["fs", rest @ ..] => (root.join("src/fs/tests"), rest),
        rest => (root.join("tests/e2e"), rest),
    };
    let path = rest.iter().fold(base, |path, part| path.join(part));
    let mut found = vec![path.with_extension("rs")];
    if let Ok(entries) = std::fs::read_dir(&path) {
        found.extend(entries.map(|entry| entry.unwrap().path()));
    }
    found.retain(|path| path.is_file());
    found
}

#[test]
fn every_named_test_exists() {
    let page = include_str!("../../docs/SEMANTICS.md");
    let mut named = 0;
    for row in page.lines().filter(|line| line.starts_with('|')) {
        let Some(tests) = row.trim_end_matches('|').rsplit('|').next() else { continue };
        for name in tests.split('`').skip(1).step_by(2).filter(|name| !name.contains('/')) {
            let parts: Vec<&str> = name.split("::").collect();
            let is_module = !sources(&parts).is_empty();
            let (test, module) = parts.split_last().unwrap();
            let is_test = sources(module).iter().any(|path| {
                let text = std::fs::read_to_string(path).unwrap();
                text.contains(&format!("fn {test}("))
            });
            assert!(
                is_module || is_test,
                "docs/SEMANTICS.md names `{name}`, which is neither a test nor a module"
            );
            named += 1;
        }
    }
    assert!(named > 50, "only {named} tests were found in the page");
}

/// The text of all source files below `src`.
fn source_text(dir: &Path, text: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source_text(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// The documents, each with its text.
const PAGES: [(&str, &str); 8] = [
    ("README.md", include_str!("../../README.md")),
    ("docs/ARCHITECTURE.md", include_str!("../../docs/ARCHITECTURE.md")),
    ("docs/DEPENDENCIES.md", include_str!("../../docs/DEPENDENCIES.md")),
    ("docs/ON-DISK.md", include_str!("../../docs/ON-DISK.md")),
    ("docs/PERFORMANCE.md", include_str!("../../docs/PERFORMANCE.md")),
    ("docs/SECURITY.md", include_str!("../../docs/SECURITY.md")),
    ("docs/TESTING.md", include_str!("../../docs/TESTING.md")),
    ("docs/TROUBLESHOOTING.md", TROUBLESHOOTING),
];

/// What a page has between backticks, without code blocks.
fn code(page: &str) -> impl Iterator<Item = &str> {
    page.split("```").step_by(2).flat_map(|text| text.split('`').skip(1).step_by(2))
}

#[test]
fn every_named_function_exists() {
    let mut text = String::new();
    source_text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
    let is_defined = |name: &str| {
        ["fn", "struct", "enum", "trait", "mod"].iter().any(|kind| {
            let start = format!("{kind} {name}");
            text.match_indices(&start).any(|(at, _)| {
                !text[at + start.len()..].starts_with(|c: char| c == '_' || c.is_alphanumeric())
            })
        })
    };
    let mut named = 0;
    for (page, path) in PAGES.iter().flat_map(|(page, text)| code(text).map(move |path| (page, path))) {
        // `…::here` stands for the test of any name.
        if !path.contains("::") || path.contains('…') {
            continue;
        }
        for name in path.split("::").filter(|name| !name.is_empty()) {
            // A variant of an enum has no keyword in front.
            let is_variant = name.starts_with(char::is_uppercase) && text.contains(&format!("    {name},"));
            assert!(is_defined(name) || is_variant, "{page} names `{path}`; there is no `{name}`");
        }
        named += 1;
    }
    assert!(named > 40, "only {named} names were found");
}

#[test]
fn every_named_file_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let places = ["src/", "tests/", "docs/", "scripts/", "examples/", "mount-helper/", "fuzz/"];
    let mut named = 0;
    for (page, path) in PAGES.iter().flat_map(|(page, text)| code(text).map(move |path| (page, path))) {
        if places.iter().any(|place| path.starts_with(place)) && !path.contains(' ') {
            assert!(root.join(path).exists(), "{page} names `{path}`, which does not exist");
            named += 1;
        }
    }
    assert!(named > 20, "only {named} files were found");
}

/// The text of the sources, with the lines of a literal joined as the compiler joins them.
fn joined_sources() -> String {
    let mut text = String::new();
    source_text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
    let parts: Vec<&str> = text.split("\\\n").collect();
    parts.iter().map(|part| if std::ptr::eq(*part, parts[0]) { part } else { part.trim_start() }).collect()
}

const TROUBLESHOOTING: &str = include_str!("../../docs/TROUBLESHOOTING.md");

/// The page quotes messages that holofs prints: what is between two `…` is in the sources.
#[test]
fn troubleshooting_quotes_messages_that_exist() {
    let sources = joined_sources();
    let (_, messages) = TROUBLESHOOTING.split_once("## Messages").unwrap();
    let mut quoted = 0;
    for row in messages.lines().filter(|line| line.starts_with("| ")) {
        let message = row.split('|').nth(1).unwrap();
        for quote in message.split('`').skip(1).step_by(2) {
            // Of the kernel, of fusermount3, and names of files and options.
            if [
                "No space left",
                "user_allow_other",
                "LINE",
                ".json",
                ".yaml",
                "--",
                "-z",
                "-e",
                "artifactsDir",
            ]
            .iter()
            .any(|other| quote.contains(other))
                && !sources.contains(quote)
            {
                continue;
            }
            let words = |part: &&str| part.chars().filter(|c| c.is_alphabetic()).count() >= 4;
            for part in quote.split('…').filter(words) {
                let part = part.trim_matches([' ', ':', ',', '(', ')', '"']);
                let escaped = part.replace('"', "\\\"");
                assert!(
                    sources.contains(part) || sources.contains(&escaped),
                    "{quote:?}: no source has {part:?}"
                );
                quoted += 1;
            }
        }
    }
    assert!(quoted > 60, "only {quoted} messages were found");
}

/// Nearly every advice that holofs prints is on the page, and so can be searched for.
#[test]
fn troubleshooting_has_what_holofs_tells_to_try() {
    let source = include_str!("../../src/cli/exit.rs");
    let mut missing = Vec::new();
    let mut all = 0;
    let calls = source.split("try_this(").skip(1);
    let constants = source.split("&str = ").skip(1).map(|rest| rest.split(';').next().unwrap_or_default());
    let ways = source.split("fn way_out").nth(1).unwrap().split("const NO_DEVICE").next().unwrap();
    let ways = ways.split("=> ").skip(1);
    for text in calls.map(|rest| &rest[..rest.len().min(160)]).chain(constants).chain(ways) {
        let Some(literal) = text.split_once('"').map(|(_, rest)| rest.replace("\\\"", "\u{1}")) else {
            continue;
        };
        let literal = literal.split('"').next().unwrap().replace('\u{1}', "\"");
        let longest = literal.split(['{', '}']).max_by_key(|part| part.len()).unwrap().trim();
        if longest.len() >= 8 {
            all += 1;
            if !TROUBLESHOOTING.contains(longest) {
                missing.push(longest.to_owned());
            }
        }
    }
    assert!(all > 80, "only {all} were found");
    assert!(missing.len() * 10 < all, "add to docs/TROUBLESHOOTING.md: {missing:#?}");
}
