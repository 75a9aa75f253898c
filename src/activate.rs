//! The variables of a space: what `rcc holotree variables` prints, and what a program in the space gets.
//!
//! A program finds its environment by variables: `PATH`, `CONDA_PREFIX`, `PYTHON_EXE` and some thirty more. rcc computes
//! them after it has swept the whole tree. Here they are computed from what was given ([`Given`]) and from three small files
//! of the space ([`space::Facts`]), in rcc's order and with rcc's values. A name can occur more than once, as in rcc: the
//! last value counts.
//!
//! Invariant: [`variables`] reads nothing. The same values in give the same list out.

pub mod env_file;
pub mod format;
mod path;
pub mod program;
pub mod space;
pub mod temp;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::settings::Network;
use crate::sys::lexically_clean;
pub use space::Facts;

/// The version of rcc whose rules these are: the value of `RCC_VERSION`. Programs test it to learn what they can expect of
/// their surroundings. Asking an installed rcc for its version takes longer than a mount.
pub const RCC_VERSION: &str = "v18.18.1";

/// A variable of the process environment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: OsString,
}

impl Variable {
    fn new(name: &str, value: impl Into<OsString>) -> Self {
        Self { name: name.to_owned(), value: value.into() }
    }
}

/// What the variables are made from.
#[derive(Clone, Debug)]
pub struct Given<'a> {
    /// The variables of `-e env.json`. They come first, so the others win.
    pub extra: Vec<Variable>,
    /// What the space's files say.
    pub facts: Facts,
    /// The space's directory.
    pub root: &'a Path,
    /// The blueprint's hash.
    pub blueprint: &'a str,
    /// rcc's home.
    pub robocorp_home: &'a Path,
    /// The variable that names rcc's home.
    pub home_variable: &'a str,
    /// The user part of the names of this user's spaces.
    pub user7: &'a str,
    /// rcc's `tracking.identity`.
    pub installation: &'a str,
    /// The directory for `TEMP`. None leaves out the variables that name it.
    pub temp: Option<&'a Path>,
    /// Keep Python from writing bytecode into the space.
    pub no_bytecode: bool,
    /// The space shows bytecode, and Python is to find it there.
    pub bytecode: bool,
    /// Set `TEMP` and `TMP`.
    pub own_temp: bool,
    /// The program rcc, if there is one.
    pub rcc: Option<&'a Path>,
    /// `PATH` of the caller.
    pub path: Option<&'a OsStr>,
    /// The current directory, for relative entries in `PATH`.
    pub cwd: &'a Path,
    /// What rcc's files say about the network.
    pub network: &'a Network,
    /// The caller gave `--warranty-voided`.
    pub warranty_voided: bool,
    /// The robot, if there is one.
    pub robot: Option<Places>,
}

/// The directories of a robot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Places {
    /// The directory of `robot.yaml`.
    pub root: PathBuf,
    /// The directory for results.
    pub artifacts: PathBuf,
    /// `PATH` of `robot.yaml`, absolute.
    pub path: Vec<PathBuf>,
    /// `PYTHONPATH` of `robot.yaml`, absolute.
    pub python_path: Vec<PathBuf>,
}

/// The variables in rcc's order.
#[must_use]
pub fn variables(given: &Given<'_>) -> Vec<Variable> {
    let mut out = given.extra.clone();
    let mut set = |name: &str, value: &dyn AsRef<OsStr>| out.push(Variable::new(name, value.as_ref()));
    if let Some(python) = &given.facts.python {
        set("PYTHON_EXE", &given.root.join(python));
    }
    if let Some(temp) = given.temp.filter(|_| given.no_bytecode && !given.bytecode) {
        set("PYTHONDONTWRITEBYTECODE", &"x");
        set("PYTHONPYCACHEPREFIX", &temp);
    } else if given.no_bytecode {
        set("PYTHONDONTWRITEBYTECODE", &"x");
    }
    if let Some(temp) = given.temp.filter(|_| given.own_temp) {
        set("TEMP", &temp);
        set("TMP", &temp);
    }
    if given.facts.is_venv {
        set("VIRTUAL_ENV", &given.root);
    } else {
        set("CONDA_DEFAULT_ENV", &"rcc");
        set("CONDA_PREFIX", &given.root);
        set("CONDA_PROMPT_MODIFIER", &"(rcc) ");
        set("CONDA_SHLVL", &"1");
    }
    for name in ["PYTHONHOME", "PYTHONSTARTUP", "PYTHONEXECUTABLE"] {
        set(name, &"");
    }
    set("PYTHONNOUSERSITE", &"1");
    set(given.home_variable, &given.robocorp_home);
    set("RCC_ENVIRONMENT_HASH", &given.blueprint);
    set("RCC_INSTALLATION_ID", &given.installation);
    set("RCC_HOLOTREE_SPACE_ROOT", &given.root);
    set("RCC_TRACKING_ALLOWED", &"false");
    if let Some(rcc) = given.rcc {
        set("RCC_EXE", &rcc);
    }
    set("RCC_VERSION", &RCC_VERSION);
    set("PATH", &search_path(given, &[]));
    out.extend(given.facts.activation.iter().cloned());
    network(given, &mut out);
    if let Some(robot) = &given.robot {
        let joined = |paths: &[PathBuf]| path::join(paths.iter().map(|path| path.as_os_str()));
        out.push(Variable::new("PATH", search_path(given, &robot.path)));
        out.push(Variable::new("PYTHONPATH", joined(&robot.python_path)));
        out.push(Variable::new("ROBOT_ROOT", &robot.root));
        out.push(Variable::new("ROBOT_ARTIFACTS", &robot.artifacts));
    }
    out.retain(|variable| variable.name != "PS1");
    out.push(Variable::new("HOLOFS_MOUNT", given.root));
    out.push(Variable::new("HOLOFS_VERSION", env!("CARGO_PKG_VERSION")));
    out
}

