//! Threads that work together, many times in each millisecond.
//!
//! A step of the engine divides some hundred pieces of work, which take microseconds each. Threads that slept in between would take
//! longer to wake up than to work: so they spin for a moment before they sleep. Nobody is waited for who has not begun: if a core is
//! taken away, the others do its share.

use std::cell::{Cell, UnsafeCell};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// So many threads, the caller's included.
pub struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    /// One caller at a time.
    lead: Mutex<()>,
}

struct Shared {
    /// From the highest bit on: the number of the piece of work, whether helpers may still begin with it, and how many are at it.
    gate: AtomicU64,
    /// The piece of work. Written while nobody is at one and nobody may begin.
    work: UnsafeCell<*const Work<'static>>,
    is_closed: AtomicBool,
    beds: Vec<Bed>,
}

/// Where one helper sleeps.
#[derive(Default)]
struct Bed {
    thread: OnceLock<Thread>,
    is_taken: AtomicBool,
}

// SAFETY: `work` is written by the one who leads, while the gate is shut and nobody is behind it; and read by helpers who passed the
// gate after that, which its orderings make visible. What it points to is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// Something to be done for each number below `count`.
struct Work<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    count: usize,
    next: AtomicUsize,
    has_panicked: AtomicBool,
    leader: Thread,
}

thread_local! {
    /// The team that this thread leads, while it does nothing else with it.
    static LED: Cell<*const Shared> = const { Cell::new(null()) };
}

impl Team {
    /// # Errors
    /// The operating system gave no threads.
    pub fn new(threads: usize) -> io::Result<Self> {
        let helpers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            work: UnsafeCell::new(null()),
            is_closed: AtomicBool::new(false),
            beds: (0..helpers).map(|_| Bed::default()).collect(),
        });
        let mut team = Self { shared, helpers: Vec::with_capacity(helpers), lead: Mutex::new(()) };
        for index in 0..helpers {
            let shared = Arc::clone(&team.shared);
            let helper = std::thread::Builder::new().name(format!("engine-{}", index + 1));
            team.helpers.push(helper.spawn(move || shared.help(&shared.beds[index]))?);
        }
        Ok(team)
    }

    /// How many.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Does `work` on this thread, and what it [divides](for_each) on all of them. Other callers wait until it is done: so `work` may
    /// run other teams, but would wait for itself if it ran this one.
    pub fn run<R>(&self, work: impl FnOnce() -> R) -> R {
        let lead = self.lead.lock().unwrap_or_else(PoisonError::into_inner);
        let leading = Leading::begin(&raw const *self.shared);
        let done = work();
        drop((leading, lead));
        done
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::SeqCst);
        for helper in self.helpers.drain(..) {
            helper.thread().unpark();
            // A helper ends in no other way.
            let _ = helper.join();
        }
    }
}

/// Threads of the team that runs this; 1 if none does.
#[must_use]
pub fn threads() -> usize {
    // SAFETY: who leads a team borrows it, and it stays while it is led.
    unsafe { LED.get().as_ref() }.map_or(1, |shared| shared.beds.len() + 1)
}

/// Calls `task` once for each item, on all threads of the [`Team`] that runs this, in any order; on this thread alone if none does.
///
/// # Panics
/// If a task does.
pub fn for_each<T: Send>(items: &mut [T], task: impl Fn(&mut T) + Sync) {
    let led = LED.get();
    if items.len() < 2 || led.is_null() {
        items.iter_mut().for_each(task);
        return;
    }
    let (first, count) = (Items(items.as_mut_ptr()), items.len());
    let task = |index: usize| {
        // SAFETY: each index below the number of items comes once, and the slice is borrowed until all are done.
        task(unsafe { &mut *first.at(index) });
    };
    let (next, has_panicked, leader) = (AtomicUsize::new(0), AtomicBool::new(false), std::thread::current());
    let work = Work { task: &task, count, next, has_panicked, leader };
    // A task that divides work again does it alone.
    let paused = Leading::begin(null());
    // SAFETY: this thread leads the team, which stays meanwhile.
    unsafe { &*led }.divide(&work);
    drop(paused);
    assert!(!work.has_panicked.into_inner(), "a task panicked");
}

