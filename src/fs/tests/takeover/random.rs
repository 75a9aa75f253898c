//! Random requests, to a world whose workers die and to one whose worker lives.

use super::*;

/// A reproducible sequence of numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 20) % most as u64).unwrap()
    }

    fn of<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// A world whose workers die, and one whose worker does not. What the kernel knows is the same in both.
struct Pair {
    dying: World,
    living: World,
    /// The numbers that the kernel knows: the one in `dying`, the one in `living`, and how often they were looked up.
    known: BTreeMap<Ino, (Ino, u64)>,
    /// The same, for the question of `dying`.
    asked: Arc<Mutex<HashSet<Ino>>>,
    log: Vec<String>,
}

impl Pair {
    fn new(marking: bool) -> Self {
        let world = || if marking { World::marking() } else { World::usual() };
        let mut pair = Self {
            dying: world(),
            living: world(),
            known: BTreeMap::from([(Ino::ROOT, (Ino::ROOT, 0))]),
            asked: Arc::default(),
            log: Vec::new(),
        };
        pair.let_ask();
        pair
    }

    fn let_ask(&mut self) {
        let asked = Arc::clone(&self.asked);
        self.dying.fs.namespace().ask_kernel_by(move |ino| asked.lock().unwrap().contains(&ino));
    }

    /// Does the same in both worlds. Returns the results, if it succeeded.
    fn both<T>(&self, act: impl Fn(&World, bool) -> Result<T>) -> Option<(T, T)> {
        match (act(&self.dying, true), act(&self.living, false)) {
            (Ok(one), Ok(other)) => Some((one, other)),
            (Err(one), Err(other)) => {
                assert_eq!(errno(&one), errno(&other), "{:#?}", self.log);
                None
            }
            (one, other) => {
                panic!("dying {:?}, living {:?}: {:#?}", one.map(|_| ()), other.map(|_| ()), self.log)
            }
        }
    }

    /// Notes a lookup.
    fn found(&mut self, both: Option<(Attr, Attr)>) {
        let Some((one, other)) = both else { return };
        let known = self.known.entry(one.ino).or_insert((other.ino, 0));
        assert_eq!(known.0, other.ino, "{:#?}", self.log);
        known.1 += 1;
        self.asked.lock().unwrap().insert(one.ino);
        if one.ino.lower().is_some() || other.ino.lower().is_some() {
            assert_eq!(one.ino, other.ino, "{:#?}", self.log);
        }
    }

    /// As the kernel looks up each name that it is about to change.
    fn look(&mut self, dir: (Ino, Ino), name: &str) {
        let side = |dying: bool| if dying { dir.0 } else { dir.1 };
        let found = self.both(|world, dying| world.fs.namespace().lookup(side(dying), name.as_bytes()));
        self.found(found);
    }

    fn forget(&mut self, ino: Ino) {
        if ino == Ino::ROOT {
            return;
        }
        let (other, count) = self.known.remove(&ino).unwrap();
        self.asked.lock().unwrap().remove(&ino);
        self.dying.fs.namespace().forget(ino, count);
        self.living.fs.namespace().forget(other, count);
    }

    fn die(self, random: &mut Random) -> Self {
        let mut next = Self { dying: self.dying.takeover(), ..self };
        next.let_ask();
        if random.below(3) == 0 {
            next.dying.fs.namespace().adopt();
        }
        next
    }

    /// Compares everything that the kernel can see of what it knows, in a random order.
    fn compare(&self, random: &mut Random) {
        let mut known: Vec<_> = self.known.iter().map(|(one, (other, _))| (*one, *other)).collect();
        for at in (1..known.len()).rev() {
            known.swap(at, random.below(at + 1));
        }
        for (one, other) in known {
            let why = || format!("{one:?} {other:?} {:#?}", self.log);
            let (a, b) = (self.dying.fs.namespace().attr(one), self.living.fs.namespace().attr(other));
            let (Ok(a), Ok(b)) = (&a, &b) else { panic!("{a:?} {b:?} {}", why()) };
            let is_mother = |attr: &Attr| attr.mtime.sec == MOTHER_TIME;
            let view = |attr: &Attr| (attr.kind, attr.mode, attr.nlink, attr.size, attr.uid, is_mother(attr));
            assert_eq!(view(a), view(b), "{}", why());
            match a.kind {
                Kind::Dir => {
                    let names = |world: &World, ino| {
                        let mut names: Vec<_> = listed(world, ino, 0, usize::MAX);
                        names.iter_mut().for_each(|(cookie, _)| *cookie %= 1 << 30);
                        names.sort();
                        names
                    };
                    assert_eq!(names(&self.dying, one), names(&self.living, other), "{}", why());
                }
                Kind::File => {
                    assert_eq!(read(&self.dying, one), read(&self.living, other), "{}", why());
                }
                _ => {
                    let link = |world: &World, ino| world.fs.namespace().readlink(ino).unwrap();
                    assert_eq!(link(&self.dying, one), link(&self.living, other), "{}", why());
                }
            }
        }
    }

