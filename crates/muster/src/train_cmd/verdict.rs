//! Who is at fault when ranks have ended badly, and what is said of it: pure functions over what
//! was seen of this host's ranks, and what the server heard from the others.
//!
//! A rank that ended by itself and blames nobody is at fault. One that blames others leads to
//! them; a rank that was killed here, after another's end, says nothing.

use std::collections::VecDeque;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Instant;

use comm::Fault;

use super::life::Work;
use crate::error::{CliError, Exit};

/// Log lines of a rank that are kept.
const TAIL: usize = 12;

/// Ranks whose operations are told apart.
const OPERATIONS: usize = 8;

/// The observations of a rank of this host.
#[derive(Debug, Default)]
pub struct Seen {
    pub rank: usize,
    /// Steps that it said it had done.
    pub step: Option<u64>,
    /// The last operation that it told of, and that operation's number.
    pub operation: Option<String>,
    /// Whom it blames for its end.
    pub fault: Option<Fault>,
    pub end: Option<(Instant, ExitStatus)>,
    /// The supervisor did it.
    pub was_killed: bool,
    /// Why the supervisor gave it up, if it did.
    pub given_up: Option<String>,
    tail: VecDeque<String>,
}

/// The reports of ranks anywhere, on host 0.
pub trait Elsewhere {
    /// The step that a rank last reported.
    fn last_step(&self, rank: usize) -> Option<u64>;
    /// The first ranks that were lost, and how.
    fn lost(&self) -> Option<Fault>;
    /// Ranks of the job, on all hosts.
    fn world(&self) -> usize;
}

impl Elsewhere for comm::rendezvous::Server {
    fn last_step(&self, rank: usize) -> Option<u64> {
        self.last_step(rank)
    }

    fn lost(&self) -> Option<Fault> {
        self.lost()
    }

    fn world(&self) -> usize {
        self.world()
    }
}

impl Seen {
    pub fn new(rank: usize) -> Seen {
        Seen { rank, ..Seen::default() }
    }

    /// Keeps a log line; a complaint is not pushed out by what follows it.
    pub fn log(&mut self, line: String) {
        if self.tail.len() == TAIL {
            let first = self.tail.front().is_some_and(|line| line.starts_with("error:"));
            self.tail.remove(usize::from(first));
        }
        self.tail.push_back(line);
    }

    fn code(&self) -> Option<i32> {
        self.end.and_then(|(_, status)| status.code())
    }

    fn ended_with(&self, exit: Exit) -> bool {
        self.code() == Some(i32::from(exit.code()))
    }

    /// It did all that it was asked.
    pub fn is_well(&self) -> bool {
        self.ended_with(Exit::Ok) || self.ended_with(Exit::Preempted)
    }

    /// It ended badly, by itself, and blames nobody; or had to be given up.
    pub fn is_at_fault(&self) -> bool {
        let fell = self.end.is_some() && !self.is_well();
        self.given_up.is_some() || (fell && !self.was_killed && self.fault.is_none())
    }

    /// Whether both were given up for the same, apart from how many milliseconds it was.
    fn was_given_up_like(&self, other: &Seen) -> bool {
        let kind = |seen: &Seen| {
            let why = seen.given_up.as_deref()?;
            Some(why.split(|c: char| c.is_ascii_digit()).next()?.to_owned())
        };
        kind(self).is_some_and(|why| Some(why) == kind(other))
    }

    /// `killed by signal 9`, its last step and last log lines.
    pub fn how_it_ended(&self) -> String {
        self.how("its", &last_operation(&[self]))
    }

    /// As [`Seen::how_it_ended`], of one or of several of which this is one, and what they were in.
    fn how(&self, its: &str, operation: &str) -> String {
        let how = match self.end.map(|(_, status)| (status.code(), status.signal())) {
            _ if self.given_up.is_some() => self.given_up.clone().unwrap_or_default(),
            Some((Some(code), _)) => format!("exit status {code}"),
            Some((_, Some(signal))) => format!("killed by signal {signal}"),
            _ => "ended".to_owned(),
        };
        let undead = match self.end {
            None if self.was_killed => ", and its process cannot be killed",
            _ => "",
        };
        // Who ends by itself says where.
        let says = self.given_up.is_none() && self.code().is_some();
        let operation = if says { "" } else { operation };
        let (step, lines) = (last_step(self.step, its), self.last_lines(its));
        format!("{how}{undead}{step}{operation}{lines}")
    }

    fn last_lines(&self, its: &str) -> String {
        let lines: String = self.tail.iter().map(|line| format!("\n    {line}")).collect();
        if lines.is_empty() { lines } else { format!("; {its} last log lines:{lines}") }
    }

