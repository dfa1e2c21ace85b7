//! The look-alike of NCCL and RCCL notices what is wrong, so that other tests can trust its
//! silence.

mod common;

use std::ffi::c_void;

use common::Child;
use common::raw::{Raw, call};
use device::DeviceKind;

const CUDA: DeviceKind = DeviceKind::Cuda(0);
const INT: i32 = 2;
const SUM: i32 = 0;

/// Codes that are looked for.
const DRIVER: i32 = 1;
const ARGUMENT: i32 = 4;
const USAGE: i32 = 5;
const IN_PROGRESS: i32 = 7;

#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

/// `ncclConfig_t` of 2.18.
#[repr(C)]
struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: i32,
    numbers: [i32; 3],
    net_name: u64,
    more: [i32; 2],
}

fn config() -> Config {
    let (magic, version, blocking, unset) = (0xcafe_beef, 21_800, 0, i32::MIN);
    let (numbers, more) = ([unset; 3], [unset; 2]);
    Config { size: 48, magic, version, blocking, numbers, net_name: 0, more }
}

impl Raw {
    fn id(&self) -> UniqueId {
        let mut id = UniqueId([0; 128]);
        assert_eq!(call!(self, "ncclGetUniqueId"(*mut UniqueId: &raw mut id)), 0);
        id
    }

    fn init(&self, ranks: i32, rank: i32, id: UniqueId, config: &Config) -> (i32, u64) {
        let mut comm = 0;
        let place = &raw mut comm;
        let code = call!(self, "ncclCommInitRankConfig"
            (*mut u64: place, i32: ranks, UniqueId: id, i32: rank, *const Config: config));
        (code, comm)
    }

    fn state(&self, comm: u64) -> i32 {
        let mut state = 0;
        let code = call!(self, "ncclCommGetAsyncError"(u64: comm, *mut i32: &raw mut state));
        assert_eq!(code, 0);
        state
    }

    /// A communicator of one rank that is ready.
    fn comm(&self) -> u64 {
        let (code, comm) = self.init(1, 0, self.id(), &config());
        assert_eq!(code, IN_PROGRESS);
        while self.state(comm) == IN_PROGRESS {}
        comm
    }

    fn stream(&self) -> u64 {
        let mut stream = 0;
        assert_eq!(call!(self, "cuStreamCreate"(*mut u64: &raw mut stream, u32: 1)), 0);
        stream
    }

    fn alloc(&self, bytes: usize) -> u64 {
        let mut address = 0;
        assert_eq!(call!(self, "cuMemAlloc_v2"(*mut u64: &raw mut address, usize: bytes)), 0);
        address
    }

    fn sum(&self, at: u64, count: usize, dtype: i32, op: i32, comm: u64, stream: u64) -> i32 {
        call!(self, "ncclAllReduce"(u64: at, u64: at, usize: count, i32: dtype, i32: op, u64: comm,
            u64: stream))
    }
}

fn initialization() {
    let raw = Raw::open();
    let id = raw.id();
    assert_eq!(raw.init(1, 0, id, &config()).0, DRIVER, "the driver was not started");
    let raw = Raw::with_context();
    assert_eq!(raw.init(2, 2, id, &config()).0, ARGUMENT, "there is no rank 2 of 2");
    assert_eq!(raw.init(0, 0, id, &config()).0, ARGUMENT, "no ranks");
    assert_eq!(raw.init(1, 0, UniqueId([7; 128]), &config()).0, ARGUMENT, "no id");
    assert_eq!(raw.init(1, 0, id, &Config { magic: 1, ..config() }).0, ARGUMENT);
    assert_eq!(raw.init(1, 0, id, &Config { size: 50, ..config() }).0, ARGUMENT);
    assert_eq!(raw.init(1, 0, id, &Config { version: 21_400, ..config() }).0, ARGUMENT);
    assert_eq!(raw.init(1, 0, id, &Config { numbers: [0, 9, 8], ..config() }).0, ARGUMENT);
    let (code, comm) = raw.init(1, 0, id, &Config { blocking: 1, ..config() });
    assert_eq!((code, raw.state(comm)), (0, 0), "a blocking one is ready");
    assert_eq!(call!(raw, "ncclCommDestroy"(u64: comm)), 0);
    assert_eq!(call!(raw, "ncclCommDestroy"(u64: comm)), ARGUMENT, "twice");
}

