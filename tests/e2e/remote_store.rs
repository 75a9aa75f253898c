//! Libraries in an object store, with a real one: its failures while files are read, and its secrets.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::common::store::Store;

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
