//! Libraries that are missing, broken, too old, or lack what came later.

mod common;

use std::path::Path;

use common::gpu::encode;
use common::{Gpu, Job, Rank, VENDORS, run_task, wait, within};
use nccl_rs::{Config, DataType, Error, LATER, Library, RedOp, Shrink, Vendor, Version};

fn missing(rank: &Rank) {
    let vendor = rank.vendor;
    let error = Library::open_at(vendor, Path::new("/nowhere/libnccl.so.2")).unwrap_err();
    let Error::Missing { tried, .. } = &error else { panic!("{error}") };
    assert_eq!(tried.0[0].place, "/nowhere/libnccl.so.2");
    let told = error.to_string();
    assert!(told.contains("No such file") && told.contains(vendor.variable()), "{told}");
    // A library that the environment names is the only place.
    let error = Library::open(vendor).unwrap_err();
    let Error::Missing { tried, .. } = &error else { panic!("{error}") };
    assert_eq!(tried.0.len(), 1, "{error}");
}

fn everywhere(rank: &Rank) {
    let Err(error) = Library::open(rank.vendor) else {
        return eprintln!("skipped: this machine has {}", rank.vendor);
    };
    let told = error.to_string();
    let Error::Missing { tried, .. } = error else { panic!("{told}") };
    let places: Vec<_> = tried.0.iter().map(|attempt| attempt.place.as_str()).collect();
    match rank.vendor {
        Vendor::Nvidia => assert_eq!(places[..2], ["libnccl.so.2", "libnccl.so"], "{told}"),
        Vendor::Amd => {
            assert_eq!(places[..2], ["librccl.so.1", "librccl.so"], "{told}");
            assert!(places.contains(&"/opt/rocm/lib/librccl.so.1"), "{told}");
        }
    }
    assert!(told.contains("install"), "{told}");
}

fn broken(rank: &Rank) {
    let path = rank.dir.join("broken.so");
    std::fs::write(&path, "not a library").unwrap();
    let error = Library::open_at(rank.vendor, &path).unwrap_err().to_string();
    assert!(error.contains("file too short") || error.contains("invalid ELF"), "{error}");
}

fn too_old(rank: &Rank) {
    let error = Library::open(rank.vendor).unwrap_err();
    let Error::TooOld { version, .. } = &error else { panic!("{error}") };
    assert_eq!(*version, Version::new(2, 17, 1));
    assert!(error.to_string().contains("2.18.0 or later is needed"), "{error}");
}

fn lacking(rank: &Rank) {
    for symbol in ["ncclGetVersion", "ncclAllReduce", "ncclCommAbort", "ncclGetLastError"] {
        let path = rank.dir.join(format!("{symbol}.so"));
        lookalike::nccl::library_without(&[symbol], &path).unwrap();
        let error = Library::open_at(rank.vendor, &path).unwrap_err();
        let Error::Symbol { symbol: told, .. } = &error else { panic!("{error}") };
        assert_eq!(*told, symbol, "{error}");
    }
}

/// Version 2.21.5: what it has and what it lacks.
fn absent(rank: &Rank) {
    let _gpu = Gpu::open(rank.vendor);
    let comm = rank.init();
    let library = comm.library();
    let version = Version::new(2, 21, 5);
    assert_eq!(library.version(), version);
    for (symbol, since) in LATER {
        assert_eq!(library.has(symbol), *since <= version, "{symbol}");
    }
    let told = |error: Error| {
        assert!(matches!(error, Error::Absent { .. }), "{error}");
        error.to_string()
    };
    let name = rank.vendor.library();
    let needs = |what: &str, since: &str| format!("{what} needs {name} {since}, this is 2.21.5");
    assert_eq!(told(comm.revoke().unwrap_err()), needs("ncclCommRevoke", "2.28.7"));
    let shrunk = comm.shrink(&[1], Shrink::Idle, &within(100)).unwrap_err();
    assert_eq!(told(shrunk), needs("ncclCommShrink", "2.27.0"));
    let estimate = library.group_simulate(|| Ok(())).unwrap_err();
    assert_eq!(told(estimate), needs("ncclGroupSimulateEnd", "2.22.0"));
    let factor = comm.pre_mul_sum(DataType::F8E4M3, &[0]).unwrap_err();
    assert_eq!(told(factor), needs("f8e4m3", "2.24.0"));
    let memory = library.mem_alloc(4096).unwrap();
    // SAFETY: no window is made.
    let window = unsafe { comm.window(memory.buffer(DataType::F32)) }.err().unwrap();
    assert_eq!(told(window), needs("ncclCommWindowRegister", "2.27.0"));
    let named = Config { comm_name: Some("dp".to_owned()), ..within(100) };
    let child = comm.split(Some(0), 0, &named).unwrap_err();
    assert_eq!(told(child), needs("the config's `comm_name`", "2.27.0"));
    // None of this has harmed it.
    drop(memory);
    comm.finalize().unwrap();
}

