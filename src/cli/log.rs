//! The log: standard error, which a daemon replaces by its log file, or the file of `--log-file`.
//!
//! Invariants: a daemon logs events of level INFO and above even with `--silent`, because its log is read when something
//! has gone wrong. An event is one line, whatever its fields hold. Logging never fails: an event that cannot be written is
//! dropped, and events that one place in the code repeats are rate-limited.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::escape::one_line;
use super::exit::{CONFIG, Failure, failure};
use crate::sys::log_file;

/// The lowest level at which a daemon logs.
const DAEMON: LevelFilter = LevelFilter::INFO;

/// Writes each event as one escaped line, to this file or to the log of this process (see [`log_file`]). The formatter
/// passes one event at a time.
struct OneLine(Option<Arc<File>>);

impl Write for OneLine {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = format!("{}\n", one_line(text.trim_end_matches('\n')));
        match &mut self.0 {
            Some(file) => file.write_all(line.as_bytes())?,
            None => log_file::write(line.as_bytes()),
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Sink {
    /// The process that the user started, and its level.
    foreground: (u32, LevelFilter),
    file: Option<Arc<File>>,
    /// Only in the process of a mount, which can repeat an event many times.
    limiter: Option<Limiter>,
}

impl MakeWriter<'_> for Sink {
    type Writer = Box<dyn Write>;

    fn make_writer(&self) -> Self::Writer {
        Box::new(OneLine(self.file.clone()))
    }

    fn make_writer_for(&self, meta: &Metadata<'_>) -> Self::Writer {
        let (pid, level) = self.foreground;
        // Until a daemon has opened its log, its events go to the user who mounts.
        if *meta.level() > level && (std::process::id() == pid || !log_file::is_open()) {
            return Box::new(io::sink());
        }
        if is_detail_of_a_crate(meta) && level < LevelFilter::DEBUG {
            return Box::new(io::sink());
        }
        let mut writer = self.make_writer();
        // Debug events were asked for, so they are not limited.
        let Some(limiter) = self.limiter.as_ref().filter(|_| *meta.level() <= Level::INFO) else {
            return writer;
        };
        match limiter.admit(&meta.callsite(), Instant::now()) {
            None => Box::new(io::sink()),
            Some(0) => writer,
            Some(left_out) => {
                // If this line cannot be written, neither can the event.
                let line = format!("dropped {left_out} more events like the next one");
                drop(writer.write_all(line.as_bytes()));
                writer
            }
        }
    }
}

/// Whether an event is one with which another crate tells how it works. They are many: each retry of a request is one.
fn is_detail_of_a_crate(meta: &Metadata<'_>) -> bool {
    *meta.level() >= Level::INFO && !meta.target().starts_with("holofs")
}

/// A token bucket for each place in the code that logs.
#[derive(Default)]
struct Limiter {
    /// A leaf lock.
    places: Mutex<HashMap<Identifier, Place>>,
}

struct Place {
    /// How many events may be logged now.
    tokens: u32,
    filled: Instant,
    left_out: u64,
}

impl Limiter {
    /// This many events may be logged at once, and then one in each [`Limiter::PERIOD`].
    const BURST: u32 = 100;
    const PERIOD: Duration = Duration::from_millis(500);

    /// Whether to log an event. Returns how many events before it were dropped, or None to drop this one.
    fn admit(&self, place: &Identifier, now: Instant) -> Option<u64> {
        let mut places = self.places.lock();
        let first = || Place { tokens: Self::BURST, filled: now, left_out: 0 };
        let place = places.entry(place.clone()).or_insert_with(first);
        let periods = now.saturating_duration_since(place.filled).as_millis() / Self::PERIOD.as_millis();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        if periods > 0 {
            place.tokens = place.tokens.saturating_add(periods).min(Self::BURST);
            place.filled = now;
        }
        if place.tokens == 0 {
            place.left_out += 1;
            return None;
        }
        place.tokens -= 1;
        Some(std::mem::take(&mut place.left_out))
    }
}

/// Starts logging. `serves` is true if this process may become the daemon of a mount.
///
/// # Errors
/// When the file cannot be opened.
pub(crate) fn start(level: LevelFilter, file: Option<&Path>, serves: bool) -> Result<(), Failure> {
    let open = |path: &Path| {
        File::options().create(true).append(true).open(path).map(Arc::new).map_err(|error| {
            failure(CONFIG, format!("{}: {error}", path.display()), Some("another --log-file"))
        })
    };
    let sink = Sink {
        foreground: (std::process::id(), level),
        file: file.map(open).transpose()?,
        limiter: serves.then(Limiter::default),
    };
    tracing_subscriber::fmt()
        .with_max_level(level.max(DAEMON))
        .with_target(false)
        .with_ansi(false)
        .with_writer(sink)
        // It would use `eprintln!`, which panics when standard error cannot be written.
        .log_internal_errors(false)
        .init();
    if serves {
        std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_events_are_limited_and_counted() {
        static PLACE: Quiet = Quiet;
        let (limiter, place) = (Limiter::default(), Identifier(&PLACE));
        let start = Instant::now();
        let admitted = (0..1000).filter(|_| limiter.admit(&place, start).is_some()).count();
        assert_eq!(admitted, Limiter::BURST as usize);
        assert_eq!(limiter.admit(&place, start + Limiter::PERIOD), Some(900));
        assert_eq!(limiter.admit(&place, start + Limiter::PERIOD), None);
        assert_eq!(limiter.admit(&place, start + 1000 * Limiter::PERIOD), Some(1));
    }

    struct Quiet;

    impl tracing::Callsite for Quiet {
        fn set_interest(&self, _: tracing::subscriber::Interest) {}

        fn metadata(&self) -> &Metadata<'_> {
            unimplemented!("an identifier is its address")
        }
    }
}
