//! One set of tests over all devices. CUDA and HIP are the look-alikes, in processes of their own,
//! because a driver's library is opened once in a process; `MUSTER_TEST_DEVICES=cuda:0` runs the
//! same tests on the real thing.

mod common;

use bytemuck::Zeroable;
use common::{Child, ScaleAdd, Shape, arch_of, toy};
use device::{
    Arch, DType, Device, DeviceError, DeviceKind, Element, Function, Grid, Placement, SharedPart,
    SimOptions, Tensor,
};
use half::{bf16, f16};

/// Everything, on one device. `image` is the toy module, where there is one.
fn suite(device: &Device, image: Option<&[u8]>) {
    properties(device);
    memory_is_zeroed_and_keeps_what_is_copied(device);
    wrong_copies_are_refused(device);
    copies_and_fills_on_the_device(device);
    copies_that_nobody_waits_for(device);
    streams_wait_for_events(device);
    buffers_are_counted(device);
    other_threads_may_use_it(device);
    what_it_cannot_do_is_said(device);
    if let Some(image) = image {
        kernels_run_in_order(device, image);
        launches_are_captured(device, image);
        modules_outlive_their_handle(device, image);
        wrong_launches_are_refused(device, image);
        images_are_checked(device, image);
        if !is_real() {
            shapes_arrive(device, image);
        }
    }
}

fn is_real() -> bool {
    std::env::var_os("MUSTER_TEST_DEVICES").is_some()
}

fn properties(device: &Device) {
    let properties = device.properties();
    let simulated = matches!(device.kind(), DeviceKind::Sim(_));
    assert_eq!(properties.simulated, simulated);
    assert_eq!(properties.name.contains("SIMULATED"), simulated, "{properties:?}");
    assert!(properties.multiprocessors > 0 && properties.memory_bytes > 1 << 20, "{properties:?}");
    assert_eq!(properties.arch.is_none(), device.kind().is_host());
    if !is_real() {
        assert_eq!(properties.arch, arch_of(device.kind()));
    }
    match device.kind() {
        DeviceKind::Cuda(_) => assert!(properties.driver.starts_with("CUDA 1"), "{properties:?}"),
        DeviceKind::Hip(_) => assert!(properties.driver.starts_with("HIP "), "{properties:?}"),
        _ => {}
    }
    if let Some(arch) = properties.arch {
        assert!(properties.shared_bytes_per_block >= arch.shared_bytes_per_block().min(99 << 10));
    }
}

fn round_trip<T: Element + PartialEq + std::fmt::Debug>(device: &Device, values: &[T; 6]) {
    let stream = device.stream();
    let x = device.zeros(&[2, 3], T::DTYPE).unwrap();
    assert_eq!(stream.to_vec::<T>(&x).unwrap(), [T::zeroed(); 6], "{device:?} {}", T::DTYPE);
    stream.copy_in(&x, values).unwrap();
    assert_eq!(stream.to_vec::<T>(&x).unwrap(), values, "{device:?} {}", T::DTYPE);
    let row = x.rows(1..2).unwrap();
    stream.copy_in(&row, &values[..3]).unwrap();
    let expected = [&values[..3], &values[..3]].concat();
    assert_eq!(stream.to_vec::<T>(&x).unwrap(), expected, "{device:?} {}", T::DTYPE);
}

fn memory_is_zeroed_and_keeps_what_is_copied(device: &Device) {
    round_trip(device, &[1.5_f32, -2.0, 3.0, 4.0, 5.0, 6.0]);
    round_trip(device, &[1.5_f64, -2.0, 3.0, 4.0, 5.0, 6.0]);
    round_trip(device, &[1.5, -2.0, 3.0, 4.0, 5.0, 6.0].map(bf16::from_f32));
    round_trip(device, &[1.5, -2.0, 3.0, 4.0, 5.0, 6.0].map(f16::from_f32));
    round_trip(device, &[1_u64 << 40, 2, 3, 4, 5, 6]);
    round_trip(device, &[1_u8, 2, 3, 4, 5, 255]);
    let empty = device.tensor::<f32>(&[0, 4], &[]).unwrap();
    assert_eq!(empty.address(), 0);
    assert_eq!(device.stream().to_vec::<f32>(&empty).unwrap(), []);
    let large = device.zeros(&[1 << 16], DType::U32).unwrap();
    assert_eq!(large.address() % 256, 0);
    assert_eq!(large.flat(3..4).unwrap().address(), large.address() + 12);
    assert!(device.stream().to_vec::<u32>(&large).unwrap().iter().all(|&x| x == 0));
}

