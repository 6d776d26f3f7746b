//! The text of a configuration file.

use std::collections::BTreeMap;

/// A configuration: settings by their full names, and backends.
#[derive(Clone, Debug)]
pub struct Text {
    settings: BTreeMap<String, String>,
    listener: BTreeMap<String, String>,
    backends: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    name: String,
    address: String,
    resolve: Option<String>,
    weight: u32,
    state: String,
    connections: usize,
}

impl Text {
    /// A listener on any port, no backends, and deadlines that a busy machine does not miss.
    pub fn new() -> Self {
        let text = Self { settings: BTreeMap::new(), listener: BTreeMap::new(), backends: Vec::new() };
        text.listener("address", "\"127.0.0.1:0\"")
            .set("admin.address", "\"127.0.0.1:0\"")
            .set("health.interval", "\"2s\"")
            .set("health.timeout", "\"2s\"")
            .set("timeouts.connect", "\"10s\"")
            .set("timeouts.locate", "\"5s\"")
            .set("timeouts.drain_spread", "\"0s\"")
    }

    /// Sets a key, say `timeouts.opening`, to a value as TOML writes it.
    pub fn set(mut self, key: &str, value: impl Into<String>) -> Self {
        self.settings.insert(key.to_owned(), value.into());
        self
    }

    /// Probes often. A busy machine misses some of them, but not five in a row, and no other backend is down.
    pub fn probed_often(self) -> Self {
        self.set("health.interval", "\"200ms\"").set("health.timeout", "\"200ms\"").set("health.fall", "5")
    }

    /// Leaves a key out.
    pub fn unset(mut self, key: &str) -> Self {
        self.settings.remove(key);
        self
    }

    /// Sets a key of the listener.
    pub fn listener(mut self, key: &str, value: impl Into<String>) -> Self {
        self.listener.insert(key.to_owned(), value.into());
        self
    }

    /// Adds a backend.
    pub fn backend(mut self, name: &str, address: impl ToString) -> Self {
        let (name, address) = (name.to_owned(), address.to_string());
        self.backends.push(Entry {
            name,
            address,
            resolve: None,
            weight: 1,
            state: "ready".to_owned(),
            connections: 0,
        });
        self
    }

    /// Adds a name that is looked up.
    pub fn resolved(self, name: &str, address: impl ToString, how: &str) -> Self {
        let mut text = self.backend(name, address);
        text.entry(name).resolve = Some(how.to_owned());
        text
    }

    /// Takes a backend out.
    pub fn without(mut self, name: &str) -> Self {
        self.backends.retain(|entry| entry.name != name);
        self
    }

    /// Changes a backend's weight.
    pub fn weight(mut self, name: &str, weight: u32) -> Self {
        self.entry(name).weight = weight;
        self
    }

    /// Changes a backend's state.
    pub fn state(mut self, name: &str, state: &str) -> Self {
        state.clone_into(&mut self.entry(name).state);
        self
    }

    /// Bounds a backend's connections.
    pub fn connections(mut self, name: &str, connections: usize) -> Self {
        self.entry(name).connections = connections;
        self
    }

    fn entry(&mut self, name: &str) -> &mut Entry {
        self.backends.iter_mut().find(|entry| entry.name == name).unwrap()
    }

    /// The file.
    pub fn toml(&self) -> String {
        let lines = |keys: &BTreeMap<String, String>| -> String {
            keys.iter().map(|(key, value)| format!("{key} = {value}\n")).collect()
        };
        let mut toml = lines(&self.settings) + "[[listener]]\n" + &lines(&self.listener);
        for Entry { name, address, resolve, weight, state, connections } in &self.backends {
            toml += &format!(
                "[[backend]]\nname = \"{name}\"\naddress = \"{address}\"\nstate = \"{state}\"\nconnections = {connections}\n"
            );
            if let Some(how) = resolve {
                toml += &format!("resolve = \"{how}\"\n");
            }
            if resolve.as_deref() != Some("srv") {
                toml += &format!("weight = {weight}\n");
            }
        }
        toml
    }
}
