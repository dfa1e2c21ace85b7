//! The ranks of this host as processes: their events, logs, exits, and the signals meant for them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use bench::collectives::run::Used;
use bench::collectives::{Host, Row};
use bench::pairs::Measured as Pairs;
use comm::{AwakeClock, Secret};
use train::Event;

use super::life::{Judgement, Life, Limits, MEETING_IS_SLOW, Work};
use super::line::Line;
use super::others::Others;
use super::signals::{self, Signals};
use super::verdict::{Elsewhere, Seen, verdict};
use crate::error::{CliError, Exit};
use crate::{limits, secret};

/// After a rank has died the others get this long to notice before they are killed.
const GRACE: Duration = Duration::from_millis(3500);

/// A process that was killed and is still there after this long waits for something that does not
/// answer, such as a file system. It is not waited for.
const UNDEAD: Duration = Duration::from_secs(5);

/// Ranks that have not met this long after a stop was asked for are not waited for.
const MEETING: Duration = Duration::from_secs(2);

/// How often processes and signals are looked at.
const TICK: Duration = Duration::from_millis(20);

/// How the ranks ended.
pub enum Ended {
    /// All of them; the exit code is theirs.
    Done(Exit),
    /// The user did not want to wait, or a benchmark was asked to stop.
    AtOnce,
    /// The run was asked to stop while its ranks still waited for others.
    BeforeTraining,
}

/// The reports of the ranks.
#[allow(clippy::large_enum_variant)] // One exists at a time.
pub enum Told {
    Event(Event),
    Measured(Row),
    Route(Used),
    Hosts(Vec<Host>),
    /// Rounds of pairs that are done, and how many there are.
    Rounds(usize, usize),
    Pairs(Pairs),
}

enum Message {
    Line(usize, Box<Line<'static>>),
    /// A line of standard output that is not a worker's.
    Stray(String),
    Log(usize, String),
}

struct Rank {
    child: Child,
    seen: Seen,
    life: Life,
}

/// The requests of the user and the scheduler so far.
#[derive(Default)]
struct Asked {
    interrupts: usize,
    terminations: usize,
    /// When the first of them was passed on.
    stop: Option<Duration>,
}

impl Asked {
    /// Passes new signals on to the ranks; whether somebody does not want to wait for them. Those
    /// of a benchmark have nothing to finish.
    fn is_too_much(&mut self, signals: &Signals, watch: &Watch, work: Work) -> bool {
        if work == Work::Benchmark {
            return signals.interrupts() + signals.terminations() > 0;
        }
        if signals.interrupts() > self.interrupts {
            self.interrupts = signals.interrupts();
            if self.interrupts > 1 {
                return true;
            }
            crate::output::complain(match watch.is_meeting() {
                true => "stopping: the ranks have not met yet, and there is nothing to save",
                false => "finishing the step and saving; Ctrl-C again stops at once",
            });
            watch.signal(libc::SIGINT);
            self.stop.get_or_insert(watch.now);
        }
        if signals.terminations() > self.terminations {
            self.terminations = signals.terminations();
            watch.signal(libc::SIGTERM);
            self.stop.get_or_insert(watch.now);
        }
        false
    }
}

/// The ranks of this host.
pub struct Watch {
    ranks: Vec<Rank>,
    messages: Receiver<Message>,
    /// Hints that were told while other hosts were awaited.
    hints: BTreeSet<String>,
    /// The start in which the ranks have met, once they have.
    group: Option<String>,
    clock: AwakeClock,
    /// The last reading of the clock.
    now: Duration,
}

impl Watch {
    /// Starts `ranks` of the job in `file`, by the command `worker`; each is handed the secret, and
    /// logs to `logs/rank-NNNNN.log`.
    ///
    /// # Errors
    /// A process cannot be started.
    pub fn start(
        worker: &str,
        file: &Path,
        ranks: Range<usize>,
        logs: &Path,
        secret: Secret,
    ) -> Result<Watch, CliError> {
        let (sender, messages) = channel();
        let (clock, now) = (AwakeClock::default(), Duration::ZERO);
        let (ranks_here, hints, group) = (Vec::new(), BTreeSet::new(), None);
        let mut watch = Watch { ranks: ranks_here, messages, hints, group, clock, now };
        for rank in ranks {
            let child = start((worker, file), rank, logs, secret, &sender)?;
            let (seen, life) = (Seen::new(rank), Life::new(now));
            watch.ranks.push(Rank { child, seen, life });
        }
        Ok(watch)
    }

