//! An environment at other paths than the one in which it was built.
//!
//! The expected trees are made here from the catalog and the blobs by other means: every place of the old path in a text
//! is replaced, and in a binary the string is filled up with NUL bytes.

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::common::as_user::holofs_binary;
use crate::common::fixture::{self, gunzip};
use crate::common::library::{STAGE, hex, umask};
use crate::common::manifest::{Line, Manifest, assert_same, read_tree};
use crate::common::world::{Done, finish};
use crate::common::{Library, MOTHER_TIME, Mounted, World, assert_errno, rcc};

/// Replaces bytes everywhere.
fn replaced(content: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = content;
    while let Some(at) = rest.windows(old.len()).position(|window| window == old) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(new);
        rest = &rest[at + old.len()..];
    }
    [out.as_slice(), rest].concat()
}

/// The bytes of a file at another path, with the names at the offsets that the catalog lists.
fn expected_content(content: &[u8], offsets: &[usize], (old, new): (&str, &str), name: &str) -> Vec<u8> {
    // A name that no path ends in is replaced by a mark first, so that only those are left that are a part of one.
    let mut content = content.to_vec();
    let last = old.len() - STAGE.len();
    for at in offsets {
        let in_path = at.checked_sub(last).is_some_and(|start| content[start..].starts_with(old.as_bytes()));
        if !in_path {
            content[*at..at + name.len()].copy_from_slice(name.as_bytes());
        }
    }
    if !content.contains(&0) {
        return replaced(&content, old.as_bytes(), new.as_bytes());
    }
    if new.len() > old.len() {
        return replaced(&content, STAGE.as_bytes(), name.as_bytes());
    }
    let strings: Vec<Vec<u8>> = content
        .split(|byte| *byte == 0)
        .map(|string| {
            let mut new = replaced(string, old.as_bytes(), new.as_bytes());
            new.resize(string.len(), 0);
            new
        })
        .collect();
    strings.join(&0)
}

/// What the library holds, at the path `new`, for the space with this name.
fn expected(world: &World, catalog: &Value, new: &str, name: &str) -> Manifest {
    let mut out = Manifest::new();
    let old = catalog["path"].as_str().unwrap().to_owned();
    fill(world, &catalog["tree"], "", (&old, new), name, &mut out);
    out.insert(".".to_owned(), Line::Dir { mode: 0o750 & !umask() });
    out
}

fn fill(world: &World, dir: &Value, at: &str, paths: (&str, &str), name: &str, out: &mut Manifest) {
    let link = |target: &str| match target
        .strip_prefix(paths.0)
        .filter(|rest| rest.is_empty() || rest.starts_with('/'))
    {
        Some(rest) => Line::Link { target: format!("{}{rest}", paths.1) },
        None => Line::Link { target: target.to_owned() },
    };
    for (entry, found) in dir["subdirs"].as_object().unwrap() {
        let path = format!("{at}{entry}");
        match found["symlink"].as_str() {
            Some(target) => drop(out.insert(path, link(target))),
            None => {
                fill(world, found, &format!("{path}/"), paths, name, out);
                out.insert(path, Line::Dir { mode: 0o750 & !umask() });
            }
        }
    }
    for (entry, found) in dir["files"].as_object().unwrap() {
        let path = format!("{at}{entry}");
        if let Some(target) = found["symlink"].as_str() {
            out.insert(path, link(target));
            continue;
        }
        let digest = found["digest"].as_str().unwrap();
        let (a, b, c) = (&digest[..2], &digest[2..4], &digest[4..6]);
        let stored =
            std::fs::read(world.hololib().join("library").join(a).join(b).join(c).join(digest)).unwrap();
        let content = if digest.len() == 64 { gunzip(&stored) } else { stored };
        let offsets: Vec<usize> =
            found["rewrite"].as_array().unwrap().iter().map(|at| at.as_u64().unwrap() as usize).collect();
        let content = expected_content(&content, &offsets, paths, name);
        let mode = found["mode"].as_u64().unwrap();
        let special = [(23, 0o4000), (22, 0o2000), (20, 0o1000)];
        let special = special.into_iter().filter(|(bit, _)| mode >> bit & 1 == 1).map(|(_, bit)| bit);
        let line = Line::File {
            mode: (mode & 0o777) as u32 | special.sum::<u32>(),
            size: content.len() as u64,
            sha256: hex(&Sha256::digest(&content)),
            mtime: (MOTHER_TIME, 0),
        };
        out.insert(path, line);
    }
}

