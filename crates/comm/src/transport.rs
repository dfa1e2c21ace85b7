//! Transports, which move device memory among the members of one group.

use std::sync::Arc;

use device::Device;

use crate::algorithm::BOX_BYTES;
use crate::hosts::Hosts;
use crate::job::{Job, Members};
use crate::step::Step;
use crate::{Operation, Result, Window};

/// A member's end of a group. Operations block the thread that runs them, which is the group's own.
pub(crate) trait Transport: Send + Sync {
    fn job(&self) -> &Arc<Job>;

    fn members(&self) -> &Members;

    /// On which its members are, where operations may go by hosts.
    fn hosts(&self) -> Option<Hosts> {
        None
    }

    /// Zeroed memory of `bytes` bytes, the same on every member, which gets the number `group`.
    /// Collective.
    fn window(&self, device: &Device, group: u64, bytes: usize) -> Result<Window>;

    /// Bytes of a box: up to there an operation in one round is faster than in two.
    fn box_bytes(&self) -> usize {
        BOX_BYTES
    }

    /// As [`Transport::window`], for a box that others may still read when this member has dropped
    /// it.
    fn box_window(&self, device: &Device, group: u64, bytes: usize) -> Result<Window> {
        self.window(device, group, bytes)
    }

    /// Returns once all members have come to an operation whose bytes something else moves, all
    /// with the same digest of it.
    fn meet(&self, operation: Operation, digest: u64) -> Result<()>;

    /// Every member's message, by place.
    fn gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Runs one step, whose memory nobody else touches meanwhile.
    fn run(&self, device: &Device, step: &Step) -> Result<()>;
}
