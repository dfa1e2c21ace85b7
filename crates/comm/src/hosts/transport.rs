//! A member's end of a group by hosts: all members over tcp, and those of its host in shared
//! memory.

use std::sync::Arc;

use device::Device;

use super::shape::Hosts;
use crate::job::{Job, Members};
use crate::op::Step;
use crate::transport::Transport;
use crate::{Operation, Result, Window, shm, tcp};

pub(super) struct ByHosts {
    pub hosts: Hosts,
    /// Of all members.
    pub all: tcp::Endpoint,
    /// Of those on this host, whose places are their columns.
    pub here: shm::Endpoint,
}

impl Transport for ByHosts {
    fn job(&self) -> &Arc<Job> {
        Transport::job(&self.all)
    }

    fn members(&self) -> &Members {
        self.all.members()
    }

    fn hosts(&self) -> Option<Hosts> {
        Some(self.hosts)
    }

    fn window(&self, device: &Device, group: u64, bytes: usize) -> Result<Window> {
        let sequence = self.all.meet_at(Operation::Window, bytes as u64)?;
        let window = self.here.window_beside(device, group, bytes, sequence)?;
        let members = self.all.members();
        let (host, _) = self.hosts.of(members.place);
        Ok(window.among(self.hosts.place(host, 0), members.len()))
    }

    fn box_bytes(&self) -> usize {
        // What could go by hosts does.
        self.all.box_bytes().min(self.hosts.from_bytes)
    }

    /// What goes through boxes is small, and goes flat.
    fn box_window(&self, device: &Device, group: u64, bytes: usize) -> Result<Window> {
        self.all.box_window(device, group, bytes)
    }

    fn meet(&self, operation: Operation, digest: u64) -> Result<()> {
        self.all.meet(operation, digest)
    }

    fn gather_bytes(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.all.gather_bytes(mine)
    }

    fn run(&self, device: &Device, step: &Step) -> Result<()> {
        match step {
            Step::ReduceByHosts(op) => {
                let sequence = self.all.reduce_by_hosts(device, op)?;
                self.here.leave_beside((step.operation(), sequence), &op.reads)
            }
            Step::GatherByHosts(op) => {
                let sequence = self.all.gather_by_hosts(device, op)?;
                self.here.gather_beside(device, op, sequence)
            }
            flat => Transport::run(&self.all, device, flat),
        }
    }
}
