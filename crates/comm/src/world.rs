//! All ranks of a job, as one of them sees them: its channels, its groups, and giving up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use device::Device;
use nccl_rs::{JobId, Vendor};

use crate::control::{Channel, Control};
use crate::digest::Digest;
use crate::hosts::Connected;
use crate::job::{Job, Members, Settings};
use crate::nccl::{self, Choice, Facts, Member, Way};
use crate::{
    Backend, BackendWord, CommError, Counters, Group, GroupOptions, Operation, Result, Revocation,
    Route, SumOrder, Timings, TransportRefusal, tcp,
};

/// A rank's place among all ranks of a job; clones are handles to the same. The last handle to it,
/// to one of its channels or to one of its groups takes the rank out of the job in good order.
#[derive(Clone)]
pub struct World {
    inner: Arc<Inner>,
}

struct Inner {
    plane: Plane,
    channels: Channels,
    /// Groups of all partitions so far, those without this rank among them.
    groups: AtomicU64,
    partitions: AtomicU64,
}

enum Plane {
    #[cfg(target_os = "linux")]
    Shm(Arc<crate::shm::Host>),
    Tcp(Arc<tcp::Net>),
    #[cfg(target_os = "linux")]
    Hosts(Box<crate::hosts::Plane>),
}

type Channels = [Arc<dyn Control>; Channel::ALL.len()];

/// All ranks over tcp, and their channels.
fn connect_over_tcp(
    (listener, peers, job): (std::net::TcpListener, Vec<std::net::SocketAddr>, String),
    rank: usize,
    world: usize,
    settings: Settings,
) -> Result<(Arc<tcp::Net>, Channels)> {
    let [training, saving] = Channel::ALL;
    let (what, got, expected) = ("peer addresses", peers.len(), world);
    if got != expected {
        return Err(CommError::PerRank { what, got, expected });
    }
    let net = Arc::new(tcp::Net::start(listener, peers, &job, rank, settings)?);
    let channels = [Arc::new(net.channel(training)?), Arc::new(net.channel(saving)?)];
    net.wait_for_everyone()?;
    Ok((net, channels.map(|channel| channel as Arc<dyn Control>)))
}

impl World {
    pub(crate) fn connect(
        backend: Backend,
        rank: usize,
        world: usize,
        settings: Settings,
    ) -> Result<World> {
        let [training, saving] = Channel::ALL;
        let (plane, channels): (_, Channels) = match backend {
            #[cfg(target_os = "linux")]
            Backend::Shm { memory } => {
                let host = Arc::new(crate::shm::Host::new(memory, rank, world, settings)?);
                let channels = [Arc::new(host.channel(training)?), Arc::new(host.channel(saving)?)];
                (Plane::Shm(host), channels.map(|channel| channel as Arc<dyn Control>))
            }
            Backend::Tcp { listener, peers, job } => {
                let own = (listener, peers, job);
                let (net, channels) = connect_over_tcp(own, rank, world, settings)?;
                (Plane::Tcp(net), channels)
            }
            #[cfg(target_os = "linux")]
            Backend::Hosts { listener, peers, job, memory, host_of } => {
                let own = (listener, peers, job);
                let (net, channels) = connect_over_tcp(own, rank, world, settings)?;
                let plane = crate::hosts::Plane::meet(net, memory, host_of)?;
                (Plane::Hosts(Box::new(plane)), channels)
            }
        };
        let (groups, partitions) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(World { inner: Arc::new(Inner { plane, channels, groups, partitions }) })
    }

    fn job(&self) -> &Job {
        match &self.inner.plane {
            #[cfg(target_os = "linux")]
            Plane::Shm(host) => host.job(),
            Plane::Tcp(net) => net.job(),
            #[cfg(target_os = "linux")]
            Plane::Hosts(plane) => plane.job(),
        }
    }

    pub fn rank(&self) -> usize {
        self.job().rank
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.job().world
    }

    /// Cores that the ranks of this host have together.
    pub fn cores(&self) -> usize {
        self.job().settings.cores
    }

