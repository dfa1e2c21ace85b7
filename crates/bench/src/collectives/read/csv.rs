//! Muster's own CSV: a line per tuple of independent variables.
//!
//! Columns are found by their names, so that one that a later version adds is passed over, and one
//! that an earlier version lacks is as an empty cell: nothing is stated. What the CSV has not is
//! not there either: times of single ranks, and how many launches were checked.

use std::str::FromStr;

use super::super::report::{Report, Tool};
use super::super::row::{Check, FirstBad, Key, Overlap, Path, Row, Skew};
use super::super::stats::{Interval, Times};
use crate::BenchError;

/// Columns that every line needs.
const NEEDED: [&str; 4] = ["op", "dtype", "bytes", "in_place"];

/// Whether a line names columns of this CSV: no other program's names two of those that are needed,
/// and one that is missing is better told by its name.
pub(crate) fn is_header(line: &str) -> bool {
    let is_needed = |cell: &&str| NEEDED.contains(&cell.trim().trim_matches('"'));
    line.split(',').filter(is_needed).count() >= 2
}

/// Reads the CSV. A last line that is cut off makes the report incomplete, as does a line of a run
/// that was.
///
/// # Errors
/// [`BenchError::Read`]: a header without a column that is needed, or with one twice; a line with
/// more or fewer cells; a cell of another kind.
pub fn read(text: &str) -> Result<Report, BenchError> {
    let mut lines = text.split_inclusive('\n').enumerate();
    let header = lines.next().map_or("", |(_, line)| line);
    let names: Vec<String> = cells(header, 1)?.into_iter().map(|(_, name)| name).collect();
    let refuse = |line: usize, why: String| BenchError::Read { line, column: 1, why };
    if let Some(needed) = NEEDED.iter().find(|needed| names.iter().all(|name| name != *needed)) {
        return Err(refuse(1, format!("no column `{needed}`")));
    }
    if let Some(at) = (1..names.len()).find(|&at| names[..at].contains(&names[at])) {
        return Err(refuse(1, format!("column `{}` twice", names[at])));
    }
    let tool = Tool { name: "muster".to_owned(), version: None, commit: None };
    let mut report = Report::new(tool);
    for (index, line) in lines {
        if line.trim().is_empty() {
            continue;
        }
        if !line.ends_with('\n') {
            report.complete = false;
            break;
        }
        let cells = cells(line, index + 1)?;
        if cells.len() != names.len() {
            let why = format!("{} cells where {} belong", cells.len(), names.len());
            return Err(refuse(index + 1, why));
        }
        let line = Line { names: &names, cells, number: index + 1 };
        report.complete &= line.of("run_complete")? != Some(false);
        report.rows.push(line.row()?);
    }
    report.ranks = report.rows.iter().filter_map(|row| row.key.ranks).max();
    report.transport = report.rows.first().and_then(|row| row.key.transport.clone());
    Ok(report)
}

/// The cells of a line, by RFC 4180, and the columns at which they begin.
fn cells(line: &str, number: usize) -> Result<Vec<(usize, String)>, BenchError> {
    let mut rest = line.trim_end_matches(['\n', '\r']);
    let whole = rest.len();
    let mut cells = Vec::new();
    loop {
        let column = whole - rest.len() + 1;
        let mut cell = String::new();
        if let Some(mut quoted) = rest.strip_prefix('"') {
            loop {
                let Some((text, behind)) = quoted.split_once('"') else {
                    let why = "a quote that does not end on its line".to_owned();
                    return Err(BenchError::Read { line: number, column, why });
                };
                cell += text;
                quoted = behind;
                // Two stand for one.
                let Some(behind) = quoted.strip_prefix('"') else { break };
                cell.push('"');
                quoted = behind;
            }
            rest = quoted;
        }
        let (text, behind) =
            rest.split_once(',').map_or((rest, None), |(text, rest)| (text, Some(rest)));
        cells.push((column, cell + text));
        match behind {
            Some(behind) => rest = behind,
            None => return Ok(cells),
        }
    }
}

