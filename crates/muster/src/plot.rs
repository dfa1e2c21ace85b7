//! The loss of a run as an SVG: training and validation over steps, the loss on a log axis.
//!
//! A pure function of the events, so a plot can be made again at any time. A resumed run repeats
//! the steps after its checkpoint; what it says later replaces what was said before.

use std::collections::BTreeMap;
use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use train::event::Event;

use crate::error::CliError;

const SIZE: (u32, u32) = (960, 540);
/// Smoothing of the training loss, in steps.
const SMOOTHING_STEPS: f64 = 10.0;
const TRAIN: RGBColor = RGBColor(31, 119, 180);
const VALIDATION: RGBColor = RGBColor(214, 39, 40);

/// Loss by step.
#[derive(Debug, Default, PartialEq)]
struct Curves {
    name: String,
    train: BTreeMap<u64, f64>,
    validation: BTreeMap<u64, f64>,
}

impl Curves {
    fn of(events: &[Event]) -> Curves {
        let mut curves = Curves::default();
        for event in events {
            match event {
                Event::Header(header) => curves.name.clone_from(&header.name),
                Event::Resumed(resumed) => curves.forget_after(resumed.step),
                Event::Step(step) if step.loss.is_finite() => {
                    // The first step of a run that starts over.
                    if step.step == 1 {
                        curves.forget_after(0);
                    }
                    curves.train.insert(step.step, step.loss);
                }
                Event::Evaluation(evaluation) if evaluation.loss.is_finite() => {
                    curves.validation.insert(evaluation.step, evaluation.loss);
                }
                _ => {}
            }
        }
        curves
    }

    fn forget_after(&mut self, step: u64) {
        self.train.retain(|&at, _| at <= step);
        self.validation.retain(|&at, _| at <= step);
    }

    /// Exponential average, corrected for its start as in Adam (Kingma & Ba 2015, §3).
    fn smooth_train(&self) -> Vec<(f64, f64)> {
        let keep = 1.0 - 1.0 / SMOOTHING_STEPS;
        let (mut average, mut weight) = (0.0, 0.0);
        let points = self.train.iter().map(|(&step, &loss)| {
            average = keep * average + (1.0 - keep) * loss;
            weight = keep * weight + (1.0 - keep);
            (step as f64, average / weight)
        });
        points.collect()
    }
}

/// The plot of a run, or `None` if it has no step.
///
/// # Errors
/// A bug in drawing.
pub fn loss_svg(events: &[Event]) -> Result<Option<String>, CliError> {
    let curves = Curves::of(events);
    if curves.train.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(&curves, &mut svg).map_err(|error| CliError::bug(format!("loss plot: {error}")))?;
    Ok(Some(svg))
}

fn draw(curves: &Curves, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let points = |curve: &BTreeMap<u64, f64>| -> Vec<(f64, f64)> {
        curve.iter().map(|(&step, &loss)| (step as f64, loss)).collect()
    };
    let (train, validation) = (points(&curves.train), points(&curves.validation));
    let last = train.iter().chain(&validation).map(|p| p.0).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("{}: loss", curves.name), ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..last, LogLoss::covering(train.iter().chain(&validation)))?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc("cross-entropy per token, nats")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .draw()?;
    chart.draw_series(LineSeries::new(train, TRAIN.mix(0.25)))?;
    chart
        .draw_series(LineSeries::new(curves.smooth_train(), TRAIN.stroke_width(2)))?
        .label("training")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], TRAIN.stroke_width(2)));
    if !validation.is_empty() {
        chart
            .draw_series(LineSeries::new(validation.clone(), VALIDATION.stroke_width(2)))?
            .label("validation")
            .legend(|(x, y)| PathElement::new([(x, y), (x + 20, y)], VALIDATION.stroke_width(2)));
        chart
            .draw_series(validation.into_iter().map(|p| Circle::new(p, 3, VALIDATION.filled())))?;
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK.mix(0.3)).draw()?;
    root.present()?;
    Ok(())
}

/// A logarithmic axis whose labels are round numbers even within one decade.
struct LogLoss {
    low: f64,
    high: f64,
}

