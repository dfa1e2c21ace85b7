//! The driver of a device with memory of its own: the one trait between the public types and the
//! simulator, CUDA and HIP.
//!
//! Everything is a number here: addresses are those that kernels see, handles are the vendor's
//! pointers (the simulator's are counters). The public types own them, free each exactly once,
//! and keep whatever a handle depends on alive.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::abort::Abort;
use crate::host::HostJob;
use crate::host_call::within_call;
use crate::{Arch, DeviceError, DeviceKind};

/// Properties of a device. A number that the device does not tell is 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    pub name: String,
    /// Where it is on the bus of its machine (`0000:65:00.0`); empty where it is on none.
    pub bus: String,
    /// The kernels that it runs; `None` on the host devices.
    pub arch: Option<Arch>,
    /// Streaming multiprocessors or compute units; threads on the host devices.
    pub multiprocessors: u32,
    pub l2_bytes: u64,
    /// Shared memory (LDS) that one block may ask for.
    pub shared_bytes_per_block: u32,
    pub memory_bytes: u64,
    pub clock_khz: u32,
    /// Kind and version of the driver.
    pub driver: String,
    /// Times measured there mean nothing.
    pub simulated: bool,
}

/// The shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster; `[1, 1, 1]` for none.
    pub cluster: [u32; 3],
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Blocks may begin while the launch before in the stream ends: the kernel itself waits for it
    /// (CUDA's programmatic dependent launch). Other devices launch one after the other.
    pub early: bool,
    /// All blocks run at the same time or the launch is refused (CUDA's cooperative launch): they
    /// may wait for each other. [`crate::Function::clusters_together`] tells how many clusters can.
    pub together: bool,
}

impl Grid {
    /// A row of `blocks` blocks of `threads` threads.
    pub const fn linear(blocks: u32, threads: u32) -> Grid {
        let (grid, block, cluster) = ([blocks, 1, 1], [threads, 1, 1], [1, 1, 1]);
        Grid { grid, block, cluster, shared_bytes: 0, early: false, together: false }
    }

    pub(crate) fn threads_per_block(&self) -> u64 {
        product(self.block)
    }

    pub(crate) fn blocks_per_cluster(&self) -> u64 {
        product(self.cluster)
    }

    /// Refuses a grid that every device would refuse, most of them without saying why.
    pub(crate) fn check(&self, limits: &Properties, max_threads: u32) -> Result<(), String> {
        let threads = self.threads_per_block();
        if self.grid.contains(&0) || threads == 0 || self.cluster.contains(&0) {
            return Err(format!("an extent of {self:?} is zero"));
        }
        if threads > u64::from(max_threads) {
            return Err(format!("{threads} threads a block, the kernel allows {max_threads}"));
        }
        if self.shared_bytes > limits.shared_bytes_per_block {
            let (asked, limit) = (self.shared_bytes, limits.shared_bytes_per_block);
            return Err(format!("{asked} bytes of shared memory a block, {limit} at most"));
        }
        if self.blocks_per_cluster() > 1 {
            if !matches!(limits.arch, Some(Arch::Sm90a | Arch::Sm100a)) {
                return Err(format!("{} has no clusters of blocks", limits.name));
            }
            if self.blocks_per_cluster() > 8 {
                return Err(format!(
                    "a cluster of {} blocks, 8 at most",
                    self.blocks_per_cluster()
                ));
            }
            if (0..3).any(|axis| !self.grid[axis].is_multiple_of(self.cluster[axis])) {
                let (grid, cluster) = (self.grid, self.cluster);
                return Err(format!("{grid:?} blocks are not whole clusters of {cluster:?}"));
            }
        }
        Ok(())
    }
}

fn product(extents: [u32; 3]) -> u64 {
    extents.iter().fold(1, |product: u64, &n| product.saturating_mul(u64::from(n)))
}

/// A stream, event, module, function or graph of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Handle(pub(crate) u64);

/// A function as its driver found it.
pub(crate) struct Found {
    pub(crate) function: Handle,
    pub(crate) max_threads: u32,
    /// Bytes of the argument, where the module says so.
    pub(crate) args_bytes: Option<u32>,
}

/// The operations of a device. Work on a stream runs in its order, at some time before a wait
/// returns; an error of such work may appear at any later call, at the latest at that wait.
pub(crate) trait Driver: Send + Sync {
    fn kind(&self) -> DeviceKind;
    fn properties(&self) -> &Properties;

    /// Zeroed memory, at least 256-byte aligned.
    fn alloc(&self, bytes: usize) -> Result<u64, DeviceError>;
    /// Frees memory of `alloc`, after all work that was enqueued before.
    fn free(&self, address: u64);
    /// Waits for all work that was enqueued before, unless the device is given up.
    fn quiesce(&self);
    /// Page-locked host memory, zeroed.
    fn alloc_pinned(&self, bytes: usize) -> Result<u64, DeviceError>;
    /// Frees memory of `alloc_pinned`, after all work that was enqueued before.
    fn free_pinned(&self, address: u64);

    fn stream_create(&self) -> Result<Handle, DeviceError>;
    fn stream_destroy(&self, stream: Handle);
    /// Waits for a stream; false when `until` came before.
    fn stream_synchronize(
        &self,
        stream: Handle,
        until: Option<Instant>,
    ) -> Result<bool, DeviceError>;
    /// Later work of `stream` waits for what was recorded last in `event`.
    fn stream_wait(&self, stream: Handle, event: Handle) -> Result<(), DeviceError>;

    fn event_create(&self) -> Result<Handle, DeviceError>;
    fn event_destroy(&self, event: Handle);
    fn event_record(&self, event: Handle, stream: Handle) -> Result<(), DeviceError>;
    /// Waits for an event; false when `until` came before.
    fn event_synchronize(&self, event: Handle, until: Option<Instant>)
    -> Result<bool, DeviceError>;
    fn event_elapsed_ms(&self, start: Handle, end: Handle) -> Result<f32, DeviceError>;

