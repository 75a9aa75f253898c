//! The settings of one invocation: each value, and where it was set.
//!
//! A flag, a variable or a file can set the same value. [`Settings::read`] resolves them once, when the program starts,
//! and passes the values down: no other module reads the process environment. The first of these that sets a value is
//! used: a flag, a variable of holofs (`HOLOFS_*`), a variable of rcc, `settings.yaml` in rcc's home, the default. An empty
//! variable counts as unset.
//!
//! A bad value is an error that names the place that set it. It never makes a later place apply.
//!
//! Invariant: the directories are absolute and lexically clean.

mod choices;
mod file;
mod installation;
mod network;
pub mod remote;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use tracing::level_filters::LevelFilter;

use crate::sys::guarded::GuardedError;
use crate::sys::{lexically_clean, plain, process};
use crate::yaml::BadFile;
pub use choices::{Fallback, IoMode, MountHelper, Prefetch, Product, RestoreStrategy, Strategy, Verify};
pub use network::Network;
use remote::RemoteSettings;

/// A value, and where it was set.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Setting<T> {
    /// The value in force.
    pub value: T,
    /// The place that set it.
    pub source: SetBy,
}

/// The place that set a value.
#[derive(Clone, Default, PartialEq, Eq, Debug, Serialize)]
#[serde(tag = "source", rename_all = "lowercase")]
pub enum SetBy {
    /// A flag on the command line.
    Flag,
    /// A variable of the process environment.
    Variable {
        /// The variable.
        name: &'static str,
    },
    /// A file.
    File {
        /// The file.
        path: PathBuf,
        /// The line of the value, counted from 1.
        line: usize,
    },
    /// No place: the value is built in.
    #[default]
    Default,
}

impl fmt::Display for SetBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("command line"),
            Self::Variable { name } => f.write_str(name),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

impl<T> Setting<T> {
    /// A value that was typed.
    pub(crate) fn flag(value: T) -> Self {
        Self { value, source: SetBy::Flag }
    }

    fn variable(value: T, name: &'static str) -> Self {
        Self { value, source: SetBy::Variable { name } }
    }

    fn built_in(value: T) -> Self {
        Self { value, source: SetBy::Default }
    }

    /// The value, if it was typed.
    #[must_use]
    pub fn typed(&self) -> Option<&T> {
        (self.source == SetBy::Flag).then_some(&self.value)
    }

    /// The flag, else the default.
    fn flag_or(flag: Option<T>, default: T) -> Self {
        flag.map_or(Self::built_in(default), Self::flag)
    }
}

/// The values that were typed.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--product`
    pub product: Option<Product>,
    /// `--no-config`
    pub no_config: bool,
    /// How long rcc's home may take to answer, for a command that must end even if it does not.
    pub patience: Option<Duration>,
    /// `--home`
    pub robocorp_home: Option<OsString>,
    /// `--controller`
    pub controller: Option<String>,
    /// `--trace`, `--debug` or `--silent`
    pub log_level: Option<LevelFilter>,
    /// `--lock-timeout`
    pub lock_timeout: Option<Duration>,
    /// `--strategy` of a mount
    pub strategy: Option<Strategy>,
    /// `--strategy` of a restore
    pub restore_strategy: Option<RestoreStrategy>,
    /// `--io`
    pub io: Option<IoMode>,
    /// `--cache-size`, in bytes
    pub cache_size: Option<u64>,
    /// `--verify`
    pub verify: Option<Verify>,
    /// `--pycache`
    pub pycache: bool,
    /// `--cache-dir`
    pub cache_dir: Option<OsString>,
    /// `--remote-timeout`
    pub remote_timeout: Option<Duration>,
    /// `--offline`
    pub offline: bool,
}

