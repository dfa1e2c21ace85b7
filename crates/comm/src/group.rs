//! A group: some ranks that move device memory among themselves, in an order of their own.
//!
//! ```text
//! compute stream  ──■ backward ────────────────■ optimizer ─▶
//!                    ╲ submit: after            ╱ Pending::then
//! group's stream      ╲──■ reduce bucket 0 ──■ reduce bucket 1 ─▶      blocks, waits for peers
//! ```
//!
//! A group's operations run one after another on a stream of its own, each after the work that was
//! on another stream when it was submitted. So whoever submits goes on at once, and only the
//! group's own thread ever waits for peers. Groups do not wait for each other.
//!
//! Where the host cannot reach the device's memory, the group's stream is one of the host. Over a
//! vendor's library an operation there only enqueues what the device does (`nccl`); otherwise it
//! waits for the work before it, copies, moves, and copies back (`staged`), and sums are made on
//! the device all the same (`elsewhere`).

use std::collections::VecDeque;
use std::iter::once;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use device::trace::{self, Detail};
use device::{Device, DeviceError, DeviceKind, Event, SharedJob, Stream, Turn};

use crate::elsewhere::AllLanes;
use crate::error::Moved;
use crate::nccl::{Ending, Member, Plan};
use crate::op::Op;
use crate::patience;
use crate::site::{Boxes, Site};
use crate::staged::{Staged, Staging};
use crate::transport::Transport;
use crate::{CommError, Operation, Result, Route, Window, WindowPath};

/// Numbers of groups in this process.
static GROUPS: AtomicU64 = AtomicU64::new(1);

/// How long an operation may take to let go when the job is given up; it takes 100 ms, unless the
/// device hangs.
const LETS_GO: Duration = Duration::from_secs(2);

/// A member's end of a group of ranks, made by [`crate::World::split`]. Dropping it waits for
/// nothing, or over a vendor's library for two seconds at most until all members have ended it:
/// what was submitted is still done.
pub struct Group {
    shared: Arc<Shared>,
    route: Route,
    /// Over a vendor's library.
    _ending: Option<Ending>,
    stream: Stream,
    /// Where there are others.
    boxes: Option<Boxes>,
    /// Operations so far.
    submitted: Mutex<u64>,
}

/// The part of a group that operations in progress see.
struct Shared {
    transport: Arc<dyn Transport>,
    device: Device,
    number: u64,
    way: Way,
    /// That were made.
    windows: AtomicUsize,
    /// Where the host cannot reach the device's memory: the ends of the work before the operations
    /// that are submitted and have not begun.
    after: Mutex<VecDeque<Event>>,
    /// To devices where sums are made that the inputs do not lie on.
    lanes: AllLanes,
    begun: AtomicU64,
    done: AtomicU64,
}

/// How memory gets from one member to another.
enum Way {
    /// The transport reaches it.
    Host,
    /// By mirrors on the host.
    Staged(Box<Staging>),
    /// A vendor's library moves it, and the transport is its companion.
    Library(Arc<Member>),
}

impl Way {
    fn library(&self) -> Option<&Member> {
        match self {
            Way::Library(member) => Some(member),
            Way::Host | Way::Staged(_) => None,
        }
    }
}

/// An operation that is checked and ready to be submitted again and again; clones are handles to
/// the same.
#[derive(Clone)]
pub struct Prepared {
    job: SharedJob,
    /// The first of what it consists of.
    operation: Operation,
    group: u64,
    /// It waits for another device than the group's, and so must be waited for with a deadline.
    is_elsewhere: bool,
    is_by_hosts: bool,
}

impl Prepared {
    /// Whether it goes by hosts: in shared memory within each, and between them over tcp. Small
    /// ones do not, where others of the same group do.
    pub fn is_by_hosts(&self) -> bool {
        self.is_by_hosts
    }
}

