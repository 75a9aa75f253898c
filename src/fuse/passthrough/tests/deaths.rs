//! A worker dies at random instants, and the next one goes on, against a model of the kernel that refuses what the kernel
//! refuses.

use super::*;
use crate::handoff::opens::Opened as Record;

/// What the kernel adds to the number of a request that it sends again.
const AGAIN: u64 = 1 << 63;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Open { ino: u64, write: bool },
    Release { handle: Handle, file: File },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Request {
    unique: u64,
    what: What,
}

/// An open file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct File {
    ino: u64,
    answer: Answer,
    lower: bool,
}

impl File {
    fn holds(&self, ino: u64) -> bool {
        self.ino == ino && self.lower && matches!(self.answer, Answer::Passthrough(_))
    }
}

#[derive(Debug, Default)]
struct Kernel {
    newest_id: u32,
    registered: HashSet<u32>,
    files: HashMap<Handle, File>,
    newest_unique: u64,
    /// Requests that nobody has read.
    queued: Vec<Request>,
    /// Requests that were read and not answered.
    read: Vec<Request>,
}

impl Kernel {
    fn send(&mut self, what: What) {
        self.newest_unique += 2;
        self.queued.push(Request { unique: self.newest_unique, what });
    }

    fn answer(&mut self, unique: u64) {
        let at = self.read.iter().position(|request| request.unique == unique);
        self.read.remove(at.expect("it was not answered yet"));
    }

    /// The answer to an open arrives.
    fn open(&mut self, unique: u64, Opened { answer, handle }: Opened, file: File) {
        self.answer(unique);
        let mut others = self.files.values().filter(|other| other.ino == file.ino);
        match answer {
            Answer::Passthrough(id) => {
                assert!(self.registered.contains(&id), "EIO: {id} is not registered");
                assert!(
                    others.all(|other| other.answer == answer),
                    "EIO: another file or mode than {answer:?}"
                );
            }
            Answer::Cached { .. } => {
                let cached = |other: &File| matches!(other.answer, Answer::Cached { .. });
                assert!(others.all(cached), "EIO: cached beside passthrough");
            }
        }
        assert!(self.files.insert(handle, file).is_none(), "two files have the same handle");
    }

    fn close(&mut self, handle: Handle) {
        let file = self.files.remove(&handle).unwrap();
        self.send(What::Release { handle, file });
    }

    /// Whether the library's bytes of an inode are open by passthrough.
    fn holds(&self, ino: u64) -> bool {
        self.files.values().any(|file| file.holds(ino))
    }

    /// As [`Kernel::holds`], or the release is not processed yet.
    fn seems_to_hold(&self, ino: u64) -> bool {
        let mut requests = self.queued.iter().chain(&self.read);
        self.holds(ino)
            || requests.any(|request| matches!(request.what, What::Release { file, .. } if file.holds(ino)))
    }

    fn uses(&self, ino: u64) -> bool {
        self.files.values().any(|file| file.ino == ino)
            || self.queued.iter().chain(&self.read).any(|request| match request.what {
                What::Open { ino: opened, .. } => opened == ino,
                What::Release { file, .. } => file.ino == ino,
            })
    }
}

/// The system calls of registering, and the instant of the next one at which the process dies.
#[derive(Debug, Default)]
struct Calls {
    kernel: Mutex<Kernel>,
    dies: Mutex<Option<Instant>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Instant {
    Before,
    After,
}

fn die() -> ! {
    // No message: it is no failure.
    std::panic::resume_unwind(Box::new("killed"))
}

impl Calls {
    fn call<T>(&self, call: impl FnOnce(&mut Kernel) -> T) -> T {
        let dies = self.dies.lock().take();
        if dies == Some(Instant::Before) {
            die();
        }
        let done = call(&mut self.kernel.lock());
        if dies == Some(Instant::After) {
            die();
        }
        done
    }
}

impl Backings for Calls {
    fn open(&self, _: BorrowedFd<'_>) -> io::Result<u32> {
        self.call(|kernel| {
            kernel.newest_id += 1;
            kernel.registered.insert(kernel.newest_id);
            Ok(kernel.newest_id)
        })
    }

