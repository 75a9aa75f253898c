//! What a mount needs in another program, as JSON.
//!
//! It is what was decided when the space was mounted. The command line and settings.yaml are not read again: they may say
//! something else by now. A program ignores fields that it does not know. So a field can be added without a new version if
//! an older program may ignore it, and if it has a default for the JSON of an older program.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Error as IoError, Read, Result as IoResult, Seek, Write};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holofs_mount_helper::vocabulary;
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};

use crate::library::LibraryError;
use crate::library::catalogs::CatalogName;
use crate::library::digest::Hex;
use crate::library::index::Index;
use crate::library::index::cache::{open_by_sum, open_known};
use crate::library::locate::{Access, Location, is_url};
use crate::library::name::Identity;
use crate::session::error::Error;
use crate::session::mount::helper::Device;
use crate::session::mount::pending::PendingMount;
use crate::session::placed;
use crate::session::request::{MountPlan, MountRequest};
use crate::settings::remote::RemoteSettings;
use crate::settings::{
    Flags, IoMode, MountHelper, MountSettings, Network, Prefetch, RestoreStrategy, Setting, Settings,
    Strategy, Verify,
};
use crate::space::home::Env;
use crate::space::path::SpacePath;
use crate::sys::log_file;
use crate::sys::mountinfo::MountEntry;

/// The version of [`Passed`].
const VERSION: u32 = 1;

/// Longer than any that holofs writes.
const MAX_LEN: u64 = 1 << 20;

/// What a mount needs in another program. Its paths, options and settings have the names that they have in
/// [`MountPlan`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::session::mount) struct Passed {
    version: u32,
    identity: String,
    mountpoint: PathBuf,
    own: Option<PathBuf>,
    /// A program that ignores this refuses the record of the space, which has the feature.
    #[serde(default)]
    placed: bool,
    label: String,
    controller: String,
    home: Option<OsString>,
    robocorp_home: PathBuf,
    holofs_home: PathBuf,
    cache: PathBuf,
    shared_root: PathBuf,
    library: PathBuf,
    blueprint: String,
    platform: String,
    catalog_sha256: String,
    holds: String,
    read_only: bool,
    ephemeral: bool,
    foreground: bool,
    allow_other: bool,
    auto_unmount: bool,
    require_reflink: bool,
    private_ns: bool,
    options: Vec<String>,
    prefetch: Option<Prefetch>,
    strategy: Strategy,
    pub(in crate::session::mount) io: IoMode,
    verify: Verify,
    pycache: bool,
    cache_size: u64,
    lock_timeout_ms: u64,
    hang_timeout_ms: u64,
    /// An earlier version had no libraries in object stores.
    #[serde(default)]
    remote_timeout_ms: Option<u64>,
    #[serde(default)]
    offline: bool,
    pub(in crate::session::mount) missing_blobs: u32,
    pub(in crate::session::mount) umask: u32,
    pub(in crate::session::mount) mount: Option<MountEntry>,
    /// The descriptor of the device.
    pub(in crate::session::mount) device: RawFd,
    /// The descriptor of the lock of the space.
    pub(in crate::session::mount) lock: RawFd,
    pub(in crate::session::mount) helper: Option<Helper>,
    /// The log file is open.
    pub(in crate::session::mount) logs: bool,
}

/// The mount helper, which goes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::session::mount) struct Helper {
    /// The version of its protocol.
    version: u16,
    pub(in crate::session::mount) program: PathBuf,
    /// The descriptor of the socket.
    pub(in crate::session::mount) socket: RawFd,
}