/// Functions that a library lacks though it is new enough: refused before anything has changed.
const STRIPPED: [&str; 4] =
    ["ncclCommRevoke", "ncclCommShrink", "ncclGroupSimulateEnd", "ncclCommWindowRegister"];

fn stripped(rank: &Rank) {
    let gpu = Gpu::open(rank.vendor);
    let comm = rank.init();
    let library = comm.library();
    let memory = library.mem_alloc(4096).unwrap();
    let buffer = memory.buffer(DataType::I32);
    let mut was_called = false;
    let estimate = library.group_simulate(|| {
        was_called = true;
        Ok(())
    });
    let errors = [
        comm.revoke().unwrap_err(),
        comm.shrink(&[1 - rank.rank], Shrink::Idle, &within(100)).unwrap_err(),
        estimate.unwrap_err(),
        // SAFETY: no window is made.
        unsafe { comm.window(buffer) }.err().unwrap(),
    ];
    for (error, symbol) in errors.iter().zip(STRIPPED) {
        assert!(matches!(error, Error::Absent { what, .. } if *what == symbol), "{error}");
        assert!(error.to_string().contains("this is 2.30.7 and lacks it all the same"), "{error}");
    }
    assert!(!was_called, "a group was opened that nobody can end");
    // It is not revoked, and no group is open.
    let stream = gpu.stream();
    gpu.write(buffer, &encode(DataType::I32, &[1; 1024]), stream);
    // SAFETY: the memory is kept until the stream was waited for.
    unsafe { comm.all_reduce(buffer, buffer, RedOp::Sum, stream) }.unwrap();
    wait(&gpu, stream, &comm).unwrap();
    assert_eq!(gpu.read(buffer, stream), encode(DataType::I32, &[2; 1024]));
    comm.finalize().unwrap();
}

/// 2.18.1 has none of what came later; 2.30.7 takes the longest config.
fn oldest(rank: &Rank) {
    let _gpu = Gpu::open(rank.vendor);
    let comm = rank.init();
    assert!(LATER.iter().all(|(symbol, _)| !comm.library().has(symbol)));
    let error = comm.library().mem_alloc(64).unwrap_err();
    let expected = format!("ncclMemAlloc needs {} 2.19.0, this is 2.18.1", rank.vendor);
    assert_eq!(error.to_string(), expected);
    comm.finalize().unwrap();
}

fn newest(rank: &Rank) {
    let _gpu = Gpu::open(rank.vendor);
    let config = Config {
        max_ctas: Some(8),
        net_name: Some("Socket".to_owned()),
        comm_name: Some("dp".to_owned()),
        max_p2p_peers: Some(4),
        ..within(20_000)
    };
    let comm = rank.try_init(&config).unwrap();
    assert!(LATER.iter().all(|(symbol, _)| comm.library().has(symbol)));
    let refused = comm.split(Some(0), 0, &Config { max_ctas: Some(-3), ..within(1000) });
    let error = refused.unwrap_err();
    assert!(matches!(error, Error::Call { call: "ncclCommSplit", .. }), "{error}");
    assert!(error.to_string().contains("out of range"), "{error}");
    comm.finalize().unwrap();
}

#[test]
#[ignore = "the body of a process: tests start it, in every run, with its libraries"]
fn child() {
    run_task(|task, rank| match task {
        "missing" => missing(rank),
        "everywhere" => everywhere(rank),
        "broken" => broken(rank),
        "too_old" => too_old(rank),
        "lacking" => lacking(rank),
        "absent" => absent(rank),
        "stripped" => stripped(rank),
        "oldest" => oldest(rank),
        "newest" => newest(rank),
        _ => panic!("there is no task {task}"),
    });
}

#[test]
fn a_missing_or_broken_library_says_where_it_was_looked_for() {
    for vendor in VENDORS {
        Job::new("missing", vendor, 1).env(vendor.variable(), "/nowhere.so").processes();
        Job::new("everywhere", vendor, 1).env(vendor.variable(), "").processes();
        Job::new("broken", vendor, 1).processes();
    }
}

#[test]
fn a_library_that_is_too_old_or_lacks_an_entry_point_is_refused() {
    for vendor in VENDORS {
        Job::new("too_old", vendor, 1).env("LOOKALIKE_NCCL_VERSION", "21701").processes();
    }
    Job::new("lacking", Vendor::Nvidia, 1).processes();
}

#[test]
fn what_a_build_lacks_is_told_before_anything_has_changed() {
    for vendor in VENDORS {
        Job::new("stripped", vendor, 2).without(&STRIPPED).processes();
    }
}

#[test]
fn what_a_version_lacks_is_told_with_the_version_that_has_it() {
    for vendor in VENDORS {
        Job::new("absent", vendor, 2).version(22_105).processes();
        Job::new("oldest", vendor, 2).version(21_801).processes();
    }
    Job::new("newest", Vendor::Nvidia, 1).version(23_007).run(0..1)[0].passed();
}
