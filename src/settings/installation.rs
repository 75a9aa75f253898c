//! rcc's name for an installation, which it passes on to programs as `RCC_INSTALLATION_ID`.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::sys::guarded;
use crate::yaml::Document;

/// The largest file that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// `tracking.identity` of rcc's home. rcc makes a random one when it runs for the first time. Until then the name is made
/// from the path of the home, so that it stays the same without a file.
pub(super) fn name(robocorp_home: &Path) -> String {
    recorded(&robocorp_home.join("rcc.yaml")).unwrap_or_else(|| {
        let digest = Sha256::digest([b"holofs:", robocorp_home.as_os_str().as_bytes()].concat());
        let hex: Vec<String> = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().concat();
        [part(0, 4), part(4, 6), part(6, 8), part(8, 10), part(10, 16)].join("-")
    })
}

fn recorded(path: &Path) -> Option<String> {
    let bytes = guarded::read(path, LIMIT);
    let bytes = bytes.inspect_err(|error| tracing::debug!(%error, "no installation of rcc")).ok()?;
    let document = Document::parse(&bytes);
    let document = document.inspect_err(|error| tracing::debug!(%error, "rcc.yaml is ignored")).ok()??;
    let mut value = document.root()?;
    for key in ["tracking", "identity"] {
        let entries = value.entries().ok()?;
        value = entries.into_iter().find(|(name, _)| name.text().is_ok_and(|name| name == key))?.1;
    }
    value.text().ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_is_rccs_or_stays_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let own = name(dir.path());
        assert_eq!(own.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        assert_eq!(name(dir.path()), own);
        let file = dir.path().join("rcc.yaml");
        std::fs::write(&file, "tracking:\n    identity: f0ec5b04-3f69-2b27\nother: 1\n").unwrap();
        assert_eq!(name(dir.path()), "f0ec5b04-3f69-2b27");
        std::fs::write(&file, "- a\n").unwrap();
        assert_eq!(name(dir.path()), own);
    }
}
