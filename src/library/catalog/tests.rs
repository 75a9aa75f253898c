use std::fmt::Write as _;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::json::Pieces;
use super::*;

const SHA: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
const ID: &str = "hea7ce2c_493f813dad24d3t";

/// A text that arrives in pieces of a number of bytes.
pub(super) struct Chopped<'a>(pub(super) &'a [u8], pub(super) usize);

impl Pieces for Chopped<'_> {
    fn next(&mut self, _used: Vec<u8>) -> Result<Option<Vec<u8>>, CatalogError> {
        let (piece, rest) = self.0.split_at(self.1.min(self.0.len()));
        self.0 = rest;
        Ok((!piece.is_empty()).then(|| piece.to_vec()))
    }
}

fn parse(text: impl AsRef<[u8]>) -> Result<Tree, CatalogError> {
    let tree = build::build(&mut Chopped(text.as_ref(), 7), Limits::of(1 << 20), false)?;
    check_header(&tree.info)?;
    Ok(tree)
}

fn gzip(text: impl AsRef<[u8]>) -> Vec<u8> {
    let mut stream = GzEncoder::new(Vec::new(), Compression::fast());
    stream.write_all(text.as_ref()).unwrap();
    stream.finish().unwrap()
}

/// The text of a catalog with this tree.
fn catalog(tree: &str) -> String {
    format!(
        r#"{{"rcc":"v18.18.1","identity":"{ID}","path":"/x/holotree/{ID}","controller":"","space":"",
        "platform":"linux_amd64","blueprint":"adb8c26db4d86a93","lifted":true,"tree":{tree}}}"#
    )
}

