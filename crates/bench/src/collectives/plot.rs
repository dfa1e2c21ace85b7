//! Bus bandwidth over size, both axes logarithmic, a line per curve: the plot by which links are
//! known. With one operation at several rank counts there is a line per rank count. What was fitted
//! is thin, its segments and what follows from them stand in the legend; a bound is dashed.

use plotters::prelude::*;

use super::curve::Curve;
use super::report::Report;
use super::row::{curves, labels};
use super::size::binary;
use crate::BenchError;

const SIZE: (u32, u32) = (1040, 640);

/// Colours that are told apart also by people who see few (Wong, *Nature Methods* 8, 441, 2011).
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
    RGBColor(120, 120, 120),
];

/// A curve, in logarithms: (log₂ bytes, log₁₀ GB/s).
struct Line {
    label: String,
    points: Vec<(f64, f64)>,
    /// Of each fitted segment.
    fitted: Vec<Vec<(f64, f64)>>,
    /// The bound, as log₁₀ GB/s.
    bound: Option<f64>,
}

/// Points of a fitted segment: a line in time is none in bandwidth.
const FITTED_POINTS: u32 = 24;

/// Curves whose fits the legend has room for.
const TOLD_MAX: usize = 6;

/// The plot as a self-contained SVG, or `None` if no row has a bandwidth above 0.
///
/// # Errors
/// A bug in drawing.
pub fn svg(report: &Report) -> Result<Option<String>, BenchError> {
    let curves = curves(&report.rows);
    let keys: Vec<_> = curves.iter().map(|(key, _)| key.clone()).collect();
    let told = curves.len() <= TOLD_MAX;
    let lines = curves.iter().zip(labels(&keys)).map(|((key, rows), label)| {
        let points = rows.iter().filter_map(|row| {
            let busbw = row.busbw_gb_per_s.filter(|busbw| busbw.is_finite() && *busbw > 0.0)?;
            (row.key.bytes > 0).then(|| ((row.key.bytes as f64).log2(), busbw.log10()))
        });
        let points = points.collect();
        let known = report.curves.iter().find(|curve| curve.key == *key);
        let said = known.filter(|_| told).map(legend).unwrap_or_default();
        let fitted = known.map(fitted).unwrap_or_default();
        let bound = known.and_then(|curve| curve.roofline.as_ref());
        let bound = bound.map(|bound| bound.busbw_gb_per_s.log10());
        Line { label: label + &said, points, fitted, bound }
    });
    let lines: Vec<Line> = lines.filter(|line| !line.points.is_empty()).collect();
    if lines.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(&title(report), &lines, &mut svg).map_err(|error| BenchError::Plot(error.to_string()))?;
    Ok(Some(svg))
}

/// The numbers of a fit, behind a curve's name.
fn legend(curve: &Curve) -> String {
    let (Some(fit), Some(reach)) = (&curve.fit, &curve.reach) else { return String::new() };
    let segments = fit.segments.iter().map(|segment| {
        let (from, to) = (binary(segment.from_bytes), binary(segment.to_bytes));
        let off = 100.0 * segment.max_error;
        let (alpha, rate) = (segment.alpha_us, segment.gb_per_s());
        format!("{from}–{to}: {alpha:.1} µs, {rate:.1} GB/s (±{off:.0} %)")
    });
    let (half, ninety) = (binary(reach.half_bytes), binary(reach.ninety_bytes));
    let segments: Vec<String> = segments.collect();
    format!("; n½ {half}, n90 {ninety}; {}", segments.join(", "))
}

/// The fitted bandwidths.
fn fitted(curve: &Curve) -> Vec<Vec<(f64, f64)>> {
    let (Some(fit), Some(ranks)) = (&curve.fit, curve.key.ranks) else { return Vec::new() };
    let segments = fit.segments.iter().map(|segment| {
        let (from, to) =
            ((segment.from_bytes.max(1) as f64).log2(), (segment.to_bytes as f64).log2());
        let point = |step: u32| {
            let log = from + (to - from) * f64::from(step) / f64::from(FITTED_POINTS);
            let bytes = log.exp2() as u64;
            let both = curve.key.op.bandwidths(bytes, ranks, segment.time_us(bytes))?;
            (both.busbw_gb_per_s > 0.0).then(|| (log, both.busbw_gb_per_s.log10()))
        };
        (0..=FITTED_POINTS).filter_map(point).collect()
    });
    segments.collect()
}

/// The fields that all rows have in common.
fn title(report: &Report) -> String {
    let mut ops: Vec<String> = report.rows.iter().map(|row| row.key.op.to_string()).collect();
    ops.sort_unstable();
    ops.dedup();
    let hosts = report.hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>();
    let place = match hosts[..] {
        [] => String::new(),
        [only] => format!(", {only}"),
        _ => format!(", {} hosts", hosts.len()),
    };
    let transport = report.transport.as_ref().map_or(String::new(), |t| format!(" over {t}"));
    let early = if report.complete { "" } else { " (incomplete: the run ended early)" };
    format!("{}{transport}{place}{early}", ops.join(", "))
}

