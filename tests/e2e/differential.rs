//! A mount and a plain directory with the restored tree must not differ, whatever is done to both.
//!
//! Random operations, including remounts and kill -9 of the daemon, run on both sides. Each result, each errno and the
//! final trees must agree. A sequence that makes them differ is reduced to a short one and printed.
//!
//! A further test kills the worker at random while the operations run. Nothing may differ then either, and open files and
//! maps stay open.
//!
//! `HOLOFS_DIFF_SEED=N` runs only that seed. `HOLOFS_DIFF_SEEDS` sets the number of sequences and `HOLOFS_DIFF_OPS`
//! their length. `HOLOFS_DIFF_KILLS` sets the number of sequences with kills.

mod generate;
mod op;
mod side;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use generate::Generator;
use op::Op;
use side::Side;

use crate::common::library::{STAGE, pattern};
use crate::common::see::differences;
use crate::common::{Library, MOTHER_TIME, Mounted, World, setting};
use crate::once::kill_again_and_again;

/// The time limit for reducing a failing sequence.
const SHRINK_TIME: Duration = Duration::from_secs(60);

/// A mount and a plain directory with the same content.
struct Pair<'w> {
    world: &'w World,
    // The sides are dropped before the mount, because open files would keep it busy.
    mount: Side,
    plain: Side,
    mounted: Option<Mounted<'w>>,
}

impl<'w> Pair<'w> {
    fn new(world: &'w World, library: &Library) -> Self {
        let mounted = world.mount("s");
        // With the same name, because relocated files contain it.
        let plain = world.path().join("plain").join(mounted.identity());
        library.restore(&plain);
        let (mount, mut plain) = (Side::new(mounted.path()), Side::new(&plain));
        // Links that rcc restores have the current time; links in a mount have the time of all other entries.
        let mut links = Vec::new();
        plain.visit(&mut |path, stat| {
            if stat.is_ok_and(|stat| stat.is_symlink()) {
                links.push(path.to_owned());
            }
        });
        for path in links {
            plain.apply(&Op::SetTime { path, seconds: MOTHER_TIME });
        }
        Self { world, mounted: Some(mounted), mount, plain }
    }

    /// Does one operation on both sides. The error says how they differ.
    fn apply(&mut self, op: &Op) -> Result<(), String> {
        match op {
            Op::Remount | Op::Kill => {
                self.mount.close_all();
                self.plain.close_all();
                let before = self.mount.numbers();
                let mounted = self.mounted.take().expect("mounted");
                if matches!(op, Op::Kill) {
                    mounted.kill();
                } else {
                    mounted.unmount();
                }
                self.mounted = Some(self.world.mount("s"));
                let after = self.mount.numbers();
                if before != after {
                    let moved = before.iter().find(|(path, number)| after.get(*path) != Some(number));
                    return Err(format!("inode numbers changed over {op:?}, first at {moved:?}"));
                }
                self.compare_trees()
            }
            op => {
                let (mount, plain) = (self.mount.apply(op), self.plain.apply(op));
                if mount == plain { Ok(()) } else { Err(format!("mount: {mount}\nplain: {plain}")) }
            }
        }
    }

    fn compare_trees(&self) -> Result<(), String> {
        match differences(("mount", &self.mount.snapshot()), ("plain", &self.plain.snapshot())) {
            Some(text) => Err(format!("the trees differ{text}")),
            None => Ok(()),
        }
    }
}

fn library(seed: u64) -> Library {
    let mut large = pattern(150_000);
    for at in [5_000, 140_000] {
        large[at..at + STAGE.len()].copy_from_slice(STAGE.as_bytes());
    }
    let library = Library::sample().file("lib/large.conf", &large);
    if seed.is_multiple_of(2) { library } else { library.raw() }
}

/// Runs a new sequence. A failure is returned with the operations that led to it.
fn explore(seed: u64, count: usize) -> Result<(), (Vec<Op>, String)> {
    let mut done: Vec<Op> = Vec::new();
    let result = catch_unwind(AssertUnwindSafe(|| {
        let library = library(seed);
        let world = World::with(&library);
        let mut pair = Pair::new(&world, &library);
        let mut generator = Generator::new(seed);
        for _ in 0..count {
            let op = generator.next(&pair.plain);
            done.push(op.clone());
            pair.apply(&op)?;
        }
        done.push(Op::Remount);
        pair.apply(&Op::Remount)
    }));
    match result {
        Ok(Ok(())) => Ok(()),
        Ok(Err(difference)) => Err((done, difference)),
        Err(panic) => Err((done, message(panic.as_ref()))),
    }
}

