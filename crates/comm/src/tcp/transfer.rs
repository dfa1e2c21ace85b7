//! The operations of channels and groups.

use std::sync::Arc;

use device::{Device, Placement};

use super::endpoint::Endpoint;
use super::moves::{Direct, Held, Messages, Personal};
use super::ring::Ring;
use super::route::{self, Route};
use super::sums::Summing;
use super::traffic::{Nothing, Words};
use crate::control::Control;
use crate::copies::copy;
use crate::job::{Job, Members};
use crate::one_shot::Take;
use crate::ordered::Reduction;
use crate::primitives::{AllToAll, P2p};
use crate::step::Step;
use crate::transport::Transport;
use crate::{CommError, Operation, Result, Window};

/// Most bytes that come to a member in a sum of one round. A round costs more than over shared
/// memory; and of two members none gets more bytes than in two rounds.
pub(crate) const ONE_ROUND_BYTES: usize = 128 << 10;

impl Control for Endpoint {
    fn barrier(&self) -> Result<()> {
        self.empty(Operation::Barrier, 0, || Ok(()))
    }

    fn all_gather_bytes_into(&self, mine: &[u8], all: &mut Vec<Vec<u8>>) -> Result<()> {
        self.run(Operation::AllGatherBytes, 0, |running, _| {
            self.fit(mine, all);
            running.drive(&mut Words { mine, to: None, all })
        })
    }

    fn gather_bytes_to(&self, root: usize, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.run(Operation::GatherBytes, root as u64, |running, _| {
            self.members.check(root)?;
            let mut all = Vec::new();
            self.fit(if root == self.place() { mine } else { &[] }, &mut all);
            running.drive(&mut Words { mine, to: Some(root), all: &mut all })?;
            Ok(all)
        })
    }

    fn broadcast_bytes(&self, root: usize, bytes: &mut Vec<u8>) -> Result<()> {
        self.run(Operation::BroadcastBytes, root as u64, |running, scratch| {
            self.members.check(root)?;
            let mine: &[u8] = if root == self.place() { bytes } else { &[] };
            let all = &mut scratch.messages;
            self.fit(mine, all);
            running.drive(&mut Words { mine, to: None, all })?;
            if root != self.place() {
                bytes.clear();
                bytes.extend_from_slice(&all[root]);
            }
            Ok(())
        })
    }
}

impl Transport for Endpoint {
    fn job(&self) -> &Arc<Job> {
        self.net.job()
    }

    fn members(&self) -> &Members {
        &self.members
    }

    fn window(&self, device: &Device, group: u64, bytes: usize) -> Result<Window> {
        let mine = self.empty(Operation::Window, bytes as u64, || {
            Ok(device.alloc(bytes, &Placement::Private)?)
        })?;
        let mut buffers = vec![None; self.members.len()];
        buffers[self.place()] = Some(mine);
        Ok(Window::new(buffers, self.place(), group, bytes))
    }

    fn meet(&self, operation: Operation, digest: u64) -> Result<()> {
        self.empty(operation, digest, || Ok(()))
    }

    fn gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.all_gather_bytes(mine)
    }

    fn box_bytes(&self) -> usize {
        ONE_ROUND_BYTES
    }

    fn run(&self, device: &Device, step: &Step) -> Result<()> {
        let (operation, place) = (step.operation(), self.place());
        match step {
            Step::Barrier => self.empty(operation, 0, || Ok(())),
            Step::OneShot(shot) => {
                // Peers are sent a copy, so that sums may take the place of the original. One box
                // is enough: when an operation is done all of it is sent.
                let (from, turn) = shot.turn(0);
                let put = || copy(device, "put", from, &turn.own).map(drop);
                match &turn.take {
                    Take::Sum(reduction) => self.reduce(device, shot.digest, reduction, &put),
                    // Boxes are out of reach here.
                    Take::Ready(_) | Take::Copies(_) => Err(CommError::ForeignWindow),
                }
            }
            Step::Reduce(reduction) => self.reduce(device, reduction.digest, reduction, &|| Ok(())),
            // Windows are out of reach here.
            Step::ReduceToAll(..) | Step::ReduceByHosts(_) | Step::GatherByHosts(_) => {
                Err(CommError::ForeignWindow)
            }
            Step::Gather(op, digest) => self.run(operation, *digest, |running, _| {
                let members = 0..op.segments.len();
                match route::of_gather(members.map(|member| op.bytes(member))) {
                    Route::Direct => running.drive(&mut Direct { place, device, op }),
                    Route::Ring => running.drive(&mut Ring::new(place, device, op)),
                }
            }),
            Step::AllToAll(op) => self.all_to_all(device, op),
            Step::Exchange(messages) => self.exchange(device, messages),
        }
    }
}

impl Endpoint {
    /// `first` runs before anything is sent.
    fn reduce(
        &self,
        device: &Device,
        digest: u64,
        reduction: &Reduction,
        first: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        self.run(Operation::ReduceScatterOrdered, digest, |running, scratch| {
            first()?;
            let place = self.place();
            running.drive(&mut Summing::new(place, device, reduction, &mut scratch.room)?)?;
            reduction.sums.finish()
        })
    }

    fn all_to_all(&self, device: &Device, op: &AllToAll) -> Result<()> {
        let size = op.into.dtype().bytes();
        self.run(Operation::AllToAll, op.digest(), |running, _| {
            let from = op.from.tensor(0, &[op.from.bytes() / size], op.into.dtype())?;
            let (from, into) = (from.as_bytes(), op.into.as_bytes());
            let mut traffic = Personal { device, size, from, into, op };
            traffic.keep_own(self.place())?;
            running.drive(&mut traffic)
        })
    }

    fn exchange(&self, device: &Device, all: &[P2p]) -> Result<()> {
        self.run(Operation::Exchange, 0, |running, scratch| {
            let before = &scratch.exchanged;
            running.drive(&mut Messages { device, all, before })?;
            for message in all {
                let (sent, received) = &mut scratch.exchanged[message.peer()];
                *(if message.is_send() { sent } else { received }) += 1;
            }
            Ok(())
        })
    }

    /// An operation without payload; `first` runs before peers are told.
    fn empty<R>(
        &self,
        operation: Operation,
        digest: u64,
        first: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        self.run(operation, digest, |running, _| {
            let result = first()?;
            running.drive(&mut Nothing)?;
            Ok(result)
        })
    }

    /// One empty vector per member, but this one's own message.
    fn fit(&self, mine: &[u8], all: &mut Vec<Vec<u8>>) {
        all.resize_with(self.members.len(), Vec::new);
        all.iter_mut().for_each(Vec::clear);
        all[self.place()].extend_from_slice(mine);
    }
}
