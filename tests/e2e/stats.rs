//! `holofs stats` counts what mounts did, and keeps it: across remounts, after kill -9, until a reset.

use std::fs;
use std::process::Command;

use rustix::io::Errno;
use serde_json::Value;

use crate::common::library::pattern;
use crate::common::world::finish;
use crate::common::{Library, World, assert_errno, passthrough, wait_until};

const SIZE: usize = 300_000;

fn library() -> Library {
    Library::sample().file("lib/big.bin", &pattern(SIZE))
}

fn stats(world: &World) -> Value {
    world.json(["stats", "s"])
}

for_both_users! {
    /// The sums of all mounts. A file that two mounts read counts once.
    fn totals_are_kept_across_remounts() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        let first = stats(&world);
        assert_eq!((&first["mounts"], &first["files"]["touched"]), (&1.into(), &0.into()), "{first}");
        let total = first["files"]["total"].as_u64().unwrap();
        assert!(total > 5 && first["relocated"]["files"].as_u64().unwrap() > 0, "{first}");
        fs::read(mounted.at("lib/big.bin")).unwrap();
        fs::read(mounted.at("readme.txt")).unwrap();
        let read = stats(&world);
        assert_eq!(read["files"]["touched"], 2, "{read}");
        assert!(read["bytes"]["decompressed"].as_u64().unwrap() >= SIZE as u64, "{read}");
        if !passthrough() {
            assert!(read["bytes"]["served"].as_u64().unwrap() >= SIZE as u64, "{read}");
            assert_eq!(read["files"]["opened"], Value::Null);
        } else {
            assert!(read["files"]["opened"].as_u64().unwrap() >= 2, "{read}");
        }
        // A private copy, by one of the methods.
        let mut file = fs::OpenOptions::new().append(true).open(mounted.at("lib/big.bin")).unwrap();
        std::io::Write::write_all(&mut file, b"x").unwrap();
        drop(file);
        let copies = |of: &Value| {
            ["reflink", "copy_file_range", "copy"].iter().map(|key| of["copy_up"][key].as_u64().unwrap()).sum::<u64>()
        };
        let changed = stats(&world);
        assert_eq!((copies(&changed), &changed["copy_up"]["bytes"]), (1, &SIZE.into()), "{changed}");
        assert!(changed["blobs"]["cache_hits"].as_u64().unwrap() >= 1, "{changed}");

        let mounted = mounted.remount();
        fs::read(mounted.at("readme.txt")).unwrap();
        fs::read(mounted.at("lib/module.py")).unwrap();
        let both = stats(&world);
        assert_eq!((&both["mounts"], &both["files"]["touched"], copies(&both)), (&2.into(), &3.into(), 1), "{both}");
        assert_eq!(both["files"]["total"], total);
        // kill -9 loses this mount's counters only.
        mounted.kill();
        assert_eq!(world.run(["unmount", "s"]).code, 0);
        let kept = stats(&world);
        assert_eq!((&kept["mounts"], &kept["files"]["touched"], copies(&kept)), (&1.into(), &2.into(), 1), "{kept}");
        assert_eq!(kept["bytes"], changed["bytes"]);

        // A reset, of a live mount and of none.
        let mounted = world.mount("s");
        fs::read(mounted.at("readme.txt")).unwrap();
        assert_eq!(world.run(["stats", "s", "--reset"]).code, 0);
        let anew = stats(&world);
        assert_eq!((&anew["mounts"], &anew["files"]["touched"], copies(&anew)), (&1.into(), &0.into(), 0), "{anew}");
        mounted.kill();
        assert_eq!(world.run(["unmount", "s"]).code, 0);
        assert_eq!(stats(&world)["files"]["touched"], 0);
        assert_eq!(world.run(["stats", "s", "--reset"]).code, 0);
        assert_eq!((&stats(&world)["mounts"], &stats(&world)["files"]["total"]), (&0.into(), &total.into()));
    }
}

