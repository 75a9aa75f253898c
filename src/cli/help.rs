//! The definition of the command line, with the commands in groups in `holofs --help`.
//!
//! clap lists all commands in one list. A newcomer should see at once the commands that are needed daily, so the list is
//! made here, from [`GROUPS`] and from the first line of each command's own help. Man pages and completions are made from
//! the same definition. Invariant: the help fits one screen, and has each command once.

use std::fmt::Write as _;

use clap::CommandFactory as _;

use super::Cli;

/// The commands in the order in which they are shown. A command is shown when [`Cli`] has it.
const GROUPS: [(&str, &[&str]); 5] = [
    ("Use", &["mount", "run", "unmount"]),
    ("Spaces", &["list", "status", "path", "stats", "diff", "reset", "commit", "fork", "delete"]),
    (
        "Libraries",
        &[
            "catalogs", "check", "warm", "record", "restore", "import", "export", "push", "pull", "gc",
            "bench",
        ],
    ),
    ("As in rcc", &["shell", "variables", "hash", "blueprint"]),
    ("Machine", &["doctor", "upgrade", "config", "completions", "man"]),
];

/// The text of `holofs --help` around the list of commands.
const BEFORE: &str = "\
{about}
Usage: holofs COMMAND [ARGUMENTS]        In a robot's directory: holofs mount
";
const AFTER: &str = "\
`holofs help COMMAND` explains each, with `--json` and more; `holofs man` has the exit codes.";

/// The definition of the command line.
pub(super) fn definition() -> clap::Command {
    let cli = Cli::command();
    let help = format!("{BEFORE}{}{AFTER}", listed(&cli));
    // clap's `{` must not appear in the help of commands, which is plain text.
    cli.help_template(help)
}

/// The list of commands: the name of the group, the command, and what it does.
fn listed(cli: &clap::Command) -> String {
    let group = GROUPS.iter().map(|(group, _)| group.len()).max().unwrap_or_default();
    let name = cli.get_subcommands().map(|command| command.get_name().len()).max().unwrap_or_default();
    let mut out = String::new();
    for (heading, names) in GROUPS {
        let mut heading = heading;
        for command in names.iter().filter_map(|name| cli.find_subcommand(name)) {
            if !heading.is_empty() {
                out.push('\n');
            }
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            // Writing to a String cannot fail.
            writeln!(out, "{heading:<group$}  {:<name$}  {about}", command.get_name()).ok();
            heading = "";
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group() {
        let cli = Cli::command();
        let shown = |name: &str| GROUPS.iter().flat_map(|(_, names)| *names).filter(|n| **n == name).count();
        for command in cli.get_subcommands().filter(|command| !command.is_hide_set()) {
            assert_eq!(shown(command.get_name()), 1, "add `{}` to GROUPS", command.get_name());
        }
    }

    #[test]
    fn help_fits_one_screen_and_begins_with_the_daily_commands() {
        let help = definition().render_help().to_string();
        let lines: Vec<&str> = help.trim_end().lines().collect();
        assert!((24..=40).contains(&lines.len()), "{} lines:\n{help}", lines.len());
        assert!(lines.iter().all(|line| line.chars().count() <= 100), "{help}");
        let at = |name: &str| lines.iter().position(|line| line.contains(&format!("  {name}  "))).unwrap();
        assert!(at("mount") < at("run") && at("run") < at("unmount") && at("unmount") < at("list"), "{help}");
        assert!(!help.contains('{'), "{help}");
        // The long form is the same text.
        assert_eq!(definition().render_long_help().to_string(), help);
    }
}
