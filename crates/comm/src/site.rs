//! The group of a member, as far as its operations depend on it.

use crate::Window;
use crate::elsewhere::AllLanes;
use crate::hosts::Hosts;
use crate::job::Members;

/// The boxes of a group for what is small, one window for each turn.
pub(crate) type Boxes = [Window; 2];

/// The group of a member, as far as its operations depend on it.
pub(crate) struct Site<'a> {
    /// The number of its windows.
    pub group: u64,
    pub members: &'a Members,
    /// For what is small, where the group has them.
    pub boxes: Option<&'a Boxes>,
    pub lanes: &'a AllLanes,
    /// On which its members are, where operations may go by hosts.
    pub hosts: Option<Hosts>,
}

impl Site<'_> {
    /// Where an operation on so many bytes of a window goes by hosts.
    pub(crate) fn hosts_for(&self, bytes: usize) -> Option<Hosts> {
        self.hosts.filter(|hosts| hosts.carry(bytes))
    }
}
