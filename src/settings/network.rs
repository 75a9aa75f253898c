//! The network settings of rcc, which it passes on to the programs in an environment: two sections of `settings.yaml`, and
//! two files beside it.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

/// What rcc's home says about the network. Passwords of proxies are left out when it is printed.
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
    #[serde(serialize_with = "without_password")]
    pub https_proxy: String,
    /// `network: http-proxy`
    #[serde(serialize_with = "without_password")]
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

fn without_password<S: Serializer>(proxy: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&masked(proxy))
}

/// A proxy as shown: `***` is in the place of the password. What is before the last `@` is taken for user and password,
/// because a password may contain any other character.
fn masked(proxy: &str) -> String {
    let (scheme, rest) = match proxy.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), proxy),
    };
    match rest.rsplit_once('@') {
        None => proxy.to_owned(),
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{scheme}{user}:***@{host}"),
            None => format!("{scheme}***@{host}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (proxy, shown) in [
            ("http://proxy:1", "http://proxy:1"),
            ("http://me:secret@proxy:1", "http://me:***@proxy:1"),
            ("me:secret@proxy:1", "me:***@proxy:1"),
            ("http://me:sec/r@et:x@proxy:1/", "http://me:***@proxy:1/"),
            ("http://token@proxy", "http://***@proxy"),
            ("", ""),
        ] {
            assert_eq!(masked(proxy), shown);
        }
    }
}
