//! The operations.
//!
//! All of them enqueue into a stream and come back; their memory must stay until the stream is
//! done. In place means that what is read lies where the result, or this rank's part of it, is
//! written.
//!
//! # Safety
//!
//! For each operation here: every buffer lies in memory that the communicator's GPU may read or,
//! where it is written to, write, at the whole of the length that it claims; it stays allocated,
//! and nothing else writes to it (or reads what is written), until the operation is over in its
//! stream or the communicator is aborted; and the stream is a live stream of that GPU.

use std::ffi::c_int;

use crate::check::{self, Pair};
use crate::communicator::within;
use crate::table::{Handle, Table, Told};
use crate::{Buffer, Communicator, Error, RedOp, Stream};

type Passes = unsafe fn(&Table, u64, usize, c_int, c_int, Handle, u64) -> Told;
type Gathers = unsafe fn(&Table, u64, u64, usize, c_int, c_int, Handle, u64) -> Result<Told, Error>;

impl Communicator {
    /// Every rank gets the reduction of all ranks' `from`.
    ///
    /// # Errors
    /// Lengths or types that do not fit; a failed or ended communicator; the deadline.
    ///
    /// # Safety
    /// That of this module: the memory is there, and stays until the stream is done with it.
    pub unsafe fn all_reduce(
        &self,
        from: Buffer,
        to: Buffer,
        op: RedOp<'_>,
        stream: Stream,
    ) -> Result<(), Error> {
        let call = "ncclAllReduce";
        check::pair(call, &Pair { from, to, in_place_at: Some(0) }, (1, 1))?;
        let (op, count, dtype) = (self.reduction(call, op, from)?, from.len, from.dtype as c_int);
        let (from, to, stream, table) = (from.address, to.address, stream.0, self.table());
        // SAFETY: the caller's, and the lengths were compared.
        let begin =
            |comm| Ok(unsafe { table.all_reduce(from, to, count, dtype, op, comm, stream) });
        self.enqueue(call, begin)
    }

    /// The root gets the reduction of all ranks' `from` into `to`, which only it needs.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`]; a root that there is not, or without `to`.
    ///
    /// # Safety
    /// That of this module: the memory is there, and stays until the stream is done with it.
    pub unsafe fn reduce(
        &self,
        from: Buffer,
        to: Option<Buffer>,
        op: RedOp<'_>,
        root: u32,
        stream: Stream,
    ) -> Result<(), Error> {
        let call = "ncclReduce";
        let root_number = self.root(root)?;
        let to = self.at_root(call, "to write", root, to)?.unwrap_or(from);
        check::pair(call, &Pair { from, to, in_place_at: Some(0) }, (1, 1))?;
        let (op, count, dtype) = (self.reduction(call, op, from)?, from.len, from.dtype as c_int);
        let (from, to, stream, table) = (from.address, to.address, stream.0, self.table());
        self.enqueue(call, |comm| {
            // SAFETY: the caller's; only the root writes.
            Ok(unsafe { table.reduce(from, to, count, dtype, op, root_number, comm, stream) })
        })
    }

    /// Every rank gets the root's `from`, which only it needs.
    ///
    /// # Errors
    /// As [`Communicator::reduce`].
    ///
    /// # Safety
    /// That of this module: the memory is there, and stays until the stream is done with it.
    pub unsafe fn broadcast(
        &self,
        from: Option<Buffer>,
        to: Buffer,
        root: u32,
        stream: Stream,
    ) -> Result<(), Error> {
        let call = "ncclBroadcast";
        let root_number = self.root(root)?;
        let from = self.at_root(call, "to read", root, from)?.unwrap_or(to);
        check::pair(call, &Pair { from, to, in_place_at: Some(0) }, (1, 1))?;
        self.typed(from)?;
        let (count, dtype) = (from.len, from.dtype as c_int);
        let (from, to, stream, table) = (from.address, to.address, stream.0, self.table());
        self.enqueue(call, |comm| {
            // SAFETY: the caller's; only the root reads.
            Ok(unsafe { table.broadcast(from, to, count, dtype, root_number, comm, stream) })
        })
    }

    /// Rank `r` gets part `r` of the reduction of all ranks' `from`; `from` has one part for each
    /// rank.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`].
    ///
    /// # Safety
    /// That of this module: the memory is there, and stays until the stream is done with it.
    pub unsafe fn reduce_scatter(
        &self,
        from: Buffer,
        to: Buffer,
        op: RedOp<'_>,
        stream: Stream,
    ) -> Result<(), Error> {
        let call = "ncclReduceScatter";
        let in_place_at = Some(-self.own_part(to));
        check::pair(call, &Pair { from, to, in_place_at }, (self.parts(), 1))?;
        let (op, count, dtype) = (self.reduction(call, op, from)?, to.len, from.dtype as c_int);
        let (from, to, stream, table) = (from.address, to.address, stream.0, self.table());
        self.enqueue(call, |comm| {
            // SAFETY: the caller's, and the lengths were compared.
            Ok(unsafe { table.reduce_scatter(from, to, count, dtype, op, comm, stream) })
        })
    }

