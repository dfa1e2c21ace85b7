//! After the first step, a step allocates nothing; the one exception is the packing buffers of
//! the `gemm` crate, which it makes anew for every product.

mod cluster;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};

use cluster::{Cluster, Setup, noise, schema};
use device::{DType, Device};
use optim::{Clip, OptimizerConfig, StepScalars};

struct Watching;

#[derive(Clone, Copy, PartialEq)]
enum Watch {
    Off,
    On,
    /// While the watcher itself allocates.
    Paused,
}

thread_local! {
    static WATCH: Cell<Watch> = const { Cell::new(Watch::Off) };
    /// All allocations, and where those were made that `gemm` did not make.
    static COUNT: Cell<usize> = const { Cell::new(0) };
    static OURS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn note() {
    if WATCH.try_with(Cell::get) != Ok(Watch::On) {
        return;
    }
    WATCH.set(Watch::Paused);
    COUNT.set(COUNT.get() + 1);
    let place = std::backtrace::Backtrace::force_capture().to_string();
    if !place.contains("gemm_common::") && !place.contains("gemm_f32::") {
        OURS.with_borrow_mut(|ours| ours.push(place));
    }
    WATCH.set(Watch::On);
}

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

#[test]
fn a_step_allocates_nothing_after_the_first() {
    let default = OptimizerConfig::default().rules;
    let rules = |matrices: &str| {
        let rest = "{match: {}, sgd: {}}";
        let text = format!("[{{match: {{roles: [matrix, expert]}}, {matrices}: {{}}}}, {rest}]");
        serde_yaml::from_str(&text).unwrap()
    };
    let cases = [
        (DType::F32, Clip::Global(0.5), default.clone()),
        (DType::Bf16, Clip::PerMatrix(0.5), default),
        (DType::Bf16, Clip::Global(0.5), rules("normuon")),
        (DType::F32, Clip::PerMatrix(0.5), rules("dion")),
    ];
    for (dtype, clip, rules) in cases {
        let config = OptimizerConfig { clip, rules, ..OptimizerConfig::default() };
        let setup = Setup::new(schema(), config, dtype);
        let device = Device::cpu(1).unwrap();
        let mut cluster = Cluster::new(&setup, &device, 1);
        cluster.step(1, &noise(setup.flat.len, 1));
        let grads = device.tensor(&[setup.flat.len], &noise(setup.flat.len, 2)).unwrap();
        let statistics = device.zeros(&[cluster.ownership.statistics], DType::F64).unwrap();
        let mut sums = vec![0.0_f64; cluster.ownership.statistics];
        WATCH.set(Watch::On);
        for step in 2..5 {
            cluster.ranks[0].statistics(&grads, &statistics).unwrap();
            device.stream().copy_out(&statistics, &mut sums).unwrap();
            cluster.clipper.decide(&sums, 7, None, &mut cluster.decision).unwrap();
            let clip = &cluster.decision;
            let scalars = StepScalars { step, lr_factor: 1.0, inverse_tokens: 0.1, clip };
            cluster.ranks[0].apply(&cluster.weights[0], &grads, &scalars).unwrap();
        }
        WATCH.set(Watch::Off);
        let ours = OURS.take();
        assert!(ours.is_empty(), "{dtype}: {} allocations, first at {}", ours.len(), ours[0]);
        assert!(COUNT.get() > 0, "the watcher sees the products' buffers");
    }
}