/// The only catalog of a world.
fn catalog(world: &World) -> Value {
    let mut found =
        std::fs::read_dir(world.hololib().join("catalog")).unwrap().map(|entry| entry.unwrap().path());
    rcc::read(&found.find(|path| path.to_str().unwrap().ends_with("64")).unwrap())
}

/// A path below the world with this length, whose last part is not the name of a space.
fn of_length(world: &World, len: usize) -> String {
    let start = world.path().join("e").to_str().unwrap().to_owned();
    assert!(start.len() <= len, "{start} is too long");
    let mut path = format!("{start:e<len$}");
    // No part of a path may be longer than this.
    for at in (start.len() + 60..len - 1).step_by(61) {
        path.replace_range(at..=at, "/");
    }
    std::fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
    path
}

fn args<'a>(home: &'a Path, command: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    [&[command, home.to_str().unwrap()], rest].concat()
}

fn mounted<'w>(world: &'w World, place: &str, more: &[&str]) -> Mounted<'w> {
    let home = world.home();
    let args = args(&home, "mount", &[&[place], more].concat());
    let mounted = Mounted::by(world, place, world.holofs().args(args).arg("--json"));
    assert_eq!(mounted.path(), Path::new(place));
    mounted
}

#[track_caller]
fn refused(world: &World, command: &str, rest: &[&str], code: i32, what: &str) -> Done {
    let home = world.home();
    let done = world.run(args(&home, command, rest));
    assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{done:?}");
    assert!(done.stderr.contains(what) && done.stderr.contains("\n  try: "), "{done:?}");
    done
}

/// Mounts and restores a library of real rcc at this path, and compares both with what is expected.
fn equals_what_is_expected(fixture: &str, len: usize, more: &[&str]) {
    let world = fixture::moved_here(fixture);
    let catalog = catalog(&world);
    let place = of_length(&world, len);
    let space = mounted(&world, &place, more);
    // The sizes are right before anything is read.
    let expected = expected(&world, &catalog, &place, space.output["identity"].as_str().unwrap());
    for (path, line) in &expected {
        if let Line::File { size, .. } = line {
            assert_eq!(std::fs::symlink_metadata(space.at(path)).unwrap().len(), *size, "{path}");
        }
    }
    assert_same(&expected, &read_tree(space.path()));
    assert!(world.json(["diff", place.as_str()])["changes"].as_array().is_none_or(Vec::is_empty));
    // The same again, from what the first mount has kept.
    let space = {
        drop(space);
        mounted(&world, &place, more)
    };
    assert_same(&expected, &read_tree(space.path()));
    drop(space);
    let done = world.run(["delete", place.as_str()]);
    assert_eq!(done.code, 0, "{done:?}");
    std::fs::remove_dir(&place).ok();
    if more.is_empty() {
        let restored = world.json(args(&world.home(), "restore", &[&place]));
        assert_eq!(restored["path"], place);
        assert_same(&expected, &read_tree(Path::new(&place)));
        // A restore completes it.
        std::fs::remove_file(Path::new(&place).join("reloc/one.txt")).unwrap();
        world.json(args(&world.home(), "restore", &[&place]));
        assert_same(&expected, &read_tree(Path::new(&place)));
    }
}

/// The length of the path in which a fixture was recorded.
fn recorded_len(fixture: &str) -> usize {
    format!("/tmp/rcchome/{fixture}/holotree/{STAGE}").len()
}

for_both_users! {
    fn shorter_path() {
        equals_what_is_expected("basic-gz", recorded_len("basic-gz") - 3, &[]);
    }
}

#[test]
fn shorter_path_raw() {
    equals_what_is_expected("basic-raw", recorded_len("basic-raw") - 1, &[]);
}

#[test]
fn path_of_the_same_length() {
    equals_what_is_expected("basic-gz", recorded_len("basic-gz"), &[]);
}

