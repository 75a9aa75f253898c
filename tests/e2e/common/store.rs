//! An S3 store of the tests: `s3s-fs`, which checks signatures, answers ranges and keeps each object as a plain file.
//!
//! `scripts/store.sh install` builds it; without it the tests that need it fail. The processes die with this one: the
//! kernel kills them when the thread that started them ends, and that thread ends with the process. The directory of
//! the store that all tests share goes with a process that waits for the end of this one.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{LazyLock, mpsc};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

const BUCKET: &str = "tests";
const KEY: &str = "AKIATESTTESTTEST";
/// Random-looking, so that a search for it in logs and arguments finds nothing else.
pub const SECRET: &str = "s3cr3t-6f1d09c2b7e84a53a0d2c4f61e97b8aa";

/// A running store.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    port: u16,
    process: Child,
    /// Removes the directory, unless the store is the shared one.
    _own: Option<TempDir>,
}

impl Store {
    /// The store that all tests of this process share. A test must not stop it.
    pub fn shared() -> &'static Self {
        static SHARED: LazyLock<Store> = LazyLock::new(|| {
            // A static is not dropped.
            let dir = super::world::reachable_tempdir("holofs-store-").keep();
            // `scripts/test.sh` removes the directory of its run itself.
            if std::env::var_os("HOLOFS_TEST_DIR").is_none() {
                remove_at_exit(&dir);
            }
            Store::at(dir, None)
        });
        &SHARED
    }

    /// A store that a test may stop, kill and change.
    pub fn own() -> Self {
        let dir = super::world::reachable_tempdir("holofs-store-");
        Self::at(dir.path().to_owned(), Some(dir))
    }

    fn at(dir: PathBuf, own: Option<TempDir>) -> Self {
        std::fs::create_dir_all(dir.join("root").join(BUCKET)).expect("make the bucket");
        // The port is the store's for its life, because it comes back at the same place.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|one| one.local_addr()).expect("a port").port();
        let process = start(&dir, port);
        Self { dir, port, process, _own: own }
    }

    /// A URL in the store that no other test uses.
    pub fn url(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        format!("s3://{BUCKET}/{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The directory that holds the objects below a URL, each as a file.
    pub fn objects(&self, url: &str) -> PathBuf {
        let path = url.strip_prefix("s3://").expect("a URL of this store");
        self.dir.join("root").join(path)
    }

    /// The variables by which a client finds this store.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// Stops the process: connections are accepted, and nothing is answered.
    #[track_caller]
    pub fn hang(&self) {
        self.signal(Signal::STOP);
    }

    /// Ends [`Store::hang`].
    #[track_caller]
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Kills the store: connections break, and new ones are refused.
    #[track_caller]
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.process.wait().expect("wait for the store");
    }

    /// Starts it again after [`Store::kill`], with its objects and at its address.
    #[track_caller]
    pub fn restart(&mut self) {
        self.process = start(&self.dir, self.port);
    }

    #[track_caller]
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).expect("signal the store");
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // It may be dead already; then there is nothing to do.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// The program, as `scripts/store.sh install` builds it.
fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("HOLOFS_TEST_STORE") {
        return program.into();
    }
    let tools = std::env::var_os("HOLOFS_TOOLS")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(&std::env::var_os("HOME").expect("HOME")).join(".cache/holofs-tools"));
    let built = std::fs::read_dir(&tools).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut programs: Vec<PathBuf> =
        built.map(|dir| dir.join("bin/s3s-fs")).filter(|path| path.exists()).collect();
    programs.sort();
    let missing = || panic!("no s3s-fs below {}: run `scripts/store.sh install`", tools.display());
    programs.pop().unwrap_or_else(missing)
}

/// Starts the store and waits until it accepts connections.
#[track_caller]
fn start(dir: &Path, port: u16) -> Child {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program());
    command.args([
        "--host",
        "127.0.0.1",
        "--port",
        &port.to_string(),
        "--access-key",
        KEY,
        "--secret-key",
        SECRET,
    ]);
    command.arg(dir.join("root")).env_clear().env("RUST_LOG", "info").current_dir("/").process_group(0);
    let log = std::fs::File::create(dir.join("log")).expect("the log of the store");
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("dup")).stderr(log);
    let mut child = by_lasting_thread(command);
    super::wait_until("the store to listen", || {
        let ended = child.try_wait().expect("wait");
        assert!(
            ended.is_none(),
            "{ended:?}: {}",
            std::fs::read_to_string(dir.join("log")).unwrap_or_default()
        );
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    child
}

/// Starts a process from a thread that lives as long as this process. The kernel takes the end of the thread that
/// forked for the death of the parent, and each test has a thread of its own.
fn by_lasting_thread(command: Command) -> Child {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static ORDERS: LazyLock<std::sync::Mutex<mpsc::Sender<Order>>> = LazyLock::new(|| {
        let (orders, taken) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in taken {
                answer.send(command.spawn()).expect("the test waits");
            }
        });
        std::sync::Mutex::new(orders)
    });
    let (answer, child) = mpsc::channel();
    let orders = ORDERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    orders.send((command, answer)).expect("the thread lasts");
    child.recv().expect("the thread lasts").expect("setpriv (util-linux) is installed")
}

/// Has a shell remove the directory when this process has ended, in whatever way: its end of the pipe is closed then.
fn remove_at_exit(dir: &Path) {
    let mut command = Command::new("sh");
    command.args(["-c", "read -r _; for _ in 1 2 3 4 5; do rm -rf \"$1\" && exit; sleep 0.2; done", "sh"]);
    command.arg(dir).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    // Its end of the pipe is kept open for the life of this process.
    std::mem::forget(command.spawn().expect("sh"));
}
