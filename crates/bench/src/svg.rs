//! Horizontal bars with their limits, as an SVG.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::BenchError;

const WIDTH: u32 = 960;
const BAR_HEIGHT: i32 = 22;
const TOP: i32 = 56;
const LABELS: i32 = 400;
/// Room for the number at the right end.
const NUMBERS: i32 = 90;
const FILL: RGBColor = RGBColor(31, 119, 180);
const LIMIT: RGBColor = RGBColor(214, 39, 40);

/// One bar of a plot.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    pub label: String,
    pub value: f64,
    /// The value that no implementation could exceed, if it is known.
    pub limit: Option<f64>,
}

/// One bar per case, a red mark at its limit.
///
/// # Errors
/// A bug in drawing.
pub fn bars(title: &str, unit: &str, bars: &[Bar]) -> Result<String, BenchError> {
    let mut svg = String::new();
    draw(title, unit, bars, &mut svg).map_err(|error| BenchError::Plot(error.to_string()))?;
    Ok(svg)
}

fn draw(
    title: &str,
    unit: &str,
    bars: &[Bar],
    svg: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let height = TOP + BAR_HEIGHT * bars.len().max(1) as i32 + 24;
    let root = SVGBackend::with_string(svg, (WIDTH, height as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: i32| ("sans-serif", size).into_font().color(&BLACK);
    root.draw(&Text::new(title.to_owned(), (16, 12), text(18)))?;
    let legend = format!("{unit}; red: the limit of the case");
    root.draw(&Text::new(legend, (16, 34), text(13)))?;
    let most = bars.iter().flat_map(|bar| [Some(bar.value), bar.limit]).flatten();
    let most = most.filter(|value| value.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
    let span = f64::from(WIDTH as i32 - LABELS - NUMBERS);
    let x = |value: f64| LABELS + (value / most * span).round() as i32;
    for (index, bar) in bars.iter().enumerate() {
        let top = TOP + index as i32 * BAR_HEIGHT;
        let middle = top + BAR_HEIGHT / 2 - 2;
        let right = text(13).pos(Pos::new(HPos::Right, VPos::Center));
        root.draw(&Text::new(bar.label.clone(), (LABELS - 8, middle), right))?;
        let value = if bar.value.is_finite() { bar.value } else { 0.0 };
        let corners = [(LABELS, top), (x(value), top + BAR_HEIGHT - 5)];
        root.draw(&Rectangle::new(corners, FILL.filled()))?;
        if let Some(limit) = bar.limit.filter(|limit| limit.is_finite()) {
            let ends = [(x(limit), top - 2), (x(limit), top + BAR_HEIGHT - 3)];
            root.draw(&PathElement::new(ends, LIMIT.stroke_width(2)))?;
        }
        let end = x(value.max(bar.limit.unwrap_or(0.0))) + 6;
        let left = text(13).pos(Pos::new(HPos::Left, VPos::Center));
        root.draw(&Text::new(format!("{value:.3}"), (end, middle), left))?;
    }
    root.present()?;
    Ok(())
}