#[test]
fn longer_path_with_binaries_as_they_are() {
    for len in [recorded_len("basic-gz") + 1, 250] {
        equals_what_is_expected("basic-gz", len, &["--foreign"]);
    }
}

#[test]
fn longer_path_lists_the_binaries() {
    let world = fixture::moved_here("basic-gz");
    let place = of_length(&world, recorded_len("basic-gz") + 1);
    for command in ["mount", "restore"] {
        let done = refused(
            &world,
            command,
            &[&place],
            7,
            "1 files would still name /tmp/rcchome/basic-gz/holotree/",
        );
        assert!(done.stderr.contains("bin/padded.bin") && done.stderr.contains("55 bytes"), "{done:?}");
    }
    assert!(world.mounts().is_empty());
}

#[test]
fn paths_that_break_scripts_are_refused() {
    let world = World::sample();
    for odd in ["a b/env", "it's/env", "a:b/env", "a$b"] {
        let place = world.path().join(odd).to_str().unwrap().to_owned();
        refused(&world, "mount", &[&place], 7, "which breaks scripts");
    }
}

#[test]
fn a_missing_blob_is_told_and_nothing_is_mounted() {
    let library = Library::sample();
    let world = World::with(&library);
    std::fs::remove_file(library.blob(&world.hololib(), "lib/module.py")).unwrap();
    std::fs::write(library.blob(&world.hololib(), "etc/prefix.conf"), "bad").unwrap();
    let place = world.path().join("env").to_str().unwrap().to_owned();
    // All of them are told. Nobody knows what they would be there, so that --foreign does not help.
    for more in [&[][..], &["--foreign"]] {
        let done = refused(&world, "mount", &[&[&*place], more].concat(), 3, "lib/module.py");
        assert!(done.stderr.contains("etc/prefix.conf") && done.stderr.contains("1 other files"), "{done:?}");
    }
    assert!(world.mounts().is_empty());
    assert_eq!(world.run(["list"]).stdout.lines().count(), 1);
}

#[test]
fn a_restore_removes_nothing_of_a_directory_with_files() {
    let world = World::sample();
    let place = world.path().join("mine");
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("precious"), "mine").unwrap();
    refused(&world, "restore", &[place.to_str().unwrap()], 7, "not empty");
    assert_eq!(std::fs::read(place.join("precious")).unwrap(), b"mine");
}

/// A library that names its own path in texts, in a link and in a binary.
fn naming(base: &Path) -> Library {
    let own = base.join(STAGE).to_str().unwrap().to_owned();
    Library::new()
        .file_mode("bin/tool", 0o755, format!("#!{own}/bin/python\nprefix = '{own}'\n{STAGE}\n").as_bytes())
        .file("etc/a.conf", format!("home={own}/lib\n").as_bytes())
        .file("etc/b.conf", format!("path={own}/bin:/usr/bin\n").as_bytes())
        .file("lib/native.bin", format!("\x7fELF\0{own}/lib\0{own}\0end").as_bytes())
        .link("abs", &format!("{own}/etc/a.conf"))
        .file("plain", b"nothing\n")
}

fn world_naming() -> World {
    let world = World::new();
    world.add(&naming(&world.base()));
    world
}

