//! The helper of mount(8): `mount -t fuse.holofs LIBRARY DIRECTORY`, /etc/fstab, and systemd's mount units.
//!
//! mount(8) calls `/sbin/mount.fuse.holofs LIBRARY DIRECTORY [-sfnv] [-o OPTIONS]`. Without this link it calls
//! `/sbin/mount.fuse`, which calls `holofs LIBRARY DIRECTORY -o OPTIONS`. Both are translated into arguments of
//! `holofs mount`: an option with the name of a long option of `holofs mount` is that option, options for mount(8)
//! itself are left out, and the rest goes to `-o`. The exit codes are those that mount(8) expects.
//!
//! Limit: an option's value has no comma, because mount(8) does not tell it from the next option.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::exit::{CONFIG, FAILED, Failure, INTERRUPTED, OK, USAGE, failure};
use super::help;

/// What this program is called as by mount(8).
const PROGRAM: &str = "mount.fuse.holofs";

/// The helper of libfuse, which can become another user.
const LIBFUSE: &str = "/sbin/mount.fuse3";

/// Options that mount(8), systemd or libfuse's helper use, or that say what is the case anyway.
const LEFT_OUT: [&str; 29] = [
    "rw",
    "exec",
    "async",
    "suid",
    "dev",
    "defaults",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "_netdev",
    "nofail",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "diratime",
    "nodiratime",
    "silent",
    "loud",
    "nonempty",
    "iversion",
    "noiversion",
    "comment",
];

/// Options of `holofs mount` that have no meaning in a call of mount(8), or which it sets itself.
const NOT_FOR_MOUNT: [&str; 4] = ["foreground", "foreign", "help", "called"];

/// A call of mount(8).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// The arguments for holofs.
    pub(super) args: Vec<OsString>,
    /// `-f`: check the arguments and do nothing.
    pub(super) fake: bool,
    /// With `setuid=USER`: the arguments for the helper of libfuse, which becomes that user and calls holofs.
    pub(super) libfuse: Option<Vec<OsString>>,
}

/// The call, if mount(8) called this program. The first argument is the program's name.
pub(super) fn recognize(args: &[OsString]) -> Option<Result<Call, Failure>> {
    let (program, rest) = args.split_first()?;
    if Path::new(program).file_name() == Some(OsStr::new(PROGRAM)) {
        return Some(translate(rest));
    }
    match rest {
        [library, directory, option, _]
            if option == "-o"
                && directory.as_bytes().starts_with(b"/")
                && !library.as_bytes().starts_with(b"-")
                && help::definition().find_subcommand(library).is_none() =>
        {
            // libfuse's helper has become the user already.
            Some(translate(rest).map(|call| Call { libfuse: None, ..call }))
        }
        _ => None,
    }
}

fn translate(args: &[OsString]) -> Result<Call, Failure> {
    let mut places = Vec::new();
    let mut options: Vec<&[u8]> = Vec::new();
    let (mut fake, mut sloppy, mut verbose) = (false, false, false);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_bytes() {
            b"-o" => options
                .extend(args.next().map(|value| value.as_bytes()).unwrap_or_default().split(|b| *b == b',')),
            // A type or a namespace, which mount(8) has entered already.
            b"-t" | b"-N" => drop(args.next()),
            [b'-', flags @ ..] if !flags.is_empty() && flags.iter().all(|flag| b"sfnvrw".contains(flag)) => {
                fake |= flags.contains(&b'f');
                sloppy |= flags.contains(&b's');
                verbose |= flags.contains(&b'v');
                if flags.contains(&b'r') {
                    options.push(b"ro");
                }
            }
            [b'-', ..] => return Err(wrong(format!("{}: unknown option of {PROGRAM}", arg.display()))),
            _ => places.push(arg),
        }
    }
    let [library, directory] = places.as_slice() else {
        return Err(wrong(format!("{PROGRAM}: expected a library and a directory")));
    };
    let library = library.as_bytes().strip_prefix(b"holofs#").unwrap_or(library.as_bytes());
    let libfuse = options.iter().any(|option| option.starts_with(b"setuid=")).then(|| {
        let source = [b"holofs#", library].concat();
        vec![
            OsString::from_vec(source),
            (*directory).clone(),
            "-o".into(),
            OsString::from_vec(options.join(&b',')),
        ]
    });
    let mut out: Vec<OsString> = ["mount", "--foreign"].map(Into::into).to_vec();
    if !verbose {
        out.push("--silent".into());
    }
    let known = long_options();
    for option in options {
        let text = String::from_utf8_lossy(option);
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (&*text, None),
        };
        let long = name.replace('_', "-");
        match name {
            "" => {}
            name if LEFT_OUT.contains(&name) || name.starts_with("x-") || name.starts_with("X-") => {}
            "space" => {
                let value = value.filter(|value| !value.is_empty());
                let value = value.ok_or_else(|| wrong("the mount option space needs a name".into()))?;
                out.push(format!("--called={value}").into());
            }
            "setuid" => {}
            "uid" | "gid" => {
                let fix = "setuid=USER, which mounts as that user";
                let what = format!("{text}: the files of a space belong to the user who mounts it");
                return Err(failure(USAGE, what, Some(fix)));
            }
            _ if known.contains(&long) && !NOT_FOR_MOUNT.contains(&long.as_str()) => {
                let value = value.map(|value| format!("={value}")).unwrap_or_default();
                out.push(format!("--{long}{value}").into());
            }
            _ if sloppy && !crate::sys::fuse_mount::check_option(name) && name != "ro" => {}
            _ => out.extend(["-o".into(), OsStr::from_bytes(option).to_owned()]),
        }
    }
    out.extend(["--".into(), OsStr::from_bytes(library).to_owned(), (*directory).clone()]);
    Ok(Call { args: out, fake, libfuse })
}

