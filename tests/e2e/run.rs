//! `holofs run` and `holofs shell`: exit codes, signals, and what stays mounted.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rustix::process::{Pid, Signal};

use crate::common::as_user::root_or_skip;
use crate::common::world::{Done, finish, wait};
use crate::common::{World, sh, wait_until};
use crate::variables::environment;

mod task;
mod terminal;

/// `holofs run HOME SPACE ARGS -- sh -c SCRIPT`.
fn command(world: &World, args: &[&str], script: &str) -> Command {
    let mut command = world.holofs();
    command.arg("run").arg(world.home()).arg("s").args(args).args(["--", "sh", "-c", script]);
    command
}

fn run(world: &World, args: &[&str], script: &str) -> Done {
    finish(&mut command(world, args, script))
}

/// A run whose program goes on when it gets a line.
struct Waiting {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    first: String,
}

impl Waiting {
    /// Starts a script, and returns when it has printed its first line. The script is to wait by `read line`.
    fn start(mut command: Command) -> Self {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        output.read_line(&mut first).unwrap();
        Self { input: child.stdin.take().unwrap(), child, output, first }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for a program that a signal ends, and returns the exit code. The script's `read` has nothing to read until
    /// then: a line could end the script before the signal has been passed on.
    fn ended(mut self) -> i32 {
        wait(&mut self.child, "holofs run")
    }

    /// Lets the program go on, and returns the exit code and the rest of its output.
    fn finish(mut self) -> (i32, String) {
        // The program may have ended.
        drop(self.input.write_all(b"on\n"));
        drop(self.input);
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        (wait(&mut self.child, "holofs run"), rest)
    }
}

const WAIT: &str = "echo $HOLOFS_MOUNT; read line; echo done";

for_both_users! {
    fn program_gets_the_space_and_the_space_is_unmounted() {
        let world = World::with(&environment());
        let done = run(&world, &[], "cat $HOLOFS_MOUNT/readme.txt && echo x > $HOLOFS_MOUNT/new && python3 && tool a");
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.stdout.starts_with("hello, space\n"), "{done:?}");
        assert!(world.mounts().is_empty());
        assert!(std::fs::read_dir(world.home().join("temp")).unwrap().next().is_none(), "TEMP is removed");
        // The changes are kept.
        let again = run(&world, &[], "cat $HOLOFS_MOUNT/new; exit 7");
        assert_eq!((again.code, again.stdout.as_str()), (7, "x\n"), "{again:?}");
        assert!(world.mounts().is_empty());
    }
}

#[test]
fn exit_codes() {
    let world = World::with(&environment());
    let plain = |script: &str| run(&world, &[], script).code;
    let rcc = |script: &str| run(&world, &["--rcc-exit-codes"], script).code;
    assert_eq!((plain("exit 3"), rcc("exit 3"), rcc("true")), (3, 10, 0));
    assert_eq!((plain("kill -TERM $$"), plain("kill -KILL $$"), rcc("kill -KILL $$")), (143, 137, 10));
    let of = |args: &[&str]| {
        let done = finish(world.holofs().arg("run").args(args));
        assert_eq!(done.stdout, "", "{done:?}");
        assert!(done.stderr.starts_with("holofs: "), "{done:?}");
        done.code
    };
    let home = world.home();
    let home = home.to_str().unwrap();
    let space = world.path().to_str().unwrap();
    for (args, code, rcc) in [
        (&[home, "s", "--", "nonesuch"][..], 127, 6),
        (&[home, "s", "--", "./nonesuch"], 127, 6),
        (&[home, "s", "--", space], 126, 7),
        (&[home, "s", "--", "/etc/passwd"], 126, 7),
        (&["/nonesuch", "s", "--", "true"], 125, 4),
        (&[home, "s", "--blueprint", "0000", "--", "true"], 125, 4),
        (&[home, "s", "--cwd", "/nonesuch", "--", "true"], 125, 9),
        (&[home, "s", "-e", "/nonesuch", "--", "true"], 125, 5),
        (&[home, "s"], 125, 3),
        (&[home, "s", "-r", "/nonesuch", "--task", "t"], 125, 1),
    ] {
        assert_eq!(of(args), code, "{args:?}");
        assert_eq!(of(&[&["--rcc-exit-codes"], args].concat()), rcc, "{args:?}");
    }
    assert_eq!(of(&["--nonesuch"]), 125);
    assert!(world.mounts().is_empty());
    // A program whose interpreter is missing.
    let script = world.path().join("script");
    std::fs::write(&script, "#!/nonesuch/interpreter\n").unwrap();
    sh(Command::new("chmod").arg("755").arg(&script));
    assert_eq!(of(&[home, "s", "--", script.to_str().unwrap()]), 126);
}

