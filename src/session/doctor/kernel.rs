//! FUSE: the device, the mount, and passthrough.

use rustix::io::Errno;

use super::report::{Report, ask};
use super::uid;
use crate::activate::program::{self, Found};
use crate::session::mount::helper::Client;
use crate::settings::{MountHelper, Settings};
use crate::sys::FUSE_DEVICE;
use crate::sys::confinement::Confinement;
use crate::sys::plain;
use crate::sys::probe::{self, FuseProbe};

/// The first version of Linux with passthrough, and with requests that are sent again.
const PASSTHROUGH_SINCE: (u32, u32) = (6, 9);
const RESEND_SINCE: (u32, u32) = (6, 9);

/// What gives a container FUSE.
const IN_A_CONTAINER: &str = "docker run --device /dev/fuse --cap-add SYS_ADMIN (and --security-opt apparmor=unconfined); \
     Kubernetes: a device plugin for /dev/fuse, since a hostPath alone is refused; or `holofs restore`";

pub(super) fn examine(report: &mut Report, settings: &Settings, confinement: &Confinement) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    report.detail("kernel", &release);
    let device = device(report, confinement);
    let fusermount = fusermount(report, settings, confinement);
    let may_mount = uid() == 0 && confinement.sys_admin;
    let tried = (device && may_mount).then(|| ask(probe::fuse));
    let is_mountable = mount(report, confinement, device, fusermount, tried.as_ref());
    if !is_mountable {
        report.fall_back(
            "mount",
            "restore",
            "FUSE cannot be used: `holofs restore`, or `mount --fallback restore`",
        );
    }
    let helper = helper(report, settings, may_mount);
    passthrough(report, settings, helper, &release, tried.as_ref());
    takeover(report, &release);
    user_allow_other(report);
}

/// Whether programs notice that the process which serves a mount is replaced.
fn takeover(report: &mut Report, release: &str) {
    let kind = "takeover";
    if version(release) < RESEND_SINCE {
        let message = format!(
            "Linux {release} is older than 6.9: if the process that serves a mount dies, another one takes its place, but requests that are under way get an error"
        );
        report.warn(kind, message, "Linux 6.9, if programs must not notice that");
    } else {
        report.ok(kind, "programs do not notice when the process that serves a mount is replaced");
    }
}

/// Whether `/dev/fuse` can be used.
fn device(report: &mut Report, confinement: &Confinement) -> bool {
    let kind = "fuse-device";
    let has_module = || {
        let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        known.lines().any(|line| line.trim_start_matches("nodev").trim() == "fuse")
    };
    let is_contained = confinement.container.is_some();
    match probe::fuse_device() {
        Ok(_) => {
            report.ok(kind, format!("{FUSE_DEVICE} can be opened"));
            return true;
        }
        Err(errno @ (Errno::NOENT | Errno::NODEV | Errno::NXIO)) if !has_module() => {
            let fix = if is_contained { "modprobe fuse on the host" } else { "modprobe fuse" };
            report.fail(
                kind,
                format!("{FUSE_DEVICE}: {}; the kernel has no module fuse", plain(&errno)),
                fix,
            );
        }
        Err(errno @ Errno::NOENT) => {
            report.fail(kind, format!("{FUSE_DEVICE}: {}", plain(&errno)), IN_A_CONTAINER);
        }
        Err(errno @ Errno::PERM) => {
            let message = format!("{FUSE_DEVICE}: {}; the devices cgroup refuses it", plain(&errno));
            report.fail(kind, message, IN_A_CONTAINER);
        }
        Err(errno @ Errno::ACCESS) => {
            report.fail(
                kind,
                format!("{FUSE_DEVICE}: {}", plain(&errno)),
                format!("chmod 666 {FUSE_DEVICE}, as root"),
            );
        }
        Err(errno) => report.fail(kind, format!("{FUSE_DEVICE}: {}", plain(&errno)), "modprobe fuse"),
    }
    false
}

/// Whether fusermount3 can mount for this user.
fn fusermount(report: &mut Report, settings: &Settings, confinement: &Confinement) -> bool {
    let kind = "fusermount3";
    let path = settings.caller.path.clone().unwrap_or_default();
    let here = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let found = ["fusermount3", "fusermount"].iter().find_map(|name| {
        match program::find(name.as_ref(), &path, &here) {
            Found::At(path) => Some(path),
            Found::NoProgram(_) | Found::Nothing => None,
        }
    });
    let Some(found) = found else {
        match uid() {
            0 => report.ok(kind, "not installed; root does not need it"),
            _ => report.fail(
                kind,
                "not installed, and only root can mount without it",
                "install the package fuse3",
            ),
        }
        return false;
    };
    report.detail("fusermount3", found.display());
    let is_setuid = rustix::fs::stat(&found).is_ok_and(|stat| stat.st_uid == 0 && stat.st_mode & 0o4000 != 0);
    if uid() == 0 {
        report.ok(kind, format!("{}; root does not need it", found.display()));
    } else if !is_setuid {
        let message = format!("{} is not setuid root, so it cannot mount", found.display());
        report.fail(kind, message, format!("chmod u+s {}, as root", found.display()));
        return false;
    } else if confinement.no_new_privs {
        let message = "no_new_privs is set for this process, so fusermount3 gets no privilege";
        report.fail(
            kind,
            message,
            "allow privilege escalation (Kubernetes: allowPrivilegeEscalation; systemd: NoNewPrivileges)",
        );
        return false;
    } else {
        report.ok(kind, found.display().to_string());
    }
    true
}

