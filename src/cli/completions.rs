//! `holofs completions`: completions for shells, from the definition of the command line.

use super::exit::{Failure, OK};
use super::{help, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "The packages install completions. Without a package:

Examples:
  source <(holofs completions bash)
  holofs completions zsh > ~/.zfunc/_holofs
  holofs completions fish > ~/.config/fish/completions/holofs.fish")]
pub(super) struct Args {
    /// The shell
    #[arg(value_name = "bash|zsh|fish|elvish|powershell", hide_possible_values = true)]
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut help::definition(), "holofs", &mut text);
    output::print_for_program(&text)?;
    Ok(OK)
}
