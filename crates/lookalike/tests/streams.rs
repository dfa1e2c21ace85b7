//! Streams over all kinds of devices: work on the host in a stream's order, waits with a deadline,
//! errors, and devices that are given up while something hangs. CUDA and HIP are the look-alikes,
//! in processes of their own; `MUSTER_TEST_DEVICES=cuda:0` runs the same on the real thing.

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use common::{Child, Shape, arch_of, toy};
use device::{Arch, DType, Device, DeviceError, DeviceKind, Event, Grid, Stream, Tensor};

/// Long enough for whatever a busy machine does in between.
const LONG: Duration = Duration::from_secs(60);
/// The time that quick calls stay below, by far.
const BOUND: Duration = Duration::from_secs(20);

const HOST: [DeviceKind; 3] = [DeviceKind::Cpu, DeviceKind::Guarded, DeviceKind::Sim(Arch::Sm90a)];
const DRIVERS: [DeviceKind; 2] = [DeviceKind::Cuda(0), DeviceKind::Hip(0)];

fn suite(device: &Device) {
    host_work_keeps_the_order_of_its_stream(device);
    the_same_work_is_submitted_again_and_again(device);
    an_error_appears_at_the_next_wait(device);
    waits_end_in_time(device);
    a_blocked_stream_stops_no_other(device);
    a_stream_is_dropped_with_work_to_do(device);
    vendors_get_the_stream(device);
    if !is_vendors(device.kind()) {
        // There in a process of its own.
        a_call_may_hold_the_last_handle(device);
        behind_a_failed_call_nothing_runs(device);
    }
}

const fn is_vendors(kind: DeviceKind) -> bool {
    matches!(kind, DeviceKind::Cuda(_) | DeviceKind::Hip(_))
}

/// Work that blocks until the sender is dropped, or something is sent.
fn block(stream: &Stream) -> mpsc::Sender<()> {
    let (release, released) = mpsc::channel::<()>();
    let work = move || {
        let _ = released.recv();
        Ok(())
    };
    stream.host(work).unwrap();
    release
}

fn host_work_keeps_the_order_of_its_stream(device: &Device) {
    let (first, second) = (device.new_stream().unwrap(), device.new_stream().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let caller = std::thread::current().id();
    let note = |stream: &Stream, number: u32| {
        let seen = seen.clone();
        let work = move || {
            assert_ne!(std::thread::current().id(), caller);
            seen.lock().unwrap().push(number);
            Ok(())
        };
        stream.host(work).unwrap();
    };
    for round in 0..50 {
        note(&first, 2 * round);
        second.wait_for(&first.record().unwrap()).unwrap();
        note(&second, 2 * round + 1);
        first.wait_for(&second.record().unwrap()).unwrap();
    }
    let end = second.record().unwrap();
    end.wait().unwrap();
    assert_eq!(*seen.lock().unwrap(), (0..100).collect::<Vec<_>>(), "{device:?}");
    assert!(end.query().unwrap() && end.wait_until(Instant::now()).unwrap());
    first.synchronize().unwrap();
}

fn the_same_work_is_submitted_again_and_again(device: &Device) {
    let stream = device.new_stream().unwrap();
    let count = Arc::new(AtomicU32::new(0));
    let work = {
        let count = count.clone();
        Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        })
    };
    for _ in 0..100 {
        stream.host_shared(work.clone()).unwrap();
    }
    assert!(stream.synchronize_until(Instant::now() + LONG).unwrap());
    assert_eq!(count.load(Ordering::Relaxed), 100, "{device:?}");
}

#[derive(Debug, thiserror::Error)]
#[error("rank 3 is gone")]
struct PeerGone;

