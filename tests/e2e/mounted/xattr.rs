//! Extended attributes in the `user.` namespace.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use rustix::fs::{XattrFlags, getxattr, listxattr, removexattr, setxattr};
use rustix::io::Errno;

use super::ino;
use crate::common::library::pattern;
use crate::common::{Library, World, assert_errno, sh};

fn get(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 70_000];
    let len = getxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

/// The `user.` attributes of a file; a system may add others (`security.*`).
fn list(path: &Path) -> Vec<String> {
    let mut names = vec![0; 10_000];
    let len = listxattr(path, &mut names[..]).unwrap();
    let names = names[..len].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user."));
    let mut names: Vec<String> = names.map(|name| String::from_utf8(name.to_vec()).unwrap()).collect();
    names.sort();
    names
}

for_both_users! {
    /// The root's attribute with the counters of the mount.
    fn counters_of_the_mount() {
        let library = Library::sample();
        let world = World::with(&library);
        let mounted = world.mount("s");
        let counters = || -> BTreeMap<String, u64> {
            let name = "user.holofs.status";
            assert_eq!(getxattr(mounted.path(), name, &mut [0; 10][..]), Err(Errno::RANGE));
            // It asks for the length, and then for the value.
            let text = sh(Command::new("getfattr").args(["--only-values", "-n", name]).arg(mounted.path()));
            serde_json::from_str(&text).unwrap()
        };
        assert_eq!((counters()["blobs_fetched"], counters().get("errors.EIO")), (0, None));
        std::fs::write(library.blob(&world.hololib(), "lib/data.bin"), b"no blob").unwrap();
        std::fs::read(mounted.at("readme.txt")).unwrap();
        assert_errno(std::fs::read(mounted.at("lib/data.bin")), Errno::IO);
        std::fs::write(mounted.at("etc/prefix.conf"), b"mine").unwrap();
        let counted = counters();
        assert!(counted["blobs_fetched"] >= 1 && counted["blob_bytes_fetched"] > 0, "{counted:?}");
        assert!(counted["blobs_refused"] >= 1 && counted["errors.EIO"] >= 1, "{counted:?}");
        assert!(counted["requests_failed"] > counted["errors.EIO"] && counted["errors.ERANGE"] >= 1, "{counted:?}");
        assert!(counted["files_touched"] >= 2, "{counted:?}");
        assert_eq!(list(mounted.path()), Vec::<String>::new());
        let status: serde_json::Value =
            serde_json::from_str(&world.run(["--json", "status", "s"]).stdout).unwrap();
        assert_eq!(status["metrics"]["blobs_refused"], counted["blobs_refused"]);
        let keys: Vec<&String> = status["copy_up"].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["reflink", "copy_file_range", "copy", "relocated", "bytes", "bytes_shared"]);
    }

    fn set_get_list_remove() {
        let world = World::sample();
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), b"").unwrap();
        for path in ["readme.txt", "lib", "etc/prefix.conf", "new", "lib/data.bin"] {
            let path = mounted.at(path);
            assert_eq!(list(&path), Vec::<String>::new());
            assert_eq!(get(&path, "user.colour"), Err(Errno::NODATA));
            setxattr(&path, "user.colour", b"green", XattrFlags::empty()).unwrap();
            setxattr(&path, "user.empty", b"", XattrFlags::CREATE).unwrap();
            assert_eq!(get(&path, "user.colour").unwrap(), b"green");
            assert_eq!(get(&path, "user.empty").unwrap(), b"");
            assert_eq!(list(&path), ["user.colour", "user.empty"]);
            assert_eq!(setxattr(&path, "user.colour", b"red", XattrFlags::CREATE), Err(Errno::EXIST));
            assert_eq!(setxattr(&path, "user.none", b"red", XattrFlags::REPLACE), Err(Errno::NODATA));
            setxattr(&path, "user.colour", b"red", XattrFlags::REPLACE).unwrap();
            removexattr(&path, "user.empty").unwrap();
            assert_eq!(removexattr(&path, "user.empty"), Err(Errno::NODATA));
        }
        let mounted = mounted.remount();
        for path in ["readme.txt", "lib", "etc/prefix.conf", "new", "lib/data.bin"] {
            assert_eq!(list(&mounted.at(path)), ["user.colour"], "{path}");
            assert_eq!(get(&mounted.at(path), "user.colour").unwrap(), b"red", "{path}");
        }
        assert!(std::fs::read(mounted.at("lib/data.bin")).unwrap() == pattern(300_000));
    }

    fn attributes_move_with_the_file() {
        let world = World::sample();
        let mounted = world.mount("s");
        let (from, to) = (mounted.at("lib/data.bin"), mounted.at("moved"));
        setxattr(&from, "user.a", b"1", XattrFlags::empty()).unwrap();
        let number = ino(&from);
        std::fs::rename(&from, &to).unwrap();
        std::fs::write(&to, b"other bytes").unwrap();
        assert_eq!(get(&to, "user.a").unwrap(), b"1");
        assert_eq!(ino(&to), number);
    }

    fn too_small_a_buffer() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("readme.txt");
        setxattr(&path, "user.colour", b"green", XattrFlags::empty()).unwrap();
        assert_eq!(getxattr(&path, "user.colour", &mut [0; 2][..]), Err(Errno::RANGE));
        assert_eq!(rustix::fs::getxattr_query(&path, "user.colour"), Ok(5));
    }

    /// The attributes that holofs uses itself are hidden.
    fn holofs_attributes_are_hidden_and_refused() {
        let world = World::sample();
        let mounted = world.mount("s");
        let path = mounted.at("lib/module.py");
        std::fs::write(&path, b"changed").unwrap();
        std::fs::rename(mounted.at("many"), mounted.at("moved")).unwrap();
        for path in [path.as_path(), &mounted.at("moved"), &mounted.at("lib"), mounted.path()] {
            assert_eq!(list(path), Vec::<String>::new());
            for name in ["user.holofs.entry", "user.holofs.mode", "user.holofs.anything"] {
                assert_eq!(get(path, name), Err(Errno::NODATA), "{name}");
                let set = setxattr(path, name, b"data:1", XattrFlags::empty());
                assert!(set.is_err(), "{name} of {path:?} was set");
            }
        }
    }
}
