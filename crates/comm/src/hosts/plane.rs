//! A rank of a job of several hosts, which shares memory with the others of its host.

use std::sync::{Arc, Mutex};

use super::Connected;
use super::shape::{self, Shape};
use super::transport::ByHosts;
use crate::control::Channel;
use crate::job::{Job, Members};
use crate::meter::Meter;
use crate::{BackendWord, CommError, Operation, Result, shm, tcp};

pub(crate) struct Plane {
    /// Held until the end: whoever left it would be gone.
    _here: shm::Endpoint,
    host: Arc<shm::Host>,
    net: Arc<tcp::Net>,
    /// By rank.
    host_of: Arc<[usize]>,
}

impl Plane {
    /// Meets the ranks of this host in `memory`, when all ranks have met over `net`.
    ///
    /// # Errors
    /// Another number of hosts than ranks; memory of other ranks; a rank of this host that is
    /// missing after the timeout.
    pub(crate) fn meet(
        net: Arc<tcp::Net>,
        memory: shm::SharedMemory,
        host_of: Arc<[usize]>,
    ) -> Result<Plane> {
        let (rank, expected) = (net.job().rank, net.job().world);
        let (what, got) = ("hosts of ranks", host_of.len());
        if got != expected {
            return Err(CommError::PerRank { what, got, expected });
        }
        let ranks: Arc<[usize]> =
            (0..expected).filter(|&other| host_of[other] == host_of[rank]).collect();
        // Others wait for this rank in the memory that it cannot have.
        let everyone = Members::all(rank, expected);
        let job = Arc::clone(net.job());
        let host = shm::Host::within(memory, ranks, Arc::clone(&job));
        let host = Arc::new(job.settle(&everyone, (Operation::Join, 0), host)?);
        let here = host.channel(Channel::Training)?;
        Ok(Plane { _here: here, host, net, host_of })
    }

    pub(crate) fn job(&self) -> &Job {
        self.net.job()
    }

    pub(crate) fn net(&self) -> &tcp::Net {
        &self.net
    }

    /// Tells the others of this host, if this rank has given the job up.
    pub(crate) fn publish(&self) {
        self.host.publish();
    }

    /// This rank's end of group number `region`. A group that `may_go_by_hosts` does where its
    /// members lie so.
    ///
    /// # Errors
    /// Members that are missing after the timeout; the job is given up meanwhile.
    pub(crate) fn group(
        &self,
        region: u64,
        members: Members,
        may_go_by_hosts: bool,
    ) -> Result<Connected> {
        let from_bytes = self.job().settings.by_hosts_bytes;
        let (shape, why) = shape::shape(&members.ranks, &self.host_of, from_bytes);
        Ok(match &shape {
            Shape::OneHost => {
                let transport = Arc::new(self.host.group(region, members)?);
                Connected { transport, name: BackendWord::Shm.word(), hosts: None, why }
            }
            &Shape::ByHosts(hosts) if may_go_by_hosts => {
                let (host, place) = hosts.of(members.place);
                let first = hosts.place(host, 0);
                let ranks = members.ranks[first..first + hosts.each].into();
                let all = self.net.group(region, members)?;
                let here = self.host.group(region, Members { ranks, place })?;
                let meter = Meter::new(format!("group {region} by hosts"), "shm+tcp");
                let tray = Mutex::default();
                let transport = Arc::new(ByHosts { hosts, all, here, meter, tray });
                Connected { transport, name: "shm+tcp", hosts: Some(hosts), why }
            }
            Shape::ByHosts(_) | Shape::Flat => {
                let why = match shape {
                    Shape::Flat => why,
                    _ => "the library has ways of its own between hosts".into(),
                };
                let transport = Arc::new(self.net.group(region, members)?);
                Connected { transport, name: BackendWord::Tcp.word(), hosts: None, why }
            }
        })
    }
}
