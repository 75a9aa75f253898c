//! One dependency of an environment, and rcc's rule for two dependencies of the same name.

/// A dependency: a package, and the version that is wanted of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Dependency {
    /// The text, without the blanks around it.
    pub(super) original: String,
    pub(super) name: String,
    /// `=`, `==`, `>=` and the like; often empty.
    pub(super) qualifier: String,
    /// The text behind the qualifier.
    pub(super) versions: String,
}

/// Two dependencies of the same name that want different versions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Conflict(pub(super) String, pub(super) String);

impl Dependency {
    /// Parses the text of a dependency. None for a text that rcc leaves out.
    ///
    /// This is rcc's expression `^([^<=~!> ]+)\s*(?:([<=~!>]*)\s*(\S+.*?))?$` on the text without the blanks around it, in
    /// which `\s` is ASCII and `.` is not a newline.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (name, rest) = text.split_at_checked(text.find(is_special).unwrap_or(text.len()))?;
        if name.is_empty() {
            return None;
        }
        let rest = rest.trim_start_matches(is_space);
        let (qualifier, versions) =
            rest.split_at_checked(rest.find(|c| !is_operator(c)).unwrap_or(rest.len()))?;
        let versions = versions.trim_start_matches(is_space);
        let (qualifier, versions) = match (qualifier.len().checked_sub(1), versions) {
            // The version may not be empty, so the last operator is the version.
            (Some(last), "") => rest.split_at_checked(last)?,
            _ => (qualifier, versions),
        };
        let (_, after) = versions.split_at_checked(versions.find(is_space).unwrap_or(versions.len()))?;
        (!after.contains('\n')).then(|| Self {
            original: text.to_owned(),
            name: name.to_owned(),
            qualifier: qualifier.to_owned(),
            versions: versions.to_owned(),
        })
    }

    /// The name under which it competes with others. Options such as `--pre` have none.
    pub(super) fn key(&self) -> Option<&str> {
        Some(self.name.as_str()).filter(|name| !name.starts_with('-'))
    }

    /// The one of two dependencies of the same name that counts: the one that wants a version.
    pub(super) fn choose(&self, other: &Self) -> Result<Self, Conflict> {
        match (self.is_exact(), other.is_exact()) {
            (false, true) => Ok(other.clone()),
            (true, true) if (&self.qualifier, &self.versions) != (&other.qualifier, &other.versions) => {
                Err(Conflict(self.original.clone(), other.original.clone()))
            }
            _ => Ok(self.clone()),
        }
    }

    fn is_exact(&self) -> bool {
        !self.qualifier.is_empty() || !self.versions.is_empty()
    }
}

fn is_operator(c: char) -> bool {
    matches!(c, '<' | '=' | '~' | '!' | '>')
}

fn is_special(c: char) -> bool {
    is_operator(c) || c == ' '
}

fn is_space(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Option<(String, String, String)> {
        Dependency::parse(text).map(|d| (d.name, d.qualifier, d.versions))
    }

    #[test]
    fn parts_of_a_dependency() {
        for (text, name, qualifier, versions) in [
            (" python=3.10.12 ", "python", "=", "3.10.12"),
            ("pip", "pip", "", ""),
            ("a >= 1, <2", "a", ">=", "1, <2"),
            ("a 1", "a", "", "1"),
            ("a==", "a", "=", "="),
            ("a=", "a", "", "="),
            ("a= =", "a", "=", "="),
            ("a==\n1", "a", "==", "1"),
            ("a\n1", "a\n1", "", ""),
            ("--pre", "--pre", "", ""),
            ("x @ https://h/x.whl", "x", "", "@ https://h/x.whl"),
        ] {
            let found = parts(text);
            assert_eq!(found, Some((name.into(), qualifier.into(), versions.into())), "{text:?}");
        }
        for text in ["", "  ", "=1", " <2", "a==1\n2"] {
            assert_eq!(parts(text), None, "{text:?}");
        }
    }
}
