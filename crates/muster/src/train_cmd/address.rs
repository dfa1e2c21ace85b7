//! Where ranks meet and listen, as the command says it: `--rendezvous` and `--bind`.
//!
//! A name may stand for several addresses, and two hosts may know the meeting point by different
//! names: node 0 listens at every address that it has, the others try each in turn.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use comm::rendezvous::{self, Server};

use crate::cli::HostArgs;
use crate::error::{CliError, Exit};
use crate::output::complain;

/// The job of several hosts, to each other.
pub const JOB: &str = "hosts";

/// Addresses of one start.
pub struct Addresses {
    /// What `--rendezvous` says; none on a host that is alone.
    text: Option<String>,
    meeting: Vec<SocketAddr>,
    bind: Option<IpAddr>,
}

impl Addresses {
    /// What the command says, if every host can reach it.
    ///
    /// # Errors
    /// A name without an address, or addresses that other hosts cannot use.
    pub fn new(args: &HostArgs, nodes: usize) -> Result<Addresses, CliError> {
        let (text, bind) = (args.rendezvous.clone(), args.bind);
        let meeting = match &text {
            Some(text) => meeting(text, bind, nodes)?,
            None => vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
        };
        Ok(Addresses { text, meeting, bind })
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

    /// The meeting point, on node 0.
    ///
    /// # Errors
    /// As [`Addresses::try_out`].
    pub fn serve(
        &self,
        job: &str,
        node: usize,
        world: usize,
        timeout_ms: u64,
    ) -> Result<Option<Server>, CliError> {
        if node > 0 {
            return Ok(None);
        }
        let server = Server::bind(&self.meeting[..], job, world, timeout_ms);
        server.map(Some).map_err(|error| self.with_flag(error))
    }

    fn with_flag(&self, error: comm::CommError) -> CliError {
        let Some(text) = &self.text else { return error.into() };
        let taken = std::io::ErrorKind::AddrInUse;
        let is_taken =
            matches!(&error, comm::CommError::Bind { source, .. } if source.kind() == taken);
        let error = with_flag(&format!("--rendezvous {text}"), error);
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

fn meeting(text: &str, bind: Option<IpAddr>, nodes: usize) -> Result<Vec<SocketAddr>, CliError> {
    let mistake = |what: String| CliError::mistake(format!("--rendezvous {text}{what}"));
    let found: Vec<SocketAddr> = text
        .to_socket_addrs()
        .map_err(|error| {
            mistake(format!(": {error}; give the host and port of node 0, such as 10.0.0.7:4000"))
        })?
        .collect();
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
    let others_come = |bind: &IpAddr| !bind.is_loopback() && !bind.is_unspecified();
    if let (true, Some(bind)) = (found.iter().all(is_here), bind.filter(others_come)) {
        // As where /etc/hosts gives a host's own name 127.0.1.1.
        let (found, port) = (found[0].ip(), found[0].port());
        return Err(mistake(format!(
            ": that is {found} here, which only this host reaches, but --bind {bind} is for ranks \
             of others; name node 0 by an address that all reach, such as {bind}:{port} if it is \
             this host"
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

/// Addresses in words.
pub fn list(addrs: &[SocketAddr]) -> String {
    let texts: Vec<String> = addrs.iter().map(ToString::to_string).collect();
    texts.join(" or ")
}

/// How long node 0 is looked for in silence to be told that this host will not bring its ranks.
const AT_ONCE: Duration = Duration::from_secs(2);
/// And then: hosts are not started at the same moment.
const LATE: Duration = Duration::from_secs(8);

/// Whether this host's ranks were started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Never,
    /// Perhaps; if node 0 is not found at once, it may be gone by now.
    Tried,
}

/// A host for whose ranks node 0 waits, until they have met the others.
#[derive(Debug, Clone)]
pub struct Absence {
    node: usize,
    /// Of node 0; empty where it waits for nobody.
    addrs: Vec<SocketAddr>,
}

impl Absence {
    /// `starts` says whether this host is going to bring its ranks.
    pub fn of(args: &HostArgs, starts: bool) -> Absence {
        let (node, text) = (args.node_rank.unwrap_or(0), args.rendezvous.as_deref());
        let is_awaited = node > 0 && starts;
        let found = text.filter(|_| is_awaited).and_then(|text| text.to_socket_addrs().ok());
        Absence { node, addrs: found.into_iter().flatten().collect() }
    }

    /// Tells node 0 that this host will not bring its ranks, so that nobody waits for them.
    pub fn report(&self, reason: &str, start: Start) {
        let Absence { node, addrs } = self;
        if addrs.is_empty() {
            return;
        }
        let tell = |patience| rendezvous::report_absent(&addrs[..], JOB, *node, reason, patience);
        if !tell(AT_ONCE) && start == Start::Never {
            let (at, most_s) = (list(addrs), LATE.as_secs());
            complain(&format!(
                "node {node} will not start; looking for node 0 at {at} for {most_s} s at most, so \
                 that it need not wait"
            ));
            tell(LATE);
        }
    }

    /// As [`Absence::report`], of an error.
    pub fn report_error(&self, error: &CliError, start: Start) {
        // The rest of what is said of failed ranks is for whoever sits here.
        let reason = match error.exit {
            Exit::Mistake => error.message.trim(),
            _ => error.message.lines().next().unwrap_or_default(),
        };
        self.report(reason, start);
    }
}