fn wrong_copies_are_refused(device: &Device) {
    let stream = device.stream();
    let x = device.zeros(&[4], DType::F32).unwrap();
    let wrong = stream.to_vec::<f64>(&x).unwrap_err();
    assert!(matches!(wrong, DeviceError::Dtype { .. }), "{wrong}");
    let wrong = stream.copy_in(&x, &[1.0_f32; 5]).unwrap_err();
    assert!(matches!(wrong, DeviceError::Elements { got: 5, expected: 4 }), "{wrong}");
    let other = Device::cpu(1).unwrap();
    let foreign = other.zeros(&[4], DType::F32).unwrap();
    let wrong = stream.copy(&x, &foreign).unwrap_err();
    assert!(matches!(wrong, DeviceError::Foreign { .. }), "{wrong}");
    let wrong = stream.copy(&x.flat(0..2).unwrap(), &x.flat(1..3).unwrap()).unwrap_err();
    assert!(matches!(wrong, DeviceError::Overlap { .. }), "{wrong}");
    let half = device.zeros(&[4], DType::F16).unwrap();
    assert!(matches!(stream.copy(&half, &x).unwrap_err(), DeviceError::Dtype { .. }));
    let event = other.stream().record().unwrap();
    assert!(stream.wait_for(&event).is_err());
    let shape = device.tensor(&[3], &[1.0_f32; 2]);
    assert!(matches!(shape.err().unwrap(), DeviceError::Elements { .. }));
}

