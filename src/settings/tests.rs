use std::fmt::Debug;

use proptest::prelude::{ProptestConfig, any, prop, proptest};

use super::*;

fn read(flags: Flags, set: &[(&str, &str)]) -> Result<Settings, SettingsError> {
    let look = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
    Settings::from_variables(flags, &look)
}

fn home_flag(home: &str) -> Flags {
    Flags { robocorp_home: Some(home.into()), ..Flags::default() }
}

/// A home with this settings.yaml.
fn home(yaml: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("settings.yaml"), yaml).unwrap();
    dir
}

/// What a home with this settings.yaml, and these variables, make of the settings of mounts.
fn mount(yaml: &str, flags: Flags, set: &[(&str, &str)]) -> Result<MountSettings, SettingsError> {
    let dir = home(yaml);
    let robocorp_home = Some(dir.path().into());
    read(Flags { robocorp_home, ..flags }, set).unwrap().mount
}

fn complaint<T: Debug>(result: Result<T, SettingsError>) -> String {
    let error = result.unwrap_err();
    let text = error.to_string();
    match error {
        // Without the temporary directory's name.
        SettingsError::File(bad) => text.replace(bad.path.parent().unwrap().to_str().unwrap(), "HOME"),
        _ => text,
    }
}

const COPY: &str = "other: [1, 2]\nholotree:\n  restoration-strategy: copy\n";

#[test]
fn defaults_to_dot_robocorp() {
    let settings = read(Flags::default(), &[("HOME", "/home/me")]).unwrap();
    assert_eq!(settings.robocorp_home, Setting::built_in("/home/me/.robocorp".into()));
    assert_eq!(settings.holofs_home, Setting::built_in("/home/me/.robocorp/holofs".into()));
    assert_eq!(settings.controller, Setting::built_in("user".into()));
    assert_eq!(settings.lock_timeout, Setting::built_in(Duration::from_secs(30)));
    let mount = settings.mount.unwrap();
    assert_eq!(mount.strategy, Setting::built_in(Strategy::Smart));
    assert_eq!(mount.cache_size, Setting::built_in(10 << 30));
    assert_eq!(mount.hang_timeout, Setting::built_in(Duration::from_secs(60)));
    assert_eq!(mount.mount_helper, Setting::built_in(MountHelper::Installed));
}

#[test]
fn flag_wins_over_variable() {
    let set = [("HOME", "/h"), ("ROBOCORP_HOME", "/r"), ("HOLOFS_HOME", "/state/./x/..")];
    let by_variable = read(Flags::default(), &set).unwrap();
    assert_eq!(by_variable.robocorp_home, Setting::variable("/r".into(), "ROBOCORP_HOME"));
    let by_flag = read(home_flag("/flag"), &set).unwrap();
    assert_eq!(by_flag.robocorp_home, Setting::flag("/flag".into()));
    assert_eq!(by_flag.holofs_home, Setting::variable("/state".into(), "HOLOFS_HOME"));
}

#[test]
fn expands_variables_in_the_home() {
    let set = [("HOME", "/home/me"), ("X", "deep"), ("ROBOCORP_HOME", "$HOME/${X}/$NOPE/r$")];
    let settings = read(Flags::default(), &set).unwrap();
    assert_eq!(settings.robocorp_home.value, Path::new("/home/me/deep/r$"));
}

#[test]
fn empty_variable_counts_as_unset() {
    let set = [("HOME", "/h"), ("ROBOCORP_HOME", ""), ("HOLOFS_LOG", ""), ("HOLOFS_STRATEGY", "")];
    let settings = read(Flags::default(), &set).unwrap();
    assert_eq!(settings.robocorp_home.value, Path::new("/h/.robocorp"));
    assert_eq!(settings.log_level, Setting::built_in(LevelFilter::WARN));
    assert_eq!(settings.mount.unwrap().strategy.source, SetBy::Default);
}

#[test]
fn relative_home_is_made_absolute() {
    let settings = read(home_flag("rel/../x"), &[]).unwrap();
    assert_eq!(settings.robocorp_home.value, std::env::current_dir().unwrap().join("x"));
    assert_eq!(settings.home, None);
}

#[test]
fn product_decides_the_home() {
    let set = [("HOME", "/h"), ("ROBOCORP_HOME", "/r"), ("SEMA4AI_HOME", "/s")];
    let sema4ai = || Flags { product: Some(Product::Sema4ai), ..Flags::default() };
    assert_eq!(read(sema4ai(), &set).unwrap().robocorp_home, Setting::variable("/s".into(), "SEMA4AI_HOME"));
    assert_eq!(read(sema4ai(), &set[..1]).unwrap().robocorp_home.value, Path::new("/h/.sema4ai"));
    let by_variable = read(Flags::default(), &[("HOME", "/h"), ("HOLOFS_PRODUCT", "Sema4ai")]).unwrap();
    assert_eq!(by_variable.product, Setting::variable(Product::Sema4ai, "HOLOFS_PRODUCT"));
    let complaint = complaint(read(Flags::default(), &[("HOME", "/h"), ("HOLOFS_PRODUCT", "x")]));
    assert_eq!(complaint, "HOLOFS_PRODUCT=x: expected one of robocorp, sema4ai");
}

