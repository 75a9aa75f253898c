//! `holofs keeper`: what one program of a mount asks another one. Not for users.

use std::ffi::OsString;
use std::os::fd::RawFd;

use tracing::level_filters::LevelFilter;

use super::exit::{FAILED, OK, USAGE};
use super::{log, output};
use crate::session::mount::resume::{NO, YES, rehearse, resume};

/// Runs the command. Returns the exit code.
pub(super) fn run(args: &[OsString]) -> u8 {
    let mut words = args.iter().filter_map(|arg| arg.to_str());
    let task = words.next();
    let fds: Option<Vec<RawFd>> = words.map(|word| word.parse().ok()).collect();
    match (task, fds.as_deref()) {
        (Some("--rehearse"), Some(&[handoff, plan])) => {
            let said = match rehearse(handoff, plan) {
                Ok(()) => YES.to_owned(),
                Err(error) => format!("{NO}{error}"),
            };
            output::print_lines(&[said]).map_or(FAILED, |_| OK)
        }
        (Some("--resume"), Some(&[handoff, plan])) => go_on(handoff, plan, None),
        (Some("--resume"), Some(&[handoff, plan, earlier])) => go_on(handoff, plan, Some(earlier)),
        _ => USAGE,
    }
}

fn go_on(handoff: RawFd, plan: RawFd, earlier: Option<RawFd>) -> u8 {
    let logs = log::start(LevelFilter::WARN, None, true).is_ok();
    match resume(handoff, plan, earlier) {
        Ok(()) => OK,
        Err(error) => {
            if logs {
                tracing::error!("{error}");
            }
            FAILED
        }
    }
}
