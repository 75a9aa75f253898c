use std::io::Write;

use super::*;
use crate::library::index::cache::open_or_compile;
use crate::space::record::Basis;
use crate::space::state::StateDir;

struct Fixture {
    dir: tempfile::TempDir,
    env: Env,
}

const A: &str = "aaaa000000000001";
const B: &str = "aaaa000000000002";

impl Fixture {
    fn new(blueprints: &[(&str, &str)]) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_owned();
        let env = Env {
            home: Some("/root".into()),
            robocorp_home: home.clone(),
            holofs_home: home.join("holofs"),
            cache: home.join("holofs/cache"),
            shared_root: "/opt/robocorp/ht".into(),
            remote: Default::default(),
        };
        let fixture = Fixture { dir, env };
        std::fs::create_dir_all(fixture.hololib().join("catalog")).unwrap();
        std::fs::create_dir_all(fixture.base()).unwrap();
        for (blueprint, platform) in blueprints {
            fixture.add(blueprint, platform);
        }
        fixture
    }

    fn hololib(&self) -> PathBuf {
        self.dir.path().join("hololib")
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join("holotree")
    }

    fn add(&self, blueprint: &str, platform: &str) {
        let path = self.hololib().join(format!("catalog/{blueprint}v12.{platform}"));
        self.write(&path, blueprint, platform, "h720c7a8_493f813dad24d3t", "");
    }

    fn write(&self, path: &Path, blueprint: &str, platform: &str, identity: &str, space: &str) {
        let text = serde_json::json!({
            "rcc": "v18", "identity": identity, "path": self.base().join(identity), "controller": "rcc.other",
            "space": space, "platform": platform, "blueprint": blueprint, "lifted": true, "tree": {},
        });
        let mut out =
            flate2::write::GzEncoder::new(std::fs::File::create(path).unwrap(), flate2::Compression::fast());
        out.write_all(text.to_string().as_bytes()).unwrap();
        out.finish().unwrap();
    }

    fn select(&self, space: &str, blueprint: Option<&str>) -> Result<Selected, SpaceError> {
        let library = Location::directory(self.hololib());
        let wanted = Wanted {
            space: OsStr::new(space),
            controller: "user",
            blueprint,
            fresh: false,
            ..Wanted::default()
        };
        select(&library, &wanted, &self.env)
    }

    fn changed(&self, identity: &str, blueprint: &str) {
        let dir = self.env.state_dir(&Identity::parse(identity).unwrap());
        let content = Basis {
            identity: identity.into(),
            catalog_sha256: "x".into(),
            blueprint: blueprint.into(),
            base: self.base().display().to_string(),
            library: self.hololib().display().to_string(),
            controller: "rcc.recorded".into(),
            space: "recorded".into(),
            foreign: None,
            placed: false,
            ephemeral: false,
        };
        StateDir::open_locked(&dir).unwrap().adopt(&content, false).unwrap();
        std::fs::write(dir.join("upper/x"), "").unwrap();
    }
}

fn why(result: Result<Selected, SpaceError>) -> (String, usize) {
    match result {
        Err(SpaceError::NoCatalog { why, candidates }) => (why, candidates.len()),
        other => panic!("{other:?}"),
    }
}

const DEMO: &str = "720c7a8_5a1fac3_700be151";

#[test]
fn three_ways_to_name_a_space() {
    let f = Fixture::new(&[(A, &this_platform())]);
    let want = f.base().join(DEMO);
    let by_name = f.select("demo", None).unwrap().space;
    assert_eq!((by_name.mountpoint, by_name.label.as_str()), (want.clone(), "demo"));
    assert_eq!(by_name.controller, "rcc.user");
    assert_eq!(f.select(DEMO, None).unwrap().space.mountpoint, want);
    assert_eq!(f.select(want.to_str().unwrap(), None).unwrap().space.mountpoint, want);
    let free = f.base().join("any-name-of-24-bytes-ok!");
    assert_eq!(f.select(free.to_str().unwrap(), None).unwrap().space.mountpoint, free);
}

#[test]
fn path_through_a_link_is_the_canonical_one() {
    let f = Fixture::new(&[(A, &this_platform())]);
    let alias = f.dir.path().join("alias");
    std::os::unix::fs::symlink(f.base(), &alias).unwrap();
    let space = f.select(alias.join(DEMO).to_str().unwrap(), None).unwrap().space;
    assert_eq!(space.mountpoint, f.base().join(DEMO));
}

