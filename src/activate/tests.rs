use super::*;

fn lines(given: &Given<'_>) -> Vec<String> {
    let line = |v: Variable| format!("{}={}", v.name, v.value.to_str().unwrap());
    variables(given).into_iter().map(line).collect()
}

fn given<'a>(network: &'a Network, path: &'a str) -> Given<'a> {
    Given {
        extra: vec![Variable::new("EXTRA", "1"), Variable::new("PS1", "$ ")],
        facts: Facts {
            python: Some("bin/python3".into()),
            is_venv: false,
            activation: vec![Variable::new("PATH", "/builder/bin"), Variable::new("PS1", "(rcc)")],
        },
        root: Path::new("/h/holotree/ea7ce2c_5a1fac3_9fcd2534"),
        blueprint: "adb8c26db4d86a93",
        robocorp_home: Path::new("/h"),
        home_variable: "ROBOCORP_HOME",
        user7: "ea7ce2c",
        installation: "1-2-3-4-5",
        temp: Some(Path::new("/h/temp/0123456789abcdef")),
        no_bytecode: true,
        bytecode: false,
        own_temp: true,
        rcc: Some(Path::new("/usr/bin/rcc")),
        path: Some(OsStr::new(path)),
        cwd: Path::new("/robot"),
        network,
        warranty_voided: false,
        robot: None,
    }
}

/// The list of a conda environment, in rcc's order.
#[test]
fn order_is_rccs() {
    let network = Network::default();
    let given = given(&network, "/usr/bin:rel/../x:/opt/conda/bin:/usr/bin");
    let path = "PATH=/h/holotree/ea7ce2c_5a1fac3_9fcd2534/bin:/usr/bin:/robot/x";
    let expected = [
        "EXTRA=1",
        "PYTHON_EXE=/h/holotree/ea7ce2c_5a1fac3_9fcd2534/bin/python3",
        "PYTHONDONTWRITEBYTECODE=x",
        "PYTHONPYCACHEPREFIX=/h/temp/0123456789abcdef",
        "TEMP=/h/temp/0123456789abcdef",
        "TMP=/h/temp/0123456789abcdef",
        "CONDA_DEFAULT_ENV=rcc",
        "CONDA_PREFIX=/h/holotree/ea7ce2c_5a1fac3_9fcd2534",
        "CONDA_PROMPT_MODIFIER=(rcc) ",
        "CONDA_SHLVL=1",
        "PYTHONHOME=",
        "PYTHONSTARTUP=",
        "PYTHONEXECUTABLE=",
        "PYTHONNOUSERSITE=1",
        "ROBOCORP_HOME=/h",
        "RCC_ENVIRONMENT_HASH=adb8c26db4d86a93",
        "RCC_INSTALLATION_ID=1-2-3-4-5",
        "RCC_HOLOTREE_SPACE_ROOT=/h/holotree/ea7ce2c_5a1fac3_9fcd2534",
        "RCC_TRACKING_ALLOWED=false",
        "RCC_EXE=/usr/bin/rcc",
        "RCC_VERSION=v18.18.1",
        path,
        "PATH=/builder/bin",
        "HOLOFS_MOUNT=/h/holotree/ea7ce2c_5a1fac3_9fcd2534",
    ];
    let found = lines(&given);
    assert_eq!(found[..found.len() - 1], expected);
    assert!(found.last().unwrap().starts_with("HOLOFS_VERSION="));
}

#[test]
fn robot_comes_last_and_wins() {
    let network = Network::default();
    let mut given = given(&network, "/usr/bin");
    given.robot = Some(Places {
        root: "/r".into(),
        artifacts: "/r/output".into(),
        path: vec!["/r/bin".into(), "/r".into()],
        python_path: vec!["/r/lib".into(), "/r/keywords".into()],
    });
    let found = lines(&given);
    let from = found.iter().rposition(|line| line.starts_with("PATH=")).unwrap();
    assert_eq!(
        found[from..found.len() - 2],
        [
            "PATH=/r/bin:/r:/h/holotree/ea7ce2c_5a1fac3_9fcd2534/bin:/usr/bin",
            "PYTHONPATH=/r/lib:/r/keywords",
            "ROBOT_ROOT=/r",
            "ROBOT_ARTIFACTS=/r/output",
        ]
    );
    let winners = deduplicated(variables(&given));
    let paths: Vec<&Variable> = winners.iter().filter(|v| v.name == "PATH").collect();
    assert_eq!(paths.len(), 1);
    assert!(paths[0].value.to_str().unwrap().starts_with("/r/bin:"));
}

#[test]
fn what_is_managed_elsewhere_is_left_out() {
    let network = Network::default();
    let mut given = given(&network, "/usr/bin");
    (given.no_bytecode, given.own_temp, given.rcc) = (false, false, None);
    given.facts = Facts { is_venv: true, ..Facts::default() };
    let found = lines(&given);
    for name in ["PYTHON_EXE=", "PYTHONDONTWRITE", "PYTHONPYCACHE", "TEMP=", "TMP=", "CONDA_", "RCC_EXE="] {
        assert!(!found.iter().any(|line| line.starts_with(name)), "{name}");
    }
    assert!(found.contains(&"VIRTUAL_ENV=/h/holotree/ea7ce2c_5a1fac3_9fcd2534".to_owned()));
    for name in ["PYTHONPATH=", "ROBOT_ROOT=", "ROBOT_ARTIFACTS="] {
        assert!(!found.iter().any(|line| line.starts_with(name)), "{name}");
    }
}

#[test]
fn network_follows_the_activation() {
    let network = Network {
        verify_ssl: false,
        no_revoke: true,
        legacy_renegotiation: true,
        https_proxy: "http://p:1".into(),
        http_proxy: "http://p:2".into(),
        no_proxy: "localhost".into(),
        pip_config: Some("/h/piprc".into()),
        ca_bundle: Some("/h/ca-bundle.pem".into()),
    };
    let mut given = given(&network, "/usr/bin");
    given.warranty_voided = true;
    let found = lines(&given);
    let from = found.iter().position(|line| line == "PATH=/builder/bin").unwrap() + 1;
    assert_eq!(
        found[from..found.len() - 2],
        [
            "MAMBA_SSL_NO_REVOKE=true",
            "MAMBA_SSL_VERIFY=false",
            "RC_DISABLE_SSL=true",
            "WDM_SSL_VERIFY=0",
            "NODE_TLS_REJECT_UNAUTHORIZED=0",
            "RC_TLS_LEGACY_RENEGOTIATION_ALLOWED=true",
            "https_proxy=http://p:1",
            "HTTPS_PROXY=http://p:1",
            "http_proxy=http://p:2",
            "HTTP_PROXY=http://p:2",
            "no_proxy=localhost",
            "NO_PROXY=localhost",
            "RCC_WARRANTY_VOIDED=true",
            "PIP_CONFIG_FILE=/h/piprc",
            "REQUESTS_CA_BUNDLE=/h/ca-bundle.pem",
            "CURL_CA_BUNDLE=/h/ca-bundle.pem",
            "SSL_CERT_FILE=/h/ca-bundle.pem",
            "NODE_EXTRA_CA_CERTS=/h/ca-bundle.pem",
        ]
    );
}
