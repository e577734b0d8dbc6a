//! One shim for everything two threads may touch at once: std's atomics and cells, or loom's under `--cfg loom`.
//!
//! A concurrent module of Veloq takes its atomics, its fences, its `Arc`, its cells and its thread-locals from here and
//! from nowhere else. So the very code that ships is the code that loom runs through every interleaving (and every
//! value that a relaxed load may legally return); there is no second copy of a protocol that could drift from the first.
//!
//! | here | in a program | under `--cfg loom` |
//! |---|---|---|
//! | [`atomic`], [`Arc`] | std | loom: explores what the memory model allows; counts an `Arc` that was leaked |
//! | [`Cell`], [`UnsafeCell`] | std | loom: an access that no happens-before edge orders is a failure |
//! | [`Mutex`], [`Condvar`], [`thread`] | std, a poisoned lock taken all the same | loom: a wait that nobody ends is a failure |
//! | [`per_thread!`] | a const thread-local without destructor | loom's, since loom's threads share one thread of the system |
//!
//! **Mutants.** A model that cannot fail proves nothing. At each place where an ordering, a fence or a second look is
//! what makes a protocol right, the code asks [`mutant`] whether to leave it out. In a program the answer is a constant
//! `false`, and the question is gone after compilation. In a model, `model::catches` puts that one bug back and
//! asserts that loom finds it; `model::holds` asserts that without it nothing is found. What is no matter of interleavings, such as
//! the drain of a driver's end, has an ordinary test for its model, and `caught` runs that against the bug.

#[cfg(not(loom))]
mod real {
    pub(crate) use std::cell::Cell;
    use std::sync::PoisonError;
    pub(crate) use std::sync::{Arc, Mutex, MutexGuard, atomic};
    pub(crate) use std::thread;
    use std::time::Duration;

    /// [`std::cell::UnsafeCell`] with loom's interface: the pointer is lent for the length of a call.
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        /// A cell that holds `value`.
        #[inline]
        pub(crate) const fn new(value: T) -> UnsafeCell<T> {
            UnsafeCell(std::cell::UnsafeCell::new(value))
        }