/// The long options of `holofs mount`.
fn long_options() -> Vec<String> {
    let mut holofs = help::definition();
    holofs.build();
    let mount = holofs.find_subcommand("mount");
    mount
        .into_iter()
        .flat_map(clap::Command::get_arguments)
        .filter_map(|arg| Some(arg.get_long()?.into()))
        .collect()
}

fn wrong(what: String) -> Failure {
    failure(USAGE, what, Some("`mount -t fuse.holofs LIBRARY DIRECTORY -o OPTIONS`"))
}

/// Runs the call, by another process of this program. Returns the exit code of holofs.
pub(super) fn run(call: &Call) -> Result<u8, Failure> {
    if call.fake {
        return Ok(OK);
    }
    if let Some(args) = &call.libfuse {
        // Returns only if it fails.
        let error = Command::new(LIBFUSE).args(args).exec();
        return Err(failure(
            FAILED,
            format!("setuid=: {LIBFUSE}: {error}"),
            Some("install the package fuse3"),
        ));
    }
    let mut holofs = Command::new("/proc/self/exe");
    // mount(8) prints nothing when it succeeds.
    holofs.arg0("holofs").args(&call.args).stdout(Stdio::null());
    // mount(8) and systemd may not set HOME. The identities of spaces depend on it, so that the user would not find this
    // space by its name.
    if let Some(home) = std::env::home_dir() {
        holofs.env("HOME", home);
    }
    let status = holofs.status().map_err(|error| failure(FAILED, format!("holofs: {error}"), None))?;
    // None is a signal.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED))
}

/// The exit code for mount(8).
pub(super) fn code(code: u8) -> u8 {
    match code {
        OK => 0,
        // Incorrect invocation or permissions.
        USAGE | CONFIG => 1,
        // System error.
        FAILED => 2,
        // User interrupt.
        INTERRUPTED => 8,
        // Mount failure.
        _ => 32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(line: &str) -> Option<Result<Call, Failure>> {
        recognize(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    fn args(line: &str) -> String {
        let call = call(line).unwrap().unwrap();
        call.args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn calls_of_mount_become_arguments_of_holofs() {
        for (line, wanted) in [
            ("/sbin/mount.fuse.holofs auto /m", "--silent -- auto /m"),
            // As mount(8) calls it, and as libfuse's helper calls it.
            ("mount.fuse.holofs /l /m -o rw,space=demo -t fuse.holofs", "--silent --called=demo -- /l /m"),
            ("holofs /l /m -o rw,dev,suid,blueprint=abcd", "--silent --blueprint=abcd -- /l /m"),
            ("mount.fuse.holofs holofs#/l /m", "--silent -- /l /m"),
            (
                "mount.fuse.holofs /l /m -v -o ro,allow_other,noexec,nosuid,nodev",
                "-o ro --allow-other -o noexec -o nosuid -o nodev -- /l /m",
            ),
            (
                "mount.fuse.holofs /l /m -o noauto,nofail,_netdev,user=x,x-systemd.automount,upper_dir=/u,cache-size=1G",
                "--silent --upper-dir=/u --cache-size=1G -- /l /m",
            ),
            ("mount.fuse.holofs /l /m -r -o home=/h,other", "--silent -o ro --home=/h -o other -- /l /m"),
            ("mount.fuse.holofs /l /m -sn -o home=/h,other,foreground", "--silent --home=/h -- /l /m"),
        ] {
            let wanted = format!("mount --foreign {wanted}");
            assert_eq!(args(line), wanted, "{line}");
            let words: Vec<OsString> = format!("holofs {wanted}").split(' ').map(OsString::from).collect();
            assert!(crate::cli::parse(&words).is_ok(), "{line}");
        }
    }

    #[test]
    fn other_command_lines_are_not_calls_of_mount() {
        for line in [
            "holofs",
            "holofs mount auto /m",
            "holofs list -o x",
            "holofs mount /m -o ro",
            "holofs a b -o ro",
        ] {
            assert_eq!(call(line), None, "{line}");
        }
    }

    #[test]
    fn wrong_calls_say_what_is_wrong() {
        for (line, what) in [
            ("mount.fuse.holofs /l", "expected a library and a directory"),
            ("mount.fuse.holofs /l /m /x", "expected a library and a directory"),
            ("mount.fuse.holofs /l /m --ro", "--ro: unknown option"),
            ("mount.fuse.holofs /l /m -o uid=7", "uid=7: the files of a space belong to"),
            ("mount.fuse.holofs /l /m -o space=", "the mount option space needs a name"),
        ] {
            let failure = call(line).unwrap().unwrap_err();
            assert!(failure.what.contains(what) && failure.fix.is_some(), "{line}: {failure:?}");
            assert_eq!(code(failure.code), 1);
        }
    }

    #[test]
    fn setuid_is_left_to_libfuse() {
        let libfuse = call("mount.fuse.holofs /l /m -o ro,setuid=me -v").unwrap().unwrap().libfuse.unwrap();
        assert_eq!(libfuse, ["holofs#/l", "/m", "-o", "ro,setuid=me"]);
        assert_eq!(call("holofs /l /m -o ro,setuid=me").unwrap().unwrap().libfuse, None);
    }
}
