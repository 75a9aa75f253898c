//! `holofs variables`: what it prints, who can read it, and what it leaves mounted.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::common::library::STAGE;
use crate::common::world::{Done, finish};
use crate::common::{Library, World, sh};

/// An environment with a program `python3`, and with what its packages' activation scripts set.
pub fn environment() -> Library {
    let activation =
        format!(r#"{{"PATH": "/builder/bin", "GDAL_DATA": "/somewhere/{STAGE}/share/gdal it's"}}"#);
    Library::sample()
        .file_mode("bin/python3.11", 0o755, b"#!/bin/sh\nexit 0\n")
        .link("bin/python3", "python3.11")
        .file("rcc_activate.json", activation.as_bytes())
}

fn world() -> World {
    World::with(&environment())
}

/// The variables as rcc's JSON, with the names in the order in which they were printed.
fn list(world: &World, args: &[&str]) -> Vec<(String, String)> {
    let done = world.run([&["variables", "-s", "s", "--json"], args].concat());
    assert_eq!(done.code, 0, "{done:?}");
    let list: Vec<Value> = serde_json::from_str(&done.stdout).unwrap();
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
    list.iter().map(|entry| (text(entry, "key"), text(entry, "value"))).collect()
}

fn last<'l>(list: &'l [(String, String)], name: &str) -> &'l str {
    let found = list.iter().rev().find(|(known, _)| known == name);
    found.map(|(_, value)| value.as_str()).unwrap_or_else(|| panic!("no {name} in {list:?}"))
}

fn unmount(world: &World) {
    let done = world.run(["unmount", "s", "--strict"]);
    assert_eq!(done.code, 0, "{done:?}");
}

for_both_users! {
    fn are_rccs_in_its_order_and_the_space_stays_mounted() {
        let world = world();
        let list = list(&world, &[]);
        let mount = &world.mounts()[0];
        let names: Vec<&str> = list.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [
            "PYTHON_EXE", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "TEMP", "TMP", "CONDA_DEFAULT_ENV",
            "CONDA_PREFIX", "CONDA_PROMPT_MODIFIER", "CONDA_SHLVL", "PYTHONHOME", "PYTHONSTARTUP",
            "PYTHONEXECUTABLE", "PYTHONNOUSERSITE", "ROBOCORP_HOME", "RCC_ENVIRONMENT_HASH", "RCC_INSTALLATION_ID",
            "RCC_HOLOTREE_SPACE_ROOT", "RCC_TRACKING_ALLOWED", "RCC_VERSION", "PATH", "PATH", "GDAL_DATA",
            "HOLOFS_MOUNT", "HOLOFS_VERSION",
        ]);
        assert_eq!(last(&list, "CONDA_PREFIX"), mount.to_str().unwrap());
        assert_eq!(last(&list, "PYTHON_EXE"), mount.join("bin/python3").to_str().unwrap());
        assert_eq!(last(&list, "CONDA_PROMPT_MODIFIER"), "(rcc)");
        assert_eq!(last(&list, "RCC_ENVIRONMENT_HASH"), environment().hash());
        assert_eq!(last(&list, "PATH"), "/builder/bin", "as in rcc, the activation comes last");
        let identity = mount.file_name().unwrap().to_str().unwrap();
        assert_eq!(last(&list, "GDAL_DATA"), format!("/somewhere/{identity}/share/gdal it's"));
        let temp = Path::new(last(&list, "TEMP"));
        assert_eq!(temp.parent(), Some(world.home().join("temp").as_path()));
        assert_eq!(std::fs::read(temp.join("recycle.now")).unwrap(), b"True");
        unmount(&world);
    }

    fn shell_reads_them_back() {
        let world = world();
        let mut command = world.command("bash");
        let program = world.holofs().get_program().to_str().unwrap().to_owned();
        command.args(["-euc", &format!("source <('{program}' variables -s s --dedupe); /usr/bin/env -0")]);
        let out = sh(&mut command);
        let value = |name: &str| {
            out.split('\0').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap().to_owned()
        };
        assert_eq!(value("CONDA_PROMPT_MODIFIER"), "(rcc) ");
        assert!(value("GDAL_DATA").ends_with("/share/gdal it's"));
        assert_eq!(value("PATH"), "/builder/bin");
        unmount(&world);
    }
}

