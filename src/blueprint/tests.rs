use std::io::Read as _;

use super::*;

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
