//! This process among the others: one thread that answers who connects, watches every peer all the
//! time, and tells and is told that the job is given up.
//!
//! ```text
//! listener ─▶ watchdog ─┬─ signal connections, one per pair of ranks
//!                       └─ data connections, one per pair of members of a channel or group,
//!                          kept until this rank's end of it asks for them
//! ```

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::frame;
use super::link::Wire;
use super::mesh::{self, Guest, Identity, Met, Purpose, Tries};
use super::runtime::{check_thread, runtime};
use super::signal::{self, Signals};
use super::silence::Silence;
use crate::control::Channel;
use crate::door::{self, Door};
use crate::handshake::Seal;
use crate::job::{Job, Members, Moments, Settings};
use crate::tls::{self, Security, Stream};
use crate::{CommError, Operation, Result, ending};

/// How often this process is looked at whether it works.
const LOOK: Duration = Duration::from_millis(100);
/// How often peers are told that it does, or lives at least.
const TELL: Duration = Duration::from_secs(1);
/// And of a short timeout: a rank that waits for others which wait seems to have got on a quarter
/// of it ago ([`Job::is_over_behind`]), and one that is known to have got on half of it ago is
/// named ([`Job::standing`]). News must be younger than what lies between.
const TELL_PARTS: u32 = 8;

/// Connections to each peer: one for signals, those of the channels, and of one group.
const CONNECTIONS: usize = 1 + Channel::ALL.len() + 1;

/// The state that channels and groups of one rank share.
pub(crate) struct Net {
    pub(super) shared: Arc<Shared>,
    watchdog: Option<std::thread::JoinHandle<()>>,
}

/// The part of it that the watchdog sees, too.
pub(super) struct Shared {
    pub job: Arc<Job>,
    pub me: Identity,
    pub addrs: Vec<SocketAddr>,
    /// Connections that peers have made for a channel or group, by its tag and their rank.
    arrivals: Mutex<HashMap<(u64, usize), Wire>>,
    /// Who passed for which rank.
    pub turned_away: Tries,
    /// Rings when something has come or has happened.
    news: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Ranks to which there is a signal connection.
    signals: usize,
    is_over: bool,
}

/// By rank, who listens to its signals.
type Readers = HashMap<usize, tokio::task::AbortHandle>;

/// Moments as this process has heard of them.
struct Heard {
    epoch: Instant,
    moments: Vec<AtomicU64>,
    silence: Silence,
}

impl Moments for Heard {
    fn now_ms(&self) -> u64 {
        // Zero means that nothing was heard.
        u64::try_from(self.epoch.elapsed().as_millis()).map_or(u64::MAX, |ms| ms + 1)
    }

    fn of(&self, rank: usize) -> u64 {
        self.moments[rank].load(Ordering::Relaxed)
    }

    fn advance(&self, rank: usize, to_ms: u64) {
        self.moments[rank].fetch_max(to_ms, Ordering::Relaxed);
    }

    fn hear(&self, rank: usize, is_last: bool) {
        self.silence.hear(rank, is_last);
    }

    fn silent(&self, for_at_least: Duration) -> Vec<usize> {
        self.silence.of(for_at_least)
    }
}

impl Net {
    /// A number that the ranks of this job have alone.
    pub(crate) fn identity(&self) -> u64 {
        self.shared.me.token
    }

    /// Answers at `listener` from here on. `addrs` is the address of every rank's, this one's
    /// included.
    ///
    /// # Errors
    /// A rank out of range; more peers than this process may have connections to; the system
    /// refuses.
    pub(crate) fn start(
        listener: TcpListener,
        addrs: Vec<SocketAddr>,
        job: &str,
        rank: usize,
        settings: Settings,
    ) -> Result<Net> {
        let world = addrs.len();
        let addr = *addrs.get(rank).ok_or(CommError::NoSuchRank { rank, world })?;
        check_thread()?;
        door::check_room((world - 1) * CONNECTIONS)?;
        let (secret, tls) = (settings.secret, settings.tls.clone());
        let (security, scope) = (Security { secret, tls }, secret.scope(job, world));
        let moments = (0..world).map(|_| AtomicU64::new(0)).collect();
        let moments =
            Box::new(Heard { epoch: Instant::now(), moments, silence: Silence::new(world) });
        let shared = Arc::new(Shared {
            job: Arc::new(Job::new(rank, world, settings, moments)),
            me: Identity { security, scope, token: frame::token(job), rank, world },
            addrs,
            arrivals: Mutex::default(),
            turned_away: Tries::default(),
            news: Notify::new(),
            state: Mutex::default(),
        });
        if world == 1 {
            return Ok(Net { shared, watchdog: None });
        }
        let runtime = runtime()?;
        let door = {
            let _inside = runtime.enter();
            let failed = |source| CommError::Socket { addr, action: "listen", source };
            Door::new(listener).map_err(failed)?
        };
        let watched = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("watchdog".to_owned());
        let thread = thread.spawn(move || runtime.block_on(watched.watch(door)));
        Ok(Net { shared, watchdog: Some(thread.map_err(CommError::Runtime)?) })
    }

    pub(crate) fn job(&self) -> &Arc<Job> {
        &self.shared.job
    }