    /// Waits until every rank has ended, passing events on. `waiting` is said once if the ranks
    /// have not met after a moment.
    ///
    /// # Errors
    /// The first cause of their end.
    pub fn run(
        &mut self,
        others: &mut Others,
        signals: &Signals,
        limits: &Limits,
        mut waiting: Option<String>,
        tell: &mut dyn FnMut(Told),
    ) -> Result<Ended, CliError> {
        let mut asked = Asked::default();
        let mut kill_at: Option<Duration> = None;
        loop {
            let open = self.pass_on(tell);
            self.now = self.clock.look();
            if self.now > MEETING_IS_SLOW
                && self.is_meeting()
                && let Some(words) = waiting.take()
            {
                crate::output::tell(&words);
            }
            if asked.is_too_much(signals, self, limits.work) {
                if limits.work == Work::Benchmark {
                    // Its reports so far count.
                    self.drain(tell);
                }
                self.tell_of_stop(others);
                self.kill();
                return Ok(Ended::AtOnce);
            }
            if asked.stop.is_some_and(|stop| self.now > stop + MEETING) && self.is_meeting() {
                self.kill();
                return Ok(Ended::BeforeTraining);
            }
            let news = others.server().map(|server| server.news());
            for message in news.into_iter().flatten() {
                tell(Told::Event(Event::Warning { message }));
            }
            if let Some(why) = others.overtaken() {
                // Its ranks are of a start that is over, and may not know.
                self.kill();
                return Err(CliError::peer(format!("this host was taken for gone: {why}")));
            }
            let dead = self.reap();
            if !dead.is_empty() {
                self.drain(tell);
                self.report(&dead, others);
                kill_at.get_or_insert(self.now + GRACE);
            }
            // Once a rank has ended badly, the others say why, or are killed.
            if kill_at.is_none() && self.give_up(limits, asked.stop, others, tell) {
                kill_at = Some(self.now + GRACE);
            }
            let is_lost = || others.server().is_some_and(|server| server.lost().is_some());
            match kill_at {
                Some(at) if self.now > at => self.kill(),
                None if !is_lost() => {}
                // And who is silent for as long says nothing any more.
                _ => self.kill_where(|life, now| life.silent_for(now) > limits.timeout),
            }
            let ended = self.ranks.iter().all(|rank| rank.seen.end.is_some()) && !open;
            if ended || kill_at.is_some_and(|at| self.now > at + UNDEAD) {
                break;
            }
        }
        self.drain(tell);
        others.wait_until_heard();
        let seen: Vec<&Seen> = self.ranks.iter().map(|rank| &rank.seen).collect();
        let elsewhere = others.server().map(|server| server as &dyn Elsewhere);
        verdict(&seen, elsewhere, limits.work).map(Ended::Done)
    }

    /// The last step that any rank of this host told of.
    pub fn last_step(&self) -> Option<u64> {
        self.ranks.iter().filter_map(|rank| rank.seen.step).max()
    }

    /// Whether any rank of this host has met the others.
    pub fn have_met(&self) -> bool {
        self.ranks.iter().any(|rank| rank.seen.step.is_some() || rank.life.has_met())
    }

    /// Whether every rank of this host still waits for others.
    fn is_meeting(&self) -> bool {
        // A rank that counts steps gives signs of life by that, and its pulse may be an old one.
        let waits = |rank: &Rank| rank.seen.end.is_none() && rank.seen.step.is_none();
        self.ranks.iter().all(|rank| waits(rank) && rank.life.is_meeting())
    }

