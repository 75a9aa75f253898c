//! How holofs fits into the system: mount(8) and fstab, services, completions, manual pages.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::common::as_user::{holofs_binary, root_or_skip};
use crate::common::world::{Done, finish, wait};
use crate::common::{World, apart, sh, wait_until};

/// A socket like that of a service manager.
fn notify_socket(world: &World) -> UnixDatagram {
    let socket = UnixDatagram::bind(world.path().join("notify")).unwrap();
    std::fs::set_permissions(world.path().join("notify"), PermissionsExt::from_mode(0o777)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket
}

fn next_message(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 4096];
    let count = socket.recv(&mut buffer).expect("a message of the service");
    String::from_utf8(buffer[..count].to_vec()).unwrap()
}

for_both_users! {
    /// `Type=notify`: the service is ready when the mount answers, and says that it stops.
    fn service_tells_when_it_is_ready_and_when_it_stops() {
        let world = World::sample();
        let socket = notify_socket(&world);
        let mut command = world.holofs();
        command.arg("mount").arg(world.home()).args(["s", "--foreground"]).env("NOTIFY_SOCKET", world.path().join("notify"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let ready = next_message(&socket);
        assert!(ready.starts_with("READY=1\nSTATUS=") && ready.contains(" is mounted"), "{ready}");
        let mounts = world.mounts();
        assert_eq!(mounts.len(), 1);
        assert_eq!(std::fs::read(mounts[0].join("readme.txt")).unwrap(), b"hello, space\n");
        // What `systemctl stop` does, to the process that systemd started.
        sh(world.command("kill").arg("-TERM").arg(child.id().to_string()));
        assert_eq!(next_message(&socket), "STOPPING=1\n");
        assert_eq!(wait(&mut child, "the service"), 0);
        assert!(world.mounts().is_empty());
        let mut printed = String::new();
        child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        assert_eq!(printed.trim_end(), mounts[0].to_str().unwrap());
    }

    /// A daemon in a session of a service manager is not that service.
    fn daemon_tells_nothing() {
        let world = World::sample();
        let socket = notify_socket(&world);
        let done = finish(world.holofs().arg("mount").arg(world.home()).arg("s").env("NOTIFY_SOCKET", world.path().join("notify")));
        assert_eq!(done.code, 0, "{done:?}");
        assert_eq!(world.run(["unmount", "s"]).code, 0);
        wait_until("the mount to end", || world.mounts().is_empty());
        socket.set_nonblocking(true).unwrap();
        assert!(socket.recv(&mut [0; 16]).is_err());
    }
}

/// Runs a script in a mount namespace of its own, in which /usr/sbin also has what `prepare` puts into `$new`. Nothing of it
/// is left on this machine.
fn with_programs(world: &World, prepare: &str, script: &str) -> Done {
    let new = world.path().join("sbin");
    std::fs::create_dir_all(&new).unwrap();
    let begin = format!(
        "set -eu
         new=$1 home=$2 dir=$3 holofs=$4
         {prepare}
         mount -t overlay -o lowerdir=\"$new\":/usr/sbin overlay /usr/sbin
         {script}"
    );
    let mut command = Command::new("unshare");
    apart(&mut command, world.path()).args(["sh", "-c", &begin, "sh"]);
    command.arg(&new).arg(world.home()).arg(world.path().join("env")).arg(holofs_binary());
    command.env("ROBOCORP_HOME", world.home()).env("HOME", "/root").current_dir(world.path());
    finish(command.stdin(Stdio::null()))
}

const LINK: &str = r#"ln -s "$holofs" "$new/mount.fuse.holofs""#;

#[track_caller]
fn assert_done(done: &Done) {
    assert_eq!(done.code, 0, "{}\n{}", done.stdout, done.stderr);
}

/// The line of fstab that docs and the package show.
#[test]
fn mount_and_fstab_mount_a_space() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample();
    let done = with_programs(
        &world,
        LINK,
        r#"
        mkdir "$dir"
        mount -t fuse.holofs "$home" "$dir" -o space=demo,noexec
        test "$(cat "$dir/readme.txt")" = "hello, space"
        grep -q " $dir rw,nosuid,nodev,noexec.* fuse.holofs holofs:" /proc/self/mountinfo
        echo kept > "$dir/new"
        "$holofs" status demo | grep -q mounted
        umount "$dir"
        printf '%s %s fuse.holofs ro,space=demo,noauto,nofail,_netdev,user,x-systemd.automount,exec 0 0\n' "$home" "$dir" > fstab
        # At boot there may be no HOME. The space is the same one.
        env -u HOME mount -T "$PWD/fstab" "$dir"
        test "$(cat "$dir/new")" = kept
        ! touch "$dir/other" 2>/dev/null
        umount "$dir"
        ! grep -q " $dir " /proc/self/mountinfo
        # A fake mount checks the options only.
        mount -f -t fuse.holofs "$home" "$dir" -o space=demo
        ! grep -q " $dir " /proc/self/mountinfo
        "#,
    );
    assert_done(&done);
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("", ""));
}

