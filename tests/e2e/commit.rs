//! `holofs commit`: a space becomes an environment of the library, as it is, and the library is never harmed.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::common::library::{STAGE, hex, pattern};
use crate::common::rcc;
use crate::common::world::{Done, finish};
use crate::common::{Library, Mounted, World, files_below, passthrough};

/// The blueprint of what is committed.
const BLUEPRINT: &str = "name: committed";

/// Commits a space with a blueprint.
#[track_caller]
fn commit_as(world: &World, space: &str, blueprint: &str, args: &[&str]) -> Done {
    let file = world.path().join("blueprint.txt");
    std::fs::write(&file, blueprint).unwrap();
    finish(world.holofs().args(["commit", space, "--blueprint"]).arg(file).args(args))
}

#[track_caller]
fn commit(world: &World, space: &str) -> serde_json::Value {
    let done = commit_as(world, space, BLUEPRINT, &["--json"]);
    assert_eq!(done.code, 0, "{done:?}");
    serde_json::from_str(&done.stdout).unwrap()
}

/// Every entry of a space: its kind and mode, and its bytes with the stage's name in the place of the space's. The
/// blueprint's file is left out, and what is never recorded.
fn tree(space: &Path) -> BTreeMap<PathBuf, String> {
    fn walk(dir: &Path, space: &Path, name: &str, out: &mut BTreeMap<PathBuf, String>) {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let shown = path.strip_prefix(space).unwrap().to_owned();
            if [Path::new("identity.yaml")].contains(&shown.as_path())
                || ["__pycache__", ".git"].contains(&entry.file_name().to_str().unwrap())
            {
                continue;
            }
            let text = if kind.is_dir() {
                walk(&path, space, name, out);
                "directory".to_owned()
            } else if kind.is_symlink() {
                format!("-> {}", std::fs::read_link(&path).unwrap().display()).replace(name, STAGE)
            } else {
                let mode = entry.metadata().unwrap().mode();
                let bytes = std::fs::read(&path).unwrap();
                let bytes = String::from_utf8(bytes).map_or_else(
                    |error| hex(&Sha256::digest(error.as_bytes())),
                    |text| text.replace(name, STAGE),
                );
                format!("{mode:o} {bytes}")
            };
            out.insert(shown, text);
        }
    }
    let mut out = BTreeMap::new();
    walk(space, space, space.file_name().unwrap().to_str().unwrap(), &mut out);
    out
}

