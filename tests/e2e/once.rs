//! The worker dies while requests are under way: each takes effect once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::common::mount::worker_of;
use crate::common::random::Random;
use crate::common::{Mounted, World, setting};
use crate::crash::{change, check, sets};

/// Kills the worker again and again, until `stop`. Returns how often. Each worker lives until `progress` has grown: a
/// mount whose workers die before they answer is given up.
pub fn kill_again_and_again(keeper: i32, seed: u64, progress: &AtomicU64, stop: &AtomicBool) -> u64 {
    /// The longest life of a worker while there is progress.
    const PAUSE: Duration = Duration::from_millis(40);
    let (mut random, mut kills, mut before) = (Random::new(seed), 0, 0);
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(PAUSE.mul_f64(random.below(1000) as f64 / 1000.0));
        let now = progress.load(Ordering::Relaxed);
        if now == before {
            continue;
        }
        before = now;
        if let Some(worker) = worker_of(keeper).and_then(Pid::from_raw)
            && rustix::process::kill_process(worker, Signal::KILL).is_ok()
        {
            kills += 1;
        }
    }
    kills
}

/// Runs `work` while the worker is killed. Returns the number of kills.
fn while_killing(mounted: &Mounted<'_>, seed: u64, progress: &AtomicU64, work: impl FnOnce()) -> u64 {
    let (stop, keeper) = (AtomicBool::new(false), mounted.pid());
    std::thread::scope(|scope| {
        let killer = scope.spawn(|| kill_again_and_again(keeper, seed, progress, &stop));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        let kills = killer.join().unwrap();
        match done {
            Ok(()) => kills,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

for_both_users! {
    /// `HOLOFS_SOAK_SETS` sets the number of rounds, `HOLOFS_SOAK_SEED` the times of the kills.
    fn changes_under_kills_all_succeed_once() {
        let count = setting("HOLOFS_SOAK_SETS").unwrap_or(200);
        let world = World::with(&sets(count));
        let mounted = world.mount("s");
        let next = AtomicU64::new(0);
        let seed = setting("HOLOFS_SOAK_SEED").unwrap_or(1);
        let kills = while_killing(&mounted, seed, &next, || {
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        loop {
                            let n = next.fetch_add(1, Ordering::SeqCst);
                            if n >= count {
                                return;
                            }
                            change(mounted.path(), n).unwrap_or_else(|error| panic!("round {n}: {error}"));
                        }
                    });
                }
            });
        });
        for n in 0..count {
            check(mounted.path(), n, true);
        }
        let mounted = mounted.remount();
        for n in 0..count {
            check(mounted.path(), n, true);
        }
        println!("once: {count} rounds of changes, {kills} kills, 0 wrong");
        assert!(kills > 0, "nothing was killed");
    }
}
