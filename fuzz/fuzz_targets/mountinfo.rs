//! The kernel's mount table, which holds other people's names.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    for mount in holofs::sys::mountinfo::parse(data) {
        let _ = mount.identity();
    }
});
