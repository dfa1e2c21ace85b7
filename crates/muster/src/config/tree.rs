//! YAML as a tree in which every node knows where it was written.
//!
//! Scalars keep their text: what `1e3`, `yes` or `2024` means is decided by the key's schema, not
//! guessed here, so that `name: 2024` is a name and `steps: 1e3` a number. Only the part of YAML
//! that configs need is read; anchors, tags and several documents are refused with their place.

use std::fmt::Write as _;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span};

use super::problem::{Place, Problem};

/// Deeper nesting is a mistake (or an attack on the stack), not a config.
const DEPTH_MAX: usize = 32;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub place: Place,
    pub value: Value,
}

/// A value as it was written.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A plain or quoted scalar; a plain empty one, `~` or `null` is no value.
    Scalar {
        text: String,
        quoted: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key, where it stands, and its value. Duplicates are kept, to be reported.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub key: String,
    pub place: Place,
    pub node: Node,
}

impl Node {
    /// Whether nothing was written.
    pub fn is_null(&self) -> bool {
        match &self.value {
            Value::Scalar { text, quoted } => {
                !quoted && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL")
            }
            _ => false,
        }
    }

    /// Whether not even `null` was written.
    pub fn is_empty(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, quoted: false } if text.is_empty())
    }

    /// The value in one line, shortened, for messages.
    pub fn summary(&self) -> String {
        let mut out = String::new();
        self.write_flow(&mut out);
        match out.char_indices().nth(60) {
            Some((end, _)) => format!("{}…", &out[..end]),
            None => out,
        }
    }

    fn write_flow(&self, out: &mut String) {
        match &self.value {
            Value::Scalar { .. } if self.is_null() => out.push_str("null"),
            Value::Scalar { text, quoted: true } => {
                let _ = write!(out, "{text:?}");
            }
            Value::Scalar { text, quoted: false } => out.push_str(text),
            Value::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    out.push_str(if i > 0 { ", " } else { "" });
                    item.write_flow(out);
                }
                out.push(']');
            }
            Value::Map(entries) => {
                out.push('{');
                for (i, entry) in entries.iter().enumerate() {
                    out.push_str(if i > 0 { ", " } else { "" });
                    let _ = write!(out, "{}: ", entry.key);
                    entry.node.write_flow(out);
                }
                out.push('}');
            }
        }
    }

    /// The first place inside this node that a flag wrote, if one did.
    pub fn flag_inside(&self) -> Option<&Place> {
        if matches!(self.place, Place::Flag(_)) {
            return Some(&self.place);
        }
        match &self.value {
            Value::Scalar { .. } => None,
            Value::List(items) => items.iter().find_map(Node::flag_inside),
            Value::Map(entries) => entries.iter().find_map(|entry| entry.node.flag_inside()),
        }
    }

    /// The place of the deepest node on `path` (`a.b[2].c`) that was written, if any was: of its
    /// key, so that the line is the one to edit. Also the node, if that is the whole path.
    pub fn locate(&self, path: &str) -> Option<(&Place, Option<&Node>)> {
        let mut node = self;
        let mut place = None;
        for segment in path.split(['.', '[', ']']).filter(|segment| !segment.is_empty()) {
            let next = match &node.value {
                Value::Map(entries) => {
                    let entry = entries.iter().rev().find(|entry| entry.key == segment);
                    entry.map(|entry| (&entry.place, &entry.node))
                }
                Value::List(items) => {
                    let index = segment.parse::<usize>().ok();
                    index.and_then(|i| items.get(i)).map(|item| (&item.place, item))
                }
                Value::Scalar { .. } => None,
            };
            let Some((at, deeper)) = next else { return place.map(|place| (place, None)) };
            (place, node) = (Some(at), deeper);
        }
        place.map(|place| (place, Some(node)))
    }
}

/// Reads one document. An empty text is an empty mapping.
///
/// # Errors
/// The first place that is not YAML, or not the part of YAML that is read here.
pub fn parse(text: &str) -> Result<Node, Box<Problem>> {
    let root = parse_at(text, &|span| Place::File {
        line: span.start.line(),
        column: span.start.col() + 1,
        width: if span.start.line() == span.end.line() { span.len().max(1) } else { 1 },
    })?;
    // A document of comments alone is an empty mapping.
    let empty = root.is_empty();
    Ok(if empty { Node { value: Value::Map(Vec::new()), ..root } } else { root })
}

/// As [`parse`], for a text that does not lie in the config file; an empty one is no value.
///
/// # Errors
/// As [`parse`].
pub fn parse_flag(text: &str, flag: &str) -> Result<Node, Box<Problem>> {
    parse_at(text, &|_| Place::Flag(flag.to_string())).map_err(|problem| {
        let help =
            "a list is `[a, b]`, a mapping `{a: 1}`; the shell keeps 'quoted words' together";
        Box::new(Problem { help: vec![help.to_string()], ..*problem })
    })
}

