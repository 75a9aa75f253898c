//! The content of conda.yaml and package.yaml, and how rcc merges it.

use std::collections::{HashMap, HashSet};

use super::dependency::{Conflict, Dependency};
use super::emit::Emitter;
use crate::yaml::{Meaning, Value, YamlError};

/// The most notes about one list.
const MAX_NOTES: usize = 20;

/// An environment, as one file or several files describe it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Environment {
    name: String,
    prefix: String,
    channels: Vec<String>,
    conda: Vec<Dependency>,
    pip: Vec<Dependency>,
    post_install: Vec<String>,
    /// What rcc leaves out without a word.
    pub(super) notes: Vec<String>,
}

impl Environment {
    /// The content of a conda.yaml. `local_channel` is the channel that rcc adds on this machine.
    pub(super) fn from_conda(
        root: Option<Value<'_>>,
        local_channel: Option<&str>,
    ) -> Result<Self, YamlError> {
        let mut environment = Self::default();
        let (mut channels, mut post_install) = (Vec::new(), Vec::new());
        let (mut conda, mut pip) = (Vec::new(), Vec::new());
        for (key, value) in root.map(Value::entries).transpose()?.unwrap_or_default() {
            match key.text()?.as_str() {
                "name" => environment.name = value.text()?,
                "prefix" => environment.prefix = value.text()?,
                "channels" => channels = value.texts()?,
                "rccPostInstall" => post_install = value.texts()?,
                "dependencies" => {
                    environment.notes.clear();
                    (conda, pip) = dependencies(value, &mut environment.notes)?;
                }
                _ => {}
            }
        }
        environment.channels = unique(local_channel.map(str::to_owned).into_iter().chain(channels));
        environment.post_install = unique(post_install);
        environment.add_all(conda, pip);
        environment.promote_all();
        Ok(environment)
    }

    /// The content of a package.yaml.
    pub(super) fn from_package(root: Option<Value<'_>>, devdeps: bool) -> Result<Self, YamlError> {
        let mut environment = Self { channels: vec!["conda-forge".to_owned()], ..Self::default() };
        let (mut main, mut dev) = Default::default();
        for (key, value) in root.map(Value::entries).transpose()?.unwrap_or_default() {
            match key.text()?.as_str() {
                "dependencies" => main = package_dependencies(value, &mut environment.notes)?,
                "dev-dependencies" => dev = package_dependencies(value, &mut environment.notes)?,
                "post-install" => environment.post_install = unique(value.texts()?),
                _ => {}
            }
        }
        environment.add_all(main.0, main.1);
        if devdeps {
            environment.add_all(dev.0, dev.1);
        }
        environment.promote_all();
        Ok(environment)
    }

    /// Merges two environments.
    pub(super) fn merge(self, right: Self) -> Result<Self, Conflict> {
        let name = if self.name.is_empty() && right.name.is_empty() {
            String::new()
        } else {
            format!("{}+{}", self.name, right.name)
        };
        let mut merged = Self {
            name,
            channels: unique(self.channels.into_iter().chain(right.channels)),
            post_install: unique(self.post_install.into_iter().chain(right.post_install)),
            notes: self.notes.into_iter().chain(right.notes).collect(),
            ..Self::default()
        };
        push(&mut merged.conda, self.conda.into_iter().chain(right.conda))?;
        push(&mut merged.pip, self.pip.into_iter().chain(right.pip))?;
        merged.promote()?;
        Ok(merged)
    }

    /// Adds dependencies. On a conflict the rest of a list is left out, as in rcc.
    fn add_all(&mut self, conda: Vec<Dependency>, pip: Vec<Dependency>) {
        for (list, more) in [(&mut self.conda, conda), (&mut self.pip, pip)] {
            if let Err(Conflict(a, b)) = push(list, more) {
                self.notes.push(format!("rcc leaves out {b:?} and the rest of its list, because of {a:?}"));
            }
        }
    }

    fn promote_all(&mut self) {
        if let Err(Conflict(a, b)) = self.promote() {
            self.notes.push(format!("rcc keeps both {a:?} of conda and {b:?} of pip"));
        }
    }

    /// Moves the dependencies of pip that conda has too into conda's list. On a conflict they stay in both.
    fn promote(&mut self) -> Result<(), Conflict> {
        let places = places(&self.conda);
        let mut promoted = HashSet::new();
        for (at, pip) in self.pip.iter().enumerate() {
            let place = pip.key().and_then(|key| places.get(key));
            if let Some(conda) = place.and_then(|place| self.conda.get_mut(*place)) {
                *conda = conda.choose(pip)?;
                promoted.insert(at);
            }
        }
        let mut at = 0;
        self.pip.retain(|_| {
            at += 1;
            !promoted.contains(&(at - 1))
        });
        Ok(())
    }

    /// rcc's text of the environment.
    pub(super) fn text(&self) -> String {
        self.written(true, true)
    }

    /// rcc's texts of its layers: conda only, with pip, with the commands that run after the installation.
    pub(super) fn layers(&self) -> [String; 3] {
        [self.written(false, false), self.written(true, false), self.written(true, true)]
    }