/// Runs a given sequence.
fn replay(seed: u64, ops: &[Op]) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| {
        let library = library(seed);
        let world = World::with(&library);
        let mut pair = Pair::new(&world, &library);
        ops.iter().try_for_each(|op| pair.apply(op))?;
        pair.apply(&Op::Remount)
    }))
    .unwrap_or_else(|panic| Err(message(panic.as_ref())))
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

/// Removes operations that the failure does not need: first halves, at the end single operations.
fn shrink(seed: u64, mut ops: Vec<Op>, mut difference: String) -> (Vec<Op>, String) {
    let deadline = Instant::now() + SHRINK_TIME;
    let mut chunk = ops.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let mut cut = false;
        while at < ops.len() && Instant::now() < deadline {
            let mut fewer = ops.clone();
            fewer.drain(at..(at + chunk).min(ops.len()));
            match replay(seed, &fewer) {
                Err(other) => {
                    (ops, difference, cut) = (fewer, other, true);
                }
                Ok(()) => at += chunk,
            }
        }
        if Instant::now() >= deadline || (chunk == 1 && !cut) {
            return (ops, difference);
        }
        chunk = chunk.div_ceil(2);
    }
}

/// Runs a sequence while another thread kills the worker again and again. When a kill comes is not repeatable, so the
/// sequence is not reduced. Returns the number of kills.
#[track_caller]
fn run_with_kills(seed: u64, count: usize) -> u64 {
    let library = library(seed);
    let world = World::with(&library);
    let mut pair = Pair::new(&world, &library);
    let mut generator = Generator::new(seed);
    let keeper = pair.mounted.as_ref().expect("mounted").pid();
    let (stop, progress) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut done: Vec<Op> = Vec::new();
    let (result, kills) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| kill_again_and_again(keeper, seed, &progress, &stop));
        let result = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..count {
                let op = generator.next(&pair.plain);
                if matches!(op, Op::Remount | Op::Kill) {
                    continue;
                }
                done.push(op.clone());
                pair.apply(&op)?;
                progress.fetch_add(1, Ordering::Relaxed);
            }
            pair.compare_trees()
        }));
        stop.store(true, Ordering::Relaxed);
        (result, killer.join().unwrap())
    });
    let result = result.unwrap_or_else(|panic| Err(message(panic.as_ref())));
    if let Err(difference) = result.and_then(|()| pair.apply(&Op::Remount)) {
        let last = done.iter().rev().take(10).rev().map(|op| format!("  {op:?}\n")).collect::<String>();
        panic!(
            "seed {seed}: mount and plain directory differ after {} operations and {kills} kills:\n{difference}\n\nthe last operations:\n{last}",
            done.len()
        );
    }
    kills
}

#[track_caller]
fn run(seed: u64, count: usize) {
    let Err((ops, difference)) = explore(seed, count) else { return };
    let total = ops.len();
    let (short, last) = shrink(seed, ops, difference.clone());
    let mut text =
        format!("seed {seed}: mount and plain directory differ after {total} operations:\n{difference}\n");
    text.push_str(&format!("\nthe same in {} operations:\n", short.len()));
    for op in &short {
        text.push_str(&format!("  {op:?}\n"));
    }
    panic!(
        "{text}{last}\nto repeat: HOLOFS_DIFF_SEED={seed} HOLOFS_DIFF_OPS={count} cargo test --test e2e differential"
    );
}

for_both_users! {
    fn workers_killed_at_random_are_not_noticed() {
        let count = usize::try_from(setting("HOLOFS_DIFF_OPS").unwrap_or(300)).unwrap();
        let (first, seeds) = (setting("HOLOFS_DIFF_FIRST").unwrap_or(1), setting("HOLOFS_DIFF_KILLS").unwrap_or(3));
        let kills: u64 = (first..first + seeds).map(|seed| run_with_kills(seed, count)).sum();
        println!("differential: seed {first}: {seeds} sequences of {count} operations, {kills} kills, 0 wrong");
        assert!(kills > 0, "nothing was killed");
    }

    fn random_operations_agree_with_a_plain_directory() {
        let count = usize::try_from(setting("HOLOFS_DIFF_OPS").unwrap_or(300)).unwrap();
        if let Some(seed) = setting("HOLOFS_DIFF_SEED") {
            return run(seed, count);
        }
        let (first, seeds) = (setting("HOLOFS_DIFF_FIRST").unwrap_or(1), setting("HOLOFS_DIFF_SEEDS").unwrap_or(12));
        for seed in first..first + seeds {
            run(seed, count);
        }
        println!("differential: seed {first}: {seeds} sequences of {count} operations, 0 wrong");
        // A seed that was never used before.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        run(now.as_secs() % 1_000_000, count);
    }
}
