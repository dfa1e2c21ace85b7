//! Which experts a token visits: those of the largest scores, in the best groups of experts alone.
//!
//! Experts lie in groups of neighbours (DeepSeek-V3, arXiv 2412.19437, §2.1.2 and eq. 12–16): a
//! group counts by the sum of its two largest values, value being score + bias; the best
//! `top_groups` stay, and the `top_k` largest values of their experts are chosen. Equal values fall
//! to the lower group and the lower expert. Experts of other groups count as −∞, and not as 0, as
//! in Hugging Face's code, which chooses among them once all values are below 0.
//!
//! Nothing is kept of groups but the last that stays, so a choice needs no memory of its own.

use super::{Router, Shares};
use crate::Real;

/// Chooses, and makes weights of the scores alone.
pub(super) fn choose<T: Real>(
    router: &Router,
    scores: &[T],
    bias: &[T],
    weights: &mut [T],
    chosen: &mut [u32],
) {
    let values = Values { scores, bias, group_len: router.experts / router.groups };
    let last = values.last_kept(router);
    let stays = |group: &usize| last.is_none_or(|last| values.stays(last, *group));
    for a in 0..chosen.len() {
        let mut best = usize::MAX;
        let mut most = T::NEG_INFINITY;
        for group in (0..router.groups).filter(stays) {
            for e in values.experts(group) {
                let value = values.of(e);
                let free = !chosen[..a].contains(&(e as u32));
                if free && (best == usize::MAX || value > most) {
                    (best, most) = (e, value);
                }
            }
        }
        chosen[a] = best as u32;
        weights[a] = scores[best];
    }
    let total = weights.iter().fold(T::ZERO, |a, &b| a + b);
    let factor = match router.shares {
        Shares::Normalized => T::of(router.scale) / total,
        Shares::Scores => T::of(router.scale),
    };
    weights.iter_mut().for_each(|w| *w *= factor);
}

/// The values of experts and their groups in the choice of one token.
struct Values<'a, T> {
    scores: &'a [T],
    bias: &'a [T],
    /// Experts of one group.
    group_len: usize,
}

/// A group and what it counts.
type Ranked<T> = (usize, T);

impl<T: Real> Values<'_, T> {
    fn of(&self, expert: usize) -> T {
        self.scores[expert] + self.bias[expert]
    }

    fn experts(&self, group: usize) -> std::ops::Range<usize> {
        group * self.group_len..(group + 1) * self.group_len
    }

    /// The sum of the two largest values; −∞ where they are not numbers, so that groups have an
    /// order whatever they hold.
    fn of_group(&self, group: usize) -> T {
        let (mut first, mut second) = (T::NEG_INFINITY, T::NEG_INFINITY);
        for value in self.experts(group).map(|e| self.of(e)) {
            if value > first {
                (first, second) = (value, first);
            } else if value > second {
                second = value;
            }
        }
        (first + second).max(T::NEG_INFINITY)
    }

    /// The last of the groups that stay, the best first; `None` where all do.
    fn last_kept(&self, router: &Router) -> Option<Ranked<T>> {
        if router.top_groups == router.groups {
            return None;
        }
        let next = |after: Option<Ranked<T>>| {
            let ranked = (0..router.groups).map(|group| (group, self.of_group(group)));
            let left = ranked.filter(|&group| after.is_none_or(|after| is_before(after, group)));
            left.reduce(|best, group| if is_before(group, best) { group } else { best })
        };
        (0..router.top_groups).fold(None, |last, _| next(last))
    }

    /// Whether a group stays where `last` is the last that does.
    fn stays(&self, last: Ranked<T>, group: usize) -> bool {
        !is_before(last, (group, self.of_group(group)))
    }
}

