//! What the daemon of a mount does when a command asks it through the control channel.

use std::path::Path;
use std::time::Duration;

use fuser::Notifier;
use serde_json::Value;

use super::control::{Line, Refused, Request};
use super::statistics;
use crate::fs::Fs;

/// How long a request waits for changes that are in progress.
const CHANGES_END_WITHIN: Duration = Duration::from_secs(5);

/// Answers one request.
pub(super) fn answer(
    fs: &Fs,
    state_dir: &Path,
    _: &Notifier,
    request: Request,
    line: &mut Line,
) -> Result<Value, Refused> {
    match request {
        Request::Ping => Ok(Value::from(std::process::id())),
        Request::Statistics => statistics::answer(fs),
        Request::ResetStatistics => {
            fs.metrics().reset();
            statistics::save(fs, state_dir, &mut None);
            Ok(Value::Null)
        }
        Request::Freeze { ms } => {
            let frozen = fs.namespace().freeze(CHANGES_END_WITHIN).ok_or(Refused::Changing)?;
            line.say(Ok(Value::Null)).map_err(|error| Refused::Failed(error.to_string()))?;
            let held = line.wait(Duration::from_millis(ms));
            drop(frozen);
            Ok(Value::from(held))
        }
    }
}
