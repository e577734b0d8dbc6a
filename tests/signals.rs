//! Promise: signals that ask the program to end reach every future that waits for them, on every worker, and do not end the
//! process meanwhile.
//!
//! The tests send signals to their own process, so they are alone in it and take turns. On Windows, where a console sends to all that
//! share it, each runs in a process with a console of its own.
#![cfg_attr(windows, expect(unsafe_code, reason = "plays the console"))]

#[path = "system/console.rs"]
mod console;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use futures_util::future::{join_all, select};
use veloq::runtime::{Builder, Runtime};
use veloq::signal::{ctrl_c, terminate};
use veloq::{WorkerId, spawn_local, spawn_to};

fn one_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn runtime(workers: usize) -> Runtime {
    Builder::new().workers(workers).pin(false).build().expect("this kernel has io_uring")
}

#[derive(Clone, Copy)]
enum Signal {
    Int,
    Term,
}

#[cfg(target_os = "linux")]
fn raise(signal: Signal) {
    use rustix::process::{Signal as Number, getpid, kill_process};

    let number = match signal {
        Signal::Int => Number::INT,
        Signal::Term => Number::TERM,
    };
    kill_process(getpid(), number).expect("a process may signal itself");
}

/// What a console sends to its processes: here to this one alone, whose console nobody shares.
#[cfg(windows)]
fn raise(signal: Signal) {
    use std::ffi::c_void;
    use std::{mem, ptr};

    use windows_sys::Win32::Foundation::{CloseHandle, ERROR_INVALID_HANDLE};
    use windows_sys::Win32::System::Console::{CTRL_BREAK_EVENT, CTRL_C_EVENT, GenerateConsoleCtrlEvent};
    use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress};
    use windows_sys::Win32::System::Threading::CreateThread;

    let event = match signal {
        Signal::Int => CTRL_C_EVENT,
        Signal::Term => CTRL_BREAK_EVENT,
    };
    // SAFETY: the call has no preconditions.
    let sent = unsafe { GenerateConsoleCtrlEvent(event, 0) };
    let error = io::Error::last_os_error();
    // Wine's console knows Ctrl-C alone. What a console does for the other one is then done here: it starts a thread in the process, at
    // this function of the system's, which calls the handlers.
    if sent == 0
        && event == CTRL_BREAK_EVENT
        && error.raw_os_error() == Some(ERROR_INVALID_HANDLE.cast_signed())
    {
        type Start = unsafe extern "system" fn(*mut c_void) -> u32;
        // SAFETY: both names end with a zero, and no process is without the library.
        let routine = unsafe {
            GetProcAddress(GetModuleHandleA(c"kernelbase".as_ptr().cast()), c"CtrlRoutine".as_ptr().cast())
        };
        let routine = routine.expect("a console would want it, too");
        // SAFETY: the function is made for threads to start at.
        let start = unsafe { mem::transmute::<unsafe extern "system" fn() -> isize, Start>(routine) };
        let argument = ptr::without_provenance_mut(event as usize);
        // SAFETY: the argument is the event, by value, as the function takes it.
        let thread = unsafe { CreateThread(ptr::null(), 0, Some(start), argument, 0, ptr::null_mut()) };
        assert!(!thread.is_null(), "{}", io::Error::last_os_error());
        // SAFETY: the handle is this function's; the thread goes on without it.
        unsafe { CloseHandle(thread) };
        return;
    }
    assert_ne!(sent, 0, "{error}");
}

/// A future that has been polled once, and so waits for signals from now on.
async fn waiting(
    wait: impl Future<Output = io::Result<()>> + 'static,
) -> Pin<Box<dyn Future<Output = io::Result<()>>>> {
    let mut wait = Box::pin(wait);
    poll_fn(|cx| {
        assert!(wait.as_mut().poll(cx).is_pending(), "no signal has come");
        Poll::Ready(())
    })
    .await;
    wait
}

