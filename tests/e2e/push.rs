//! `holofs push`: what it puts into an object store, and what it does not.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use holofs::library::catalog::parse_file;
use holofs::library::catalogs::CatalogName;
use holofs::library::digest::Digest;
use holofs::library::remote::head::{self, Head};
use holofs::library::remote::layout::{Entry, Layout, Packing};
use sha2::{Digest as _, Sha256};

use crate::common::as_user::root_or_skip;
use crate::common::fixture::gunzip;
use crate::common::image::Image;
use crate::common::library::pattern;
use crate::common::push::FileStore;
use crate::common::store::{SECRET, Store};
use crate::common::world::finish;
use crate::common::{Library, Mounted, World, files_below, wait_until};

/// Bytes that cannot be compressed.
fn random(len: usize, seed: u64) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64 ^ seed;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(step).collect()
}

/// An environment with many small files and a large one.
fn library() -> Library {
    let files = (0..300).map(|n| (format!("lib/pkg{}/file{n}.py", n % 10), random(5000, n)));
    files
        .fold(Library::sample(), |library, (path, bytes)| library.file(&path, &bytes))
        .file("lib/large.so", &random(2 << 20, 9))
}

/// Another one that shares most of its files.
fn second() -> Library {
    library()
        .named("second")
        .file("lib/pkg3/new.py", &random(6000, 1001))
        .file("lib/pkg4/new2.py", &random(6000, 1002))
}

/// A directory of the world as a store.
fn store(world: &World) -> (PathBuf, String) {
    let dir = world.path().join("store");
    (dir.clone(), format!("file://{}", dir.display()))
}

/// All objects with their content.
fn objects(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files_below(dir).into_iter().map(|path| (path.clone(), std::fs::read(dir.join(path)).unwrap())).collect()
}

/// The heads of a store.
fn heads(dir: &Path) -> BTreeMap<CatalogName, Head> {
    let head = |path: PathBuf| {
        let name = CatalogName::parse(path.to_str().unwrap()).unwrap();
        (name, Head::parse(&std::fs::read(dir.join("heads").join(path)).unwrap()).unwrap())
    };
    files_below(&dir.join("heads")).into_iter().map(head).collect()
}

fn layout(dir: &Path, head: &Head) -> Layout {
    Layout::parse(std::fs::read(dir.join(head::layout(&head.layout.sha256))).unwrap()).unwrap()
}

/// The stored bytes of a blob in a store.
fn stored(dir: &Path, layout: &Layout, entry: &Entry) -> Vec<u8> {
    match entry.grouped {
        None => std::fs::read(dir.join(head::blob(&entry.blob))).unwrap(),
        Some((group, offset)) => {
            let group = layout.group(group).unwrap();
            let pack = std::fs::read(dir.join(head::pack(&group.pack))).unwrap();
            let start = (group.offset + offset) as usize;
            pack[start..start + entry.blob.stored as usize].to_vec()
        }
    }
}

/// Asserts that all objects have the digests of their names, and that each catalog has all of its blobs with their content.
#[track_caller]
fn assert_whole(dir: &Path, hololib: &Path) {
    for (path, bytes) in objects(dir) {
        let (kind, name) =
            (path.parent().unwrap().to_str().unwrap(), path.file_name().unwrap().to_str().unwrap());
        if !matches!(kind, "heads" | "blobs" | "zstd") {
            assert_eq!(crate::common::library::hex(&Sha256::digest(&bytes)), name, "{kind}");
        }
    }
    for (name, head) in heads(dir) {
        let layout = layout(dir, &head);
        let catalog = std::fs::read(dir.join(head::catalog(&head.catalog.sha256))).unwrap();
        assert!(catalog == std::fs::read(hololib.join(format!("catalog/{name}"))).unwrap());
        for digest in parse_file(&catalog).unwrap().digests {
            let entry = layout.find(&digest).unwrap_or_else(|| panic!("{digest} of {name}"));
            let blob = std::fs::read(hololib.join("library").join(digest.fan_out())).unwrap();
            let stored = stored(dir, &layout, &entry);
            match entry.blob.packing {
                Packing::AsInLibrary => assert!(stored == blob, "{digest} of {name}"),
                Packing::Zstd => {
                    let content = if digest.is_raw() { blob } else { gunzip(&blob) };
                    assert!(zstd::decode_all(&*stored).unwrap() == content, "{digest} of {name}");
                }
            }
        }
    }
}

