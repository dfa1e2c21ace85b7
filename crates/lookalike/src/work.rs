//! Work on streams: enqueued in one queue, run late, captured, replayed, waited for.

use std::sync::Arc;
use std::time::Instant;

use device::Grid;
use device::simulated::{SimFailure, SimModule, SimOrder, SimRange};

use crate::op::{Op, Work};
use crate::order::without;
use crate::world::{ApiCall, Capture, EventState, Told, call_host, code, run_apart};

impl ApiCall {
    /// Enqueues work on a stream, or keeps it for the graph that the stream captures.
    pub(crate) fn enqueue(&mut self, stream: u64, work: Work) -> Told {
        self.stream(stream)?;
        if let Some(state) = self.streams.get_mut(&stream)
            && let Some(capture) = &mut state.capture
        {
            capture.work.push(work);
            return Ok(());
        }
        self.push(stream, work)
    }

    fn push(&mut self, stream: u64, mut work: Work) -> Told {
        let count = self.order.enqueue(stream);
        let touches: &[(u64, u64, bool)] = match &work {
            Work::Write { to, from } => &[(*to, from.len() as u64, true)],
            Work::FromPinned { to, bytes, .. } | Work::Fill { to, bytes, .. } => {
                &[(*to, *bytes, true)]
            }
            Work::ToPinned { from, bytes, .. } => &[(*from, *bytes, false)],
            Work::Copy { to, from, bytes } => &[(*from, *bytes, false), (*to, *bytes, true)],
            Work::Operations { batch, .. } => batch.touches(),
            Work::Launch { .. } | Work::Record { .. } | Work::Host { .. } => &[],
        };
        let name = self.name;
        for &(start, bytes, writes) in touches {
            self.inside(start, bytes)?;
            let range = start..start + bytes;
            if let Some(other) = self.order.touch((stream, count), range, writes, name) {
                let what = format!(
                    "{bytes} bytes at {start:#x} are in use by {other} in another stream, and \
                     nothing orders the two"
                );
                return Err(self.wrong(code::INVALID_VALUE, what));
            }
        }
        if let Work::Operations { batch, number } = &mut work {
            *number = batch.comm.take_number();
        }
        let clock = self.order.clock(stream);
        self.queue.push_back(Op { stream, count, clock, work, name });
        Ok(())
    }

    /// The host waits for a stream.
    pub(crate) fn wait_for_stream(&mut self, stream: u64) -> Told {
        self.stream(stream)?;
        self.refuse_in_capture(stream)?;
        while self.has_work(stream) {
            self.get_on()?;
        }
        let clock = self.order.clock(stream);
        self.order.host_waits(&clock);
        Ok(())
    }

    pub(crate) fn wait_for_all(&mut self) -> Told {
        while !self.queue.is_empty() || !self.running.is_empty() {
            self.get_on()?;
        }
        self.order.host_waits_for_all();
        Ok(())
    }

    fn has_work(&self, stream: u64) -> bool {
        let is_queued = self.queue.iter().any(|op| op.stream == stream);
        is_queued || self.running.iter().any(|(of, _)| *of == stream)
    }

    /// A stream ends: its work is done all the same, later where a call on the host is under way.
    pub(crate) fn finish_stream(&mut self, stream: u64) -> Told {
        self.stream(stream)?;
        self.refuse_in_capture(stream)?;
        while self.has_work(stream) && self.run_oldest()? {}
        if !self.has_work(stream) {
            self.wait_for_stream(stream)?;
        }
        Ok(())
    }

    /// Whether a stream is done; asking lets one operation run.
    pub(crate) fn query_stream(&mut self, stream: u64) -> Told {
        self.stream(stream)?;
        self.refuse_in_capture(stream)?;
        if self.has_work(stream) {
            self.run_oldest()?;
        }
        match self.has_work(stream) {
            true => Err(code::NOT_READY),
            false => self.wait_for_stream(stream),
        }
    }

    fn has_reached(&self, event: u64) -> Result<bool, i32> {
        let state = self.events.get(&event).ok_or_else(|| self.gone("event", event))?;
        Ok(state.reached >= state.enqueued)
    }

    /// Whether an event is reached; asking lets one operation run.
    pub(crate) fn query_event(&mut self, event: u64) -> Told {
        if !self.has_reached(event)? {
            self.run_oldest()?;
        }
        match self.has_reached(event)? {
            true => self.wait_for_event(event),
            false => Err(code::NOT_READY),
        }
    }

    pub(crate) fn wait_for_event(&mut self, event: u64) -> Told {
        while !self.has_reached(event)? {
            self.get_on()?;
        }
        if let Some(clock) = self.events.get(&event).and_then(|state| state.clock.clone()) {
            self.order.host_waits(&clock);
        }
        Ok(())
    }

