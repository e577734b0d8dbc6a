//! Interrupting a thread to see where it is.
//!
//! A thread that wants to be looked at says what is to happen ([`Interruptible`]). Whoever looks ([`interrupt`]) suspends it, asks for its
//! registers, does what the thread left for that, and lets it go on:
//!
//! ```text
//!   the one who looks                        the other thread
//!   locks the list of targets                (not in the list's lock: that is held by the one who looks)
//!   SuspendThread, GetThreadContext ───────▶ stands still, in the middle of whatever it does
//!   calls what it left, with the Registers
//!   ResumeThread ──────────────────────────▶ goes on, and has noticed nothing
//! ```
//!
//! The thread that stands still may hold any lock, that of the heap too. So what is called meanwhile may load, store and take a lock
//! that nobody waits for; no allocation, no other lock.
//!
//! **What it may read.** `GetThreadContext` returns when the thread has in truth stopped, by way of the kernel on both processors: all that
//! the thread has stored is visible, and nothing of it changes until it is resumed.
//!
//! Finding the callers would need the loader's tables, which are behind a lock that the thread may hold, or may come to hold while the
//! copy of its stack is walked. So a report has one frame here: where the thread is.
#![expect(unsafe_code, reason = "suspends a thread, and reads its stack")]

use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use windows_sys::Win32::System::Diagnostics::Debug::{CONTEXT, GetThreadContext};
use windows_sys::Win32::System::Threading::{
    GetCurrentThreadId, GetCurrentThreadStackLimits, OpenThread, ResumeThread, SuspendThread,
    THREAD_GET_CONTEXT, THREAD_SUSPEND_RESUME,
};

/// What marks a thread's context as the part with the instruction, the stack and the frame: `CONTEXT_CONTROL | CONTEXT_INTEGER`.
#[cfg(target_arch = "x86_64")]
const CONTEXT_FLAGS: u32 = 0x10_0003;
#[cfg(target_arch = "aarch64")]
const CONTEXT_FLAGS: u32 = 0x40_0003;

/// Interruptions need no signal here.
pub(crate) const INTERRUPT_SIGNAL: i32 = 0;

/// Whom [`interrupt`] may look at.
static TARGETS: Mutex<Vec<Target>> = Mutex::new(Vec::new());

/// What is done when the thread is interrupted. It is called on the thread that looks.
type OnInterrupt = Box<dyn Fn(&Registers) + Send + Sync>;

struct Target {
    /// Its number, as the system has it.
    thread: i32,
    handle: OwnedHandle,
    on_interrupt: OnInterrupt,
    /// The thread's own stack.
    stack: Range<usize>,
}

/// While it lives, its thread can be interrupted.
pub(crate) struct Interruptible {
    thread: i32,
    /// It is its thread's.
    not_send: PhantomData<*const ()>,
}

impl Interruptible {
    /// Has `on_interrupt` called whenever the thread is interrupted, while the thread stands still.
    ///
    /// The module's text says what it may do.
    ///
    /// # Panics
    ///
    /// If the thread has one already.
    pub(crate) fn new(on_interrupt: OnInterrupt) -> Interruptible {
        // SAFETY: the call has no preconditions.
        let number = unsafe { GetCurrentThreadId() };
        let thread = number.cast_signed();
        // SAFETY: as above; a handle that comes back is ours alone.
        let handle = unsafe {
            let handle = OpenThread(THREAD_SUSPEND_RESUME | THREAD_GET_CONTEXT, 0, number);
            (!handle.is_null()).then(|| OwnedHandle::from_raw_handle(handle))
        };
        let mut targets = targets();
        assert!(
            targets.iter().all(|target| target.thread != thread),
            "a thread is interrupted on behalf of one runtime"
        );
        // Without a handle it cannot be looked at, and its stalls are reported without a place.
        targets.extend(handle.map(|handle| Target { thread, handle, on_interrupt, stack: own_stack() }));
        Interruptible { thread, not_send: PhantomData }
    }

    /// What the system calls the thread.
    pub(crate) fn thread(&self) -> i32 {
        self.thread
    }
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        // Whoever looks at this thread right now holds the lock, so this is after that.
        targets().retain(|target| target.thread != self.thread);
    }
}

fn targets() -> std::sync::MutexGuard<'static, Vec<Target>> {
    TARGETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where the calling thread's stack is.
fn own_stack() -> Range<usize> {
    let (mut low, mut high) = (0, 0);
    // SAFETY: the system writes two numbers to where it is told.
    unsafe { GetCurrentThreadStackLimits(&raw mut low, &raw mut high) };
    low..high
}

/// Lets threads be interrupted. They can be at any time; no signal is needed for it.
#[expect(clippy::unnecessary_wraps, reason = "other systems can refuse")]
pub(crate) fn handle(_signal: i32) -> io::Result<()> {
    Ok(())
}

