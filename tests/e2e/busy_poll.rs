//! `--busy-poll`: what is asked of the whole machine during a burst of requests, and that it is given back.

use std::fs::File;
use std::io::Read;

use crate::common::as_user::is_root;
use crate::common::world::finish;
use crate::common::{Mounted, World, wait_until};

/// What the machine's processors may take to wake up, in microseconds; None where nobody can say.
fn latency() -> Option<i32> {
    let mut bytes = [0; 4];
    File::open("/dev/cpu_dma_latency").ok()?.read_exact(&mut bytes).unwrap();
    Some(i32::from_ne_bytes(bytes))
}

/// Keeps a mount busy until `waiting` has ended, by a panic too.
fn busy(mounted: &Mounted<'_>, waiting: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(waiting);
        while !waiting.is_finished() {
            // Each is a name that the kernel has not asked for yet.
            let name = mounted.at("bin").join(format!("{:?}", std::time::Instant::now()));
            assert!(!name.exists());
        }
    });
}

#[test]
fn processors_poll_while_requests_come_and_not_after() {
    let world = World::sample();
    let Some(usual) = latency() else {
        let done = world.run(["mount", "auto", "s", "--busy-poll", "always"]);
        assert_eq!(done.code, 8, "{done:?}");
        return;
    };
    assert_ne!(usual, 0, "something else on this machine keeps its processors awake");
    let mounted = world.mount_with("s", &["--busy-poll", "always"]);
    assert_eq!(mounted.said["busy_poll"], true);
    assert_eq!(world.json(["status", "s"])["busy_poll"], true);
    assert_eq!(latency(), Some(usual), "nothing has been asked of the mount");
    for _ in 0..2 {
        busy(&mounted, || wait_until("processors that poll", || latency() == Some(0)));
        wait_until("processors that may halt", || latency() == Some(usual));
    }
    busy(&mounted, || {
        wait_until("processors that poll", || latency() == Some(0));
        mounted.signal(rustix::process::Signal::KILL);
        wait_until("the daemon's death to end it", || latency() == Some(usual));
    });
}

#[test]
fn it_is_left_alone_when_that_is_asked_for() {
    let world = World::sample();
    let mounted = world.mount_with("s", &["--busy-poll", "never"]);
    assert_eq!(mounted.said["busy_poll"], false);
    assert!(!world.run(["status", "s"]).stdout.contains("Busy poll"));
}

#[test]
fn an_ordinary_user_is_told_that_he_may_not() {
    let world = if is_root() { World::sample().by_ordinary_user() } else { World::sample() };
    if !is_root() && latency().is_some() {
        return;
    }
    let done = world.run(["mount", "auto", "s", "--busy-poll", "always"]);
    assert_eq!(done.code, 8, "{done:?}");
    assert!(done.stderr.contains("/dev/cpu_dma_latency: ") && done.stderr.lines().count() <= 2, "{done:?}");
    assert!(world.mounts().is_empty());
    // By itself it is no reason not to mount.
    assert_eq!(world.mount_with("s", &["--busy-poll", "auto"]).said["busy_poll"], false);
}

#[test]
fn nonsense_is_refused() {
    let world = World::sample();
    assert_eq!(world.run(["mount", "auto", "s", "--busy-poll", "perhaps"]).code, 2);
    let mut command = world.holofs();
    let done = finish(command.env("HOLOFS_BUSY_POLL", "perhaps").args(["mount", "auto", "s"]));
    assert_eq!(done.code, 4, "{done:?}");
    assert!(done.stderr.contains("HOLOFS_BUSY_POLL=perhaps"), "{done:?}");
}
