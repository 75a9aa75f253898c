//! A filesystem of a chosen type in a file, mounted for the length of a test. Needs root.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::sh;
use super::world::reachable_tempdir;

/// A mounted image. Dropping it unmounts it; the loop device disappears with the mount.
#[derive(Debug)]
pub struct Image {
    dir: Option<TempDir>,
    mountpoint: PathBuf,
    file: PathBuf,
}

impl Image {
    #[track_caller]
    pub fn new(kind: &str, megabytes: u64) -> Self {
        let dir = reachable_tempdir("holofs-image-");
        let (file, mountpoint) = (dir.path().join("image"), dir.path().join("mnt"));
        std::fs::File::create(&file).unwrap().set_len(megabytes * 1024 * 1024).unwrap();
        std::fs::create_dir(&mountpoint).unwrap();
        sh(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&file));
        sh(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&mountpoint));
        let image = Self { dir: Some(dir), mountpoint, file };
        // An ordinary user may work in it too.
        sh(Command::new("chmod").arg("1777").arg(&image.mountpoint));
        image
    }

    pub fn path(&self) -> &Path {
        &self.mountpoint
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let umount = |args: &[&str]| {
            let done = Command::new("umount").args(args).arg(&self.mountpoint).output();
            done.is_ok_and(|out| out.status.success())
        };
        // Between its fork and its exec, a child of another test holds copies of our descriptors, so the mount can be
        // busy.
        let clean = (0..100).any(|_| {
            let clean = umount(&[]);
            if !clean {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            clean
        });
        if !clean {
            umount(&["-l"]);
        }
        let loops = || {
            let out = Command::new("losetup").arg("-j").arg(&self.file).output();
            out.map_or_else(
                |error| error.to_string(),
                |out| String::from_utf8_lossy(&out.stdout).into_owned(),
            )
        };
        // A mount namespace of another test may hold a copy of our mount as long as that namespace exists.
        let mut left = loops();
        for _ in 0..1000 {
            if left.is_empty() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            left = loops();
        }
        if let Some(device) = left.split(':').next().filter(|device| device.starts_with("/dev/")) {
            drop(Command::new("losetup").arg("-d").arg(device).output());
        }
        self.dir.take();
        if !std::thread::panicking() {
            assert!(clean, "still in use: {}", self.mountpoint.display());
            assert_eq!(left, "", "a loop device is left");
        }
    }
}
