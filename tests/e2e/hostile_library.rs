//! A library that somebody wrote to do harm: what a command prints of it, and where it makes files.

use crate::common::as_user::root_or_skip;
use crate::common::library::pattern;
use crate::common::{Library, World};

/// Clears the screen, starts a line that looks like a line of holofs, and sets the title of the terminal.
const EVIL: &str = "x\u{1b}[2J\nERROR holofs: forged\r\u{9b}31m\u{7f}\u{202e}";

/// Whether a text contains anything that a terminal acts on.
fn is_active(text: &str) -> bool {
    text.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{202e}'))
}

/// A library with hostile names, link targets and blueprint, and with one bad blob.
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
    fn control_characters_are_escaped() {
        let world = evil_world();
        let home = world.home();
        let home = home.to_str().unwrap();
        // A second catalog with another base, so that `catalogs` prints its path.
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
            &["unmount", "--all"],
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
                // JSON keeps the value.
                assert!(value.to_string().contains("forged"), "{args:?}: {done:?}");
            }
        }
    }

    fn names_cannot_forge_log_lines() {
        let world = evil_world();
        let mounted = world.mount("s");
        assert!(std::fs::read(mounted.at(format!("{EVIL}/bad"))).is_err());
        assert!(std::fs::read(mounted.at("good")).is_ok());
        let log = std::fs::read_to_string(mounted.state().join("log")).unwrap();
        assert!(log.contains("/bad") && !is_active(&log), "{log:?}");
        assert!(!log.lines().any(|line| line.starts_with("ERROR")), "{log:?}");
    }
}

/// If only the catalog names a directory, a mount makes no files there. It shows the environment in rcc's home.
#[test]
fn catalog_cannot_choose_where_files_are_made() {
    let world = World::new();
    let elsewhere = world.path().join("profile.d");
    std::fs::create_dir(&elsewhere).unwrap();
    Library::sample().write_edited(&world.hololib(), &world.base(), |json| {
        json["path"] = format!("{}/{}", elsewhere.display(), json["identity"].as_str().unwrap()).into();
    });
    let home = world.home();
    let mounted = world.mount("s");
    assert_eq!(mounted.path().parent(), Some(home.join("holotree").as_path()));
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
    drop(mounted);
    // `warm` makes no files there. A user who types the path has chosen the directory.
    let blueprint = Library::sample().hash();
    assert_eq!(world.run(["warm".as_ref(), home.as_os_str(), blueprint.as_ref()]).code, 0);
    let typed = elsewhere.join("a-name-of-my-own-choice_");
    drop(world.mount_with(typed.to_str().unwrap(), &[]));
}

/// Where other users may write, the library's own holotree can be a link that one of them made.
#[test]
fn holotree_link_of_another_user_is_refused() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample();
    let elsewhere = world.path().join("profile.d");
    std::fs::create_dir(&elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, world.base()).unwrap();
    std::os::unix::fs::lchown(world.base(), Some(12345), None).unwrap();
    let done = world.run(["mount".as_ref(), world.home().as_os_str(), "s".as_ref()]);
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0, "{done:?}");
    assert!(done.code == 7 && done.stderr.contains("user 12345"), "{done:?}");
    // A link of the user's own is the user's choice.
    std::os::unix::fs::lchown(world.base(), Some(0), None).unwrap();
    let done = world.run(["mount".as_ref(), world.home().as_os_str(), "s".as_ref()]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(world.run(["unmount", "s"]).code, 0);
}