fn network(given: &Given<'_>, out: &mut Vec<Variable>) {
    let network = given.network;
    let mut set = |name: &str, value: &dyn AsRef<OsStr>| out.push(Variable::new(name, value.as_ref()));
    if network.no_revoke {
        set("MAMBA_SSL_NO_REVOKE", &"true");
    }
    if !network.verify_ssl {
        set("MAMBA_SSL_VERIFY", &"false");
        set("RC_DISABLE_SSL", &"true");
        set("WDM_SSL_VERIFY", &"0");
        set("NODE_TLS_REJECT_UNAUTHORIZED", &"0");
    }
    if network.legacy_renegotiation {
        set("RC_TLS_LEGACY_RENEGOTIATION_ALLOWED", &"true");
    }
    for (names, value) in [
        (["https_proxy", "HTTPS_PROXY"], &network.https_proxy),
        (["http_proxy", "HTTP_PROXY"], &network.http_proxy),
        (["no_proxy", "NO_PROXY"], &network.no_proxy),
    ] {
        if !value.is_empty() {
            names.iter().for_each(|name| set(name, value));
        }
    }
    if given.warranty_voided {
        set("RCC_WARRANTY_VOIDED", &"true");
    }
    if let Some(file) = &network.pip_config {
        set("PIP_CONFIG_FILE", file);
    }
    if let Some(file) = &network.ca_bundle {
        for name in ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"] {
            set(name, file);
        }
    }
}

/// The directories in which a program of the space is looked for: those of the robot, the space's own, then the caller's
/// without other environments.
#[must_use]
pub fn search_path(given: &Given<'_>, first: &[PathBuf]) -> OsString {
    let bin = given.root.join("bin");
    let mut callers = path::of_caller(given.path.unwrap_or_default(), given.user7);
    callers.retain(|entry| !path::is_of_another_environment(entry));
    joined(first.iter().chain([&bin]), &callers, given.cwd)
}

/// As [`search_path`], for a robot without an environment: everything of the caller, except his spaces.
#[must_use]
pub fn plain_search_path(path: Option<&OsStr>, user7: &str, cwd: &Path, first: &[PathBuf]) -> OsString {
    joined(first.iter(), &path::of_caller(path.unwrap_or_default(), user7), cwd)
}

fn joined<'a>(first: impl Iterator<Item = &'a PathBuf>, callers: &[OsString], cwd: &Path) -> OsString {
    let parts = first.map(|path| path.as_os_str()).chain(callers.iter().map(OsString::as_os_str));
    let absolute: Vec<PathBuf> = parts.map(|part| lexically_clean(&cwd.join(part))).collect();
    path::join(absolute.iter().map(|path| path.as_os_str()))
}

/// Keeps the last value of each name.
#[must_use]
pub fn deduplicated(variables: Vec<Variable>) -> Vec<Variable> {
    let names: Vec<String> = variables.iter().map(|variable| variable.name.clone()).collect();
    let is_last = |at: usize, name: &str| !names.iter().skip(at + 1).any(|later| later == name);
    variables.into_iter().enumerate().filter(|(at, v)| is_last(*at, &v.name)).map(|(_, v)| v).collect()
}

#[cfg(test)]
mod tests;
