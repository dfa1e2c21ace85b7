//! The plan that decides bits: two runs that agree in it, in data and in seed have the same
//! weights.
//!
//! Neither the number of ranks nor that of threads is in it.

use std::collections::{BTreeMap, BTreeSet};

use checkpoint::{ValueDifference, value_differences};
use optim::Schedule;
use serde_json::Value;

use crate::{Config, RunPlan};

/// By name, in words or as a digest.
pub type NumericPlan = BTreeMap<String, String>;

/// The numeric plan of a run.
pub fn numeric_plan(plan: &RunPlan, config: &Config) -> NumericPlan {
    let digest = |text: String| blake3::hash(text.as_bytes()).to_hex()[..16].to_owned();
    let batch = &config.batch;
    let radices: Vec<String> = plan.tree.radices().iter().map(ToString::to_string).collect();
    let tree = format!("{} as {}", batch.leaves, radices.join("·"));
    let micro_batches = format!(
        "{} of {} windows of {} tokens",
        batch.micro_batches, batch.micro_batch, batch.seq_len
    );
    let optimizer = &config.optimizer;
    // A constant rate is the only one that the length of the run does not enter.
    let schedule = match &optimizer.schedule {
        constant @ Schedule::Constant(_) => json(constant),
        other => format!("{} of {} steps", json(other), config.train.steps),
    };
    let entries = [
        // Not all of it decides bits. To tell apart what does is beyond a digest, and to warn once
        // too often is better than to promise bits that another build does not give.
        ("build", format!("{} {}", env!("CARGO_PKG_VERSION"), crate::BUILD)),
        ("leaves", tree),
        ("micro-batches per leaf", micro_batches),
        ("weights", plan.weights.to_string()),
        ("optimizer rules", digest(format!("{:?}", optimizer.rules))),
        ("clip", json(&optimizer.clip)),
        ("schedule", schedule),
    ];
    let mut numeric = plan.numeric.clone();
    numeric.extend(entries.map(|(name, value)| (name.to_owned(), value)));
    numeric
}

/// As in a config.
fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// One digest of all of it.
pub fn digest(plan: &NumericPlan) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for (name, value) in plan {
        // Lengths keep neighbours apart.
        for text in [name, value] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    *hasher.finalize().as_bytes()
}

/// Entries that are digests, and the section of the config that they are of: its place in JSON,
/// and for people.
const DIGESTS: [(&str, &str, &str); 2] =
    [("model", "/model", "model"), ("optimizer rules", "/optimizer/rules", "optimizer.rules")];

/// Differences between theirs and ours, in words: `leaves (4 as 2·2 there, 6 as 2·3 here)`. Where
/// entries are digests and both configs are known, the keys of the config are told.
pub fn differences(plans: &[NumericPlan; 2], configs: [Option<&Value>; 2]) -> Vec<String> {
    let [theirs, ours] = plans;
    let names: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    let word = |plan: &NumericPlan, name: &String| {
        plan.get(name).cloned().unwrap_or_else(|| "not recorded".to_owned())
    };
    // A build may write down the same section in other words, and is named for what it does.
    let is_of_build = theirs.get("build") != ours.get("build");
    let told = |name: &String| match in_words(name, configs) {
        Some(words) if is_of_build || !words.is_empty() => words,
        _ => vec![format!("{name} ({} there, {} here)", word(theirs, name), word(ours, name))],
    };
    names.into_iter().filter(|name| theirs.get(*name) != ours.get(*name)).flat_map(told).collect()
}

/// The keys of the config behind a digest that differ: `optimizer.rules[0].muon.lr (0.003 there,
/// 0.006 here)`; none where the configs say the same. `None` of what is no digest, or where a
/// config is not known.
fn in_words(name: &str, configs: [Option<&Value>; 2]) -> Option<Vec<String>> {
    let (_, pointer, at) = DIGESTS.iter().find(|(entry, ..)| *entry == name)?;
    section(pointer, at, configs)
}

/// Whatever of the config decides which samples come when, where it differs.
pub(crate) fn data_differences(configs: [Option<&Value>; 2]) -> Vec<String> {
    let sections = [("/seed", "seed"), ("/data", "data")];
    sections.iter().filter_map(|(pointer, at)| section(pointer, at, configs)).flatten().collect()
}

