//! The learning-rate factor as a pure function of the step.
//!
//! ```text
//! 1 ┤   ╭────────────╮            wsd: factor = min(rise, fall)
//!   │  ╱              ╲
//! f ┤ ╱                ╲
//!   └─┴──┴────────────┴─┴─▶ step
//!     1  warm-up  total-decay  total
//! ```

use crate::config::Schedule;

/// The factor for update number `step` (from 1) of a run of `total_steps`; 0 to 1.
///
/// The rise reaches 1 at update `warmup_steps` and the fall would reach `final_fraction` one update
/// after the last, so that no update is wasted on a factor of zero. Where a run is too short for
/// both, the smaller of the two holds. Beyond the end the factor stays at `final_fraction`.
pub fn factor(step: u64, total_steps: u64, schedule: &Schedule) -> f64 {
    let step = step.max(1);
    let rise = |warmup_steps: u64| match warmup_steps {
        0 => 1.0,
        warmup => (step as f64 / warmup as f64).min(1.0),
    };
    // How much of the fall over the last `steps` is done before this update.
    let fallen = |steps: u64| {
        let start = total_steps.saturating_sub(steps);
        let done = (step - 1).saturating_sub(start) as f64;
        if step > total_steps { 1.0 } else { done / steps.max(1) as f64 }
    };
    let line = |fallen: f64, end: f64| 1.0 - (1.0 - end) * fallen;
    match schedule {
        Schedule::Constant(constant) => rise(constant.warmup_steps),
        Schedule::Linear(linear) => {
            let steps = total_steps.saturating_sub(linear.warmup_steps);
            rise(linear.warmup_steps).min(line(fallen(steps), linear.final_fraction))
        }
        Schedule::Cosine(cosine) => {
            let steps = total_steps.saturating_sub(cosine.warmup_steps);
            let wave = 0.5 - 0.5 * libm::cos(std::f64::consts::PI * fallen(steps));
            rise(cosine.warmup_steps).min(line(wave, cosine.final_fraction))
        }
        Schedule::Wsd(wsd) => {
            let steps = wsd.decay_steps.min(total_steps);
            rise(wsd.warmup_steps).min(line(fallen(steps), wsd.final_fraction))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConstantSchedule, DecaySchedule, WsdSchedule};
    use proptest::prelude::*;

    fn schedules() -> impl Strategy<Value = (Schedule, u64, f64)> {
        let parts = (0_usize..4, 0_u64..50, 1_u64..200, 0.0_f64..=1.0);
        parts.prop_map(|(kind, warmup_steps, decay_steps, final_fraction)| {
            let decay = DecaySchedule { warmup_steps, final_fraction };
            let schedule = match kind {
                0 => Schedule::Constant(ConstantSchedule { warmup_steps }),
                1 => Schedule::Cosine(decay),
                2 => Schedule::Linear(decay),
                _ => Schedule::Wsd(WsdSchedule { warmup_steps, decay_steps, final_fraction }),
            };
            (schedule, warmup_steps, final_fraction)
        })
    }

    proptest! {
        #[test]
        fn bounded_rising_then_falling_without_jumps(
            (schedule, warmup, end) in schedules(), total in 1_u64..400,
        ) {
            let steps = match &schedule {
                Schedule::Constant(_) => u64::MAX,
                Schedule::Wsd(wsd) => wsd.decay_steps.min(total),
                _ => total.saturating_sub(warmup),
            };
            // The steepest of the two slopes; a cosine is π/2 times as steep as its chord.
            let fall = 1.6 * (1.0 - end) / steps.max(1) as f64;
            let steepest = fall.max(1.0 / warmup.max(1) as f64) + 1e-12;
            let mut falling = false;
            for step in 1..=total {
                let now = factor(step, total, &schedule);
                let next = factor(step + 1, total, &schedule);
                prop_assert!(now > 0.0 || (total <= warmup), "step {step} of {total} is wasted");
                prop_assert!((0.0..=1.0).contains(&now), "{now}");
                // A run that ends inside its warm-up has nothing to fall over.
                if steps > 0 {
                    prop_assert!((next - now).abs() <= steepest, "{now} -> {next} at {step}");
                }
                falling |= next < now;
                prop_assert!(!falling || next <= now, "rises again at {step}");
                if step <= warmup {
                    prop_assert!(now <= step as f64 / warmup as f64);
                }
            }
            let after = factor(total + 1, total, &schedule);
            match schedule {
                Schedule::Constant(_) => prop_assert!(after > 0.0),
                _ => prop_assert!(after <= end + 1e-12),
            }
        }
    }

    #[test]
    fn the_corners_of_warm_up_stable_decay() {
        let wsd = WsdSchedule { warmup_steps: 10, decay_steps: 20, final_fraction: 0.0 };
        let at = |step| factor(step, 100, &Schedule::Wsd(wsd.clone()));
        assert_eq!([at(0), at(1), at(10), at(11)], [0.1, 0.1, 1.0, 1.0]);
        assert_eq!([at(81), at(91), at(101), at(500)], [1.0, 0.5, 0.0, 0.0]);
        assert!((at(100) - 0.05).abs() < 1e-12);
    }
}
