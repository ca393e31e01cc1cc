//! A thread pool for regions of a few microseconds.
//!
//! One token of a small model runs some two hundred products; waking threads through the kernel
//! for each would cost more than the products. The workers therefore watch for the next region
//! for a moment before they sleep, and the calling thread always works too.
//!
//! Each thread begins with a stretch of neighbouring chunks of its own, so that it reads memory in
//! one stream, which hardware and kernels fetch ahead of need; who is done helps the others.
//!
//! The caller waits only for workers that have *entered* the region. If the operating system has
//! taken a core away, its worker simply misses the region and the caller claims every chunk.
//!
//! Two pools may share the cores ([`Pool::beside`]); while both are at work each keeps to its half.
#![allow(unsafe_code)]

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::*};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::sides::Side;

/// How long a worker watches for the next region before it sleeps: longer than the scalar work
/// between two products of one layer, far shorter than a scheduler tick.
const WATCH: Duration = Duration::from_micros(100);

/// How long the caller spins for the last worker before it offers its core to it.
const FINISH: Duration = Duration::from_micros(20);

/// Values per piece of elementwise work: some microseconds.
const WORTHWHILE: usize = 8192;

/// A fixed set of worker threads that share regions with the calling thread.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    side: Side,
}

struct Shared {
    /// The region in progress, or null. Points into the frame of [`Pool::run`].
    region: AtomicPtr<Region<'static>>,
    /// Counts regions, so that a worker joins each at most once.
    epoch: AtomicUsize,
    /// Workers that may hold the region pointer.
    inside: AtomicUsize,
    /// Whether some thread is inside [`Pool::run`].
    busy: AtomicBool,
    stop: AtomicBool,
    /// Per worker: asleep, or about to be.
    asleep: Vec<AtomicBool>,
    /// Per thread, the caller first: its chunks of the region in progress.
    stretches: Vec<Stretch>,
}

struct Region<'a> {
    task: &'a (dyn Fn(usize) + Sync),
    stretches: &'a [Stretch],
    panicked: AtomicBool,
}

/// Neighbouring chunks, on a line of its own so that threads do not disturb each other.
#[derive(Default)]
#[repr(align(64))]
struct Stretch {
    /// The first nobody has claimed; past `end` if all are.
    next: AtomicUsize,
    end: AtomicUsize,
}

/// How many threads may run at once: the affinity mask, cut to the cgroup's CPU quota.
///
/// The standard library reads both on Linux (cgroup v1 and v2) and rounds a fractional quota down.
pub fn usable_cores() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

impl Pool {
    /// A pool of `threads` threads in all: the caller and `threads - 1` workers.
    pub fn new(threads: usize) -> Self {
        Self::on(Side::default(), threads)
    }

    /// A second pool for as many threads, which shares the cores with this one.
    pub fn beside(&self) -> Self {
        Self::on(self.side.other(), self.workers.len() + 1)
    }

