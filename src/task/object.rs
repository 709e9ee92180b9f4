//! JSON objects in which every key occurs once.
//!
//! Of a key that occurs twice one reader takes the first and another the last: what is written down of a task and what
//! its client reads would differ.

use std::fmt;

use serde::de::{Deserializer as _, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

/// Reads an object. The error says what is wrong with it.
pub(super) fn read(body: &[u8]) -> Result<Map<String, Value>, serde_json::Error> {
    struct Object;
    impl<'de> Visitor<'de> for Object {
        type Value = Map<String, Value>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("an object")
        }

        fn visit_map<M: MapAccess<'de>>(self, mut members: M) -> Result<Self::Value, M::Error> {
            let mut object = Map::new();
            while let Some((key, value)) = members.next_entry::<String, Value>()? {
                if object.contains_key(&key) {
                    return Err(M::Error::custom("a key occurs twice"));
                }
                object.insert(key, value);
            }
            Ok(object)
        }
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let object = json.deserialize_map(Object)?;
    json.end().map(|()| object)
}

#[cfg(test)]
mod tests {
    use super::read;

    #[test]
    fn an_object_has_every_key_once() {
        assert_eq!(read(br#" {"a":1,"b":{"a":2}} "#).unwrap().len(), 2);
        for wrong in [r#"{"a":1,"a":1}"#, r#"{"a":1,"\u0061":1}"#, "[]", "{}{}", "{", ""] {
            assert!(read(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
