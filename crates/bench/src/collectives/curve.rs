//! The sizes of one case taken together: a fit, how soon the peak is reached, what the peak is of
//! what is possible, and the bucket that follows.

use std::fmt::Write;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bucket::{Bounds, Bucket, bucket};
use super::fit::{Fit, NoFit, Reach, Segment, fit, reach};
use super::formula::Op;
use super::roofline::{Roof, Roofline};
use super::row::{Key, Row, curves};
use super::size::binary;

/// One case over its sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// The fields that the rows have in common; its size is 0.
    pub key: Key,
    /// Rows.
    pub sizes: usize,
    #[serde(default)]
    pub fit: Option<Fit>,
    /// Why there is none.
    #[serde(default)]
    pub no_fit: Option<String>,
    /// `None` where nothing was moved.
    #[serde(default)]
    pub reach: Option<Reach>,
    /// `None` where no bound is known.
    #[serde(default)]
    pub roofline: Option<Roofline>,
    /// For gradients that are sent so, with a fit.
    #[serde(default)]
    pub bucket: Option<Bucket>,
}

/// The curves of rows, in the order in which they first come. `bounds` may limit the bucket of each
/// by its rows.
pub fn of_rows(rows: &[Row], roof: &Roof, bounds: impl Fn(&[&Row]) -> Bounds) -> Vec<Curve> {
    let one = |(key, rows): (Key, Vec<&Row>)| {
        let points = rows.iter().filter_map(|row| Some((row.key.bytes, row.times.center_us()?)));
        let points: Vec<(u64, f64)> = points.collect();
        let fitted = match key.op {
            Op::Barrier => Err(NoFit::NothingMoves),
            _ => fit(&points),
        };
        let reach = reach(&rows);
        let roofline = reach.and_then(|reach| roof.over(&key, reach.peak_busbw_gb_per_s));
        let both = fitted.as_ref().ok().zip(reach);
        let bucket = both.map(|(fit, reach)| bucket(fit, &reach, bounds(&rows)));
        let no_fit = fitted.as_ref().err().map(ToString::to_string);
        Curve { key, sizes: rows.len(), fit: fitted.ok(), no_fit, reach, roofline, bucket }
    };
    curves(rows).into_iter().map(one).collect()
}

