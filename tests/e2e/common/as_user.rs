//! Each test runs as whoever runs the tests, and when that is root once more as an ordinary user; and each in both
//! I/O modes.
//!
//! The further runs are this same binary, started again for one test, for another user through `setpriv`. It finds the programs in a
//! directory that everybody can reach: the build directory may lie under a home that nobody else may enter.

use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};

use tempfile::TempDir;

/// Set in a process that was started again as an ordinary user.
const MARK: &str = "HOLOFS_TEST_ORDINARY_USER";

/// Set to the I/O mode that mounts have unless they are told; holofs knows it too.
const IO: &str = "HOLOFS_IO";

/// Who runs a test again.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Us,
    OrdinaryUser,
}

/// Whether mounts are made in passthrough mode.
pub fn passthrough() -> bool {
    std::env::var_os(IO).is_some_and(|mode| mode == "passthrough")
}

/// Defines tests that run here and, under root, once more as an ordinary user, and both once more in passthrough
/// mode, the ordinary user by the mount helper.
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

            #[test]
            fn as_ordinary_user() {
                use $crate::common::as_user::{Who, again};
                again(concat!(module_path!(), "::as_ordinary_user"), Who::OrdinaryUser, false, body);
            }

            #[test]
            fn by_passthrough() {
                use $crate::common::as_user::{Who, again};
                again(concat!(module_path!(), "::by_passthrough"), Who::Us, true, body);
            }

            #[test]
            fn by_mount_helper() {
                use $crate::common::as_user::{Who, again};
                again(concat!(module_path!(), "::by_mount_helper"), Who::OrdinaryUser, true, body);
            }
        }
    )+};
}

/// Whether this process may do everything.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether the kernel has FUSE passthrough (Linux 6.9). Where it is said to be CI it must have it.
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

/// Runs a test's body as somebody, in the other I/O mode if so asked: by starting this binary again, or here when
/// this is that second run already.
#[track_caller]
pub fn again(test: &str, who: Who, by_passthrough: bool, body: fn()) {
    if std::env::var_os(MARK).is_some() {
        return body();
    }
    if !is_root() && who == Who::OrdinaryUser {
        // `here` or `by_passthrough` was this run already.
        return;
    }
    if by_passthrough && !kernel_has_passthrough() {
        return;
    }
    // A test's name in the harness has no crate in front.
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
    let said = String::from_utf8_lossy(&out.stdout);
    print!("{said}");
    assert!(
        out.status.success() && said.contains("1 passed"),
        "{test}: {}\n{said}{}",
        out.status,
        String::from_utf8_lossy(&out.stderr)
    );
}

/// The arguments that make `setpriv` an ordinary user: `holofs-test`, which `scripts/test.sh` makes, or `nobody`.
pub fn as_user_args() -> Vec<OsString> {
    let passwd = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let ids = |user: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
    };
    let (uid, gid) = ids("holofs-test").or_else(|| ids("nobody")).expect("a user holofs-test or nobody");
    // Not --no-new-privs: fusermount3 is setuid root.
    ["--reuid", &uid, "--regid", &gid, "--clear-groups"].iter().map(OsString::from).collect()
}

/// The binary under test.
pub fn holofs_binary() -> PathBuf {
    match std::env::var_os("HOLOFS_TEST_TOOLS") {
        Some(tools) => Path::new(&tools).join("holofs"),
        None => built_holofs(),
    }
}

/// What was built, or another build that is to be tested instead.
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

/// The program's name.
const MOUNT_HELPER: &str = "holofs-mount-helper";

/// The same, setuid root instead; beside the other one in the runs that root starts.
pub const SETUID_MOUNT_HELPER: &str = "holofs-mount-helper-setuid";

/// The same with its capability, for a test that uses up what one user may have.
pub const EMPTIED_MOUNT_HELPER: &str = "holofs-mount-helper-emptied";

/// The mount helper with its privilege: the one in [`tools`], or the one that `scripts/test.sh` has installed for an
/// ordinary user's tests.
pub fn mount_helper() -> PathBuf {
    if let Some(installed) = std::env::var_os("HOLOFS_TEST_MOUNT_HELPER") {
        return installed.into();
    }
    let tools = std::env::var_os("HOLOFS_TEST_TOOLS").expect("HOLOFS_TEST_MOUNT_HELPER: run scripts/test.sh");
    Path::new(&tools).join(MOUNT_HELPER)
}

/// Puts the mount helper where only these tests find it, and under root gives it its capability.
fn install_mount_helper(to: &Path) {
    let built = Path::new(env!("CARGO_BIN_EXE_holofs")).with_file_name(MOUNT_HELPER);
    // It belongs to another package, so cargo does not build it for these tests.
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
    // A copy: capabilities belong to the inode.
    std::fs::copy(&built, to).expect("copy the mount helper");
    std::fs::set_permissions(to, Permissions::from_mode(0o755)).expect("chmod");
    if is_root() {
        super::sh(Command::new("setcap").arg("cap_sys_admin+ep").arg(to));
        let emptied = to.with_file_name(EMPTIED_MOUNT_HELPER);
        std::fs::copy(&built, &emptied).expect("copy the mount helper");
        std::fs::set_permissions(&emptied, Permissions::from_mode(0o755)).expect("chmod");
        super::sh(Command::new("setcap").arg("cap_sys_admin+ep").arg(&emptied));
        // The other way to install it. Only here is it a root's to make.
        let setuid = to.with_file_name(SETUID_MOUNT_HELPER);
        std::fs::copy(&built, &setuid).expect("copy the mount helper");
        std::fs::set_permissions(&setuid, Permissions::from_mode(0o4755)).expect("chmod");
    }
}

/// A directory with the programs and fixtures that everybody can reach. It lives as long as somebody uses it.
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
        // A link costs nothing; where there can be none (another filesystem), a copy.
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