    /// The last error that it wrote.
    fn complaint(&self) -> String {
        let lines: Vec<&str> = self.tail.iter().map(String::as_str).collect();
        let text = lines.join("\n");
        text.rsplit_once("error: ").map_or(text.as_str(), |(_, text)| text).to_owned()
    }
}

/// A clause for a message; empty where the step is not known.
fn last_step(step: Option<u64>, its: &str) -> String {
    match step {
        None => String::new(),
        Some(0) if its == "its" => "; it had not finished its first step".to_owned(),
        Some(0) => "; they had not finished their first step".to_owned(),
        Some(step) => format!("; {its} last step was {step}"),
    }
}

/// A clause for a message: what ranks told of last, each where they differ.
fn last_operation(ranks: &[&Seen]) -> String {
    let told: Vec<(usize, &str)> =
        ranks.iter().filter_map(|seen| Some((seen.rank, seen.operation.as_deref()?))).collect();
    match told[..] {
        [] => String::new(),
        [(_, last)] if ranks.len() == 1 => format!("; the last operation it told of was {last}"),
        [(_, last), ..] if told.iter().all(|&(_, other)| other == last) => {
            format!("; the last operation they told of was {last}")
        }
        _ => {
            let each = told.iter().take(OPERATIONS).map(|(rank, last)| format!("{last} on {rank}"));
            let each = each.collect::<Vec<String>>().join(", ");
            let more = if told.len() > OPERATIONS { ", …" } else { "" };
            format!("; the last operations they told of were {each}{more}")
        }
    }
}

/// How the ranks of a host ended, all of them: well, or what to tell the user.
pub fn verdict(
    seen: &[&Seen],
    elsewhere: Option<&dyn Elsewhere>,
    work: Work,
) -> Result<Exit, CliError> {
    if seen.iter().all(|rank| rank.is_well()) {
        let preempted = seen.iter().any(|rank| rank.ended_with(Exit::Preempted));
        return Ok(if preempted { Exit::Preempted } else { Exit::Ok });
    }
    let at_fault = || seen.iter().filter(|rank| rank.is_at_fault());
    if let Some(rank) = at_fault().find(|rank| rank.ended_with(Exit::Mistake)) {
        return Err(CliError::mistake(rank.complaint()));
    }
    let headline = match at_fault().min_by_key(|rank| rank.end.map(|(when, _)| when)) {
        Some(rank) => headline(rank, seen),
        None => blamed(seen, elsewhere),
    };
    let message = format!("{headline}\n{}", what_next(seen.len(), elsewhere, work));
    let bug = at_fault().any(|rank| rank.ended_with(Exit::Bug));
    let exit = if bug { Exit::Bug } else { Exit::Peer };
    Err(CliError { exit, ..CliError::peer(message) })
}

/// A sentence on the other ranks, and advice; `here` ranks are this host's.
fn what_next(here: usize, elsewhere: Option<&dyn Elsewhere>, work: Work) -> String {
    // Only host 0 knows how many there are; where it is not this one, there are several.
    let several_hosts = elsewhere.is_none_or(|elsewhere| elsewhere.world() > here);
    let stopped = if here > 1 || several_hosts { "The other ranks were stopped. " } else { "" };
    if work == Work::Benchmark {
        let again = if several_hosts { "Start all hosts again" } else { "Run it again" };
        return format!("{stopped}{again} once the cause is mended.");
    }
    let again = match several_hosts {
        true => "once the cause is mended, start all hosts again; they continue",
        false => "the same command continues",
    };
    let newest = "from the newest one, or anew where none was saved yet";
    format!("{stopped}Checkpoints are intact: {again} {newest}.")
}

/// The rank at fault, with those that were given up at the same time.
fn headline(first: &Seen, seen: &[&Seen]) -> String {
    let same = |rank: &&&Seen| rank.rank == first.rank || rank.was_given_up_like(first);
    let together: Vec<&Seen> = seen.iter().filter(same).copied().collect();
    let ranks: Vec<usize> = together.iter().map(|rank| rank.rank).collect();
    let its = if ranks.len() == 1 { "its" } else { "their" };
    let what = first.how(its, &last_operation(&together));
    Fault { ranks, what }.headline()
}

