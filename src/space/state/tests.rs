use std::os::unix::fs::PermissionsExt;

use super::*;

fn content(sha: &str, blueprint: &str) -> Basis {
    Basis {
        identity: "720c7a8_5a1fac3_700be151".into(),
        catalog_sha256: sha.repeat(32),
        blueprint: blueprint.into(),
        base: "/holotree".into(),
        library: "/hololib".into(),
        controller: "rcc.user".into(),
        space: "demo".into(),
        foreign: None,
        placed: false,
        ephemeral: false,
    }
}

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Fixture { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("spaces/720c7a8_5a1fac3_700be151")
    }

    fn open(&self) -> StateDir {
        StateDir::open_locked(&self.path()).unwrap()
    }

    fn change(&self) {
        std::fs::write(self.path().join("upper/mine"), "work").unwrap();
    }

    fn has_change(&self) -> bool {
        self.path().join("upper/mine").exists()
    }
}

#[test]
fn new_space_is_private_and_records_its_content() {
    let f = Fixture::new();
    let state = f.open();
    let kept = state.adopt(&content("aa", "b1"), false).unwrap();
    assert_eq!(kept.basis, content("aa", "b1"));
    for path in
        [state.path().to_owned(), state.upper(), state.path().join("work"), state.path().join("reloc")]
    {
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700, "{path:?}");
    }
    assert_eq!(SpaceRecord::read(&f.path()).unwrap().unwrap(), kept);
}

#[test]
fn ebusy_while_locked_and_free_after() {
    let f = Fixture::new();
    let state = f.open();
    state.write_run(&RunInfo { pid: 4711, ..RunInfo::default() }).unwrap();
    assert!(is_locked(&f.path()));
    match StateDir::open_locked(&f.path()) {
        Err(SpaceError::Busy { pid: Some(4711), .. }) => {}
        other => panic!("{other:?}"),
    }
    drop(state);
    assert!(!is_locked(&f.path()));
    f.open();
}

#[test]
fn a_run_record_of_an_older_version_is_read() {
    let f = Fixture::new();
    let _state = f.open();
    // Older versions wrote `busy_poll`.
    let text = r#"{"pid": 4711, "start_time": 1, "mountpoint": "/m", "io": "cached", "busy_poll": true}"#;
    std::fs::write(f.path().join("run.json"), text).unwrap();
    let run = read_run(&f.path()).unwrap();
    assert_eq!((run.pid, run.io), (4711, Some(crate::settings::IoMode::Cached)));
}

#[test]
fn changes_are_kept_for_the_same_catalog() {
    let f = Fixture::new();
    f.open().adopt(&content("aa", "b1"), false).unwrap();
    f.change();
    let moved = Basis { library: "/elsewhere".into(), ..content("aa", "b1") };
    assert_eq!(f.open().adopt(&moved, false).unwrap().basis.library, "/elsewhere");
    assert!(f.has_change());
}

