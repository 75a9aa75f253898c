//! Output: values as text or JSON, tables, and failures. The reader may close its end at any time.
//!
//! Invariant: text for people is written line by line, and each line is escaped here; see [`super::escape`].

use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::escape::{self, one_line};
use super::exit::{FAILED, Failure, OK, failure};

/// Prints one line to standard output.
pub(crate) fn print_line(line: &str) -> Result<(), Failure> {
    print_lines(&[line])
}

/// Prints lines to standard output, and adds the newlines.
pub(crate) fn print_lines<T: AsRef<str>>(lines: &[T]) -> Result<(), Failure> {
    let mut text = String::new();
    for line in lines {
        text.push_str(&one_line(line.as_ref()));
        text.push('\n');
    }
    print(text.as_bytes())
}

/// Prints a path to standard output: its bytes to a program, escaped text to a terminal.
pub(crate) fn print_path(path: &Path) -> Result<(), Failure> {
    if io::stdout().is_terminal() {
        return print_line(&path.to_string_lossy());
    }
    print(&[path.as_os_str().as_bytes(), b"\n"].concat())
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    written(io::stdout().lock().write_all(bytes))
}

/// Prints a value as JSON.
pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
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
pub(crate) fn print_help(help: &clap::Error) -> ExitCode {
    match written(help.print()) {
        Ok(()) => ExitCode::from(OK),
        Err(failure) => {
            complain(&failure);
            ExitCode::from(failure.code)
        }
    }
}

/// Prints a failure to standard error: what failed and why, what to try, and the choices.
pub(crate) fn complain(failure: &Failure) {
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
pub(crate) fn note(silent: bool, text: &str) {
    if !silent {
        io::stderr().lock().write_all(format!("{}\n", one_line(text)).as_bytes()).ok();
    }
}

/// The lines of a table: headings first, columns as wide as their widest cell.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    // Escaped here because escaping changes the width. Escaping a line again, when it is printed, has no effect.
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| one_line(cell).into_owned()).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(headings.get(column).map(|heading| heading.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (cell, width) in cells.zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()) + 2));
        }
        line.trim_end().to_owned()
    };
    let mut lines = vec![line(&mut headings.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines
}

/// A number of bytes with a unit.
pub(crate) fn human_bytes(bytes: u64) -> String {
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
        let rows = vec![vec!["a".into(), "bbb".into()], vec!["äää".into(), "c".into()]];
        assert_eq!(table(&["X", "Y"], &rows), ["X    Y", "a    bbb", "äää  c"]);
    }

    #[test]
    fn bytes_for_people() {
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
    }
}