/// An operation that was submitted.
pub struct Pending {
    shared: Arc<Shared>,
    event: Event,
    operation: Operation,
    number: u64,
}

impl Group {
    /// A member's end of a group over `transport`, which `library` has as its companion. Members
    /// are alike (`is_alike`) where all have memory of the host, or none: others have no boxes,
    /// since those of memory that peers do not reach are never filled.
    pub(crate) fn new(
        transport: Arc<dyn Transport>,
        device: &Device,
        library: Option<(Arc<Member>, Ending)>,
        (route, is_alike): (Route, bool),
    ) -> Result<Group> {
        let number = GROUPS.fetch_add(1, Ordering::Relaxed);
        let (begun, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let (way, ending) = match library {
            Some((member, ending)) => (Way::Library(member), Some(ending)),
            None => {
                let staging = Staging::of(device)?.map(Box::new);
                (staging.map_or(Way::Host, Way::Staged), None)
            }
        };
        let host = match &way {
            Way::Host => device,
            Way::Staged(staging) => &staging.host,
            Way::Library(member) => member.host(),
        };
        let stream = host.new_stream()?;
        let boxed = || transport.box_window(host, number, transport.box_bytes());
        let boxes = match transport.members().len() {
            1 => None,
            _ if ending.is_some() || !is_alike => None,
            _ => Some([boxed()?, boxed()?]),
        };
        let (device, lanes, after) = (device.clone(), AllLanes::default(), Mutex::default());
        let windows = AtomicUsize::new(0);
        let shared = Shared { transport, device, number, way, windows, after, lanes, begun, done };
        let (shared, submitted) = (Arc::new(shared), Mutex::new(0));
        Ok(Group { shared, route, _ending: ending, stream, boxes, submitted })
    }

    /// The route by which the group's memory travels.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// How a vendor's library knows the group's windows; none without one.
    pub fn window_path(&self) -> Option<WindowPath> {
        self.shared.way.library().and_then(Member::window_path)
    }

    /// The ranks in the group, in its order.
    pub fn members(&self) -> &[usize] {
        &self.shared.transport.members().ranks
    }

    /// The place of this rank among the members.
    pub fn place(&self) -> usize {
        self.shared.transport.members().place
    }

    /// Zeroed memory of `bytes` bytes, the same on every member, that peers may read. Collective;
    /// waits for what was submitted before, and for the other members.
    ///
    /// # Errors
    /// Memory; as an operation.
    pub fn window(&self, bytes: usize) -> Result<Window> {
        let submitted = self.submitted.lock().unwrap_or_else(PoisonError::into_inner);
        let Shared { transport, device, number, way, windows, .. } = &*self.shared;
        self.pending(Operation::Window, *submitted)?.wait()?;
        let window = match way {
            Way::Host => transport.window(device, *number, bytes),
            Way::Staged(staging) => {
                staging.window(device, transport.window(&staging.host, *number, bytes)?)
            }
            Way::Library(member) => member.window(*number, bytes),
        };
        // Collective, so the members count alike.
        Ok(window?.numbered(windows.fetch_add(1, Ordering::Relaxed) + 1))
    }

    /// Checks an operation once, for all times that it is submitted.
    ///
    /// # Errors
    /// Arguments out of bounds, of another group or of a type that cannot be summed. Since the
    /// other members would wait for this one, the job is given up.
    pub fn prepare(&self, op: Op) -> Result<Prepared> {
        let name = op.name();
        let prepared = match self.shared.way.library() {
            None => self.prepare_steps(op),
            Some(member) => self.prepare_plan(member, op),
        };
        prepared.inspect_err(|error| {
            let job = self.shared.transport.job();
            job.revocation().revoke(&format!("rank {}: {name}: {error}", job.rank));
        })
    }

    fn prepare_steps(&self, op: Op) -> Result<Prepared> {
        let (shared, work) = (Arc::clone(&self.shared), self.work(op)?);
        let first = work.first().map(|staged| staged.step.operation());
        let operation = first.unwrap_or(Operation::Exchange);
        let (group, is_elsewhere) = (shared.number, work.iter().any(|s| s.step.is_elsewhere()));
        let is_by_hosts = work.iter().any(|staged| staged.step.is_by_hosts());
        let job = Arc::new(move || shared.run(&work));
        Ok(Prepared { job, operation, group, is_elsewhere, is_by_hosts })
    }

    fn prepare_plan(&self, member: &Member, op: Op) -> Result<Prepared> {
        let (shared, group) = (Arc::clone(&self.shared), self.shared.number);
        let plan = member.plan(op, group, &shared.lanes)?;
        let operation = plan.operation;
        let job = Arc::new(move || shared.enqueue(&plan));
        Ok(Prepared { job, operation, group, is_elsewhere: false, is_by_hosts: false })
    }

    /// The steps of an operation, and the copies before and after each.
    fn work(&self, op: Op) -> Result<Vec<Staged>> {
        let Shared { transport, number, way, lanes, .. } = &*self.shared;
        let members = transport.members();
        // Boxes are memory of the host.
        let boxes = self.boxes.as_ref().filter(|_| matches!(way, Way::Host));
        let hosts = transport.hosts().filter(|_| way.library().is_none());
        let site = Site { group: *number, members, boxes, lanes, hosts };
        let steps = op.steps(&site)?.into_iter();
        match way {
            Way::Staged(staging) => steps.map(|step| staging.stage(step, members.place)).collect(),
            Way::Host | Way::Library(_) => Ok(steps.map(Staged::of).collect()),
        }
    }

    /// Lets an operation run after everything that is on `after` now, and after what was submitted
    /// to this group before; returns at once. Members submit in the same order.
    ///
    /// # Errors
    /// An operation of another group; the device refuses; the job is given up, then at the latest.
    /// The outcome of the operation itself is told by [`Pending::wait`].
    pub fn submit(&self, after: &Stream, op: &Prepared) -> Result<Pending> {
        let Shared { way, after: events, .. } = &*self.shared;
        let mut submitted = self.submitted.lock().unwrap_or_else(PoisonError::into_inner);
        *submitted += 1;
        self.check(op, *submitted)?;
        let enqueue = || {
            let event = after.record()?;
            match way {
                Way::Host => self.stream.wait_for(&event)?,
                Way::Staged(_) | Way::Library(_) => {
                    events.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
                }
            }
            self.stream.host_shared(Arc::clone(&op.job))
        };
        let call = (op.operation, *submitted);
        enqueue().map_err(|error| self.shared.explain(call, error))?;
        if let Some(member) = way.library() {
            member.has_submitted(*submitted);
        }
        self.pending(op.operation, *submitted)
    }

    /// As [`Group::submit`], and waits. Where nothing is before the operation the caller runs it,
    /// which saves waking the group's thread and being woken by it: several microseconds.
    ///
    /// # Errors
    /// As [`Group::submit`] and [`Pending::wait`].
    pub fn call(&self, after: &Stream, op: &Prepared) -> Result<()> {
        let Some((number, turn)) = self.try_turn(after, op)? else {
            return self.submit(after, op)?.wait();
        };
        let ran = turn.run(&op.job);
        if let Some(member) = self.shared.way.library() {
            // It tells more than the stream.
            return member.wait((op.operation, number));
        }
        ran.map_err(|error| self.shared.explain((op.operation, number), error))
    }

    /// The number of an operation that the caller may run at once, and the group's stream for it.
    fn try_turn(&self, after: &Stream, op: &Prepared) -> Result<Option<(u64, Turn<'_>)>> {
        let mut submitted = self.submitted.lock().unwrap_or_else(PoisonError::into_inner);
        let number = *submitted + 1;
        self.check(op, number)?;
        let turn = (|| match &self.shared.way {
            Way::Host if !op.is_elsewhere && after.is_done()? => self.stream.try_turn(),
            Way::Host | Way::Staged(_) => Ok(None),
            Way::Library(_) => {
                let (event, turn) = (after.record()?, self.stream.try_turn()?);
                if turn.is_some() {
                    let mut events = self.shared.after.lock();
                    events.as_mut().unwrap_or_else(|error| error.get_mut()).push_back(event);
                }
                Ok(turn)
            }
        })();
        let turn = turn.map_err(|error| self.shared.explain((op.operation, number), error))?;
        *submitted += u64::from(turn.is_some());
        if let Some(member) = self.shared.way.library() {
            member.has_submitted(*submitted);
        }
        Ok(turn.map(|turn| (number, turn)))
    }

    /// Whether the operation is this group's, and the job not given up.
    fn check(&self, op: &Prepared, number: u64) -> Result<()> {
        let job = self.shared.transport.job();
        if op.group != self.shared.number {
            // The others would wait for this one.
            let (members, call) = (self.shared.transport.members(), (op.operation, number));
            return job.settle(members, call, Err(CommError::ForeignOperation));
        }
        job.revocation().error(op.operation, number).map_or(Ok(()), Err)
    }

    /// Runs an operation that is not worth preparing, and waits for it.
    ///
    /// # Errors
    /// As [`Group::prepare`] and [`Group::call`].
    pub fn run(&self, after: &Stream, op: Op) -> Result<()> {
        self.call(after, &self.prepare(op)?)
    }

    /// A handle of everything submitted so far, the last of which has this number.
    fn pending(&self, operation: Operation, number: u64) -> Result<Pending> {
        let (shared, event) = (Arc::clone(&self.shared), self.stream.record()?);
        Ok(Pending { shared, event, operation, number })
    }
}

impl Shared {
    /// Enqueues an operation on the device, on the group's thread.
    fn enqueue(&self, plan: &Plan) -> std::result::Result<(), DeviceError> {
        let after = self.after.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        self.way.library().map_or(Ok(()), |member| member.enqueue(plan, after.as_ref()))
    }

