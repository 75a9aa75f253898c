//! Bad input ends with one clear line and the documented exit code, and nothing is mounted.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;
use serde_json::{Value, json};

use crate::common::as_user::{as_user_args, holofs_binary, root_or_skip, tools};
use crate::common::library::STAGE;
use crate::common::world::{Done, finish};
use crate::common::{Library, Mounted, World, apart, assert_errno};

type Edit = fn(&mut Value);

/// Asserts that a command failed as it should, with an error line that contains all of `words`.
#[track_caller]
fn assert_refused(world: &World, done: &Done, code: i32, words: &[&str]) {
    assert_eq!(done.code, code, "{done:?}");
    assert_eq!(done.stdout, "", "standard output must be empty: {done:?}");
    let first = done.stderr.lines().next().unwrap_or_default();
    assert!(first.starts_with("holofs: ") && first.len() > 20, "expected one clear line: {done:?}");
    assert!(!done.stderr.contains("panicked"), "{done:?}");
    for word in words {
        assert!(done.stderr.contains(word), "{word:?} is missing in {done:?}");
    }
    assert!(world.mounts().is_empty(), "a mount was made");
}

#[track_caller]
fn mount(world: &World, library: &Path, rest: &[&str]) -> Done {
    let rest = rest.iter().map(OsStr::new);
    world.run([OsStr::new("mount"), library.as_os_str()].into_iter().chain(rest))
}

/// A world with the sample library, whose catalog's JSON was changed by `edit`.
fn edited(edit: impl FnOnce(&mut Value)) -> World {
    let world = World::new();
    Library::sample().write_edited(&world.hololib(), &world.base(), edit);
    world
}

