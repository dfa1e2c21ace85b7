//! The files that rccl-tests writes with `-Z csv` or `-Z json` and `-X FILE`.
//!
//! Known oddities: texts stand in quotes in both; `wrong` is a text, `"N/A"` where nothing was
//! checked; the root is not told; times are in microseconds with six digits; built with MPI, lines
//! of the CSV have a cell more, the number of nodes, than its header has names.

use serde::Deserialize;

use super::super::formula::Op;
use super::super::report::{Report, Tool};
use super::super::row::{Check, Key, Row};
use super::super::stats::Times;
use crate::BenchError;

/// One side of one case.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(rename = "numCycle")]
    _cycle: u64,
    name: String,
    #[serde(rename = "nodes")]
    _nodes: Option<usize>,
    /// Processes, in builds with MPI.
    ranks: Option<usize>,
    #[serde(rename = "ranksPerNode")]
    _ranks_per_node: Option<usize>,
    #[serde(rename = "gpusPerRank")]
    gpus_per_rank: Option<usize>,
    /// In builds without MPI.
    gpus: Option<usize>,
    size: u64,
    #[serde(rename = "type")]
    dtype: String,
    redop: String,
    #[serde(rename = "inPlace")]
    in_place: u8,
    time: f64,
    #[serde(rename = "algBw")]
    alg_bw: f64,
    #[serde(rename = "busBw")]
    bus_bw: f64,
    wrong: String,
}

impl Entry {
    /// The row, or what is wrong with it.
    fn row(&self) -> Result<Row, String> {
        let op: Op = self.name.parse().map_err(|error: BenchError| error.to_string())?;
        let redop = match self.redop.as_str() {
            "none" => None,
            word => Some(word.parse().map_err(|error: BenchError| error.to_string())?),
        };
        let processes = self.ranks.unwrap_or(1);
        let devices = self.gpus_per_rank.or(self.gpus);
        let ranks = devices.and_then(|devices| processes.checked_mul(devices));
        let wrong =
            match self.wrong.as_str() {
                "N/A" => None,
                count => Some(count.parse().map_err(|_| {
                    format!("`wrong` is `{count}`, which is neither a count nor N/A")
                })?),
            };
        let finite = |value: f64| Some(value).filter(|value| value.is_finite());
        let key = Key {
            op,
            dtype: self.dtype.parse().map_err(|error: BenchError| error.to_string())?,
            redop: redop.filter(|_| op.reduces()),
            root: None,
            ranks,
            bytes: self.size,
            in_place: match self.in_place {
                0 => false,
                1 => true,
                other => return Err(format!("`inPlace` is {other}, which is neither 0 nor 1")),
            },
            algorithm: None,
            transport: None,
            ordered: None,
        };
        let times = Times { mean_us: finite(self.time), ..Times::default() };
        Ok(Row {
            algbw_gb_per_s: finite(self.alg_bw),
            busbw_gb_per_s: finite(self.bus_bw),
            check: wrong.map(|wrong| Check { wrong, ..Check::default() }),
            ..Row::new(key, None, times)
        })
    }
}

fn empty_report() -> Report {
    let tool = Tool { name: "rccl-tests".to_owned(), version: None, commit: None };
    Report::new(tool)
}

/// Reads the JSON.
///
/// # Errors
/// [`BenchError::Read`]: damaged, or with what this reader does not know.
pub(crate) fn read_json(text: &str) -> Result<Report, BenchError> {
    let entries: Vec<Entry> = serde_json::from_str(text).map_err(|e| BenchError::in_json(&e))?;
    let mut report = empty_report();
    for (index, entry) in entries.iter().enumerate() {
        // The program writes a bracket and then an entry per line.
        let line = index + 2;
        let row = entry.row().map_err(|why| BenchError::Read { line, column: 1, why })?;
        report.rows.push(row);
    }
    report.ranks = report.rows.first().and_then(|row| row.key.ranks);
    Ok(report)
}

/// Names of the header, and of the cells below it, which are not the same with MPI.
const PLAIN_HEADER: &str =
    "numCycle,collective,gpus,size,type,redop,inplace,time,algbw,busbw,#wrong";
const PLAIN_CELLS: [&str; 11] = [
    "numCycle", "name", "gpus", "size", "type", "redop", "inPlace", "time", "algBw", "busBw",
    "wrong",
];
const MPI_HEADER: &str = "numCycle,collective,ranks,rankspernode,gpusperrank,size,type,redop,\
                          inplace,time,algbw,busbw,#wrong";
const MPI_CELLS: [&str; 14] = [
    "numCycle",
    "name",
    "nodes",
    "ranks",
    "ranksPerNode",
    "gpusPerRank",
    "size",
    "type",
    "redop",
    "inPlace",
    "time",
    "algBw",
    "busBw",
    "wrong",
];

