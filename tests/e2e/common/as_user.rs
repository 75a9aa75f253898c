//! Runs each test for two users and in both I/O modes.
//!
//! A test runs in this process and in both I/O modes. If root runs the tests, it also runs as an ordinary user. For
//! each additional run this same binary is started again for one test, through `setpriv` if the user differs. The
//! programs are copied into a directory that everybody can reach, because the build directory may lie below a home that
//! other users cannot enter.

use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};

use tempfile::TempDir;

/// Set in a process that was started again for one test.
const MARK: &str = "HOLOFS_TEST_ORDINARY_USER";

/// The I/O mode of mounts that do not choose one. holofs reads this variable too.
const IO: &str = "HOLOFS_IO";

/// The user who runs a test.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Us,
    OrdinaryUser,
}

/// Whether mounts use passthrough mode.
pub fn passthrough() -> bool {
    std::env::var_os(IO).is_some_and(|mode| mode == "passthrough")
}

/// Defines four tests: here, and as an ordinary user if root runs the tests, each in cached and in passthrough mode.
/// The ordinary user gets passthrough through the mount helper.
macro_rules! for_both_users {
    ($($(#[doc = $doc:literal])* fn $name:ident() $body:block)+) => {$(
        $(#[doc = $doc])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn body() $body

            #[test]
            fn here() {
                body();
            }

            test_as!(as_ordinary_user, OrdinaryUser, false);
            test_as!(by_passthrough, Us, true);
            test_as!(by_mount_helper, OrdinaryUser, true);
        }
    )+};
}

/// Defines two tests: here, and as an ordinary user if root runs the tests. For what mounts nothing.
macro_rules! by_both_users {
    ($($(#[doc = $doc:literal])* fn $name:ident() $body:block)+) => {$(
        $(#[doc = $doc])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn body() $body

            #[test]
            fn here() {
                body();
            }

            test_as!(as_ordinary_user, OrdinaryUser, false);
        }
    )+};
}

/// A test that runs the function `body` again, as another user or in another I/O mode.
macro_rules! test_as {
    ($name:ident, $who:ident, $passthrough:literal) => {
        #[test]
        fn $name() {
            use $crate::common::as_user::{Who, again};
            again(concat!(module_path!(), "::", stringify!($name)), Who::$who, $passthrough, body);
        }
    };
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a test that needs root can run. Without root it prints that it did not run, and fails if `CI` is set.
#[track_caller]
pub fn root_or_skip() -> bool {
    if !is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        eprintln!("not run: needs root");
    }
    is_root()
}

/// Whether the kernel has FUSE passthrough (Linux 6.9). If `CI` is set, a kernel without it is a failure.
pub fn kernel_has_passthrough() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|text| text.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let has = version >= (6, 9);
    if !has {
        assert!(std::env::var_os("CI").is_none(), "Linux {release} has no FUSE passthrough to test");
        eprintln!("not run: Linux {release} has no FUSE passthrough");
    }
    has
}

/// Runs the body of a test as `who`, with or without passthrough. It starts this binary again, unless this process is
/// that second run already.
#[track_caller]
pub fn again(test: &str, who: Who, by_passthrough: bool, body: fn()) {
    if std::env::var_os(MARK).is_some() {
        return body();
    }
    if !is_root() && who == Who::OrdinaryUser {
        // `here` and `by_passthrough` run as an ordinary user already.
        return;
    }
    if by_passthrough && !kernel_has_passthrough() {
        return;
    }
    // The harness names tests without the name of the crate.
    let (_, name) = test.split_once("::").expect("a module path");
    let tools = tools();
    let mut command = if who == Who::OrdinaryUser && is_root() {
        let mut command = Command::new("setpriv");
        command.args(as_user_args()).arg("--").arg(tools.path().join("e2e"));
        command
    } else {
        Command::new(tools.path().join("e2e"))
    };
    command.args([name, "--exact", "--nocapture"]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env(MARK, "1");
    for (key, value) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("HOLOFS_")) {
        command.env(key, value);
    }
    if by_passthrough {
        command.env(IO, "passthrough");
    }
    command.env("HOLOFS_TEST_TOOLS", tools.path()).env("RUST_BACKTRACE", "1").current_dir("/");
    let out = command.output().expect("setpriv (util-linux) is installed");
    let output = String::from_utf8_lossy(&out.stdout);
    let said = format!("{output}{}", String::from_utf8_lossy(&out.stderr));
    // Indented, so that nobody takes it for the output of this harness.
    let said: String = said.lines().map(|line| format!("    {line}\n")).collect();
    assert!(out.status.success() && output.contains("1 passed"), "{test}: {}\n{said}", out.status);
    print!("{said}");
}

/// The arguments that make `setpriv` run as an ordinary user: `holofs-test`, which `scripts/test.sh` makes, or
/// `nobody`.
pub fn as_user_args() -> Vec<OsString> {
    let passwd = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let ids = |user: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    };
    let (uid, gid) = ids("holofs-test").or_else(|| ids("nobody")).expect("a user holofs-test or nobody");
    // Without --no-new-privs, because fusermount3 is setuid root.
    ["--reuid", &uid, "--regid", &gid, "--clear-groups"].iter().map(OsString::from).collect()
}

