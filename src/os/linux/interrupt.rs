//! Interrupting a thread to see where it is.
//!
//! A thread that wants to be looked at says what is to happen ([`Interruptible`]); whoever looks sends it a signal ([`interrupt`]).
//! The handler runs on that thread, in the middle of whatever it does, so it does nothing but call what the thread left for it, with
//! the [`Registers`] at the place of the interruption. What is called may load, store and take a lock that nobody waits for; no
//! allocation, no other lock, no system call that could be in its own way.
//!
//! The handler of a signal is installed once and stays, as with every library that handles signals: a signal on its way must find it.
//! Ours carry a value by which they are known, however late they come. Any other signal goes to the handler that was there before.
#![expect(unsafe_code, reason = "a signal handler, and the stack of the thread that it interrupts")]

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::compiler_fence;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The signal to interrupt by, unless the program says another: nearly no program uses `SIGURG` (it tells of TCP's urgent data), and those
/// that do not handle it ignore it, so one that is late harms nobody.
pub(crate) const INTERRUPT_SIGNAL: i32 = libc::SIGURG;

/// Signals have numbers below this.
const SIGNALS: usize = 65;

/// What handled each signal before.
static BEFORE: [OnceLock<libc::sigaction>; SIGNALS] = [const { OnceLock::new() }; SIGNALS];

/// Held while a handler is installed.
static INSTALLING: Mutex<()> = Mutex::new(());

/// What is done when the thread is interrupted.
type OnInterrupt = Box<dyn Fn(&Registers)>;

thread_local! {
    /// What this thread left for the handler. A pointer is stored in one piece, and there is no destructor.
    static TARGET: Cell<*const Target> = const { Cell::new(ptr::null()) };
}

struct Target {
    on_interrupt: OnInterrupt,
    /// The thread's own stack.
    stack: Range<usize>,
}

/// While it lives, its thread can be interrupted.
pub(crate) struct Interruptible {
    target: *const Target,
    thread: libc::pid_t,
}

impl Interruptible {
    /// Has `on_interrupt` called, on this thread, whenever the thread is interrupted.
    ///
    /// The module's text says what it may do.
    ///
    /// # Panics
    ///
    /// If the thread has one already.
    pub(crate) fn new(on_interrupt: OnInterrupt) -> Interruptible {
        assert!(TARGET.get().is_null(), "a thread is interrupted on behalf of one runtime");
        let target = Box::into_raw(Box::new(Target { on_interrupt, stack: own_stack().unwrap_or(0..0) }));
        // The handler of this thread sees its memory as the compiler ordered the changes: first the target, then its address.
        compiler_fence(SeqCst);
        TARGET.set(target);
        compiler_fence(SeqCst);
        // SAFETY: the call has no preconditions.
        Interruptible { target, thread: unsafe { libc::gettid() } }
    }

    /// What the system calls the thread.
    pub(crate) fn thread(&self) -> i32 {
        self.thread
    }
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        TARGET.set(ptr::null());
        // As in `new`: the address goes first.
        compiler_fence(SeqCst);
        // SAFETY: from `Box::into_raw` in `new`. It is `!Send` by the pointer, so this is its thread: no handler is under way on it
        // (it would have to end first), and the next finds nothing.
        drop(unsafe { Box::from_raw(self.target.cast_mut()) });
    }
}

/// Where the calling thread's stack is.
fn own_stack() -> Option<Range<usize>> {
    let mut attributes = MaybeUninit::<libc::pthread_attr_t>::uninit();
    let (mut base, mut bytes) = (ptr::null_mut(), 0);
    // SAFETY: the attributes are made by the first call, and only if it succeeds read by the second and destroyed by the third.
    unsafe {
        if libc::pthread_getattr_np(libc::pthread_self(), attributes.as_mut_ptr()) != 0 {
            return None;
        }
        let found = libc::pthread_attr_getstack(attributes.as_ptr(), &raw mut base, &raw mut bytes);
        libc::pthread_attr_destroy(attributes.as_mut_ptr());
        (found == 0).then(|| base.addr()..base.addr() + bytes)
    }
}

