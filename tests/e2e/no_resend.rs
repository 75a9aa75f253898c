//! A kernel that cannot send requests again (before Linux 6.9): a worker that dies is replaced, and only the requests that
//! were under way get an error.

use std::time::Duration;

use rustix::process::Signal;

use crate::common::{Mounted, World, assert_errno, wait_until};
use crate::hang::spoil;
use crate::inject::{Trace, may_trace};

fn mount(world: &World) -> Mounted<'_> {
    let mut command = world.holofs();
    command.env("HOLOFS_TEST_NO_RESEND", "1").args(["--json", "mount"]).arg(world.home()).arg("s");
    Mounted::by(world, "s", &mut command)
}

/// Kills the worker when it has done what a request asks for, and has not answered.
fn cut(
    world: &World,
    mounted: &Mounted<'_>,
    request: impl FnOnce() -> std::io::Result<()> + Send + 'static,
    is_done: impl Fn() -> bool,
) {
    let worker = mounted.server();
    let trace = Trace::injecting(worker, world.path(), "inject=renameat2:delay_exit=20000000");
    let request = std::thread::spawn(request);
    wait_until("the request to be done", is_done);
    assert!(!request.is_finished());
    rustix::process::kill_process(rustix::process::Pid::from_raw(worker).unwrap(), Signal::KILL).unwrap();
    // strace does not let go of the worker before the delay is over.
    drop(trace);
    assert_errno(request.join().unwrap(), rustix::io::Errno::INTR);
}

for_both_users! {
    fn request_under_way_is_interrupted_and_everything_else_goes_on() {
        if !may_trace() {
            return;
        }
        let world = World::sample();
        let mounted = mount(&world);
        let [old, new, dir] = ["old", "new", "dir"].map(|name| mounted.at(name));
        std::fs::write(&old, "text").unwrap();
        let open = std::fs::File::create(mounted.at("open")).unwrap();
        let rename = { let (old, new) = (old.clone(), new.clone()); move || std::fs::rename(old, new) };
        let make = { let dir = dir.clone(); move || std::fs::create_dir(dir) };
        let done = |name: &str| mounted.upper(name).exists();
        cut(&world, &mounted, rename, || done("new") && !done("old"));
        assert!(!old.exists());
        // The kernel remembers that there was no such name, until somebody tries to make it.
        assert_errno(std::fs::File::create_new(&new), rustix::io::Errno::EXIST);
        assert_eq!(std::fs::read(&new).unwrap(), b"text");
        cut(&world, &mounted, make, || done("dir"));
        assert_errno(std::fs::create_dir(&dir), rustix::io::Errno::EXIST);
        assert!(dir.is_dir());
        std::io::Write::write_all(&mut &open, b"text").unwrap();
        assert_eq!(std::fs::read(mounted.at("open")).unwrap(), b"text");
        drop(open);
        let log = std::fs::read_to_string(mounted.state().join("log")).unwrap();
        assert!(log.contains("cannot send requests again"), "{log}");
        mounted.unmount();
    }

    fn mount_goes_on_in_no_other_program() {
        let world = World::sample();
        let mounted = mount(&world);
        let done = world.run(["upgrade", "s", "--program", "/bin/true"]);
        assert!(done.code == 12 && done.stderr.contains("Linux 6.9"), "{done:?}");
        // Without its keeper, the worker goes on as it is.
        let worker = mounted.server();
        rustix::process::kill_process(rustix::process::Pid::from_raw(mounted.pid()).unwrap(), rustix::process::Signal::KILL).unwrap();
        let status = || world.json(["--json", "status", "s"]);
        crate::common::wait_until("the keeper to die", || status()["kept"] == false);
        let log = || std::fs::read_to_string(mounted.state().join("log")).unwrap();
        crate::common::wait_until("the log to say so", || log().contains("nobody keeps this mount"));
        std::fs::write(mounted.at("new"), "new").unwrap();
        assert_eq!(status()["worker"], worker);
        assert_eq!(world.run(["unmount", "s"]).code, 0);
        mounted.has_ended();
    }

    fn requests_that_nobody_began_get_an_error_or_their_answer() {
        if !may_trace() {
            return;
        }
        let world = World::sample();
        let mounted = mount(&world);
        let worker = mounted.server();
        // Each loop reads one request, and does not come to begin it.
        spoil(worker, crate::hang::LOOP);
        let asked: Vec<_> = (0..20)
            .map(|n| {
                let missing = mounted.at(format!("missing{n}"));
                std::thread::spawn(move || missing.try_exists())
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        mounted.kill_worker();
        let mut errors = 0;
        for asked in asked {
            match asked.join().unwrap() {
                Ok(exists) => assert!(!exists),
                Err(error) => {
                    let expected = [libc::EINTR, libc::ECONNABORTED];
                    assert!(error.raw_os_error().is_some_and(|error| expected.contains(&error)), "{error}");
                    errors += 1;
                }
            }
        }
        assert!((1..=16).contains(&errors), "{errors}");
        assert!(!mounted.at("missing0").try_exists().unwrap());
        mounted.unmount();
    }
}
