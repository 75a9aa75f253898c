//! After a power loss each file has its old or its new bytes, synced changes are present, and the space mounts. The
//! disks are images, so these tests need root.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use crate::common::as_user::root_or_skip;
use crate::common::library::{STAGE, hex, pattern};
use crate::common::power::{Cut, Disk, cuts};
use crate::common::random::Random;
use crate::common::{Library, Mounted, World};

/// The SHA-256 digests that a path may have.
type Allowed = BTreeMap<String, Vec<String>>;

fn sum(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The number of ways in which [`change`] changes a file.
const WAYS: usize = 6;

/// The bytes of a library file.
fn old(n: usize) -> Vec<u8> {
    match n % WAYS {
        // Files with relocations, small and large.
        4 => format!("#!/x/{STAGE}/bin/sh\n# file {n}\n").into_bytes(),
        5 => {
            let mut bytes = pattern(200_000 + n);
            bytes[5000..5000 + STAGE.len()].copy_from_slice(STAGE.as_bytes());
            bytes
        }
        _ => format!("file {n}, as in the library; {}\n", "x".repeat(900)).into_bytes(),
    }
}

fn library(files: usize, raw: bool) -> Library {
    let library = (0..files).fold(Library::new(), |library, n| library.file(&format!("lib/f{n}"), &old(n)));
    if raw { library.raw() } else { library }
}

/// The bytes as the space shows them.
fn shown(bytes: &[u8], identity: &str) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = bytes.windows(STAGE.len()).position(|window| window == STAGE.as_bytes());
    if let Some(at) = at {
        bytes[at..at + STAGE.len()].copy_from_slice(identity.as_bytes());
    }
    bytes
}

/// Changes a file for the first time, in one of the ways that programs use, without a sync. Returns its new bytes.
fn change(root: &Path, n: usize, identity: &str) -> Vec<u8> {
    let path = root.join(format!("lib/f{n}"));
    let mut new = shown(&old(n), identity);
    match n % WAYS {
        // Overwritten, as by a shell's `>`.
        0 => {
            new = format!("file {n} is new\n").into_bytes();
            std::fs::write(&path, &new).unwrap();
        }
        // Replaced by another file, as editors do.
        1 => {
            new = format!("file {n} is another file\n").into_bytes();
            let temporary = root.join(format!("lib/.f{n}.tmp"));
            std::fs::write(&temporary, &new).unwrap();
            std::fs::rename(&temporary, &path).unwrap();
        }
        // Appended to.
        2 => {
            use std::io::Write;
            new.extend_from_slice(b"one more line\n");
            File::options().append(true).open(&path).unwrap().write_all(b"one more line\n").unwrap();
        }
        // Patched in place.
        _ => {
            new[..7].copy_from_slice(b"PATCHED");
            File::options().write(true).open(&path).unwrap().write_all_at(b"PATCHED", 0).unwrap();
        }
    }
    new
}

/// Mounts after a cut and compares every file. Does it twice, because the second mount sees what the first one repaired
/// or trusted.
#[track_caller]
fn check(world: &World, cut: &Cut<'_>, space: &str, allowed: &Allowed, what: &str) {
    let paths: Vec<&str> = allowed.keys().map(String::as_str).collect();
    let script = format!(
        "m=$(\"$holofs\" mount \"$home\" {space})
         cd \"$m\"; sha256sum -- {} || :
         cd /; \"$holofs\" unmount \"$m\" >&2",
        paths.join(" ")
    );
    for round in 1..=2 {
        let done = cut.restart(world, &script);
        assert_eq!(done.code, 0, "{what}, mount {round}: {done:?}");
        let found: BTreeMap<&str, &str> = done
            .stdout
            .lines()
            .filter_map(|line| line.split_once("  "))
            .map(|(sum, path)| (path, sum))
            .collect();
        let mut wrong = Vec::new();
        for (path, sums) in allowed {
            match found.get(path.as_str()) {
                Some(sum) if sums.iter().any(|allowed| allowed == sum) => {}
                Some(sum) if *sum == self::sum(b"") => wrong.push(format!("{path} is empty")),
                Some(_) => wrong.push(format!("{path} has unexpected bytes")),
                None => wrong.push(format!("{path} cannot be read")),
            }
        }
        assert!(wrong.is_empty(), "{what}, mount {round}: {wrong:#?}\n{}", done.stderr);
    }
}

