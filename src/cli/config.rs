//! `holofs config`: the settings in force, and where each was set.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::exit::Failure;
use super::{Context, output};
use crate::settings::{SetBy, Setting};

#[derive(Debug, clap::Args)]
#[command(after_help = "The first of these that sets a value is used: a flag, a variable of holofs
(HOLOFS_STRATEGY, HOLOFS_IO, HOLOFS_VERIFY, HOLOFS_LOG, HOLOFS_HOME, HOLOFS_CACHE_DIR,
HOLOFS_PRODUCT, HOLOFS_HANG_TIMEOUT, HOLOFS_SCOPE, HOLOFS_MOUNT_HELPER, HOLOFS_RCC,
HOLOFS_REMOTE_TIMEOUT, HOLOFS_OFFLINE), a variable of rcc (ROBOCORP_HOME or
SEMA4AI_HOME, RCC_HOLOTREE_STRATEGY, RCC_NO_PYC_MANAGEMENT, RCC_NO_TEMP_MANAGEMENT),
settings.yaml in rcc's home, the default. `--no-config` leaves settings.yaml out.

settings.yaml:
  holotree:
    restoration-strategy: smart    # or reflink, copy, hardlink
    hardlink-excludes: []          # only for restores

Examples:
  holofs config
  RCC_HOLOTREE_STRATEGY=copy holofs config --json")]
pub(super) struct Args {}

/// A setting, as printed.
#[derive(Serialize)]
struct Row {
    #[serde(skip)]
    name: &'static str,
    value: Value,
    #[serde(flatten)]
    source: SetBy,
}

fn row<T>(name: &'static str, setting: &Setting<T>, value: impl Fn(&T) -> Value) -> Row {
    Row { name, value: value(&setting.value), source: setting.source.clone() }
}

pub(super) fn run(context: &Context) -> Result<u8, Failure> {
    let settings = &context.settings;
    let mount = settings.mount.as_ref()?;
    let path = |path: &std::path::PathBuf| path.to_string_lossy().into();
    let rows = [
        row("product", &settings.product, |product| product.to_string().into()),
        row("home", &settings.robocorp_home, path),
        row("holofs-home", &settings.holofs_home, path),
        row("cache-dir", &settings.cache_dir, path),
        row("controller", &settings.controller, |name| name.as_str().into()),
        row("strategy", &mount.strategy, |strategy| strategy.to_string().into()),
        row("restore-strategy", &mount.restore_strategy, |strategy| strategy.to_string().into()),
        row("io", &mount.io, |io| io.to_string().into()),
        row("verify", &mount.verify, |verify| verify.to_string().into()),
        row("pycache", &mount.pycache, |is_on| (*is_on).into()),
        row("cache-size", &mount.cache_size, |bytes| (*bytes).into()),
        row("lock-timeout", &settings.lock_timeout, |wait| wait.as_secs_f64().into()),
        row("hang-timeout", &mount.hang_timeout, |limit| limit.as_secs_f64().into()),
        row("scope", &mount.scope, |is_on| (*is_on).into()),
        row("mount-helper", &mount.mount_helper, |helper| helper.to_string().into()),
        row("hardlink-excludes", &mount.hardlink_excludes, |list| list.as_slice().into()),
        row("rcc", &settings.caller.rcc, |rcc| {
            rcc.as_ref().map_or("rcc on PATH".into(), |rcc| rcc.to_string_lossy().into())
        }),
        row("pyc-management", &settings.caller.pyc_management, |is_on| (*is_on).into()),
        row("temp-management", &settings.caller.temp_management, |is_on| (*is_on).into()),
        row("network", &mount.network, |network| serde_json::to_value(network).unwrap_or_default()),
        row("remote-timeout", &mount.remote.timeout, |limit| limit.as_secs_f64().into()),
        row("offline", &mount.remote.offline, |is_on| (*is_on).into()),
        // Their names only: some of them are credentials.
        row("remote-variables", &Setting { value: mount.remote.names(), source: SetBy::Default }, |names| {
            names.as_slice().into()
        }),
        row("log", &settings.log_level, |level| level.to_string().into()),
    ];
    let line = |Row { name, value, source }: &Row| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("{name:<17} = {value} ({source})")
    };
    let by_name: BTreeMap<_, _> = rows.iter().map(|row| (row.name, row)).collect();
    output::print_result(context, &by_name, || rows.iter().map(line).collect())
}
