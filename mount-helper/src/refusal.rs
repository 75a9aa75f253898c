//! Why a request was not carried out, and the reply that says so.

use holofs_mount_helper::proto::{Opcode, Reply};
use holofs_mount_helper::vocabulary::Deny;
use rustix::io::Errno;

/// The policy denied the request, or a system call failed.
pub(crate) enum Refusal {
    Denied(Deny),
    Failed(Errno),
}

impl From<Deny> for Refusal {
    fn from(deny: Deny) -> Self {
        Self::Denied(deny)
    }
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Failed(errno)
    }
}

impl Refusal {
    pub(crate) fn reply(self, opcode: Opcode) -> Reply {
        match self {
            Self::Denied(reason) => Reply::Denied { opcode, reason },
            Self::Failed(errno) => Reply::Failed { opcode, errno: errno.raw_os_error().unsigned_abs() },
        }
    }
}