impl LogLoss {
    fn covering<'a>(points: impl Iterator<Item = &'a (f64, f64)>) -> LogLoss {
        let (mut low, mut high) = (f64::INFINITY, f64::MIN_POSITIVE);
        for &(_, loss) in points {
            low = low.min(loss.max(1e-6));
            high = high.max(loss);
        }
        // Some air, also around a single point.
        LogLoss { low: low / 1.05, high: high.max(low) * 1.05 }
    }
}

impl Ranged for LogLoss {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value.max(1e-6) / self.low).ln() / (self.high / self.low).ln();
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        round_values(self.low, self.high, hint.max_num_points().min(12))
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for LogLoss {
    fn format(value: &f64) -> String {
        let digits = if *value >= 10.0 { 0 } else { 2 };
        format!("{value:.digits$}")
    }
}

/// At most `count` multiples of the finest round unit that are between `low` and `high`.
fn round_values(low: f64, high: f64, count: usize) -> Vec<f64> {
    let steps = (-6..6).flat_map(|power| [1.0, 2.0, 5.0].map(|m| m * 10_f64.powi(power)));
    for step in steps {
        let (first, last) = ((low / step).ceil(), (high / step).floor());
        if last - first < count as f64 {
            let number = (last - first).max(-1.0) as i64 + 1;
            return (0..number).map(|i| (first + i as f64) * step).collect();
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use train::event::{Evaluation, Resumed, Step};

    use super::*;

    fn step(step: u64, loss: f64) -> Event {
        Event::Step(Step {
            step,
            loss,
            bits_per_byte: None,
            grad_norm: 1.0,
            lr: 0.1,
            ms: 1.0,
            tokens: 1,
            tokens_per_s: 1.0,
            expert_load: None,
            dead_experts: 0,
            skipped: false,
            phases_ms: [0.0; 4],
            data_ms: 0.0,
        })
    }

    fn evaluation(step: u64, loss: f64) -> Event {
        Event::Evaluation(Evaluation { step, loss, bits_per_byte: None, samples: 1, ms: 1.0 })
    }

    #[test]
    fn a_resumed_run_replaces_what_it_repeats() {
        let resumed = Resumed { step: 2, path: "x".into(), skipped: Vec::new(), written_by: 1 };
        let events = [
            step(1, 5.0),
            step(2, 4.0),
            step(3, 9.0),
            evaluation(3, 9.5),
            Event::Resumed(resumed),
            step(3, 3.0),
        ];
        let curves = Curves::of(&events);
        assert_eq!(curves.train, BTreeMap::from([(1, 5.0), (2, 4.0), (3, 3.0)]));
        assert_eq!(curves.validation, BTreeMap::new());
        let over = [events.as_slice(), &[step(1, 6.0)]].concat();
        assert_eq!(Curves::of(&over).train, BTreeMap::from([(1, 6.0)]));
    }

    #[test]
    fn the_plot_shows_both_curves() {
        assert!(loss_svg(&[]).unwrap().is_none());
        let mut events: Vec<Event> =
            (1..=300).map(|i| step(i, 1.2 + 4.0 / (i as f64).sqrt())).collect();
        events.extend([evaluation(100, 1.7), evaluation(300, 1.5), step(301, f64::NAN)]);
        let svg = loss_svg(&events).unwrap().unwrap();
        for word in ["<svg", "training", "validation", "step", "nats"] {
            assert!(svg.contains(word), "{word} is missing");
        }
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn axis_labels_are_round() {
        // Rounded, as 19 · 0.05 is not 0.95.
        let round_values = |low: f64, high: f64, count: usize| -> Vec<f64> {
            let values = round_values(low, high, count).into_iter();
            values.map(|x| (x * 1e6).round() / 1e6).collect()
        };
        assert_eq!(round_values(1.1, 5.8, 12), [1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5]);
        assert_eq!(round_values(0.9, 1.1, 5), [0.9, 0.95, 1.0, 1.05, 1.1]);
        assert!(round_values(2.9, 3.1, 1).len() <= 1);
    }
}
