//! Flags of rcc that programs add to its command lines, so that they can call holofs in the same way.
//!
//! Every command accepts them. Most have no effect here.

use std::ffi::OsString;

use crate::session::activation::ActivationFlags;

#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct OfRcc {
    #[arg(long, global = true, hide = true)]
    no_pyc_management: bool,
    #[arg(long, global = true, hide = true)]
    no_temp_management: bool,
    #[arg(long, global = true, hide = true)]
    warranty_voided: bool,
    /// Overrides `--build`.
    #[arg(long, global = true, hide = true)]
    pub(super) no_build: bool,
    #[arg(long, global = true, hide = true)]
    no_retry_build: bool,
    #[arg(long, global = true, hide = true)]
    bundled: bool,
    #[arg(long, global = true, hide = true)]
    robocorp: bool,
    #[arg(long, global = true, hide = true)]
    sema4ai: bool,
    #[arg(long, global = true, hide = true)]
    liveonly: bool,
    #[arg(id = "rcc_config", long = "config", global = true, hide = true)]
    config: Option<OsString>,
    #[arg(id = "rcc_anything", long = "anything", global = true, hide = true)]
    anything: Option<OsString>,
    #[arg(id = "rcc_tag", long = "tag", global = true, hide = true)]
    tag: Option<OsString>,
}

impl OfRcc {
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
