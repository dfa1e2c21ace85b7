//! From a file and overrides to a checked config.

use std::path::Path;

use data::DataError;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use train::config::Config;
use train::mesh_plan::Purpose;

use super::check::Checker;
use super::init;
use super::meaning::{self, Finding, Resolved};
use super::overrides::Override;
use super::problem::{Place, Problem, Problems};
use super::said::{self, Said};
use super::schema::Schema;
use super::tree::{Node, parse};
use crate::error::CliError;
use crate::output::tell_if_slow;

/// A config without a mistake, and what follows from it.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    pub resolved: Resolved,
}

/// Reads and checks a config file. Of one with mistakes `heed` hears what it says all the same.
///
/// # Errors
/// The user's mistake: a file that is not there, or everything that is wrong with it.
pub fn load(
    file: &Path,
    overrides: &[Override],
    purpose: Purpose,
    heed: &mut dyn FnMut(Said),
) -> Result<Loaded, CliError> {
    let text = read(file)?;
    let name = file.display().to_string();
    check_text(&text, overrides, purpose).map_err(|problems| {
        if let Some(said) = said::said(&text, overrides, &Schema::of::<Config>()) {
            heed(said);
        }
        let count = problems.len();
        let problems = Problems { file: &name, text: &text, problems };
        let noun = if count == 1 { "mistake" } else { "mistakes" };
        CliError::mistake(format!("{count} {noun} in {name}\n\n{problems}"))
    })
}

/// Checks a config given as text.
///
/// # Errors
/// Everything that is wrong.
pub fn check_text(
    text: &str,
    overrides: &[Override],
    purpose: Purpose,
) -> Result<Loaded, Vec<Problem>> {
    let (structure, mut problems) = structure::<Config>(text, overrides);
    let Some(Structure { config, root }) = structure else { return Err(problems) };
    let config = match init::follow(config) {
        Ok(config) => config,
        // That there is no model follows from it.
        Err(error) => {
            let place = written(&root, &["checkpoint.init"]);
            problems.push(Problem::new(place, "checkpoint.init", error.message));
            return Err(problems);
        }
    };
    let (resolved, findings) = meaning::check(&config, purpose);
    // A value in the range of a key may still not fit the rest of the model.
    for problem in problems.iter_mut().filter(|problem| problem.path.starts_with("model.")) {
        problem.nearest.take_if(|value| !meaning::takes(&config, &problem.path, value));
    }
    let unfit: Vec<String> = problems.iter().map(|problem| top_of(&problem.path)).collect();
    // A mistake that follows from a value left out above would only repeat it; the top has no name.
    let is_own = |finding: &Finding| {
        !unfit.iter().any(|section| section.is_empty() || finding.sections.contains(&&**section))
    };
    problems.extend(findings.into_iter().filter(is_own).map(|finding| place(finding, &root)));
    match resolved {
        Some(resolved) if problems.is_empty() => Ok(Loaded { config, resolved }),
        _ => Err(problems),
    }
}

/// The part of a config that could be read, and where it was written.
struct Structure<T> {
    config: T,
    root: Node,
}

/// Everything short of meaning; the value is there unless serde refuses what is left.
fn structure<T: JsonSchema + DeserializeOwned>(
    text: &str,
    overrides: &[Override],
) -> (Option<Structure<T>>, Vec<Problem>) {
    let schema = Schema::of::<T>();
    let mut root = match parse(text) {
        Ok(root) => root,
        Err(problem) => return (None, vec![*problem]),
    };
    let mut problems = Vec::new();
    for over in overrides {
        problems.extend(over.apply(&mut root, &schema).err().map(|problem| *problem));
    }
    let mut checker = Checker::new(&schema);
    let json = checker.check(&root);
    problems.append(&mut checker.problems);
    match serde_path_to_error::deserialize::<_, T>(json) {
        Ok(config) => (Some(Structure { config, root }), problems),
        Err(error) => {
            // The schema lets pass what serde refuses only where types check themselves; where
            // something was left out above, its absence was reported there.
            if problems.is_empty() {
                let path = error.path().to_string();
                let place = written(&root, &[&path]);
                problems.push(Problem::new(place, path, error.inner().to_string()));
            }
            (None, problems)
        }
    }
}

fn top_of(path: &str) -> String {
    path.split(['.', '[']).next().unwrap_or(path).to_string()
}

fn place(finding: Finding, root: &Node) -> Problem {
    let others = finding.others.iter().map(String::as_str);
    let mut paths: Vec<&str> = std::iter::once(finding.path.as_str()).chain(others).collect();
    // Keys of the model that are not written follow from its preset.
    let unwritten = |path: &&str| !matches!(root.locate(path), Some((_, Some(_))));
    if paths.iter().any(|path| path.starts_with("model.") && unwritten(path)) {
        paths.push("model.preset");
    }
    let problem = Problem::new(written(root, &paths), finding.path, finding.what);
    Problem { help: finding.help, ..problem }
}