fn an_error_appears_at_the_next_wait(device: &Device) {
    let (stream, later) = (device.new_stream().unwrap(), device.new_stream().unwrap());
    let (count, is_driver) = (Arc::new(AtomicU32::new(0)), !device.kind().is_host());
    let counted = |stream: &Stream| {
        let count = count.clone();
        let work = move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        stream.host(work).unwrap();
    };
    let before = stream.record().unwrap();
    stream.host(|| Err(DeviceError::Host(Box::new(PeerGone)))).unwrap();
    counted(&stream);
    let after = stream.record().unwrap();
    if !is_driver {
        later.wait_for(&after).unwrap();
        counted(&later);
        before.wait().unwrap();
    }
    let error = after.wait().unwrap_err();
    let DeviceError::Host(source) = &error else { panic!("{error}") };
    assert!(source.downcast_ref::<PeerGone>().is_some(), "{error}");
    assert_eq!(count.load(Ordering::Relaxed), 0, "{device:?}: what follows is left out");
    if !is_driver {
        let lost = "work was left out, because work before it failed: rank 3 is gone";
        assert_eq!(after.wait().unwrap_err().to_string(), lost);
        let error = later.synchronize().unwrap_err().to_string();
        assert!(error.starts_with("work was left out") && error.ends_with(lost), "{error}");
    }
    counted(&stream);
    counted(&later);
    stream.synchronize().unwrap();
    later.synchronize().unwrap();
    assert_eq!(count.load(Ordering::Relaxed), 2, "{device:?}: told once");
    stream.host(|| panic!("on purpose")).unwrap();
    let error = stream.synchronize().unwrap_err().to_string();
    assert!(error.contains("panicked: on purpose"), "{error}");
}

fn waits_end_in_time(device: &Device) {
    let stream = device.new_stream().unwrap();
    let start = Instant::now();
    let release = block(&stream);
    let event = stream.record().unwrap();
    assert!(!event.query().unwrap(), "{device:?}");
    assert!(!event.wait_until(Instant::now() + Duration::from_millis(20)).unwrap());
    assert!(!stream.synchronize_until(Instant::now() + Duration::from_millis(20)).unwrap());
    assert!(start.elapsed() >= Duration::from_millis(40));
    release.send(()).unwrap();
    assert!(event.wait_until(Instant::now() + LONG).unwrap(), "{device:?}");
    assert!(event.query().unwrap());
    assert!(start.elapsed() < BOUND, "{device:?}");
}

fn a_blocked_stream_stops_no_other(device: &Device) {
    let (blocked, other) = (device.new_stream().unwrap(), device.new_stream().unwrap());
    let x = device.zeros(&[64], DType::U32).unwrap();
    let release = block(&blocked);
    blocked.fill(&x, 1).unwrap();
    let event = blocked.record().unwrap();
    assert!(!event.query().unwrap());
    let y = device.tensor(&[64], &[7_u32; 64]).unwrap();
    device.stream().synchronize().unwrap();
    let z = device.zeros(&[64], DType::U32).unwrap();
    other.copy(&z, &y).unwrap();
    assert_eq!(other.to_vec::<u32>(&z).unwrap(), [7; 64], "{device:?}");
    assert!(!event.query().unwrap(), "{device:?}");
    other.wait_for(&event).unwrap();
    other.copy(&z, &x).unwrap();
    drop(release);
    assert_eq!(other.to_vec::<u32>(&z).unwrap(), [0x0101_0101; 64], "{device:?}");
}

fn a_stream_is_dropped_with_work_to_do(device: &Device) {
    let stream = device.new_stream().unwrap();
    let release = block(&stream);
    let (done, told) = mpsc::channel();
    let work = move || {
        done.send(()).unwrap();
        Ok(())
    };
    stream.host(work).unwrap();
    let event = stream.record().unwrap();
    drop(stream);
    assert!(!event.query().unwrap());
    drop(release);
    assert!(event.wait_until(Instant::now() + LONG).unwrap(), "{device:?}");
    told.recv_timeout(LONG).unwrap();
}

fn vendors_get_the_stream(device: &Device) {
    let stream = device.new_stream().unwrap();
    // SAFETY: nothing is enqueued.
    let told = unsafe { stream.foreign(|foreign| Ok((foreign.kind, foreign.stream.is_null()))) };
    match device.kind() {
        DeviceKind::Cuda(_) | DeviceKind::Hip(_) => {
            assert_eq!(told.unwrap(), (device.kind(), false));
        }
        kind => {
            let expected = format!("{kind} has no streams of a vendor's driver");
            assert_eq!(told.unwrap_err().to_string(), expected);
        }
    }
}