#[test]
fn any_other_path_is_relocated_to() {
    let f = Fixture::new(&[(A, &this_platform())]);
    let placed = |path: &str| {
        let space = f.select(path, None).unwrap().space;
        assert_eq!((space.mountpoint, space.placed), (PathBuf::from(path), true));
        assert_eq!(space.own, Some(f.base().join(space.identity.as_str())));
        space.identity
    };
    assert_eq!(placed(&format!("/elsewhere/{DEMO}")).as_str(), DEMO);
    let short = f.base().join("short");
    assert_eq!(placed(short.to_str().unwrap()), placed(short.to_str().unwrap()));
    assert_ne!(placed("/one/env"), placed("/two/env"));
    assert!(matches!(f.select("/", None), Err(SpaceError::Name { .. })));
    for odd in ["/a b/env", "/it's/env", "/a:b/env", "/new\nline"] {
        assert!(matches!(f.select(odd, None), Err(SpaceError::Unusable { .. })), "{odd}");
    }
    assert!(!f.select(f.base().join(DEMO).to_str().unwrap(), None).unwrap().space.placed);
}

#[test]
fn blueprint_by_prefix() {
    let f = Fixture::new(&[(A, &this_platform()), (B, &this_platform()), ("bbbb000000000000", "other_arch")]);
    assert_eq!(f.select("demo", Some(B)).unwrap().catalog.blueprint, B);
    assert_eq!(f.select("demo", Some("AAAA000000000001")).unwrap().catalog.blueprint, A);
    assert_eq!(why(f.select("demo", Some("aaaa"))), ("several blueprints begin with aaaa".into(), 2));
    assert_eq!(why(f.select("demo", Some("ff"))), ("no catalog of blueprint ff".into(), 2));
    assert!(why(f.select("demo", Some("bbbb"))).0.starts_with("blueprint bbbb is not for"));
    assert_eq!(why(f.select("demo", Some(""))).1, 2);
}

#[test]
fn only_catalog_of_this_platform() {
    let f = Fixture::new(&[(A, &this_platform()), (B, "other_arch")]);
    assert_eq!(f.select("demo", None).unwrap().catalog.blueprint, A);
    let f = Fixture::new(&[(A, &this_platform()), (B, &this_platform())]);
    assert_eq!(why(f.select("demo", None)), ("the library has several catalogs".into(), 2));
    let f = Fixture::new(&[(B, "other_arch")]);
    assert_eq!(why(f.select("demo", None)).1, 1);
    let f = Fixture::new(&[]);
    assert_eq!(why(f.select("demo", None)), ("the library has no catalogs".into(), 0));
}

#[test]
fn what_rcc_restored_there_decides() {
    let f = Fixture::new(&[(A, &this_platform()), (B, &this_platform())]);
    f.write(&f.base().join(format!("{DEMO}.meta")), B, &this_platform(), DEMO, "demo");
    let selection = f.select(DEMO, None).unwrap();
    assert_eq!(selection.catalog.blueprint, B);
    assert_eq!((selection.space.label.as_str(), selection.space.controller.as_str()), ("demo", "rcc.other"));
}

#[test]
fn changes_decide_over_rcc() {
    let f = Fixture::new(&[(A, &this_platform()), (B, &this_platform())]);
    f.write(&f.base().join(format!("{DEMO}.meta")), B, &this_platform(), DEMO, "demo");
    f.changed(DEMO, A);
    let selection = f.select(DEMO, None).unwrap();
    assert_eq!(selection.catalog.blueprint, A);
    assert_eq!(selection.space.label, "recorded");
    f.changed(DEMO, A);
    std::fs::remove_file(f.hololib().join(format!("catalog/{A}v12.{}", this_platform()))).unwrap();
    assert!(why(f.select(DEMO, None)).0.contains("which is not in this library"));
}

#[test]
fn earlier_mount_without_changes_decides_last() {
    let f = Fixture::new(&[(A, &this_platform()), (B, &this_platform())]);
    f.changed(DEMO, A);
    std::fs::remove_file(f.env.state_dir(&Identity::parse(DEMO).unwrap()).join("upper/x")).unwrap();
    assert_eq!(f.select(DEMO, None).unwrap().catalog.blueprint, A);
}

#[test]
fn damaged_record_of_changes_is_said_before_a_choice() {
    let f = Fixture::new(&[(A, &this_platform()), (B, &this_platform())]);
    f.changed(DEMO, A);
    std::fs::write(f.env.state_dir(&Identity::parse(DEMO).unwrap()).join("state.json"), "{").unwrap();
    assert!(matches!(f.select(DEMO, None), Err(SpaceError::DamagedState { .. })));
}

