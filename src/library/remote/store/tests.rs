use std::io::{Cursor, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::settings::Setting;
use crate::settings::remote::Secret;

fn settings(seconds: f64) -> RemoteSettings {
    RemoteSettings { timeout: Setting::flag(Duration::from_secs_f64(seconds)), ..RemoteSettings::default() }
}

fn local(dir: &std::path::Path) -> Arc<dyn Objects> {
    Store::open(&format!("file://{}/a store/x", dir.display()), &settings(5.0)).unwrap()
}

#[test]
fn objects_of_a_directory_are_written_read_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    let store = local(dir.path());
    assert_eq!(store.list("packs").unwrap(), []);
    assert!(matches!(store.get("packs/a", None, 10), Err(StoreError::NotFound { .. })));
    store.put("packs/a", b"0123456789".to_vec()).unwrap();
    assert_eq!(store.get("packs/a", None, 10).unwrap(), b"0123456789");
    assert_eq!(store.get("packs/a", Some(2..5), 3).unwrap(), b"234");
    assert_eq!(store.get("packs/a", Some(2..2), 3).unwrap(), b"");
    for (range, limit) in [(None, 9), (Some(2..6), 3), (Some(5..11), 99), (Some(20..21), 99)] {
        let got = store.get("packs/a", range.clone(), limit);
        assert!(matches!(got, Err(StoreError::Refused { .. })), "{range:?}: {got:?}");
    }
    store.put("packs/b", Vec::new()).unwrap();
    let mut listed = store.list("packs").unwrap();
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    let listed: Vec<_> = listed.iter().map(|found| (&*found.name, found.bytes)).collect();
    assert_eq!(listed, [("a", 10), ("b", 0)]);
    store.pause();
    assert_eq!(store.get("packs/a", None, 10).unwrap(), b"0123456789");
    assert_eq!(std::fs::read(dir.path().join("a store/x/packs/a")).unwrap(), b"0123456789");
}

#[test]
fn a_large_object_is_written_in_parts_or_not_at_all() {
    struct Broken(Cursor<Vec<u8>>);
    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::Error::other("broken")),
                n => Ok(n),
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let store = local(dir.path());
    for len in [0, 10, PART, PART + 1, 5 * PART + 12345] {
        let content: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        let name = format!("blobs/{len}");
        store.put_large(&name, &mut Cursor::new(&content)).unwrap();
        assert!(store.get(&name, None, u64::MAX).unwrap() == content, "{len}");
        let failed = store.put_large("blobs/broken", &mut Broken(Cursor::new(content)));
        assert!(matches!(failed, Err(StoreError::Content { .. })), "{failed:?}");
    }
    assert!(matches!(store.get("blobs/broken", None, 10), Err(StoreError::NotFound { .. })));
    assert!(store.counters().unwrap().counts().sent > 6 * PART as u64);
}

/// Answers each connection by the function, which gets its number and the request's head.
fn server(answer: impl Fn(usize, &str, &mut TcpStream) + Send + 'static) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
    let theirs = Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            answer(theirs.fetch_add(1, Ordering::SeqCst), &String::from_utf8_lossy(&head), &mut stream);
        }
    });
    (port, count)
}

const DATE: &str = "Last-Modified: Thu, 07 Jan 2021 06:13:20 GMT\r\nConnection: close\r\n";

fn write(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).ok();
}

/// The range that a request asks for.
fn asked(head: &str) -> Option<(usize, usize)> {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with("range:"))?;
    let (first, last) = line.split_once("bytes=")?.1.split_once('-')?;
    Some((first.parse().ok()?, last.trim().parse::<usize>().ok()? + 1))
}