fn unchanged(files: usize, identity: &str) -> Allowed {
    (0..files).map(|n| (format!("lib/f{n}"), vec![sum(&shown(&old(n), identity))])).collect()
}

fn world_on(disk: &Disk, library: &Library) -> World {
    let world = World::at(disk.path());
    world.add(library);
    disk.settle();
    world
}

/// The result of an append on a plain ext4 if the power fails before the bytes are written: the journal has the length,
/// and the file ends in zeros. holofs cannot detect this. [`appends_on_a_plain_directory`] shows it.
fn appended_zeros(old: &[u8]) -> Vec<u8> {
    [old, &[0; 14]].concat()
}

/// Changes files for the first time, commits the journal as happens every few seconds, and cuts the power.
fn first_changes(kind: &'static str, raw: bool) {
    if !root_or_skip() {
        return;
    }
    let files = cuts() * WAYS * 2;
    let disk = Disk::new(kind);
    let world = world_on(&disk, &library(files, raw));
    let mounted = world.mount("s");
    let identity = mounted.identity().to_owned();
    let mut allowed = unchanged(files, &identity);
    for round in 0..cuts() {
        let from = round * WAYS * 2;
        for n in from..from + WAYS * 2 {
            let new = change(mounted.path(), n, &identity);
            let path = format!("lib/f{n}");
            let sums = allowed.get_mut(&path).unwrap();
            sums.push(sum(&new));
            if kind == "ext4" && n % WAYS == 2 {
                sums.push(sum(&appended_zeros(&old(n))));
            }
            // Some cuts come right after a change, and some later.
            if n == from + WAYS {
                disk.commit();
            }
        }
        disk.commit();
        check(&world, &disk.cut(), "s", &allowed, &format!("{kind}, cut {round}"));
    }
}

/// If this failed, [`first_changes`] would have to be stricter.
#[test]
fn appends_on_a_plain_directory() {
    if !root_or_skip() {
        return;
    }
    use std::io::Write;
    let disk = Disk::new("ext4");
    let world = World::at(disk.path());
    let path = disk.path().join("plain");
    std::fs::write(&path, old(0)).unwrap();
    disk.settle();
    File::options().append(true).open(&path).unwrap().write_all(b"one more line\n").unwrap();
    disk.commit();
    let done = disk.cut().restart(&world, "sha256sum \"$3\"/plain");
    assert!(done.stdout.starts_with(&sum(&appended_zeros(&old(0)))), "{done:?}");
}

#[test]
fn first_changes_on_ext4() {
    first_changes("ext4", false);
}

#[test]
fn first_changes_on_xfs() {
    first_changes("xfs", false);
}

#[test]
fn first_changes_of_a_raw_library_on_xfs() {
    first_changes("xfs", true);
}

/// Files that were only read are read again: copies of blobs and patched files that did not reach the disk are not
/// trusted.
fn only_read(kind: &'static str, raw: bool) {
    if !root_or_skip() {
        return;
    }
    let files = WAYS * 4;
    let disk = Disk::new(kind);
    let world = world_on(&disk, &library(files, raw).file("lib/f0", &pattern(3_000_000)));
    let mounted = world.mount("s");
    let mut allowed = unchanged(files, mounted.identity());
    allowed.insert("lib/f0".into(), vec![sum(&pattern(3_000_000))]);
    for n in 0..files {
        std::fs::read(mounted.at(format!("lib/f{n}"))).unwrap();
    }
    disk.commit();
    check(&world, &disk.cut(), "s", &allowed, kind);
}

#[test]
fn only_read_on_ext4() {
    only_read("ext4", false);
}

#[test]
fn only_read_on_xfs() {
    only_read("xfs", false);
}

#[test]
fn only_read_of_a_raw_library_on_xfs() {
    only_read("xfs", true);
}

