//! A worker that answers nothing while requests wait is replaced, unless somebody has stopped it or looks at it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::process::Signal;

use crate::common::mount::is_running;
use crate::common::{Mounted, World, wait_until};
use crate::inject::{Trace, may_trace};

/// Mounts a space whose worker may take a second.
fn mount(world: &World) -> Mounted<'_> {
    let mut command = world.holofs();
    command.env("HOLOFS_HANG_TIMEOUT", "1").args(["--json", "mount"]).arg(world.home()).arg("s");
    Mounted::by(world, "s", &mut command)
}

/// Machine code that never ends: a loop.
#[cfg(target_arch = "x86_64")]
pub const LOOP: &[u8] = &[0xeb, 0xfe];
#[cfg(target_arch = "aarch64")]
pub const LOOP: &[u8] = &[0x00, 0x00, 0x00, 0x14];

/// And one that waits for a lock: futex(&top_of_stack, FUTEX_WAIT_PRIVATE, top_of_stack, NULL), again and again.
#[cfg(target_arch = "x86_64")]
const LOCK: &[u8] = &[
    0x48, 0x89, 0xe7, // mov rdi, rsp
    0xbe, 0x80, 0x00, 0x00, 0x00, // mov esi, FUTEX_WAIT_PRIVATE
    0x8b, 0x17, // mov edx, [rdi]
    0x4d, 0x31, 0xd2, // xor r10, r10
    0xb8, 0xca, 0x00, 0x00, 0x00, // mov eax, SYS_futex
    0x0f, 0x05, // syscall
    0xeb, 0xea, // back to the first line
];
#[cfg(target_arch = "aarch64")]
const LOCK: &[u8] = LOOP;

/// Has every loop of the worker run this code when it has read the next request.
pub fn spoil(worker: i32, code: &[u8]) {
    let mut loops: Vec<u64> = Vec::new();
    wait_until("the loops to wait for requests", || {
        loops.clear();
        let mut all = true;
        for thread in std::fs::read_dir(format!("/proc/{worker}/task")).unwrap() {
            let dir = thread.unwrap().path();
            let read = |name| std::fs::read_to_string(dir.join(name)).unwrap_or_default();
            if read("comm").starts_with("fuser-") {
                // The last field is the address to which the system call returns.
                let call = read("syscall");
                let at =
                    call.split_whitespace().last().and_then(|at| at.strip_prefix("0x")).map(str::to_owned);
                match at.and_then(|at| u64::from_str_radix(&at, 16).ok()) {
                    Some(at) => loops.push(at),
                    None => all = false,
                }
            }
        }
        all && loops.len() >= 3 && loops.iter().all(|at| *at == loops[0])
    });
    let memory = File::options().write(true).open(format!("/proc/{worker}/mem")).unwrap();
    memory.write_all_at(code, loops[0]).unwrap();
}

/// Sends more requests than there are loops, and waits for the right answers. Calls `meanwhile` when all are on their way.
fn ask_all(mounted: &Mounted<'_>, meanwhile: impl FnOnce()) {
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..20)
            .map(|n| {
                let (missing, file) = (mounted.at(format!("missing{n}")), mounted.at("readme.txt"));
                scope.spawn(move || {
                    assert!(!missing.try_exists().unwrap());
                    assert!(!std::fs::read(file).unwrap().is_empty());
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        meanwhile();
        asked.into_iter().for_each(|asked| asked.join().unwrap());
    });
}

fn is_replaced_after(code: &[u8]) {
    if !may_trace() {
        return;
    }
    let world = World::sample();
    let mounted = mount(&world);
    std::fs::write(mounted.at("new"), "new").unwrap();
    let worker = mounted.server();
    spoil(worker, code);
    ask_all(&mounted, || {});
    assert!(!is_running(worker));
    wait_until("the record of the next worker", || {
        world.json(["--json", "status", "s"])["restarts"].as_u64() == Some(1)
    });
    let said = world.json(["--json", "status", "s"]);
    assert_eq!(said["last_death"]["cause"], "no answer", "{said}");
    assert_eq!(std::fs::read(mounted.at("new")).unwrap(), b"new");
    mounted.unmount();
}

for_both_users! {
    fn worker_in_a_loop_without_end_is_replaced() {
        is_replaced_after(LOOP);
    }

    fn worker_that_waits_for_itself_is_replaced() {
        is_replaced_after(LOCK);
    }

    fn worker_that_somebody_stopped_is_not_replaced() {
        let world = World::sample();
        let mounted = mount(&world);
        let worker = mounted.server();
        mounted.stop();
        ask_all(&mounted, || {
            std::thread::sleep(Duration::from_millis(2500));
            assert_eq!(mounted.worker(), Some(worker));
            mounted.signal(Signal::CONT);
        });
        assert_eq!(mounted.worker(), Some(worker));
        mounted.unmount();
    }

    fn worker_that_somebody_traces_is_not_replaced() {
        if !may_trace() {
            return;
        }
        let world = World::sample();
        let mounted = mount(&world);
        let worker = mounted.server();
        spoil(worker, LOOP);
        let trace = Trace::injecting(worker, world.path(), "inject=mlockall:error=EIO:when=1");
        ask_all(&mounted, || {
            std::thread::sleep(Duration::from_millis(2500));
            assert_eq!(mounted.worker(), Some(worker));
            drop(trace);
        });
        assert!(!is_running(worker));
        mounted.unmount();
    }
}
