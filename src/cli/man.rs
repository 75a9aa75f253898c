//! `holofs man`: manual pages, from the definition of the command line.
//!
//! There is a page for `holofs` and one for each command. A terminal gets the page from `man`, a program gets its source.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use clap_mangen::Man;

use super::exit::{FAILED, Failure, NOT_FOUND, OK, failure};
use super::{help, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  holofs man
  holofs man mount
  holofs man --output /usr/local/share/man/man1")]
pub(super) struct Args {
    /// A command [default: all of holofs]
    topic: Option<String>,
    /// Write all pages into this directory
    #[arg(long, value_name = "DIR", conflicts_with = "topic")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let mut holofs = help::definition().disable_help_subcommand(true);
    holofs.build();
    if let Some(dir) = &args.output {
        let commands = holofs.get_subcommands().filter(|command| !command.is_hide_set());
        for command in std::iter::once(&holofs).chain(commands) {
            write(command, dir)
                .map_err(|error| failure(FAILED, format!("{}: {error}", dir.display()), None))?;
        }
        return Ok(OK);
    }
    let command = match &args.topic {
        None => &holofs,
        Some(topic) => holofs.find_subcommand(topic).ok_or_else(|| {
            failure(NOT_FOUND, format!("{topic}: there is no command of this name"), Some("`holofs --help`"))
        })?,
    };
    let page = page(command).map_err(|error| failure(FAILED, format!("the manual page: {error}"), None))?;
    if io::stdout().is_terminal() {
        show(command, &page)
    } else {
        output::print_for_program(&page).map(|()| OK)
    }
}

/// The source of a command's page. The synopsis and the text after the options are those of the command's help. clap_mangen
/// would list each option in the synopsis, and would fill the lines of the text.
fn page(command: &clap::Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let man =
        Man::new(command.clone()).source(concat!("holofs ", env!("CARGO_PKG_VERSION"))).manual("holofs");
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    let usage = command.clone().render_usage().to_string();
    lines(&mut text, "SYNOPSIS", usage.trim_start_matches("Usage: "))?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let notes = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let (notes, examples) = notes.split_once("Examples:").unwrap_or((&notes, ""));
    let (notes, codes) = notes.split_once("Exit codes:").unwrap_or((notes, ""));
    lines(&mut text, "NOTES", notes)?;
    lines(&mut text, "EXIT STATUS", codes)?;
    lines(&mut text, "EXAMPLES", examples)?;
    Ok(text)
}

/// Adds a section whose lines are not filled.
fn lines(text: &mut Vec<u8>, heading: &str, section: &str) -> io::Result<()> {
    if section.trim().is_empty() {
        return Ok(());
    }
    write!(text, ".SH \"{heading}\"\n.nf\n")?;
    for line in section.trim_matches('\n').lines() {
        // `\\&` is nothing. It keeps a dot or an apostrophe from being a request.
        writeln!(text, "\\&{}", line.replace('\\', "\\e").replace('-', "\\-"))?;
    }
    writeln!(text, ".fi")
}

fn write(command: &clap::Command, dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let name = Man::new(command.clone()).get_filename();
    std::fs::write(dir.join(name), page(command)?)
}

/// Has `man` show the page. Without `man`, the command's help has the same content.
fn show(command: &clap::Command, page: &[u8]) -> Result<u8, Failure> {
    let started = Command::new("man").args(["--local-file", "-"]).stdin(Stdio::piped()).spawn();
    let shown = started.and_then(|mut man: Child| {
        if let Some(mut input) = man.stdin.take() {
            match input.write_all(page) {
                // The reader has left the pager.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                done => done?,
            }
        }
        man.wait()
    });
    match shown {
        Ok(status) if status.success() => {}
        _ => {
            output::print_lines(&command.clone().render_long_help().to_string().lines().collect::<Vec<_>>())?
        }
    }
    Ok(OK)
}
