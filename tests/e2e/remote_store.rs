//! Libraries in an object store, with a real one: its failures while files are read, and its secrets.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::common::store::{SECRET, Store};
use crate::common::{Library, Mounted, World};

/// Sends a request without a signature, and returns the first line of the answer.
fn unsigned(store: &Store) -> std::io::Result<String> {
    let (_, address) = store.environment().into_iter().find(|(name, _)| *name == "AWS_ENDPOINT_URL").unwrap();
    let address = address.strip_prefix("http://").unwrap().to_owned();
    let mut stream = TcpStream::connect(&address)?;
    stream.set_read_timeout(Some(Duration::from_millis(300)))?;
    write!(stream, "GET /tests?list-type=2 HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = [0; 64];
    let len = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..len]).lines().next().unwrap_or_default().to_owned())
}

/// The tests that follow are worth something only if the store checks signatures, hangs, dies and comes back.
#[test]
fn the_store_of_the_tests_is_real() {
    let mut store = Store::own();
    assert!(unsigned(&store).unwrap().contains("403"));
    store.hang();
    assert_eq!(unsigned(&store).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    store.go_on();
    assert!(unsigned(&store).unwrap().contains("403"));
    store.kill();
    assert_eq!(unsigned(&store).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    store.restart();
    assert!(unsigned(&store).unwrap().contains("403"));
    assert!(unsigned(Store::shared()).unwrap().contains("403"));
    assert!(!store.objects(&store.url()).exists());
}

/// A library with files that are fetched one by one: large ones stand alone in the store, and many small ones are in packs.
fn library() -> Library {
    let mut library = Library::sample();
    for number in 0..LARGE {
        library = library.file(&format!("large/{number}"), &content(number, 3 << 20));
    }
    for number in 0..400 {
        library = library.file(&format!("small/{number}"), &content(1000 + number, 10_000));
    }
    library
}

const LARGE: u32 = 6;

/// Bytes that do not compress, different for each seed.
fn content(seed: u32, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut out: Vec<u8> = std::iter::repeat_with(&mut next).take(len.div_ceil(8)).flatten().collect();
    out.truncate(len);
    out
}

/// A world with an empty library whose commands find the store.
fn worker(store: &Store) -> World {
    let mut world = World::new();
    std::fs::create_dir_all(world.home()).unwrap();
    world.variables = store.environment().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    world
}

/// Pushes the library from a machine of its own, and returns the URL.
fn pushed(store: &Store, library: &Library) -> String {
    let builder = worker(store);
    builder.add(library);
    let url = store.url();
    let done = builder.run(["push".as_ref(), builder.hololib().as_os_str(), url.as_ref()]);
    assert_eq!(done.code, 0, "{done:?}");
    url
}

#[track_caller]
fn mount<'w>(world: &'w World, url: &str, args: &[&str]) -> Mounted<'w> {
    Mounted::by(world, "space", world.holofs().args(["--json", "mount", url, "space"]).args(args))
}

/// Reads files in threads, and disturbs the store while they do. Returns what each read gave.
fn read_while(
    space: &Mounted<'_>,
    paths: &[String],
    disturb: impl FnOnce(),
) -> Vec<std::io::Result<Vec<u8>>> {
    std::thread::scope(|scope| {
        let reads: Vec<_> =
            paths.iter().map(|path| scope.spawn(move || std::fs::read(space.at(path)))).collect();
        disturb();
        reads.into_iter().map(|read| read.join().unwrap()).collect()
    })
}

fn large() -> Vec<String> {
    (0..LARGE).map(|number| format!("large/{number}")).collect()
}

#[track_caller]
fn assert_large(read: Vec<std::io::Result<Vec<u8>>>) {
    for (number, bytes) in read.into_iter().enumerate() {
        assert!(bytes.unwrap() == content(u32::try_from(number).unwrap(), 3 << 20), "large/{number}");
    }
}

/// What is cached can be read while the store does not answer, and so can every name. The other reads wait, and go on.
#[test]
fn a_hanging_store_delays_only_what_it_must() {
    let store = Store::own();
    let url = pushed(&store, &library());
    let world = worker(&store);
    let space = mount(&world, &url, &[]);
    let known = std::fs::read(space.at("lib/data.bin")).unwrap();
    let read = read_while(&space, &large(), || {
        store.hang();
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(std::fs::read_dir(space.at("small")).unwrap().count(), 400);
        assert_eq!(std::fs::metadata(space.at("small/399")).unwrap().len(), 10_000);
        assert_eq!(std::fs::read(space.at("lib/data.bin")).unwrap(), known);
        std::fs::write(space.at("new"), "new").unwrap();
        assert_eq!(world.run(["status", "space"]).code, 0);
        store.go_on();
    });
    assert_large(read);
}