#[test]
fn mount_that_was_there_before_or_is_kept_stays() {
    let world = World::with(&environment());
    let before = world.mount("s");
    assert_eq!(run(&world, &[], "true").code, 0);
    assert!(before.at("readme.txt").exists());
    before.unmount();
    assert_eq!(run(&world, &["--keep"], "true").code, 0);
    assert_eq!(run(&world, &[], "true").code, 0);
    let kept = world.mount("s");
    assert_eq!(kept.output["reused"], true);
    kept.unmount();
    // `holofs mount` takes over the mount of a run.
    let waiting = Waiting::start(command(&world, &[], WAIT));
    let taken = world.mount("s");
    assert_eq!(waiting.finish(), (0, "done\n".to_owned()));
    assert!(taken.at("readme.txt").exists());
    taken.unmount();
    // So does `holofs variables`.
    let waiting = Waiting::start(command(&world, &[], WAIT));
    assert_eq!(world.run(["variables", "-s", "s"]).code, 0);
    assert_eq!(waiting.finish().0, 0);
    world.mount("s").unmount();
}

#[test]
fn last_of_concurrent_runs_unmounts() {
    let world = World::with(&environment());
    let first = Waiting::start(command(&world, &[], WAIT));
    let second = Waiting::start(command(&world, &[], WAIT));
    assert_eq!(first.first, second.first);
    assert_eq!(first.finish(), (0, "done\n".to_owned()));
    assert_eq!(world.mounts().len(), 1);
    assert_eq!(second.finish(), (0, "done\n".to_owned()));
    assert!(world.mounts().is_empty());
}

/// Many at a time, each of which may be the first or the last one.
#[test]
fn crowd_of_runs_leaves_nothing_mounted() {
    let world = World::with(&environment());
    let start =
        || command(&world, &[], "cat $HOLOFS_MOUNT/readme.txt").stdout(Stdio::piped()).spawn().unwrap();
    let mut children: Vec<Child> = (0..8).map(|_| start()).collect();
    for _ in 0..8 {
        children.push(start());
        let mut child = children.remove(0);
        assert_eq!(wait(&mut child, "holofs run"), 0);
    }
    for mut child in children {
        assert_eq!(wait(&mut child, "holofs run"), 0);
    }
    assert!(world.mounts().is_empty());
}

#[test]
fn ephemeral_run_leaves_no_change() {
    let world = World::with(&environment());
    for _ in 0..2 {
        let done = run(&world, &["--ephemeral"], "cd $HOLOFS_MOUNT && [ ! -e new ] && echo x > new");
        assert_eq!(done.code, 0, "{done:?}");
    }
    assert!(world.mounts().is_empty());
}

/// A run that was killed cannot unmount. The next one does.
#[test]
fn mount_of_a_killed_run_ends_with_the_next() {
    let world = World::with(&environment());
    let killed = Waiting::start(command(&world, &[], WAIT));
    killed.signal(Signal::KILL);
    assert_eq!(killed.finish().0, 137);
    assert_eq!(world.mounts().len(), 1);
    assert_eq!(run(&world, &[], "true").code, 0);
    assert!(world.mounts().is_empty());
}

#[test]
fn space_in_use_stays_mounted_and_the_user_is_told() {
    let world = World::with(&environment());
    let done = run(&world, &[], "exec 3<$HOLOFS_MOUNT/readme.txt; sleep 1000 >/dev/null 2>&1 & echo $!");
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stderr.contains("in use by process"), "{done:?}");
    assert_eq!(world.mounts().len(), 1);
    sh(Command::new("kill").arg(done.stdout.trim()));
    wait_until("the run to find it idle", || {
        run(&world, &[], "true");
        world.mounts().is_empty()
    });
}

/// What another process sends to us reaches the program once; then its exit code counts, and the space is unmounted.
#[test]
fn signals_are_passed_on() {
    let world = World::with(&environment());
    for (signal, name) in [
        (Signal::TERM, "TERM"),
        (Signal::INT, "INT"),
        (Signal::HUP, "HUP"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::WINCH, "WINCH"),
    ] {
        let script =
            format!("trap 'echo got; n=$((n+1))' {name}; n=0; echo ready; read line; echo $n; exit 9");
        let waiting = Waiting::start(command(&world, &[], &script));
        waiting.signal(signal);
        let mut got = String::new();
        let mut waiting = waiting;
        waiting.output.read_line(&mut got).unwrap();
        assert_eq!(got, "got\n", "{name}");
        let (code, rest) = waiting.finish();
        assert_eq!((code, rest.lines().last()), (9, Some("1")), "{name}");
    }
    let waiting = Waiting::start(command(&world, &[], "echo ready; read line"));
    waiting.signal(Signal::TERM);
    assert_eq!(waiting.ended(), 128 + 15);
    assert!(world.mounts().is_empty());
}

/// The program may have been started with descriptors that it needs. The daemon must not keep them.
#[test]
fn inherited_descriptors_reach_the_program_and_not_the_daemon() {
    let world = World::with(&environment());
    let held = world.path().join("held");
    std::fs::write(&held, "jobserver\n").unwrap();
    let mut shell = world.command("sh");
    shell.args(["-c", "exec 7<\"$1\"; shift; exec \"$@\"", "sh"]).arg(&held);
    shell.arg(world.holofs().get_program()).arg("run").arg(world.home());
    shell.args(["s", "--keep", "--", "cat", "/proc/self/fd/7"]);
    let done = finish(&mut shell);
    assert_eq!((done.code, done.stdout.as_str()), (0, "jobserver\n"), "{done:?}");
    let mounted = world.mount("s");
    let fds = std::fs::read_dir(format!("/proc/{}/fd", mounted.pid())).unwrap();
    let open: Vec<PathBuf> = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok()).collect();
    assert!(!open.contains(&held), "{open:?}");
    mounted.unmount();
}

