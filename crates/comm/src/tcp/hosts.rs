//! Operations by hosts as traffic: every member first gets an empty frame, which says that the
//! sender has come to the same operation and, on this host, that its window is ready; members of
//! this one's column then get what there is for their hosts. The first frame goes at once, whoever
//! else is late: so each member sees for itself who is. It goes to members of this host first: if
//! they have it, nobody waits for them because of this one.

use std::cell::Cell;
use std::ops::Range;
use std::time::Duration;

use device::{DType, Device, Tensor};

use super::endpoint::Endpoint;
use super::host_sums::HostSums;
use super::moves::{Direct, Held};
use super::ring::Ring;
use super::route::{self, Route};
use super::traffic::{Give, Message, Peer, Take, Traffic, Way};
use crate::hosts::{GatherByHosts, Hosts, ReduceByHosts, within};
use crate::{Result, Window};

/// The traffic of a column as one of the whole group.
pub(super) struct Column<T> {
    hosts: Hosts,
    place: usize,
    inner: T,
    /// Columns of the members of this host that have had their first frame, as bits.
    told: Cell<u64>,
}

/// Of more columns some share one.
fn bit(column: usize) -> u64 {
    1 << (column % 64)
}

impl<T: Peer> Column<T> {
    fn new(hosts: Hosts, place: usize, inner: T) -> Column<T> {
        Column { hosts, place, inner, told: Cell::new(0) }
    }

    fn is_here(&self, peer: usize) -> bool {
        self.hosts.of(peer).0 == self.hosts.of(self.place).0
    }

    /// Whether the first frame for `peer` may go.
    fn may_be_told(&self, peer: usize) -> bool {
        let (_, own) = self.hosts.of(self.place);
        let mut others = (0..self.hosts.each).filter(|&column| column != own);
        self.is_here(peer) || others.all(|other| self.told.get() & bit(other) != 0)
    }

    /// The host of a peer of this column.
    fn host(&self, peer: usize) -> Option<usize> {
        let ((_, own), (host, column)) = (self.hosts.of(self.place), self.hosts.of(peer));
        (own == column).then_some(host)
    }

    /// The message as the column knows it, if it is not the first.
    fn inside(&self, message: Message) -> Option<Message> {
        Some(Message { peer: self.host(message.peer)?, index: message.index.checked_sub(1)? })
    }
}

impl<T: Peer> Traffic for Column<T> {
    fn messages(&self, way: Way, peer: usize) -> usize {
        1 + self.host(peer).map_or(0, |host| self.inner.messages(way, host))
    }

    fn bytes(&self, way: Way, message: Message) -> Option<usize> {
        self.inside(message).map_or(Some(0), |message| self.inner.bytes(way, message))
    }

    fn frame_bytes(&self, way: Way, peer: usize) -> usize {
        self.host(peer).map_or(0, |host| self.inner.frame_bytes(way, host))
    }

    fn may_begin(&self, way: Way, message: Message, start: usize) -> bool {
        match self.inside(message) {
            Some(message) => self.inner.may_begin(way, message, start),
            None => way == Way::In || self.may_be_told(message.peer),
        }
    }

    fn excuse(&self, way: Way, message: Message) -> Duration {
        self.inside(message).map_or(Duration::ZERO, |message| self.inner.excuse(way, message))
    }

    fn begin(&mut self) -> Result<()> {
        self.inner.begin()
    }

    fn give(&self, message: Message, bytes: Range<usize>, go: Give) -> Result<()> {
        match self.inside(message) {
            Some(message) => self.inner.give(message, bytes, go),
            None => {
                if self.is_here(message.peer) {
                    self.told.set(self.told.get() | bit(self.hosts.of(message.peer).1));
                }
                go(&[]);
                Ok(())
            }
        }
    }

    fn take(&mut self, message: Message, bytes: Range<usize>, go: Take) -> Result<()> {
        match self.inside(message) {
            Some(message) => self.inner.take(message, bytes, go),
            None => {
                go(&mut []);
                Ok(())
            }
        }
    }

    fn came(&mut self, message: Message, bytes: Range<usize>) -> Result<()> {
        if let Some(message) = self.inside(message) {
            return self.inner.came(message, bytes);
        }
        // Of a column there is one member on each host.
        if self.is_here(message.peer) { self.inner.one_is_ready() } else { Ok(()) }
    }
}