/// Whether this user can mount.
fn mount(
    report: &mut Report,
    confinement: &Confinement,
    device: bool,
    fusermount: bool,
    tried: Option<&Result<FuseProbe, String>>,
) -> bool {
    let kind = "mount";
    match tried {
        Some(Ok(FuseProbe { mount: Ok(()), .. })) => {
            report.ok(kind, "a FUSE filesystem can be mounted (tried)")
        }
        Some(Ok(FuseProbe { mount: Err(refusal), .. })) => {
            report.fail(kind, format!("a FUSE filesystem cannot be mounted: {refusal}"), IN_A_CONTAINER);
            return false;
        }
        Some(Err(why)) => {
            report.warn(
                kind,
                format!("whether FUSE can be mounted is not known: {why}"),
                "try `holofs mount`",
            );
        }
        None if !device => {
            report.fail(kind, format!("without {FUSE_DEVICE} nothing can be mounted"), "see fuse-device");
            return false;
        }
        None if uid() == 0 && !confinement.sys_admin => {
            report.fail(kind, "this root lacks CAP_SYS_ADMIN", IN_A_CONTAINER);
            return false;
        }
        None if fusermount => report.ok(kind, "by fusermount3"),
        None => {
            report.fail(kind, "this user cannot mount", "see fusermount3");
            return false;
        }
    }
    true
}

/// Why the mount helper cannot be used. None if it can, or is not needed.
fn helper(report: &mut Report, settings: &Settings, may_mount: bool) -> Option<String> {
    let kind = "mount-helper";
    if may_mount {
        report.ok(kind, "not needed: this process may register files with the kernel itself");
        return None;
    }
    let wanted = settings.mount.as_ref().map(|mount| mount.mount_helper.value.clone());
    let wanted = wanted.unwrap_or(MountHelper::Installed);
    match Client::start(&wanted) {
        Ok(client) => {
            report.ok(kind, client.program().display().to_string());
            None
        }
        Err(error) => {
            let why = plain(&error);
            // Only passthrough needs it.
            report.ok(kind, format!("{why}; only --io passthrough needs it"));
            Some(why)
        }
    }
}

fn passthrough(
    report: &mut Report,
    settings: &Settings,
    helper: Option<String>,
    release: &str,
    tried: Option<&Result<FuseProbe, String>>,
) {
    let kind = "passthrough";
    let lacks = match tried {
        Some(Ok(FuseProbe { passthrough: Some(Ok(())), .. })) => None,
        Some(Ok(FuseProbe { passthrough: Some(Err(refusal)), .. })) => {
            Some(match version(release) < PASSTHROUGH_SINCE {
                true => format!("Linux {release} is older than 6.9"),
                false => format!("the kernel refuses it ({refusal})"),
            })
        }
        _ if version(release) < PASSTHROUGH_SINCE => Some(format!("Linux {release} is older than 6.9")),
        _ => helper,
    };
    let wanted = settings.mount.as_ref().is_ok_and(|mount| mount.io.value.is_passthrough());
    match lacks {
        None => {
            let how = if tried.is_some() { " (tried)" } else { "" };
            report.ok(kind, format!("--io passthrough can be used{how}"));
        }
        Some(why) if wanted => {
            report.fail(
                kind,
                why,
                "--io cached; passthrough needs Linux 6.9, and root or holofs-mount-helper",
            );
        }
        Some(why) => {
            report.ok(kind, format!("not available: {why}; the default, --io cached, does without"));
            report.fall_back("passthrough", "cached", why);
        }
    }
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn user_allow_other(report: &mut Report) {
    let kind = "user_allow_other";
    let text = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    let is_set = text.lines().any(|line| line.trim() == "user_allow_other");
    report.ok(
        kind,
        match (is_set, uid()) {
            (true, _) => "set: --allow-other can be used",
            (false, 0) => "not set in /etc/fuse.conf; root does not need it",
            (false, _) => "not set in /etc/fuse.conf; only --allow-other needs it",
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert!(version("6.18.44-fc-v509") >= PASSTHROUGH_SINCE);
        assert!(version("6.9.0") >= PASSTHROUGH_SINCE && version("5.15.0-1-amd64") < PASSTHROUGH_SINCE);
        assert_eq!(version("odd"), (0, 0));
    }
}
