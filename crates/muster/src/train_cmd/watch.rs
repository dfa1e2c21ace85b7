//! The ranks of this host as processes: their events, logs, exits, and the signals meant for them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use comm::rendezvous::Server;
use train::Event;

use super::signals::{self, Signals};
use crate::error::{CliError, Exit};

/// Log lines of a rank that are kept for its obituary.
const TAIL: usize = 12;

/// After a rank has died the others get this long to notice before they are killed.
const GRACE: Duration = Duration::from_millis(3500);

/// How often processes and signals are looked at.
const TICK: Duration = Duration::from_millis(20);

/// How the ranks ended.
pub enum Ended {
    /// Every rank did all it was asked.
    Well,
    /// The user did not want to wait.
    AtOnce,
    Failed(CliError),
}

enum Message {
    Event(Box<Event>),
    /// A line of standard output that is no event.
    Stray(String),
    Log(usize, String),
}

struct Rank {
    rank: usize,
    child: Child,
    status: Option<ExitStatus>,
    tail: VecDeque<String>,
}

/// The ranks of this host.
pub struct Watch {
    ranks: Vec<Rank>,
    messages: Receiver<Message>,
    step: Option<u64>,
}

impl Watch {
    /// Starts `ranks` of the job in `file`; each logs to `logs/rank-NNNNN.log`.
    ///
    /// # Errors
    /// A process cannot be started.
    pub fn start(file: &Path, ranks: Range<usize>, logs: &Path) -> Result<Watch, CliError> {
        let (sender, messages) = channel();
        let mut watch = Watch { ranks: Vec::new(), messages, step: None };
        for rank in ranks {
            let child = start(file, rank, logs, &sender)?;
            watch.ranks.push(Rank { rank, child, status: None, tail: VecDeque::new() });
        }
        Ok(watch)
    }

    /// Waits until every rank has ended, passing events on.
    ///
    /// # Errors
    /// An event that cannot be told; the ranks are then killed.
    pub fn run(
        &mut self,
        server: Option<&Server>,
        signals: &Signals,
        tell: &mut dyn FnMut(Event) -> Result<(), CliError>,
    ) -> Result<Ended, CliError> {
        let (mut interrupts, mut terminations) = (0, 0);
        let mut kill_at: Option<Instant> = None;
        let mut first_dead: Option<usize> = None;
        loop {
            let open = self.pass_on(tell)?;
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
            if let Some(index) = self.reap() {
                first_dead.get_or_insert(index);
                self.drain(tell)?;
                let reason = self.obituary(index, server);
                if let Some(server) = server {
                    server.report_exit(self.ranks[index].rank, &reason);
                }
                kill_at.get_or_insert(Instant::now() + GRACE);
            }
            if kill_at.is_some_and(|at| Instant::now() > at) {
                self.kill();
            }
            if self.ranks.iter().all(|rank| rank.status.is_some()) && !open {
                break;
            }
        }
        self.drain(tell)?;
        Ok(match first_dead {
            None => Ended::Well,
            Some(index) => Ended::Failed(self.failure(index, server)),
        })
    }