/// The first of items that tasks on several threads take, each its own.
struct Items<T>(*mut T);

// SAFETY: `for_each` gives each item to one thread, and may: it is `Send`.
unsafe impl<T: Send> Sync for Items<T> {}

impl<T> Items<T> {
    /// # Safety
    /// There must be so many items.
    unsafe fn at(&self, index: usize) -> *mut T {
        // SAFETY: as the caller's.
        unsafe { self.0.add(index) }
    }
}

/// What [`LED`] was before, to be restored.
struct Leading(*const Shared);

impl Leading {
    fn begin(shared: *const Shared) -> Self {
        Self(LED.replace(shared))
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        LED.set(self.0);
    }
}

impl Work<'_> {
    /// Until nothing is left to begin with.
    fn join(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.count {
                return;
            }
            if let Err(thrown) = catch_unwind(AssertUnwindSafe(|| (self.task)(index))) {
                self.has_panicked.store(true, Ordering::Relaxed);
                // To drop it may panic too, and nobody may leave in that way: others are still at the work, or wait for this thread.
                std::mem::forget(catch_unwind(AssertUnwindSafe(|| drop(thrown))));
            }
        }
    }
}

impl Shared {
    /// Has `work` done by this thread and whoever comes in time.
    fn divide(&self, work: &Work<'_>) {
        // SAFETY: nobody reads it: the gate is shut, and whoever was behind it has left. The lifetime is forgotten, and kept
        // nevertheless: nobody is behind the gate when this returns.
        unsafe { *self.work.get() = (&raw const *work).cast() };
        let number = (self.gate.load(Ordering::Relaxed) >> NUMBER).wrapping_add(1);
        // Sequentially consistent with what `sleep` does: a helper sees the work, or is seen asleep.
        self.gate.store(number << NUMBER | OPEN, Ordering::SeqCst);
        self.wake();
        work.join();
        self.gate.fetch_and(!OPEN, Ordering::Relaxed);
        let is_left = || self.gate.load(Ordering::SeqCst) & INSIDE == 0;
        if !spin(is_left) {
            // A helper has lost its core, and may take this one.
            while !is_left() {
                std::thread::park();
            }
        }
    }

    fn wake(&self) {
        for bed in &self.beds {
            if bed.is_taken.swap(false, Ordering::SeqCst)
                && let Some(thread) = bed.thread.get()
            {
                thread.unpark();
            }
        }
    }

    /// What a helper does until the team is closed.
    fn help(&self, bed: &Bed) {
        let _ = bed.thread.set(std::thread::current());
        let mut seen = 0;
        while self.await_work(seen, bed) {
            let enter = |gate: u64| (gate & OPEN != 0).then_some(gate + 1);
            match self.gate.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter) {
                Ok(gate) => {
                    // SAFETY: the gate was open, so the one who leads has written it, and waits until this helper has left.
                    let work = unsafe { &**self.work.get() };
                    work.join();
                    let leader = work.leader.clone();
                    // The last to leave a shut gate wakes who led this work, asleep or not. After that somebody else may lead the next:
                    // a note that somebody sleeps could be about them, and must not be taken away here.
                    if self.gate.fetch_sub(1, Ordering::SeqCst) & (OPEN | INSIDE) == 1 {
                        leader.unpark();
                    }
                    seen = gate >> NUMBER;
                }
                Err(gate) => seen = gate >> NUMBER,
            }
        }
    }

    /// Waits for another piece of work than number `seen`. Gives whether one may come.
    fn await_work(&self, seen: u64, bed: &Bed) -> bool {
        let is_new = || self.gate.load(Ordering::SeqCst) >> NUMBER != seen;
        let is_closed = || self.is_closed.load(Ordering::SeqCst);
        let is_over = || is_new() || is_closed();
        while !spin(is_over) {
            bed.is_taken.store(true, Ordering::SeqCst);
            if !is_over() {
                std::thread::park();
            }
            bed.is_taken.store(false, Ordering::SeqCst);
        }
        !is_closed()
    }
}