/// Lets threads be interrupted by `signal`.
///
/// # Errors
///
/// `InvalidInput` if there is no such signal, or it cannot be handled.
pub(crate) fn handle(signal: i32) -> io::Result<()> {
    let before = usize::try_from(signal).ok().and_then(|signal| BEFORE.get(signal));
    let before = before.ok_or(io::ErrorKind::InvalidInput)?;
    if matches!(signal, libc::SIGKILL | libc::SIGSTOP) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Who finds the signal handled must find it handled in fact.
    let _one_at_a_time = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    if before.get().is_some() {
        return Ok(());
    }
    let mut found = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: `found` is written if the call succeeds; a null action changes nothing.
    let found = unsafe {
        if libc::sigaction(signal, ptr::null(), found.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        found.assume_init()
    };
    // Known before our handler can run.
    if found.sa_sigaction != on_signal as *const () as usize && before.set(found).is_ok() {
        // SAFETY: a sigaction is plain data, for which zeros are valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as *const () as usize;
        // Calls that can be begun again are: a thread that is looked at should not notice.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
        // SAFETY: the handler has the type that SA_SIGINFO asks for, and keeps to what a handler may do (module text).
        if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Interrupts a thread of this process that has not ended.
pub(crate) fn interrupt(thread: i32, signal: i32) -> bool {
    // SAFETY: `getpid` and `getuid` have no preconditions.
    let (pid, uid) = unsafe { (libc::getpid(), libc::getuid()) };
    let value = (&raw const OURS).addr();
    let info =
        QueuedInfo { signal, errno: 0, code: libc::SI_QUEUE, _pad: 0, pid, uid, value, _rest: [0; 12] };
    // SAFETY: the call reads the information, which has the size and the layout of the kernel's. It reaches threads of this process only.
    unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, pid, thread, signal, &raw const info) == 0 }
}

/// Its address is the value that our signals carry: nobody else's do.
static OURS: u8 = 0;

/// What the kernel is told of a signal, as `siginfo_t` of the kind `SI_QUEUE` lies in memory.
#[repr(C)]
struct QueuedInfo {
    signal: i32,
    errno: i32,
    code: i32,
    _pad: i32,
    pid: libc::pid_t,
    uid: libc::uid_t,
    value: usize,
    _rest: [u64; 12],
}

const _: () = assert!(size_of::<QueuedInfo>() == size_of::<libc::siginfo_t>());

/// Whether it was [`interrupt`] that sent a signal.
///
/// # Safety
///
/// The kernel handed `info` to a handler with `SA_SIGINFO`.
unsafe fn is_ours(info: *const libc::siginfo_t) -> bool {
    // SAFETY: the caller's own promise: there is a `siginfo_t`; one with this code has a sender and a value.
    unsafe {
        (*info).si_code == libc::SI_QUEUE
            && (*info).si_pid() == libc::getpid()
            && (*info).si_value().sival_ptr.addr() == (&raw const OURS).addr()
    }
}

/// The handler.
extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the handler is installed with SA_SIGINFO.
    if unsafe { is_ours(info) } {
        let target = TARGET.get();
        if !target.is_null() {
            // SAFETY: it is there until this thread takes it away again, which it cannot do while it is interrupted. The kernel hands a
            // handler with SA_SIGINFO the interrupted thread's context.
            unsafe {
                let target = &*target;
                let registers = Registers::of(&*context.cast::<libc::ucontext_t>(), &target.stack);
                (target.on_interrupt)(&registers);
            }
        }
        return;
    }
    let before = usize::try_from(signal).ok().and_then(|signal| BEFORE.get(signal)?.get());
    let Some(before) = before else { return };
    if matches!(before.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) {
        return;
    }
    // SAFETY: it was installed as a handler of the one type or the other, as the flag says, and is called as the kernel would have.
    unsafe {
        if before.sa_flags & libc::SA_SIGINFO != 0 {
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(before.sa_sigaction);
            handler(signal, info, context);
        } else {
            let handler: extern "C" fn(i32) = std::mem::transmute(before.sa_sigaction);
            handler(signal);
        }
    }
}

/// Where a thread was when it was interrupted: what is needed to find the callers.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(not(feature = "backtrace"), expect(dead_code, reason = "nobody looks for the callers"))]
pub(crate) struct Registers {
    /// The next instruction.
    pub(crate) instruction: u64,
    /// The stack's newest byte.
    pub(crate) stack: u64,
    /// The frame pointer, in functions that keep one.
    pub(crate) frame: u64,
    /// Where the function returns to.
    #[cfg(target_arch = "aarch64")]
    pub(crate) link: u64,
    /// The first byte of the thread's own stack, and the first behind it.
    own_stack: (u64, u64),
}

