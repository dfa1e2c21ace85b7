//! The entries behind a digest, so that hosts that differ are told in which of them.

use serde::Serialize;
use serde_json::Value;

/// Most entries, and most bytes of a value: a few kilobytes go to the meeting point from each host.
const ENTRIES: usize = 512;
const VALUE_BYTES: usize = 64;

/// Names as in a config (`train.steps`), and values on one line. Of a long value there is the
/// beginning and a digest, so that others that begin alike differ.
pub fn entries(value: &impl Serialize) -> comm::rendezvous::Entries {
    let mut all = Vec::new();
    walk(String::new(), &serde_json::to_value(value).unwrap_or_default(), &mut all);
    all.truncate(ENTRIES);
    all
}

fn walk(name: String, value: &Value, all: &mut comm::rendezvous::Entries) {
    let below = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    match value {
        Value::Object(map) if !map.is_empty() => {
            map.iter().for_each(|(key, value)| walk(below(key), value, all));
        }
        // Lists of numbers and words are read as a whole.
        Value::Array(list) if list.iter().any(|value| value.is_object() || value.is_array()) => {
            for (at, value) in list.iter().enumerate() {
                walk(format!("{name}[{at}]"), value, all);
            }
        }
        Value::String(text) => all.push((name, short(text))),
        Value::Null => all.push((name, "none".to_owned())),
        other => all.push((name, short(&other.to_string()))),
    }
}

fn short(text: &str) -> String {
    match text.len() <= VALUE_BYTES {
        true => text.to_owned(),
        false => {
            let start = &text[..text.floor_char_boundary(VALUE_BYTES / 2)];
            format!("{start}… ({})", &blake3::hash(text.as_bytes()).to_hex()[..8])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_a_name_and_none_is_long() {
        let long = "é".repeat(1000);
        let value = serde_json::json!({
            "train": {"steps": 6, "warm": null, "rates": [0.5, 1]},
            "data": [{"files": "a.txt"}, {"files": long}],
            "name": "run",
        });
        let all = entries(&value);
        let of = |name: &str| {
            let (_, value) = all.iter().find(|(known, _)| known == name).unwrap();
            value.as_str()
        };
        assert_eq!(all.len(), 6, "{all:?}");
        assert_eq!((of("train.steps"), of("train.warm"), of("name")), ("6", "none", "run"));
        assert_eq!((of("train.rates"), of("data[0].files")), ("[0.5,1]", "a.txt"));
        let start = format!("{}… (", "é".repeat(16));
        assert!(of("data[1].files").starts_with(&start), "{}", of("data[1].files"));
        assert_ne!(short(&long), short(&format!("{long}é")));
        assert_eq!(entries(&vec![serde_json::json!({"a": 1}); 1000]).len(), ENTRIES);
    }
}
