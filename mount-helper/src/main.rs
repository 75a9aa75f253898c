//! The privileged program. holofs starts it with a socket as standard input. It answers the requests from the socket, and
//! ends when the socket is closed.
//!
//! All decisions are in [`policy`](holofs_mount_helper::policy). The program takes no arguments, reads no environment
//! variable, starts no program and writes to no file. `docs/SECURITY.md` describes the threat model.
//!
//! Invariant: before it reads from the socket, the program drops all privileges except CAP_SYS_ADMIN. That capability is
//! effective only during the system calls that need it (`confine`).

mod confine;
mod facts;
mod kernel;
mod quota;
mod serve;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    match confine::confine().map(serve::serve) {
        Err(error) => ExitCode::from(error as u8),
        Ok(Err(_)) => ExitCode::FAILURE,
        Ok(Ok(())) => ExitCode::SUCCESS,
    }
}
