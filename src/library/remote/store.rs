//! The objects of a store, by the crate `object_store`: a blocking facade, and the only place with asynchronous code.
//!
//! A call is tried again, with growing pauses, until the store has not answered for the time limit. A body that is cut is
//! continued where it was cut. What an error says is made here, because the errors of the client name signatures.
//!
//! Threads and connections are made by the first call, and end with [`Objects::pause`].
//!
//! Limits: a server that is plain HTTP gets large objects in one piece from memory, because it has no uploads in parts.

mod fault;
mod http;
mod open;
mod persist;
pub mod rccremote;
mod wait;

use std::fmt;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Once};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{
    GetOptions, GetResultPayload, MultipartUpload, ObjectStore, ObjectStoreExt, ObjectStoreScheme,
    PutMultipartOptions, PutPayload,
};
use parking_lot::Mutex;

use super::counters::Counters;
use super::{Listed, Objects, StoreError};
use crate::settings::remote::RemoteSettings;
use fault::{Failed, noted};
use open::Client;
pub use open::{OpenError, checked};
use persist::{Persistence, Policy};
use wait::{Started, Threads};

/// The size in bytes of the parts of a large object. S3 takes 10,000 parts of at least 5 MiB.
const PART: usize = 8 << 20;
/// How many parts are on their way at once.
const PARTS: usize = 4;
/// How long one attempt may get nothing.
const IDLE: Duration = Duration::from_secs(15);
/// The slowest connection over which an object can be sent, in bytes a second.
const SLOWEST: u64 = 32 << 10;
/// The largest object for a server that takes no parts, in bytes.
const WHOLE: u64 = 1 << 30;

/// A store. See the module.
pub struct Store {
    url: String,
    settings: RemoteSettings,
    counters: Arc<Counters>,
    threads: Threads,
    /// None after a pause. Held only while one is made.
    client: Mutex<Option<Client>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("url", &self.url).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at a URL. Sends nothing.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(url: &str, settings: &RemoteSettings) -> Result<Arc<dyn Objects>, OpenError> {
        install_provider();
        let counters = Arc::default();
        let client = open::open(url, settings, &counters)?;
        Ok(Arc::new(Self {
            url: checked(url)?,
            settings: settings.clone(),
            counters,
            threads: Threads::default(),
            client: Mutex::new(Some(client)),
        }))
    }

    /// What a call about an object needs.
    fn call(&self, name: &str) -> Result<Call, StoreError> {
        let object = || format!("{}/{name}", self.url);
        if self.settings.offline.value {
            return Err(StoreError::Offline { object: object() });
        }
        let mut client = self.client.lock();
        let client = match &*client {
            Some(client) => client.clone(),
            None => {
                let opened = open::open(&self.url, &self.settings, &self.counters);
                let opened = opened
                    .map_err(|error| StoreError::Refused { object: object(), why: error.to_string() })?;
                client.insert(opened).clone()
            }
        };
        let path = name.split('/').fold(client.prefix.clone(), Path::join);
        Ok(Call {
            client,
            path,
            object: object(),
            persistence: Persistence {
                url: self.url.clone(),
                limit: self.settings.timeout.value,
                counters: Arc::clone(&self.counters),
            },
        })
    }

    fn wait<T: Send + 'static>(
        &self,
        object: &str,
        work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        let failed = |error: io::Error| stopped(object, &error);
        self.threads.wait(work).map_err(failed)?
    }

    /// Sends the parts of an object. Gives the upload back, to be completed or aborted.
    fn send_parts(
        &self,
        call: &Call,
        mut upload: Upload,
        first: Vec<u8>,
        content: &mut dyn Read,
    ) -> (Upload, Result<(), StoreError>) {
        let mut on_the_way = std::collections::VecDeque::new();
        let mut part = first;
        let mut sent = Ok(());
        while !part.is_empty() {
            call.count();
            let bytes = part.len() as u64;
            let send = upload.0.put_part(PutPayload::from(part));
            let limit = sending(self.settings.timeout.value, bytes).saturating_mul(2);
            let object = call.object.clone();
            let work = async move { noted(limit, send).await.map_err(|failed| failed.about(&object)) };
            match self.threads.start(work) {
                Ok(started) => on_the_way.push_back((started, bytes)),
                Err(error) => sent = Err(stopped(&call.object, &error)),
            }
            if on_the_way.len() >= PARTS {
                sent = sent.and_then(|()| self.sent_one(call, on_the_way.pop_front()));
            }
            if sent.is_err() {
                break;
            }
            part = match piece(content) {
                Ok(part) => part,
                Err(source) => {
                    sent = Err(StoreError::Content { object: call.object.clone(), source });
                    break;
                }
            };
        }
        while let Some(started) = on_the_way.pop_front() {
            let one = self.sent_one(call, Some(started));
            sent = sent.and(one);
        }
        (upload, sent)
    }

    fn sent_one(
        &self,
        call: &Call,
        part: Option<(Started<Result<(), StoreError>>, u64)>,
    ) -> Result<(), StoreError> {
        let Some((started, bytes)) = part else { return Ok(()) };
        started.wait().map_err(|error| stopped(&call.object, &error))??;
        self.counters.sent(bytes);
        Ok(())
    }
}

