//! Walks what was written against the schema and reports everything that does not fit.
//!
//! The result is the value that serde then reads, with the unfit parts left out, so that the
//! checks of meaning can still look at the rest.

use bench::collectives::parse_size;
use serde_json::{Map, Number, Value as Json};

use super::nearest::nearest;
use super::problem::{Place, Problem};
use super::schema::{Allowed, Kind, Schema, Section, join};
use super::tree::{Entry, Node, Value};

/// The walk over one config.
pub struct Checker<'s> {
    schema: &'s Schema,
    all_keys: Vec<(String, String)>,
    pub problems: Vec<Problem>,
}

impl<'s> Checker<'s> {
    /// Nothing found yet.
    pub fn new(schema: &'s Schema) -> Checker<'s> {
        Checker { schema, all_keys: schema.all_keys(), problems: Vec::new() }
    }

    /// Checks a whole config.
    pub fn check(&mut self, root: &Node) -> Json {
        self.node(root, &self.schema.top(), "").unwrap_or_else(|| Json::Object(Map::new()))
    }

    /// `node` as JSON; `None` where it does not fit, which has been reported.
    fn node(&mut self, node: &Node, allowed: &Allowed, path: &str) -> Option<Json> {
        if node.is_null() {
            return self.null(node, allowed, path);
        }
        match (&allowed.kind, &node.value) {
            (Kind::Section(section), Value::Map(entries)) => {
                Some(self.section(node, section, entries, path))
            }
            (Kind::Table(values), Value::Map(entries)) => {
                let mut out = Map::new();
                let allowed = self.schema.allowed(values);
                for entry in self.without_duplicates(entries, path) {
                    let value = self.node(&entry.node, &allowed, &join(path, &entry.key));
                    out.extend(value.map(|value| (entry.key.clone(), value)));
                }
                Some(Json::Object(out))
            }
            (Kind::List(items), Value::List(nodes)) => {
                let allowed = self.schema.allowed(items);
                Some(self.list(nodes.iter().map(|node| (node, allowed.clone())), path))
            }
            (Kind::Tuple(items), Value::List(nodes)) if items.len() == nodes.len() => {
                let allowed: Vec<Allowed> =
                    items.iter().map(|item| self.schema.allowed(item)).collect();
                Some(self.list(nodes.iter().zip(allowed), path))
            }
            (Kind::Choice { .. }, _) => self.choice(node, &allowed.kind, path),
            (Kind::Either(forms), _) => self.either(node, forms, path),
            (Kind::Any, _) => Some(plain_json(node)),
            (_, Value::Scalar { text, quoted }) => {
                self.scalar(node, &allowed.kind, text, *quoted, path)
            }
            // `sim:` is a map of nothing to YAML.
            (Kind::Text, Value::Map(entries)) if path == "ranks.optimizer_device" => match &entries
                [..]
            {
                [entry] if entry.node.is_empty() => Some(Json::String(format!("{}:", entry.key))),
                _ => self.misfit(node, &allowed.kind, path),
            },
            _ => self.misfit(node, &allowed.kind, path),
        }
    }

    fn report(&mut self, place: &Place, path: &str, what: String, help: impl Into<Vec<String>>) {
        let problem = Problem::new(place.clone(), path, what);
        self.problems.push(Problem { help: help.into(), ..problem });
    }

    /// Nothing behind a key may be a slip, of a section as of a number: defaults are asked for by
    /// leaving the key out, and no value, where there may be none, by `null`.
    fn null(&mut self, node: &Node, allowed: &Allowed, path: &str) -> Option<Json> {
        if allowed.optional && !node.is_empty() {
            return Some(Json::Null);
        }
        let key = path.rsplit('.').next().unwrap_or(path);
        let help = match &allowed.kind {
            Kind::Section(section) => {
                let names: Vec<&str> = section.keys.iter().map(|(name, _)| *name).collect();
                let names = names.join(", ");
                format!("write some of its keys ({names}), or `{key}: {{}}` for their defaults")
            }
            Kind::Table(_) => format!("write its keys, or `{key}: {{}}` for none"),
            Kind::List(_) => format!("write its elements, or `{key}: []` for none"),
            kind => format!("write {}, or remove the key", self.expectation(kind)),
        };
        self.report(&node.place, path, "no value".into(), [help]);
        None
    }

    /// The values that may be written, in words; of several forms all.
    fn expectation(&self, kind: &Kind) -> String {
        match kind {
            Kind::Either(forms) => {
                let forms = forms.iter().map(|form| self.schema.allowed(form).kind.expectation());
                forms.collect::<Vec<_>>().join(" or ")
            }
            kind => kind.expectation(),
        }
    }

    fn section(&mut self, node: &Node, section: &Section, entries: &[Entry], path: &str) -> Json {
        let mut out = Map::new();
        for entry in self.without_duplicates(entries, path) {
            let at = join(path, &entry.key);
            match section.keys.iter().find(|(key, _)| *key == entry.key) {
                Some((_, schema)) => {
                    let allowed = self.schema.allowed(schema);
                    let value = self.node(&entry.node, &allowed, &at);
                    out.extend(value.map(|value| (entry.key.clone(), value)));
                }
                None => {
                    let help = unknown_key_help(&entry.key, section, path, &self.all_keys);
                    self.report(&entry.place, &at, "unknown key".into(), help);
                }
            }
        }
        for key in &section.required {
            if !entries.iter().any(|entry| entry.key == *key) {
                let known = section.keys.iter().find(|(name, _)| name == key);
                let expectation =
                    known.map(|(_, schema)| self.schema.allowed(schema).kind.expectation());
                let help = format!("write `{key}: …` ({})", expectation.unwrap_or_default());
                self.report(&node.place, &join(path, key), "missing".into(), [help]);
            }
        }
        Json::Object(out)
    }

    fn without_duplicates<'e>(&mut self, entries: &'e [Entry], path: &str) -> Vec<&'e Entry> {
        let mut kept: Vec<&Entry> = Vec::with_capacity(entries.len());
        for entry in entries {
            match kept.iter().find(|earlier| earlier.key == entry.key) {
                None => kept.push(entry),
                Some(first) => {
                    let first = match &first.place {
                        Place::File { line, .. } => format!("on line {line}"),
                        _ => "before it".into(),
                    };
                    let help = format!("it is given {first}, too; keep one of the two");
                    let at = join(path, &entry.key);
                    self.report(&entry.place, &at, "given twice".into(), [help]);
                }
            }
        }
        kept
    }

    fn list<'a>(
        &mut self,
        nodes: impl Iterator<Item = (&'a Node, Allowed<'a>)>,
        path: &str,
    ) -> Json {
        let indexed = nodes.enumerate();
        let values = indexed
            .filter_map(|(i, (node, allowed))| self.node(node, &allowed, &format!("{path}[{i}]")));
        Json::Array(values.collect())
    }

    fn choice(&mut self, node: &Node, kind: &Kind, path: &str) -> Option<Json> {
        let Kind::Choice { words, keyed } = kind else { return None };
        let (word, entry) = match &node.value {
            Value::Scalar { text, .. } => (text, None),
            Value::Map(entries) if entries.len() == 1 => (&entries[0].key, Some(&entries[0])),
            Value::Map(entries) => {
                let keys: Vec<String> = entries.iter().map(|e| format!("`{}`", e.key)).collect();
                let what = match keys.is_empty() {
                    true => "no key".to_string(),
                    false => format!("{} keys ({}) where one chooses", keys.len(), keys.join(", ")),
                };
                self.report(&node.place, path, what, [format!("write {}", kind.expectation())]);
                return None;
            }
            Value::List(_) => return self.misfit(node, kind, path),
        };
        let place = entry.map_or(&node.place, |entry| &entry.place);
        let chosen = keyed.iter().find(|one| one.key == word);
        match (chosen, entry) {
            (Some(one), Some(entry)) => {
                let allowed = self.schema.allowed(one.value);
                let value = self.node(&entry.node, &allowed, &join(path, one.key))?;
                Some(Json::Object(Map::from_iter([(one.key.to_string(), value)])))
            }
            (Some(one), None) => {
                let inner = self.schema.allowed(one.value).kind;
                let example = example(one.key, &inner);
                let what = format!("`{word}` needs a value");
                self.report(&node.place, path, what, [format!("write `{example}`")]);
                None
            }
            (None, None) if words.iter().any(|one| one.word == word) => {
                Some(Json::String(word.clone()))
            }
            (None, Some(_)) if words.iter().any(|one| one.word == word) => {
                let help = format!("write `{word}` alone");
                self.report(place, path, format!("`{word}` takes no value"), [help]);
                None
            }
            (None, _) => {
                let candidates = words.iter().map(|one| one.word);
                let candidates = candidates.chain(keyed.iter().map(|one| one.key));
                let mut help: Vec<String> = Vec::new();
                help.extend(nearest(word, candidates).map(|n| format!("did you mean `{n}`?")));
                help.push(format!("choose {}", kind.expectation()));
                self.report(place, path, format!("unknown word `{word}`"), help);
                None
            }
        }
    }

    fn either(&mut self, node: &Node, forms: &[&Json], path: &str) -> Option<Json> {
        let allowed: Vec<Allowed> = forms.iter().map(|form| self.schema.allowed(form)).collect();
        let fits = |allowed: &&Allowed| match node.value {
            Value::List(_) => matches!(allowed.kind, Kind::List(_) | Kind::Tuple(_)),
            Value::Map(_) => {
                matches!(allowed.kind, Kind::Section(_) | Kind::Table(_) | Kind::Choice { .. })
            }
            Value::Scalar { .. } => !matches!(
                allowed.kind,
                Kind::List(_) | Kind::Tuple(_) | Kind::Section(_) | Kind::Table(_)
            ),
        };
        match allowed.iter().find(fits) {
            Some(allowed) => self.node(node, allowed, path),
            None => {
                let all = self.expectation(&Kind::Either(forms.to_vec()));
                let what = format!("{} does not fit", quoted_summary(node));
                self.report(&node.place, path, what, [format!("write {all}")]);
                None
            }
        }
    }

    fn scalar(
        &mut self,
        node: &Node,
        kind: &Kind,
        text: &str,
        quoted: bool,
        path: &str,
    ) -> Option<Json> {
        let number = if quoted { None } else { parse_number(text) };
        let fit = match kind {
            Kind::Text => Some(Json::String(text.to_string())),
            Kind::Bool if !quoted => parse_bool(text).map(Json::Bool),
            Kind::Integer { .. } => number.and_then(Parsed::whole).map(integer_json),
            Kind::Number { .. } => {
                number.map(Parsed::real).and_then(Number::from_f64).map(Json::Number)
            }
            _ => None,
        };
        let Some(fit) = fit else { return self.misfit(node, kind, path) };
        let out_of_range = match (kind, number) {
            (Kind::Integer { min, max }, Some(n)) => n
                .whole()
                .is_some_and(|n| min.is_some_and(|min| n < min) || max.is_some_and(|max| n > max)),
            (Kind::Number { min, max }, Some(x)) => {
                let x = x.real();
                min.is_some_and(|min| x < min) || max.is_some_and(|max| x > max)
            }
            _ => false,
        };
        if out_of_range {
            let help = format!("write {}", kind.expectation());
            self.report(&node.place, path, format!("{text} is out of range"), [help]);
            self.offer(kind, number);
            return None;
        }
        Some(fit)
    }

    fn misfit(&mut self, node: &Node, kind: &Kind, path: &str) -> Option<Json> {
        let found = quoted_summary(node);
        let what = format!("{found} is not {}", kind.expectation());
        let help = misfit_help(node, kind, path);
        self.report(&node.place, path, what, help);
        if let (Value::Scalar { text, quoted: false }, Kind::Integer { .. }) = (&node.value, kind) {
            self.offer(kind, parse_number(text));
        }
        None
    }

    /// Names the value that is nearest to `number` in what was reported last.
    fn offer(&mut self, kind: &Kind, number: Option<Parsed>) {
        if let (Some(problem), Some(number)) = (self.problems.last_mut(), number) {
            problem.nearest = Some(nearest_in_range(kind, number.real()));
        }
    }
}