fn operations() {
    let raw = Raw::with_context();
    let (comm, stream, at) = (raw.comm(), raw.stream(), raw.alloc(64));
    assert_eq!(raw.sum(at, 16, INT, SUM, comm + 1, stream), ARGUMENT, "no communicator");
    assert_eq!(raw.sum(at, 17, INT, SUM, comm, stream), DRIVER, "beyond the allocation");
    assert_eq!(raw.sum(at + 2, 4, INT, SUM, comm, stream), ARGUMENT, "not aligned");
    assert_eq!(raw.sum(at, 16, 12, SUM, comm, stream), ARGUMENT, "no type");
    assert_eq!(raw.sum(at, 16, INT, 5, comm, stream), ARGUMENT, "no reduction");
    assert_eq!(raw.sum(at, 16, INT, SUM, comm, stream + 1), DRIVER, "no stream");
    let (factor, mut op) = (2.0_f64, 0);
    let scalar = (&raw const factor).cast::<c_void>();
    let made = call!(raw, "ncclRedOpCreatePreMulSum"(*mut i32: &raw mut op, *const c_void: scalar,
        i32: 8, i32: 1, u64: comm));
    assert_eq!(made, 0);
    assert_eq!(raw.sum(at, 8, INT, op, comm, stream), ARGUMENT, "a factor of another type");
    assert_eq!(raw.sum(at, 8, 8, op, comm, stream), 0);
    assert_eq!(call!(raw, "ncclRedOpDestroy"(i32: op, u64: comm)), 0);
    assert_eq!(call!(raw, "ncclRedOpDestroy"(i32: op, u64: comm)), ARGUMENT, "twice");
    // Memory that another stream uses, without an event between.
    let other = raw.stream();
    let fill = call!(raw, "cuMemsetD8Async"(u64: at, u8: 0, usize: 64, u64: other));
    assert_eq!(fill, 1, "nothing orders it after the sum");
    assert_eq!(call!(raw, "ncclCommDestroy"(u64: comm)), USAGE, "an operation is in flight");
    assert_eq!(call!(raw, "ncclGroupEnd"()), USAGE, "no group");
}

fn groups() {
    let raw = Raw::with_context();
    let (comm, stream, at) = (raw.comm(), raw.stream(), raw.alloc(64));
    assert_eq!(call!(raw, "ncclGroupStart"()), 0);
    assert_eq!(raw.sum(at, 16, INT, SUM, comm, stream), 0);
    assert_eq!(raw.sum(at, 99, INT, SUM, comm, stream), DRIVER);
    assert_eq!(call!(raw, "ncclGroupEnd"()), DRIVER, "one of its calls was refused");
    assert_eq!(call!(raw, "cuStreamQuery"(u64: stream)), 0, "and none was begun");
    assert_eq!(call!(raw, "ncclCommFinalize"(u64: comm)), IN_PROGRESS);
    assert_eq!(raw.sum(at, 16, INT, SUM, comm, stream), USAGE, "finalized");
    while raw.state(comm) == IN_PROGRESS {}
    assert_eq!(call!(raw, "ncclCommDestroy"(u64: comm)), 0);
}

/// Operations are parts of a captured graph, and are done as often as it is launched.
fn graphs() {
    let raw = Raw::with_context();
    let (comm, stream, at) = (raw.comm(), raw.stream(), raw.alloc(4));
    let (factor, mut op, mut graph, mut executable) = (3_i32, 0, 0, 0);
    let scalar = (&raw const factor).cast::<c_void>();
    let made = call!(raw, "ncclRedOpCreatePreMulSum"(*mut i32: &raw mut op, *const c_void: scalar,
        i32: INT, i32: 1, u64: comm));
    assert_eq!(made, 0);
    assert_eq!(call!(raw, "cuStreamBeginCapture_v2"(u64: stream, i32: 2)), 0);
    assert_eq!(raw.sum(at, 1, INT, op, comm, stream), 0);
    assert_eq!(call!(raw, "cuStreamEndCapture"(u64: stream, *mut u64: &raw mut graph)), 0);
    let made = call!(raw, "cuGraphInstantiateWithFlags"
        (*mut u64: &raw mut executable, u64: graph, u64: 0));
    assert_eq!(made, 0);
    let mut number = 2_i32.to_ne_bytes();
    let host = number.as_mut_ptr().cast::<c_void>();
    let copied = call!(raw, "cuMemcpyHtoDAsync_v2"(u64: at, *const c_void: host.cast_const(),
        usize: 4, u64: stream));
    assert_eq!(copied, 0);
    for _ in 0..3 {
        assert_eq!(call!(raw, "cuGraphLaunch"(u64: executable, u64: stream)), 0);
    }
    let copied = call!(raw, "cuMemcpyDtoHAsync_v2"
        (*mut c_void: host, u64: at, usize: 4, u64: stream));
    assert_eq!((copied, i32::from_ne_bytes(number)), (0, 2 * 3 * 3 * 3));
}