/// Where to look for a mistake that is about these keys, the first before the others. What a flag
/// said comes first, since the file may have been right without it; then keys that were written,
/// since the line to edit is theirs; then the section of the first.
fn written(root: &Node, paths: &[&str]) -> Place {
    let found: Vec<_> = paths.iter().filter_map(|path| root.locate(path)).collect();
    let whole = || found.iter().filter_map(|&(place, node)| node.map(|node| (place, node)));
    let flag = whole().find_map(|(place, node)| match place {
        Place::Flag(_) => Some(place),
        _ => node.flag_inside(),
    });
    let first = || root.locate(paths.first()?).map(|(place, _)| place);
    let place = flag.or_else(|| whole().map(|(place, _)| place).next()).or_else(first);
    place.cloned().unwrap_or(Place::Nowhere)
}

/// Longer than any config that a person or a program writes.
pub const CONFIG_BYTES_MAX: u64 = 4 << 20;

/// The text of a config, which may come through a pipe.
///
/// # Errors
/// The user's mistake: no such file, nothing that ends, or no text.
fn read(file: &Path) -> Result<String, CliError> {
    let shown = file.display();
    let _slow = tell_if_slow(format!("reading {shown} until its end"));
    let bytes = data::input::read_at_most(file, CONFIG_BYTES_MAX).map_err(|error| {
        let DataError::Io { source, .. } = error else {
            return CliError::mistake(format!("cannot read the config: {}", reason(error)));
        };
        let near = meaning::neighbour(file);
        let near = near.map(|near| format!("; did you mean {}?", near.display()));
        let hint = near.unwrap_or_else(|| {
            "; `muster config default > run.yaml` writes one to start from".to_string()
        });
        CliError::mistake(format!("cannot read the config {shown}: {source}{hint}"))
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        CliError::mistake(format!(
            "the config {shown} is not text: byte {at} is not UTF-8; name a YAML file"
        ))
    })
}

