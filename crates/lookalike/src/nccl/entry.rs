//! The entry points of NCCL and RCCL, which have the same names.

use std::cell::Cell;
use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;
use std::sync::{Mutex, PoisonError};

use super::batch::Prepared;
use super::call::{Call, Kind};
use super::children::{self, Place};
use super::comm::{self, ABORTED, Comm, FINALIZED, REVOKED};
use super::faults::Fault;
use super::frame::Frame;
use super::group::{self, Begun};
use super::number::{DataType, op};
use super::{Refusal, hub, result, version, window};
use crate::world::Needs;

type Answer = Result<Begun, Refusal>;

/// The last refusal's words, for `ncclGetLastError`.
static LAST: Mutex<String> = Mutex::new(String::new());

fn remember(text: &str) {
    text.clone_into(&mut LAST.lock().unwrap_or_else(PoisonError::into_inner));
}

thread_local! {
    /// Whether what is refused was foreseen, and is no mistake of the caller.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs an entry point and returns its code. What is wrong with the call is said.
fn answer(name: &'static str, body: impl FnOnce() -> Answer) -> i32 {
    QUIET.set(false);
    match body() {
        Ok(Begun::Done) => result::SUCCESS,
        Ok(Begun::InProgress) => result::IN_PROGRESS,
        Err(refusal) => {
            let Refusal { code, text } = &refusal;
            remember(text);
            let is_misuse = [result::INVALID_ARGUMENT, result::INVALID_USAGE].contains(code);
            if is_misuse && !QUIET.get() {
                eprintln!("lookalike: {name}: {text}");
            }
            if name != "ncclGroupEnd" {
                group::spoil(&refusal);
            }
            *code
        }
    }
}

macro_rules! entry {
    ($($name:ident ($($arg:ident: $type:ty),*) $body:expr;)*) => {
        $(
            /// # Safety
            /// As the vendor's documentation says.
            #[allow(clippy::too_many_arguments)] // The vendor's function has them.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $type),*) -> i32 {
                answer(stringify!($name), || {
                    #[allow(unused_unsafe)] // Not all of them have pointers.
                    // SAFETY: pointers are the caller's; what they must point to is the vendor's
                    // contract, which this function has word for word.
                    unsafe { $body }
                })
            }
        )*
    };
}

/// # Safety
/// `to` is null or a place for a `T`.
unsafe fn give<T>(to: *mut T, value: T) -> Result<(), Refusal> {
    if to.is_null() {
        return Err(Refusal::argument("a null pointer where a result goes"));
    }
    // SAFETY: the caller's, and not null.
    unsafe { to.write(value) };
    Ok(())
}

const DONE: Answer = Ok(Begun::Done);

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId([u8; 128]);

/// `ncclConfig_t`, as far as it is looked at.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Config {
    size: usize,
    magic: u32,
    version: u32,
    blocking: i32,
    cga_cluster_size: i32,
    min_ctas: i32,
    max_ctas: i32,
}

/// `ncclSimInfo_t`.
#[repr(C)]
pub struct Simulation {
    size: usize,
    magic: u32,
    version: u32,
    estimated_us: f32,
}