/// Each signal wakes those who wait for it, however many, and nobody else: a handler that tells the first only would leave the
/// second waiting for ever, and one that does not tell them apart would end the wrong wait.
#[test]
fn ctrl_c_wakes_all_who_wait_for_it_and_nobody_else() {
    if console::runs_elsewhere("ctrl_c_wakes_all_who_wait_for_it_and_nobody_else") {
        return;
    }
    wakes_its_own(Signal::Int, ctrl_c, terminate);
}

/// The same of the other one.
#[test]
fn terminate_wakes_all_who_wait_for_it_and_nobody_else() {
    if console::runs_elsewhere("terminate_wakes_all_who_wait_for_it_and_nobody_else") {
        return;
    }
    wakes_its_own(Signal::Term, terminate, ctrl_c);
}

fn wakes_its_own<Own, Other>(signal: Signal, own: fn() -> Own, other: fn() -> Other)
where
    Own: Future<Output = io::Result<()>> + 'static,
    Other: Future<Output = io::Result<()>> + 'static,
{
    let _turn = one_at_a_time();
    runtime(1).block_on(async {
        let mut waits = Vec::new();
        for _ in 0..5 {
            waits.push(waiting(own()).await);
        }
        let mut other = waiting(other()).await;
        raise(signal);
        for wait in join_all(waits).await {
            wait.expect("the handler is there");
        }
        let early = poll_fn(|cx| Poll::Ready(other.as_mut().poll(cx).is_ready())).await;
        assert!(!early, "the one is not the other");
    });
}

/// Waiters on other workers have rings of their own, and are asleep.
#[test]
fn a_signal_reaches_every_worker() {
    if console::runs_elsewhere("a_signal_reaches_every_worker") {
        return;
    }
    let _turn = one_at_a_time();
    runtime(3).block_on(async {
        let mut tasks = Vec::new();
        for worker in 0..3 {
            let (ready, is_ready) = std::sync::mpsc::channel();
            let task = spawn_to(WorkerId::new(worker), async move || {
                let wait = waiting(ctrl_c()).await;
                ready.send(()).expect("the test waits");
                wait.await
            });
            // Not by blocking: the first of the tasks runs on this very worker.
            while is_ready.try_recv().is_err() {
                assert!(!task.is_finished());
                veloq::time::sleep(std::time::Duration::from_micros(100)).await;
            }
            tasks.push(task);
        }
        raise(Signal::Int);
        for task in tasks {
            task.await.expect("no panic").expect("the handler is there");
        }
    });
}

/// A wait that has ended must not have used up what the next one waits for, and a dropped one must not take a signal along.
#[test]
fn signals_are_waited_for_again_and_again() {
    if console::runs_elsewhere("signals_are_waited_for_again_and_again") {
        return;
    }
    let _turn = one_at_a_time();
    runtime(1).block_on(async {
        for _ in 0..20 {
            drop(waiting(ctrl_c()).await);
            let kept = waiting(ctrl_c()).await;
            let (done, other) = (waiting(ctrl_c()).await, waiting(terminate()).await);
            raise(Signal::Int);
            select(done, other).await.factor_first().0.expect("the handler is there");
            kept.await.expect("the handler is there");
        }
    });
}

/// From the first wait on the signal does not end the process, although nobody waits any more: here it comes between.
#[test]
fn a_signal_that_nobody_waits_for_does_not_end_the_process() {
    if console::runs_elsewhere("a_signal_that_nobody_waits_for_does_not_end_the_process") {
        return;
    }
    let _turn = one_at_a_time();
    runtime(1).block_on(async {
        drop(waiting(ctrl_c()).await);
        raise(Signal::Int);
        let mut next = Box::pin(ctrl_c());
        // A console is not in a hurry: the first may come only now, and be the one that is waited for.
        if poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx).is_pending())).await {
            raise(Signal::Int);
            spawn_local(next).await.expect("no panic").expect("the handler is there");
        }
    });
}
