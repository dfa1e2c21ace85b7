//! The JSON schema of a config type, read as what a person may write at each key.

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::Value;

/// The schema of a whole config type.
pub struct Schema {
    root: Value,
}

/// The values that one place may have.
#[derive(Debug, Clone)]
pub struct Allowed<'s> {
    pub kind: Kind<'s>,
    /// Whether leaving it empty is a value.
    pub optional: bool,
    pub description: Option<&'s str>,
}

/// The forms of a value.
#[derive(Debug, Clone)]
pub enum Kind<'s> {
    Bool,
    /// A whole number, inclusive bounds.
    Integer {
        min: Option<i128>,
        max: Option<i128>,
    },
    /// A real number, inclusive bounds.
    Number {
        min: Option<f64>,
        max: Option<f64>,
    },
    Text,
    /// Any number of elements.
    List(&'s Value),
    /// One element per schema.
    Tuple(&'s [Value]),
    /// Fixed keys.
    Section(Section<'s>),
    /// Free keys with values of one kind.
    Table(&'s Value),
    /// One of some words, or a mapping of one of some keys.
    Choice {
        words: Vec<Word<'s>>,
        keyed: Vec<Keyed<'s>>,
    },
    /// One of several forms that are told apart by their shape.
    Either(Vec<&'s Value>),
    /// Anything.
    Any,
}

/// The keys of a section.
#[derive(Debug, Clone)]
pub struct Section<'s> {
    pub keys: Vec<(&'s str, &'s Value)>,
    pub required: Vec<&'s str>,
}

/// A word that may be written.
#[derive(Debug, Clone, PartialEq)]
pub struct Word<'s> {
    pub word: &'s str,
    pub description: Option<&'s str>,
}

/// A mapping of one key that may be written.
#[derive(Debug, Clone)]
pub struct Keyed<'s> {
    pub key: &'s str,
    pub value: &'s Value,
    pub description: Option<&'s str>,
}

impl Schema {
    /// Derives the schema of `T`.
    pub fn of<T: JsonSchema>() -> Schema {
        Schema { root: SchemaGenerator::default().into_root_schema_for::<T>().to_value() }
    }

    /// The schema as JSON.
    pub fn json(&self) -> &Value {
        &self.root
    }

    /// The values at the top.
    pub fn top(&self) -> Allowed<'_> {
        self.allowed(&self.root)
    }

    /// The values where `schema` applies.
    pub fn allowed<'s>(&'s self, schema: &'s Value) -> Allowed<'s> {
        let own = schema.get("description").and_then(Value::as_str);
        let target = self.follow(schema);
        let alternatives = target.get("anyOf").and_then(Value::as_array);
        if let Some(all) = alternatives {
            let real: Vec<&Value> = all.iter().filter(|one| !is_null(one)).collect();
            let optional = real.len() < all.len();
            if let [only] = real[..] {
                let inner = self.allowed(only);
                let description = own.or(inner.description);
                return Allowed {
                    kind: inner.kind,
                    optional: optional || inner.optional,
                    description,
                };
            }
            return Allowed { kind: Kind::Either(real), optional, description: own };
        }
        let (types, optional) = types(target);
        let description = own.or_else(|| target.get("description").and_then(Value::as_str));
        Allowed { kind: self.kind(target, &types), optional, description }
    }

    fn kind<'s>(&'s self, schema: &'s Value, types: &[&str]) -> Kind<'s> {
        if let Some(choice) = choice(schema) {
            return choice;
        }
        let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
        let whole = |key: &str| bound(key).map(|bound| bound as i128);
        match types {
            ["boolean"] => Kind::Bool,
            ["integer"] => {
                let (low, high) = format_bounds(schema);
                Kind::Integer { min: whole("minimum").or(low), max: whole("maximum").or(high) }
            }
            ["number"] => Kind::Number { min: bound("minimum"), max: bound("maximum") },
            ["string"] => Kind::Text,
            ["array"] => match (schema.get("prefixItems"), schema.get("items")) {
                (Some(Value::Array(items)), _) => Kind::Tuple(items),
                (_, Some(items)) => Kind::List(items),
                _ => Kind::Any,
            },
            ["object"] => match (schema.get("properties"), schema.get("additionalProperties")) {
                (Some(Value::Object(properties)), _) => {
                    let keys =
                        properties.iter().map(|(key, value)| (key.as_str(), value)).collect();
                    let required = schema.get("required").and_then(Value::as_array);
                    let required =
                        required.into_iter().flatten().filter_map(Value::as_str).collect();
                    Kind::Section(Section { keys, required })
                }
                (None, Some(values @ Value::Object(_))) => Kind::Table(values),
                (None, Some(Value::Bool(false))) => {
                    Kind::Section(Section { keys: Vec::new(), required: Vec::new() })
                }
                _ => Kind::Any,
            },
            _ => Kind::Any,
        }
    }

    /// Follows references to their definition.
    fn follow<'s>(&'s self, mut schema: &'s Value) -> &'s Value {
        while let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            let pointer = reference.strip_prefix('#').unwrap_or(reference);
            match self.root.pointer(pointer) {
                Some(target) => schema = target,
                None => return &Value::Null,
            }
        }
        schema
    }

    /// Every key with its sections, for advice on misplaced ones: (`model.layers`, `layers`).
    pub fn all_keys(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        self.collect_keys(&self.root, "", 0, &mut found);
        found
    }

    fn collect_keys(
        &self,
        schema: &Value,
        at: &str,
        depth: usize,
        out: &mut Vec<(String, String)>,
    ) {
        // Schemas may refer to themselves; no config nests deeper.
        if depth > 6 {
            return;
        }
        if let Kind::Section(section) = self.allowed(schema).kind {
            for (key, value) in section.keys {
                let path = join(at, key);
                self.collect_keys(value, &path, depth + 1, out);
                out.push((path, key.to_string()));
            }
        }
    }
}

