//! A member's end of a group over a vendor's library: what it enqueues, how it follows that to its
//! end, and how it ends itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use device::{DType, Device, DeviceError, Event, Stream, Tensor};
use kernels::ordered_sum::Summation;
use nccl_rs::{Communicator, JobId, Library};

use super::action::Action;
use super::calls::enqueue;
use super::flights::{Flight, Flights};
use super::plan::{Check, Maker, Plan};
use super::reduce::Room;
use super::window::{self, WindowPath};
use super::{GroupOptions, SumOrder, join, told};
use crate::copies::load;
use crate::elsewhere::AllLanes;
use crate::op::Op;
use crate::patience::LOOK;
use crate::site::Site;
use crate::transport::Transport;
use crate::{CommError, Operation, Result, Window, ending};

/// The library's own deadlines come after the job's, which this module keeps.
const NEVER: Duration = Duration::from_secs(86_400);
/// How long an abort of a communicator may take, before the device is given up.
const ABORT: Duration = Duration::from_secs(2);
/// How long whoever waits for an operation may have it to itself before the watchdog looks.
const BEFORE_WATCHDOG: Duration = Duration::from_millis(1);

/// Operation and number.
type Numbered = (Operation, u64);

pub(crate) struct Member {
    comm: Communicator,
    /// Of the device, for this group alone.
    stream: Stream,
    /// Where the companion's messages lie.
    host: Device,
    companion: Arc<dyn Transport>,
    sum: SumOrder,
    /// Operations so far, those that wait for the group's thread among them.
    submitted: AtomicU64,
    flights: Flights,
    ticks: Tensor,
    rooms: [Mutex<Option<Tensor>>; 2],
    path: OnceLock<WindowPath>,
    has_failed: AtomicBool,
    /// The first failure, until somebody is told.
    failure: Mutex<Option<CommError>>,
}

/// Ends the communicator when the group is dropped and its operations are done.
pub(crate) struct Ending {
    member: Arc<Member>,
    watchdog: Option<JoinHandle<()>>,
}

impl Member {
    /// Becomes a member. Collective.
    ///
    /// # Errors
    /// The library's; a member that does not come.
    pub(crate) fn join(
        companion: Arc<dyn Transport>,
        device: &Device,
        library: &Library,
        job: JobId,
        options: GroupOptions,
    ) -> Result<(Arc<Member>, Ending)> {
        let stream = device.new_stream()?;
        let comm = join::communicator(&*companion, &stream, library, job)?;
        comm.set_timeout(NEVER);
        let members = companion.members().len();
        let member = Arc::new(Member {
            comm,
            host: Device::cpu(1)?,
            ticks: device.zeros(&[members], DType::U8)?,
            stream,
            companion,
            sum: options.sum,
            submitted: AtomicU64::new(0),
            flights: Flights::default(),
            rooms: Default::default(),
            path: OnceLock::new(),
            has_failed: AtomicBool::new(false),
            failure: Mutex::default(),
        });
        let watched = Arc::clone(&member);
        let watchdog = std::thread::Builder::new().name("nccl-watch".to_owned());
        let watchdog = watchdog.spawn(move || watched.watch()).map_err(CommError::Runtime)?;
        let ending = Ending { member: Arc::clone(&member), watchdog: Some(watchdog) };
        Ok((member, ending))
    }

    /// A device whose streams run what enqueues.
    pub(crate) fn host(&self) -> &Device {
        &self.host
    }

    pub(crate) fn library(&self) -> &Library {
        self.comm.library()
    }

    /// How the library knows the memory of the group's windows, once there is one.
    pub(crate) fn window_path(&self) -> Option<WindowPath> {
        self.path.get().copied()
    }

    /// # Errors
    /// As [`Op::steps`]; memory of another device; no memory.
    pub(crate) fn plan(&self, op: Op, group: u64, lanes: &AllLanes) -> Result<Plan> {
        let members = self.companion.members();
        let room = |room, bytes| self.room(room, bytes);
        let maker = Maker {
            site: Site { group, members, boxes: None, lanes, hosts: None },
            device: self.stream.device(),
            host: &self.host,
            stream: &self.stream,
            sum: self.sum,
            ticks: &self.ticks,
            room: &room,
        };
        maker.plan(op)
    }

