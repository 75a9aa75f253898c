use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

fn variable(name: &str, value: &[u8]) -> Variable {
    Variable { name: name.to_owned(), value: OsString::from_vec(value.to_owned()) }
}

fn one(value: &[u8], format: Format) -> String {
    String::from_utf8(written(&[variable("K", value)], format)).unwrap()
}

#[test]
fn values_are_quoted_where_the_reader_needs_it() {
    for (value, export, dotenv, fish, powershell) in [
        ("", "K=", "K=", "K ''", "K = ''"),
        (
            "/a:/b-c_1.2,@%+=",
            "K=/a:/b-c_1.2,@%+=",
            "K=/a:/b-c_1.2,@%+=",
            "K '/a:/b-c_1.2,@%+='",
            "K = '/a:/b-c_1.2,@%+='",
        ),
        ("(rcc) ", "K='(rcc) '", "K='(rcc) '", "K '(rcc) '", "K = '(rcc) '"),
        ("$a;`b`", "K='$a;`b`'", "K='$a;`b`'", "K '$a;`b`'", "K = '$a;`b`'"),
        (
            "it's \\ $x",
            "K='it'\\''s \\ $x'",
            "K=\"it's \\\\ \\$x\"",
            "K 'it\\'s \\\\ $x'",
            "K = 'it''s \\ $x'",
        ),
        ("‘q’", "K='‘q’'", "K='‘q’'", "K '‘q’'", "K = '‘‘q’’'"),
    ] {
        assert_eq!(one(value.as_bytes(), Format::Export), format!("export {export}\n"));
        assert_eq!(one(value.as_bytes(), Format::Dotenv), format!("{dotenv}\n"));
        assert_eq!(one(value.as_bytes(), Format::Fish), format!("set -gx {fish};\n"));
        assert_eq!(one(value.as_bytes(), Format::PowerShell), format!("$env:{powershell}\n"));
        assert_eq!(one(value.as_bytes(), Format::Null), format!("K={value}\0"));
    }
}

/// A name is a part of the program that the reader runs.
#[test]
fn name_that_is_no_name_reaches_no_shell() {
    for name in ["", "a b", "x;id", "1a", "a-b", "ä", "a=b", "a\nb"] {
        let variables = [variable(name, b"v")];
        for format in [Format::Export, Format::Dotenv, Format::Fish, Format::PowerShell] {
            assert!(written(&variables, format).is_empty(), "{name:?} {format:?}");
        }
        assert_eq!(written(&variables, Format::Null), format!("{name}=v\0").into_bytes());
    }
}

#[test]
fn json_is_rccs() {
    let variables = [
        variable("CONDA_PROMPT_MODIFIER", b"(rcc) "),
        variable("PYTHONHOME", b""),
        variable("A", "<&> \u{2028}\"\\".as_bytes()),
        variable("", b"left out"),
    ];
    let text = String::from_utf8(written(&variables, Format::Json)).unwrap();
    let wanted = r#"[
  {
    "key": "CONDA_PROMPT_MODIFIER",
    "value": "(rcc)"
  },
  {
    "key": "PYTHONHOME",
    "value": ""
  },
  {
    "key": "A",
    "value": "\u003c\u0026\u003e \u2028\"\\"
  }
]
"#;
    assert_eq!(text, wanted);
    assert_eq!(written(&[], Format::Json), b"[]\n");
}

/// Runs a shell on the text followed by `env -0`, and returns its environment.
fn read_by(shell: &[&str], text: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut child = Command::new(shell[0])
        .args(&shell[1..])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&[text, b"env -0\n"].concat()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(text));
    let pairs = out.stdout.split(|byte| *byte == 0).filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        Some((pair[..at].to_owned(), pair[at + 1..].to_owned()))
    });
    pairs.collect()
}

/// What Docker Compose and Python's dotenv make of a value.
fn read_dotenv(line: &str) -> String {
    let value = line.strip_prefix("K=").unwrap().strip_suffix('\n').unwrap();
    if let Some(inner) = value.strip_prefix('\'') {
        let inner = inner.strip_suffix('\'').unwrap();
        assert!(!inner.contains(['\'', '\\']));
        return inner.to_owned();
    }
    let Some(inner) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return value.to_owned();
    };
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.push(match chars.next().unwrap() {
                'n' => '\n',
                'r' => '\r',
                other => other,
            }),
            '"' | '$' => panic!("not escaped: {line}"),
            c => out.push(c),
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn shells_read_the_values_back(values in prop::collection::vec(prop::collection::vec(1_u8..=255, 0..40), 1..20)) {
        let variables: Vec<Variable> =
            values.iter().enumerate().map(|(n, value)| variable(&format!("K{n}"), value)).collect();
        let mut readers = vec![(vec!["sh"], Format::Export), (vec!["bash", "--norc"], Format::Export)];
        if Command::new("fish").arg("--version").output().is_ok() {
            readers.push((vec!["fish", "--no-config"], Format::Fish));
        }
        for (shell, format) in readers {
            let read = read_by(&shell, &written(&variables, format));
            for Variable { name, value } in &variables {
                prop_assert_eq!(read.get(name.as_bytes()).map(Vec::as_slice), Some(value.as_bytes()), "{:?}", shell);
            }
        }
    }

    #[test]
    fn dotenv_is_read_back(value in "\\PC*[\n\r'\"\\\\$]*\\PC*") {
        prop_assert_eq!(read_dotenv(&one(value.as_bytes(), Format::Dotenv)), value);
    }

    #[test]
    fn json_holds_every_text(value in ".*") {
        let text = String::from_utf8(written(&[variable("K", value.as_bytes())], Format::Json)).unwrap();
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(read[0]["value"].as_str().unwrap(), value.trim_end());
    }
}
