//! The part of the members of one host in an operation over tcp, in which they have learned that
//! all are in it and that their windows are ready.
//!
//! On the board they are numbered by themselves: most operations are over tcp alone, and phases
//! that leapt would in the end be taken for those before. Whoever waits here waits for members that
//! may wait for ranks of other hosts: those name who is at fault, and before.

use std::sync::atomic::{AtomicU64, Ordering};

use device::{DType, Device, Placement};

use super::endpoint::{Endpoint, ShmCall};
use super::transfer::PART;
use crate::copies::copy;
use crate::hosts::{Copied, GatherByHosts};
use crate::meter;
use crate::{Operation, Result, Window};

impl Endpoint {
    /// A window of the members of this host, when all members of the group have come to it.
    pub(crate) fn window_beside(
        &self,
        device: &Device,
        group: u64,
        bytes: usize,
    ) -> Result<Window> {
        let shared = |place: &device::SharedPart| {
            Ok(device.alloc(bytes, &Placement::Shared(place.clone()))?)
        };
        self.make_window(device, group, bytes, shared)
    }

    /// Returns when the members of this host have read what they want of this one's windows.
    /// `reads` are the bytes that it has read of theirs.
    pub(crate) fn leave_beside(
        &self,
        (operation, sequence): (Operation, u64),
        reads: &[AtomicU64],
    ) -> Result<()> {
        self.beside(operation, sequence, |call| self.leave_and_count(call, reads))
    }

    /// When the members of this host have in their windows or trays what their columns carry,
    /// copies it from there, and returns when all have.
    pub(crate) fn gather_beside(
        &self,
        device: &Device,
        op: &GatherByHosts,
        tray: Option<&Window>,
        sequence: u64,
    ) -> Result<()> {
        self.beside(op.operation(), sequence, |call| {
            self.wait_all(call, call.phase())?;
            for Copied { place, from, is_in_tray, to } in &op.copied {
                let window = tray.filter(|_| *is_in_tray).unwrap_or(&op.window);
                for at in (0..to.len()).step_by(PART) {
                    let len = PART.min(to.len() - at);
                    let from = window.of_member(*place, from + at, len, DType::U8)?;
                    let start = to.start + at;
                    let into = match &op.apart {
                        None => op.window.tensor(start, &[len], DType::U8)?,
                        Some(apart) => apart.into.flat(start..start + len)?,
                    };
                    let count = copy(device, "all_gather_segments", &from, &into)?;
                    let reads = &op.reads[op.hosts.of(*place).1];
                    reads.fetch_add(count as u64, Ordering::Relaxed);
                    self.part_done()?;
                }
            }
            self.leave_and_count(call, &op.reads)
        })
    }

    fn beside(
        &self,
        operation: Operation,
        sequence: u64,
        body: impl FnOnce(&ShmCall) -> Result<()>,
    ) -> Result<()> {
        self.run(|state| {
            state.sequence += 1;
            let call = self.call(operation, sequence).behind(state.sequence);
            ((operation, sequence), self.check_revoked().and_then(|()| body(&call)))
        })
    }

    /// The operation is counted already, without what goes through shared memory; this member's own
    /// is no traffic.
    fn leave_and_count(&self, call: &ShmCall, reads: &[AtomicU64]) -> Result<()> {
        let mut received = 0;
        for peer in self.members.peers() {
            let bytes = reads[peer].swap(0, Ordering::Relaxed);
            self.board.add_read(peer, bytes);
            received += bytes;
        }
        self.wait_all(call, call.phase().wrapping_add(1))?;
        // A peer that gave the job up may have dropped its windows while they were read.
        self.check_revoked()?;
        let sent = self.board.take_read(self.place());
        self.job().counters.add_bytes(call.operation, sent, received);
        meter::moved(sent, received);
        Ok(())
    }
}
