//! A mount stays when the processes of its session, job or service are killed: the process group always, the cgroup with
//! `HOLOFS_SCOPE`. There is no systemd here; its part is played by a program with the name busctl.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal};

use crate::common::as_user::is_root;
use crate::common::world::finish;
use crate::common::{Mounted, World, wait_until};

/// Makes a program busctl that runs `script`, and what shows a service manager of the user.
fn fake(world: &World, script: &str) -> (PathBuf, PathBuf) {
    let (bin, run) = (world.path().join("bin"), world.path().join("run"));
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(run.join("systemd")).unwrap();
    fs::write(run.join("systemd/private"), "").unwrap();
    fs::write(
        bin.join("busctl"),
        format!("#!/bin/sh\nfor last; do before=$pid pid=$last; done; pid=$before\n{script}\n"),
    )
    .unwrap();
    fs::set_permissions(bin.join("busctl"), fs::Permissions::from_mode(0o755)).unwrap();
    (bin, run)
}

/// `holofs mount s` with these programs first on PATH, and this XDG_RUNTIME_DIR.
fn mount_in_scope(world: &World, bin: &Path, run: &Path) -> Command {
    let mut command = world.holofs();
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", bin.display())).env("XDG_RUNTIME_DIR", run);
    command.env("HOLOFS_SCOPE", "on").args(["--json", "mount"]).arg(world.home()).arg("s");
    command
}

/// Two new cgroups, removed when this is dropped. None if this user cannot make any.
struct Cgroups(PathBuf);

impl Cgroups {
    fn new(world: &World) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let root = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (at, kind) = (words.next()?, words.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(at))
        });
        let dir = root?.join(world.path().file_name().unwrap());
        fs::create_dir(&dir).ok()?;
        let made = Self(dir);
        for name in ["session", "scope"] {
            fs::create_dir(made.0.join(name)).unwrap();
        }
        made.0.join("session/cgroup.kill").exists().then_some(made)
    }

    fn processes(&self, name: &str) -> Vec<i32> {
        let text = fs::read_to_string(self.0.join(name).join("cgroup.procs")).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for name in ["session", "scope", ""] {
            let dir = self.0.join(name);
            for _ in 0..500 {
                match fs::remove_dir(&dir) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        std::thread::sleep(std::time::Duration::from_millis(10));
                    }
                    _ => break,
                }
            }
        }
    }
}

#[track_caller]
fn assert_works(mounted: &Mounted<'_>) {
    assert!(!fs::read(mounted.at("readme.txt")).unwrap().is_empty());
    fs::write(mounted.at("new"), "new").unwrap();
}

for_both_users! {
    fn mount_outlives_its_process_group() {
        let world = World::sample();
        let mut shell = world.command("sh");
        shell.args(["-c", "\"$0\" \"$@\" && exec sleep 100"]).arg(world.holofs().get_program());
        shell.arg("mount").arg(world.home()).arg("s").process_group(0);
        let mut shell = shell.stdout(Stdio::null()).spawn().unwrap();
        let group = Pid::from_child(&shell);
        wait_until("the mount", || {
            let name = fs::read_to_string(format!("/proc/{}/comm", group.as_raw_nonzero()));
            name.is_ok_and(|name| name.trim() == "sleep")
        });
        rustix::process::kill_process_group(group, Signal::KILL).unwrap();
        shell.wait().unwrap();
        let mounted = Mounted::adopt(&world, "s");
        assert_eq!(mounted.output["reused"], true);
        assert_works(&mounted);
        mounted.unmount();
    }

    fn scope_is_asked_for_and_a_mount_without_one_goes_on() {
        let world = World::sample();
        let (bin, run) = fake(&world, "printf '%s\\n' \"$*\" > \"${0%/*}/asked\"; echo 'Call failed: no' >&2; exit 1");
        let done = finish(&mut mount_in_scope(&world, &bin, &run));
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.stderr.contains("no scope of its own: busctl: Call failed: no"), "{done:?}");
        let mounted = Mounted::adopt(&world, "s");
        assert_works(&mounted);
        let asked = fs::read_to_string(bin.join("asked")).unwrap();
        let (pid, space) = (mounted.pid(), mounted.identity());
        assert_eq!(
            asked.trim(),
            format!(
                "--user --timeout=5 call org.freedesktop.systemd1 /org/freedesktop/systemd1 \
                 org.freedesktop.systemd1.Manager StartTransientUnit ssa(sv)a(sa(sv)) holofs-{space}-{pid}.scope fail 3 \
                 Description s the holofs space {space} CollectMode s inactive-or-failed PIDs au 1 {pid} 0"
            )
        );
        mounted.unmount();
        // Without a service manager, and without busctl.
        fs::remove_file(run.join("systemd/private")).unwrap();
        let done = finish(&mut mount_in_scope(&world, &bin, &run));
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.stderr.contains("no service manager of this user"), "{done:?}");
        Mounted::adopt(&world, "s").unmount();
        // Nobody asks for it.
        let (bin, run) = fake(&world, "touch \"${0%/*}/called\"");
        let mut command = mount_in_scope(&world, &bin, &run);
        let done = finish(command.env_remove("HOLOFS_SCOPE"));
        assert!(done.code == 0 && done.stderr.is_empty() && !bin.join("called").exists(), "{done:?}");
        Mounted::adopt(&world, "s").unmount();
    }

    fn mount_in_a_scope_outlives_the_cgroup_of_its_session() {
        let world = World::sample();
        let Some(groups) = is_root().then(|| Cgroups::new(&world)).flatten() else {
            eprintln!("not run: no cgroup can be made");
            return;
        };
        let dir = groups.0.display();
        let (bin, run) = fake(&world, &format!("(sleep 0.1; echo $pid > {dir}/scope/cgroup.procs) >&- 2>&- &"));
        let mut mount = mount_in_scope(&world, &bin, &run);
        let mut session = world.command("sh");
        session.args(["-c", &format!("echo $$ > {dir}/session/cgroup.procs; \"$0\" \"$@\"")]);
        session.arg(mount.get_program()).args(mount.get_args());
        for (name, value) in mount.get_envs() {
            session.env(name, value.unwrap_or_default());
        }
        mount.stdin(Stdio::null());
        let mounted = Mounted::by(&world, "s", &mut session);
        let scoped = groups.processes("scope");
        assert!(scoped.contains(&mounted.pid()) && scoped.contains(&mounted.server()), "{scoped:?}");
        fs::write(groups.0.join("session/cgroup.kill"), "1").unwrap();
        assert_works(&mounted);
        let before = mounted.kill_worker();
        assert_works(&mounted);
        assert!(mounted.server() != before && groups.processes("scope").contains(&mounted.server()));
        mounted.unmount();
        assert!(groups.processes("scope").is_empty() && groups.processes("session").is_empty());
    }
}
