//! `--set a.b.c=value`: one value over what the file says.
//!
//! An override is written into the tree before the check, so that its value is checked like any
//! other; its path is followed along the schema, so that a misspelt key is named at once. What
//! was overridden is forgotten: a mistake in the file at that key no longer matters.

use super::check::unknown_key_help;
use super::nearest::nearest;
use super::problem::{Place, Problem};
use super::schema::{Allowed, Kind, Schema, join};
use super::tree::{Entry, Node, Value, parse_flag};

/// A value from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// The key with its sections: `model.layers`, `data.mixture[0].weight`.
    pub path: String,
    /// The value, as YAML.
    pub value: String,
    /// How it was typed, for messages: `--ranks 4`.
    pub flag: String,
    /// It counts only where nobody else gives a value.
    pub yields: bool,
}

impl Override {
    /// Reads `a.b.c=value` as given to `--set`.
    ///
    /// # Errors
    /// There is no `=` or no path before it.
    pub fn parse_set(text: &str) -> Result<Override, String> {
        let example = "for example `--set batch.seq_len=128`";
        let Some((path, value)) = text.split_once('=') else {
            return Err(format!("`{text}` has no `=`; write KEY=VALUE, {example}"));
        };
        let path = path.trim();
        if path.is_empty() || path.split('.').any(str::is_empty) {
            return Err(format!("`{path}` is not a key; write KEY=VALUE, {example}"));
        }
        let flag = format!("--set {text}");
        Ok(Override { path: path.into(), value: value.trim().into(), flag, yields: false })
    }

    /// The value of a flag of its own, such as `--ranks 4` for `ranks.count`.
    pub fn flag(path: &str, value: impl std::fmt::Display, flag: &str) -> Override {
        let (value, path) = (value.to_string(), path.to_string());
        Override { flag: format!("{flag} {value}"), path, value, yields: false }
    }

    /// A value that a launcher gives, unless the file or a flag before it does.
    pub fn otherwise(path: &str, value: impl std::fmt::Display) -> Override {
        let flag = format!("the launcher's {path}");
        Override { yields: true, ..Override::flag(path, value, &flag) }
    }

    /// Writes the value into `root`.
    ///
    /// # Errors
    /// A key that the schema does not have; a value that is not YAML.
    pub fn apply(&self, root: &mut Node, schema: &Schema) -> Result<(), Box<Problem>> {
        if self.yields
            && matches!(root.locate(&self.path), Some((_, Some(node))) if !node.is_null())
        {
            return Ok(());
        }
        let value = parse_flag(&self.value, &self.flag)?;
        let value = if self.value.is_empty() { empty_text(value.place) } else { value };
        let segments: Vec<&str> =
            self.path.split(['.', '[', ']']).filter(|segment| !segment.is_empty()).collect();
        // A path that leads nowhere must leave nothing behind.
        let mut changed = root.clone();
        self.write(&mut changed, schema, schema.top(), &segments, "", value)?;
        *root = changed;
        Ok(())
    }

    fn write<'s>(
        &self,
        node: &mut Node,
        schema: &'s Schema,
        allowed: Allowed<'s>,
        segments: &[&str],
        path: &str,
        value: Node,
    ) -> Result<(), Box<Problem>> {
        let [segment, rest @ ..] = segments else {
            *node = value;
            return Ok(());
        };
        let at = match allowed.kind {
            Kind::List(_) | Kind::Tuple(_) => format!("{path}[{segment}]"),
            _ => join(path, segment),
        };
        let holds_keys = matches!(allowed.kind, Kind::Section(_) | Kind::Table(_));
        if holds_keys && !matches!(node.value, Value::Map(_)) && !node.is_null() {
            // The file's value in the place of the section stays, for the check to report.
            return Ok(());
        }
        let (next, exclusive) = self.step(schema, &allowed.kind, node, segment, path, &at)?;
        if let (Kind::List(_) | Kind::Tuple(_), Value::List(items)) =
            (&allowed.kind, &mut node.value)
        {
            let index: usize = segment.parse().expect("`step` has checked it");
            return self.write(&mut items[index], schema, next, rest, &at, value);
        }
        let place = Place::Flag(self.flag.clone());
        if !matches!(node.value, Value::Map(_)) {
            *node = Node { place: place.clone(), value: Value::Map(Vec::new()) };
        }
        let Value::Map(entries) = &mut node.value else { return Ok(()) };
        if exclusive {
            entries.retain(|entry| entry.key == *segment);
        }
        let index = entries.iter().position(|entry| entry.key == *segment).unwrap_or_else(|| {
            let node = Node { place: place.clone(), value: Value::Map(Vec::new()) };
            entries.push(Entry { key: segment.to_string(), place: place.clone(), node });
            entries.len() - 1
        });
        // A duplicate would be read instead of, or reported beside, what the flag says.
        let mut seen = false;
        entries.retain(|entry| entry.key != *segment || !std::mem::replace(&mut seen, true));
        if rest.is_empty() {
            entries[index].place = place;
        }
        self.write(&mut entries[index].node, schema, next, rest, &at, value)
    }

    /// The values at `segment`, and whether it excludes its siblings.
    fn step<'s>(
        &self,
        schema: &'s Schema,
        kind: &Kind<'s>,
        node: &Node,
        segment: &str,
        path: &str,
        at: &str,
    ) -> Result<(Allowed<'s>, bool), Box<Problem>> {
        let refuse = |what: String, help: Vec<String>| {
            let place = Place::Flag(self.flag.clone());
            let problem = Problem::new(place, at, what);
            Err(Box::new(Problem { help, ..problem }))
        };
        match kind {
            Kind::Section(section) => match section.keys.iter().find(|(key, _)| *key == segment) {
                Some((_, inner)) => Ok((schema.allowed(inner), false)),
                None => {
                    let help = unknown_key_help(segment, section, path, &schema.all_keys());
                    refuse("unknown key".into(), help)
                }
            },
            Kind::Table(values) => Ok((schema.allowed(values), false)),
            Kind::Choice { keyed, .. } => match keyed.iter().find(|one| one.key == segment) {
                Some(one) => Ok((schema.allowed(one.value), true)),
                None => {
                    let near = nearest(segment, keyed.iter().map(|one| one.key));
                    let mut help: Vec<String> = Vec::new();
                    help.extend(near.map(|near| format!("did you mean `{near}`?")));
                    help.push(format!("`{path}` is {}", kind.expectation()));
                    refuse("unknown key".into(), help)
                }
            },
            Kind::List(items) => {
                let Value::List(nodes) = &node.value else {
                    let help = format!("set the whole list: `--set {path}=[…]`");
                    return refuse(format!("`{path}` is not a list in the file"), vec![help]);
                };
                match segment.parse::<usize>() {
                    Ok(index) if index < nodes.len() => Ok((schema.allowed(items), false)),
                    _ => {
                        let help = format!("its {} elements count from 0", nodes.len());
                        refuse(format!("`{path}` has no element {segment}"), vec![help])
                    }
                }
            }
            Kind::Any => {
                Ok((Allowed { kind: Kind::Any, optional: true, description: None }, false))
            }
            other => {
                let help = format!("`{path}` is {}: set it as a whole", other.expectation());
                refuse("unknown key".into(), vec![help])
            }
        }
    }
}

/// `--set key=` means empty text, which a person who writes it wants.
fn empty_text(place: Place) -> Node {
    Node { place, value: Value::Scalar { text: String::new(), quoted: true } }
}