/// A gather that sends nothing before the windows of its host are ready.
struct Ready<T> {
    awaited: usize,
    inner: T,
}

impl<T: Traffic> Traffic for Ready<T> {
    fn messages(&self, way: Way, peer: usize) -> usize {
        self.inner.messages(way, peer)
    }

    fn bytes(&self, way: Way, message: Message) -> Option<usize> {
        self.inner.bytes(way, message)
    }

    fn may_begin(&self, way: Way, message: Message, start: usize) -> bool {
        (way == Way::In || self.awaited == 0) && self.inner.may_begin(way, message, start)
    }

    fn excuse(&self, way: Way, message: Message) -> Duration {
        self.inner.excuse(way, message)
    }

    fn give(&self, message: Message, bytes: Range<usize>, go: Give) -> Result<()> {
        self.inner.give(message, bytes, go)
    }

    fn take(&mut self, message: Message, bytes: Range<usize>, go: Take) -> Result<()> {
        self.inner.take(message, bytes, go)
    }

    fn came(&mut self, message: Message, bytes: Range<usize>) -> Result<()> {
        self.inner.came(message, bytes)
    }
}

impl<T: Traffic> Peer for Ready<T> {
    fn one_is_ready(&mut self) -> Result<()> {
        self.awaited -= 1;
        Ok(())
    }
}

/// The pieces that the column carries, by host, to this member's window or to its tray.
struct Carried<'a> {
    op: &'a GatherByHosts,
    tray: Option<&'a Window>,
}

impl Held for Carried<'_> {
    fn members(&self) -> usize {
        self.op.carried.len()
    }

    fn bytes(&self, host: usize) -> usize {
        self.op.carried[host].iter().map(|(_, piece)| piece.len()).sum()
    }

    fn pieces(
        &self,
        host: usize,
        bytes: Range<usize>,
    ) -> impl Iterator<Item = Result<Tensor>> + '_ {
        let GatherByHosts { carried, window, host: own, .. } = self.op;
        let mut end = self.op.place_in_tray(host) + bytes.start;
        within(&carried[host], bytes).map(move |(owner, piece)| {
            end += piece.len();
            match self.tray {
                _ if host == *own => window.of_member(owner, piece.start, piece.len(), DType::U8),
                None => Ok(window.tensor(piece.start, &[piece.len()], DType::U8)?),
                Some(tray) => Ok(tray.tensor(end - piece.len(), &[piece.len()], DType::U8)?),
            }
        })
    }
}

impl Endpoint {
    /// Returns the operation's number, with this member's sums made. Windows of its host may still
    /// be read.
    pub(crate) fn reduce_by_hosts(&self, device: &Device, op: &ReduceByHosts) -> Result<u64> {
        let (hosts, place) = (op.hosts, self.place());
        self.run(crate::Operation::ReduceScatterOrdered, op.digest, |running, scratch| {
            let inner = HostSums::new(place, device, op, &mut scratch.room)?;
            running.drive(&mut Column::new(hosts, place, inner))?;
            op.across.sums.finish()?;
            Ok(running.sequence())
        })
    }

    /// Returns the operation's number, with what this column carries in this member's window or, if
    /// there is one, in its tray. Windows of its host may still be read.
    pub(crate) fn gather_by_hosts(
        &self,
        device: &Device,
        op: &GatherByHosts,
        tray: Option<&Window>,
    ) -> Result<u64> {
        let (hosts, place, host) = (op.hosts, self.place(), op.host);
        let (awaited, held) = (hosts.each - 1, &Carried { op, tray });
        self.run(op.operation(), op.digest, |running, _| {
            match route::of_gather((0..hosts.count).map(|host| held.bytes(host))) {
                Route::Direct => {
                    let inner = Direct { place: host, device, op: held };
                    let inner = Ready { awaited, inner };
                    running.drive(&mut Column::new(hosts, place, inner))?;
                }
                Route::Ring => {
                    let inner = Ready { awaited, inner: Ring::new(host, device, held) };
                    running.drive(&mut Column::new(hosts, place, inner))?;
                }
            }
            Ok(running.sequence())
        })
    }

    /// As an operation without payload; returns its number.
    pub(crate) fn meet_at(&self, operation: crate::Operation, digest: u64) -> Result<u64> {
        self.run(operation, digest, |running, _| {
            running.drive(&mut super::traffic::Nothing)?;
            Ok(running.sequence())
        })
    }
}