for_both_users! {
    fn not_a_library() {
        let world = World::sample();
        let nowhere = world.path().join("nowhere");
        assert_refused(&world, &mount(&world, &nowhere, &["s"]), 3, &["nowhere"]);
        let empty = world.path().join("empty-dir");
        std::fs::create_dir(&empty).unwrap();
        assert_refused(&world, &mount(&world, &empty, &["s"]), 3, &["empty-dir"]);
        let file = world.path().join("a-file");
        std::fs::write(&file, b"text").unwrap();
        assert_refused(&world, &mount(&world, &file, &["s"]), 3, &["a-file"]);
    }

    fn library_without_a_catalog() {
        let world = World::new();
        std::fs::create_dir_all(world.hololib().join("catalog")).unwrap();
        std::fs::create_dir_all(world.hololib().join("library")).unwrap();
        assert_refused(&world, &mount(&world, &world.home(), &["s"]), 6, &[]);
    }

    fn unknown_blueprint() {
        let world = World::sample();
        let done = mount(&world, &world.home(), &["s", "--blueprint", "0123456789abcdef"]);
        assert_refused(&world, &done, 6, &["0123456789abcdef", &Library::sample().hash()]);
    }

    fn two_catalogs_need_a_blueprint() {
        let world = World::sample();
        let other = Library::sample().named("another");
        world.add(&other);
        let done = mount(&world, &world.home(), &["s"]);
        // The message lists the blueprints with what distinguishes them.
        let words = [other.hash(), Library::sample().hash()];
        assert_refused(&world, &done, 6, &[&words[0], &words[1]]);
        drop(world.mount_with("s", &["--blueprint", &other.hash()]));
        // After this mount the space knows its environment.
        let mounted = world.mount("s");
        assert_eq!(mounted.output["blueprint"], other.hash());
    }

    fn mountpoint_is_not_empty() {
        // The name comes from another world, because a mount here would leave its `.meta` beside the space.
        let identity = World::sample().mount("s").identity().to_owned();
        let world = World::sample();
        let mountpoint = world.base().join(identity);
        std::fs::create_dir_all(&mountpoint).unwrap();
        std::fs::write(mountpoint.join("precious"), b"mine").unwrap();
        let done = mount(&world, &world.home(), &["s"]);
        assert_refused(&world, &done, 7, &["not empty"]);
        // There is no such space.
        assert_eq!(world.run(["list"]).stdout.lines().count(), 1);
        assert_eq!(std::fs::read(mountpoint.join("precious")).unwrap(), b"mine");
    }

    fn mountpoint_is_a_file() {
        let world = World::sample();
        let identity = world.mount("s").identity().to_owned();
        let mountpoint = world.base().join(identity);
        if mountpoint.exists() {
            std::fs::remove_dir(&mountpoint).unwrap();
        }
        std::fs::write(&mountpoint, b"mine").unwrap();
        let done = mount(&world, &world.home(), &["s"]);
        assert_refused(&world, &done, 7, &[]);
        assert_eq!(std::fs::read(&mountpoint).unwrap(), b"mine");
    }

    fn any_name_of_the_right_length() {
        let world = World::sample();
        let path = world.base().join("a-name-of-my-own-choice_");
        let mounted = world.mount_with(path.to_str().unwrap(), &[]);
        assert_eq!(mounted.path(), path);
        let text = std::fs::read_to_string(mounted.at("etc/prefix.conf")).unwrap();
        assert_eq!(text, "prefix=/x/a-name-of-my-own-choice_/lib\n");
    }

    fn truncated_catalog() {
        let world = World::sample();
        let catalog = Library::sample().catalog(&world.hololib());
        let bytes = std::fs::read(&catalog).unwrap();
        for len in [0, 5, 20, bytes.len() / 2, bytes.len() - 40] {
            std::fs::write(&catalog, &bytes[..len]).unwrap();
            let done = mount(&world, &world.home(), &["s"]);
            assert_refused(&world, &done, 3, &["catalog"]);
        }
        std::fs::write(&catalog, &bytes).unwrap();
        drop(world.mount("s"));
    }

    fn file_that_is_not_a_catalog() {
        let world = World::sample();
        let catalog = Library::sample().catalog(&world.hololib());
        for bytes in [&b"not gzip"[..], &crate::common::library::gzip(b"not JSON"), &crate::common::library::gzip(b"[1]")] {
            std::fs::write(&catalog, bytes).unwrap();
            assert_refused(&world, &mount(&world, &world.home(), &["s"]), 3, &["catalog"]);
        }
    }

    fn catalog_with_names_that_escape_the_space() {
        for name in ["..", ".", "", "a/b", "../evil", "/etc", "nul\0byte"] {
            for at in ["files", "subdirs"] {
                let world = edited(|catalog| {
                    let mut entry = match at {
                        "files" => catalog["tree"]["files"]["readme.txt"].clone(),
                        _ => json!({ "mode": 0x8000_01ed_u32, "subdirs": {}, "files": {} }),
                    };
                    entry["name"] = json!(name);
                    catalog["tree"][at][name] = entry;
                });
                assert_refused(&world, &mount(&world, &world.home(), &["s"]), 3, &["catalog"]);
                assert!(!world.path().join("evil").exists() && !world.base().join("evil").exists());
            }
        }
    }

    fn catalog_with_impossible_values() {
        let absurd: [(&str, Edit); 8] = [
            ("digest of an odd length", |file| file["digest"] = json!("abc")),
            ("digest with ..", |file| file["digest"] = json!("../../../../../../../../../../../../etc/passwd/00000000000000000")),
            ("digest in upper case", |file| file["digest"] = json!("A".repeat(64))),
            ("negative size", |file| file["size"] = json!(-1)),
            ("relocation past the end", |file| file["rewrite"] = json!([1000])),
            ("relocation across the end", |file| file["rewrite"] = json!([0, 12])),
            ("negative relocation", |file| file["rewrite"] = json!([-5])),
            ("link with NUL", |file| file["symlink"] = json!("a\0b")),
        ];
        for (what, edit) in absurd {
            let world = edited(|catalog| edit(&mut catalog["tree"]["files"]["readme.txt"]));
            let done = mount(&world, &world.home(), &["s"]);
            assert_eq!(done.code, 3, "{what}: {done:?}");
            assert_refused(&world, &done, 3, &["catalog", "readme.txt"]);
        }
    }

    fn catalog_with_a_duplicate_name() {
        let world = edited(|catalog| {
            let mut file = catalog["tree"]["files"]["readme.txt"].clone();
            file["name"] = json!("lib");
            catalog["tree"]["files"]["lib"] = file;
        });
        assert_refused(&world, &mount(&world, &world.home(), &["s"]), 3, &["lib"]);
    }

    fn catalog_for_another_directory() {
        for path in ["relative/dir/hea7ce2c_493f813dad24d3t", "/", "", "/somewhere/else"] {
            let world = edited(|catalog| catalog["path"] = json!(path));
            let done = mount(&world, &world.home(), &["s"]);
            assert!([3, 7].contains(&done.code), "{path}: {done:?}");
            assert_refused(&world, &done, done.code, &[]);
        }
    }

    /// The deepest allowed nesting is served and a deeper one is refused. Neither crashes.
    fn catalog_nested_too_deep() {
        let world = World::sample();
        const DEPTH: usize = 80_000;
        let open = r#"{"name":"d","mode":2147484141,"files":{},"subdirs":{"d":"#.repeat(DEPTH);
        let leaf = r#"{"name":"d","mode":2147484141,"subdirs":{},"files":{}}"#;
        let text = format!("{open}{leaf}{}", "}}".repeat(DEPTH));
        let path = world.base().join(STAGE);
        let catalog = format!(
            r#"{{"rcc":"v18.18.1","identity":"{STAGE}","path":"{}","platform":"linux_amd64","blueprint":"{}","lifted":true,"tree":{text}}}"#,
            path.display(),
            Library::sample().hash(),
        );
        let bytes = crate::common::library::gzip(catalog.as_bytes());
        std::fs::write(Library::sample().catalog(&world.hololib()), bytes).unwrap();
        assert_refused(&world, &mount(&world, &world.home(), &["s"]), 3, &["catalog"]);
    }

    /// Only the blob tells that a relocation is wrong, so the catalog is accepted and the file is refused.
    fn relocation_where_the_name_is_not_fails_only_its_file() {
        for size in [100, 300_000] {
            let world = World::new();
            let library = Library::sample().file("odd.txt", &vec![b'x'; size]);
            library.write_edited(&world.hololib(), &world.base(), |catalog| {
                catalog["tree"]["files"]["odd.txt"]["rewrite"] = json!([3]);
            });
            let mounted = world.mount("s");
            assert_only_this_file_fails(&mounted, "odd.txt");
            mounted.unmount();
            let checked = world.run([OsStr::new("check"), world.home().as_os_str()]);
            assert!(checked.code == 11 && checked.stdout.contains("odd.txt"), "{checked:?}");
            let restored = world.run(["restore", "auto", "r"]);
            assert_refused(&world, &restored, 11, &["odd.txt", "relocation at byte 3"]);
        }
    }

    fn missing_blob_fails_only_its_file() {
        for library in [Library::sample(), Library::sample().raw()] {
            let world = World::with(&library);
            std::fs::remove_file(library.blob(&world.hololib(), "lib/data.bin")).unwrap();
            let mounted = world.mount("s");
            assert_only_this_file_fails(&mounted, "lib/data.bin");
            let log = std::fs::read_to_string(mounted.state().join("log")).unwrap();
            assert!(log.contains("lib/data.bin"), "the log does not name the file: {log}");
        }
    }

    fn corrupt_blob_fails_only_its_file() {
        for (raw, path) in [(false, "lib/data.bin"), (true, "lib/data.bin"), (false, "etc/prefix.conf"), (true, "many/a"), (false, "many/a")] {
            let library = if raw { Library::sample().raw() } else { Library::sample() };
            let world = World::with(&library);
            let blob = library.blob(&world.hololib(), path);
            let mut bytes = std::fs::read(&blob).unwrap();
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            std::fs::write(&blob, bytes).unwrap();
            let mounted = world.mount("s");
            assert_only_this_file_fails(&mounted, path);
            let log = std::fs::read_to_string(mounted.state().join("log")).unwrap();
            let digest = blob.file_name().unwrap().to_str().unwrap();
            assert!(log.contains(path) && log.contains(digest), "the log does not name path and blob: {log}");
        }
    }

    fn short_and_long_blobs() {
        for (raw, len) in [(true, 299_999), (true, 300_001), (true, 0), (false, 0), (false, 100)] {
            let library = if raw { Library::sample().raw() } else { Library::sample() };
            let world = World::with(&library);
            let blob = library.blob(&world.hololib(), "lib/data.bin");
            let mut bytes = std::fs::read(&blob).unwrap();
            bytes.resize(len, 0);
            std::fs::write(&blob, bytes).unwrap();
            assert_only_this_file_fails(&world.mount("s"), "lib/data.bin");
        }
    }

    fn space_is_busy() {
        let world = World::sample();
        let identity = world.mount("s").identity().to_owned();
        // rcc holds this lock while it restores the space.
        let lock = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(world.base().join(format!("{identity}.lck")))
            .unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let done = mount(&world, &world.home(), &["s", "--lock-timeout", "1"]);
        assert_refused(&world, &done, 12, &[]);
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).unwrap();
        // holofs's own lock: another daemon has the space.
        let lock = std::fs::File::open(world.state().join("spaces").join(&identity).join("lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let done = mount(&world, &world.home(), &["s", "--lock-timeout", "1"]);
        assert_refused(&world, &done, 12, &[]);
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).unwrap();
        drop(world.mount("s"));
    }

    fn mounted_with_another_blueprint() {
        let world = World::sample();
        let other = Library::sample().named("another");
        world.add(&other);
        let mounted = world.mount_with("s", &["--blueprint", &Library::sample().hash()]);
        let done = mount(&world, &world.home(), &["s", "--blueprint", &other.hash()]);
        assert_eq!((done.code, done.stdout.as_str()), (7, ""), "{done:?}");
        assert!(done.stderr.contains(&Library::sample().hash()), "{done:?}");
        assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"hello, space\n");
    }

    fn unknown_options_and_values() {
        let world = World::sample();
        for args in [
            &["s", "--strategy", "fast"][..],
            &["s", "--strategy", "hardlink"],
            &["s", "--no-such-flag"],
            &["s", "-o", "no_such_option"],
            &[],
            &["s", "one-too-many"],
        ] {
            let done = mount(&world, &world.home(), args);
            assert_eq!((done.code, done.stdout.as_str()), (2, ""), "{args:?}: {done:?}");
        }
    }

    fn unmount_of_an_unknown_space() {
        let world = World::sample();
        let done = world.run(["unmount", "never-mounted"]);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.stderr.contains("not mounted"), "{done:?}");
    }

    fn space_names_of_any_kind() {
        let world = World::sample();
        for name in ["with space", "ünï cödé", "-", "..", "a\nb"] {
            let mut command = world.holofs();
            command.args(["mount", "--json", "--"]).arg(world.home()).arg(name);
            let mounted = Mounted::by(&world, name, &mut command);
            assert_eq!(mounted.identity().len(), 24);
        }
        let odd = OsStr::from_bytes(b"not \xff utf-8");
        let done = world.run([OsStr::new("mount"), world.home().as_os_str(), odd]);
        assert!(done.code == 0 || done.code == 2, "{done:?}");
        if done.code == 0 {
            assert_eq!(world.run([OsStr::new("unmount"), odd]).code, 0);
        }
    }
}