/// The fault of a file that is there, and advice.
fn reason(error: DataError) -> String {
    match error {
        DataError::IsDirectory { path } => {
            format!("{} is a directory; name a YAML file", path.display())
        }
        DataError::NotAFile { path, what } => {
            format!("{} is {what}; name a YAML file, or a pipe", path.display())
        }
        DataError::TooLarge { path, bytes_max } => format!(
            "{} is larger than {} MiB, which no config is; name a YAML file",
            path.display(),
            bytes_max >> 20
        ),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    use super::*;

    /// A config with every form that configs use.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Sample {
        name: String,
        model: Model,
        batch: Batch,
        resume: Resume,
        rules: Vec<Rule>,
        files: data::OneOrMany<String>,
        betas: (f64, f64),
    }

    #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Model {
        #[schemars(range(min = 1))]
        layers: Option<usize>,
        d_model: Option<usize>,
        positions: Option<Positions>,
        bias: bool,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Batch {
        #[schemars(range(min = 1))]
        leaves: u32,
        #[schemars(range(min = 0.0, max = 0.5))]
        fraction: f64,
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    enum Positions {
        Learned { max: usize },
        Rotary { theta: f64 },
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Resume {
        Auto,
        Never,
        From(String),
    }

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Rule {
        matching: String,
        #[serde(default)]
        lr: f64,
    }

    impl Default for Batch {
        fn default() -> Batch {
            Batch { leaves: 4, fraction: 0.05 }
        }
    }

    impl Default for Sample {
        fn default() -> Sample {
            Sample {
                name: "run".into(),
                model: Model::default(),
                batch: Batch::default(),
                resume: Resume::Auto,
                rules: Vec::new(),
                files: data::OneOrMany::default(),
                betas: (0.9, 0.95),
            }
        }
    }

    fn read_sample(text: &str, sets: &[&str]) -> Result<Sample, String> {
        let overrides: Vec<Override> =
            sets.iter().map(|set| Override::parse_set(set).unwrap()).collect();
        let (structure, problems) = structure::<Sample>(text, &overrides);
        match structure {
            Some(structure) if problems.is_empty() => Ok(structure.config),
            _ => Err(Problems { file: "run.yaml", text, problems }.to_string()),
        }
    }

    #[test]
    fn every_form_is_read() {
        let text = "\
name: 2024
model:
  layers: 1e1
  positions: {rotary: {theta: 1e4}}
batch: {}
resume: {from: a/b}
rules:
  - {matching: '*', lr: 3}
files: one.txt
betas: [0.8, 0.9]
";
        let sample = read_sample(text, &[]).unwrap();
        assert_eq!((sample.name.as_str(), sample.model.layers), ("2024", Some(10)));
        assert_eq!(sample.model.positions, Some(Positions::Rotary { theta: 1e4 }));
        assert_eq!((sample.batch, sample.betas), (Batch::default(), (0.8, 0.9)));
        assert_eq!(sample.resume, Resume::From("a/b".into()));
        assert_eq!(sample.rules, [Rule { matching: "*".into(), lr: 3.0 }]);
        assert_eq!(*sample.files, ["one.txt"]);
    }

    #[test]
    fn overrides_replace_and_create() {
        let text = "model: {positions: {rotary: {theta: 1e4}}}\nrules: [{matching: a}]\n";
        let sets = [
            "model.positions.learned.max=64",
            "batch.leaves=8",
            "resume=never",
            "files=[a.txt, b.txt]",
            "rules[0].lr=0.5",
            "name=",
        ];
        let sample = read_sample(text, &sets).unwrap();
        assert_eq!(sample.model.positions, Some(Positions::Learned { max: 64 }));
        assert_eq!((sample.batch.leaves, sample.resume), (8, Resume::Never));
        assert_eq!(*sample.files, ["a.txt", "b.txt"]);
        assert_eq!((sample.rules[0].lr, sample.name.as_str()), (0.5, ""));
    }

    #[test]
    fn what_a_launcher_says_yields_to_who_says_more() {
        let leaves = |text: &str, first: Option<&str>| {
            let typed = first.map(|set| Override::parse_set(set).unwrap());
            let all = typed.into_iter().chain([Override::otherwise("batch.leaves", 9)]);
            let (structure, problems) = structure::<Sample>(text, &all.collect::<Vec<_>>());
            assert!(problems.is_empty());
            structure.unwrap().config.batch.leaves
        };
        assert_eq!(leaves("batch: {fraction: 0.1}\n", None), 9);
        assert_eq!(leaves("batch: {leaves: 2}\n", None), 2);
        assert_eq!(leaves("", Some("batch.leaves=3")), 3);
    }

    #[test]
    fn an_override_heals_what_the_file_has_wrong() {
        assert!(read_sample("batch: {leaves: none}\n", &["batch.leaves=2"]).is_ok());
        assert!(read_sample("name: a\nname: b\n", &["name=c"]).is_ok());
    }

    #[test]
    fn what_stands_in_the_place_of_a_section_is_not_overridden() {
        for text in ["- a\n", "42\n", "[]\n", "word\n"] {
            let refused = read_sample(text, &["batch.leaves=2"]).unwrap_err();
            assert!(refused.contains("run.yaml:1:1: `"), "{refused}");
            assert!(refused.contains("is not a section of keys"), "{refused}");
        }
        let refused = read_sample("batch: [1]\n", &["batch.leaves=2"]).unwrap_err();
        assert!(refused.contains("batch: `[1]` is not a section of keys"), "{refused}");
        assert!(read_sample("batch: [1]\n", &["batch={leaves: 2}"]).is_ok());
    }

    /// Of whatever kind: section, list, choice, number, text.
    #[test]
    fn a_key_without_a_value_is_named() {
        let keys = ["name", "model", "batch", "resume", "rules", "files", "betas"];
        let text: String = keys.iter().map(|key| format!("{key}:\n")).collect();
        let refused = read_sample(&text, &[]).unwrap_err();
        for (line, key) in (1..).zip(keys) {
            assert!(refused.contains(&format!("run.yaml:{line}:")), "{refused}");
            assert!(refused.contains(&format!(" {key}: no value")), "{refused}");
        }
        for written in ["batch: {}", "rules: []", "model: {layers: null}", "", "# nothing"] {
            assert!(read_sample(written, &[]).is_ok(), "{written}");
        }
        assert!(read_sample("model: {layers: }", &[]).is_err());
        assert!(read_sample("batch:", &["batch.leaves=2"]).is_ok());
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let text = "\
nmae: x
model:
  layers: 0
  d_modle: 128
  positions: {learnt: {max: 3}}
  bias: yes
  colour: red
batch:
  leaves: 4294967296
  fraction: 0.75
  leaves: 2
resume: form
rules:
  - lr: \"3\"
files: {a: b}
betas: [1]
layers: 3
";
        insta::assert_snapshot!(read_sample(text, &[]).unwrap_err());
    }

    #[test]
    fn mistakes_of_flags_name_the_flag() {
        let sets = [
            "model.layer=2",
            "batch.leaves=-1",
            "leaves=4",
            "model.positions.rotry.theta=1",
            "rules[0].lr=1",
            "name.first=x",
            "batch.fraction=[",
            "resume=from",
        ];
        insta::assert_snapshot!(read_sample("", &sets).unwrap_err());
    }

    #[test]
    fn bad_yaml_names_its_place() {
        let texts = [
            "model:\n  layers: 2\n d_model: 3\n",
            "a: b: c\n",
            "name: \"open\n",
            "model:\n\tlayers: 2\n",
            "model: !big {}\n",
            "- a\n",
        ];
        let all: Vec<String> =
            texts.iter().map(|text| read_sample(text, &[]).unwrap_err()).collect();
        insta::assert_snapshot!(all.join("--------\n"));
    }
}
