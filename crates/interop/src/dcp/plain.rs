//! Plain values out of a pickle: numbers, texts, and lists and dictionaries of them.
//!
//! Whatever else is met is left out, and told by its place and its class. A walk over shared parts
//! may be far longer than the pickle, so it has a budget.

use std::fmt;

use super::pickle::{Globals, Id, Node, Object, Pickle, PickleError};

/// How deep values are followed.
const LEVELS: usize = 64;

/// Values that a pickle may describe per byte of it, and in any case.
const VALUES: [usize; 2] = [16, 4096];

/// A value that needs no class of anybody's.
#[derive(Debug, Clone, PartialEq)]
pub enum Plain {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// A list, a tuple or a set.
    List(Vec<Plain>),
    Dict(Vec<(Plain, Plain)>),
}

/// Something that is not read, by its name or place, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    pub name: String,
    pub reason: String,
}

impl Plain {
    /// The plain parts of a pickled value; `None` where the value itself is no plain one.
    ///
    /// # Errors
    /// The pickle is damaged.
    pub fn read(bytes: &[u8]) -> Result<(Option<Plain>, Vec<LeftOut>), PickleError> {
        let pickle = Pickle::read(bytes, Globals::Any)?;
        let [per_byte, least] = VALUES;
        let budget = pickle.bytes().saturating_mul(per_byte).max(least);
        let mut walk = Walk { pickle: &pickle, budget, path: Vec::new(), left_out: Vec::new() };
        let value = walk.value(pickle.root());
        if walk.budget == 0 {
            let reason = format!("more than {budget} values, by parts that are shared");
            return Ok((None, vec![LeftOut { name: String::new(), reason }]));
        }
        Ok((value, walk.left_out))
    }

    /// The value of a key of a dictionary.
    pub fn get(&self, key: &str) -> Option<&Plain> {
        let Plain::Dict(pairs) = self else { return None };
        let is_it = |name: &Plain| matches!(name, Plain::Text(text) if text == key);
        pairs.iter().find(|(name, _)| is_it(name)).map(|(_, value)| value)
    }
}

impl fmt::Display for Plain {
    /// As Python writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Plain::None => f.write_str("None"),
            Plain::Bool(true) => f.write_str("True"),
            Plain::Bool(false) => f.write_str("False"),
            Plain::Int(value) => write!(f, "{value}"),
            Plain::Float(value) => write!(f, "{value:?}"),
            Plain::Text(text) => write!(f, "{text:?}"),
            Plain::List(parts) => {
                f.write_str("[")?;
                for (number, part) in parts.iter().enumerate() {
                    write!(f, "{}{part}", if number == 0 { "" } else { ", " })?;
                }
                f.write_str("]")
            }
            Plain::Dict(pairs) => {
                f.write_str("{")?;
                for (number, (key, value)) in pairs.iter().enumerate() {
                    write!(f, "{}{key}: {value}", if number == 0 { "" } else { ", " })?;
                }
                f.write_str("}")
            }
        }
    }
}

/// A walk over the values of a pickle.
struct Walk<'p, 'a> {
    pickle: &'p Pickle<'a>,
    /// Values that may still be visited; the walk ends, and comes to nothing, at zero.
    budget: usize,
    /// Keys from the root to the value at hand.
    path: Vec<String>,
    left_out: Vec<LeftOut>,
}

impl Walk<'_, '_> {
    fn value(&mut self, id: Id) -> Option<Plain> {
        if self.path.len() > LEVELS {
            return self.leave("it lies too deep".to_owned());
        }
        self.budget = self.budget.saturating_sub(1);
        let pickle = self.pickle;
        match pickle.node(id) {
            Node::None => Some(Plain::None),
            Node::Bool(value) => Some(Plain::Bool(*value)),
            Node::Int(value) => Some(Plain::Int(*value)),
            Node::Float(value) => Some(Plain::Float(*value)),
            Node::Text(text) => Some(Plain::Text((*text).to_owned())),
            Node::List(parts) | Node::Tuple(parts) | Node::Set(parts) => Some(self.list(parts)),
            Node::Dict(pairs) => Some(self.dict(pairs)),
            Node::Global("torch", name) => Some(Plain::Text(format!("torch.{name}"))),
            Node::Long(bytes) => self.leave(format!("an int of {} bytes", bytes.len())),
            Node::Bytes(bytes) => self.leave(format!("{} bytes", bytes.len())),
            Node::Global(module, name) => self.leave(format!("`{module}.{name}`")),
            Node::Persistent(_) => self.leave("a tensor's storage".to_owned()),
            Node::Object(object) => self.object(object),
        }
    }

