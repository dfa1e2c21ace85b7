//! Where this host stands among the hosts of a job, and what it says of that.

use std::net::SocketAddr;
use std::ops::Range;

use super::address;
use crate::cli::HostArgs;
use crate::error::CliError;

/// Where this host stands.
pub struct Place {
    pub nodes: usize,
    pub node: usize,
    /// Ranks that this host starts.
    pub ranks: Range<usize>,
}

impl Place {
    /// Of a job of `world` ranks, on as many hosts as the command says.
    ///
    /// # Errors
    /// A host that is none of them; ranks that do not divide; memory that other hosts do not share.
    pub fn new(hosts: &HostArgs, world: usize, is_shm: bool) -> Result<Place, CliError> {
        let (nodes, node) = (hosts.nodes.unwrap_or(1), hosts.node_rank.unwrap_or(0));
        let refuse = |what: String| Err(CliError::mistake(what));
        if nodes == 0 || node >= nodes {
            return refuse(format!(
                "--node-rank {node} is not one of {nodes} nodes; nodes count from 0"
            ));
        }
        if !world.is_multiple_of(nodes) {
            return refuse(format!(
                "{world} ranks do not divide over {nodes} nodes; use --ranks {}",
                world.next_multiple_of(nodes)
            ));
        }
        if nodes > 1 && is_shm {
            return refuse("shared memory does not reach other hosts; use --backend tcp".into());
        }
        if hosts.bind.is_some() && is_shm {
            return refuse(
                "--bind: over shared memory no rank listens; leave it out, or use --backend tcp"
                    .into(),
            );
        }
        let share = world / nodes;
        Ok(Place { nodes, node, ranks: node * share..(node + 1) * share })
    }

    /// Where there is nothing else to see: host 0 `shows` it.
    pub fn says_it_joins(&self, rendezvous: &[SocketAddr], world: usize, shows: &str) {
        let Place { nodes, node, ranks } = self;
        if *node > 0 {
            crate::output::tell(&format!(
                "node {node} of {nodes}: ranks {} to {} of {} meet the others at {}; node 0 \
                 {shows}",
                ranks.start,
                ranks.end - 1,
                world,
                address::list(rendezvous),
            ));
        }
    }

    /// What to say where the others are late; on one host there are none.
    pub fn waits(&self, rendezvous: &[SocketAddr], timeout_ms: u64) -> Option<String> {
        let at = address::list(rendezvous);
        let most_s = timeout_ms.div_ceil(1000);
        let what = match self.node {
            0 => format!("waiting at {at} for the other hosts"),
            _ => format!("waiting for node 0 at {at} and the other hosts"),
        };
        (self.nodes > 1).then(|| format!("node {}: {what}, for {most_s} s at most", self.node))
    }

    pub fn says_it_is_done(&self) {
        if self.node > 0 {
            crate::output::tell(&format!("node {}: its ranks are done", self.node));
        }
    }
}