    fn close(&self, id: u32) -> io::Result<()> {
        self.call(|kernel| {
            let users = kernel.files.values().filter(|file| file.answer == Answer::Passthrough(id)).count();
            assert_eq!(users, 0, "{id} is closed while it is open");
            if kernel.registered.remove(&id) { Ok(()) } else { Err(Errno::NOENT.into()) }
        })
    }

    fn take_over(&self, _: u64) {}
}

/// A pseudo-random generator (xorshift), so that a failure comes again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn choose<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let at = self.below(from.len().max(1) as u64) as usize;
        from.get(at).copied()
    }
}

const INODES: u64 = 6;

/// Whether an inode's bytes are the library's at first.
fn starts_lower(ino: u64) -> bool {
    !ino.is_multiple_of(3)
}

struct World {
    calls: Arc<Calls>,
    handoff: Arc<Handoff>,
    modes: Passthrough,
    /// Opens that the worker has counted and not answered.
    begun: Vec<(u64, Opened, File)>,
    /// Inodes whose bytes are the library's.
    lower: HashSet<u64>,
    dice: Dice,
    deaths: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let (calls, handoff) = (Arc::new(Calls::default()), Arc::new(Handoff::private().unwrap()));
        let modes = Passthrough::new(Arc::clone(&calls) as _, Arc::default(), Arc::clone(&handoff));
        let lower = (1..=INODES).filter(|ino| starts_lower(*ino)).collect();
        Self { calls, handoff, modes, begun: Vec::new(), lower, dice: Dice(seed), deaths: 0 }
    }

    fn kernel(&self) -> parking_lot::MutexGuard<'_, Kernel> {
        self.calls.kernel.lock()
    }

    /// The worker is killed, and the next one takes over. Some who waited for a file are killed meanwhile.
    fn next_worker(&mut self) {
        self.deaths += 1;
        *self.calls.dies.lock() = None;
        self.begun.clear();
        loop {
            self.modes =
                Passthrough::new(Arc::clone(&self.calls) as _, Arc::default(), Arc::clone(&self.handoff));
            // It can die too.
            if self.dice.one_in(6) {
                *self.calls.dies.lock() = self.dice.choose(&[Instant::Before, Instant::After]);
            }
            let waits =
                |open: &Record| self.kernel().read.iter().any(|request| request.unique == open.unique);
            self.handoff.opens().settle(waits);
            let took = lives(|| {
                let unused = self.modes.take_over();
                self.modes.give_back_all(unused);
            });
            *self.calls.dies.lock() = None;
            if took {
                break;
            }
        }
        for ino in 1..=INODES {
            let (waits, kernel) = (self.modes.must_wait(ino), self.kernel());
            assert!(waits || !kernel.holds(ino), "a reader of {ino} is not counted");
            // A release that was processed and not answered is processed again.
            assert!(!waits || kernel.seems_to_hold(ino), "a reader of {ino} is counted who has gone");
        }
        let again = std::mem::take(&mut self.kernel().read);
        for Request { unique, what } in again {
            let gives_up = matches!(what, What::Open { .. }) && self.dice.one_in(6);
            if !gives_up {
                self.kernel().queued.insert(0, Request { unique: unique | AGAIN, what });
            }
        }
    }

    /// Runs a request, and dies meanwhile or not.
    fn run(&mut self, Request { unique, what }: Request) {
        if self.dice.one_in(8) {
            *self.calls.dies.lock() = self.dice.choose(&[Instant::Before, Instant::After]);
        }
        let file = std::fs::File::open("/dev/null").unwrap();
        match what {
            What::Open { ino, write } => {
                if write {
                    if self.modes.must_wait(ino) {
                        return self.kernel().answer(unique);
                    }
                    assert!(!self.kernel().holds(ino), "bytes change under a reader");
                    self.lower.remove(&ino);
                }
                let side = if self.lower.contains(&ino) { Side::Lower } else { Side::Upper };
                let file = (side == Side::Lower || !self.dice.one_in(4)).then_some(file.as_fd());
                let mut opened = None;
                let lives = lives(|| {
                    let _change = write.then(|| self.modes.change(ino).unwrap());
                    opened = Some(self.modes.open(unique, ino, side, file).unwrap());
                });
                match opened {
                    Some(opened) if lives => {
                        let file = File { ino, answer: opened.answer, lower: side == Side::Lower };
                        self.begun.push((unique, opened, file));
                    }
                    _ => self.next_worker(),
                }
            }
            What::Release { handle, .. } => match lives(|| self.modes.release(handle)) {
                true => self.kernel().answer(unique),
                false => self.next_worker(),
            },
        }
    }

    fn answer(&mut self) {
        let at = self.dice.below(self.begun.len() as u64) as usize;
        let (unique, opened, file) = self.begun.swap_remove(at);
        self.kernel().open(unique, opened, file);
        if self.dice.one_in(8) {
            return self.next_worker();
        }
        self.modes.answered(opened.handle);
    }

    fn step(&mut self) {
        match self.dice.below(12) {
            0..3 => {
                let (ino, write) = (self.dice.below(INODES) + 1, self.dice.one_in(4));
                self.kernel().send(What::Open { ino, write });
            }
            3..6 => {
                let next = self.kernel().queued.first().copied();
                if let Some(request) = next {
                    self.kernel().queued.remove(0);
                    self.kernel().read.push(request);
                    self.run(request);
                }
            }
            6..8 if !self.begun.is_empty() => self.answer(),
            8..10 => {
                let mut files: Vec<Handle> = self.kernel().files.keys().copied().collect();
                files.sort_unstable_by_key(|handle| handle.get());
                if let Some(handle) = self.dice.choose(&files) {
                    self.kernel().close(handle);
                }
            }
            10 => {
                let ino = self.dice.below(INODES) + 1;
                if !self.kernel().uses(ino) {
                    // A death after this request was read would lose it.
                    if !self.dice.one_in(3) && !lives(|| self.modes.forget(ino)) {
                        self.next_worker();
                    }
                    // It is another file now.
                    if starts_lower(ino) {
                        self.lower.insert(ino);
                        self.modes.forget(ino);
                    }
                }
            }
            _ if self.dice.one_in(3) => self.next_worker(),
            _ => {}
        }
    }

    /// Everybody closes everything.
    fn finish(&mut self) {
        loop {
            while !self.begun.is_empty() {
                self.answer();
            }
            let files: Vec<Handle> = self.kernel().files.keys().copied().collect();
            files.into_iter().for_each(|handle| self.kernel().close(handle));
            let next = self.kernel().queued.pop();
            let Some(request) = next else { break };
            self.kernel().read.push(request);
            self.run(request);
        }
        self.next_worker();
        assert_eq!(self.handoff.opens().opens().count(), 0, "open files");
        for ino in 1..=INODES {
            assert!(!self.modes.must_wait(ino));
            self.modes.forget(ino);
        }
        assert!(self.kernel().registered.is_empty(), "lost numbers: {:?}", self.kernel().registered);
        assert_eq!(self.handoff.opens().backings().count(), 0);
    }
}

/// Whether the worker lives after this.
fn lives(work: impl FnOnce()) -> bool {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
        Ok(()) => true,
        Err(cause) if cause.is::<&str>() && cause.downcast_ref() == Some(&"killed") => false,
        Err(cause) => std::panic::resume_unwind(cause),
    }
}

#[test]
fn each_worker_goes_on_where_the_last_one_died() {
    let mut deaths = 0;
    for seed in 1..=150 {
        let mut world = World::new(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        (0..400).for_each(|_| world.step());
        world.finish();
        deaths += world.deaths;
    }
    assert!(deaths > 2000, "only {deaths} deaths");
}
