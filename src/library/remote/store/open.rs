//! Opens the client of a service by the scheme of a URL, with the credentials that the service's own tools would use.
//!
//! Order for Amazon S3: variables, web identity, the files of Amazon's tools, the container's, and at last the machine's
//! metadata. For the others, what the client does with their variables; Google's default file is looked for by the client.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

use super::http::Connector;
use crate::library::remote::counters::Counters;
use crate::settings::remote::aws::{AwsError, Profile, profile};
use crate::settings::remote::{RemoteSettings, Secret};
use crate::sys::guarded;

/// The largest bundle of certificates, in bytes.
pub(super) const CERTIFICATES: u64 = 8 << 20;
/// The longest wait for a connection.
pub(super) const CONNECT: Duration = Duration::from_secs(5);

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The text does not repeat the URL: there may be a password in it.
    #[error(
        "a URL with a user, a password, a query or a fragment: credentials belong into variables or files"
    )]
    Secret,
    #[error("{0}: not the URL of an object store")]
    NotAStore(String),
    #[error(transparent)]
    Aws(#[from] AwsError),
    #[error("{path}: {why}")]
    Certificates { path: String, why: &'static str },
    /// The service lacks a setting.
    #[error("{url}: {why}")]
    Setting { url: String, why: String },
    #[error("{url}: no credentials were found, and AWS_EC2_METADATA_DISABLED is set")]
    NoCredentials { url: String },
}

/// A client, and the path below which the objects are.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) prefix: Path,
    pub(super) scheme: ObjectStoreScheme,
}

/// The URL in its usual form, without the slash at the end.
///
/// # Errors
/// When it is none of an object store, or has something secret in it.
pub fn checked(url: &str) -> Result<String, OpenError> {
    Ok(parse(url)?.0.as_str().trim_end_matches('/').to_owned())
}

fn parse(text: &str) -> Result<(Url, ObjectStoreScheme, Path), OpenError> {
    // What cannot be parsed is not shown beyond its scheme: it may be a typing error in a URL with a password.
    let shown = text.split("://").next().filter(|scheme| scheme.len() < 20).unwrap_or("it");
    let not_a_store = || OpenError::NotAStore(format!("{shown}://..."));
    let url = Url::parse(text).map_err(|_| not_a_store())?;
    // `az://container@account.host/path` has a container where others have a user.
    let is_container = matches!(url.scheme(), "az" | "abfs" | "abfss");
    let has_user = !url.username().is_empty() && !is_container;
    if has_user || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(OpenError::Secret);
    }
    let (scheme, prefix) = ObjectStoreScheme::parse(&url).map_err(|_| not_a_store())?;
    match scheme {
        ObjectStoreScheme::Memory => Err(not_a_store()),
        _ => Ok((url, scheme, prefix)),
    }
}

/// Makes the client of a URL. Sends nothing.
pub(super) fn open(
    url: &str,
    settings: &RemoteSettings,
    counters: &Arc<Counters>,
) -> Result<Client, OpenError> {
    let (url, scheme, prefix) = parse(url)?;
    let connector = || Connector(Arc::clone(counters));
    let options = || options(&url, settings);
    let failed = |error: object_store::Error| OpenError::Setting { url: url.to_string(), why: short(&error) };
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::Local => Arc::new(LocalFileSystem::new().with_fsync(true)),
        ObjectStoreScheme::AmazonS3 => {
            let (aws, allow_http) = aws(&url, settings)?;
            let options = options()?.with_allow_http(allow_http);
            let aws = aws.with_client_options(options).with_retry(retries()).with_http_connector(connector());
            Arc::new(aws.build().map_err(failed)?)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let builder = GoogleCloudStorageBuilder::new().with_url(url.as_str());
            let builder = of_service(settings, "GOOGLE_", builder, |builder, key, value| match key.parse() {
                Ok(key) => builder.with_config(key, value),
                Err(_) => builder,
            });
            let is_http = starts_with_http(settings.variable("GOOGLE_BASE_URL"));
            let builder =
                builder.with_client_options(options()?.with_allow_http(is_http)).with_retry(retries());
            Arc::new(builder.with_http_connector(connector()).build().map_err(failed)?)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let builder = MicrosoftAzureBuilder::new().with_url(url.as_str());
            let builder = of_service(settings, "AZURE_", builder, |builder, key, value| match key.parse() {
                Ok(key) => builder.with_config(key, value),
                Err(_) => builder,
            });
            let is_http = starts_with_http(settings.variable("AZURE_STORAGE_ENDPOINT"));
            let builder =
                builder.with_client_options(options()?.with_allow_http(is_http)).with_retry(retries());
            Arc::new(builder.with_http_connector(connector()).build().map_err(failed)?)
        }
        _ => {
            let root = &url[..url::Position::BeforePath];
            let is_http = url.scheme() == "http";
            let builder = HttpBuilder::new().with_url(root).with_retry(retries());
            let builder = builder.with_client_options(options()?.with_allow_http(is_http));
            Arc::new(builder.with_http_connector(connector()).build().map_err(failed)?)
        }
    };
    Ok(Client { store, prefix, scheme })
}

/// Passes the variables of a service on to its builder.
fn of_service<B>(
    settings: &RemoteSettings,
    prefix: &str,
    builder: B,
    with: impl Fn(B, &str, &str) -> B,
) -> B {
    let all = settings.variables.iter().filter(|(name, _)| name.starts_with(prefix));
    all.fold(builder, |builder, (name, Secret(value))| with(builder, &name.to_ascii_lowercase(), value))
}