    /// Gives up ranks that show no life; returns whether there were any.
    fn give_up(
        &mut self,
        limits: &Limits,
        stop: Option<Duration>,
        others: &mut Others,
        tell: &mut dyn FnMut(Told),
    ) -> bool {
        let mut lost = false;
        let mut living = self.ranks.iter().filter(|rank| rank.seen.end.is_none());
        let all_silent = living.all(|rank| rank.life.is_lost_if_all_are(self.now, limits));
        for Rank { seen, life, .. } in self.ranks.iter_mut().filter(|r| r.seen.end.is_none()) {
            let judgement = match all_silent {
                true => Judgement::Lost(life.silence_now(self.now, limits.work)),
                false => life.judge(self.now, limits, stop),
            };
            match judgement {
                Judgement::Well => {}
                Judgement::Slow(how) => {
                    let message = format!("rank {} {how}", seen.rank);
                    tell(Told::Event(Event::Warning { message }));
                }
                Judgement::Lost(why) => {
                    seen.given_up = Some(why);
                    lost = true;
                }
            }
        }
        for Rank { child, seen, life } in self.ranks.iter_mut().filter(|_| lost) {
            if seen.end.is_none() && seen.given_up.is_none() {
                seen.given_up = life.is_silent(self.now, limits.work);
            }
            if seen.given_up.is_some() {
                others.tell_end(self.group.as_deref(), seen.rank, &seen.how_it_ended());
                seen.was_killed = true;
                // It may have ended meanwhile; the next look collects it either way.
                let _ = child.kill();
            }
        }
        lost
    }

    /// Tells the ranks of other hosts why those of this one end.
    fn tell_of_stop(&self, others: &mut Others) {
        if others.server().is_some_and(|server| server.world() == self.ranks.len()) {
            return;
        }
        // One for all of them.
        if let Some(rank) = self.ranks.iter().find(|rank| rank.seen.end.is_none()) {
            others.tell_end(self.group.as_deref(), rank.seen.rank, "it was asked to stop");
            others.wait_until_heard();
        }
    }

    /// Tells the ranks of all hosts who of `dead` is at fault; others have said whom they blame.
    fn report(&self, dead: &[usize], others: &mut Others) {
        for seen in dead.iter().map(|&index| &self.ranks[index].seen) {
            if seen.is_at_fault() {
                others.tell_end(self.group.as_deref(), seen.rank, &seen.how_it_ended());
            }
        }
    }

    /// Handles messages for a tick, however many there are; returns whether a pipe may still be
    /// open.
    fn pass_on(&mut self, tell: &mut dyn FnMut(Told)) -> bool {
        let end = Instant::now() + TICK;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            match self.messages.recv_timeout(left) {
                Ok(message) => self.handle(message, tell),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(left);
                    return false;
                }
            }
        }
    }

    fn drain(&mut self, tell: &mut dyn FnMut(Told)) {
        // The pipes of a dead rank close; give their readers a moment to pass on the end.
        let end = Instant::now() + Duration::from_millis(100);
        while let Ok(message) =
            self.messages.recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            self.handle(message, tell);
        }
    }

    fn handle(&mut self, message: Message, tell: &mut dyn FnMut(Told)) {
        self.note_life(&message);
        match message {
            Message::Line(rank, line) => match *line {
                Line::Event(event) => tell(Told::Event(event.into_owned())),
                Line::Measured(row) => tell(Told::Measured(row.into_owned())),
                Line::Route(used) => tell(Told::Route(used.into_owned())),
                Line::Hosts(hosts) => tell(Told::Hosts(hosts.into_owned())),
                Line::Rounds(done, of) => tell(Told::Rounds(done, of)),
                Line::Pairs(pairs) => tell(Told::Pairs(pairs.into_owned())),
                Line::Met(group) => self.group = Some(group.into_owned()),
                Line::At(step) => self.of(rank, |seen| seen.step = Some(step)),
                Line::Alive(pulse) => self.of(rank, |seen| seen.operation = pulse.operation),
                Line::Hint(message) => {
                    if self.hints.insert(message.clone()) {
                        tell(Told::Event(Event::Warning { message }));
                    }
                }
                Line::Fault(fault) => self.of(rank, |seen| seen.fault = Some(fault.into_owned())),
            },
            Message::Stray(line) => crate::output::complain(&line),
            Message::Log(rank, line) => self.of(rank, |seen| seen.log(line)),
        }
    }

    fn note_life(&mut self, message: &Message) {
        let now = self.now;
        let (Message::Line(rank, _) | Message::Log(rank, _)) = message else { return };
        let found = self.ranks.iter_mut().find(|r| r.seen.rank == *rank);
        let Some(Rank { life, .. }) = found else { return };
        match message {
            Message::Line(_, line) => match &**line {
                Line::Alive(pulse) => life.beat(pulse.clone(), now),
                _ => life.advance(now),
            },
            _ => life.hear(now),
        }
    }

    fn of(&mut self, rank: usize, note: impl FnOnce(&mut Seen)) {
        let found = self.ranks.iter_mut().find(|r| r.seen.rank == rank);
        if let Some(rank) = found {
            note(&mut rank.seen);
        }
    }

    /// Collects exits; returns the ranks that have newly ended badly.
    fn reap(&mut self) -> Vec<usize> {
        let mut dead = Vec::new();
        for (index, rank) in self.ranks.iter_mut().enumerate() {
            if rank.seen.end.is_some() {
                continue;
            }
            if let Ok(Some(status)) = rank.child.try_wait() {
                rank.seen.end = Some((Instant::now(), status));
                if !rank.seen.is_well() {
                    dead.push(index);
                }
            }
        }
        dead
    }

    fn signal(&self, signal: i32) {
        for rank in self.ranks.iter().filter(|rank| rank.seen.end.is_none()) {
            signals::send(rank.child.id(), signal);
        }
    }

    fn kill(&mut self) {
        self.kill_where(|_, _| true);
    }

    /// Ends ranks by what is known of their lives now.
    fn kill_where(&mut self, is_to_end: impl Fn(&Life, Duration) -> bool) {
        let now = self.now;
        let is_to_end = |rank: &Rank| rank.seen.end.is_none() && is_to_end(&rank.life, now);
        for rank in self.ranks.iter_mut().filter(|rank| is_to_end(rank)) {
            rank.seen.was_killed = true;
            // It may have ended meanwhile; the next look collects it either way.
            let _ = rank.child.kill();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.kill();
        let patience = Instant::now() + UNDEAD;
        while self.ranks.iter().any(|rank| rank.seen.end.is_none()) && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
            self.reap();
        }
    }
}

