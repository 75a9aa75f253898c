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

/// A mount that must not fall back to copies, or to the page cache, fails before it exists, and says which setting or
/// filesystem is in the way.
#[test]
fn requirements_are_errors_before_the_mount() {
    let world = World::sample();
    let home = world.home();
    let home = home.to_str().unwrap();
    let refused = |args: &[&str], variable: Option<(&str, &str)>, code: i32, why: &str| {
        let mut command = world.holofs();
        command.args(["mount", home, "s"]).args(args).env_remove("HOLOFS_IO");
        if let Some((name, value)) = variable {
            command.env(name, value);
        }
        let done = finish(&mut command);
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{done:?}");
        assert!(done.stderr.contains(why) && done.stderr.contains("  try: "), "{done:?}");
        assert!(world.mounts().is_empty());
    };
    refused(&["--require-reflink", "--strategy", "copy"], None, 2, "the strategy is copy (command line)");
    refused(&["--require-reflink"], Some(("RCC_HOLOTREE_STRATEGY", "copy")), 2, "RCC_HOLOTREE_STRATEGY");
    refused(&["--require-passthrough", "--io", "cached"], None, 2, "--io is cached");
    let (_, report) = doctor_of(&world);
    if report["fallbacks"].to_string().contains("reflink") {
        let left =
            || (world.json(["list"]), std::fs::read_dir(world.state().join("spaces")).unwrap().count());
        refused(&["--require-reflink"], None, 9, "FICLONE");
        // Nothing is left of a new space that was never mounted, and an old one is kept.
        assert_eq!(left(), (serde_json::json!({}), 0));
        assert!(!world.base().join("ea7ce2c_5a1fac3_1c4d015e").exists());
        let mounted = world.mount("s");
        std::fs::write(mounted.at("new"), "text").unwrap();
        mounted.unmount();
        refused(&["--require-reflink"], None, 9, "FICLONE");
        assert_eq!(left().1, 1);
        let mounted = world.mount("s");
        assert_eq!(std::fs::read(mounted.at("new")).unwrap(), b"text");
        mounted.unmount();
        // A mount that fell back is not one that the requirement accepts.
        let mounted = world.mount("s");
        let again = world.run(["mount", home, "s", "--require-reflink"]);
        assert!(again.code == 7 && again.stderr.contains("--require-reflink"), "{again:?}");
        drop(mounted);
    }
}

fn doctor_of(world: &World) -> (i32, serde_json::Value) {
    let done = finish(world.holofs().args(["doctor", "--json"]));
    (done.code, serde_json::from_str(&done.stdout).unwrap())
}

#[test]
fn passthrough_that_is_required_is_used_or_an_error() {
    let world = World::sample();
    let mount = |helper: &str| {
        let mut command = world.holofs();
        command.args(["mount", world.home().to_str().unwrap(), "s", "--require-passthrough", "--json"]);
        command.env_remove("HOLOFS_IO").env("HOLOFS_MOUNT_HELPER", helper);
        finish(&mut command)
    };
    let done = mount("/nonexistent");
    if done.code == 0 {
        let mut command = world.holofs();
        command.args(["mount", world.home().to_str().unwrap(), "s", "--io", "passthrough", "--json"]);
        let mounted = Mounted::by(&world, "s", &mut command);
        assert_eq!(mounted.output["io"], "passthrough");
    } else {
        assert_eq!((done.code, done.stdout.as_str()), (8, ""), "{done:?}");
        assert!(done.stderr.contains("no passthrough here"), "{done:?}");
        assert!(world.mounts().is_empty());
    }
    if crate::common::as_user::is_root() {
        let world = World::sample().by_ordinary_user();
        let mut command = world.holofs();
        command.args(["mount", world.home().to_str().unwrap(), "s", "--require-passthrough"]);
        let done = finish(command.env_remove("HOLOFS_IO").env("HOLOFS_MOUNT_HELPER", ""));
        assert!(done.code == 8 && done.stderr.contains("mount helper"), "{done:?}");
        assert!(world.mounts().is_empty());
    }
}

#[test]
fn every_setting_is_listed() {
    let world = World::sample();
    write_settings(&world, "network:\n  https-proxy: http://me:secret@proxy:1\n");
    let mut command = world.holofs();
    command.args(["config", "--json", "--product", "sema4ai"]).env("RCC_NO_PYC_MANAGEMENT", "1");
    let done = finish(command.env("SEMA4AI_HOME", world.home()));
    let config: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(config["product"], json!({ "value": "sema4ai", "source": "flag" }));
    assert_eq!(config["home"]["name"], "SEMA4AI_HOME");
    assert_eq!(config["network"]["value"]["https-proxy"], "http://me:***@proxy:1");
    for command in [&["config"][..], &["doctor"], &["doctor", "--json"]] {
        let done = world.run(command);
        assert!(!format!("{done:?}").contains("secret"), "{done:?}");
    }
    assert_eq!(config["network"]["line"], 2);
    assert_eq!(
        config["pyc-management"],
        json!({ "value": false, "source": "variable", "name": "RCC_NO_PYC_MANAGEMENT" })
    );
    for name in ["cache-dir", "restore-strategy", "rcc", "temp-management", "mount-helper", "log"] {
        assert!(config[name]["source"].is_string(), "{name}");
    }
    // Without settings.yaml, also a broken one is no error.
    write_settings(&world, "holotree: [");
    assert_eq!(world.run(["config"]).code, 4);
    assert_eq!(world.json(["config", "--no-config"])["network"]["source"], "default");
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
