//! Reads the files of Amazon's tools: `~/.aws/credentials` and `~/.aws/config`.
//!
//! Limits: keys of a profile count, and its region and endpoint. A profile that takes its keys from elsewhere (`role_arn`,
//! `credential_process`, SSO) is refused with the command that prints them, because guessing other credentials would be
//! worse.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use configparser::ini::Ini;

use super::{AwsFiles, Secret};
use crate::sys::guarded::{self, GuardedError};

/// The largest file that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// What a profile says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Profile {
    /// The access key, and the secret.
    pub keys: Option<(Secret, Secret)>,
    pub session_token: Option<Secret>,
    pub region: Option<String>,
    pub endpoint: Option<String>,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AwsError {
    #[error(transparent)]
    Unreadable(#[from] GuardedError),
    /// The text of the parser may quote a line of the file, so it is left out.
    #[error("{path}: not a file of profiles")]
    Malformed { path: PathBuf },
    #[error("AWS_PROFILE={0}: neither {1} nor {2} has this profile")]
    NoProfile(String, String, String),
    #[error("profile {profile}: {key} is not supported")]
    Unsupported { profile: String, key: &'static str },
}

type Sections = HashMap<String, HashMap<String, Option<String>>>;

/// The profile that is chosen. An empty one if there are no files.
///
/// # Errors
/// When a file cannot be read, the chosen profile is nowhere, or its keys are elsewhere.
pub fn profile(files: &AwsFiles) -> Result<Profile, AwsError> {
    let credentials = files.credentials.as_deref().map(sections).transpose()?.unwrap_or_default();
    let config = files.config.as_deref().map(sections).transpose()?.unwrap_or_default();
    let name = files.profile.as_deref().unwrap_or("default");
    // In `config`, the names of all sections but the default one begin with `profile `.
    let found = [credentials.get(name), config.get(&format!("profile {name}")), {
        Some(name).filter(|name| *name == "default").and_then(|name| config.get(name))
    }];
    if files.profile.is_some() && found.iter().all(Option::is_none) {
        let shown =
            |path: &Option<PathBuf>| path.as_ref().map_or("~/.aws".into(), |path| path.display().to_string());
        return Err(AwsError::NoProfile(name.into(), shown(&files.credentials), shown(&files.config)));
    }
    let value = |key: &str| {
        found.iter().flatten().find_map(|section| section.get(key)?.clone().filter(|value| !value.is_empty()))
    };
    let keys = value("aws_access_key_id").zip(value("aws_secret_access_key"));
    if keys.is_none() {
        let elsewhere = ["role_arn", "credential_process", "sso_session", "sso_start_url"];
        if let Some(key) = elsewhere.into_iter().find(|key| value(key).is_some()) {
            return Err(AwsError::Unsupported { profile: name.to_owned(), key });
        }
    }
    Ok(Profile {
        keys: keys.map(|(id, secret)| (Secret(id), Secret(secret))),
        session_token: value("aws_session_token").map(Secret),
        region: value("region"),
        endpoint: value("endpoint_url"),
    })
}

/// The sections of a file. None if there is no file.
fn sections(path: &Path) -> Result<Sections, AwsError> {
    let bytes = match guarded::read_through_link(path, LIMIT) {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => return Ok(Sections::new()),
        Err(error) => return Err(error.into()),
    };
    let malformed = || AwsError::Malformed { path: path.to_owned() };
    let text = String::from_utf8(bytes).map_err(|_| malformed())?;
    let mut how = Ini::new_cs().defaults();
    // A secret may contain any character.
    how.enable_inline_comments = false;
    how.delimiters = vec!['='];
    how.multiline = true;
    let mut ini = Ini::new_from_defaults(how);
    ini.read(text).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path, credentials: &str, config: &str, profile: Option<&str>) -> AwsFiles {
        std::fs::write(dir.join("credentials"), credentials).unwrap();
        std::fs::write(dir.join("config"), config).unwrap();
        AwsFiles {
            credentials: Some(dir.join("credentials")),
            config: Some(dir.join("config")),
            profile: profile.map(str::to_owned),
        }
    }

    const CREDENTIALS: &str = "# mine\n[default]\naws_access_key_id = AKIA1\naws_secret_access_key=a/b+c;d#e\n\n\
         [work]\naws_access_key_id=AKIA2\naws_secret_access_key=two\naws_session_token=three==\n";
    const CONFIG: &str = "[default]\nregion = eu-north-1\n[profile work]\nregion=garage\n\
         endpoint_url = http://127.0.0.1:3900\ns3 =\n  max_concurrent_requests = 20\n\
         [profile role]\nrole_arn = arn:aws:iam::1:role/x\n";

    #[test]
    fn profiles_of_both_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let found = profile(&files(dir.path(), CREDENTIALS, CONFIG, None)).unwrap();
        let keys = |id: &str, secret: &str| Some((Secret(id.into()), Secret(secret.into())));
        assert_eq!(found.keys, keys("AKIA1", "a/b+c;d#e"));
        assert_eq!((found.region.as_deref(), found.endpoint), (Some("eu-north-1"), None));
        let found = profile(&files(dir.path(), CREDENTIALS, CONFIG, Some("work"))).unwrap();
        assert_eq!(found.keys, keys("AKIA2", "two"));
        assert_eq!(found.session_token, Some(Secret("three==".into())));
        assert_eq!(found.endpoint.as_deref(), Some("http://127.0.0.1:3900"));
    }

    #[test]
    fn what_cannot_be_used_is_said_without_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let error = |profile_name, credentials| {
            profile(&files(dir.path(), credentials, CONFIG, profile_name)).unwrap_err().to_string()
        };
        assert!(error(Some("role"), "").contains("role_arn is not supported"));
        assert!(error(Some("none"), "").starts_with("AWS_PROFILE=none"));
        let bad = error(None, "[default\naws_secret_access_key=s3cr3t");
        assert!(bad.contains("not a file of profiles") && !bad.contains("s3cr3t"), "{bad}");
        let none = AwsFiles { credentials: Some(dir.path().join("no")), ..AwsFiles::default() };
        assert_eq!(profile(&none).unwrap(), Profile::default());
    }
}
