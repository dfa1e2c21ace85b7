//! Experts, their groups, and how many of both a token chooses: three numbers of which a later one
//! is compared only where the earlier ones fit.

use crate::ModelError;
use crate::architecture::Moe;

use super::divisors;

/// The error of the first number that does not fit, with values that would; `None` if all fit.
pub(super) fn refusal(moe: &Moe) -> Option<ModelError> {
    if !are_groups(moe, moe.groups) {
        let problem =
            format!("moe.experts = {} does not divide into groups of two or more", moe.experts);
        return Some(shape("moe.groups", moe.groups, problem, offer_groups(moe)));
    }
    if !(1..=moe.groups).contains(&moe.top_groups) {
        let problem = match moe.groups {
            1 => "there is 1 group".to_owned(),
            groups => format!("there are {groups} groups"),
        };
        let least = least_groups(moe, moe.groups).min(moe.groups);
        return Some(shape("moe.top_groups", moe.top_groups, problem, range(least, moe.groups)));
    }
    let most = moe.top_groups * (moe.experts / moe.groups);
    if (1..=most).contains(&moe.top_k) {
        return None;
    }
    let problem = match (moe.top_groups, moe.groups) {
        (_, 1) => format!("there are {most} experts"),
        (1, groups) => format!("the best of {groups} groups has {most} experts"),
        (top, groups) => format!("the best {top} of {groups} groups have {most} experts"),
    };
    let mut remedy = range(1, most);
    if (1..=moe.experts).contains(&moe.top_k) {
        remedy = format!("{remedy}, or moe.top_groups = {}", least_groups(moe, moe.groups));
    }
    Some(shape("moe.top_k", moe.top_k, problem, remedy))
}

fn shape(key: &'static str, value: usize, problem: String, remedy: String) -> ModelError {
    ModelError::Shape { key, value: value.to_string(), problem, remedy }
}

fn range(least: usize, most: usize) -> String {
    if least == most { format!("use {least}") } else { format!("use {least} to {most}") }
}

/// One group is no groups, of any number of experts.
fn are_groups(moe: &Moe, groups: usize) -> bool {
    groups == 1 || (groups > 1 && moe.experts.is_multiple_of(groups) && moe.experts / groups >= 2)
}

/// The fewest groups whose experts are enough to choose from.
fn least_groups(moe: &Moe, groups: usize) -> usize {
    moe.top_k.div_ceil((moe.experts / groups).max(1)).max(1)
}

/// `use moe.groups = 4`: the nearest number with which the others fit. Where there is none, the
/// nearest, and what the groups to choose in must be with it.
fn offer_groups(moe: &Moe) -> String {
    let mut found: Vec<(usize, usize)> = divisors(moe.experts)
        .into_iter()
        .chain([1])
        .filter(|&groups| are_groups(moe, groups))
        .map(|groups| {
            // No groups are enough for more choices than experts, which is told by itself.
            let least = least_groups(moe, groups).min(groups);
            (groups, moe.top_groups.clamp(least, groups))
        })
        .collect();
    found.sort_unstable_by_key(|&(groups, top)| {
        (top != moe.top_groups, groups.abs_diff(moe.groups), groups)
    });
    match found.first() {
        Some(&(groups, top)) if top == moe.top_groups => format!("use moe.groups = {groups}"),
        Some(&(groups, top)) => format!("use moe.groups = {groups} with moe.top_groups = {top}"),
        None => "use moe.groups = 1".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::config::MoeConfig;
    use crate::{ModelConfig, ModelError, Preset};

    fn config([experts, top_k, groups, top_groups]: [usize; 4]) -> ModelConfig {
        let moe = MoeConfig {
            experts: Some(experts),
            top_k: Some(top_k),
            groups: Some(groups),
            top_groups: Some(top_groups),
            ..MoeConfig::default()
        };
        let preset = Some(Preset::TinyMoe);
        ModelConfig { preset, layers: Some(1), moe: Some(moe), ..ModelConfig::default() }
    }

    fn message(numbers: [usize; 4]) -> String {
        config(numbers).resolve(257, 64).unwrap_err().to_string()
    }

    #[test]
    fn refusals_say_what_fits() {
        assert_eq!(
            message([12, 2, 5, 2]),
            "model.moe.groups = 5: moe.experts = 12 does not divide into groups of two or more; \
             use moe.groups = 4"
        );
        assert_eq!(
            message([7, 2, 7, 2]),
            "model.moe.groups = 7: moe.experts = 7 does not divide into groups of two or more; \
             use moe.groups = 1 with moe.top_groups = 1"
        );
        assert_eq!(
            message([12, 4, 4, 5]),
            "model.moe.top_groups = 5: there are 4 groups; use 2 to 4"
        );
        assert_eq!(
            message([12, 7, 4, 2]),
            "model.moe.top_k = 7: the best 2 of 4 groups have 6 experts; use 1 to 6, or \
             moe.top_groups = 3"
        );
        assert_eq!(message([8, 9, 1, 1]), "model.moe.top_k = 9: there are 8 experts; use 1 to 8");
        assert_eq!(message([8, 9, 1, 2]), "model.moe.top_groups = 2: there is 1 group; use 1");
    }

    /// The config with what a message says: a range of the key at fault, or `key = value, …`.
    fn changed(numbers: [usize; 4], key: &str, offer: &str) -> Vec<[usize; 4]> {
        let with = |numbers: [usize; 4], key: &str, value: usize| {
            let mut changed = numbers;
            let keys = ["moe.experts", "moe.top_k", "moe.groups", "moe.top_groups"];
            changed[keys.iter().position(|&known| known == key).expect("a key")] = value;
            changed
        };
        let number = |word: &str| -> usize { word.parse().expect("a number") };
        if offer.contains(" = ") {
            let pairs = offer.split(" with ").map(|pair| pair.split_once(" = ").unwrap());
            return vec![pairs.fold(numbers, |all, (key, value)| with(all, key, number(value)))];
        }
        let ends: Vec<usize> = offer.split(" to ").map(number).collect();
        ends.into_iter().map(|value| with(numbers, key, value)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// With whatever a message says to use, the whole model passes.
        #[test]
        fn offered_values_are_taken(
            (experts, top_k) in (1_usize..40, 0_usize..45),
            (groups, top_groups) in (0_usize..45, 0_usize..12),
        ) {
            let numbers = [experts, top_k, groups, top_groups];
            let Err(error) = config(numbers).resolve(257, 64) else { return Ok(()) };
            let ModelError::Shape { key, remedy, .. } = &error else {
                panic!("{numbers:?}: {error}");
            };
            for offer in remedy.strip_prefix("use ").unwrap().split(", or ") {
                for changed in changed(numbers, key, offer) {
                    let left = config(changed).resolve(257, 64).err();
                    // More choices than experts is a mistake of its own, told once groups fit.
                    let own = top_k == 0 || top_k > experts;
                    let told = left.as_ref().is_none_or(|left| {
                        own && left.to_string().starts_with("model.moe.top_k")
                    });
                    prop_assert!(told, "{numbers:?}: {offer}: {left:?}");
                    prop_assert!(own || left.is_none(), "{numbers:?}: {offer}: {left:?}");
                }
            }
        }
    }
}