/// The captures of a call on the host are let go of at its end: here the last handles of memory, of
/// streams, of an event and of page-locked memory.
fn a_call_may_hold_the_last_handle(device: &Device) {
    let before = device.allocated_bytes();
    let stream = device.new_stream().unwrap();
    let held = |seen: mpsc::Sender<()>| {
        let start = Instant::now();
        // Memory is given back a little after the call.
        let x = loop {
            match device.zeros(&[1 << 19], DType::U32) {
                Ok(x) => break x,
                Err(error) if start.elapsed() > LONG => panic!("{error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let (other, pinned) = (device.new_stream().unwrap(), device.pinned(64).unwrap());
        let event = stream.record().unwrap();
        (x, other, event, pinned, seen)
    };
    let (seen, gone) = mpsc::channel();
    let captured = held(seen);
    let work = move || {
        drop(captured);
        Ok(())
    };
    stream.host(work).unwrap();
    assert!(stream.synchronize_until(Instant::now() + LONG).unwrap(), "{device:?}");
    assert!(gone.recv_timeout(LONG).is_err());
    // As above, in calls that are left out.
    let (seen, gone) = mpsc::channel();
    let captured = held(seen);
    stream.host(|| Err(DeviceError::Host(Box::new(PeerGone)))).unwrap();
    let work = move || {
        drop(captured);
        Ok(())
    };
    stream.host(work).unwrap();
    assert!(stream.synchronize_until(Instant::now() + LONG).is_err(), "{device:?}");
    assert_eq!(gone.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected));
    assert_eq!(device.allocated_bytes(), before, "{device:?}");
}

fn behind_a_failed_call_nothing_runs(device: &Device) {
    let (stream, other) = (device.new_stream().unwrap(), device.new_stream().unwrap());
    let x = device.zeros(&[1], DType::U32).unwrap();
    let y = device.zeros(&[1], DType::U32).unwrap();
    device.stream().synchronize().unwrap();
    stream.fill(&x, 1).unwrap();
    stream.host(|| Err(DeviceError::Host(Box::new(PeerGone)))).unwrap();
    stream.fill(&x, 2).unwrap();
    other.fill(&y, 3).unwrap();
    assert!(stream.synchronize().is_err());
    other.synchronize().unwrap();
    assert_eq!(stream.to_vec::<u32>(&x).unwrap(), [0x0101_0101], "{device:?}");
    assert_eq!(stream.to_vec::<u32>(&y).unwrap(), [0x0303_0303], "{device:?}");
    stream.fill(&x, 4).unwrap();
    assert_eq!(stream.to_vec::<u32>(&x).unwrap(), [0x0404_0404], "{device:?}: told once");
}

/// In the end nothing but a call on the host has the device.
fn is_closed_by_a_call(kind: DeviceKind) {
    let device = Device::new(kind, 1).unwrap();
    let stream = device.new_stream().unwrap();
    let (go, may_go) = mpsc::channel::<()>();
    let (seen, gone) = mpsc::channel::<()>();
    let captured = (device.zeros(&[64], DType::F32).unwrap(), stream.clone(), device, seen);
    let work = move || {
        let _ = may_go.recv();
        drop(captured);
        Ok(())
    };
    stream.host(work).unwrap();
    assert!(!stream.synchronize_until(Instant::now() + Duration::from_millis(20)).unwrap());
    drop(stream);
    drop(go);
    assert_eq!(gone.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected), "{kind}");
}

/// A kernel fails, and with it the device; calls that the driver will never make are let go of.
fn breaks(kind: DeviceKind) {
    let Some(image) = arch_of(kind).and_then(toy) else { return };
    let device = Device::new(kind, 1).unwrap();
    let shape = device.load_module(&image).unwrap().function("shape").unwrap();
    let stream = device.new_stream().unwrap();
    // SAFETY: the kernel checks addresses, and this one is in no buffer.
    unsafe { stream.launch_module(&shape, &Grid::linear(1, 1), &Shape { out: 64 }) }.unwrap();
    let (seen, gone) = mpsc::channel::<()>();
    let captured = (device.zeros(&[64], DType::F32).err(), seen);
    let work = move || {
        drop(captured);
        Ok(())
    };
    // The driver may tell already.
    let _ = stream.host(work);
    assert!(stream.synchronize().is_err());
    assert_eq!(gone.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected), "{kind}");
}

fn every_call_is_aborted(device: &Device, stream: &Stream, event: &Event, x: &Tensor) {
    let kind = device.kind();
    let is_aborted = |result: Result<(), DeviceError>| {
        assert!(matches!(result, Err(DeviceError::Aborted { .. })), "{kind}: {result:?}");
    };
    is_aborted(stream.host(|| Ok(())));
    is_aborted(stream.fill(x, 1));
    is_aborted(stream.record().map(|_| ()));
    is_aborted(event.query().map(|_| ()));
    is_aborted(device.stream().synchronize());
    is_aborted(device.zeros(&[4], DType::F32).map(|_| ()));
    is_aborted(device.new_stream().map(|_| ()));
    match kind.is_host() {
        true => is_aborted(device.with_memory("none", |_| Ok(()))),
        false => {
            is_aborted(device.load_module(b"").map(|_| ()));
            is_aborted(device.stream().capture(|_| Ok(())).map(|_| ()));
        }
    }
}

