//! The client of rccremote, the server from which rcc pulls environments.
//!
//! `GET /parts/<catalog>` gives the digests of a catalog's blobs, and `POST /delta/<catalog>` an archive with those that were
//! asked for and the catalog. The server does not check who asks, and it has defects, so nothing that it gives is trusted:
//! the archive is one like any other that is imported.
//!
//! Limit: an archive that was cut is asked for again from its beginning.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::{Certificate, Client, NoProxy, Proxy, StatusCode};
use url::Url;

use super::fault::Failed;
use super::http::may_pass_status;
use super::open::{CERTIFICATES, CONNECT, OpenError};
use super::persist::Persistence;
use super::wait::Threads;
use super::{install_provider, stopped};
use crate::library::catalogs::CatalogName;
use crate::library::digest::{Digest, NotADigest};
use crate::library::remote::StoreError;
use crate::library::remote::counters::Counters;
use crate::settings::remote::{RemoteSettings, Secret};
use crate::sys::guarded;

/// The largest list of digests, in bytes.
const MAX_PARTS: usize = 256 << 20;
/// The largest archive, in bytes.
const MAX_ARCHIVE: u64 = 256 << 30;
/// The server makes an archive before it answers, which takes long.
const MAKES: Duration = Duration::from_secs(600);

/// A server.
#[derive(Debug)]
pub struct RccRemote {
    url: String,
    offline: bool,
    client: Client,
    authorization: Option<HeaderValue>,
    limit: Duration,
    threads: Threads,
}

impl RccRemote {
    /// The server that is named by `rcc+http://`, `rcc+https://`, or by `rcc`, which means `RCC_REMOTE_ORIGIN`. None if the text
    /// names something else.
    ///
    /// # Errors
    /// When it names a server and cannot be used.
    pub fn named(text: &str, settings: &RemoteSettings) -> Result<Option<Self>, OpenError> {
        let origin = match (text, text.strip_prefix("rcc+")) {
            ("rcc", _) => settings.rcc_origin.as_deref().ok_or_else(|| OpenError::Setting {
                url: "rcc".into(),
                why: "RCC_REMOTE_ORIGIN is not set".into(),
            })?,
            (_, Some(origin)) => origin,
            _ => return Ok(None),
        };
        let not_a_store = || OpenError::NotAStore("rcc".to_owned());
        let url = Url::parse(origin).map_err(|_| not_a_store())?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(not_a_store());
        }
        let has_user = !url.username().is_empty() || url.password().is_some();
        if has_user || url.query().is_some() || url.fragment().is_some() {
            return Err(OpenError::Secret);
        }
        install_provider();
        let wrong = |why: &str| OpenError::Setting { url: url.to_string(), why: why.to_owned() };
        let authorization = settings.rcc_authorization.as_ref().map(|Secret(value)| {
            let mut header =
                HeaderValue::from_str(value).map_err(|_| wrong("RCC_REMOTE_AUTHORIZATION is no header"))?;
            header.set_sensitive(true);
            Ok::<_, OpenError>(header)
        });
        Ok(Some(Self {
            url: url.as_str().trim_end_matches('/').to_owned(),
            offline: settings.offline.value,
            client: client(&url, settings)?.build().map_err(|_| wrong("no client can be made"))?,
            authorization: authorization.transpose()?,
            limit: settings.timeout.value,
            threads: Threads::default(),
        }))
    }

    /// The URL, for messages.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The digests of a catalog's blobs.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the server does not have the catalog.
    pub fn parts(&self, catalog: &CatalogName) -> Result<Vec<Digest>, StoreError> {
        let bytes = self.ask("parts", catalog, None, Kept::Memory(Vec::new()))?;
        let Kept::Memory(bytes) = bytes else { return Ok(Vec::new()) };
        // rcc lists texts in place of the digests of some links.
        let digests = bytes.split(|byte| *byte == b'\n').filter(|line| line.len() > 10);
        let digests: Result<Vec<Digest>, NotADigest> = digests.map(Digest::parse).collect();
        digests.map_err(|error| StoreError::Refused {
            object: format!("{}/parts/{catalog}", self.url),
            why: error.to_string(),
        })
    }

    /// Fetches the archive with these blobs and the catalog.
    ///
    /// # Errors
    /// As [`RccRemote::parts`].
    pub fn delta(&self, catalog: &CatalogName, wanted: &[Digest], to: File) -> Result<File, StoreError> {
        let lines: Vec<String> = wanted.iter().map(Digest::to_string).collect();
        match self.ask("delta", catalog, Some(lines.join("\n")), Kept::Disk(to))? {
            Kept::Disk(file) => Ok(file),
            Kept::Memory(_) => {
                Err(stopped(&self.url, &io::Error::other("an archive was kept in the wrong place")))
            }
        }
    }

    /// Sends a request until it is answered. The body goes to `to`.
    fn ask(
        &self,
        what: &str,
        catalog: &CatalogName,
        body: Option<String>,
        to: Kept,
    ) -> Result<Kept, StoreError> {
        let object = format!("{}/{what}/{catalog}", self.url);
        if self.offline {
            return Err(StoreError::Offline { object });
        }
        let (client, authorization) = (self.client.clone(), self.authorization.clone());
        let persistence =
            Persistence { url: self.url.clone(), limit: self.limit, counters: Arc::new(Counters::default()) };
        let shown = object.clone();
        let work = async move {
            let mut tries = persistence.begin();
            let mut to = to;
            loop {
                let mut request = match &body {
                    None => client.get(&object),
                    Some(body) => client.post(&object).body(body.clone()),
                };
                if let Some(authorization) = &authorization {
                    request = request.header(AUTHORIZATION, authorization);
                }
                match once(request, &mut to).await {
                    Ok(()) => return Ok(to),
                    Err(Wrong::Failed(failed)) => tries.after(failed, &object).await?,
                    Err(Wrong::Kept(source)) => return Err(StoreError::Content { object, source }),
                }
            }
        };
        self.threads.wait(work).map_err(|error| stopped(&shown, &error))?
    }
}