/// Makes a change of every kind.
fn change(mounted: &Mounted<'_>) {
    let at = |path: &str| mounted.at(path);
    let name = mounted.identity();
    std::fs::write(at("new.txt"), "new\n").unwrap();
    std::fs::write(at("bin/script"), format!("#!/x/{name}/bin/python\n{name}{name}")).unwrap();
    std::fs::set_permissions(at("bin/script"), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(at("large.bin"), pattern(9_000_000)).unwrap();
    std::fs::write(at("lib/module.py"), "VALUE = 43\n").unwrap();
    // A relocated file with a change, one with another mode, and one with another name.
    let tool = std::fs::read_to_string(at("bin/tool")).unwrap();
    std::fs::write(at("bin/tool"), format!("{tool}# changed\n")).unwrap();
    std::fs::rename(at("etc/prefix.conf"), at("etc/moved.conf")).unwrap();
    std::fs::set_permissions(at("readme.txt"), PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::rename(at("lib/deep"), at("lib/deeper")).unwrap();
    std::fs::write(at("lib/deeper/er/added.txt"), "added\n").unwrap();
    std::fs::remove_file(at("lib/deeper/other.txt")).unwrap();
    std::fs::remove_file(at("many/b")).unwrap();
    std::fs::remove_dir_all(at("hollow")).unwrap();
    std::fs::create_dir(at("hollow")).unwrap();
    std::fs::hard_link(at("new.txt"), at("again.txt")).unwrap();
    symlink("lib/deeper", at("to-dir")).unwrap();
    symlink("../outside", at("to-outside")).unwrap();
    symlink(at("new.txt"), at("absolute")).unwrap();
    // Never recorded.
    std::fs::create_dir_all(at("lib/__pycache__")).unwrap();
    std::fs::write(at("lib/__pycache__/module.pyc"), "pyc").unwrap();
    std::fs::create_dir_all(at(".git/objects")).unwrap();
    std::fs::write(at(".git/objects/x"), "x").unwrap();
}

/// Commits a changed space, mounted or not, and compares it with a new space of the committed environment.
fn commit_equals_the_space(library: Library, is_mounted: bool) {
    let world = World::with(&library);
    let mounted = world.mount("old");
    change(&mounted);
    let (wanted, space) = (tree(mounted.path()), mounted.path().to_owned());
    let upper = mounted.upper_entries();
    let mut mounted = Some(mounted);
    if !is_mounted {
        mounted.take().unwrap().unmount();
    }
    let before = files_below(&world.hololib());
    let output = commit(&world, "old");
    assert!(output["warnings"][0].as_str().unwrap().contains("absolute"), "{output}");
    // new.txt and again.txt, bin/script, large.bin, lib/module.py, bin/tool, added.txt, and the blueprint.
    assert_eq!(output["blobs_new"], 7, "{output}");
    let after = files_below(&world.hololib());
    assert!(before.iter().all(|file| after.contains(file)));
    let blueprint = output["blueprint"].as_str().unwrap();
    let new = world.mount_with("new", &["--blueprint", blueprint]);
    assert_eq!(tree(new.path()), wanted);
    assert_eq!(std::fs::read_to_string(new.at("identity.yaml")).unwrap(), BLUEPRINT);
    assert!(!new.at("lib/__pycache__").exists() && !new.at(".git").exists());
    // The independent restorer agrees.
    let restored = world.base().join("ea7ce2c_5a1fac3_ca793c28");
    rcc::restore(&world, &Library::new().named("committed"), &restored);
    assert_eq!(tree(&restored), wanted);
    assert_eq!(world.run(["check".as_ref(), world.home().as_os_str()]).code, 0);
    if let Some(mounted) = mounted {
        assert_eq!(mounted.upper_entries(), upper);
        assert_eq!(tree(&space), wanted);
    }
}

for_both_users! {
    fn mounted_space_equals_its_commit() {
        commit_equals_the_space(Library::sample(), true);
    }

    fn unmounted_space_equals_its_commit() {
        commit_equals_the_space(Library::sample().raw(), false);
    }

    fn commit_prints_the_hash_that_the_next_mount_uses() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new.txt"), "new\n").unwrap();
        let conda = world.path().join("conda.yaml");
        std::fs::write(&conda, "dependencies:\n- python=3.11\n- pip:\n  - cowsay\n").unwrap();
        let conda = conda.to_str().unwrap();
        let done = world.run(["commit", "s", "--blueprint", conda]);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(done.stdout, world.run(["hash", conda]).stdout);
        let new = world.mount_with("t", &["--conda", conda]);
        assert_eq!(std::fs::read_to_string(new.at("new.txt")).unwrap(), "new\n");
        // A commit of the new space is the next environment.
        std::fs::write(new.at("newer.txt"), "newer\n").unwrap();
        let hash = commit(&world, "t")["blueprint"].as_str().unwrap().to_owned();
        let newest = world.mount_with("u", &["--blueprint", &hash]);
        assert!(newest.at("new.txt").exists() && newest.at("newer.txt").exists());
    }

    fn unchanged_files_are_not_read() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new.txt"), "new\n").unwrap();
        // Whoever reads these blobs notices.
        let bad = Library::sample().blob(&world.hololib(), "lib/data.bin");
        std::fs::write(&bad, b"bad").unwrap();
        assert_eq!(commit(&world, "s")["blobs_new"], 2);
    }
}