fn memory() {
    let raw = Raw::with_context();
    let (comm, other) = (raw.comm(), raw.alloc(8192));
    let (mut at, mut handle) = (0, 0);
    assert_eq!(call!(raw, "ncclMemAlloc"(*mut u64: &raw mut at, usize: 4096)), 0);
    assert_eq!(at % 4096, 0);
    let mut window = |address: u64| {
        call!(raw, "ncclCommWindowRegister"
            (u64: comm, u64: address, usize: 64, *mut u64: &raw mut handle, i32: 1))
    };
    assert_eq!(window(other), ARGUMENT, "memory of another");
    assert_eq!(window(at + 64), ARGUMENT, "not aligned");
    assert_eq!(window(at), IN_PROGRESS);
    while raw.state(comm) == IN_PROGRESS {}
    assert_eq!(call!(raw, "ncclMemFree"(u64: other)), ARGUMENT);
    assert_eq!(call!(raw, "ncclMemFree"(u64: at)), USAGE, "it is still registered");
    assert_eq!(call!(raw, "ncclCommWindowDeregister"(u64: comm, u64: handle + 1)), ARGUMENT);
}

/// A call while the one before is still in progress; new types of an old version.
fn too_early() {
    let raw = Raw::with_context();
    let (stream, at) = (raw.stream(), raw.alloc(64));
    let (code, comm) = raw.init(2, 0, raw.id(), &config());
    assert_eq!((code, raw.state(comm)), (IN_PROGRESS, IN_PROGRESS));
    assert_eq!(raw.sum(at, 16, INT, SUM, comm, stream), ARGUMENT, "nobody else has come");
    assert_eq!(call!(raw, "ncclCommAbort"(u64: comm)), 0);
    assert_eq!(raw.sum(at, 16, 10, SUM, raw.comm(), stream), ARGUMENT, "an 8-bit float");
}

#[test]
#[ignore = "the body of a process: tests start it, in every run, with its libraries"]
fn child() {
    match std::env::var("CHILD_TASK").unwrap().as_str() {
        "initialization" => initialization(),
        "operations" => operations(),
        "groups" => groups(),
        "graphs" => graphs(),
        "memory" => memory(),
        "too_early" => too_early(),
        task => panic!("there is no task {task}"),
    }
}

#[track_caller]
fn assert_said(said: &str, all: &[&str]) {
    for what in all {
        assert!(said.contains(what), "`{what}` was not said:\n{said}");
    }
}

#[test]
fn wrong_initializations_are_noticed() {
    let said = Child::with_lookalike("initialization", CUDA).passes();
    assert_said(
        &said,
        &[
            "lookalike: ncclCommInitRankConfig: called before the driver was started",
            "the rank is 2, of 2 ranks",
            "a config of 50 bytes",
            "lookalike: ncclCommDestroy:",
        ],
    );
}

#[test]
fn wrong_operations_are_noticed() {
    let said = Child::with_lookalike("operations", CUDA).passes();
    assert_said(
        &said,
        &[
            "lookalike: ncclAllReduce: 68 bytes at",
            "a reduction that was made for another type",
            "are in use by ncclAllReduce in another stream, and nothing orders the two",
            "lookalike: ncclCommDestroy: destroyed while operations are in flight",
            "the end of a group that was not started",
            "at exit: 1 communicators not released",
        ],
    );
}

#[test]
fn a_group_with_a_wrong_call_is_refused_as_a_whole() {
    let said = Child::with_lookalike("groups", CUDA).passes();
    assert_said(&said, &["a call on a communicator that was finalized"]);
}

#[test]
fn operations_are_captured_and_replayed() {
    let said = Child::with_lookalike("graphs", CUDA).passes();
    assert_said(&said, &["at exit: 1 reductions not released"]);
}

#[test]
fn memory_that_is_not_fit_or_not_let_go_of_is_noticed() {
    let said = Child::with_lookalike("memory", CUDA).passes();
    assert_said(
        &said,
        &[
            "a window of memory that is not ncclMemAlloc's",
            "is not aligned to 4096",
            "was not allocated by ncclMemAlloc",
            "memory is freed that a communicator still has registered",
            "at exit: 1 allocations of ncclMemAlloc not released",
            "at exit: 1 registrations not released",
        ],
    );
}

#[test]
fn a_call_that_comes_too_early_is_noticed() {
    let child = Child::with_lookalike("too_early", CUDA).env("LOOKALIKE_NCCL_VERSION", "22105");
    assert_said(
        &child.passes(),
        &["the call before is still in progress", "no type of this version"],
    );
}