for_both_users! {
    fn changes_stay_and_are_told_and_dropped() {
        let world = world_naming();
        let place = world.path().join("env").to_str().unwrap().to_owned();
        let space = mounted(&world, &place, &[]);
        let tool = std::fs::read_to_string(space.at("bin/tool")).unwrap();
        assert!(tool.starts_with(&format!("#!{place}/bin/python\nprefix = '{place}'\n")), "{tool}");
        assert_eq!(std::fs::read_link(space.at("abs")).unwrap(), Path::new(&place).join("etc/a.conf"));
        std::fs::write(space.at("bin/tool"), format!("{tool}# changed\n")).unwrap();
        std::fs::set_permissions(space.at("etc/a.conf"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        // A copy with the library's bytes is no change of the content.
        let same = std::fs::read(space.at("etc/b.conf")).unwrap();
        std::fs::write(space.at("etc/b.conf"), &same).unwrap();
        let diff = world.run(["diff", place.as_str()]).stdout;
        assert!(diff.contains("bin/tool") && diff.contains("etc/a.conf"), "{diff}");
        let space = { drop(space); mounted(&world, &place, &[]) };
        assert_eq!(std::fs::read_to_string(space.at("bin/tool")).unwrap(), format!("{tool}# changed\n"));
        assert_eq!(std::fs::read_to_string(space.at("etc/a.conf")).unwrap(), format!("home={place}/lib\n"));
        let done = world.run(["reset", place.as_str(), "bin/tool"]);
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(std::fs::read_to_string(space.at("bin/tool")).unwrap(), tool);
    }
}

#[test]
fn changes_of_one_path_are_not_shown_at_another() {
    let world = world_naming();
    let (one, two) = (world.path().join("1"), world.path().join("2"));
    let (one, two) = (one.join("a-name-of-24-bytes-here-"), two.join("a-name-of-24-bytes-here-"));
    for place in [&one, &two] {
        std::fs::create_dir(place.parent().unwrap()).unwrap();
    }
    let space = mounted(&world, one.to_str().unwrap(), &[]);
    refused(&world, "mount", &[two.to_str().unwrap()], 7, "mounted on");
    std::fs::write(space.at("new"), "new").unwrap();
    drop(space);
    refused(&world, "mount", &[two.to_str().unwrap()], 7, one.to_str().unwrap());
}

#[test]
fn a_commit_names_the_path_in_which_it_was_built() {
    let world = world_naming();
    let place = of_length(&world, world.path().as_os_str().len() + 8);
    let space = mounted(&world, &place, &[]);
    let own = world.base().join(STAGE).to_str().unwrap().to_owned();
    let tool = std::fs::read_to_string(space.at("bin/tool")).unwrap();
    std::fs::write(space.at("bin/tool"), format!("{tool}# changed\n")).unwrap();
    std::fs::write(space.at("bin/new"), format!("#!{place}/bin/python\nother = '{place}-2 /usr{place}'\n"))
        .unwrap();
    std::os::unix::fs::symlink(format!("{place}/plain"), space.at("new-link")).unwrap();
    let file = world.path().join("blueprint.txt");
    std::fs::write(&file, "name: committed").unwrap();
    let commit = || finish(world.holofs().args(["commit", &place, "--json", "--blueprint"]).arg(&file));
    // It cannot be told what a binary would be.
    std::fs::write(space.at("compiled"), format!("\0{place}\0")).unwrap();
    let done = commit();
    assert!(done.code == 5 && done.stderr.contains("compiled: it names the path of the space"), "{done:?}");
    std::fs::remove_file(space.at("compiled")).unwrap();
    let done = commit();
    assert_eq!(done.code, 0, "{done:?}");
    let blueprint =
        serde_json::from_str::<Value>(&done.stdout).unwrap()["blueprint"].as_str().unwrap().to_owned();
    drop(space);
    // In its own place, and at a third one.
    let third = of_length(&world, own.len());
    for there in [world.base().join("a-name-of-24-bytes-here-").to_str().unwrap().to_owned(), third] {
        let again = mounted(&world, &there, &["--blueprint", &blueprint]);
        let name = again.output["identity"].as_str().unwrap();
        let text = std::fs::read_to_string(again.at("bin/tool")).unwrap();
        assert_eq!(text, format!("#!{there}/bin/python\nprefix = '{there}'\n{name}\n# changed\n"));
        let text = std::fs::read_to_string(again.at("bin/new")).unwrap();
        assert_eq!(text, format!("#!{there}/bin/python\nother = '{place}-2 /usr{place}'\n"));
        let native = std::fs::read(again.at("lib/native.bin")).unwrap();
        assert_eq!(native, format!("\x7fELF\0{there}/lib\0{there}\0end").as_bytes());
    }
}

#[test]
fn a_fork_names_its_own_path() {
    let world = world_naming();
    let (one, two) = (world.path().join("env-1"), world.path().join("env-2"));
    let space = mounted(&world, one.to_str().unwrap(), &[]);
    let text = std::fs::read_to_string(space.at("bin/tool")).unwrap();
    std::fs::write(space.at("bin/tool"), format!("{text}# changed\n")).unwrap();
    let done =
        world.run(["fork", one.to_str().unwrap(), world.path().join("other").join("x").to_str().unwrap()]);
    assert!(done.code == 7 && done.stderr.contains("bytes"), "{done:?}");
    let forked = world.json(["fork", one.to_str().unwrap(), two.to_str().unwrap()]);
    assert_eq!(forked["path"], two.to_str().unwrap());
    let fork = mounted(&world, two.to_str().unwrap(), &[]);
    let two = two.to_str().unwrap();
    let name = fork.output["identity"].as_str().unwrap();
    let text = std::fs::read_to_string(fork.at("bin/tool")).unwrap();
    assert_eq!(text, format!("#!{two}/bin/python\nprefix = '{two}'\n{name}\n# changed\n"));
    assert_eq!(std::fs::read_to_string(fork.at("etc/a.conf")).unwrap(), format!("home={two}/lib\n"));
}

/// Records a virtual environment of Python with pip, without the network.
fn recorded(world: &World, more: &[&str]) {
    let blueprint = world.path().join("blueprint.txt");
    std::fs::write(&blueprint, "python and pip").unwrap();
    let script = "python3 -m venv --copies \"$HOLOFS_STAGE\"";
    let mut command = world.command(holofs_binary());
    command.arg("record").arg(world.home()).args(more).arg("--blueprint").arg(&blueprint);
    let done = finish(command.args(["--", "sh", "-c", script]));
    assert_eq!(done.code, 0, "{done:?}");
}

/// Runs Python, pip and each script of `bin`.
fn works(world: &World, place: &Path, built: &str) {
    let run = |program: PathBuf, args: &[&str]| {
        let done = finish(world.command(&program).args(args));
        assert_eq!(done.code, 0, "{} {args:?}: {done:?}", program.display());
        done.stdout.trim().to_owned()
    };
    let at = place.to_str().unwrap();
    assert_eq!(run(place.join("bin/python"), &["-c", "import sys; print(sys.prefix)"]), at);
    let mut scripts = 0;
    for entry in std::fs::read_dir(place.join("bin")).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("pip") {
            scripts += 1;
            assert!(run(entry.path(), &["--version"]).contains(at), "{name}");
        } else if name == "activate" {
            let script = format!(". {} && printf %s \"$VIRTUAL_ENV\"", entry.path().display());
            let done = finish(world.command("sh").args(["-c", &script]));
            assert_eq!((done.code, done.stdout.as_str()), (0, at), "{done:?}");
        }
        // Nothing names the directory in which it was built.
        let bytes = std::fs::read(entry.path()).unwrap();
        assert!(!bytes.windows(built.len()).any(|found| found == built.as_bytes()), "{name}");
    }
    assert!(scripts >= 2);
}

fn runs_anywhere(record: &[&str]) {
    let world = World::new();
    recorded(&world, record);
    let path = catalog(&world)["path"].as_str().unwrap().to_owned();
    for len in [world.path().as_os_str().len() + 3, path.len(), path.len() + 40] {
        let place = of_length(&world, len);
        let space = mounted(&world, &place, &[]);
        works(&world, space.path(), &path);
        let home = world.home();
        let done = world.run(["variables", "--library", home.to_str().unwrap(), "--space", &place]);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.stdout.contains(&format!("VIRTUAL_ENV={place}\n")), "{done:?}");
    }
    let place = of_length(&world, path.len() - 7);
    world.json(args(&world.home(), "restore", &[&place]));
    works(&world, Path::new(&place), &path);
    // The library in another home, by the name of a space.
    let other = world.path().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::rename(world.hololib(), other.join("hololib")).unwrap();
    let mut command = world.holofs();
    let library = other.to_str().unwrap().to_owned();
    command
        .args(["run", &library, "moved", "--", "python", "-c", "import sys; print(sys.prefix)"])
        .env("ROBOCORP_HOME", &other);
    let done = finish(&mut command);
    assert!(done.code == 0 && done.stdout.starts_with(other.join("holotree").to_str().unwrap()), "{done:?}");
}

