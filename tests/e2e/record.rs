//! `holofs record` in places where other users may write, and beside programs that remove what it stores.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use crate::common::library::hex;
use crate::common::world::{Done, finish};
use crate::common::{World, files_below};

/// Records what a script leaves in the stage.
#[track_caller]
fn record(world: &World, library: &Path, script: &str) -> Done {
    let blueprint = world.path().join("blueprint.yaml");
    std::fs::write(&blueprint, "name: recorded\n").unwrap();
    let mut command = world.holofs();
    command.arg("record").arg(library).arg("--blueprint").arg(blueprint);
    finish(command.args(["--", "sh", "-euc", script]))
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

/// A shared holotree with an empty library, with rcc's modes: everybody may write everywhere.
fn shared(world: &World) -> PathBuf {
    let ht = world.path().join("ht");
    for dir in ["lib/catalog", "lib/library", "lib/used", "lib/pids"] {
        std::fs::create_dir_all(ht.join(dir)).unwrap();
        set_mode(&ht.join(dir), 0o777);
    }
    for dir in ["lib", ""] {
        set_mode(&ht.join(dir), 0o777);
    }
    ht
}

/// A directory that only the user can enter.
fn private(world: &World) -> PathBuf {
    let private = world.path().join("private");
    std::fs::create_dir(&private).unwrap();
    set_mode(&private, 0o700);
    private
}

/// The path of the blob of a content below a library.
fn blob_of(content: &[u8]) -> PathBuf {
    let digest = hex(&Sha256::digest(content));
    [&digest[..2], &digest[2..4], &digest[4..6], &digest].iter().collect()
}

/// Fills the stage with files of different contents.
const MANY: &str = "for n in $(seq 1500); do echo $n > file$n; done";

#[test]
fn lock_that_is_a_link_is_refused() {
    let world = World::new();
    let ht = shared(&world);
    let victim = world.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    set_mode(&victim, 0o600);
    let lock = ht.join("global.lck");
    for hard in [false, true] {
        if hard {
            std::fs::hard_link(&victim, &lock).unwrap();
        } else {
            symlink(&victim, &lock).unwrap();
        }
        let done = record(&world, &ht, "echo x > file");
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
        assert_eq!(mode(&victim), 0o600);
        assert_ne!(done.code, 0, "{done:?}");
        assert!(done.stderr.contains("global.lck") && done.stderr.contains("link"), "{done:?}");
        std::fs::remove_file(&lock).unwrap();
    }
    let fifo = rustix::fs::Mode::from_bits_truncate(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, &lock, rustix::fs::FileType::Fifo, fifo, 0).unwrap();
    let done = record(&world, &ht, "echo x > file");
    assert!(done.code != 0 && done.stderr.contains("FIFO"), "{done:?}");
    std::fs::remove_file(&lock).unwrap();
    let done = record(&world, &ht, "echo x > file");
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(mode(&lock), 0o666, "everybody must be able to lock it");
}

#[test]
fn links_in_a_library_are_not_followed() {
    let world = World::new();
    let ht = shared(&world);
    let private = private(&world);
    let link = ht.join("lib/library").join(blob_of(b"content\n").iter().next().unwrap());
    symlink(&private, &link).unwrap();
    let done = record(&world, &ht, "echo content > file");
    assert_eq!(std::fs::read_dir(&private).unwrap().count(), 0, "{done:?}");
    assert!(done.code != 0 && done.stderr.contains("link"), "{done:?}");
    std::fs::remove_file(&link).unwrap();
    // A link in the place of a blob or a catalog is replaced.
    let victim = world.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    let blob = ht.join("lib/library").join(blob_of(b"content\n"));
    std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
    symlink(&victim, &blob).unwrap();
    let done = record(&world, &ht, "echo content > file");
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    assert!(std::fs::symlink_metadata(&blob).unwrap().is_file());
    for dir in ["lib/used", "lib/pids"] {
        assert_eq!(mode(&ht.join(dir)), 0o777, "{dir}");
    }
}

/// Another user replaces the directories of a shared library by links while they are made.
#[test]
fn replaced_directory_keeps_its_mode() {
    let world = World::new();
    let ht = shared(&world);
    let private = private(&world);
    let library = ht.join("lib/library");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let names: Vec<PathBuf> = (0..=255).map(|n| library.join(format!("{n:02x}"))).collect();
            let away = ht.join("away");
            while !stop.load(Ordering::Relaxed) {
                for name in &names {
                    if std::fs::rename(name, &away).is_ok() {
                        // The recorder may have made the directory again by then.
                        if symlink(&private, name).is_ok() {
                            std::fs::remove_file(name).unwrap();
                        }
                        drop(std::fs::remove_dir_all(&away));
                    }
                }
            }
        });
        for _ in 0..2 {
            // The recording may fail, but it may do no harm.
            let done = record(&world, &ht, MANY);
            assert!(!done.stderr.contains("panicked"), "{done:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(mode(&private), 0o700);
    assert_eq!(std::fs::read_dir(&private).unwrap().count(), 0);
}

/// `rcc holotree check` takes no lock and removes blobs that no catalog named when it began.
#[test]
fn blob_removed_during_recording_is_stored_again() {
    let world = World::new();
    let large = vec![b'x'; 200_000];
    let blob = world.hololib().join("library").join(blob_of(&large));
    let stop = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        let remover = scope.spawn(|| {
            // The recorder stores the largest content first.
            while !stop.load(Ordering::Relaxed) {
                if std::fs::remove_file(&blob).is_ok() {
                    return true;
                }
            }
            false
        });
        let script = format!("{MANY}; head -c 200000 /dev/zero | tr '\\0' x > large");
        let done = record(&world, &world.home(), &script);
        stop.store(true, Ordering::Relaxed);
        assert!(remover.join().unwrap(), "the test removed nothing: {done:?}");
        done
    });
    if done.code == 0 {
        assert!(blob.exists(), "reported success despite a missing blob: {done:?}");
        assert_eq!(world.run(["check".as_ref(), world.home().as_os_str()]).code, 0);
    } else {
        assert!(done.code == 11 && done.stderr.contains("removed"), "{done:?}");
    }
}

for_both_users! {
    fn active_home_can_become_a_library() {
        let world = World::new();
        std::fs::create_dir_all(world.home()).unwrap();
        std::fs::write(world.home().join("rcc.yaml"), "tracking: {}\n").unwrap();
        let done = record(&world, &world.home(), "echo content > file");
        assert_eq!(done.code, 0, "{done:?}");
        drop(world.mount("s"));
        // Any other non-empty directory is probably a mistake.
        let other = world.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::fs::write(other.join("file"), "x").unwrap();
        assert_eq!(record(&world, &other, "echo content > file").code, 3);
        // Allowed if the directory is named as the home.
        let mut command = world.holofs();
        command.arg("--home").arg(&other).arg("record").arg(&other).arg("--blueprint");
        command.arg(world.path().join("blueprint.yaml")).args(["--", "sh", "-c", "echo content > file"]);
        let done = finish(&mut command);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(!files_below(&other.join("hololib/library")).is_empty());
    }
}
