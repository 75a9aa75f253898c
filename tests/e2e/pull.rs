//! `holofs pull`: from object stores, and from servers of rcc.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::common::fixture::gunzip;
use crate::common::{Library, World, files_below};

fn library() -> Library {
    let file = |n: u32| (format!("lib/pkg{}/file{n}.py", n % 5), format!("# {n}\n").repeat(200));
    let library =
        (0..60).map(file).fold(Library::sample(), |all, (path, text)| all.file(&path, text.as_bytes()));
    library.file("lib/large.bin", &crate::common::library::pattern(6 << 20))
}

fn second() -> Library {
    library().named("second").file("lib/pkg3/new.py", b"print('new')\n")
}

/// The content of the blobs and catalogs of a library. All of them are packed as rcc does.
fn content(hololib: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let of =
        |dir: &'static str| files_below(&hololib.join(dir)).into_iter().map(|path| Path::new(dir).join(path));
    let files =
        of("library").chain(of("catalog").filter(|path| path.extension().is_none_or(|end| end != "info")));
    let unpacked = |path: PathBuf| {
        let stored = std::fs::read(hololib.join(&path)).unwrap();
        // rcc and holofs write no name and no time into the header.
        assert_eq!(&stored[..4], [0x1f, 0x8b, 8, 0], "{}", path.display());
        (path, gunzip(&stored))
    };
    files.map(unpacked).collect()
}

/// A world with both environments, pushed to a directory.
fn pushed() -> (World, PathBuf, String) {
    let world = World::with(&library());
    world.add(&second());
    let dir = world.path().join("store");
    let url = format!("file://{}", dir.display());
    world.json(["push", "auto", &url]);
    (world, dir, url)
}

#[test]
fn a_library_comes_back_whole() {
    let (world, _, url) = pushed();
    let to = world.path().join("copy");
    let to_text = to.to_str().unwrap();
    // First one, then the other, then both again.
    let done = world.json(["pull", &url, to_text, &library().hash()]);
    assert_eq!(done["catalogs"][0]["outcome"], "new", "{done}");
    assert_eq!(done["blobs_new"], done["blobs_total"]);
    let done = world.json(["pull", &url, to_text, &second().hash()[..8]]);
    assert_eq!(done["blobs_new"].as_u64(), Some(2), "{done}");
    assert!(content(&to.join("hololib")) == content(&world.hololib()));
    let before = content(&to.join("hololib"));
    let done = world.run(["pull", &url, to_text]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("pulled 2 catalogs; 0 of"), "{done:?}");
    assert_eq!(done.stdout.lines().count(), 2);
    assert!(content(&to.join("hololib")) == before);
    assert_eq!(world.json(["check", to_text])["catalogs"].as_u64(), Some(2));
}

#[test]
fn a_raw_library_comes_back_as_it_was() {
    let world = World::with(&library().raw());
    let (store, to) = (world.path().join("store"), world.path().join("copy"));
    let url = format!("file://{}", store.display());
    world.json(["push", "auto", &url]);
    world.json(["pull", &url, to.to_str().unwrap()]);
    let blobs = |hololib: &Path| {
        let library = hololib.join("library");
        files_below(&library)
            .into_iter()
            .map(|path| (path.clone(), std::fs::read(library.join(path)).unwrap()))
            .collect()
    };
    let (pulled, pushed): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (blobs(&to.join("hololib")), blobs(&world.hololib()));
    assert!(pulled == pushed && pushed.len() > 60);
}

#[test]
fn what_was_changed_in_the_store_is_not_pulled() {
    for damage in ["pack", "blob", "catalog", "gone"] {
        let (world, dir, url) = pushed();
        let only = |kind: &str| dir.join(kind).join(files_below(&dir.join(kind)).first().unwrap());
        let (path, code) = match damage {
            "pack" | "gone" => (only("packs"), 11),
            "blob" => (only("zstd"), 11),
            _ => (only("catalogs"), 11),
        };
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 0x55;
        match damage {
            "gone" => std::fs::remove_file(&path).unwrap(),
            _ => std::fs::write(&path, &bytes).unwrap(),
        }
        let to = world.path().join("copy");
        let done = world.run(["pull", &url, to.to_str().unwrap()]);
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{damage}: {done:?}");
        assert!(files_below(&to.join("hololib/catalog")).is_empty(), "{damage}");
    }
}

#[test]
fn what_cannot_be_pulled_is_said_in_one_line() {
    let (world, _, url) = pushed();
    let nowhere = format!("{url}-nowhere");
    for (url, args, code, word) in [
        (url.as_str(), &["fff"][..], 6, "no catalog fff"),
        (&nowhere, &[], 6, "no environment is there"),
        ("rcc+http://127.0.0.1:1", &[], 2, "cannot tell which catalogs"),
        ("rcc+http://127.0.0.1:1", &["fff"], 2, "not the hash of a blueprint"),
        ("rcc+http://me:s3cr3t@127.0.0.1:1", &["fff"], 2, "credentials"),
        ("rcc", &["0123456789abcdef"], 4, "RCC_REMOTE_ORIGIN"),
        ("rcc+http://127.0.0.1:1", &["0123456789abcdef", "--remote-timeout", "0.3"], 3, "does not answer"),
    ] {
        let done = world.run([&["pull", url, "copy"][..], args].concat());
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{url} {args:?}: {done:?}");
        assert!(done.stderr.contains(word) && !done.stderr.contains("s3cr3t"), "{url}: {done:?}");
        assert_eq!(done.stderr.lines().filter(|line| line.starts_with("holofs: ")).count(), 1, "{done:?}");
    }
}

