use std::collections::HashSet;
use std::io;
use std::ops::Deref;

use super::*;

/// Assigns backing numbers, and checks that each is released once.
#[derive(Debug, Default)]
struct Fake {
    out: Mutex<(u32, HashSet<u32>)>,
    refuses: bool,
}

impl Backings for Fake {
    fn open(&self, _: BorrowedFd<'_>) -> io::Result<u32> {
        if self.refuses {
            return Err(io::Error::from_raw_os_error(1));
        }
        let mut out = self.out.lock();
        out.0 += 1;
        let id = out.0;
        out.1.insert(id);
        Ok(id)
    }

    fn close(&self, id: u32) -> io::Result<()> {
        assert!(self.out.lock().1.remove(&id), "{id} was given back twice");
        Ok(())
    }

    fn take_over(&self, _: u64) {}
}

/// The open files of a mount, with the handles of each inode in the order in which they were opened.
struct Files {
    modes: Arc<Passthrough>,
    handles: Mutex<HashMap<u64, Vec<Handle>>>,
}

impl Deref for Files {
    type Target = Passthrough;

    fn deref(&self) -> &Passthrough {
        &self.modes
    }
}

impl Files {
    fn open(&self, ino: u64, side: Side, file: Option<BorrowedFd<'_>>) -> Answer {
        let Opened { answer, handle } = self.modes.open(2, ino, side, file).unwrap();
        self.handles.lock().entry(ino).or_default().push(handle);
        answer
    }

    fn release(&self, ino: u64) {
        let handle = self.handles.lock().get_mut(&ino).and_then(Vec::pop);
        self.modes.release(handle.unwrap());
    }
}

fn modes(refuses: bool) -> (Arc<Fake>, Arc<Files>) {
    let fake = Arc::new(Fake { refuses, ..Fake::default() });
    let handoff = Arc::new(Handoff::private().unwrap());
    let modes = Arc::new(Passthrough::new(Arc::clone(&fake) as _, Arc::default(), handoff));
    (fake, Arc::new(Files { modes, handles: Mutex::default() }))
}

fn open(modes: &Files, ino: u64, side: Side) -> Answer {
    let file = std::fs::File::open("/dev/null").unwrap();
    modes.open(ino, side, Some(file.as_fd()))
}

const CACHED: Answer = Answer::Cached { keep: false };
const CACHED_AND_RIGHT: Answer = Answer::Cached { keep: true };

#[test]
fn opens_of_one_inode_share_one_number_and_the_next_open_finds_it_again() {
    let (fake, modes) = modes(false);
    let Answer::Passthrough(id) = open(&modes, 7, Side::Lower) else { panic!() };
    assert_eq!(open(&modes, 7, Side::Lower), Answer::Passthrough(id));
    modes.release(7);
    modes.release(7);
    assert_eq!(open(&modes, 7, Side::Lower), Answer::Passthrough(id));
    assert_eq!(fake.out.lock().1.len(), 1);
}

#[test]
fn a_forgotten_inode_keeps_no_backing_file() {
    let (fake, modes) = modes(false);
    open(&modes, 7, Side::Upper);
    modes.may_be_mapped(7);
    assert!(!modes.keeps_attributes(7));
    modes.release(7);
    modes.forget(7);
    assert!(fake.out.lock().1.is_empty());
    assert!(modes.keeps_attributes(7));
}

#[test]
fn an_idle_inode_changes_its_backing() {
    let (fake, modes) = modes(false);
    let lower = open(&modes, 7, Side::Lower);
    modes.release(7);
    assert!(!modes.must_wait(7));
    let change = modes.change(7).unwrap();
    let upper = open(&modes, 7, Side::Upper);
    drop(change);
    assert_ne!(lower, upper);
    assert_eq!(fake.out.lock().1.len(), 1);
}

#[test]
fn a_change_waits_for_the_readers_of_a_library_file() {
    let (_, modes) = modes(false);
    open(&modes, 7, Side::Lower);
    assert!(modes.must_wait(7));
    assert!(modes.change(7).is_err(), "they keep it open");
    // Further readers share the number.
    assert!(matches!(open(&modes, 7, Side::Lower), Answer::Passthrough(_)));
    modes.release(7);
    let waiting = {
        let modes = Arc::clone(&modes);
        std::thread::spawn(move || modes.change(7).is_ok())
    };
    std::thread::sleep(Duration::from_millis(20));
    modes.release(7);
    assert!(waiting.join().unwrap());
}

#[test]
fn readers_that_come_during_a_change_are_cached() {
    let (fake, modes) = modes(false);
    open(&modes, 7, Side::Lower);
    modes.release(7);
    let change = modes.change(7).unwrap();
    assert_eq!(open(&modes, 7, Side::Lower), CACHED_AND_RIGHT);
    assert!(!modes.must_wait(7));
    assert_eq!(open(&modes, 7, Side::Upper), CACHED);
    drop(change);
    modes.release(7);
    modes.release(7);
    assert!(fake.out.lock().1.is_empty());
    assert!(matches!(open(&modes, 7, Side::Upper), Answer::Passthrough(_)));
    assert_eq!(modes.inodes.lock().changing.len(), 0);
}

#[test]
fn a_file_that_may_not_be_registered_is_cached_until_all_have_closed_it() {
    let (_, refused) = modes(true);
    assert_eq!(open(&refused, 7, Side::Lower), CACHED_AND_RIGHT);
    assert!(!refused.must_wait(7));
    assert_eq!(open(&refused, 7, Side::Upper), CACHED);

    let (_, modes) = modes(false);
    assert_eq!(modes.open(7, Side::Upper, None), CACHED);
    assert_eq!(open(&modes, 7, Side::Upper), CACHED);
    modes.release(7);
    modes.release(7);
    assert!(matches!(open(&modes, 7, Side::Upper), Answer::Passthrough(_)));
}

#[test]
fn more_idle_files_than_are_remembered_give_their_numbers_back() {
    let (fake, modes) = modes(false);
    for ino in 1..=IDLE_LIMIT.get() as u64 + 10 {
        open(&modes, ino, Side::Lower);
        modes.release(ino);
    }
    assert_eq!(fake.out.lock().1.len(), IDLE_LIMIT.get());
}

#[test]
fn a_release_without_an_open_has_no_effect() {
    let (_, modes) = modes(false);
    for handle in [0, 7, u64::MAX] {
        modes.modes.release(Handle::of(handle));
    }
    modes.forget(7);
    assert!(matches!(open(&modes, 7, Side::Upper), Answer::Passthrough(_)));
}

mod deaths;
