//! What is asked of a mount that is there already, compared with what is in force.
//!
//! A mount is served as it was asked for first. Whoever asks for it again gets it only if it is what he asked for. What he
//! left to holofs is compared with nothing; but leaving out `--read-only` or `--ephemeral` says that changes are wanted, or
//! to be kept.

use super::plan::MountPlan;
use crate::settings::IoMode;
use crate::space::run::RunInfo;

/// In what a live mount differs from what the plan asks for, each in the words of the command line.
#[must_use]
pub(super) fn differences(plan: &MountPlan, run: &RunInfo) -> Vec<String> {
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
        ("--read-only", plan.serve.read_only, run.read_only, "changes are let in"),
        ("--ephemeral", plan.serve.ephemeral, run.ephemeral, "changes are kept"),
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
    let wanted = plan.serve.extra();
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
