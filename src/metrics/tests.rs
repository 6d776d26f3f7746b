//! What is written about the metrics is held to the registry: the documentation, the dashboard and the alerts name what
//! there is, with the labels it has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use regex::Regex;
use serde_json::Value;

use super::Metrics;
use super::register::{Described, described};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Every metric by its full name: its type, and its labels.
fn registered() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut all = BTreeMap::new();
    for Described { name, kind, labels } in described(|| drop(Metrics::new().unwrap())) {
        let full = format!("sessile_{name}");
        assert_eq!(all.insert(full.clone(), (kind, labels.into_iter().collect())), None, "{full} twice");
    }
    let text = String::from_utf8(Metrics::new().unwrap().text()).unwrap();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE process_")) {
        let (name, kind) = line.split_once(' ').unwrap();
        all.insert(format!("process_{name}"), (kind.to_owned(), BTreeSet::new()));
    }
    assert!(all.len() > 40, "{}", all.len());
    all
}

#[test]
fn the_documentation_has_every_metric_as_it_is() {
    let ticked = Regex::new("`([a-z_]+)`").unwrap();
    let mut written = BTreeMap::new();
    for row in read("docs/observability.md").lines() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let Some(name) = cells.get(1).and_then(|cell| ticked.captures(cell)).map(|name| name[1].to_owned())
        else {
            continue;
        };
        if cells.len() != 7 {
            continue;
        }
        assert!(!cells[4].is_empty() && cells[5].len() > 5, "{row}");
        let labels = ticked.captures_iter(cells[3]).map(|label| label[1].to_owned()).collect();
        written.insert(name, (cells[2].to_owned(), labels));
    }
    assert_eq!(written, registered());
}

