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
const PAGES: [(&str, &str); 7] = [
    ("README.md", include_str!("../../README.md")),
    ("docs/ARCHITECTURE.md", include_str!("../../docs/ARCHITECTURE.md")),
    ("docs/DEPENDENCIES.md", include_str!("../../docs/DEPENDENCIES.md")),
    ("docs/ON-DISK.md", include_str!("../../docs/ON-DISK.md")),
    ("docs/PERFORMANCE.md", include_str!("../../docs/PERFORMANCE.md")),
    ("docs/SECURITY.md", include_str!("../../docs/SECURITY.md")),
    ("docs/TESTING.md", include_str!("../../docs/TESTING.md")),
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
