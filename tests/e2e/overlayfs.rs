//! The home lies on overlayfs, as in a container image: there are no whiteout devices and no `RENAME_WHITEOUT`.

use std::path::PathBuf;
use std::process::Command;

use crate::common::as_user::is_root;
use crate::common::library::pattern;
use crate::common::{Library, World, sh};

/// An overlayfs with `home` on it.
struct Overlay {
    point: PathBuf,
}

impl Overlay {
    fn over(world: &World) -> Self {
        let point = world.home();
        let dir = |name: &str| {
            let dir = world.path().join(name);
            std::fs::create_dir_all(&dir).unwrap();
            dir
        };
        let (lower, upper, work) = (dir("overlay-lower"), dir("overlay-upper"), dir("overlay-work"));
        std::fs::create_dir_all(&point).unwrap();
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        sh(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&point));
        Self { point }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let ended = Command::new("umount").arg("-l").arg(&self.point).status();
        assert!(
            std::thread::panicking() || ended.is_ok_and(|status| status.success()),
            "overlayfs stays mounted"
        );
    }
}

for_both_users! {
    fn names_come_and_go() {
        // Only root can mount an overlayfs.
        if !is_root() {
            return;
        }
        let world = World::new();
        let _overlay = Overlay::over(&world);
        world.add(&Library::new()
            .file("d/f", b"f")
            .file("d/ro", b"ro")
            .file("e/g", b"g")
            .file("gone/x", b"x")
            .file("big", &pattern(400_000)));
        let mounted = world.mount("s");
        std::fs::remove_file(mounted.at("d/ro")).unwrap();
        std::fs::rename(mounted.at("d/f"), mounted.at("d/f2")).unwrap();
        std::fs::rename(mounted.at("e"), mounted.at("e2")).unwrap();
        std::fs::rename(mounted.at("big"), mounted.at("e2/g")).unwrap();
        std::fs::write(mounted.at("gone/x"), b"changed").unwrap();
        std::fs::remove_dir_all(mounted.at("gone")).unwrap();
        std::fs::create_dir(mounted.at("gone")).unwrap();
        let check = |mounted: &crate::common::Mounted<'_>| {
            let names = |dir: &str| {
                let mut names: Vec<_> =
                    std::fs::read_dir(mounted.at(dir)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                names.sort();
                names
            };
            assert_eq!(names("d"), ["f2"]);
            assert_eq!(names("e2"), ["g"]);
            assert!(names("gone").is_empty() && !mounted.at("e").exists() && !mounted.at("big").exists());
            assert_eq!(std::fs::read(mounted.at("e2/g")).unwrap(), pattern(400_000));
            assert_eq!(std::fs::read(mounted.at("d/f2")).unwrap(), b"f");
        };
        check(&mounted);
        let mounted = mounted.remount();
        check(&mounted);
        mounted.kill();
        let mounted = world.mount("s");
        check(&mounted);
        mounted.unmount();
    }
}
