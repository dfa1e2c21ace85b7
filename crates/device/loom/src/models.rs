//! The programs.

use std::sync::Arc;

use loom::sync::atomic::{AtomicUsize, Ordering};

use crate::grants::{Denied, Grants, Range};
use crate::host::{Entry, HostJob, HostStream, Mark, Op, Streams};
use crate::{Device, DeviceError, DeviceKind};

/// The work of a stream in its order, of which no two pieces ran at the same time.
#[derive(Default)]
struct Log {
    inside: AtomicUsize,
    done: loom::sync::Mutex<Vec<u32>>,
}

impl Log {
    fn note(&self, number: u32) {
        assert_eq!(self.inside.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
        self.done.lock().unwrap().push(number);
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    fn done(&self) -> Vec<u32> {
        self.done.lock().unwrap().clone()
    }
}

/// As `Stream::launch`.
fn launch(stream: &HostStream, log: &Arc<Log>, number: u32) {
    let log = log.clone();
    match stream.enter().unwrap() {
        Entry::Inline(_turn) => log.note(number),
        Entry::Lost => {}
        Entry::Queue => {
            let kernel = move |_: &crate::Kernel| {
                log.note(number);
                Ok(())
            };
            stream.push_kernel(Device, "note", kernel).unwrap();
        }
    }
}

fn host(stream: &HostStream, log: &Arc<Log>, number: u32) {
    let log = log.clone();
    let job = HostJob::Once(Box::new(move || {
        log.note(number);
        Ok(())
    }));
    stream.push(Op::Host(job)).unwrap();
}

fn model(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

/// A kernel behind work on the host is queued, or runs on its caller; in order either way, and
/// the wait ends.
#[test]
fn a_launch_is_inline_or_queued_in_order() {
    model(|| {
        let streams = Streams::new(DeviceKind::Cpu, 0);
        let (stream, log) = (HostStream::new(&streams), Arc::<Log>::default());
        launch(&stream, &log, 0);
        host(&stream, &log, 1);
        launch(&stream, &log, 2);
        assert!(stream.synchronize(None).unwrap());
        assert_eq!(log.done(), [0, 1, 2]);
    });
}

/// Two threads at one stream: nothing runs at the same time, nothing is lost, each thread's order
/// is kept.
#[test]
fn two_callers_share_a_stream() {
    model(|| {
        let streams = Streams::new(DeviceKind::Cpu, 0);
        let (stream, log) = (HostStream::new(&streams), Arc::<Log>::default());
        let other = {
            let (stream, log) = (stream.clone(), log.clone());
            loom::thread::spawn(move || launch(&stream, &log, 10))
        };
        host(&stream, &log, 1);
        launch(&stream, &log, 2);
        other.join().unwrap();
        assert!(stream.synchronize(None).unwrap());
        let mine: Vec<u32> = log.done().into_iter().filter(|&n| n < 10).collect();
        assert_eq!((mine, log.done().len()), (vec![1, 2], 3));
    });
}

/// A stream that waits for an event behind another's work begins after it, and a wait for its own
/// event ends.
#[test]
fn an_event_orders_two_streams() {
    model(|| {
        let streams = Streams::new(DeviceKind::Cpu, 0);
        let (first, second) = (HostStream::new(&streams), HostStream::new(&streams));
        let log = Arc::<Log>::default();
        host(&first, &log, 0);
        let event = first.record().unwrap();
        second.wait_for(&first, &event).unwrap();
        launch(&second, &log, 1);
        let end: Mark = second.record().unwrap();
        drop(first);
        assert!(second.reach(&end, None).unwrap().is_some());
        assert_eq!(log.done(), [0, 1]);
    });
}

fn fail(stream: &HostStream) {
    let error = DeviceError::Kernel { kernel: "fail", message: "on purpose".to_owned() };
    stream.push(Op::Host(HostJob::Once(Box::new(|| Err(error))))).unwrap();
}

/// Work that fails is told of once; what lies behind it is left out, in its stream and in one that
/// waits for it, and later work runs again.
#[test]
fn failing_work_is_told_of_once() {
    model(|| {
        let streams = Streams::new(DeviceKind::Cpu, 0);
        let (first, second) = (HostStream::new(&streams), HostStream::new(&streams));
        let log = Arc::<Log>::default();
        fail(&first);
        launch(&first, &log, 1);
        let event = first.record().unwrap();
        second.wait_for(&first, &event).unwrap();
        let told = first.synchronize(None);
        assert!(matches!(told, Err(DeviceError::Kernel { .. })), "{told:?}");
        let told = second.synchronize(None);
        assert!(matches!(told, Err(DeviceError::Lost { .. })), "{told:?}");
        assert!(matches!(first.reach(&event, None), Err(DeviceError::Lost { .. })));
        launch(&first, &log, 2);
        assert!(first.synchronize(None).unwrap());
        assert_eq!(log.done(), [2]);
    });
}

/// A new stream takes the place of one that has ended, while a thread that waited for the old one
/// may not have woken.
#[test]
fn a_place_is_used_again() {
    model(|| {
        let streams = Streams::new(DeviceKind::Cpu, 0);
        let (first, second) = (HostStream::new(&streams), HostStream::new(&streams));
        let (log, other) = (Arc::<Log>::default(), Arc::<Log>::default());
        host(&first, &log, 0);
        let event = first.record().unwrap();
        second.wait_for(&first, &event).unwrap();
        drop((first, event));
        let third = HostStream::new(&streams);
        launch(&third, &other, 2);
        assert!(third.synchronize(None).unwrap());
        launch(&second, &log, 1);
        assert!(second.synchronize(None).unwrap());
        assert_eq!((log.done(), other.done()), (vec![0, 1], vec![2]));
    });
}

/// Two threads wait for one stream, and both are woken.
#[test]
fn two_threads_wait_for_a_stream() {
    model(|| {
        let streams = Streams::new(DeviceKind::Cpu, 0);
        let (stream, log) = (HostStream::new(&streams), Arc::<Log>::default());
        host(&stream, &log, 0);
        let event = stream.record().unwrap();
        let other = {
            let stream = stream.clone();
            loom::thread::spawn(move || stream.reach(&event, None).unwrap().is_some())
        };
        assert!(stream.synchronize(None).unwrap());
        assert!(other.join().unwrap());
        assert_eq!(log.done(), [0]);
    });
}

/// Giving up ends a wait, whether the work has begun or not, and threads end.
#[test]
fn giving_up_ends_a_wait() {
    model(|| {
        let streams = Streams::new(DeviceKind::Cpu, 0);
        let (stream, log) = (HostStream::new(&streams), Arc::<Log>::default());
        host(&stream, &log, 0);
        let other = {
            let streams = streams.clone();
            loom::thread::spawn(move || streams.give_up("enough"))
        };
        let told = stream.synchronize(None);
        assert!(matches!(told, Ok(true) | Err(DeviceError::Aborted { .. })), "{told:?}");
        other.join().unwrap();
        assert!(matches!(stream.record(), Err(DeviceError::Aborted { .. })));
    });
}

/// Of two kernels that want to write the same bytes at the same time, at most one has them.
#[test]
fn grants_exclude_each_other() {
    model(|| {
        let grants = Arc::new(Grants::new());
        let holders = Arc::new(AtomicUsize::new(0));
        let kernel = |name: &'static str, range: Range| {
            let (grants, holders) = (grants.clone(), holders.clone());
            move || match grants.claim(None, name, range) {
                Ok(entry) => {
                    assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                    holders.fetch_sub(1, Ordering::SeqCst);
                    grants.release(entry);
                }
                Err(denied) => assert!(matches!(denied, Denied::Other(other) if other != name)),
            }
        };
        let range = |start, end, writes| Range { start, end, writes };
        let first = loom::thread::spawn(kernel("a", range(0, 8, true)));
        let second = loom::thread::spawn(kernel("b", range(4, 12, false)));
        kernel("c", range(6, 7, true))();
        first.join().unwrap();
        second.join().unwrap();
    });
}

/// A ring of two cells between a thread that fills and one that empties: no cell is used by both
/// at a time, values come in order, and those that do not come are counted.
#[test]
fn a_ring_between_two_threads() {
    model(|| {
        let (mut writer, mut reader) = crate::ring::ring::<u32>(2);
        let filling = loom::thread::spawn(move || {
            (1..=3).filter(|&number| writer.push(number)).count()
        });
        let mut taken = Vec::new();
        taken.extend(reader.take());
        taken.extend(reader.take());
        let filled = filling.join().unwrap();
        assert!(reader.is_closed());
        taken.extend(std::iter::from_fn(|| reader.take()));
        assert!(taken.is_sorted() && taken.len() == filled, "{taken:?}");
        assert_eq!(filled as u64 + reader.take_lost(), 3);
    });
}

/// Everything that a writer has queued is there for a reader that sees that the writer is gone.
#[test]
fn a_closed_ring_has_all_that_was_queued() {
    model(|| {
        let (mut writer, mut reader) = crate::ring::ring::<u32>(2);
        let filling = loom::thread::spawn(move || writer.push(7));
        if reader.is_closed() {
            assert_eq!(reader.take(), Some(7));
        }
        assert!(filling.join().unwrap());
    });
}