#[track_caller]
fn assert_only_this_file_fails(mounted: &Mounted<'_>, path: &str) {
    for _ in 0..2 {
        assert_errno(std::fs::read(mounted.at(path)), Errno::IO);
    }
    let appended = std::fs::File::options().append(true).open(mounted.at(path));
    let written = appended.and_then(|mut file| std::io::Write::write_all(&mut file, b"x"));
    assert_errno(written, Errno::IO);
    assert!(std::fs::metadata(mounted.at(path)).unwrap().len() > 0);
    for other in ["readme.txt", "lib/module.py", "many/b", "bin/tool"] {
        assert!(!std::fs::read(mounted.at(other)).unwrap().is_empty());
    }
    // The broken file can be replaced and removed.
    std::fs::write(mounted.at("replacement"), b"good").unwrap();
    std::fs::rename(mounted.at("replacement"), mounted.at(path)).unwrap();
    assert_eq!(std::fs::read(mounted.at(path)).unwrap(), b"good");
    std::fs::remove_file(mounted.at(path)).unwrap();
}

/// Runs a mount in a mount namespace whose /dev has no fuse.
fn without_dev_fuse(world: &World, who: &str) -> Done {
    where_dev_has(world, who, "true")
}

/// A mount where `/dev` has only what `make` makes there.
fn where_dev_has(world: &World, who: &str, make: &str) -> Done {
    let hide = format!("mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && {make} && exec \"$@\"");
    let mut command = world.command("unshare");
    apart(&mut command, world.path()).args(["sh", "-c", &hide, "sh"]);
    let tools = tools();
    if who == "ordinary" {
        command.arg("setpriv").args(as_user_args()).arg("--");
    }
    command.arg(tools.path().join("holofs")).arg("mount").arg(world.home()).arg("s");
    finish(&mut command)
}

