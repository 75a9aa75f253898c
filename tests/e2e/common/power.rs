//! Simulates a power loss: keeps the content that a disk had at one instant and mounts it as after a reboot.
//!
//! The filesystem under test lies in a file on an XFS with reflink, behind a loop device with direct I/O. The file
//! therefore holds what was written to the "disk", and nothing that is only in the page cache. [`Disk::cut`] clones
//! that file in one step, while everything else goes on. [`Cut::restart`] mounts the clone in the place of the disk, in
//! a mount namespace of its own and under another boot id, and runs a shell script there. The loss of a volatile cache
//! in the device is not simulated: filesystems flush that cache when they commit.
//!
//! For a soak test, make a [`Disk`], put a `World` on it (`World::at(disk.path())`), let threads work, and call
//! [`Disk::commit`] and [`Disk::cut`] as often as needed. [`cuts`] is the number of cuts that the tests make.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::image::Image;
use super::world::{Done, finish};
use super::{World, sh};

/// The number of power cuts in each part of a test: `HOLOFS_TEST_CUTS`, or three.
pub fn cuts() -> usize {
    std::env::var("HOLOFS_TEST_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

/// A filesystem that can lose its power.
#[derive(Debug)]
pub struct Disk {
    kind: &'static str,
    mountpoint: PathBuf,
    device: String,
    cuts: AtomicUsize,
    /// The last field, so that it is dropped last: it holds the file of the inner image.
    outer: Image,
}

/// The content of a disk at one instant.
#[derive(Debug)]
pub struct Cut<'d> {
    disk: &'d Disk,
    file: PathBuf,
    restarts: AtomicUsize,
}

impl Disk {
    /// Makes a filesystem of this type with 400 megabytes.
    #[track_caller]
    pub fn new(kind: &'static str) -> Self {
        let outer = Image::new("xfs", 4000);
        let (file, mountpoint) = (outer.path().join("disk"), outer.path().join("mnt"));
        std::fs::File::create(&file).unwrap().set_len(400 << 20).unwrap();
        std::fs::create_dir(&mountpoint).unwrap();
        sh(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&file));
        let device = sh(Command::new("losetup").args(["--direct-io=on", "--find", "--show"]).arg(&file));
        let device = device.trim().to_owned();
        let disk = Self { kind, mountpoint, device, cuts: AtomicUsize::new(0), outer };
        sh(Command::new("mount").arg(&disk.device).arg(&disk.mountpoint));
        disk
    }

    /// The mountpoint of the disk.
    pub fn path(&self) -> &Path {
        &self.mountpoint
    }

    /// Syncs everything that was written to the disk.
    pub fn settle(&self) {
        sh(Command::new("sync").arg("-f").arg(&self.mountpoint));
    }

    /// Makes the journal commit, as it does every few seconds, by syncing an unrelated file. The bytes of other files
    /// may stay in memory.
    pub fn commit(&self) {
        let number = self.cuts.load(Ordering::Relaxed);
        let path = self.mountpoint.join("commit");
        std::fs::write(&path, number.to_string()).unwrap();
        std::fs::File::open(&path).unwrap().sync_all().unwrap();
    }

    /// Clones the current content of the disk.
    pub fn cut(&self) -> Cut<'_> {
        let number = self.cuts.fetch_add(1, Ordering::Relaxed);
        let file = self.outer.path().join(format!("cut.{number}"));
        sh(Command::new("cp").arg("--reflink=always").arg(self.outer.path().join("disk")).arg(&file));
        Cut { disk: self, file, restarts: AtomicUsize::new(0) }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        println!("power: {}: {} cuts", self.kind, self.cuts.load(Ordering::Relaxed));
        let unmounted = (0..200).any(|_| {
            let done = Command::new("umount").arg(&self.mountpoint).output();
            let done = done.is_ok_and(|out| out.status.success());
            if !done {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            done
        });
        if !unmounted {
            drop(Command::new("umount").arg("-l").arg(&self.mountpoint).output());
        }
        drop(Command::new("losetup").arg("-d").arg(&self.device).output());
        if !std::thread::panicking() {
            assert!(unmounted, "still in use: {}", self.mountpoint.display());
        }
    }
}

impl Cut<'_> {
    /// Runs a shell script as after a reboot: the world is the one on the disk, with the content of the cut, and the
    /// boot id is new. The script must unmount what it mounts. Each call is a further boot of the same cut.
    pub fn restart(&self, world: &World, script: &str) -> Done {
        let number = self.restarts.fetch_add(1, Ordering::Relaxed);
        let boot = self.file.with_extension(format!("boot{number}"));
        let id = format!("{:08x}-0000-4000-8000-000000000000\n", 0xb007_0000_u32 + number as u32);
        std::fs::write(&boot, id).unwrap();
        let options = if self.disk.kind == "xfs" { "loop,nouuid" } else { "loop" };
        // A copy of a mount in this namespace would keep other tests from unmounting it.
        let before = "set -eu
            grep ' - fuse.holofs ' /proc/self/mountinfo | cut -d' ' -f5 | while read -r live; do
                umount -l \"$live\" 2>/dev/null || :
            done
            mount -o \"$1\" \"$2\" \"$3\"
            mount --bind \"$4\" /proc/sys/kernel/random/boot_id
            holofs=$5 home=$6
            finish() { for live in \"$home\"/holotree/*; do mountpoint -q \"$live\" && umount -l \"$live\" || :; done; }
            trap finish EXIT
            ";
        let mut command = world.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.arg(format!("{before}\n{script}")).arg("restart").arg(options).arg(&self.file);
        command.arg(&self.disk.mountpoint).arg(&boot);
        command.arg(world.holofs().get_program()).arg(world.home());
        finish(&mut command)
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.file));
    }
}
