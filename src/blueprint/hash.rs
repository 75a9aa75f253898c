//! rcc's hash, and its name for this machine.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher24;

const SIPIT_KEYS: (u64, u64) = (9_007_199_254_740_993, 2_147_483_647);

/// SipHash-2-4.
#[must_use]
pub fn sip(keys: (u64, u64), bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher24::new_with_keys(keys.0, keys.1);
    hasher.write(bytes);
    hasher.finish()
}

/// rcc's general 64-bit hash, as 16 lower-case hexadecimal digits. Names a blueprint.
#[must_use]
pub fn sipit_hex(bytes: &[u8]) -> String {
    format!("{:016x}", sip(SIPIT_KEYS, bytes))
}

/// The operating system and the processor of this machine in Go's words, as rcc uses them.
#[must_use]
pub fn system_and_processor() -> (&'static str, &'static str) {
    let system = match std::env::consts::OS {
        "macos" => "darwin",
        system => system,
    };
    let processor = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        processor => processor,
    };
    (system, processor)
}

/// The platform of this machine in Go's words, such as `linux_amd64`.
#[must_use]
pub fn this_platform() -> String {
    let (system, processor) = system_and_processor();
    format!("{system}_{processor}")
}
