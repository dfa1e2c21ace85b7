//! Traffic of an endpoint so far, by operation.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Operation, meter};

/// Totals of one operation kind on one rank. Bytes are counted where they are moved, by the code
/// that copies from a peer's memory or uses a socket, so that what is moved twice counts twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    pub calls: u64,
    /// Bytes of the caller's data that left this rank. Over shared memory: bytes that peers have
    /// read out of this rank's windows, as they told it, or that it put where peers read them. Over
    /// a vendor's library: what its calls were asked to move.
    pub payload_sent_bytes: u64,
    /// Of these, bytes that went through sockets.
    pub socket_sent_bytes: u64,
    /// Bytes of frame headers that left this rank; none over shared memory.
    pub header_sent_bytes: u64,
    pub payload_received_bytes: u64,
}

/// A snapshot of all totals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    counts: [Count; Operation::ALL.len()],
}

impl Counters {
    /// The totals of `operation`.
    pub fn of(&self, operation: Operation) -> Count {
        self.counts[operation as usize]
    }

    /// The totals of all operations together.
    pub fn total(&self) -> Count {
        self.counts.iter().fold(Count::default(), |sum, count| Count {
            calls: sum.calls + count.calls,
            payload_sent_bytes: sum.payload_sent_bytes + count.payload_sent_bytes,
            socket_sent_bytes: sum.socket_sent_bytes + count.socket_sent_bytes,
            header_sent_bytes: sum.header_sent_bytes + count.header_sent_bytes,
            payload_received_bytes: sum.payload_received_bytes + count.payload_received_bytes,
        })
    }
}

/// The live totals.
#[derive(Default)]
pub(crate) struct CounterCells {
    cells: [[AtomicU64; 5]; Operation::ALL.len()],
}

impl CounterCells {
    /// Adds one finished call.
    pub(crate) fn add(&self, operation: Operation, sent: u64, header: u64, received: u64) {
        meter::moved(sent, received);
        for (cell, amount) in self.cells[operation as usize].iter().zip([1, sent, header, received])
        {
            // An atomic addition takes longer than a small operation has for each of its parts.
            if amount > 0 {
                cell.fetch_add(amount, Ordering::Relaxed);
            }
        }
    }

    /// Of what is added for a call, what went through sockets.
    pub(crate) fn add_socket(&self, operation: Operation, sent: u64) {
        self.cells[operation as usize][4].fetch_add(sent, Ordering::Relaxed);
    }

    /// Adds what a vendor's library has moved, or what went through shared memory beside frames,
    /// for a call that is counted already.
    pub(crate) fn add_bytes(&self, operation: Operation, sent: u64, received: u64) {
        let [_, sent_cell, _, received_cell, _] = &self.cells[operation as usize];
        sent_cell.fetch_add(sent, Ordering::Relaxed);
        received_cell.fetch_add(received, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Counters {
        let mut counters = Counters::default();
        for (count, cells) in counters.counts.iter_mut().zip(&self.cells) {
            let [calls, sent, header, received, socket] =
                [0, 1, 2, 3, 4].map(|i| cells[i].load(Ordering::Relaxed));
            *count = Count {
                calls,
                payload_sent_bytes: sent,
                socket_sent_bytes: socket,
                header_sent_bytes: header,
                payload_received_bytes: received,
            };
        }
        counters
    }
}