/// All ranks here ended because of others.
fn blamed(seen: &[&Seen], elsewhere: Option<&dyn Elsewhere>) -> String {
    let lost = elsewhere.and_then(Elsewhere::lost);
    let Some(fault) = root(seen).or(lost).or_else(|| any(seen)) else {
        return "the ranks ended without a reason".to_owned();
    };
    let [rank] = fault.ranks[..] else { return fault.headline() };
    let here = seen.iter().find(|seen| seen.rank == rank);
    let step = here.and_then(|seen| seen.step);
    let step = step.or_else(|| elsewhere.and_then(|elsewhere| elsewhere.last_step(rank)));
    // Another host's supervisor may have told of the step already.
    let step = if fault.what.contains("its last step") { None } else { step };
    let lines = here.map(|seen| seen.last_lines("its")).unwrap_or_default();
    format!("{}{}{lines}", fault.headline(), last_step(step, "its"))
}

/// From the first rank that names another along who blames whom; the last fault on that way.
fn root(seen: &[&Seen]) -> Option<Fault> {
    let names = |rank: &&&Seen| rank.fault.as_ref().is_some_and(|fault| !fault.ranks.is_empty());
    let ended = |rank: &&&Seen| rank.end.map(|(when, _)| when);
    let mut at = *seen.iter().filter(names).min_by_key(ended)?;
    let mut visited = Vec::new();
    loop {
        visited.push(at.rank);
        let fault = at.fault.as_ref()?;
        let next = seen
            .iter()
            .filter(names)
            .find(|next| fault.ranks.contains(&next.rank) && !visited.contains(&next.rank));
        match next {
            Some(next) => at = next,
            None => return Some(fault.clone()),
        }
    }
}

