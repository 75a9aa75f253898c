//! Tests every message, every way to damage a message, and random bytes.

use proptest::prelude::*;

use super::*;

fn source() -> MountSource {
    MountSource::new("holofs:720c7a8_5a1fac3_700be151@702.b34fd").unwrap()
}

fn requests() -> Vec<Request> {
    let mut all = vec![
        Request::Hello { version: 1 },
        Request::Hello { version: u16::MAX },
        Request::BackingOpen,
        Request::BackingClose { id: BackingId::new(1).unwrap() },
        Request::BackingClose { id: BackingId::new(i32::MAX as u32).unwrap() },
    ];
    let source = source();
    all.extend((0..64).map(|bits| Request::Mount { flags: MountFlags::of(bits).unwrap(), source }));
    all
}

fn replies() -> Vec<Reply> {
    let mut all = vec![
        Reply::Hello { version: 1 },
        Reply::Mounted,
        Reply::BackingOpened { id: BackingId::new(7).unwrap() },
        Reply::BackingClosed,
        Reply::NotUnderstood,
    ];
    for opcode in Opcode::ALL {
        all.push(Reply::Failed { opcode, errno: 1 });
        all.push(Reply::Failed { opcode, errno: 4095 });
        all.extend(Deny::ALL.iter().copied().map(|reason| Reply::Denied { opcode, reason }));
    }
    all
}

fn wrong(what: &str) -> ProtoError {
    ProtoError(what.into())
}

