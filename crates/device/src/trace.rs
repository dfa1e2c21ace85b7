//! The work of a process over time: spans on tracks, recorded while somebody wants to know.
//!
//! ```text
//! thread ─ record ─▶ its own ring ─┐
//! thread ─ record ─▶ its own ring ─┼─ drain ─▶ whoever writes them down
//! names of tracks ─────────────────┘
//! ```
//!
//! While recording is off, whoever might record loads one flag. While it is on, recording takes no
//! lock and allocates nothing, but for a thread's first span, which makes its ring. A full ring
//! loses what comes, and counts it.
//!
//! A track is a thread, or something that many threads may serve one after another, as the
//! operations of a group. Spans of one thread nest; so do those of such a track.

mod ring;

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};

use ring::{Reader, Writer, ring};

/// Spans that a thread may be ahead of whoever drains: with a look every 20 ms that is 400 000 a
/// second, or one every 2.5 µs.
pub const SPANS: usize = 8192;

static ON: AtomicBool = AtomicBool::new(false);
static REFUSED: AtomicBool = AtomicBool::new(false);
static TRACKS: AtomicU32 = AtomicU32::new(1);
static KEPT: Mutex<Kept> = Mutex::new(Kept { names: Vec::new(), rings: Vec::new() });

/// A piece of work with its begin and end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    pub name: &'static str,
    /// On the clock of [`now_ns`].
    pub begin_ns: u64,
    pub end_ns: u64,
    pub detail: Detail,
}

/// The detail of a span beside its name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Detail {
    /// A part of something else.
    #[default]
    Part,
    /// A step of training, counted from 1.
    Step(u64),
    /// A kernel or copy of a host device, and what it counted; 0 for what it does not count.
    Kernel { flops: u64, bytes: u64 },
    /// A call to the outside, such as an fsync.
    Call,
    /// An operation of a channel or group.
    Operation(Moved),
}

/// The number and traffic of an operation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Its number in its channel or group, the same on every member.
    pub sequence: u64,
    /// `shm`, `tcp` or `shm+tcp`.
    pub transport: &'static str,
    /// Bytes of payload.
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// From its beginning here until the last member had come to it, as far as it is known here.
    pub waited_ns: u64,
}

/// Something that spans lie on; no other of the process has its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Track(u32);

/// A span on its way: on track 0 it is on its thread's own.
#[derive(Clone, Copy, Default)]
struct Queued {
    track: u32,
    span: Span,
}

/// The threads that have recorded, and names that were not told yet.
struct Kept {
    names: Vec<(u32, String)>,
    rings: Vec<(u32, Reader<Queued>)>,
}

/// Records that [`drain`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told<'a> {
    /// A track that spans will lie on, once.
    Track {
        track: u32,
        name: &'a str,
    },
    Span {
        track: u32,
        span: &'a Span,
    },
    /// So many more spans of a thread are lost.
    Lost {
        track: u32,
        spans: u64,
    },
}

thread_local! {
    static WRITER: RefCell<Option<Writer<Queued>>> = const { RefCell::new(None) };
}

/// Nanoseconds of a clock that all processes of a host read the same.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Whether spans are recorded.
#[inline]
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Begins or ends recording. What has begun by then is recorded when it ends.
pub fn switch(on: bool) {
    ON.store(on && !REFUSED.load(Ordering::Relaxed), Ordering::Relaxed);
}

/// Ends recording for good: nobody writes it down any more, and rings would fill for nothing.
pub fn refuse() {
    REFUSED.store(true, Ordering::Relaxed);
    switch(false);
}

/// The present time, if what begins now is to be recorded.
#[inline]
pub fn begin() -> Option<u64> {
    is_on().then(now_ns)
}

/// A new track.
pub fn track(name: String) -> Track {
    let track = TRACKS.fetch_add(1, Ordering::Relaxed);
    kept().names.push((track, name));
    Track(track)
}

/// Records what began at `begin_ns` and ends now, on this thread's own track.
pub fn end(name: &'static str, begin_ns: u64, detail: Detail) {
    push(Queued { track: 0, span: Span { name, begin_ns, end_ns: now_ns(), detail } });
}

/// Records on this thread's own track.
pub fn record(span: Span) {
    push(Queued { track: 0, span });
}

/// Records on `track`.
pub fn record_on(Track(track): Track, span: Span) {
    push(Queued { track, span });
}

fn push(queued: Queued) {
    // At the end of a thread there is no ring any more.
    let _ = WRITER.try_with(|writer| {
        let mut writer = writer.borrow_mut();
        writer.get_or_insert_with(begin_thread).push(queued);
    });
}

#[cold]
fn begin_thread() -> Writer<Queued> {
    let thread = std::thread::current();
    let Track(own) = track(thread.name().unwrap_or("thread").to_owned());
    let (writer, reader) = ring(SPANS);
    kept().rings.push((own, reader));
    writer
}

fn kept() -> std::sync::MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells everything recorded since the last call: tracks before spans, spans of a thread in the
/// order of their ends. Threads may record meanwhile; one that begins to waits.
pub fn drain(tell: &mut dyn FnMut(Told)) {
    let mut kept = kept();
    for (track, name) in kept.names.drain(..) {
        tell(Told::Track { track, name: &name });
    }
    kept.rings.retain_mut(|(own, reader)| {
        // Before the ring is emptied, or what a thread queued last would be dropped.
        let is_closed = reader.is_closed();
        // Spans that come meanwhile are for the next call, which else might never end.
        for _ in 0..SPANS {
            let Some(Queued { track, span }) = reader.take() else { break };
            tell(Told::Span { track: if track == 0 { *own } else { track }, span: &span });
        }
        let lost = reader.take_lost();
        if lost > 0 {
            tell(Told::Lost { track: *own, spans: lost });
        }
        !is_closed
    });
}

#[cfg(test)]
mod tests;
