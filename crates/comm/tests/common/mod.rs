//! Threads as ranks, on every backend.
#![allow(dead_code)] // Each test binary uses its part.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::time::Duration;

use comm::shm::SharedMemory;
use comm::{Backend, Channel, Control, Result, Settings, World};
use device::{Arch, Device, SimOptions};
use kernels::gpu::modules::{Family, Kernels};

pub mod certificates;

/// Long enough for a loaded machine; tests of timeouts use their own.
pub const PATIENCE_MS: u64 = 60_000;

pub const BACKENDS: [&str; 2] = ["shm", "tcp"];

/// Jobs of several hosts: their backend, and ranks.
pub const BY_HOSTS: [(&str, usize); 3] = [("2 a host", 4), ("3 a host", 6), ("2 a host", 6)];

/// One backend per rank of a new job: `shm`, `tcp`, or both with so many ranks `a host`; of `tls`,
/// those of `tcp`.
pub fn backends(kind: &str, world: usize) -> Vec<Backend> {
    static JOBS: AtomicU64 = AtomicU64::new(0);
    let number = JOBS.fetch_add(1, Ordering::Relaxed);
    let job = format!("test-{}-{number}", std::process::id());
    if kind == "shm" {
        let memory = SharedMemory::create(&job, world).unwrap();
        return (0..world).map(|_| Backend::Shm { memory: memory.clone() }).collect();
    }
    if let Some(each) = kind.strip_suffix(" a host") {
        let each: usize = each.parse().unwrap();
        return on_hosts(&(0..world).map(|rank| rank / each).collect::<Vec<_>>());
    }
    let bind = || comm::tcp::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let listeners: Vec<_> = (0..world).map(|_| bind()).collect();
    let peers: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
    let each = listeners.into_iter().map(|listener| Backend::Tcp {
        listener,
        peers: peers.clone(),
        job: job.clone(),
    });
    each.collect()
}

/// One backend per rank of a new job whose rank `r` is on host `host_of[r]`.
pub fn on_hosts(host_of: &[usize]) -> Vec<Backend> {
    let hosts = 0..=host_of.iter().copied().max().unwrap_or(0);
    let ranks = |host: usize| host_of.iter().filter(|&&of| of == host).count();
    let memories = hosts.map(|host| SharedMemory::create("test", ranks(host)).unwrap());
    let memories: Vec<_> = memories.collect();
    let tcp = backends("tcp", host_of.len()).into_iter().zip(host_of);
    let each = tcp.map(|(backend, &host)| match backend {
        Backend::Tcp { listener, peers, job } => {
            let (memory, host_of) = (memories[host].clone(), host_of.into());
            Backend::Hosts { listener, peers, job, memory, host_of }
        }
        _ => unreachable!("asked for tcp"),
    });
    each.collect()
}

/// Runs `body` as every rank of a job; returns what each returned, in rank order.
pub fn with_ranks<R: Send>(
    kind: &str,
    world: usize,
    timeout_ms: u64,
    body: impl Fn(World) -> R + Sync,
) -> Vec<R> {
    with_settings(kind, world, |_| settings(timeout_ms), body)
}

/// Settings without a pulse: other tests work in this process, which is nothing to these ranks.
/// Whatever can goes by hosts.
pub fn settings(timeout_ms: u64) -> Settings {
    Settings { pulse: || 0, by_hosts_bytes: 0, ..Settings::new(timeout_ms) }
}

/// Numbers without order, from a seed: splitmix64 (Steele, Lea, Flood 2014).
fn draw(state: &AtomicU64) -> u64 {
    let state = state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 33
}

/// Pauses between the parts of operations, other ones on every rank.
pub fn delayed(seed: u64) -> impl Fn(usize) -> Settings + Sync {
    move |rank| {
        let state = AtomicU64::new(seed * 1000 + rank as u64);
        let disturb = move || match draw(&state) {
            often if often % 4 > 0 => {}
            seldom => std::thread::sleep(Duration::from_micros(seldom % 3000)),
        };
        Settings { disturb: Some(Arc::new(disturb)), ..settings(PATIENCE_MS) }
    }
}

/// As [`with_ranks`], each rank with settings of its own.
pub fn with_settings<R: Send>(
    kind: &str,
    world: usize,
    settings: impl Fn(usize) -> Settings + Sync,
    body: impl Fn(World) -> R + Sync,
) -> Vec<R> {
    static TLS: OnceLock<comm::tls::Tls> = OnceLock::new();
    let made = || certificates::Authority::new().of_anyone();
    let tls = (kind == "tls").then(|| TLS.get_or_init(made).clone());
    let settings = |rank| match &tls {
        Some(tls) => Settings { tls: Some(tls.clone()), ..settings(rank) },
        None => settings(rank),
    };
    as_ranks(backends(kind, world), settings, body)
}

/// As [`with_settings`], by backends that are there.
pub fn as_ranks<R: Send>(
    backends: Vec<Backend>,
    settings: impl Fn(usize) -> Settings + Sync,
    body: impl Fn(World) -> R + Sync,
) -> Vec<R> {
    let world = backends.len();
    let (body, settings) = (&body, &settings);
    std::thread::scope(|scope| {
        let ranks = backends.into_iter().enumerate().map(|(rank, backend)| {
            scope.spawn(move || {
                body(comm::connect_with(backend, rank, world, settings(rank)).unwrap())
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// A simulated device; `None`, said once, where the build has no kernels for it.
pub fn simulated(arch: Arch, seed: u64) -> Option<Device> {
    let device = Device::sim(arch, 1, SimOptions { seed, ..SimOptions::default() }).unwrap();
    let kernels = Kernels::of(&device).unwrap();
    match kernels.function(Family::OrderedSum, "ordered_sum_f32") {
        Ok(_) => Some(device),
        Err(error) => {
            static SAID: Once = Once::new();
            SAID.call_once(|| eprintln!("skipped what needs kernels of {arch}: {error}"));
            None
        }
    }
}

/// The channel that tests use.
pub fn control(world: &World) -> Arc<dyn Control> {
    world.control(Channel::Training)
}

/// The error of a result, as text.
pub fn message<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => "no error".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// The same way to the same group, for a second process that claims a rank.
pub fn again(backend: &Backend) -> Backend {
    match backend {
        Backend::Shm { memory } => Backend::Shm { memory: memory.clone() },
        Backend::Tcp { .. } | Backend::Hosts { .. } => panic!("an address has one listener"),
    }
}

/// Segments that tile part of `0..len`, dealt to ranks as `owners` says.
pub fn deal(
    len: usize,
    world: usize,
    owners: &[(usize, usize, bool)],
) -> Vec<Vec<std::ops::Range<usize>>> {
    let mut segments = vec![Vec::new(); world];
    let mut at = 0;
    for &(size, owner, is_gap) in owners {
        let end = (at + size).min(len);
        if !is_gap {
            segments[owner % world].push(at..end);
        }
        at = end;
    }
    segments[0].push(at..len);
    segments
}