    /// A copy to memory that is not page-locked is over when the call returns.
    ///
    /// # Safety
    /// `to` has room for `bytes` bytes.
    pub(crate) unsafe fn read_now(
        &mut self,
        stream: u64,
        to: *mut u8,
        from: u64,
        bytes: usize,
    ) -> Told {
        self.stream(stream)?;
        self.refuse_in_capture(stream)?;
        let count = self.order.enqueue(stream);
        let (range, name) = (from..from + bytes as u64, self.name);
        if let Some(other) = self.order.touch((stream, count), range, false, name) {
            let what = format!(
                "{bytes} bytes at {from:#x} are in use by {other} in another stream, and nothing \
                 orders the two"
            );
            return Err(self.wrong(code::INVALID_VALUE, what));
        }
        self.wait_for_stream(stream)?;
        self.inside(from, bytes as u64)?;
        // SAFETY: a live allocation holds the range, and the caller vouches for the other.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to, bytes) };
        Ok(())
    }

    pub(crate) fn record(&mut self, event: u64, stream: u64) -> Told {
        self.stream(stream)?;
        if self.streams[&stream].capture.is_some() {
            return Err(self.wrong(code::CAPTURE_UNSUPPORTED, "an event in a captured graph"));
        }
        let state = self.events.get_mut(&event);
        let Some(EventState { enqueued, .. }) = state else {
            return Err(self.gone("event", event));
        };
        *enqueued += 1;
        let generation = *enqueued;
        self.push(stream, Work::Record { event, generation })?;
        let clock = self.order.clock(stream);
        if let Some(state) = self.events.get_mut(&event) {
            state.clock = Some(clock);
        }
        Ok(())
    }

    pub(crate) fn stream_waits(&mut self, stream: u64, event: u64) -> Told {
        self.stream(stream)?;
        let Some(state) = self.events.get(&event) else {
            return Err(self.gone("event", event));
        };
        // An event that was never recorded is over.
        if let Some(clock) = state.clock.clone() {
            self.order.wait(stream, &clock);
        }
        Ok(())
    }

    pub(crate) fn elapsed(&self, start: u64, end: u64) -> Result<f32, i32> {
        let at = |event: u64| {
            let state = self.events.get(&event).ok_or_else(|| self.gone("event", event))?;
            match (state.enqueued, state.at) {
                (0, _) => Err(self.wrong(code::INVALID_HANDLE, "an event that was not recorded")),
                (enqueued, Some(at)) if state.reached == enqueued => Ok(at),
                _ => Err(code::NOT_READY),
            }
        };
        let (start, end) = (at(start)?, at(end)?);
        let apart = |from: Instant, to: Instant| to.duration_since(from).as_secs_f32() * 1e3;
        Ok(if end >= start { apart(start, end) } else { -apart(end, start) })
    }

    pub(crate) fn begin_capture(&mut self, stream: u64, mode: i32) -> Told {
        if !(0..=2).contains(&mode) {
            return Err(self.wrong(code::INVALID_VALUE, "there is no such capture mode"));
        }
        if self.stream(stream)?.capture.is_some() {
            return Err(self.wrong(code::ILLEGAL_STATE, "the stream captures a graph already"));
        }
        if let Some(state) = self.streams.get_mut(&stream) {
            state.capture = Some(Capture::default());
        }
        Ok(())
    }

    pub(crate) fn end_capture(&mut self, stream: u64) -> Result<u64, i32> {
        self.stream(stream)?;
        let capture = self.streams.get_mut(&stream).and_then(|state| state.capture.take());
        match capture {
            None => Err(self.wrong(code::ILLEGAL_STATE, "the stream captures no graph")),
            Some(Capture { broken: true, .. }) => Err(code::CAPTURE_INVALIDATED),
            Some(Capture { work, .. }) => {
                let graph = self.fresh();
                self.graphs.insert(graph, Arc::new(work));
                Ok(graph)
            }
        }
    }

    pub(crate) fn launch_graph(&mut self, executable: u64, stream: u64) -> Told {
        let Some(work) = self.executables.get(&executable).cloned() else {
            return Err(self.gone("executable graph", executable));
        };
        for work in work.iter() {
            if let Work::Launch { function, .. } = work
                && !self.functions.contains_key(function)
            {
                let what = "a kernel of the graph is of a module that was unloaded";
                return Err(self.wrong(code::INVALID_HANDLE, what));
            }
            self.enqueue(stream, work.clone())?;
        }
        Ok(())
    }

    /// Waiting on a capturing stream fails, and spoils the capture.
    pub(crate) fn refuse_in_capture(&mut self, stream: u64) -> Told {
        let state = self.streams.get_mut(&stream);
        let Some(capture) = state.and_then(|state| state.capture.as_mut()) else { return Ok(()) };
        capture.broken = true;
        Err(code::CAPTURE_UNSUPPORTED)
    }

    /// Runs an operation, or sleeps until one that was begun is over.
    fn get_on(&mut self) -> Told {
        if !self.run_oldest()? {
            self.sleep();
        }
        Ok(())
    }

    /// Whether everything that must be over before an operation is.
    fn is_ready(&self, index: usize) -> bool {
        let op = &self.queue[index];
        let is_before = |(stream, count): (u64, u64)| op.clock.of(stream) >= count;
        let earlier = self.queue.range(..index).map(|op| (op.stream, op.count));
        !earlier.chain(self.running.iter().copied()).any(is_before)
    }