/// A request to the fake server: the path, the authorization and the body.
type Asked = (String, Option<String>, String);

/// A server with rcc's protocol, which answers by the function: the status, and the body.
fn server(
    answer: impl Fn(usize, &Asked) -> (u16, Vec<u8>) + Send + 'static,
) -> (String, Arc<Mutex<Vec<Asked>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("rcc+http://{}", listener.local_addr().unwrap());
    let all = Arc::new(Mutex::new(Vec::new()));
    let theirs = Arc::clone(&all);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let asked = request(&mut stream);
            let number = theirs.lock().unwrap().len();
            let (status, body) = answer(number, &asked);
            theirs.lock().unwrap().push(asked);
            let head =
                format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).ok();
        }
    });
    (url, all)
}

fn request(stream: &mut TcpStream) -> Asked {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let header = |name: &str| {
        let found = head
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)));
        found.map(|(_, value)| value.trim().to_owned())
    };
    let mut body = vec![0; header("content-length").map_or(0, |len| len.parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    (path, header("authorization"), String::from_utf8(body).unwrap())
}

/// The digests of a library's blobs, as the server lists them.
fn parts(hololib: &Path) -> Vec<u8> {
    let names = files_below(&hololib.join("library")).into_iter();
    let names: Vec<String> =
        names.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    names.join("\n").into_bytes()
}

#[test]
fn an_environment_comes_from_a_server_of_rcc() {
    let world = World::with(&library());
    world.add(&second());
    let export = |name: &str, library: &Library| {
        let zip = world.path().join(name);
        assert_eq!(world.run(["export", "auto", &library.hash(), "-z", zip.to_str().unwrap()]).code, 0);
        std::fs::read(zip).unwrap()
    };
    let (first, other) = (export("a.zip", &library()), export("b.zip", &second()));
    let all = parts(&world.hololib());
    // The server's defect: its first archive is that of another catalog.
    let (url, asked) = server(move |number, (path, ..)| match (number, path.starts_with("/parts/")) {
        (_, true) => (200, all.clone()),
        (1, _) => (200, other.clone()),
        _ => (200, first.clone()),
    });
    let to = world.path().join("copy");
    let pull = |url: &str| {
        let mut command = world.holofs();
        command
            .args(["pull", url, to.to_str().unwrap(), &library().hash()])
            .env("RCC_REMOTE_AUTHORIZATION", "Basic c2VjcmV0");
        crate::common::world::finish(command.env("RCC_REMOTE_ORIGIN", url.trim_start_matches("rcc+")))
    };
    let done = pull(&url);
    assert_eq!((done.code, done.stdout), (0, format!("{}\n", library().hash())), "{}", done.stderr);
    assert_eq!(world.json(["check", to.to_str().unwrap()])["catalogs"].as_u64(), Some(1));
    let asked_first = std::mem::take(&mut *asked.lock().unwrap());
    let paths: Vec<&str> = asked_first.iter().map(|(path, ..)| path.split('/').nth(1).unwrap()).collect();
    assert_eq!(paths, ["parts", "delta", "delta"]);
    assert!(
        asked_first.iter().all(|(_, authorization, _)| authorization.as_deref() == Some("Basic c2VjcmV0"))
    );
    assert!(
        asked_first[1].0.ends_with(&format!("{}v12.linux_amd64", library().hash()))
            || cfg!(target_arch = "aarch64")
    );
    assert_eq!(asked_first[1].2.lines().count(), files_below(&world.hololib().join("library")).len());
    // The second time only what the library lacks is asked for: the blobs of the other catalog.
    let done = pull("rcc");
    assert_eq!(done.code, 2, "the origin has to be a URL: {done:?}");
    let done = crate::common::world::finish(
        world
            .holofs()
            .args(["pull", "rcc", to.to_str().unwrap(), &library().hash(), "--json"])
            .env("RCC_REMOTE_ORIGIN", url.trim_start_matches("rcc+")),
    );
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("\"blobs_new\": 0"), "{done:?}");
    let asked = asked.lock().unwrap();
    let delta = asked.iter().find(|(path, ..)| path.starts_with("/delta/")).unwrap();
    assert_eq!(delta.2.lines().count(), 2, "{delta:?}");
}

#[test]
fn a_server_of_rcc_that_gives_something_else_is_refused() {
    let world = World::with(&library());
    let zip = world.path().join("a.zip");
    assert_eq!(world.run(["export", "auto", "--all", "-z", zip.to_str().unwrap()]).code, 0);
    let (zip, all) = (std::fs::read(zip).unwrap(), parts(&world.hololib()));
    let hash = second().hash();
    for (status, delta, code, word) in [
        (404, None, 3, "no such object"),
        (409, None, 3, "would ask itself"),
        (403, None, 3, "access denied"),
        (200, Some((500, Vec::new())), 3, "lacks a blob"),
        (200, Some((200, zip)), 3, "another catalog"),
        (200, Some((200, b"no archive".to_vec())), 3, "zip"),
    ] {
        let all = all.clone();
        let (url, _) = server(move |_, (path, ..)| match path.starts_with("/parts/") {
            true => (status, all.clone()),
            false => delta.clone().unwrap(),
        });
        let to = world.path().join(format!("copy-{status}-{}", word.len()));
        let done = world.run(["pull", &url, to.to_str().unwrap(), &hash]);
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{word}: {done:?}");
        assert!(done.stderr.contains(word), "{word}: {done:?}");
        assert!(
            !to.exists() || files_below(&to).iter().all(|path| !path.starts_with("hololib/catalog")),
            "{word}"
        );
    }
}
