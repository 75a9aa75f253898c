use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::*;
use crate::library::catalog::Header;
use crate::library::catalogs::CatalogName;
use crate::library::locate::Location;
use crate::library::name::Identity;

use crate::session::request::MountRequest;
use crate::settings::MountSettings;
use crate::space::MountpointProblem;
use crate::space::home::Env;
use crate::space::path::SpacePath;
use crate::sys::guarded::Trust;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/basic-gz");
const BLUEPRINT: &str = "adb8c26db4d86a93";
const CATALOG: &str = "adb8c26db4d86a93v12.linux_amd64";
const ID: &str = "ea7ce2c_5a1fac3_ca793c28";

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        for inner in ["hololib/used", "hololib/catalog"] {
            std::fs::create_dir_all(dir.path().join(inner)).unwrap();
        }
        let catalog = Path::new("hololib/catalog").join(CATALOG);
        std::fs::copy(Path::new(FIXTURE).join("home").join(&catalog), dir.path().join(catalog)).unwrap();
        Place { dir }
    }

    fn plan(&self) -> MountPlan {
        let path = self.dir.path();
        let env = Env {
            home: Some("/tmp/rcchome/home".into()),
            robocorp_home: path.to_owned(),
            holofs_home: path.join("holofs"),
            cache: path.join("holofs/cache"),
            shared_root: "/opt/robocorp/ht".into(),
            remote: Default::default(),
        };
        let identity = Identity::parse(ID).unwrap();
        MountPlan {
            location: Location::directory(path.join("hololib")),
            catalog: CatalogName::parse(CATALOG).unwrap(),
            index: None,
            holds: BLUEPRINT.into(),
            space: SpacePath {
                mountpoint: path.join("holotree").join(ID),
                identity,
                own: None,
                placed: false,
                label: "golden-one".into(),
                controller: "rcc.user".into(),
            },
            env,
            request: MountRequest::default(),
            composed: None,
            typed_cache_dir: None,
            settings: MountSettings::default(),
            lock_timeout: Duration::from_millis(50),
        }
    }

    fn catalog(&self) -> PathBuf {
        self.dir.path().join("hololib/catalog").join(CATALOG)
    }

    /// The digest of the catalog.
    fn sum(&self) -> [u8; 32] {
        Sha256::digest(std::fs::read(self.catalog()).unwrap()).into()
    }

    /// Gives the catalog another digest.
    fn record_again(&self) {
        let mut catalog = std::fs::File::options().append(true).open(self.catalog()).unwrap();
        catalog.write_all(b"\0").unwrap();
    }

    fn beside(&self, ending: &str) -> PathBuf {
        meta::beside(&self.dir.path().join("holotree").join(ID), ending)
    }
}

fn take_lock(plan: &MountPlan) -> Result<MetaLock, SpaceError> {
    let base = Dir::open(plan.space.base(), Trust::Shared)?;
    MetaLock::take(&base, &plan.space, Duration::ZERO)
}

fn info() -> CatalogInfo {
    CatalogInfo { blueprint: BLUEPRINT.into(), platform: "linux_amd64".into(), ..CatalogInfo::default() }
}

#[test]
fn published_claim_leaves_what_rcc_expects_and_frees_its_lock() {
    let place = Place::new();
    let plan = place.plan();
    let mut claim = plan.claim(&place.sum()).unwrap();
    assert!(plan.space.mountpoint.is_dir());
    assert!(matches!(take_lock(&plan), Err(SpaceError::LockTimeout { .. })));
    claim.announce(&info()).unwrap();
    let told = meta::recorded(&plan.space.mountpoint).unwrap();
    assert_eq!((told.blueprint.as_str(), told.space.as_str()), (BLUEPRINT, "golden-one"));
    // rcc must not restore by a `.meta` that lists no files.
    assert!(matches!(take_lock(&plan), Err(SpaceError::LockTimeout { .. })));
    claim.publish().unwrap();
    take_lock(&plan).unwrap();
    let info: Header = serde_json::from_slice(&std::fs::read(place.beside(".meta.info")).unwrap()).unwrap();
    assert_eq!(info.space, "golden-one");
    assert_eq!(meta::usage(&plan.space.mountpoint).unwrap().0, 1);
    assert!(plan.location.path.join(format!("used/{BLUEPRINT}.ea7ce2c")).exists());
    // The claim still holds the space's own lock.
    assert!(matches!(plan.claim(&place.sum()), Err(SpaceError::Busy { .. })));
    claim.publish().unwrap();
    assert_eq!(meta::usage(&plan.space.mountpoint).unwrap().0, 1);
}

#[test]
fn description_is_written_again_only_for_another_content() {
    let place = Place::new();
    let plan = place.plan();
    plan.claim(&place.sum()).unwrap().publish().unwrap();
    let inode = || std::fs::metadata(place.beside(".meta")).unwrap().ino();
    let first = inode();
    plan.claim(&place.sum()).unwrap().publish().unwrap();
    assert_eq!(inode(), first);
    // rcc restored the same environment and wrote `.meta` itself.
    let text = std::fs::read(place.beside(".meta")).unwrap();
    std::fs::write(place.beside(".meta"), &text).unwrap();
    plan.claim(&place.sum()).unwrap().publish().unwrap();
    assert_eq!(inode(), first);
    // The environment was recorded again with the same blueprint.
    place.record_again();
    plan.claim(&place.sum()).unwrap().publish().unwrap();
    assert_ne!(inode(), first);
    // The space has no changes, so another `.meta` is wrong.
    std::fs::write(place.beside(".meta"), "mark").unwrap();
    plan.claim(&place.sum()).unwrap().publish().unwrap();
    assert_eq!(meta::recorded(&plan.space.mountpoint).unwrap().blueprint, BLUEPRINT);
}