#[test]
fn formats_differ_and_winners_are_printed_once() {
    let world = world();
    for (format, line) in [
        ("export", "export CONDA_PROMPT_MODIFIER='(rcc) '\n"),
        ("dotenv", "CONDA_PROMPT_MODIFIER='(rcc) '\n"),
        ("null", "CONDA_PROMPT_MODIFIER=(rcc) \0"),
        ("fish", "set -gx CONDA_PROMPT_MODIFIER '(rcc) ';\n"),
        ("powershell", "$env:CONDA_PROMPT_MODIFIER = '(rcc) '\n"),
        ("json", "    \"key\": \"CONDA_PROMPT_MODIFIER\",\n    \"value\": \"(rcc)\"\n"),
    ] {
        let done = world.run(["variables", "-s", "s", "--format", format]);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.stdout.contains(line), "{done:?}");
    }
    assert_eq!(list(&world, &[]).iter().filter(|(name, _)| name == "PATH").count(), 2);
    let winners = list(&world, &["--dedupe"]);
    assert_eq!(winners.iter().filter(|(name, _)| name == "PATH").count(), 1);
    assert_eq!(last(&winners, "PATH"), "/builder/bin");
    unmount(&world);
}

#[test]
fn added_variables_come_first_and_managed_ones_can_be_left_out() {
    let world = world();
    let file = world.path().join("env.json");
    std::fs::write(&file, r#"{"ROBOT": "1", "PYTHONHOME": "loses"}"#).unwrap();
    let file = file.to_str().unwrap();
    let with = list(&world, &["-e", file, "--no-pyc-management", "--no-temp-management", "--bundled"]);
    assert_eq!(with[0], ("ROBOT".to_owned(), "1".to_owned()));
    assert_eq!(last(&with, "PYTHONHOME"), "");
    assert!(
        !with.iter().any(|(name, _)| ["TEMP", "TMP", "PYTHONDONTWRITEBYTECODE"].contains(&name.as_str()))
    );
    assert!(!world.home().join("temp").exists());
    unmount(&world);
}

#[test]
fn force_drops_changes_and_no_mount_mounts_nothing() {
    let world = world();
    let refused = world.run(["variables", "-s", "s", "--no-mount"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (6, ""), "{refused:?}");
    assert!(refused.stderr.contains("not mounted"), "{refused:?}");
    list(&world, &[]);
    list(&world, &["--no-mount"]);
    let mount = world.mounts()[0].clone();
    std::fs::write(mount.join("new"), "x").unwrap();
    list(&world, &["--force"]);
    assert!(!mount.join("new").exists());
    let held = std::fs::File::open(mount.join("readme.txt")).unwrap();
    let busy = world.run(["variables", "-s", "s", "--force"]);
    assert_eq!(busy.code, 12, "{busy:?}");
    drop(held);
    unmount(&world);
}

/// Each kind of bad input has its code, one line that says why, and nothing on standard output.
#[test]
fn bad_input() {
    let world = world();
    let env_file = |name: &str, text: &str| {
        let path = world.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (list, name) = (env_file("list.json", "[1]"), env_file("name.json", "{\"a=b\": \"c\"}"));
    let fifo = world.path().join("fifo");
    sh(Command::new("mkfifo").arg(&fifo));
    let cases: [(&[&str], i32, &str); 7] = [
        (&["-e", "/nonesuch/env.json"], 5, "/nonesuch/env.json"),
        (&["-e", &list], 5, "list.json:1: "),
        (&["-e", &name], 5, "cannot be the name of a variable"),
        (&["-e", fifo.to_str().unwrap()], 5, "FIFO"),
        (&["-r", "/nonesuch/robot.yaml"], 5, "/nonesuch/robot.yaml"),
        (&["--format", "ini"], 2, "ini"),
        (&["--library", "/nonesuch"], 3, "/nonesuch"),
    ];
    for (args, code, why) in cases {
        let done: Done = world.run([&["variables", "-s", "s"], args].concat());
        assert_eq!((done.code, done.stdout.as_str()), (code, ""), "{done:?}");
        assert!(done.stderr.starts_with("holofs: ") && done.stderr.contains(why), "{done:?}");
        assert!(world.mounts().is_empty(), "{args:?}");
    }
}

/// The exact command lines of programs that call rcc. Their flags are accepted by every command.
#[test]
fn command_lines_of_rccs_callers() {
    let library = environment().named("of a caller\nchannels: []\ndependencies: []");
    let world = World::with(&library);
    let dir = world.path().join("project");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("conda.yaml"), "name: of a caller\n").unwrap();
    let holofs = |args: &str| {
        let done = finish(world.holofs().args(args.split(' ')).current_dir(&dir));
        assert_eq!(done.code, 0, "{done:?}");
        done.stdout
    };
    let hash = holofs(
        "hash conda.yaml --silent --no-temp-management --warranty-voided --controller action-server --bundled --sema4ai",
    );
    assert_eq!(hash.trim(), library.hash());
    for line in [
        "variables --space HASH conda.yaml --config C --json --no-retry-build --no-pyc-management --liveonly --controller action-server --bundled --sema4ai",
        "variables --space NAME conda.yaml --json --controller RobocorpCode",
        "--bundled variables --no-build --build --space NAME conda.yaml --json --controller RobocorpCode",
    ] {
        let list: Value = serde_json::from_str(&holofs(line)).unwrap();
        let value = |name: &str| {
            let found = list.as_array().unwrap().iter().rev().find(|entry| entry["key"] == name);
            found.unwrap()["value"].as_str().unwrap().to_owned()
        };
        assert!(Path::new(&value("PYTHON_EXE")).exists());
        let identity =
            std::fs::read_to_string(Path::new(&value("CONDA_PREFIX")).join("identity.yaml")).unwrap();
        assert!(identity.starts_with("name: of a caller\n"));
        assert_eq!(
            list.as_array().unwrap().iter().any(|e| e["key"] == "PYTHONDONTWRITEBYTECODE"),
            !line.contains("pyc")
        );
    }
    holofs("unmount --all");
}

/// With the real rcc, byte for byte, if `HOLOFS_TEST_RCC` names one.
#[test]
fn json_is_rccs_byte_for_byte() {
    let Some(rcc) = std::env::var_os("HOLOFS_TEST_RCC") else { return };
    let library = environment().named("of rcc\nchannels: []\ndependencies: []");
    let world = World::with(&library);
    let robot = world.path().join("robot");
    std::fs::create_dir(&robot).unwrap();
    std::fs::write(robot.join("conda.yaml"), "name: of rcc\n").unwrap();
    std::fs::write(
        robot.join("robot.yaml"),
        "tasks: {t: {shell: python x}}\nartifactsDir: output\ncondaConfigFile: conda.yaml\nPATH: [., bin]\nPYTHONPATH: [lib]\n",
    )
    .unwrap();
    for args in [&["-r", "robot.yaml"][..], &["conda.yaml"]] {
        let directory = if args[0] == "-r" {
            robot.clone()
        } else {
            let alone = world.path().join("alone");
            std::fs::create_dir_all(&alone).unwrap();
            std::fs::copy(robot.join("conda.yaml"), alone.join("conda.yaml")).unwrap();
            alone
        };
        let words = [&["-s", "s", "--json", "--no-temp-management", "--no-pyc-management"], args].concat();
        let ours = || {
            let mut command = world.holofs();
            finish(command.arg("variables").args(&words).current_dir(&directory).env("HOLOFS_RCC", &rcc))
        };
        // Mounted first: rcc finds the space as if it had restored it. It makes its `rcc.yaml` when it runs.
        assert_eq!(ours().code, 0);
        let mut command = world.command(&rcc);
        command.args(["holotree", "variables", "--no-build"]).args(&words).current_dir(&directory);
        let (theirs, ours) = (finish(&mut command), ours());
        assert_eq!((ours.code, theirs.code), (0, 0), "{ours:?} {theirs:?}");
        let added = ours.stdout.find(",\n  {\n    \"key\": \"HOLOFS_MOUNT\"").unwrap();
        // rcc keeps the two variables of rcc_activate.json in random order.
        let sorted = |text: &str| {
            let mut entries: Vec<String> =
                text.split("\n  {").map(|entry| entry.trim_end_matches(',').to_owned()).collect();
            entries.sort();
            entries
        };
        assert_eq!(sorted(&format!("{}\n]\n", &ours.stdout[..added])), sorted(&theirs.stdout));
        unmount(&world);
    }
}
