//! Checks that every test which `docs/SEMANTICS.md` names exists.

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