#[test]
fn errors_that_pass_are_waited_for_and_a_cut_body_is_continued() {
    let content: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    let sent = content.clone();
    let (port, count) = server(move |number, head, stream| match number {
        0 => write(stream, "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        1 => {}
        _ => {
            let (start, end) = asked(head).unwrap();
            let len = end - start;
            let range = format!("Content-Range: bytes {start}-{}/{}\r\n", end - 1, sent.len());
            write(stream, &format!("HTTP/1.1 206 Partial\r\nContent-Length: {len}\r\n{range}{DATE}\r\n"));
            // All but the last piece is cut.
            let some = len.min(40_000);
            stream.write_all(&sent[start..start + some]).ok();
        }
    });
    let store = Store::open(&format!("http://127.0.0.1:{port}/x"), &settings(20.0)).unwrap();
    let got = store.get("packs/a", Some(10..99_990), 1 << 20).unwrap();
    assert!(got == content[10..99_990]);
    let counts = store.counters().unwrap().counts();
    assert_eq!(counts.requests, count.load(Ordering::SeqCst) as u64);
    assert!(counts.requests >= 5 && counts.received == 99_980 && counts.silent_since.is_none(), "{counts:?}");
}

#[test]
fn what_is_not_there_or_forbidden_is_said_at_once() {
    let (port, count) = server(|_, head, stream| {
        let status = match head {
            head if head.contains("secret") => "403 Forbidden",
            head if head.contains("unknown") => "501 Not Implemented",
            _ => "404 Not Found",
        };
        write(stream, &format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
    });
    let store = Store::open(&format!("http://127.0.0.1:{port}/x"), &settings(60.0)).unwrap();
    assert!(matches!(store.get("heads/none", None, 10), Err(StoreError::NotFound { .. })));
    assert!(matches!(store.get("heads/secret", None, 10), Err(StoreError::Denied { .. })));
    assert!(matches!(store.get("heads/unknown", None, 10), Err(StoreError::Refused { .. })));
    assert!(count.load(Ordering::SeqCst) <= 5);
}

#[test]
fn a_store_that_sends_too_much_or_too_little_is_refused() {
    let (port, _) = server(|_, head, stream| {
        // A server that does not know ranges, and one that gives another range.
        let answer = match asked(head) {
            Some(_) if head.contains("whole") => {
                format!("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n{DATE}\r\n01234567")
            }
            _ => format!("HTTP/1.1 206 P\r\nContent-Length: 2\r\nContent-Range: bytes 4-5/9\r\n{DATE}\r\n45"),
        };
        write(stream, &answer);
    });
    let store = Store::open(&format!("http://127.0.0.1:{port}/x"), &settings(2.0)).unwrap();
    for name in ["packs/whole", "packs/other"] {
        let got = store.get(name, Some(2..6), 10);
        assert!(matches!(got, Err(StoreError::Refused { .. })), "{got:?}");
    }
}

#[test]
fn a_store_that_does_not_answer_is_given_up() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let store = Store::open(&format!("http://127.0.0.1:{port}/x"), &settings(0.5)).unwrap();
    let error = store.get("packs/a", None, 10).unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("no connection: Connection refused"), "{error}");
    let counts = store.counters().unwrap().counts();
    assert!(counts.retries > 0 && counts.failures == 1 && counts.silent_since.is_some(), "{counts:?}");
}

/// Nothing of the keys is in the errors of a store that repeats all that it got.
#[test]
fn errors_hold_no_secret() {
    let (port, _) = server(|number, head, stream| {
        let status = ["400 Bad Request", "403 Forbidden", "301 Moved", "404 Not Found"][number % 4];
        let body =
            format!("<Error><Code>SignatureDoesNotMatch</Code><M>AKIAEXAMPLE s3cr3t {head}</M></Error>");
        let len = body.len();
        write(
            stream,
            &format!("HTTP/1.1 {status}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}"),
        );
    });
    let mut settings = settings(2.0);
    let endpoint = format!("http://127.0.0.1:{port}");
    settings.variables = [
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "s3cr3t"),
        ("AWS_SESSION_TOKEN", "t0k3n"),
        ("AWS_ENDPOINT_URL", &*endpoint),
        ("AWS_REGION", "here"),
    ]
    .map(|(name, value)| (name, Secret(value.into())))
    .to_vec();
    let store = Store::open("s3://bucket/x", &settings).unwrap();
    let mut texts = Vec::new();
    for _ in 0..4 {
        let error = store.get("packs/a", Some(0..4), 10).unwrap_err();
        texts.push(format!("{error} {error:?} {store:?}"));
        let error = store.put("packs/a", vec![1]).unwrap_err();
        texts.push(format!("{error} {error:?}"));
        let error = store.list("packs").unwrap_err();
        texts.push(format!("{error} {error:?}"));
    }
    for text in &texts {
        for secret in ["AKIAEXAMPLE", "s3cr3t", "t0k3n", "Signature=", "AWS4", "Credential"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
    assert!(texts.iter().any(|text| text.contains("403 Forbidden (SignatureDoesNotMatch)")), "{texts:?}");
    assert!(texts.iter().any(|text| text.contains("s3://bucket/x/packs/a")), "{texts:?}");
}

#[test]
fn offline_asks_nobody() {
    let (port, count) = server(|_, _, _| {});
    let mut settings = settings(5.0);
    settings.offline = Setting::flag(true);
    let store = Store::open(&format!("http://127.0.0.1:{port}/x"), &settings).unwrap();
    assert!(matches!(store.get("packs/a", None, 10), Err(StoreError::Offline { .. })));
    assert_eq!(count.load(Ordering::SeqCst), 0);
}
