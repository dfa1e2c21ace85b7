//! What decides rounding: two runs that agree in it, in data and in seed have the same bits.
//!
//! Neither the number of ranks nor that of threads is in it.

use std::collections::BTreeMap;

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
    let entries = [
        // Not all of it decides bits. To tell apart what does is beyond a digest, and to warn once
        // too often is better than to promise bits that another build does not give.
        ("build", format!("{} {}", env!("CARGO_PKG_VERSION"), crate::BUILD)),
        ("arithmetic", kernels::gemm::arithmetic()),
        ("leaves", tree),
        ("micro-batches per leaf", micro_batches),
        ("model", digest(format!("{:?}", plan.architecture))),
        ("weights", plan.weights.to_string()),
        ("optimizer rules", digest(format!("{:?}", config.optimizer.rules))),
    ];
    entries.map(|(name, value)| (name.to_owned(), value)).into()
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

/// What differs, in words: `leaves (4 as 2·2 there, 6 as 2·3 here)`.
pub fn differences(theirs: &NumericPlan, ours: &NumericPlan) -> Vec<String> {
    let names: std::collections::BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    let word = |plan: &NumericPlan, name: &String| {
        plan.get(name).cloned().unwrap_or_else(|| "not recorded".to_owned())
    };
    names
        .into_iter()
        .filter(|name| theirs.get(*name) != ours.get(*name))
        .map(|name| format!("{name} ({} there, {} here)", word(theirs, name), word(ours, name)))
        .collect()
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
        assert_eq!(digest(&one), digest(&plan(|config| config.train.steps = 7, 2, 1)));
    }

    #[test]
    fn what_changes_bits_is_named() {
        let one = plan(|_| (), 1, 1);
        let named = |change: &dyn Fn(&mut Config)| {
            let other = plan(change, 1, 1);
            assert_ne!(digest(&one), digest(&other));
            differences(&one, &other).join("; ")
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
    }

    #[test]
    fn another_build_is_named() {
        let one = plan(|_| (), 1, 1);
        let mut other = one.clone();
        other.insert("build".into(), "0.1.0 fedcba9876543210".into());
        let text = differences(&other, &one).join("");
        let ours = format!("{} {}", env!("CARGO_PKG_VERSION"), crate::BUILD);
        assert_eq!(text, format!("build (0.1.0 fedcba9876543210 there, {ours} here)"));
    }

    #[test]
    fn an_entry_that_is_not_there_is_named_too() {
        let one = plan(|_| (), 1, 1);
        let mut older = one.clone();
        older.remove("arithmetic");
        let text = differences(&older, &one).join("");
        assert!(text.starts_with("arithmetic (not recorded there, "), "{text}");
    }
}