#[test]
fn a_library_is_pushed_and_a_repetition_sends_nothing() {
    let world = World::with(&library());
    let (dir, url) = store(&world);
    let done = world.json(["push", "auto", &url, "--dry-run"]);
    assert_eq!((done["dry_run"].as_bool(), done["objects_sent"].as_u64()), (Some(true), Some(0)));
    assert_eq!(done["catalogs"][0]["blobs_new"], done["catalogs"][0]["blobs"]);
    assert!(!dir.exists());
    let done = world.json(["push", "auto", &url]);
    assert_eq!(done["catalogs"][0]["outcome"], "new", "{done}");
    assert_whole(&dir, &world.hololib());
    let first = objects(&dir);
    // A head, a catalog, a layout, its places of the old path, a large blob, and one pack for all the others.
    let count = |kind: &str| first.keys().filter(|path| path.starts_with(kind)).count();
    let counts = ["heads", "catalogs", "layouts", "finds", "zstd", "packs", "profiles"].map(count);
    assert_eq!(counts, [1, 1, 1, 1, 1, 1, 0]);
    assert_eq!(done["objects_sent"].as_u64(), Some(5));
    let sizes = first.iter().filter(|(path, _)| !path.starts_with("heads"));
    assert_eq!(done["bytes_sent"].as_u64(), Some(sizes.map(|(_, bytes)| bytes.len() as u64).sum()));
    let done = world.run(["push", "auto", &url, &library().hash()[..6]]);
    assert_eq!((done.code, done.stdout), (0, format!("{} unchanged\n", library().hash())));
    assert!(done.stderr.contains("0 objects sent"), "{}", done.stderr);
    assert_eq!(objects(&dir), first);
}

#[test]
fn a_raw_library_is_pushed() {
    let world = World::with(&library().raw());
    let (dir, url) = store(&world);
    world.json(["push", "auto", &url]);
    assert_whole(&dir, &world.hololib());
    let head = heads(&dir).into_values().next().unwrap();
    assert!(layout(&dir, &head).entries().all(|entry| matches!(entry.blob.digest, Digest::Sip128(_))));
}

#[test]
fn a_second_catalog_sends_what_is_new() {
    let world = World::with(&library());
    let (dir, url) = store(&world);
    world.json(["push", "auto", &url]);
    let before = objects(&dir);
    world.add(&second());
    let done = world.json(["push", "auto", &url, &second().hash()]);
    let catalog = &done["catalogs"][0];
    // Two files, and the text of the blueprint.
    assert_eq!(
        (catalog["blobs_new"].as_u64(), catalog["outcome"].as_str()),
        (Some(3), Some("new")),
        "{done}"
    );
    assert_eq!(done["objects_sent"].as_u64(), Some(4), "a pack, a catalog, a layout and finds: {done}");
    assert_whole(&dir, &world.hololib());
    let after = objects(&dir);
    assert!(before.iter().all(|(path, bytes)| after.get(path) == Some(bytes)), "objects never change");
    // What the second one adds lies together.
    let layout =
        layout(&dir, &heads(&dir)[&CatalogName::parse(catalog["catalog"].as_str().unwrap()).unwrap()]);
    assert!(layout.groups().count() <= 12, "{} groups", layout.groups().count());
    // Both in one push give the same blobs in as few objects.
    let other = format!("{url}-2");
    let done = world.json(["push", "auto", &other]);
    assert_eq!(done["catalogs"].as_array().unwrap().len(), 2);
    assert_whole(&world.path().join("store-2"), &world.hololib());
    let blobs = |dir: &Path| files_below(&dir.join("zstd"));
    assert_eq!(blobs(&dir), blobs(&world.path().join("store-2")));
}

