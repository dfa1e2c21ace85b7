//! The part of a config, mistakes and all, that tells how its host proves itself and for how long
//! it is waited for: the other hosts are to be told that this one will not start.

use std::path::PathBuf;

use train::config::TlsFiles;

use super::overrides::Override;
use super::schema::Schema;
use super::tree::{Node, Value, parse};

/// The value of a key, as far as it can be read.
#[derive(Debug, PartialEq, Eq)]
pub enum Written<T> {
    Nothing,
    Value(T),
    /// Something else than belongs there.
    Wrong,
}

impl<T> Written<T> {
    /// The value, if it is one that belongs there.
    pub fn value(self) -> Option<T> {
        match self {
            Written::Value(value) => Some(value),
            Written::Nothing | Written::Wrong => None,
        }
    }
}

/// The readable part of a config that cannot be used as a whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Said {
    pub secret_file: Written<PathBuf>,
    pub tls: Written<TlsFiles>,
    pub timeout_ms: Option<u64>,
}

/// Reads it; nothing is known of what is no YAML.
pub(super) fn said(text: &str, overrides: &[Override], schema: &Schema) -> Option<Said> {
    let mut root = parse(text).ok()?;
    let mut refused: Vec<&str> = Vec::new();
    for over in overrides {
        if over.apply(&mut root, schema).is_err() {
            refused.push(&over.path);
        }
    }
    // A value that was typed there was meant, whatever the file has.
    let is_refused = |key: &str| refused.iter().any(|path| path.starts_with(key));
    let (secret_file, tls) = match (is_refused(SECRET_FILE), is_refused(TLS)) {
        (true, _) => (Written::Wrong, Written::Nothing),
        (false, true) => (path(&root, SECRET_FILE), Written::Wrong),
        (false, false) => (path(&root, SECRET_FILE), files(&root)),
    };
    let timeout_ms = word(&root, TIMEOUT_MS).value().and_then(|text| text.parse().ok());
    Some(Said { secret_file, tls, timeout_ms })
}

const SECRET_FILE: &str = "ranks.secret_file";
const TLS: &str = "ranks.tls";
const TIMEOUT_MS: &str = "ranks.timeout_ms";

fn node<'a>(root: &'a Node, key: &str) -> Option<&'a Node> {
    let (_, node) = root.locate(key)?;
    node.filter(|node| !node.is_null())
}

fn word(root: &Node, key: &str) -> Written<String> {
    match node(root, key).map(|node| &node.value) {
        None => Written::Nothing,
        Some(Value::Scalar { text, .. }) => Written::Value(text.clone()),
        Some(_) => Written::Wrong,
    }
}

fn path(root: &Node, key: &str) -> Written<PathBuf> {
    match word(root, key) {
        Written::Nothing => Written::Nothing,
        Written::Value(text) => Written::Value(text.into()),
        Written::Wrong => Written::Wrong,
    }
}

/// All of the files, and nothing else.
fn files(root: &Node) -> Written<TlsFiles> {
    let entries = match node(root, TLS).map(|node| &node.value) {
        None => return Written::Nothing,
        Some(Value::Map(entries)) => entries.len(),
        Some(_) => return Written::Wrong,
    };
    let file = |name: &str| path(root, &format!("{TLS}.{name}")).value();
    match (entries, file("certificate"), file("key"), file("authority")) {
        (3, Some(certificate), Some(key), Some(authority)) => {
            Written::Value(TlsFiles { certificate, key, authority })
        }
        _ => Written::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use train::config::Config;

    use super::*;

    fn of(text: &str, sets: &[&str]) -> Said {
        let sets: Vec<Override> =
            sets.iter().map(|set| Override::parse_set(set).unwrap()).collect();
        said(text, &sets, &Schema::of::<Config>()).unwrap()
    }

    fn all() -> Written<TlsFiles> {
        let [certificate, key, authority] = ["c", "k", "a"].map(PathBuf::from);
        Written::Value(TlsFiles { certificate, key, authority })
    }

    #[test]
    fn what_a_config_with_mistakes_says_of_its_host_is_known() {
        let text = "modle: x\nranks: {secret_file: s, timeout_ms: 4000, \
                    tls: {certificate: c, key: k, authority: a}}\n";
        let expected =
            Said { secret_file: Written::Value("s".into()), tls: all(), timeout_ms: Some(4000) };
        assert_eq!(of(text, &[]), expected);
        assert_eq!(of("", &["ranks.tls={certificate: c, key: k, authority: a}"]).tls, all());
        assert_eq!(said("name: [", &[], &Schema::of::<Config>()), None);
    }

    #[test]
    fn what_does_not_belong_there_is_wrong_and_not_nothing() {
        let wrong = [
            (&["ranks.tls.certificate=c"][..], "a part of it"),
            (&["ranks.tls=DIR"], "a directory"),
            (&["ranks.tls.certficate=c"], "a key that is none"),
            (&["ranks.tls={certificate: c, key: k, authority: a, more: m}"], "more"),
        ];
        for (sets, what) in wrong {
            assert_eq!(of("", sets).tls, Written::Wrong, "{what}");
        }
        assert_eq!(of("", &["ranks.secret_file=[a]"]).secret_file, Written::Wrong);
        let nothing = of("ranks: {timeout_ms: soon}", &["modle=1"]);
        assert_eq!((nothing.secret_file, nothing.tls), (Written::Nothing, Written::Nothing));
        assert_eq!(nothing.timeout_ms, None);
    }
}
