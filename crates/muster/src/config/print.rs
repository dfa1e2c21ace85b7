//! A config as YAML, with the schema's descriptions as comments.
//!
//! Generated, never written by hand, so that it cannot disagree with the program. A key without
//! a value stands as a comment.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value as Json;

use super::schema::{Kind, Schema, Slot};

const WIDTH: usize = 96;

/// `value` with a comment above every key.
pub fn commented<T: Serialize>(schema: &Schema, value: &T) -> String {
    print(schema, value, true)
}

/// `value` alone.
pub fn plain<T: Serialize>(schema: &Schema, value: &T) -> String {
    print(schema, value, false)
}

fn print<T: Serialize>(schema: &Schema, value: &T, comments: bool) -> String {
    let value = serde_json::to_value(value).expect("configs have text keys and finite numbers");
    let mut printer = Printer { schema, comments, out: String::new() };
    if let Kind::Section(section) = schema.top().kind {
        printer.section(&section.keys, &value, "");
    }
    printer.out
}

struct Printer<'s> {
    schema: &'s Schema,
    comments: bool,
    out: String,
}

impl Printer<'_> {
    /// Prints a section's keys behind `margin`, which holds a `# ` where the section has no value.
    fn section(&mut self, keys: &[(&str, &Json)], value: &Json, margin: &str) {
        let section_is_off = value.is_null();
        for (key, schema) in keys {
            let slot = self.schema.slot(schema);
            let value = value.get(key).unwrap_or(&Json::Null);
            if value.is_null() && !self.comments {
                continue;
            }
            if margin.is_empty() && self.comments && !self.out.is_empty() {
                self.out.push('\n');
            }
            self.describe(&slot, margin);
            let off = if value.is_null() && !section_is_off { "# " } else { "" };
            self.key(key, &slot, value, &format!("{margin}{off}"));
        }
    }

    fn key(&mut self, key: &str, slot: &Slot, value: &Json, margin: &str) {
        let deeper = format!("{margin}  ");
        let _ = write!(self.out, "{margin}{key}:");
        match (&slot.kind, value) {
            (Kind::Section(_), Json::Object(map)) if map.is_empty() && !self.comments => {
                self.out.push_str(" {}\n");
            }
            (Kind::Section(section), _) => {
                self.out.push('\n');
                self.section(&section.keys, value, &deeper);
            }
            (Kind::List(_), Json::Array(elements)) if elements.iter().any(Json::is_object) => {
                self.out.push('\n');
                elements.iter().for_each(|element| self.element(element, &deeper));
            }
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
            let _ = writeln!(self.out, "{margin}{bullet}{key}: {}", flow(value));
        }
    }

    fn describe(&mut self, slot: &Slot, margin: &str) {
        if !self.comments {
            return;
        }
        let mut text = slot.description.unwrap_or_default().to_string();
        let expectation = slot.kind.expectation();
        let is_number = matches!(slot.kind, Kind::Integer { .. } | Kind::Number { .. });
        // Only bounds are news: that 4 is a number shows.
        if is_number && expectation.contains(|c: char| c.is_ascii_digit()) {
            let _ = write!(text, " ({expectation})");
        }
        self.comment(&text, margin);
        for point in self.points(&slot.kind) {
            self.comment(&format!("· {point}"), margin);
        }
    }

    /// The words of a choice, or the keys of a list's elements.
    fn points(&self, kind: &Kind) -> Vec<String> {
        let said = |description: Option<&str>| match description {
            Some(description) => format!(": {description}"),
            None => String::new(),
        };
        match kind {
            Kind::Choice { words, keyed } => {
                let words =
                    words.iter().map(|one| format!("{}{}", one.word, said(one.description)));
                let keyed = keyed.iter().map(|one| {
                    format!("{{{}: {}}}{}", one.key, self.form(one.value), said(one.description))
                });
                words.chain(keyed).collect()
            }
            Kind::List(items) => match self.schema.slot(items).kind {
                Kind::Section(section) => {
                    let keys = section.keys.iter();
                    keys.map(|(key, value)| {
                        format!("{key}{}", said(self.schema.slot(value).description))
                    })
                    .collect()
                }
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// The shape of a value in one line: `{max: a whole number}`.
    fn form(&self, schema: &Json) -> String {
        match self.schema.slot(schema).kind {
            Kind::Section(section) => {
                let keys: Vec<String> = section
                    .keys
                    .iter()
                    .map(|(key, value)| format!("{key}: {}", self.form(value)))
                    .collect();
                format!("{{{}}}", keys.join(", "))
            }
            kind => kind.expectation(),
        }
    }

    fn comment(&mut self, text: &str, margin: &str) {
        let room = WIDTH.saturating_sub(margin.len() + 2).max(30);
        for paragraph in text.lines() {
            let hanging = if paragraph.starts_with('·') { "  " } else { "" };
            for (i, line) in wrap(paragraph, room - hanging.len()).into_iter().enumerate() {
                let hanging = if i > 0 { hanging } else { "" };
                let _ = writeln!(self.out, "{}", format!("{margin}# {hanging}{line}").trim_end());
            }
        }
    }
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
