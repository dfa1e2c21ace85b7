//! Differences between two JSON values, place by place.

use std::collections::BTreeSet;

use serde_json::Value;

/// A place at which two values differ.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueDifference {
    /// Keys and indices from the outside in: `rules[0].muon.lr`.
    pub place: String,
    /// `None` where there is nothing.
    pub a: Option<Value>,
    pub b: Option<Value>,
}

/// The innermost places at which two values differ, keys in the order of the alphabet. Lists are
/// taken apart where they hold objects; others differ as a whole. `at` is where both lie.
pub fn value_differences(at: &str, a: &Value, b: &Value) -> Vec<ValueDifference> {
    let mut found = Vec::new();
    compare(at.to_owned(), Some(a), Some(b), &mut found);
    found
}

fn compare(place: String, a: Option<&Value>, b: Option<&Value>, found: &mut Vec<ValueDifference>) {
    match (a, b) {
        (Some(Value::Object(in_a)), Some(Value::Object(in_b))) => {
            // JSON's own order depends on a feature that any dependency may turn on.
            let keys: BTreeSet<&String> = in_a.keys().chain(in_b.keys()).collect();
            let dot = if place.is_empty() { "" } else { "." };
            for key in keys {
                compare(format!("{place}{dot}{key}"), in_a.get(key), in_b.get(key), found);
            }
        }
        (Some(Value::Array(in_a)), Some(Value::Array(in_b)))
            if in_a.iter().chain(in_b).any(Value::is_object) =>
        {
            for index in 0..in_a.len().max(in_b.len()) {
                compare(format!("{place}[{index}]"), in_a.get(index), in_b.get(index), found);
            }
        }
        (a, b) if a == b => {}
        (a, b) => found.push(ValueDifference { place, a: a.cloned(), b: b.cloned() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_have_their_innermost_place() {
        let a = json!({"rules": [{"muon": {"lr": 1, "roles": ["x"]}}], "same": [1, 2], "old": 0});
        let b = json!({"rules": [{"muon": {"lr": 2, "roles": ["y"]}}, {}], "same": [1, 2]});
        let found = value_differences("top", &a, &b);
        let places: Vec<&str> = found.iter().map(|found| found.place.as_str()).collect();
        let expected =
            ["top.old", "top.rules[0].muon.lr", "top.rules[0].muon.roles", "top.rules[1]"];
        assert_eq!(places, expected);
        assert_eq!((&found[0].a, &found[0].b), (&Some(json!(0)), &None));
        assert_eq!((&found[2].a, &found[2].b), (&Some(json!(["x"])), &Some(json!(["y"]))));
        assert_eq!((&found[3].a, &found[3].b), (&None, &Some(json!({}))));
        assert_eq!(value_differences("", &a, &a), []);
    }
}
