use std::io::Read as _;

use proptest::prelude::*;

use super::emit::Emitter;
use super::*;
use crate::yaml::Document;

#[derive(serde::Deserialize)]
struct Vector {
    name: String,
    basename: String,
    input: String,
    blueprint: Option<String>,
    hash: Option<String>,
    layers: Option<[String; 3]>,
    error: Option<String>,
}

fn compose(name: &str, text: &str) -> Result<Blueprint, BlueprintError> {
    Blueprint::compose(&[Source::Text(name.into(), text.into())], false, None)
}

/// The texts and hashes were made by rcc v18.18.1.
#[test]
fn agrees_with_real_rcc_on_every_vector() {
    let packed = include_bytes!("../../tests/vectors/blueprints.json.gz");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut text).unwrap();
    let vectors: Vec<Vector> = serde_json::from_str(&text).unwrap();
    assert_eq!(vectors.len(), 256);
    let mut wrong = Vec::new();
    for v in vectors {
        let made = compose(&v.basename, &v.input);
        match (made, v.error) {
            (Err(_), Some(_)) => {}
            (Ok(made), None) => {
                if Some(&made.text) != v.blueprint.as_ref() {
                    wrong.push(format!("{}: {:?}\nwanted {:?}", v.name, made.text, v.blueprint));
                } else if Some(&made.hash) != v.hash.as_ref() || Some(&made.layers) != v.layers.as_ref() {
                    wrong.push(format!("{}: {} {:?}", v.name, made.hash, made.layers));
                }
            }
            (made, error) => wrong.push(format!("{}: {made:?}, rcc: {error:?}\n{:?}", v.name, v.input)),
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn local_channel_comes_first_and_only_in_a_conda_yaml() {
    let home = tempfile::tempdir().unwrap();
    assert_eq!(local_channel(home.path()), None);
    std::fs::create_dir(home.path().join("channel")).unwrap();
    std::fs::write(home.path().join("channel/channeldata.json"), "{}").unwrap();
    let channel = local_channel(home.path()).unwrap();
    let made = |name: &str| {
        let source = Source::Text(name.into(), b"channels: [a]\ndependencies: {}\n".to_vec());
        Blueprint::compose(&[source], false, Some(&channel)).map(|made| made.text)
    };
    assert!(made("Package.YAML").unwrap().starts_with("channels:\n- conda-forge\n"));
    assert!(made("conda.yaml").is_err());
    let source = Source::Text("conda.yaml".into(), b"channels: [a]\n".to_vec());
    let made = Blueprint::compose(&[source], false, Some(&channel)).unwrap();
    assert_eq!(made.text, format!("channels:\n- {}\n- a\ndependencies: []", channel.display()));
}

#[test]
fn merge_of_files() {
    let merged = |left: &str, right: &str| {
        let source = |text: &str| Source::Text("conda.yaml".into(), text.into());
        Blueprint::compose(&[source(left), source(right)], false, None)
    };
    let made = merged(
        "name: x\nprefix: p\nchannels: [a, b]\ndependencies: [python, {pip: [r==1]}]\nrccPostInstall: [one]\n",
        "channels: [b, c]\ndependencies: [python=3.10, r]\nrccPostInstall: [one, two]\n",
    );
    let text = "name: x+\nchannels:\n- a\n- b\n- c\ndependencies:\n- python=3.10\n- r==1\nrccPostInstall:\n- one\n- two";
    assert_eq!(made.unwrap().text, text);
    let clash = merged("dependencies: [a=1]\n", "dependencies: [{pip: [a==2]}]\n").unwrap_err();
    assert!(clash.to_string().contains("a=1 vs. a==2"), "{clash}");
    assert!(matches!(Blueprint::compose(&[], false, None), Err(BlueprintError::NoFile)));
}

#[test]
fn differences_name_what_is_missing_and_what_is_additional() {
    let made = compose("conda.yaml", "channels: [a]\ndependencies: [python=3.10, {pip: [r==1]}]\n").unwrap();
    let other = b"channels: [a, b]\ndependencies: [python=3.11]\n";
    let Differences { missing, additional } = made.differences(other).unwrap();
    assert_eq!(missing, ["python=3.10", "pip r==1"]);
    assert_eq!(additional, ["channel b", "python=3.11"]);
    assert_eq!(made.differences(made.text.as_bytes()), Some(Differences::default()));
    assert_eq!(made.differences(b"- a"), None);
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(
        text in "(channels|dependencies|name|rccPostInstall|conda-forge|pypi|pip|<<|[-:\\[\\]{}&*!|>'\"%@`#,? \n.~<=a0é\u{85}\u{feff}]){0,60}",
    ) {
        for name in ["conda.yaml", "package.yaml"] {
            Blueprint::compose(&[Source::Text(name.into(), text.clone().into_bytes())], false, None).ok();
        }
        robot::Robot::parse(Path::new("/r/robot.yaml"), text.as_bytes()).ok();
    }

    /// What is written is read as the same texts.
    #[test]
    fn texts_survive(
        texts in prop::collection::vec("[-a0:#'\"\\\\ \n\t\r~?%@\u{85}\u{a0}\u{2028}\u{feff}é😀x]{1,120}", 1..4)
    ) {
        let mut out = Emitter::new();
        out.list("channels", texts.iter().map(String::as_str), false);
        out.list("dependencies", [], false);
        let written = out.finish();
        let document = Document::parse(written.as_bytes()).unwrap().unwrap();
        let entries = document.root().unwrap().entries().unwrap();
        prop_assert_eq!(entries[0].1.texts().unwrap(), texts);
    }
}