/// Where a body goes.
enum Kept {
    Memory(Vec<u8>),
    Disk(File),
}

/// Why an attempt failed.
enum Wrong {
    Failed(Failed),
    /// The body cannot be written.
    Kept(io::Error),
}

impl From<Failed> for Wrong {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

async fn once(request: reqwest::RequestBuilder, to: &mut Kept) -> Result<(), Wrong> {
    match to {
        Kept::Memory(bytes) => bytes.clear(),
        Kept::Disk(file) => file.set_len(0).and_then(|()| file.rewind()).map_err(Wrong::Kept)?,
    }
    let lost = |error: &reqwest::Error| {
        let why = if error.is_connect() { "no connection" } else { "the connection was lost" };
        Failed::MayPass(why.to_owned())
    };
    let sent = tokio::time::timeout(MAKES, request.send()).await;
    let mut answer = sent.map_err(|_| Failed::MayPass("no answer in time".into()))?.map_err(|e| lost(&e))?;
    let status = answer.status();
    match status {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Err(Failed::NotFound.into()),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            return Err(Failed::Denied(format!("it answers {status}")).into());
        }
        StatusCode::CONFLICT => {
            return Err(Failed::Refused("it answers that it would ask itself".to_owned()).into());
        }
        StatusCode::INTERNAL_SERVER_ERROR => {
            return Err(Failed::Refused("it lacks a blob of this catalog".to_owned()).into());
        }
        _ if may_pass_status(status.as_u16()) => {
            return Err(Failed::MayPass(format!("it answers {status}")).into());
        }
        _ => return Err(Failed::Refused(format!("it answers {status}")).into()),
    }
    let mut len = 0u64;
    while let Some(piece) = answer.chunk().await.map_err(|error| lost(&error))? {
        len += piece.len() as u64;
        let too_long = || Failed::Refused("it sends more than any library has".to_owned());
        match to {
            Kept::Memory(bytes) if bytes.len() + piece.len() > MAX_PARTS => return Err(too_long().into()),
            Kept::Memory(bytes) => bytes.extend_from_slice(&piece),
            Kept::Disk(_) if len > MAX_ARCHIVE => return Err(too_long().into()),
            Kept::Disk(file) => file.write_all(&piece).map_err(Wrong::Kept)?,
        }
    }
    Ok(())
}

/// A client that trusts and goes the same ways as those of stores.
fn client(url: &Url, settings: &RemoteSettings) -> Result<reqwest::ClientBuilder, OpenError> {
    let mut client = Client::builder()
        .connect_timeout(CONNECT)
        .read_timeout(MAKES)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("holofs/", env!("CARGO_PKG_VERSION")));
    if let Some(path) = &settings.ca_bundle {
        let refused = |why| OpenError::Certificates { path: path.display().to_string(), why };
        let pem = guarded::read_through_link(path, CERTIFICATES).map_err(|_| refused("it cannot be read"))?;
        let all = Certificate::from_pem_bundle(&pem).map_err(|_| refused("not a bundle of certificates"))?;
        client = all.into_iter().fold(client, reqwest::ClientBuilder::add_root_certificate);
    }
    let proxy = if url.scheme() == "http" { &settings.http_proxy } else { &settings.https_proxy };
    if let Some(Secret(proxy)) = proxy {
        let wrong = |_| OpenError::Setting { url: url.to_string(), why: "the proxy of settings.yaml".into() };
        let proxy = Proxy::all(proxy).map_err(wrong)?;
        client = client.proxy(proxy.no_proxy(NoProxy::from_string(&settings.no_proxy)));
    }
    Ok(client)
}
