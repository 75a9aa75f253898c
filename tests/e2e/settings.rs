//! Settings come from flags, variables and `settings.yaml`; a bad value is an error.

use serde_json::json;

use crate::common::world::finish;
use crate::common::{Mounted, World};

fn write_settings(world: &World, yaml: &str) {
    std::fs::write(world.home().join("settings.yaml"), yaml).unwrap();
}

const COPY: &str = "autoupdates: {}\nholotree:\n  restoration-strategy: copy\n";

#[test]
fn strategy_of_settings_yaml_takes_effect() {
    let world = World::sample();
    write_settings(&world, COPY);
    let mounted = world.mount("s");
    let status = world.json(["status", "s"]);
    assert_eq!(status["strategy"], "copy");
    // A second `mount` has the same settings, so it succeeds. A flag with another value does not.
    assert_eq!(world.json(["mount", world.home().to_str().unwrap(), "s"])["reused"], true);
    let other = world.run(["mount", world.home().to_str().unwrap(), "s", "--strategy", "smart"]);
    assert_eq!(other.code, 7, "{other:?}");
    drop(mounted);
}

#[test]
fn config_names_the_place_of_each_value() {
    let world = World::sample();
    write_settings(&world, COPY);
    let path = world.home().join("settings.yaml");
    let config = world.json(["config", "--controller", "me"]);
    assert_eq!(config["strategy"], json!({ "value": "copy", "source": "file", "path": path, "line": 3 }));
    assert_eq!(
        config["home"],
        json!({ "value": world.home(), "source": "variable", "name": "ROBOCORP_HOME" })
    );
    assert_eq!(config["controller"], json!({ "value": "me", "source": "flag" }));
    assert_eq!(config["cache-size"], json!({ "value": 10_737_418_240_u64, "source": "default" }));
    let mut command = world.holofs();
    let shown = finish(command.arg("config").env("RCC_HOLOTREE_STRATEGY", "Reflink"));
    assert_eq!(shown.code, 0, "{shown:?}");
    assert!(shown.stdout.contains("strategy          = reflink (RCC_HOLOTREE_STRATEGY)\n"), "{shown:?}");
    assert!(shown.stdout.contains("lock-timeout      = 30.0 (default)\n"), "{shown:?}");
}

#[test]
fn bad_settings_yaml_stops_a_mount_and_not_an_unmount() {
    let world = World::sample();
    let home = world.home();
    let mounted = world.mount("s");
    for (yaml, place) in [
        ("holotree:\n  restoration-strategy: fast\n", "settings.yaml:2: fast: expected one of smart"),
        ("holotree:\n\n  a: [\n", "settings.yaml:3: "),
    ] {
        write_settings(&world, yaml);
        for args in [&["mount", home.to_str().unwrap(), "t"][..], &["config"]] {
            let done = world.run(args);
            assert_eq!(done.code, 4, "{done:?}");
            assert!(done.stdout.is_empty() && done.stderr.contains(place), "{done:?}");
        }
    }
    assert_eq!(world.json(["status", "s"])["state"], "mounted");
    drop(mounted);
    assert_eq!(world.json(["status", "s"])["state"], "unmounted");
}

#[test]
fn bad_variable_stops_a_mount() {
    let world = World::sample();
    for (name, value) in [
        ("HOLOFS_STRATEGY", "bogus"),
        ("RCC_HOLOTREE_STRATEGY", "bogus"),
        ("HOLOFS_IO", "bogus"),
        ("HOLOFS_LOG", "loud"),
    ] {
        let mut command = world.holofs();
        let done = finish(command.arg("mount").arg(world.home()).arg("s").env(name, value));
        assert_eq!(done.code, 4, "{done:?}");
        assert!(done.stderr.contains(&format!("{name}={value}: expected ")), "{done:?}");
    }
}

#[test]
fn hardlink_of_a_variable_is_smart_with_one_warning() {
    let world = World::sample();
    let mut command = world.holofs();
    command.arg("mount").arg(world.home()).arg("s").env("RCC_HOLOTREE_STRATEGY", "hardlink");
    let done = finish(&mut command);
    let mounted = Mounted::adopt(&world, "s");
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.stderr.matches("hardlink").count(), 1, "{done:?}");
    assert_eq!(mounted.output["strategy"], "smart");
}
