//! The params of a request as fields: names, and values as they were written.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The fields of an object, in order. Of two with one name the last counts, as it does for servers.
#[derive(Debug, Default)]
pub(super) struct Fields<'a>(pub(super) Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Fields::default();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    fields.put(name, value);
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl<'a> Fields<'a> {
    fn put(&mut self, name: String, value: &'a RawValue) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
    }

    /// Those of an object that is written there; `None` if it is none.
    pub(super) fn of(text: &'a RawValue) -> Option<Self> {
        serde_json::from_str(text.get()).ok()
    }

    /// The params of a request; `None` if it has none, or they are no object.
    pub(super) fn of_request(body: &'a [u8]) -> Option<Self> {
        let body: Self = serde_json::from_slice(body).ok()?;
        Self::of(body.get("params")?)
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_kept_as_written_and_the_last_of_a_name_counts() {
        let body = br#"{"id":1,"params":{"a": {"x" : 1} ,"b":1e2,"a":"\u0041","\u0063":[]}}"#;
        let fields = Fields::of_request(body).unwrap().0;
        let told: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.get())).collect();
        assert_eq!(told, [("a", r#""\u0041""#), ("b", "1e2"), ("c", "[]")]);
        for body in ["{}", r#"{"params":[1]}"#, r#"{"params":null}"#, r#"{"params":{"a":}}"#, "x", ""] {
            assert!(Fields::of_request(body.as_bytes()).is_none(), "{body}");
        }
    }
}