/// Interrupts a thread of this process: what it left was called when this returns true.
pub(crate) fn interrupt(thread: i32, _signal: i32) -> bool {
    let targets = targets();
    let Some(target) = targets.iter().find(|target| target.thread == thread) else { return false };
    // SAFETY: the call has no preconditions.
    if thread == unsafe { GetCurrentThreadId() }.cast_signed() {
        return false; // Suspended, it could not resume itself.
    }
    let handle = target.handle.as_raw_handle();
    let mut context = Context::default();
    context.0.ContextFlags = CONTEXT_FLAGS;
    // SAFETY: the handle is open for these calls. The context is aligned and says which part of it is to be written. Between the first
    // call and the last nothing is called but what keeps to the module's text, so the thread is resumed whatever it was doing.
    unsafe {
        if SuspendThread(handle) == u32::MAX {
            return false;
        }
        let stopped = GetThreadContext(handle, &raw mut context.0) != 0;
        if stopped {
            (target.on_interrupt)(&Registers::of(&context.0, &target.stack));
        }
        ResumeThread(handle);
        stopped
    }
}

/// A context as the system wants it to lie.
#[derive(Default)]
#[repr(align(16))]
struct Context(CONTEXT);

/// Where a thread was when it was interrupted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Registers {
    /// The next instruction.
    pub(crate) instruction: u64,
    /// The stack's newest byte.
    stack: u64,
    /// The first byte of the thread's own stack, and the first behind it.
    own_stack: (u64, u64),
}

impl Registers {
    fn of(context: &CONTEXT, own_stack: &Range<usize>) -> Registers {
        #[cfg(target_arch = "x86_64")]
        let (instruction, stack) = (context.Rip, context.Rsp);
        #[cfg(target_arch = "aarch64")]
        let (instruction, stack) = (context.Pc, context.Sp);
        Registers { instruction, stack, own_stack: (own_stack.start as u64, own_stack.end as u64) }
    }

    /// Copies the newest part of the interrupted stack, as much as there is room for. How many words. To be called while the thread stands
    /// still.
    pub(crate) fn copy_stack(&self, into: &mut [u64]) -> usize {
        let (start, end) = self.own_stack;
        let words = end.saturating_sub(self.stack) / 8;
        // A fiber runs on a stack of its own, of which nobody here knows where it ends.
        let readable = start <= self.stack && self.stack.is_multiple_of(8);
        let words = if readable { usize::try_from(words).unwrap_or(0).min(into.len()) } else { 0 };
        let from = ptr::with_exposed_provenance::<u64>(usize::try_from(self.stack).unwrap_or(0));
        for (index, word) in into[..words].iter_mut().enumerate() {
            // SAFETY: these words lie between the stack pointer and the end of the thread's own stack, which is committed and which
            // nobody writes while the thread stands still. Volatile: to the compiler they belong to other frames.
            *word = unsafe { from.add(index).read_volatile() };
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
    use std::sync::{Arc, mpsc};
    use std::thread;

    use super::*;

    // A look at the wrong stack would report frames that never were, or fall over a page that is not there; a thread that is not
    // resumed would hang the test.
    #[test]
    fn an_interrupted_thread_shows_its_own_stack_and_goes_on() {
        const MARK: u64 = 0x7ead_beef_0bad_cafe;
        let (found, leave) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (say, ready) = mpsc::channel();
        let thread = thread::spawn({
            let (found, leave) = (Arc::clone(&found), Arc::clone(&leave));
            move || {
                let mark = AtomicU64::new(MARK);
                let stack = Mutex::new(vec![0; 8192]);
                let target = Interruptible::new(Box::new(move |registers| {
                    let mut stack = stack.try_lock().expect("one at a time");
                    let words = registers.copy_stack(&mut stack);
                    found.store(1 + usize::from(stack[..words].contains(&MARK)), Ordering::Release);
                }));
                say.send(target.thread()).expect("the test waits");
                while !leave.load(Ordering::Acquire) {
                    assert_eq!(mark.load(Ordering::Relaxed), MARK);
                }
            }
        });
        let number = ready.recv().expect("it says which thread it is");
        assert!(interrupt(number, INTERRUPT_SIGNAL));
        assert_eq!(found.load(Ordering::Acquire), 2, "the local variable is in the copy");
        leave.store(true, Ordering::Release);
        thread.join().expect("it does not panic");
        assert!(!interrupt(number, INTERRUPT_SIGNAL), "it has left");
    }

    // Who suspends itself sleeps for ever.
    #[test]
    fn a_thread_does_not_interrupt_itself() {
        let target = Interruptible::new(Box::new(|_| unreachable!("it runs")));
        assert!(!interrupt(target.thread(), INTERRUPT_SIGNAL));
    }
}
