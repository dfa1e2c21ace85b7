//! Threads that share the indices of a loop with the thread that begins it.
//!
//! A training step is some thousand loops of 10 to 500 µs, one after the other. What decides how
//! well threads share them is how soon the others begin, and that a thread finds in its own cache
//! what it wrote in the loop before. So workers look for the next loop for a while before they
//! sleep, and each thread takes the indices of its own share first:
//!
//! ```text
//! each(8, body), 2 threads    share of the caller │ 0 1 2 3 │ 4 5 6 7 │ share of worker 1
//!                             a thread that is done with its own takes what is left of the others'
//! ```
//!
//! A loop that is begun inside another, or on another thread at the same time, has a place of its
//! own; whoever is idle, or waits for the end of its own loop, takes part. Which thread runs an
//! index never decides a bit: `body` is called once for each.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Loops that may be open at once; a further one runs on its caller alone.
const PLACES: usize = 16;
/// Looks before a thread that waits lets others have its core.
const LOOKS: usize = 64;
/// How long a thread looks before it sleeps: longer than what a step does between two loops.
const AWAKE: Duration = Duration::from_micros(100);

/// A place is free, being prepared or left, or open to anyone; the low bits count those inside.
const FREE: u32 = 0;
const HELD: u32 = 1 << 30;
const OPEN: u32 = 1 << 31;
const INSIDE: u32 = HELD - 1;

thread_local! {
    /// Which share is this thread's own: that of a worker is its number, anyone else's is 0.
    static SHARE: Cell<usize> = const { Cell::new(0) };
}

/// The workers; the thread that begins a loop is one more.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    places: Vec<Place>,
    /// Moves when a loop begins or ends: what idle threads look at.
    changes: AtomicU32,
    asleep: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    ends: AtomicBool,
}

type Body<'a> = dyn Fn(usize) + Sync + 'a;

/// A loop that threads take part in.
#[repr(align(128))]
struct Place {
    state: AtomicU32,
    count: AtomicUsize,
    /// Written by the owner while the place is held; read by those inside an open one.
    body: UnsafeCell<Option<*const Body<'static>>>,
    /// Of each share, the next index.
    next: Vec<Line>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A counter in a cache line of its own.
#[repr(align(128))]
struct Line(AtomicUsize);

// SAFETY: `body` is written only by the thread that moved `state` from FREE to HELD, before it
// stores OPEN with release order, and read only by threads that moved `state` from OPEN to OPEN + 1
// with acquire order; it points to a `Sync` closure, and `Open::drop` returns after all have left.
unsafe impl Sync for Place {}
// SAFETY: as above; nothing in it belongs to a thread.
unsafe impl Send for Place {}

impl Pool {
    /// `threads - 1` workers.
    pub(crate) fn new(threads: usize) -> std::io::Result<Pool> {
        let place = || Place {
            state: AtomicU32::new(FREE),
            count: AtomicUsize::new(0),
            body: UnsafeCell::new(None),
            next: (0..threads).map(|_| Line(AtomicUsize::new(0))).collect(),
            panic: Mutex::new(None),
        };
        let shared = Arc::new(Shared {
            places: (0..PLACES).map(|_| place()).collect(),
            changes: AtomicU32::new(0),
            asleep: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            ends: AtomicBool::new(false),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(threads - 1) };
        for share in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let builder = std::thread::Builder::new().name(format!("device-{share}"));
            pool.workers.push(builder.spawn(move || {
                SHARE.set(share);
                shared.work();
            })?);
        }
        Ok(pool)
    }

    /// Calls `body` with each of `0..count`, on any of the threads.
    pub(crate) fn each(&self, count: usize, body: &Body) {
        let Some(place) = self.shared.places.iter().find(|place| place.hold()) else {
            return (0..count).for_each(body);
        };
        let open = Open { shared: &self.shared, place };
        open.begin(count, body);
        place.run(body);
        // Waits, also where `body` panics here.
        drop(open);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        self.shared.change(usize::MAX);
        for worker in self.workers.drain(..) {
            // A worker does not panic: it catches what bodies do.
            let _ = worker.join();
        }
    }
}

/// The owner's hold on a place.
struct Open<'a> {
    shared: &'a Shared,
    place: &'a Place,
}