/// Whether the first group is better than the second.
fn is_before<T: Real>((i, a): Ranked<T>, (j, b): Ranked<T>) -> bool {
    a > b || (a == b && i < j)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Scores;
    use super::*;

    fn router(experts: usize, top_k: usize, [groups, top_groups]: [usize; 2]) -> Router {
        let (scores, shares) = (Scores::Sigmoid, Shares::Normalized);
        let (scale, aux_loss, z_loss) = (2.5, 0.0, 0.0);
        Router { experts, top_k, groups, top_groups, scores, shares, scale, aux_loss, z_loss }
    }

    fn chosen<T: Real>(router: &Router, scores: &[T], bias: &[T]) -> (Vec<u32>, Vec<T>) {
        let (mut weights, mut chosen) = (vec![T::ZERO; router.top_k], vec![9; router.top_k]);
        choose(router, scores, bias, &mut weights, &mut chosen);
        (chosen, weights)
    }

    /// The choice as it was before there were groups.
    fn before_groups<T: Real>(router: &Router, scores: &[T], bias: &[T]) -> (Vec<u32>, Vec<T>) {
        let (mut weights, mut chosen) = (vec![T::ZERO; router.top_k], vec![9; router.top_k]);
        for a in 0..chosen.len() {
            let mut best = usize::MAX;
            let mut most = T::NEG_INFINITY;
            for (e, &score) in scores.iter().enumerate() {
                let value = score + bias[e];
                let free = !chosen[..a].contains(&(e as u32));
                if free && (best == usize::MAX || value > most) {
                    (best, most) = (e, value);
                }
            }
            chosen[a] = best as u32;
            weights[a] = scores[best];
        }
        let total = weights.iter().fold(T::ZERO, |a, &b| a + b);
        let factor = T::of(router.scale) / total;
        weights.iter_mut().for_each(|w| *w *= factor);
        (chosen, weights)
    }

    /// By sorting, as the paper says it.
    fn by_sorting(router: &Router, scores: &[f64], bias: &[f64]) -> Vec<u32> {
        let value = |e: usize| scores[e] + bias[e];
        let of_group = router.experts / router.groups;
        let group_value = |group: usize| {
            let mut values: Vec<f64> =
                (group * of_group..(group + 1) * of_group).map(value).collect();
            values.sort_by(|a, b| b.total_cmp(a));
            values[0] + values[1]
        };
        let mut groups: Vec<usize> = (0..router.groups).collect();
        // Sorting is stable: equals stay in order.
        groups.sort_by(|&a, &b| group_value(b).total_cmp(&group_value(a)));
        groups.truncate(router.top_groups);
        let mut experts: Vec<usize> =
            (0..router.experts).filter(|e| groups.contains(&(e / of_group))).collect();
        experts.sort_by(|&a, &b| value(b).total_cmp(&value(a)));
        experts.iter().take(router.top_k).map(|&e| e as u32).collect()
    }

    #[test]
    fn equals_fall_to_the_lower_group_and_the_lower_expert() {
        let all_equal = [0.5_f32; 12];
        let chosen = |top_k, groups, bias: &[f32; 12]| {
            chosen(&router(12, top_k, groups), &all_equal, bias).0
        };
        assert_eq!(chosen(5, [4, 2], &[0.0; 12]), [0, 1, 2, 3, 4]);
        let mut bias = [0.0; 12];
        // The third group is better, and of the others the first is the lowest.
        (bias[7], bias[8]) = (0.25, 0.25);
        assert_eq!(chosen(5, [4, 2], &bias), [7, 8, 0, 1, 2]);
        assert_eq!(chosen(3, [4, 1], &bias), [7, 8, 6]);
    }

    #[test]
    fn one_large_value_is_no_match_for_two() {
        let scores = [0.9, 0.1, 0.1, 0.6, 0.6, 0.1];
        let (chosen, weights) = chosen(&router(6, 2, [2, 1]), &scores, &[0.0; 6]);
        assert_eq!((chosen, weights), (vec![3, 4], vec![1.25, 1.25]));
    }

    #[test]
    fn values_below_zero_leave_the_experts_of_other_groups_out() {
        let scores = [0.9, 0.8, 0.7, 0.1, 0.1, 0.1];
        let (chosen, _) = chosen(&router(6, 3, [2, 1]), &scores, &[-2.0; 6]);
        assert_eq!(chosen, [0, 1, 2]);
    }

    #[test]
    fn what_is_no_number_is_chosen_without_a_panic() {
        for scores in [[f32::NAN; 8], [f32::NEG_INFINITY; 8], [f32::INFINITY; 8]] {
            let (mut chosen, _) = chosen(&router(8, 4, [4, 2]), &scores, &[0.0; 8]);
            chosen.sort_unstable();
            assert_eq!(chosen, [0, 1, 2, 3]);
        }
        let scores = [f32::NAN, 0.1, 0.2, 0.3, f32::NAN, f32::NAN];
        let (mut chosen, _) = chosen(&router(6, 4, [3, 2]), &scores, &[0.0; 6]);
        chosen.sort_unstable();
        assert_eq!(chosen, [0, 1, 2, 3]);
    }

    /// Few values, so that many are equal.
    fn coarse(len: usize) -> impl Strategy<Value = Vec<i8>> {
        prop::collection::vec(-3_i8..4, len)
    }

    proptest! {
        #[test]
        fn one_group_and_all_groups_are_the_choice_before_groups(
            (scores, bias) in (coarse(12), coarse(12)),
            noise in 0.0_f64..0.1,
            top_k in 1_usize..13,
            groups in prop::sample::select(vec![1_usize, 2, 3, 4, 6]),
        ) {
            let router = router(12, top_k, [groups, groups]);
            let values = |from: &[i8]| -> Vec<f64> {
                from.iter().map(|&value| f64::from(value) / 4.0 + noise).collect()
            };
            let (scores, bias) = (values(&scores), values(&bias));
            prop_assert_eq!(
                chosen(&router, &scores, &bias),
                before_groups(&router, &scores, &bias)
            );
            let narrow = |from: &[f64]| -> Vec<f32> { from.iter().map(|&v| v as f32).collect() };
            let (scores, bias) = (narrow(&scores), narrow(&bias));
            let bits = |(chosen, weights): (Vec<u32>, Vec<f32>)| {
                (chosen, weights.into_iter().map(f32::to_bits).collect::<Vec<u32>>())
            };
            prop_assert_eq!(
                bits(chosen(&router, &scores, &bias)),
                bits(before_groups(&router, &scores, &bias))
            );
        }

        #[test]
        fn groups_are_chosen_as_by_sorting(
            (scores, bias) in (coarse(24), coarse(24)),
            groups in prop::sample::select(vec![2_usize, 3, 4, 6, 12]),
            (top_groups, top_k) in (1_usize..13, 1_usize..25),
        ) {
            let top_groups = top_groups.min(groups);
            let top_k = top_k.min(top_groups * (24 / groups));
            let router = router(24, top_k, [groups, top_groups]);
            // Quarters add without rounding, so equals are equal on both sides.
            let quarters = |from: &[i8]| -> Vec<f64> {
                from.iter().map(|&value| f64::from(value) / 4.0).collect()
            };
            let (scores, bias) = (quarters(&scores), quarters(&bias));
            prop_assert_eq!(chosen(&router, &scores, &bias).0, by_sorting(&router, &scores, &bias));
        }
    }
}