fn parse_at(text: &str, place: &dyn Fn(Span) -> Place) -> Result<Node, Box<Problem>> {
    let nothing = Value::Scalar { text: String::new(), quoted: false };
    let nothing = Node { place: place(Span::empty(Marker::new(0, 1, 0))), value: nothing };
    let mut builder = Builder { open: Vec::new(), root: None, place };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let at = place(Span::empty(*error.marker()));
            Box::new(Problem::new(at, "", format!("not YAML: {}", error.info())).help(
                "keys are indented by spaces and end with `: `; quote text that has `: ` or ` #`",
            ))
        })?;
        builder.event(event, span)?;
    }
    Ok(builder.root.unwrap_or(nothing))
}

/// A collection that is not closed yet.
struct Open {
    node: Node,
    /// The key whose value comes next.
    key: Option<(String, Place)>,
}

struct Builder<'a> {
    open: Vec<Open>,
    root: Option<Node>,
    place: &'a dyn Fn(Span) -> Place,
}

impl Builder<'_> {
    fn event(&mut self, event: Event, span: Span) -> Result<(), Box<Problem>> {
        let place = (self.place)(span);
        let refuse = |what: &str, help: &str| {
            Err(Box::new(Problem::new((self.place)(span), "", what.to_string()).help(help)))
        };
        match event {
            Event::Scalar(_, _, anchor, _)
            | Event::SequenceStart(anchor, _)
            | Event::MappingStart(anchor, _)
                if anchor > 0 =>
            {
                refuse(
                    "anchors (`&name`) are not read here",
                    "write the value out where it is used",
                )
            }
            Event::Alias(_) => refuse("aliases (`*name`) are not read here", "write the value out"),
            Event::Scalar(_, _, _, Some(tag))
            | Event::SequenceStart(_, Some(tag))
            | Event::MappingStart(_, Some(tag)) => {
                let word = &tag.suffix;
                let help = format!("write `{word}: …` as a mapping of one key, without `!`");
                refuse(&format!("the tag `!{word}` is not read here"), &help)
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                refuse("a second document", "keep one config per file: remove the line `---`")
            }
            Event::Scalar(text, style, ..) => {
                let quoted = style != ScalarStyle::Plain;
                let value = Value::Scalar { text: text.into_owned(), quoted };
                self.close(Node { place, value })
            }
            Event::SequenceStart(..) => self.push(place, Value::List(Vec::new())),
            Event::MappingStart(..) => self.push(place, Value::Map(Vec::new())),
            Event::SequenceEnd | Event::MappingEnd => {
                let node = self.open.pop().expect("the parser balances its events").node;
                self.close(node)
            }
            _ => Ok(()),
        }
    }

    fn push(&mut self, place: Place, value: Value) -> Result<(), Box<Problem>> {
        if self.open.len() == DEPTH_MAX {
            return Err(Box::new(Problem::new(place, "", "nested too deeply".to_string())));
        }
        self.open.push(Open { node: Node { place, value }, key: None });
        Ok(())
    }

    /// Puts a complete node where it belongs: as key, value, element or document.
    fn close(&mut self, node: Node) -> Result<(), Box<Problem>> {
        let Some(top) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut top.node.value, top.key.take()) {
            (Value::Map(entries), Some((key, place))) => entries.push(Entry { key, place, node }),
            (Value::Map(_), None) => match node.value {
                Value::Scalar { text, .. } => top.key = Some((text, node.place)),
                _ => {
                    let what = format!("`{}` is not a key", node.summary());
                    return Err(Box::new(Problem::new(node.place, "", what)));
                }
            },
            (Value::List(items), _) => items.push(node),
            (Value::Scalar { .. }, _) => unreachable!("a scalar is never open"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(line: usize, column: usize, width: usize) -> Place {
        Place::File { line, column, width }
    }

    #[test]
    fn every_node_knows_its_place() {
        let root = parse("a: 1\nb:\n  c: [x, 'y z']\n  d: {e: 2.5}\n").unwrap();
        let locate = |path| root.locate(path).map(|(place, node)| (place, node.is_some()));
        assert_eq!(locate("a"), Some((&at(1, 1, 1), true)));
        assert_eq!(locate("b.c[1]"), Some((&at(3, 10, 5), true)));
        assert_eq!(locate("b.d.e"), Some((&at(4, 7, 1), true)));
        assert_eq!(locate("b.d.missing"), Some((&at(4, 3, 1), false)));
        assert_eq!(root.locate("missing"), None);
        assert_eq!(root.summary(), r#"{a: 1, b: {c: [x, "y z"], d: {e: 2.5}}}"#);
    }

    #[test]
    fn refusals_have_a_place() {
        let cases = [
            ("a: &x 1\n", at(1, 4, 4)),
            ("a: 1\nb: !rotary {theta: 1}\n", at(2, 4, 9)),
            ("a: 1\n---\nb: 2\n", at(2, 1, 3)),
            ("a: [1\nb: 2\n", at(2, 2, 1)),
            ("? [a]\n: 1\n", at(1, 3, 1)),
        ];
        for (text, place) in cases {
            let problem = parse(text).unwrap_err();
            assert_eq!(problem.place, place, "{text:?}: {problem:?}");
        }
        assert!(parse(&"[".repeat(100)).is_err());
    }

    #[test]
    fn a_file_of_comments_is_an_empty_config() {
        for text in ["", "# nothing\n", "---\n", "\n\n"] {
            assert_eq!(parse(text).unwrap().value, Value::Map(Vec::new()), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[ -~\n\t]{0,60}") {
            let _ = parse(&text);
        }
    }
}
