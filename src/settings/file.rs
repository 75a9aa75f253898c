//! Reads the section `holotree` of `settings.yaml` in rcc's home.
//!
//! rcc refuses to run with a broken file, so a broken file is an error here too. The other sections belong to rcc and are
//! ignored. If the file has several documents, only the first one is used, as in rcc.

use std::collections::HashMap;
use std::path::Path;

use saphyr_parser::{Event, Parser, ScalarStyle};

use super::{RestoreStrategy, SetBy, Setting, SettingsError, restore_strategy};
use crate::sys::errno_of;
use crate::sys::guarded::{self, GuardedError, Problem};

/// The largest file that is read, in bytes. rcc's template has 3,000 bytes.
const LIMIT: u64 = 1 << 20;

/// The deepest nesting of values.
const MAX_DEPTH: usize = 100;

/// The values that the file sets.
#[derive(Debug, Default)]
pub(super) struct Values {
    pub(super) strategy: Option<Setting<RestoreStrategy>>,
    pub(super) hardlink_excludes: Option<Setting<Vec<String>>>,
}

/// Reads the file. A file that does not exist sets nothing.
pub(super) fn read(path: &Path) -> Result<Values, SettingsError> {
    // The file may be a link, but what the link leads to must be a regular file.
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
    let yaml = Yaml { path, nodes: nodes(path, bytes)? };
    let Some(root) = yaml.nodes.first() else { return Ok(Values::default()) };
    let Some(section) = yaml.entry(root, "holotree")? else { return Ok(Values::default()) };
    let strategy = match yaml.entry(section, "restoration-strategy")? {
        Some(node) => {
            let named = restore_strategy(yaml.text(node)?).map_err(|why| yaml.error(node, &why))?;
            Some(yaml.setting(node, named))
        }
        None => None,
    };
    let excludes = yaml.entry(section, "hardlink-excludes")?;
    let hardlink_excludes =
        excludes.map(|node| Ok::<_, SettingsError>(yaml.setting(node, yaml.list(node)?))).transpose()?;
    Ok(Values { strategy, hardlink_excludes })
}

/// A value in the document.
struct Node {
    /// Counted from 1.
    line: usize,
    content: Content,
}

enum Content {
    Scalar {
        text: String,
        is_plain: bool,
    },
    /// Positions in the list of nodes.
    Sequence(Vec<usize>),
    /// Positions in the list of nodes: key, value, key, value.
    Mapping(Vec<usize>),
}

/// The nodes of the first document, the root first. An alias is stored as the position of its node, so aliases do not make
/// the list longer.
fn nodes(path: &Path, bytes: &[u8]) -> Result<Vec<Node>, SettingsError> {
    let bad =
        |line: usize, why: &str| SettingsError::File { path: path.to_owned(), line, why: why.to_owned() };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = bytes.iter().take(error.valid_up_to());
        bad(before.filter(|byte| **byte == b'\n').count() + 1, "it is not UTF-8 text")
    })?;
    let mut nodes: Vec<Node> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let mut anchors = HashMap::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| bad(error.marker().line(), error.info()))?;
        let line = span.start.line();
        let (anchor, content) = match event {
            Event::Scalar(text, style, anchor, _) => {
                (anchor, Content::Scalar { text: text.into_owned(), is_plain: style == ScalarStyle::Plain })
            }
            Event::SequenceStart(anchor, _) => (anchor, Content::Sequence(Vec::new())),
            Event::MappingStart(anchor, _) => (anchor, Content::Mapping(Vec::new())),
            Event::SequenceEnd | Event::MappingEnd => {
                open.pop();
                continue;
            }
            Event::Alias(anchor) => {
                let node = anchors.get(&anchor).ok_or_else(|| bad(line, "unknown alias"))?;
                add(&mut nodes, &open, *node);
                continue;
            }
            Event::DocumentEnd => break,
            _ => continue,
        };
        let node = nodes.len();
        add(&mut nodes, &open, node);
        if !matches!(content, Content::Scalar { .. }) {
            open.push(node);
        }
        if open.len() > MAX_DEPTH {
            return Err(bad(line, "too many nested values"));
        }
        anchors.insert(anchor, node);
        nodes.push(Node { line, content });
    }
    Ok(nodes)
}

/// Adds a node to the innermost open sequence or mapping.
fn add(nodes: &mut [Node], open: &[usize], node: usize) {
    let parent = open.last().and_then(|parent| nodes.get_mut(*parent));
    if let Some(Content::Sequence(parts) | Content::Mapping(parts)) = parent.map(|parent| &mut parent.content)
    {
        parts.push(node);
    }
}

/// A parsed document.
struct Yaml<'a> {
    path: &'a Path,
    nodes: Vec<Node>,
}

impl Yaml<'_> {
    /// The value of a key in a mapping. None when the mapping or the value is null, or there is no such key.
    fn entry(&self, mapping: &Node, key: &str) -> Result<Option<&Node>, SettingsError> {
        let parts = match &mapping.content {
            Content::Mapping(parts) => parts,
            _ if is_null(mapping) => return Ok(None),
            _ => return Err(self.error(mapping, "expected a mapping")),
        };
        let is_key = |node: &Node| matches!(&node.content, Content::Scalar { text, .. } if text == key);
        let mut found = None;
        for pair in parts.chunks(2) {
            let [name, value] = pair else { continue };
            if self.nodes.get(*name).is_some_and(is_key) && found.replace(*value).is_some() {
                return Err(self.error(mapping, &format!("{key} is given twice")));
            }
        }
        Ok(found.and_then(|value| self.nodes.get(value)).filter(|value| !is_null(value)))
    }

    fn text<'n>(&self, node: &'n Node) -> Result<&'n str, SettingsError> {
        match &node.content {
            Content::Scalar { text, .. } => Ok(text),
            _ => Err(self.error(node, "expected a text")),
        }
    }

    fn list(&self, node: &Node) -> Result<Vec<String>, SettingsError> {
        let Content::Sequence(parts) = &node.content else {
            return Err(self.error(node, "expected a list"));
        };
        let parts = parts.iter().filter_map(|part| self.nodes.get(*part));
        parts.map(|part| self.text(part).map(str::to_owned)).collect()
    }

    fn setting<T>(&self, node: &Node, value: T) -> Setting<T> {
        Setting { value, source: SetBy::File { path: self.path.to_owned(), line: node.line } }
    }

    fn error(&self, node: &Node, why: &str) -> SettingsError {
        let why = match &node.content {
            Content::Scalar { text, .. } => format!("{text}: {why}"),
            _ => why.to_owned(),
        };
        SettingsError::File { path: self.path.to_owned(), line: node.line, why }
    }
}

/// Whether a node is YAML's null.
fn is_null(node: &Node) -> bool {
    matches!(&node.content, Content::Scalar { text, is_plain: true }
        if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
}
