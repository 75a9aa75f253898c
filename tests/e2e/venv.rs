//! A real Python environment with packages from PyPI, recorded by `holofs record` and used from a mount.
//!
//! It needs the network. `HOLOFS_TEST_OFFLINE=1` skips it and says so.

use std::path::Path;
use std::process::Command;

use crate::common::as_user::holofs_binary;
use crate::common::manifest::read_tree;
use crate::common::world::finish;
use crate::common::{Mounted, World, files_below, sh};

const PACKAGES: &str = "numpy requests pyyaml robotframework";

/// Runs a program of a space, with the environment variables that pip needs to reach PyPI.
fn run(world: &World, program: &Path, args: &[&str]) -> String {
    let mut command = world.command(program);
    pip_environment(&mut command);
    let done = finish(command.args(args));
    assert_eq!(done.code, 0, "{args:?}: {done:?}");
    done.stdout
}

fn pip_environment(command: &mut Command) {
    for (key, value) in std::env::vars_os() {
        let name = key.to_string_lossy().to_lowercase();
        if name.starts_with("pip_") || name.ends_with("_proxy") || name.starts_with("ssl_cert") {
            command.env(key, value);
        }
    }
    command.env("PIP_NO_CACHE_DIR", "1").env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
}

fn record(world: &World, extra: &[&str]) {
    let blueprint = world.path().join("blueprint.yaml");
    std::fs::write(&blueprint, format!("packages: {PACKAGES}\n")).unwrap();
    let mut command = world.command(holofs_binary());
    pip_environment(&mut command);
    command.arg("record").arg(world.home()).args(extra).arg("--blueprint").arg(&blueprint).arg("--");
    let script = format!(
        "python3 -m venv --copies \"$HOLOFS_STAGE\" && \"$HOLOFS_STAGE/bin/pip\" install --quiet {PACKAGES}"
    );
    let done = finish(command.args(["sh", "-c", &script]));
    assert_eq!(done.code, 0, "{done:?}");
}

fn works(world: &World, mounted: &Mounted<'_>) {
    let python = mounted.at("bin/python");
    let check = "import numpy, yaml, requests, robot, sys; print(numpy.arange(6).sum(), sys.prefix)";
    let output = run(world, &python, &["-c", check]);
    assert_eq!(output.trim(), format!("15 {}", mounted.path().display()));
    let version = run(world, &mounted.at("bin/pip"), &["--version"]);
    assert!(version.contains(mounted.path().to_str().unwrap()), "{version}");
    let robot = world.command(mounted.at("bin/robot")).arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&robot.stdout).contains("Robot Framework"), "{robot:?}");
}

fn reality(extra: &[&str]) {
    if std::env::var_os("HOLOFS_TEST_OFFLINE").is_some() {
        eprintln!("not run: HOLOFS_TEST_OFFLINE is set");
        return;
    }
    let world = World::new();
    record(&world, extra);
    let library_before = files_below(&world.hololib());
    std::thread::sleep(std::time::Duration::from_millis(20));
    let mark = world.path().join("mark");
    std::fs::write(&mark, b"").unwrap();

    let one = world.mount("one");
    works(&world, &one);
    run(&world, &one.at("bin/pip"), &["install", "--quiet", "tomlkit"]);
    run(&world, &one.at("bin/python"), &["-c", "import tomlkit"]);
    let two = world.mount("two");
    works(&world, &two);
    let missing = world.command(two.at("bin/python")).args(["-c", "import tomlkit"]).output().unwrap();
    assert!(!missing.status.success(), "a package of one space is seen in another");

    let one = one.remount();
    run(&world, &one.at("bin/python"), &["-c", "import tomlkit"]);
    works(&world, &one);
    run(&world, &one.at("bin/pip"), &["uninstall", "--quiet", "--yes", "tomlkit", "requests"]);
    let gone = world.command(one.at("bin/python")).args(["-c", "import requests"]).output().unwrap();
    assert!(!gone.status.success());
    works(&world, &two);

    // None of this changed the library.
    assert!(files_below(&world.hololib()).len() >= library_before.len());
    let newer = sh(Command::new("find").arg(world.hololib()).args(["-type", "f", "-newer"]).arg(&mark));
    let used = world.hololib().join("used");
    let written: Vec<&str> = newer.lines().filter(|line| !Path::new(line).starts_with(&used)).collect();
    assert_eq!(written, Vec::<&str>::new());
    let done = world.run([std::ffi::OsStr::new("check"), world.home().as_os_str()]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(read_tree(two.path()).len() > 1000);
}

for_both_users! {
    fn compressed_library() {
        reality(&[]);
    }
}

#[test]
fn raw_library() {
    reality(&["--no-compress"]);
}