impl Passed {
    /// What is passed on of a mount that this process has made.
    pub(in crate::session::mount) fn of(pending: &PendingMount<'_>, device: &Device, umask: u32) -> Self {
        let plan = pending.plan;
        let (env, request, settings) = (plan.env.clone(), plan.request.clone(), &plan.settings);
        let space = plan.space.clone();
        Self {
            version: VERSION,
            identity: space.identity.to_string(),
            mountpoint: space.mountpoint,
            own: space.own,
            placed: space.placed,
            label: space.label,
            controller: space.controller,
            home: env.home,
            robocorp_home: env.robocorp_home,
            holofs_home: env.holofs_home,
            cache: env.cache,
            shared_root: env.shared_root,
            library: plan.location.path.clone(),
            blueprint: plan.catalog.blueprint.clone(),
            platform: plan.catalog.platform.clone(),
            catalog_sha256: Hex(&pending.index.catalog_sha256()).to_string(),
            holds: plan.holds.clone(),
            read_only: request.read_only,
            ephemeral: request.ephemeral,
            foreground: request.foreground,
            allow_other: request.allow_other,
            auto_unmount: request.auto_unmount,
            require_reflink: request.require_reflink,
            private_ns: request.private_ns,
            options: request.options,
            prefetch: request.prefetch,
            strategy: settings.strategy.value,
            io: settings.io.value,
            verify: settings.verify.value,
            pycache: settings.pycache.value,
            cache_size: settings.cache_size.value,
            lock_timeout_ms: millis(plan.lock_timeout),
            hang_timeout_ms: millis(settings.hang_timeout.value),
            remote_timeout_ms: Some(millis(settings.remote.timeout.value)),
            offline: settings.remote.offline.value,
            missing_blobs: pending.missing_blobs,
            umask,
            mount: device.mount.clone(),
            device: device.fd.as_raw_fd(),
            lock: pending.claim.state.lock_fd(),
            helper: device.program.clone().zip(device.socket).map(|(program, socket)| Helper {
                version: vocabulary::VERSION,
                program,
                socket,
            }),
            logs: log_file::is_open(),
        }
    }

