//! The network settings of rcc, which it passes on to the programs in an environment: two sections of `settings.yaml`, and
//! two files beside it.

use std::path::{Path, PathBuf};

use serde::Serialize;

/// What rcc's home says about the network.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Network {
    /// `certificates: verify-ssl`
    pub verify_ssl: bool,
    /// `certificates: ssl-no-revoke`
    pub no_revoke: bool,
    /// `certificates: legacy-renegotiation-allowed`
    pub legacy_renegotiation: bool,
    /// `network: https-proxy`
    pub https_proxy: String,
    /// `network: http-proxy`
    pub http_proxy: String,
    /// `network: no-proxy`
    pub no_proxy: String,
    /// `piprc`, if it is a file.
    pub pip_config: Option<PathBuf>,
    /// `ca-bundle.pem`, if it is a file.
    pub ca_bundle: Option<PathBuf>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            verify_ssl: true,
            no_revoke: false,
            legacy_renegotiation: false,
            https_proxy: String::new(),
            http_proxy: String::new(),
            no_proxy: String::new(),
            pip_config: None,
            ca_bundle: None,
        }
    }
}

impl Network {
    /// Adds the files in rcc's home.
    pub(super) fn with_files_of(self, robocorp_home: &Path) -> Self {
        let file = |name| Some(robocorp_home.join(name)).filter(|path| path.is_file());
        Self { pip_config: file("piprc"), ca_bundle: file("ca-bundle.pem"), ..self }
    }
}
