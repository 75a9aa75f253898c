use std::os::unix::fs::PermissionsExt;

use super::*;

/// A server in a directory with a path that is longer than that of a socket may be.
fn with_server(test: impl FnOnce(&Path)) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let state_dir = dir.path().join("x".repeat(120));
    std::fs::create_dir(&state_dir).unwrap();
    std::fs::set_permissions(&state_dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    let server = Server::listen(&state_dir).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            server.serve(&|request, line| match request {
                Request::Upgrade { .. } => Ok(Value::Null),
                Request::Ping => Ok(Value::from(7)),
                Request::Statistics | Request::ResetStatistics => Ok(Value::Null),
                Request::Reset { .. } => Err(Refused::Changing),
                Request::Freeze { ms: 13 } => panic!("a test"),
                Request::Freeze { ms } => {
                    line.say(Ok(Value::Null)).unwrap();
                    Ok(Value::from(line.wait(Duration::from_millis(ms))))
                }
            });
        });
        let result = catch_unwind(AssertUnwindSafe(|| test(&state_dir)));
        server.stop();
        result.unwrap();
    });
    assert!(!state_dir.join(NAME).exists());
}

fn ping(state_dir: &Path) -> Value {
    Client::connect(state_dir).unwrap().ask(&Request::Ping, PATIENCE).unwrap()
}

/// Sends bytes, and returns what comes back.
fn raw(state_dir: &Path, bytes: &[u8]) -> String {
    let dir = Dir::open(state_dir, Trust::Private).unwrap();
    let mut stream = connect(&dir).unwrap();
    // The server may have closed the connection before all was sent.
    drop(stream.write_all(bytes));
    drop(stream.shutdown(Shutdown::Write));
    let mut text = String::new();
    drop(stream.read_to_string(&mut text));
    text
}

#[test]
fn request_gets_its_answer() {
    with_server(|state_dir| assert_eq!(ping(state_dir), 7));
}

#[test]
fn garbage_is_refused_and_the_server_goes_on() {
    with_server(|state_dir| {
        for bytes in [
            &b""[..],
            b"\n",
            b"\xff\xfe\n",
            b"{}\n",
            b"[1,2]\n",
            b"{\"version\":1}\n",
            b"{\"version\":1,\"request\":{\"do\":\"no such\"}}\n",
            b"{\"version\":1,\"request\":{\"do\":\"freeze\",\"ms\":-1}}\n",
        ] {
            let text = raw(state_dir, bytes);
            assert!(text.contains("not-understood"), "{bytes:?}: {text}");
        }
        let text = raw(state_dir, b"{\"version\":2,\"request\":{\"do\":\"ping\"}}\n");
        assert!(text.contains("version"), "{text}");
        assert_eq!(ping(state_dir), 7);
    });
}

#[test]
fn long_line_is_refused() {
    with_server(|state_dir| {
        let answer = raw(state_dir, &vec![b' '; LONGEST_REQUEST + 100_000]);
        assert!(answer.contains("too long"), "{answer}");
        assert_eq!(ping(state_dir), 7);
    });
}

#[test]
fn panic_of_a_request_is_an_answer() {
    with_server(|state_dir| {
        let asked = Client::connect(state_dir).unwrap().ask(&Request::Freeze { ms: 13 }, PATIENCE);
        assert!(matches!(asked, Err(Error::Refused(Refused::Failed(_)))), "{asked:?}");
        assert_eq!(ping(state_dir), 7);
    });
}

#[test]
fn what_was_begun_ends_with_a_line_with_the_connection_or_in_time() {
    with_server(|state_dir| {
        let freeze = |ms| {
            let mut client = Client::connect(state_dir).unwrap();
            client.ask(&Request::Freeze { ms }, PATIENCE).unwrap();
            client
        };
        assert_eq!(freeze(60_000).finish(PATIENCE).unwrap(), true);
        drop(freeze(60_000));
        let late = freeze(1);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(late.finish(PATIENCE).unwrap(), false);
        assert_eq!(ping(state_dir), 7);
    });
}

#[test]
fn socket_of_a_killed_daemon_is_replaced() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    drop(UnixListener::bind(dir.path().join(NAME)).unwrap());
    assert!(matches!(Client::connect(dir.path()), Err(Error::NoControl(_))));
    let server = Server::listen(dir.path()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| server.serve(&|_, _| Ok(Value::from(1))));
        assert_eq!(ping(dir.path()), 1);
        server.stop();
    });
}

#[test]
fn client_leaves_a_daemon_that_does_not_answer() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let _server = Server::listen(dir.path()).unwrap();
    let mut client = Client::connect(dir.path()).unwrap();
    let asked = client.ask(&Request::Ping, Duration::from_millis(50));
    assert!(matches!(asked, Err(Error::NoAnswer { .. })), "{asked:?}");
}

#[test]
fn nothing_is_done_for_a_client_that_has_gone() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let server = Server::listen(dir.path()).unwrap();
    let mut gone = Client::connect(dir.path()).unwrap();
    gone.send(&Asked { version: VERSION, request: Request::Statistics }).unwrap();
    drop(gone);
    let asked = parking_lot::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            server.serve(&|request, _| {
                asked.lock().push(request);
                Ok(Value::Null)
            });
        });
        // Connections are served in turn.
        let answer = Client::connect(dir.path()).and_then(|mut client| client.ask(&Request::Ping, PATIENCE));
        server.stop();
        assert_eq!(answer.unwrap(), Value::Null);
    });
    assert_eq!(*asked.lock(), [Request::Ping]);
}

/// Root may ask any daemon, so the peer is an ordinary user and the daemon root.
#[test]
fn other_users_are_refused() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let server = Server::listen(dir.path()).unwrap();
    std::fs::set_permissions(dir.path().join(NAME), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| server.serve(&|_, _| Ok(Value::from(1))));
        // Only this thread becomes another user.
        let place = dir.path().join(NAME);
        let text = std::thread::spawn(move || {
            let other = rustix::process::Uid::from_raw(12345);
            rustix::thread::set_thread_res_uid(other, other, other).unwrap();
            let mut stream = UnixStream::connect(place).unwrap();
            let mut text = [0; 1024];
            let len = stream.read(&mut text).unwrap();
            String::from_utf8_lossy(&text[..len]).into_owned()
        })
        .join();
        server.stop();
        let text = text.unwrap();
        assert!(text.contains("peer") && !text.contains("Ok"), "{text}");
    });
}
