//! Parses what the mount helper reads: requests, and the administrator's files.
#![no_main]

use holofs_mount_helper::policy::{FuseConf, fuse_mounts};
use holofs_mount_helper::proto::{Reply, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for fds in 0..4 {
        if let Ok((request, sequence)) = Request::decode(data, fds) {
            assert_eq!(&request.encode(sequence)[..], data);
            assert_eq!(request.opcode().fds(), fds);
        }
    }
    if let Ok((reply, sequence)) = Reply::decode(data) {
        assert_eq!(&reply.encode(sequence)[..], data);
    }
    let text = String::from_utf8_lossy(data);
    let _ = FuseConf::parse(&text);
    assert!(fuse_mounts(&text) <= text.lines().count());
});
