//! The `holofs` program: parse, dispatch, exit.

fn main() -> std::process::ExitCode {
    holofs::cli::main()
}
