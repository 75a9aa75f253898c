//! The choice of an environment by hash, robot.yaml, conda.yaml and package.yaml.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::common::as_user::fixtures;
use crate::common::world::{Done, finish};
use crate::common::{Library, Mounted, World, fixture};

/// The environments of the fixture `two-catalogs`: the second has one package more.
const ONE: &str = "adb8c26db4d86a93";
const TWO: &str = "4ef4502d7023d413";

const CONDA: &str = "\
channels: [conda-forge]
dependencies:
- python=3.11.7
- pip=23.2.1
- pip: [robotframework==7.0]
";
const MORE: &str = "channels: [conda-forge]\ndependencies: [{pip: [requests==2.32.3]}]\n";
const ROBOT: &str =
    "tasks: {Main: {shell: python task.py}}\ncondaConfigFile: conda.yaml\nartifactsDir: output\n";

/// A world with a directory of files, in which commands run.
struct Robots {
    world: World,
}

impl Robots {
    fn with(world: World) -> Self {
        let robots = Self { world };
        std::fs::create_dir(robots.dir()).unwrap();
        robots
    }

    /// rcc's library with two environments.
    fn new() -> Self {
        Self::with(fixture::world("two-catalogs"))
    }

    fn dir(&self) -> PathBuf {
        self.world.path().join("robot")
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn run(&self, args: &[&str]) -> Done {
        finish(self.world.holofs().args(args).current_dir(self.dir()))
    }

    #[track_caller]
    fn mounted(&self, args: &[&str]) -> String {
        let mut command = self.world.holofs();
        let mounted = Mounted::by(&self.world, "s", command.args(args).arg("--json").current_dir(self.dir()));
        mounted.output["blueprint"].as_str().unwrap().to_owned()
    }

    /// A program `rcc` that comes first on PATH.
    fn with_rcc(&self, script: &str, args: &[&str]) -> Done {
        let bin = self.world.path().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        let rcc = bin.join("rcc");
        std::fs::write(&rcc, format!("#!/bin/sh\n{script}")).unwrap();
        std::fs::set_permissions(&rcc, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        finish(self.world.holofs().args(args).env("PATH", path).current_dir(self.dir()))
    }
}

#[test]
fn each_way_to_choose_mounts_the_environment() {
    let robots = Robots::new();
    robots.write("conda.yaml", CONDA);
    robots.write("more.yaml", MORE);
    let robot = robots.write("robot.yaml", ROBOT);
    robots.write("package.yaml", "dependencies:\n  conda-forge: [python=3.11.7, pip=23.2.1]\n  pypi: [robotframework=7.0]\ndev-dependencies:\n  pypi: [requests=2.32.3]\n");
    let home = robots.world.home();
    let home = home.to_str().unwrap();
    assert_eq!(robots.mounted(&["mount", home, "s", "--blueprint", "4ef4"]), TWO);
    assert_eq!(robots.mounted(&["mount", home, "s", "--fresh", "-r", robot.to_str().unwrap()]), ONE);
    assert_eq!(robots.mounted(&["mount"]), ONE);
    assert_eq!(robots.mounted(&["mount", "--robot", "robot.yaml"]), ONE);
    assert_eq!(robots.mounted(&["mount", "auto", "s", "-r", "robot.yaml", "--conda", "more.yaml"]), TWO);
    // As in rcc, ./robot.yaml is merged in.
    let merged = robots.run(&["mount", "auto", "s", "--conda", "more.yaml"]);
    assert_eq!(merged.code, 0, "{merged:?}");
    assert!(merged.stderr.contains("merged with ./robot.yaml"), "{merged:?}");
    assert_eq!(robots.run(&["unmount", "s"]).code, 0);
    std::fs::remove_file(robot).unwrap();
    assert_eq!(robots.mounted(&["mount", "auto", "s", "--conda", "package.yaml"]), ONE);
    assert_eq!(robots.mounted(&["mount", "auto", "s", "--conda", "package.yaml", "--devdeps"]), TWO);
    assert_eq!(robots.mounted(&["mount", "auto", "s", "--conda", "conda.yaml", "more.yaml"]), TWO);
}

#[test]
fn broken_robot_in_the_directory_is_ignored_with_a_note() {
    let robots = Robots::new();
    robots.write("conda.yaml", CONDA);
    robots.write("robot.yaml", "tasks: [\n");
    let done = robots.run(&["blueprint", "conda.yaml"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "adb8c26db4d86a93 available\n"), "{done:?}");
    assert!(done.stderr.contains("./robot.yaml is ignored"), "{done:?}");
}

#[test]
fn missing_environment_is_an_error_with_the_nearest_ones() {
    let robots = Robots::new();
    robots.write("conda.yaml", &CONDA.replace("7.0", "7.1"));
    let done = robots.run(&["mount", "auto", "s", "--conda", "conda.yaml"]);
    assert_eq!(done.code, 6, "{done:?}");
    assert!(done.stdout.is_empty(), "{done:?}");
    let lines: Vec<&str> = done.stderr.lines().collect();
    assert!(lines[0].contains("the library has no environment a9c445992c107c6f"), "{done:?}");
    assert!(lines[1].contains("try: --build"), "{done:?}");
    let near = "adb8c26db4d86a93 linux_amd64  lacks: pip robotframework==7.1; has in addition: pip robotframework==7.0";
    assert_eq!(lines[2].trim(), near, "{done:?}");
    assert!(lines[3].contains(TWO) && lines.len() == 4, "{done:?}");
}

#[test]
fn environment_with_another_hash_and_the_same_text_is_found() {
    let library = Library::new().file("identity.yaml", b"channels: []\ndependencies:\n- demo");
    let robots = Robots::with(World::with(&library));
    robots.write("conda.yaml", "channels: []\ndependencies: [demo]\n");
    assert_eq!(robots.mounted(&["mount", "auto", "s", "--conda", "conda.yaml"]), library.hash());
}

#[test]
fn rcc_builds_what_is_missing() {
    let robots = Robots::with(World::sample());
    robots.write("conda.yaml", CONDA);
    let built = fixture::world("basic-gz");
    let hololib = robots.world.hololib();
    std::fs::remove_dir_all(hololib.join("catalog")).unwrap();
    std::fs::create_dir(hololib.join("catalog")).unwrap();
    // The catalog names the directory of the spaces, so it has to be that of this world.
    let name = format!("catalog/{ONE}v12.linux_amd64");
    let catalog =
        fixture::at_base(&std::fs::read(built.hololib().join(&name)).unwrap(), &robots.world.base());
    std::fs::write(built.hololib().join(&name), catalog).unwrap();
    let log = robots.world.path().join("log");
    let script = format!(
        "echo \"$*\" >> {log}\n[ \"$2\" = variables ] || exit 0\necho building >&2\necho export A=B\ncp -r {from}/. \"$ROBOCORP_HOME/hololib\"\n",
        log = log.display(),
        from = built.hololib().display()
    );
    let args = ["mount", "auto", "s", "--conda", "conda.yaml", "--build"];
    let failed = robots.with_rcc("exit 3\n", &args);
    assert_eq!(failed.code, 5, "{failed:?}");
    assert!(failed.stderr.contains("rcc could not build"), "{failed:?}");
    let useless = robots.with_rcc("exit 0\n", &args);
    assert_eq!(useless.code, 6, "{useless:?}");
    assert!(useless.stderr.contains("rcc built another one"), "{useless:?}");
    let done = robots.with_rcc(&script, &args);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("building") && !done.stdout.contains("export"), "{done:?}");
    let mounted = Mounted::adopt(&robots.world, "s");
    assert_eq!(mounted.output["blueprint"], ONE);
    let log = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], "holotree variables --controller holofs --space build conda.yaml");
    assert!(lines[1].starts_with("holotree delete ea7ce2c_"), "{log}");
    // What is there is not built again.
    let again = robots.with_rcc("exit 3\n", &args);
    assert_eq!(again.code, 0, "{again:?}");
}