    /// `shm`, `tcp`, or `shm+tcp`: shared memory on each of several hosts.
    pub fn backend(&self) -> &'static str {
        match &self.inner.plane {
            #[cfg(target_os = "linux")]
            Plane::Shm(_) => BackendWord::Shm.word(),
            Plane::Tcp(_) => BackendWord::Tcp.word(),
            #[cfg(target_os = "linux")]
            Plane::Hosts(_) => "shm+tcp",
        }
    }

    /// This rank's end of a channel.
    pub fn control(&self, channel: Channel) -> Arc<dyn Control> {
        Arc::clone(&self.inner.channels[channel as usize])
    }

    /// Bytes that this rank has moved so far, on all channels and in all groups.
    pub fn counters(&self) -> Counters {
        self.job().counters.snapshot()
    }

    /// Time of the operations of this rank so far, on all channels and in all groups. Over a
    /// vendor's library it is the meeting before each, not what the device did.
    pub fn timings(&self) -> Timings {
        self.job().timings.snapshot()
    }

    /// Whether, and why, the job is given up. It is known here within 100 ms of any rank's doing so
    /// or being lost, whatever this rank does meanwhile.
    pub fn revocation(&self) -> Revocation {
        self.job().revocation().clone()
    }

    /// Gives the job up, from any thread: whatever any rank waits for fails within 100 ms, later
    /// operations at once, with [`CommError::Revoked`]. The first reason stays.
    pub fn revoke(&self, why: &str) {
        self.job().revocation().revoke(why);
        #[cfg(target_os = "linux")]
        match &self.inner.plane {
            Plane::Shm(host) => host.publish(),
            Plane::Hosts(plane) => plane.publish(),
            Plane::Tcp(_) => {}
        }
    }

    /// The group of all ranks, for memory of `device`. Collective over all ranks, as all that makes
    /// groups.
    ///
    /// # Errors
    /// As [`World::split`].
    pub fn group(&self, device: &Device) -> Result<Group> {
        self.split(device, &[(0..self.size()).collect()])
    }

    /// This rank's group of a partition of all ranks, for memory of `device`. Collective over all
    /// ranks; each passes the whole partition.
    ///
    /// # Errors
    /// A rank that is in no part or in several; ranks that pass different partitions; ranks missing
    /// after the timeout. The job is given up then.
    pub fn split(&self, device: &Device, partition: &[Vec<usize>]) -> Result<Group> {
        self.split_with(device, partition, GroupOptions::default())
    }

    /// As [`World::split`], with what moves the memory and makes the sums.
    ///
    /// # Errors
    /// As [`World::split`]; a transport that the ranks of the group cannot use together
    /// ([`CommError::Transport`], the same on all of them); what a vendor's library says.
    pub fn split_with(
        &self,
        device: &Device,
        partition: &[Vec<usize>],
        options: GroupOptions,
    ) -> Result<Group> {
        let number = self.inner.partitions.fetch_add(1, Ordering::Relaxed) + 1;
        let groups = partition.len() as u64;
        let first = self.inner.groups.fetch_add(groups, Ordering::Relaxed);
        let revoke = |error: &CommError| {
            self.revoke(&format!("rank {}: split: {error}", self.rank()));
        };
        let facts = Facts::of(device, options);
        let (part, members, choice) = self
            .members(partition)
            .and_then(|(part, members)| {
                let all = self.agree(number, partition, &facts)?;
                let facts = members.ranks.iter().map(|&rank| (rank, all[rank].clone()));
                let choice = nccl::choose(&facts.collect::<Vec<_>>())?;
                Ok((part, members, choice))
            })
            .inspect_err(revoke)?;
        let region = first + part;
        let connected = self.connected(region, members, choice.way)?;
        self.make(connected, device, choice, options).inspect_err(revoke)
    }

    /// Returns the transport that connects the members of a group.
    fn connected(&self, region: u64, members: Members, way: Way) -> Result<Connected> {
        let flat = |transport, name| {
            let (hosts, why) = (None, String::new());
            Connected { transport, name, hosts, why }
        };
        Ok(match &self.inner.plane {
            #[cfg(target_os = "linux")]
            Plane::Shm(host) => {
                flat(Arc::new(host.group(region, members)?), BackendWord::Shm.word())
            }
            Plane::Tcp(net) => flat(Arc::new(net.group(region, members)?), BackendWord::Tcp.word()),
            // Memory that a vendor's library moves takes a way of its own.
            #[cfg(target_os = "linux")]
            Plane::Hosts(plane) => plane.group(region, members, !way.is_library())?,
        })
    }

    /// A group as it was chosen.
    fn make(
        &self,
        connected: Connected,
        device: &Device,
        choice: Choice,
        options: GroupOptions,
    ) -> Result<Group> {
        let Choice { way, reason, is_alike } = choice;
        let Connected { transport, name, hosts, why } = connected;
        let reasons = [reason, why];
        let reasons = reasons.iter().filter(|reason| !reason.is_empty());
        let reason = reasons.map(String::as_str).collect::<Vec<_>>().join("; ");
        let named = |transport, library| Route {
            transport,
            hosts: hosts.map(|hosts| (hosts.count, hosts.each)),
            library,
            sum: if way.is_library() { options.sum } else { SumOrder::Ordered },
            reason,
        };
        let vendor = match way {
            Way::Host => {
                let route = named(name, None);
                return Group::new(transport, device, None, (route, is_alike));
            }
            Way::Staged => {
                let staged = match name {
                    "shm+tcp" => "staged-shm+tcp",
                    name if name == BackendWord::Shm.word() => "staged-shm",
                    _ => "staged-tcp",
                };
                return Group::new(transport, device, None, (named(staged, None), is_alike));
            }
            Way::Library(vendor) => vendor,
        };
        // All members have one, or it was not chosen.
        let library = nccl::library(vendor).map_err(|reason| {
            let ranks_of = vec![self.rank()];
            TransportRefusal::Library { ranks_of, library: vendor, reason }
        })?;
        let library_name = if vendor == Vendor::Nvidia { "nccl" } else { "rccl" };
        let route = named(library_name, Some(format!("{vendor} {}", library.version())));
        let job = self.job_id();
        let member = Member::join(Arc::clone(&transport), device, &library, job, options)?;
        Group::new(transport, device, Some(member), (route, is_alike))
    }

    /// The name that libraries know the job by.
    fn job_id(&self) -> JobId {
        let identity = match &self.inner.plane {
            #[cfg(target_os = "linux")]
            Plane::Shm(host) => host.identity(),
            Plane::Tcp(net) => net.identity(),
            #[cfg(target_os = "linux")]
            Plane::Hosts(plane) => plane.net().identity(),
        };
        let mut id = [0; 16];
        id[..8].copy_from_slice(&identity.to_le_bytes());
        id[8..].copy_from_slice(&(self.size() as u64).to_le_bytes());
        JobId(id)
    }

    /// This rank's part of a partition.
    fn members(&self, partition: &[Vec<usize>]) -> Result<(u64, Members)> {
        let (rank, world) = (self.rank(), self.size());
        let mut seen = vec![0; world];
        for &member in partition.iter().flatten() {
            let count = seen.get_mut(member);
            *count.ok_or(CommError::NoSuchRank { rank: member, world })? += 1;
        }
        let wrong = |problem| CommError::Partition { problem, world };
        if let Some(odd) = seen.iter().position(|&count| count != 1) {
            let times = if seen[odd] == 0 { "never" } else { "more than once" };
            return Err(wrong(format!("name rank {odd} {times}")));
        }
        let mut parts = partition.iter().zip(0..);
        let mine = parts.find_map(|(ranks, part)| {
            let place = ranks.iter().position(|&member| member == rank)?;
            Some((part, Members { ranks: ranks.as_slice().into(), place }))
        });
        mine.ok_or_else(|| wrong(format!("do not name rank {rank}")))
    }

    /// Proves that every rank passes the same partition; returns what each says of its device.
    fn agree(&self, number: u64, partition: &[Vec<usize>], facts: &Facts) -> Result<Vec<Facts>> {
        let mut digest = Digest::default();
        for ranks in partition {
            digest.add(ranks.len());
            ranks.iter().for_each(|&rank| digest.add(rank));
        }
        let mine = [number, digest.value()].map(u64::to_le_bytes).concat();
        let mut message = mine.clone();
        message.extend(postcard::to_stdvec(facts).unwrap_or_default());
        let all = self.control(Channel::Training).all_gather_bytes(&message)?;
        let read = |(rank, theirs): (usize, &Vec<u8>)| {
            let (operation, sequence) = (Operation::Split, number);
            let other = |theirs: &str| {
                let theirs = theirs.to_owned();
                CommError::Mismatch { operation, sequence, rank, theirs }
            };
            let rest = theirs.strip_prefix(&mine[..]).ok_or_else(|| other("another partition"))?;
            postcard::from_bytes(rest).map_err(|_| other("another version of the program"))
        };
        all.iter().enumerate().map(read).collect()
    }
}