    /// Copies from host memory; the bytes have been taken when this returns.
    fn copy_in(&self, stream: Handle, to: u64, from: &[u8]) -> Result<(), DeviceError>;
    /// Copies to host memory, after the earlier work of the stream; done when this returns.
    fn copy_out(&self, stream: Handle, to: &mut [u8], from: u64) -> Result<(), DeviceError>;
    /// Enqueues a copy between two ranges of device or page-locked memory.
    fn copy(
        &self,
        stream: Handle,
        to: u64,
        from: u64,
        bytes: usize,
        direction: Direction,
    ) -> Result<(), DeviceError>;
    fn fill(&self, stream: Handle, to: u64, byte: u8, bytes: usize) -> Result<(), DeviceError>;

    fn module_load(&self, image: &[u8]) -> Result<Handle, DeviceError>;
    /// Unloads a module, after all work that was enqueued before.
    fn module_unload(&self, module: Handle);
    fn function(&self, module: Handle, name: &str) -> Result<Found, DeviceError>;
    /// How many clusters such as those of `grid` surely run at the same time.
    fn clusters_together(&self, function: Handle, grid: &Grid) -> Result<u32, DeviceError>;
    /// Enqueues a kernel of one argument, given by its bytes; `grid` has been checked.
    ///
    /// # Safety
    /// The kernel takes one argument of this size, and every address in it is good for what the
    /// kernel does with it until the work is done.
    unsafe fn launch(
        &self,
        stream: Handle,
        function: Handle,
        name: &str,
        grid: &Grid,
        args: &[u8],
    ) -> Result<(), DeviceError>;

    /// Enqueues a call on the host, which runs on no thread of the caller. The stream captures no
    /// graph.
    fn host(&self, stream: Handle, call: HostCall) -> Result<(), DeviceError>;
    /// Makes the device current in this thread, for libraries of its vendor.
    fn enter(&self) -> Result<(), DeviceError>;
    /// Set when the device is given up: from then on calls return that error, nothing waits, and
    /// nothing is freed.
    fn abort(&self) -> &Arc<Abort>;
    /// Wakes who waits for something that will not come any more.
    fn wake(&self);

    /// From here to `capture_end` work on the stream is kept instead of run.
    fn capture_begin(&self, stream: Handle) -> Result<(), DeviceError>;
    /// The kept work, ready to run. Ends the capture on errors too.
    fn capture_end(&self, stream: Handle) -> Result<Handle, DeviceError>;
    fn graph_launch(&self, stream: Handle, graph: Handle) -> Result<(), DeviceError>;
    /// Destroys a graph, after all work that was enqueued before.
    fn graph_destroy(&self, graph: Handle);
}

/// A call on the host in a driver's stream, in its turn.
pub(crate) struct HostCall {
    pub(crate) job: HostJob,
    pub(crate) faults: Arc<Faults>,
    pub(crate) abort: Arc<Abort>,
    /// Work before it failed.
    pub(crate) is_left_out: bool,
}

impl HostCall {
    pub(crate) fn leave_out(&mut self) {
        self.is_left_out = true;
    }

    /// Runs the job, unless work before it failed or the device was given up.
    pub(crate) fn run(self) {
        within_call(move || {
            let HostCall { job, faults, abort, is_left_out } = self;
            if is_left_out || abort.is_set() || faults.are_some() {
                return;
            }
            if let Err(error) = job.run() {
                faults.add(error);
            }
        });
    }
}

/// The first error of a stream's calls on the host since the last wait.
#[derive(Default)]
pub(crate) struct Faults {
    is_some: AtomicBool,
    first: Mutex<Option<DeviceError>>,
}

impl Faults {
    fn add(&self, error: DeviceError) {
        self.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.is_some.store(true, Ordering::Release);
    }

    pub(crate) fn are_some(&self) -> bool {
        self.is_some.load(Ordering::Acquire)
    }

    pub(crate) fn report(&self) -> Result<(), DeviceError> {
        if !self.is_some.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.map_or(Ok(()), Err)
    }
}

/// Which memory a copy is between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    HostToDevice,
    DeviceToHost,
    DeviceToDevice,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(arch: Arch) -> Properties {
        Properties {
            name: arch.to_string(),
            bus: String::new(),
            arch: Some(arch),
            multiprocessors: 4,
            l2_bytes: 0,
            shared_bytes_per_block: arch.shared_bytes_per_block(),
            memory_bytes: 0,
            clock_khz: 0,
            driver: String::new(),
            simulated: true,
        }
    }

    #[test]
    fn impossible_launches_are_refused_with_the_reason() {
        let good = Grid { shared_bytes: 1024, cluster: [2, 1, 1], ..Grid::linear(4, 256) };
        let hopper = limits(Arch::Sm90a);
        assert_eq!(good.check(&hopper, 256), Ok(()));
        let bad = [
            (Grid { grid: [0, 1, 1], ..good }, "zero"),
            (Grid { block: [257, 1, 1], ..good }, "257 threads"),
            (Grid { block: [u32::MAX; 3], ..good }, "threads"),
            (Grid { shared_bytes: 228 << 10, ..good }, "shared memory"),
            (Grid { cluster: [3, 1, 1], ..good }, "whole clusters"),
            (Grid { cluster: [4, 4, 1], ..good }, "16 blocks"),
        ];
        for (grid, expected) in bad {
            let message = grid.check(&hopper, 256).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        let message = good.check(&limits(Arch::Gfx942), 256).unwrap_err();
        assert!(message.contains("no clusters"), "{message}");
    }
}