#[test]
fn settings_yaml_can_be_left_out() {
    let flags = Flags { no_config: true, ..Flags::default() };
    assert_eq!(mount("holotree: [broken", flags, &[]).unwrap().strategy.source, SetBy::Default);
}

#[test]
fn no_home_at_all_is_an_error() {
    assert!(matches!(read(Flags::default(), &[]), Err(SettingsError::NoHome)));
}

#[test]
fn log_level_comes_from_flag_or_variable() {
    let set = [("HOLOFS_LOG", "Debug")];
    let settings = read(home_flag("/h"), &set).unwrap();
    assert_eq!(settings.log_level, Setting::variable(LevelFilter::DEBUG, "HOLOFS_LOG"));
    let flags = Flags { log_level: Some(LevelFilter::ERROR), ..home_flag("/h") };
    assert_eq!(read(flags, &set).unwrap().log_level, Setting::flag(LevelFilter::ERROR));
    let complaint = complaint(read(home_flag("/h"), &[("HOLOFS_LOG", "loud")]));
    assert_eq!(complaint, "HOLOFS_LOG=loud: expected off, error, warn, info, debug or trace");
}

#[test]
fn strategy_of_the_first_place_that_sets_it_is_in_force() {
    let (ours, rccs) = (("HOLOFS_STRATEGY", "Reflink"), ("RCC_HOLOTREE_STRATEGY", "SMART"));
    let flags = Flags { strategy: Some(Strategy::Copy), ..Flags::default() };
    // A variable that is not looked at is not an error.
    let by_flag = mount(COPY, flags, &[("HOLOFS_STRATEGY", "bogus"), rccs]).unwrap();
    assert_eq!(by_flag.strategy, Setting::flag(Strategy::Copy));
    let by_ours = mount(COPY, Flags::default(), &[ours, rccs]).unwrap();
    assert_eq!(by_ours.strategy, Setting::variable(Strategy::Reflink, "HOLOFS_STRATEGY"));
    let by_rccs = mount(COPY, Flags::default(), &[rccs]).unwrap();
    assert_eq!(by_rccs.strategy, Setting::variable(Strategy::Smart, "RCC_HOLOTREE_STRATEGY"));
    let by_file = mount(COPY, Flags::default(), &[]).unwrap();
    assert_eq!(by_file.strategy.value, Strategy::Copy);
    assert!(by_file.strategy.source.to_string().ends_with("/settings.yaml:3"), "{:?}", by_file.strategy);
    assert_eq!(mount("{}", Flags::default(), &[]).unwrap().strategy, Setting::built_in(Strategy::Smart));
}

#[test]
fn hardlink_acts_as_smart_with_a_warning() {
    for (yaml, set) in [
        ("holotree: {restoration-strategy: HardLink}", &[][..]),
        ("", &[("RCC_HOLOTREE_STRATEGY", "hardlink")]),
        ("", &[("HOLOFS_STRATEGY", "hardlink")]),
    ] {
        let settings = mount(yaml, Flags::default(), set).unwrap();
        assert_eq!(settings.strategy.value, Strategy::Smart);
        assert_ne!(settings.strategy.source, SetBy::Default);
        assert!(settings.warning.unwrap().contains("hardlink"));
    }
}

#[test]
fn bad_value_names_its_place_and_what_is_expected() {
    let expected = "expected one of smart, reflink, hardlink, copy";
    for name in ["HOLOFS_STRATEGY", "RCC_HOLOTREE_STRATEGY"] {
        let complaint = complaint(mount(COPY, Flags::default(), &[(name, "bogus")]));
        assert_eq!(complaint, format!("{name}=bogus: {expected}"));
    }
    let io = complaint(mount("", Flags::default(), &[("HOLOFS_IO", "fast")]));
    assert_eq!(io, "HOLOFS_IO=fast: expected one of auto, cached, passthrough");
    for value in ["-1", "1.5", "soon"] {
        let hang = complaint(mount("", Flags::default(), &[("HOLOFS_HANG_TIMEOUT", value)]));
        assert_eq!(
            hang,
            format!("HOLOFS_HANG_TIMEOUT={value}: expected a number of seconds, or 0 for never")
        );
    }
    let never = mount("", Flags::default(), &[("HOLOFS_HANG_TIMEOUT", "0")]).unwrap();
    assert_eq!(never.hang_timeout, Setting::variable(Duration::ZERO, "HOLOFS_HANG_TIMEOUT"));
    for (yaml, why) in [
        ("\nholotree:\n  restoration-strategy: fast\n", format!("3: fast: {expected}").as_str()),
        ("holotree:\n  restoration-strategy: [copy]\n", "2: expected a text"),
        ("holotree:\n  hardlink-excludes: '*.pyc'\n", "2: *.pyc: expected a list"),
        ("holotree: copy\n", "1: copy: expected a mapping"),
        ("- holotree\n", "1: expected a mapping"),
        (
            "holotree:\n  x: 1\n  restoration-strategy: copy\n  restoration-strategy: smart\n",
            "2: restoration-strategy is given twice",
        ),
        ("a: 1\nholotree:\n  b: [\n", "3: did not find expected node content"),
        ("a: b\n c: d\n", "2: mapping values are not allowed"),
        ("a: *nowhere\n", "1: unknown anchor 'nowhere'"),
        ("- {a: &a [*a, '", "1: "),
    ] {
        let complaint = complaint(mount(yaml, Flags::default(), &[]));
        assert!(complaint.starts_with(&format!("HOME/settings.yaml:{why}")), "{yaml:?}: {complaint}");
    }
}