        /// Lends the pointer for reading. Loom fails if a write is not ordered before or after the call.
        #[inline]
        pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        /// Lends the pointer for writing. Loom fails if any access is not ordered before or after the call.
        #[inline]
        pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }

    /// [`std::sync::Condvar`], by whose time limits loom's can stand in.
    #[derive(Debug, Default)]
    pub(crate) struct Condvar(std::sync::Condvar);

    impl Condvar {
        /// Nobody waits.
        pub(crate) const fn new() -> Condvar {
            Condvar(std::sync::Condvar::new())
        }

        /// Ends the wait of one.
        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        /// Ends the wait of all.
        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        /// Waits until notified, or for no reason, or for so long; says whether the time was up.
        pub(crate) fn wait_for<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            limit: Duration,
        ) -> (MutexGuard<'a, T>, bool) {
            let (guard, waited) = self.0.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner);
            (guard, waited.timed_out())
        }

        /// Waits while the condition holds, or for so long.
        pub(crate) fn wait_while<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            limit: Duration,
            condition: impl FnMut(&mut T) -> bool,
        ) -> MutexGuard<'a, T> {
            let waited = self.0.wait_timeout_while(guard, limit, condition);
            waited.unwrap_or_else(PoisonError::into_inner).0
        }
    }

    /// Whether the bug of this name is put back: never, in a program.
    #[cfg(not(test))]
    #[inline(always)]
    pub(crate) const fn mutant(_name: &str) -> bool {
        false
    }

    /// Whether the bug of this name is put back, by [`caught`](super::caught).
    #[cfg(test)]
    pub(crate) fn mutant(name: &str) -> bool {
        static CHOSEN: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
        CHOSEN.get_or_init(|| std::env::var(super::CHOSEN).ok()).as_deref() == Some(name)
    }

    /// Declares a thread-local of `Copy` values that needs no destructor, so that it can be read at any time.
    macro_rules! per_thread {
        ($(#[$attr:meta])* static $name:ident: $type:ty = $init:expr;) => {
            std::thread_local! { $(#[$attr])* static $name: $type = const { $init }; }
        };
    }
    pub(crate) use per_thread;
}

#[cfg(loom)]
mod real {
    pub(crate) use loom::cell::{Cell, UnsafeCell};
    pub(crate) use loom::sync::{Arc, Mutex, MutexGuard, atomic};
    pub(crate) use loom::thread;
    use std::time::Duration;

    /// loom's condition variable, whose waits are limited by nothing but [`expire`](Condvar::expire).
    #[derive(Debug)]
    pub(crate) struct Condvar {
        inner: loom::sync::Condvar,
        expired: std::sync::atomic::AtomicBool,
    }

    impl Condvar {
        pub(crate) fn new() -> Condvar {
            Condvar { inner: loom::sync::Condvar::new(), expired: Default::default() }
        }

        pub(crate) fn notify_one(&self) {
            self.inner.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.inner.notify_all();
        }

        /// The time of all who wait is up. The caller holds the mutex.
        #[cfg(test)]
        pub(crate) fn expire(&self) {
            self.expired.store(true, std::sync::atomic::Ordering::Relaxed);
            self.inner.notify_all();
        }

        pub(crate) fn wait_for<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            _limit: Duration,
        ) -> (MutexGuard<'a, T>, bool) {
            let guard = self.inner.wait(guard).expect("models do not poison");
            // Guarded by the mutex.
            (guard, self.expired.swap(false, std::sync::atomic::Ordering::Relaxed))
        }

        pub(crate) fn wait_while<'a, T>(
            &self,
            mut guard: MutexGuard<'a, T>,
            _limit: Duration,
            mut condition: impl FnMut(&mut T) -> bool,
        ) -> MutexGuard<'a, T> {
            while condition(&mut guard) {
                guard = self.inner.wait(guard).expect("models do not poison");
            }
            guard
        }
    }

    /// Whether the bug of this name is put back, by [`model::catches`](super::model::catches).
    pub(crate) fn mutant(name: &str) -> bool {
        super::model::MUTANT.get() == Some(name)
    }

    /// Declares a thread-local, one per thread of the model.
    macro_rules! per_thread {
        ($(#[$attr:meta])* static $name:ident: $type:ty = $init:expr;) => {
            loom::thread_local! { $(#[$attr])* static $name: $type = $init; }
        };
    }
    pub(crate) use per_thread;
}

pub(crate) use real::{
    Arc, Cell, Condvar, Mutex, MutexGuard, UnsafeCell, atomic, mutant, per_thread, thread,
};

/// Takes a lock that nobody holds for long, and under which nothing of the user's runs. So what it guards is whole even if a
/// thread has panicked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Runs models: the code as it is must hold, and the code with one bug put back must be caught.
#[cfg(loom)]
pub(crate) mod model {
    use std::cell::Cell;

    thread_local! {
        /// The bug that is put back in the model that runs on this thread. All of a model's threads share one thread of
        /// the system (loom switches between stacks), and models that run side by side do not share it.
        pub(super) static MUTANT: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// Involuntary switches per execution. Loom's authors found that two or three uncover almost every bug; each more
    /// multiplies the time.
    #[cfg(test)]
    const PREEMPTIONS_MAX: usize = 3;

    /// Asserts that `model` holds in every interleaving.
    #[cfg(test)]
    pub(crate) fn holds(model: impl Fn() + Send + Sync + 'static) {
        if std::env::var_os(CHOSEN).is_none() {
            explore(model);
        }
    }

    /// Asserts that `model`, whose threads wait for each other in many places, holds in every interleaving with at most so many
    /// involuntary switches.
    #[cfg(test)]
    pub(crate) fn holds_within(preemptions_max: usize, model: impl Fn() + Send + Sync + 'static) {
        if std::env::var_os(CHOSEN).is_none() {
            explore_within(preemptions_max, model);
        }
    }

    /// Asserts that `model` fails in some interleaving once the bug `mutant` is put back.
    ///
    /// A model that fails leaves its threads where they stand. What they hold is dropped in that state, which may panic
    /// once more and so end the process. So the mutant lives in a process of its own: this test program, run again with
    /// the name of mutant and model in its environment, where all other models pass at once.
    #[cfg(test)]
    pub(crate) fn catches<M: Fn() + Send + Sync + 'static>(mutant: &'static str, model: M) {
        let name = format!("{mutant} in {}", std::any::type_name::<M>());
        match std::env::var(CHOSEN) {
            Ok(chosen) if chosen == name => {
                MUTANT.set(Some(mutant));
                explore(model);
                MUTANT.set(None);
            }
            Ok(_) => {}
            Err(_) => {
                let program = std::env::current_exe().expect("a test program knows where it is");
                let mut again = std::process::Command::new(program);
                again.args(["loom_", "--quiet"]).env(CHOSEN, name).env("RUST_BACKTRACE", "0");
                let end = again.output().expect("the test program can be run again");
                assert!(!end.status.success(), "the model does not notice the bug {mutant:?}");
            }
        }
    }

    /// Awaits `future` on a thread of a model. A future that wakes itself, because another thread is about to go on, lets it go
    /// on; loom would otherwise poll it for ever.
    #[cfg(test)]
    pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        loom::future::block_on(std::future::poll_fn(|cx| {
            let polled = future.as_mut().poll(cx);
            if polled.is_pending() {
                loom::thread::yield_now();
            }
            polled
        }))
    }

    /// Runs `model` in every interleaving that the bound allows.
    #[cfg(test)]
    fn explore(model: impl Fn() + Send + Sync + 'static) {
        explore_within(PREEMPTIONS_MAX, model);
    }

    /// The same, with a bound of its own.
    #[cfg(test)]
    fn explore_within(preemptions_max: usize, model: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = builder.preemption_bound.or(Some(preemptions_max));
        builder.check(model);
    }

    /// In the environment of a process that runs one mutant: which, in which model.
    #[cfg(test)]
    const CHOSEN: &str = "VELOQ_LOOM_MUTANT";
}

/// In the environment of a process that runs an ordinary test against a bug: which bug is put back.
#[cfg(all(test, not(loom)))]
const CHOSEN: &str = "VELOQ_MUTANT";

/// Asserts that the ordinary test of this name fails, and says `complaint`, once the bug `mutant` is put back.
///
/// In a process of its own, like a model's mutant, and here for another reason too: the bug may spoil memory.
#[cfg(all(test, not(loom)))]
pub(crate) fn caught(mutant: &str, test: &str, complaint: &str) {
    let program = std::env::current_exe().expect("a test program knows where it is");
    let mut again = std::process::Command::new(program);
    again.args(["--exact", test, "--quiet"]).env(CHOSEN, mutant).env("RUST_BACKTRACE", "0");
    let output = again.output().expect("the test program can be run again");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{test} does not notice the bug {mutant:?}:\n{text}");
    assert!(
        text.contains(complaint),
        "{test} fails with the bug {mutant:?}, but for another reason:\n{text}"
    );
}