impl Registers {
    #[cfg(target_arch = "x86_64")]
    fn of(context: &libc::ucontext_t, own_stack: &Range<usize>) -> Registers {
        let register = |index: i32| {
            let index = usize::try_from(index).expect("registers are numbered from 0");
            context.uc_mcontext.gregs[index].cast_unsigned()
        };
        Registers {
            instruction: register(libc::REG_RIP),
            stack: register(libc::REG_RSP),
            frame: register(libc::REG_RBP),
            own_stack: (own_stack.start as u64, own_stack.end as u64),
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn of(context: &libc::ucontext_t, own_stack: &Range<usize>) -> Registers {
        let machine = &context.uc_mcontext;
        Registers {
            instruction: machine.pc,
            stack: machine.sp,
            frame: machine.regs[29],
            link: machine.regs[30],
            own_stack: (own_stack.start as u64, own_stack.end as u64),
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn of(_: &libc::ucontext_t, _: &Range<usize>) -> Registers {
        Registers::default()
    }

    /// Copies the newest part of the interrupted stack, as much as there is room for. How many words. To be called by the thread
    /// that was interrupted.
    pub(crate) fn copy_stack(&self, into: &mut [u64]) -> usize {
        let (start, end) = self.own_stack;
        let words = end.saturating_sub(self.stack) / 8;
        // A coroutine runs on a stack of its own, of which nobody here knows where it ends.
        let readable = start <= self.stack && self.stack.is_multiple_of(8);
        let words = if readable { usize::try_from(words).unwrap_or(0).min(into.len()) } else { 0 };
        let from = ptr::with_exposed_provenance::<u64>(usize::try_from(self.stack).unwrap_or(0));
        for (index, word) in into[..words].iter_mut().enumerate() {
            // SAFETY: these words lie between the stack pointer and the end of this thread's own stack, which is mapped and which
            // nobody else writes while the thread is in the handler. Volatile: to the compiler they belong to other frames.
            *word = unsafe { from.add(index).read_volatile() };
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    use std::sync::{Arc, mpsc};
    use std::thread;

    use super::*;

    // A handler that looked at the wrong stack would report frames that never were, or fall over an unmapped page.
    #[test]
    fn an_interrupted_thread_shows_its_own_stack() {
        const MARK: u64 = 0x7ead_beef_0bad_cafe;
        handle(libc::SIGURG).expect("it can be handled");
        let found = Arc::new(AtomicUsize::new(0));
        let (say, ready) = mpsc::channel();
        let thread = thread::spawn({
            let found = Arc::clone(&found);
            move || {
                let mark = AtomicU64::new(MARK);
                let seen = Arc::clone(&found);
                let stack = std::cell::RefCell::new(vec![0; 8192]);
                let target = Interruptible::new(Box::new(move |registers| {
                    let mut stack = stack.borrow_mut();
                    let words = registers.copy_stack(&mut stack);
                    seen.store(1 + usize::from(stack[..words].contains(&MARK)), Ordering::Release);
                }));
                say.send(target.thread()).expect("the test waits");
                while found.load(Ordering::Acquire) == 0 {
                    assert_eq!(mark.load(Ordering::Relaxed), MARK);
                }
            }
        });
        let thread_id = ready.recv().expect("it says which thread it is");
        assert!(interrupt(thread_id, libc::SIGURG));
        thread.join().expect("it does not panic");
        assert_eq!(found.load(Ordering::Acquire), 2, "the local variable is in the copy");
    }

    // A question that is answered too late is nobody else's: a program that handles the same signal would take it for its own. And
    // its own must reach it, on a thread that is watched, too.
    #[test]
    fn our_signals_stay_with_us_and_others_go_to_who_handled_them() {
        static TAKEN: AtomicUsize = AtomicUsize::new(0);
        extern "C" fn take(_: i32) {
            TAKEN.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the handler does what a handler may. No other test uses this signal.
        unsafe { libc::signal(libc::SIGUSR2, take as *const () as libc::sighandler_t) };
        handle(libc::SIGUSR2).expect("it can be handled");
        // SAFETY: the calls have no preconditions; what `raise` sends is handled.
        let (own, raise) = unsafe { (libc::gettid(), || libc::raise(libc::SIGUSR2)) };
        assert!(interrupt(own, libc::SIGUSR2));
        assert_eq!(
            TAKEN.load(Ordering::Relaxed),
            0,
            "nobody waits for it on this thread, and yet it is ours"
        );

        let looks = Arc::new(AtomicUsize::new(0));
        let looked = Arc::clone(&looks);
        let _target = Interruptible::new(Box::new(move |_| {
            looked.fetch_add(1, Ordering::Relaxed);
        }));
        assert_eq!(raise(), 0);
        assert_eq!((TAKEN.load(Ordering::Relaxed), looks.load(Ordering::Relaxed)), (1, 0), "somebody else's");
        assert!(interrupt(own, libc::SIGUSR2));
        assert_eq!((TAKEN.load(Ordering::Relaxed), looks.load(Ordering::Relaxed)), (1, 1), "ours");
    }

    // A second signal for a thread that has left would call what is gone.
    #[test]
    fn a_thread_that_left_nothing_ignores_the_signal() {
        handle(libc::SIGURG).expect("it can be handled");
        drop(Interruptible::new(Box::new(|_| unreachable!("it is gone"))));
        // SAFETY: the call has no preconditions.
        assert!(interrupt(unsafe { libc::gettid() }, libc::SIGURG));
        assert_eq!(handle(0).map_err(|error| error.kind()), Err(io::ErrorKind::InvalidInput));
    }
}
