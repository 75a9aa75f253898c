//! A temporary directory with its own `ROBOCORP_HOME`, and the commands that run there.
//!
//! Invariant: when a world ends, no mount, process or file of it is left. A test that leaves a mount behind fails.

use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::as_user::{as_user_args, holofs_binary, tools};
use super::mount::Mounted;

/// `HOME` in every test. The golden spaces contain a user id that is derived from it. The directory need not exist.
pub const HOME: &str = "/tmp/rcchome/home";

/// The time limit of every command.
const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// A place to test in.
#[derive(Debug)]
pub struct World {
    dir: Option<TempDir>,
    path: PathBuf,
    /// Words before every command that make an ordinary user run it.
    before: Vec<OsString>,
    /// Keeps the programs in a place that this user can reach.
    tools: Option<Arc<TempDir>>,
    /// Further variables of every command.
    pub variables: Vec<(String, String)>,
}

/// The result of a command.
#[derive(Debug)]
pub struct Done {
    /// The exit status, or 128 + signal.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl World {
    pub fn new() -> Self {
        Self::adopt(reachable_tempdir("holofs-test-"))
    }

    /// A world in an existing directory, for example on another filesystem.
    pub fn at(dir: &Path) -> Self {
        Self { dir: None, path: dir.to_owned(), before: Vec::new(), tools: None, variables: Vec::new() }
    }

    /// A world with this library.
    pub fn with(library: &super::Library) -> Self {
        let world = Self::new();
        world.add(library);
        world
    }

    /// A world with the sample library.
    pub fn sample() -> Self {
        Self::with(&super::Library::sample())
    }

    /// Adds an environment to the library of this world.
    pub fn add(&self, library: &super::Library) {
        library.write(&self.hololib(), &self.base());
    }

    fn adopt(dir: TempDir) -> Self {
        let path = dir.path().to_owned();
        Self { dir: Some(dir), path, before: Vec::new(), tools: None, variables: Vec::new() }
    }

    /// Runs all later commands as an ordinary user, and gives this user everything in the world.
    pub fn by_ordinary_user(mut self) -> Self {
        let args = as_user_args();
        let owner = format!("{}:{}", args[1].display(), args[3].display());
        super::sh(Command::new("chown").args(["-R", &owner]).arg(&self.path));
        self.before.push("setpriv".into());
        self.before.extend(args);
        self.before.push("--".into());
        self.tools = Some(tools());
        self
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `ROBOCORP_HOME`.
    pub fn home(&self) -> PathBuf {
        self.path.join("home")
    }

    pub fn hololib(&self) -> PathBuf {
        self.home().join("hololib")
    }

    /// The directory that holds the spaces.
    pub fn base(&self) -> PathBuf {
        self.home().join("holotree")
    }

    /// The state directory of holofs.
    pub fn state(&self) -> PathBuf {
        self.home().join("holofs")
    }

    /// The raw copies in the blob cache, relative to it.
    pub fn raw_copies(&self) -> Vec<PathBuf> {
        let mut files = super::files_below(&self.state().join("cache/blobs"));
        files.retain(|file| file != Path::new("size"));
        files
    }

    /// A command with the environment variables of this world and no others.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut words = self.before.iter().map(OsString::as_os_str).chain([program.as_ref()]);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words);
        command.env_clear().current_dir("/").stdin(Stdio::null());
        for key in ["PATH", "HOLOFS_LOG", "HOLOFS_IO", "LLVM_PROFILE_FILE"] {
            if let Some(value) = std::env::var_os(key) {
                command.env(key, value);
            }
        }
        if let Some(installed) = std::env::var_os("HOLOFS_TEST_MOUNT_HELPER") {
            command.env("HOLOFS_MOUNT_HELPER", installed);
        }
        command.env("HOME", HOME).env("ROBOCORP_HOME", self.home()).env("LANG", "C.UTF-8");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The binary under test.
    pub fn holofs(&self) -> Command {
        match &self.tools {
            Some(tools) => self.command(tools.path().join("holofs")),
            None => self.command(holofs_binary()),
        }
    }

    /// Runs `holofs ARGS` to its end.
    #[track_caller]
    pub fn run<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Done {
        finish(self.holofs().args(args))
    }

    /// Runs `holofs ARGS --json`, which must succeed, and returns its parsed output.
    #[track_caller]
    pub fn json<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Value {
        let done = finish(self.holofs().args(args).arg("--json"));
        assert_eq!(done.code, 0, "{done:?}");
        serde_json::from_str(&done.stdout).unwrap_or_else(|error| panic!("{error}: {done:?}"))
    }

    /// Mounts a space of the only environment in this world's library.
    #[track_caller]
    pub fn mount(&self, space: &str) -> Mounted<'_> {
        self.mount_with(space, &[])
    }

