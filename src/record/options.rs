//! What is recorded, and where.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct RecordOptions {
    /// LIBRARY as typed: a library in any of its forms, `auto`, or a directory to create.
    pub library: OsString,
    /// What `auto` means: rcc's own hololib.
    pub default_hololib: PathBuf,
    /// rcc's home, which may become a library no matter what it contains. The default is none.
    pub robocorp_home: Option<PathBuf>,
    /// `$HOME`, from which the stage's name is made. The default is none.
    pub home: Option<OsString>,
    /// The blueprint's text. It is trimmed, and its hash names the catalog.
    pub blueprint: String,
    /// The program that fills the stage, and its arguments.
    pub command: Vec<OsString>,
    /// Whether blobs are compressed. The default is what the library has, and compressed for a new one.
    pub compress: Option<bool>,
    /// Whether to leave the stage in place, also after a failure. The default is false.
    pub keep_stage: bool,
    /// How long to wait for rcc's lock. The default is 30 seconds.
    pub lock_timeout: Duration,
    /// Whether to show progress if standard error is a terminal. The default is false.
    pub progress: bool,
    /// Set by another thread to cancel the recording: the command is terminated and the stage removed.
    pub cancel: Arc<AtomicBool>,
}

impl RecordOptions {
    /// The required options, and the defaults of the others.
    #[must_use]
    pub fn new(
        library: OsString,
        default_hololib: PathBuf,
        blueprint: String,
        command: Vec<OsString>,
    ) -> Self {
        Self {
            library,
            default_hololib,
            robocorp_home: None,
            home: None,
            blueprint,
            command,
            compress: None,
            keep_stage: false,
            lock_timeout: Duration::from_secs(30),
            progress: false,
            cancel: Arc::default(),
        }
    }
}
