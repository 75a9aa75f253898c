//! A YAML document as rcc reads it: YAML 1.1 by a port of libyaml, with the rules of Go's `yaml.v2` on top.
//!
//! What a plain `3.10`, `yes` or `2024-01-01` means decides the hash of an environment. A parser of YAML 1.2 would decide
//! otherwise, so one parser reads all YAML files of holofs. Only the first document of a file is read, as in rcc.
//!
//! The files are hostile input. The caller limits their size. Here the nesting of values is limited, an alias is stored as
//! the position of its node, and there is a limit to what may be read from one document, since aliases and merge keys
//! (`<<`) can repeat a part of it many times.
//!
//! Invariant: the nodes form a tree with shared branches and no circle.

mod resolve;

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use libyaml_safer::{EventData, Parser, ScalarStyle};

pub use resolve::{Meaning, meaning};

/// The deepest nesting of values.
const MAX_DEPTH: usize = 100;

/// The most bytes and entries that are read from one document, with repetitions.
const MAX_READ: usize = 16 << 20;

/// Why a document cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct YamlError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub why: String,
}

/// A file whose YAML is not what it should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}:{}: {}", path.display(), problem.line, problem.why)]
pub struct BadFile {
    /// The file.
    pub path: PathBuf,
    /// The line, and what is wrong there.
    pub problem: YamlError,
}

impl BadFile {
    /// Turns an error in a document into one in a file.
    pub fn at(path: &Path) -> impl Fn(YamlError) -> Self {
        let path = path.to_owned();
        move |problem| Self { path: path.clone(), problem }
    }
}

impl YamlError {
    fn new(line: usize, why: impl Into<String>) -> Self {
        Self { line, why: why.into() }
    }
}

/// A parsed document.
#[derive(Debug)]
pub struct Document {
    nodes: Vec<Node>,
    /// Bytes and entries that may still be read.
    budget: Cell<usize>,
}

#[derive(Debug)]
struct Node {
    /// Counted from 1.
    line: usize,
    tag: Option<String>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Scalar {
        text: String,
        /// Whether the meaning of the text depends on what it looks like.
        is_plain: bool,
    },
    /// Positions in the list of nodes.
    Sequence(Vec<usize>),
    /// Positions in the list of nodes: key, value, key, value.
    Mapping(Vec<usize>),
}

impl Document {
    /// Parses the first document of a file. None if the file has no document.
    ///
    /// # Errors
    /// When the text is not UTF-8 or not YAML, and when its values are nested too deep.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, YamlError> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let before = bytes.iter().take(error.valid_up_to());
            YamlError::new(before.filter(|byte| **byte == b'\n').count() + 1, "it is not UTF-8 text")
        })?;
        let nodes = parsed(text)?;
        Ok((!nodes.is_empty()).then_some(Self { nodes, budget: Cell::new(MAX_READ) }))
    }

    /// The value of the whole document.
    #[must_use]
    pub fn root(&self) -> Option<Value<'_>> {
        self.value(0)
    }

    fn value(&self, at: usize) -> Option<Value<'_>> {
        Some(Value { document: self, node: self.nodes.get(at)? })
    }
}

/// The nodes of the first document, the root first.
///
/// libyaml-safer 0.3 panics when the file ends inside of a block scalar, or in a quoted one just after a backslash. So a
/// text without a newline at its end gets one, and it is taken away from a block scalar that it ended. The parser is a port
/// from C that has further assertions; a failed one must not end the program.
fn parsed(text: &str) -> Result<Vec<Node>, YamlError> {
    let last_line = text.rsplit('\n').next().unwrap_or_default();
    let text = if last_line.bytes().all(|byte| byte == b' ') { text.trim_end_matches(' ') } else { text };
    let is_open = !text.is_empty() && !text.ends_with(['\n', '\r']);
    let text = if is_open { Cow::Owned(format!("{text}\n")) } else { Cow::Borrowed(text) };
    let failed = |_| Err(YamlError::new(1, "the YAML parser failed on this text"));
    // What is missing at the end of the file is reported in its last line.
    let last = text.trim_end().lines().count().max(1);
    let found = catch_unwind(|| nodes(&text, is_open)).unwrap_or_else(failed);
    found.map_err(|error| YamlError { line: error.line.min(last), ..error })
}

