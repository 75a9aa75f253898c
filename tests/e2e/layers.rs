//! The order of the layers, as docs/ARCHITECTURE.md has it: a layer uses only those below it, and no modules use each other in
//! a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The layers from the top to the ground: the rows of the table.
fn layers() -> Vec<String> {
    let page = include_str!("../../docs/ARCHITECTURE.md");
    let folder = |line: &str| Some(line.strip_prefix("| `src/")?.split(['`', '.']).next()?.to_owned());
    page.lines().filter_map(folder).collect()
}

/// A path of modules below the crate.
type Module = Vec<String>;

/// The source files below a directory, by module. Tests may use what they like.
fn sources(dir: &Path, module: &Module, found: &mut BTreeMap<Module, String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let of = module.iter().cloned().chain([name.clone()]).collect();
        match path.extension() {
            _ if name == "tests" || (module.is_empty() && ["lib", "main"].contains(&&*name)) => {}
            None => sources(&path, &of, found),
            Some(_) => {
                let text = std::fs::read_to_string(&path).unwrap();
                let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                found.insert(of, product.to_owned());
            }
        }
    }
}

/// The paths that a `use` names: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(before: &str, tree: &str, paths: &mut Vec<String>) {
    let Some(open) = tree.find('{') else {
        paths.push(format!("{before}{tree}"));
        return;
    };
    let (head, inner) = (&tree[..open], &tree[open + 1..tree.rfind('}').unwrap()]);
    let (mut depth, mut start) = (0, 0);
    for (at, c) in inner.char_indices().chain([(inner.len(), ',')]) {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&format!("{before}{head}"), inner[start..at].trim(), paths);
                start = at + 1;
            }
            _ => {}
        }
    }
}

/// The modules that the text of a module names.
fn used(module: &Module, text: &str, known: &BTreeMap<Module, String>) -> BTreeSet<Module> {
    let mut paths = Vec::new();
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect();
    for part in code.split("use ").skip(1) {
        let statement: String = part.split(';').next().unwrap_or_default().split_whitespace().collect();
        if statement.starts_with("crate::") || statement.starts_with("super::") {
            expand("", &statement, &mut paths);
        }
    }
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            if !code[..at].ends_with(is_path) {
                paths.push(code[at..].chars().take_while(|c| is_path(*c)).collect());
            }
        }
    }
    let resolve = |path: &String| {
        let mut at = module.clone();
        for (n, word) in path.split("::").enumerate() {
            match word {
                "crate" => at.clear(),
                "super" => drop(at.pop()),
                "self" => {}
                _ if n == 0 => return None,
                word => at.push(word.to_owned()),
            }
        }
        while !at.is_empty() && !known.contains_key(&at) {
            at.pop();
        }
        (!at.is_empty()).then_some(at)
    };
    paths.iter().filter_map(resolve).filter(|found| found != module).collect()
}

#[test]
fn no_layer_uses_one_above_it_and_no_modules_use_each_other_in_a_circle() {
    let mut files = BTreeMap::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &Vec::new(), &mut files);
    assert!(files.len() > 200, "only {} files were found", files.len());
    let arrows: Vec<(Module, Module)> = files
        .iter()
        .flat_map(|(module, text)| used(module, text, &files).into_iter().map(|to| (module.clone(), to)))
        .collect();
    assert!(arrows.len() > 800, "only {} imports were found", arrows.len());
    let layers = layers();
    let level = |module: &Module| layers.iter().position(|layer| *layer == module[0]);
    let mut upwards = Vec::new();
    for (from, to) in &arrows {
        let (user, part) = (level(from), level(to));
        assert!(user.is_some() && part.is_some(), "{} or {} is in no row", from[0], to[0]);
        if user > part {
            upwards.push(format!("{} -> {}", from.join("::"), to.join("::")));
        }
    }
    assert!(upwards.is_empty(), "a layer uses one above it: {upwards:#?}");
    // A folder's own file and what is in the folder may use each other.
    let mut graph: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
    for (from, to) in arrows.iter().filter(|(from, to)| !from.starts_with(to) && !to.starts_with(from)) {
        graph.entry(from).or_default().insert(to);
    }
    // Takes away whoever uses nobody that is left, or is used by nobody, until nothing changes.
    let mut left: BTreeSet<&Module> = graph.keys().copied().collect();
    let is_in_none = |module: &Module, left: &BTreeSet<&Module>| {
        graph[module].is_disjoint(left) || left.iter().all(|user| !graph[user].contains(module))
    };
    while let Some(done) = left.iter().find(|module| is_in_none(module, &left)).copied() {
        left.remove(done);
    }
    let arrow = |user: &&Module, part: &Module| format!("{} -> {}", user.join("::"), part.join("::"));
    let circle: Vec<_> = left
        .iter()
        .flat_map(|user| graph[user].intersection(&left).map(move |part| arrow(user, part)))
        .collect();
    assert!(circle.is_empty(), "modules use each other in a circle: {circle:#?}");
}
