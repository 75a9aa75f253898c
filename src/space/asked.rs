//! What is asked of a mount that is there already, compared with what is in force.
//!
//! A mount is served as it was asked for first. Whoever asks for it again gets it only if it is what he asked for. What he
//! left to holofs is compared with nothing; but leaving out `--read-only` or `--ephemeral` says that changes are wanted, or
//! to be kept.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::settings::{IoMode, Prefetch, Strategy};
use crate::space::plan::MountPlan;
use crate::space::state::RunInfo;

/// What was typed, where the plan has a default for what was not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Asked {
    /// `--strategy`.
    pub strategy: Option<Strategy>,
    /// `--io`.
    pub io: Option<IoMode>,
    /// `--cache-size`.
    pub cache_size: Option<u64>,
}

/// What a daemon serves with, beside what `run.json` says in names of its own.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Extra {
    /// Other users are let in.
    pub allow_other: bool,
    /// Mount options by name.
    pub options: Vec<String>,
    /// What is unpacked in the background: `own`, or the path of a profile.
    pub prefetch: Option<PathBuf>,
    /// How many bytes of raw blobs the cache may keep.
    pub cache_size: u64,
}

impl Extra {
    /// What a plan asks for.
    #[must_use]
    pub fn of(plan: &MountPlan) -> Extra {
        Extra {
            allow_other: plan.allow_other,
            options: plan.options.clone(),
            prefetch: match &plan.prefetch {
                Prefetch::No => None,
                Prefetch::Own => Some("own".into()),
                Prefetch::From(path) => Some(path.clone()),
            },
            cache_size: plan.cache_size,
        }
    }
}

/// In what a live mount differs from what the plan asks for, each in the words of the command line.
#[must_use]
pub fn differences(plan: &MountPlan, run: &RunInfo) -> Vec<String> {
    let mut out = Vec::new();
    let mut differ = |asked: String, in_force: &str| out.push(format!("{asked} (in force: {in_force})"));
    let asked = &plan.asked;
    if let Some(strategy) = asked.strategy.map(|strategy| strategy.to_string())
        && strategy != run.strategy
    {
        differ(format!("--strategy {strategy}"), &run.strategy);
    }
    if let Some(io) = asked.io.map(IoMode::in_force)
        && io != run.io
    {
        differ(format!("--io {io}"), &run.io);
    }
    for (name, asked, in_force, otherwise) in [
        ("--read-only", plan.read_only, run.read_only, "changes are let in"),
        ("--ephemeral", plan.ephemeral, run.ephemeral, "changes are kept"),
    ] {
        match (asked, in_force) {
            (true, false) => differ(name.to_owned(), otherwise),
            (false, true) => differ(format!("no {name}"), name),
            _ => {}
        }
    }
    if plan.foreground {
        differ("--foreground".to_owned(), &format!("served by process {}", run.pid));
    }
    // A daemon of an older version does not say.
    let Some(extra) = &run.extra else { return out };
    let wanted = Extra::of(plan);
    if wanted.allow_other && !extra.allow_other {
        differ("--allow-other".to_owned(), "other users are kept out");
    }
    for option in wanted.options.iter().filter(|option| !extra.options.contains(option)) {
        let in_force = extra.options.join(",");
        differ(format!("-o {option}"), if in_force.is_empty() { "no such option" } else { &in_force });
    }
    if let Some(prefetch) = wanted.prefetch.filter(|wanted| Some(wanted) != extra.prefetch.as_ref()) {
        let in_force = extra.prefetch.as_ref().map_or("none".to_owned(), |path| path.display().to_string());
        differ(format!("--prefetch {}", prefetch.display()), &in_force);
    }
    if let Some(size) = asked.cache_size.filter(|size| *size != extra.cache_size) {
        differ(format!("--cache-size {size}"), &extra.cache_size.to_string());
    }
    out
}
