//! Where ranks meet and listen, as the command or a launcher says it: `--rendezvous` and `--bind`.
//!
//! A name may stand for several addresses, and two hosts may know the meeting point by different
//! names: node 0 listens at every address that it has, the others try each in turn.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use comm::Lack;
use comm::rendezvous::{self, Absent, Reported, Server};
use comm::tls::Security;

use super::place::{Place, list};
use crate::cli::HostArgs;
use crate::config::{Said, Written};
use crate::error::{CliError, Exit};
use crate::launch_env::{Hosts, Rendezvous};
use crate::output::{complain, tell_if_slow};
use crate::secret::{self, JobSecret};
use crate::tls::{self, JobTls};

/// Where the config has the files of TLS.
pub(super) const TLS: &str = "ranks.tls";
/// And the secret.
pub(super) const SECRET: &str = "ranks.secret_file";

/// The job of several hosts, to each other, where no launcher has a name for it.
const JOB: &str = "hosts";

/// The name of the job among its hosts. What else they must have in common is compared when they
/// have met, so that all learn of a difference; who comes with another name is turned away.
pub fn job(hosts: &Hosts) -> String {
    hosts.job.clone().unwrap_or_else(|| JOB.to_owned())
}

/// Addresses of one start.
pub struct Addresses {
    /// None on a host that is alone.
    at: Option<Rendezvous>,
    meeting: Vec<SocketAddr>,
    bind: Option<IpAddr>,
}

impl Addresses {
    /// The addresses by the command, if every host can reach them.
    ///
    /// # Errors
    /// A name without an address, or addresses that other hosts cannot use.
    pub fn new(hosts: &Hosts) -> Result<Addresses, CliError> {
        let meeting = match &hosts.rendezvous {
            Some(at) => meeting(at, hosts)?,
            None => vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
        };
        Ok(Addresses { at: hosts.rendezvous.clone(), meeting, bind: hosts.bind })
    }