/// The first reason that names nobody.
fn any(seen: &[&Seen]) -> Option<Fault> {
    seen.iter().find_map(|rank| rank.fault.clone())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A rank that ended with a raw status, after all that were made before it.
    fn ended(rank: usize, status: i32, blames: Option<&[usize]>) -> Seen {
        let when = Instant::now() + Duration::from_secs(rank as u64);
        let fault = blames.map(|ranks| Fault { ranks: ranks.to_vec(), what: "no sign".into() });
        let end = Some((when, ExitStatus::from_raw(status)));
        Seen { step: Some(5), fault, end, ..Seen::new(rank) }
    }

    fn exit(code: i32) -> i32 {
        code << 8
    }

    /// The exit code and the first line.
    fn judge(seen: &[Seen]) -> (u8, String) {
        match verdict(&seen.iter().collect::<Vec<_>>(), None, Work::Training) {
            Ok(exit) => (exit.code(), String::new()),
            Err(error) => {
                (error.exit.code(), error.message.lines().next().unwrap_or_default().to_owned())
            }
        }
    }

    #[test]
    fn the_reason_of_the_vote_is_the_exit_code() {
        let well = |code| judge(&[ended(0, exit(code), None), ended(1, exit(code), None)]).0;
        assert_eq!((well(0), well(75)), (0, 75));
    }

    #[test]
    fn an_error_that_a_rank_wrote_is_told_with_its_exit() {
        let mut full = ended(0, exit(3), None);
        full.log("error: disk full writing x".into());
        full.log("free some".into());
        let text = verdict(&[&full], None, Work::Training).unwrap_err();
        let told = "rank 0 failed: exit status 3; its last step was 5: disk full writing x";
        assert_eq!(text.headline(), told);
        let silent = verdict(&[&ended(0, 9, None)], None, Work::Training).unwrap_err();
        assert_eq!(silent.headline(), "rank 0 failed: killed by signal 9; its last step was 5");
    }

    #[test]
    fn who_follows_is_not_at_fault() {
        let killed = [ended(0, exit(3), Some(&[1])), ended(1, 9, None)];
        let expected = "rank 1 failed: killed by signal 9; its last step was 5";
        assert_eq!(judge(&killed), (3, expected.to_owned()));
        // A rank that hangs is killed in the end, by the supervisor.
        let hung = Seen { was_killed: true, step: Some(0), ..ended(1, 9, None) };
        let hangs = [ended(0, exit(3), Some(&[1])), hung];
        let expected = "rank 1 failed: no sign; it had not finished its first step";
        assert_eq!(judge(&hangs), (3, expected.to_owned()));
        // Rank 0 left because of 1, and 1 because of 2, of which nothing is known here.
        let chain = [ended(0, exit(3), Some(&[1])), ended(1, exit(3), Some(&[2]))];
        assert_eq!(judge(&chain), (3, "rank 2 failed: no sign".to_owned()));
        // Two that blame each other end the search.
        let circle = [ended(0, exit(3), Some(&[1])), ended(1, exit(3), Some(&[0]))];
        assert_eq!(judge(&circle).0, 3);
        let nobody = [ended(0, exit(3), Some(&[]))];
        assert_eq!(judge(&nobody), (3, "no sign".to_owned()));
    }

    #[test]
    fn of_a_rank_that_cannot_say_it_the_last_operation_is_told() {
        let told = |status, given_up: Option<&str>| {
            let (operation, given_up) = (Some("barrier #7".into()), given_up.map(str::to_owned));
            judge(&[Seen { operation, given_up, ..ended(0, status, None) }]).1
        };
        let last = "; its last step was 5; the last operation it told of was barrier #7";
        assert_eq!(told(9, None), format!("rank 0 failed: killed by signal 9{last}"));
        assert_eq!(told(9, Some("silent")), format!("rank 0 failed: silent{last}"));
        assert!(!told(exit(3), None).contains("operation"));
    }

    #[test]
    fn ranks_that_were_given_up_are_named_together() {
        let given_up = |rank| Seen {
            was_killed: true,
            given_up: Some("no sign of life".into()),
            ..ended(rank, 9, None)
        };
        let one = [ended(0, exit(3), Some(&[1])), given_up(1)];
        let expected = "rank 1 failed: no sign of life; its last step was 5";
        assert_eq!(judge(&one), (3, expected.to_owned()));
        let mut all = [given_up(0), given_up(1)];
        let expected = "ranks 0 and 1 failed: no sign of life; their last step was 5";
        assert_eq!(judge(&all), (3, expected.to_owned()));
        // And what they were in.
        all.iter_mut().for_each(|rank| rank.operation = Some("barrier #7".into()));
        let told = "; the last operation they told of was barrier #7";
        assert_eq!(judge(&all).1, format!("{expected}{told}"));
        all[1].operation = Some("barrier #8".into());
        let told = "; the last operations they told of were barrier #7 on 0, barrier #8 on 1";
        assert_eq!(judge(&all).1, format!("{expected}{told}"));
        // The error of a rank that ended by itself comes first.
        let fell = [ended(0, 6, None), given_up(1)];
        assert!(judge(&fell).1.starts_with("rank 0 failed: killed by signal 6"));
    }

    #[test]
    fn a_mistake_is_told_and_a_panic_is_a_bug() {
        let mut mistaken = ended(1, exit(2), None);
        mistaken.log("some note".into());
        mistaken.log("error: no such file".into());
        let seen = [ended(0, exit(3), None), mistaken];
        assert_eq!(judge(&seen), (2, "no such file".to_owned()));
        let mut panicked = ended(1, exit(70), None);
        panicked.log("error: this is a bug in Muster: oh".into());
        (0..100).for_each(|frame| panicked.log(format!("  {frame}: somewhere")));
        let seen = [ended(0, exit(3), Some(&[1])), panicked];
        assert_eq!(judge(&seen).0, 70);
        let text = verdict(&[&seen[0], &seen[1]], None, Work::Training).unwrap_err().message;
        assert!(text.contains("\n    error: this is a bug in Muster: oh\n"), "{text}");
        assert!(text.contains("\n      99: somewhere\n"), "{text}");
        assert_eq!(text.lines().count(), 1 + TAIL + 1);
    }

    #[test]
    fn what_other_hosts_know_helps() {
        struct Known;
        impl Elsewhere for Known {
            fn last_step(&self, rank: usize) -> Option<u64> {
                Some(10 + rank as u64)
            }
            fn lost(&self) -> Option<Fault> {
                let what = "its control connection ended".to_owned();
                Some(Fault { ranks: vec![3], what })
            }
            fn world(&self) -> usize {
                4
            }
        }
        let follows = ended(0, exit(3), Some(&[]));
        let text = verdict(&[&follows], Some(&Known), Work::Training).unwrap_err().message;
        let expected = "rank 3 failed: its control connection ended; its last step was 13\n";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn what_is_to_be_done_is_true_of_this_job() {
        struct Ranks(usize);
        impl Elsewhere for Ranks {
            fn last_step(&self, _: usize) -> Option<u64> {
                None
            }
            fn lost(&self) -> Option<Fault> {
                None
            }
            fn world(&self) -> usize {
                self.0
            }
        }
        let same = "Checkpoints are intact: the same command continues from the newest one, or \
                    anew where none was saved yet.";
        assert_eq!(what_next(1, Some(&Ranks(1)), Work::Training), same);
        assert_eq!(
            what_next(2, Some(&Ranks(2)), Work::Training),
            format!("The other ranks were stopped. {same}")
        );
        for server in [Some(&Ranks(2) as &dyn Elsewhere), None] {
            let text = what_next(1, server, Work::Training);
            assert!(text.starts_with("The other ranks were stopped. "), "{text}");
            assert!(text.contains("start all hosts again"), "{text}");
        }
    }
}
