use super::*;

fn refused(args: &[&str]) -> Failure {
    let error = Cli::try_parse_from(args).unwrap_err();
    assert!(error.use_stderr());
    usage(&error, args.iter().skip(1).map(OsString::from))
}

#[test]
fn definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_shows_examples() {
    for command in Cli::command().get_subcommands() {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("Examples:\n  ") && help.contains("holofs "), "{}", command.get_name());
    }
}

#[test]
fn usage_is_one_line_and_where_to_read_on() {
    for (args, what, fix) in [
        (&["holofs", "mount", "a"][..], "were not provided: <SPACE>", "`holofs mount --help`"),
        (
            &["holofs", "mount", "a", "b", "--strategy", "fast"],
            "invalid value 'fast'",
            "`holofs mount --help`",
        ),
        (&["holofs", "mount", "a", "b", "--strategy", "hardlink"], "shares one inode between", "--help`"),
        (
            &["holofs", "mount", "a", "b", "--strategy", "smart", "--strategy=copy"],
            "cannot be used",
            "--help`",
        ),
        (
            &["holofs", "mount", "a", "b", "--strategy", "smart", "--holotree-strategy", "copy"],
            "cannot be used multiple times",
            "--help`",
        ),
        (&["holofs", "mount", "a", "b", "--blueprint", "a", "-r", "b"], "cannot be used with", "--help`"),
        (&["holofs", "mount", "a", "b", "--fres"], "unexpected argument '--fres'", "'--fresh'"),
        (&["holofs", "mount", "a", "b", "c"], "unexpected argument 'c'", "`holofs mount --help`"),
        (&["holofs", "mont"], "unrecognized subcommand 'mont'", "'mount'"),
        (&["holofs", "mount", "a", "b", "--lock-timeout=-1"], "invalid value '-1'", ""),
        (&["holofs", "mount", "a", "b", "--lock-timeout", "x"], "expected a number of seconds", ""),
    ] {
        let failure = refused(args);
        assert_eq!(failure.code, USAGE, "{args:?}");
        assert!(failure.what.contains(what) && !failure.what.contains('\n'), "{args:?}: {failure:?}");
        assert!(failure.fix.as_deref().unwrap_or_default().contains(fix), "{args:?}: {failure:?}");
    }
}

/// What the Action Server, VS Code and robotmk add to every command.
#[test]
fn flags_that_callers_of_rcc_add_are_accepted() {
    let take = |words: &str| {
        let args: Vec<OsString> = words.split_whitespace().map(OsString::from).collect();
        rcc::OfRcc::take(&args)
    };
    for command in ["hash", "variables", "blueprint"] {
        let (flags, args) = take(&format!(
            "holofs {command} package.yaml --silent --controller action-server --bundled --sema4ai --robocorp \
             --no-retry-build --no-build --config c.yaml --anything=x --tag y"
        ));
        assert!(flags.no_build);
        assert!(Cli::try_parse_from(&args).is_ok(), "{args:?}");
    }
    let (_, args) =
        take("holofs hash package.yaml --silent --no-temp-management --warranty-voided --devdeps --bundled");
    assert!(Cli::try_parse_from(&args).is_ok());
    assert_eq!(take("holofs --bundled list").1, take("holofs list").1);
    // A command's own flags stay, and so does a flag without its value.
    for whole in ["holofs run auto s -- cmd --bundled --config x", "holofs list --config"] {
        let (flags, args) = take(whole);
        assert_eq!(flags, rcc::OfRcc::default());
        assert_eq!(args.len(), whole.split_whitespace().count(), "{whole}");
    }
    assert_eq!(Cli::try_parse_from(["holofs", "-V"]).unwrap_err().kind(), ErrorKind::DisplayVersion);
    assert_eq!(refused(&["holofs", "--product", "other", "list"]).code, USAGE);
}

/// A command that is defined alone takes what it takes in the whole definition.
#[test]
fn commands_alone_are_those_of_the_whole_definition() {
    let (whole, mut alone_too) = (Cli::command(), 0);
    for command in whole.get_subcommands() {
        for name in std::iter::once(command.get_name()).chain(command.get_visible_aliases()) {
            let Some(alone) = alone(name) else { continue };
            alone_too += 1;
            assert_eq!(alone.get_name(), command.get_name());
            let args = |command: &clap::Command| command.get_arguments().cloned().collect::<Vec<_>>();
            assert_eq!(format!("{:?}", args(&alone)), format!("{:?}", args(command)), "{name}");
        }
    }
    assert!(alone_too > 10);
}

#[test]
fn a_word_that_only_looks_like_a_command_is_not_taken_for_one() {
    let parse = |line: &str| {
        let args: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        parse(&args)
    };
    for (line, controller) in [("holofs --controller list gc", "list"), ("holofs --controller gc list", "gc")]
    {
        assert_eq!(parse(line).unwrap().global.controller.as_deref(), Some(controller));
    }
    for line in
        ["holofs mont list", "holofs list mount", "holofs help mount", "holofs mount --help", "holofs"]
    {
        let args = line.split_whitespace();
        let whole = help::definition().try_get_matches_from(args).unwrap_err();
        assert_eq!(parse(line).unwrap_err().to_string(), whole.to_string(), "{line}");
    }
    let version = parse("holofs --version").unwrap_err();
    assert_eq!(version.to_string(), Cli::command().render_version());
}

#[test]
fn flags_go_before_or_after_the_command() {
    for args in [&["holofs", "-j", "list"], &["holofs", "list", "-j"]] {
        assert!(Cli::try_parse_from(args).unwrap().global.json);
    }
}
