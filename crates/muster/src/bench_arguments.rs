//! The arguments that hosts must type alike for a benchmark, by its flags: the names of a plan's
//! fields are nobody's who typed it.

use bench::collectives::Step;
use bench::collectives::run::{Place, Plan};
use bench::pairs;
use comm::rendezvous::Entries;

use crate::bench_task::Task;

/// The arguments of a task. What a default decides is there, too, as it would be typed.
pub fn by_flags(task: &Task) -> Entries {
    let all = match task {
        Task::Collectives(plan) => collectives(plan),
        Task::Pairs(plan) => links(plan),
    };
    all.into_iter().map(|(flag, value)| (flag.to_owned(), value)).collect()
}

fn links(plan: &pairs::Plan) -> Vec<(&'static str, String)> {
    let pairs::Plan { message_bytes, messages } = plan;
    vec![("--size", message_bytes.to_string()), ("--messages", messages.to_string())]
}

fn collectives(plan: &Plan) -> Vec<(&'static str, String)> {
    // All of them, so that none is forgotten that comes to be.
    let Plan {
        ops,
        dtypes,
        redops,
        roots,
        sweep,
        ranks,
        places,
        warmup,
        rule,
        check,
        // The number of hosts, which is compared before.
        common_clock: _,
        group,
        flip_at,
        trace,
        beside,
    } = plan;
    let (factor, step) = match sweep.step {
        Step::Factor(factor) => (Some(factor), None),
        Step::Bytes(bytes) => (None, Some(bytes)),
    };
    let place = match places[..] {
        [Place::In] => "in",
        [Place::Out] => "out",
        _ => "both",
    };
    let overlap = beside.as_ref().map(|beside| &beside.shape);
    vec![
        ("operations", list(ops)),
        ("--dtypes", list(dtypes)),
        ("--redops", list(redops)),
        ("--roots", list(roots)),
        ("--min", sweep.from_bytes.to_string()),
        ("--max", sweep.to_bytes.to_string()),
        ("--factor", or_none(factor)),
        ("--step", or_none(step)),
        ("--odd", given(sweep.odd)),
        ("--ranks-sweep", list(ranks)),
        ("--place", place.to_owned()),
        ("--warmup", warmup.to_string()),
        ("--within", format!("{} %", 100.0 * rule.half_width)),
        ("--iterations", rule.iterations_max.to_string()),
        ("--seconds", rule.seconds_max.to_string()),
        ("--no-check", given(!check)),
        ("--transport", group.transport.to_string()),
        ("--sum", group.sum.to_string()),
        ("--flip-at", or_none(*flip_at)),
        ("--trace", given(*trace)),
        ("--overlap", given(overlap.is_some())),
        ("--overlap-shape", or_none(overlap)),
    ]
}

fn list(values: &[impl ToString]) -> String {
    let words: Vec<String> = values.iter().map(ToString::to_string).collect();
    words.join(",")
}

fn or_none(value: Option<impl ToString>) -> String {
    value.map_or("none".to_owned(), |value| value.to_string())
}

fn given(is_given: bool) -> String {
    let word = if is_given { "given" } else { "not given" };
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::CollectivesArgs;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        args: CollectivesArgs,
    }

    fn typed(words: &str) -> Entries {
        let words = ["bench"].into_iter().chain(words.split_whitespace());
        let args = Typed::try_parse_from(words).unwrap().args;
        by_flags(&Task::Collectives(args.plan(4, 2).unwrap()))
    }

    #[test]
    fn what_was_typed_is_what_differs() {
        let plain = typed("");
        for (words, flag, value) in [
            ("--max 1KiB", "--max", "1024"),
            ("--odd", "--odd", "given"),
            ("--no-check", "--no-check", "given"),
            ("--overlap", "--overlap", "given"),
            ("--ranks-sweep 2", "--ranks-sweep", "2,4"),
            ("--within 2", "--within", "2 %"),
            ("--dtypes bf16", "--dtypes", "bf16"),
            ("barrier", "operations", "barrier"),
        ] {
            let other = typed(words);
            let differs = other.iter().zip(&plain).find(|(a, b)| a != b).map(|(a, _)| a);
            assert_eq!(differs, Some(&(flag.to_owned(), value.to_owned())), "{words}");
        }
    }
}