    /// Every rank gets all ranks' `from`, one after another; `to` has one part for each rank.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`].
    ///
    /// # Safety
    /// That of this module: the memory is there, and stays until the stream is done with it.
    pub unsafe fn all_gather(&self, from: Buffer, to: Buffer, stream: Stream) -> Result<(), Error> {
        let call = "ncclAllGather";
        let in_place_at = Some(self.own_part(from));
        check::pair(call, &Pair { from, to, in_place_at }, (1, self.parts()))?;
        self.typed(from)?;
        let (count, dtype) = (from.len, from.dtype as c_int);
        let (from, to, stream, table) = (from.address, to.address, stream.0, self.table());
        // SAFETY: the caller's, and the lengths were compared.
        let begin = |comm| Ok(unsafe { table.all_gather(from, to, count, dtype, comm, stream) });
        self.enqueue(call, begin)
    }

    /// Sends to one rank, whose receive has the same length and type. Two ranks that send to each
    /// other do so in a group ([`crate::Library::group`]).
    ///
    /// # Errors
    /// A peer that there is not; a failed or ended communicator; the deadline.
    ///
    /// # Safety
    /// That of this module: the memory is there, and stays until the stream is done with it.
    pub unsafe fn send(&self, from: Buffer, peer: u32, stream: Stream) -> Result<(), Error> {
        // SAFETY: the caller's.
        unsafe { self.with_peer("ncclSend", Table::send, ("to read", from), peer, stream) }
    }

    /// Receives from one rank.
    ///
    /// # Errors
    /// As [`Communicator::send`].
    ///
    /// # Safety
    /// That of this module: the memory is there, and stays until the stream is done with it.
    pub unsafe fn recv(&self, to: Buffer, peer: u32, stream: Stream) -> Result<(), Error> {
        // SAFETY: the caller's.
        unsafe { self.with_peer("ncclRecv", Table::recv, ("to write", to), peer, stream) }
    }

    /// Part `i` of this rank's `from` goes to rank `i`, and part `i` of `to` comes from it. By
    /// sends and receives in a group where the library has no such operation. Not in place.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`]; lengths that do not divide among the ranks.
    ///
    /// # Safety
    /// That of this module: the memory is there, and stays until the stream is done with it.
    pub unsafe fn all_to_all(&self, from: Buffer, to: Buffer, stream: Stream) -> Result<(), Error> {
        let call = "ncclAlltoAll";
        check::pair(call, &Pair { from, to, in_place_at: None }, (1, 1))?;
        check::divided(call, from, self.ranks())?;
        self.typed(from)?;
        let ranks = self.ranks();
        if !self.library().has(call) {
            return self.library().group(self.timeout(), || {
                (0..ranks).try_for_each(|peer| {
                    // SAFETY: the caller's; parts of buffers that were checked.
                    unsafe {
                        self.send(from.part(peer, ranks), peer, stream)?;
                        self.recv(to.part(peer, ranks), peer, stream)
                    }
                })
            });
        }
        let (count, dtype) = (from.len / self.parts(), from.dtype as c_int);
        let (from, to, stream, table) = (from.address, to.address, stream.0, self.table());
        // SAFETY: the caller's, and the lengths were compared.
        self.enqueue(call, |comm| unsafe { table.all_to_all(from, to, count, dtype, comm, stream) })
    }

    /// The root gets all ranks' `from`, one after another; only it needs `to`, which has one part
    /// for each rank. By sends and receives where the library has no such operation.
    ///
    /// # Errors
    /// As [`Communicator::reduce`].
    ///
    /// # Safety
    /// That of this module: the memory is there, and stays until the stream is done with it.
    pub unsafe fn gather(
        &self,
        from: Buffer,
        to: Option<Buffer>,
        root: u32,
        stream: Stream,
    ) -> Result<(), Error> {
        let (call, ranks) = ("ncclGather", self.ranks());
        let root_number = self.root(root)?;
        let to = self.at_root(call, "to write", root, to)?;
        match to {
            Some(to) => {
                let in_place_at = Some(self.own_part(from));
                check::pair(call, &Pair { from, to, in_place_at }, (1, self.parts()))?;
            }
            None => check::one(call, "to read", from)?,
        }
        self.typed(from)?;
        if self.library().has(call) {
            let to = to.map_or(0, |to| to.address);
            // SAFETY: the caller's.
            return unsafe { self.rooted(call, Table::gather, (from, to), root_number, stream) };
        }
        self.library().group(self.timeout(), || {
            // SAFETY: the caller's; parts of buffers that were checked.
            unsafe { self.send(from, root, stream) }?;
            let Some(to) = to else { return Ok(()) };
            (0..ranks).try_for_each(|peer| {
                // SAFETY: as above.
                unsafe { self.recv(to.part(peer, ranks), peer, stream) }
            })
        })
    }

