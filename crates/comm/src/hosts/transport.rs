//! A member's end of a group by hosts: all members over tcp, and those of its host in shared
//! memory.

use std::sync::{Arc, Mutex, PoisonError};

use device::Device;

use super::gathers::{GatherByHosts, tray_bytes};
use super::shape::Hosts;
use crate::job::{Job, Members};
use crate::meter::Meter;
use crate::step::Step;
use crate::transport::Transport;
use crate::{Operation, Result, Window, shm, tcp};

pub(super) struct ByHosts {
    pub hosts: Hosts,
    /// Of all members.
    pub all: tcp::Endpoint,
    /// Of those on this host, whose places are their columns.
    pub here: shm::Endpoint,
    /// Of both together.
    pub meter: Meter,
    /// The tray by which gathers into other memory travel, made by the first.
    pub tray: Mutex<Option<Window>>,
}

/// Tells the meeting in which trays are made from the gather that needs them.
const TRAY: u64 = 0x7472_6179;

impl ByHosts {
    /// Measures what runs over tcp and then on this host as the one operation that it is.
    fn measure<R>(
        &self,
        operation: Operation,
        run: impl FnOnce(&mut u64) -> Result<R>,
    ) -> Result<R> {
        let timings = &self.all.job().timings;
        let (_, result) = self.meter.measure(timings, || {
            let mut sequence = 0;
            let result = run(&mut sequence);
            ((operation, sequence), result)
        });
        result
    }

    /// Collective, as the gather that needs it.
    fn tray(&self, device: &Device, op: &GatherByHosts) -> Result<Option<Window>> {
        let mut tray = self.tray.lock().unwrap_or_else(PoisonError::into_inner);
        if op.apart.is_some() && tray.is_none() {
            // No group's: it is named to nobody.
            let asked = (Operation::AllGatherSegments, op.digest ^ TRAY);
            *tray = Some(self.window_for(asked, device, 0, tray_bytes(self.hosts))?);
        }
        Ok(tray.clone().filter(|_| op.apart.is_some()))
    }

    /// A window that is made where all are at the operation of that digest.
    fn window_for(
        &self,
        (operation, digest): (Operation, u64),
        device: &Device,
        group: u64,
        bytes: usize,
    ) -> Result<Window> {
        let window = self.measure(operation, |sequence| {
            *sequence = self.all.meet_at(operation, digest)?;
            self.here.window_beside(device, group, bytes)
        })?;
        let members = self.all.members();
        let (host, _) = self.hosts.of(members.place);
        Ok(window.among(self.hosts.place(host, 0), members.len()))
    }
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
        self.window_for((Operation::Window, bytes as u64), device, group, bytes)
    }

    fn box_bytes(&self) -> usize {
        // From this size on operations can go by hosts, and do.
        self.all.box_bytes().min(self.hosts.from_bytes)
    }

    /// Operations through boxes are small, and go flat.
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
            Step::ReduceByHosts(op) => self.measure(step.operation(), |sequence| {
                *sequence = self.all.reduce_by_hosts(device, op)?;
                self.here.leave_beside((step.operation(), *sequence), &op.reads)
            }),
            Step::GatherByHosts(op) => {
                let tray = self.tray(device, op)?;
                self.measure(step.operation(), |sequence| {
                    *sequence = self.all.gather_by_hosts(device, op, tray.as_ref())?;
                    self.here.gather_beside(device, op, tray.as_ref(), *sequence)
                })
            }
            flat => Transport::run(&self.all, device, flat),
        }
    }
}