#[test]
fn recorded_python_runs_anywhere() {
    runs_anywhere(&[]);
}

#[test]
fn portable_python_runs_anywhere() {
    let world = World::new();
    recorded(&world, &["--portable"]);
    let path = catalog(&world)["path"].as_str().unwrap().to_owned();
    assert_eq!(path.len(), 200);
    let space = world.mount("s");
    assert_eq!(space.path().parent().unwrap(), world.base());
    works(&world, space.path(), &path);
    drop(space);
    let place = of_length(&world, 190);
    let space = mounted(&world, &place, &[]);
    works(&world, space.path(), &path);
}

#[test]
fn a_script_with_a_first_line_that_is_too_long_is_listed() {
    let world = world_naming();
    let place = of_length(&world, 251);
    let done = refused(&world, "mount", &[&place], 7, "2 files would still name");
    assert!(done.stderr.contains("bin/tool") && done.stderr.contains("lib/native.bin"), "{done:?}");
}

/// Whoever shows a pushed environment at another path does not fetch its files to find out where they name the old one.
#[cfg(feature = "remote")]
#[test]
fn a_pushed_environment_is_shown_without_a_search() {
    let world = fixture::moved_here("basic-gz");
    let catalog = catalog(&world);
    let (store, packs) = (world.path().join("store"), world.path().join("packs"));
    let url = format!("file://{}", store.display());
    let mut push = world.holofs();
    let pushed =
        finish(push.env("HOLOFS_CACHE_DIR", world.path().join("other")).args(["push", "auto", &url]));
    assert_eq!(pushed.code, 0, "{pushed:?}");
    let place = of_length(&world, recorded_len("basic-gz") - 3);
    std::fs::rename(store.join("packs"), &packs).unwrap();
    let mut mount = world.holofs();
    let space = Mounted::by(&world, &place, mount.args(["mount", &url, &place, "--json"]));
    std::fs::rename(&packs, store.join("packs")).unwrap();
    let expected = expected(&world, &catalog, &place, space.output["identity"].as_str().unwrap());
    assert_same(&expected, &read_tree(space.path()));
}