/// Advice for a key that a section does not have.
pub fn unknown_key_help(
    key: &str,
    section: &Section,
    path: &str,
    all_keys: &[(String, String)],
) -> Vec<String> {
    let names = section.keys.iter().map(|(name, _)| *name);
    if let Some(name) = nearest(key, names.clone()) {
        return vec![format!("did you mean `{name}`?")];
    }
    let elsewhere: Vec<&str> =
        all_keys.iter().filter(|(_, name)| name == key).map(|(path, _)| path.as_str()).collect();
    if let [one] = elsewhere[..] {
        return vec![format!("there is `{one}`")];
    }
    let place = if path.is_empty() { "at the top".to_string() } else { format!("in `{path}`") };
    let names: Vec<&str> = names.collect();
    let list = match names.is_empty() {
        true => format!("there are no keys {place}"),
        false => format!("the keys {place} are {}", names.join(", ")),
    };
    vec![list]
}

fn misfit_help(node: &Node, kind: &Kind, path: &str) -> Vec<String> {
    let key = path.rsplit('.').next().unwrap_or(path);
    let help = match (&node.value, kind) {
        (Value::Scalar { text, quoted: true }, Kind::Integer { .. } | Kind::Number { .. })
            if parse_number(text).is_some() =>
        {
            format!("remove the quotes: `{key}: {text}`")
        }
        (Value::Scalar { text, quoted: true }, Kind::Bool) if parse_bool(text).is_some() => {
            format!("remove the quotes: `{key}: {text}`")
        }
        (Value::Scalar { text, .. }, Kind::Bool) => match text.to_ascii_lowercase().as_str() {
            "yes" | "on" | "1" | "y" => "write true".into(),
            "no" | "off" | "0" | "n" => "write false".into(),
            _ => return Vec::new(),
        },
        (Value::Scalar { text, .. }, Kind::Integer { .. }) if parse_number(text).is_some() => {
            return Vec::new();
        }
        (Value::Scalar { text, .. }, Kind::Integer { .. } | Kind::Number { .. })
            if parse_number(&text.replace(['_', ','], "")).is_some() =>
        {
            format!("write the digits without separators: {}", text.replace(['_', ','], ""))
        }
        (Value::Scalar { text, .. }, Kind::Integer { .. }) if is_size(key) => {
            let bytes = parse_size(text).unwrap_or(EXAMPLE_BYTES);
            let bytes = nearest_in_range(kind, bytes as f64);
            format!("write the number of bytes: `{key}: {bytes}`")
        }
        (_, Kind::List(_)) => "write `[…]`, or one `- …` a line".into(),
        (_, Kind::Integer { .. } | Kind::Number { .. }) => {
            format!("for example `{}`", example(key, kind))
        }
        (_, Kind::Section(section)) => {
            let names: Vec<&str> = section.keys.iter().map(|(name, _)| *name).collect();
            format!("its keys are {}", names.join(", "))
        }
        _ => return Vec::new(),
    };
    vec![help]
}

