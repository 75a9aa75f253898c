//! A mount of a library that real rcc wrote equals what real rcc restored from it, byte for byte.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::common::as_user::fixtures;
use crate::common::library::umask;
use crate::common::manifest::{Line, Manifest, assert_same, read_golden, read_tree};
use crate::common::{Library, MOTHER_TIME, Mounted, World, files_below, fixture, wait_until};

/// The blueprints of `two-catalogs`.
const A: &str = "adb8c26db4d86a93";
const B: &str = "4ef4502d7023d413";

/// A golden manifest, adapted to the umask of this process. The goldens were made with umask 022.
fn golden(fixture: &str, space: &str) -> Manifest {
    let mut manifest = read_golden(&fixture::golden(fixture, space));
    for line in manifest.values_mut() {
        if let Line::Dir { mode } = line {
            *mode = 0o750 & !umask();
        }
    }
    manifest
}

/// Asserts that a space equals its golden manifest, has the golden name, and that its directories have rcc's time.
#[track_caller]
pub fn assert_golden(mounted: &Mounted<'_>, fixture: &str, space: &str) {
    let first = std::fs::read_to_string(fixture::golden(fixture, space)).unwrap();
    let header: Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert_eq!(mounted.identity(), header["name"].as_str().unwrap());
    assert_same(&golden(fixture, space), &read_tree(mounted.path()));
    assert_directory_times(mounted.path());
}

fn assert_directory_times(dir: &Path) {
    let stat = std::fs::symlink_metadata(dir).unwrap();
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (MOTHER_TIME, 0), "{}", dir.display());
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            assert_directory_times(&entry.path());
        }
    }
}