/// `a.b`, or `b` at the top.
pub fn join(at: &str, key: &str) -> String {
    if at.is_empty() { key.to_string() } else { format!("{at}.{key}") }
}

fn is_null(schema: &Value) -> bool {
    schema.get("type").and_then(Value::as_str) == Some("null")
}

/// The types other than null, and whether null is one.
fn types(schema: &Value) -> (Vec<&str>, bool) {
    let all: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let real: Vec<&str> = all.iter().copied().filter(|one| *one != "null").collect();
    let optional = real.len() < all.len();
    (real, optional)
}

/// Bounds of the Rust type, so that 2³² in a `u32` is a range problem rather than a riddle.
fn format_bounds(schema: &Value) -> (Option<i128>, Option<i128>) {
    match schema.get("format").and_then(Value::as_str) {
        Some("uint8") => (Some(0), Some(u8::MAX.into())),
        Some("uint16") => (Some(0), Some(u16::MAX.into())),
        Some("uint32") => (Some(0), Some(u32::MAX.into())),
        Some("uint64" | "uint") => (Some(0), Some(u64::MAX.into())),
        Some("int32") => (Some(i32::MIN.into()), Some(i32::MAX.into())),
        Some("int64" | "int") => (Some(i64::MIN.into()), Some(i64::MAX.into())),
        _ => (None, None),
    }
}

/// An externally tagged enum.
fn choice(schema: &Value) -> Option<Kind<'_>> {
    let branches = match schema.get("oneOf") {
        Some(Value::Array(branches)) => branches.as_slice(),
        _ if schema.get("enum").is_some() || schema.get("const").is_some() => {
            std::slice::from_ref(schema)
        }
        _ => return None,
    };
    // Without branches the description is the type's, not a word's.
    let described = schema.get("oneOf").is_some();
    let (mut words, mut keyed) = (Vec::new(), Vec::new());
    for branch in branches {
        let description = branch.get("description").and_then(Value::as_str).filter(|_| described);
        let constants = branch.get("const").into_iter();
        let listed = branch.get("enum").and_then(Value::as_array).into_iter().flatten();
        for word in constants.chain(listed).filter_map(Value::as_str) {
            words.push(Word { word, description });
        }
        if let Some(Value::Object(properties)) = branch.get("properties") {
            for (key, value) in properties {
                keyed.push(Keyed { key, value, description });
            }
        }
    }
    Some(Kind::Choice { words, keyed })
}

impl Kind<'_> {
    /// The values that may be written, in words: `a whole number, at least 1`.
    pub fn expectation(&self) -> String {
        match self {
            Kind::Bool => "true or false".into(),
            Kind::Integer { min, max } => format!("a whole number{}", bounds(min, max)),
            Kind::Number { min, max } => format!("a number{}", bounds(min, max)),
            Kind::Text => "text".into(),
            Kind::List(_) => "a list".into(),
            Kind::Tuple(items) => format!("a list of {}", items.len()),
            Kind::Section(_) | Kind::Table(_) => "a section of keys".into(),
            Kind::Choice { .. } => format!("one of {}", self.choices().join(", ")),
            Kind::Either(_) => "one of several forms".into(),
            Kind::Any => "any value".into(),
        }
    }

    /// The words and keyed forms of a choice.
    pub fn choices(&self) -> Vec<String> {
        let Kind::Choice { words, keyed } = self else { return Vec::new() };
        let words = words.iter().map(|word| format!("`{}`", word.word));
        words.chain(keyed.iter().map(|one| format!("`{{{}: …}}`", one.key))).collect()
    }
}

fn bounds<T: Copy + Into<Bound>>(min: &Option<T>, max: &Option<T>) -> String {
    // The limits of 64-bit integers are not worth a word.
    let said = |bound: &Option<T>| bound.map(Into::into).filter(|bound: &Bound| bound.is_said());
    match (said(min), said(max)) {
        (Some(min), Some(max)) => format!(" from {min} to {max}"),
        (Some(min), None) => format!(", at least {min}"),
        (None, Some(max)) => format!(", at most {max}"),
        (None, None) => String::new(),
    }
}

enum Bound {
    Whole(i128),
    Real(f64),
}

impl Bound {
    fn is_said(&self) -> bool {
        match *self {
            Bound::Whole(n) => n > i128::from(i64::MIN) && n < i128::from(i64::MAX),
            Bound::Real(x) => x.is_finite(),
        }
    }
}

impl From<i128> for Bound {
    fn from(n: i128) -> Bound {
        Bound::Whole(n)
    }
}

impl From<f64> for Bound {
    fn from(x: f64) -> Bound {
        Bound::Real(x)
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bound::Whole(n) => write!(f, "{n}"),
            Bound::Real(x) => write!(f, "{x}"),
        }
    }
}