impl Curve {
    /// All that the key states, in words.
    pub fn label(&self) -> String {
        let key = &self.key;
        let place = if key.in_place { "in place" } else { "out of place" };
        let words = [
            Some(key.op.to_string()),
            Some(key.dtype.to_string()),
            key.redop.map(|redop| redop.to_string()),
            key.root.map(|root| format!("root {root}")),
            key.ranks.map(|ranks| format!("{ranks} rank{}", if ranks == 1 { "" } else { "s" })),
            key.transport.clone(),
            key.algorithm.clone(),
            key.ordered.filter(|ordered| !ordered).map(|_| "unordered".to_owned()),
            (key.op != Op::Barrier).then(|| place.to_owned()),
        ];
        words.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

/// The curves as lines behind `#`, as a table of nccl-tests may have them; `roof` tells what is
/// said once where no bound is known.
pub fn text(curves: &[Curve], roof: &Roof) -> String {
    let mut text = String::new();
    if curves.is_empty() {
        return text;
    }
    // Writing to a String cannot fail.
    let _ = writeln!(text, "#\n# Fitted: time = alpha + bytes / bandwidth");
    for curve in curves {
        let label = curve.label();
        match (&curve.fit, &curve.no_fit) {
            (Some(fit), _) => {
                let _ = writeln!(text, "# {label}");
                fit.segments.iter().for_each(|segment| text.push_str(&line(segment)));
            }
            (None, why) => {
                let why = why.as_deref().unwrap_or("its sizes have no times");
                let _ = writeln!(text, "# {label}: no fit: {why}");
            }
        }
        if let Some(reach) = curve.reach.filter(|_| curve.fit.is_some()) {
            text += &reached(&reach);
        }
        if let Some(Roofline { of, busbw_gb_per_s, percent }) = &curve.roofline {
            let words = match of.as_str() {
                "memory" => "what the memory of the host carries",
                link => link,
            };
            let is_cached = *percent > 100.0 && of.as_str() == "memory";
            let cached = if is_cached { " (caches carried it)" } else { "" };
            let _ = writeln!(
                text,
                "#   roofline: {percent:.0} % of {busbw_gb_per_s:.2} GB/s, {words}{cached}"
            );
        }
        if let Some(Bucket { bytes, decided }) = curve.bucket {
            let _ = writeln!(text, "#   bucket: {}, {decided}", binary(bytes));
        }
    }
    if let Roof::Unknown(why) = roof {
        let _ = writeln!(text, "# roofline: {why}");
    }
    text
}

fn line(segment: &Segment) -> String {
    let rate = segment.gb_per_s();
    let rate = match rate.is_finite() {
        true => format!("{rate:.2} GB/s"),
        false => "no time per byte".to_owned(),
    };
    format!(
        "#   {} to {}: alpha {:.2} us, {rate}, off by {:.0} % at most\n",
        binary(segment.from_bytes),
        binary(segment.to_bytes),
        segment.alpha_us,
        segment.max_error * 100.0
    )
}

fn reached(reach: &Reach) -> String {
    let rising = match reach.saturated {
        true => "",
        false => "; still rising there, so measure larger sizes (--max)",
    };
    format!(
        "#   n1/2 {}, n90 {} of the peak, {:.2} GB/s at {}{rising}\n",
        binary(reach.half_bytes),
        binary(reach.ninety_bytes),
        reach.peak_busbw_gb_per_s,
        binary(reach.peak_bytes),
    )
}

#[cfg(test)]
pub mod tests {
    use super::super::roofline::Unknown;
    use super::super::row::tests::row;
    use super::*;

    /// Eight ranks, 20 µs and 100 GB/s; n½ of busbw near 2 MB, n90 near 18 MB.
    pub fn rows() -> Vec<Row> {
        let sizes = (3..=30).map(|log| 1_u64 << log);
        sizes.map(|bytes| row(bytes, 20.0 + bytes as f64 / 100e3)).collect()
    }

    #[test]
    fn a_curve_says_what_its_rows_say() {
        let roof = Roof::Memory { gb_per_s: 3200.0 };
        let curves = of_rows(&rows(), &roof, |_| Bounds::default());
        let [curve] = &curves[..] else { panic!("{curves:?}") };
        assert_eq!((curve.sizes, &curve.no_fit), (28, &None));
        let text = text(&curves, &roof);
        for words in [
            "\n# all_reduce f32 sum 8 ranks out of place\n",
            "#   8 B to 1 GiB: alpha 20.00 us, 100.00 GB/s, off by 0 % at most\n",
            " of the peak, 174.67 GB/s at 1 GiB\n",
            "#   roofline: 50 % of 350.00 GB/s, what the memory of the host carries\n",
            ", the smallest size with 90 % of the peak\n",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        assert!(text.lines().all(|line| line.starts_with('#')), "{text}");
    }

    #[test]
    fn what_has_no_fit_says_why() {
        let mut rows = vec![row(8, 1.0), row(16, 1.0)];
        let mut barrier = row(0, 1.0);
        (barrier.key.op, barrier.key.redop) = (Op::Barrier, None);
        rows.push(barrier);
        let roof = Roof::Unknown(Unknown::Network);
        let curves = of_rows(&rows, &roof, |_| Bounds::default());
        assert!(curves.iter().all(|curve| curve.fit.is_none() && curve.bucket.is_none()));
        let text = text(&curves, &roof);
        for words in [
            "out of place: no fit: 2 of the 3 sizes that a line needs were measured",
            "# barrier f32 8 ranks: no fit: it moves no bytes\n",
            "# roofline: none known of this network; name the link with --link\n",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
        assert_eq!(super::text(&[], &roof), "");
    }

    #[test]
    fn the_window_of_the_rows_bounds_the_bucket() {
        let bounds = |_: &[&Row]| Bounds { window_us: Some(70.0), most_bytes: None };
        let curves = of_rows(&rows(), &Roof::Unknown(Unknown::Memory), bounds);
        let bucket = curves[0].bucket.unwrap();
        assert!(bucket.bytes.abs_diff(5_000_000) < 1000, "{bucket:?}");
    }
}