#[test]
fn catalog_of_no_place_is_refused() {
    let f = Fixture::new(&[]);
    for path in ["rel/h720c7a8_493f813dad24d3t", "/", "", "/a/../b/h720c7a8_493f813dad24d3t", "x"] {
        let text =
            serde_json::json!({"identity": "h", "path": path, "platform": this_platform(), "blueprint": A});
        let file = f.hololib().join(format!("catalog/{A}v12.{}", this_platform()));
        let mut out =
            flate2::write::GzEncoder::new(std::fs::File::create(file).unwrap(), flate2::Compression::fast());
        out.write_all(text.to_string().as_bytes()).unwrap();
        out.finish().unwrap();
        assert!(matches!(f.select("demo", None), Err(SpaceError::BadCatalog { .. })), "{path}");
    }
}

#[test]
fn name_that_is_not_text_is_refused() {
    let odd = OsStr::from_bytes(b"odd\xff");
    assert!(matches!(SpaceArg::parse(odd), Err(SpaceError::Name { source: name::NameError::NotUtf8, .. })));
}

#[test]
fn a_base_that_nobody_named_is_not_used() {
    let mut f = Fixture::new(&[(A, &this_platform())]);
    // A library in another directory, whose catalogs name the holotree of this home.
    let copy = f.dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::rename(f.hololib(), copy.join("hololib")).unwrap();
    let library = Location::directory(copy.join("hololib"));
    let select = |f: &Fixture, space: &str| {
        let wanted = Wanted {
            space: OsStr::new(space),
            controller: "user",
            blueprint: None,
            fresh: false,
            ..Wanted::default()
        };
        super::select(&library, &wanted, &f.env)
    };
    assert_eq!(select(&f, "demo").unwrap().space.mountpoint, f.base().join(DEMO));
    // The user has another home.
    f.env.robocorp_home = f.dir.path().join("other");
    for space in ["demo", DEMO] {
        let space = select(&f, space).unwrap().space;
        assert_eq!(space.mountpoint, f.env.robocorp_home.join("holotree").join(DEMO));
        assert_eq!((space.placed, space.own), (true, Some(f.base().join(DEMO))));
    }
    // The user may type the path.
    let typed = f.base().join(DEMO);
    assert_eq!(select(&f, typed.to_str().unwrap()).unwrap().space.mountpoint, typed);
    f.env.shared_root = f.base();
    assert_eq!(select(&f, "demo").unwrap().space.mountpoint, typed);
}

#[test]
fn of_two_paths_of_a_base_the_one_that_the_user_knows_is_taken() {
    let f = Fixture::new(&[(A, &this_platform())]);
    // The library is given by a path with a symbolic link, and the catalog names the directory without it.
    let link = f.dir.path().with_extension("link");
    std::os::unix::fs::symlink(f.dir.path(), &link).unwrap();
    let library = Location::directory(link.join("hololib"));
    let mut env = f.env.clone();
    env.robocorp_home = "/elsewhere".into();
    let wanted = Wanted {
        space: OsStr::new("demo"),
        controller: "user",
        blueprint: None,
        fresh: false,
        ..Wanted::default()
    };
    let selected = select(&library, &wanted, &env).unwrap();
    std::fs::remove_file(&link).unwrap();
    assert_eq!(selected.space.mountpoint, link.join("holotree").join(DEMO));
}

#[test]
fn a_catalog_with_a_known_index_is_not_read() {
    let f = Fixture::new(&[(A, &this_platform())]);
    let location = Location::directory(f.hololib());
    let name = CatalogName { blueprint: A.into(), platform: this_platform() };
    let cache = f.env.cache_dir().join("index");
    assert!(f.select("demo", None).unwrap().index.is_none());
    open_or_compile(&*location.library, &name, &cache).unwrap();
    // Proof: the catalog is garbage now, and the note says that it has not changed.
    std::fs::write(f.hololib().join("catalog").join(name.to_string()), "garbage").unwrap();
    assert!(matches!(f.select("demo", None), Err(SpaceError::BadCatalog { .. })));
    let mut entries = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
    let note = entries.find(|path| path.extension().is_some_and(|kind| kind == "stamp")).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&note).unwrap()).unwrap();
    json["stamp"] = serde_json::to_value(location.library.catalog_stamp(&name).unwrap()).unwrap();
    std::fs::write(note, json.to_string()).unwrap();
    let selected = f.select("demo", None).unwrap();
    assert_eq!(selected.space.mountpoint, f.base().join(DEMO));
    assert!(selected.index.is_some());
}