/// The offsets of a catalog may be wrong, and names odd. That is an error of the files that have them.
#[test]
fn wrong_offsets_are_errors_of_their_files() {
    let world = World::new();
    let own = world.base().join(STAGE).to_str().unwrap().to_owned();
    let library = naming(&world.base()).file("etc/two\nlines", format!("{own}\n").as_bytes());
    library.write_edited(&world.hololib(), &world.base(), |catalog| {
        let tool = &mut catalog["tree"]["subdirs"]["bin"]["files"]["tool"]["rewrite"];
        let at = tool[0].as_u64().unwrap();
        *tool = serde_json::json!([at, at + 5, at + 9]);
        catalog["tree"]["subdirs"]["etc"]["files"]["a.conf"]["rewrite"] = serde_json::json!([3]);
        catalog["tree"]["subdirs"]["lib"]["files"]["native.bin"]["rewrite"] = serde_json::json!([0]);
    });
    for len in [own.len() - 4, own.len(), own.len() + 20] {
        let place = of_length(&world, len);
        let space = mounted(&world, &place, &["--foreign"]);
        for bad in ["bin/tool", "etc/a.conf", "lib/native.bin"] {
            assert_errno(std::fs::read(space.at(bad)), Errno::IO);
        }
        let text = std::fs::read_to_string(space.at("etc/b.conf")).unwrap();
        assert_eq!(text, format!("path={place}/bin:/usr/bin\n"));
        assert_eq!(std::fs::read_to_string(space.at("etc/two\nlines")).unwrap(), format!("{place}\n"));
        assert_eq!(std::fs::read(space.at("plain")).unwrap(), b"nothing\n");
    }
}