/// Synced changes are present.
fn synced(kind: &'static str) {
    if !root_or_skip() {
        return;
    }
    let files = WAYS * 2;
    let disk = Disk::new(kind);
    let world = world_on(&disk, &library(files, false));
    let mounted = world.mount("s");
    let identity = mounted.identity().to_owned();
    let mut allowed = unchanged(files, &identity);
    for n in 0..files {
        let new = change(mounted.path(), n, &identity);
        let path = format!("lib/f{n}");
        File::open(mounted.at(&path)).unwrap().sync_all().unwrap();
        File::open(mounted.at("lib")).unwrap().sync_all().unwrap();
        allowed.insert(path, vec![sum(&new)]);
    }
    // The file was emptied on purpose and synced, so it stays empty.
    File::create(mounted.at("lib/f2")).unwrap().sync_all().unwrap();
    allowed.insert("lib/f2".into(), vec![sum(b"")]);
    check(&world, &disk.cut(), "s", &allowed, kind);
}

#[test]
fn synced_on_ext4() {
    synced("ext4");
}

#[test]
fn synced_on_xfs() {
    synced("xfs");
}

/// A file that was emptied, without a sync, stays empty once the journal has recorded it some time later.
#[test]
fn emptied_on_purpose() {
    if !root_or_skip() {
        return;
    }
    let disk = Disk::new("ext4");
    let world = world_on(&disk, &library(WAYS, false));
    let mounted = world.mount("s");
    File::create(mounted.at("lib/f0")).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(5));
    disk.commit();
    let allowed = Allowed::from([("lib/f0".to_owned(), vec![sum(b"")])]);
    check(&world, &disk.cut(), "s", &allowed, "emptied");
}

/// The power fails right after the mount of a new space has returned and something was changed in it.
fn new_space(kind: &'static str) {
    if !root_or_skip() {
        return;
    }
    let disk = Disk::new(kind);
    let world = world_on(&disk, &library(WAYS, false));
    let mut live: Vec<Mounted<'_>> = Vec::new();
    for n in 0..cuts() {
        let space = format!("s{n}");
        // Delays the daemon's sync of the space's record.
        let mut command = world.command("sh");
        // The tracer lives as long as the daemon, so it must not hold the pipe whose end the test waits for.
        let delayed = "strace -f -D -qqq -o /dev/null -e trace=fsync -e inject=fsync:delay_enter=700000 \
            \"$1\" --json mount \"$2\" \"$3\" >\"$2/output\" 2>&1; code=$?; cat \"$2/output\"; exit $code";
        command.args(["-c", delayed, "sh"]).arg(world.holofs().get_program()).arg(world.home()).arg(&space);
        let mounted = Mounted::by(&world, &space, &mut command);
        let new = change(mounted.path(), 0, mounted.identity());
        disk.commit();
        let cut = disk.cut();
        let mut allowed = unchanged(WAYS, mounted.identity());
        allowed.get_mut("lib/f0").unwrap().push(sum(&new));
        check(&world, &cut, &space, &allowed, &format!("{kind}, space {n}"));
        live.push(mounted);
    }
}

#[test]
fn new_space_on_ext4() {
    new_space("ext4");
}

#[test]
fn new_space_on_xfs() {
    new_space("xfs");
}

/// The content that a file of the workload may have at a cut.
#[derive(Default)]
struct History {
    /// The SHA-256 of each state in order. The last one may be in progress.
    states: Vec<String>,
    /// The index of the last synced state.
    safe: usize,
}