entry! {
    ncclGetVersion(out: *mut i32) {
        give(out, version().cast_signed())?;
        DONE
    };
    ncclGetUniqueId(out: *mut UniqueId) {
        let mut id = [0; 128];
        let name = fresh_name();
        id[..name.len()].copy_from_slice(name.as_bytes());
        let system = |error: std::io::Error| Refusal::system(error.to_string());
        hub::start(&name).map_err(system)?;
        give(out, UniqueId(id))?;
        DONE
    };
    ncclCommInitRankConfig(
        out: *mut u64, ranks: i32, id: UniqueId, rank: i32, config: *const Config
    ) init(out, ranks, &id, rank, is_blocking(config)?);
    ncclCommSplit(comm: u64, color: i32, key: i32, out: *mut u64, config: *const Config) {
        let (comm, is_blocking) = (to_manage(comm)?, is_blocking(config)?);
        if color < children::NO_COLOR {
            return Err(Refusal::argument(format!("the color is {color}")));
        }
        give(out, 0)?;
        children::split(&comm, (color, key), Place(out), is_blocking);
        Ok(begun(is_blocking))
    };
    ncclCommShrink(
        comm: u64, exclude: *const i32, excluded: i32, out: *mut u64, config: *const Config,
        flags: i32
    ) {
        let (comm, is_blocking) = (comm::find(comm)?, is_blocking(config)?);
        if !(0..=1).contains(&flags) || excluded < 1 || exclude.is_null() {
            return Err(Refusal::argument("flags that there are not, or nobody to exclude"));
        }
        let list = std::slice::from_raw_parts(exclude, excluded.unsigned_abs() as usize);
        let mut without = Vec::new();
        for &rank in list {
            without.push(within(rank, comm.ranks, "an excluded rank")?);
        }
        if without.contains(&comm.rank) || !without.is_sorted() {
            return Err(Refusal::argument("the excluded ranks are not sorted, or have this one"));
        }
        give(out, 0)?;
        children::shrink(&comm, without, flags == 1, Place(out), is_blocking)?;
        Ok(begun(is_blocking))
    };
    ncclCommFinalize(comm: u64) {
        let comm = comm::find(comm)?;
        comm.admit()?;
        children::finalize(&comm);
        Ok(Begun::InProgress)
    };
    ncclCommDestroy(comm: u64) {
        let comm = comm::find(comm)?;
        if comm.state().outstanding > 0 {
            return Err(Refusal::usage("destroyed while operations are in flight"));
        }
        comm.close(FINALIZED);
        DONE
    };
    ncclCommAbort(comm: u64) {
        let comm = comm::find(comm)?;
        let slow_ms = comm.fault(Fault::Abort).unwrap_or(0);
        std::thread::sleep(std::time::Duration::from_millis(slow_ms));
        comm.close(ABORTED);
        DONE
    };
    ncclCommRevoke(comm: u64, flags: i32) {
        let comm = comm::find(comm)?;
        if flags != 0 {
            return Err(Refusal::argument("flags must be 0"));
        }
        comm.change(|state| state.end = Some(REVOKED));
        comm.cancel();
        Ok(Begun::InProgress)
    };
    ncclCommGetAsyncError(comm: u64, out: *mut i32) {
        let comm = comm::find(comm)?;
        // A device gets on by itself; here it does so when it is looked at.
        crate::world::ApiCall::of_library("ncclCommGetAsyncError", Needs::Nothing)?.get_on_a_step();
        let state = comm.state();
        let failure = state.failure.clone().filter(|_| state.end != Some(REVOKED));
        let is_in_progress = Comm::is_in_progress(&state);
        drop(state);
        let code = match failure {
            Some(Refusal { code, text }) => {
                remember(&text);
                code
            }
            None if is_in_progress => {
                group::poll(&comm)?;
                result::IN_PROGRESS
            }
            None => result::SUCCESS,
        };
        give(out, code)?;
        DONE
    };
    ncclCommCount(comm: u64, out: *mut i32) {
        give(out, comm::find(comm)?.ranks.cast_signed())?;
        DONE
    };
    ncclCommUserRank(comm: u64, out: *mut i32) {
        give(out, comm::find(comm)?.rank.cast_signed())?;
        DONE
    };
    ncclRedOpCreatePreMulSum(
        out: *mut i32, scalar: *const c_void, dtype: i32, residence: i32, comm: u64
    ) {
        let (comm, dtype) = (comm::find(comm)?, of_type(dtype)?);
        if scalar.is_null() || residence != 1 {
            return Err(Refusal::argument("no factor, or one that is not on the host"));
        }
        let mut factor = [0; 8];
        factor.as_mut_ptr().copy_from_nonoverlapping(scalar.cast(), dtype.bytes());
        let number = comm.change(|state| {
            let number = (5..).find(|number| !state.factors.contains_key(number)).unwrap_or(5);
            state.factors.insert(number, (dtype, factor));
            number
        });
        give(out, number)?;
        DONE
    };
    ncclRedOpDestroy(op: i32, comm: u64) {
        match comm::find(comm)?.change(|state| state.factors.remove(&op)) {
            Some(_) => DONE,
            None => Err(Refusal::argument(format!("{op} is no reduction that was made"))),
        }
    };
    ncclGroupStart() {
        group::start();
        DONE
    };
    ncclGroupEnd() group::end();
    ncclGroupSimulateEnd(info: *mut Simulation) {
        let (bytes, calls) = group::simulate()?;
        let is_info = |info: &Simulation| {
            info.magic == 0x7468_5283 && info.size == size_of::<Simulation>()
        };
        if !info.as_ref().is_some_and(is_info) {
            return Err(Refusal::argument("this is no simulation info"));
        }
        // Of a device that has 5 µs of latency and 100 GB/s.
        (*info).estimated_us = 5.0 * calls as f32 + bytes as f32 * 1e-5;
        DONE
    };
    ncclCommRegister(comm: u64, address: u64, bytes: usize, out: *mut u64) {
        give(out, window::register(&*comm::find(comm)?, (address, bytes as u64), false)?)?;
        DONE
    };
    ncclCommDeregister(comm: u64, handle: u64) {
        window::deregister(&*comm::find(comm)?, handle)?;
        DONE
    };
    ncclCommWindowRegister(comm: u64, address: u64, bytes: usize, out: *mut u64, flags: i32) {
        let comm = to_manage(comm)?;
        if !(0..=3).contains(&flags) {
            return Err(Refusal::argument("there are no such flags of a window"));
        }
        give(out, 0)?;
        window(&comm, window::register(&comm, (address, bytes as u64), true)?, Place(out));
        Ok(Begun::InProgress)
    };
    ncclCommWindowDeregister(comm: u64, handle: u64) {
        window::deregister(&*comm::find(comm)?, handle)?;
        DONE
    };
    ncclMemAlloc(out: *mut u64, bytes: usize) {
        let mut call = crate::world::ApiCall::of_library("ncclMemAlloc", Needs::Device)?;
        give(out, window::alloc(&mut call, bytes)?)?;
        DONE
    };
    ncclMemFree(address: u64) {
        let mut call = crate::world::ApiCall::of_library("ncclMemFree", Needs::Device)?;
        window::free(&mut call, address)?;
        DONE
    };

    ncclAllReduce(from: u64, to: u64, count: usize, dtype: i32, op: i32, comm: u64, stream: u64)
        enqueue(Kind::AllReduce, (from, to), count, dtype, op, 0, comm, stream);
    ncclReduce(
        from: u64, to: u64, count: usize, dtype: i32, op: i32, root: i32, comm: u64, stream: u64
    ) enqueue(Kind::Reduce, (from, to), count, dtype, op, root, comm, stream);
    ncclBroadcast(
        from: u64, to: u64, count: usize, dtype: i32, root: i32, comm: u64, stream: u64
    ) enqueue(Kind::Broadcast, (from, to), count, dtype, 0, root, comm, stream);
    ncclReduceScatter(
        from: u64, to: u64, count: usize, dtype: i32, op: i32, comm: u64, stream: u64
    ) enqueue(Kind::ReduceScatter, (from, to), count, dtype, op, 0, comm, stream);
    ncclAllGather(from: u64, to: u64, count: usize, dtype: i32, comm: u64, stream: u64)
        enqueue(Kind::AllGather, (from, to), count, dtype, 0, 0, comm, stream);
    ncclAlltoAll(from: u64, to: u64, count: usize, dtype: i32, comm: u64, stream: u64)
        enqueue(Kind::AllToAll, (from, to), count, dtype, 0, 0, comm, stream);
    ncclGather(from: u64, to: u64, count: usize, dtype: i32, root: i32, comm: u64, stream: u64)
        enqueue(Kind::Gather, (from, to), count, dtype, 0, root, comm, stream);
    ncclScatter(from: u64, to: u64, count: usize, dtype: i32, root: i32, comm: u64, stream: u64)
        enqueue(Kind::Scatter, (from, to), count, dtype, 0, root, comm, stream);
    ncclSend(from: u64, count: usize, dtype: i32, peer: i32, comm: u64, stream: u64)
        enqueue(Kind::Send, (from, 0), count, dtype, 0, peer, comm, stream);
    ncclRecv(to: u64, count: usize, dtype: i32, peer: i32, comm: u64, stream: u64)
        enqueue(Kind::Recv, (0, to), count, dtype, 0, peer, comm, stream);
}