    /// One random request.
    fn step(&mut self, random: &mut Random) {
        let known: Vec<_> = self.known.iter().map(|(one, (other, _))| (*one, *other)).collect();
        // Directories without a name are of no use to the kernel.
        let dirs: Vec<_> = known
            .iter()
            .copied()
            .filter(|(one, _)| {
                let attr = self.dying.fs.namespace().attr(*one).unwrap();
                attr.kind == Kind::Dir && attr.nlink > 0
            })
            .collect();
        let names =
            ["a.txt", "b.txt", "sub", "lib", "bin", "link", "deep.txt", "tool", "x", "y", "z", "empty"];
        let (ino, dir, to) = (*random.of(&known), *random.of(&dirs), *random.of(&dirs));
        let (name, new_name) = (*random.of(&names), *random.of(&names));
        let side = |pair: (Ino, Ino), dying: bool| if dying { pair.0 } else { pair.1 };
        let what = random.below(100);
        self.log.push(format!("{what}: {ino:?} {dir:?}/{name} {to:?}/{new_name}"));
        let is_file = self.dying.fs.namespace().attr(ino.0).unwrap().kind == Kind::File;
        match what {
            0..35 => self.look(dir, name),
            35..50 => {
                let text = CString::new(new_name).unwrap();
                let what = [Make::File(0o644), Make::File(0o400), Make::Dir(0o755), Make::Symlink(&text)];
                let what = *random.of(&what);
                let found = self.both(|world, dying| {
                    world.fs.namespace().make(side(dir, dying), name.as_bytes(), what, caller())
                });
                self.found(found);
            }
            50..58 if is_file => {
                let bytes = format!("{}", self.log.len());
                self.both(|world, dying| world.fs.write(side(ino, dying), 3, bytes.as_bytes()));
            }
            58..62 => {
                let mode = *random.of(&[0o644, 0o400, 0o755, 0o000]);
                let size = (random.below(2) == 0 && is_file).then_some(*random.of(&[0, 2, 5000]));
                let change = SetAttr { mode: Some(mode), size, ..SetAttr::default() };
                self.both(|world, dying| world.fs.namespace().setattr(side(ino, dying), &change));
            }
            62..66 => {
                let is_gone = self.dying.fs.namespace().attr(ino.0).unwrap().nlink == 0;
                if !is_gone {
                    let found = self.both(|world, dying| {
                        world.fs.namespace().link(side(ino, dying), side(dir, dying), name.as_bytes())
                    });
                    self.found(found);
                }
            }
            66..76 => {
                self.look(dir, name);
                self.both(|world, dying| world.fs.namespace().unlink(side(dir, dying), name.as_bytes()));
            }
            76..82 => {
                self.look(dir, name);
                self.both(|world, dying| world.fs.namespace().rmdir(side(dir, dying), name.as_bytes()));
            }
            82..96 => {
                self.look(dir, name);
                self.look(to, new_name);
                let mode = *random.of(&[RenameMode::Replace, RenameMode::Replace, RenameMode::Exchange]);
                self.both(|world, dying| {
                    let (dir, to) = (side(dir, dying), side(to, dying));
                    world.fs.namespace().rename(dir, name.as_bytes(), to, new_name.as_bytes(), mode)
                });
            }
            96..98 => {
                self.both(|world, dying| world.fs.set_xattr(side(ino, dying), b"user.x", b"1", 0));
            }
            _ => self.forget(ino.0),
        }
    }
}

/// The same requests to a world whose workers die and to one whose worker lives: the kernel sees the same.
#[test]
fn nobody_can_tell_whether_workers_died() {
    for seed in 1..=if cfg!(debug_assertions) { 6 } else { 60 } {
        let mut random = Random(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
        let mut pair = Pair::new(seed % 3 == 0);
        for round in 0..12 {
            for _ in 0..random.below(60) {
                pair.step(&mut random);
            }
            if round % 3 == 0 {
                pair.compare(&mut random);
            }
            pair = pair.die(&mut random);
            if random.below(2) == 0 {
                pair.compare(&mut random);
            }
        }
        pair.compare(&mut random);
        for ino in pair.known.keys().copied().collect::<Vec<_>>() {
            pair.forget(ino);
        }
        assert_eq!(pair.dying.fs.namespace().handoff().held().fds(), [], "seed {seed}");
        assert_eq!(pair.dying.fs.namespace().handoff().held().gone(10_000), [0; 0], "seed {seed}");
    }
}
