//! Files: the defaults, those of `conf/`, that schema, example and checks agree, and files that cannot be read.

use std::fs;
use std::path::PathBuf;

use super::certs::conf_with_certs;
use super::*;

fn conf(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(name)
}

#[test]
fn sound_file_gets_every_default() {
    let config = sound_with("");
    assert_eq!(config.health, Health::default());
    assert_eq!(config.placement, Placement::default());
    assert_eq!(config.timeouts, Timeouts::default());
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.listeners.first().unwrap().methods, MethodPolicy::default());
    assert_eq!(config.backends.first().unwrap().weight, 1);
}

#[test]
fn zero_is_unlimited_where_the_model_says_so() {
    let config = sound_with(
        "[timeouts]\nhalf_close = '0s'\nidle = '0s'\ndrain = '0'\n[limits]\nconnections = 0\n\
         connections_per_ip = 0\nopening_memory = 0\n[placement]\nload_factor = 0",
    );
    assert_eq!((config.timeouts.half_close, config.timeouts.idle, config.timeouts.drain), (None, None, None));
    assert_eq!((config.limits.connections, config.limits.opening_memory), (None, None));
    assert_eq!(config.placement.load_factor, None);
    for refused in ["[timeouts]\nopening = '0s'", "[limits]\nopening_bytes = 0", "[limits]\npins = 0"] {
        assert_eq!(messages_with(refused).len(), 1, "{refused}");
    }
}

#[test]
fn files_that_cannot_be_read_are_problems() {
    let folder = tempfile::tempdir().unwrap();
    let told = |name: &str, content: Option<&[u8]>| {
        let path = folder.path().join(name);
        if let Some(content) = content {
            fs::write(&path, content).unwrap();
        }
        let problems = load(&path).expect_err(name);
        assert!(problems.render(false).contains(name));
        let [problem] = problems.iter().collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(problem.position, None);
        problem.message.clone()
    };
    assert_eq!(told("missing", None), "the configuration file does not exist");
    assert_eq!(told("", None), "the configuration file is a folder");
    assert_eq!(
        told("large", Some(&vec![b'#'; FILE_BYTES_MAX + 1])),
        "the configuration file is larger than 1024 KiB"
    );
    assert_eq!(
        told("latin1", Some(b"# a\n# \xe4\n")),
        "the configuration file is not UTF-8: the first byte at fault is on line 2"
    );
    let problems = parse(&"#".repeat(FILE_BYTES_MAX + 1), "o").expect_err("large");
    assert_eq!(problems.to_string(), "o: the configuration is larger than 1024 KiB");
}

#[test]
fn a_file_on_disk_loads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessile.toml");
    fs::write(&path, SOUND).unwrap();
    assert_eq!(load(&path).unwrap(), sound_with(""));
}

#[test]
fn every_file_of_conf_loads() {
    let mut count = 0;
    let folder = conf_with_certs();
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let config = load(&path).unwrap_or_else(|problems| panic!("{}", problems.render(false)));
        // With the default, one of one that is down is a panic. The example shows defaults.
        let is_alone =
            config.backends.len() == 1 && config.backends.iter().all(|b| b.resolve == Resolve::Dial);
        if is_alone && !path.ends_with("example.toml") {
            assert_eq!(config.health.panic_threshold, None, "{}", path.display());
        }
        count += 1;
    }
    assert!(count >= 8, "{count}");
}

#[test]
fn example_shows_the_defaults() {
    let backend = |n: u32| BackendSpec {
        name: format!("cli-{n}"),
        address: format!("cli-{n}:4321"),
        resolve: Resolve::Dial,
        weight: 1,
        state: AdminState::Ready,
        connections: None,
        tls: None,
    };
    let expected = Config {
        listeners: vec![Listener::default()],
        admin: Admin::default(),
        placement: Placement::default(),
        health: Health::default(),
        timeouts: Timeouts::default(),
        limits: Limits::default(),
        sessions: Sessions::default(),
        upstream: Upstream::default(),
        discovery: Discovery::default(),
        backends: vec![backend(1)],
    };
    assert_eq!(load(&conf("example.toml")).unwrap(), expected);
    let minimal = Config { backends: vec![backend(1), backend(2)], ..expected };
    assert_eq!(load(&conf("minimal.toml")).unwrap(), minimal);
}

/// The example with the keys that have no default written too.
pub(super) fn example_in_full() -> String {
    let text = fs::read_to_string(conf("example.toml")).unwrap();
    let keys = [
        "# token =",
        "# metrics_address =",
        "# affinity_pattern =",
        "# restart_command =",
        "# connection_token =",
        "# tls =",
    ];
    keys.iter().fold(text, |text, key| {
        assert!(text.contains(key), "{key}");
        text.replace(key, key.trim_start_matches("# "))
    })
}

#[test]
fn example_names_every_key() {
    let text = example_in_full();
    let folder = conf_with_certs();
    let config = parse_in(&text, "o", &folder.path().join("o"), &environment);
    let config = config.unwrap_or_else(|problems| panic!("{}", problems.render(false)));
    assert!(config.upstream.connection_token.is_some() && config.admin.metrics_address.is_some());
    let tree = toml::de::DeTable::parse(&text).unwrap();
    for section in SECTIONS {
        let value = tree.get_ref().get(section.name).unwrap().get_ref();
        let table = if section.repeated { value.get(0).unwrap().get_ref() } else { value };
        for key in section.keys {
            assert!(table.get(*key).is_some(), "{section} {key}");
        }
    }
}

/// A date is no value of any key: a key that takes one unseen is not read at all.
#[test]
fn every_key_of_the_schema_is_read() {
    for section in SECTIONS {
        for key in section.keys {
            let text = format!("{section}\n{key} = 2020-01-01\n");
            let problems = parsed(&text).expect_err(key);
            let at_value =
                |problem: &&Problem| problem.position.is_some_and(|at| at.line == 2 && at.column > 1);
            let problem =
                problems.iter().find(at_value).unwrap_or_else(|| panic!("{section} {key} is not read"));
            assert!(
                problem.message.starts_with(&format!("`{}.{key}` must ", section.name)),
                "{}",
                problem.message
            );
        }
    }
}