    fn written(&self, has_pip: bool, has_post_install: bool) -> String {
        fn originals(list: &[Dependency]) -> impl Iterator<Item = &str> {
            list.iter().map(|dependency| dependency.original.as_str())
        }
        let has_pip = has_pip && !self.pip.is_empty();
        let mut out = Emitter::new();
        if !self.name.is_empty() {
            out.text("name", &self.name);
        }
        out.list("channels", self.channels.iter().map(String::as_str), false);
        out.list("dependencies", originals(&self.conda), has_pip);
        if has_pip {
            out.nested_list("pip", originals(&self.pip));
        }
        if !self.prefix.is_empty() {
            out.text("prefix", &self.prefix);
        }
        if has_post_install && !self.post_install.is_empty() {
            out.list("rccPostInstall", self.post_install.iter().map(String::as_str), false);
        }
        out.finish()
    }

    /// What the environment is made from, one entry for each line that a user would recognize.
    pub(super) fn parts(&self) -> Vec<String> {
        let channels = self.channels.iter().map(|channel| format!("channel {channel}"));
        let conda = self.conda.iter().map(|dependency| dependency.original.clone());
        let pip = self.pip.iter().map(|dependency| format!("pip {}", dependency.original));
        let post = self.post_install.iter().map(|command| format!("rccPostInstall {command}"));
        channels.chain(conda).chain(pip).chain(post).collect()
    }
}

/// The positions of the dependencies of a list by name.
fn places(list: &[Dependency]) -> HashMap<String, usize> {
    let keys =
        list.iter().enumerate().filter_map(|(at, dependency)| Some((dependency.key()?.to_owned(), at)));
    keys.collect()
}

/// Adds dependencies to a list. Of two with the same name the one that wants a version counts, in the place of the first.
fn push(list: &mut Vec<Dependency>, more: impl IntoIterator<Item = Dependency>) -> Result<(), Conflict> {
    let mut places = places(list);
    for dependency in more {
        let Some(key) = dependency.key() else {
            list.push(dependency);
            continue;
        };
        match places.get(key).and_then(|place| list.get_mut(*place)) {
            Some(known) => *known = known.choose(&dependency)?,
            None => {
                places.insert(key.to_owned(), list.len());
                list.push(dependency);
            }
        }
    }
    Ok(())
}

/// The dependencies of a conda.yaml: conda's, and pip's.
fn dependencies(
    list: Value<'_>,
    notes: &mut Vec<String>,
) -> Result<(Vec<Dependency>, Vec<Dependency>), YamlError> {
    let (mut conda, mut pip) = (Vec::new(), Vec::new());
    let Some(items) = list.items() else {
        return if list.is_null() { Ok((conda, pip)) } else { Err(list.error("expected a list")) };
    };
    list.check()?;
    for item in items {
        if !item.is_mapping() {
            conda.extend(dependency(item, notes)?);
        } else if let Some(block) = pip_block(item)? {
            for item in block.items().into_iter().flatten() {
                pip.extend(dependency(item, notes)?);
            }
        }
    }
    Ok((conda, pip))
}

/// The value of the key `pip`, which is the last one of this name.
fn pip_block(item: Value<'_>) -> Result<Option<Value<'_>>, YamlError> {
    let mut block = None;
    for (key, value) in item.entries()? {
        if key.as_string()?.as_deref() == Some("pip") {
            block = Some(value);
        }
    }
    Ok(block)
}

/// The dependency that an entry of a list is. None for an entry that rcc leaves out.
fn dependency(item: Value<'_>, notes: &mut Vec<String>) -> Result<Option<Dependency>, YamlError> {
    let found = item.as_string()?.as_deref().and_then(Dependency::parse);
    if found.is_none() && notes.len() < MAX_NOTES {
        let why = if matches!(item.scalar()?, Some((Meaning::Text | Meaning::Timestamp, _))) {
            "it is not a dependency"
        } else {
            "it is not a text; put it into quotes"
        };
        notes.push(format!("rcc leaves out the dependency in {}", item.error(why)));
    }
    Ok(found)
}

/// The dependencies of a package.yaml: conda's, and pip's.
fn package_dependencies(
    value: Value<'_>,
    notes: &mut Vec<String>,
) -> Result<(Vec<Dependency>, Vec<Dependency>), YamlError> {
    let (mut conda, mut pip) = (Vec::new(), Vec::new());
    for (key, value) in value.entries()? {
        match key.text()?.as_str() {
            "conda-forge" => conda = parsed(value, notes)?,
            "pypi" => {
                pip = parsed(value, notes)?;
                for dependency in pip.iter_mut().filter(|dependency| dependency.qualifier == "=") {
                    dependency.original = format!("{}=={}", dependency.name, dependency.versions);
                    "==".clone_into(&mut dependency.qualifier);
                }
            }
            _ => {}
        }
    }
    Ok((conda, pip))
}

fn parsed(list: Value<'_>, notes: &mut Vec<String>) -> Result<Vec<Dependency>, YamlError> {
    let mut found = Vec::new();
    for text in list.texts()? {
        match Dependency::parse(&text) {
            Some(dependency) => found.push(dependency),
            None if notes.len() < MAX_NOTES => {
                notes.push(format!("rcc leaves out {text:?} of the list in line {}", list.line()));
            }
            None => {}
        }
    }
    Ok(found)
}

/// The texts without those that were there before.
fn unique(texts: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut seen = HashSet::new();
    texts.into_iter().filter(|text| seen.insert(text.clone())).collect()
}
