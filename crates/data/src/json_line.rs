//! One string out of one JSON object, without building the rest of it.

use std::borrow::Cow;
use std::fmt;

use crate::kind::BYTE_ORDER_MARK;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// The string in `field` of the object that `line` holds. The error says what is there instead.
pub(crate) fn text_of<'a>(line: &'a [u8], field: &str) -> Result<Cow<'a, str>, String> {
    let mut json = serde_json::Deserializer::from_slice(line);
    let text = json.deserialize_map(FieldVisitor { field }).and_then(|text| {
        json.end()?;
        Ok(text)
    });
    text.map_err(|error| reason_of(&error, line))
}

/// The parser's words without the line, which it counts from the start of its input, or the cause
/// where those are obscure.
fn reason_of(error: &serde_json::Error, line: &[u8]) -> String {
    if line.starts_with(BYTE_ORDER_MARK) {
        return "the line begins with a byte order mark (EF BB BF): remove it; files were put \
                together with theirs"
            .to_string();
    }
    let text = error.to_string();
    let (reason, column) = match text.rsplit_once(" at line ") {
        Some((reason, _)) => (reason, error.column()),
        None => (text.as_str(), 0),
    };
    if reason.contains("hex escape")
        && let Some((escape, column)) = lone_surrogate(line)
    {
        return format!(
            "{escape} is half of a surrogate pair without the other half, and no character \
             (column {column}): remove it, or write \\ufffd"
        );
    }
    if error.is_eof() && reason.contains("EOF") && is_cut_object(line) {
        return format!(
            "{reason} (column {column}): an object must stand on one line; \
             `jq -c . FILE > NEW.jsonl` writes it so"
        );
    }
    match column {
        0 => reason.to_string(),
        _ => format!("{reason} (column {column})"),
    }
}

/// Whether an object begins here that ends elsewhere.
fn is_cut_object(line: &[u8]) -> bool {
    let line = line.trim_ascii();
    line.starts_with(b"{") && !line.ends_with(b"}")
}

/// The first escape of half a surrogate pair that stands alone, and its column from 1.
fn lone_surrogate(line: &[u8]) -> Option<(String, usize)> {
    let unit = |at: usize| {
        let digits = line.get(at..)?.strip_prefix(b"\\u")?.get(..4)?;
        u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let mut at = 0;
    while at < line.len() {
        at += match (line[at], unit(at)) {
            (b'\\', Some(0xD800..=0xDBFF)) if matches!(unit(at + 6), Some(0xDC00..=0xDFFF)) => 12,
            (b'\\', Some(0xD800..=0xDFFF)) => {
                return Some((String::from_utf8_lossy(&line[at..at + 6]).into_owned(), at + 1));
            }
            (b'\\', _) => 2,
            _ => 1,
        };
    }
    None
}

struct FieldVisitor<'f> {
    field: &'f str,
}

impl<'de> Visitor<'de> for FieldVisitor<'_> {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a JSON object with the text in `{}`", self.field)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Cow<'de, str>, A::Error> {
        let mut found = None;
        let mut others: Vec<String> = Vec::new();
        while let Some(Text(key)) = map.next_key::<Text<'de>>()? {
            if key == self.field {
                found = Some(map.next_value::<Text<'de>>()?.0);
            } else {
                map.next_value::<IgnoredAny>()?;
                others.push(key.into_owned());
            }
        }
        found.ok_or_else(|| {
            let names: Vec<String> = others.iter().take(8).map(|o| format!("`{o}`")).collect();
            let names = if names.is_empty() { "nothing".to_string() } else { names.join(", ") };
            A::Error::custom(format_args!(
                "no field `{}`; the object has {names} (name another with data.jsonl_field, \
                 or --field)",
                self.field
            ))
        })
    }
}

/// A string, borrowed where it has no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_string())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_field_anywhere() {
        let line = br#" {"id": 3, "meta": {"text": "no"}, "text": "a\nb \u00e9", "x": [1]} "#;
        assert_eq!(text_of(line, "text").unwrap(), "a\nb é");
        assert!(matches!(text_of(br#"{"text":"plain"}"#, "text"), Ok(Cow::Borrowed("plain"))));
    }

    #[test]
    fn half_a_surrogate_pair_is_named() {
        let error = |text: &str| {
            text_of(format!("{{\"text\": \"{text}\"}}").as_bytes(), "text").unwrap_err()
        };
        for (text, escape, column) in [
            (r"a\ud83d b", r"\ud83d", 12),
            (r"a\ude00", r"\ude00", 12),
            (r"\\\ud83d\ud83d\ude00", r"\ud83d", 13),
            (r"\ud83d\ude00\uDC00", r"\uDC00", 23),
        ] {
            let said = error(text);
            assert!(said.starts_with(escape), "{said}");
            assert!(said.contains(&format!("(column {column})")), "{said}");
        }
        assert!(!error(r"\u12").contains("surrogate"));
        let pair = br#"{"text": "\ud83d\ude00"}"#;
        assert_eq!(text_of(pair, "text").unwrap(), "😀");
    }

    #[test]
    fn says_what_is_wrong() {
        let error = |line: &str| text_of(line.as_bytes(), "text").unwrap_err();
        assert!(error(r#"{"body": "x", "id": 1}"#).contains("the object has `body`, `id`"));
        assert!(error(r#"{"text": 5}"#).contains("expected a string"));
        assert!(error(r#"[1]"#).contains("expected a JSON object"));
        assert!(error(r#"{"text": "x""#).contains("EOF"));
        assert!(error(r#"{"text": "x"} y"#).contains("trailing"));
        assert!(error(r#"{"text":"#).contains("on one line"));
        assert!(error("\u{feff}{}").contains("byte order mark"));
        assert!(!error(r#"{"text": 5}"#).contains("at line"));
    }
}