fn starts_with_http(endpoint: Option<&str>) -> bool {
    endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"))
}

/// The builder for S3, and whether the endpoint was given without TLS.
fn aws(url: &Url, settings: &RemoteSettings) -> Result<(AmazonS3Builder, bool), OpenError> {
    let has = |name| settings.variable(name).is_some();
    let has_keys = has("AWS_ACCESS_KEY_ID")
        || (has("AWS_WEB_IDENTITY_TOKEN_FILE") && has("AWS_ROLE_ARN"))
        || has("AWS_SKIP_SIGNATURE");
    let profile = match profile(&settings.aws) {
        // The keys of the profile are not needed.
        Err(AwsError::Unsupported { .. }) if has_keys => Profile::default(),
        profile => profile?,
    };
    let builder = AmazonS3Builder::new().with_url(url.as_str());
    let mut builder = of_service(settings, "AWS_", builder, |builder, key, value| match key.parse() {
        Ok(key) => builder.with_config(key, value),
        Err(_) => builder,
    });
    let mut endpoint = settings.variable("AWS_ENDPOINT_URL_S3").or(settings.variable("AWS_ENDPOINT_URL"));
    if let Some(region) = &profile.region
        && !has("AWS_REGION")
        && !has("AWS_DEFAULT_REGION")
    {
        builder = builder.with_region(region);
    }
    if let (None, Some(of_profile)) = (endpoint, &profile.endpoint) {
        builder = builder.with_endpoint(of_profile);
        endpoint = Some(of_profile);
    }
    if !has_keys {
        let elsewhere =
            has("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") || has("AWS_CONTAINER_CREDENTIALS_FULL_URI");
        match &profile.keys {
            Some((Secret(id), Secret(secret))) => {
                builder = builder.with_access_key_id(id).with_secret_access_key(secret);
                if let Some(Secret(token)) = &profile.session_token {
                    builder = builder.with_token(token);
                }
            }
            None if !elsewhere && !settings.metadata => {
                return Err(OpenError::NoCredentials { url: url.to_string() });
            }
            None => {}
        }
    }
    let allow_http = starts_with_http(endpoint);
    Ok((builder, allow_http))
}

/// The options of a client: who is trusted, and through which proxy.
fn options(url: &Url, settings: &RemoteSettings) -> Result<ClientOptions, OpenError> {
    let mut options = ClientOptions::new().with_connect_timeout(CONNECT).with_timeout_disabled();
    if let Some(path) = &settings.ca_bundle {
        let refused = |why| OpenError::Certificates { path: path.display().to_string(), why };
        let pem = guarded::read_through_link(path, CERTIFICATES).map_err(|_| refused("it cannot be read"))?;
        let all = Certificate::from_pem_bundle(&pem).map_err(|_| refused("not a bundle of certificates"))?;
        options = all.into_iter().fold(options, ClientOptions::with_root_certificate);
    }
    let proxy = if url.scheme() == "http" { &settings.http_proxy } else { &settings.https_proxy };
    if let Some(Secret(proxy)) = proxy {
        options = options.with_proxy_url(proxy);
        if !settings.no_proxy.is_empty() {
            options = options.with_proxy_excludes(&settings.no_proxy);
        }
    }
    Ok(options)
}

/// How the client itself tries again, within one attempt of ours: shortly, so that a token that is asked for in between
/// does not fail at the first error. Our own loop goes on until the time limit.
fn retries() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(1),
        base: 2.0,
    };
    RetryConfig { backoff, max_retries: 2, retry_timeout: Duration::from_secs(5) }
}

/// What a builder complains about. Its text names settings, and never their values, apart from URLs.
fn short(error: &object_store::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit("error: ").next().unwrap_or(&text);
    if text.contains("://") { "a setting of its service is wrong".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_with_secrets_are_refused_and_not_repeated() {
        for url in [
            "s3://me:s3cr3t@bucket/x",
            "https://s3cr3t@host/x",
            "https://host/x?sig=s3cr3t",
            "https://host/x#s3cr3t",
            "az://c:s3cr3t@account/x",
            "gopher://me:s3cr3t@x",
            "memory:///s3cr3t",
            "http://[s3cr3t",
        ] {
            let error = checked(url).unwrap_err().to_string();
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }

    #[test]
    fn urls_of_all_services_are_taken() {
        for (url, usual) in [
            ("s3://bucket/a/", "s3://bucket/a"),
            ("gs://bucket", "gs://bucket"),
            ("az://container/a", "az://container/a"),
            ("az://c@account.blob.core.windows.net/a", "az://c@account.blob.core.windows.net/a"),
            ("https://host:8080/a/b", "https://host:8080/a/b"),
            ("file:///tmp/a b", "file:///tmp/a%20b"),
        ] {
            assert_eq!(checked(url).unwrap(), usual);
        }
    }

    #[test]
    fn without_credentials_nothing_is_opened() {
        let settings = RemoteSettings { metadata: false, ..RemoteSettings::default() };
        let counters = Arc::default();
        let error = open("s3://bucket/a", &settings, &counters).unwrap_err();
        assert!(matches!(error, OpenError::NoCredentials { .. }), "{error}");
        // An account is missing.
        let error = open("az://container/a", &settings, &counters).unwrap_err().to_string();
        assert!(error.contains("Account must be specified"), "{error}");
    }
}