#[test]
fn a_catalog_that_changed_after_it_was_compiled_is_not_described() {
    let place = Place::new();
    let plan = place.plan();
    let mut claim = plan.claim(&place.sum()).unwrap();
    claim.announce(&info()).unwrap();
    let stub = std::fs::read(place.beside(".meta")).unwrap();
    place.record_again();
    let error = claim.publish().unwrap_err().to_string();
    assert!(error.contains("changed since it was compiled"), "{error}");
    assert_eq!(std::fs::read(place.beside(".meta")).unwrap(), stub);
    take_lock(&plan).unwrap();
    drop(claim);
    // The next mount compiles it, and writes the list.
    plan.claim(&place.sum()).unwrap().publish().unwrap();
    assert_ne!(std::fs::read(place.beside(".meta")).unwrap(), stub);
}

#[test]
fn description_of_an_ephemeral_space_is_written_once() {
    let place = Place::new();
    let mut plan = place.plan();
    plan.request.ephemeral = true;
    plan.claim(&place.sum()).unwrap().publish().unwrap();
    let inode = || std::fs::metadata(place.beside(".meta")).unwrap().ino();
    let first = inode();
    std::fs::write(plan.state_dir().join("upper/mine"), "work").unwrap();
    let mut claim = plan.claim(&place.sum()).unwrap();
    assert!(!plan.state_dir().join("upper/mine").exists());
    claim.announce(&info()).unwrap();
    claim.publish().unwrap();
    drop(claim);
    assert_eq!(inode(), first);
    // `.meta` has the name of the space.
    plan.space.label = "another".into();
    plan.claim(&place.sum()).unwrap().publish().unwrap();
    assert_eq!(meta::recorded(&plan.space.mountpoint).unwrap().space, "another");
}

#[test]
fn stub_of_a_killed_daemon_is_replaced() {
    let place = Place::new();
    let plan = place.plan();
    plan.claim(&place.sum()).unwrap().publish().unwrap();
    let length = || std::fs::metadata(place.beside(".meta")).unwrap().len();
    let whole = length();
    // `rcc holotree delete`, and a mount whose daemon is killed before it has written the list of files.
    std::fs::remove_file(place.beside(".meta")).unwrap();
    plan.claim(&place.sum()).unwrap().announce(&info()).unwrap();
    assert!(length() < whole);
    plan.claim(&place.sum()).unwrap().publish().unwrap();
    assert_eq!(length(), whole);
}

#[test]
fn refused_claim_changes_nothing() {
    let place = Place::new();
    let plan = place.plan();
    plan.claim(&place.sum()).unwrap().publish().unwrap();
    let change = plan.state_dir().join("upper/mine");
    std::fs::write(&change, "work").unwrap();
    std::fs::remove_dir(&plan.space.mountpoint).unwrap();
    assert!(matches!(plan.claim(&[2; 32]), Err(SpaceError::OtherContent { .. })));
    assert!(change.exists() && !plan.space.mountpoint.exists());
    // `--fresh` drops nothing if the mount is impossible for another reason.
    std::fs::create_dir(&plan.space.mountpoint).unwrap();
    std::fs::write(plan.space.mountpoint.join("precious"), "").unwrap();
    let request = MountRequest { fresh: true, ..MountRequest::default() };
    let fresh = MountPlan { request, ..plan.clone() };
    match fresh.claim(&place.sum()) {
        Err(SpaceError::Mountpoint { problem, .. }) => assert_eq!(problem, MountpointProblem::NotEmpty),
        other => panic!("{other:?}"),
    }
    assert!(change.exists());
}

#[test]
fn new_space_that_never_answers_is_removed_and_an_old_one_is_kept() {
    let place = Place::new();
    let plan = place.plan();
    drop(plan.claim(&place.sum()).unwrap());
    assert!(!plan.state_dir().exists() && !plan.space.mountpoint.exists());
    // The directory of the mountpoint was there before.
    std::fs::create_dir_all(&plan.space.mountpoint).unwrap();
    drop(plan.claim(&place.sum()).unwrap());
    assert!(!plan.state_dir().exists() && plan.space.mountpoint.exists());
    plan.claim(&place.sum()).unwrap().keep();
    drop(plan.claim(&place.sum()).unwrap());
    assert!(plan.state_dir().join("state.json").exists() && plan.space.mountpoint.exists());
}

#[test]
fn feature_that_must_not_be_written_allows_reading() {
    let place = Place::new();
    let plan = place.plan();
    plan.claim(&place.sum()).unwrap().publish().unwrap();
    let mut recorded = SpaceRecord::read(&plan.state_dir()).unwrap().unwrap();
    recorded.ro_compat.push("packed".into());
    let text = serde_json::to_vec(&recorded).unwrap();
    std::fs::write(plan.state_dir().join("state.json"), text).unwrap();
    std::fs::write(plan.state_dir().join("upper/mine"), "work").unwrap();
    match plan.claim(&place.sum()) {
        Err(SpaceError::UnknownFeature { feature, may_read: true, .. }) => assert_eq!(feature, "packed"),
        other => panic!("{other:?}"),
    }
    let request = MountRequest { read_only: true, ..MountRequest::default() };
    let read_only = MountPlan { request, ..plan.clone() };
    read_only.claim(&place.sum()).unwrap();
}