    /// One operation, on the group's thread.
    fn run(&self, work: &[Staged]) -> std::result::Result<(), DeviceError> {
        self.wait_for_earlier_work()?;
        self.begun.fetch_add(1, Ordering::Release);
        let ran = work.iter().try_for_each(|staged| match &self.way {
            Way::Host | Way::Library(_) => self.transport.run(&self.device, &staged.step),
            Way::Staged(staging) => {
                part("bring to the host", || staging.bring(&staged.out))?;
                self.transport.run(&staging.host, &staged.step)?;
                part("take back to the device", || staging.take_back(&staged.back))
            }
        });
        self.done.fetch_add(1, Ordering::Release);
        ran.map_err(|error| DeviceError::Host(Box::new(error)))
    }

    /// On the group's stream itself, where that is one of the device.
    fn wait_for_earlier_work(&self) -> std::result::Result<(), DeviceError> {
        if matches!(self.way, Way::Host) {
            return Ok(());
        }
        let event = self.after.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let Some(event) = event else { return Ok(()) };
        while !event.wait_until(Instant::now() + patience::LOOK)? {
            let revoked = self.transport.job().revocation().check();
            revoked.map_err(|error| DeviceError::Host(Box::new(error)))?;
        }
        Ok(())
    }

    /// The error behind a failure on the group's stream, at the operation or one before it.
    fn explain(&self, call: (Operation, u64), error: DeviceError) -> CommError {
        let job = self.transport.job();
        let error = match error {
            DeviceError::Host(inner) => match inner.downcast::<CommError>() {
                Ok(error) => return *error,
                Err(inner) => DeviceError::Host(inner),
            },
            error => error,
        };
        // Later failures are consequences of the first.
        let first = job.revocation().error(call.0, call.1);
        first.unwrap_or_else(|| {
            let settled = job.settle::<()>(self.transport.members(), call, Err(error.into()));
            settled.expect_err("an error stays one")
        })
    }