#[test]
fn changes_over_another_catalog_are_refused_and_kept() {
    let f = Fixture::new();
    f.open().adopt(&content("aa", "b1"), false).unwrap();
    f.change();
    match f.open().adopt(&content("bb", "b2"), false) {
        Err(error @ SpaceError::OtherContent { .. }) => {
            assert_eq!(
                error.to_string(),
                "720c7a8_5a1fac3_700be151: its changes belong to blueprint b1, not to b2"
            );
        }
        other => panic!("{other:?}"),
    }
    // Recorded again with the same blueprint: the tree may differ.
    match f.open().adopt(&content("cc", "b1"), false) {
        Err(SpaceError::OtherContent { blueprint: None, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(f.has_change());
    assert!(f.open().adopt(&content("aa", "b1"), false).is_ok());
}

#[test]
fn changes_of_another_holotree_are_refused() {
    let f = Fixture::new();
    f.open().adopt(&content("aa", "b1"), false).unwrap();
    f.change();
    let other = Basis { base: "/other".into(), ..content("aa", "b1") };
    assert!(matches!(f.open().adopt(&other, false), Err(SpaceError::OtherContent { .. })));
}

#[test]
fn space_without_changes_switches_silently() {
    let f = Fixture::new();
    f.open().adopt(&content("aa", "b1"), false).unwrap();
    std::fs::write(f.path().join("reloc/17"), "patched for b1").unwrap();
    assert_eq!(f.open().adopt(&content("bb", "b2"), false).unwrap().basis.blueprint, "b2");
    assert!(!f.path().join("reloc/17").exists());
}

#[test]
fn relocated_files_stay_for_the_same_catalog() {
    let f = Fixture::new();
    f.open().adopt(&content("aa", "b1"), false).unwrap();
    std::fs::write(f.path().join("reloc/17"), "patched").unwrap();
    f.open().adopt(&content("aa", "b1"), false).unwrap();
    assert!(f.path().join("reloc/17").exists());
}

#[test]
fn fresh_drops_the_changes_and_sweeps() {
    let f = Fixture::new();
    f.open().adopt(&content("aa", "b1"), false).unwrap();
    f.change();
    let deep = f.path().join("upper/locked/dir");
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::set_permissions(f.path().join("upper/locked"), std::fs::Permissions::from_mode(0o0)).unwrap();
    f.open().adopt(&content("bb", "b2"), true).unwrap();
    assert!(!f.has_change());
    let left: Vec<_> = std::fs::read_dir(f.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().starts_with("trash")), "{left:?}");
}

#[test]
fn damaged_state_with_changes_is_an_error_that_names_it() {
    for damage in ["", "{", "{\"version\":1}", "null", "\u{0}\u{0}"] {
        let f = Fixture::new();
        f.open().adopt(&content("aa", "b1"), false).unwrap();
        f.change();
        std::fs::write(f.path().join("state.json"), damage).unwrap();
        match f.open().adopt(&content("aa", "b1"), false) {
            Err(SpaceError::DamagedState { path, .. }) => assert!(path.ends_with("state.json")),
            other => panic!("{damage:?}: {other:?}"),
        }
        assert!(f.has_change());
        f.open().adopt(&content("aa", "b1"), true).unwrap();
        assert!(!f.has_change());
    }
}

#[test]
fn missing_state_with_changes_is_an_error() {
    let f = Fixture::new();
    f.open().adopt(&content("aa", "b1"), false).unwrap();
    f.change();
    std::fs::remove_file(f.path().join("state.json")).unwrap();
    assert!(matches!(f.open().adopt(&content("aa", "b1"), false), Err(SpaceError::DamagedState { .. })));
    assert!(f.has_change());
}

#[test]
fn damaged_state_without_changes_is_written_anew() {
    let f = Fixture::new();
    f.open().adopt(&content("aa", "b1"), false).unwrap();
    std::fs::write(f.path().join("state.json"), "{").unwrap();
    f.open().adopt(&content("aa", "b1"), false).unwrap();
    assert!(SpaceRecord::read(&f.path()).unwrap().is_some());
}

#[test]
fn unknown_feature_is_refused_by_name() {
    let f = Fixture::new();
    let mut state = f.open().adopt(&content("aa", "b1"), false).unwrap();
    f.change();
    state.incompat.push("packed-upper".into());
    std::fs::write(f.path().join("state.json"), serde_json::to_vec(&state).unwrap()).unwrap();
    match f.open().adopt(&content("aa", "b1"), false) {
        Err(SpaceError::UnknownFeature { feature, .. }) => assert_eq!(feature, "packed-upper"),
        other => panic!("{other:?}"),
    }
    std::fs::write(f.path().join("state.json"), "{\"version\":2,\"x\":{}}").unwrap();
    assert!(matches!(SpaceRecord::read(&f.path()), Err(SpaceError::UnknownFeature { .. })));
}

#[test]
fn ephemeral_changes_do_not_outlive_a_crash() {
    let f = Fixture::new();
    let ephemeral = Basis { ephemeral: true, ..content("aa", "b1") };
    f.open().adopt(&ephemeral, false).unwrap();
    f.change();
    assert!(!f.open().adopt(&content("aa", "b1"), false).unwrap().basis.ephemeral);
    assert!(!f.has_change());
}

#[test]
fn ephemeral_never_takes_earlier_changes_with_it() {
    let f = Fixture::new();
    f.open().adopt(&content("aa", "b1"), false).unwrap();
    f.change();
    let ephemeral = Basis { ephemeral: true, ..content("aa", "b1") };
    assert!(matches!(f.open().adopt(&ephemeral, false), Err(SpaceError::EphemeralOverChanges(_))));
    assert!(f.has_change());
}

#[test]
fn state_inside_the_library_is_refused() {
    let f = Fixture::new();
    let library = f.dir.path().join("hololib");
    std::fs::create_dir_all(&library).unwrap();
    std::os::unix::fs::symlink(&library, f.dir.path().join("alias")).unwrap();
    for inside in ["hololib", "hololib/deep/er", "alias/spaces", "x/../hololib/y"] {
        std::fs::create_dir_all(f.dir.path().join("x")).unwrap();
        let error = check_outside(&f.dir.path().join(inside), &library).unwrap_err();
        assert!(matches!(error, SpaceError::StateInsideLibrary { .. }), "{inside}");
    }
    check_outside(&f.dir.path().join("hololib2/spaces"), &library).unwrap();
}

#[test]
fn what_a_newer_version_keeps_is_written_back() {
    let f = Fixture::new();
    let state = f.open().adopt(&content("aa", "b1"), false).unwrap();
    f.change();
    let mut value = serde_json::to_value(&state).unwrap();
    value["compat"] = serde_json::json!(["notes"]);
    value["notes"] = serde_json::json!({"a": [1, 2]});
    std::fs::write(f.path().join("state.json"), value.to_string()).unwrap();
    let moved = Basis { library: "/elsewhere".into(), ..content("aa", "b1") };
    f.open().adopt(&moved, false).unwrap();
    let text = std::fs::read_to_string(f.path().join("state.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&kept["notes"], &kept["compat"]), (&value["notes"], &value["compat"]));
    assert_eq!(kept["library"], "/elsewhere");
}

#[test]
fn changes_are_moved_whole_and_each_time_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open_locked(&dir.path().join("s")).unwrap();
    std::fs::write(state.path().join("state.json"), "{}").unwrap();
    assert_eq!(state.set_aside().unwrap(), None);
    let mut kept = Vec::new();
    for text in ["one", "two"] {
        std::fs::write(state.upper().join("mine"), text).unwrap();
        let aside = state.set_aside().unwrap().unwrap();
        assert_eq!(std::fs::read_to_string(aside.join("upper/mine")).unwrap(), text);
        assert!(aside.join("state.json").exists());
        assert_eq!(std::fs::read_dir(state.upper()).unwrap().count(), 0);
        kept.push(aside);
    }
    let mut found = aside_of(state.path());
    found.sort();
    assert_eq!(found, kept);
}