/// Ends the workload, also if a check fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Several threads change library files again and again while the power fails: the first change patches, replaces,
/// empties or overwrites; some changes are synced. A file never has a state between two changes, and never one before a
/// synced state.
fn under_load(kind: &'static str) {
    if !root_or_skip() {
        return;
    }
    const THREADS: usize = 3;
    let files = 60 + cuts() * 20;
    let disk = Disk::new(kind);
    let world = world_on(&disk, &library(files, false));
    let mounted = world.mount("s");
    let identity = mounted.identity().to_owned();
    let histories: Vec<Mutex<History>> = (0..files)
        .map(|n| Mutex::new(History { states: vec![sum(&shown(&old(n), &identity))], safe: 0 }))
        .collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (histories, stop, mounted, identity) = (&histories, &stop, &mounted, &identity);
            scope.spawn(move || {
                let mut random = Random::new(7 + thread as u64);
                let mut touched = vec![false; files];
                // One thread changes each file; otherwise its states would have no order. An append that was not synced
                // may end in zeros, as in a plain directory.
                let mine: Vec<usize> =
                    (0..files).filter(|n| n % THREADS == thread && n % WAYS != 2).collect();
                while !stop.load(Ordering::Relaxed) {
                    let n = *random.pick(&mine);
                    let note = |bytes: &[u8]| histories[n].lock().unwrap().states.push(sum(bytes));
                    load(mounted.path(), n, identity, &mut touched[n], &mut random, &note);
                    if random.below(4) == 0 {
                        let at = histories[n].lock().unwrap().states.len() - 1;
                        let path = mounted.at(format!("lib/f{n}"));
                        File::open(&path).unwrap().sync_all().unwrap();
                        File::open(mounted.at("lib")).unwrap().sync_all().unwrap();
                        histories[n].lock().unwrap().safe = at;
                    }
                    std::thread::sleep(std::time::Duration::from_millis(random.below(8)));
                }
            });
        }
        let _stops = Stop(&stop);
        let mut random = Random::new(3);
        for round in 0..cuts() {
            std::thread::sleep(std::time::Duration::from_millis(100 + random.below(400)));
            if random.below(2) == 0 {
                disk.commit();
            }
            let safe: Vec<usize> = histories.iter().map(|history| history.lock().unwrap().safe).collect();
            let cut = disk.cut();
            let states = |n: usize| histories[n].lock().unwrap().states[safe[n]..].to_vec();
            let allowed: Allowed = (0..files).map(|n| (format!("lib/f{n}"), states(n))).collect();
            check(&world, &cut, "s", &allowed, &format!("{kind}, under load, cut {round}"));
        }
    });
}

/// Makes one change of a file. Calls `note` with each state before the file has it.
fn load(
    root: &Path,
    n: usize,
    identity: &str,
    touched: &mut bool,
    random: &mut Random,
    note: &dyn Fn(&[u8]),
) {
    let path = root.join(format!("lib/f{n}"));
    let number = random.below(1_000_000);
    let first = !std::mem::replace(touched, true);
    if n.is_multiple_of(WAYS) && first {
        // Empties the library's file. A second truncation would behave as in a plain directory, where the file may stay
        // empty.
        let new = format!("{number} anew\n").into_bytes();
        note(&new);
        std::fs::write(&path, &new).unwrap();
    } else if n % WAYS < 3 {
        let new = format!("{number} replaced\n").into_bytes();
        let temporary = root.join(format!("lib/.f{n}.tmp"));
        std::fs::write(&temporary, &new).unwrap();
        // Replacing a library file is as safe as on ext4. Replacing a file of the upper is as safe as the filesystem
        // makes it.
        if !first {
            File::open(&temporary).unwrap().sync_all().unwrap();
        }
        note(&new);
        std::fs::rename(&temporary, &path).unwrap();
    } else {
        let mut new = shown(&old(n), identity);
        let patch = format!("{number:07}");
        new[..7].copy_from_slice(patch.as_bytes());
        note(&new);
        File::options().write(true).open(&path).unwrap().write_all_at(patch.as_bytes(), 0).unwrap();
    }
}

#[test]
fn under_load_on_ext4() {
    under_load("ext4");
}

#[test]
fn under_load_on_xfs() {
    under_load("xfs");
}

/// The same tests with files of the upper that the kernel writes to itself.
mod by_passthrough {
    use crate::common::as_user::{Who, again};

    #[test]
    fn first_changes_on_ext4() {
        let test = concat!(module_path!(), "::first_changes_on_ext4");
        again(test, Who::Us, true, || super::first_changes("ext4", false));
    }

    #[test]
    fn first_changes_on_xfs() {
        let test = concat!(module_path!(), "::first_changes_on_xfs");
        again(test, Who::Us, true, || super::first_changes("xfs", true));
    }

    #[test]
    fn synced_on_xfs() {
        again(concat!(module_path!(), "::synced_on_xfs"), Who::Us, true, || super::synced("xfs"));
    }
}
