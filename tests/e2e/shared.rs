//! A holotree that several users share. The tests have rcc's directory for it in a mount namespace of their own.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::common::as_user::{as_user_args, root_or_skip, tools};
use crate::common::world::{Done, finish};
use crate::common::{Library, World, apart, files_below, sh};

/// Where rcc has it.
const SHARED: &str = "/opt/robocorp/ht";

/// Runs `$SCRIPT` with rcc's directory in place of the real one.
const IN_PLACE: &str = r#"
mount -t tmpfs tmpfs /opt && mkdir -p /opt/robocorp/ht && mount --bind "$HT" /opt/robocorp/ht && exec sh -c "$SCRIPT"
"#;

/// Two ordinary users and their homes. fusermount3 wants a name for each number, and the user daemon has number 1.
struct Users<'w> {
    world: &'w World,
    ids: [String; 2],
}

impl<'w> Users<'w> {
    fn new(world: &'w World) -> Self {
        let ids = [as_user_args()[1].to_str().unwrap().to_owned(), "1".to_owned()];
        for id in &ids {
            let home = world.path().join(id);
            std::fs::create_dir(&home).unwrap();
            std::os::unix::fs::chown(home, Some(id.parse().unwrap()), None).unwrap();
        }
        Self { world, ids }
    }

    /// Runs a shell script as one user, with `holofs` on PATH.
    #[track_caller]
    fn run(&self, user: usize, script: &str) -> Done {
        let (id, tools) = (&self.ids[user], tools());
        let home = self.world.path().join(id);
        let mut command = std::process::Command::new("unshare");
        apart(&mut command, self.world.path()).args(["sh", "-c", IN_PLACE]).current_dir("/");
        let path = format!("{}:{}", tools.path().display(), std::env::var("PATH").unwrap());
        command.env_clear().env("PATH", path).env("HT", self.world.path().join("ht"));
        command.env("HOME", &home).env("ROBOCORP_HOME", home.join("rc"));
        let script = script.replace('\'', "'\\''");
        let user = format!("exec setpriv --reuid {id} --regid {id} --clear-groups -- sh -c '{script}'");
        finish(command.env("SCRIPT", user))
    }
}

/// A holotree of root, which others may read, with one environment.
fn holotree(world: &World) -> PathBuf {
    let ht = world.path().join("ht");
    library().write(&ht.join("lib"), Path::new(SHARED));
    std::fs::create_dir_all(ht.join("lib/used")).unwrap();
    sh(std::process::Command::new("chmod").args(["-R", "u=rwX,go=rX"]).arg(&ht));
    ht
}

fn library() -> Library {
    Library::sample()
}

/// Lets a user join, as `rcc holotree init` does.
fn join(ht: &Path, home: &Path) {
    let init = ht.join("lib/catalog/init");
    std::fs::create_dir_all(&init).unwrap();
    std::fs::write(ht.join("shared.yes"), "v18.18.1").unwrap();
    std::fs::write(init.join("commons.tof"), "OK!").unwrap();
    std::fs::write(init.join(user7(home)), "OK!").unwrap();
}

