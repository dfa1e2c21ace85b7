//! Streams of the CPU: which thread runs what, what overlaps, and memory that two use at once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use device::{DType, Device, DeviceError, Stream};

/// Long enough for whatever a busy machine does in between.
const LONG: Duration = Duration::from_secs(60);

fn block(stream: &Stream) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let work = move || {
        let _ = released.recv();
        Ok(())
    };
    stream.host(work).unwrap();
    release
}

/// The thread that runs a kernel launched now, once it has run.
fn runner(stream: &Stream) -> Arc<Mutex<Option<ThreadId>>> {
    let seen = Arc::new(Mutex::new(None));
    let note = seen.clone();
    let kernel = move |_: &device::Kernel| {
        *note.lock().unwrap() = Some(std::thread::current().id());
        Ok(())
    };
    stream.launch("note", kernel).unwrap();
    seen
}

#[test]
fn a_kernel_runs_on_its_caller_while_its_stream_is_idle() {
    let device = Device::cpu(1).unwrap();
    let (stream, other) = (device.new_stream().unwrap(), device.new_stream().unwrap());
    let here = Some(std::thread::current().id());
    assert_eq!(*runner(&stream).lock().unwrap(), here);
    let release = block(&other);
    stream.wait_for(&other.record().unwrap()).unwrap();
    let queued = runner(&stream);
    assert_eq!(*queued.lock().unwrap(), None, "it waits for the other stream");
    assert_eq!(*runner(&device.stream()).lock().unwrap(), here, "which the third does not");
    drop(release);
    stream.synchronize().unwrap();
    let there = *queued.lock().unwrap();
    assert!(there.is_some() && there != here);
    assert_eq!(*runner(&stream).lock().unwrap(), here, "idle again");
    stream.wait_for(&other.record().unwrap()).unwrap();
    assert_eq!(*runner(&stream).lock().unwrap(), here, "an event of the past holds nothing up");
}

#[test]
fn streams_overlap() {
    let device = Device::cpu(1).unwrap();
    let streams = [device.new_stream().unwrap(), device.new_stream().unwrap()];
    let barrier = Arc::new(Barrier::new(2));
    let hold = |stream: &Stream| {
        let (release, barrier) = (block(stream), barrier.clone());
        let kernel = move |_: &device::Kernel| {
            barrier.wait();
            Ok(())
        };
        stream.launch("meet", kernel).unwrap();
        release
    };
    drop(streams.each_ref().map(hold));
    for stream in &streams {
        assert!(stream.synchronize_until(Instant::now() + LONG).unwrap());
    }
}

#[test]
fn memory_that_two_kernels_use_at_once_is_refused_by_name() {
    let device = Device::cpu(1).unwrap();
    let (stream, other) = (device.new_stream().unwrap(), device.new_stream().unwrap());
    let x = device.zeros(&[8], DType::F32).unwrap();
    let (started, has_started) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let hold = block(&stream);
    let to = x.flat(0..4).unwrap();
    let writer = move |k: &device::Kernel| {
        let to = k.write::<f32>(&to)?;
        started.send(()).unwrap();
        let _ = released.recv();
        to.fill(1.0);
        Ok(())
    };
    stream.launch("writer", writer).unwrap();
    drop(hold);
    has_started.recv_timeout(LONG).unwrap();
    let unordered = |result: Result<(), DeviceError>, name: &str| match result {
        Err(DeviceError::Unordered { kernel, other: "writer" }) => assert_eq!(kernel, name),
        result => panic!("{result:?}"),
    };
    let from = x.clone();
    unordered(other.launch("reader", move |k| k.read::<f32>(&from).map(|_| ())), "reader");
    unordered(other.copy_in(&x, &[2.0_f32; 8]), "copy_in");
    unordered(other.copy_out(&x, &mut [0.0_f32; 8]), "copy_out");
    unordered(other.with_memory("saver", |k| k.read::<f32>(&x).map(|_| ())), "saver");
    let beside = x.flat(4..8).unwrap();
    other.copy_in(&beside, &[2.0_f32; 4]).unwrap();
    let event = stream.record().unwrap();
    other.wait_for(&event).unwrap();
    drop(release);
    assert_eq!(other.to_vec::<f32>(&x).unwrap(), [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]);
    let message = DeviceError::Unordered { kernel: "reader", other: "writer" }.to_string();
    assert!(message.contains("an event is missing"), "{message}");
}

#[test]
fn work_that_waits_for_itself_is_told_so() {
    for device in [Device::cpu(1).unwrap(), Device::guarded(1).unwrap()] {
        let stream = device.new_stream().unwrap();
        let (inside, x) = (stream.clone(), device.zeros(&[2], DType::U32).unwrap());
        let (here, memory) = (device.clone(), x.clone());
        let work = move || {
            // In no stream, it may.
            here.with_memory("store", |k| {
                k.write::<u32>(&memory)?.fill(5);
                Ok(())
            })?;
            inside.synchronize()
        };
        stream.host(work).unwrap();
        let error = stream.synchronize().unwrap_err();
        assert!(error.to_string().contains("waits for the stream that it is part of"), "{error}");
        assert_eq!(stream.to_vec::<u32>(&x).unwrap(), [5, 5], "{device:?}");
    }
}

#[test]
fn pinned_copies_run_beside_the_caller() {
    let device = Device::cpu(1).unwrap();
    let stream = device.new_stream().unwrap();
    let x = device.zeros(&[4], DType::U32).unwrap();
    let (mut from, to) = (device.pinned(16).unwrap(), device.pinned(16).unwrap());
    // SAFETY: no copy is under way.
    unsafe { from.bytes_mut() }.fill(9);
    let release = block(&stream);
    // SAFETY: both are left alone until the stream has been waited for.
    unsafe {
        stream.copy_in_async(&x, &from).unwrap();
        stream.copy_out_async(&to, &x).unwrap();
    }
    let end = stream.record().unwrap();
    assert!(!end.query().unwrap());
    drop(release);
    assert!(end.wait_until(Instant::now() + LONG).unwrap());
    // SAFETY: the copies are over.
    assert_eq!(unsafe { to.bytes() }, [9; 16]);
}

/// Many threads at one stream: nothing is lost, and one kernel runs at a time.
#[test]
fn threads_share_a_stream() {
    const THREADS: usize = 4;
    const EACH: usize = 500;
    let device = Device::cpu(1).unwrap();
    let (stream, other) = (device.new_stream().unwrap(), device.new_stream().unwrap());
    let x = device.zeros(&[1], DType::U64).unwrap();
    let inside = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (stream, other, x) = (&stream, &other, &x);
            let inside = &inside;
            scope.spawn(move || {
                for round in 0..EACH {
                    let (x, inside) = (x.clone(), inside.clone());
                    let add = move |k: &device::Kernel| {
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        k.write::<u64>(&x)?[0] += 1;
                        inside.fetch_sub(1, Ordering::SeqCst);
                        Ok(())
                    };
                    stream.launch("add", add).unwrap();
                    match (round + thread) % 7 {
                        0 => stream.host(|| Ok(())).unwrap(),
                        1 => stream.wait_for(&other.record().unwrap()).unwrap(),
                        2 => other.wait_for(&stream.record().unwrap()).unwrap(),
                        3 => other.host(|| Ok(())).unwrap(),
                        4 => stream.synchronize().unwrap(),
                        _ => {}
                    }
                }
            });
        }
    });
    other.synchronize().unwrap();
    assert_eq!(stream.to_vec::<u64>(&x).unwrap(), [(THREADS * EACH) as u64]);
}
