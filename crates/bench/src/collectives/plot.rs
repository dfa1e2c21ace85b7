//! Bus bandwidth over size, both axes logarithmic, a line per curve: the plot by which links are
//! known. With one operation at several rank counts there is a line per rank count.

use plotters::prelude::*;

use super::report::Report;
use super::row::{curves, labels};
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
}

/// The plot as a self-contained SVG, or `None` if no row has a bandwidth above 0.
///
/// # Errors
/// A bug in drawing.
pub fn svg(report: &Report) -> Result<Option<String>, BenchError> {
    let curves = curves(&report.rows);
    let keys: Vec<_> = curves.iter().map(|(key, _)| key.clone()).collect();
    let lines = curves.iter().zip(labels(&keys)).map(|((_, rows), label)| {
        let points = rows.iter().filter_map(|row| {
            let busbw = row.busbw_gb_per_s.filter(|busbw| busbw.is_finite() && *busbw > 0.0)?;
            (row.key.bytes > 0).then(|| ((row.key.bytes as f64).log2(), busbw.log10()))
        });
        Line { label, points: points.collect() }
    });
    let lines: Vec<Line> = lines.filter(|line| !line.points.is_empty()).collect();
    if lines.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(&title(report), &lines, &mut svg).map_err(|error| BenchError::Plot(error.to_string()))?;
    Ok(Some(svg))
}

/// What all rows have in common.
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
    format!("{}{transport}{place}", ops.join(", "))
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
    use super::super::report::tests::full;
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