    /// Like [`Self::mount`], with further arguments.
    #[track_caller]
    pub fn mount_with(&self, space: &str, args: &[&str]) -> Mounted<'_> {
        Mounted::new(self, space, args)
    }

    /// The mountpoints of holofs below this world.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let mounts = mountinfo.lines().filter(|line| line.contains(" - fuse.holofs "));
        let points = mounts.filter_map(|line| line.split(' ').nth(4)).map(|text| text.replace("\\040", " "));
        points.map(PathBuf::from).filter(|point| point.starts_with(&self.path)).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let left = self.mounts();
        for mount in &left {
            // Best effort. What remains is reported below.
            let by_fusermount = Command::new("fusermount3").arg("-uz").arg(mount).output();
            if !by_fusermount.is_ok_and(|out| out.status.success()) {
                drop(Command::new("umount").arg("-l").arg(mount).output());
            }
        }
        if let Some(dir) = self.dir.take() {
            let path = dir.path().to_owned();
            if dir.close().is_err() {
                // A test may have made directories unreadable.
                drop(Command::new("chmod").args(["-R", "u+rwX"]).arg(&path).output());
                drop(std::fs::remove_dir_all(&path));
            }
            if !std::thread::panicking() {
                assert!(left.is_empty(), "the test left mounts: {left:?}");
                assert!(!path.exists(), "the test left files: {}", path.display());
            }
        }
    }
}

/// Runs a command to its end. A command that hangs is killed and fails the test.
#[track_caller]
pub fn finish(command: &mut Command) -> Done {
    let shown = format!("{command:?}");
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {shown}: {error}"));
    let mut stdout = child.stdout.take().expect("piped");
    let mut stderr = child.stderr.take().expect("piped");
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        stderr.read_to_end(&mut text).map(|_| text)
    });
    let out = std::thread::spawn(move || {
        let mut text = Vec::new();
        stdout.read_to_end(&mut text).map(|_| text)
    });
    let code = wait(&mut child, &shown);
    let text = |thread: std::thread::JoinHandle<std::io::Result<Vec<u8>>>| {
        String::from_utf8_lossy(&thread.join().expect("reader").expect("read")).into_owned()
    };
    Done { code, stdout: text(out), stderr: text(reader) }
}

/// Waits for a child with a time limit.
#[track_caller]
pub fn wait(child: &mut Child, shown: &str) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    let deadline = Instant::now() + WAIT_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
        }
        if Instant::now() > deadline {
            drop(child.kill());
            panic!("timed out after {WAIT_TIMEOUT:?}: {shown}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Has `unshare` run the program that follows in a mount namespace of its own, without the spaces that are mounted outside of
/// the directory `world`. Copies of those would keep other tests from unmounting them.
pub fn apart<'c>(unshare: &'c mut Command, world: &Path) -> &'c mut Command {
    const APART: &str = r#"others=$(awk -v own="$0/" '/ - fuse\.holofs / && index($5, own) != 1 { print $5 }' /proc/self/mountinfo)
[ -z "$others" ] || umount -l $others 2>/dev/null
exec "$@""#;
    unshare.args(["--mount", "--propagation", "private", "sh", "-c", APART]).arg(world)
}

/// A temporary directory that every user can enter, on a real disk, because an upper needs user attributes.
pub fn reachable_tempdir(prefix: &str) -> TempDir {
    // `scripts/test.sh` sets a directory of its own, to clean up after a run that was interrupted.
    let place = std::env::var_os("HOLOFS_TEST_DIR").unwrap_or_else(|| "/var/tmp".into());
    let dir = tempfile::Builder::new().prefix(prefix).tempdir_in(place).expect("a directory");
    std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("chmod");
    dir
}