/// Reads the CSV. A last line that is cut off makes the report incomplete.
///
/// # Errors
/// [`BenchError::Read`]: another header, or a cell of another kind.
pub(crate) fn read_csv(text: &str) -> Result<Report, BenchError> {
    let refuse = |line: usize, column: usize, why: String| BenchError::Read { line, column, why };
    let mut lines = text.split_inclusive('\n').enumerate();
    let header = lines.next().map_or("", |(_, line)| line.trim_end());
    let cells: &[&str] = match header {
        PLAIN_HEADER => &PLAIN_CELLS,
        MPI_HEADER => &MPI_CELLS,
        _ => {
            let why = format!(
                "a header of CSV that rccl-tests does not write; it is `{PLAIN_HEADER}` \
                               or `{MPI_HEADER}`"
            );
            return Err(refuse(1, 1, why));
        }
    };
    let mut report = empty_report();
    for (index, line) in lines {
        let (whole, bare) = (line.ends_with('\n'), line.trim_end());
        if bare.is_empty() {
            continue;
        }
        if !whole {
            report.complete = false;
            break;
        }
        let values: Vec<&str> = bare.split(',').collect();
        if values.len() != cells.len() {
            let why = format!("{} cells where {} belong", values.len(), cells.len());
            return Err(refuse(index + 1, 1, why));
        }
        // As JSON of one entry, whose cells are written in the same way.
        let pairs = cells.iter().zip(&values).map(|(name, value)| format!("\"{name}\":{value}"));
        let object = format!("{{{}}}", pairs.collect::<Vec<_>>().join(","));
        let entry: Entry = serde_json::from_str(&object).map_err(|error| {
            // Which cell it was, by the place in the object.
            let mut end = 1;
            let cell = cells.iter().zip(&values).position(|(name, value)| {
                end += name.len() + value.len() + 4;
                error.column() < end
            });
            let cell = cell.unwrap_or(cells.len() - 1);
            let column = values[..cell].iter().map(|value| value.len() + 1).sum::<usize>() + 1;
            let why = format!("`{}` cannot be read as `{}`", values[cell], cells[cell]);
            refuse(index + 1, column, why)
        })?;
        report.rows.push(entry.row().map_err(|why| refuse(index + 1, 1, why))?);
    }
    report.ranks = report.rows.first().and_then(|row| row.key.ranks);
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::super::made::Made;
    use super::*;

    #[test]
    fn every_form_says_the_same() {
        let made = Made::example();
        for mpi in [false, true] {
            let json = read_json(&made.reporter_json(mpi)).unwrap();
            let csv = read_csv(&made.reporter_csv(mpi)).unwrap();
            assert_eq!(json, csv);
            assert_eq!(json.rows.len(), 2 * made.cases.len());
            assert_eq!(json.ranks, Some(8));
            let row = &json.rows[1];
            assert_eq!((row.key.op, row.key.in_place), (made.op, true));
            let near = row.times.mean_us.unwrap() - made.cases[0].in_place.time_us;
            assert!(near.abs() < 1e-6);
            assert_eq!((row.wrong(), json.rows[0].wrong()), (Some(0), None));
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let made = Made::example();
        let csv = made.reporter_csv(false);
        let message = |text: &str| read_csv(text).unwrap_err().to_string();
        let bad = csv.replacen(",1024,", ",10x24,", 1);
        assert!(
            message(&bad).starts_with("line 2, column 17: `10x24` cannot be read as `size`"),
            "{}",
            message(&bad)
        );
        let short = csv.replacen(",1024,", ",", 1);
        assert!(
            message(&short).contains("line 2, column 1: 10 cells where 11"),
            "{}",
            message(&short)
        );
        assert!(message("numCycle,op\n").contains("numCycle,collective,gpus"));
        let other = csv.replacen("\"AllReduce\"", "\"AllRdeuce\"", 1);
        assert!(message(&other).contains("did you mean `all_reduce`?"), "{}", message(&other));
        let json = made.reporter_json(false).replacen("\"inPlace\":0", "\"inPlace\":2", 1);
        let message = read_json(&json).unwrap_err().to_string();
        assert!(message.contains("line 2") && message.contains("neither 0 nor 1"), "{message}");
    }

    #[test]
    fn a_cut_last_line_is_left_out() {
        let csv = Made::example().reporter_csv(false);
        let whole = read_csv(&csv).unwrap();
        let cut = read_csv(&csv[..csv.len() - 4]).unwrap();
        assert!(whole.complete && !cut.complete);
        assert_eq!(cut.rows[..], whole.rows[..whole.rows.len() - 1]);
    }
}
