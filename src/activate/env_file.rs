//! rcc's `env.json`: a map of names to texts, in JSON or YAML.

use std::path::Path;

use super::Variable;
use crate::sys::guarded::{self, GuardedError};
use crate::yaml::{BadFile, Document, Value, YamlError};

/// The largest file that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// Why a file of variables cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EnvFileError {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] GuardedError),
    /// It is not a map of names to texts.
    #[error(transparent)]
    Bad(#[from] BadFile),
}

/// Reads a file of variables.
///
/// # Errors
/// [`EnvFileError`].
pub fn read(path: &Path) -> Result<Vec<Variable>, EnvFileError> {
    let bytes = guarded::read_through_link(path, LIMIT)?;
    Ok(parse(&bytes).map_err(BadFile::at(path))?)
}

fn parse(bytes: &[u8]) -> Result<Vec<Variable>, YamlError> {
    let document = Document::parse(bytes)?;
    let Some(root) = document.as_ref().and_then(Document::root).filter(|root| !root.is_null()) else {
        return Ok(Vec::new());
    };
    let variable = |(name, value): (Value<'_>, Value<'_>)| {
        let text = name.text()?;
        if text.is_empty() || text.contains(['=', '\0']) {
            return Err(YamlError {
                line: name.line(),
                why: format!("{text:?} cannot be the name of a variable"),
            });
        }
        let value_text = value.text()?;
        if value_text.contains('\0') {
            return Err(YamlError { line: value.line(), why: "a value cannot contain a NUL".to_owned() });
        }
        Ok(Variable::new(&text, value_text))
    };
    root.entries()?.into_iter().map(variable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_yaml_are_read() {
        let wanted = [Variable::new("A", "1"), Variable::new("B", "x y"), Variable::new("C", "")];
        assert_eq!(parse(br#"{"A": 1, "B": "x y", "C": null}"#).unwrap(), wanted);
        assert_eq!(parse(b"A: 1\nB: x y\nC:\n").unwrap(), wanted);
        assert_eq!(parse(b"").unwrap(), []);
    }

    #[test]
    fn what_is_no_map_of_texts_is_refused_with_its_line() {
        for (text, line) in
            [("- a", 1), ("A: [1]", 1), ("A: b\nB: {c: d}", 2), ("A: 1\n\"B=C\": 2", 2), ("{", 1)]
        {
            assert_eq!(parse(text.as_bytes()).unwrap_err().line, line, "{text}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(dir.path()), Err(EnvFileError::Unreadable(_))));
        assert!(matches!(read(&dir.path().join("none")), Err(EnvFileError::Unreadable(_))));
    }
}
