//! Parts of ranks put together: one clock, arrows from whoever came last, and parts that end
//! anywhere or are none.

use comm::clocks::Alignment;
use device::trace::{Detail, Moved, Span, Told};

use super::super::chrome::Writer;
use super::*;

/// A part of `rank`: an operation that it began at `begin_ns` and that ended at 9000.
fn part(rank: usize, begin_ns: u64) -> Vec<u8> {
    part_of_run(0, rank, begin_ns)
}

/// The same of a run whose time begins at `origin_ns`.
fn part_of_run(origin_ns: u64, rank: usize, begin_ns: u64) -> Vec<u8> {
    let alignment = Alignment { offset_ns: 0, uncertainty_ns: 5, origin_ns };
    let (mut writer, mut out) = (Writer::new(rank, alignment), Vec::new());
    writer.begin(&mut out, "here");
    writer.tell(&mut out, Told::Track { track: 2, name: "group 0" });
    let moved = Moved { sequence: 4, transport: "shm", ..Moved::default() };
    let detail = Detail::Operation(moved);
    let span = Span { name: "barrier", begin_ns, end_ns: 9000, detail };
    writer.tell(&mut out, Told::Span { track: 2, span: &span });
    out
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    std::fs::write(dir.join(name), bytes).unwrap();
    dir.join(name)
}

fn parsed(path: &Path) -> Value {
    let mut text = String::new();
    let file = File::open(path).unwrap();
    match is_gzip(path) {
        true => MultiGzDecoder::new(file).read_to_string(&mut text).unwrap(),
        false => { file }.read_to_string(&mut text).unwrap(),
    };
    serde_json::from_str(&text).unwrap()
}

/// Of the events of a phase, the time, rank and track.
fn places(trace: &Value, ph: &str) -> Vec<(f64, u64, u64)> {
    let events = trace["traceEvents"].as_array().unwrap().iter();
    let number = |event: &Value, key: &str| event[key].as_u64().unwrap();
    let place = |e: &Value| (e["ts"].as_f64().unwrap(), number(e, "pid"), number(e, "tid"));
    events.filter(|event| event["ph"] == ph).map(place).collect()
}

#[test]
fn arrows_go_from_the_rank_that_came_last() {
    let dir = tempfile::tempdir().unwrap();
    let begun = [1000, 7000, 3000];
    let parts: Vec<PathBuf> = (0..3)
        .map(|rank| write(dir.path(), &format!("rank-{rank}.json"), &part(rank, begun[rank])))
        .collect();
    let into = dir.path().join("trace.json");
    let merged = merge(&parts, &into).unwrap();
    assert_eq!((merged.ranks(), merged.spans, merged.warnings(3)), (3, 3, vec![]));
    let trace = parsed(&into);
    assert_eq!(places(&trace, "s"), [(7.0, 1, 2), (7.0, 1, 2)]);
    assert_eq!(places(&trace, "f"), [(8.999, 0, 2), (8.999, 2, 2)]);
    assert_eq!(trace["otherData"]["ranks"][2]["clock_uncertainty_ns"], 5);
    assert_eq!(trace["displayTimeUnit"], "ms");

    // A merged trace can be merged again, packed or not, and stays the same.
    let (packed, again) = (dir.path().join("a.json.gz"), dir.path().join("again.json"));
    merge(std::slice::from_ref(&into), &packed).unwrap();
    merge(std::slice::from_ref(&packed), &again).unwrap();
    assert_eq!(parsed(&packed), trace);
    assert_eq!(std::fs::read(&again).unwrap(), std::fs::read(&into).unwrap());
    let first = dir.path().join("first.json");
    merge(&parts[..1], &first).unwrap();
    merge(&[first, parts[1].clone(), parts[2].clone()], &again).unwrap();
    assert_eq!(parsed(&again), trace);
}

#[test]
fn a_part_may_end_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, into) = (part(0, 1000), dir.path().join("trace.json"));
    assert_eq!(whole.iter().filter(|&&byte| byte == b'\n').count(), 7);
    // The end of what the rank says of itself.
    let named = String::from_utf8_lossy(&whole).find("origin_ns").unwrap() + 15;
    for end in 1..=whole.len() {
        let torn = write(dir.path(), "rank-0.json", &whole[..end]);
        let merged = match merge(&[torn], &into) {
            Ok(merged) => merged,
            Err(error) => {
                assert!(end <= named && error.message.contains("no rank has a trace"), "{error}");
                continue;
            }
        };
        parsed(&into);
        let tail = whole[..end].rsplit(|&byte| byte == b'\n').next().unwrap();
        let tail = tail.strip_suffix(b",").unwrap_or(tail);
        let is_whole = matches!(tail, b"" | b"[") || serde_json::from_slice::<Value>(tail).is_ok();
        assert_eq!(merged.torn.is_empty(), is_whole, "{}", String::from_utf8_lossy(tail));
    }
}

#[test]
fn what_is_missing_is_told_and_what_is_no_trace_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut lossy = part(3, 1000);
    let mut writer = Writer::new(3, Alignment { offset_ns: 0, uncertainty_ns: 0, origin_ns: 0 });
    writer.tell(&mut lossy, Told::Lost { track: 2, spans: 4 });
    writer.tell(&mut lossy, Told::Lost { track: 7, spans: 1 });
    let lossy = write(dir.path(), "lossy.json", &lossy);
    let into = dir.path().join("trace.json");
    let merged = merge(std::slice::from_ref(&lossy), &into).unwrap();
    let lost = json!([{"rank": 3, "tid": 2, "spans": 4}, {"rank": 3, "tid": 7, "spans": 1}]);
    assert_eq!(parsed(&into)["otherData"]["lost"], lost);
    let mut said = merged.warnings(2);
    let other = write(dir.path(), "other.json", b"[\n{\"a\": 1},\n");
    let text = write(dir.path(), "text.json", b"hello\n");
    for from in [[lossy.clone(), lossy], [other.clone(), other], [text.clone(), text]] {
        said.push(merge(&from, &into).unwrap_err().message);
    }
    let said = said.join("\n").replace(dir.path().to_str().unwrap(), "HERE");
    insta::assert_snapshot!(said);
}

#[test]
fn ranks_of_two_runs_are_not_put_together() {
    let dir = tempfile::tempdir().unwrap();
    let first = write(dir.path(), "first.json", &part_of_run(700, 0, 1000));
    let same = write(dir.path(), "same.json", &part_of_run(700, 1, 1000));
    let other = write(dir.path(), "other.json", &part_of_run(701, 1, 1000));
    let into = dir.path().join("trace.json");
    let error = merge(&[first.clone(), other], &into).unwrap_err();
    assert_eq!(error.exit.code(), 2);
    let words = ["rank 0 in ", "first.json and rank 1 in ", "other.json are of two runs"];
    assert!(words.iter().all(|words| error.message.contains(words)), "{error}");
    assert!(!into.exists());
    assert_eq!(merge(&[first, same], &into).unwrap().ranks(), 2);
}