    /// Whether an operation runs, which has a deadline of its own for peers that stand still.
    fn is_running(&self) -> bool {
        let done = self.done.load(Ordering::Acquire);
        self.begun.load(Ordering::Acquire) > done
    }
}

/// Does a part of an operation, on the track of its thread.
fn part<R>(name: &'static str, work: impl FnOnce() -> R) -> R {
    let begin_ns = trace::begin();
    let done = work();
    if let Some(begin_ns) = begin_ns {
        trace::end(name, begin_ns, Detail::Part);
    }
    done
}

impl Pending {
    /// Lets the later work of `stream` wait for the operation; the caller goes on. If the operation
    /// fails, that work is left out; over a vendor's library it is not, and finds anything in the
    /// memory, but the job is given up then. Where a vendor's driver has the stream and the
    /// operation is staged, the caller waits as in [`Pending::wait`]: drivers may run the host
    /// calls of all streams one after another, and one that waited for peers could keep another
    /// from its turn.
    ///
    /// # Errors
    /// A stream of another device; there, as [`Pending::wait`].
    pub fn then(&self, stream: &Stream) -> Result<()> {
        match &self.shared.way {
            Way::Host => return Ok(stream.wait_for(&self.event)?),
            Way::Library(member) => return member.then((self.operation, self.number), stream),
            Way::Staged(_) => {}
        }
        match stream.device().kind() {
            DeviceKind::Cuda(_) | DeviceKind::Hip(_) => self.wait(),
            _ => {
                let event = self.event.clone();
                Ok(stream.host(move || event.wait())?)
            }
        }
    }