/// A catalog with these files in the root.
fn with_files(files: &str) -> String {
    catalog(&format!(r#"{{"name":"","mode":2147484141,"subdirs":{{}},"files":{{{files}}}}}"#))
}

/// A file with a name and other fields.
fn file(name: &str, fields: &str) -> String {
    format!(r#""{name}":{{"name":"{name}",{fields}}}"#)
}

fn plain(name: &str) -> String {
    file(name, &format!(r#""size":5,"mode":420,"digest":"{SHA}","rewrite":[]"#))
}

/// One line for each entry: path and kind.
fn lines(tree: &Tree) -> Vec<String> {
    let mut paths: Vec<String> = Vec::new();
    let mut lines = Vec::new();
    for (position, entry) in tree.entries.iter().enumerate() {
        let name = std::str::from_utf8(tree.text(entry.name)).unwrap();
        let path =
            if position == 0 { String::new() } else { format!("{}/{name}", paths[entry.parent as usize]) };
        lines.push(match entry.kind {
            EntryKind::Dir => format!("{path}/"),
            EntryKind::File { size, perm, digest, relocations: (first, count) } => {
                let offsets = &tree.relocations[first as usize..first as usize + count as usize];
                format!(
                    "{path} {size} {perm:o} {} {offsets:?}",
                    &tree.digests[digest as usize].to_string()[..4]
                )
            }
            EntryKind::Symlink { target } => {
                format!("{path} -> {}", String::from_utf8_lossy(tree.text(target)))
            }
        });
        paths.push(path);
    }
    lines
}

/// The path of the refused entry, and why it is refused.
fn refusal(text: &str) -> (String, String) {
    match parse(text) {
        Err(CatalogError::Entry { path, why }) => (path, why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tree_as_rcc_writes_it() {
    let tree = parse(catalog(&format!(
        r#"{{"name":"","mode":2147484141,
        "subdirs":{{
            "bin":{{"name":"bin","mode":2147484141,"subdirs":{{}},"files":{{{}}}}},
            "lib64":{{"name":"lib64","symlink":"bin","mode":2147484141,
                "subdirs":{{"x":{{"name":"x","mode":1,"subdirs":{{}},"files":{{{}}},"shadow":true}}}},
                "files":{{{}}}}}}},
        "files":{{{},{}}}}}"#,
        file("pip", &format!(r#""size":99,"mode":493,"digest":"{SHA}","rewrite":[2,40]"#)),
        plain("in-shadow"),
        file("pip", &format!(r#""size":99,"mode":493,"digest":"{SHA}","rewrite":[2,40]"#)),
        plain("a"),
        file("py", &format!(r#""symlink":"bin/pip","size":99,"mode":493,"digest":"{SHA}","rewrite":[2]"#)),
    )))
    .unwrap();
    assert_eq!(
        lines(&tree),
        ["/", "/bin/", "/bin/pip 99 755 2cf2 [2, 40]", "/lib64 -> bin", "/a 5 644 2cf2 []", "/py -> bin/pip"]
    );
    let info = &tree.info;
    assert_eq!((info.rcc_directories, info.rcc_files, info.rcc_relocations), (4, 5, 3), "as rcc counts");
    assert_eq!(info.rcc_bytes, 99 + 5 + 99 + 5 + 99);
    assert_eq!((tree.digests.len(), tree.relocations.len()), (1, 2));
}

#[test]
fn fields_in_any_order_make_the_same_tree() {
    let inner = plain("f");
    let tree = parse(catalog(&format!(
        r#"{{"files":{{"z":{{"rewrite":[],"digest":"{SHA}","mode":420,"size":5,"name":"z"}}}},
        "subdirs":{{"l":{{"subdirs":{{"d":{{"files":{{{inner}}}}}}},"files":{{{inner}}},"symlink":"t","name":"l"}},
                    "s":{{"files":{{{inner}}},"subdirs":{{}},"shadow":true}},
                    "u":{{}}}}}}"#
    )))
    .unwrap();
    assert_eq!(lines(&tree), ["/", "/z 5 644 2cf2 []", "/l -> t", "/u/"]);
    assert_eq!((tree.info.rcc_directories, tree.info.rcc_files), (5, 4));
}

#[test]
fn unusual_catalogs_that_rcc_reads_are_read() {
    let good = with_files(&plain("a"));
    let expected = ["/", "/a 5 644 2cf2 []"];
    for (what, text) in [
        (
            "null lists",
            with_files(&plain("a").replace("[]", "null")).replace(r#""subdirs":{}"#, r#""subdirs":null"#),
        ),
        ("no lists", with_files(&plain("a").replace(r#","rewrite":[]"#, "")).replace(r#""subdirs":{},"#, "")),
        ("no rcc", good.replace(r#""rcc":"v18.18.1","#, "")),
        ("bytes after the document", format!("{good} trailing }}]\0")),
        (
            "unknown fields",
            good.replace(r#""lifted":true"#, r#""new":[{"a":[1.5e-3,"\"}"]},null,-1],"o":{}"#),
        ),
        ("unknown fields of a file", with_files(&plain("a").replace(r#""mode""#, r#""x":{"y":[]},"mode""#))),
        ("white space", good.replace(',', " \r\n\t, ").replace(':', " : ")),
    ] {
        assert_eq!(lines(&parse(&text).expect(what)), expected, "{what}");
    }
}

#[test]
fn offsets_are_sorted_and_deduplicated() {
    let fields = format!(r#""size":100,"mode":420,"digest":"{SHA}","rewrite":[76,3,40,40,3]"#);
    assert_eq!(lines(&parse(with_files(&file("a", &fields))).unwrap())[1], "/a 100 644 2cf2 [3, 40, 76]");
}

#[test]
fn a_link_needs_no_digest() {
    for fields in [
        r#""symlink":"nowhere","size":0,"mode":420,"digest":"N/A","rewrite":[]"#,
        r#""symlink":"nowhere""#,
        r#""symlink":"nowhere","size":3,"rewrite":[9000]"#,
    ] {
        assert_eq!(lines(&parse(with_files(&file("a", fields))).unwrap())[1], "/a -> nowhere", "{fields}");
    }
}

#[test]
fn strings_are_escaped_as_go_does_it() {
    let name = r"\u003ca\u0026b\u003e \u2028\ud83d\ude00\ud800x\ud800\ud83d\ude00\udc00\ud800\n";
    let tree = parse(with_files(&plain(name))).unwrap();
    let expected = "<a&b> \u{2028}\u{1f600}\u{fffd}x\u{fffd}\u{1f600}\u{fffd}\u{fffd}\n";
    assert_eq!(tree.text(tree.entries[1].name), expected.as_bytes());
    let unescaped = parse(with_files(&plain("Ünï <&>"))).unwrap();
    assert_eq!(unescaped.text(unescaped.entries[1].name), "Ünï <&>".as_bytes());
}

#[test]
fn modes_of_go_become_modes_of_stat() {
    for (go, stat) in [
        (420, 0o644),
        (493, 0o755),
        (8_389_101, 0o4755),
        (4_194_797, 0o2755),
        (1_048_996, 0o1644),
        (2_148_532_735, 0o1777),
        (2_151_678_445, 0o2755),
    ] {
        assert_eq!(perm_of_go_mode(go), stat, "{go}");
    }
}

#[test]
fn an_invalid_name_is_refused() {
    for (name, word) in [
        ("../evil", "slash"),
        ("a/b", "slash"),
        (r"a\/b", "slash"),
        (r"a\u002fb", "slash"),
        ("/", "slash"),
        (".", "`.`"),
        ("..", "`..`"),
        ("", "empty"),
        (r"a\u0000b", "NUL"),
        (&"n".repeat(256), "255"),
        (&"é".repeat(128), "255"),
    ] {
        let (_, why) = refusal(&with_files(&plain(name)));
        assert!(why.contains(word), "{name}: {why}");
        let dir = catalog(&format!(r#"{{"subdirs":{{"{name}":{{}}}}}}"#));
        assert!(refusal(&dir).1.contains(word), "{name} of a directory");
        let hidden =
            catalog(&format!(r#"{{"subdirs":{{"l":{{"symlink":"t","files":{{{}}}}}}}}}"#, plain(name)));
        assert!(refusal(&hidden).1.contains(word), "{name} below a link");
    }
    assert!(parse(with_files(&plain(&"n".repeat(255)))).is_ok());
}

#[test]
fn invalid_entry_is_refused_with_its_path() {
    let bad = |fields: &str| refusal(&with_files(&file("bad", fields)));
    for (fields, word) in [
        (r#""size":5,"mode":420,"digest":"N/A""#.to_owned(), r#"digest "N/A""#),
        (r#""size":5,"mode":420"#.to_owned(), r#"digest """#),
        (format!(r#""size":5,"digest":"{}""#, SHA.to_uppercase()), "digest"),
        (format!(r#""size":5,"digest":"{}""#, &SHA[1..]), "digest"),
        (format!(r#""size":5,"digest":"../../{}""#, &SHA[6..]), "digest"),
        (format!(r#""size":-1,"digest":"{SHA}""#), "negative"),
        (format!(r#""size":4611686018427387905,"digest":"{SHA}""#), "size"),
        (format!(r#""size":99999999999999999999,"digest":"{SHA}""#), "large"),
        (format!(r#""size":1.5,"digest":"{SHA}""#), "whole"),
        (format!(r#""size":"5","digest":"{SHA}""#), "number"),
        (format!(r#""size":5,"size":5,"digest":"{SHA}""#), "duplicate"),
        (format!(r#""size":5,"mode":4294967296,"digest":"{SHA}""#), "mode"),
        (format!(r#""size":23,"digest":"{SHA}","rewrite":[0]"#), "relocation at 0"),
        (format!(r#""size":50,"digest":"{SHA}","rewrite":[0,27]"#), "relocation at 27"),
        (format!(r#""size":50,"digest":"{SHA}","rewrite":[18446744073709551615,0]"#), "relocation"),
        (format!(r#""size":50,"digest":"{SHA}","rewrite":[-1]"#), "negative"),
        (r#""symlink":"a\u0000b""#.to_owned(), "link target"),
        (format!(r#""symlink":"{}""#, "a".repeat(4096)), "link target"),
    ] {
        let (path, why) = bad(&fields);
        assert!(path == "bad" && why.contains(word), "{fields}: {path}: {why}");
    }
    let renamed = plain("a").replacen("\"a\"", "\"b\"", 1);
    let deep = catalog(&format!(r#"{{"subdirs":{{"x":{{"subdirs":{{"y":{{"files":{{{renamed}}}}}}}}}}}}}"#));
    assert_eq!(refusal(&deep), ("x/y/b".to_owned(), r#"its name field is "a""#.to_owned()));
    assert_eq!(parse(&deep).unwrap_err().to_string(), r#"entry "x/y/b": its name field is "a""#);
    let fits = format!(r#""size":51,"digest":"{SHA}","rewrite":[0,27]"#);
    assert!(parse(with_files(&file("a", &fits))).is_ok());
}

#[test]
fn other_json_is_refused() {
    for text in [
        "",
        "null",
        "[]",
        "{",
        r#"{"tree":[]}"#,
        r#"{"tree":{},"tree":{}}"#,
        r#"{"tree":{"subdirs":{"a":{},}}}"#,
        r#"{"tree":{"name":"\x"}}"#,
        "{\"tree\":{\"name\":\"\n\"}}",
        r#"{"x":[1}"#,
        r#"{"x":{"a" 1}}"#,
    ] {
        assert!(
            matches!(parse(text), Err(CatalogError::NotACatalog { .. } | CatalogError::Entry { .. })),
            "{text}"
        );
    }
    assert!(matches!(parse(b"{\"rcc\":\"\xff\"}"), Err(CatalogError::NotACatalog { .. })));
    for root in [r#"{"symlink":"/"}"#, r#"{"shadow":true}"#] {
        assert!(parse(catalog(root)).unwrap_err().to_string().contains("root"));
    }
    let good = with_files("");
    for (from, to) in [
        (ID, "short"),
        ("/x/holotree/", "x/holotree/"),
        ("/x/holotree/", "/x/../"),
        ("/holotree/h", "/holotree/x"),
        ("adb8c26db4d86a93", "../../etc/passwd"),
        (r#""tree""#, r#""root""#),
    ] {
        let text = good.replace(from, to);
        assert!(
            matches!(parse(&text), Err(CatalogError::BadHeader(_))),
            "{from} as {to}: {:?}",
            parse(&text)
        );
    }
}

fn nested(depth: usize) -> String {
    let mut text = String::new();
    for _ in 0..depth {
        text.push_str(r#"{"subdirs":{"d":"#);
    }
    text.push_str("{}");
    text.push_str(&"}}".repeat(depth));
    catalog(&text)
}

#[test]
fn nesting_is_limited() {
    assert_eq!(parse(nested(MAX_DEPTH)).unwrap().entries.len(), MAX_DEPTH + 1);
    assert!(refusal(&nested(MAX_DEPTH + 1)).1.contains("deeper"));
    assert!(refusal(&nested(100_000)).1.contains("deeper"));
    for open in ["[", r#"{"a":"#] {
        let text = format!(r#"{{"unknown":{}"#, open.repeat(1_000_000));
        assert!(parse(&text).unwrap_err().to_string().contains("deeply"));
    }
}

#[test]
fn only_gzip_is_unpacked() {
    let text = with_files(&plain("a"));
    assert!(parse_file(text.as_bytes()).unwrap_err().to_string().contains("not a gzip"));
    assert!(parse_file(b"").unwrap_err().to_string().contains("not a gzip"));
    assert!(parse_file(b"\x28\xb5\x2f\xfd....").unwrap_err().to_string().contains("zstd"));
    assert!(parse_file(&gzip(&text)).is_ok());
}

/// A catalog with 20,000 files, large enough to be unpacked by a second thread.
fn large() -> String {
    let mut files = String::new();
    for number in 0u64..20_000 {
        let sum = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let digest = format!("{sum:016x}{:016x}{sum:016x}{:016x}", sum.rotate_left(17), !sum);
        let fields = format!(r#""size":{number},"mode":420,"digest":"{digest}","rewrite":[]"#);
        write!(files, "{}{}", if number == 0 { "" } else { "," }, file(&format!("f{number}"), &fields))
            .unwrap();
    }
    with_files(&files)
}

#[test]
fn gzip_members_and_missing_trailer_are_accepted_but_not_a_cut_document() {
    for text in [with_files(&plain("a")), large()] {
        let entries = parse(&text).unwrap().entries.len();
        let (head, tail) = text.split_at(text.len() / 2);
        let members = [gzip(head), gzip(tail)].concat();
        let whole = gzip(&text);
        for (what, bytes) in [
            ("members", members.as_slice()),
            ("no checksum", &whole[..whole.len() - 8]),
            ("half a checksum", &whole[..whole.len() - 3]),
            ("garbage behind", &[&whole, b"garbage".as_slice()].concat()),
        ] {
            let found = parse_file(bytes).map(|tree| tree.entries.len());
            assert_eq!(found, Ok(entries), "{what}");
        }
        let cut = parse_file(&whole[..whole.len() / 2]).unwrap_err();
        assert!(matches!(cut, CatalogError::NotGzip(_)), "{cut}");
        let half = parse_file(&gzip(head)).unwrap_err().to_string();
        assert!(half.contains("too early"), "{half}");
    }
}

#[test]
fn refusal_stops_the_unpacking_thread() {
    let text = large().replace("\"f3\":", "\"f/3\":");
    assert!(parse_file(&gzip(&text)).unwrap_err().to_string().contains("slash"));
}

proptest! {
    #[test]
    fn pieces_make_no_difference(size in 1usize..200) {
        let text = with_files(&[plain("a"), plain(r"b\u003c\ud83d\ude00"), plain("ü")].join(","));
        let whole = lines(&build::build(&mut Chopped(text.as_bytes(), usize::MAX), Limits::of(1 << 20), false).unwrap());
        prop_assert_eq!(lines(&build::build(&mut Chopped(text.as_bytes(), size), Limits::of(1 << 20), false).unwrap()), whole);
    }

    /// Names and link targets are read unchanged, no matter how they are escaped.
    #[test]
    fn names_are_read_as_serde_json_writes_them(name in "[^/\\x00]{1,60}", ascii in any::<bool>()) {
        prop_assume!(name != "." && name != ".." && name.len() <= 255);
        let mut quoted = serde_json::to_string(&name).unwrap();
        if ascii {
            quoted = quoted.chars().fold(String::new(), |mut out, c| {
                let mut units = [0; 2];
                match c {
                    ' '..='~' => out.push(c),
                    _ => c.encode_utf16(&mut units).iter().for_each(|unit| write!(out, "\\u{unit:04x}").unwrap()),
                }
                out
            });
        }
        let text = with_files(&format!(
            r#"{quoted}:{{"name":{quoted},"symlink":{quoted},"size":0,"mode":511,"digest":"","rewrite":[]}}"#
        ));
        let tree = parse(&text).unwrap();
        prop_assert_eq!(tree.text(tree.entries[1].name), name.as_bytes());
        match tree.entries[1].kind {
            EntryKind::Symlink { target } => prop_assert_eq!(tree.text(target), name.as_bytes()),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        drop(parse(&bytes));
        drop(parse_file(&bytes));
        drop(parse_file(&[&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0], bytes.as_slice()].concat()));
    }

    #[test]
    fn no_tokens_panic(tokens in proptest::collection::vec(0usize..16, 0..60)) {
        let words = ["{", "}", "[", "]", ":", ",", "\"tree\"", "\"files\"", "\"subdirs\"", "\"name\"", "\"a\"",
            "\"rewrite\"", "1", "null", "\"\\u00", "-"];
        let text: String = tokens.iter().map(|token| words[*token]).collect();
        drop(parse(&text));
    }

    #[test]
    fn no_mutation_panics(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let fields = format!(r#""size":100,"mode":420,"digest":"{SHA}","rewrite":[3,40]"#);
        let link = r#""l":{"symlink":"t","subdirs":{"d":{"shadow":true}}},"d":{"files":{}}"#;
        let tree = format!(r#"{{"subdirs":{{{link}}},"files":{{{}}}}}"#, file("a", &fields));
        let mut text = catalog(&tree).into_bytes();
        for (place, byte) in flips {
            let at = place.index(text.len());
            text[at] = byte;
        }
        if let Ok(tree) = parse(&text) {
            for entry in tree.entries.iter().skip(1) {
                prop_assert_eq!(bad_name(tree.text(entry.name)), None);
            }
        }
    }
}