fn draw(title: &str, lines: &[Line], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let all = || lines.iter().flat_map(|line| &line.points);
    let ends = |of: fn(&(f64, f64)) -> f64| {
        let values = || all().map(of);
        (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max))
    };
    let ((left, right), (low, high)) = (ends(|p| p.0), ends(|p| p.1));
    let high = lines.iter().filter_map(|line| line.bound).fold(high, f64::max);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(72)
        // Some air, also around a single point.
        .build_cartesian_2d(left - 0.5..right + 0.5, low - 0.1..high + 0.15)?;
    chart
        .configure_mesh()
        .x_desc("size")
        .y_desc("bus bandwidth, GB/s")
        .x_labels(14)
        .x_label_formatter(&|log| size_label(*log))
        .y_label_formatter(&|log| bandwidth_label(*log))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .draw()?;
    for (index, line) in lines.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        // Curves beyond the colours are thinner.
        let width = if index < COLOURS.len() { 2 } else { 1 };
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(width)))?
            .label(line.label.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)));
        chart.draw_series(line.points.iter().map(|&p| Circle::new(p, 2, colour.filled())))?;
        for segment in &line.fitted {
            let thin = colour.mix(0.5).stroke_width(1);
            chart.draw_series(LineSeries::new(segment.iter().copied(), thin))?;
        }
        if let Some(bound) = line.bound {
            let ends = [(left, bound), (right, bound)];
            let thin = colour.mix(0.6).stroke_width(1);
            chart.draw_series(DashedLineSeries::new(ends, 6, 6, thin))?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    root.present()?;
    Ok(())
}

fn size_label(log2: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = ((log2 / 10.0).floor().max(0.0) as usize).min(units.len() - 1);
    let value = (log2 - 10.0 * unit as f64).exp2();
    format!("{value:.*} {}", usize::from(value < 10.0 && value.fract() > 0.05), units[unit])
}

fn bandwidth_label(log10: f64) -> String {
    let value = 10f64.powf(log10);
    let digits = (1.0 - log10.floor()).clamp(0.0, 6.0) as usize;
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::super::bucket::Bounds;
    use super::super::curve;
    use super::super::report::tests::full;
    use super::super::roofline::Roof;
    use super::super::row::Row;
    use super::super::row::tests::row;
    use super::*;

    #[test]
    fn each_rank_count_has_a_line_with_its_name() {
        let mut report = full();
        let ranked = |ranks: usize, bytes: u64| {
            let mut key = row(bytes, 1.0).key;
            key.ranks = Some(ranks);
            Row::new(key, None, row(bytes, 100.0).times)
        };
        let sizes = [1 << 10, 1 << 20, 1 << 30];
        report.rows = sizes.iter().flat_map(|&b| [ranked(4, b), ranked(8, b)]).collect();
        let svg = svg(&report).unwrap().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("<circle").count(), 6);
        for words in ["4 ranks", "8 ranks", "all_reduce over shm, a", "MiB"] {
            assert!(svg.contains(words), "{words}");
        }
        // Nothing is fetched from elsewhere.
        assert!(!svg.contains("href") && !svg.contains("<script"));
    }

    #[test]
    fn fits_and_bounds_are_drawn() {
        let mut report = full();
        report.rows = curve::tests::rows();
        let roof = Roof::Memory { gb_per_s: 3200.0 };
        report.curves = curve::of_rows(&report.rows, &roof, |_| Bounds::default());
        let with = svg(&report).unwrap().unwrap();
        for words in ["n½ ", "n90 ", "20.0 µs, 100.0 GB/s (±0 %)"] {
            assert!(with.contains(words), "{words}");
        }
        report.curves.clear();
        let without = svg(&report).unwrap().unwrap();
        assert!(with.matches("<polyline").count() > without.matches("<polyline").count());
        assert!(!without.contains("n90"));
    }

    #[test]
    fn points_without_a_bandwidth_are_left_out() {
        let mut report = full();
        report.rows = vec![row(0, 1.0), row(8, 0.0)];
        assert_eq!(svg(&report).unwrap(), None);
        report.rows.push(row(8, 1.0));
        assert!(svg(&report).unwrap().is_some());
    }

    #[test]
    fn labels_are_sizes_and_bandwidths() {
        assert_eq!((size_label(3.0), size_label(20.0)), ("8 B".into(), "1 MiB".into()));
        assert_eq!((size_label(10.585), size_label(32.0)), ("1.5 KiB".into(), "4 GiB".into()));
        assert_eq!((bandwidth_label(2.0), bandwidth_label(-1.0)), ("100".into(), "0.10".into()));
    }
}
