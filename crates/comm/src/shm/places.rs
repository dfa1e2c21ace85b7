//! Where boards and windows lie in the memory of a job.
//!
//! ```text
//! block │ boards of the channels │ region 0                                      │ region 1 …
//!                                  board │ window 1 of each member │ window 2 …  │
//! ```
//!
//! Each group has a region of its own, in which its members make windows without asking others.
//! Regions are so far apart that they cannot meet; what nobody touches takes no memory. Windows are
//! made by all members of a group in the same order, so each knows where every other's begin. No
//! place is used twice: what a window that was dropped gives back is its pages.
//!
//! Whoever makes a window reserves its pages, and Linux takes them from the node of whoever does:
//! so the windows of a rank that is bound to a NUMA node lie there, and its areas of boards.

use std::sync::Arc;

use device::SharedPart;

use super::block::Block;
use super::board::{Board, Kind};
use super::shared_memory::SharedMemory;

/// Where windows may begin: a multiple of every page size.
const ALIGN: u64 = 2 << 20;

/// Distance between regions: more than any machine's memory.
const REGION: u64 = 1 << 44;

/// Where the board of a channel among `world` ranks begins; channels are numbered from 0.
pub(super) fn channel_at(world: usize, channel: u64) -> u64 {
    let board = Board::bytes(Kind::Channel, world).next_multiple_of(ALIGN);
    Block::bytes(world).next_multiple_of(ALIGN) + channel * board
}

/// Where a region begins; the first lies closest, behind `channels` channels.
pub(super) fn region_at(world: usize, channels: u64, region: u64) -> u64 {
    match region {
        0 => channel_at(world, channels),
        _ => region * REGION,
    }
}

/// Where the windows of a group lie.
pub(super) struct Places {
    memory: SharedMemory,
    members: usize,
    /// Where the next window of the first member begins.
    next: u64,
}

impl Places {
    /// For windows behind the board at `board_at`.
    pub(super) fn new(memory: SharedMemory, members: usize, board_at: u64) -> Places {
        let next = board_at + Board::bytes(Kind::Group, members).next_multiple_of(ALIGN);
        Places { memory, members, next }
    }

    /// The place of the next window of each member, of `bytes` bytes.
    pub(super) fn take(&mut self, bytes: usize) -> impl Fn(usize) -> SharedPart + use<> {
        let (start, stride) = (self.next, (bytes as u64).next_multiple_of(ALIGN));
        self.next += stride * self.members as u64;
        let file = Arc::clone(self.memory.file());
        // SAFETY: outside of operations ranks write their own windows alone; within one, each byte
        // of a window has one member that writes it (`push`), and barriers keep readers and writers
        // apart.
        move |place| unsafe { SharedPart::new(Arc::clone(&file), start + stride * place as u64) }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn windows_do_not_meet(sizes in prop::collection::vec(0_usize..5 << 20, 1..6),
            world in 2_usize..5) {
            let memory = SharedMemory::create("places", world).unwrap();
            let at = region_at(world, 2, 0);
            prop_assert!(at >= Block::bytes(world) + 2 * Board::bytes(Kind::Channel, world));
            let mut places = Places::new(memory, world, at);
            let mut end = at + Board::bytes(Kind::Group, world);
            for bytes in sizes {
                let place = places.take(bytes);
                for rank in 0..world {
                    let offset = place(rank).offset();
                    prop_assert!(offset >= end && offset.is_multiple_of(ALIGN));
                    end = offset + bytes as u64;
                }
            }
        }
    }

    #[test]
    fn whoever_makes_a_window_has_all_its_pages_before_a_peer_maps_it() {
        let memory = SharedMemory::create("pages", 2).unwrap();
        let reserved = || 512 * memory.file().metadata().unwrap().blocks();
        let device = device::Device::new(device::DeviceKind::Cpu, 1).unwrap();
        let bytes = 3 << 20;
        let place = Places::new(memory.clone(), 2, region_at(2, 2, 0)).take(bytes);
        let before = reserved();
        let own = device.alloc(bytes, &device::Placement::Shared(place(0))).unwrap();
        assert_eq!(reserved() - before, bytes as u64);
        let _mapped = device.map_shared(&place(0), bytes).unwrap();
        let _other = device.alloc(bytes, &device::Placement::Shared(place(1))).unwrap();
        assert_eq!(reserved() - before, 2 * bytes as u64);
        drop(own);
        assert_eq!(reserved() - before, bytes as u64);
    }
}
