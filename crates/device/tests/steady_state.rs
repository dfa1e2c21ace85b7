//! The work of a step on streams allocates nothing: kernels on an idle stream and on one that
//! waits, events, and the same work on the host behind them. Watched on all threads of the process;
//! there is no test harness here, since it would be watched too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use device::{DType, Device, DeviceError, Kernel, Tensor};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    a_group_beside_the_compute_stream_allocates_nothing();
}

fn a_group_beside_the_compute_stream_allocates_nothing() {
    let device = Device::cpu(1).unwrap();
    let (compute, group) = (device.stream(), device.new_stream().unwrap());
    let x = device.zeros(&[64], DType::F32).unwrap();
    let (here, memory) = (device.clone(), x.clone());
    // The group's work is not over before the step has enqueued what waits for it.
    let enqueued = Arc::new(Barrier::new(2));
    let gate = enqueued.clone();
    let job = Arc::new(move || {
        gate.wait();
        here.with_memory("reduce", |k| {
            k.write::<f32>(&memory)?.iter_mut().for_each(|x| *x *= 0.5);
            Ok(())
        })
    });
    let step = || {
        compute.launch("add", add(&x)).unwrap();
        group.wait_for(&compute.record().unwrap()).unwrap();
        group.host_shared(job.clone()).unwrap();
        let reduced = group.record().unwrap();
        // Another stream waits, and the host with a deadline.
        compute.wait_for(&reduced).unwrap();
        (0..2).for_each(|_| compute.launch("add", add(&x)).unwrap());
        enqueued.wait();
        assert!(reduced.wait_until(Instant::now() + Duration::from_secs(60)).unwrap());
        compute.synchronize().unwrap();
    };
    // Queues, threads and events for more than a step ever has at a time.
    let (release, released) = std::sync::mpsc::channel::<()>();
    let hold = move || {
        let _ = released.recv();
        Ok(())
    };
    group.host(hold).unwrap();
    let ahead = [(); 16].map(|()| {
        group.host_shared(job.clone()).unwrap();
        let event = group.record().unwrap();
        compute.wait_for(&event).unwrap();
        (event, compute.record().unwrap())
    });
    (0..16).for_each(|_| compute.launch("add", add(&x)).unwrap());
    drop((release, ahead));
    for _ in 0..16 {
        enqueued.wait();
    }
    compute.synchronize().unwrap();
    (0..50).for_each(|_| step());
    let before = COUNT.load(Ordering::SeqCst);
    (0..200).for_each(|_| step());
    assert_eq!(COUNT.load(Ordering::SeqCst) - before, 0);
    assert!((device.stream().to_vec::<f32>(&x).unwrap()[0] - 5.0).abs() < 1e-5);
}

/// A kernel that adds 1 to every element.
fn add(x: &Tensor) -> impl FnOnce(&Kernel) -> Result<(), DeviceError> + Send + 'static {
    let to = x.clone();
    move |k: &Kernel| {
        k.write::<f32>(&to)?.iter_mut().for_each(|x| *x += 1.0);
        Ok(())
    }
}