    /// Whether the operation is done.
    ///
    /// # Errors
    /// As [`Pending::wait`].
    pub fn is_done(&self) -> Result<bool> {
        if let Some(member) = self.shared.way.library() {
            return member.is_done((self.operation, self.number));
        }
        self.event.query().map_err(|error| self.explain(error))
    }

    /// Returns when the operation is done, and all that was submitted to its group before.
    ///
    /// # Errors
    /// [`CommError::Timeout`], which names the ranks that stood still for the job's timeout, this
    /// one among them if it does not get to the operation; [`CommError::PeerLost`],
    /// [`CommError::Mismatch`], [`CommError::Revoked`]; an error of the work before it. Whatever
    /// the error, the job is given up.
    pub fn wait(&self) -> Result<()> {
        let (job, members) = (self.shared.transport.job(), self.shared.transport.members());
        let call = (self.operation, self.number);
        if let Some(member) = self.shared.way.library() {
            return member.wait(call);
        }
        let (mut patience, mut given_up) = (job.patience(), None);
        let mut is_running = false;
        loop {
            let reached = self.event.wait_until(Instant::now() + patience::LOOK);
            if reached.map_err(|error| self.explain(error))? {
                return Ok(());
            }
            if let Some(error) = job.revocation().error(self.operation, self.number) {
                let since = given_up.get_or_insert_with(Instant::now);
                if since.elapsed() > LETS_GO {
                    return Err(error);
                }
            }
            // An operation that runs has its peers' deadline; but it may also wait for a device.
            let later = if self.shared.is_running() { LETS_GO } else { Duration::ZERO };
            if later.is_zero() && is_running {
                patience = job.patience();
            }
            is_running = !later.is_zero();
            if job.is_over_by(later, members, &patience, once(members.place)) {
                let (missing, timeout_ms) = (vec![members.place], job.timeout_ms());
                let (operation, sequence) = call;
                let moved = Moved::default();
                let error = CommError::Timeout { operation, sequence, missing, timeout_ms, moved };
                return job.settle(members, call, Err(error));
            }
        }
    }

    fn explain(&self, error: DeviceError) -> CommError {
        self.shared.explain((self.operation, self.number), error)
    }
}
