//! A library that somebody wrote to do harm: what a command shows of it, what it costs, where it leads.

use crate::common::library::pattern;
use crate::common::{Library, World};

/// Clears the screen, goes on in a line of its own that looks like ours, and sets the terminal's title.
const EVIL: &str = "x\u{1b}[2J\nERROR holofs: forged\r\u{9b}31m\u{7f}\u{202e}";

/// Whether a text holds something that a terminal acts on.
fn is_active(text: &str) -> bool {
    text.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{202e}'))
}

/// A library whose names, link texts and blueprint are hostile, with one blob that is not what it should be.
fn evil_world() -> World {
    let world = World::new();
    let library = Library::new()
        .named(EVIL)
        .file(&format!("{EVIL}/bad"), &pattern(5000))
        .file("good", &pattern(9000))
        .link(&format!("link{EVIL}"), EVIL);
    library.write(&world.hololib(), &world.base());
    let blob = library.blob(&world.hololib(), &format!("{EVIL}/bad"));
    std::fs::write(blob, crate::common::library::gzip(b"other")).unwrap();
    world
}

for_both_users! {
    fn nothing_a_terminal_acts_on_is_printed() {
        let world = evil_world();
        let home = world.home();
        let home = home.to_str().unwrap();
        // A second catalog with another base: its path is shown by `catalogs`.
        let other = Library::new().named("other");
        other.write_edited(&world.hololib(), &world.base(), |json| {
            json["path"] = format!("/no/such/{EVIL}/{}", json["identity"].as_str().unwrap()).into();
        });
        for args in [
            &["catalogs", home, "--identity", "--top", "9"][..],
            &["catalogs", home, "--identity", "--top", "9", "--json"],
            &["check", home],
            &["check", home, "--json"],
            &["warm", home, &Library::new().named(EVIL).hash()],
            &["mount", home, "s"],
            &["mount", home, "s", "--blueprint", &other.hash()],
            &["mount", home, EVIL],
            &["status", EVIL],
            &["path", EVIL],
            &["unmount", EVIL],
            &["list"],
            &["list", "--debug"],
        ] {
            let done = world.run(args);
            assert!(!is_active(&done.stdout), "{args:?}: {done:?}");
            assert!(!is_active(&done.stderr), "{args:?}: {done:?}");
            let forged = |text: &str| text.lines().any(|line| line.starts_with("ERROR holofs: forged"));
            assert!(!forged(&done.stdout) && !forged(&done.stderr), "{args:?}: {done:?}");
            if args.contains(&"--json") {
                let value: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
                // The value is what it was.
                assert!(value.to_string().contains("forged"), "{args:?}: {done:?}");
            }
        }
    }

    fn no_name_forges_a_line_of_the_log() {
        let world = evil_world();
        let mounted = world.mount("s");
        assert!(std::fs::read(mounted.at(format!("{EVIL}/bad"))).is_err());
        assert!(std::fs::read(mounted.at("good")).is_ok());
        let log = std::fs::read_to_string(mounted.state().join("log")).unwrap();
        assert!(log.contains("/bad") && !is_active(&log), "{log:?}");
        assert!(!log.lines().any(|line| line.starts_with("ERROR")), "{log:?}");
    }
}
