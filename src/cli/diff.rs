//! `holofs diff`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Serialize;

use super::exit::{FAILED, Failure, OK};
use super::{Context, output};
use crate::session::changes::Changed;
use crate::space::diff::{Change, Difference};
use crate::space::upper::Kind;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "A added, M modified, D deleted with everything below, R renamed with everything below.
Only the mode, the owner, the time or the attributes differ: (metadata).

The time grows with the changes and not with the environment. The space may be
mounted or not.

Examples:
  holofs diff demo
  holofs diff demo --exit-code --silent
  holofs diff demo --name-only -z | xargs -0 ls -ld"
)]
pub(super) struct Args {
    /// The space, by name, identity or path
    #[arg(value_name = "SPACE|PATH")]
    space: OsString,
    /// Print only the paths
    #[arg(long)]
    name_only: bool,
    /// Exit with 1 if there are differences
    #[arg(long)]
    exit_code: bool,
    /// End fields with a NUL byte, and do not escape paths
    #[arg(short = 'z', long, conflicts_with = "json")]
    null: bool,
}

/// The keys of `holofs diff --json`.
#[derive(Debug, Serialize)]
struct Row {
    /// `A`, `M`, `D` or `R`.
    change: char,
    path: String,
    /// The path in the catalog, of a renamed entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(rename = "type")]
    kind: &'static str,
    /// The bytes or the type differ.
    content: bool,
    /// Mode, owner, time or attributes differ.
    metadata: bool,
}

impl From<&Difference> for Row {
    fn from(found: &Difference) -> Self {
        Self {
            change: letter(found.change),
            path: found.path.to_string_lossy().into_owned(),
            from: found.from.as_ref().map(|from| from.to_string_lossy().into_owned()),
            kind: kind_name(found.kind),
            content: found.content,
            metadata: found.metadata,
        }
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, Failure> {
    let space = Changed::open(&context.env, &args.space, &context.settings.controller.value)?;
    let found = space.differences()?;
    // `--exit-code --silent` asks only for the exit code, as `git diff --quiet`.
    if !(args.exit_code && context.silent) {
        if context.json {
            output::print_json(&found.iter().map(Row::from).collect::<Vec<_>>())?;
        } else if args.null {
            output::print_raw(
                &found.iter().flat_map(|found| fields(found, args.name_only)).collect::<Vec<_>>(),
            )?;
        } else {
            output::print_lines(&found.iter().map(|found| line(found, args.name_only)).collect::<Vec<_>>())?;
        }
    }
    Ok(if args.exit_code && !found.is_empty() { FAILED } else { OK })
}

fn letter(change: Change) -> char {
    match change {
        Change::Added => 'A',
        Change::Modified => 'M',
        Change::Deleted => 'D',
        Change::Renamed => 'R',
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Dir => "dir",
        Kind::File => "file",
        Kind::Symlink => "symlink",
        Kind::Fifo => "fifo",
        Kind::Socket => "socket",
        Kind::CharDevice => "char-device",
        Kind::BlockDevice => "block-device",
    }
}

/// One line for people.
fn line(found: &Difference, name_only: bool) -> String {
    let path = found.path.to_string_lossy();
    if name_only {
        return path.into_owned();
    }
    let (letter, note) = (letter(found.change), note(found));
    match &found.from {
        Some(from) => format!("{letter} {} -> {path}{note}", from.to_string_lossy()),
        None => format!("{letter} {path}{note}"),
    }
}

fn note(found: &Difference) -> &'static str {
    match (found.change, found.content, found.metadata) {
        (Change::Modified, false, _) => " (metadata)",
        (Change::Renamed, true, _) => " (modified)",
        (Change::Renamed, false, true) => " (metadata)",
        _ => "",
    }
}

/// The fields of `-z`, each with its NUL byte.
fn fields(found: &Difference, name_only: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut field = |bytes: &[u8]| {
        out.extend_from_slice(bytes);
        out.push(0);
    };
    if !name_only {
        field(letter(found.change).to_string().as_bytes());
        found.from.iter().for_each(|from| field(bytes(from)));
    }
    field(bytes(&found.path));
    out
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