/// A push that died before its end left some objects and no head.
#[test]
fn an_interrupted_push_sends_the_rest() {
    let large = library().file("lib/huge.so", &random(18 << 20, 77));
    let large =
        (0..20).fold(large, |library, n| library.file(&format!("lib/mid{n}.so"), &random(800_000, 500 + n)));
    let world = World::with(&large);
    let (dir, url) = store(&world);
    world.json(["push", "auto", &url]);
    assert_whole(&dir, &world.hololib());
    let first = objects(&dir);
    let (_, head) = heads(&dir).pop_first().unwrap();
    // In the order of the layout. What is sent again comes after what is there.
    let layout = layout(&dir, &head);
    let packs: Vec<_> = layout.packs().map(|(pack, _)| PathBuf::from(head::pack(&pack))).collect();
    assert!(packs.len() >= 2, "{packs:?}");
    for gone in ["heads", "layouts", "catalogs"] {
        std::fs::remove_dir_all(dir.join(gone)).unwrap();
    }
    std::fs::remove_file(dir.join(&packs[0])).unwrap();
    // As the client of `file://` leaves it when it is killed.
    std::fs::write(dir.join(format!("{}#1", packs[0].display())), b"a part").unwrap();
    let done = world.json(["push", "auto", &url]);
    assert_eq!(done["objects_sent"].as_u64(), Some(3), "the pack, a catalog and a layout: {done}");
    std::fs::remove_file(dir.join(format!("{}#1", packs[0].display()))).ok();
    assert_eq!(objects(&dir), first);
    // A pack of another size is not taken for whole.
    std::fs::write(dir.join(packs.last().unwrap()), b"cut").unwrap();
    let done = world.json(["push", "auto", &url]);
    assert_eq!(done["objects_sent"].as_u64(), Some(1), "{done}");
    assert_eq!(objects(&dir), first);
}