/// Whether a key counts bytes, which its value may have been written with a unit of.
fn is_size(key: &str) -> bool {
    key.ends_with("_bytes")
}

/// An example of such a key, where its value is no size: 1 would be in range, and of no use.
const EXAMPLE_BYTES: u64 = 1 << 20;

fn quoted_summary(node: &Node) -> String {
    match &node.value {
        Value::Scalar { quoted: true, .. } => node.summary(),
        _ => format!("`{}`", node.summary()),
    }
}

/// `key: value` as it might be written.
fn example(key: &str, kind: &Kind) -> String {
    match kind {
        Kind::Bool => format!("{key}: true"),
        Kind::Integer { .. } if is_size(key) => {
            format!("{key}: {}", nearest_in_range(kind, EXAMPLE_BYTES as f64))
        }
        Kind::Integer { .. } => format!("{key}: {}", nearest_in_range(kind, 1.0)),
        Kind::Number { .. } => format!("{key}: {}", nearest_in_range(kind, 0.1)),
        Kind::Section(section) => {
            let keys: Vec<String> = section.required.iter().map(|k| format!("{k}: …")).collect();
            format!("{key}: {{{}}}", keys.join(", "))
        }
        _ => format!("{key}: …"),
    }
}

/// The value in range that is closest to `x`.
fn nearest_in_range(kind: &Kind, x: f64) -> String {
    match kind {
        Kind::Integer { min, max } => {
            let rounded = x.round() as i128;
            rounded.clamp(min.unwrap_or(i128::MIN), max.unwrap_or(i128::MAX)).to_string()
        }
        Kind::Number { min, max } => {
            x.max(min.unwrap_or(f64::NEG_INFINITY)).min(max.unwrap_or(f64::INFINITY)).to_string()
        }
        _ => x.to_string(),
    }
}

