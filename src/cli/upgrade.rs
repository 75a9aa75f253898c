//! `holofs upgrade`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::exit::{CONFIG, Failure, NOT_FOUND, OK, failure};
use super::values::seconds;
use super::{Context, output};
use crate::session::Error;
use crate::session::mount::upgrade::{Upgraded, upgrade};
use crate::session::spaces::Survey;

#[derive(Debug, clap::Args)]
#[command(after_help = "Programs in the space do not notice. A program that does not understand the mount
is refused, and the old one goes on. Needs Linux 6.9.

Examples:
  holofs upgrade --all
  holofs upgrade demo --program /opt/holofs/bin/holofs")]
pub(super) struct Args {
    /// The spaces, by name, identity or path
    #[arg(value_name = "SPACE|PATH", required_unless_present = "all")]
    spaces: Vec<OsString>,
    /// Upgrade all mounts of this home
    #[arg(long)]
    all: bool,
    /// The new program [default: this one]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Seconds to wait for each space
    #[arg(long, value_name = "S", default_value = "10", value_parser = seconds)]
    timeout: Duration,
}

#[derive(Debug, serde::Serialize)]
struct Row {
    path: PathBuf,
    #[serde(flatten)]
    done: Upgraded,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let program = match &args.program {
        Some(program) => std::path::absolute(program),
        None => std::env::current_exe(),
    };
    let program = program.map_err(|error| failure(CONFIG, format!("the program: {error}"), None))?;
    let survey = Survey::new(&context.env)?;
    let mut spaces = Vec::new();
    if args.all {
        spaces.extend(survey.all(0)?.into_iter().filter(|space| space.is_mounted));
    }
    for given in &args.spaces {
        let (space, _) = survey.detail(given, &context.settings.controller.value)?;
        if !space.is_mounted {
            let what = format!("{}: not mounted", given.to_string_lossy());
            return Err(failure(NOT_FOUND, what, Some("`holofs list`")));
        }
        spaces.push(space);
    }
    let (mut rows, mut failed): (Vec<Row>, Vec<Failure>) = (Vec::new(), Vec::new());
    for space in spaces {
        let state_dir = context.env.spaces_dir().join(&space.identity);
        match upgrade(&state_dir, &program, args.timeout) {
            Ok(done) => rows.push(Row { path: space.path, done }),
            Err(error @ Error::Refused(_)) => {
                let failure = Failure::from(error);
                let what = format!("{}: {}", space.path.display(), failure.what);
                failed.push(Failure { what, ..failure });
            }
            Err(error) => failed.push(error.into()),
        }
    }
    let unknown = |version: &Option<String>| version.clone().unwrap_or_else(|| "unknown".to_owned());
    if context.json {
        output::print_json(&rows)?;
    } else {
        let lines: Vec<String> = rows
            .iter()
            .map(|Row { path, done }| {
                format!("{} {} -> {}", path.display(), unknown(&done.from), unknown(&done.to))
            })
            .collect();
        output::print_lines(&lines)?;
    }
    let mut failed = failed.into_iter();
    let Some(first) = failed.next() else { return Ok(OK) };
    let code = output::fail(&first);
    failed.for_each(|failure| output::complain(&failure));
    Ok(code)
}
