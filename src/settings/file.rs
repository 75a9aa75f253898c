//! `settings.yaml` in rcc's home: the section `holotree`.
//!
//! rcc reads the file with go-yaml, a port of libyaml, and stops when it is broken; so it is parsed here by another port
//! of libyaml, and a broken file is an error too. Other sections are rcc's own and are not looked at. Of several
//! documents in the file only the first counts, as in rcc.

use std::path::Path;

use libyaml_safer::{Document, Node, NodeData, Parser, ScalarStyle};

use super::{RestoreStrategy, SetBy, Setting, SettingsError, restore_strategy};
use crate::sys::errno_of;
use crate::sys::guarded::{self, GuardedError, Problem};

/// The largest file, in bytes: the parser needs quadratic time for nested brackets, seconds for so many. rcc's own
/// template has 3,000 bytes.
const LIMIT: u64 = 64 << 10;

/// The values that the file sets.
#[derive(Default)]
pub(super) struct Values {
    pub(super) strategy: Option<Setting<RestoreStrategy>>,
    pub(super) hardlink_excludes: Option<Setting<Vec<String>>>,
}

/// Reads the file; one that does not exist sets nothing.
pub(super) fn read(path: &Path) -> Result<Values, SettingsError> {
    // The file may be a link, but what it leads to must be a regular file.
    let read = path
        .canonicalize()
        .map_err(|error| GuardedError { path: path.to_owned(), problem: Problem::Os(errno_of(&error)) });
    match read.and_then(|real| guarded::read(&real, LIMIT)) {
        Ok(bytes) => parse(path, &bytes),
        Err(error) if error.is_not_found() => Ok(Values::default()),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Values, SettingsError> {
    let mut parser = Parser::new();
    parser.set_input(bytes);
    let document = Document::load(&mut parser).map_err(|error| SettingsError::File {
        path: path.to_owned(),
        line: error.problem_mark().map_or_else(|| first_bad_line(bytes), |mark| mark.line + 1),
        why: error.problem().to_owned(),
    })?;
    let yaml = Yaml { path, nodes: &document.nodes };
    let Some(section) = yaml.nodes.first().map(|root| yaml.entry(root, "holotree")).transpose()?.flatten()
    else {
        return Ok(Values::default());
    };
    let strategy = match yaml.entry(section, "restoration-strategy")? {
        Some(node) => {
            let named = restore_strategy(yaml.text(node)?).map_err(|why| yaml.error(node, &why))?;
            Some(yaml.setting(node, named))
        }
        None => None,
    };
    let hardlink_excludes = match yaml.entry(section, "hardlink-excludes")? {
        Some(node) => Some(yaml.setting(node, yaml.list(node)?)),
        None => None,
    };
    Ok(Values { strategy, hardlink_excludes })
}

/// The line of the first character that no YAML file may hold; the parser tells its place only in words.
fn first_bad_line(bytes: &[u8]) -> u64 {
    let is_bad = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{85}') || c == '\u{fffd}';
    let text = String::from_utf8_lossy(bytes);
    let lines = text.split(is_bad).next().unwrap_or_default().matches('\n').count();
    lines as u64 + 1
}

/// A parsed document.
struct Yaml<'a> {
    path: &'a Path,
    nodes: &'a [Node],
}

impl<'a> Yaml<'a> {
    /// The value of a key in a mapping. None when the mapping or the value is null, or there is no such key.
    fn entry(&self, mapping: &Node, key: &str) -> Result<Option<&'a Node>, SettingsError> {
        let pairs = match &mapping.data {
            NodeData::Mapping { pairs, .. } => pairs,
            _ if is_null(mapping) => return Ok(None),
            _ => return Err(self.error(mapping, "expected a mapping")),
        };
        let mut found = None;
        for pair in pairs {
            let is_it = self
                .node(pair.key)
                .is_some_and(|node| matches!(&node.data, NodeData::Scalar { value, .. } if value == key));
            if is_it && found.replace(pair.value).is_some() {
                return Err(self.error(mapping, &format!("{key} is given twice")));
            }
        }
        Ok(found.and_then(|value| self.node(value)).filter(|value| !is_null(value)))
    }

    fn node(&self, index: i32) -> Option<&'a Node> {
        // The parser counts nodes from 1.
        self.nodes.get(usize::try_from(index).ok()?.checked_sub(1)?)
    }

    fn text(&self, node: &'a Node) -> Result<&'a str, SettingsError> {
        match &node.data {
            NodeData::Scalar { value, .. } => Ok(value),
            _ => Err(self.error(node, "expected a text")),
        }
    }

    fn list(&self, node: &Node) -> Result<Vec<String>, SettingsError> {
        let NodeData::Sequence { items, .. } = &node.data else {
            return Err(self.error(node, "expected a list"));
        };
        let items = items.iter().filter_map(|item| self.node(*item));
        items.map(|item| self.text(item).map(str::to_owned)).collect()
    }

    fn setting<T>(&self, node: &Node, value: T) -> Setting<T> {
        Setting { value, source: SetBy::File { path: self.path.to_owned(), line: node.start_mark.line + 1 } }
    }

    fn error(&self, node: &Node, why: &str) -> SettingsError {
        let why = match &node.data {
            NodeData::Scalar { value, .. } => format!("{value}: {why}"),
            _ => why.to_owned(),
        };
        SettingsError::File { path: self.path.to_owned(), line: node.start_mark.line + 1, why }
    }
}

/// Whether a node is YAML's null, as go-yaml resolves it.
fn is_null(node: &Node) -> bool {
    matches!(&node.data, NodeData::Scalar { value, style: ScalarStyle::Plain }
        if matches!(value.as_str(), "" | "~" | "null" | "Null" | "NULL"))
}
