//! The settings of object stores: time limits, and what their services need to know, by the variables and files that the
//! services' own tools use.
//!
//! The files are read when a store is opened, and not before: most commands open none.
//!
//! Invariant: the values of a service's variables are never printed, because some of them are credentials.

#[cfg(feature = "remote")]
pub mod aws;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{Flags, Network, Setting, SettingsError, Variables, on_or_off, set, variable};

/// The default for how long a store may not answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The variables of Amazon S3 and of stores that speak its protocol. The client knows them by these names.
const AWS: &[&str] = &[
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL_STS",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    "AWS_SKIP_SIGNATURE",
    "AWS_REQUEST_PAYER",
    "AWS_UNSIGNED_PAYLOAD",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
    "AWS_SERVER_SIDE_ENCRYPTION",
    "AWS_SSE_KMS_KEY_ID",
];

/// Those of Google Cloud Storage.
const GOOGLE: &[&str] = &[
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_BEARER_TOKEN",
    "GOOGLE_BASE_URL",
    "GOOGLE_SKIP_SIGNATURE",
];

/// Those of Azure Blob Storage.
const AZURE: &[&str] = &[
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
    "AZURE_STORAGE_ENDPOINT",
    "AZURE_STORAGE_USE_EMULATOR",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_AUTHORITY_HOST",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_IDENTITY_ENDPOINT",
    "AZURE_USE_AZURE_CLI",
    "AZURE_SKIP_SIGNATURE",
];

/// A text that is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The settings of object stores.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteSettings {
    /// How long a request is tried again while a store does not answer.
    pub timeout: Setting<Duration>,
    /// Libraries in object stores are read from the cache only.
    pub offline: Setting<bool>,
    /// The variables of the services that are set.
    pub variables: Vec<(&'static str, Secret)>,
    /// The files of Amazon's tools, and the profile in them.
    pub aws: AwsFiles,
    /// Off with `AWS_EC2_METADATA_DISABLED`: the machine is not asked for credentials.
    pub metadata: bool,
    /// `RCC_REMOTE_AUTHORIZATION`: sent to a server of rcc as it is.
    pub rcc_authorization: Option<Secret>,
    /// `RCC_REMOTE_ORIGIN`: the server of rcc to pull from if none is given.
    pub rcc_origin: Option<String>,
    /// `https-proxy` in rcc's `settings.yaml`.
    pub https_proxy: Option<Secret>,
    /// `http-proxy`
    pub http_proxy: Option<Secret>,
    /// `no-proxy`
    pub no_proxy: String,
    /// `ca-bundle.pem` in rcc's home: certificates to trust in addition to the system's.
    pub ca_bundle: Option<PathBuf>,
}

impl Default for RemoteSettings {
    fn default() -> Self {
        Self {
            timeout: Setting::built_in(TIMEOUT),
            offline: Setting::default(),
            variables: Vec::new(),
            aws: AwsFiles::default(),
            metadata: true,
            rcc_authorization: None,
            rcc_origin: None,
            https_proxy: None,
            http_proxy: None,
            no_proxy: String::new(),
            ca_bundle: None,
        }
    }
}

/// Where Amazon's tools keep credentials and settings.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct AwsFiles {
    /// `AWS_SHARED_CREDENTIALS_FILE`, or `~/.aws/credentials`
    pub credentials: Option<PathBuf>,
    /// `AWS_CONFIG_FILE`, or `~/.aws/config`
    pub config: Option<PathBuf>,
    /// `AWS_PROFILE`. None for the default one.
    pub profile: Option<String>,
}

