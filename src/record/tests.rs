//! Whole recordings, compared with rcc's own and restored by a reader that follows the format strictly.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::library::catalog::{EntryKind, parse_file};
use crate::library::digest::{Digest, DigestKind, Hasher};

const HOME: &str = "/tmp/rcchome/home";
const STAGE: &str = "hea7ce2c_493f813dad24d3t";
const SPACE: &str = "ea7ce2c_5a1fac3_ca793c28";

pub(super) fn options(library: &Path, script: &str) -> RecordOptions {
    RecordOptions {
        target: Target {
            library: library.into(),
            default_hololib: "/nowhere".into(),
            robocorp_home: None,
            compress: None,
            lock_timeout: Duration::from_secs(30),
            progress: |_| indicatif::ProgressBar::hidden(),
            cancel: Arc::default(),
        },
        home: Some(HOME.into()),
        blueprint: "a: blueprint\n".into(),
        command: ["sh", "-euc", script].map(OsString::from).to_vec(),
        keep_stage: false,
        replace: false,
        portable: false,
    }
}

fn text_of(catalog: &Path) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(fs::File::open(catalog).unwrap()).read_to_string(&mut text).unwrap();
    text
}

fn list(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        found.push(entry.path());
        if entry.file_type().unwrap().is_dir() {
            found.extend(list(&entry.path()));
        }
    }
    found.sort();
    found
}

fn blobs(library: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = list(library).into_iter().filter(|path| path.is_file());
    files.map(|path| (path.file_name().unwrap().to_str().unwrap().into(), fs::read(&path).unwrap())).collect()
}

fn restore(recorded: &Recorded, hololib: &Path, name: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/record/tests/restore.py");
    let space = recorded.stage.with_file_name(name);
    let output = Command::new("python3")
        .arg(script)
        .arg(hololib)
        .arg(recorded.catalog.file_name().unwrap())
        .arg(&space)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    space
}

/// Restores a tree of a catalog into a directory, without relocation.
fn unpack(library: &Path, tree: &Value, stages: (&str, &str), dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let link = |entry: &Value| Some(entry.get("symlink")?.as_str().unwrap().replace(stages.0, stages.1));
    for (name, entry) in tree["subdirs"].as_object().unwrap() {
        match link(entry) {
            Some(text) => symlink(text, dir.join(name)).unwrap(),
            None => unpack(library, entry, stages, &dir.join(name)),
        }
    }
    for (name, entry) in tree["files"].as_object().unwrap() {
        if let Some(text) = link(entry) {
            symlink(text, dir.join(name)).unwrap();
            continue;
        }
        let digest = Digest::parse(entry["digest"].as_str().unwrap().as_bytes()).unwrap();
        let mut bytes = fs::read(library.join(digest.fan_out())).unwrap();
        if !digest.is_raw() {
            let packed = std::mem::take(&mut bytes);
            flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
        }
        fs::write(dir.join(name), bytes).unwrap();
        let mode = entry["mode"].as_u64().unwrap() as u32;
        fs::set_permissions(dir.join(name), Permissions::from_mode(mode & 0o777)).unwrap();
    }
    let mode = tree["mode"].as_u64().unwrap() as u32;
    fs::set_permissions(dir, Permissions::from_mode(mode & 0o777)).unwrap();
}

#[test]
fn recording_equals_rccs_byte_for_byte() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for (fixture, blueprint, golden, space, compress) in [
        ("basic-gz", "blueprint.yaml", "golden-one", SPACE, None),
        ("basic-raw", "blueprint.yaml", "golden-one", SPACE, Some(false)),
        ("two-catalogs", "blueprint-b.yaml", "golden-two", "ea7ce2c_5a1fac3_d7eb8c75", Some(true)),
    ] {
        let catalog = if blueprint == "blueprint.yaml" { "adb8c26db4d86a93" } else { "4ef4502d7023d413" };
        let fixture = fixtures.join(fixture);
        let theirs = fixture.join("home/hololib");
        let text = text_of(&theirs.join("catalog").join(format!("{catalog}v12.linux_amd64")));
        let value: Value = serde_json::from_str(&text).unwrap();

        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        let stage = home.join("holotree").join(STAGE).to_str().unwrap().to_owned();
        let prepared = dir.path().join("prepared");
        let there = value["path"].as_str().unwrap();
        unpack(&theirs.join("library"), &value["tree"], (there, &stage), &prepared);

        let script = format!("cp -a '{}/.' . ; echo overwritten > identity.yaml", prepared.display());
        let mut options = options(&home, &script);
        options.target.compress = compress;
        options.blueprint = fs::read_to_string(fixture.join(blueprint)).unwrap();
        let recorded = record(&options).unwrap();
        assert_eq!(recorded.blueprint, catalog);
        assert!(recorded.warnings.iter().any(|warning| warning.contains("abs-file")), "{recorded:?}");

        let wanted = text.replace(there, &stage).replacen(
            "\"rcc\": \"v18.18.1\"",
            concat!("\"rcc\": \"holofs v", env!("CARGO_PKG_VERSION"), "\""),
            1,
        );
        let ours = text_of(&recorded.catalog);
        let lines = wanted.lines().zip(ours.lines());
        for (number, (wanted, ours)) in lines.enumerate() {
            assert_eq!(wanted, ours, "line {number} of {catalog}");
        }
        assert_eq!(wanted, ours);

        let hololib = home.join("hololib");
        let (their_blobs, our_blobs) = (blobs(&theirs.join("library")), blobs(&hololib.join("library")));
        assert_eq!(our_blobs.len() as u64, recorded.blobs_total);
        for (digest, blob) in &our_blobs {
            let theirs = &their_blobs[digest];
            assert!(compress != Some(false) || theirs == blob, "{digest}");
        }
        let info =
            fs::read_to_string(recorded.catalog.with_file_name(format!("{catalog}v12.linux_amd64.info")));
        assert!(ours.starts_with(info.unwrap().trim_end_matches("\n}")));

        let space = restore(&recorded, &hololib, space);
        check_golden(&space, &fixture.join("golden").join(golden).with_extension("jsonl"), &stage, there);
    }
}