    /// Where ranks listen for each other.
    pub fn bind(&self) -> IpAddr {
        self.bind.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// Whether this host can listen where it is told to.
    ///
    /// # Errors
    /// An address that is not this host's, a port that is taken.
    pub fn try_out(&self, node: usize) -> Result<(), CliError> {
        if let Some(bind) = self.bind {
            let tried = comm::tcp::can_listen(SocketAddr::new(bind, 0));
            tried.map_err(|error| with_flag(&format!("--bind {bind}"), error))?;
        }
        match node {
            0 => rendezvous::can_serve(&self.meeting[..]).map_err(|error| self.with_flag(error)),
            _ => Ok(()),
        }
    }

    /// Where node 0 is.
    pub fn meeting(&self) -> &[SocketAddr] {
        &self.meeting
    }

    /// The meeting point, on node 0.
    ///
    /// # Errors
    /// As [`Addresses::try_out`].
    pub fn serve(
        &self,
        (job, security): (&str, Security),
        place: &Place,
        world: usize,
        timeout_ms: u64,
    ) -> Result<Option<Server>, CliError> {
        if place.node > 0 {
            return Ok(None);
        }
        let job = (job, security);
        let server = Server::of_nodes(&self.meeting[..], job, world, place.nodes, timeout_ms);
        server.map(Some).map_err(|error| self.with_flag(error))
    }

    fn with_flag(&self, error: comm::CommError) -> CliError {
        let Some(at) = &self.at else { return error.into() };
        let taken = std::io::ErrorKind::AddrInUse;
        let is_taken =
            matches!(&error, comm::CommError::Bind { source, .. } if source.kind() == taken);
        let error = with_flag(&at.shown, error);
        match is_taken {
            true => CliError {
                message: format!(
                    "{}, or give this host a --node-rank of its own if node 0 of the job is there",
                    error.message
                ),
                ..error
            },
            false => error,
        }
    }

    /// Where this host's ranks meet the others.
    pub fn of(&self, server: Option<&Server>) -> Vec<SocketAddr> {
        // The port that was taken, if any would do.
        server.map_or_else(|| self.meeting.clone(), |server| vec![server.addr()])
    }
}

fn with_flag(flag: &str, error: comm::CommError) -> CliError {
    let error = CliError::from(error);
    CliError { message: format!("{flag}: {}", error.message), ..error }
}

fn meeting(at: &Rendezvous, hosts: &Hosts) -> Result<Vec<SocketAddr>, CliError> {
    let &Hosts { nodes, bind, is_spread, .. } = hosts;
    let mistake = |what: String| CliError::mistake(format!("{}{what}", at.shown));
    let found = look_up(at).map_err(|error| match at.may_be_late {
        // Node 0 may have no machine yet: worth another start.
        true => CliError::peer(format!(
            "{}: {error}, after {} s; see whether node 0's pod and the headless service that names \
             it are there",
            at.shown,
            NAMED.as_secs()
        )),
        false => {
            mistake(format!(": {error}; give the host and port of node 0, such as 10.0.0.7:4000"))
        }
    })?;
    if found.is_empty() {
        return Err(mistake(" names no address".into()));
    }
    if nodes == 1 {
        return Ok(found);
    }
    if found.iter().any(|addr| addr.port() == 0 || addr.ip().is_unspecified()) {
        return Err(mistake(
            ": the other hosts cannot know which; name the address and a port of node 0, such as \
             10.0.0.7:4000"
                .into(),
        ));
    }
    let is_here = |addr: &SocketAddr| addr.ip().is_loopback();
    let others_come = |bind: &IpAddr| match bind.is_unspecified() {
        true => is_spread,
        false => !bind.is_loopback(),
    };
    if let (true, Some(bind)) = (found.iter().all(is_here), bind.filter(others_come)) {
        // As where /etc/hosts gives a host's own name 127.0.1.1.
        let (found, port) = (found[0].ip(), found[0].port());
        return Err(mistake(format!(
            ": that is {found} here, which only this host reaches, but --bind {bind} is for ranks \
             of others; name node 0 by an address that all reach{}",
            match bind.is_unspecified() {
                true => ", with --rendezvous on every host".to_owned(),
                false => format!(", such as {bind}:{port} if it is this host"),
            }
        )));
    }
    if !found.iter().any(is_here) && bind.is_none_or(|bind| bind.is_loopback()) {
        return Err(mistake(
            " is for several hosts, but the ranks would listen where only this one reaches them; \
             give --bind an address of this host, or 0.0.0.0 for all of its interfaces"
                .into(),
        ));
    }
    Ok(found)
}

/// How long a name that may be late is looked up again.
const NAMED: Duration = Duration::from_secs(60);

fn look_up(at: &Rendezvous) -> std::io::Result<Vec<SocketAddr>> {
    let most = if at.may_be_late { NAMED } else { Duration::ZERO };
    let until = Instant::now() + most;
    let most_s = most.as_secs();
    let words = || format!("looking for an address of {}, for {most_s} s at most", at.text);
    let _slow = at.may_be_late.then(|| tell_if_slow(words()));
    loop {
        match at.text.to_socket_addrs() {
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(500)),
            found => return Ok(found?.collect()),
        }
    }
}

/// How long node 0 is looked for in silence to be told that this host will not bring its ranks; or
/// how long it stays itself where a meeting has failed.
const AT_ONCE: Duration = Duration::from_secs(2);
/// Who is there has been told by then.
const TOLD: Duration = Duration::from_millis(200);
/// And then: hosts are not started at the same moment.
const LATE: Duration = Duration::from_secs(8);

/// How far the ranks of this host came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// None was started.
    Never,
    /// Perhaps; if node 0 is not found at once, it may be gone by now. The ranks look for it
    /// themselves since then, where that is known.
    Tried(Option<Instant>),
    /// They have met those of the other hosts, which know of their end, and may have begun anew.
    Met,
}

/// Where the meeting has failed, node 0 says so and stays for a moment, since ranks of other hosts
/// may be late, and nobody else can tell them why.
pub fn stay_for_the_late<T>(server: Option<&Server>, ended: &mut Result<T, CliError>) {
    if let (Some(server), Err(error)) = (server, ended)
        && server.has_refused()
    {
        error.tell();
        if !server.linger(TOLD) {
            let most_s = AT_ONCE.as_secs();
            complain(&format!("node 0 stays for {most_s} s at most, to tell hosts that are late"));
            server.linger(AT_ONCE);
        }
    }
}