/// One line, under the names of its columns.
struct Line<'a> {
    names: &'a [String],
    cells: Vec<(usize, String)>,
    number: usize,
}

impl Line<'_> {
    /// A cell; `None` where it is empty, or where there is no such column.
    fn of<T: FromStr>(&self, name: &str) -> Result<Option<T>, BenchError> {
        let at = self.names.iter().position(|known| known == name);
        let Some((column, text)) = at.and_then(|at| self.cells.get(at)) else { return Ok(None) };
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| BenchError::Read {
            line: self.number,
            column: *column,
            why: format!("`{text}` cannot be read as `{name}`"),
        })
    }

    /// A cell that every line has.
    fn needed<T: FromStr>(&self, name: &str) -> Result<T, BenchError> {
        self.of(name)?.ok_or_else(|| BenchError::Read {
            line: self.number,
            column: 1,
            why: format!("nothing in column `{name}`"),
        })
    }

    /// A number of which there is no other kind.
    fn number(&self, name: &str) -> Result<Option<f64>, BenchError> {
        Ok(self.of::<Finite>(name)?.map(|Finite(value)| value))
    }

    fn row(&self) -> Result<Row, BenchError> {
        let key = Key {
            op: self.needed("op")?,
            dtype: self.needed("dtype")?,
            redop: self.of("redop")?,
            root: self.of("root")?,
            ranks: self.of("ranks")?,
            bytes: self.needed("bytes")?,
            in_place: self.needed("in_place")?,
            algorithm: self.of("algorithm")?,
            transport: self.of("transport")?,
            ordered: self.of("ordered")?,
        };
        Ok(Row {
            algbw_gb_per_s: self.number("algbw_gb_per_s")?,
            busbw_gb_per_s: self.number("busbw_gb_per_s")?,
            check: self.check()?,
            skew: self.skew()?,
            path: self.of::<Path>("path")?,
            chosen: self.of("chosen")?,
            overlap: self.overlap()?,
            ..Row::new(key, self.of("count")?, self.times()?)
        })
    }

    fn times(&self) -> Result<Times, BenchError> {
        let interval = [
            self.number("interval_low_us")?,
            self.number("interval_high_us")?,
            self.number("confidence")?,
        ];
        let interval = match interval {
            [Some(low_us), Some(high_us), Some(confidence)] => {
                Some(Interval { low_us, high_us, confidence })
            }
            _ => None,
        };
        Ok(Times {
            p50_us: self.number("p50_us")?,
            p90_us: self.number("p90_us")?,
            p99_us: self.number("p99_us")?,
            min_us: self.number("min_us")?,
            max_us: self.number("max_us")?,
            mean_us: self.number("mean_us")?,
            cv_pct: self.number("cv_pct")?,
            iterations: self.of("iterations")?,
            interval,
            host_time: false,
        })
    }

    fn check(&self) -> Result<Option<Check>, BenchError> {
        let Some(wrong) = self.of("wrong")? else { return Ok(None) };
        let place = self.of("bad_rank")?.zip(self.of("bad_offset")?);
        let values = self.of("bad_got")?.zip(self.of("bad_expected")?);
        let first_bad = place.zip(values).map(|((rank, offset), (got, expected))| FirstBad {
            rank,
            offset,
            got,
            expected,
        });
        Ok(Some(Check { wrong, launches: None, first_bad }))
    }

    fn skew(&self) -> Result<Option<Skew>, BenchError> {
        let skew =
            [self.number("skew_p50_us")?, self.number("skew_p99_us")?, self.number("skew_max_us")?];
        Ok(match skew {
            [Some(p50_us), Some(p99_us), Some(max_us)] => Some(Skew { p50_us, p99_us, max_us }),
            _ => None,
        })
    }

    fn overlap(&self) -> Result<Option<Overlap>, BenchError> {
        let Some(shape) = self.of("overlap_shape")? else { return Ok(None) };
        let needed = |name: &str| self.needed::<Finite>(name).map(|Finite(value)| value);
        Ok(Some(Overlap {
            shape,
            collective_alone_us: needed("overlap_alone_us")?,
            collective_together_us: needed("overlap_together_us")?,
            newton_schulz_alone_us: needed("newton_schulz_alone_us")?,
            newton_schulz_together_us: needed("newton_schulz_together_us")?,
            both_us: needed("both_us")?,
            hidden_pct: self.number("hidden_pct")?,
            iterations: self.needed("overlap_iterations")?,
        }))
    }
}

