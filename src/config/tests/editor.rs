//! The JSON Schema says of a file what the checks say, as far as a schema can.

use std::fs;

use serde_json::{Value, json};

use super::*;
use crate::config::editor::json_schema;

/// Why `value` does not fit; only what our schema uses of JSON Schema.
fn misfit(schema: &Value, value: &Value, at: &str) -> Option<String> {
    if let Some(choices) = schema["anyOf"].as_array() {
        let fits = choices.iter().any(|choice| misfit(choice, value, at).is_none());
        return (!fits).then(|| format!("{at}: none of the choices"));
    }
    if let Some(only) = schema.get("const") {
        return (only != value).then(|| format!("{at}: {value} is not {only}"));
    }
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        _ => return Some(format!("{at}: the schema says nothing of it")),
    };
    if !fits {
        return Some(format!("{at}: {value} is no {}", schema["type"]));
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        return Some(format!("{at}: {value} is no such word"));
    }
    if let (Some(pattern), Some(text)) = (schema["pattern"].as_str(), value.as_str())
        && !regex::Regex::new(pattern).unwrap().is_match(text)
    {
        return Some(format!("{at}: {text} is not {pattern}"));
    }
    if let Some(items) = value.as_array() {
        return items.iter().find_map(|item| misfit(&schema["items"], item, at));
    }
    let table = value.as_object()?;
    if table.is_empty() && schema["minProperties"] == 1 {
        return Some(format!("{at}: empty"));
    }
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    if let Some(missing) = required.iter().find(|key| !table.contains_key(key.as_str().unwrap())) {
        return Some(format!("{at}: no {missing}"));
    }
    table.iter().find_map(|(key, value)| match schema["properties"].get(key) {
        Some(schema) => misfit(schema, value, &format!("{at}.{key}")),
        None => Some(format!("{at}: no key {key}")),
    })
}

fn as_json(value: &toml::de::DeValue<'_>) -> Value {
    use toml::de::DeValue;
    match value {
        DeValue::String(text) => json!(text),
        DeValue::Integer(number) => json!(i64::from_str_radix(number.as_str(), number.radix()).unwrap()),
        DeValue::Float(number) => json!(number.as_str().parse::<f64>().unwrap()),
        DeValue::Boolean(yes) => json!(yes),
        DeValue::Datetime(date) => json!(date.to_string()),
        DeValue::Array(items) => items.iter().map(|item| as_json(item.get_ref())).collect(),
        DeValue::Table(table) => {
            table.iter().map(|(key, value)| (key.get_ref().to_string(), as_json(value.get_ref()))).collect()
        }
    }
}

fn judged(text: &str) -> Option<String> {
    let tree = toml::de::DeTable::parse(text).unwrap();
    let root = toml::de::DeValue::Table(tree.into_inner());
    misfit(&json_schema(), &as_json(&root), "")
}

#[test]
fn every_sample_configuration_fits_the_schema() {
    let mut count = 0;
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        assert_eq!(judged(&text), None, "{text}");
        count += 1;
    }
    assert!(count >= 6, "{count}");
}

#[test]
fn every_key_is_described_and_takes_what_the_checks_take() {
    let samples = [
        "0",
        "1",
        "7",
        "0.5",
        "1.25",
        "'0s'",
        "'2s'",
        "'1m 500ms'",
        "'0'",
        "'64KiB'",
        "1048576",
        "'1 MiB'",
        "true",
        "'x'",
        "'127.0.0.1:4329'",
        "'cli:1'",
        "'/run/s.sock'",
        "['a.b']",
        "['systemctl', 'restart', 'copilot-cli@{name}.service']",
        "['10.0.0.1:53']",
        "[1]",
        "{ env = 'TOKEN' }",
        "{ file = 1 }",
        "{}",
        "'round-robin'",
        "'session'",
        "'all'",
        "'local'",
        "'off'",
        "'close'",
        "'drain'",
        "'^(a)'",
    ];
    let mut agreed = 0;
    for section in SECTIONS {
        for key in section.keys {
            let table = &json_schema()["properties"][section.name];
            let schema = if section.repeated { &table["items"] } else { table };
            let text = schema["properties"][key]["description"].as_str().unwrap_or_default();
            assert!(text.len() > 20, "{section} {key} is not explained: {text:?}");
            for value in samples {
                let file = match section.name {
                    "listener" if *key == "address" => SOUND.replace("\"127.0.0.1:4321\"", value),
                    "listener" => SOUND.replace("[[backend]]", &format!("{key} = {value}\n[[backend]]")),
                    "backend" if ["name", "address"].contains(key) => continue,
                    "backend" => format!("{SOUND}{key} = {value}\n"),
                    name => format!("{SOUND}[{name}]\n{key} = {value}\n"),
                };
                let (sound, fits) = (parsed(&file).is_ok(), judged(&file).is_none());
                assert!(!sound || fits, "{section} {key} = {value}: {:?}", judged(&file));
                agreed += usize::from(sound);
                let refused = ["true", "[1]", "{ file = 1 }", "{}"].contains(&value)
                    && (*key, value) != ("revive", "true");
                assert!(!refused || !fits, "{section} {key} = {value} is nothing to any key");
            }
        }
    }
    assert!(agreed > 100, "only {agreed} values were taken");
    assert!(judged("[[listener]]\n").is_some() && judged(&format!("{SOUND}[x]\n")).is_some());
    assert!(judged(&format!("{SOUND}wieght = 1\n")).is_some());
}