/// The user's part of the names of spaces: see `library::name`.
fn user7(home: &Path) -> String {
    use std::hash::Hasher;
    let mut hasher = siphasher::sip::SipHasher24::new_with_keys(9_007_799_254_740_993, 2_147_487_647);
    hasher.write(home.to_str().unwrap().as_bytes());
    format!("{:02x}", hasher.finish())[..7].to_owned()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn two_users_mount_from_one_read_only_library() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let ht = holotree(&world);
    // rcc lets everybody make spaces here.
    std::fs::set_permissions(&ht, Permissions::from_mode(0o777)).unwrap();
    let users = Users::new(&world);
    let before = files_below(&ht.join("lib"));
    for (user, id) in users.ids.iter().enumerate() {
        let home = world.path().join(id);
        // Without the marker `auto` is the user's own library, and there is none.
        let done = users.run(user, "holofs mount auto demo");
        assert_eq!((done.code, done.stdout.as_str()), (3, ""), "{done:?}");
        join(&ht, &home);
        let done = users.run(
            user,
            "umask 077; P=$(holofs mount auto demo) || exit; cat $P/readme.txt; echo mine >> $P/readme.txt && \
             cat $P/readme.txt; stat -c %a $P.lck; holofs list -q >/dev/null; holofs unmount demo >/dev/null; echo $P",
        );
        let path = format!("{SHARED}/{}_5a1fac3_700be151", user7(&home));
        let expected = format!("hello, space\nhello, space\nmine\n666\n{path}\n");
        assert_eq!((done.code, done.stdout, done.stderr), (0, expected, String::new()));
        let made = std::fs::metadata(ht.join(Path::new(&path).file_name().unwrap())).unwrap();
        assert_eq!(made.uid().to_string(), *id);
        // The marks of use are in a directory that this user may not write to.
        assert_eq!(std::fs::read_dir(ht.join("lib/used")).unwrap().count(), 0);
        // Nobody deletes what belongs to another user.
        let other = user7(&world.path().join(&users.ids[1 - user]));
        let done = users.run(user, &format!("holofs delete {other}_5a1fac3_700be151"));
        assert!(done.code == 6 || done.code == 7, "{done:?}");
        let done = users.run(user, "holofs gc --unused 0");
        assert_eq!(done.code, 0, "{done:?}");
    }
    let after: Vec<_> =
        files_below(&ht.join("lib")).into_iter().filter(|path| !path.starts_with("catalog/init")).collect();
    assert_eq!(after, before, "nothing of the library has changed");
    // Both spaces are still there, each with the changes of its user.
    for user in 0..2 {
        let done = users.run(user, "P=$(holofs mount auto demo) && cat $P/readme.txt; holofs delete demo");
        assert!(done.stdout.starts_with("hello, space\nmine\nRemoving "), "{done:?}");
    }
    std::fs::set_permissions(ht.join("lib/library"), Permissions::from_mode(0o777)).unwrap();
    let done = users.run(0, "holofs mount auto demo --verify never");
    assert!(done.code != 0 && done.stderr.contains("must be verified"), "{done:?}");
}

#[test]
fn a_directory_of_spaces_that_one_may_not_write() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let ht = holotree(&world);
    let users = Users::new(&world);
    for (user, id) in users.ids.iter().enumerate() {
        let home = world.path().join(id);
        join(&ht, &home);
        let done = users.run(user, "holofs mount auto demo");
        assert_eq!((done.code, done.stdout.as_str()), (7, ""), "{done:?}");
        // Only the command sees the mount.
        let script = "holofs run auto demo --private-ns -- sh -c \"tool; echo x > \\$RCC_HOLOTREE_SPACE_ROOT/new\"; \
                      ls /opt/robocorp/ht; holofs run auto demo --private-ns -- sh -c \"cat \\$RCC_HOLOTREE_SPACE_ROOT/new\"";
        let done = users.run(user, script);
        let name = format!("{}_5a1fac3_700be151", user7(&home));
        let expected = format!("tool {SHARED}/{name}/bin/tool \nlib\nshared.yes\nx\n");
        assert_eq!((done.code, done.stdout), (0, expected), "{}", done.stderr);
        let done = users.run(user, "holofs run auto demo --private-ns --keep -- true");
        assert_eq!(done.code, 125, "{done:?}");
        // An existing empty directory of the user will do.
        let place = ht.join(&name);
        std::fs::create_dir(&place).unwrap();
        std::os::unix::fs::chown(&place, Some(id.parse().unwrap()), None).unwrap();
        let done = users.run(user, "cat $(holofs mount auto demo)/new; holofs unmount demo");
        assert_eq!((done.code, done.stdout), (0, format!("x\n{SHARED}/{name}\n")), "{}", done.stderr);
        std::fs::remove_dir(&place).unwrap();
    }
    let done = users.run(0, "holofs run auto demo --private-ns -- cat /proc/self/uid_map");
    assert!(done.code == 0 && !done.stdout.contains("4294967295"), "{done:?}");
}

/// The namespace of the run has copies of all mounts. Where mounts are shared, as systemd has them, the copies go with them.
#[test]
fn private_namespace_keeps_no_other_space_mounted() {
    if !root_or_skip() {
        return;
    }
    let world = World::with(&library());
    let script = r#"mount --make-rshared / && cd "$1" && mkfifo ready go || exit 99
        "$2" mount auto other || exit 98
        "$2" run auto demo --private-ns -- sh -c ': >"$0/ready"; read x <"$0/go"' "$1" &
        read x <ready
        "$2" unmount other --timeout 1; code=$?
        echo >go; wait; exit $code"#;
    let mut command = world.command("unshare");
    apart(&mut command, world.path()).args(["sh", "-c", script, "sh"]);
    let done = finish(command.arg(world.path()).arg(world.holofs().get_program()));
    assert_eq!(done.code, 0, "{done:?}");
}
