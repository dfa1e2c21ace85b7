//! A missing part is a typed error that says what was looked for and what to do, and never a panic:
//! libraries, each single entry point, devices, kernels, memory.

mod common;

use common::{Child, library_name};
use device::{DType, Device, DeviceError, DeviceKind, Failure, Placement};

const KINDS: [DeviceKind; 2] = [DeviceKind::Cuda(0), DeviceKind::Hip(0)];

fn open(kind: DeviceKind) -> DeviceError {
    Device::new(kind, 1).expect_err("something is missing")
}

/// Whether this machine has the real library, which is then found behind ours.
fn system_has(kind: DeviceKind) -> bool {
    // SAFETY: opens a library that is made for it.
    unsafe { libloading::Library::new(library_name(kind)) }.is_ok()
}

fn absent(kind: DeviceKind) {
    let error = open(kind);
    let DeviceError::Library { tried, install, .. } = &error else { panic!("{error}") };
    assert!(tried.contains(library_name(kind)), "{error}");
    assert!(install.contains("install"), "{error}");
    assert!(error.to_string().starts_with(&format!("{kind} is not open: ")), "{error}");
}

fn broken(kind: DeviceKind) {
    let error = open(kind);
    let DeviceError::Library { reason, .. } = &error else { panic!("{error}") };
    assert!(reason.contains("file too short") || reason.contains("invalid ELF"), "{error}");
}

fn lacking(kind: DeviceKind) {
    let lacking = std::env::var("LACKING").unwrap();
    let error = open(kind);
    let DeviceError::Symbol { symbol, library, .. } = &error else { panic!("{error}") };
    assert_eq!((*symbol, library.as_str()), (lacking.as_str(), library_name(kind)), "{error}");
}

fn no_device(kind: DeviceKind) {
    let error = open(kind);
    assert!(matches!(error, DeviceError::NoDevice { count: 0, .. }), "{error}");
    assert!(error.to_string().contains("VISIBLE_DEVICES"), "{error}");
}

fn third_of_two(kind: DeviceKind) {
    let third = if kind == KINDS[0] { DeviceKind::Cuda(2) } else { DeviceKind::Hip(2) };
    let error = open(third);
    assert!(matches!(error, DeviceError::NoDevice { count: 2, .. }), "{error}");
    assert!(error.to_string().starts_with(&format!("there is no {third}")), "{error}");
    Device::new(kind, 1).unwrap();
}

fn other_arch(kind: DeviceKind) {
    let error = open(kind);
    assert!(matches!(error, DeviceError::NoKernels { .. }), "{error}");
}

fn little_memory(kind: DeviceKind) {
    let device = Device::new(kind, 1).unwrap();
    let small = device.alloc(1 << 19, &Placement::Private).unwrap();
    let error = device.alloc(1 << 20, &Placement::Private).err().unwrap();
    assert!(
        matches!(error, DeviceError::Driver { code: 2, failure: Failure::OutOfMemory, .. }),
        "{error}"
    );
    assert!(error.to_string().contains("memory is full"), "{error}");
    drop(small);
    device.alloc(1 << 20, &Placement::Private).unwrap();
    assert_eq!(device.allocated_bytes(), 0);
}

fn leak(kind: DeviceKind) {
    let device = Device::new(kind, 1).unwrap();
    std::mem::forget(device.zeros(&[4], DType::F32).unwrap());
}

#[test]
#[ignore = "the body of a process: tests start it, in every run, with its libraries"]
fn child() {
    let task = std::env::var("CHILD_TASK").unwrap();
    let (name, kind) = task.split_once(' ').unwrap();
    let kind = kind.parse().unwrap();
    match name {
        "absent" => absent(kind),
        "broken" => broken(kind),
        "lacking" => lacking(kind),
        "no_device" => no_device(kind),
        "third_of_two" => third_of_two(kind),
        "other_arch" => other_arch(kind),
        "little_memory" => little_memory(kind),
        "leak" => leak(kind),
        _ => panic!("there is no task {name}"),
    }
}

#[test]
fn a_missing_library_is_named_with_what_was_tried() {
    for kind in KINDS {
        if system_has(kind) {
            eprintln!("skipped: this machine has {}", library_name(kind));
            continue;
        }
        Child::new(&format!("absent {kind}")).passes();
        Child::with_library(&format!("broken {kind}"), kind, b"not a library").passes();
    }
}

#[test]
fn every_single_missing_entry_point_is_named() {
    let library = std::fs::read(lookalike::library().unwrap()).unwrap();
    for kind in KINDS {
        let symbols = device::entry_points(kind);
        // The library that would be found first.
        for symbol in symbols {
            let without = renamed(&library, symbol);
            let child = Child::with_library(&format!("lacking {kind}"), kind, &without);
            child.env("LACKING", symbol).passes();
        }
    }
}

/// The library with another name in the place of `symbol`.
fn renamed(library: &[u8], symbol: &str) -> Vec<u8> {
    let name = [b"\0", symbol.as_bytes(), b"\0"].concat();
    let mut library = library.to_vec();
    let mut found = 0;
    let mut at = 0;
    while let Some(next) = library[at..].windows(name.len()).position(|part| part == name) {
        at += next + 1;
        library[at] = b'x';
        found += 1;
    }
    assert!(found > 0, "the look-alike does not export {symbol}");
    library
}

#[test]
fn missing_devices_and_kernels_are_told_apart() {
    for kind in KINDS {
        let child = |task: &str| Child::with_lookalike(&format!("{task} {kind}"), kind);
        child("no_device").env("LOOKALIKE_DEVICES", "0").passes_without_complaint();
        child("third_of_two").env("LOOKALIKE_DEVICES", "2").passes_without_complaint();
    }
    let hip = DeviceKind::Hip(0);
    let child = Child::with_lookalike(&format!("other_arch {hip}"), hip);
    child.env("LOOKALIKE_ARCH", "sm_80").passes_without_complaint();
}

#[test]
fn full_memory_is_an_error_and_no_loss() {
    for kind in KINDS {
        let child = Child::with_lookalike(&format!("little_memory {kind}"), kind);
        child.env("LOOKALIKE_MEMORY", "1400000").passes_without_complaint();
    }
}

#[test]
fn the_lookalike_tells_of_leaks() {
    for kind in KINDS {
        let said = Child::with_lookalike(&format!("leak {kind}"), kind).passes();
        assert!(said.contains("lookalike: at exit: 1 allocations not released"), "{said}");
    }
}