    /// Handles messages for a tick; returns whether a pipe is still open.
    fn pass_on(
        &mut self,
        tell: &mut dyn FnMut(Event) -> Result<(), CliError>,
    ) -> Result<bool, CliError> {
        let end = Instant::now() + TICK;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.messages.recv_timeout(left) {
                Ok(message) => self.handle(message, tell)?,
                Err(RecvTimeoutError::Timeout) => return Ok(true),
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(left);
                    return Ok(false);
                }
            }
        }
    }

    fn drain(
        &mut self,
        tell: &mut dyn FnMut(Event) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        // The pipes of a dead rank close; give their readers a moment to pass on the end.
        let end = Instant::now() + Duration::from_millis(100);
        while let Ok(message) =
            self.messages.recv_timeout(end.saturating_duration_since(Instant::now()))
        {
            self.handle(message, tell)?;
        }
        Ok(())
    }

    fn handle(
        &mut self,
        message: Message,
        tell: &mut dyn FnMut(Event) -> Result<(), CliError>,
    ) -> Result<(), CliError> {
        match message {
            Message::Event(event) => {
                if let Event::Step(step) = event.as_ref() {
                    self.step = Some(step.step);
                }
                let told = tell(*event);
                if told.is_err() {
                    self.kill();
                }
                told
            }
            Message::Stray(line) => {
                crate::output::complain(&line);
                Ok(())
            }
            Message::Log(rank, line) => {
                if let Some(rank) = self.ranks.iter_mut().find(|r| r.rank == rank) {
                    rank.tail.push_back(line);
                    if rank.tail.len() > TAIL {
                        rank.tail.pop_front();
                    }
                }
                Ok(())
            }
        }
    }

    /// Collects exits; returns a rank that has newly ended badly.
    fn reap(&mut self) -> Option<usize> {
        let mut dead = None;
        for (index, rank) in self.ranks.iter_mut().enumerate() {
            if rank.status.is_some() {
                continue;
            }
            if let Ok(Some(status)) = rank.child.try_wait() {
                rank.status = Some(status);
                // A rank that only follows another's failure says so by its exit code.
                let follows = status.code() == Some(i32::from(Exit::Peer.code()));
                if !status.success() && (dead.is_none() || !follows) {
                    dead = Some(index);
                }
            }
        }
        dead
    }

    fn signal(&self, signal: i32) {
        for rank in self.ranks.iter().filter(|rank| rank.status.is_none()) {
            signals::send(rank.child.id(), signal);
        }
    }

    fn kill(&mut self) {
        for rank in self.ranks.iter_mut().filter(|rank| rank.status.is_none()) {
            // It may have ended meanwhile; the next look collects it either way.
            let _ = rank.child.kill();
        }
    }

    /// `exit status 3` or `killed by signal 9`, its last step and last log lines.
    fn obituary(&self, index: usize, server: Option<&Server>) -> String {
        let rank = &self.ranks[index];
        let how = match rank.status.map(|s| (s.code(), s.signal())) {
            Some((Some(code), _)) => format!("exit status {code}"),
            Some((_, Some(signal))) => format!("killed by signal {signal}"),
            _ => "ended".to_owned(),
        };
        let step = server.and_then(|server| server.last_step(rank.rank)).or(self.step);
        let step = match step {
            Some(step) => format!("its last step was {step}"),
            None => "it had not begun to train".to_owned(),
        };
        let mut text = format!("{how}; {step}");
        if !rank.tail.is_empty() {
            text.push_str("; its last log lines:");
            for line in &rank.tail {
                text.push_str("\n    ");
                text.push_str(line);
            }
        }
        text
    }

    /// What to tell the user: a rank's own complaint if it has one, else its obituary.
    fn failure(&self, first: usize, server: Option<&Server>) -> CliError {
        let mistake = |rank: &&Rank| {
            rank.status.and_then(|s| s.code()) == Some(i32::from(Exit::Mistake.code()))
        };
        if let Some(rank) = self.ranks.iter().find(mistake) {
            let lines: Vec<&str> = rank.tail.iter().map(String::as_str).collect();
            let text = lines.join("\n");
            let text = text.rsplit_once("error: ").map_or(text.as_str(), |(_, text)| text);
            return CliError::mistake(text);
        }
        let (rank, why) = (self.ranks[first].rank, self.obituary(first, server));
        CliError::peer(format!(
            "rank {rank} failed: {why}\nThe other ranks were stopped. Checkpoints are intact: the \
             same command continues from the newest one."
        ))
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
    let mut child = command.spawn().map_err(|error| failed(&error))?;
    let path = logs.join(format!("rank-{rank:05}.log"));
    let log = File::options().create(true).append(true).open(&path);
    let log = log.map_err(|error| failed(&format!("{}: {error}", path.display())))?;
    if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
        let to = sender.clone();
        std::thread::spawn(move || read_events(out, &to));
        let to = sender.clone();
        std::thread::spawn(move || read_log(rank, err, log, &to));
    }
    Ok(child)
}

fn read_events(from: impl Read, to: &Sender<Message>) {
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        let message = match serde_json::from_str(&line) {
            Ok(event) => Message::Event(Box::new(event)),
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
