//! A mount outlives the process that serves it: that process is killed, and no program in the space notices.

use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::common::{Mounted, World, files_below, wait_until};

/// What `holofs status` says.
fn status(world: &World, space: &str) -> Value {
    world.json(["--json", "status", space])
}

/// Reads everything below a directory again and again, past the kernel's cache of pages, until `stop`. Each error and each
/// difference to the first time fails the test. Returns how often.
fn read_again_and_again(root: &Path, stop: &AtomicBool, rounds: &AtomicU64) {
    let first = everything(root);
    assert!(first.len() > 10, "{first:?}");
    while !stop.load(Ordering::Relaxed) {
        assert_eq!(everything(root), first);
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

fn everything(root: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for relative in files_below(root) {
        let path = root.join(&relative);
        let mut file =
            std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        found.push((relative, bytes));
    }
    found
}

/// Kills the worker `times` while programs read.
fn kill_under_readers(mounted: &Mounted<'_>, times: u64) {
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let readers: Vec<_> =
            (0..2).map(|_| scope.spawn(|| read_again_and_again(mounted.path(), &stop, &rounds))).collect();
        for n in 0..times {
            std::thread::sleep(Duration::from_millis(3 + 7 * (n % 5)));
            mounted.kill_worker();
        }
        let before = rounds.load(Ordering::Relaxed);
        wait_until("the readers to go on", || {
            rounds.load(Ordering::Relaxed) > before + 1 || readers.iter().any(|r| r.is_finished())
        });
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

for_both_users! {
    fn a_file_without_a_name_stays_open() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.path().join("unlinked");
        let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.write_all(b"before").unwrap();
        std::fs::remove_file(&path).unwrap();
        for round in 0..3_u8 {
            mounted.kill_worker();
            file.write_all(&[b'0' + round]).unwrap();
            assert_eq!(file.metadata().unwrap().nlink(), 0);
        }
        let mut text = String::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before012");
        drop(file);
        mounted.unmount();
    }

    fn readers_do_not_notice_the_death_of_the_worker() {
        let world = World::sample();
        let mounted = world.mount("s");
        kill_under_readers(&mounted, 10);
        let said = status(&world, "s");
        assert_eq!(said["version"], env!("CARGO_PKG_VERSION"), "{said}");
        assert_eq!(said["restarts"], 10, "{said}");
        assert_eq!(said["last_death"]["cause"], "SIGKILL", "{said}");
        assert_eq!(said["pid"], mounted.pid(), "{said}");
        assert_eq!(said["worker"].as_i64().map(|pid| pid as i32), mounted.worker(), "{said}");
        mounted.unmount();
    }
}