/// Gives whether something happened soon.
fn spin(has_happened: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < SPINNING {
        for _ in 0..SPINS_OF_A_LOOK {
            if has_happened() {
                return true;
            }
            std::hint::spin_loop();
        }
    }
    false
}

/// Of the gate: where the number begins, the bit that it is open, and the bits that count who is behind it.
const NUMBER: u32 = 32;
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
/// As long as what the engine does alone between two pieces of work usually takes; not as long as others would miss the core.
const SPINNING: Duration = Duration::from_micros(100);
/// Between two looks at the clock: about a microsecond.
const SPINS_OF_A_LOOK: u32 = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_has_its_turn_once_and_results_are_there_when_all_are_done() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads).unwrap();
            for round in 0..3_000_u64 {
                let mut items: Vec<(u64, u64)> = (0..round % 70).map(|item| (item, 0)).collect();
                team.run(|| for_each(&mut items, |(item, out)| *out += *item * round + 1));
                assert!(items.iter().all(|(item, out)| *out == item * round + 1), "{threads} threads, round {round}");
                if round % 500 == 0 {
                    // Long enough for all to fall asleep.
                    std::thread::sleep(2 * SPINNING);
                }
            }
        }
    }

    #[test]
    fn items_are_shared_out_among_threads_and_divided_work_is_not_divided_again() {
        let team = Team::new(3).unwrap();
        assert_eq!((team.threads(), threads(), team.run(threads)), (3, 1, 3));
        let others = AtomicUsize::new(0);
        let caller = std::thread::current().id();
        while others.load(Ordering::Relaxed) < 10 {
            let mut items = [(); 100];
            team.run(|| {
                for_each(&mut items, |()| {
                    assert_eq!(threads(), 1);
                    others.fetch_add(usize::from(std::thread::current().id() != caller), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_micros(50));
                });
            });
        }
        assert_eq!(threads(), 1);
    }

    #[test]
    fn a_panic_comes_to_the_caller_and_the_team_goes_on() {
        let team = Team::new(2).unwrap();
        for round in 0..50 {
            let mut items: Vec<usize> = (0..40).collect();
            let divide = || for_each(&mut items, |item| assert!(*item != round, "one of them"));
            assert_eq!(catch_unwind(AssertUnwindSafe(|| team.run(divide))).is_err(), round < 40);
            assert_eq!(threads(), 1);
        }
    }

    #[test]
    fn what_a_task_throws_may_throw_again() {
        struct Thrown(Arc<AtomicUsize>);
        impl Drop for Thrown {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
                panic!("once more");
            }
        }
        let team = Team::new(2).unwrap();
        let (caller, dropped) = (std::thread::current().id(), Arc::new(AtomicUsize::new(0)));
        for by_caller in [true, false] {
            let (begun, ended) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let divide = || {
                for_each(&mut [(); 2], |()| {
                    // Each of the two threads has one of the two.
                    begun.fetch_add(1, Ordering::Relaxed);
                    while begun.load(Ordering::Relaxed) < 2 {
                        std::thread::yield_now();
                    }
                    if (std::thread::current().id() == caller) == by_caller {
                        std::panic::panic_any(Thrown(Arc::clone(&dropped)));
                    }
                    std::thread::sleep(Duration::from_millis(20));
                    ended.fetch_add(1, Ordering::Relaxed);
                });
            };
            assert!(catch_unwind(AssertUnwindSafe(|| team.run(divide))).is_err());
            assert_eq!(ended.into_inner(), 1, "the other one had ended");
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn whoever_leads_and_sleeps_is_woken_whoever_led_before() {
        let team = Team::new(4).unwrap();
        std::thread::scope(|scope| {
            for caller in 0..3 {
                let team = &team;
                scope.spawn(move || {
                    for round in 0..300 {
                        let mut tasks = [0, 0, 150 + (round * 7 + caller) % 60, (round * 13) % 200];
                        team.run(|| for_each(&mut tasks, |micros| std::thread::sleep(Duration::from_micros(*micros))));
                    }
                });
            }
        });
    }

    #[test]
    fn callers_take_turns() {
        let team = Team::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        team.run(|| for_each(&mut [1; 50], |item| _ = sum.fetch_add(*item, Ordering::Relaxed)));
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 200 * 50);
    }
}