#[test]
fn another_library_gets_all_blobs_of_its_kind() {
    let world = World::sample();
    let mounted = world.mount("old");
    change(&mounted);
    let wanted = tree(mounted.path());
    for (name, raw) in [("new", false), ("raw", true)] {
        let other = world.path().join(name);
        if raw {
            Library::new().raw().named("another").write(&other.join("hololib"), &world.base());
        }
        let done = commit_as(&world, "old", BLUEPRINT, &["--library", other.to_str().unwrap(), "--json"]);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(world.run(["check".as_ref(), other.as_os_str()]).code, 0);
        let output: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
        let mut command = world.holofs();
        command.args(["--json", "mount"]).arg(&other).args(["other", "--blueprint"]);
        command.arg(output["blueprint"].as_str().unwrap());
        let there = Mounted::by(&world, "other", &mut command);
        assert_eq!(tree(there.path()), wanted);
        let state = there.state();
        there.unmount();
        std::fs::remove_dir_all(state).unwrap();
    }
}

#[test]
fn bad_input_has_its_own_exit_code() {
    let world = World::sample();
    let mounted = world.mount("s");
    std::fs::write(mounted.at("new.txt"), "new\n").unwrap();
    let catalogs = || files_below(&world.hololib().join("catalog"));
    let before = catalogs();
    let fails = |done: Done, code: i32, words: &str| {
        assert_eq!(done.code, code, "{done:?}");
        assert_eq!(done.stdout, "", "{done:?}");
        assert!(done.stderr.starts_with("holofs: ") && done.stderr.contains(words), "{done:?}");
        assert_eq!(catalogs(), before);
    };
    let sample = "name: a test";
    fails(commit_as(&world, "s", BLUEPRINT, &["--library", "/proc/version"]), 3, "/proc/version");
    fails(commit_as(&world, "s", "  \n", &[]), 5, "empty");
    fails(commit_as(&world, "s", sample, &[]), 5, "based on this blueprint");
    fails(world.run(["commit", "s", "--blueprint", "/no/such.yaml"]), 5, "/no/such.yaml");
    fails(world.run(["commit", "s", "--blueprint", "/no/such"]), 5, "/no/such");
    fails(world.run(["commit", "s", "--blueprint", "/dev/zero"]), 5, "/dev/zero: larger than 1 MiB");
    fails(commit_as(&world, "nobody", BLUEPRINT, &[]), 6, "no such space");
    fails(world.run(["commit", "s"]), 2, "--blueprint");
    // What a catalog cannot list.
    let socket = UnixListener::bind(mounted.at("lib/sock")).unwrap();
    fails(commit_as(&world, "s", BLUEPRINT, &[]), 5, "lib/sock");
    drop(socket);
    std::fs::remove_file(mounted.at("lib/sock")).unwrap();
    // A damaged mark.
    let upper = mounted.upper("new.txt");
    let mark = |text: &[u8]| {
        rustix::fs::setxattr(&upper, "user.holofs.entry", text, rustix::fs::XattrFlags::empty()).unwrap();
    };
    mark(b"data:nonsense");
    fails(commit_as(&world, "s", BLUEPRINT, &[]), 11, "new.txt");
    rustix::fs::removexattr(&upper, "user.holofs.entry").unwrap();
    // rcc is at work.
    let lock = rcc::lock(&world.base().join("global.lck"));
    fails(commit_as(&world, "s", BLUEPRINT, &["--lock-timeout", "0"]), 12, "global.lck");
    drop(lock);
    // Its environment is gone.
    mounted.unmount();
    std::fs::remove_file(world.hololib().join("catalog").join(&before[0])).unwrap();
    let done = commit_as(&world, "s", BLUEPRINT, &[]);
    assert_eq!(done.code, 6, "{done:?}");
}

