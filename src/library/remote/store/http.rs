//! Counts the requests of a client, and notes why one failed.
//!
//! The errors of the client name URLs, signatures and bodies of answers. So the reason is made here, from the number of the
//! status and the error of the system, and theirs is not shown.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;

use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use parking_lot::Mutex;

use crate::library::remote::counters::Counters;

tokio::task_local! {
    /// Why the last request of this task failed.
    pub(super) static FAULT: Arc<Mutex<Option<Fault>>>;
}

/// Why a request failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    /// In words, without anything secret.
    pub(super) why: String,
    /// It may succeed when it is sent again.
    pub(super) may_pass: bool,
    /// The number of the answer's status, if there was one.
    pub(super) status: Option<u16>,
    /// It was asked for credentials, and not for an object.
    pub(super) about_credentials: bool,
}

/// Where machines of the services ask for credentials.
const METADATA: [&str; 5] =
    ["169.254.169.254", "169.254.170.2", "169.254.170.23", "metadata.google.internal", "metadata"];

/// Makes clients that count.
#[derive(Debug)]
pub(super) struct Connector(pub(super) Arc<Counters>);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Counting { client, counters: Arc::clone(&self.0) }))
    }
}

#[derive(Debug)]
struct Counting {
    client: HttpClient,
    counters: Arc<Counters>,
}

/// What `async fn call` would be.
type Answer<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for Counting {
    fn call<'s, 'a>(&'s self, request: HttpRequest) -> Answer<'a>
    where
        's: 'a,
        Self: 'a,
    {
        Box::pin(async move {
            self.counters.request();
            let is_metadata = request.uri().host().is_some_and(|host| METADATA.contains(&host));
            let answer = self.client.execute(request).await;
            let fault = match &answer {
                Ok(answer) => {
                    let status = answer.status();
                    let may_pass = may_pass_status(status.as_u16());
                    let is_fault = status.is_server_error() || status.is_client_error();
                    is_fault.then(|| (format!("it answers {status}"), may_pass, Some(status.as_u16())))
                }
                Err(error) => Some((reason(error), may_pass(error.kind()), None)),
            };
            let fault = fault.map(|(why, may_pass, status)| match is_metadata {
                // The last place that is asked.
                true => Fault {
                    why: format!("no credentials were found; the metadata service of this machine: {why}"),
                    may_pass: false,
                    status,
                    about_credentials: true,
                },
                false => Fault { why, may_pass, status, about_credentials: false },
            });
            // A request outside of a call: there is nobody who could say why it failed.
            FAULT.try_with(|noted| *noted.lock() = fault).ok();
            answer
        })
    }
}

/// Whether a request with this answer may succeed when it is sent again. What a server has not implemented stays so.
pub(super) fn may_pass_status(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502..=504 | 506..=599)
}

/// Whether a reason is that of the TLS library for a certificate that it does not trust. The client hides its type.
pub(super) fn is_untrusted(why: &str) -> bool {
    why.contains("invalid peer certificate")
}

pub(super) fn may_pass(kind: HttpErrorKind) -> bool {
    !matches!(kind, HttpErrorKind::Unknown)
}

/// What the system or the TLS library says, without what is around it.
pub(super) fn reason(error: &HttpError) -> String {
    let what = match error.kind() {
        HttpErrorKind::Connect => "no connection",
        HttpErrorKind::Timeout => "no answer in time",
        HttpErrorKind::Interrupted | HttpErrorKind::Request => "the connection was lost",
        HttpErrorKind::Decode => "it answers something else than HTTP",
        _ => "the request failed",
    };
    let mut innermost: &(dyn Error + 'static) = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let inner = innermost.to_string();
    // Addresses could hold a proxy's password.
    if inner.is_empty() || inner.contains("://") || inner.contains('@') || inner.len() > 200 {
        return what.to_owned();
    }
    format!("{what}: {inner}")
}