    fn on(side: Side, threads: usize) -> Self {
        let workers = threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            region: AtomicPtr::new(ptr::null_mut()),
            epoch: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            stretches: (0..=workers).map(|_| Stretch::default()).collect(),
        });
        let spawn = |index| {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name(format!("kernel-{index}"))
                .spawn(move || shared.work(index))
                .expect("the system can start one more thread")
        };
        Self { workers: (0..workers).map(spawn).collect(), shared, side }
    }

    /// A pool as wide as this process may use; see [`usable_cores`].
    pub fn for_this_machine() -> Self {
        Self::new(usable_cores())
    }

    /// Threads that may run now, the caller included.
    pub fn threads(&self) -> usize {
        self.side.share(self.workers.len() + 1)
    }

    /// Says whether the one who calls has work, and so may need cores.
    pub fn at_work(&self, works: bool) {
        self.side.at_work(works);
    }

    /// How many of `total` items to put in one chunk: about eight chunks per thread, so that a
    /// slow thread can be helped, but never more than `largest` items.
    pub fn grain(&self, total: usize, largest: usize) -> usize {
        (total / (8 * self.threads())).clamp(1, largest)
    }

    /// Calls `task(0)`, `task(1)`, … `task(chunks - 1)`, each once, on whichever thread is free.
    ///
    /// A nested call, or a second caller while the pool is busy, runs its chunks by itself.
    ///
    /// # Panics
    /// If a task panics; the pool stays usable.
    pub fn run(&self, chunks: usize, task: &(dyn Fn(usize) + Sync)) {
        let threads = self.threads();
        if chunks <= 1 || threads == 1 || self.shared.busy.swap(true, Acquire) {
            return (0..chunks).for_each(task);
        }
        let (stretches, panicked) = (&self.shared.stretches[..threads], AtomicBool::new(false));
        for (thread, stretch) in stretches.iter().enumerate() {
            stretch.end.store(chunks * (thread + 1) / threads, Relaxed);
            stretch.next.store(chunks * thread / threads, Relaxed);
        }
        let region = Region { task, stretches, panicked };
        let open = self.open(&region);
        region.work(0);
        drop(open);
        assert!(!region.panicked.load(Relaxed), "a task panicked on a worker thread");
    }

    /// One region for several pieces of work: calls `task(i, item)` for every item of every piece
    /// `i`, which has `counts[i]` of them.
    pub fn run_all(&self, counts: &[usize], task: &(dyn Fn(usize, usize) + Sync)) {
        self.run(counts.iter().sum(), &|mut item| {
            for (piece, &count) in counts.iter().enumerate() {
                if item < count {
                    return task(piece, item);
                }
                item -= count;
            }
        });
    }

    /// Calls `task` with ranges that cover `0..items`, each a fair share but enough work to be worth
    /// handing over. `size` is the number of values per item.
    pub fn split(&self, items: usize, size: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
        let fair = items.div_ceil(4 * self.threads());
        let grain = fair.max(WORTHWHILE.div_ceil(size.max(1))).max(1);
        self.run(items.div_ceil(grain), &|chunk| {
            task(chunk * grain..items.min((chunk + 1) * grain));
        });
    }

    fn open<'a>(&'a self, region: &'a Region<'_>) -> OpenRegion<'a> {
        let address = ptr::from_ref(region).cast_mut().cast::<Region<'static>>();
        self.shared.region.store(address, SeqCst);
        self.shared.epoch.fetch_add(1, SeqCst);
        self.wake_sleepers(region.stretches.len() - 1);
        OpenRegion { shared: &self.shared, region }
    }

    /// Wakes the first `wanted` workers.
    fn wake_sleepers(&self, wanted: usize) {
        for (asleep, worker) in self.shared.asleep.iter().zip(&self.workers).take(wanted) {
            if asleep.load(SeqCst) && asleep.swap(false, SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join(); // a worker catches every panic of its tasks
        }
    }
}

impl Region<'_> {
    /// Claims chunks until none is left: its own first, then the others'.
    fn work(&self, thread: usize) {
        let (before, from) = self.stretches.split_at(thread);
        for stretch in from.iter().chain(before) {
            while let Some(chunk) = stretch.claim() {
                (self.task)(chunk);
            }
        }
    }

    /// Leaves no chunk to claim.
    fn abandon(&self) {
        self.stretches.iter().for_each(|stretch| stretch.next.store(usize::MAX / 2, Relaxed));
    }
}

impl Stretch {
    fn claim(&self) -> Option<usize> {
        let end = self.end.load(Relaxed);
        if self.next.load(Relaxed) >= end {
            return None; // without taking the line from whoever claims from it
        }
        Some(self.next.fetch_add(1, Relaxed)).filter(|&chunk| chunk < end)
    }
}

/// Closes the region when dropped, also when the caller's own chunk panics.
struct OpenRegion<'a> {
    shared: &'a Shared,
    region: &'a Region<'a>,
}

impl Drop for OpenRegion<'_> {
    fn drop(&mut self) {
        self.region.abandon(); // no chunk is left, unless the caller's own chunk panicked
        self.shared.region.store(ptr::null_mut(), SeqCst);
        let start = Instant::now();
        while self.shared.inside.load(SeqCst) != 0 {
            if start.elapsed() < FINISH { std::hint::spin_loop() } else { thread::yield_now() }
        }
        self.shared.busy.store(false, Release);
    }
}

impl Shared {
    /// The life of one worker.
    fn work(&self, index: usize) {
        let (mut seen, mut watch) = (0, WATCH);
        while !self.stop.load(SeqCst) {
            let epoch = self.epoch.load(SeqCst);
            if epoch == seen {
                self.wait_for_change(index, seen, watch);
            } else {
                seen = epoch;
                // Whose core is wanted elsewhere does not watch.
                watch = if self.join_region(index + 1) { WATCH } else { Duration::ZERO };
            }
        }
    }