impl RemoteSettings {
    pub(super) fn read(
        flags: &Flags,
        variables: Variables<'_>,
        network: &Network,
    ) -> Result<Self, SettingsError> {
        let text = |name: &str| Some(set(variables, name)?.to_string_lossy().into_owned());
        let timeout = match flags.remote_timeout {
            Some(limit) => Setting::flag(limit),
            None => variable(variables, "HOLOFS_REMOTE_TIMEOUT", positive_seconds)?
                .unwrap_or(Setting::built_in(TIMEOUT)),
        };
        let offline = match flags.offline {
            true => Setting::flag(true),
            false => variable(variables, "HOLOFS_OFFLINE", on_or_off)?.unwrap_or_default(),
        };
        let known = [AWS, GOOGLE, AZURE].into_iter().flatten();
        let in_home = |file: &str| Some(PathBuf::from(set(variables, "HOME")?).join(".aws").join(file));
        let file = |name: &str, default: &str| {
            set(variables, name).map(|path: OsString| path.into()).or_else(|| in_home(default))
        };
        let secret = |text: &str| Some(text).filter(|text| !text.is_empty()).map(|text| Secret(text.into()));
        Ok(Self {
            timeout,
            offline,
            variables: known.filter_map(|name| Some((*name, Secret(text(name)?)))).collect(),
            aws: AwsFiles {
                credentials: file("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
                config: file("AWS_CONFIG_FILE", "config"),
                profile: text("AWS_PROFILE").or_else(|| text("AWS_DEFAULT_PROFILE")),
            },
            metadata: !text("AWS_EC2_METADATA_DISABLED")
                .is_some_and(|text| text.eq_ignore_ascii_case("true")),
            rcc_authorization: text("RCC_REMOTE_AUTHORIZATION").map(Secret),
            rcc_origin: text("RCC_REMOTE_ORIGIN"),
            https_proxy: secret(&network.https_proxy),
            http_proxy: secret(&network.http_proxy),
            no_proxy: network.no_proxy.clone(),
            ca_bundle: network.ca_bundle.clone(),
        })
    }

    /// The value of a service's variable. Not to be printed.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(known, _)| *known == name).map(|(_, Secret(value))| &**value)
    }

    /// The names of the variables that are set, for people.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.variables.iter().map(|(name, _)| *name).collect()
    }
}

/// Parses a number of seconds that is not zero.
fn positive_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err("expected a number of seconds".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(flags: &Flags, set: &[(&str, &str)]) -> Result<RemoteSettings, SettingsError> {
        let variables =
            |name: &str| set.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        RemoteSettings::read(flags, &variables, &Network::default())
    }

    #[test]
    fn variables_of_services_are_read_and_never_printed() {
        let found = read(
            &Flags::default(),
            &[
                ("AWS_SECRET_ACCESS_KEY", "s3cr3t"),
                ("AWS_REGION", "garage"),
                ("AZURE_STORAGE_SAS_TOKEN", "sig=s3cr3t"),
                ("RCC_REMOTE_AUTHORIZATION", "Bearer s3cr3t"),
                ("HOME", "/home/u"),
                ("AWS_PROFILE", "work"),
            ],
        )
        .unwrap();
        assert_eq!(found.variable("AWS_SECRET_ACCESS_KEY"), Some("s3cr3t"));
        assert_eq!(found.names(), ["AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AZURE_STORAGE_SAS_TOKEN"]);
        assert_eq!(found.aws.credentials.as_deref(), Some("/home/u/.aws/credentials".as_ref()));
        assert_eq!((found.aws.profile.as_deref(), found.metadata), (Some("work"), true));
        assert!(!format!("{found:?}").contains("s3cr3t"));
    }

    #[test]
    fn flags_come_before_variables_and_bad_values_are_refused() {
        let set = [("HOLOFS_REMOTE_TIMEOUT", "5"), ("HOLOFS_OFFLINE", "1")];
        let found = read(&Flags::default(), &set).unwrap();
        assert_eq!((found.timeout.value.as_secs(), found.offline.value), (5, true));
        let flags = Flags { remote_timeout: Some(Duration::from_secs(7)), ..Flags::default() };
        assert_eq!(read(&flags, &set).unwrap().timeout.value.as_secs(), 7);
        for bad in [("HOLOFS_REMOTE_TIMEOUT", "0"), ("HOLOFS_REMOTE_TIMEOUT", "x"), ("HOLOFS_OFFLINE", "?")] {
            assert!(
                matches!(read(&Flags::default(), &[bad]), Err(SettingsError::Variable { .. })),
                "{bad:?}"
            );
        }
    }
}
