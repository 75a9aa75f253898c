//! Reads `settings.yaml` in rcc's home: the section `holotree`, and what rcc passes on to programs from `certificates` and
//! `network`.
//!
//! rcc refuses to run with a broken file, so a broken file is an error here too. The other sections belong to rcc and are
//! ignored. If the file has several documents, only the first one is used, as in rcc.

use std::path::Path;

use super::{Network, RestoreStrategy, SetBy, Setting, SettingsError, choice};
use crate::sys::guarded;
use crate::yaml::{BadFile, Document, Meaning, Value, YamlError};

/// The largest file that is read, in bytes. rcc's template has 3,000 bytes.
const LIMIT: u64 = 1 << 20;

/// The values that the file sets.
#[derive(Debug, Default)]
pub(super) struct Values {
    pub(super) strategy: Option<Setting<RestoreStrategy>>,
    pub(super) hardlink_excludes: Option<Setting<Vec<String>>>,
    pub(super) pycache: Option<Setting<bool>>,
    pub(super) network: Setting<Network>,
}

/// Reads the file. A file that does not exist sets nothing.
pub(super) fn read(path: &Path) -> Result<Values, SettingsError> {
    match guarded::read_through_link(path, LIMIT) {
        Ok(bytes) => parse(path, &bytes),
        Err(error) if error.is_not_found() => Ok(Values::default()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Values, SettingsError> {
    let found =
        Document::parse(bytes).and_then(|document| match document.as_ref().and_then(Document::root) {
            Some(root) => values(path, root),
            None => Ok(Values::default()),
        });
    Ok(found.map_err(BadFile::at(path))?)
}

fn values(path: &Path, root: Value<'_>) -> Result<Values, YamlError> {
    let network = network(path, root)?;
    let Some(section) = entry(root, "holotree")? else {
        return Ok(Values { network, ..Values::default() });
    };
    let strategy = match entry(section, "restoration-strategy")? {
        Some(value) => {
            let named = choice(&value.text()?).map_err(|why| value.error(why))?;
            Some(setting(path, value, named))
        }
        None => None,
    };
    let pycache = entry(section, "pycache")?;
    let pycache = pycache.map(|value| Ok::<_, YamlError>(setting(path, value, truth(value)?))).transpose()?;
    let excludes = entry(section, "hardlink-excludes")?;
    let hardlink_excludes =
        excludes.map(|value| Ok::<_, YamlError>(setting(path, value, value.texts()?))).transpose()?;
    Ok(Values { strategy, hardlink_excludes, pycache, network })
}

/// The value of a key in a mapping. None when the mapping or the value is null, or there is no such key.
fn entry<'d>(mapping: Value<'d>, key: &str) -> Result<Option<Value<'d>>, YamlError> {
    let mut found = None;
    for (name, value) in mapping.entries()? {
        if name.text()? == key && found.replace(value).is_some() {
            return Err(mapping.error(format!("{key} is given twice")));
        }
    }
    Ok(found.filter(|value| !value.is_null()))
}

/// As in rcc, a section `certificates` replaces all of rcc's defaults: what it leaves out is off.
fn network(path: &Path, root: Value<'_>) -> Result<Setting<Network>, YamlError> {
    let mut network = Network::default();
    let mut first = None;
    if let Some(section) = entry(root, "certificates")? {
        first = Some(section);
        let is_set = |key| entry(section, key)?.map_or(Ok(false), truth);
        network.verify_ssl = is_set("verify-ssl")?;
        network.no_revoke = is_set("ssl-no-revoke")?;
        network.legacy_renegotiation = is_set("legacy-renegotiation-allowed")?;
    }
    if let Some(section) = entry(root, "network")? {
        first = first.or(Some(section));
        let text = |key| entry(section, key)?.map_or(Ok(String::new()), Value::text);
        network.https_proxy = text("https-proxy")?;
        network.http_proxy = text("http-proxy")?;
        network.no_proxy = text("no-proxy")?;
    }
    Ok(match first {
        Some(section) => setting(path, section, network),
        None => Setting { value: network, source: SetBy::Default },
    })
}

fn truth(value: Value<'_>) -> Result<bool, YamlError> {
    match value.scalar()? {
        Some((Meaning::Bool, text)) => {
            Ok(matches!(text.to_ascii_lowercase().as_str(), "true" | "yes" | "on" | "y"))
        }
        _ => Err(value.error("expected true or false")),
    }
}

fn setting<T>(path: &Path, value: Value<'_>, named: T) -> Setting<T> {
    Setting { value: named, source: SetBy::File { path: path.to_owned(), line: value.line() } }
}
