//! Truncates, flips or removes each file that holofs keeps, while nothing is mounted. The next mount works, or fails
//! with a clear line. It never shows wrong bytes of the library and never crashes.

mod replaced;

use std::path::{Path, PathBuf};

use crate::common::manifest::{Manifest, differences, read_tree};
use crate::common::world::finish;
use crate::common::{Library, Mounted, World, files_below, fixture};

/// The damage to a file.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Remove,
    Empty,
    Halve,
    FlipFirst,
    FlipMiddle,
    Lengthen,
}

const ALL: &[Damage] =
    &[Damage::Remove, Damage::Empty, Damage::Halve, Damage::FlipFirst, Damage::FlipMiddle, Damage::Lengthen];

fn damage(path: &Path, how: Damage) {
    use std::os::unix::fs::PermissionsExt;
    if matches!(how, Damage::Remove) {
        return std::fs::remove_file(path).unwrap();
    }
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    match how {
        Damage::Empty => bytes.clear(),
        Damage::Halve => bytes.truncate(middle),
        Damage::FlipFirst => bytes.iter_mut().take(1).for_each(|byte| *byte ^= 0x55),
        Damage::FlipMiddle => bytes.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 0x01),
        _ => bytes.extend_from_slice(b"more bytes than before"),
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Mounts if possible. A failure must have a clear line.
#[track_caller]
fn try_mount<'w>(world: &'w World, what: &str) -> Option<Mounted<'w>> {
    let done = finish(world.holofs().arg("mount").arg(world.home()).arg("s"));
    if done.code != 0 {
        let line = done.stderr.lines().any(|line| line.starts_with("holofs: "));
        assert!(line && done.code < 100, "{what}: {done:?}");
        assert!(!done.stderr.contains("panicked"), "{what}: {done:?}");
        return None;
    }
    // The space is mounted already, so this only adopts the mount.
    Some(world.mount("s"))
}

/// A world that was used: caches filled, and files patched, changed, renamed and removed.
fn used_world() -> (World, Manifest) {
    let world = World::with(&Library::sample());
    let mounted = world.mount("s");
    read_tree(mounted.path());
    std::fs::write(mounted.at("lib/module.py"), b"changed = True\n").unwrap();
    std::fs::rename(mounted.at("many"), mounted.at("moved")).unwrap();
    std::fs::remove_file(mounted.at("readonly")).unwrap();
    let want = read_tree(mounted.path());
    mounted.unmount();
    (world, want)
}

fn copy_back(from: &Path, to: &Path) {
    std::fs::remove_dir_all(to).unwrap();
    // `cp -a` also copies marks (attributes) and whiteouts (devices).
    crate::common::sh(std::process::Command::new("cp").arg("-a").arg(from).arg(to));
}

