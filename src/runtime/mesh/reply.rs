//! One value, once, from whoever was asked to whoever asks.
//!
//! A question that goes over the mesh carries a [`Reply`]; the asker keeps the [`Answer`] and awaits it. Both share one
//! allocation: a state, a place for the value, and the [`Bell`] at which the asker waits.
//!
//! ```text
//!        ┌──send: the value is in its place──▶ SENT ──poll──▶ TAKEN
//! OPEN ──┼──Reply dropped────────────────────▶ UNANSWERED
//!        └──Answer dropped───────────────────▶ DESERTED
//! ```
//!
//! Each arrow that leaves OPEN is one read-modify-write, so one of the two sides is first, and the other is told. The
//! value's place belongs to the `Reply` while the state is OPEN; to the `Answer` once it is SENT; to a `Reply` that found
//! DESERTED, which gives the value back.
#![expect(unsafe_code, reason = "the value's place passes from one side to the other with the state")]

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::bell::Bell;
use crate::sync::atomic::AtomicU8;
use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use crate::sync::{Arc, UnsafeCell, mutant};

/// Makes a [`Reply`] to be sent along with a question, and the [`Answer`] to be awaited.
///
/// ```
/// use veloq::mesh;
///
/// # veloq::runtime::Builder::new().workers(2).pin(false).build()?.block_on(async {
/// let (mut questions, mut asked) = mesh::channel::<(u64, mesh::Reply<u64>)>(16);
/// veloq::spawn_to(veloq::workers().last().expect("there is one"), async move || {
///     while let Some((number, reply)) = asked.recv().await {
///         let _nobody_waits = reply.send(number * number);
///     }
/// });
/// let (reply, answer) = mesh::reply();
/// questions.send((12, reply)).await.expect("it is being read");
/// assert_eq!(answer.await, Ok(144));
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn reply<R: Send>() -> (Reply<R>, Answer<R>) {
    let line =
        Arc::new(Line { state: AtomicU8::new(OPEN), value: UnsafeCell::new(None), asker: Bell::new() });
    (Reply { line: Some(line.clone()) }, Answer { line })
}

/// Answers a question, from whichever worker or thread it has come to. Dropping it tells the asker that there will be no answer.
pub struct Reply<R: Send> {
    /// `None` once it has been used.
    line: Option<Arc<Line<R>>>,
}

/// Awaits an answer, on whichever worker or thread. Dropping it tells the [`Reply`] that nobody waits.
///
/// # Panics
///
/// Polling it again after it has yielded an answer panics.
#[must_use = "futures do nothing unless awaited"]
pub struct Answer<R: Send> {
    line: Arc<Line<R>>,
}

/// The question was dropped without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unanswered;

struct Line<R> {
    state: AtomicU8,
    value: UnsafeCell<Option<R>>,
    asker: Bell,
}

// SAFETY: the value moves from one thread to the other, hence `R: Send`; its place is reached by one side at a time (text of
// this module).
unsafe impl<R: Send> Sync for Line<R> {}
// SAFETY: a line on its own is a value that may be there, which is `Send`, and what a `Bell` is.
unsafe impl<R: Send> Send for Line<R> {}

const OPEN: u8 = 0;
const SENT: u8 = 1;
const UNANSWERED: u8 = 2;
const DESERTED: u8 = 3;
const TAKEN: u8 = 4;

impl<R: Send> Reply<R> {
    /// Answers, and wakes the asker.
    ///
    /// # Errors
    ///
    /// Gives the value back if nobody waits for it any more.
    pub fn send(mut self, value: R) -> Result<(), R> {
        let line = self.line.take().expect("a reply is used once");
        // SAFETY: the state is not SENT, since we are the only one who sends; until it is, the place is ours.
        line.value.with_mut(|place| unsafe { *place = Some(value) });
        // Release: pairs with the Acquire in `Answer::poll` and `Answer::drop`, and publishes the value.
        let order = if mutant("reply: sent relaxed") { Relaxed } else { AcqRel };
        if line.state.compare_exchange(OPEN, SENT, order, Acquire).is_err() {
            // SAFETY: DESERTED, so the asker does not look at the place; the value is still ours.
            let value = line.value.with_mut(|place| unsafe { (*place).take() });
            return Err(value.expect("it was put there just now"));
        }
        line.asker.ring();
        Ok(())
    }

    /// Whether the asker has gone, so that an answer need not be worked out.
    #[must_use]
    pub fn is_deserted(&self) -> bool {
        // Relaxed: a hint; `send` finds out for certain.
        self.line.as_ref().is_some_and(|line| line.state.load(Relaxed) == DESERTED)
    }
}

impl<R: Send> Drop for Reply<R> {
    fn drop(&mut self) {
        let Some(line) = self.line.take() else { return };
        // Relaxed: nothing is handed over. The bell's fence orders the state before its look.
        if line.state.compare_exchange(OPEN, UNANSWERED, Relaxed, Relaxed).is_ok()
            && !mutant("reply: go in silence")
        {
            line.asker.ring();
        }
    }
}

