//! The ranks of this host as processes: their events, logs, exits, and the signals meant for them.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use comm::rendezvous::Server;
use train::Event;

use super::line::Line;
use super::signals::{self, Signals};
use super::verdict::{Elsewhere, Seen, verdict};
use crate::error::{CliError, Exit};

/// After a rank has died the others get this long to notice before they are killed.
const GRACE: Duration = Duration::from_millis(3500);

/// How often processes and signals are looked at.
const TICK: Duration = Duration::from_millis(20);

/// How the ranks ended.
pub enum Ended {
    /// All of them; the exit code is theirs.
    Done(Exit),
    /// The user did not want to wait.
    AtOnce,
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
}

/// The ranks of this host.
pub struct Watch {
    ranks: Vec<Rank>,
    messages: Receiver<Message>,
}

impl Watch {
    /// Starts `ranks` of the job in `file`; each logs to `logs/rank-NNNNN.log`.
    ///
    /// # Errors
    /// A process cannot be started.
    pub fn start(file: &Path, ranks: Range<usize>, logs: &Path) -> Result<Watch, CliError> {
        let (sender, messages) = channel();
        let mut watch = Watch { ranks: Vec::new(), messages };
        for rank in ranks {
            let child = start(file, rank, logs, &sender)?;
            watch.ranks.push(Rank { child, seen: Seen::new(rank) });
        }
        Ok(watch)
    }

    /// Waits until every rank has ended, passing events on.
    ///
    /// # Errors
    /// The first cause of their end.
    pub fn run(
        &mut self,
        server: Option<&Server>,
        signals: &Signals,
        tell: &mut dyn FnMut(Event),
    ) -> Result<Ended, CliError> {
        let (mut interrupts, mut terminations) = (0, 0);
        let mut kill_at: Option<Instant> = None;
        loop {
            let open = self.pass_on(tell);
            if signals.interrupts() > interrupts {
                interrupts = signals.interrupts();
                if interrupts > 1 {
                    self.kill();
                    return Ok(Ended::AtOnce);
                }
                crate::output::complain(
                    "finishing the step and saving; Ctrl-C again stops at once",
                );
                self.signal(libc::SIGINT);
            }
            if signals.terminations() > terminations {
                terminations = signals.terminations();
                self.signal(libc::SIGTERM);
            }
            let dead = self.reap();
            if !dead.is_empty() {
                self.drain(tell);
                self.report(&dead, server);
                kill_at.get_or_insert(Instant::now() + GRACE);
            }
            if kill_at.is_some_and(|at| Instant::now() > at) {
                self.kill();
            }
            if self.ranks.iter().all(|rank| rank.seen.end.is_some()) && !open {
                break;
            }
        }
        self.drain(tell);
        let seen: Vec<&Seen> = self.ranks.iter().map(|rank| &rank.seen).collect();
        verdict(&seen, server.map(|server| server as &dyn Elsewhere)).map(Ended::Done)
    }

    /// Tells the ranks of all hosts who of `dead` is at fault; others have said whom they blame.
    fn report(&self, dead: &[usize], server: Option<&Server>) {
        let Some(server) = server else { return };
        for seen in dead.iter().map(|&index| &self.ranks[index].seen) {
            if seen.is_at_fault() {
                server.report_exit(seen.rank, &seen.obituary());
            }
        }
    }

    /// Handles messages for a tick; returns whether a pipe is still open.
    fn pass_on(&mut self, tell: &mut dyn FnMut(Event)) -> bool {
        let end = Instant::now() + TICK;
        loop {
            let left = end.saturating_duration_since(Instant::now());
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

    fn drain(&mut self, tell: &mut dyn FnMut(Event)) {
        // The pipes of a dead rank close; give their readers a moment to pass on the end.
        let end = Instant::now() + Duration::from_millis(100);
        while let Ok(message) =
            self.messages.recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            self.handle(message, tell);
        }
    }

    fn handle(&mut self, message: Message, tell: &mut dyn FnMut(Event)) {
        match message {
            Message::Line(rank, line) => match *line {
                Line::Event(event) => tell(event.into_owned()),
                Line::At(step) => self.of(rank, |seen| seen.step = Some(step)),
                Line::Fault(fault) => self.of(rank, |seen| seen.fault = Some(fault.into_owned())),
            },
            Message::Stray(line) => crate::output::complain(&line),
            Message::Log(rank, line) => self.of(rank, |seen| seen.log(line)),
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
        for rank in self.ranks.iter_mut().filter(|rank| rank.seen.end.is_none()) {
            rank.seen.was_killed = true;
            // It may have ended meanwhile; the next look collects it either way.
            let _ = rank.child.kill();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.kill();
        for rank in &mut self.ranks {
            let _ = rank.child.wait();
        }
    }
}

fn start(
    file: &Path,
    rank: usize,
    logs: &Path,
    sender: &Sender<Message>,
) -> Result<Child, CliError> {
    let failed = |error: &dyn std::fmt::Display| {
        CliError::peer(format!("cannot start rank {rank}: {error}"))
    };
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let mut command = Command::new(program);
    command.arg("worker").arg("--plan").arg(file).arg("--rank").arg(rank.to_string());
    command.env(signals::PARENT, std::process::id().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group of its own: Ctrl-C reaches the supervisor, which tells the ranks.
    command.process_group(0);
    // SAFETY: between fork and exec it only changes the signal mask, which is async-signal-safe.
    unsafe { command.pre_exec(signals::block) };
    let mut child = command.spawn().map_err(|error| failed(&error))?;
    let path = logs.join(format!("rank-{rank:05}.log"));
    let log = File::options().create(true).append(true).open(&path);
    let log = log.map_err(|error| failed(&format!("{}: {error}", path.display())))?;
    if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
        let to = sender.clone();
        std::thread::spawn(move || read_lines(rank, out, &to));
        let to = sender.clone();
        std::thread::spawn(move || read_log(rank, err, log, &to));
    }
    Ok(child)
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
