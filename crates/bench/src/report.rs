//! A report: what was measured where, as a table for people, and as JSON, CSV and SVG.

use serde::Serialize;
use serde_json::Value;

use crate::BenchError;
use crate::svg::Bar;

/// One measured case.
pub trait Row: Serialize {
    /// Titles of the table's columns.
    const COLUMNS: &'static [&'static str];
    /// The unit of [`Bar::value`].
    const UNIT: &'static str;

    /// One text for each of [`Row::COLUMNS`].
    fn cells(&self) -> Vec<String>;

    /// The case in a plot.
    fn bar(&self) -> Bar;
}

/// Where and when a report was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Environment {
    /// `newton-schulz`, `gemm`, `memory`.
    pub benchmark: &'static str,
    pub muster: String,
    /// As given with `--device`.
    pub device: String,
    /// The device's own name.
    pub device_name: String,
    pub driver: String,
    /// True where nothing was measured but a simulation: its times mean nothing, and are absent.
    pub simulated: bool,
    pub threads: usize,
    pub warmup: usize,
    pub iterations: usize,
    /// The command line.
    pub command: String,
    /// Seconds since 1970 at the start.
    pub unix_time_s: u64,
}

/// All cases of one command.
#[derive(Debug, Clone, Serialize)]
pub struct Report<R> {
    pub environment: Environment,
    pub rows: Vec<R>,
}

impl<R: Row> Report<R> {
    /// The table, with a line about the device above it.
    pub fn table(&self) -> String {
        let titles = R::COLUMNS.iter().map(|&title| title.to_owned()).collect();
        let rows = std::iter::once(titles).chain(self.rows.iter().map(Row::cells));
        let rows: Vec<Vec<String>> = rows.collect();
        let mark = if self.environment.simulated { "SIMULATED, no times: " } else { "" };
        let Environment { device, device_name, .. } = &self.environment;
        format!("{mark}{device} ({device_name})\n{}", aligned(&rows))
    }

    /// The whole report.
    ///
    /// # Errors
    /// A number that JSON cannot hold.
    pub fn json(&self) -> Result<String, BenchError> {
        serde_json::to_string_pretty(self).map_err(BenchError::Json)
    }

    /// One line per case, nested fields named `outer.inner`; the environment is not in it.
    ///
    /// # Errors
    /// As [`Report::json`].
    pub fn csv(&self) -> Result<String, BenchError> {
        let rows = self.rows.iter().map(|row| {
            let mut fields = Vec::new();
            flatten("", &serde_json::to_value(row).map_err(BenchError::Json)?, &mut fields);
            Ok(fields)
        });
        let rows: Vec<Vec<(String, String)>> = rows.collect::<Result<_, BenchError>>()?;
        // An absent value has no nested names, so the fullest row names the columns.
        let Some(fullest) = rows.iter().max_by_key(|row| row.len()) else {
            return Ok(String::new());
        };
        let names: Vec<&str> = fullest.iter().map(|(name, _)| name.as_str()).collect();
        let line =
            |cells: Vec<&str>| cells.into_iter().map(quoted).collect::<Vec<_>>().join(",") + "\n";
        let mut csv = line(names.clone());
        for row in &rows {
            let cell =
                |name: &&str| row.iter().find(|(key, _)| key == name).map(|(_, v)| v.as_str());
            csv += &line(names.iter().map(|name| cell(name).unwrap_or("")).collect());
        }
        Ok(csv)
    }

    /// A bar per case.
    ///
    /// # Errors
    /// A bug in drawing.
    pub fn svg(&self) -> Result<String, BenchError> {
        let bars: Vec<Bar> = self.rows.iter().map(Row::bar).collect();
        let Environment { benchmark, device, device_name, simulated, .. } = &self.environment;
        let mark = if *simulated { "SIMULATED " } else { "" };
        crate::svg::bars(&format!("{mark}{benchmark}: {device} ({device_name})"), R::UNIT, &bars)
    }
}

fn flatten(name: &str, value: &Value, fields: &mut Vec<(String, String)>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                flatten(&name, value, fields);
            }
        }
        Value::Null => fields.push((name.to_owned(), String::new())),
        Value::String(text) => fields.push((name.to_owned(), text.clone())),
        other => fields.push((name.to_owned(), other.to_string())),
    }
}

/// RFC 4180 quoting.
pub(crate) fn quoted(cell: &str) -> String {
    match cell.contains([',', '"', '\n']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.to_owned(),
    }
}

/// Rows of equal length as columns: the first flush left, the others flush right.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Timing;

    #[derive(Serialize)]
    struct Case {
        name: String,
        time: Option<Timing>,
    }

    impl Row for Case {
        const COLUMNS: &'static [&'static str] = &["name", "ms"];
        const UNIT: &'static str = "ms";

        fn cells(&self) -> Vec<String> {
            let ms = self.time.map_or("–".to_owned(), |time| time.median_ms.to_string());
            vec![self.name.clone(), ms]
        }

        fn bar(&self) -> Bar {
            let value = self.time.map_or(0.0, |time| time.median_ms);
            Bar { label: self.name.clone(), value, limit: Some(9.0) }
        }
    }

    fn report() -> Report<Case> {
        let environment = Environment {
            benchmark: "test",
            muster: "0".into(),
            device: "cpu".into(),
            device_name: "a <fast> one".into(),
            driver: String::new(),
            simulated: false,
            threads: 1,
            warmup: 0,
            iterations: 1,
            command: "muster".into(),
            unix_time_s: 0,
        };
        let case = |name: &str, time| Case { name: name.into(), time };
        let rows = vec![case("say \"a, b\"", None), case("c", Timing::of(vec![2.5]))];
        Report { environment, rows }
    }

    #[test]
    fn csv_names_nested_columns_and_quotes() {
        let csv = report().csv().unwrap();
        let lines: Vec<&str> = csv.lines().collect();
        // In which order the fields of an object come is a feature of the JSON crate.
        let mut names: Vec<&str> = lines[0].split(',').collect();
        names.sort_unstable();
        let nested = ["time.iterations", "time.least_ms", "time.median_ms", "time.most_ms"];
        assert_eq!(names, [&["name"][..], &nested].concat());
        assert_eq!(lines[1], "\"say \"\"a, b\"\"\",,,,");
        let mut cells: Vec<&str> = lines[2].split(',').collect();
        cells.sort_unstable();
        assert_eq!(cells, ["1", "2.5", "2.5", "2.5", "c"]);
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn the_table_is_aligned_and_json_is_whole() {
        let table = report().table();
        assert_eq!(
            table,
            "cpu (a <fast> one)\nname         ms\nsay \"a, b\"    –\nc           2.5\n"
        );
        let json: Value = serde_json::from_str(&report().json().unwrap()).unwrap();
        assert_eq!(json["rows"][1]["time"]["median_ms"], 2.5);
        assert_eq!(json["environment"]["benchmark"], "test");
    }

    #[test]
    fn the_plot_names_every_case_and_escapes() {
        let svg = report().svg().unwrap();
        assert!(svg.contains("<svg") && !svg.contains("<fast>"), "{svg}");
        assert!(svg.contains("say") && svg.contains("ms"));
    }
}
