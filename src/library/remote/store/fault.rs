//! Why an attempt failed, and whether another one may succeed.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use object_store::Error as ClientError;
use object_store::client::HttpError;
use parking_lot::Mutex;

use super::http::{FAULT, Fault, is_untrusted, may_pass, reason};
use crate::library::remote::StoreError;

/// Why an attempt failed. The texts hold nothing secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Failed {
    NotFound,
    Denied(String),
    /// Another attempt may succeed.
    MayPass(String),
    /// The other end has no certificate that is trusted.
    Untrusted(String),
    Refused(String),
}

impl Failed {
    pub(super) fn why(&self) -> &str {
        match self {
            Self::NotFound => "there is no such object",
            Self::Denied(why) | Self::MayPass(why) | Self::Untrusted(why) | Self::Refused(why) => why,
        }
    }

    /// The error of a call that is not tried again.
    pub(super) fn about(self, object: &str) -> StoreError {
        let object = object.to_owned();
        match self {
            Self::NotFound => StoreError::NotFound { object },
            Self::Denied(why) => StoreError::Denied { object, why },
            Self::MayPass(why) => StoreError::Unreachable { object, why },
            Self::Untrusted(why) => StoreError::Untrusted { object, why },
            Self::Refused(why) => StoreError::Refused { object, why },
        }
    }
}

/// Waits for an answer of the client, and for no longer than `limit`.
pub(super) async fn noted<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, Failed> {
    let noted = Arc::new(Mutex::new(None));
    match FAULT.scope(Arc::clone(&noted), tokio::time::timeout(limit, answer)).await {
        Err(_) => {
            let before = noted.lock().take().map(|fault: Fault| fault.why);
            match before {
                Some(why) if is_untrusted(&why) => Err(Failed::Untrusted(why)),
                before => Err(Failed::MayPass(before.unwrap_or_else(|| "no answer in time".to_owned()))),
            }
        }
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            let fault = noted.lock().take();
            Err(failed(&error, fault))
        }
    }
}

fn failed(error: &ClientError, fault: Option<Fault>) -> Failed {
    let code = code(error);
    let with_code = |why: String| match &code {
        Some(code) => format!("{why} ({code})"),
        None => why,
    };
    if let Some(Fault { why, about_credentials: true, .. }) = fault {
        return Failed::Denied(why);
    }
    if let Some(Fault { why, .. }) = &fault
        && is_untrusted(why)
    {
        return Failed::Untrusted(why.clone());
    }
    match error {
        ClientError::NotFound { .. } => return Failed::NotFound,
        ClientError::PermissionDenied { .. } | ClientError::Unauthenticated { .. } => {
            let why = fault.map_or_else(|| "no credentials that it accepts".to_owned(), |fault| fault.why);
            return Failed::Denied(with_code(why));
        }
        ClientError::NotSupported { .. } | ClientError::NotImplemented { .. } => {
            return Failed::Refused("its service cannot do this".to_owned());
        }
        _ => {}
    }
    if let Some(Fault { why, may_pass, status, .. }) = fault {
        let why = with_code(why);
        return match status {
            Some(401 | 403) => Failed::Denied(why),
            // The answer to a list: there is no such bucket.
            Some(404) => Failed::NotFound,
            _ if may_pass => Failed::MayPass(why),
            _ => Failed::Refused(why),
        };
    }
    let mut link: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = link {
        if let Some(error) = error.downcast_ref::<HttpError>() {
            let why = reason(error);
            return if may_pass(error.kind()) { Failed::MayPass(why) } else { Failed::Refused(why) };
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return match error.kind() {
                io::ErrorKind::PermissionDenied => Failed::Denied(error.to_string()),
                io::ErrorKind::NotFound => Failed::NotFound,
                _ => Failed::Refused(error.to_string()),
            };
        }
        link = error.source();
    }
    Failed::Refused(with_code("an answer that was not expected".to_owned()))
}

/// The code of the error in an answer of S3, Google or Azure: a word, such as `NoSuchBucket`.
fn code(error: &ClientError) -> Option<String> {
    let text = error.to_string();
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let is_word = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_word.then(|| code.to_owned())
}
