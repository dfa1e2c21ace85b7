//! A config as YAML, with the schema's descriptions as comments.
//!
//! Generated, never written by hand, so that it cannot disagree with the program. A key without
//! a value stands behind a `#`, with what may be written there.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value as Json;

use super::schema::{Allowed, Kind, Schema};

const WIDTH: usize = 96;

/// `value` with a comment above every key.
pub fn commented<T: Serialize>(schema: &Schema, value: &T) -> String {
    let value = serde_json::to_value(value).expect("configs have text keys and finite numbers");
    let mut printer = Printer { schema, out: String::new() };
    if let Kind::Section(section) = schema.top().kind {
        printer.section(&section.keys, &value, "");
    }
    printer.out
}

struct Printer<'s> {
    schema: &'s Schema,
    out: String,
}

impl Printer<'_> {
    /// Prints a section's keys behind `margin`, which holds a `# ` where the section has no value.
    fn section(&mut self, keys: &[(&str, &Json)], value: &Json, margin: &str) {
        let section_is_off = value.is_null();
        for (key, schema) in keys {
            let allowed = self.schema.allowed(schema);
            let value = value.get(key).unwrap_or(&Json::Null);
            if margin.is_empty() && !self.out.is_empty() {
                self.out.push('\n');
            }
            self.describe(&allowed, value, margin);
            let off = if value.is_null() && !section_is_off { "# " } else { "" };
            self.key(key, &allowed, value, &format!("{margin}{off}"));
        }
    }

    fn key(&mut self, key: &str, allowed: &Allowed, value: &Json, margin: &str) {
        let deeper = format!("{margin}  ");
        let _ = write!(self.out, "{margin}{key}:");
        match (&allowed.kind, value) {
            (Kind::Section(section), _) => {
                self.out.push('\n');
                self.section(&section.keys, value, &deeper);
            }
            (Kind::List(_), Json::Array(elements)) if elements.iter().any(Json::is_object) => {
                self.out.push('\n');
                elements.iter().for_each(|element| self.element(element, &deeper));
            }
            (Kind::Choice { .. }, Json::Null) => self.out.push_str(" <one of these>\n"),
            (kind, Json::Null) => {
                let _ = writeln!(self.out, " <{}>", kind.expectation());
            }
            _ => {
                let _ = writeln!(self.out, " {}", flow(value));
            }
        }
    }

    /// An element of a list of sections, one key a line.
    fn element(&mut self, element: &Json, margin: &str) {
        let Json::Object(map) = element else {
            let _ = writeln!(self.out, "{margin}- {}", flow(element));
            return;
        };
        let entries = map.iter().filter(|(_, value)| !value.is_null());
        for (i, (key, value)) in entries.enumerate() {
            let bullet = if i == 0 { "- " } else { "  " };
            let line = format!("{margin}{bullet}{key}: {}", flow(value));
            match value {
                Json::Object(inner) if line.chars().count() > WIDTH => {
                    let _ = writeln!(self.out, "{margin}{bullet}{key}:");
                    for (key, value) in inner.iter().filter(|(_, value)| !value.is_null()) {
                        let _ = writeln!(self.out, "{margin}    {key}: {}", flow(value));
                    }
                }
                _ => {
                    let _ = writeln!(self.out, "{line}");
                }
            }
        }
    }

    fn describe(&mut self, allowed: &Allowed, value: &Json, margin: &str) {
        let mut text = allowed.description.unwrap_or_default().to_string();
        // Where there is no value, what to write stands in its place.
        if let Some(bounds) = bounds(&allowed.kind).filter(|_| !value.is_null()) {
            let _ = write!(text, " ({bounds})");
        }
        self.comment(&text, margin, "");
        match &allowed.kind {
            // The keys of a section follow with comments of their own.
            Kind::Section(_) => {}
            kind => self.points(kind, margin, 0),
        }
    }

    /// The words of a choice, or the keys of a list's elements with theirs.
    fn points(&mut self, kind: &Kind, margin: &str, depth: usize) {
        let bullet = format!("{}· ", "  ".repeat(depth));
        let said = |description: Option<&str>| match description {
            Some(description) => format!(": {description}"),
            None => String::new(),
        };
        match kind {
            Kind::Choice { words, keyed } => {
                for one in words {
                    let text = format!("{}{}", one.word, said(one.description));
                    self.comment(&text, margin, &bullet);
                }
                for one in keyed {
                    let form = format!("{{{}: {}}}", one.key, self.form(one.value));
                    self.comment(&format!("{form}{}", said(one.description)), margin, &bullet);
                }
            }
            Kind::List(items) => {
                if let kind @ Kind::Section(_) = self.schema.allowed(items).kind {
                    self.points(&kind, margin, depth);
                }
            }
            Kind::Section(section) => {
                for (key, value) in &section.keys {
                    let allowed = self.schema.allowed(value);
                    let bounds =
                        bounds(&allowed.kind).map(|b| format!(" ({b})")).unwrap_or_default();
                    let text = format!("{key}{}{bounds}", said(allowed.description));
                    self.comment(&text, margin, &bullet);
                    self.points(&allowed.kind, margin, depth + 1);
                }
            }
            _ => {}
        }
    }

    /// The shape of a value in one line: `{max: N}`.
    fn form(&self, schema: &Json) -> String {
        match self.schema.allowed(schema).kind {
            Kind::Section(section) => {
                let keys = section.keys.iter();
                let keys: Vec<String> =
                    keys.map(|(key, value)| format!("{key}: {}", self.form(value))).collect();
                format!("{{{}}}", keys.join(", "))
            }
            Kind::Integer { .. } => "N".into(),
            Kind::Number { .. } => "X".into(),
            Kind::Text => "TEXT".into(),
            kind => kind.expectation(),
        }
    }

    /// Wrapped text; lines after the first stand under the text after `bullet`.
    fn comment(&mut self, text: &str, margin: &str, bullet: &str) {
        let hanging = " ".repeat(bullet.chars().count());
        let room = WIDTH.saturating_sub(margin.len() + 2 + hanging.len()).max(30);
        for (i, line) in text.split("\n\n").flat_map(|part| wrap(part, room)).enumerate() {
            let lead = if i == 0 { bullet } else { &hanging };
            let _ = writeln!(self.out, "{}", format!("{margin}# {lead}{line}").trim_end());
        }
    }
}