/// Compares a restored space with one that rcc restored.
fn check_golden(space: &Path, golden: &Path, stage: &str, there: &str) {
    let golden = fs::read_to_string(golden).unwrap();
    let mut count = 0;
    for line in golden.lines().skip(1) {
        let entry: Value = serde_json::from_str(line).unwrap();
        let path = space.join(entry["path"].as_str().unwrap());
        match entry["type"].as_str().unwrap() {
            "dir" => assert!(fs::symlink_metadata(&path).unwrap().is_dir(), "{path:?}"),
            "link" => {
                let target = entry["target"].as_str().unwrap().replace(there, stage);
                assert_eq!(fs::read_link(&path).unwrap(), Path::new(&target));
            }
            _ => {
                let digest = Hasher::digest(DigestKind::Sha256, &fs::read(&path).unwrap()).to_string();
                assert_eq!(entry["sha256"], digest, "{path:?}");
                let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
                assert_eq!(entry["mode"], format!("{mode:04o}"), "{path:?}");
            }
        }
        count += 1;
    }
    assert!(count > 100 && count == list(space).len() + 1, "{count}");
}

/// A tree of everything that rcc cannot record, or records wrongly.
const ODD: &str = r#"
    stage=${PWD##*/}
    printf '#!/%s/bin/python' "$stage" > shebang
    printf '%s' "$stage" > bare
    printf '%s%s' "$stage" "$stage" > twice
    chmod 4755 twice
    printf secret > ../outside; mkdir -p ../outdir; printf secret2 > ../outdir/file
    ln -s ../outside to-outside; ln -s ../outdir to-outdir; ln -s /no/such broken; ln -s loop loop
    ln -s . self; mkdir -p sub/deep/__pycache__; printf x > sub/deep/file; ln -s ../.. sub/deep/up
    printf pyc > sub/deep/__pycache__/a.pyc
    ln -s sub/deep/__pycache__ to-left-out; ln -s sub/deep/__pycache__/a.pyc to-pyc; ln -s sub short; ln -s /dev/zero zero
    : > empty; ln -s empty to-empty; ln shebang hard; printf y > 'a<b>&c'; mkdir void
"#;

#[test]
fn strict_reader_restores_what_rcc_could_not_record() {
    for compress in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        let mut options = options(&home, ODD);
        (options.target.compress, options.keep_stage) = (Some(compress), true);
        let recorded = record(&options).unwrap();
        let space = restore(&recorded, &home.join("hololib"), SPACE);
        let stage = &recorded.stage;
        let mut seen = 0;
        for path in list(stage) {
            let name = path.strip_prefix(stage).unwrap();
            if name.to_str().unwrap().contains("__pycache__") && !path.is_symlink() {
                continue;
            }
            seen += 1;
            let restored = space.join(name);
            let metadata = fs::symlink_metadata(&path).unwrap();
            assert_eq!(
                metadata.file_type(),
                fs::symlink_metadata(&restored).unwrap().file_type(),
                "{name:?}"
            );
            if metadata.is_symlink() {
                assert_eq!(fs::read_link(&path).unwrap(), fs::read_link(&restored).unwrap(), "{name:?}");
            } else if metadata.is_file() {
                let wanted = fs::read_to_string(&path).unwrap().replace(STAGE, SPACE);
                assert_eq!(fs::read_to_string(&restored).unwrap(), wanted, "{name:?}");
                assert_eq!(
                    metadata.permissions(),
                    fs::metadata(&restored).unwrap().permissions(),
                    "{name:?}"
                );
            }
        }
        assert_eq!(seen, list(&space).len());
        assert_eq!((recorded.files, recorded.dirs, recorded.links), (8, 3, 11));
        assert_eq!((recorded.relocated, recorded.relocations), (4, 5));
        for (digest, blob) in blobs(&home.join("hololib/library")) {
            let mut content = blob.clone();
            if compress {
                content.clear();
                flate2::read::GzDecoder::new(&blob[..]).read_to_end(&mut content).unwrap();
            }
            assert!(
                !content.starts_with(b"secret") && content != b"pyc",
                "{digest} is not the environment's"
            );
        }
    }
}

