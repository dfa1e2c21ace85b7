//! One string out of one JSON object, without building the rest of it.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// The string in `field` of the object that `line` holds. The error says what is there instead.
pub(crate) fn text_of<'a>(line: &'a [u8], field: &str) -> Result<Cow<'a, str>, String> {
    let mut json = serde_json::Deserializer::from_slice(line);
    let text = json.deserialize_map(FieldVisitor { field }).map_err(|e| without_line(&e))?;
    json.end().map_err(|e| without_line(&e))?;
    Ok(text)
}

/// The parser counts lines from the start of its input, which is always line 1 here.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" at line ") {
        Some((reason, _)) if error.column() > 0 => format!("{reason} (column {})", error.column()),
        Some((reason, _)) => reason.to_string(),
        None => text,
    }
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
    fn says_what_is_wrong() {
        let error = |line: &str| text_of(line.as_bytes(), "text").unwrap_err();
        assert!(error(r#"{"body": "x", "id": 1}"#).contains("the object has `body`, `id`"));
        assert!(error(r#"{"text": 5}"#).contains("expected a string"));
        assert!(error(r#"[1]"#).contains("expected a JSON object"));
        assert!(error(r#"{"text": "x""#).contains("EOF"));
        assert!(error(r#"{"text": "x"} y"#).contains("trailing"));
        assert!(!error(r#"{"text": 5}"#).contains("at line"));
    }
}
