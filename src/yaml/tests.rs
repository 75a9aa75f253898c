use super::*;

fn parse(text: &str) -> Result<Option<Document>, YamlError> {
    Document::parse(text.as_bytes())
}

fn strings(text: &str) -> Vec<Option<String>> {
    let document = parse(text).unwrap().unwrap();
    document.root().unwrap().items().unwrap().map(|item| item.as_string().unwrap()).collect()
}

#[test]
fn only_what_yaml_1_1_resolves_to_text_is_a_string() {
    for text in [
        "3.10",
        "yes",
        "Off",
        "y",
        "~",
        "null",
        "''...",
        "0x1f",
        "0b1",
        "0b-1",
        "0o7",
        "017",
        "1_000",
        "1e3",
        ".5",
        "-.inf",
        ".NaN",
        "+5",
        "-0",
        "09",
        "!!int 3",
        "!!float 3",
        "[a]",
        "{a: b}",
        "18446744073709551615",
    ] {
        let text = text.trim_end_matches("''...");
        assert_eq!(strings(&format!("- {text}\n")), [None], "{text}");
    }
    for text in [
        "python=3.10",
        "3.10.1",
        "0x",
        "0b2",
        "1e",
        "1e999",
        "_1",
        "1:30",
        "nope",
        "<<",
        "2024-01-01",
        "!!str 3.10",
        "!x 3",
        "0x1ffffffffffffffffff",
        "-",
        ".",
        "+",
        "99999999999999999999x",
    ] {
        let text = if text == "-" { "'-'" } else { text };
        assert!(strings(&format!("- {text}\n"))[0].is_some(), "{text}");
    }
    assert_eq!(
        strings("- '3.10'\n- \"yes\"\n- !!binary |\n   aGVs\n   bG8=\n"),
        [Some("3.10".to_owned()), Some("yes".to_owned()), Some("hello".to_owned())]
    );
}

#[test]
fn timestamps() {
    for text in [
        "2001-12-14",
        "2001-1-2",
        "2001-12-14t21:59:43.10-05:00",
        "2001-12-15T2:59:43.1Z",
        "2001-12-14 21:59:43.10",
        "2000-02-29",
        "2001-12-14 1:2:3",
    ] {
        assert_eq!(meaning(text), Meaning::Timestamp, "{text}");
    }
    for text in [
        "2001-13-14",
        "2001-02-29",
        "201-01-01",
        "2001-12-14 25:00:00",
        "2001-12-14T21:59:43",
        "2001-12-14 21:59:43 -5",
        "2001-12",
        "2001-12-14x",
    ] {
        assert_eq!(meaning(text), Meaning::Text, "{text}");
    }
}

#[test]
fn merge_keys_and_aliases() {
    let text =
        "base: &b {x: 1, y: 2}\nuse:\n  y: 3\n  <<: *b\n  z: [*b, *b]\nmany:\n  <<: [{a: 1}, {a: 2}]\n";
    let document = parse(text).unwrap().unwrap();
    let root = document.root().unwrap().entries().unwrap();
    let keys = |value: Value<'_>| -> Vec<String> {
        value.entries().unwrap().iter().map(|(key, _)| key.text().unwrap()).collect()
    };
    assert_eq!(keys(root[1].1), ["y", "x", "y", "z"]);
    let many = root[2].1.entries().unwrap();
    assert_eq!(many.last().unwrap().1.text().unwrap(), "1");
    let bad = parse("<<: a\n").unwrap().unwrap();
    assert!(bad.root().unwrap().entries().is_err());
}

#[test]
fn hostile_documents() {
    let mut laughs = "a0: &a0 {x: y}\n".to_owned();
    for n in 1..60 {
        laughs.push_str(&format!("a{n}: &a{n} {{<<: [*a{p}, *a{p}]}}\n", p = n - 1));
    }
    laughs.push_str("<<: *a59\n");
    let document = parse(&laughs).unwrap().unwrap();
    let error = document.root().unwrap().entries().unwrap_err();
    assert!(error.why.contains("repeat too much"), "{error}");
    let mut chain = "- &a0 {x: [y]}\n".to_owned();
    for n in 1..50_000 {
        chain.push_str(&format!("- &a{n} {{<<: *a{p}, x: [*a{p}]}}\n", p = n - 1));
    }
    let document = parse(&chain).unwrap().unwrap();
    let last = document.root().unwrap().items().unwrap().last().unwrap();
    assert!(last.entries().unwrap_err().why.contains("nested"));
    assert!(last.check().unwrap_err().why.contains("nested"));
    let long = format!("- &a {}\n{}", "x".repeat(400_000), "- *a\n".repeat(100_000));
    assert!(parse(&long).unwrap().unwrap().root().unwrap().texts().is_err());
    for (text, line, why) in [
        ("a: *b\n", 1, "unknown anchor"),
        ("a: 1\nb: &b [*b]\n", 2, "contains itself"),
        ("a: b\n\tc: d\n", 2, ""),
        ("a: 1\nb: [1\n", 2, ""),
    ] {
        let error = parse(text).unwrap_err();
        assert_eq!(error.line, line, "{text}: {error}");
        assert!(error.why.contains(why), "{text}: {error}");
    }
    assert!(parse(&"[".repeat(200)).is_err());
    assert!(Document::parse(b"a: b\nc: \xff\n").unwrap_err().to_string().starts_with("line 2"));
    assert!(parse("").unwrap().is_none());
    assert!(parse("# only a comment\n").unwrap().is_none());
}

#[test]
fn file_may_end_without_a_newline() {
    for (text, value) in [
        ("- |\n  abc", "abc"),
        ("- |\n  abc\n", "abc\n"),
        ("- |+\n  abc", "abc"),
        ("- |-\n  abc", "abc"),
        ("- >\n  abc\n  ", "abc\n"),
        ("- |\n  abc\n# x", "abc\n"),
        ("- abc", "abc"),
        ("- 'abc'", "abc"),
    ] {
        assert_eq!(strings(text), [Some(value.to_owned())], "{text:?}");
    }
    assert_eq!(parse("- \"abc\\").unwrap_err().why, "found unexpected end of stream");
}

#[test]
fn only_the_first_document_counts() {
    assert_eq!(strings("- a\n---\n- b\n"), [Some("a".to_owned())]);
    assert_eq!(strings("- a\n...\n: : garbage [\n"), [Some("a".to_owned())]);
}

proptest::proptest! {
    #[test]
    fn no_input_makes_it_panic(text in "[-a:\\[\\]{}&*!|>'\"%@`#,? \t\n.~<=0-9é\u{85}\u{feff}]{0,200}") {
        if let Ok(Some(document)) = parse(&text)
            && let Some(root) = document.root()
        {
            root.texts().ok();
            root.entries().ok();
        }
    }
}