#[test]
fn limits_of_the_caller_reach_the_program() {
    let world = World::with(&environment());
    let mut shell = world.command("sh");
    shell.args(["-c", "ulimit -S -n 200; exec \"$@\"", "sh"]);
    shell.arg(world.holofs().get_program()).arg("run").arg(world.home());
    shell.args(["s", "--", "sh", "-c", "ulimit -S -n; kill -s USR1 $$"]);
    let done = finish(&mut shell);
    assert_eq!((done.code, done.stdout.as_str()), (128 + 10, "200\n"), "{done:?}");
}

/// As process 1 of a container: reaps, passes signals on that would be dropped for process 1, and ends what is left.
#[test]
fn is_a_good_process_1() {
    if !root_or_skip() {
        return;
    }
    let world = World::with(&environment());
    let as_init = |script: &str| {
        let mut unshare = world.command("unshare");
        unshare.args(["--pid", "--fork", "--mount-proc", "--kill-child"]).arg(world.holofs().get_program());
        unshare.arg("run").arg(world.home()).args(["s", "--", "sh", "-c", script]);
        unshare
    };
    // The orphan ends before the program, and is reaped.
    let done = finish(&mut as_init(
        "(sh -c 'echo $$ >$TEMP/orphan; sleep 0.05' &); while [ ! -s $TEMP/orphan ] || [ -e /proc/$(cat $TEMP/orphan) ]; do sleep 0.01; done; echo $$; exit 5",
    ));
    assert_eq!(done.code, 5, "{done:?}");
    assert_ne!(done.stdout.trim(), "1");
    // One that stays is ended, so that the space can be unmounted. It can use the space until then.
    let mark = world.path().join("ended");
    let script = format!(
        "(trap 'sleep 0.2; cat $HOLOFS_MOUNT/readme.txt >{mark}; exit' TERM; exec 3<$HOLOFS_MOUNT/readme.txt; echo ready >$TEMP/ready; while :; do sleep 0.01; done) & while [ ! -s $TEMP/ready ]; do sleep 0.01; done",
        mark = mark.display()
    );
    let done = finish(&mut as_init(&script));
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), "hello, space\n");
    // SIGTERM to process 1.
    let waiting = Waiting::start(as_init("echo ready; read line"));
    let init = sh(Command::new("pgrep").args(["-P", &waiting.child.id().to_string()]));
    sh(Command::new("kill").args(["-TERM", init.trim()]));
    assert_eq!(waiting.ended(), 128 + 15);
    // The daemon ended in good order, so the space is free.
    let mounted = world.mount("s");
    assert_eq!(mounted.output["reused"], false);
    mounted.unmount();
}

/// The state directory belongs to the user, but a file in it can be anything.
#[test]
fn damaged_file_of_runs_is_no_harm() {
    let world = World::with(&environment());
    assert_eq!(run(&world, &[], "true").code, 0);
    let spaces = std::fs::read_dir(world.state().join("spaces")).unwrap();
    let runs = spaces.map(|space| space.unwrap().path().join("runs")).find(|path| path.exists()).unwrap();
    for text in ["", "x", "1 ", "99999999999999999999 1\n", "4711 12\n"] {
        std::fs::write(&runs, text).unwrap();
        assert_eq!(run(&world, &[], "true").code, 0);
        assert!(world.mounts().is_empty(), "{text}");
    }
    std::fs::remove_file(&runs).unwrap();
    std::os::unix::fs::symlink("elsewhere", &runs).unwrap();
    let done = run(&world, &[], "true");
    assert!(done.code == 125 && done.stderr.contains("runs"), "{done:?}");
    assert!(!runs.with_file_name("elsewhere").exists());
    std::fs::remove_file(&runs).unwrap();
    assert_eq!(run(&world, &[], "true").code, 0);
    for mount in world.mounts() {
        sh(world.holofs().arg("unmount").arg(mount));
    }
}

#[test]
fn shell_is_the_users_without_its_startup_files() {
    let world = World::with(&environment());
    let rc = Path::new(world.path()).join(".bashrc");
    std::fs::write(&rc, "echo from bashrc\n").unwrap();
    let mut command = world.holofs();
    command.arg("shell").arg(world.home()).arg("s").env("SHELL", "/bin/bash").env("HOME", world.path());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"echo $CONDA_PREFIX; cat $CONDA_PREFIX/readme.txt; exit 4\n")
        .unwrap();
    let code = wait(&mut child, "holofs shell");
    let mut out = String::new();
    child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    assert_eq!(code, 4);
    assert!(out.contains("hello, space\n") && !out.contains("from bashrc"), "{out}");
    assert!(world.mounts().is_empty());
}