/// A call on the host that never returns, while others wait for it; then everything is dropped.
fn is_given_up(kind: DeviceKind) {
    let device = Device::new(kind, 1).unwrap();
    let stream = device.new_stream().unwrap();
    let x = device.zeros(&[64], DType::F32).unwrap();
    let pinned = device.pinned(256).unwrap();
    device.stream().synchronize().unwrap();
    // Never released, not even at the end of the process.
    std::mem::forget(block(&stream));
    let started = Arc::new(AtomicU32::new(0));
    let count = started.clone();
    let work = move || {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    stream.host(work).unwrap();
    let event = stream.record().unwrap();
    assert!(!event.query().unwrap());
    let start = Instant::now();
    std::thread::scope(|scope| {
        type Wait = Box<dyn FnOnce() -> Result<(), DeviceError> + Send>;
        let mut waits: Vec<Wait> = {
            let (stream, event) = (stream.clone(), event.clone());
            vec![Box::new(move || stream.synchronize()), Box::new(move || event.wait())]
        };
        let (read, from) = (stream.clone(), x.clone());
        waits.push(match kind.is_host() {
            true => {
                Box::new(move || read.with_memory("read", |k| k.read::<f32>(&from).map(|_| ())))
            }
            false => Box::new(move || read.to_vec::<f32>(&from).map(|_| ())),
        });
        if is_vendors(kind) {
            let (write, x) = (stream.clone(), x.clone());
            waits.push(Box::new(move || write.copy_in(&x, &[1.0_f32; 64])));
        }
        let waits: Vec<_> = waits.into_iter().map(|wait| scope.spawn(wait)).collect();
        // Drops wait for the work before them, and end as waits do.
        let drops = match kind.is_host() {
            true => Vec::new(),
            false => {
                let z = device.zeros(&[64], DType::F32).unwrap();
                let pinned = device.pinned(64).unwrap();
                vec![scope.spawn(move || drop(z)), scope.spawn(move || drop(pinned))]
            }
        };
        std::thread::sleep(Duration::from_millis(50));
        device.abort("rank 3 is gone");
        device.abort("another reason");
        for wait in waits {
            let error = wait.join().unwrap().unwrap_err();
            assert!(matches!(error, DeviceError::Aborted { .. }), "{error}");
            assert_eq!(error.to_string(), format!("{kind} was given up: rank 3 is gone"));
        }
        drops.into_iter().for_each(|drop| drop.join().unwrap());
    });
    every_call_is_aborted(&device, &stream, &event, &x);
    drop((x, pinned, event, stream, device));
    assert!(start.elapsed() < BOUND, "{kind}");
    assert_eq!(started.load(Ordering::Relaxed), 0, "what was queued is dropped");
}

/// A call on the host that never returns, on a device that nobody gives up: neither the drop of
/// what is there nor the end of the process waits for it.
fn hangs_at_the_end(kind: DeviceKind) {
    let device = Device::new(kind, 1).unwrap();
    let stream = device.new_stream().unwrap();
    std::mem::forget(block(&stream));
    let event = stream.record().unwrap();
    assert!(!event.query().unwrap());
    let start = Instant::now();
    drop((event, stream, device));
    assert!(start.elapsed() < BOUND, "{kind}");
}

#[test]
fn host_devices() {
    for kind in HOST {
        suite(&Device::new(kind, 2).unwrap());
    }
    for seed in 0..10 {
        suite(&Device::guarded_in_order(1, seed).unwrap());
    }
}

#[test]
fn the_guarded_device_takes_its_seed_from_the_environment() {
    Child::new("suite guarded").env("MUSTER_GUARD_SEED", "77").passes();
    Child::new("no seed guarded").env("MUSTER_GUARD_SEED", "x").passes();
}

#[test]
fn lookalikes() {
    for kind in DRIVERS {
        Child::with_lookalike(&format!("suite {kind}"), kind).passes_without_complaint();
    }
}

/// A kernel of the simulator that never ends: other threads go on to ask, waits end in time, and
/// giving up ends them all.
fn a_kernel_hangs(kind: DeviceKind) {
    let Some(image) = arch_of(kind).and_then(toy) else { return };
    let device = Device::new(kind, 1).unwrap();
    let hang = device.load_module(&image).unwrap().function("hang").unwrap();
    let (stream, other) = (device.new_stream().unwrap(), device.new_stream().unwrap());
    let x = device.zeros(&[64], DType::F32).unwrap();
    let y = device.zeros(&[64], DType::F32).unwrap();
    device.stream().synchronize().unwrap();
    let args = Shape { out: x.address() };
    // SAFETY: it touches nothing.
    unsafe { stream.launch_module(&hang, &Grid::linear(1, 1), &args) }.unwrap();
    let start = Instant::now();
    assert!(!stream.synchronize_until(start + Duration::from_millis(20)).unwrap());
    other.fill(&x, 1).unwrap();
    assert!(!other.record().unwrap().query().unwrap());
    std::thread::scope(|scope| {
        type Wait = Box<dyn FnOnce() -> Result<(), DeviceError> + Send>;
        let (read, many, from) = (stream.clone(), other.clone(), x.clone());
        let waits: [Wait; 3] = [
            Box::new(move || stream.synchronize()),
            Box::new(move || read.to_vec::<f32>(&from).map(|_| ())),
            // More than may pile up.
            Box::new(move || (0..1000).try_for_each(|_| many.record().map(|_| ()))),
        ];
        let waits = waits.map(|wait| scope.spawn(wait));
        let drops = scope.spawn(move || drop(y));
        std::thread::sleep(Duration::from_millis(50));
        device.give_up_when(|| Some("it hangs".to_owned())).unwrap();
        for wait in waits {
            let error = wait.join().unwrap().unwrap_err();
            assert!(matches!(error, DeviceError::Aborted { .. }), "{error}");
        }
        drops.join().unwrap();
    });
    drop((device, other, x));
    assert!(start.elapsed() < BOUND, "{kind}");
}

/// In processes of their own, whose end is part of it.
#[test]
fn a_hung_call_holds_nobody_up() {
    let start = Instant::now();
    for kind in HOST {
        for task in ["given up", "at the end", "hung kernel", "closed by a call"] {
            Child::new(&format!("{task} {kind}")).passes();
        }
    }
    for kind in DRIVERS {
        for task in ["given up", "closed by a call", "calls"] {
            let child = Child::with_lookalike(&format!("{task} {kind}"), kind);
            // Room for a few of the tensors that calls let go of.
            let said = child.env("LOOKALIKE_MEMORY", "5242880").passes();
            let mut left = said.lines().filter(|line| line.starts_with("lookalike:"));
            // Nothing but what was left to the end of the process.
            assert!(left.clone().count() > 0 || task != "given up", "{said}");
            assert!(left.all(|line| line.ends_with("not released")), "{said}");
        }
        Child::with_lookalike(&format!("breaks {kind}"), kind).passes();
        Child::with_lookalike(&format!("at the end {kind}"), kind).passes();
    }
    assert!(start.elapsed() < 10 * BOUND);
}

#[test]
#[ignore = "the body of a process: tests start it, in every run, with its libraries"]
fn child() {
    let task = std::env::var("CHILD_TASK").unwrap();
    let (name, kind) = task.rsplit_once(' ').unwrap();
    let kind: DeviceKind = kind.parse().unwrap();
    match name {
        "suite" => suite(&Device::new(kind, 2).unwrap()),
        "no seed" => {
            let error = Device::new(kind, 1).unwrap_err().to_string();
            assert!(error.contains("MUSTER_GUARD_SEED is `x`"), "{error}");
        }
        "given up" => is_given_up(kind),
        "at the end" => hangs_at_the_end(kind),
        "hung kernel" => a_kernel_hangs(kind),
        "calls" => {
            let device = Device::new(kind, 1).unwrap();
            (0..5).for_each(|_| a_call_may_hold_the_last_handle(&device));
        }
        "closed by a call" => is_closed_by_a_call(kind),
        "breaks" => breaks(kind),
        _ => panic!("there is no task {name}"),
    }
}

/// On a machine that has them: `MUSTER_TEST_DEVICES=cuda:0,hip:0`.
#[test]
fn real_devices() {
    let Ok(kinds) = std::env::var("MUSTER_TEST_DEVICES") else {
        eprintln!("skipped: MUSTER_TEST_DEVICES names no devices");
        return;
    };
    for kind in kinds.split(',') {
        suite(&Device::new(kind.trim().parse().unwrap(), 2).unwrap());
    }
}
