//! Composes an environment from a file that somebody else wrote.
#![no_main]

use std::path::Path;

use holofs::blueprint::robot::Robot;
use holofs::blueprint::{Blueprint, Source};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    drop(Robot::parse(Path::new("/r/robot.yaml"), data));
    for name in ["conda.yaml", "package.yaml"] {
        drop(Blueprint::compose(&[Source::Text(name.into(), data.to_vec())], false, None));
    }
});
