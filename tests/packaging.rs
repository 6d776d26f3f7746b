//! What is shipped beside the binary agrees with it and with itself: manifests, the Compose file, the Debian package, links.
//!
//! None of it is run here: there is no cluster and no container engine in a test.
#![expect(clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects, reason = "a test may panic")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sessile::config::{self, AdminAddress, Config, Families, Resolve};
use yaml_rust2::{Yaml, YamlLoader};

/// Pages that are not in `docs`.
const PAGES: [&str; 5] =
    ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md", "packaging/README.md"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn documents(path: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(&text(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The one document of a kind.
fn of_kind<'a>(documents: &'a [Yaml], kind: &str) -> &'a Yaml {
    let mut found = documents.iter().filter(|document| document["kind"].as_str() == Some(kind));
    let one = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "more than one {kind}");
    one
}

/// A configuration without the secrets, which are not here.
fn sound(text: &str) -> Config {
    let without: Vec<&str> = text.lines().filter(|line| !line.starts_with("connection_token")).collect();
    let mut token = tempfile::NamedTempFile::new().unwrap();
    token.write_all(b"0123456789abcdef").unwrap();
    let file = format!("file = {:?}", token.path());
    let text = without.join("\n").replace(r#"env = "SESSILE_ADMIN_TOKEN""#, &file);
    config::parse(&text, "shipped").unwrap_or_else(|problems| panic!("{}", problems.render(false)))
}

fn seconds(value: &Yaml) -> Duration {
    Duration::from_secs(u64::try_from(value.as_i64().unwrap()).unwrap())
}

#[test]
fn a_pod_of_sessile_is_ready_when_it_is_and_has_the_time_to_drain() {
    let documents = documents("packaging/kubernetes/sessile.yaml");
    let config = sound(of_kind(&documents, "ConfigMap")["data"]["sessile.toml"].as_str().unwrap());
    let pod = &of_kind(&documents, "Deployment")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let ports: Vec<(String, i64)> = container["ports"]
        .as_vec()
        .unwrap()
        .iter()
        .map(|port| (port["name"].as_str().unwrap().to_owned(), port["containerPort"].as_i64().unwrap()))
        .collect();
    let metrics = config.admin.metrics_address.unwrap();
    let expected = [("rpc", config.listeners[0].address.port()), ("metrics", metrics.port())];
    assert_eq!(ports, expected.map(|(name, port)| (name.to_owned(), i64::from(port))));
    assert!(metrics.ip().is_unspecified(), "the kubelet asks from outside");
    for (probe, path) in [("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")] {
        let get = &container[probe]["httpGet"];
        assert_eq!((get["path"].as_str(), get["port"].as_str()), (Some(path), Some("metrics")));
    }
    let leaves = seconds(&container["lifecycle"]["preStop"]["sleep"]["seconds"]);
    assert!(!leaves.is_zero());
    assert!(leaves + config.timeouts.drain.unwrap() < seconds(&pod["terminationGracePeriodSeconds"]));
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"].as_bool(), Some(true));
    assert_eq!(pod["securityContext"]["runAsNonRoot"].as_bool(), Some(true));
}

#[test]
fn sessile_asks_for_the_service_that_the_servers_have() {
    let documents = documents("packaging/kubernetes/cli.yaml");
    let service = of_kind(&documents, "Service");
    let servers = of_kind(&documents, "StatefulSet");
    let name = service["metadata"]["name"].as_str().unwrap();
    assert_eq!(service["spec"]["clusterIP"].as_str(), Some("None"), "headless");
    assert_eq!(servers["spec"]["serviceName"].as_str(), Some(name), "or pods have no names");
    let port = &service["spec"]["ports"][0];
    let balancers = self::documents("packaging/kubernetes/sessile.yaml");
    let config = sound(of_kind(&balancers, "ConfigMap")["data"]["sessile.toml"].as_str().unwrap());
    assert_eq!(config.backends[0].resolve, Resolve::Srv);
    let record = format!("_{}._tcp.{name}.", port["name"].as_str().unwrap());
    assert!(config.backends[0].address.starts_with(&record), "{}", config.backends[0].address);
    let container = &servers["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["ports"][0]["name"], port["targetPort"]);
    assert!(container["lifecycle"]["preStop"]["exec"].as_hash().is_some());
    let claim = of_kind(&documents, "PersistentVolumeClaim");
    assert_eq!(claim["spec"]["accessModes"][0].as_str(), Some("ReadWriteMany"), "storage = \"shared\"");
}

#[test]
fn selectors_select_and_every_manifest_is_listed() {
    let listed = &documents("packaging/kubernetes/kustomization.yaml")[0];
    let resources: Vec<_> = listed["resources"].as_vec().unwrap().iter().filter_map(Yaml::as_str).collect();
    for file in &resources {
        let documents = documents(&format!("packaging/kubernetes/{file}"));
        let workload = documents.iter().find(|document| !document["spec"]["template"].is_badvalue()).unwrap();
        let labels = &workload["spec"]["template"]["metadata"]["labels"];
        assert_eq!(&workload["spec"]["selector"]["matchLabels"], labels);
        assert_eq!(&of_kind(&documents, "Service")["spec"]["selector"], labels);
        let budget = of_kind(&documents, "PodDisruptionBudget");
        assert_eq!(&budget["spec"]["selector"]["matchLabels"], labels);
        assert_eq!(budget["spec"]["maxUnavailable"].as_i64(), Some(1));
    }
    let there = fs::read_dir(root().join("packaging/kubernetes")).unwrap().count();
    assert_eq!(there, resources.len() + 1, "a manifest is not listed");
}

#[test]
fn compose_has_the_servers_of_its_configuration_and_the_time_to_drain() {
    let compose = &documents("packaging/compose/compose.yaml")[0];
    let config = sound(&text("packaging/compose/sessile/sessile.toml"));
    let services = compose["services"].as_hash().unwrap();
    let mut servers: Vec<&str> =
        services.keys().filter_map(Yaml::as_str).filter(|name| *name != "sessile").collect();
    servers.sort_unstable();
    let names: Vec<&str> = config.backends.iter().map(|backend| backend.name.as_str()).collect();
    assert_eq!((servers.len(), servers), (3, names));
    for backend in &config.backends {
        assert_eq!(backend.address, format!("{}:4321", backend.name));
        let server = &compose["services"][backend.name.as_str()];
        assert_eq!(server["volumes"][0].as_str(), Some("state:/state"), "one state for all");
        assert_eq!(server["environment"]["COPILOT_HOME"].as_str(), Some("/state"));
    }
    let grace =
        humantime::parse_duration(compose["services"]["sessile"]["stop_grace_period"].as_str().unwrap());
    assert!(config.timeouts.drain.unwrap() < grace.unwrap());
}

#[test]
fn compose_takes_changes_up_and_shows_the_page() {
    let compose = &documents("packaging/compose/compose.yaml")[0];
    let config = sound(&text("packaging/compose/sessile/sessile.toml"));
    let sessile = &compose["services"]["sessile"];
    // A file that is mounted alone stays the one that it was when the container started.
    let mounts: Vec<_> = sessile["volumes"].as_vec().unwrap().iter().filter_map(Yaml::as_str).collect();
    let [mount] = &mounts[..] else { panic!("{mounts:?}") };
    let (from, to) = mount.split_once(':').unwrap();
    let from = root().join("packaging/compose").join(from);
    assert!(from.is_dir() && from.join("sessile.toml").is_file(), "{mount}");
    assert_eq!(to, "/etc/sessile:ro");
    assert!(text("packaging/Dockerfile").contains("ENV SESSILE_CONFIG=/etc/sessile/sessile.toml\n"));
    // Every socket is published, on loopback of the host alone, and reached from outside of the container.
    let AdminAddress::Tcp(admin) = config.admin.address else { panic!("no page") };
    let sockets = [config.listeners[0].address, admin, config.admin.metrics_address.unwrap()];
    let published = sessile["ports"].as_vec().unwrap().iter().filter_map(Yaml::as_str);
    let expected = sockets.map(|address| format!("127.0.0.1:{0}:{0}", address.port()));
    assert_eq!(published.collect::<Vec<_>>(), expected);
    assert!(sockets.iter().all(|address| address.ip().is_unspecified()));
    // The token of the page is one that commands in the container have too.
    assert!(
        text("packaging/compose/sessile/sessile.toml").contains("token = { env = \"SESSILE_ADMIN_TOKEN\" }")
    );
    assert!(config.admin.token.is_some() && sessile["environment"]["SESSILE_ADMIN_TOKEN"].as_str().is_some());
}

/// A pod has an address of IPv4 or of IPv6, as its cluster is.
#[test]
fn the_kubernetes_files_prefer_no_family() {
    let cli = documents("packaging/kubernetes/cli.yaml");
    let container = &of_kind(&cli, "StatefulSet")["spec"]["template"]["spec"]["containers"][0];
    let command: Vec<_> = container["command"].as_vec().unwrap().iter().filter_map(Yaml::as_str).collect();
    let host = command.iter().position(|word| *word == "--host").unwrap();
    assert_eq!(command[host + 1], "$(POD_IP)");
    let mut env = container["env"].as_vec().unwrap().iter();
    let ip = env.find(|variable| variable["name"].as_str() == Some("POD_IP")).unwrap();
    assert_eq!(ip["valueFrom"]["fieldRef"]["fieldPath"].as_str(), Some("status.podIP"));
    // As the image starts it, but for the address.
    let image = text("packaging/compose/cli.Dockerfile");
    let started = image.lines().find_map(|line| line.strip_prefix("CMD ")).unwrap();
    let words: Vec<String> = serde_json::from_str(started).unwrap();
    assert_eq!(words.join(" ").replace("0.0.0.0", "$(POD_IP)"), command.join(" "));
    let balancers = documents("packaging/kubernetes/sessile.yaml");
    let service = of_kind(&balancers, "Service");
    assert_eq!(service["spec"]["ipFamilyPolicy"].as_str(), Some("PreferDualStack"));
    let shipped = sound(of_kind(&balancers, "ConfigMap")["data"]["sessile.toml"].as_str().unwrap());
    for config in [shipped, sound(&text("conf/kubernetes.toml"))] {
        for address in [config.listeners[0].address, config.admin.metrics_address.unwrap()] {
            assert_eq!(config.families(address), Families::Both);
        }
    }
}

#[test]
fn what_the_debian_package_takes_from_the_source_is_there() {
    let manifest = text("Cargo.toml");
    let made = text("Makefile");
    let assets = assets(&manifest);
    for (path, _) in &assets {
        if let Some(name) = path.strip_prefix("target/package/") {
            assert!(made.contains(&format!("> target/package/{name}\n")), "{path} is not made");
        } else if !path.starts_with("target/release/") {
            assert!(!matching(path).is_empty(), "{path}");
        }
    }
    assert!(assets.len() >= 9, "{assets:?}");
    assert!(
        manifest.contains("\nmaintainer-scripts = "),
        "or removing the package leaves the service running"
    );
    let version = format!("sessile ({}-1) ", env!("CARGO_PKG_VERSION"));
    assert!(text("packaging/debian/changelog").starts_with(&version), "{version}");
}

/// What the Debian package takes from the source, as patterns and where they go.
fn assets(manifest: &str) -> Vec<(String, String)> {
    let assets = manifest.split_once("\nassets = [").unwrap().1.split_once("\n]").unwrap().0;
    let lines = assets.lines().filter(|line| line.contains('"'));
    let part = |line: &str, at| line.split('"').nth(at).unwrap().to_owned();
    lines.map(|line| (part(line, 1), part(line, 3))).collect()
}

/// The files of the source that such a pattern stands for.
fn matching(pattern: &str) -> Vec<PathBuf> {
    let (folder, name) = pattern.rsplit_once('/').unwrap_or(("", pattern));
    let (begin, end) = name.split_once('*').unwrap_or((name, ""));
    let fits = |path: &Path| {
        let own = path.file_name().unwrap().to_str().unwrap();
        match end {
            "" => own == begin,
            ".*" => own.contains('.'),
            end => own.ends_with(end),
        }
    };
    let paths = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file() && fits(path)).collect()
}

/// cargo-deb takes the units that have the package's name, and puts nothing else from their folder into force.
#[test]
fn everything_for_systemd_is_in_the_debian_package() {
    let manifest = text("Cargo.toml");
    for line in ["unit-name = \"sessile\"", "unit-scripts = \"systemd\""] {
        assert!(manifest.contains(&format!("\n{line}\n")), "{line}");
    }
    let shown = ("systemd/*.*".to_owned(), "usr/share/doc/sessile/systemd/".to_owned());
    assert!(assets(&manifest).contains(&shown));
    let mut files: Vec<_> = fs::read_dir(root().join("systemd")).unwrap().collect();
    files.retain(|entry| entry.as_ref().unwrap().path().file_stem().unwrap() == "sessile");
    assert_eq!(files.len(), 2, "a unit and its socket");
    let installed = text("tests/deb.sh");
    for (_, target) in assets(&manifest) {
        assert!(installed.contains(&format!("  /{target}")), "tests/deb.sh does not look for {target}");
    }
}

/// The tree of documents that the package installs is like the one of the source, with nothing left out that is linked to.
#[test]
fn links_of_the_installed_documentation_lead_somewhere() {
    let folder = tempfile::tempdir().unwrap();
    for (path, target) in assets(&text("Cargo.toml")) {
        let Some(target) = target.strip_prefix("usr/share/doc/sessile/") else { continue };
        if path.starts_with("target/package/") {
            continue;
        }
        let to = folder.path().join(target);
        fs::create_dir_all(&to).unwrap();
        for file in matching(&path) {
            fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
        }
    }
    let mut pages: Vec<PathBuf> = PAGES.map(|page| folder.path().join(page)).into();
    pages.extend(fs::read_dir(folder.path().join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    assert!(followed(&pages) > 40);
}

#[test]
fn the_service_reads_no_file_that_was_not_checked_and_does_not_try_a_bad_one_again() {
    let unit = text("systemd/sessile.service");
    let values = |key: &str| {
        let lines = unit.lines().filter_map(|line| line.split_once('='));
        lines.filter(|(name, _)| *name == key).map(|(_, value)| value.to_owned()).collect::<Vec<_>>()
    };
    let [start] = &values("ExecStart")[..] else { panic!("{unit}") };
    let check = start.replace("sessile run ", "sessile check ");
    assert_eq!(values("ExecReload"), [check, "/bin/sh -c 'kill -HUP $MAINPID'".to_owned()]);
    let file = start.split_once("--config ").unwrap().1;
    let installed = format!("\"{}\"", file.trim_start_matches('/'));
    assert!(text("Cargo.toml").contains(&installed), "{installed}");
    assert_eq!(
        values("RestartPreventExitStatus"),
        ["64 78"],
        "the codes of `sessile run` with a bad SESSILE_LOG or a bad file"
    );
}

/// How many links lead from these pages to other files; each leads to one that is there.
fn followed(pages: &[PathBuf]) -> usize {
    let mut count = 0;
    for page in pages {
        for link in fs::read_to_string(page).unwrap().split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            count += 1;
            assert!(page.parent().unwrap().join(target).exists(), "{}: {target}", page.display());
        }
    }
    count
}

#[test]
fn links_of_the_documentation_lead_somewhere() {
    let mut pages: Vec<PathBuf> = PAGES.map(|page| root().join(page)).into();
    let docs = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    pages.extend(docs.filter(|path| path.extension().is_some_and(|ext| ext == "md")));
    assert!(followed(&pages) > 40);
}