for_both_users! {
    fn compressed_library_first_space() {
        let world = fixture::world("basic-gz");
        assert_golden(&world.mount("golden-one"), "basic-gz", "golden-one");
    }

    fn compressed_library_second_space() {
        let world = fixture::world("basic-gz");
        let _first = world.mount("golden-one");
        assert_golden(&world.mount("golden-two"), "basic-gz", "golden-two");
    }

    fn raw_library_first_space() {
        let world = fixture::world("basic-raw");
        assert_golden(&world.mount("golden-one"), "basic-raw", "golden-one");
    }

    fn raw_library_second_space() {
        let world = fixture::world("basic-raw");
        let _first = world.mount("golden-one");
        assert_golden(&world.mount("golden-two"), "basic-raw", "golden-two");
    }

    fn two_environments_of_one_library() {
        let world = fixture::world("two-catalogs");
        let one = world.mount_with("golden-one", &["--blueprint", A]);
        let two = world.mount_with("golden-two", &["--blueprint", &B[..4]]);
        assert_golden(&one, "two-catalogs", "golden-one");
        assert_golden(&two, "two-catalogs", "golden-two");
    }

    /// rcc restores one space to environment a, then b, then a again. `--fresh` does the same.
    fn a_space_changes_its_environment() {
        let world = fixture::world("two-catalogs");
        let space = "ea7ce2c_5a1fac3_85268366";
        let steps = [("golden-conv-1-a", A), ("golden-conv-2-b", B), ("golden-conv-3-a-again", A)];
        for (golden, blueprint) in steps {
            let mounted = world.mount_with(space, &["--blueprint", blueprint, "--fresh"]);
            assert_golden(&mounted, "two-catalogs", golden);
            std::fs::write(mounted.at("readme.txt"), "changed, and dropped later").unwrap();
            mounted.unmount();
        }
    }

    /// The second time, the tree comes from the compiled index and the caches.
    fn the_same_after_remount() {
        let world = fixture::world("basic-gz");
        let mounted = world.mount("golden-one");
        assert_golden(&mounted, "basic-gz", "golden-one");
        assert_golden(&mounted.remount(), "basic-gz", "golden-one");
    }

    /// rcc changes only the space in the catalog. The lines that tools search for are the ones that rcc writes.
    fn meta_file_matches_rcc() {
        let world = fixture::world("basic-gz");
        let mounted = world.mount("golden-one");
        let name = mounted.identity().to_owned();
        let after = fixtures().join("basic-gz/golden/after-restores");
        let beside = |suffix: &str| world.base().join(format!("{name}{suffix}"));
        wait_until("the .meta file beside the space", || beside(".meta.info").exists() && beside(".use").exists());
        mounted.unmount();

        let golden = |suffix: &str| std::fs::read(after.join(format!("holotree/{name}{suffix}"))).unwrap();
        let at_base = |bytes: &[u8]| {
            let mut json: Value = serde_json::from_slice(bytes).unwrap();
            json["path"] = json!(world.base().join(&name));
            json
        };
        let meta: Value =
            serde_json::from_slice(&fixture::gunzip(&std::fs::read(beside(".meta")).unwrap())).unwrap();
        assert_eq!(meta, at_base(&fixture::gunzip(&golden(".meta"))));
        let info: Value = serde_json::from_slice(&std::fs::read(beside(".meta.info")).unwrap()).unwrap();
        assert_eq!(info, at_base(&golden(".meta.info")));
        assert_eq!(std::fs::read(beside(".use")).unwrap(), b".");
        assert_eq!(std::fs::read(beside(".lck")).unwrap(), b"");
        assert!(world.hololib().join(format!("used/{A}.ea7ce2c")).exists());
    }

    fn entries_belong_to_the_mounting_user() {
        let world = World::sample();
        let mounted = world.mount("s");
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        for path in ["", "readme.txt", "lib/deep", "link-to-file"] {
            let stat = std::fs::symlink_metadata(mounted.at(path)).unwrap();
            assert_eq!((stat.uid(), stat.gid()), (uid, gid), "{path:?}");
        }
    }

    fn link_counts_match_a_plain_directory() {
        let world = World::sample();
        let mounted = world.mount("s");
        let links = |path: &str| std::fs::symlink_metadata(mounted.at(path)).unwrap().nlink();
        assert_eq!(links("readme.txt"), 1);
        assert_eq!(links("link-to-file"), 1);
        assert_eq!(links("many"), 2);
        assert_eq!(links("lib"), 3);
        assert_eq!(links("hollow"), 3);
    }

    fn umask_applies_to_directories_only() {
        let world = World::sample();
        let mut command = world.command("sh");
        command.args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(crate::common::as_user::holofs_binary());
        command.arg("mount").arg(world.home()).args(["s", "--json"]);
        let mounted = Mounted::by(&world, "s", &mut command);
        let mode = |path: &str| std::fs::metadata(mounted.at(path)).unwrap().mode() & 0o7777;
        assert_eq!(mode("lib"), 0o700);
        assert_eq!(mode("bin/tool"), 0o755);
        assert_eq!(mode("readme.txt"), 0o644);
    }

    /// The catalog lists what is below a link to a directory. The mount must show these entries only through the link.
    fn link_to_a_directory_stays_a_link() {
        let world = World::sample();
        let mounted = world.mount("s");
        assert_eq!(std::fs::read_link(mounted.at("lib64")).unwrap(), PathBuf::from("lib"));
        assert_eq!(std::fs::read(mounted.at("lib64/module.py")).unwrap(), b"VALUE = 42\n");
        let real = std::fs::metadata(mounted.at("lib/module.py")).unwrap().ino();
        assert_eq!(std::fs::metadata(mounted.at("lib64/module.py")).unwrap().ino(), real);
    }

    /// The trees that the test library builds equal the mount, for compressed and raw libraries.
    fn synthetic_libraries() {
        for library in [Library::sample(), Library::sample().raw()] {
            let world = World::with(&library);
            let mounted = world.mount("s");
            let plain = world.path().join(mounted.identity());
            library.restore(&plain);
            assert_same(&read_tree(&plain), &read_tree(mounted.path()));
        }
    }

    /// Mounting opens a blob of a raw library to find out whether it can be cloned, but does not read it. Reading would
    /// record that it was good.
    fn mounting_a_raw_library_reads_no_blob() {
        let world = World::with(&Library::sample().raw());
        let mounted = world.mount("s");
        let copies = world.home().join("holofs/cache/blobs");
        assert_eq!(files_below(&copies), Vec::<std::path::PathBuf>::new());
        assert_eq!(std::fs::read(mounted.at("lib/data.bin")).unwrap().len(), 300_000);
        assert_eq!(files_below(&copies).len(), 2, "a copy, and their sum");
    }

    /// Mounting and listing work with a library without blobs, because blobs are read only when a file is read.
    fn mounting_reads_no_blob() {
        let world = World::sample();
        std::fs::rename(world.hololib().join("library"), world.path().join("elsewhere")).unwrap();
        std::fs::create_dir(world.hololib().join("library")).unwrap();
        let mounted = world.mount("s");
        assert_eq!(std::fs::metadata(mounted.at("lib/data.bin")).unwrap().len(), 300_000);
        assert_eq!(std::fs::read_dir(mounted.at("many")).unwrap().count(), 4);
        for name in ["lib/module.py", "lib/data.bin"] {
            assert!(std::fs::read(mounted.at(name)).is_err(), "{name}");
        }
        std::fs::remove_dir(world.hololib().join("library")).unwrap();
        std::fs::rename(world.path().join("elsewhere"), world.hololib().join("library")).unwrap();
        assert_eq!(std::fs::read(mounted.at("lib/module.py")).unwrap(), b"VALUE = 42\n");
        assert_eq!(std::fs::read(mounted.at("lib/data.bin")).unwrap().len(), 300_000);
    }
}
