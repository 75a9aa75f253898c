//! Parses the kernel's mount table, which holds names that other users chose.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for mount in holofs::sys::mountinfo::parse(data) {
        let _ = mount.identity();
    }
});