/// A moved library whose binaries have no room for the new path, by the name of a space.
#[test]
fn foreign_takes_a_name() {
    let world = world_naming();
    let home = world.path().join("a-home-with-a-much-longer-path-than-the-one-before");
    std::fs::create_dir(&home).unwrap();
    std::fs::rename(world.hololib(), home.join("hololib")).unwrap();
    let command = || {
        let mut command = world.holofs();
        command.args(["mount", home.to_str().unwrap(), "moved", "--json"]).env("ROBOCORP_HOME", &home);
        command
    };
    let done = finish(&mut command());
    assert!(done.code == 7 && done.stderr.contains("lib/native.bin"), "{done:?}");
    let done = finish(command().arg("--foreign"));
    assert_eq!(done.code, 0, "{done:?}");
    let said: Value = serde_json::from_str(&done.stdout).unwrap();
    let path = Path::new(said["path"].as_str().unwrap());
    let text = std::fs::read_to_string(path.join("etc/a.conf"));
    let ended = finish(world.holofs().args(["unmount", "moved"]).env("ROBOCORP_HOME", &home));
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(path.starts_with(home.join("holotree")), "{said}");
    assert_eq!(text.unwrap(), format!("home={}/lib\n", path.display()));
}

/// What a store says about the places of paths is not trusted.
#[cfg(feature = "remote")]
#[test]
fn lies_about_places_are_errors_of_their_files() {
    use holofs::library::remote::head::{self, Head, Object};

    let world = world_naming();
    let store = world.path().join("store");
    let url = format!("file://{}", store.display());
    let done = finish(world.holofs().args(["push", "auto", &url]));
    assert_eq!(done.code, 0, "{done:?}");
    let heads = store.join("heads");
    let name = std::fs::read_dir(&heads).unwrap().next().unwrap().unwrap().path();
    let head = Head::parse(&std::fs::read(&name).unwrap()).unwrap();
    let true_finds: Value =
        serde_json::from_slice(&std::fs::read(store.join(head::finds(&head.finds.unwrap().sha256))).unwrap())
            .unwrap();
    let huge = u64::MAX;
    let lies: [fn(&mut Value, u64); 9] = [
        |content, huge| content["paths"][0] = huge.into(),
        |content, _| content["paths"][0] = (1u64 << 62).into(),
        |content, _| content["paths"][0] = 1_000_000.into(),
        |content, _| content["paths"] = serde_json::json!([0, 1, 2, 3]),
        |content, _| content["paths"] = vec![0; 200_000].into(),
        |content, huge| content["line"] = huge.into(),
        |content, huge| {
            content["binary"] = true.into();
            content["ends"] = vec![huge; content["paths"].as_array().unwrap().len()].into();
        },
        |content, _| {
            content["binary"] = true.into();
            content["ends"] = vec![0; content["paths"].as_array().unwrap().len()].into();
        },
        |content, huge| content["digest"] = (huge >> 32).into(),
    ];
    for (n, lie) in lies.into_iter().enumerate() {
        for longer in [false, true] {
            let mut finds = true_finds.clone();
            for content in finds["contents"].as_array_mut().unwrap() {
                lie(content, huge);
            }
            let bytes = serde_json::to_vec(&finds).unwrap();
            let sha256 = Sha256::digest(&bytes).into();
            std::fs::write(store.join(head::finds(&sha256)), &bytes).unwrap();
            let finds = Some(Object { sha256, bytes: bytes.len() as u64 });
            std::fs::write(&name, Head { finds, ..head.clone() }.to_bytes().unwrap()).unwrap();
            let cache = world.path().join(format!("cache-{n}-{longer}"));
            let place = of_length(&world, world.path().as_os_str().len() + if longer { 120 } else { 5 });
            let command = || {
                let mut command = world.holofs();
                command.env("HOLOFS_CACHE_DIR", &cache).args(["mount", &url, &place, "--foreign", "--json"]);
                command
            };
            let done = finish(&mut command());
            assert!(!done.stderr.contains("panicked") && done.code < 100, "{n}: {done:?}");
            if done.code != 0 {
                assert!(done.stderr.lines().count() < 4, "{n}: {done:?}");
                continue;
            }
            let space = Mounted::by(&world, &place, &mut command());
            for path in ["bin/tool", "etc/a.conf", "lib/native.bin"] {
                let len = std::fs::metadata(space.at(path)).unwrap().len();
                if let Ok(bytes) = std::fs::read(space.at(path)) {
                    assert_eq!(bytes.len() as u64, len, "{n}: {path}");
                }
            }
            assert_eq!(std::fs::read(space.at("plain")).unwrap(), b"nothing\n");
            assert_eq!(world.json(["status", &place])["restarts"], 0);
        }
    }
}
