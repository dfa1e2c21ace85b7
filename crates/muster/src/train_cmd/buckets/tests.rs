//! Sizes of buckets from measured tables: the table must be of this place and of these links, and
//! what is configured wins.

use bench::collectives::curve;
use bench::collectives::roofline::{Roof, Unknown};
use bench::collectives::{ElementType, Host, Key, Op, RedOp, Report, Row, Times, Tool};
use proptest::prelude::*;
use train::config::OptimizerDevice;

use super::*;

/// reduce_scatter over shared memory: 10 µs and 5 GB/s, among so many ranks.
fn report(host: &str, ranks: &[usize]) -> Report {
    let tool = Tool { name: "muster".into(), version: None, commit: Some("abc".into()) };
    let mut report = Report::new(tool);
    let all = (0..*ranks.iter().max().unwrap()).collect();
    report.hosts =
        vec![Host { name: host.into(), ranks: all, devices: Vec::new(), cpus: Vec::new() }];
    for &ranks in ranks {
        for log in 10..28 {
            let bytes = 1_u64 << log;
            let key = Key {
                op: Op::ReduceScatter,
                dtype: ElementType::F32,
                redop: Some(RedOp::Sum),
                root: None,
                ranks: Some(ranks),
                bytes,
                in_place: false,
                algorithm: None,
                transport: Some("shm".into()),
                ordered: Some(true),
            };
            let p50_us = Some(10.0 + bytes as f64 / 5e3);
            let times = Times { p50_us, ..Times::default() };
            report.rows.push(Row::new(key, None, times));
        }
    }
    let roof = Roof::Unknown(Unknown::Memory);
    report.curves = curve::of_rows(&report.rows, &roof, |_| Bounds::default());
    report
}

fn table(ranks: &[usize]) -> Table {
    Table { path: "l.json".into(), links: LinkTable::of(&report("here", ranks), 1) }
}

const SITE: Site = Site {
    host: "here",
    hosts: 1,
    transport: "shm",
    ranks: 2,
    gradient_bytes: 1 << 30,
    are_hidden: false,
};

#[test]
fn the_size_with_nine_tenths_of_the_peak_is_taken() {
    let chosen = choose(&table(&[2]), SITE).unwrap();
    // 90 % of 5 GB/s where bytes take nine times 10 µs.
    assert!((400_000..500_000).contains(&chosen.bytes), "{chosen:?}");
    assert_eq!(chosen.reason, "90 % of the peak of reduce_scatter, 2.50 GB/s at 128 MiB (l.json)");
    let few = choose(&table(&[2]), Site { gradient_bytes: 400_000, ..SITE }).unwrap();
    assert_eq!(few.bytes, 400_000);
    assert!(few.reason.starts_with("all gradients, "), "{few:?}");
    let hidden = Site { gradient_bytes: 1_000_000, are_hidden: true, ..SITE };
    let hidden = choose(&table(&[2]), hidden).unwrap();
    assert_eq!(hidden.bytes, 250_000);
    assert!(hidden.reason.starts_with("a quarter of the gradients, "), "{hidden:?}");
    let tiny = choose(&table(&[2]), Site { gradient_bytes: 0, ..SITE }).unwrap();
    assert!(tiny.reason.starts_with("half of the peak"), "{tiny:?}");
}

#[test]
fn what_is_not_as_in_the_run_is_told_or_refused() {
    let other = choose(&table(&[2]), Site { ranks: 16, host: "there", ..SITE }).unwrap();
    let asides = "; of 2 ranks, the nearest that was measured; measured on here)";
    assert!(other.reason.ends_with(asides), "{other:?}");
    let refused = |site| choose(&table(&[2]), site).unwrap_err().to_string();
    let told = refused(Site { transport: "tcp", ..SITE });
    assert!(told.contains("measured over shm, not over tcp"), "{told}");
    let told = refused(Site { hosts: 4, ..SITE });
    assert!(told.contains("measured on 1 host, and this run is on 4 hosts"), "{told}");
}

fn config(links: Links) -> RanksConfig {
    RanksConfig { count: 2, links, ..RanksConfig::default() }
}

fn resolved(config: &RanksConfig, run: &std::path::Path) -> Result<Buckets, String> {
    resolve(config, &RunDir::new(run), (1, "shm"), 1 << 30).map_err(|error| error.message)
}

