//! Mounts a mounted space again: the same mount is used if it has the requested options.

use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::world::Done;
use crate::common::{World, passthrough};

fn again(world: &World, args: &[&str]) -> Done {
    let home = world.home();
    let words = [OsStr::new("mount"), home.as_os_str(), OsStr::new("s")];
    world.run(words.into_iter().chain(args.iter().map(OsStr::new)))
}

/// The number of mounts for each user in each mode.
const TRIES: usize = 100;

for_both_users! {
    fn differing_options_are_named() {
        let world = World::sample();
        let mounted = world.mount("s");
        let other_io = if passthrough() { "cached" } else { "passthrough" };
        let profile = world.path().join("profile");
        std::fs::write(&profile, "").unwrap();
        let prefetch = format!("--prefetch={}", profile.display());
        for (args, named) in [
            (vec!["--ephemeral"], "--ephemeral"),
            (vec!["--read-only"], "--read-only"),
            (vec!["-o", "ro"], "--read-only"),
            (vec!["--io", other_io], "--io"),
            (vec!["--strategy", "copy"], "--strategy copy"),
            (vec!["--allow-other"], "--allow-other"),
            (vec!["-o", "allow_other"], "--allow-other"),
            (vec!["-o", "noexec"], "-o noexec"),
            (vec!["--prefetch"], "--prefetch own"),
            (vec![prefetch.as_str()], "--prefetch"),
            (vec!["--cache-size", "1M"], "--cache-size"),
            (vec!["--foreground"], "--foreground"),
        ] {
            let refused = again(&world, &args);
            assert_eq!(refused.code, 7, "{args:?}: {refused:?}");
            assert!(refused.stderr.contains(named), "{args:?}: {refused:?}");
        }
        // The message names all differing options, and the mount stays as it was.
        let refused = again(&world, &["--ephemeral", "--io", other_io]);
        assert!(refused.stderr.contains("--ephemeral") && refused.stderr.contains("--io"), "{refused:?}");
        std::fs::write(mounted.at("kept"), "").unwrap();
        let mounted = mounted.remount();
        assert!(mounted.at("kept").exists());
    }

    fn options_in_effect_are_accepted() {
        let world = World::sample();
        let io = if passthrough() { "passthrough" } else { "cached" };
        let args = ["--strategy", "copy", "--io", io, "-o", "noexec", "--prefetch", "--cache-size", "1G", "--read-only"];
        let mounted = world.mount_with("s", &args);
        for args in [&args[..], &["--read-only"], &["--read-only", "-o", "noexec"]] {
            let done = again(&world, args);
            assert_eq!(done.code, 0, "{args:?}: {done:?}");
        }
        let done = again(&world, &["--read-only", "--json"]);
        assert!(done.stdout.contains("\"strategy\": \"copy\""), "{done:?}");
        // Without the option the user wants to write, which this mount does not allow.
        assert_eq!(again(&world, &[]).code, 7);
        let status = world.json(["status", "s"]);
        assert_eq!(status["options"], serde_json::json!(["noexec"]), "{status}");
        assert_eq!((&status["prefetch"], &status["allow_other"]), (&"own".into(), &false.into()), "{status}");
        assert_eq!((&status["io"], &status["read_only"]), (&io.into(), &true.into()), "{status}");
        let row = world.json(["list"])[mounted.identity()].clone();
        assert_eq!((&row["io"], &row["read_only"], &row["ephemeral"]), (&io.into(), &true.into(), &false.into()));
    }

    /// Otherwise a user would lose work because somebody else asked for an ephemeral mount.
    fn ephemeral_mount_does_not_satisfy_a_lasting_request() {
        let world = World::sample();
        let _mounted = world.mount_with("s", &["--ephemeral"]);
        let refused = again(&world, &[]);
        assert_eq!(refused.code, 7, "{refused:?}");
        assert!(refused.stderr.contains("--ephemeral"), "{refused:?}");
        assert_eq!(again(&world, &["--ephemeral"]).code, 0);
    }

    /// One thread mounts a space while another one unmounts it. Every mount must succeed.
    fn mounts_racing_unmounts_succeed() {
        let world = World::sample();
        world.mount("s").unmount();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let unmounting = scope.spawn(|| {
                let mut output = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let done = world.run(["unmount", "s"]);
                    // 12 means busy: the other side is checking whether the mount answers.
                    if !matches!(done.code, 0 | 12) {
                        output.push(done);
                    }
                }
                output
            });
            let failed: Vec<Done> = (0..TRIES).map(|_| again(&world, &[])).filter(|done| done.code != 0).collect();
            over.store(true, Ordering::Relaxed);
            let unmounts = unmounting.join().unwrap();
            assert!(failed.is_empty(), "{} of {TRIES} mounts failed: {:?}", failed.len(), failed.first());
            assert!(unmounts.is_empty(), "{} unmounts failed: {:?}", unmounts.len(), unmounts.first());
        });
        assert_eq!(world.run(["unmount", "s"]).code, 0);
    }
}
