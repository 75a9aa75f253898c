//! Flags of rcc that programs add to its command lines, so that they can call holofs in the same way.
//!
//! Every command accepts them. Most have no effect here. They are taken out of the command line before clap reads it:
//! clap copies each flag of every command to all commands, and each start of the program would pay for that.

use std::ffi::OsString;

use crate::session::run::activation::ActivationFlags;

/// Flags that have no effect.
const IGNORED: [&str; 5] = ["--no-retry-build", "--bundled", "--robocorp", "--sema4ai", "--liveonly"];
/// Flags with a value that have no effect.
const IGNORED_WITH_VALUE: [&str; 3] = ["--config", "--anything", "--tag"];

/// The flags of rcc on a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OfRcc {
    no_pyc_management: bool,
    no_temp_management: bool,
    warranty_voided: bool,
    /// Overrides `--build`.
    pub(super) no_build: bool,
    ignored: Vec<OsString>,
}

impl OfRcc {
    /// Takes the flags of rcc out of a command line, up to `--`. Returns the other arguments. A flag that lacks its value
    /// stays, and is refused as an unknown one.
    pub(super) fn take(args: &[OsString]) -> (Self, Vec<OsString>) {
        let mut taken = Self::default();
        let mut others = Vec::with_capacity(args.len());
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let text = arg.to_str().unwrap_or_default();
            match text {
                "--" => {
                    others.push(arg.clone());
                    others.extend(rest.by_ref().cloned());
                }
                "--no-pyc-management" => taken.no_pyc_management = true,
                "--no-temp-management" => taken.no_temp_management = true,
                "--warranty-voided" => taken.warranty_voided = true,
                "--no-build" => taken.no_build = true,
                _ if IGNORED.contains(&text) => taken.ignored.push(arg.clone()),
                _ if IGNORED_WITH_VALUE.contains(&text) && !rest.as_slice().is_empty() => {
                    taken.ignored.push(arg.clone());
                    taken.ignored.extend(rest.next().cloned());
                }
                _ if text.split_once('=').is_some_and(|(flag, _)| IGNORED_WITH_VALUE.contains(&flag)) => {
                    taken.ignored.push(arg.clone());
                }
                _ => others.push(arg.clone()),
            }
        }
        (taken, others)
    }

    /// Logs the flags that were given.
    pub(super) fn log(&self) {
        if *self != Self::default() {
            tracing::debug!(flags = ?self, "flags of rcc, most of which have no effect");
        }
    }

    /// Adds what concerns the variables of a space.
    pub(super) fn managed(&self, flags: ActivationFlags) -> ActivationFlags {
        let Self { no_pyc_management, no_temp_management, warranty_voided, .. } = *self;
        ActivationFlags { no_pyc_management, no_temp_management, warranty_voided, ..flags }
    }
}