/// The settings of every command.
#[derive(Debug)]
pub struct Settings {
    /// `$HOME` as it is, not cleaned: the names of spaces are made from its bytes.
    pub home: Option<OsString>,
    /// The product whose directories are used.
    pub product: Setting<Product>,
    /// rcc's home.
    pub robocorp_home: Setting<PathBuf>,
    /// The directory of holofs's own files.
    pub holofs_home: Setting<PathBuf>,
    /// The directory of compiled indexes, unpacked blobs and profiles.
    pub cache_dir: Setting<PathBuf>,
    /// The controller that owns the spaces, as in rcc.
    pub controller: Setting<String>,
    /// The level of the log.
    pub log_level: Setting<LevelFilter>,
    /// The longest wait for a lock that rcc takes too.
    pub lock_timeout: Setting<Duration>,
    /// What a program that is started in a space inherits.
    pub caller: Caller,
    /// The settings of mounts. An error in them stops only the commands that use them, so that a space can still be
    /// unmounted.
    pub mount: Result<MountSettings, SettingsError>,
}

/// The variables of the caller that decide what a program in a space gets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Caller {
    /// `PATH`
    pub path: Option<OsString>,
    /// `SHELL`
    pub shell: Option<OsString>,
    /// `HOLOFS_RCC`: the program rcc.
    pub rcc: Setting<Option<OsString>>,
    /// Off with `RCC_NO_PYC_MANAGEMENT`: Python may write bytecode into the space.
    pub pyc_management: Setting<bool>,
    /// Off with `RCC_NO_TEMP_MANAGEMENT`: `TEMP` and `TMP` stay the caller's.
    pub temp_management: Setting<bool>,
}