#[test]
fn what_is_configured_wins_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = Links::File(dir.path().join("none.json"));
    let explicit = RanksConfig { bucket_bytes: Some(12_345), ..config(file.clone()) };
    let reason = "as configured (ranks.bucket_bytes)".to_owned();
    assert_eq!(resolved(&explicit, dir.path()), Ok(Buckets { bytes: 12_345, reason }));
    let off = resolved(&config(Links::Off), dir.path()).unwrap();
    assert_eq!((off.bytes, &off.reason[..]), (BUCKET_BYTES, "the default: ranks.links is off"));
    let told = resolved(&config(file), dir.path()).unwrap_err();
    assert!(told.contains("none.json") && told.contains("or use auto or off"), "{told}");
    let alone = RanksConfig { count: 1, ..config(Links::Auto) };
    assert!(resolved(&alone, dir.path()).unwrap().reason.ends_with("one rank sends nothing"));
}

#[test]
fn a_file_is_read_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("links.json");
    let json = table(&[2, 4]).links.to_json().unwrap();
    let with = |text: &str| {
        std::fs::write(&path, text).unwrap();
        resolved(&config(Links::File(path.clone())), &dir.path().join("run"))
    };
    assert!(with(&json).unwrap().bytes < 500_000);
    let told = resolved(&config(Links::File(dir.path().into())), dir.path()).unwrap_err();
    let of_text = "it is a directory; name a table of links, or use auto or off";
    assert!(told.ends_with(of_text), "{told}");
    for (text, words) in [
        ("", "line 1"),
        ("not a table", "line 1"),
        (&json.replacen("\"links\": 2", "\"links\": 1", 1), "version 1"),
        (&json.replacen("\"alpha_us\": ", "\"alpha_us\": -", 1), "below 0"),
        (&json.replace("\"shm\"", "\"tcp\""), "measured over tcp, not over shm"),
        (&json.replace("reduce_scatter", "all_gather"), "no all_reduce or reduce_scatter"),
    ] {
        let told = with(text).unwrap_err();
        assert!(told.contains(words) && told.contains("links.json"), "{words}: {told}");
    }
}

#[test]
fn tables_that_nobody_named_must_be_of_this_place() {
    let dir = tempfile::tempdir().unwrap();
    let host = links_file::host_name();
    let with = |text: &str, count: usize| {
        std::fs::write(dir.path().join("links.json"), text).unwrap();
        resolved(&RanksConfig { count, ..config(Links::Auto) }, dir.path()).unwrap()
    };
    let json = |host: &str| LinkTable::of(&report(host, &[2]), 1).to_json().unwrap();
    let here = with(&json(&host), 2);
    assert!(here.bytes < 500_000 && here.reason.contains("links.json"), "{here:?}");
    for (text, count, words) in [
        (json("elsewhere-7"), 2, "measured on elsewhere-7, not on"),
        (json(&host), 4, "not measured among 4 ranks"),
        ("{}".to_owned(), 2, "missing field"),
    ] {
        let other = with(&text, count);
        assert_eq!(other.bytes, BUCKET_BYTES);
        assert!(other.reason.starts_with("the default: "), "{other:?}");
        assert!(other.reason.contains(words), "{words}: {other:?}");
    }
}

#[test]
fn what_is_hidden_is_known_by_the_optimizers_device() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.json");
    std::fs::write(&path, table(&[2]).links.to_json().unwrap()).unwrap();
    let mut config = config(Links::File(path));
    config.optimizer_device = OptimizerDevice::try_from("sim:sm_90a".to_owned()).unwrap();
    let run = RunDir::new(dir.path());
    let chosen = resolve(&config, &run, (1, "shm"), 1_000_000).unwrap();
    assert!(chosen.reason.starts_with("a quarter of the gradients"), "{chosen:?}");
}

proptest! {
    /// More gradients never make smaller buckets, and a bucket is never larger than all of them
    /// unless half of the peak takes that.
    #[test]
    fn buckets_grow_with_the_gradients(few in 1_u64..1 << 34, more in 0_u64..1 << 34) {
        let table = table(&[2]);
        for are_hidden in [false, true] {
            let size = |gradient_bytes| {
                choose(&table, Site { gradient_bytes, are_hidden, ..SITE }).unwrap().bytes as u64
            };
            prop_assert!(size(few) <= size(few + more));
            let half = table.links.curves[0].reach.unwrap().half_bytes;
            prop_assert!(size(few) <= few.max(half));
        }
    }
}