fn start(
    (worker, file): (&str, &Path),
    rank: usize,
    logs: &Path,
    secret: Secret,
    sender: &Sender<Message>,
) -> Result<Child, CliError> {
    let failed = |error: std::io::Error| limits::refused(format!("start rank {rank}"), &error);
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command.arg(worker).arg("--plan").arg(file).arg("--rank").arg(rank.to_string());
    command.env(signals::PARENT, std::process::id().to_string());
    // It is handed over where nobody looks.
    command.env_remove(secret::VARIABLE);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own: Ctrl-C reaches the supervisor, which tells the ranks.
    command.process_group(0);
    // SAFETY: between fork and exec it only changes the signal mask, which is async-signal-safe.
    unsafe { command.pre_exec(signals::block) };
    let mut child = command.spawn().map_err(failed)?;
    if let Some(to) = child.stdin.take() {
        secret::pass_on(secret, to);
    }
    let path = logs.join(format!("rank-{rank:05}.log"));
    let log = File::options().create(true).append(true).open(&path);
    let log = log.map_err(|error| {
        let _ = child.kill();
        limits::refused(format!("write {}", path.display()), &error)
    })?;
    if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
        let to = sender.clone();
        reader(move || read_lines(rank, out, &to))?;
        let to = sender.clone();
        reader(move || read_log(rank, err, log, &to))?;
    }
    Ok(child)
}

/// Without it the rank, which dies with this process, cannot be heard.
fn reader(read: impl FnOnce() + Send + 'static) -> Result<(), CliError> {
    let started = std::thread::Builder::new().name("reader".into()).spawn(read);
    started.map(drop).map_err(|error| limits::refused("start a thread", &error))
}

fn read_lines(rank: usize, from: impl Read, to: &Sender<Message>) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        let message = match serde_json::from_str(&line) {
            Ok(line) => Message::Line(rank, Box::new(line)),
            Err(_) => Message::Stray(line),
        };
        if to.send(message).is_err() {
            return;
        }
    }
}

fn read_log(rank: usize, from: impl Read, mut log: File, to: &Sender<Message>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        // The log file is a convenience; a full disk must not end the run.
        let _ = log.write_all(&line);
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if to.send(Message::Log(rank, text)).is_err() {
            return;
        }
        line.clear();
    }
}
