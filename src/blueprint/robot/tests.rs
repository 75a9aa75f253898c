use super::*;

const ROBOT: &str = "\
tasks:
  Run all tasks:
    robotTaskName: Run all tasks
  Shell it:
    shell: python -m robot --outputdir output 'a b'
  Command:
    command: [python, task.py]
devTasks:
  Editor setup:
    shell: python tools/setup.py
condaConfigFile: conda.yaml
environmentConfigs:
- environment_linux_amd64_freeze.yaml
- environment_windows_amd64_freeze.yaml
- common_Linux.yaml
- conda_linux.yaml
artifactsDir: output
PATH: [., bin]
PYTHONPATH: [libs, /tmp]
ignoreFiles: [.gitignore]
preRunScripts:
- privateSetup.sh
- on_windows_amd64.bat
- \"tools/linux 'x y'\"
";

fn robot(text: &str) -> Robot {
    Robot::parse(Path::new("/robots/one/robot.yaml"), text.as_bytes()).unwrap()
}

fn refused(text: &str) -> String {
    Robot::parse(Path::new("/r/robot.yaml"), text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn every_key_of_a_robot() {
    let robot = robot(ROBOT);
    robot.check().unwrap();
    assert_eq!(robot.root(), Path::new("/robots/one"));
    assert_eq!(robot.artifacts(), Path::new("/robots/one/output"));
    assert_eq!(robot.paths(), [Path::new("/robots/one"), Path::new("/robots/one/bin")]);
    assert_eq!(robot.python_paths(), [Path::new("/robots/one/libs"), Path::new("/tmp")]);
    assert_eq!(robot.ignore_files, [".gitignore"]);
    let line = |name| robot.command_line(robot.task(Some(name), false).unwrap()).unwrap();
    let robot_line = "python -m robot --report NONE --outputdir output --logtitle";
    assert_eq!(line("run ALL tasks")[..8].join(" "), robot_line);
    assert_eq!(line("Run all tasks")[8..], ["Task log", "--task", "Run all tasks", "."]);
    assert_eq!(line("\"Shell it\""), ["python", "-m", "robot", "--outputdir", "output", "a b"]);
    assert_eq!(line("Command"), ["python", "task.py"]);
    assert_eq!(robot.task(None, true).unwrap().shell, "python tools/setup.py");
    if this_platform() == "linux_amd64" {
        let scripts = robot.pre_run_commands().unwrap();
        assert_eq!(scripts, [vec!["privateSetup.sh"], vec!["tools/linux", "x y"]]);
    }
}

#[test]
fn task_that_does_not_exist_is_an_error_with_the_tasks_that_do() {
    let robot = robot(ROBOT);
    for (name, word) in [(Some("nope"), "no task \"nope\""), (None, "not have exactly one task")] {
        let error = robot.task(name, false).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        let BlueprintError::NoTask { tasks, .. } = error else { panic!("{error}") };
        assert_eq!(tasks, ["Command", "Run all tasks", "Shell it"]);
    }
}

#[test]
fn environment_is_the_first_file_for_this_platform_that_exists() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    let robot = Robot::parse(&file, ROBOT.as_bytes()).unwrap();
    let name = || robot.environment_file().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(name(), "conda.yaml");
    for name in ["environment_windows_amd64_freeze.yaml", "common_Linux.yaml", "conda_linux.yaml"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    assert!(robot.hololib_zip().is_none());
    if this_platform() == "linux_amd64" {
        assert_eq!(name(), "conda_linux.yaml");
        std::fs::write(dir.path().join("environment_linux_amd64_freeze.yaml"), "").unwrap();
        assert_eq!(name(), "environment_linux_amd64_freeze.yaml");
    }
    let bare = Robot::parse(&file, b"tasks: {a: {shell: ls}}").unwrap();
    assert!(matches!(bare.environment_file(), Err(BlueprintError::NoEnvironment { .. })));
    assert!(!bare.has_environment());
}

#[test]
fn what_no_robot_may_lack() {
    for (text, word) in [
        ("", "at least one task"),
        ("tasks: {}", "at least one task"),
        ("tasks: {a: {shell: ls}}", "artifactsDir"),
        ("artifactsDir: o\ntasks: {a: {shell: ls, command: [ls]}}", "exactly one"),
        ("artifactsDir: o\ntasks: {a: ~}", "exactly one"),
    ] {
        let error = robot(text).check().unwrap_err().to_string();
        assert!(error.contains(word), "{text}: {error}");
    }
    let unbalanced = robot("tasks: {a: {shell: \"echo 'a\"}}");
    assert!(unbalanced.command_line(unbalanced.task(None, false).unwrap()).is_err());
}

#[test]
fn bad_robot_is_an_error_with_file_and_line() {
    for (text, what) in [
        ("tasks: [a]", "/r/robot.yaml:1: expected a mapping"),
        ("tasks:\n  a:\n    command: ls\n", "/r/robot.yaml:3: ls: expected a list"),
        ("a: b\nPATH: {a: b}", "/r/robot.yaml:2: expected a list"),
        ("- a", "/r/robot.yaml:1: expected a mapping"),
        ("a: [", "/r/robot.yaml:1: "),
        ("a:\n\t- b", "/r/robot.yaml:2: "),
    ] {
        let error = refused(text);
        assert!(error.starts_with(what), "{text}: {error}");
    }
}

#[test]
fn later_key_replaces_an_earlier_one() {
    let robot = robot(
        "artifactsDir: a\nartifactsDir: b\nPATH: [a]\nPATH: [b]\ntasks: {a: {shell: x}}\ntasks: {b: {shell: y}}",
    );
    assert_eq!((robot.artifacts_dir.as_str(), robot.path.as_slice()), ("b", ["b".to_owned()].as_slice()));
    assert_eq!(robot.tasks.unwrap().len(), 2);
}
