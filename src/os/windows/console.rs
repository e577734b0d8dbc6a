//! What a console, or the system, asks of the process: Ctrl-C, Ctrl-Break, and to end.
//!
//! The system starts a thread for each event and calls the process's handlers on it. Ours counts the event and wakes who waits for it
//! ([`Events`]). There is no race to lose: an `Events` remembers the count that it began with, and looks again after it has left its waker.
//!
//! ```text
//!   a task                                the handler's thread
//!   lock: count moved? ready              lock: count += 1; takes the wakers
//!         else leaves its waker           wakes them, without the lock
//! ```
//!
//! A process whose console is closed is ended when its handlers return, or after some seconds. So for such an event ours does not return:
//! the program has the time that the system gives it.
#![expect(unsafe_code, reason = "registers a handler that the system calls")]

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use windows_sys::Win32::System::Console::{CTRL_BREAK_EVENT, CTRL_C_EVENT, SetConsoleCtrlHandler};
use windows_sys::core::BOOL;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConsoleEvent {
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-Break; the console is closed, the user logs off, the machine is shut down.
    Terminate,
}

/// What has been asked so far, for each [`ConsoleEvent`].
static ASKED: [Mutex<Asked>; 2] =
    [const { Mutex::new(Asked { handled: false, count: 0, wakers: Vec::new() }) }; 2];

/// Whether our handler is in place.
static INSTALLED: Mutex<bool> = Mutex::new(false);

struct Asked {
    /// Whether anybody has ever waited: until then the event does what it does without us.
    handled: bool,
    count: u64,
    /// Of those who wait, by their numbers.
    wakers: Vec<(u64, Waker)>,
}

/// The events of one kind, from when it was made.
#[derive(Debug)]
pub(crate) struct Events {
    event: ConsoleEvent,
    seen: u64,
    /// Its number among those who wait; addresses would do, if it did not move.
    number: u64,
}

fn asked(event: ConsoleEvent) -> std::sync::MutexGuard<'static, Asked> {
    let asked = match event {
        ConsoleEvent::Interrupt => &ASKED[0],
        ConsoleEvent::Terminate => &ASKED[1],
    };
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Events {
    /// Begins to watch; from the first one on, the event does not end the process any more.
    ///
    /// # Errors
    ///
    /// What the system said if the handler cannot be had.
    pub(crate) fn new(event: ConsoleEvent) -> io::Result<Events> {
        static NUMBERS: Mutex<u64> = Mutex::new(0);
        install()?;
        let number = {
            let mut numbers = NUMBERS.lock().unwrap_or_else(PoisonError::into_inner);
            *numbers += 1;
            *numbers
        };
        let mut asked = asked(event);
        asked.handled = true;
        Ok(Events { event, seen: asked.count, number })
    }

    /// Ready when the event has come since it was made.
    pub(crate) fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        // A waker is user code where it is cloned or dropped: not under the lock.
        let waker = cx.waker().clone();
        let mut asked = asked(self.event);
        if asked.count != self.seen {
            return Poll::Ready(());
        }
        let _before = match asked.wakers.iter_mut().find(|(number, _)| *number == self.number) {
            Some((_, place)) => Some(std::mem::replace(place, waker)),
            None => {
                asked.wakers.push((self.number, waker));
                None
            }
        };
        drop(asked);
        Poll::Pending
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut asked = asked(self.event);
        let place = asked.wakers.iter().position(|(number, _)| *number == self.number);
        let left = place.map(|place| asked.wakers.swap_remove(place));
        drop(asked);
        drop(left);
    }
}

fn install() -> io::Result<()> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*installed {
        // SAFETY: the handler has the type that the system calls, and is code that stays for as long as the process does. It runs on a
        // thread like any other, so it may lock and wake.
        if unsafe { SetConsoleCtrlHandler(Some(on_event), 1) } == 0 {
            return Err(io::Error::last_os_error());
        }
        *installed = true;
    }
    Ok(())
}

/// The handler. Whether the event is dealt with; if not, the handler before is asked, and the first of all ends the process.
unsafe extern "system" fn on_event(control: u32) -> BOOL {
    let event = if control == CTRL_C_EVENT { ConsoleEvent::Interrupt } else { ConsoleEvent::Terminate };
    if !come(event) {
        return 0;
    }
    if matches!(control, CTRL_C_EVENT | CTRL_BREAK_EVENT) {
        return 1;
    }
    // To return would end the process: the console is going, and the program has some seconds left.
    loop {
        std::thread::park();
    }
}

/// The event has come. Whether anybody has ever waited for it.
fn come(event: ConsoleEvent) -> bool {
    let mut asked = asked(event);
    if !asked.handled {
        return false;
    }
    asked.count += 1;
    let wakers = std::mem::take(&mut asked.wakers);
    drop(asked);
    for (_, waker) in wakers {
        // A waker is the program's, and nothing may unwind into the system, which calls from here. What a panic of it carried is
        // forgotten: to drop that is the program's code again.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
            std::mem::forget(payload);
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Count>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Panics>) {
            panic!("a waker of the program's");
        }
    }

    // The process would end where it was asked to stop in order; and whoever comes after in the list would not hear of it.
    #[test]
    fn a_waker_that_panics_keeps_the_event_from_nobody() {
        let mut first = Events::new(ConsoleEvent::Interrupt).expect("there is a console, or none");
        let mut second = Events::new(ConsoleEvent::Interrupt).expect("as before");
        assert!(first.poll(&Context::from_waker(&Waker::from(Arc::new(Panics)))).is_pending());
        let wakes = Arc::new(Count::default());
        assert!(second.poll(&Context::from_waker(&Waker::from(Arc::clone(&wakes)))).is_pending());
        assert!(come(ConsoleEvent::Interrupt));
        assert_eq!(wakes.0.load(Ordering::SeqCst), 1);
    }

    // One who waits and is not woken sleeps for ever; one who has gone and is woken all the same keeps what it held.
    #[test]
    fn all_who_wait_are_woken_and_none_who_has_gone() {
        assert!(!come(ConsoleEvent::Terminate), "nobody has waited yet");
        let wakes = [(); 3].map(|()| Arc::new(Count::default()));
        let mut events =
            [(); 3].map(|()| Events::new(ConsoleEvent::Terminate).expect("there is a console, or none"));
        for (events, wakes) in events.iter_mut().zip(&wakes) {
            let waker = Waker::from(Arc::clone(wakes));
            assert!(events.poll(&Context::from_waker(&waker)).is_pending());
            assert!(events.poll(&Context::from_waker(&waker)).is_pending());
        }
        let [mut first, second, third] = events;
        drop(second);
        assert!(come(ConsoleEvent::Terminate));
        assert_eq!(wakes.each_ref().map(|wakes| wakes.0.load(Ordering::SeqCst)), [1, 0, 1]);
        assert_eq!(Arc::strong_count(&wakes[1]), 1, "its waker went with it");
        let waker = Waker::noop();
        assert!(first.poll(&Context::from_waker(waker)).is_ready());
        assert!(asked(ConsoleEvent::Terminate).wakers.is_empty());
        drop(third);
        let mut late = Events::new(ConsoleEvent::Terminate).expect("as before");
        assert!(late.poll(&Context::from_waker(waker)).is_pending(), "what came before it is over");
    }
}