fn nodes(text: &str, is_open: bool) -> Result<Vec<Node>, YamlError> {
    let lines = text.bytes().filter(|byte| *byte == b'\n').count() as u64;
    let mut input = text.as_bytes();
    let mut parser = Parser::new();
    parser.set_input_string(&mut input);
    let mut nodes: Vec<Node> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let mut anchors: HashMap<String, usize> = HashMap::new();
    loop {
        let event = parser.parse().map_err(|error| {
            let mark = error.problem_mark().or_else(|| error.context_mark());
            YamlError::new(mark.map_or(1, |mark| line_of(mark.line)), error.problem())
        })?;
        let line = line_of(event.start_mark.line);
        let (anchor, tag, content) = match event.data {
            EventData::Scalar { anchor, tag, mut value, plain_implicit, style, .. } => {
                let is_block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
                if is_open && is_block && event.end_mark.line == lines && value.ends_with('\n') {
                    value.pop();
                }
                (anchor, tag, Content::Scalar { text: value, is_plain: plain_implicit })
            }
            EventData::SequenceStart { anchor, tag, .. } => (anchor, tag, Content::Sequence(Vec::new())),
            EventData::MappingStart { anchor, tag, .. } => (anchor, tag, Content::Mapping(Vec::new())),
            EventData::SequenceEnd | EventData::MappingEnd => {
                open.pop();
                continue;
            }
            EventData::Alias { anchor } => {
                let Some(node) = anchors.get(&anchor).copied() else {
                    return Err(YamlError::new(line, format!("unknown anchor '{anchor}' referenced")));
                };
                if open.contains(&node) {
                    return Err(YamlError::new(line, format!("anchor '{anchor}' value contains itself")));
                }
                add(&mut nodes, &open, node);
                continue;
            }
            EventData::DocumentEnd { .. } | EventData::StreamEnd => return Ok(nodes),
            EventData::StreamStart { .. } | EventData::DocumentStart { .. } => continue,
        };
        let node = nodes.len();
        add(&mut nodes, &open, node);
        if !matches!(content, Content::Scalar { .. }) {
            open.push(node);
        }
        if open.len() > MAX_DEPTH {
            return Err(YamlError::new(line, "too many nested values"));
        }
        if let Some(anchor) = anchor {
            anchors.insert(anchor, node);
        }
        nodes.push(Node { line, tag, content });
    }
}

/// Adds a node to the innermost open sequence or mapping.
fn add(nodes: &mut [Node], open: &[usize], node: usize) {
    let parent = open.last().and_then(|parent| nodes.get_mut(*parent));
    if let Some(Content::Sequence(parts) | Content::Mapping(parts)) = parent.map(|parent| &mut parent.content)
    {
        parts.push(node);
    }
}

/// The number of a line that is counted from 0.
fn line_of(line: u64) -> usize {
    usize::try_from(line).unwrap_or(usize::MAX).saturating_add(1)
}

/// A value in a document.
#[derive(Clone, Copy, Debug)]
pub struct Value<'d> {
    document: &'d Document,
    node: &'d Node,
}

impl<'d> Value<'d> {
    /// The line on which it begins, counted from 1.
    #[must_use]
    pub fn line(self) -> usize {
        self.node.line
    }

    /// An error at this value.
    #[must_use]
    pub fn error(self, why: impl Into<String>) -> YamlError {
        let why = why.into();
        let why = match &self.node.content {
            Content::Scalar { text, .. } if !text.is_empty() => {
                let text: String = text.chars().take(40).collect();
                format!("{text}: {why}")
            }
            _ => why,
        };
        YamlError::new(self.node.line, why)
    }

    /// The meaning of a scalar, and its text. None for a sequence and a mapping.
    ///
    /// # Errors
    /// When the text does not fit its tag.
    pub fn scalar(self) -> Result<Option<(Meaning, &'d str)>, YamlError> {
        let Content::Scalar { text, is_plain } = &self.node.content else { return Ok(None) };
        self.spend(1 + text.len())?;
        let meaning = resolve::tagged(self.node.tag.as_deref(), text, *is_plain);
        Ok(Some((meaning.map_err(|why| self.error(why))?, text)))
    }

    /// Whether this is YAML's null.
    #[must_use]
    pub fn is_null(self) -> bool {
        matches!(self.scalar(), Ok(Some((Meaning::Null, _))))
    }

    /// The value as the text of a field. Null is an empty text, and a number or a boolean is the text that was written.
    ///
    /// # Errors
    /// When it is a sequence or a mapping.
    pub fn text(self) -> Result<String, YamlError> {
        match self.scalar()? {
            Some((Meaning::Null, _)) => Ok(String::new()),
            Some((Meaning::Binary(text), _)) => Ok(text),
            Some((_, text)) => Ok(text.to_owned()),
            None => Err(self.error("expected a text")),
        }
    }