/// The two functions that return no code.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(code: i32) -> *const c_char {
    let text = match code {
        result::SUCCESS => c"no error",
        result::UNHANDLED_DRIVER => c"unhandled driver error",
        result::SYSTEM => c"unhandled system error",
        result::INTERNAL => c"internal error",
        result::INVALID_ARGUMENT => c"invalid argument",
        result::INVALID_USAGE => c"invalid usage",
        result::REMOTE => c"remote process exited or there was a network error",
        result::IN_PROGRESS => c"operation in progress",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_comm: u64) -> *const c_char {
    let text = LAST.lock().unwrap_or_else(PoisonError::into_inner).replace('\0', " ");
    // The caller may keep it for ever.
    CString::new(text).unwrap_or_default().into_raw()
}

/// A name that no other communicator of this machine has.
fn fresh_name() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_nanos());
    format!("lookalike-nccl-{}-{:x}-{now:x}", std::process::id(), comm::fresh())
}

fn begun(is_blocking: bool) -> Begun {
    if is_blocking { Begun::Done } else { Begun::InProgress }
}

fn within(rank: i32, ranks: u32, what: &str) -> Result<u32, Refusal> {
    let found = u32::try_from(rank).ok().filter(|&rank| rank < ranks);
    found.ok_or_else(|| Refusal::argument(format!("{what} is {rank}, of {ranks} ranks")))
}

