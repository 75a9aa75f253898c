//! `holofs run` of a robot's own task, as `rcc run` does it.

use std::path::PathBuf;

use super::{Done, World, environment, finish, sh};
use crate::common::Library;

/// The environment of `conda.yaml` below.
fn library() -> Library {
    let python = "#!/bin/sh\necho python \"$@\"\n";
    environment()
        .file_mode("bin/python", 0o755, python.as_bytes())
        .named("a robot\nchannels: []\ndependencies: []")
}

const ROBOT: &str = r#"
tasks:
  Say hello:
    shell: sh -c 'echo "hello $0 $1"; pwd' "a b"
  Robot:
    robotTaskName: Do it
  Count:
    command: [count, one, "two  words"]
  Fail:
    command: [sh, -c, exit 4]
  Show:
    command: [env]
artifactsDir: out/put
condaConfigFile: conda.yaml
PATH: [bin, .]
PYTHONPATH: [lib, keywords]
"#;

fn robot(world: &World, more: &str) -> PathBuf {
    let dir = world.path().join("robot");
    std::fs::create_dir_all(dir.join("bin")).unwrap();
    std::fs::write(dir.join("conda.yaml"), "name: a robot\n").unwrap();
    std::fs::write(dir.join("robot.yaml"), format!("{ROBOT}{more}")).unwrap();
    std::fs::write(dir.join("bin/count"), "#!/bin/sh\necho $#: \"$@\"\n").unwrap();
    sh(std::process::Command::new("chmod").arg("755").arg(dir.join("bin/count")));
    dir
}

fn task(world: &World, args: &[&str]) -> Done {
    let dir = world.path().join("robot");
    finish(world.holofs().arg("run").args(args).current_dir(dir))
}

#[test]
fn task_runs_in_the_robots_directory() {
    let world = World::with(&library());
    let dir = robot(&world, "");
    let hello = task(&world, &["--task", "say HELLO", "--", "c"]);
    assert_eq!(
        (hello.code, hello.stdout),
        (0, format!("hello a b c\n{}\n", dir.display())),
        "{}",
        hello.stderr
    );
    assert!(dir.join("out/put").is_dir());
    assert!(world.mounts().is_empty());
    let robot = task(&world, &["-t", "Robot"]);
    assert_eq!(
        robot.stdout,
        "python -m robot --report NONE --outputdir out/put --logtitle Task log --task Do it .\n",
        "{robot:?}"
    );
    let count = task(&world, &["-t", "Count"]);
    assert_eq!(count.stdout, "2: one two  words\n", "{count:?}");
    // From elsewhere, by its robot.yaml.
    let file = dir.join("robot.yaml");
    let elsewhere = world.run(["run", "-r", file.to_str().unwrap(), "-t", "Fail"]);
    assert_eq!(elsewhere.code, 4, "{elsewhere:?}");
    let show = task(&world, &["-t", "Show", "-s", "other"]);
    let has = |line: String| assert!(show.stdout.lines().any(|found| found == line), "{line} in {show:?}");
    has(format!("ROBOT_ROOT={}", dir.display()));
    has(format!("ROBOT_ARTIFACTS={}", dir.join("out/put").display()));
    has(format!("PYTHONPATH={}:{}", dir.join("lib").display(), dir.join("keywords").display()));
    let path = show.stdout.lines().find_map(|line| line.strip_prefix("PATH=")).unwrap();
    assert!(
        path.starts_with(&format!("{}/bin:{}:{}", dir.display(), dir.display(), world.base().display())),
        "{path}"
    );
    assert!(!path.contains("/builder/bin"), "{path}");
}

