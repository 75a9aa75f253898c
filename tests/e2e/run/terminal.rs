//! `holofs run` on a terminal: keys, stopping and continuing.

use super::{World, environment, sh};

/// Runs a script in a session of its own with a terminal. `drive(master, child)` is Python that plays the user.
fn on_a_terminal(world: &World, script: &str, drive: &str) -> String {
    let program = format!(
        r#"
import os, pty, re, select, signal, sys, time
pid, master = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
seen = b""
def read_until(text):
    global seen
    end = time.time() + 20
    while text.encode() not in seen:
        if not select.select([master], [], [], max(0, end - time.time()))[0]:
            sys.exit("timed out waiting for %r in %r" % (text, seen))
        try:
            data = os.read(master, 4096)
        except OSError:
            data = b""
        if not data:
            sys.exit("ended before %r: %r" % (text, seen))
        seen += data
    at = seen.index(text.encode()) + len(text)
    found, seen = seen[:at], seen[at:]
    return found
def state(of):
    return open("/proc/%d/stat" % of).read().rsplit(") ", 1)[1][0]
def child_of(of):
    return int(open("/proc/%d/task/%d/children" % (of, of)).read().split()[-1])
def until(what):
    end = time.time() + 20
    while not what():
        if time.time() > end: sys.exit("timed out")
        time.sleep(0.005)
{drive}
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status))
"#
    );
    let mut command = world.command("python3");
    command.args(["-c", &program]).arg(world.holofs().get_program());
    command.arg("run").arg(world.home()).args(["s", "--", "sh", "-c", script]);
    sh(&mut command)
}

/// The terminal sends the signal of a key to the program itself, so it must not come from us a second time.
#[test]
fn interrupt_key_reaches_the_program_once() {
    let world = World::with(&environment());
    let script = "trap 'n=$((n+1)); echo int $n.' INT; n=0; echo ready.; read line; echo had $n.; exit 3";
    let drive = r#"
read_until("ready.")
os.write(master, b"\x03")
read_until("int 1.")
time.sleep(0.1)
os.write(master, b"on\n")
print(read_until("had 1.")[-6:])
"#;
    assert_eq!(on_a_terminal(&world, script, drive).lines().last(), Some("3"));
    // A program without a handler ends.
    let drive = r#"
read_until("ready.")
# A shell that is just starting a program may lose the signal.
while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
    os.write(master, b"\x03")
    time.sleep(0.1)
"#;
    assert_eq!(on_a_terminal(&world, "echo ready.; sleep 1000", drive).lines().last(), Some("130"));
    assert!(world.mounts().is_empty());
}

/// The kernel tells only the first process of the session that its terminal was closed.
#[test]
fn closed_terminal_ends_the_program() {
    let world = World::with(&environment());
    let drive = "read_until(\"ready.\")\nos.close(master)";
    assert_eq!(on_a_terminal(&world, "echo ready.; exec sleep 1000", drive).lines().last(), Some("129"));
    assert!(world.mounts().is_empty());
}

/// A shell with job control starts the run, stops it by the key, goes on, and gets it back by `fg`.
#[test]
fn stop_key_and_fg_work_in_a_shell() {
    let world = World::with(&environment());
    let program = world.holofs();
    let line = format!(
        "{} run {} s -- sh -c 'echo re\"\"ady.; read line; echo got $line.; exit 6'",
        program.get_program().to_str().unwrap(),
        world.home().display()
    );
    let mut command = world.command("python3");
    let drive = format!(
        r#"
import os, pty, select, sys, time
pid, master = pty.fork()
if pid == 0:
    os.environ["PS1"] = "% "
    os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
seen = b""
def read_until(text):
    global seen
    end = time.time() + 20
    while text.encode() not in seen:
        if not select.select([master], [], [], max(0, end - time.time()))[0]:
            sys.exit("timed out waiting for %r in %r" % (text, seen))
        seen += os.read(master, 4096)
    at = seen.index(text.encode()) + len(text)
    seen = seen[at:]
os.write(master, {line:?}.encode() + b"\n")
read_until("ready.")
os.write(master, b"\x1a")
read_until("Stopped")
os.write(master, b"echo in-the-sh\"\"ell\n")
read_until("in-the-shell")
os.write(master, b"fg\n")
read_until("holofs run")
os.write(master, b"hello\n")
read_until("got hello.")
os.write(master, b"echo code $?.\n")
read_until("code 6.")
os.write(master, b"exit\n")
os.waitpid(pid, 0)
"#
    );
    sh(command.args(["-c", &drive]));
    assert!(world.mounts().is_empty());
}

/// A program that stops itself stops us, so that a shell notices; what continues us continues the program.
#[test]
fn stopped_program_stops_us() {
    let world = World::with(&environment());
    let drive = r#"
read_until("ready.")
child = child_of(pid)
until(lambda: state(pid) == "T" and state(child) == "T")
os.kill(pid, signal.SIGCONT)
read_until("went on.")
os.write(master, b"on\n")
"#;
    let script = "echo ready.; kill -STOP $$; echo went on.; read line; exit 8";
    assert_eq!(on_a_terminal(&world, script, drive).lines().last(), Some("8"));
    assert!(world.mounts().is_empty());
}