    /// Returns once every rank can tell this one that it gives up, and the other way round.
    ///
    /// # Errors
    /// Ranks that are missing after the timeout; the job is given up meanwhile.
    pub(crate) fn wait_for_everyone(&self) -> Result<()> {
        let Identity { rank, world, .. } = self.shared.me;
        let (job, everyone) = (&self.shared.job, Members::all(rank, world));
        let patience = job.patience();
        let (operation, sequence) = (Operation::Join, 0);
        let wait = || loop {
            job.revocation().check()?;
            if self.shared.state().signals + 1 >= everyone.len() {
                return Ok(());
            }
            if job.is_over(&everyone, &patience, everyone.peers()) {
                let missing = job.standing(&everyone, &patience, everyone.peers());
                let (timeout_ms, moved) = (job.timeout_ms(), Default::default());
                return Err(CommError::Timeout { operation, sequence, missing, timeout_ms, moved });
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        job.settle(&everyone, (operation, sequence), wait())
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.shared.state().is_over = true;
        self.shared.news.notify_waiters();
        if let Some(watchdog) = self.watchdog.take() {
            ending::join(watchdog);
        }
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ranks at this one's address, itself among them.
    pub(super) fn ranks_here(&self) -> usize {
        let here = self.addrs[self.me.rank].ip();
        self.addrs.iter().filter(|addr| addr.ip() == here).count()
    }

    /// Ranks above this one that listen where somebody comes from.
    fn higher_at(&self, from: SocketAddr) -> Vec<usize> {
        let at = from.ip().to_canonical();
        let higher = self.me.rank + 1..self.addrs.len();
        higher.filter(|&rank| self.addrs[rank].ip().to_canonical() == at).collect()
    }

    /// How many connections peers have made for the channel or group `tag`.
    pub(super) fn arrived(&self, tag: u64) -> usize {
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.keys().filter(|(of, _)| *of == tag).count()
    }

    /// The connection that `rank` has made for the channel or group `tag`.
    pub(super) fn take_arrival(&self, tag: u64, rank: usize) -> Option<Wire> {
        let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.remove(&(tag, rank))
    }

    /// Returns once something may have come.
    pub(super) async fn news(&self) {
        // Looked at again soon, since it may have come just before.
        tokio::select! {
            () = self.news.notified() => {}
            () = sleep(Duration::from_millis(5)) => {}
        }
    }

    async fn watch(self: Arc<Shared>, mut door: Door<Guest>) {
        let me = &self.me;
        let mut signals = Signals::new(me.world);
        let mut dials = JoinSet::new();
        let mut readers = Readers::new();
        let tries: Tries = Tries::default();
        for (peer, &addr) in self.addrs.iter().enumerate().take(me.rank) {
            dials.spawn(mesh::connect(addr, peer, Purpose::Signal, me.clone(), Arc::clone(&tries)));
        }
        let mut told = Instant::now();
        loop {
            let met = tokio::select! {
                biased;
                _ = self.job.revocation().wait(), if !signals.have_spoken() => {
                    signals.revoke(self.job.revocation().why().unwrap_or_default());
                    continue;
                }
                () = self.is_over() => {
                    signals.leave();
                    return;
                }
                Some(dialled) = dials.join_next() => match dialled {
                    Ok(Some(met)) => met,
                    // The channels say who cannot be reached, and why.
                    _ => continue,
                },
                guest = door.next(|stream, from| {
                    let (there, tries) = (self.higher_at(from), Arc::clone(&self.turned_away));
                    mesh::hear_higher(stream, from, there, me.clone(), tries)
                }) => {
                    let Some(met) = mesh::greet_now(guest) else { continue };
                    met
                }
                () = sleep(LOOK) => {
                    look(&self.job, &mut signals, &mut told);
                    continue;
                }
            };
            self.take(met, &mut signals, &mut readers);
        }
    }

    async fn is_over(&self) {
        loop {
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            if self.state().is_over {
                return;
            }
            news.await;
        }
    }

    fn take(self: &Arc<Shared>, met: Met, signals: &mut Signals, readers: &mut Readers) {
        let Met { rank, purpose, stream, keys } = met;
        let passed_for = self.turned_away.lock();
        passed_for.unwrap_or_else(PoisonError::into_inner).remove(&rank);
        match purpose {
            Purpose::Signal => {
                let (read, write) = tls::split(stream);
                // A rank that comes again has given its first connection up.
                if signals.add(rank, write, keys.send) {
                    self.state().signals += 1;
                }
                let (seal, job) = (Seal::new(keys.receive), Arc::clone(&self.job));
                job.moments().hear(rank, false);
                let reader = tokio::spawn(signal::listen(read, rank, seal, job));
                if let Some(given_up) = readers.insert(rank, reader.abort_handle()) {
                    given_up.abort();
                }
            }
            Purpose::Data(tag) => {
                if let Ok(stream) = Stream::new(stream) {
                    let arrivals = self.arrivals.lock();
                    let mut arrivals = arrivals.unwrap_or_else(PoisonError::into_inner);
                    arrivals.insert((tag, rank), Wire { stream, keys });
                }
            }
        }
        self.news.notify_waiters();
    }
}

/// How often peers are told that this process lives, and when it got on.
fn tell_every(timeout_ms: u64) -> Duration {
    TELL.min(Duration::from_millis(timeout_ms) / TELL_PARTS)
}

/// One look of the watchdog, at this process and at whether anything comes from the others; peers
/// were `told` last at that time.
fn look(job: &Job, signals: &mut Signals, told: &mut Instant) {
    job.look_at_pulse();
    if told.elapsed() >= tell_every(job.timeout_ms()) {
        let moments = job.moments();
        signals.tell(moments.now_ms().saturating_sub(moments.of(job.rank)));
        *told = Instant::now();
    }
    if let Some(reason) = job.given_up_for_silence() {
        job.revocation().give_up(|| reason);
    }
}