fn copies_and_fills_on_the_device(device: &Device) {
    let stream = device.stream();
    let x = device.tensor(&[8], &[1_u32, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    let y = device.zeros(&[8], DType::U32).unwrap();
    stream.copy(&y.flat(2..6).unwrap(), &x.flat(4..8).unwrap()).unwrap();
    stream.copy(&x.flat(0..2).unwrap(), &x.flat(6..8).unwrap()).unwrap();
    stream.fill(&x.flat(7..8).unwrap(), 0xff).unwrap();
    assert_eq!(stream.to_vec::<u32>(&y).unwrap(), [0, 0, 5, 6, 7, 8, 0, 0]);
    assert_eq!(stream.to_vec::<u32>(&x).unwrap(), [7, 8, 3, 4, 5, 6, 7, u32::MAX]);
    stream.copy(&x.flat(0..0).unwrap(), &y.flat(8..8).unwrap()).unwrap();
    stream.fill(&x.flat(0..0).unwrap(), 1).unwrap();
}

fn copies_that_nobody_waits_for(device: &Device) {
    let stream = device.new_stream().unwrap();
    let x = device.zeros(&[256], DType::F32).unwrap();
    let mut from = device.pinned(1024).unwrap();
    let to = device.pinned(1024).unwrap();
    // SAFETY: no copy is under way.
    let values: &mut [f32] = bytemuck::cast_slice_mut(unsafe { from.bytes_mut() });
    values.iter_mut().enumerate().for_each(|(i, v)| *v = i as f32);
    // SAFETY: both are left alone until the event has been waited for.
    unsafe {
        stream.copy_in_async(&x, &from).unwrap();
        stream.copy_out_async(&to, &x).unwrap();
    }
    stream.record().unwrap().wait().unwrap();
    // SAFETY: the copies are over.
    assert_eq!(unsafe { (from.bytes(), to.bytes()) }.0, unsafe { to.bytes() });
    let short = device.pinned(1023).unwrap();
    // SAFETY: it is refused.
    assert!(unsafe { stream.copy_in_async(&x, &short) }.is_err());
    // Dropped at once, with the copy still to run.
    // SAFETY: nobody writes to what is gone.
    unsafe { stream.copy_in_async(&x, &from).unwrap() };
    drop(from);
    stream.synchronize().unwrap();
}

fn streams_wait_for_events(device: &Device) {
    let (first, second) = (device.new_stream().unwrap(), device.new_stream().unwrap());
    let x = device.zeros(&[1000], DType::U32).unwrap();
    let y = device.zeros(&[1000], DType::U32).unwrap();
    let start = first.record().unwrap();
    for round in 0..40_u32 {
        first.copy_in(&x, &[round; 1000]).unwrap();
        second.wait_for(&first.record().unwrap()).unwrap();
        second.copy(&y, &x).unwrap();
        first.wait_for(&second.record().unwrap()).unwrap();
    }
    let end = second.record().unwrap();
    assert_eq!(second.to_vec::<u32>(&y).unwrap(), [39; 1000], "{device:?}");
    end.wait().unwrap();
    match end.elapsed_ms(&start) {
        Ok(ms) => assert!((0.0..60_000.0).contains(&ms), "{ms}"),
        Err(error) => {
            assert!(matches!(device.kind(), DeviceKind::Sim(_) | DeviceKind::Guarded), "{error}");
            assert!(error.to_string().contains("not measurements"), "{error}");
        }
    }
}

fn buffers_are_counted(device: &Device) {
    let before = device.allocated_bytes();
    let x = device.alloc(12_345, &Placement::Private).unwrap();
    assert_eq!(device.allocated_bytes(), before + 12_345);
    drop(x);
    assert_eq!(device.allocated_bytes(), before);
    assert!(device.peak_bytes() >= before + 12_345);
}

fn other_threads_may_use_it(device: &Device) {
    let work = |thread: u32| {
        let x = device.tensor(&[3], &[thread; 3]).unwrap();
        let stream = device.new_stream().unwrap();
        let y = device.zeros(&[3], DType::U32).unwrap();
        // The compute stream has copied before `tensor` returned, or before this one's turn.
        device.stream().synchronize().unwrap();
        stream.copy(&y, &x).unwrap();
        stream.to_vec::<u32>(&y).unwrap()
    };
    std::thread::scope(|scope| {
        let threads = [1, 2, 3].map(|thread| scope.spawn(move || work(thread)));
        for (thread, handle) in (1..).zip(threads) {
            assert_eq!(handle.join().unwrap(), [thread; 3], "{device:?}");
        }
    });
}

fn what_it_cannot_do_is_said(device: &Device) {
    let stream = device.stream();
    if device.kind().is_host() {
        let modules = device.load_module(b"").err().unwrap().to_string();
        assert_eq!(modules, format!("{} has no modules", device.kind()));
        let graphs = stream.capture(|_| Ok(())).err().unwrap().to_string();
        assert_eq!(graphs, format!("{} has no graphs", device.kind()));
        return;
    }
    let expected = format!("kernel `add` has no implementation for {} yet", device.kind());
    assert_eq!(stream.launch("add", |_| Ok(())).unwrap_err().to_string(), expected);
    assert_eq!(stream.with_memory("add", |_| Ok(())).unwrap_err().to_string(), expected);
    // SAFETY: it is not mapped.
    let part = unsafe { SharedPart::new(tempfile::tempfile().unwrap().into(), 0) };
    let shared = device.alloc(64, &Placement::Shared(part.clone())).err().unwrap().to_string();
    assert!(shared.contains("shared between processes"), "{shared}");
    assert!(device.map_shared(&part, 64).is_err());
}

/// Enqueues x = a·x + b.
fn scale_add(stream: &device::Stream, function: &Function, x: &Tensor, a: f32, b: f32) {
    let n = u32::try_from(x.len()).unwrap();
    let args = ScaleAdd { x: x.address(), n, a, b, reserved: 0 };
    let grid = Grid::linear(n.div_ceil(256), 256);
    // SAFETY: the kernel takes this argument; `x` lives until the callers have waited.
    unsafe { stream.launch_module(function, &grid, &args) }.unwrap();
}

fn kernels_run_in_order(device: &Device, image: &[u8]) {
    let module = device.load_module(image).unwrap();
    let function = module.function("scale_add").unwrap();
    assert_eq!((function.name(), function.max_threads()), ("scale_add", 256));
    let stream = device.new_stream().unwrap();
    let x = device.tensor(&[1000], &[1.0_f32; 1000]).unwrap();
    device.stream().synchronize().unwrap();
    for _ in 0..100 {
        scale_add(&stream, &function, &x, 1.0, 2.0);
    }
    scale_add(&stream, &function, &x, 2.0, 0.0);
    assert_eq!(stream.to_vec::<f32>(&x).unwrap(), [402.0; 1000], "{device:?}");
}

fn launches_are_captured(device: &Device, image: &[u8]) {
    let function = device.load_module(image).unwrap().function("scale_add").unwrap();
    let stream = device.stream();
    let x = device.tensor(&[300], &[1.0_f32; 300]).unwrap();
    let y = device.zeros(&[300], DType::F32).unwrap();
    let graph = stream.capture(|stream| {
        scale_add(stream, &function, &x, 2.0, 0.0);
        scale_add(stream, &function, &x, 1.0, 1.0);
        stream.copy(&y, &x)?;
        stream.fill(&x.flat(0..1)?, 0)
    });
    let graph = graph.unwrap();
    drop(function);
    assert_eq!(stream.to_vec::<f32>(&x).unwrap(), [1.0; 300], "captured work has not run");
    for expected in [3.0, 7.0, 15.0] {
        // SAFETY: x and y are still there.
        unsafe { stream.launch_graph(&graph) }.unwrap();
        assert_eq!(stream.to_vec::<f32>(&y).unwrap()[1], expected, "{device:?}");
    }
    assert_eq!(stream.to_vec::<f32>(&y).unwrap()[0], 1.0);
    let failed = stream.capture(|_| Err(DeviceError::Rank { got: 9 })).err().unwrap();
    assert!(matches!(failed, DeviceError::Rank { got: 9 }), "the work's own error");
    let waited = stream.capture(|stream| stream.synchronize());
    assert!(waited.is_err(), "waiting cannot be captured");
    for copied in [
        stream.capture(|s| s.copy_in(&x, &[1.0_f32; 300])),
        stream.capture(|s| s.to_vec::<f32>(&x).map(|_| ())),
    ] {
        let told = copied.err().unwrap().to_string();
        assert!(told.contains("cannot be part of a captured graph"), "{told}");
    }
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = stream.capture(|_| panic!("on purpose"));
    }));
    assert!(panicked.is_err());
    scale_add(
        &stream,
        &device.load_module(image).unwrap().function("scale_add").unwrap(),
        &x,
        0.0,
        5.0,
    );
    assert_eq!(stream.to_vec::<f32>(&x).unwrap(), [5.0; 300], "the stream works again");
}

