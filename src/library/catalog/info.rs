//! What is known of an environment beside its tree: the header of its catalog, and where it is shown.

use serde::{Deserialize, Serialize};

/// The header of a catalog, and rcc's own counts of its entries.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CatalogInfo {
    /// The version of rcc that wrote it. Old versions wrote none.
    pub rcc: String,
    /// The name of the stage: the 24 bytes that relocation replaces.
    pub identity: String,
    /// The path of the stage. Spaces lie in its parent directory.
    pub path: String,
    /// Such as `linux_amd64`.
    pub platform: String,
    /// The hash of the blueprint, 16 hexadecimal digits.
    pub blueprint: String,
    /// Directories. Like the other counts, this includes what rcc lists once more below links to directories.
    pub rcc_directories: u64,
    pub rcc_files: u64,
    /// The sum of the sizes of all files.
    pub rcc_bytes: u64,
    /// Files with relocations.
    pub rcc_relocations: u64,
    /// The path at which the environment is shown, if it is not a directory beside `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placed: Option<Placed>,
}

/// Where an environment is shown, and what does not fit there.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Placed {
    /// The path at which the environment is shown.
    pub path: String,
    /// The number of unpatched files and links.
    pub unpatched: u32,
    /// The first of them, by their paths in the environment.
    pub named: Vec<String>,
}