    /// Helps with the current region, if it is still open; false if it is for fewer threads.
    fn join_region(&self, thread: usize) -> bool {
        self.inside.fetch_add(1, SeqCst);
        let region = self.region.load(SeqCst);
        // SAFETY: `inside` was raised before the pointer was read, and the caller clears the
        // pointer before it waits for `inside` to fall to zero. In the single order of these four
        // operations either this read sees null, or the caller waits until the region is left.
        let region = unsafe { region.as_ref() };
        let wanted = region.is_none_or(|region| thread < region.stretches.len());
        if let Some(region) = region
            && wanted
            && catch_unwind(AssertUnwindSafe(|| region.work(thread))).is_err()
        {
            region.abandon();
            region.panicked.store(true, Relaxed);
        }
        self.inside.fetch_sub(1, SeqCst);
        wanted
    }

    /// Returns once the epoch may differ from `seen`: spins for as long as `watch`, then sleeps.
    fn wait_for_change(&self, index: usize, seen: usize, watch: Duration) {
        let start = Instant::now();
        while self.epoch.load(Relaxed) == seen {
            if start.elapsed() < watch {
                std::hint::spin_loop();
                continue;
            }
            self.asleep[index].store(true, SeqCst);
            // The caller raises the epoch before it looks at `asleep`; one of us sees the other.
            if self.epoch.load(SeqCst) == seen && !self.stop.load(SeqCst) {
                thread::park();
            }
            self.asleep[index].store(false, SeqCst);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once_in_each_of_many_regions() {
        let pool = Pool::new(3);
        for chunks in (0..40).cycle().take(400) {
            let counts: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(chunks, &|chunk| {
                counts[chunk].fetch_add(1, Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Relaxed) == 1));
        }
    }

    #[test]
    fn every_item_of_every_piece_runs_once() {
        let (pool, counts) = (Pool::new(2), [3, 0, 5]);
        let seen: Vec<AtomicUsize> = (0..8).map(|_| AtomicUsize::new(0)).collect();
        pool.run_all(&counts, &|piece, item| {
            seen[counts[..piece].iter().sum::<usize>() + item].fetch_add(1, Relaxed);
        });
        assert!(seen.iter().all(|count| count.load(Relaxed) == 1));
    }

    #[test]
    fn two_pools_on_the_same_cores_each_run_every_chunk_while_they_narrow_and_widen() {
        let first = Pool::new(4);
        let second = first.beside();
        let work = |pool: &Pool| {
            for turn in 0..2000 {
                pool.at_work(turn % 3 != 0);
                let done = AtomicUsize::new(0);
                pool.run(turn % 17, &|_| {
                    done.fetch_add(1, Relaxed);
                });
                assert_eq!(done.load(Relaxed), turn % 17);
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| work(&first));
            scope.spawn(|| work(&second));
        });
    }

    #[test]
    fn while_both_pools_work_each_keeps_to_its_half() {
        let first = Pool::new(4);
        let second = first.beside();
        first.at_work(true);
        second.at_work(true);
        for pool in [&first, &second] {
            let seen = std::sync::Mutex::new(std::collections::HashSet::new());
            for _ in 0..200 {
                pool.run(64, &|_| {
                    seen.lock().expect("no task panics").insert(thread::current().id());
                });
            }
            assert!(seen.into_inner().expect("no task panics").len() <= 2);
        }
    }

    #[test]
    fn a_panicking_task_leaves_the_pool_usable() {
        let pool = Pool::new(2);
        let panics = || pool.run(8, &|chunk| assert!(chunk != 3, "chunk 3 fails"));
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        let done = AtomicUsize::new(0);
        pool.run(8, &|_| {
            done.fetch_add(1, Relaxed);
        });
        assert_eq!(done.load(Relaxed), 8);
    }

    #[test]
    fn a_nested_region_runs_on_its_own_thread() {
        let pool = Pool::new(2);
        let done = AtomicUsize::new(0);
        pool.run(4, &|_| {
            pool.run(4, &|_| {
                done.fetch_add(1, Relaxed);
            });
        });
        assert_eq!(done.load(Relaxed), 16);
    }
}
