//! Tries again until the time limit.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use object_store::retry::{RetryContext, RetryFailure, RetryPolicy};

use super::fault::Failed;
use super::http::may_pass_status;
use crate::library::remote::StoreError;
use crate::library::remote::counters::Counters;

/// The first pause.
const FIRST: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(5);

/// For how long a store may not answer, and where that is counted.
#[derive(Clone, Debug)]
pub(super) struct Persistence {
    pub(super) url: String,
    pub(super) limit: Duration,
    pub(super) counters: Arc<Counters>,
}

/// The attempts of one call.
#[derive(Debug)]
pub(super) struct Tries<'p> {
    of: &'p Persistence,
    start: Instant,
    /// For how long the store may not answer.
    limit: Duration,
    pause: Duration,
}

impl Persistence {
    pub(super) fn begin(&self) -> Tries<'_> {
        self.begin_with(self.limit)
    }

    /// Begins with another time limit.
    pub(super) fn begin_with(&self, limit: Duration) -> Tries<'_> {
        Tries { of: self, start: Instant::now(), limit, pause: FIRST }
    }
}

impl Tries<'_> {
    /// How long the call may go on.
    pub(super) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.start.elapsed()).max(FIRST)
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// When there is to be none.
    pub(super) async fn after(&mut self, failed: Failed, object: &str) -> Result<(), StoreError> {
        let counters = &self.of.counters;
        let why = match &failed {
            Failed::MayPass(why) => why,
            Failed::Untrusted(_) => {
                counters.failed();
                return Err(failed.about(object));
            }
            Failed::NotFound | Failed::Denied(_) | Failed::Refused(_) => {
                counters.answered();
                return Err(failed.about(object));
            }
        };
        counters.silent(&self.of.url, why);
        // The last attempt is made at the end of the time.
        let before_last = self.limit.saturating_sub(self.start.elapsed()).saturating_sub(FIRST);
        if before_last.is_zero() {
            counters.failed();
            return Err(failed.about(object));
        }
        counters.retried();
        tokio::time::sleep(spread(self.pause).min(before_last)).await;
        self.pause = (self.pause * 2).min(LONGEST);
        Ok(())
    }
}

/// Half of a pause up to all of it, so that machines that failed together do not try again together.
fn spread(pause: Duration) -> Duration {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    let part = nanos.wrapping_mul(2_654_435_761) % 1000;
    pause / 2 + pause / 2 * part / 1000
}

/// The same for the parts of an upload, for which the client tries again.
#[derive(Debug)]
pub(super) struct Policy(pub(super) Persistence);

impl RetryPolicy for Policy {
    fn retry<'s, 'a>(&'s self, context: RetryContext) -> Pin<Box<dyn Future<Output = bool> + Send + 'a>>
    where
        's: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            let may_pass = match context.failure {
                RetryFailure::Status(status) => status.is_success() || may_pass_status(status.as_u16()),
                _ => true,
            };
            if !may_pass || context.elapsed >= self.0.limit {
                return false;
            }
            self.0.counters.silent(&self.0.url, "a part of an upload failed");
            self.0.counters.retried();
            let doublings = u32::try_from(context.attempt).unwrap_or(u32::MAX).min(6);
            tokio::time::sleep(spread((FIRST * (1 << doublings)).min(LONGEST))).await;
            true
        })
    }
}
