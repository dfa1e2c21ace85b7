//! The order of work: vector clocks over streams and the host, and who touched which bytes.

use std::collections::BTreeMap;
use std::ops::Range;

/// How much of each stream's work is known to be over; counts of its operations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Clock(BTreeMap<u64, u64>);

impl Clock {
    pub(crate) fn of(&self, stream: u64) -> u64 {
        self.0.get(&stream).copied().unwrap_or(0)
    }

    fn join(&mut self, other: &Clock) {
        for (&stream, &count) in &other.0 {
            let ours = self.0.entry(stream).or_default();
            *ours = count.max(*ours);
        }
    }
}

/// One operation's touch of a range of bytes.
#[derive(Debug, Clone)]
struct Touch {
    bytes: Range<u64>,
    writes: bool,
    stream: u64,
    count: u64,
    /// The work that was known to be over before it.
    clock: Clock,
    call: &'static str,
}

/// The order of all work so far.
pub(crate) struct Order {
    host: Clock,
    streams: BTreeMap<u64, Clock>,
    touches: Vec<Touch>,
}

impl Order {
    pub(crate) const fn new() -> Order {
        Order { host: Clock(BTreeMap::new()), streams: BTreeMap::new(), touches: Vec::new() }
    }

    /// The next operation of a stream; returns its number there.
    pub(crate) fn enqueue(&mut self, stream: u64) -> u64 {
        let clock = self.streams.entry(stream).or_default();
        clock.join(&self.host);
        let count = clock.0.entry(stream).or_default();
        *count += 1;
        *count
    }

    pub(crate) fn clock(&self, stream: u64) -> Clock {
        self.streams.get(&stream).cloned().unwrap_or_default()
    }

    /// The stream's later work waits for what `clock` covers.
    pub(crate) fn wait(&mut self, stream: u64, clock: &Clock) {
        self.streams.entry(stream).or_default().join(clock);
    }

    /// The host has waited for what `clock` covers.
    pub(crate) fn host_waits(&mut self, clock: &Clock) {
        self.host.join(clock);
        let host = &self.host;
        self.touches.retain(|touch| host.of(touch.stream) < touch.count);
    }

    pub(crate) fn host_waits_for_all(&mut self) {
        let clocks: Vec<Clock> = self.streams.values().cloned().collect();
        clocks.iter().for_each(|clock| self.host.join(clock));
        self.touches.clear();
    }

    /// Operation `count` of `stream` touches `bytes`; returns whose unordered touch it meets.
    pub(crate) fn touch(
        &mut self,
        (stream, count): (u64, u64),
        bytes: Range<u64>,
        writes: bool,
        call: &'static str,
    ) -> Option<&'static str> {
        let clock = self.clock(stream);
        let met = self.unordered((stream, count), &clock).find(|touch| {
            (writes || touch.writes)
                && touch.bytes.start < bytes.end
                && bytes.start < touch.bytes.end
        });
        let met = met.map(|touch| touch.call);
        self.touches.push(Touch { bytes, writes, stream, count, clock, call });
        met
    }

    /// The bytes that unordered work writes to, enqueued before or after an operation (its stream,
    /// its number there) before which `clock` was known to be over.
    pub(crate) fn unordered_writes(
        &self,
        operation: (u64, u64),
        clock: &Clock,
    ) -> Vec<(Range<u64>, &'static str)> {
        let writes = self.unordered(operation, clock).filter(|touch| touch.writes);
        writes.map(|touch| (touch.bytes.clone(), touch.call)).collect()
    }

    fn unordered(
        &self,
        (stream, count): (u64, u64),
        clock: &Clock,
    ) -> impl Iterator<Item = &Touch> {
        self.touches.iter().filter(move |touch| {
            let before = clock.of(touch.stream) >= touch.count;
            let after = touch.clock.of(stream) >= count;
            touch.stream != stream && !before && !after
        })
    }
}

/// `ranges` without `holes`; both in any order.
pub(crate) fn without(ranges: Vec<Range<u64>>, holes: &[Range<u64>]) -> Vec<Range<u64>> {
    holes.iter().fold(ranges, |ranges, hole| {
        let cut = |range: Range<u64>| {
            let below = range.start..range.end.min(hole.start);
            let above = range.start.max(hole.end)..range.end;
            [below, above].into_iter().filter(|part| part.start < part.end)
        };
        ranges.into_iter().flat_map(cut).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_waits_order_streams_and_nothing_else_does() {
        let mut order = Order::new();
        let first = order.enqueue(1);
        assert_eq!(order.touch((1, first), 0..8, true, "write"), None);
        let other = order.enqueue(2);
        assert_eq!(order.touch((2, other), 4..12, false, "read"), Some("write"));
        assert_eq!(order.touch((2, other), 8..12, true, "beside"), None);
        let event = order.clock(1);
        order.wait(2, &event);
        let later = order.enqueue(2);
        assert_eq!(order.touch((2, later), 0..4, true, "after the event"), None);
        order.host_waits_for_all();
        let third = order.enqueue(3);
        assert_eq!(order.touch((3, third), 0..12, true, "after the host waited"), None);
        let first = (1, order.enqueue(1));
        let clock = order.clock(1);
        assert_eq!(order.unordered_writes(first, &clock).len(), 1, "of the third stream");
        order.wait(3, &clock);
        let third = order.enqueue(3);
        assert_eq!(order.touch((3, third), 12..13, true, "after the first stream"), None);
        assert_eq!(order.unordered_writes(first, &clock).len(), 1, "and no more");
    }

    #[test]
    fn holes_are_cut_out() {
        assert_eq!(without(vec![0..10, 20..30], &[3..5, 8..22]), vec![0..3, 5..8, 22..30]);
        assert_eq!(without(vec![0..10, 12..13], &[0..10, 11..14]), vec![]);
        assert_eq!(without(vec![0..4, 6..8], &[]), vec![0..4, 6..8]);
    }
}