    fn list(&mut self, parts: &[Id]) -> Plain {
        let mut all = Vec::new();
        for (number, &part) in parts.iter().enumerate() {
            if self.budget == 0 {
                break;
            }
            self.path.push(number.to_string());
            all.extend(self.value(part));
            self.path.pop();
        }
        Plain::List(all)
    }

    fn dict(&mut self, pairs: &[(Id, Id)]) -> Plain {
        let mut all = Vec::new();
        for (number, &(key, value)) in pairs.iter().enumerate() {
            if self.budget == 0 {
                break;
            }
            self.path.push(format!("key {number}"));
            let key = self.value(key);
            self.path.pop();
            let Some(key) = key else { continue };
            self.path.push(match &key {
                Plain::Text(text) => text.clone(),
                other => other.to_string(),
            });
            all.extend(self.value(value).map(|value| (key, value)));
            self.path.pop();
        }
        Plain::Dict(all)
    }

    /// Classes that hold plain values and do nothing with them.
    fn object(&mut self, object: &Object) -> Option<Plain> {
        let pickle = self.pickle;
        let Node::Global(module, name) = pickle.node(object.callable) else {
            return self.leave("an object of a class that is itself made by a call".to_owned());
        };
        let arguments = match pickle.node(object.arguments) {
            Node::Tuple(arguments) => &arguments[..],
            _ => &[],
        };
        let state = object.state.map(|state| pickle.node(state));
        match (*module, *name, arguments, state) {
            ("collections", "OrderedDict", [], _) => Some(self.dict(&object.items)),
            ("collections", "defaultdict", _, _) => Some(self.dict(&object.items)),
            ("torch", "Size", &[sizes], _) => self.value(sizes),
            ("builtins" | "__builtin__", "set" | "frozenset", &[parts], _) => self.value(parts),
            ("argparse", "Namespace", [], Some(Node::Dict(pairs)))
            | ("types", "SimpleNamespace", [], Some(Node::Dict(pairs))) => Some(self.dict(pairs)),
            (module, name, ..) => self.leave(format!("of class `{module}.{name}`")),
        }
    }

    fn leave(&mut self, reason: String) -> Option<Plain> {
        self.left_out.push(LeftOut { name: self.path.join("."), reason });
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_parts_are_kept_and_others_told() {
        let bytes =
            b"\x80\x02}(X\x01\x00\x00\x00aK\x01X\x01\x00\x00\x00b]cm\nA\n)\x81aK\x02G\x40\x04\
            \x00\x00\x00\x00\x00\x00X\x01\x00\x00\x00dctorch\nbfloat16\nX\x01\x00\x00\x00n\
            cargparse\nNamespace\n)\x81}(X\x01\x00\x00\x00xNX\x01\x00\x00\x00ycA\nB\nubu.";
        let (value, left_out) = Plain::read(bytes).unwrap();
        let value = value.unwrap();
        let shown = r#"{"a": 1, "b": [], 2: 2.5, "d": "torch.bfloat16", "n": {"x": None}}"#;
        assert_eq!(value.to_string(), shown);
        assert_eq!(value.get("a"), Some(&Plain::Int(1)));
        let left: Vec<String> =
            left_out.iter().map(|left| format!("{} {}", left.name, left.reason)).collect();
        assert_eq!(left, ["b.0 of class `m.A`", "n.y `A.B`"]);
    }

    /// Each level holds the one below it twice: 2^60 values in 400 bytes.
    #[test]
    fn shared_parts_are_walked_within_a_budget() {
        let mut bytes = b"\x80\x02]q\x00".to_vec();
        for _ in 0..60 {
            bytes.extend(b"0]q\x01(h\x00h\x00eq\x00");
        }
        bytes.push(b'.');
        let (value, left_out) = Plain::read(&bytes).unwrap();
        assert_eq!((value, left_out.len()), (None, 1));
        assert!(left_out[0].reason.contains("values, by parts that are shared"));
        // A list in itself.
        let (_, left_out) = Plain::read(b"\x80\x02]q\x00h\x00a.").unwrap();
        assert_eq!(left_out.len(), 1);
        assert_eq!(left_out[0].reason, "it lies too deep");
    }
}