for_both_users! {
    fn any_file_of_the_state() {
        let (world, want) = used_world();
        let kept = world.path().join("kept");
        crate::common::sh(std::process::Command::new("cp").arg("-a").arg(world.state()).arg(&kept));
        for file in files_below(&world.state()) {
            for how in ALL {
                let what = format!("{how:?} {}", file.display());
                damage(&world.state().join(&file), *how);
                if let Some(mounted) = try_mount(&world, &what) {
                    assert_sound(&mounted, &want, &file, &what);
                    // This mount ends normally, and the next one works too.
                    mounted.unmount();
                    if let Some(mounted) = try_mount(&world, &what) {
                        std::fs::write(mounted.at("lib/afterwards"), b"works").unwrap();
                        mounted.unmount();
                    }
                }
                copy_back(&kept, &world.state());
            }
        }
        assert_eq!(read_tree(world.mount("s").path()), want);
    }

    fn caches_may_go_at_any_time() {
        let (world, want) = used_world();
        std::fs::remove_dir_all(world.state().join("cache")).unwrap();
        let mounted = world.mount("s");
        assert_eq!(read_tree(mounted.path()), want);
        // The caches may also go under a live mount.
        std::fs::remove_dir_all(world.state().join("cache")).unwrap();
        std::fs::write(mounted.at("lib/data.bin"), b"changed").unwrap();
        let other = world.mount("other");
        assert_eq!(std::fs::read(other.at("lib/data.bin")).unwrap().len(), 300_000);
    }

    fn directories_of_the_state_removed() {
        for dir in ["upper", "work", "reloc"] {
            let (world, _) = used_world();
            let spaces = world.state().join("spaces");
            let space = std::fs::read_dir(&spaces).unwrap().next().unwrap().unwrap().path();
            std::fs::remove_dir_all(space.join(dir)).unwrap();
            if let Some(mounted) = try_mount(&world, dir) {
                assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"hello, space\n", "{dir}");
                let conf = std::fs::read_to_string(mounted.at("etc/prefix.conf")).unwrap();
                assert!(conf.contains(mounted.identity()));
            }
        }
    }

    /// A changed catalog of the same blueprint makes the node numbers in the upper meaningless.
    fn catalog_changed_under_a_space() {
        let (world, _) = used_world();
        let changed = Library::sample().file("aaa-first", b"moves every number");
        changed.write(&world.hololib(), &world.base());
        let done = finish(world.holofs().arg("mount").arg(world.home()).arg("s"));
        if done.code == 0 {
            // The mount is refused, or the changes are known not to fit. Wrong files are never shown.
            let mounted = world.mount("s");
            assert_eq!(std::fs::read(mounted.at("aaa-first")).unwrap(), b"moves every number");
            assert_eq!(std::fs::read(mounted.at("readme.txt")).unwrap(), b"hello, space\n");
        } else {
            assert!(done.stderr.starts_with("holofs: ") && done.stderr.contains("its changes belong to"), "{done:?}");
            let mounted = world.mount_with("s", &["--fresh"]);
            assert_eq!(std::fs::read(mounted.at("aaa-first")).unwrap(), b"moves every number");
        }
    }

    fn golden_after_the_index_was_damaged() {
        let world = fixture::world("basic-gz");
        let want = read_tree(world.mount("golden-one").path());
        let cache = world.state().join("cache");
        for file in files_below(&cache) {
            let path = cache.join(&file);
            if !path.exists() {
                continue;
            }
            damage(&path, Damage::FlipMiddle);
            let mounted = world.mount("golden-one");
            assert_eq!(read_tree(mounted.path()), want, "{}", file.display());
        }
    }
}

/// Checks a mount after damage to one file: only what that file holds may have changed.
#[track_caller]
fn assert_sound(mounted: &Mounted<'_>, want: &Manifest, file: &Path, what: &str) {
    let in_upper = upper_path(file);
    // Reads entry by entry: EIO is acceptable, a wrong byte is not.
    for (path, line) in want {
        if in_upper.as_deref() == Some(Path::new(path)) {
            // The entry may be a FIFO now, which an upper may contain.
            if std::fs::symlink_metadata(mounted.at(path)).is_ok_and(|stat| stat.is_file()) {
                drop(std::fs::read(mounted.at(path)));
            }
            continue;
        }
        let crate::common::manifest::Line::File { .. } = line else { continue };
        let Ok(bytes) = std::fs::read(mounted.at(path)) else { continue };
        let sum = crate::common::library::hex(&<sha2::Sha256 as sha2::Digest>::digest(&bytes));
        let crate::common::manifest::Line::File { sha256, .. } = line else { continue };
        assert!(&sum == sha256, "{what}: {path} has wrong bytes");
    }
    if in_upper.is_none() && file.starts_with("cache") {
        let here = read_tree(mounted.path());
        assert_eq!(differences(want, &here), Vec::<String>::new(), "{what}");
    }
}

/// The path in the space of a file of the upper.
fn upper_path(file: &Path) -> Option<PathBuf> {
    let parts: Vec<_> = file.components().collect();
    let upper = parts.iter().position(|part| part.as_os_str() == "upper")?;
    Some(parts[upper + 1..].iter().collect())
}
