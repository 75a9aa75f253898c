//! Bytecode that travels with an environment: `holofs push`, and `holofs mount --pycache` on another machine.

use std::io::Write;
use std::path::{Path, PathBuf};

use holofs::library::catalogs::CatalogName;
use holofs::library::remote::head::{self, Head, Object};

use crate::bytecode::{MODULE, compiled, expect, import, library, warm};
use crate::common::fixture::gunzip;
use crate::common::push::sha256;
use crate::common::{Mounted, World, files_below};

/// A store below the directory of a world, into which its environment was pushed.
struct Pushed {
    dir: PathBuf,
    name: CatalogName,
}

impl Pushed {
    /// Pushes the environment, and takes away what this machine has of it: library and cache.
    fn from(world: &World, args: &[&str]) -> Self {
        let dir = world.path().join("store");
        let url = format!("file://{}", dir.display());
        let home = world.home();
        world.json([&["push", home.to_str().unwrap(), &url][..], args].concat());
        std::fs::rename(world.hololib(), world.path().join("original")).unwrap();
        let heads = files_below(&dir.join("heads"));
        let pushed = Self { dir, name: CatalogName::parse(heads[0].to_str().unwrap()).unwrap() };
        pushed.forget(world);
        pushed
    }

    fn forget(&self, world: &World) {
        let cache = world.state().join("cache");
        if cache.exists() {
            std::fs::remove_dir_all(cache).unwrap();
        }
    }

    fn mount<'w>(&self, world: &'w World) -> Mounted<'w> {
        let url = format!("file://{}", self.dir.display());
        Mounted::by(world, "s", world.holofs().args(["mount", &url, "s", "--pycache", "--json"]))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn head(&self) -> Head {
        Head::parse(&std::fs::read(self.path(&head::head(&self.name))).unwrap()).unwrap()
    }

    /// What travels, unpacked.
    fn bytecode(&self) -> Option<Vec<u8>> {
        let object = self.head().bytecode?;
        Some(gunzip(&std::fs::read(self.path(&head::bytecode(&object.sha256))).unwrap()))
    }

    /// Puts other bytecode into the store, whose digest is right.
    fn forge(&self, bytes: &[u8]) {
        let object = Object { sha256: sha256(bytes), bytes: bytes.len() as u64 };
        std::fs::write(self.path(&head::bytecode(&object.sha256)), bytes).unwrap();
        let head = Head { bytecode: Some(object), ..self.head() };
        std::fs::write(self.path(&head::head(&self.name)), head.to_bytes().unwrap()).unwrap();
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

for_both_users! {
    fn bytecode_travels_and_a_changed_source_outdates_it() {
        let world = World::with(&library());
        warm(&world);
        let store = Pushed::from(&world, &[]);
        let mounted = store.mount(&world);
        assert_eq!(mounted.output["bytecode"], true);
        expect(&world, &mounted, "41", true);
        std::fs::write(mounted.at("lib/package/module.py"), MODULE.replace("41", "42")).unwrap();
        assert_eq!(import(&world, &mounted).0, "42");
        mounted.unmount();
        // It is kept here, as if it had been compiled here.
        std::fs::remove_dir_all(store.path("bytecode")).unwrap();
        let mounted = store.mount(&world);
        assert_eq!(mounted.output["bytecode"], true);
        mounted.unmount();
        // Without it, the mount says what it always said.
        store.forget(&world);
        let mounted = store.mount(&world);
        assert_eq!(mounted.output["bytecode"], false);
        assert_eq!(import(&world, &mounted).0, "42");
    }
}

#[test]
fn only_the_bytecode_of_a_profile_travels() {
    let world = World::with(&library());
    warm(&world);
    let all = Pushed::from(&world, &[]).bytecode().unwrap();
    let world = World::with(&library());
    let mounted = world.mount("before");
    expect(&world, &mounted, "41", false);
    mounted.unmount();
    warm(&world);
    let store = Pushed::from(&world, &[]);
    assert!(store.head().profile.is_some() && store.bytecode().unwrap().len() < all.len());
    let mounted = store.mount(&world);
    expect(&world, &mounted, "41", true);
    let file = compiled(&world, &mounted);
    let other = file.to_str().unwrap().replace("/module.", "/module_two.");
    assert!(file.exists() && !Path::new(&other).exists(), "{other}");
    mounted.unmount();
    // A machine that has compiled nothing leaves what the store has.
    std::fs::rename(world.path().join("original"), world.hololib()).unwrap();
    store.forget(&world);
    let kept = store.head().bytecode;
    let url = format!("file://{}", store.dir.display());
    let pushed = world.json(["push", world.home().to_str().unwrap(), &url]);
    assert_eq!(pushed["catalogs"][0]["bytecode_bytes"], 0, "{pushed}");
    assert!(kept.is_some() && store.head().bytecode == kept);
}

#[test]
fn forged_bytecode_is_not_used_and_the_mount_works() {
    let world = World::with(&library());
    warm(&world);
    let store = Pushed::from(&world, &[]);
    let good = store.bytecode().unwrap();
    let change = |at: usize| {
        let mut bad = good.clone();
        bad[at] ^= 0x41;
        gzip(&bad)
    };
    // The header has 64 bytes, and the length of the tag at 16. Then come a source, a size, and Python's number and flags.
    let tag = 64;
    let first = tag + usize::from(good[16]);
    for (what, bad) in [
        ("no gzip", b"something else".to_vec()),
        ("nothing", Vec::new()),
        ("truncated", gzip(&good[..good.len() - 5])),
        ("half a header", gzip(&good[..40])),
        ("cut gzip", gzip(&good)[..60].to_vec()),
        ("another magic", change(0)),
        ("another version", change(8)),
        ("more files than there are", change(12)),
        ("a long tag", change(17)),
        ("another catalog", change(40)),
        ("a tag with a slash", gzip(&[&good[..tag], b"../thon", &good[tag + 7..]].concat())),
        ("no source", change(first + 3)),
        ("not compared with its source", change(first + 12)),
    ] {
        store.forge(&bad);
        store.forget(&world);
        let mounted = store.mount(&world);
        assert_eq!(mounted.output["bytecode"], false, "{what}");
        expect(&world, &mounted, "41", false);
        mounted.unmount();
    }
    // An object that is not what its name says.
    let honest = gzip(&good);
    store.forge(&honest);
    let object = store.path(&head::bytecode(&sha256(&honest)));
    std::fs::write(&object, change(good.len() - 1)).unwrap();
    store.forget(&world);
    let mounted = store.mount(&world);
    assert_eq!(mounted.output["bytecode"], false);
    mounted.unmount();
    std::fs::write(&object, honest).unwrap();
    store.forget(&world);
    expect(&world, &store.mount(&world), "41", true);
}
