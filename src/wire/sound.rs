//! Whether servers accept a body as JSON at all.
//!
//! The scan only matches brackets in values that it skips. A server refuses a body that is broken there with an error
//! that has no id, so the client would wait for ever. Therefore a client's request that is small enough to be held
//! whole is read as strictly as servers do before it is sent on. Numbers out of range and half surrogate pairs are
//! refused, too.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Whether this is JSON, read as strictly as servers do.
pub fn is_json(body: &[u8]) -> bool {
    serde_json::from_slice::<Sound>(body).is_ok()
}

/// Any value, of which nothing is kept.
struct Sound;

impl<'de> Deserialize<'de> for Sound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Sound {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self, A::Error> {
        while members.next_key::<Self>()?.is_some() {
            members.next_value::<Self>()?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As copilot-runtime 1.0.85 and the CLI 1.0.102 do.
    #[test]
    fn what_servers_refuse_is_refused() {
        let body =
            |value: &str| format!(r#"{{"jsonrpc":"2.0","id":7,"method":"m","params":{{"x":{value}}}}}"#);
        for sound in
            [r#""\ud83d\ude00 é""#, "[1,-0.5e-3,null,true]", r#"{"a":1,"a":2}"#, "18446744073709551616"]
        {
            assert!(is_json(body(sound).as_bytes()), "{sound}");
        }
        for broken in
            [r#""\ud800""#, r#""\ud800x""#, "01", "NaN", "1e999", "[1,]", "\"\u{1}\"", "tru", r#""\x""#]
        {
            assert!(!is_json(body(broken).as_bytes()), "{broken}");
        }
        assert!(!is_json(b"{\"x\":\"\xff\"}"));
    }
}