/// Names of metrics, and names of labels, in an expression.
fn named(expression: &str) -> (Vec<String>, Vec<String>) {
    let strings = Regex::new(r#""[^"]*""#).unwrap();
    let bare = strings.replace_all(expression, "\"\"").into_owned();
    let metrics = Regex::new(r"\b((?:sessile|process)_[a-z_]+)").unwrap();
    let matchers = Regex::new(r#"([a-z_]+)\s*(?:=~|!~|!=|=)\s*"""#).unwrap();
    let groups = Regex::new(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)").unwrap();
    let mut labels: Vec<String> = matchers.captures_iter(&bare).map(|found| found[1].to_owned()).collect();
    for group in groups.captures_iter(&bare) {
        labels.extend(group[1].split(',').map(|label| label.trim().to_owned()));
    }
    (metrics.captures_iter(&bare).map(|found| found[1].to_owned()).collect(), labels)
}

/// What is wrong with an expression, if anything.
fn fault(expression: &str) -> Option<String> {
    let all = registered();
    let (metrics, labels) = named(expression);
    // Those of every scrape, and of every histogram.
    let mut known: BTreeSet<String> = ["job", "instance", "le"].map(str::to_owned).into();
    for metric in &metrics {
        let part = ["_bucket", "_sum", "_count"].iter().find_map(|part| metric.strip_suffix(part));
        let histogram = part.and_then(|name| all.get(name)).filter(|(kind, _)| kind == "histogram");
        let plain = all.get(metric).filter(|(kind, _)| kind != "histogram");
        let Some((_, labels)) = histogram.or(plain) else { return Some(format!("no metric {metric}")) };
        known.extend(labels.iter().cloned());
    }
    labels.into_iter().find(|label| !known.contains(label)).map(|label| format!("no label {label}"))
}

/// Every expression below a node, and templates' queries.
fn expressions(node: &Value, found: &mut Vec<String>) {
    match node {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text) if key == "expr" || key == "definition" => found.push(text.clone()),
                    other => expressions(other, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let dashboard: Value = serde_json::from_str(&read("observability/dashboard.json")).unwrap();
    let mut found = Vec::new();
    expressions(&dashboard, &mut found);
    assert!(found.len() > 30, "{found:#?}");
    for expression in found {
        // `label_values(metric{…}, label)` is Grafana's own.
        let asked = expression.strip_prefix("label_values(").unwrap_or(&expression);
        assert_eq!(fault(asked), None, "{expression}");
    }
}

#[test]
fn the_alerts_ask_for_what_there_is_and_each_has_a_test() {
    let (alerts, tests) = (read("observability/alerts.yml"), read("observability/alerts.test.yml"));
    let expressions: Vec<&str> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: '")).collect();
    let names: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(expressions.len() == names.len() && names.len() > 10, "{names:?}");
    for expression in expressions {
        assert_eq!(fault(expression), None, "{expression}");
    }
    for name in names {
        for case in ["fires", "is calm"] {
            assert!(tests.contains(&format!("- name: '{name} {case}'\n")), "{name} {case}");
        }
    }
}

#[test]
fn a_wrong_expression_is_seen() {
    for (expression, expected) in [
        ("rate(sessile_placement_total[5m])", Some("no metric sessile_placement_total")),
        ("sessile_backend_up{backnd=\"a\"}", Some("no label backnd")),
        ("sum by (reasn) (sessile_placements_total)", Some("no label reasn")),
        ("sessile_locate_duration_seconds", Some("no metric sessile_locate_duration_seconds")),
        ("sessile_pins_bucket", Some("no metric sessile_pins_bucket")),
        ("sum by (reason) (rate(sessile_placements_total{job=~\"a=b\"}[5m]))", None),
    ] {
        assert_eq!(fault(expression).as_deref(), expected, "{expression}");
    }
}

#[test]
fn the_documentation_has_every_field_of_the_access_log() {
    let source = read("src/metrics/record.rs");
    let (_, rest) = source.split_once("target: \"sessile::access\",").unwrap();
    let (fields, _) = rest.split_once("\"connection closed\"").unwrap();
    let field = Regex::new(r"(?m)^\s+([a-z_]+) = ").unwrap();
    let logged: Vec<String> = field.captures_iter(fields).map(|found| found[1].to_owned()).collect();
    let text = read("docs/observability.md");
    let (_, section) = text.split_once("\n## Access log\n").unwrap();
    let row = Regex::new(r"(?m)^\| `([a-z_]+)` \|").unwrap();
    let written: Vec<String> = row.captures_iter(section).map(|found| found[1].to_owned()).collect();
    assert_eq!(written, logged);
    let (_, sample) = section.split_once("```json\n").unwrap();
    let sample: Value = serde_json::from_str(sample.split_once("\n```").unwrap().0).unwrap();
    for field in logged {
        assert!(sample.get(&field).is_some(), "{field}");
    }
    let labels = Regex::new(r#"(?m)^ +(By|At|Why)::[A-Za-z]+ => "([a-z_]+)","#).unwrap();
    let source = read("src/close.rs");
    let mut count = 0;
    for [_, field, word] in
        labels.captures_iter(&source).map(|found| [0, 1, 2].map(|at| found[at].to_owned()))
    {
        let row = format!("\n| `{}` | ", field.to_lowercase());
        let (_, meaning) = section.split_once(&row).unwrap();
        let (meaning, _) = meaning.split_once('\n').unwrap();
        assert!(meaning.contains(&format!("`{word}`")), "{field} {word}");
        count += 1;
    }
    assert!(count > 20, "{count}");
}

/// Where an event has not happened yet, its counter says 0: the first one must not be missed.
#[test]
fn every_counter_is_there_from_the_start() {
    let metrics = Metrics::new().unwrap();
    metrics.listens("0.0.0.0:4321");
    metrics.certificate_expires("0.0.0.0:4321", Some(1));
    let _backend = metrics.backend(&"cli-1".into());
    let text = String::from_utf8(metrics.text()).unwrap();
    for (name, (kind, labels)) in registered() {
        if kind != "counter" {
            continue;
        }
        let series = text
            .lines()
            .filter(|line| line.strip_prefix(&*name).is_some_and(|rest| rest.starts_with([' ', '{'])));
        assert!(series.count() > 0, "{name} {labels:?}");
    }
    let has = |series: &str| assert!(text.contains(&format!("\n{series} 0\n")), "{series}");
    has(
        r#"sessile_connections_closed_total{at="relay",by="backend",listener="0.0.0.0:4321",why="backend_lost"}"#,
    );
    has(
        r#"sessile_connections_closed_total{at="place",by="balancer",listener="0.0.0.0:4321",why="no_backend"}"#,
    );
    has(r#"sessile_request_errors_total{class="send",code="-32603"}"#);
    has(r#"sessile_request_errors_total{class="other",code="other"}"#);
    // And its labels are those that the documentation tells of.
    let documented = read("docs/observability.md");
    let label = Regex::new(r#"^(sessile_[a-z_]+_total)\{[a-z]+="([a-z_]+)"\} 0$"#).unwrap();
    for (name, value) in text
        .lines()
        .filter_map(|line| label.captures(line))
        .map(|found| (found[1].to_owned(), found[2].to_owned()))
    {
        let row = documented.lines().find(|row| row.starts_with(&format!("| `{name}`"))).unwrap();
        let told = row.contains(&format!("`{value}`")) || row.contains("`data.reason`");
        assert!(told, "{name}: {value} in {row}");
    }
}
