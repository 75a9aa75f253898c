//! Tells a service manager, such as systemd, about the state of a service of `Type=notify`.
//!
//! The manager gives the path of its socket in NOTIFY_SOCKET. Without the variable, nothing is told. A message that cannot
//! be sent is logged: the mount works without it.

use sd_notify::NotifyState;

/// The service is ready. `status` is shown by `systemctl status`.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The service is stopping.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