    /// The value as an entry of a list that can hold anything: its text, if it means a text. None for numbers, booleans,
    /// null, sequences and mappings.
    ///
    /// # Errors
    /// As [`Value::scalar`].
    pub fn as_string(self) -> Result<Option<String>, YamlError> {
        Ok(match self.scalar()? {
            Some((Meaning::Text | Meaning::Timestamp | Meaning::Merge, text)) => Some(text.to_owned()),
            Some((Meaning::Binary(text), _)) => Some(text),
            _ => None,
        })
    }

    /// The values of a sequence. None for anything else.
    #[must_use]
    pub fn items(self) -> Option<impl Iterator<Item = Value<'d>>> {
        let Content::Sequence(parts) = &self.node.content else { return None };
        Some(parts.iter().filter_map(move |part| self.document.value(*part)))
    }

    /// The texts of a list of texts. Null is an empty list.
    ///
    /// # Errors
    /// When it is not a list, or an entry is not a text.
    pub fn texts(self) -> Result<Vec<String>, YamlError> {
        match self.items() {
            Some(items) => items.map(Value::text).collect(),
            None if self.is_null() => Ok(Vec::new()),
            None => Err(self.error("expected a list")),
        }
    }

    /// Whether this is a mapping.
    #[must_use]
    pub fn is_mapping(self) -> bool {
        matches!(self.node.content, Content::Mapping(_))
    }

    /// The keys and values of a mapping, in order, with its merge keys replaced by what they name. A later entry of a key
    /// replaces an earlier one. Null has no entries.
    ///
    /// # Errors
    /// When it is not a mapping, or a merge key does not name mappings.
    pub fn entries(self) -> Result<Vec<(Value<'d>, Value<'d>)>, YamlError> {
        let mut entries = Vec::new();
        if !self.is_null() {
            self.add_entries(&mut entries, MAX_DEPTH)?;
        }
        Ok(entries)
    }

    /// Checks what a value of any kind must fulfil: keys are scalars, and scalars fit their tags.
    ///
    /// # Errors
    /// When it does not.
    pub fn check(self) -> Result<(), YamlError> {
        self.check_below(MAX_DEPTH)
    }

    fn check_below(self, depth: usize) -> Result<(), YamlError> {
        let depth = self.deeper(depth)?;
        for item in self.items().into_iter().flatten() {
            item.check_below(depth)?;
        }
        if self.is_mapping() {
            for (key, value) in self.entries()? {
                if key.scalar()?.is_none() {
                    return Err(key.error("a key must be a text"));
                }
                value.check_below(depth)?;
            }
        }
        self.scalar().map(drop)
    }

    /// Aliases can nest values deeper than the file does.
    fn deeper(self, depth: usize) -> Result<usize, YamlError> {
        self.spend(1)?;
        depth.checked_sub(1).ok_or_else(|| self.error("too many nested values"))
    }

    fn spend(self, cost: usize) -> Result<(), YamlError> {
        let budget = &self.document.budget;
        let left = budget.get().checked_sub(cost).ok_or_else(|| self.error("aliases repeat too much"))?;
        budget.set(left);
        Ok(())
    }

    fn add_entries(self, entries: &mut Vec<(Value<'d>, Value<'d>)>, depth: usize) -> Result<(), YamlError> {
        let depth = self.deeper(depth)?;
        let Content::Mapping(parts) = &self.node.content else {
            return Err(self.error("expected a mapping"));
        };
        for pair in parts.chunks(2) {
            self.spend(1)?;
            let [key, value] = pair else { continue };
            let (Some(key), Some(value)) = (self.document.value(*key), self.document.value(*value)) else {
                continue;
            };
            if !key.is_merge() {
                entries.push((key, value));
                continue;
            }
            match &value.node.content {
                Content::Mapping(_) => value.add_entries(entries, depth)?,
                // The mappings that are named first are the ones that count.
                Content::Sequence(parts) => {
                    for part in parts.iter().rev().filter_map(|part| self.document.value(*part)) {
                        self.spend(1)?;
                        part.add_entries(entries, depth)?;
                    }
                }
                Content::Scalar { .. } => return Err(value.error("expected a mapping to merge")),
            }
        }
        Ok(())
    }

    fn is_merge(self) -> bool {
        let Content::Scalar { text, is_plain } = &self.node.content else { return false };
        text == "<<" && (*is_plain || self.node.tag.as_deref() == Some(resolve::MERGE_TAG))
    }
}

#[cfg(test)]
mod tests;