/// Neither NaN nor infinite.
struct Finite(f64);

impl FromStr for Finite {
    type Err = ();

    fn from_str(text: &str) -> Result<Finite, ()> {
        text.parse().ok().filter(|value: &f64| value.is_finite()).map(Finite).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::report::tests::full;
    use super::*;

    #[test]
    fn what_was_written_is_read_with_every_percentile() {
        let report = full();
        let read = read(&report.csv()).unwrap();
        let mut expected = report.rows;
        for row in &mut expected {
            // Fields that the CSV has not.
            row.per_rank.clear();
            row.check = row.check.take().map(|check| Check { launches: None, ..check });
        }
        assert_eq!(read.rows, expected);
        assert!(read.rows[0].times.interval.is_some() && read.rows[0].times.p90_us.is_some());
        assert_eq!((read.ranks, read.tool.name.as_str()), (Some(8), "muster"));
        assert!(read.complete);
    }

    #[test]
    fn every_path_that_data_can_take_is_read() {
        for path in Path::ALL {
            let mut report = full();
            report.rows[0].path = Some(path);
            assert_eq!(read(&report.csv()).unwrap().rows[0].path, Some(path));
        }
    }

    #[test]
    fn columns_may_be_added_and_may_be_missing() {
        let csv = full().csv();
        let wider: String = csv.lines().map(|line| format!("{line},\"a, \"\"b\"\"\"\n")).collect();
        assert_eq!(read(&wider).unwrap(), read(&csv).unwrap());
        let few = "op,dtype,bytes,in_place,p50_us\r\nall_reduce,f32,8,true,1.5\r\n";
        let row = &read(few).unwrap().rows[0];
        assert_eq!((row.times.p50_us, row.key.ranks, row.key.in_place), (Some(1.5), None, true));
    }

    #[test]
    fn a_run_that_ended_early_says_so() {
        let early = Report { complete: false, ..full() };
        let read = read(&early.csv()).unwrap();
        assert!(!read.complete);
        assert_eq!(read.rows.len(), early.rows.len());
    }

    #[test]
    fn a_cut_last_line_is_left_out() {
        let csv = full().csv();
        let cut = read(&csv[..csv.len() - 3]).unwrap();
        assert!(!cut.complete);
        assert_eq!(cut.rows.len(), full().rows.len() - 1);
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let csv = "op,dtype,bytes,in_place,p50_us\nall_reduce,f32,8,false,1.5\n";
        for (from, to, words) in [
            (",1.5", ",x", "line 2, column 24: `x` cannot be read as `p50_us`"),
            (",1.5", ",NaN", "`NaN` cannot be read as `p50_us`"),
            (",1.5", "", "line 2, column 1: 4 cells where 5 belong"),
            (",1.5", ",\"1.5", "line 2, column 24: a quote that does not end"),
            (",8,", ",,", "line 2, column 1: nothing in column `bytes`"),
            ("all_reduce", "all_redcue", "`all_redcue` cannot be read as `op`"),
            ("p50_us", "bytes", "line 1, column 1: column `bytes` twice"),
            (",in_place", ",place", "no column `in_place`"),
        ] {
            let changed = csv.replacen(from, to, 1);
            assert_ne!(changed, csv, "{from}");
            let message = read(&changed).unwrap_err().to_string();
            assert!(message.contains(words), "{to}: {message}");
        }
    }
}