/// A blueprint names one environment. Spaces with changes over it must still be mountable after somebody commits.
#[test]
fn an_environment_of_another_content_is_replaced_by_force_only() {
    let world = World::sample();
    let one = world.mount("one");
    std::fs::write(one.at("new.txt"), "one\n").unwrap();
    let hash = commit(&world, "one")["blueprint"].as_str().unwrap().to_owned();
    let based = world.mount_with("based", &["--blueprint", &hash]);
    std::fs::write(based.at("work.txt"), "work\n").unwrap();
    based.unmount();
    let two = world.mount_with("two", &["--blueprint", &Library::sample().hash()]);
    std::fs::write(two.at("new.txt"), "two\n").unwrap();
    let done = commit_as(&world, "two", BLUEPRINT, &[]);
    assert_eq!((done.code, done.stdout.as_str()), (5, ""), "{done:?}");
    assert!(done.stderr.contains("another environment of this blueprint"), "{done:?}");
    assert!(done.stderr.contains("--force"), "{done:?}");
    let based = world.mount_with("based", &["--blueprint", &hash]);
    assert_eq!(std::fs::read_to_string(based.at("work.txt")).unwrap(), "work\n");
    // The same content is no other environment.
    let again = commit(&world, "one");
    assert_eq!((again["blueprint"].as_str(), &again["replaced"]), (Some(&*hash), &false.into()), "{again}");
    let done = commit_as(&world, "two", BLUEPRINT, &["--force", "--json"]);
    assert!(done.code == 0 && done.stdout.contains("\"replaced\": true"), "{done:?}");
}

#[test]
fn missing_blob_is_an_integrity_error() {
    let world = World::sample();
    std::fs::remove_file(Library::sample().blob(&world.hololib(), "lib/data.bin")).unwrap();
    let mounted = world.mount("s");
    std::fs::write(mounted.at("new.txt"), "new\n").unwrap();
    let done = commit_as(&world, "s", BLUEPRINT, &[]);
    assert!(done.code == 11 && done.stderr.contains("missing"), "{done:?}");
}

/// A process writes a number to one file and then to another one. A commit never has them as no instant had them.
#[test]
fn commit_of_a_busy_space_is_of_one_instant_or_refused() {
    let world = World::sample();
    let mounted = world.mount("s");
    let stop = AtomicBool::new(false);
    let put = |file: &std::fs::File, n: u64| file.write_all_at(format!("{n:08}").as_bytes(), 0).unwrap();
    let open = |name: &str| std::fs::File::create(mounted.at(name)).unwrap();
    let (first, second) = (open("first"), open("second"));
    put(&first, 0);
    put(&second, 0);
    let mut hashes = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1.. {
                put(&first, n);
                put(&second, n);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        for round in 0..4 {
            let done = commit_as(&world, "s", &format!("{BLUEPRINT}{round}"), &[]);
            match done.code {
                0 => hashes.push(done.stdout.trim().to_owned()),
                code => assert!(code == 12 && done.stderr.contains("changed while"), "{done:?}"),
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    // The daemon holds the writes back while the space is read again.
    assert!(passthrough() || hashes.len() == 4, "{hashes:?}");
    hashes.push(commit(&world, "s")["blueprint"].as_str().unwrap().to_owned());
    for hash in hashes {
        let new = world.mount_with(&hash, &["--blueprint", &hash]);
        let number = |name: &str| std::fs::read_to_string(new.at(name)).unwrap().parse::<u64>().unwrap();
        let (first, second) = (number("first"), number("second"));
        assert!(first == second || first == second + 1, "{first} {second}");
    }
}

/// Killed at any moment, a commit leaves a library without a fault, and the next one succeeds.
#[test]
fn killed_commit_harms_nothing() {
    let world = World::sample();
    let mounted = world.mount("s");
    for n in 0..300 {
        std::fs::write(mounted.at(format!("file{n}")), format!("content {n}\n").repeat(200)).unwrap();
    }
    let wanted = tree(mounted.path());
    let blueprint = world.path().join("blueprint.txt");
    std::fs::write(&blueprint, BLUEPRINT).unwrap();
    let mut died = 0;
    for round in 0..12 {
        let mut command = world.holofs();
        command.args(["commit", "s", "--blueprint"]).arg(&blueprint);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(3 + 7 * round));
        child.kill().unwrap();
        died += u32::from(!child.wait().unwrap().success());
        let done = world.run(["check".as_ref(), world.home().as_os_str()]);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(tree(mounted.path()), wanted);
    }
    assert!(died > 0, "every commit was faster than its kill");
    let hash = commit(&world, "s")["blueprint"].as_str().unwrap().to_owned();
    assert_eq!(tree(world.mount_with("t", &["--blueprint", &hash]).path()), wanted);
}