/// An upload in parts. It has no `Debug`, and is moved between threads.
struct Upload(Box<dyn MultipartUpload>);

/// One call about one object.
#[derive(Clone)]
struct Call {
    client: Client,
    path: Path,
    /// For messages.
    object: String,
    persistence: Persistence,
}

impl Call {
    /// Counts a request to a directory. Those to servers are counted where they are sent.
    fn count(&self) {
        if self.client.scheme == ObjectStoreScheme::Local {
            self.persistence.counters.request();
        }
    }
}

impl Objects for Store {
    fn url(&self) -> &str {
        &self.url
    }

    fn get(&self, name: &str, range: Option<Range<u64>>, limit: u64) -> Result<Vec<u8>, StoreError> {
        self.get_within(name, range, limit, self.settings.timeout.value)
    }

    fn get_within(
        &self,
        name: &str,
        range: Option<Range<u64>>,
        limit: u64,
        patience: Duration,
    ) -> Result<Vec<u8>, StoreError> {
        let call = self.call(name)?;
        let object = call.object.clone();
        self.wait(&object, get(call, range, limit, patience))
    }

    fn list(&self, dir: &str) -> Result<Vec<Listed>, StoreError> {
        let call = self.call(dir)?;
        let object = call.object.clone();
        self.wait(&object, list(call))
    }

    fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), StoreError> {
        let call = self.call(name)?;
        let object = call.object.clone();
        self.wait(&object, put(call, bytes))
    }

    fn put_large(&self, name: &str, content: &mut dyn Read) -> Result<(), StoreError> {
        let call = self.call(name)?;
        let object = call.object.clone();
        let unread = |source| StoreError::Content { object: object.clone(), source };
        let mut first = piece(content).map_err(unread)?;
        if first.len() < PART || call.client.scheme == ObjectStoreScheme::Http {
            let room = WHOLE - first.len() as u64;
            content.take(room + 1).read_to_end(&mut first).map_err(unread)?;
            if first.len() as u64 > WHOLE {
                let why = format!("a server that is plain HTTP gets at most {WHOLE} bytes in an object");
                return Err(StoreError::Refused { object: object.clone(), why });
            }
            return self.wait(&object, put(call, first));
        }
        let upload = self.wait(&object, begin(call.clone()))?;
        let (upload, sent) = self.send_parts(&call, upload, first, content);
        let end = async move {
            let Upload(mut upload) = upload;
            let limit = call.persistence.limit;
            match sent {
                Ok(()) => {
                    noted(limit, upload.complete()).await.map_err(|failed| failed.about(&call.object))?;
                    Ok(())
                }
                Err(error) => {
                    if let Err(failed) = noted(limit, upload.abort()).await {
                        tracing::debug!(why = failed.why(), "parts of an upload remain in the object store");
                    }
                    Err(error)
                }
            }
        };
        self.wait(&object, end)
    }

    fn pause(&self) {
        drop(self.client.lock().take());
        self.threads.end();
    }

    fn counters(&self) -> Option<Arc<Counters>> {
        Some(Arc::clone(&self.counters))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.pause();
    }
}

/// Chooses the cryptography of TLS, once in a process.
fn install_provider() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        if rustls::crypto::ring::default_provider().install_default().is_err() {
            tracing::debug!("there is a cryptographic provider already");
        }
    });
}

fn stopped(object: &str, error: &io::Error) -> StoreError {
    StoreError::Unreachable { object: object.to_owned(), why: error.to_string() }
}

/// Reads the next part of a large object. It is shorter only at the end.
fn piece(content: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut part = Vec::new();
    content.take(PART as u64).read_to_end(&mut part)?;
    Ok(part)
}

/// How long an attempt to send so many bytes may take.
fn sending(limit: Duration, bytes: u64) -> Duration {
    limit.saturating_add(Duration::from_secs(bytes / SLOWEST))
}