/// A number as written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Parsed {
    Whole(i128),
    Real(f64),
}

impl Parsed {
    fn real(self) -> f64 {
        match self {
            Parsed::Whole(n) => n as f64,
            Parsed::Real(x) => x,
        }
    }

    /// Real numbers that are whole (`1e4`) count, as far as they are exact.
    fn whole(self) -> Option<i128> {
        match self {
            Parsed::Whole(n) => Some(n),
            Parsed::Real(x) if x.fract() == 0.0 && x.abs() <= 2_f64.powi(53) => Some(x as i128),
            Parsed::Real(_) => None,
        }
    }
}

fn parse_number(text: &str) -> Option<Parsed> {
    if let Some(hex) = text.strip_prefix("0x") {
        return i128::from_str_radix(hex, 16).ok().map(Parsed::Whole);
    }
    if let Ok(n) = text.parse::<i128>() {
        return Some(Parsed::Whole(n));
    }
    // Rust also reads `inf` and `nan`, which no key takes.
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c));
    let x = text.parse::<f64>().ok().filter(|x| numeric && x.is_finite())?;
    Some(Parsed::Real(x))
}

fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

fn integer_json(n: i128) -> Json {
    match (u64::try_from(n), i64::try_from(n)) {
        (Ok(n), _) => Json::from(n),
        (_, Ok(n)) => Json::from(n),
        _ => Json::Null, // Outside every integer type; the range has been reported.
    }
}

/// A value without a schema, by YAML's own rules.
fn plain_json(node: &Node) -> Json {
    match &node.value {
        Value::Scalar { .. } if node.is_null() => Json::Null,
        Value::Scalar { text, quoted: true } => Json::String(text.clone()),
        Value::Scalar { text, quoted: false } => {
            let number = || match parse_number(text)? {
                Parsed::Whole(n) => Some(integer_json(n)),
                Parsed::Real(x) => Number::from_f64(x).map(Json::Number),
            };
            parse_bool(text)
                .map(Json::Bool)
                .or_else(number)
                .unwrap_or_else(|| Json::String(text.clone()))
        }
        Value::List(items) => Json::Array(items.iter().map(plain_json).collect()),
        Value::Map(entries) => {
            Json::Object(entries.iter().map(|e| (e.key.clone(), plain_json(&e.node))).collect())
        }
    }
}
