//! What is said while working: on standard error, which is the log file of a daemon, or in `--log-file`.
//!
//! Invariant: a daemon tells its log when it began and how it ended even when the one who started it wanted silence,
//! since that is what is read when something went wrong. An event is one line, whatever its fields hold.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::escape::one_line;
use super::exit::{CONFIG, Failure, failure};

/// The variable that sets the level where no flag does.
const VARIABLE: &str = "HOLOFS_LOG";

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

struct Sink {
    /// Of the process that was started by the user.
    foreground: (u32, LevelFilter),
    file: Option<Arc<File>>,
}

impl Sink {
    fn writer(&self) -> Box<dyn Write> {
        match &self.file {
            Some(file) => Box::new(OneLine(Arc::clone(file))),
            None => Box::new(OneLine(io::stderr())),
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
        if *meta.level() > level && std::process::id() == pid {
            return Box::new(io::sink());
        }
        self.writer()
    }
}

/// Starts logging. `flag` is what the command line says about the level.
///
/// # Errors
/// When the file cannot be opened, or the variable is not a level.
pub(crate) fn start(flag: Option<Level>, file: Option<&Path>) -> Result<(), Failure> {
    let level = match (flag, std::env::var(VARIABLE)) {
        (Some(level), _) => LevelFilter::from_level(level),
        (None, Ok(text)) if !text.is_empty() => text.parse().map_err(|_| {
            let fix = "off, error, warn, info, debug or trace";
            failure(CONFIG, format!("{VARIABLE}={text}: not a level"), Some(fix))
        })?,
        _ => LevelFilter::WARN,
    };
    let open = |path: &Path| {
        File::options().create(true).append(true).open(path).map(Arc::new).map_err(|error| {
            failure(CONFIG, format!("{}: {error}", path.display()), Some("another --log-file"))
        })
    };
    let sink = Sink { foreground: (std::process::id(), level), file: file.map(open).transpose()? };
    tracing_subscriber::fmt()
        .with_max_level(level.max(DAEMON))
        .with_target(false)
        .with_ansi(false)
        .with_writer(sink)
        .init();
    Ok(())
}
