//! Output: values as text or JSON, tables, and failures. The reader may close its end at any time.
//!
//! Invariant: text for people is written line by line, and each line is escaped here; see [`super::escape`].

use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::Context;
use super::escape::{self, one_line};
use super::exit::{FAILED, Failure, OK, failure};
use crate::session::request::Show;

/// Prints a result: the value as JSON, or its lines of text.
pub(super) fn print_result(
    context: &Context,
    value: &impl Serialize,
    text: impl FnOnce() -> Vec<String>,
) -> Result<u8, Failure> {
    if context.json {
        print_json(value)?
    } else {
        print_lines(&text())?
    }
    Ok(OK)
}

/// Prints lines to standard output, and adds the newlines.
pub(super) fn print_lines<T: AsRef<str>>(lines: &[T]) -> Result<(), Failure> {
    let text: String = lines.iter().map(|line| format!("{}\n", one_line(line.as_ref()))).collect();
    print(text.as_bytes())
}

/// Prints a path to standard output: its bytes to a program, escaped text to a terminal.
pub(super) fn print_path(path: &Path) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        return print_lines(&[path.to_string_lossy()]);
    }
    print(&[path.as_os_str().as_bytes(), b"\n"].concat())
}

/// Prints text for a program to standard output: as it is, or escaped line by line to a terminal.
pub(super) fn print_for_program(text: &[u8]) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        return print_lines(&String::from_utf8_lossy(text).lines().collect::<Vec<_>>());
    }
    print(text)
}

/// Prints bytes as they are, for a program.
pub(super) fn print_raw(bytes: &[u8]) -> Result<(), Failure> {
    print(bytes)
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    written(io::stdout().lock().write_all(bytes))
}

/// Prints a value as JSON.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| failure(FAILED, format!("cannot write the result as JSON: {error}"), None))?;
    text.push('\n');
    print(escape::json(&text).as_bytes())
}

/// Flushes standard output. A reader that has closed its end is not an error.
fn written(done: io::Result<()>) -> Result<(), Failure> {
    match done.and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(failure(FAILED, format!("standard output: {error}"), None))
        }
        _ => Ok(()),
    }
}

/// Prints the text of --help or --version.
pub(super) fn print_help(help: &clap::Error) -> u8 {
    match written(help.print()) {
        Ok(()) => OK,
        Err(failure) => fail(&failure),
    }
}

/// Prints a failure, and returns its exit code.
pub(super) fn fail(failure: &Failure) -> u8 {
    complain(failure);
    failure.code
}

/// Prints a failure to standard error: what failed and why, what to try, and the choices.
pub(super) fn complain(failure: &Failure) {
    let mut text = format!("holofs: {}\n", one_line(&failure.what));
    if let Some(fix) = &failure.fix {
        text.push_str(&format!("  try: {}\n", one_line(fix)));
    }
    for choice in &failure.choices {
        text.push_str(&format!("    {}\n", one_line(choice)));
    }
    // An error here cannot be reported. The exit code reports the failure too.
    io::stderr().lock().write_all(text.as_bytes()).ok();
}

/// Prints a note to standard error, in one line.
pub(super) fn note(silent: bool, text: &str) {
    if !silent {
        io::stderr().lock().write_all(format!("{}\n", one_line(text)).as_bytes()).ok();
    }
}

/// Whether standard output is a terminal.
pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Clears the terminal.
pub(super) fn clear() -> Result<(), Failure> {
    print(b"\x1b[H\x1b[2J")
}

/// Whether the reader of standard output has closed its end.
pub(super) fn is_closed() -> bool {
    let stdout = io::stdout();
    let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let polled = rustix::event::poll(&mut watched, Some(&now));
    polled.is_ok() && watched.iter().any(|fd| fd.revents().intersects(PollFlags::ERR | PollFlags::NVAL))
}

/// A column of a table: its heading, and its cell in a row.
pub(super) type Column<T> = (&'static str, fn(&T) -> String);

/// The lines of a table: headings first, columns as wide as their widest cell.
pub(super) fn table<'r, T: 'r>(columns: &[Column<T>], rows: impl Iterator<Item = &'r T>) -> Vec<String> {
    let mut lines = vec![columns.iter().map(|(heading, _)| (*heading).to_owned()).collect::<Vec<_>>()];
    // Escaped here because escaping changes the width. Escaping a line again, when it is printed, has no effect.
    lines.extend(rows.map(|row| columns.iter().map(|(_, cell)| one_line(&cell(row)).into_owned()).collect()));
    let mut widths = vec![0; columns.len()];
    for cells in &lines {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = cell.chars().count().max(*width);
        }
    }
    let padded = |cells: Vec<String>| {
        let line: String =
            cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        line.trim_end().to_owned()
    };
    lines.into_iter().map(padded).collect()
}

/// A progress bar for a number of bytes. Draws nothing if standard error is not a terminal.
pub(super) fn progress_bar(what: &str, silent: bool, total: u64) -> ProgressBar {
    let target = if silent { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    match ProgressStyle::with_template(&format!("{what} {{wide_bar}} {{bytes}}/{{total_bytes}}")) {
        Ok(style) => bar.with_style(style),
        // A plain bar will do.
        Err(_) => bar,
    }
}

/// Makes the progress bars of a mount. None if nothing is to be said.
pub(super) fn show(context: &Context) -> Option<Show> {
    if context.silent { None } else { Some(|what| progress_bar(what, false, 0)) }
}

/// A progress bar for a number of things.
pub(super) fn counting_bar(what: &str, silent: bool, total: u64) -> ProgressBar {
    let bar = progress_bar(what, silent, total);
    match ProgressStyle::with_template(&format!("{what} {{wide_bar}} {{pos}}/{{len}}")) {
        Ok(style) => bar.with_style(style),
        // A plain bar will do.
        Err(_) => bar,
    }
}

/// Counts the entries that a work of unknown size has done. It is drawn when they are counted, because the work may fork, and
/// so must have a single thread.
pub(super) fn counter(context: &Context, what: &str) -> ProgressBar {
    let target = if context.silent { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(None, target);
    let bar =
        match ProgressStyle::with_template(&format!("{what} {{spinner}} {{human_pos}} entries, {{elapsed}}"))
        {
            Ok(style) => bar.with_style(style),
            // A plain one will do.
            Err(_) => bar,
        };
    bar.tick();
    bar
}

/// A number of bytes with a unit.
pub(super) fn human_bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let columns: [Column<[&str; 2]>; 2] = [("X", |row| row[0].into()), ("Y", |row| row[1].into())];
        let rows = [["a", "bbb"], ["äää", "c"]];
        assert_eq!(table(&columns, rows.iter()), ["X    Y", "a    bbb", "äää  c"]);
    }

    #[test]
    fn bytes_for_people() {
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
    }
}