impl<R: Send> Answer<R> {
    /// What has come so far.
    fn look(&mut self) -> Poll<Result<R, Unanswered>> {
        // Acquire: pairs with the Release in `Reply::send`.
        match self.line.state.load(Acquire) {
            OPEN => Poll::Pending,
            SENT => {
                // Relaxed: only this side looks at the state from here on.
                self.line.state.store(TAKEN, Relaxed);
                // SAFETY: SENT passes the place to us, and `&mut self` is the only one.
                let value = self.line.value.with_mut(|place| unsafe { (*place).take() });
                Poll::Ready(Ok(value.expect("what was sent is there")))
            }
            UNANSWERED => Poll::Ready(Err(Unanswered)),
            _ => panic!("an answer comes once; do not poll it again after that"),
        }
    }
}

impl<R: Send> Future for Answer<R> {
    type Output = Result<R, Unanswered>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(answer) = self.look() {
            return Poll::Ready(answer);
        }
        self.line.asker.announce(cx.waker());
        if mutant("reply: no second look") {
            return Poll::Pending;
        }
        let answer = self.look();
        if answer.is_ready() {
            self.line.asker.withdraw();
        }
        answer
    }
}

impl<R: Send> Drop for Answer<R> {
    fn drop(&mut self) {
        // Acquire: pairs with the Release in `Reply::send`, for the value that was sent and not taken, which is dropped here and
        // not by a `Reply` that may still be about to ring.
        let order = if mutant("answer: dropped relaxed") { Relaxed } else { Acquire };
        if let Err(SENT) = self.line.state.compare_exchange(OPEN, DESERTED, AcqRel, order) {
            // SAFETY: SENT passes the place to the asker's side, which is this one, for the last time; the `Reply` that sent is done
            // with it.
            drop(self.line.value.with_mut(|place| unsafe { (*place).take() }));
        }
    }
}

impl<R: Send> fmt::Debug for Reply<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("is_deserted", &self.is_deserted()).finish_non_exhaustive()
    }
}

impl<R: Send> fmt::Debug for Answer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_ready = self.line.state.load(Relaxed) != OPEN;
        f.debug_struct("Answer").field("is_ready", &is_ready).finish_non_exhaustive()
    }
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the question was dropped without an answer")
    }
}

impl Error for Unanswered {}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::thread;

    use super::*;
    use crate::sync::model::{self, block_on};

    /// An answer is sent while it is awaited: it must arrive, with what was written before it.
    fn send_against_poll() {
        let (reply, answer) = reply();
        let other = thread::spawn(move || reply.send(Box::new(7)).is_ok());
        assert_eq!(block_on(answer), Ok(Box::new(7)));
        assert!(other.join().expect("it does not panic"));
    }

    #[test]
    fn loom_an_answer_arrives() {
        model::holds(send_against_poll);
    }

    #[test]
    fn loom_mutant_answer_without_second_look() {
        model::catches("reply: no second look", send_against_poll);
    }

    #[test]
    fn loom_mutant_reply_sent_relaxed() {
        model::catches("reply: sent relaxed", send_against_poll);
    }

    /// Both sides go at the same time: the value is dropped by one of them (loom counts the `Arc` in it).
    fn both_sides_go() {
        let (reply, answer) = reply();
        let kept = Arc::new(7);
        let sent = kept.clone();
        let other = thread::spawn(move || drop(reply.send(sent)));
        drop(answer);
        other.join().expect("it does not panic");
        assert_eq!(Arc::strong_count(&kept), 1);
    }

    #[test]
    fn loom_an_answer_that_nobody_takes_is_dropped_once() {
        model::holds(both_sides_go);
    }

    #[test]
    fn loom_mutant_answer_dropped_relaxed() {
        model::catches("answer: dropped relaxed", both_sides_go);
    }

    /// A question is dropped while its answer is awaited.
    fn dropped_against_poll() {
        let (reply, answer) = reply::<u8>();
        let other = thread::spawn(move || drop(reply));
        assert_eq!(block_on(answer), Err(Unanswered));
        other.join().expect("it does not panic");
    }

    #[test]
    fn loom_a_dropped_question_is_told() {
        model::holds(dropped_against_poll);
    }

    #[test]
    fn loom_mutant_reply_goes_in_silence() {
        model::catches("reply: go in silence", dropped_against_poll);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn an_answer_that_nobody_waits_for_comes_back() {
        // The answer may be worth something to the one who worked it out: a buffer, a connection.
        let (reply, answer) = reply();
        assert!(!reply.is_deserted());
        drop(answer);
        assert!(reply.is_deserted());
        assert_eq!(reply.send("all the same"), Err("all the same"));
    }

    #[test]
    fn an_answer_comes_once() {
        // A second look at the place would find nothing, or another's value.
        let (reply, mut answer) = reply();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut answer).poll(&mut cx).is_pending());
        reply.send(7).expect("somebody waits");
        assert_eq!(Pin::new(&mut answer).poll(&mut cx), Poll::Ready(Ok(7)));
        let again = std::panic::AssertUnwindSafe(|| Pin::new(&mut answer).poll(&mut cx));
        std::panic::catch_unwind(again).expect_err("it has been taken");
    }
}