#[test]
fn holofs_reads_what_it_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let recorded = record(&options(&dir.path().join("home"), ODD)).unwrap();
    assert!(!recorded.stage.exists());
    let tree = parse_file(&fs::read(&recorded.catalog).unwrap()).unwrap();
    let mut counts = (0, 0, 0);
    for entry in tree.entries.iter().skip(1) {
        match entry.kind {
            EntryKind::File { .. } => counts.0 += 1,
            EntryKind::Dir => counts.1 += 1,
            EntryKind::Symlink { .. } => counts.2 += 1,
        }
    }
    assert_eq!(counts, (recorded.files, recorded.dirs, recorded.links));
    assert_eq!((&*tree.info.blueprint, &*tree.info.identity), (&*recorded.blueprint, STAGE));
}

#[test]
fn nested_directory_links_make_no_huge_catalog() {
    let dir = tempfile::tempdir().unwrap();
    let script = "for i in $(seq 1 30); do mkdir d$i; ln -s ../d$((i+1)) d$i/a; ln -s ../d$((i+1)) d$i/b; done; \
                  mkdir d31; ln -s ../d1 d31/again";
    let recorded = record(&options(&dir.path().join("home"), script)).unwrap();
    let text = text_of(&recorded.catalog);
    assert!(text.len() < 50 << 20, "{}", text.len());
    parse_file(&fs::read(&recorded.catalog).unwrap()).unwrap();
    restore(&recorded, &dir.path().join("home/hololib"), SPACE);
}

#[test]
fn recording_again_writes_no_blob_twice_and_replaces_the_catalog() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let mut options = options(&home, "echo one > one; echo two > two; cp one three");
    let first = record(&options).unwrap();
    assert_eq!((first.files, first.blobs_new, first.replaced), (4, 4, false), "{first:?}");
    assert_eq!(first.blobs_total, 4, "one, two, the blueprint and the empty file");
    options.target.compress = Some(true);
    options.replace = true;
    let second = record(&options).unwrap();
    assert_eq!((second.blobs_new, second.bytes_stored, second.replaced), (0, 0, true));
    assert_eq!(second.catalog, first.catalog);
    options.target.compress = Some(false);
    assert!(matches!(record(&options), Err(RecordError::Kind { .. })));
    let left: Vec<_> =
        list(&home).into_iter().filter(|path| path.to_string_lossy().contains("part#")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_environment_of_this_blueprint_stays_and_no_command_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (home, ran) = (dir.path().join("home"), dir.path().join("ran"));
    let first = record(&options(&home, "echo one > one")).unwrap();
    let before = fs::read(&first.catalog).unwrap();
    let error = record(&options(&home, &format!("echo two > two; touch {}", ran.display()))).unwrap_err();
    assert!(matches!(&error, RecordError::Exists { catalog } if *catalog == first.catalog), "{error}");
    assert!(!ran.exists());
    assert!(fs::read(&first.catalog).unwrap() == before);
    let replaced = record(&RecordOptions { replace: true, ..options(&home, "echo two > two") }).unwrap();
    assert!(replaced.replaced && fs::read(&first.catalog).unwrap() != before);
}

#[test]
fn a_failure_leaves_no_catalog_and_no_stage() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    for (script, word) in [
        ("echo x > file; exit 3", "exit status: 3"),
        ("mkdir sub; mkfifo sub/pipe", "sub/pipe"),
        (r"touch $(printf 'caf\351')", "UTF-8"),
    ] {
        let error = record(&options(&home, script)).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        assert_eq!(list(&home.join("hololib/catalog")), Vec::<PathBuf>::new());
        assert_eq!(list(&home.join("holotree")), [home.join("holotree/global.lck")]);
    }
    let mut kept = options(&home, "echo x > file; exit 3");
    kept.keep_stage = true;
    record(&kept).unwrap_err();
    assert!(home.join("holotree").join(STAGE).join("file").exists());
    assert!(matches!(record(&kept), Err(RecordError::StageInUse { .. })));
}

#[test]
fn missing_arguments_are_errors_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let mut empty = options(&home, "true");
    empty.blueprint = " \n".into();
    assert!(matches!(record(&empty), Err(RecordError::NoBlueprint)));
    let mut idle = options(&home, "true");
    idle.command.clear();
    assert!(matches!(record(&idle), Err(RecordError::NoCommand)));
    assert!(!home.exists());
}