/// The helper of libfuse calls `holofs LIBRARY DIRECTORY -o OPTIONS`.
#[test]
fn mount_by_the_helper_of_libfuse() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample();
    let done = with_programs(
        &world,
        r#"ln -s "$holofs" "$new/holofs""#,
        r#"
        mkdir "$dir"
        mount -t fuse.holofs "$home" "$dir" -o space=demo
        test "$(cat "$dir/readme.txt")" = "hello, space"
        umount "$dir"
        mount -t fuse "holofs#$home" "$dir" -o ro
        test "$(cat "$dir/readme.txt")" = "hello, space"
        umount "$dir"
        "#,
    );
    assert_done(&done);
}

/// `setuid=USER` in fstab: the space of an ordinary user, mounted at boot.
#[test]
fn root_mounts_for_a_user() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample().by_ordinary_user();
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(world.home()).unwrap());
    let user = sh(Command::new("id").arg("-nu").arg(owner.to_string()));
    let user = user.trim_end();
    let new = world.path().join("sbin");
    std::fs::create_dir(&new).unwrap();
    std::fs::copy(holofs_binary(), new.join("holofs")).unwrap();
    let done = with_programs(
        &world,
        &r#"ln -s holofs "$new/mount.fuse.holofs"; mkdir "$dir"; chown USER "$dir""#.replace("USER", user),
        &r#"
        mount -t fuse.holofs "$home" "$dir" -o setuid=USER,home="$home",space=demo
        grep " $dir .*fuse.holofs" /proc/self/mountinfo
        umount "$dir"
        "#
        .replace("USER", user),
    );
    assert_done(&done);
    assert!(done.stdout.contains(&format!("user_id={owner}")), "{done:?}");
}

#[test]
fn mount_gets_the_exit_codes_that_it_expects() {
    if !root_or_skip() {
        return;
    }
    let world = World::sample();
    let done = with_programs(
        &world,
        LINK,
        r#"
        mkdir "$dir"
        try() { code=0; mount -t fuse.holofs "$1" "$dir" -o "$2" || code=$?; echo "$code"; }
        try "$home" uid=3
        try "$home" bogus
        try "$home" blueprint=ffff
        try /no/library space=demo
        mkdir "$dir/full"
        try "$home" space=demo
        ! grep -q " $dir " /proc/self/mountinfo
        "#,
    );
    assert_eq!(done.stdout, "1\n1\n32\n32\n32\n", "{done:?}");
    for what in [
        "holofs: uid=3: the files of a space belong to",
        "-o bogus: no such mount option",
        "no catalog of blueprint ffff",
        "/no/library: ",
        "it is not empty",
    ] {
        assert!(done.stderr.contains(what), "{what}: {}", done.stderr);
    }
}

/// The commands that `holofs --help` lists.
fn commands(world: &World) -> Vec<String> {
    let help = world.run(["--help"]).stdout;
    let listed = help.lines().skip(3).filter_map(|line| {
        let about = line.rsplit_once("  ")?.0.trim_end();
        about.rsplit(' ').next().map(str::to_owned)
    });
    listed.filter(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase())).collect()
}

#[test]
fn every_command_has_a_page_and_a_completion() {
    let world = World::new();
    let commands = commands(&world);
    assert!(commands.len() >= 16 && commands.starts_with(&["mount".into(), "run".into()]), "{commands:?}");
    // Neither needs a home.
    let holofs = |args: &[&str]| sh(Command::new(holofs_binary()).args(args).env_clear());
    let dir = world.path().join("man1");
    holofs(&["man", "--output", dir.to_str().unwrap()]);
    let page = |name: &str| {
        std::fs::read_to_string(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    assert!(page("holofs.1").contains("EXIT STATUS"));
    for command in &commands {
        let text = page(&format!("holofs-{command}.1"));
        assert!(text.contains(".SH SYNOPSIS") || text.contains(".SH \"SYNOPSIS\""), "{text}");
        assert!(text.contains(".SH \"EXAMPLES\"") && text.contains("holofs "), "{command}: {text}");
        assert_eq!(holofs(&["man", command]), text);
    }
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), commands.len() + 1);
    for shell in ["bash", "zsh", "fish"] {
        let text = holofs(&["completions", shell]);
        for command in &commands {
            assert!(text.contains(command.as_str()), "{shell}: {command}");
        }
        check_syntax(shell, &text);
    }
    let bad = finish(Command::new(holofs_binary()).args(["completions", "tcsh"]));
    assert_eq!((bad.code, bad.stdout.as_str()), (2, ""));
    assert!(bad.stderr.contains("invalid value 'tcsh'"), "{bad:?}");
    let bad = finish(Command::new(holofs_binary()).args(["man", "nothing"]));
    assert_eq!((bad.code, bad.stdout.as_str()), (6, ""));
    assert!(bad.stderr.contains("nothing: there is no command of this name"), "{bad:?}");
}

/// Has the shell read the text without running it, if the shell is installed.
fn check_syntax(shell: &str, text: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let installed = ["/bin", "/usr/bin"].iter().any(|dir| Path::new(dir).join(shell).exists());
    if installed {
        sh(Command::new(shell).arg("-n").arg(file.path()));
    }
}

#[test]
fn bash_completes_commands_and_options() {
    let script = r#"
        source <("$1" completions bash)
        complete -p holofs >/dev/null || exit 3
        try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _holofs holofs "${@: -1}" "${@: -2:1}"; echo "${COMPREPLY[@]}"; }
        try holofs unm
        try holofs mount --read
    "#;
    let out = sh(Command::new("bash").args(["--norc", "-c", script, "bash"]).arg(holofs_binary()));
    assert_eq!(out, "unmount\n--read-only\n");
}