impl Open<'_> {
    fn begin(&self, count: usize, body: &Body) {
        let (place, shares) = (self.place, self.place.next.len());
        for (share, next) in place.next.iter().enumerate() {
            next.0.store(count * share / shares, Ordering::Relaxed);
        }
        place.count.store(count, Ordering::Relaxed);
        // SAFETY: only the lifetime changes; `drop` ends the use of the pointer within the real
        // one.
        let body = unsafe { std::mem::transmute::<*const Body<'_>, *const Body<'static>>(body) };
        // SAFETY: the place is held by this thread, and nobody is inside.
        unsafe { *place.body.get() = Some(body) };
        place.state.store(OPEN, Ordering::Release);
        self.shared.change(count - 1);
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let place = self.place;
        // Nobody enters from here on; OPEN becomes HELD, and those inside stay counted.
        let opened = place.state.fetch_xor(OPEN | HELD, Ordering::SeqCst) & OPEN != 0;
        debug_assert!(opened);
        self.shared.help_until(|| place.state.load(Ordering::SeqCst) & INSIDE == 0);
        let panic = locked(&place.panic).take();
        place.state.store(FREE, Ordering::Release);
        if let Some(panic) = panic
            && !std::thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

impl Place {
    fn hold(&self) -> bool {
        self.state.load(Ordering::Relaxed) == FREE
            && self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Calls `body` with indices that are left, this thread's own share first.
    fn run(&self, body: &Body) {
        let (shares, count) = (self.next.len(), self.count.load(Ordering::Relaxed));
        let own = SHARE.get() % shares;
        for share in (own..shares).chain(0..own) {
            let end = count * (share + 1) / shares;
            let next = &self.next[share].0;
            while next.load(Ordering::Relaxed) < end {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index < end {
                    body(index);
                }
            }
        }
    }

    fn has_work(&self) -> bool {
        let (shares, count) = (self.next.len(), self.count.load(Ordering::Relaxed));
        let left = |(share, next): (usize, &Line)| {
            next.0.load(Ordering::Relaxed) < count * (share + 1) / shares
        };
        self.next.iter().enumerate().any(left)
    }

    /// Takes part if the place is open and anything is left; says whether.
    fn join(&self) -> bool {
        let mut state = self.state.load(Ordering::Acquire);
        if state & OPEN == 0 || !self.has_work() {
            return false;
        }
        loop {
            let (from, to) = (Ordering::Acquire, Ordering::Acquire);
            match self.state.compare_exchange_weak(state, state + 1, from, to) {
                Ok(_) => break,
                Err(now) if now & OPEN == 0 => return false,
                Err(now) => state = now,
            }
        }
        // SAFETY: this thread is counted inside an open place: the body is there, was written
        // before the place was opened, and is borrowed until all have left.
        let body = unsafe { &*(*self.body.get()).expect("an open place has a body") };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run(body))) {
            locked(&self.panic).get_or_insert(panic);
        }
        true
    }

    /// Ends what [`Place::join`] began; true for the last to leave one that its owner waits for.
    fn leave(&self) -> bool {
        self.state.fetch_sub(1, Ordering::SeqCst) == HELD + 1
    }
}

impl Shared {
    /// Runs a worker.
    fn work(&self) {
        self.help_until(|| self.ends.load(Ordering::Relaxed));
    }

    /// Takes part in whatever is open until `done`.
    fn help_until(&self, done: impl Fn() -> bool) {
        loop {
            let seen = self.changes.load(Ordering::SeqCst);
            if done() {
                return;
            }
            match self.places.iter().find(|place| place.join()) {
                Some(place) if place.leave() => self.change(usize::MAX),
                Some(_) => {}
                None => self.wait(seen),
            }
        }
    }

    /// Returns when something has changed since `seen`, or a little later.
    fn wait(&self, seen: u32) {
        let changed = || self.changes.load(Ordering::SeqCst) != seen;
        for _ in 0..LOOKS {
            if changed() {
                return;
            }
            std::hint::spin_loop();
        }
        let start = Instant::now();
        while start.elapsed() < AWAKE {
            if changed() {
                return;
            }
            std::thread::yield_now();
        }
        let mut guard = locked(&self.sleep);
        self.asleep.fetch_add(1, Ordering::SeqCst);
        // Looked at after being counted: `change` either sees the sleeper or is seen by it.
        while !changed() {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
    }

    /// Tells idle threads, of which `wanted` are of use.
    fn change(&self, wanted: usize) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        let asleep = self.asleep.load(Ordering::SeqCst);
        if asleep == 0 {
            return;
        }
        // Whoever was counted as asleep before waits for `wake` once this is locked.
        drop(locked(&self.sleep));
        if wanted >= asleep {
            self.wake.notify_all();
        } else {
            (0..wanted).for_each(|_| self.wake.notify_one());
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(pool: &Pool, count: usize) -> Vec<usize> {
        let seen: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
        pool.each(count, &|i| {
            seen[i].fetch_add(1, Ordering::Relaxed);
        });
        seen.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_index_is_called_once() {
        for threads in 1..6 {
            let pool = Pool::new(threads).unwrap();
            for count in (1..40).chain([1000]) {
                assert!(counted(&pool, count).iter().all(|&n| n == 1), "{threads} {count}");
            }
        }
    }

    #[test]
    fn loops_inside_loops_and_of_several_threads_end() {
        let pool = Pool::new(3).unwrap();
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.each(5, &|_| {
                            pool.each(7, &|_| {
                                pool.each(2, &|_| {
                                    total.fetch_add(1, Ordering::Relaxed);
                                });
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 200 * 5 * 7 * 2);
    }

    #[test]
    fn a_sleeping_pool_wakes() {
        let pool = Pool::new(4).unwrap();
        for _ in 0..20 {
            assert!(counted(&pool, 9).iter().all(|&n| n == 1));
            std::thread::sleep(3 * AWAKE);
        }
    }

    #[test]
    fn both_threads_take_part() {
        let pool = Pool::new(2).unwrap();
        let arrived = AtomicUsize::new(0);
        // Each index waits for the other: one thread alone would wait for ever.
        pool.each(2, &|_| {
            arrived.fetch_add(1, Ordering::SeqCst);
            while arrived.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3).unwrap();
        for bad in [0, 50, 99] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.each(100, &|i| assert_ne!(i, bad));
            }));
            assert!(result.is_err());
            assert!(counted(&pool, 30).iter().all(|&n| n == 1));
        }
    }
}