/// `bytes`, overwritten with `new` at an offset.
fn with<const SIZE: usize>(mut bytes: [u8; SIZE], at: usize, new: &[u8]) -> [u8; SIZE] {
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

#[test]
fn every_message_comes_back() {
    for sequence in [0, 1, u64::MAX] {
        for request in requests() {
            let bytes = request.encode(sequence);
            assert_eq!(Request::decode(&bytes, request.opcode().fds()), Ok((request, sequence)));
        }
        for reply in replies() {
            let sequence = if reply == Reply::NotUnderstood { 0 } else { sequence };
            assert_eq!(Reply::decode(&reply.encode(sequence)), Ok((reply, sequence)));
        }
    }
}

#[test]
fn the_encoding_never_changes() {
    let close = Request::BackingClose { id: BackingId::new(0x0102_0304).unwrap() };
    let sequence = 0x0102_0304_0506_0708;
    let wanted = *b"HfsQ\x02\0\x04\0\0\0\0\0\x04\x03\x02\x01\x08\x07\x06\x05\x04\x03\x02\x01";
    assert_eq!(close.encode(sequence), with([0; REQUEST_SIZE], 0, &wanted));
    let wanted = *b"HfsR\x02\0\x02\0\x02\0\0\0\x0d\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01\0\0\0\0\0\0\0\0";
    assert_eq!(Reply::Failed { opcode: Opcode::Mount, errno: 13 }.encode(sequence), wanted);
    let flags = MountFlags { read_only: true, allow_other: true, sync: true, ..MountFlags::default() };
    let mount = Request::Mount { flags, source: source() }.encode(7);
    assert_eq!(mount[8..12], [0b1_0101, 0, 0, 0]);
    assert_eq!(&mount[24..40], b"holofs:720c7a8_5");
    assert_eq!(mount.len(), 328);
}

#[test]
fn other_sizes_are_refused() {
    let bytes = Request::BackingOpen.encode(7);
    let longer = [&bytes[..], &[0]].concat();
    for size in 0..REQUEST_SIZE {
        assert_eq!(Request::decode(&bytes[..size], 1), Err(wrong(&format!("a message of {size} bytes"))));
    }
    assert_eq!(Request::decode(&longer, 1), Err(wrong("a message of 329 bytes")));
    let reply = [&Reply::BackingClosed.encode(7)[..], &[0]].concat();
    for size in (0..REPLY_SIZE).chain([REPLY_SIZE + 1]) {
        assert_eq!(Reply::decode(&reply[..size]), Err(wrong(&format!("a message of {size} bytes"))));
    }
}

#[test]
fn each_field_of_a_request_is_checked() {
    let hello = Request::Hello { version: 1 }.encode(7);
    let mount = Request::Mount { flags: MountFlags::default(), source: source() }.encode(7);
    let open = Request::BackingOpen.encode(7);
    let close = Request::BackingClose { id: BackingId::new(1).unwrap() }.encode(7);
    let field = ProtoError::field;
    for (bytes, fds, error) in [
        (with(hello, 0, b"HfsR"), 0, wrong("not a message of the mount helper's protocol")),
        (with(hello, 4, &[1, 0]), 0, wrong("protocol version 1 instead of 2")),
        (with(hello, 4, &[0, 0]), 0, wrong("protocol version 0 instead of 2")),
        (with(hello, 6, &[0, 0]), 0, wrong("unknown opcode 0")),
        (with(hello, 6, &[5, 0]), 0, wrong("unknown opcode 5")),
        (with(hello, 8, &[1]), 0, field("the flags")),
        (with(hello, 12, &[0]), 0, field("the version")),
        (with(hello, 14, &[1]), 0, field("the version")),
        (with(mount, 8, &[64]), 1, field("the flags")),
        (with(mount, 11, &[0x80]), 1, field("the flags")),
        (with(mount, 12, &[1]), 1, field("the id")),
        (with(mount, 24, b"H"), 1, field("the source")),
        (with(mount, 31, b"\0"), 1, field("the source")),
        (with(mount, 32, b"\n"), 1, field("the source")),
        (with(mount, 32, b"\xff"), 1, field("the source")),
        (with(mount, REQUEST_SIZE - 1, b"x"), 1, field("the source")),
        (with(open, 8, &[1]), 1, field("the flags")),
        (with(open, 12, &[1]), 1, field("the id")),
        (with(close, 12, &[0]), 0, field("the id")),
        (with(close, 15, &[0x80]), 0, field("the id")),
        (with(close, 24, &[1]), 0, field("the padding")),
        (with(close, 31, &[1]), 0, field("the padding")),
        (with(close, REQUEST_SIZE - 1, &[1]), 0, field("the padding")),
    ] {
        assert_eq!(Request::decode(&bytes, fds), Err(error), "{bytes:?}");
    }
}

#[test]
fn a_source_is_ours_and_printable() {
    let longest = format!("holofs:{}", "x".repeat(SOURCE_SIZE - 7));
    assert_eq!(MountSource::new(&longest).unwrap().as_str(), longest);
    for text in ["", "holofs:", "/dev/sda1", "holofs:a\0b", "holofs:a\x7f", "holofs:\u{85}"] {
        assert_eq!(MountSource::new(text), None, "{text:?}");
    }
    assert_eq!(MountSource::new(&format!("{longest}x")), None);
    assert_eq!(MountSource::new("holofs:Grüße an alle").unwrap().as_str(), "holofs:Grüße an alle");
}

#[test]
fn a_request_brings_exactly_its_descriptors() {
    for request in requests() {
        let wanted = request.opcode().fds();
        for got in (0..4).filter(|got| *got != wanted) {
            let error = wrong(&format!("{got} file descriptors instead of {wanted}"));
            assert_eq!(Request::decode(&request.encode(7), got), Err(error));
        }
    }
}

#[test]
fn each_field_of_a_reply_is_checked() {
    let mounted = Reply::Mounted.encode(7);
    let denied = Reply::Denied { opcode: Opcode::Mount, reason: Deny::NotGreeted }.encode(7);
    let failed = Reply::Failed { opcode: Opcode::Mount, errno: 1 }.encode(7);
    let field = ProtoError::field;
    for (bytes, error) in [
        (with(mounted, 0, b"HfsQ"), wrong("not a message of the mount helper's protocol")),
        (with(mounted, 6, &[9]), wrong("unknown opcode 9")),
        (with(mounted, 8, &[4]), wrong("unknown status 4")),
        (with(mounted, 12, &[1]), field("the detail")),
        (with(mounted, 24, &[1]), field("the padding")),
        (with(denied, 12, &[0]), field("the reason")),
        (with(denied, 13, &[1]), field("the reason")),
        (with(failed, 12, &[0]), field("the errno")),
        (with(failed, 12, &[0, 0x10]), field("the errno")),
        (with(Reply::NotUnderstood.encode(0), 16, &[1]), field("the sequence number")),
        (with(Reply::NotUnderstood.encode(0), 6, &[1]), field("the opcode")),
        (with(Reply::NotUnderstood.encode(0), 12, &[1]), field("the detail")),
        (with(Reply::Hello { version: 1 }.encode(7), 12, &[0]), field("the version")),
        (with(Reply::BackingOpened { id: BackingId::new(1).unwrap() }.encode(7), 12, &[0]), field("the id")),
    ] {
        assert_eq!(Reply::decode(&bytes), Err(error), "{bytes:?}");
    }
}

/// Nearly valid messages, so that many reach the later checks.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let small = prop_oneof![3 => Just(0u8), 2 => 0..6u8, 1 => any::<u8>()];
    let fields = prop::collection::vec(small, 10..=10);
    (
        prop_oneof![Just(REQUEST), Just(REPLY)],
        fields,
        any::<prop::sample::Index>(),
        any::<u8>(),
        any::<bool>(),
    )
        .prop_map(|(magic, fields, at, byte, spoil)| {
            let mut bytes = [&magic[..], &VERSION.to_le_bytes(), &fields].concat();
            let is_mount = bytes[6] == 2;
            bytes.resize(if magic == REQUEST { REQUEST_SIZE } else { REPLY_SIZE }, 0);
            if is_mount && magic == REQUEST {
                bytes[24..33].copy_from_slice(b"holofs:ab");
            }
            if spoil {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        })
}

proptest! {
    #[test]
    fn an_accepted_message_encodes_to_the_same_bytes(
        bytes in prop_oneof![nearly(), prop::collection::vec(any::<u8>(), 0..400)],
        fds in 0..4usize,
    ) {
        if let Ok((request, sequence)) = Request::decode(&bytes, fds) {
            prop_assert_eq!(&request.encode(sequence)[..], &bytes[..]);
            prop_assert_eq!(request.opcode().fds(), fds);
        }
        if let Ok((reply, sequence)) = Reply::decode(&bytes) {
            prop_assert_eq!(&reply.encode(sequence)[..], &bytes[..]);
        }
    }
}
