//! What an examination found.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sys::process;

/// How long one question may take. A disk that does not answer for so long is a finding.
pub const PATIENCE: Duration = Duration::from_secs(4);

/// How well something works.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should.
    #[default]
    Ok,
    /// holofs works without it, slower or with fewer features.
    Warning,
    /// Spaces cannot be mounted.
    Fail,
}

impl Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.serialize(f)
    }
}

/// One finding. The first three keys are rcc's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// What was examined.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The result.
    pub status: Status,
    /// What was found.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// What holofs does instead of something that does not work here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Fallback {
    /// What does not work.
    pub from: &'static str,
    /// What is done instead.
    pub to: &'static str,
    /// The reason.
    pub because: String,
}

/// The answer to a question that users ask.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Answer {
    /// The question.
    pub question: &'static str,
    /// The answer, in lines.
    pub answer: Vec<String>,
}

/// What was found about a directory that the user named.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PathReport {
    /// The directory, without links.
    pub path: String,
    /// Its filesystem, as the mount table names it.
    pub fs: String,
    /// The number by which statfs(2) names the kind of filesystem, in hexadecimal.
    pub magic: String,
    /// Whether two files in it can share extents.
    pub reflink: bool,
    /// `ok`, or the call that failed and why.
    pub probe: String,
    /// Whether the library is on the same filesystem. False without a library.
    pub same_fs_as_library: bool,
}

/// All findings. The first two keys are those of rcc's diagnostics.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Facts by name.
    pub details: BTreeMap<&'static str, String>,
    /// The findings, in the order of the examination.
    pub checks: Vec<Check>,
    /// The fallbacks that this setup takes.
    pub fallbacks: Vec<Fallback>,
    /// The answers to frequent questions.
    pub answers: Vec<Answer>,
    /// The findings about a directory that the user named.
    #[serde(flatten)]
    pub path: Option<PathReport>,
}

impl Report {
    /// The worst status.
    #[must_use]
    pub fn status(&self) -> Status {
        self.checks.iter().map(|check| check.status).max().unwrap_or_default()
    }

    pub(super) fn detail(&mut self, name: &'static str, value: impl Display) {
        self.details.insert(name, value.to_string());
    }

    pub(super) fn ok(&mut self, kind: &'static str, message: impl Into<String>) {
        self.checks.push(Check { kind, status: Status::Ok, message: message.into(), fix: None });
    }

    pub(super) fn warn(&mut self, kind: &'static str, message: impl Into<String>, fix: impl Into<String>) {
        let (message, fix) = (message.into(), Some(fix.into()));
        self.checks.push(Check { kind, status: Status::Warning, message, fix });
    }

    pub(super) fn fail(&mut self, kind: &'static str, message: impl Into<String>, fix: impl Into<String>) {
        let (message, fix) = (message.into(), Some(fix.into()));
        self.checks.push(Check { kind, status: Status::Fail, message, fix });
    }

    pub(super) fn fall_back(&mut self, from: &'static str, to: &'static str, because: impl Into<String>) {
        self.fallbacks.push(Fallback { from, to, because: because.into() });
    }

    /// Answers the questions of users whose environments are slow, or share nothing. `filesystems` are the lines that
    /// `df -T` would show.
    pub(super) fn answer_questions(&mut self, filesystems: Vec<String>) {
        let fallback = |from: &str| self.fallbacks.iter().find(|fallback| fallback.from == from);
        let reflinks = match fallback("reflink") {
            None => vec!["They are supported between the cache and the spaces.".to_owned()],
            Some(Fallback { because, .. }) => vec![
                format!("They are not: {because}. Changed files are copied."),
                "Put HOLOFS_HOME on btrfs, or on XFS made with reflink=1.".to_owned(),
            ],
        };
        let slow: Vec<String> = self
            .checks
            .iter()
            .filter(|check| check.status > Status::Ok && check.kind != "shared")
            .map(|check| format!("{}: {}", check.kind, check.message))
            .collect();
        let mut performance = slow;
        if performance.is_empty() {
            performance.push("Nothing here slows holofs down.".to_owned());
        }
        performance.push(
            "The first use of an environment unpacks what it reads; `holofs warm` does that before. `holofs bench` \
             measures this machine."
                .to_owned(),
        );
        self.answers = vec![
            Answer { question: "Reflinks not supported?", answer: reflinks },
            Answer { question: "Performance not improved?", answer: performance },
            Answer { question: "Which filesystems (df -T)?", answer: filesystems },
        ];
    }
}

/// Asks something that may never get an answer.
///
/// # Errors
/// Why there is no answer.
pub(super) fn ask<T: Serialize + DeserializeOwned>(question: impl FnOnce() -> T) -> Result<T, String> {
    let answer = process::ask(PATIENCE, || serde_json::to_vec(&question()).unwrap_or_default());
    match answer {
        Ok(Some(text)) => serde_json::from_slice(&text).map_err(|_| "the examination failed".to_owned()),
        Ok(None) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        Err(error) => Err(crate::sys::plain(&error)),
    }
}