async fn get(
    call: Call,
    range: Option<Range<u64>>,
    limit: u64,
    patience: Duration,
) -> Result<Vec<u8>, StoreError> {
    let refused = |why: String| StoreError::Refused { object: call.object.clone(), why };
    if let Some(range) = &range {
        let len = range.end.saturating_sub(range.start);
        if len > limit {
            return Err(refused(format!("more than {limit} bytes were asked for")));
        }
        if len == 0 {
            return Ok(Vec::new());
        }
    }
    let mut got = Vec::new();
    let mut tries = call.persistence.begin_with(patience);
    loop {
        let before = got.len();
        let done = get_once(&call, range.clone(), limit, &mut got, tries.left().min(IDLE)).await;
        let failed = match done {
            Ok(()) => {
                call.persistence.counters.answered();
                return Ok(got);
            }
            Err(failed) => failed,
        };
        if got.len() > before {
            tries = call.persistence.begin();
        }
        // Another object may have come into its place meanwhile.
        if range.is_none() {
            got.clear();
        }
        tries.after(failed, &call.object).await?;
    }
}

/// One attempt to get what is missing of an object.
async fn get_once(
    call: &Call,
    range: Option<Range<u64>>,
    limit: u64,
    got: &mut Vec<u8>,
    idle: Duration,
) -> Result<(), Failed> {
    call.count();
    let wanted = range.map(|range| range.start + got.len() as u64..range.end);
    let options = GetOptions::default().with_range(wanted.clone());
    let result = noted(idle, call.client.store.get_opts(&call.path, options)).await?;
    let expected = match &wanted {
        Some(wanted) if result.range != *wanted => {
            return Err(Failed::Refused("it is shorter than it should be".to_owned()));
        }
        Some(wanted) => got.len() as u64 + (wanted.end - wanted.start),
        None if result.meta.size > limit => {
            return Err(Failed::Refused(format!("it has {} bytes, more than {limit}", result.meta.size)));
        }
        None => result.meta.size,
    };
    got.reserve(usize::try_from(expected - got.len() as u64).unwrap_or(0).min(16 << 20));
    let mut add = |bytes: &[u8]| {
        if got.len() as u64 + bytes.len() as u64 > expected {
            return Err(Failed::Refused("it sends more than it said".to_owned()));
        }
        call.persistence.counters.received(bytes.len() as u64);
        got.extend_from_slice(bytes);
        Ok(())
    };
    if matches!(result.payload, GetResultPayload::File(..)) {
        add(&noted(call.persistence.limit, result.bytes()).await?)?;
    } else {
        let mut body = result.into_stream();
        while let Some(bytes) = noted(idle, async { body.next().await.transpose() }).await? {
            add(&bytes)?;
        }
    }
    if (got.len() as u64) < expected {
        return Err(Failed::MayPass("the connection was lost".to_owned()));
    }
    Ok(())
}

async fn list(call: Call) -> Result<Vec<Listed>, StoreError> {
    let Call { client, path, object, persistence } = &call;
    let mut tries = persistence.begin();
    loop {
        // Several requests, if it is long.
        let limit = tries.left().saturating_add(IDLE);
        call.count();
        let failed = match noted(limit, client.store.list_with_delimiter(Some(path))).await {
            Ok(found) => {
                persistence.counters.answered();
                let named = found.objects.into_iter().filter_map(|found| {
                    let name = found.location.filename()?.to_owned();
                    let modified = SystemTime::from(found.last_modified);
                    Some(Listed { name, bytes: found.size, modified })
                });
                return Ok(named.collect());
            }
            // A bucket that is not there is another thing.
            Err(Failed::NotFound)
                if matches!(client.scheme, ObjectStoreScheme::Local | ObjectStoreScheme::Http) =>
            {
                return Ok(Vec::new());
            }
            Err(failed) => failed,
        };
        tries.after(failed, object).await?;
    }
}

async fn put(call: Call, bytes: Vec<u8>) -> Result<(), StoreError> {
    let Call { client, path, object, persistence } = &call;
    let len = bytes.len() as u64;
    let payload = PutPayload::from(bytes);
    let mut tries = persistence.begin();
    loop {
        call.count();
        match noted(sending(persistence.limit, len), client.store.put(path, payload.clone())).await {
            Ok(_) => {
                persistence.counters.answered();
                persistence.counters.sent(len);
                return Ok(());
            }
            Err(failed) => tries.after(failed, object).await?,
        }
    }
}

async fn begin(call: Call) -> Result<Upload, StoreError> {
    let Call { client, path, object, persistence } = &call;
    let mut tries = persistence.begin();
    loop {
        let options = PutMultipartOptions::default().with_retry_policy(Arc::new(Policy(persistence.clone())));
        match noted(persistence.limit, client.store.put_multipart_opts(path, options)).await {
            Ok(upload) => return Ok(Upload(upload)),
            Err(failed) => tries.after(failed, object).await?,
        }
    }
}

#[cfg(test)]
mod tests;