    /// Rank `r` gets part `r` of the root's `from`, which only it needs. By sends and receives
    /// where the library has no such operation.
    ///
    /// # Errors
    /// As [`Communicator::reduce`].
    ///
    /// # Safety
    /// That of this module: the memory is there, and stays until the stream is done with it.
    pub unsafe fn scatter(
        &self,
        from: Option<Buffer>,
        to: Buffer,
        root: u32,
        stream: Stream,
    ) -> Result<(), Error> {
        let (call, ranks) = ("ncclScatter", self.ranks());
        let root_number = self.root(root)?;
        let from = self.at_root(call, "to read", root, from)?;
        match from {
            Some(from) => {
                let in_place_at = Some(-self.own_part(to));
                check::pair(call, &Pair { from, to, in_place_at }, (self.parts(), 1))?;
            }
            None => check::one(call, "to write", to)?,
        }
        self.typed(to)?;
        if self.library().has(call) {
            let part = Buffer { address: from.map_or(0, |from| from.address), ..to };
            let pair = (part, to.address);
            // SAFETY: the caller's.
            return unsafe { self.rooted(call, Table::scatter, pair, root_number, stream) };
        }
        self.library().group(self.timeout(), || {
            if let Some(from) = from {
                (0..ranks).try_for_each(|peer| {
                    // SAFETY: the caller's; parts of buffers that were checked.
                    unsafe { self.send(from.part(peer, ranks), peer, stream) }
                })?;
            }
            // SAFETY: as above.
            unsafe { self.recv(to, root, stream) }
        })
    }

    /// Gather and scatter; the buffer's length is that of one rank's part.
    ///
    /// # Safety
    /// As of the operation.
    unsafe fn rooted(
        &self,
        call: &'static str,
        operation: Gathers,
        (from, to): (Buffer, u64),
        root: c_int,
        stream: Stream,
    ) -> Result<(), Error> {
        let Buffer { address, len, dtype } = from;
        let (dtype, stream, table) = (dtype as c_int, stream.0, self.table());
        self.enqueue(call, |comm| {
            // SAFETY: the caller's.
            unsafe { operation(table, address, to, len, dtype, root, comm, stream) }
        })
    }

    /// Send and receive.
    ///
    /// # Safety
    /// As of the operation.
    unsafe fn with_peer(
        &self,
        call: &'static str,
        operation: Passes,
        (name, buffer): (&str, Buffer),
        peer: u32,
        stream: Stream,
    ) -> Result<(), Error> {
        check::one(call, name, buffer)?;
        self.typed(buffer)?;
        let (peer, _) = within("the peer", peer, self.ranks())?;
        let Buffer { address, len, dtype } = buffer;
        let (dtype, stream, table) = (dtype as c_int, stream.0, self.table());
        self.enqueue(call, |comm| {
            // SAFETY: the caller's.
            Ok(unsafe { operation(table, address, len, dtype, peer, comm, stream) })
        })
    }

    fn table(&self) -> &Table {
        self.library().table()
    }

    fn parts(&self) -> usize {
        self.ranks() as usize
    }

    /// Where this rank's part begins, in elements; `part` is as long as one.
    fn own_part(&self, part: Buffer) -> i128 {
        i128::from(self.rank()) * part.len as i128
    }

    fn root(&self, root: u32) -> Result<c_int, Error> {
        within("the root", root, self.ranks()).map(|(root, _)| root)
    }

    /// A buffer that the root must have, and that is not looked at elsewhere.
    fn at_root(
        &self,
        call: &'static str,
        name: &str,
        root: u32,
        buffer: Option<Buffer>,
    ) -> Result<Option<Buffer>, Error> {
        if self.rank() != root {
            return Ok(None);
        }
        match buffer {
            Some(_) => Ok(buffer),
            None => {
                let what = format!("this rank is the root, and has no buffer {name}");
                Err(Error::Argument { call, what })
            }
        }
    }

    /// # Errors
    /// The library does not have the type.
    fn typed(&self, buffer: Buffer) -> Result<(), Error> {
        self.table().require(buffer.dtype.name(), buffer.dtype.since())
    }

    fn reduction(&self, call: &'static str, op: RedOp<'_>, of: Buffer) -> Result<c_int, Error> {
        self.typed(of)?;
        op.number(call, &self.shared, of.dtype)
    }
}