fn of_type(dtype: i32) -> Result<DataType, Refusal> {
    let known = DataType::of(dtype).filter(|dtype| !dtype.is_f8() || version() >= 22_400);
    known.ok_or_else(|| Refusal::argument(format!("{dtype} is no type of this version")))
}

/// A communicator that others may be made of: revoked or not.
fn to_manage(comm: u64) -> Result<Arc<Comm>, Refusal> {
    let comm = comm::find(comm)?;
    let is_revoked = comm.state().end == Some(REVOKED);
    if !is_revoked {
        comm.admit()?;
    }
    Ok(comm)
}

/// # Safety
/// `config` is null or a config.
unsafe fn is_blocking(config: *const Config) -> Result<bool, Refusal> {
    if config.is_null() {
        return Ok(true);
    }
    // Sizes that the struct has had, and the first version that has it so.
    const SIZES: [(usize, u32); 6] =
        [(48, 21_800), (72, 22_700), (80, 22_800), (88, 22_900), (96, 23_000), (120, 23_100)];
    // SAFETY: the caller's.
    let config = unsafe { config.read() };
    let since = SIZES.iter().find(|(size, _)| *size == config.size).map(|(_, since)| *since);
    if config.magic != 0xcafe_beef || since.is_none_or(|since| config.version < since) {
        let (size, named) = (config.size, config.version);
        let what = format!("a config of {size} bytes that says it is of version {named}");
        return Err(Refusal::argument(what));
    }
    let is_set = |value: i32| value != i32::MIN;
    let Config { min_ctas, max_ctas, cga_cluster_size, .. } = config;
    if is_set(min_ctas) && is_set(max_ctas) && min_ctas > max_ctas
        || [min_ctas, max_ctas].into_iter().any(|value| is_set(value) && value <= 0)
        || is_set(cga_cluster_size) && !(0..=8).contains(&cga_cluster_size)
    {
        return Err(Refusal::argument("a config with numbers that are out of range"));
    }
    match config.blocking {
        0 => Ok(false),
        1 | i32::MIN => Ok(true),
        other => Err(Refusal::argument(format!("blocking is {other}"))),
    }
}