/// The keys of a section of the config that differ; `None` where it is not known of both.
fn section(pointer: &str, at: &str, configs: [Option<&Value>; 2]) -> Option<Vec<String>> {
    let [Some(theirs), Some(ours)] = configs.map(|config| config?.pointer(pointer)) else {
        return None;
    };
    let word = |value: Option<Value>| match value {
        None | Some(Value::Null) => "not set".to_owned(),
        Some(value) => value.to_string(),
    };
    let told = |found: ValueDifference| {
        format!("{} ({} there, {} here)", found.place, word(found.a), word(found.b))
    };
    Some(value_differences(at, theirs, ours).into_iter().map(told).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(change: impl Fn(&mut Config), world: usize, threads: usize) -> NumericPlan {
        let mut config = Config::default();
        config.model.preset = Some(model::Preset::TinyMoe);
        change(&mut config);
        let plan = RunPlan::new(&config, 257, world, threads).unwrap();
        numeric_plan(&plan, &config)
    }

    #[test]
    fn ranks_and_threads_are_not_in_it() {
        let one = plan(|_| (), 1, 1);
        assert_eq!(one, plan(|_| (), 3, 2));
        assert_eq!(digest(&one), digest(&plan(|config| config.train.eval_every = 7, 2, 1)));
    }

    #[test]
    fn what_changes_bits_is_named() {
        let one = plan(|_| (), 1, 1);
        let named = |change: &dyn Fn(&mut Config)| {
            let other = plan(change, 1, 1);
            assert_ne!(digest(&one), digest(&other));
            differences(&[one.clone(), other], [None; 2]).join("; ")
        };
        let leaves = named(&|config| config.batch.leaves = 6);
        assert_eq!(leaves, "leaves (4 as 2·2 there, 6 as 2·3 here)");
        assert!(named(&|config| config.batch.micro_batches = 2).starts_with("micro-batches per"));
        assert!(named(&|config| config.batch.seq_len = 128).contains("of 128 tokens here"));
        assert!(named(&|config| config.model.norm_eps = Some(1e-3)).starts_with("model ("));
        let rules = |config: &mut Config| {
            let muon = config.optimizer.rules[0].muon.as_mut().unwrap();
            muon.lr *= 2.0;
        };
        assert!(named(&rules).starts_with("optimizer rules ("));
        let clip = named(&|config| config.optimizer.clip = optim::Clip::Global(0.5));
        assert!(clip.ends_with(r#"there, {"global":0.5} here)"#), "{clip}");
        assert!(named(&|config| config.train.steps = 77).contains("of 77 steps here"));
    }

    #[test]
    fn a_digest_is_told_by_the_keys_that_differ() {
        let of = |change: &dyn Fn(&mut Config)| {
            let mut config = Config::default();
            config.model.preset = Some(model::Preset::TinyMoe);
            change(&mut config);
            let plan = RunPlan::new(&config, 257, 1, 1).unwrap();
            (numeric_plan(&plan, &config), serde_json::to_value(&config).unwrap())
        };
        let (theirs, their_config) = of(&|_| ());
        let (ours, our_config) = of(&|config| {
            config.optimizer.rules[0].muon.as_mut().unwrap().lr = 0.006;
            config.optimizer.rules[1].adamw.as_mut().unwrap().beta2 = 0.5;
            config.model.norm_eps = Some(0.001);
        });
        let plans = [theirs.clone(), ours.clone()];
        let told = differences(&plans, [Some(&their_config), Some(&our_config)]);
        let expected = [
            "model.norm_eps (not set there, 0.001 here)",
            "optimizer.rules[0].muon.lr (0.003 there, 0.006 here)",
            "optimizer.rules[1].adamw.beta2 (0.95 there, 0.5 here)",
        ];
        assert_eq!(told, expected);
        // A rule more, and matches that differ.
        let (ours, our_config) = of(&|config| {
            let rest = config.optimizer.rules[1].clone();
            config.optimizer.rules.push(rest);
            config.optimizer.rules[1].matches.roles = Some(vec![optim::RoleWord::Vector]);
        });
        let told = differences(&[theirs.clone(), ours], [Some(&their_config), Some(&our_config)]);
        let expected = "optimizer.rules[1].match.roles (not set there, [\"vector\"] here)";
        assert_eq!(told[0], expected);
        assert!(told[1].starts_with("optimizer.rules[2] (not set there, {"), "{told:?}");
        assert_eq!(told.len(), 2);
        // Of a checkpoint that has the digest alone, or the same words for another digest.
        for configs in [[None, Some(&our_config)], [Some(&our_config); 2]] {
            let told = differences(&plans, configs);
            assert_eq!(told.len(), 2);
            assert!(told[1].starts_with("optimizer rules ("), "{told:?}");
        }
    }

    #[test]
    fn another_build_is_named() {
        let one = plan(|_| (), 1, 1);
        let mut other = one.clone();
        other.insert("build".into(), "0.1.0 fedcba9876543210".into());
        let text = differences(&[other, one], [None; 2]).join("");
        let ours = format!("{} {}", env!("CARGO_PKG_VERSION"), crate::BUILD);
        assert_eq!(text, format!("build (0.1.0 fedcba9876543210 there, {ours} here)"));
    }

    #[test]
    fn sections_that_say_the_same_are_not_named_beside_another_build() {
        let config = serde_json::to_value(Config::default()).unwrap();
        let one = plan(|_| (), 1, 1);
        let other = |build: &str| {
            let mut other = one.clone();
            other.insert("model".into(), "0123".into());
            other.insert("optimizer rules".into(), "4567".into());
            other.insert("build".into(), build.into());
            differences(&[other, one.clone()], [Some(&config); 2])
        };
        assert_eq!(other("0.1.0 fedcba9876543210").len(), 1);
        assert_eq!(other(&one["build"]).len(), 2);
    }

    #[test]
    fn an_entry_that_is_not_there_is_named_too() {
        let one = plan(|_| (), 1, 1);
        let mut older = one.clone();
        older.remove("arithmetic");
        let text = differences(&[older, one], [None; 2]).join("");
        assert!(text.starts_with("arithmetic (not recorded there, "), "{text}");
    }
}