#[test]
fn only_task_needs_no_name() {
    let world = World::with(&library());
    let dir = robot(&world, "");
    let several = task(&world, &[]);
    assert_eq!(several.code, 125, "{several:?}");
    assert!(several.stderr.contains("    Count\n"), "the tasks are listed: {several:?}");
    let text = "tasks: {one: {shell: echo one}}\nartifactsDir: o\ncondaConfigFile: conda.yaml\n";
    std::fs::write(dir.join("robot.yaml"), text).unwrap();
    let one = task(&world, &[]);
    assert_eq!((one.code, one.stdout.as_str()), (0, "one\n"), "{one:?}");
    assert_eq!(task(&world, &["--", "echo", "a command"]).stdout, "a command\n");
}

/// As in rcc, such a task gets the caller's variables.
#[test]
fn robot_without_an_environment_needs_no_space() {
    let world = World::new();
    let dir = robot(&world, "");
    let text = "tasks: {one: {shell: count a}, two: {shell: env}}\nartifactsDir: o\nPATH: [bin]\n";
    std::fs::write(dir.join("robot.yaml"), text).unwrap();
    let one = task(&world, &["-t", "one"]);
    assert_eq!((one.code, one.stdout.as_str()), (0, "1: a\n"), "{one:?}");
    let two = task(&world, &["-t", "two"]);
    assert!(
        two.stdout.contains(&format!("PATH={}/bin:", dir.display())) && !two.stdout.contains("CONDA_PREFIX"),
        "{two:?}"
    );
    assert!(dir.join("o").is_dir());
    assert!(!world.state().exists(), "nothing was mounted");
}

#[test]
fn scripts_run_before_the_task() {
    let world = World::with(&library());
    let dir = robot(&world, "preRunScripts: ['sh -c \"echo pre $ROBOT_ROOT\"', windows.cmd]\n");
    let done = task(&world, &["-t", "Count"]);
    assert_eq!(done.stdout, format!("pre {}\n2: one two  words\n", dir.display()), "{done:?}");
    robot(&world, "preRunScripts: [sh -c 'exit 3']\n");
    let failed = task(&world, &["-t", "Count", "--rcc-exit-codes"]);
    assert_eq!((failed.code, failed.stdout.as_str()), (12, ""), "{failed:?}");
    assert_eq!(task(&world, &["-t", "Count"]).code, 125);
    robot(&world, "preRunScripts: [\"sh -c 'unbalanced\"]\n");
    assert_eq!(task(&world, &["-t", "Count", "--rcc-exit-codes"]).code, 11);
    assert!(world.mounts().is_empty());
}

#[test]
fn bad_robots() {
    let world = World::with(&library());
    let dir = robot(&world, "");
    let codes = |args: &[&str]| {
        let (plain, rcc) = (task(&world, args), task(&world, &[args, &["--rcc-exit-codes"]].concat()));
        assert!(plain.stderr.starts_with("holofs: ") && plain.stdout.is_empty(), "{plain:?}");
        (plain.code, rcc.code)
    };
    assert_eq!(codes(&["-t", "Nonesuch"]), (125, 3));
    assert_eq!(codes(&["-r", "nonesuch.yaml", "-t", "Count"]), (125, 1));
    let write = |text: &str| std::fs::write(dir.join("robot.yaml"), text).unwrap();
    write("tasks: [\n");
    assert_eq!(codes(&["-t", "Count"]), (125, 1));
    write("tasks: {}\nartifactsDir: o\n");
    assert_eq!(codes(&["-t", "Count"]), (125, 2));
    write("tasks: {t: {shell: a, command: [b]}}\nartifactsDir: o\n");
    assert_eq!(codes(&["-t", "t"]), (125, 2));
    write("tasks: {t: {shell: nonesuch}}\nartifactsDir: o\ncondaConfigFile: conda.yaml\n");
    assert_eq!(codes(&["-t", "t"]), (127, 6));
    write("tasks: {t: {shell: 'true'}}\nartifactsDir: conda.yaml\ncondaConfigFile: conda.yaml\n");
    assert_eq!(codes(&["-t", "t"]), (125, 9));
    assert!(world.mounts().is_empty());
}
