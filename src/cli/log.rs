//! What is said while working: on standard error, which is the log file of a daemon, or in `--log-file`.
//!
//! Invariant: a daemon tells its log when it began and how it ended even when the one who started it wanted silence,
//! since that is what is read when something went wrong. An event is one line, whatever its fields hold. No event
//! harms who tells it: what cannot be written is left out, and so is most of what one place in the code tells again
//! and again.

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

/// What a daemon's log holds at least.
const DAEMON: LevelFilter = LevelFilter::INFO;

/// Writes each event as one line without what a terminal acts on. The formatter hands over an event at a time.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = format!("{}\n", one_line(text.trim_end_matches('\n')));
        self.0.write_all(line.as_bytes()).map(|()| event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Writes to the log of this process: see [`log_file`].
struct Log;

impl Write for Log {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        log_file::write(lines);
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Sink {
    /// Of the process that was started by the user.
    foreground: (u32, LevelFilter),
    file: Option<Arc<File>>,
    /// Where one place in the code may have much to tell: a mount's process.
    limiter: Option<Limiter>,
}

impl Sink {
    fn writer(&self) -> Box<dyn Write> {
        match &self.file {
            Some(file) => Box::new(OneLine(Arc::clone(file))),
            None => Box::new(OneLine(Log)),
        }
    }
}

impl MakeWriter<'_> for Sink {
    type Writer = Box<dyn Write>;

    fn make_writer(&self) -> Self::Writer {
        self.writer()
    }

    fn make_writer_for(&self, meta: &Metadata<'_>) -> Self::Writer {
        let (pid, level) = self.foreground;
        // Until a daemon has its log, what it says is for who mounts.
        if *meta.level() > level && (std::process::id() == pid || !log_file::is_open()) {
            return Box::new(io::sink());
        }
        let mut writer = self.writer();
        // What was asked for in detail is told in detail.
        let Some(limiter) = self.limiter.as_ref().filter(|_| *meta.level() <= Level::INFO) else {
            return writer;
        };
        match limiter.admit(&meta.callsite(), Instant::now()) {
            None => Box::new(io::sink()),
            Some(0) => writer,
            Some(left_out) => {
                // Whatever keeps it from being written keeps the event from it too.
                drop(writeln!(writer, "{left_out} more like the following were left out"));
                writer
            }
        }
    }
}

/// Keeps each place in the code from telling more than so much in a while.
#[derive(Default)]
struct Limiter {
    /// A leaf lock.
    places: Mutex<HashMap<Identifier, Place>>,
}

struct Place {
    /// How many more events it may tell now.
    tokens: u32,
    filled: Instant,
    left_out: u64,
}

impl Limiter {
    /// So much may be told at once, and then one event each [`Limiter::PERIOD`].
    const BURST: u32 = 100;
    const PERIOD: Duration = Duration::from_millis(500);

    /// Whether an event is told, and how many before it were not.
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

/// Starts logging. `serves` says that this may become the process of a mount.
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
        // It would be told on standard error, by a call that panics when that cannot be written either.
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
    fn a_flood_is_cut_short_and_counted() {
        static PLACE: Quiet = Quiet;
        let (limiter, place) = (Limiter::default(), Identifier(&PLACE));
        let start = Instant::now();
        let told = (0..1000).filter(|_| limiter.admit(&place, start).is_some()).count();
        assert_eq!(told, Limiter::BURST as usize);
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