/// A host for whose ranks the others wait, until they have met.
#[derive(Debug, Clone)]
pub struct Absence {
    job: String,
    node: usize,
    nodes: usize,
    /// Of node 0; empty where nobody waits.
    addrs: Vec<SocketAddr>,
    /// How this host proves itself, or what it lacks for that. By the command or the environment
    /// until the config has been read, which may say otherwise.
    pub proof: Result<Security, Lack>,
    /// How long the others wait for this host: after that nobody is there to be told.
    waits: Duration,
}

/// How a host proves itself, of what came of its secret and its TLS.
fn proof(
    secret: Result<JobSecret, CliError>,
    tls: Result<JobTls, CliError>,
) -> Result<Security, Lack> {
    match (secret, tls) {
        (Err(_), _) => Err(Lack::Secret),
        (_, Err(_)) => Err(Lack::Tls),
        (Ok(secret), Ok(tls)) => Ok(tls.security(&secret)),
    }
}

impl Absence {
    /// `starts` says whether this host is going to bring its ranks, `args` what the command says of
    /// the secret and TLS.
    pub fn of(hosts: &Hosts, args: &HostArgs, starts: bool) -> Absence {
        let (node, nodes, at) = (hosts.node, hosts.nodes, hosts.rendezvous.as_ref());
        let file = args.secret_file.as_deref();
        let secret = secret::of_job(file.map(|path| ("--secret-file", path)), nodes);
        let files = args.tls.as_deref().map(|dir| ("--tls", tls::of_dir(dir)));
        let tls = tls::of_job(files, nodes);
        let is_awaited = nodes > 1 && starts;
        let found = at.filter(|_| is_awaited).and_then(|at| at.text.to_socket_addrs().ok());
        // Any port, or any address, is one that nobody knows.
        let is_known = |addr: &SocketAddr| addr.port() > 0 && !addr.ip().is_unspecified();
        let addrs = found.into_iter().flatten().filter(is_known).collect();
        let (proof, waits) = (proof(secret, tls), AT_ONCE + LATE);
        Absence { job: job(hosts), node, nodes, addrs, proof, waits }
    }

    /// The number of this host.
    pub fn node(&self) -> usize {
        self.node
    }

    /// As one of so many hosts that start.
    pub fn at(&self, node: usize, nodes: usize) -> Absence {
        Absence { node, nodes, ..self.clone() }
    }

    /// The others wait for so long.
    pub fn is_waited_for(&mut self, timeout_ms: u64) {
        self.waits = Duration::from_millis(timeout_ms);
    }

    /// A config with mistakes says this all the same.
    pub fn heed(&mut self, said: Said) {
        let Said { secret_file, tls, timeout_ms } = said;
        if let Some(timeout_ms) = timeout_ms {
            self.is_waited_for(timeout_ms);
            // That may be the mistake.
            self.waits = self.waits.max(AT_ONCE);
        }
        let (file, files) = match (secret_file, tls) {
            (Written::Wrong, _) => return self.proof = Err(Lack::Secret),
            (_, Written::Wrong) => return self.proof = Err(Lack::Tls),
            (file, files) => (file.value(), files.value()),
        };
        let secret = secret::of_job(file.as_deref().map(|path| (SECRET, path)), self.nodes);
        self.proof = proof(secret, tls::of_job(files.map(|files| (TLS, files)), self.nodes));
    }

    /// Tells node 0, which listens at `addrs`, how a rank of this host ended that has met the
    /// others as `group`.
    pub fn report_end(&self, addrs: &[SocketAddr], met: (&str, usize), reason: &str) {
        if let Ok(host) = self.absent(reason) {
            // Where it is not heard, the end of the rank's connection tells of it.
            let _ = rendezvous::report_end(addrs, host, met, AT_ONCE);
        }
    }

