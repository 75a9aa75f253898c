//! `holofs diff` against an independent model, and against the changes of well-known programs.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use super::model::{change, check, tree};
use super::{diff, library};
use crate::common::random::Random;
use crate::common::{Library, World};

for_both_users! {
    fn is_what_a_model_says() {
        let world = World::with(&library());
        for seed in 1..=2 {
            let space = format!("s{seed}");
            let mounted = world.mount(&space);
            let mut random = Random::new(seed);
            let before = tree(mounted.path());
            assert_eq!(diff(&world, &space), [""; 0]);
            for _ in 0..6 {
                for _ in 0..8 {
                    change(mounted.path(), &mut random);
                }
                check(&world.json(["diff", &space]), &before, &tree(mounted.path()));
            }
            let (rows, after) = (world.json(["diff", &space]), tree(mounted.path()));
            mounted.unmount();
            assert_eq!(world.json(["diff", &space]), rows, "unmounted");
            assert_eq!(tree(world.mount(&space).path()), after);
        }
    }

    fn lines_are_those_of_the_changes() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        let at = |path: &str| mounted.at(path);
        // Reading is no change, also of files with relocations.
        std::fs::read(at("etc/prefix.conf")).unwrap();
        std::fs::read(at("large.conf")).unwrap();
        assert_eq!(diff(&world, "s"), [""; 0]);
        std::fs::write(at("new"), "x").unwrap();
        std::fs::write(at("readme.txt"), "x").unwrap();
        std::fs::remove_dir_all(at("many")).unwrap();
        std::fs::rename(at("pkg"), at("package")).unwrap();
        std::fs::write(at("package/one/a.py"), "a = 2\n").unwrap();
        std::fs::set_permissions(at("secret"), std::fs::Permissions::from_mode(0o640)).unwrap();
        // A rename there and back, and a copy of the same bytes.
        std::fs::rename(at("lib"), at("lib2")).unwrap();
        std::fs::rename(at("lib2"), at("lib")).unwrap();
        for same in ["large.bin", "large.conf", "empty"] {
            let bytes = std::fs::read(at(same)).unwrap();
            std::fs::write(at(same), bytes).unwrap();
        }
        let lines = [
            "M empty (metadata)",
            "M large.bin (metadata)",
            "M large.conf (metadata)",
            "D many",
            "A new",
            "R pkg -> package",
            "M package/one/a.py",
            "M readme.txt",
            "M secret (metadata)",
        ];
        assert_eq!(diff(&world, "s"), lines);
        let names = world.run(["diff", "s", "--name-only"]);
        assert_eq!(names.stdout.lines().nth(5), Some("package"));
        let fields = world.run(["diff", "s", "-z"]);
        assert!(fields.stdout.contains("\0R\0pkg\0package\0M\0package/one/a.py\0"), "{fields:?}");
        assert_eq!(world.run(["diff", "s", "--exit-code"]).code, 1);
        assert_eq!(world.run(["diff", "s", "--exit-code", "--silent"]).stdout, "");
        mounted.unmount();
        assert_eq!(diff(&world, "s"), lines);
        let (a, b) = (world.mount("clean"), world.run(["diff", "clean", "--exit-code"]));
        assert_eq!((b.code, b.stdout.as_str()), (0, ""));
        a.unmount();
    }

    /// As `pip install` replaces a package.
    fn package_that_was_installed_again_shows_what_differs() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        std::fs::remove_dir_all(mounted.at("pkg/one")).unwrap();
        std::fs::create_dir(mounted.at("pkg/one")).unwrap();
        std::fs::set_permissions(mounted.at("pkg/one"), std::fs::Permissions::from_mode(0o750)).unwrap();
        std::fs::write(mounted.at("pkg/one/a.py"), "a = 1\n").unwrap();
        std::fs::write(mounted.at("pkg/one/c.py"), "c = 1\n").unwrap();
        let mut lines = diff(&world, "s");
        lines.sort();
        assert_eq!(lines, ["A pkg/one/c.py", "D pkg/one/b.py", "M pkg/one/a.py (metadata)"]);
    }

    fn paths_are_escaped_for_people_and_whole_for_programs() {
        let world = World::with(&Library::sample());
        let mounted = world.mount("s");
        let name = std::ffi::OsStr::from_bytes(b"a\x1b[31m\nb");
        std::fs::write(mounted.at(name), "").unwrap();
        assert_eq!(diff(&world, "s"), ["A a\\u{1b}[31m\\nb"]);
        let raw = world.run(["diff", "s", "-z"]);
        assert_eq!(raw.stdout.as_bytes(), b"A\0a\x1b[31m\nb\0");
    }

    fn library_that_is_gone_leaves_the_names() {
        let world = World::with(&library());
        let mounted = world.mount("s");
        std::fs::write(mounted.at("readme.txt"), "hello, space\n").unwrap();
        std::fs::remove_file(mounted.at("empty")).unwrap();
        mounted.unmount();
        std::fs::remove_file(library().catalog(&world.hololib())).unwrap();
        assert_eq!(diff(&world, "s"), ["D empty", "M readme.txt"]);
        std::fs::remove_dir_all(world.state().join("cache")).unwrap();
        let done = world.run(["diff", "s"]);
        assert!(done.code == 3 && done.stdout.is_empty() && done.stderr.contains("blueprint"), "{done:?}");
    }

    fn bad_input() {
        let world = World::with(&library());
        let done = world.run(["diff", "nowhere"]);
        assert!(done.code == 6 && done.stdout.is_empty(), "{done:?}");
        assert_eq!(world.run(["diff"]).code, 2);
        assert_eq!(world.run(["diff", "s", "-z", "--json"]).code, 2);
        // A space that rcc restored: plain files and a description beside them.
        let mounted = world.mount("s");
        let (path, state) = (mounted.path().to_owned(), mounted.state());
        mounted.unmount();
        std::fs::remove_dir_all(state).unwrap();
        std::fs::write(path.join("identity.yaml"), "x").unwrap();
        let done = world.run(["diff", "s"]);
        assert!(done.code == 6 && done.stderr.contains("restored"), "{done:?}");
        std::fs::remove_file(path.join("identity.yaml")).unwrap();
    }
}