#[test]
fn bytes_that_are_no_text_name_their_line() {
    let dir = home("");
    std::fs::write(dir.path().join("settings.yaml"), b"a: 1\nb: \xff\n").unwrap();
    let settings = read(home_flag(dir.path().to_str().unwrap()), &[]).unwrap();
    let complaint = complaint(settings.mount);
    assert_eq!(complaint, "HOME/settings.yaml:2: it is not UTF-8 text");
}

#[test]
fn file_that_sets_nothing_is_no_error() {
    for yaml in
        ["", "# nothing\n", "holotree:\n", "holotree: ~\n", "holotree: {restoration-strategy: }\n", "a: b\n"]
    {
        let settings = mount(yaml, Flags::default(), &[]).unwrap();
        assert_eq!(settings.strategy.source, SetBy::Default, "{yaml:?}");
        assert_eq!(settings.hardlink_excludes, Setting::built_in(Vec::new()), "{yaml:?}");
    }
}

#[test]
fn excludes_and_aliases_are_read() {
    let yaml = "x: &it copy\nholotree:\n  restoration-strategy: *it\n  hardlink-excludes:\n    - '*.pyc'\n    - bin/**\n";
    let settings = mount(yaml, Flags::default(), &[]).unwrap();
    assert_eq!(settings.strategy.value, Strategy::Copy);
    assert_eq!(settings.hardlink_excludes.value, ["*.pyc", "bin/**"]);
}

#[test]
fn file_that_cannot_be_read_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("settings.yaml");
    let complaint = || complaint(read(home_flag(dir.path().to_str().unwrap()), &[]).unwrap().mount);
    std::fs::write(&path, "#".repeat((1 << 20) + 1)).unwrap();
    assert!(complaint().contains("larger than 1048576 bytes"));
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
    assert!(complaint().contains("a FIFO"));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(complaint().contains("a directory"));
}

#[test]
fn link_to_a_file_is_followed() {
    let (real, linked) = (home(COPY), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(real.path().join("settings.yaml"), linked.path().join("settings.yaml"))
        .unwrap();
    let settings = read(home_flag(linked.path().to_str().unwrap()), &[]).unwrap().mount.unwrap();
    assert_eq!(settings.strategy.value, Strategy::Copy);
}

#[test]
fn nested_values_and_aliases_are_bounded() {
    let complaint = complaint(file::parse(Path::new("/d/s.yaml"), "- ".repeat(200).as_bytes()));
    assert_eq!(complaint, "HOME/s.yaml:1: too many nested values");
    // Each line doubles the value, which is not made.
    let mut text = "a0: &a0 [x, x]\n".to_owned();
    for n in 1..60 {
        text.push_str(&format!("a{n}: &a{n} [*a{0}, *a{0}]\n", n - 1));
    }
    assert!(file::parse(Path::new("/s.yaml"), text.as_bytes()).is_ok());
    // A value that holds itself.
    assert!(file::parse(Path::new("/s.yaml"), b"holotree: &a {hardlink-excludes: [*a]}").is_err());
}

#[test]
fn mount_helper_is_named_or_switched_off() {
    let helper =
        |path| mount("", Flags::default(), &[(MountHelper::VARIABLE, path)]).unwrap().mount_helper.value;
    assert_eq!(helper("/x/helper"), MountHelper::At("/x/helper".into()));
    assert_eq!(helper(""), MountHelper::Off);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is in the file, reading it ends with an answer.
    #[test]
    fn any_text_is_read_or_refused(text in r#"([a-z \n\t:\-?,&*!|>%@'"\[\]{}#~.]|holotree:|restoration-strategy: |\PC){0,80}"#) {
        drop(file::parse(Path::new("/settings.yaml"), text.as_bytes()));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(file::parse(Path::new("/settings.yaml"), &bytes));
    }
}