/// Bounds that are worth saying: that a count is not negative goes without.
fn bounds(kind: &Kind) -> Option<String> {
    let of_the_type = |max: i128| [u32::MAX.into(), u64::MAX.into()].contains(&max);
    let said = match kind {
        Kind::Integer { min, max } => {
            min.is_some_and(|min| min > 0) || max.is_some_and(|max| !of_the_type(max))
        }
        Kind::Number { min, max } => min.is_some() || max.is_some(),
        _ => false,
    };
    let expectation = kind.expectation();
    let bounds = expectation.trim_start_matches("a whole number").trim_start_matches("a number");
    said.then(|| bounds.trim_start_matches([',', ' ']).to_string())
}

/// Breaks at spaces; lines of at most `room` characters where words allow.
fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("it is never empty");
        let needed = line.chars().count() + 1 + word.chars().count();
        match line.is_empty() {
            true => line.push_str(word),
            false if needed <= room => {
                line.push(' ');
                line.push_str(word);
            }
            false => lines.push(word.to_string()),
        }
    }
    lines
}

/// A value on one line, as YAML.
fn flow(value: &Json) -> String {
    match value {
        Json::String(text) => scalar(text),
        Json::Array(items) => {
            let items: Vec<String> = items.iter().map(flow).collect();
            format!("[{}]", items.join(", "))
        }
        Json::Object(map) => {
            let entries = map.iter().filter(|(_, value)| !value.is_null());
            let entries: Vec<String> =
                entries.map(|(key, value)| format!("{}: {}", scalar(key), flow(value))).collect();
            format!("{{{}}}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

/// Text that any YAML reader takes for text.
fn scalar(text: &str) -> String {
    let safe_start = text.starts_with(|c: char| c.is_ascii_alphabetic() || "/_".contains(c));
    let safe = text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if safe_start && safe && !reserved.contains(&text.to_ascii_lowercase().as_str()) {
        return text.to_string();
    }
    // JSON's quoting is YAML's double quoting.
    Json::String(text.to_string()).to_string()
}