/// A store that dies while files are read, and comes back, is no error.
#[test]
fn a_killed_store_that_comes_back_is_no_error() {
    let mut store = Store::own();
    let url = pushed(&store, &library());
    let world = worker(&store);
    let space = mount(&world, &url, &[]);
    let read = read_while(&space, &large(), || {
        store.kill();
        std::thread::sleep(Duration::from_secs(1));
        store.restart();
    });
    assert_large(read);
    for number in 0..400 {
        assert_eq!(
            std::fs::read(space.at(format!("small/{number}"))).unwrap(),
            content(1000 + number, 10_000)
        );
    }
}

/// A store that stays away is EIO after the time limit, for what is not cached. Later reads succeed.
#[test]
fn a_dead_store_is_an_error_after_the_time_limit() {
    let mut store = Store::own();
    let url = pushed(&store, &library());
    let world = worker(&store);
    let space = mount(&world, &url, &["--remote-timeout", "1"]);
    let known = std::fs::read(space.at("lib/data.bin")).unwrap();
    store.kill();
    let read = read_while(&space, &large(), || ());
    let failed = read.iter().filter(|read| read.is_err()).count();
    assert!(failed > 0, "nothing had to be fetched");
    for (path, read) in large().iter().zip(read) {
        match read {
            Ok(bytes) => assert_eq!(bytes.len(), 3 << 20, "{path}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{path}")
            }
        }
    }
    assert_eq!(std::fs::read(space.at("lib/data.bin")).unwrap(), known);
    // One line a minute that it is silent, and one that reads fail, however many there are.
    let log = std::fs::read_to_string(space.state().join("log")).unwrap();
    let lines: Vec<&str> = log.lines().filter(|line| !line.contains(" INFO ")).collect();
    assert_eq!(lines.len(), 2, "{log}");
    store.restart();
    // A read just after one that failed is taken for the kernel's second request for it.
    std::thread::sleep(Duration::from_millis(300));
    assert_large(read_while(&space, &large(), || ()));
}

/// A wrong key is one line and the exit code of a refusal, for every command that talks to the store.
#[test]
fn a_wrong_key_is_one_line() {
    let store = Store::shared();
    let library = Library::sample();
    let url = pushed(store, &library);
    let mut world = worker(store);
    world.add(&library);
    for (name, value) in &mut world.variables {
        if name == "AWS_SECRET_ACCESS_KEY" {
            *value = WRONG.to_owned();
        }
    }
    let (home, hololib) = (world.home(), world.hololib());
    let (home, hololib) = (home.to_str().unwrap(), hololib.to_str().unwrap());
    for args in [
        vec!["mount", &url, "space"],
        vec!["push", hololib, &url],
        vec!["pull", &url, home],
        vec!["warm", &url],
    ] {
        let done = world.run(&args);
        assert_eq!((done.code, done.stdout.as_str()), (DENIED, ""), "{args:?}: {done:?}");
        let lines: Vec<&str> = done.stderr.lines().collect();
        assert_eq!(lines.len(), 2, "{args:?}: {done:?}");
        assert!(lines[0].starts_with("holofs: ") && lines[1].starts_with("  try: "), "{args:?}: {done:?}");
        assert!(!done.stderr.contains(WRONG), "{args:?}: {done:?}");
    }
}

const WRONG: &str = "wr0ng-1b7d5e90c3a84f62b8e1d0f7a6c59432";
/// The exit code when a right is missing.
const DENIED: i32 = 3;

/// The secret is in no file that a mount writes, in no output and in no argument, also with the longest log.
#[test]
fn secrets_are_nowhere() {
    let store = Store::shared();
    let url = pushed(store, &library());
    let world = worker(store);
    let mut command = world.holofs();
    command.args(["--json", "--trace", "--log-file"]).arg(world.path().join("mount.log"));
    let space = Mounted::by(&world, "space", command.args(["mount", &url, "space"]));
    std::fs::read(space.at("large/0")).unwrap();
    let mut texts = vec![space.output.to_string()];
    for args in [["status", "space"], ["stats", "space"], ["config", "--json"], ["--trace", "doctor"]] {
        let done = world.run(args);
        texts.extend([done.stdout, done.stderr]);
    }
    for pid in [space.pid(), space.server()] {
        texts.push(std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap());
    }
    for path in crate::common::files_below(world.path()) {
        let bytes = std::fs::read(world.path().join(&path)).unwrap();
        texts.push(format!("{}: {}", path.display(), String::from_utf8_lossy(&bytes)));
    }
    for text in texts {
        assert!(!text.contains(SECRET), "{}", &text[..text.len().min(2000)]);
    }
}