    /// Plans keep what they were given, so a larger one may take its place.
    fn room(&self, room: Room, bytes: usize) -> Result<Tensor> {
        let mut kept = self.rooms[room as usize].lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tensor) = kept.as_ref().filter(|tensor| tensor.len() >= bytes) {
            return Ok(tensor.clone());
        }
        Ok(kept.insert(self.stream.device().zeros(&[bytes], DType::U8)?).clone())
    }

    /// A window of the group with the number `group`. Collective; what was submitted is done.
    ///
    /// # Errors
    /// Memory; as an operation.
    pub(crate) fn window(&self, group: u64, bytes: usize) -> Result<Window> {
        let operation = Operation::Window;
        self.companion.meet(operation, bytes as u64)?;
        // Members may register it together, which must end like any operation.
        self.comm.set_timeout(Duration::from_millis(self.companion.job().timeout_ms()));
        let made = window::alloc(&self.comm, &self.stream, bytes);
        self.comm.set_timeout(NEVER);
        let made = made.and_then(|told| told.map_err(|error| self.told((operation, 0), error)));
        let (buffer, path) = made.map_err(|error| {
            self.fail((operation, 0), error);
            self.error((operation, 0))
        })?;
        if bytes > 0 {
            let _ = self.path.set(path);
        }
        let (members, place) = (self.companion.members().len(), self.companion.members().place);
        let mut buffers = vec![None; members];
        buffers[place] = Some(buffer);
        Ok(Window::new(buffers, place, group, bytes))
    }

    /// So many operations were submitted; each is enqueued once.
    pub(crate) fn has_submitted(&self, number: u64) {
        self.submitted.store(number, Ordering::Release);
    }

    /// Enqueues an operation after `after`; on the group's thread, or on that of whoever has its
    /// turn.
    ///
    /// # Errors
    /// That the job is given up; whoever waits for the operation is told more.
    pub(crate) fn enqueue(
        &self,
        plan: &Plan,
        after: Option<&Event>,
    ) -> std::result::Result<(), DeviceError> {
        let flight = self.flights.begin(plan.operation, &plan.check, plan.bytes);
        let call = (flight.operation, flight.number);
        let enqueued = self.enqueue_all(plan, call, after).and_then(|()| {
            let _ = flight.end.set(self.stream.record()?);
            Ok(())
        });
        self.flights.wake();
        enqueued.map_err(|error| {
            self.fail(call, error);
            let why = self.companion.job().revocation().why().unwrap_or_default().to_owned();
            DeviceError::Host(Box::new(CommError::Revoked { why }))
        })
    }

    fn enqueue_all(&self, plan: &Plan, call: Numbered, after: Option<&Event>) -> Result<()> {
        if self.has_failed() {
            return Err(self.over(call));
        }
        if let Some(after) = after {
            self.order_after(call, after)?;
        }
        for action in &plan.actions {
            match action {
                Action::Moves(moves) => {
                    let told = enqueue(&self.comm, &self.stream, moves)?;
                    told.map_err(|error| self.told(call, error))?;
                }
                Action::Copy(from, to) => self.stream.copy(&to.as_bytes(), &from.as_bytes())?,
                Action::Sum(sum) => {
                    let program = plan.reductions[sum.index].sums.program();
                    let (inputs, out, workspace) = (&sum.inputs[..], &sum.out, &sum.workspace);
                    Summation { sum: program, inputs, out, workspace }.launch(&self.stream)?;
                }
            }
        }
        Ok(())
    }

    /// On another device it has to be waited for.
    fn order_after(&self, call: Numbered, after: &Event) -> Result<()> {
        if self.stream.wait_for(after).is_ok() {
            return Ok(());
        }
        while !after.wait_until(Instant::now() + LOOK)? {
            self.look(call)?;
        }
        Ok(())
    }

    /// Returns when the operation is done, and all before it.
    ///
    /// # Errors
    /// Why it will not be. The job is given up then.
    pub(crate) fn wait(&self, call: Numbered) -> Result<()> {
        while !self.flights.is_done(call.1) {
            if self.has_failed() {
                return Err(self.error(call));
            }
            let pilot = self.flights.pilot();
            match pilot.as_ref().map(|_| self.follow(call.1)) {
                Some(Ok(())) => {
                    // An operation that is not done has not begun yet.
                    drop(pilot);
                    if !self.flights.is_done(call.1) {
                        self.flights.wait(call.1, LOOK);
                    }
                }
                Some(Err(error)) => self.fail(call, error),
                None => self.flights.wait_for(call.1, LOOK),
            }
        }
        Ok(())
    }

    pub(crate) fn is_done(&self, call: Numbered) -> Result<bool> {
        match self.flights.is_done(call.1) {
            true => Ok(true),
            false if self.has_failed() => Err(self.error(call)),
            false => Ok(false),
        }
    }

    /// Lets later work of `stream` wait for an operation; the caller waits until that is enqueued.
    ///
    /// # Errors
    /// A stream of another device; the operation has failed.
    pub(crate) fn then(&self, call: Numbered, stream: &Stream) -> Result<()> {
        loop {
            if self.flights.is_done(call.1) {
                return Ok(());
            }
            if self.has_failed() {
                return Err(self.error(call));
            }
            let flight = self.flights.find(call.1);
            if let Some(end) = flight.as_ref().and_then(|flight| flight.end.get()) {
                return Ok(stream.wait_for(end)?);
            }
            self.flights.wait_for(call.1, LOOK);
        }
    }

    /// Follows operations to their end, up to the number `upto`, as far as they have begun. The
    /// caller is their pilot.
    fn follow(&self, upto: u64) -> Result<()> {
        while let Some(flight) = self.flights.oldest(upto) {
            self.agree(&flight)?;
            self.arrive(&flight)?;
            let (sent, received) = flight.bytes;
            self.companion.job().counters.add_bytes(flight.operation, sent, received);
            self.flights.land();
        }
        Ok(())
    }

    /// Whether all members do the same; waits until they have begun it.
    fn agree(&self, flight: &Flight) -> Result<()> {
        let settle = |result| {
            let call = (flight.operation, flight.number);
            self.companion.job().settle(self.companion.members(), call, result)
        };
        match &*flight.check {
            Check::All { operation, digest } => self.companion.meet(*operation, *digest),
            Check::Lengths { digest, send, receive } => {
                self.companion.meet(Operation::AllToAll, *digest)?;
                let words: Vec<u8> = send.iter().flat_map(|bytes| bytes.to_le_bytes()).collect();
                let all = self.companion.gather_bytes(&words)?;
                let to_me = 8 * self.companion.members().place;
                for (rank, (words, &expected)) in all.iter().zip(receive).enumerate() {
                    settle(same_length(rank, words.get(to_me..).unwrap_or_default(), expected))?;
                }
                Ok(())
            }
            Check::Pairs { step, expected } => {
                self.companion.run(&self.host, step)?;
                for (rank, tensor, expected) in expected {
                    let mut word = [0; 8];
                    load(&self.host, tensor, &mut word)?;
                    settle(same_length(*rank, &word, *expected))?;
                }
                Ok(())
            }
        }
    }

    /// Waits for the device.
    fn arrive(&self, flight: &Flight) -> Result<()> {
        let (job, members) = (self.companion.job(), self.companion.members());
        let (call, patience) = ((flight.operation, flight.number), job.patience());
        loop {
            match flight.end.get() {
                None => self.flights.wait_for(flight.number, BEFORE_WATCHDOG),
                Some(end) => {
                    if end.wait_until(Instant::now() + LOOK)? {
                        break;
                    }
                }
            }
            self.look(call)?;
            if job.is_over(members, &patience, members.peers()) {
                let (operation, sequence) = call;
                let members = members.ranks.to_vec();
                let library = self.library().vendor();
                let timeout_ms = job.timeout_ms();
                let rank = job.rank;
                return Err(CommError::Unfinished {
                    operation,
                    sequence,
                    rank,
                    members,
                    library,
                    timeout_ms,
                });
            }
        }
        // An operation that an abort has ended is not done.
        if self.has_failed() { Err(self.over(call)) } else { Ok(()) }
    }

    /// Whether the operation may still come to its end.
    fn look(&self, call: Numbered) -> Result<()> {
        if self.has_failed() {
            return Err(self.over(call));
        }
        if let Some(error) = self.job_error(call) {
            return Err(error);
        }
        self.comm.async_error().map(drop).map_err(|error| self.told(call, error))
    }

    fn job_error(&self, call: Numbered) -> Option<CommError> {
        told::of_job(self.companion.job(), call)
    }

    fn told(&self, call: Numbered, source: nccl_rs::Error) -> CommError {
        told::error(&*self.companion, call, source)
    }

    fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    /// Gives the job up, unless it is, and ends the communicator; the first failure is kept.
    fn fail(&self, call: Numbered, error: CommError) {
        let (job, members) = (self.companion.job(), self.companion.members());
        let error = match job.revocation().why() {
            // The companion's own failure has been settled there.
            Some(_) => Some(error),
            None => job.settle::<()>(members, call, Err(error)).err(),
        };
        // The watchdog may have been faster to give up, and knows less.
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.is_none() {
            *failure = error;
        }
        drop(failure);
        self.give_up();
    }

    /// The error for whoever waits for an operation after a failure: for the first one, the failure
    /// itself.
    fn error(&self, call: Numbered) -> CommError {
        let first = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.unwrap_or_else(|| self.over(call))
    }

    /// That the job is given up.
    fn over(&self, call: Numbered) -> CommError {
        let why = || "the group has failed".to_owned();
        self.job_error(call).unwrap_or_else(|| CommError::Revoked { why: why() })
    }

    /// Ends what is under way, so that nothing on the device waits for peers.
    fn give_up(&self) {
        self.has_failed.store(true, Ordering::Release);
        self.comm.set_timeout(ABORT);
        if let Err(error) = self.comm.abort() {
            self.stream.device().abort(&error.to_string());
        }
        self.flights.wake();
    }

    /// After a farewell that failed. Nothing of this group is under way on the device, so others
    /// may use it on.
    fn part(&self) {
        if self.companion.job().revocation().why().is_some() {
            return self.give_up();
        }
        self.comm.set_timeout(ABORT);
        // The library goes on with it where that lasts.
        let _ = self.comm.abort();
    }

    /// The watchdog's thread.
    fn watch(&self) {
        while !self.flights.are_over() {
            if self.has_failed() || self.companion.job().revocation().why().is_some() {
                return self.give_up();
            }
            self.flights.wait(u64::MAX, LOOK);
            let Some(flight) = self.flights.oldest(u64::MAX) else { continue };
            // Whoever waits for it is faster.
            self.flights.wait_for(flight.number, BEFORE_WATCHDOG);
            let Some(_pilot) = self.flights.pilot() else { continue };
            if let Err(error) = self.follow(u64::MAX) {
                return self.fail((flight.operation, flight.number), error);
            }
        }
        // Members may come to the end as late as to any operation, unless the job is given up.
        let job = self.companion.job();
        self.comm.set_timeout(Duration::from_millis(job.timeout_ms()));
        if self.comm.finalize_while(|| job.revocation().why().is_none()).is_err() {
            self.part();
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.member.flights.close(self.member.submitted.load(Ordering::Acquire));
        if let Some(watchdog) = self.watchdog.take() {
            ending::join(watchdog);
        }
    }
}

fn same_length(rank: usize, word: &[u8], expected: u64) -> Result<()> {
    let got = word.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    match got == expected {
        true => Ok(()),
        false => Err(CommError::Length { rank, got, expected }),
    }
}