    /// The descriptors that it names.
    pub(in crate::session::mount) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        [self.device, self.lock].into_iter().chain(self.helper.iter().map(|helper| helper.socket))
    }

    /// Writes it to a file in memory, which stays open as long as this process. Returns the descriptor.
    pub(in crate::session::mount) fn write(&self) -> IoResult<RawFd> {
        let mut file = File::from(rustix::fs::memfd_create("holofs-plan", MemfdFlags::CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(file.into_raw_fd())
    }

    /// Reads what [`Passed::write`] of another program wrote.
    pub(in crate::session::mount) fn read(mut file: &File) -> IoResult<Self> {
        file.rewind()?;
        let mut text = Vec::new();
        file.take(MAX_LEN).read_to_end(&mut text)?;
        // The version first: another one can look different.
        let value: serde_json::Value = serde_json::from_slice(&text)?;
        if value.get("version").and_then(serde_json::Value::as_u64) != Some(VERSION.into()) {
            return Err(IoError::other("the mount has another version"));
        }
        let passed: Self = serde_json::from_value(value)?;
        match &passed.helper {
            Some(helper) if helper.version != vocabulary::VERSION => {
                Err(IoError::other("its mount helper has another version"))
            }
            _ => Ok(passed),
        }
    }

    /// The plan of the mount.
    pub(in crate::session::mount) fn plan(&self) -> Result<MountPlan, Error> {
        let refused = |_| Error::os(&self.mountpoint, "resume")(rustix::io::Errno::INVAL);
        let request = MountRequest {
            read_only: self.read_only,
            ephemeral: self.ephemeral,
            foreground: self.foreground,
            allow_other: self.allow_other,
            auto_unmount: self.auto_unmount,
            require_reflink: self.require_reflink,
            private_ns: self.private_ns,
            options: self.options.clone(),
            prefetch: self.prefetch.clone(),
            ..MountRequest::default()
        };
        let access = Access { cache_dir: self.cache.clone(), settings: Arc::new(self.remote_settings()) };
        let settings = MountSettings {
            remote: RemoteSettings::clone(&access.settings),
            strategy: Setting::flag(self.strategy),
            restore_strategy: Setting::flag(RestoreStrategy::from(self.strategy)),
            io: Setting::flag(self.io),
            verify: Setting::flag(self.verify),
            pycache: Setting::flag(self.pycache),
            cache_size: Setting::flag(self.cache_size),
            mount_helper: Setting::flag(MountHelper::Off),
            hardlink_excludes: Setting::flag(Vec::new()),
            network: Setting::flag(Network::default()),
            hang_timeout: Setting::flag(Duration::from_millis(self.hang_timeout_ms)),
            // The process stays in the scope that it has.
            scope: Setting::flag(false),
            runtime_dir: None,
            resends: true,
            warning: None,
        };
        Ok(MountPlan {
            request,
            composed: None,
            settings,
            typed_cache_dir: None,
            lock_timeout: Duration::from_millis(self.lock_timeout_ms),
            env: Env {
                home: self.home.clone(),
                robocorp_home: self.robocorp_home.clone(),
                holofs_home: self.holofs_home.clone(),
                cache: self.cache.clone(),
                shared_root: self.shared_root.clone(),
                remote: Arc::clone(&access.settings),
            },
            location: Location::recorded(&self.library, &access)?,
            catalog: CatalogName { blueprint: self.blueprint.clone(), platform: self.platform.clone() },
            index: None,
            holds: self.holds.clone(),
            space: SpacePath {
                identity: Identity::from_name(self.identity.as_bytes()).map_err(refused)?,
                mountpoint: self.mountpoint.clone(),
                own: self.own.clone(),
                placed: self.placed,
                label: self.label.clone(),
                controller: self.controller.clone(),
            },
        })
    }

    /// What the store of the library needs. Credentials are not passed on: the environment of this process is what it was.
    fn remote_settings(&self) -> RemoteSettings {
        if !is_url(self.library.as_os_str()) {
            return RemoteSettings::default();
        }
        let flags = Flags {
            robocorp_home: Some(self.robocorp_home.clone().into()),
            remote_timeout: self.remote_timeout_ms.map(Duration::from_millis),
            offline: self.offline,
            ..Flags::default()
        };
        let read = Settings::read(flags).and_then(|settings| settings.mount);
        read.map(|mount| mount.remote).unwrap_or_else(|error| {
            tracing::warn!(%error, "the settings of the object store cannot be read");
            RemoteSettings::default()
        })
    }

    /// The same index: the numbers of nodes are positions in it.
    pub(in crate::session::mount) fn index(&self, plan: &MountPlan) -> Result<Arc<Index>, Error> {
        let cache = plan.env.cache_dir().join("index");
        let is_same = |index: &Index| Hex(&index.catalog_sha256()).to_string() == self.catalog_sha256;
        let known = open_known(&*plan.location.library, &plan.catalog, &cache).and_then(Result::ok);
        let index = known.filter(is_same).or_else(|| open_by_sum(&self.catalog_sha256, &cache));
        let gone = || std::io::Error::other("the compiled index of the environment is gone");
        let index = index.ok_or_else(gone).map_err(LibraryError::io(&cache))?;
        if !self.placed {
            return Ok(Arc::new(index));
        }
        placed::at(&index, &self.mountpoint, Some(&plan.location), &plan.env.cache_dir(), None)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> serde_json::Value {
        serde_json::json!({
            "version": VERSION, "identity": "i", "mountpoint": "/m", "own": null, "label": "s", "controller": "c",
            "home": null, "robocorp_home": "/r", "holofs_home": "/h", "cache": "/c", "shared_root": "/s",
            "library": "/l", "blueprint": "b", "platform": "p", "catalog_sha256": "0", "holds": "b",
            "read_only": false, "ephemeral": true, "foreground": false, "allow_other": false,
            "auto_unmount": false, "require_reflink": false, "private_ns": false, "options": ["noexec"],
            "prefetch": null, "strategy": "smart", "io": "cached", "verify": "once", "pycache": false,
            "cache_size": 1, "lock_timeout_ms": 5, "hang_timeout_ms": 6, "missing_blobs": 0, "umask": 18, "mount": null, "device": 7,
            "lock": 8, "helper": {"version": vocabulary::VERSION, "program": "/x", "socket": 9}, "logs": true,
        })
    }

    fn read(value: &serde_json::Value) -> IoResult<Passed> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(value.to_string().as_bytes()).unwrap();
        Passed::read(&file)
    }

    /// What this version writes stays readable for the next ones: they change the sample only by adding to it.
    #[test]
    fn a_plan_of_this_version_is_read_and_unknown_fields_are_ignored() {
        let mut value = sample();
        value["of_a_later_version"] = true.into();
        let passed = read(&value).unwrap();
        assert_eq!(passed.descriptors().collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!((passed.umask, passed.options), (18, vec!["noexec".to_owned()]));
    }

    #[test]
    fn other_versions_and_what_is_not_whole_are_refused() {
        for (key, other) in
            [("version", 2.into()), ("version", serde_json::Value::Null), ("mountpoint", 1.into())]
        {
            let mut value = sample();
            value[key] = other;
            assert!(read(&value).is_err(), "{key}");
        }
        let mut value = sample();
        value["helper"]["version"] = (vocabulary::VERSION + 1).into();
        assert!(read(&value).unwrap_err().to_string().contains("mount helper"));
        value["helper"] = serde_json::Value::Null;
        assert!(read(&value).is_ok());
    }
}