#[test]
fn text_has_the_lines_that_people_look_for() {
    let world = World::with(&library());
    let mounted = world.mount_with("s", &["--strategy", "copy"]);
    fs::read(mounted.at("lib/big.bin")).unwrap();
    let total = stats(&world)["files"]["total"].as_u64().unwrap();
    let shown = world.run(["stats", "s"]);
    for line in ["space s (mounted)", "strategy copy", "mounts 1", "reflinked 0", "errors none"] {
        assert!(shown.stdout.lines().any(|found| found == line), "{line}: {shown:?}");
    }
    assert!(shown.stdout.contains(&format!(" of {total} (")), "{shown:?}");
    let prometheus = world.run(["stats", "--prometheus"]);
    let sample = format!(
        "holofs_files{{space=\"s\",controller=\"rcc.user\",identity=\"{}\"}} {total}\n",
        mounted.identity()
    );
    assert!(prometheus.stdout.contains(&sample), "{prometheus:?}");
    assert!(prometheus.stdout.contains("# TYPE holofs_served_bytes_total counter\n"));
    let all = world.json(["stats", "--all"]);
    assert_eq!(all[mounted.identity()]["space"], "s");
    let table = world.run(["stats"]);
    assert!(table.stdout.starts_with("Space") && table.stdout.contains("mounted"), "{table:?}");
    // A reader that has seen enough ends the watch.
    let binary = crate::common::as_user::holofs_binary();
    let script = format!("{} stats s --watch=0.1 | head -n 30 | grep -c '^space s'", binary.display());
    let watched = finish(world.command("sh").args(["-c", &script]));
    assert_eq!(watched.stdout, "3\n", "{watched:?}");
}

#[test]
fn corrupt_files_are_listed_and_the_mount_is_degraded() {
    let library = library();
    let world = World::with(&library);
    let mounted = world.mount("s");
    assert_eq!(world.json(["status", "s"])["state"], "mounted");
    let blob = library.blob(&world.hololib(), "lib/big.bin");
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, bytes).unwrap();
    for _ in 0..2 {
        assert_errno(fs::read(mounted.at("lib/big.bin")), Errno::IO);
    }
    fs::read(mounted.at("readme.txt")).unwrap();
    wait_until("the file to be listed", || stats(&world)["corrupt"][0]["path"] == "lib/big.bin");
    let found = stats(&world);
    assert_eq!(found["corrupt"].as_array().unwrap().len(), 1, "{found}");
    assert!(
        found["errors"]["EIO"].as_u64().unwrap() >= 1 && found["blobs"]["refused"].as_u64().unwrap() >= 1
    );
    let digest = found["corrupt"][0]["digest"].as_str().unwrap();
    let shown = world.run(["stats", "s"]).stdout;
    assert!(shown.contains(&format!("corrupt: lib/big.bin {digest}\n")), "{shown}");
    assert_eq!(world.json(["status", "s"])["state"], "degraded");
    drop(mounted);
    assert_eq!(stats(&world)["corrupt"][0]["digest"], digest);
}

#[test]
fn unknown_space_and_damaged_file() {
    let world = World::with(&library());
    let done = world.run(["stats", "nothing"]);
    assert_eq!((done.code, done.stdout.as_str()), (6, ""), "{done:?}");
    assert!(done.stderr.contains("no such space"), "{done:?}");
    assert_eq!(world.run(["stats", "s", "--all"]).code, 2);
    let mounted = world.mount("s");
    let file = mounted.state().join("stats.json");
    fs::read(mounted.at("readme.txt")).unwrap();
    mounted.unmount();
    assert_eq!(stats(&world)["files"]["touched"], 1);
    for damage in ["", "{", "[]", r#"{"counters":{"copy":-1}}"#] {
        fs::write(&file, damage).unwrap();
        assert_eq!(stats(&world)["files"]["touched"], 0, "{damage}");
        drop(world.mount("s"));
        assert_eq!(stats(&world)["mounts"], 1, "{damage}");
    }
    // A FIFO is not read, and neither a mount nor `stats` waits for a writer.
    fs::remove_file(&file).unwrap();
    crate::common::sh(Command::new("mkfifo").arg(&file));
    assert_eq!(stats(&world)["mounts"], 0);
    drop(world.mount("s"));
    assert_eq!(stats(&world)["mounts"], 1);
}