    /// Runs the oldest operation that may run; false if there is none.
    fn run_oldest(&mut self) -> Result<bool, i32> {
        self.broken.map_or(Ok(()), Err)?;
        let ready = (0..self.queue.len()).find(|&index| self.is_ready(index));
        let Some(op) = ready.and_then(|index| self.queue.remove(index)) else { return Ok(false) };
        // Whoever looks may have another device, or none.
        let device = self.streams.get(&op.stream).map(|state| state.device);
        match device {
            Some(device) => self.on_device(device, |call| call.run(op)),
            None => self.run(op),
        }
        .map(|()| true)
    }

    /// Lets one operation run; what it fails with is told to whoever waits for it.
    pub(crate) fn get_on_a_step(&mut self) {
        let _ = self.run_oldest();
    }

    fn run(&mut self, op: Op) -> Told {
        let range = |call: &ApiCall, start, bytes| {
            let inside = call.inside(start, bytes);
            inside.inspect_err(|_| eprintln!("lookalike: … when {} was run", op.name))
        };
        match &op.work {
            Work::Write { to, from } => {
                range(self, *to, from.len() as u64)?;
                // SAFETY: a live allocation holds the range.
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), *to as *mut u8, from.len()) };
            }
            Work::FromPinned { to, from, bytes } => {
                range(self, *to, *bytes)?;
                self.pinned_range(*from, *bytes)?;
                copy(*to, *from, *bytes);
            }
            Work::ToPinned { to, from, bytes } => {
                range(self, *from, *bytes)?;
                self.pinned_range(*to, *bytes)?;
                copy(*to, *from, *bytes);
            }
            Work::Copy { to, from, bytes } => {
                range(self, *to, *bytes)?;
                range(self, *from, *bytes)?;
                copy(*to, *from, *bytes);
            }
            Work::Fill { to, byte, bytes } => {
                range(self, *to, *bytes)?;
                // SAFETY: a live allocation holds the range.
                unsafe { std::ptr::write_bytes(*to as *mut u8, *byte, *bytes as usize) };
            }
            Work::Launch { code, index, grid, args, .. } => {
                // A kernel must not see what unordered work writes to.
                let hidden = self.order.unordered_writes((op.stream, op.count), &op.clock);
                self.run_kernel(code, *index, grid, args, &hidden)?;
            }
            Work::Host { function, data } => {
                self.running.push((op.stream, op.count));
                call_host(*function, *data, (op.stream, op.count));
            }
            Work::Operations { batch, number } => {
                for &(start, bytes, _) in batch.touches() {
                    range(self, start, bytes)?;
                }
                self.running.push((op.stream, op.count));
                let (batch, number) = (Arc::clone(batch), *number);
                // SAFETY: live allocations hold the ranges, and a free waits for what is running.
                run_apart((op.stream, op.count), move || unsafe { batch.run(number) });
            }
            Work::Record { event, generation } => {
                if let Some(state) = self.events.get_mut(event) {
                    (state.reached, state.at) = (*generation, Some(Instant::now()));
                }
            }
        }
        Ok(())
    }

    fn pinned_range(&self, start: u64, bytes: u64) -> Told {
        match self.is_pinned(start, bytes) {
            true => Ok(()),
            false => Err(self.wrong(
                code::INVALID_VALUE,
                "page-locked memory was freed before the copy from or to it was over",
            )),
        }
    }

    fn run_kernel(
        &mut self,
        module: &SimModule,
        index: usize,
        grid: &Grid,
        args: &[u8],
        hidden: &[(std::ops::Range<u64>, &'static str)],
    ) -> Told {
        let holes: Vec<_> = hidden.iter().map(|(range, _)| range.clone()).collect();
        let ranges = without(self.live(), &holes);
        let range = |range: std::ops::Range<u64>| SimRange {
            start: range.start,
            bytes: range.end - range.start,
        };
        let ranges: Vec<SimRange> = ranges.into_iter().map(range).collect();
        let order = SimOrder { seed: 0, check_races: true };
        // SAFETY: live allocations in the order of their addresses, which whoever holds the state
        // alone touches.
        let Err(failure) = (unsafe { module.launch(index, grid, args, &ranges, order) }) else {
            return Ok(());
        };
        let (SimFailure::Refused(message) | SimFailure::Fault(message)) = failure;
        eprintln!("lookalike: kernel `{}`: {message}", module.kernels()[index].name);
        for (range, call) in hidden {
            let bytes = range.end - range.start;
            eprintln!(
                "lookalike: it did not see {bytes} bytes at {:#x}: {call} in another stream writes \
                 there, and nothing orders the two",
                range.start
            );
        }
        self.broken = Some(code::ILLEGAL_ADDRESS);
        Err(code::ILLEGAL_ADDRESS)
    }
}

fn copy(to: u64, from: u64, bytes: u64) {
    // SAFETY: the caller has found both ranges in live allocations; they may overlap.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes as usize) };
}