    /// Tells the other hosts that this one will not bring its ranks, so that nobody waits for them.
    pub fn report(&self, reason: &str, start: Start) {
        let Absence { node, nodes, addrs, .. } = self;
        if !self.is_awaited(start) {
            return;
        }
        if *node > 0 {
            return self.tell_node_0(reason, start);
        }
        // Once its ranks were started, the meeting point says what became of them.
        if start == Start::Never {
            let (at, most) = (list(addrs), self.waits.min(AT_ONCE + LATE));
            let _slow = tell_if_slow(format!(
                "node 0 will not start; telling the other hosts at {at} for {} s at most, so that \
                 they need not wait",
                most.as_secs_f64()
            ));
            // Where it cannot listen nobody is told; if the port is taken, that may be node 0.
            let _ = match self.absent(reason) {
                Ok(absent) => rendezvous::serve_absence(&addrs[..], absent, *nodes, most).map(drop),
                Err(lack) => rendezvous::serve_lack(&addrs[..], lack, most),
            };
        }
    }

    fn is_awaited(&self, start: Start) -> bool {
        !self.addrs.is_empty() && start != Start::Met
    }

    /// The message of an absent host, or the lack for which it cannot be proved.
    fn absent<'a>(&'a self, reason: &'a str) -> Result<Absent<'a>, Lack> {
        let Security { secret, tls } = self.proof.as_ref().map_err(|&lack| lack)?;
        let (job, secret, tls) = (&self.job[..], *secret, tls.as_ref());
        Ok(Absent { job, secret, tls, node: self.node, reason })
    }

    fn tell_node_0(&self, reason: &str, start: Start) {
        let Absence { node, addrs, .. } = self;
        let tell = |patience| match self.absent(reason) {
            Ok(absent) => rendezvous::report_absent(&addrs[..], absent, patience),
            Err(lack) => rendezvous::report_lack(&addrs[..], *node, lack, patience),
        };
        // The ranks have found nobody either for as long.
        let looked = match start {
            Start::Tried(Some(since)) => since.elapsed(),
            _ => Duration::ZERO,
        };
        let at_once = AT_ONCE.min(self.waits.saturating_sub(looked));
        let late = self.waits.min(AT_ONCE + LATE).saturating_sub(at_once);
        if tell(at_once) == Reported::NotFound && start == Start::Never && !late.is_zero() {
            let (at, most_s) = (list(addrs), late.as_secs_f64());
            complain(&format!(
                "node {node} will not start; looking for node 0 at {at} for {most_s} s at most, so \
                 that it need not wait"
            ));
            tell(late);
        }
    }

    /// As [`Absence::report_error`] before any start, of a host that cannot prove itself.
    pub fn report_lack(&mut self, lack: Lack, error: CliError) -> CliError {
        self.proof = Err(lack);
        self.report_error(error, Start::Never)
    }

    /// As [`Absence::report`], of an error, which the user is told before: others may be looked for
    /// or waited for meanwhile.
    pub fn report_error(&self, mut error: CliError, start: Start) -> CliError {
        if self.is_awaited(start) {
            error.tell();
        }
        // The rest of what is said of failed ranks is for whoever sits here.
        let reason = match error.exit {
            Exit::Mistake => error.message.trim(),
            _ => error.message.lines().next().unwrap_or_default(),
        };
        self.report(reason, start);
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a host that does not start, where nobody else is.
    fn absence(node: usize, proof: Result<Security, Lack>, timeout_ms: u64) -> Absence {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (job, addrs, waits) = ("job".to_owned(), vec![free], Duration::MAX);
        let mut absence = Absence { job, node, nodes: 2, addrs, proof, waits };
        absence.is_waited_for(timeout_ms);
        absence
    }

    #[test]
    fn nobody_is_looked_for_again_whom_the_ranks_have_not_found() {
        let security = Security { secret: comm::Secret::none(), tls: None };
        let absence = absence(1, Ok(security), 4000);
        let begun = Instant::now();
        let Some(since) = begun.checked_sub(Duration::from_secs(4)) else { return };
        absence.report("a reason", Start::Tried(Some(since)));
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    }

    #[test]
    fn node_0_stays_no_longer_than_the_others_wait() {
        let absence = absence(0, Err(Lack::Tls), 1000);
        let begun = Instant::now();
        absence.report("a reason", Start::Never);
        assert!(begun.elapsed() >= Duration::from_secs(1));
        assert!(begun.elapsed() < AT_ONCE + LATE, "{:?}", begun.elapsed());
    }
}