#[test]
fn rcc_builds_on_a_machine_without_a_library() {
    let robots = Robots::with(World::new());
    robots.write("conda.yaml", CONDA);
    robots.write("robot.yaml", ROBOT);
    assert_eq!(robots.run(&["bp"]).stdout, format!("{ONE} missing\n"));
    assert_eq!(robots.run(&["bp", "--library", "/nowhere"]).code, 3);
    assert_eq!(robots.run(&["mount"]).code, 3);
    let built = fixture::world("basic-gz");
    let name = format!("catalog/{ONE}v12.linux_amd64");
    let catalog =
        fixture::at_base(&std::fs::read(built.hololib().join(&name)).unwrap(), &robots.world.base());
    std::fs::write(built.hololib().join(&name), catalog).unwrap();
    let script = format!(
        "[ \"$2\" = variables ] || exit 0\nmkdir -p \"$ROBOCORP_HOME/hololib\"\ncp -r {}/. \"$ROBOCORP_HOME/hololib\"\n",
        built.hololib().display()
    );
    let done = robots.with_rcc(&script, &["mount", "auto", "s", "-r", "robot.yaml", "--build"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(Mounted::adopt(&robots.world, "s").output["blueprint"], ONE);
}

#[test]
fn build_needs_rcc_and_its_own_library() {
    let robots = Robots::new();
    robots.write("conda.yaml", "dependencies: [x]\n");
    let zip = fixtures().join("hololib-zip/hololib.zip");
    let args = ["mount", zip.to_str().unwrap(), "s", "--conda", "conda.yaml", "--build"];
    let done = robots.with_rcc("exit 0\n", &args);
    assert_eq!(done.code, 2, "{done:?}");
    let args = ["mount", "auto", "s", "--conda", "conda.yaml", "--build"];
    let done = finish(robots.world.holofs().args(args).env("PATH", "/nowhere").current_dir(robots.dir()));
    assert_eq!(done.code, 6, "{done:?}");
    assert!(done.stderr.contains("rcc cannot be started"), "{done:?}");
}

#[test]
fn hololib_zip_beside_the_robot_is_the_library() {
    let robots = Robots::with(World::new());
    std::fs::create_dir_all(robots.world.home()).unwrap();
    robots.write("conda.yaml", CONDA);
    robots.write("robot.yaml", ROBOT);
    // A binary of the zip names a directory that is shorter than those of this world, so the mount stops there.
    std::fs::copy(fixtures().join("hololib-zip/hololib.zip"), robots.dir().join("hololib.zip")).unwrap();
    let done = robots.run(&["mount"]);
    assert_eq!(done.code, 7, "{done:?}");
    assert!(done.stderr.contains("/tmp/rcchome/basic-gz/holotree/"), "{done:?}");
    std::fs::remove_file(robots.dir().join("hololib.zip")).unwrap();
    assert_eq!(robots.run(&["mount"]).code, 3);
}

#[test]
fn hash_of_files_and_of_standard_input() {
    let robots = Robots::new();
    robots.write("conda.yaml", CONDA);
    robots.write("more.yaml", MORE);
    robots.write("robot.yaml", ROBOT);
    let hash = |args: &[&str]| robots.run(&[&["hash"], args].concat());
    assert_eq!(hash(&["conda.yaml"]).stdout, format!("{ONE}\n"));
    assert_eq!(hash(&["conda.yaml", "more.yaml"]).stdout, format!("{TWO}\n"));
    let shown = hash(&["conda.yaml", "--show-blueprint"]).stdout;
    assert!(shown.starts_with(&format!("{ONE}\nBlueprint:\nchannels:\n- conda-forge\n")), "{shown}");
    let json: serde_json::Value = serde_json::from_str(&hash(&["conda.yaml", "-j"]).stdout).unwrap();
    assert_eq!(json, serde_json::json!({ "hash": ONE }));
    let mut piped = robots.world.holofs();
    piped
        .args(["hash", "--stdin", "any.yaml"])
        .stdin(std::fs::File::open(robots.dir().join("conda.yaml")).unwrap());
    assert_eq!(finish(&mut piped).stdout, format!("{ONE}\n"));
    robots.write("odd.yaml", "channels: []\ndependencies: [python=3.10, 3.10]\n");
    let odd = hash(&["odd.yaml"]);
    assert_eq!(odd.code, 0);
    assert!(odd.stderr.contains("odd.yaml: rcc leaves out the dependency in line 2: 3.10"), "{odd:?}");
}

#[test]
fn blueprint_tells_whether_a_library_has_it() {
    let robots = Robots::new();
    robots.write("conda.yaml", CONDA);
    let bare = robots.run(&["blueprint"]);
    assert_eq!(bare.code, 5, "{bare:?}");
    robots.write("robot.yaml", ROBOT);
    assert_eq!(robots.run(&["bp"]).stdout, format!("{ONE} available\n"));
    let done = robots.run(&["blueprint", "-r", "robot.yaml", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!((&json["exist"], &json["hash"]), (&true.into(), &ONE.into()));
    assert_eq!(json["layers"].as_array().unwrap().len(), 3);
    let catalog = json["catalog"].as_str().unwrap();
    assert!(Path::new(catalog).is_file(), "{catalog}");
    robots.write("conda.yaml", "dependencies: [x]\n");
    for (args, code) in [(&["bp"][..], 0), (&["bp", "--check"], 6)] {
        let done = robots.run(args);
        assert!(done.code == code && done.stdout.ends_with(" missing\n"), "{done:?}");
    }
}

#[test]
fn bad_specification_is_an_error_with_file_and_line() {
    let robots = Robots::new();
    robots.write("conda.yaml", CONDA);
    robots.write("robot.yaml", ROBOT);
    robots.write("list.yaml", "channels: []\ndependencies: x\n");
    robots.write("tab.yaml", "channels:\n\t- a\n");
    robots.write("clash.yaml", "dependencies: [python=3.12]\n");
    robots.write("laugh.yaml", &format!("- &a {}\n{}", "x".repeat(500_000), "- *a\n".repeat(90_000)));
    robots.write("big.yaml", &"#".repeat(2 << 20));
    std::fs::create_dir(robots.dir().join("dir.yaml")).unwrap();
    assert!(
        std::process::Command::new("mkfifo").arg(robots.dir().join("fifo.yaml")).status().unwrap().success()
    );
    for (args, what) in [
        (&["hash", "list.yaml"][..], "list.yaml:2: x: expected a list"),
        (&["hash", "tab.yaml"], "tab.yaml:2: found character that cannot start any token"),
        (
            &["hash", "conda.yaml", "clash.yaml"],
            "wont choose between dependencies: python=3.11.7 vs. python=3.12",
        ),
        (&["hash", "laugh.yaml"], "laugh.yaml:1: "),
        (&["hash", "big.yaml"], "big.yaml: "),
        (&["hash", "dir.yaml"], "dir.yaml: "),
        (&["hash", "fifo.yaml"], "fifo.yaml: "),
        (&["hash", "none.yaml"], "none.yaml: "),
        (&["hash", "robot.yaml"], "robot.yaml: it describes a robot"),
        (&["hash", "conda.yaml", "--devdeps"], "conda.yaml: --devdeps is only for a package.yaml"),
        (&["mount", "auto", "s", "-r", "none.yaml"], "none.yaml: "),
        (
            &["mount", "auto", "s", "-r", "list.yaml"],
            "list.yaml: neither environmentConfigs nor condaConfigFile",
        ),
        (&["mount", "auto", "s", "--conda", "tab.yaml"], "tab.yaml:2: "),
        (&["blueprint", "tab.yaml"], "tab.yaml:2: "),
    ] {
        let done = robots.run(args);
        assert_eq!(done.code, 5, "{args:?}: {done:?}");
        assert!(done.stdout.is_empty() && done.stderr.contains(what), "{args:?}: {done:?}");
        assert_eq!(
            done.stderr.matches("holofs: ").count() - done.stderr.matches("robot.yaml\n").count(),
            1,
            "{done:?}"
        );
    }
    for args in [
        &["hash"][..],
        &["hash", "--stdin", "a.yaml", "b.yaml"],
        &["mount", "auto"],
        &["mount", "auto", "s", "--blueprint", "a", "--robot", "robot.yaml"],
    ] {
        assert_eq!(robots.run(args).code, 2, "{args:?}");
    }
    std::fs::remove_file(robots.dir().join("robot.yaml")).unwrap();
    let bare = robots.run(&["mount"]);
    assert_eq!(bare.code, 2, "{bare:?}");
    assert!(bare.stderr.contains("no robot.yaml in this directory"), "{bare:?}");
}

#[test]
fn what_record_stores_is_found_by_its_conda_yaml() {
    let robots = Robots::with(World::new());
    robots.write("conda.yaml", CONDA);
    let library = robots.world.home();
    let library = library.to_str().unwrap();
    let recorded =
        robots.run(&["record", library, "--blueprint", "conda.yaml", "--", "sh", "-c", "echo 1 > one"]);
    assert_eq!((recorded.code, recorded.stdout.as_str()), (0, "adb8c26db4d86a93\n"), "{recorded:?}");
    assert_eq!(robots.mounted(&["mount", library, "s", "--conda", "conda.yaml"]), ONE);
    let plain = robots.write("blueprint.txt", "any text");
    let args = ["record", library, "--blueprint", plain.to_str().unwrap(), "--", "sh", "-c", "echo 1 > one"];
    assert_eq!(robots.run(&args).code, 0);
    let bad = robots.write("bad.yaml", "channels: x\n");
    let args = ["record", library, "--blueprint", bad.to_str().unwrap(), "--", "true"];
    let done = robots.run(&args);
    assert_eq!(done.code, 5, "{done:?}");
}
