//! Where the inputs of an ordered sum lie: a transport says where it has brought them, and whoever
//! sums asks for one part after another.

use std::ops::Range;

use device::Tensor;

use crate::Result;

/// A part of a peer's partial.
pub(crate) struct Wanted {
    /// The member that holds it.
    pub holder: usize,
    /// Which of its partials.
    pub index: usize,
    /// Elements of that partial's buffer.
    pub range: Range<usize>,
    /// Where they begin in the tile.
    pub at: usize,
}

/// Where a transport has brought the partials of peers.
pub(crate) trait Source {
    /// Whether this member's own partials are there too, and not in its buffers.
    const HAS_OWN: bool = false;

    /// Memory of the device that `out` is on. Not asked where sums are made elsewhere.
    fn locate(&self, wanted: Wanted) -> Result<Tensor>;

    /// Copies the bytes to as many of the host's. Asked where sums are made elsewhere alone.
    fn copy(&self, wanted: Wanted, into: &mut [u8]) -> Result<()>;
}