fn modules_outlive_their_handle(device: &Device, image: &[u8]) {
    let x = device.tensor(&[3], &[1.0_f32; 3]).unwrap();
    let stream = device.stream();
    {
        let module = device.load_module(image).unwrap();
        let function = module.function("scale_add").unwrap();
        drop(module);
        scale_add(&stream, &function, &x, 1.0, 1.0);
    }
    // Another copy of the same image, beside what is left of the first.
    let again = device.load_module(image).unwrap().function("scale_add").unwrap();
    scale_add(&stream, &again, &x, 1.0, 1.0);
    assert_eq!(stream.to_vec::<f32>(&x).unwrap(), [3.0; 3], "{device:?}");
    let y = device.tensor(&[3], &[1.0_f32; 3]).unwrap();
    scale_add(&stream, &again, &y, 1.0, 1.0);
    drop(y);
    stream.synchronize().unwrap();
}

fn wrong_launches_are_refused(device: &Device, image: &[u8]) {
    let module = device.load_module(image).unwrap();
    let absent = module.function("scale_sub").unwrap_err();
    assert!(matches!(&absent, DeviceError::NoFunction { name, .. } if name == "scale_sub"));
    assert!(module.function("scale\0add").is_err());
    let function = module.function("scale_add").unwrap();
    let stream = device.stream();
    let args = ScaleAdd::zeroed();
    let shared = device.properties().shared_bytes_per_block;
    let wrong = [
        (Grid::linear(0, 256), "zero"),
        (Grid::linear(1, 257), "257 threads"),
        (Grid { shared_bytes: shared + 1, ..Grid::linear(1, 256) }, "shared memory"),
        (Grid { cluster: [9, 1, 1], ..Grid::linear(9, 256) }, "cluster"),
    ];
    for (grid, expected) in wrong {
        // SAFETY: it is refused.
        let error = unsafe { stream.launch_module(&function, &grid, &args) }.unwrap_err();
        assert!(matches!(error, DeviceError::Launch { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let other = Device::sim(Arch::Sm80, 1, SimOptions::default()).unwrap();
    // SAFETY: it is refused.
    let error = unsafe { other.stream().launch_module(&function, &Grid::linear(1, 1), &args) };
    assert!(error.unwrap_err().to_string().contains("another device"));
    stream.synchronize().unwrap();
}

fn images_are_checked(device: &Device, image: &[u8]) {
    for wrong in [&image[..image.len() / 2], b"\x7fELF", b"", b"no image"] {
        if image.starts_with(b"//") && !wrong.is_empty() {
            continue;
        }
        let error = device.load_module(wrong).err().unwrap();
        assert!(matches!(error, DeviceError::Image { .. }), "{error}");
    }
    if is_real() {
        return;
    }
    let other = if arch_of(device.kind()) == Some(Arch::Sm80) { Arch::Gfx950 } else { Arch::Sm80 };
    let Some(other) = toy(other) else { return };
    let error = device.load_module(&other).err().unwrap().to_string();
    assert!(error.contains("simulates") || error.contains("no code for this device"), "{error}");
}

fn shapes_arrive(device: &Device, image: &[u8]) {
    let function = device.load_module(image).unwrap().function("shape").unwrap();
    let stream = device.stream();
    let out = device.zeros(&[5], DType::U32).unwrap();
    let clusters = arch_of(device.kind()) == Some(Arch::Sm90a);
    let cluster = if clusters { 2 } else { 1 };
    for shared_bytes in [0, 40 << 10, 64 << 10, 60 << 10] {
        let block = [32, 4, 1];
        let grid = Grid {
            grid: [6, 2, 1],
            block,
            cluster: [cluster, 1, 1],
            shared_bytes,
            early: cluster > 1,
            together: false,
        };
        // SAFETY: `out` has room for what the kernel writes.
        unsafe { stream.launch_module(&function, &grid, &Shape { out: out.address() }) }.unwrap();
        let seen = stream.to_vec::<u32>(&out).unwrap();
        assert_eq!(seen[..4], [6, 4, cluster, shared_bytes], "{device:?}");
        let seeded = std::env::var_os("MUSTER_SIM_SEED").is_some();
        assert_eq!(seen[4] != 0, seeded, "the seed of the device reaches its kernels");
    }
}

fn on(kind: DeviceKind) {
    let device = Device::new(kind, 2).unwrap();
    suite(&device, arch_of(kind).and_then(toy).as_deref());
}

#[test]
fn cpu() {
    on(DeviceKind::Cpu);
}

#[test]
fn guarded() {
    on(DeviceKind::Guarded);
}

#[test]
fn sim() {
    for arch in [Arch::Sm80, Arch::Sm90a, Arch::Gfx942] {
        on(DeviceKind::Sim(arch));
    }
}

#[test]
fn sim_in_other_orders() {
    let Some(image) = toy(Arch::Sm90a) else { return };
    for seed in 1..20 {
        let options = SimOptions { seed, ..SimOptions::default() };
        let device = Device::sim(Arch::Sm90a, 1, options).unwrap();
        streams_wait_for_events(&device);
        kernels_run_in_order(&device, &image);
        launches_are_captured(&device, &image);
        modules_outlive_their_handle(&device, &image);
    }
}

#[test]
fn sim_takes_its_seed_from_the_environment() {
    Child::new("sim").env("MUSTER_SIM_SEED", "77").passes();
    Child::new("no seed").env("MUSTER_SIM_SEED", "x").passes();
}

/// Without events the seed decides; with them it cannot.
#[test]
fn sim_runs_unordered_streams_in_any_order() {
    let outcome = |seed| {
        let options = SimOptions { seed, ..SimOptions::default() };
        let device = Device::sim(Arch::Sm90a, 1, options).unwrap();
        let x = device.zeros(&[1], DType::U32).unwrap();
        let (first, second) = (device.new_stream().unwrap(), device.new_stream().unwrap());
        first.copy_in(&x, &[1_u32]).unwrap();
        second.copy_in(&x, &[2_u32]).unwrap();
        first.synchronize().unwrap();
        second.synchronize().unwrap();
        device.stream().to_vec::<u32>(&x).unwrap()[0]
    };
    assert_eq!(outcome(0), 2, "the natural order");
    let outcomes: Vec<u32> = (1..40).map(outcome).collect();
    assert!(outcomes.contains(&1) && outcomes.contains(&2), "{outcomes:?}");
    assert_eq!(outcomes, (1..40).map(outcome).collect::<Vec<u32>>(), "a seed repeats");
}

#[test]
fn sim_reports_kernels_that_use_freed_memory() {
    let Some(image) = toy(Arch::Gfx942) else { return };
    let device = Device::sim(Arch::Gfx942, 1, SimOptions::default()).unwrap();
    let function = device.load_module(&image).unwrap().function("scale_add").unwrap();
    let stream = device.stream();
    let x = device.zeros(&[4], DType::F32).unwrap();
    let launch = |x: &Tensor, n| {
        let args = ScaleAdd { x: x.address(), n, a: 1.0, b: 1.0, reserved: 0 };
        // SAFETY: the module checks the addresses.
        unsafe { stream.launch_module(&function, &Grid::linear(1, 64), &args) }.unwrap();
    };
    let is_reported = || {
        let error = stream.synchronize().unwrap_err();
        assert!(matches!(error, DeviceError::Fault { .. }), "{error}");
        let expected = "sim:gfx942: kernel `scale_add` is wrong: access to";
        assert!(error.to_string().starts_with(expected), "{error}");
    };
    launch(&x, 5);
    is_reported();
    let args = ScaleAdd { x: x.address(), n: 4, a: 1.0, b: 1.0, reserved: 0 };
    launch(&x, 4);
    // Work that was enqueued before still finds it.
    drop(x);
    stream.synchronize().unwrap();
    // SAFETY: the module checks the addresses.
    unsafe { stream.launch_module(&function, &Grid::linear(1, 64), &args) }.unwrap();
    is_reported();
    stream.synchronize().unwrap();
    let small = device.zeros(&[1], DType::U32).unwrap();
    // SAFETY: it is refused.
    let wrong = unsafe {
        stream.launch_module(&function, &Grid::linear(1, 64), &Shape { out: small.address() })
    };
    let wrong = wrong.unwrap_err().to_string();
    assert!(wrong.contains("an argument of 8 bytes, it takes 24"), "{wrong}");
}

#[test]
fn cuda_lookalike() {
    let kind = DeviceKind::Cuda(0);
    Child::with_lookalike("cuda:0", kind).passes_without_complaint();
    Child::with_lookalike("cuda:1", kind).env("LOOKALIKE_DEVICES", "2").passes_without_complaint();
}

#[test]
fn hip_lookalike() {
    let kind = DeviceKind::Hip(0);
    Child::with_lookalike("hip:0", kind).passes_without_complaint();
    Child::with_lookalike("hip:1", kind).env("LOOKALIKE_DEVICES", "2").passes_without_complaint();
}

#[test]
#[ignore = "the body of a process: tests start it, in every run, with its libraries"]
fn child() {
    match std::env::var("CHILD_TASK").unwrap().as_str() {
        "no seed" => {
            let error = Device::new(DeviceKind::Sim(Arch::Sm90a), 1).unwrap_err().to_string();
            assert!(error.contains("MUSTER_SIM_SEED is `x`"), "{error}");
        }
        kind => on(kind.parse().unwrap()),
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
        let kind: DeviceKind = kind.trim().parse().unwrap();
        let ptx = include_bytes!("toy/toy.ptx").as_slice();
        let image = matches!(kind, DeviceKind::Cuda(_)).then_some(ptx);
        suite(&Device::new(kind, 2).unwrap(), image);
    }
}