/// The binary under test.
pub fn holofs_binary() -> PathBuf {
    match std::env::var_os("HOLOFS_TEST_TOOLS") {
        Some(tools) => Path::new(&tools).join("holofs"),
        None => built_holofs(),
    }
}

/// The binary that cargo built, or the one that `HOLOFS_TEST_BINARY` names.
fn built_holofs() -> PathBuf {
    std::env::var_os("HOLOFS_TEST_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_holofs").into()).into()
}

/// `tests/fixtures`.
pub fn fixtures() -> PathBuf {
    match std::env::var_os("HOLOFS_TEST_TOOLS") {
        Some(tools) => Path::new(&tools).join("fixtures"),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"),
    }
}

/// The file name of the mount helper.
const MOUNT_HELPER: &str = "holofs-mount-helper";

/// A copy of the helper that is setuid root and has no capability. It exists only if root runs the tests.
pub const SETUID_MOUNT_HELPER: &str = "holofs-mount-helper-setuid";

/// A copy of the helper with the capability, for a test that uses up the user's share of registered files.
pub const EMPTIED_MOUNT_HELPER: &str = "holofs-mount-helper-emptied";

/// The privileged mount helper: the one in [`tools`], or the one that `scripts/test.sh` has installed if an ordinary
/// user runs the tests.
pub fn mount_helper() -> PathBuf {
    if let Some(installed) = std::env::var_os("HOLOFS_TEST_MOUNT_HELPER") {
        return installed.into();
    }
    let tools = std::env::var_os("HOLOFS_TEST_TOOLS").expect("HOLOFS_TEST_MOUNT_HELPER: run scripts/test.sh");
    Path::new(&tools).join(MOUNT_HELPER)
}

/// Copies the mount helper to a place of these tests. If root runs the tests, the copy gets the capability.
fn install_mount_helper(to: &Path) {
    let built = Path::new(env!("CARGO_BIN_EXE_holofs")).with_file_name(MOUNT_HELPER);
    // The helper is another package, so cargo does not build it for these tests.
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--package", MOUNT_HELPER]).current_dir(env!("CARGO_MANIFEST_DIR"));
        let profile_dir = built.parent().expect("a directory");
        build.arg("--target-dir").arg(profile_dir.parent().expect("a directory"));
        if profile_dir.ends_with("release") {
            build.arg("--release");
        }
        super::sh(&mut build);
    }
    // A copy and not a hard link, because capabilities belong to the inode.
    std::fs::copy(&built, to).expect("copy the mount helper");
    std::fs::set_permissions(to, Permissions::from_mode(0o755)).expect("chmod");
    if is_root() {
        super::sh(Command::new("setcap").arg("cap_sys_admin+ep").arg(to));
        let emptied = to.with_file_name(EMPTIED_MOUNT_HELPER);
        std::fs::copy(&built, &emptied).expect("copy the mount helper");
        std::fs::set_permissions(&emptied, Permissions::from_mode(0o755)).expect("chmod");
        super::sh(Command::new("setcap").arg("cap_sys_admin+ep").arg(&emptied));
        // The other way to install the helper, which only root can do.
        let setuid = to.with_file_name(SETUID_MOUNT_HELPER);
        std::fs::copy(&built, &setuid).expect("copy the mount helper");
        std::fs::set_permissions(&setuid, Permissions::from_mode(0o4755)).expect("chmod");
    }
}

/// A directory with the programs and fixtures that everybody can reach. It exists as long as a test uses it.
pub fn tools() -> Arc<TempDir> {
    static TOOLS: Mutex<Weak<TempDir>> = Mutex::new(Weak::new());
    let mut tools = TOOLS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(tools) = tools.upgrade() {
        return tools;
    }
    let dir = super::world::reachable_tempdir("holofs-tools-");
    let this = std::env::current_exe().expect("this binary");
    for (from, name) in [(this.as_path(), "e2e"), (built_holofs().as_path(), "holofs")] {
        let to = dir.path().join(name);
        // A hard link costs nothing. On another filesystem a copy is needed.
        if std::fs::hard_link(from, &to).is_err() {
            std::fs::copy(from, &to).expect("copy a program");
        }
        std::fs::set_permissions(&to, Permissions::from_mode(0o755)).expect("chmod");
    }
    install_mount_helper(&dir.path().join(MOUNT_HELPER));
    super::fixture::copy_tree(&fixtures(), &dir.path().join("fixtures"));
    let dir = Arc::new(dir);
    *tools = Arc::downgrade(&dir);
    dir
}