/// The settings of a mount.
#[derive(Clone, Debug)]
#[cfg_attr(test, derive(Default))]
pub struct MountSettings {
    /// How private copies are made.
    pub strategy: Setting<Strategy>,
    /// How a restore makes files.
    pub restore_strategy: Setting<RestoreStrategy>,
    /// Who reads and writes files.
    pub io: Setting<IoMode>,
    /// When blobs are verified.
    pub verify: Setting<Verify>,
    /// Mounts show bytecode.
    pub pycache: Setting<bool>,
    /// The limit of the blob cache, in bytes.
    pub cache_size: Setting<u64>,
    /// How long the process that serves a mount may answer nothing while requests wait. Zero: as long as it likes.
    pub hang_timeout: Setting<Duration>,
    /// A daemon is put into a scope of its own of the user's service manager.
    pub scope: Setting<bool>,
    /// `XDG_RUNTIME_DIR`: where that service manager is.
    pub runtime_dir: Option<PathBuf>,
    /// Off with `HOLOFS_TEST_NO_RESEND`, for tests: the kernel is taken for one before Linux 6.9, which cannot send requests
    /// again.
    pub resends: bool,
    /// The mount helper to start.
    pub mount_helper: Setting<MountHelper>,
    /// The patterns of paths that a restore must not share by hard links. Mounts do not use them.
    pub hardlink_excludes: Setting<Vec<String>>,
    /// What rcc's home says about the network, for the programs in a space.
    pub network: Setting<Network>,
    /// What object stores need.
    pub remote: RemoteSettings,
    /// A warning about these values, for the user.
    pub warning: Option<String>,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Neither `--home`, nor `$ROBOCORP_HOME` (or that of another product), nor `$HOME`.
    #[error("neither ROBOCORP_HOME nor HOME is set")]
    NoHome,
    /// A relative path, and no current directory to resolve it in.
    #[error("the current directory: {}", plain(.0))]
    NoCurrentDir(std::io::Error),
    /// A variable has a bad value.
    #[error("{name}={value}: {why}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// The bad value.
        value: String,
        /// The values that are expected.
        why: String,
    },
    /// `settings.yaml` is not YAML, or has a bad value.
    #[error(transparent)]
    File(#[from] BadFile),
    /// `settings.yaml` cannot be read.
    #[error(transparent)]
    Unreadable(#[from] GuardedError),
    /// rcc's home does not answer, for example because it lies on a network disk.
    #[error("{}: no answer within {} s", path.display(), limit.as_secs())]
    Silent {
        /// The home.
        path: PathBuf,
        /// How long it was waited for.
        limit: Duration,
    },
    /// No process can be started to ask rcc's home.
    #[error("fork: {}", plain(.0))]
    NotAsked(std::io::Error),
}

/// Looks up a variable of the process environment.
type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The default limit of the blob cache, in bytes.
const CACHE_SIZE: u64 = 10 << 30;

/// The default for the time after which a process that answers nothing is replaced.
const HANG_TIMEOUT: Duration = Duration::from_secs(60);

/// The default for the longest wait for a lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

impl Settings {
    /// Reads flags, the process environment and files.
    ///
    /// # Errors
    /// When no home is set, or the log level is bad. Errors in the settings of mounts are in [`Settings::mount`].
    pub fn read(flags: Flags) -> Result<Self, SettingsError> {
        Self::from_variables(flags, &|name| std::env::var_os(name))
    }

    /// As [`Settings::read`], with these variables instead of the process environment.
    ///
    /// # Errors
    /// As [`Settings::read`].
    pub fn from_variables(flags: Flags, variables: Variables<'_>) -> Result<Self, SettingsError> {
        let home = set(variables, "HOME");
        let place = |name| match set(variables, name) {
            Some(given) => absolute(&expand(&given, variables)).map(|p| Some(Setting::variable(p, name))),
            None => Ok(None),
        };
        let product = match flags.product {
            Some(product) => Setting::flag(product),
            None => variable(variables, "HOLOFS_PRODUCT", choice)?.unwrap_or_default(),
        };
        let robocorp_home = match (&flags.robocorp_home, place(product.value.home_variable())?) {
            (Some(flag), _) => Setting::flag(absolute(&expand(flag, variables))?),
            (None, Some(set)) => set,
            (None, None) => {
                let home = home.as_ref().ok_or(SettingsError::NoHome)?;
                Setting::built_in(absolute(Path::new(home))?.join(product.value.home_name()))
            }
        };
        let holofs_home =
            place("HOLOFS_HOME")?.unwrap_or_else(|| Setting::built_in(robocorp_home.value.join("holofs")));
        let cache_dir = match (&flags.cache_dir, place("HOLOFS_CACHE_DIR")?) {
            (Some(flag), _) => Setting::flag(absolute(Path::new(flag))?),
            (None, Some(set)) => set,
            (None, None) => Setting::built_in(holofs_home.value.join("cache")),
        };
        let level = |text: &str| {
            text.parse().map_err(|_| "expected off, error, warn, info, debug or trace".to_owned())
        };
        let log_level = match flags.log_level {
            Some(level) => Setting::flag(level),
            None => variable(variables, "HOLOFS_LOG", level)?.unwrap_or(Setting::built_in(LevelFilter::WARN)),
        };
        Ok(Self {
            mount: MountSettings::read(&flags, variables, &robocorp_home.value),
            caller: Caller {
                path: variables("PATH"),
                shell: set(variables, "SHELL"),
                rcc: set(variables, "HOLOFS_RCC")
                    .map(|rcc| Setting::variable(Some(rcc), "HOLOFS_RCC"))
                    .unwrap_or_default(),
                pyc_management: on_unless_set(variables, "RCC_NO_PYC_MANAGEMENT"),
                temp_management: on_unless_set(variables, "RCC_NO_TEMP_MANAGEMENT"),
            },
            home,
            product,
            robocorp_home,
            holofs_home,
            cache_dir,
            controller: Setting::flag_or(flags.controller, "user".to_owned()),
            log_level,
            lock_timeout: Setting::flag_or(flags.lock_timeout, LOCK_TIMEOUT),
        })
    }
}

impl Settings {
    /// rcc's name for this installation. Read when it is asked for.
    #[must_use]
    pub fn installation(&self) -> String {
        installation::name(&self.robocorp_home.value)
    }
}

impl MountSettings {
    fn read(flags: &Flags, variables: Variables<'_>, robocorp_home: &Path) -> Result<Self, SettingsError> {
        if let Some(limit) = flags.patience {
            answers(robocorp_home, flags.no_config, limit)?;
        }
        let file = match flags.no_config {
            true => file::Values::default(),
            false => file::read(&robocorp_home.join("settings.yaml"))?,
        };
        let typed = flags.restore_strategy.or(flags.strategy.map(RestoreStrategy::from));
        let restore_strategy = restore_strategy(typed, variables, file.strategy)?;
        let (strategy, warning) = strategy(flags.strategy, &restore_strategy);
        let io = match flags.io {
            Some(io) => Setting::flag(io),
            None => variable(variables, "HOLOFS_IO", choice)?.unwrap_or_default(),
        };
        let verify = match flags.verify {
            Some(verify) => Setting::flag(verify),
            None => variable(variables, "HOLOFS_VERIFY", choice)?.unwrap_or_default(),
        };
        let pycache = match flags.pycache {
            true => Setting::flag(true),
            false => variable(variables, "HOLOFS_PYCACHE", on_or_off)?.or(file.pycache).unwrap_or_default(),
        };
        let hang_timeout = variable(variables, "HOLOFS_HANG_TIMEOUT", seconds)?;
        let mount_helper = variables(MountHelper::VARIABLE)
            .map(|path| Setting::variable(MountHelper::named(path), MountHelper::VARIABLE));
        let network =
            Setting { value: file.network.value.with_files_of(robocorp_home), source: file.network.source };
        Ok(Self {
            remote: RemoteSettings::read(flags, variables, &network.value)?,
            strategy,
            restore_strategy,
            io,
            verify,
            pycache,
            cache_size: Setting::flag_or(flags.cache_size, CACHE_SIZE),
            hang_timeout: hang_timeout.unwrap_or(Setting::built_in(HANG_TIMEOUT)),
            scope: variable(variables, "HOLOFS_SCOPE", on_or_off)?.unwrap_or_default(),
            runtime_dir: set(variables, "XDG_RUNTIME_DIR").map(PathBuf::from),
            resends: set(variables, "HOLOFS_TEST_NO_RESEND").is_none(),
            mount_helper: mount_helper.unwrap_or_default(),
            hardlink_excludes: file.hardlink_excludes.unwrap_or_default(),
            network,
            warning,
        })
    }
}

/// Makes sure that the files in rcc's home can be looked at. The process must have a single thread.
fn answers(robocorp_home: &Path, no_config: bool, limit: Duration) -> Result<(), SettingsError> {
    let look = || {
        // What was found does not matter here: this process finds it again.
        let found = if no_config { None } else { Some(file::read(&robocorp_home.join("settings.yaml"))) };
        let network = Network::default().with_files_of(robocorp_home);
        drop((found, network));
        vec![1]
    };
    match process::ask(limit, look).map_err(SettingsError::NotAsked)? {
        Some(_) => Ok(()),
        None => Err(SettingsError::Silent { path: robocorp_home.to_owned(), limit }),
    }
}

/// The strategy of restores: the flag, else the first place that sets one.
fn restore_strategy(
    flag: Option<RestoreStrategy>,
    variables: Variables<'_>,
    file: Option<Setting<RestoreStrategy>>,
) -> Result<Setting<RestoreStrategy>, SettingsError> {
    if let Some(strategy) = flag {
        return Ok(Setting::flag(strategy));
    }
    for name in ["HOLOFS_STRATEGY", "RCC_HOLOTREE_STRATEGY"] {
        if let Some(set) = variable(variables, name, choice)? {
            return Ok(set);
        }
    }
    Ok(file.unwrap_or_default())
}

/// The strategy of mounts, and a warning if it is not the one that was set: `hardlink` is valid, but only restores can use
/// it.
fn strategy(
    flag: Option<Strategy>,
    restores: &Setting<RestoreStrategy>,
) -> (Setting<Strategy>, Option<String>) {
    if let Some(strategy) = flag {
        return (Setting::flag(strategy), None);
    }
    let source = restores.source.clone();
    match restores.value.of_mount() {
        Some(value) => (Setting { value, source }, None),
        None => {
            let warning = format!("{source}: hardlink is only for restores; this mount uses smart");
            (Setting { value: Strategy::Smart, source }, Some(warning))
        }
    }
}

/// Parses the name of a choice, in upper or lower case.
fn choice<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, true).map_err(|_| {
        let names: Vec<String> = T::value_variants()
            .iter()
            .filter_map(|choice| Some(choice.to_possible_value()?.get_name().to_owned()))
            .collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Parses the value of a switch.
fn on_or_off(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// Parses a number of seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .map(Duration::from_secs)
        .map_err(|_| "expected a number of seconds, or 0 for never".to_owned())
}

/// On, unless a variable turns it off by being set.
fn on_unless_set(variables: Variables<'_>, name: &'static str) -> Setting<bool> {
    match set(variables, name) {
        Some(_) => Setting::variable(false, name),
        None => Setting::built_in(true),
    }
}

/// The value of a variable that is set and not empty.
fn set(variables: Variables<'_>, name: &str) -> Option<OsString> {
    variables(name).filter(|value| !value.is_empty())
}

fn variable<T>(
    variables: Variables<'_>,
    name: &'static str,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<Setting<T>>, SettingsError> {
    let Some(value) = set(variables, name) else { return Ok(None) };
    let value = value.to_string_lossy();
    let parsed = parse(&value);
    let value = parsed.map_err(|why| SettingsError::Variable { name, value: value.into_owned(), why })?;
    Ok(Some(Setting::variable(value, name)))
}

/// Replaces `$NAME` and `${NAME}` as rcc does, with Go's `os.ExpandEnv`: an unset variable is replaced by nothing.
fn expand(text: &OsStr, variables: Variables<'_>) -> PathBuf {
    let mut rest = text.as_bytes();
    let mut out = Vec::with_capacity(rest.len());
    while let Some(at) = rest.iter().position(|&b| b == b'$') {
        let (before, after) = rest.split_at(at);
        out.extend_from_slice(before);
        let after = after.get(1..).unwrap_or_default();
        let (name, used) = variable_name(after);
        match std::str::from_utf8(name) {
            Ok("") if used == 0 => out.push(b'$'),
            Ok(name) => out.extend_from_slice(variables(name).unwrap_or_default().as_bytes()),
            Err(_) => {}
        }
        rest = after.get(used..).unwrap_or_default();
    }
    out.extend_from_slice(rest);
    PathBuf::from(OsString::from_vec(out))
}

/// The name of the variable at the start of `text`, and its length in bytes with braces.
fn variable_name(text: &[u8]) -> (&[u8], usize) {
    if let Some(inner) = text.strip_prefix(b"{") {
        return match inner.iter().position(|&b| b == b'}') {
            Some(end) => (inner.get(..end).unwrap_or_default(), end + 2),
            None => (&[], 1),
        };
    }
    let end = text.iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'_')).unwrap_or(text.len());
    (text.get(..end).unwrap_or_default(), end)
}

/// Makes a path absolute and removes `.` and `..` from it without reading the filesystem, as rcc does.
///
/// # Errors
/// When the path is relative and the current directory cannot be read.
pub fn absolute(path: &Path) -> Result<PathBuf, SettingsError> {
    let full = if path.is_absolute() {
        path.to_owned()
    } else {
        std::env::current_dir().map_err(SettingsError::NoCurrentDir)?.join(path)
    };
    Ok(lexically_clean(&full))
}

#[cfg(test)]
mod tests;