/// # Safety
/// `out` is null or a place for a handle.
unsafe fn init(out: *mut u64, ranks: i32, id: &UniqueId, rank: i32, is_blocking: bool) -> Answer {
    let call = crate::world::ApiCall::of_library("ncclCommInitRankConfig", Needs::Device)?;
    let device = call.device()?;
    drop(call);
    let ranks = u32::try_from(ranks).ok().filter(|&ranks| ranks > 0);
    let ranks = ranks.ok_or_else(|| Refusal::argument("there are no ranks"))?;
    let rank = within(rank, ranks, "the rank")?;
    let name = id.0.split(|&byte| byte == 0).next().unwrap_or_default();
    let name = String::from_utf8_lossy(name);
    if !name.starts_with("lookalike-nccl-") {
        return Err(Refusal::argument("this is no unique id"));
    }
    let comm = Comm::new(&name, rank, ranks, device, is_blocking);
    // SAFETY: the caller's.
    unsafe { give(out, comm.handle) }?;
    comm.begin();
    match is_blocking {
        false => Ok(Begun::InProgress),
        true => comm.wait_until_ready().map(|()| Begun::Done),
    }
}

/// All ranks say that they are here, in the background.
fn window(comm: &Arc<Comm>, handle: u64, place: Place) {
    comm.change(|state| state.busy += 1);
    let comm = Arc::clone(comm);
    std::thread::spawn(move || {
        let number = comm.take_number();
        let calls = vec![Call::exchange(Kind::Window, Vec::new())];
        if comm.exchange(number, &Frame::Batch { number, calls }).is_some() {
            // SAFETY: the communicator says that it is in progress until below.
            unsafe { place.put(handle) };
        }
        comm.change(|state| {
            state.outstanding -= 1;
            state.busy -= 1;
        });
    });
}

#[allow(clippy::too_many_arguments)] // Those of the vendor's functions.
fn enqueue(
    kind: Kind,
    (from, to): (u64, u64),
    count: usize,
    dtype: i32,
    op: i32,
    peer: i32,
    comm: u64,
    stream: u64,
) -> Answer {
    let (comm, dtype) = (comm::find(comm)?, of_type(dtype)?);
    if let Err(refusal) = comm.admit() {
        // An error that the communicator has is not this call's.
        QUIET.set(comm.state().failure.is_some());
        return Err(refusal);
    }
    let what = if kind.has_root() { "the root" } else { "the peer" };
    let peer = within(peer, comm.ranks, what)?;
    let (op, factor) = reduction(&comm, op, dtype)?;
    let (reads, writes) = kind.parts(peer == comm.rank, comm.ranks as usize);
    let bytes = |parts: usize| {
        let bytes = parts.checked_mul(count).and_then(|len| len.checked_mul(dtype.bytes()));
        bytes.map(|bytes| bytes as u64).ok_or_else(|| Refusal::argument("a count without end"))
    };
    let (from, to) = ((from, bytes(reads)?), (to, bytes(writes)?));
    let mut world = crate::world::ApiCall::of_library(kind.name(), Needs::Device)?;
    world.on_device(comm.device, |call| {
        for (address, bytes) in [from, to].into_iter().filter(|(_, bytes)| *bytes > 0) {
            call.inside(address, bytes)?;
            if !address.is_multiple_of(dtype.bytes() as u64) {
                return Err(Refusal::argument(format!("{address:#x} is not aligned")));
            }
        }
        call.stream(stream)?;
        Ok(())
    })?;
    drop(world);
    let (count, data) = (count as u64, Vec::new());
    let call = Call { kind, dtype, op, factor, peer, count, data };
    group::add(comm, stream, Prepared { call, from, to })
}

fn reduction(comm: &Comm, number: i32, dtype: DataType) -> Result<(u8, [u8; 8]), Refusal> {
    if let Some(builtin) = u8::try_from(number).ok().filter(|&number| number <= op::AVG) {
        return Ok((builtin, [0; 8]));
    }
    match comm.state().factors.get(&number) {
        Some((of, factor)) if *of == dtype => Ok((op::PRE_MUL_SUM, *factor)),
        Some(_) => Err(Refusal::argument("a reduction that was made for another type")),
        None => Err(Refusal::argument(format!("{number} is no reduction"))),
    }
}
