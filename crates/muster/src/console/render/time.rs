//! Where the time went: a line of shares, and a table of operations.

use std::fmt::Write as _;

use train::event::{Operation, Profile, Spread, Times};

use crate::console::units::{count, duration, ms as milliseconds};

/// All of the time, and the shares that add up to it.
pub fn line(times: &Times) -> String {
    let parts = times.parts();
    let weights: Vec<f64> = parts.iter().map(|(_, ms)| *ms).collect();
    let shown = parts.iter().zip(percents(&weights)).filter(|(_, percent)| *percent > 0);
    let shares: Vec<String> = shown.map(|((name, _), n)| format!("{name} {n} %")).collect();
    format!("{}: {}", duration(times.all_ms / 1e3), shares.join(", "))
}

/// Whole percents that add up to 100: those that lost most by rounding down get what is missing.
fn percents(parts: &[f64]) -> Vec<u32> {
    let sum: f64 = parts.iter().sum();
    if sum <= 0.0 {
        return vec![0; parts.len()];
    }
    let exact: Vec<f64> = parts.iter().map(|part| part / sum * 100.0).collect();
    let mut whole: Vec<u32> = exact.iter().map(|percent| *percent as u32).collect();
    let missing = 100_u32.saturating_sub(whole.iter().sum());
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()));
    for &index in order.iter().take(missing as usize) {
        whole[index] += 1;
    }
    whole
}

/// How parts and operations were spread over the ranks, a line each, of what took a hundredth of
/// the longest at least.
pub fn spreads(spreads: &[Spread]) -> String {
    let longest = spreads.iter().map(|spread| spread.max_ms).fold(0.0, f64::max);
    let head = ["", "min", "median", "max", "slowest"];
    let mut rows = vec![head.map(str::to_owned)];
    for spread in spreads.iter().filter(|spread| spread.max_ms >= longest / 100.0) {
        let [min, median, max] = [spread.min_ms, spread.median_ms, spread.max_ms].map(milliseconds);
        rows.push([spread.name.clone(), min, median, max, format!("rank {}", spread.slowest)]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let [w, x, y, z, _]: [usize; 5] = std::array::from_fn(width);
    let line = |[name, min, median, max, slowest]: &[String; 5]| {
        let line = format!("{name:<w$}  {min:>x$}  {median:>y$}  {max:>z$}  {slowest}");
        line.trim_end().to_owned()
    };
    let lines: Vec<String> = rows.iter().map(line).collect();
    lines.join("\n             ")
}

/// One line per operation, the costliest first, and what was between them.
pub fn table(profile: &Profile) -> String {
    if profile.operations.is_empty() {
        return "  none: no step was taken".into();
    }
    let head = ["operation", "calls", "ms", "share", "rate"];
    let mut rows = vec![head.map(str::to_owned)];
    let share = |ms: f64| format!("{:.1} %", ms / profile.ms.max(f64::MIN_POSITIVE) * 100.0);
    for operation in &profile.operations {
        rows.push([
            operation.name.clone(),
            count(operation.calls),
            format!("{:.1}", operation.ms),
            share(operation.ms),
            rate(operation),
        ]);
    }
    let known: f64 = profile.operations.iter().map(|operation| operation.ms).sum();
    let rest = (profile.ms - known).max(0.0);
    let (ms, none) = (format!("{rest:.1}"), String::new());
    rows.push(["between them".into(), none.clone(), ms, share(rest), none]);
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    let mut out = String::new();
    for [name, calls, ms, share, rate] in &rows {
        let [w, x, y, z, _] = widths;
        let line = format!("  {name:<w$}  {calls:>x$}  {ms:>y$}  {share:>z$}  {rate}");
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out.truncate(out.trim_end().len());
    out
}

fn rate(operation: &Operation) -> String {
    let per_second = |amount: u64| amount as f64 / operation.ms.max(1e-9) * 1e3 / 1e9;
    match (operation.flops, operation.bytes) {
        (Some(flops), _) => format!("{:.1} GFLOP/s", per_second(flops)),
        (None, Some(bytes)) => format!("{:.1} GB/s", per_second(bytes)),
        (None, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn percents_add_up(parts in prop::collection::vec(0.0..1e6_f64, 1..12)) {
            prop_assume!(parts.iter().sum::<f64>() > 0.0);
            let whole = percents(&parts);
            prop_assert_eq!(whole.iter().sum::<u32>(), 100);
            let sum: f64 = parts.iter().sum();
            for (part, percent) in parts.iter().zip(whole) {
                prop_assert!((part / sum * 100.0 - f64::from(percent)).abs() < 1.0);
            }
        }
    }

    #[test]
    fn no_step_has_no_operations() {
        let profile = Profile { ms: 0.4, operations: Vec::new() };
        assert_eq!(table(&profile), "  none: no step was taken");
    }

    #[test]
    fn no_time_is_no_share() {
        let times = Times { all_ms: 1000.0, ..Times::default() };
        assert_eq!(line(&times), "1.0 s: other 100 %");
        assert_eq!(percents(&[0.0, 0.0]), [0, 0]);
    }
}