#[test]
fn two_pushes_at_once_leave_a_whole_store() {
    let world = World::with(&library());
    world.add(&second());
    let (dir, url) = store(&world);
    let hashes = [library().hash(), second().hash()];
    let push = |hash: &String| {
        let mut command = world.holofs();
        command.args(["push", "auto", &url, hash]).stdout(Stdio::null()).spawn().unwrap()
    };
    // The same one, and another one.
    let pushes: Vec<_> = [&hashes[0], &hashes[0], &hashes[1]].map(push).into_iter().collect();
    for mut child in pushes {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(heads(&dir).len(), 2);
    assert_whole(&dir, &world.hololib());
    assert_eq!(world.json(["push", "auto", &url])["objects_sent"].as_u64(), Some(0));
}

#[test]
fn a_catalog_with_a_bad_blob_is_not_published() {
    let library = library();
    for damage in ["other", "cut", "missing", "large"] {
        let world = World::with(&library);
        let (dir, url) = store(&world);
        let path = if damage == "large" { "lib/large.so" } else { "lib/pkg3/file3.py" };
        let blob = library.blob(&world.hololib(), path);
        let bytes = std::fs::read(&blob).unwrap();
        match damage {
            "cut" => std::fs::write(&blob, &bytes[..bytes.len() / 2]).unwrap(),
            "missing" => std::fs::remove_file(&blob).unwrap(),
            _ => std::fs::write(&blob, crate::common::library::gzip(&pattern(5000))).unwrap(),
        }
        let done = world.run(["push", "auto", &url]);
        assert_eq!((done.code, done.stdout.as_str()), (11, ""), "{damage}: {done:?}");
        assert_eq!(done.stderr.lines().filter(|line| line.starts_with("holofs: ")).count(), 1, "{done:?}");
        assert!(!dir.join("heads").exists() && !dir.join("layouts").exists(), "{damage}");
    }
}

/// The packed bytes of a large blob lie in the cache until they are sent.
#[test]
fn a_cache_without_room_is_named_and_nothing_is_published() {
    if !root_or_skip() {
        return;
    }
    let world = World::with(&library().file("lib/huge.so", &random(20 << 20, 5)));
    let (dir, url) = store(&world);
    let image = Image::new("ext4", 16);
    let cache = image.path().join("cache");
    let push = || finish(world.holofs().args(["push", "auto", &url]).env("HOLOFS_CACHE_DIR", &cache));
    let done = push();
    assert_eq!((done.code, done.stdout.as_str()), (1, ""), "{done:?}");
    assert!(done.stderr.contains(&format!("{}/blobs/tmp: ", cache.display())), "{done:?}");
    assert!(done.stderr.contains("HOLOFS_CACHE_DIR"), "{done:?}");
    assert!(!dir.join("heads").exists());
    assert_eq!(files_below(&cache.join("blobs")), [""; 0].map(PathBuf::from));
    world.json(["push", "auto", &url]);
    assert_whole(&dir, &world.hololib());
}

#[test]
fn what_cannot_be_pushed_is_said_in_one_line() {
    let world = World::sample();
    let nowhere = format!("file://{}/store", world.path().display());
    for (url, args, code, word) in [
        ("s3://me:s3cr3t@bucket/x", &[][..], 2, "credentials"),
        ("https://host/x?sig=s3cr3t", &[], 2, "credentials"),
        ("ftp://s3cr3t", &[], 2, "not the URL of an object store"),
        ("az://container", &[], 4, "Account must be specified"),
        (&nowhere, &["nothing"], 6, "no catalog nothing"),
        (&nowhere, &["--profile", "/nowhere"], 2, "profile /nowhere"),
        ("http://127.0.0.1:1/x", &["--remote-timeout", "0.3"], 3, "does not answer"),
    ] {
        let done = world.run([&["push", "auto", url][..], args].concat());
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{url}: {done:?}");
        assert!(done.stderr.contains(word) && !done.stderr.contains("s3cr3t"), "{url}: {done:?}");
        assert_eq!(done.stderr.lines().filter(|line| line.starts_with("holofs: ")).count(), 1, "{done:?}");
    }
    assert!(!world.path().join("store").exists());
}

/// What mounts read lies at the beginning, in one group.
#[test]
fn a_profile_travels_and_decides_the_order() {
    let world = World::with(&library());
    let (dir, url) = store(&world);
    let space = world.mount("profiled");
    let read = ["lib/pkg7/file7.py", "lib/pkg2/file102.py"];
    read.iter().for_each(|path| drop(std::fs::read(space.at(path)).unwrap()));
    space.unmount();
    let done = world.json(["push", "auto", &url]);
    assert_eq!(done["catalogs"][0]["profile"].as_bool(), Some(true), "{done}");
    let head = heads(&dir).into_values().next().unwrap();
    let layout = layout(&dir, &head);
    let first = layout.groups().next().unwrap();
    let digests: Vec<String> = layout.in_group(first.id).map(|entry| entry.blob.digest.to_string()).collect();
    let of = |path: &&str| {
        library().blob(&world.hololib(), path).file_name().unwrap().to_str().unwrap().to_owned()
    };
    assert!(read.iter().map(of).all(|digest| digests.contains(&digest)), "{digests:?}");
    assert!(digests.len() < 20, "{}", digests.len());
    let profile = head::profile(&head.profile.unwrap().sha256);
    // The profile of a file is taken too.
    let other = format!("{url}-2");
    let file = dir.join(&profile).display().to_string();
    world.json(["push", "auto", &other, "--profile", &file]);
    assert!(world.path().join("store-2").join(&profile).is_file());
    // Without one, that of the store stays.
    assert_eq!(
        world.json(["push", "auto", &url, "--profile", "none"])["catalogs"][0]["outcome"],
        "unchanged"
    );
    world.json(["push", "auto", &format!("{url}-3"), "--profile", "none"]);
    assert!(!world.path().join("store-3/profiles").exists());
}

/// What was pushed before there was a profile is put in its order when that is asked for.
#[test]
fn a_later_profile_decides_the_order_with_repack() {
    let world = World::with(&library());
    let (dir, url) = store(&world);
    world.json(["push", "auto", &url]);
    let space = world.mount("profiled");
    let read = ["lib/pkg7/file7.py", "lib/pkg2/file102.py"];
    read.iter().for_each(|path| drop(std::fs::read(space.at(path)).unwrap()));
    space.unmount();
    let first_group = || {
        let layout = layout(&dir, &heads(&dir).into_values().next().unwrap());
        let first = layout.groups().next().unwrap();
        layout.in_group(first.id).map(|entry| entry.blob.digest.to_string()).collect::<Vec<_>>()
    };
    let again = world.json(["push", "auto", &url]);
    assert_eq!(again["catalogs"][0]["blobs_new"], 0, "{again}");
    assert!(first_group().len() > 20);
    world.json(["push", "auto", &url, "--repack"]);
    let of = |path: &&str| {
        library().blob(&world.hololib(), path).file_name().unwrap().to_str().unwrap().to_owned()
    };
    let first = first_group();
    assert!(first.len() < 20 && read.iter().map(of).all(|digest| first.contains(&digest)), "{first:?}");
    assert_eq!(world.json(["push", "auto", &url, "--repack"])["objects_sent"], 0);
    assert_whole(&dir, &world.hololib());
}

/// The first version of the format had blobs as the library has them.
#[test]
fn blobs_of_the_first_version_are_used_until_they_are_packed() {
    let world = World::with(&library());
    let (dir, url) = store(&world);
    FileStore::push(&world.hololib(), &dir);
    let packings = || {
        let layout = layout(&dir, &heads(&dir).into_values().next().unwrap());
        layout.entries().map(|entry| entry.blob.packing).collect::<HashSet<_>>()
    };
    assert_eq!(world.json(["push", "auto", &url])["catalogs"][0]["blobs_new"], 0);
    assert_eq!(packings(), HashSet::from([Packing::AsInLibrary]));
    assert_whole(&dir, &world.hololib());
    // Another environment adds packed blobs to them.
    world.add(&second());
    world.json(["push", "auto", &url, &second().hash()]);
    assert_whole(&dir, &world.hololib());
    let args = ["mount", &url, "second", "--blueprint", &second().hash(), "--json"];
    let other = Mounted::by(&world, "second", world.holofs().args(args));
    assert_eq!(std::fs::read(other.at("lib/pkg3/new.py")).unwrap(), random(6000, 1001));
    assert_eq!(std::fs::read(other.at("lib/pkg3/file3.py")).unwrap(), random(5000, 3));
    other.unmount();
    world.json(["push", "auto", &url, &library().hash(), "--repack"]);
    world.json(["push", "auto", &url, &second().hash(), "--repack"]);
    assert_eq!(packings(), HashSet::from([Packing::Zstd]));
    assert_whole(&dir, &world.hololib());
}

/// With a store that checks signatures. A push is killed while the store does not answer, and repeated.
#[test]
fn a_killed_push_to_s3_is_repeated() {
    let world = World::with(&library().file("lib/huge.so", &random(20 << 20, 5)));
    let s3 = Store::own();
    let url = s3.url();
    let command = |args: &[&str]| {
        let mut command = world.holofs();
        command.args(args).envs(s3.environment());
        command
    };
    s3.hang();
    let mut child =
        command(&["push", "auto", &url]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("the push to connect", || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
        tasks.count() > 2
    });
    child.kill().unwrap();
    child.wait().unwrap();
    s3.go_on();
    let done = finish(&mut command(&["push", "auto", &url, "--json"]));
    assert_eq!(done.code, 0, "{done:?}");
    assert_whole(&s3.objects(&url), &world.hololib());
    let done = finish(&mut command(&["push", "auto", &url, "--debug"]));
    assert!(done.code == 0 && done.stderr.contains("0 objects sent"), "{done:?}");
    assert!(!done.stderr.contains(SECRET));
    let done = finish(command(&["config", "--json"]).env("AWS_REGION", "somewhere"));
    assert!(done.stdout.contains("AWS_SECRET_ACCESS_KEY") && !done.stdout.contains(SECRET), "{done:?}");
    // Wrong credentials.
    let done = finish(command(&["push", "auto", &url]).env("AWS_SECRET_ACCESS_KEY", "s3cr3t-other"));
    assert_eq!((done.code, done.stdout.as_str()), (3, ""), "{done:?}");
    assert!(done.stderr.contains("access denied") && !done.stderr.contains("s3cr3t"), "{done:?}");
}