#[test]
fn no_dev_fuse() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample();
    assert_refused(&world, &without_dev_fuse(&world, "root"), 8, &["/dev/fuse"]);
    let world = World::sample().by_ordinary_user();
    // Making the namespace needs root.
    let root = World::at(world.path());
    assert_refused(&world, &without_dev_fuse(&root, "ordinary"), 8, &["/dev/fuse"]);
}

#[test]
fn dev_fuse_is_something_else() {
    if !root_or_skip() {
        return;
    }
    for make in ["mknod -m 666 /dev/fuse c 1 3", "mknod -m 666 /dev/fuse p", "touch /dev/fuse"] {
        let world = World::sample();
        assert_refused(
            &world,
            &where_dev_has(&world, "root", make),
            8,
            &["/dev/fuse", "not the device", "--device"],
        );
    }
}

/// root mounts without fusermount3; an ordinary user cannot.
#[test]
fn no_fusermount3() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample();
    let mut command = world.holofs();
    command.env("PATH", "/nonexistent").arg("mount").arg(world.home()).args(["s", "--json"]);
    drop(Mounted::by(&world, "s", &mut command));

    let tools = tools();
    let world = World::sample().by_ordinary_user();
    let root = World::at(world.path());
    let mut command = root.command("setpriv");
    command.args(as_user_args()).args(["--", "env", "PATH=/nonexistent"]).arg(tools.path().join("holofs"));
    let done = finish(command.arg("mount").arg(world.home()).arg("s"));
    assert_refused(&world, &done, 8, &["fusermount3"]);
    assert!(holofs_binary().exists());
}

/// One line and exit code 2, and nothing is made of the URL.
#[cfg(not(feature = "remote"))]
#[test]
fn urls_need_a_build_for_object_stores() {
    let world = World::sample();
    for words in [
        &["mount", "s3://bucket/secret", "s"][..],
        &["catalogs", "file:///nowhere"],
        &["warm", "https://host/x"],
        &["run", "gs://b", "s", "--", "true"],
    ] {
        let done = world.run(words);
        let code = if words[0] == "run" { 125 } else { 2 };
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{words:?}: {done:?}");
        assert!(done.stderr.contains("without support for object stores"), "{done:?}");
        assert!(!done.stderr.contains("secret") && done.stderr.lines().count() == 2, "{done:?}");
    }
}
