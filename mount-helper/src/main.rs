//! The privileged program: started by holofs with a socket as standard input, answers what comes through it, ends
//! with it.
//!
//! It decides nothing by itself: [`policy`](holofs_mount_helper::policy) does. It takes no arguments, reads no
//! environment variable, starts no program and writes to no file. `docs/SECURITY.md` has the threat model.
//!
//! Invariant: nothing is read from the socket before all privilege but CAP_SYS_ADMIN is gone, and that one is in
//! force only during the calls that need it (`confine`).

mod confine;
mod facts;
mod kernel;
mod quota;
mod serve;
mod sys;

use std::process::ExitCode;

use holofs_mount_helper::policy::Session;

fn main() -> ExitCode {
    let confined = match confine::confine() {
        Ok(confined) => confined,
        Err(error) => return ExitCode::from(error.code()),
    };
    match serve::serve(confined.caller, Session::new(confined.caller, confined.able)) {
        serve::End::Closed => ExitCode::SUCCESS,
        serve::End::Broken => ExitCode::FAILURE,
    }
}
