//! Memory that a collective may read at its peers: one part per member, of the same size, with the
//! same number on all members.

use device::{Buffer, DType, DeviceError, Tensor};

use crate::CommError;

/// Device memory of one size on every member of a group, made by [`crate::Group::window`]. Between
/// processes of one host each also maps the others' memory, so that a collective reads it
/// where it lies. Clones share the memory; the last one frees this member's part.
#[derive(Clone)]
pub struct Window {
    /// By place.
    buffers: std::sync::Arc<[Option<Buffer>]>,
    place: usize,
    /// The group's number in this process.
    group: u64,
    bytes: usize,
    /// Among the windows of its group, the same on every member; 0 of what is no [`Window`] of a
    /// user. Members that mean different windows would read and write what another operation uses.
    number: usize,
    /// Its like on the host, where the host cannot reach it.
    mirror: Option<std::sync::Arc<Window>>,
}

impl Window {
    /// `buffers[place]` must be there.
    pub(crate) fn new(
        buffers: Vec<Option<Buffer>>,
        place: usize,
        group: u64,
        bytes: usize,
    ) -> Window {
        Window { buffers: buffers.into(), place, group, bytes, number: 0, mirror: None }
    }

    /// A window in the memory of a device, with this one as its mirror on the host.
    pub(crate) fn on_device(self, mine: Buffer) -> Window {
        let mut buffers = vec![None; self.buffers.len()];
        buffers[self.place] = Some(mine);
        let Window { place, group, bytes, .. } = self;
        Window { mirror: Some(self.into()), ..Window::new(buffers, place, group, bytes) }
    }

    /// As one of a group of `members` members, of which those that made it are `first` and the
    /// following.
    pub(crate) fn among(self, first: usize, members: usize) -> Window {
        let mut buffers = vec![None; members];
        buffers[first..first + self.buffers.len()].clone_from_slice(&self.buffers);
        Window { buffers: buffers.into(), place: first + self.place, ..self }
    }

    pub(crate) fn numbered(self, number: usize) -> Window {
        Window { number, ..self }
    }

    pub(crate) fn number(&self) -> usize {
        self.number
    }

    pub(crate) fn mirror(&self) -> Option<&Window> {
        self.mirror.as_deref()
    }

    /// The window that the host reaches: the mirror, or the window itself.
    pub(crate) fn on_host(&self) -> &Window {
        self.mirror().unwrap_or(self)
    }

    /// Size of every member's part in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// This member's memory.
    pub fn buffer(&self) -> &Buffer {
        self.buffers[self.place].as_ref().expect("a window holds the memory of its own member")
    }

    /// A view of this member's memory from element `offset` on.
    ///
    /// # Errors
    /// The view does not lie inside the window; more than four axes.
    pub fn tensor(
        &self,
        offset: usize,
        shape: &[usize],
        dtype: DType,
    ) -> Result<Tensor, DeviceError> {
        Tensor::new(self.buffer().clone(), offset, shape, dtype)
    }

    /// A flat view of the memory of a member, mapped here.
    pub(crate) fn of_member(
        &self,
        place: usize,
        offset: usize,
        len: usize,
        dtype: DType,
    ) -> Result<Tensor, CommError> {
        let buffer = self.buffers.get(place).and_then(Option::as_ref);
        let buffer = buffer.ok_or(CommError::ForeignWindow)?;
        Ok(Tensor::new(buffer.clone(), offset, &[len], dtype)?)
    }

    /// Whether the memory of every member is within reach of this one.
    pub(crate) fn is_mapped(&self) -> bool {
        self.buffers.iter().all(Option::is_some)
    }

    /// Whether the group of that number made it.
    pub(crate) fn check(&self, group: u64) -> Result<(), CommError> {
        match self.group == group {
            true => Ok(()),
            false => Err(CommError::ForeignWindow),
        }
    }
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "window of {} bytes at place {}", self.bytes, self.place)
    }
}
