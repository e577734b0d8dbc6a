//! A word that many tasks listen for: stop.
//!
//! A token is cancelled once and stays so. Clones are the same token. A [`child`](CancelToken::child) is
//! cancelled with its parent, but not the other way round: a server's token stops everything, the token of a
//! connection stops what belongs to that connection.
//!
//! ```text
//!    child ──strong──▶ parent        so that a token in the middle lives while somebody below it listens
//!   parent ──weak────▶ child         so that a token nobody holds is not kept by those above
//! ```
//!
//! **No wake is lost.** Whether the token is cancelled and who listens are under one lock: a listener either
//! finds it cancelled, or is in the list that `cancel` takes. Wakers are cloned before the lock is taken, and
//! woken and dropped after it was released, for they are foreign code; one that panics ends its own wake only. The lock is held for a few
//! instructions, and by nobody on a path that is hot.
//!
//! No lock is held while another is taken: `cancel` walks the tree with a list of its own, so neither a deep
//! tree nor a wide one is a danger to the stack.

use std::collections::BTreeMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use crate::io::driver::thread_pool::quietly;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Tells tasks, on whichever worker or thread, that they should stop. Clones are the same token.
///
/// Nothing is stopped by force: who holds the token asks [`is_cancelled`](Self::is_cancelled), waits for
/// [`cancelled`](Self::cancelled), or runs a future only [until then](Self::run_until_cancelled).
///
/// ```
/// use veloq::task::CancelToken;
///
/// let server = CancelToken::new();
/// let connection = server.child();
///
/// server.cancel();
/// assert!(connection.is_cancelled());
/// ```
#[derive(Clone)]
pub struct CancelToken {
    node: Arc<Node>,
}

impl CancelToken {
    /// A token of its own.
    #[must_use]
    pub fn new() -> CancelToken {
        CancelToken { node: Arc::new(Node::new(None)) }
    }

    /// A token that is cancelled with this one, or before it.
    ///
    /// ```
    /// # use veloq::task::CancelToken;
    /// let parent = CancelToken::new();
    /// let child = parent.child();
    /// child.cancel();
    /// assert!(!parent.is_cancelled());
    /// ```
    #[must_use]
    pub fn child(&self) -> CancelToken {
        let child = CancelToken { node: Arc::new(Node::new(Some(self.node.clone()))) };
        let late = match &mut *self.node.lock() {
            State::Cancelled => true,
            State::Running(listeners) => {
                let children = &mut listeners.children;
                // Before the list grows it is rid of tokens that nobody holds any more; so it is never longer
                // than twice what is alive, and the cost is shared by the children that made it grow.
                if children.len() == children.capacity() {
                    children.retain(|child| child.strong_count() != 0);
                    children.reserve(children.len() + 1);
                }
                children.push(Arc::downgrade(&child.node));
                false
            }
        };
        if late {
            child.cancel();
        }
        child
    }

    /// Cancels this token and all below it, and wakes whoever waits for that. The second time nothing
    /// happens.
    pub fn cancel(&self) {
        let mut reached = vec![self.node.clone()];
        while let Some(node) = reached.pop() {
            let before = {
                let mut state = node.lock();
                // Pairs with the acquiring load in `is_cancelled`: what came before the cancelling is seen
                // after it.
                node.cancelled.store(true, Ordering::Release);
                mem::replace(&mut *state, State::Cancelled)
            };
            if let State::Running(Listeners { children, wakers, .. }) = before {
                reached.extend(children.iter().filter_map(Weak::upgrade));
                for waker in wakers.into_values() {
                    quietly(|| waker.wake());
                }
            }
        }
    }

    /// Whether the token is cancelled, at the cost of a load.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        // Pairs with the releasing store in `cancel`.
        self.node.cancelled.load(Ordering::Acquire)
    }

    /// Waits until the token is cancelled. The future owns its share of the token.
    pub fn cancelled(&self) -> Cancelled {
        Cancelled { token: self.clone(), ticket: None }
    }

    /// Runs `future` until it is ready or the token is cancelled, whichever comes first. `None` if it was
    /// cancelled; the future is dropped then.
    ///
    /// If the token is cancelled before the first poll, the future is not polled at all. Later on, what is
    /// ready counts even if the token is cancelled by then.
    ///
    /// ```
    /// # use veloq::task::CancelToken;
    /// # veloq::runtime::Builder::new().workers(1).build()?.block_on(async {
    /// let token = CancelToken::new();
    /// assert_eq!(token.run_until_cancelled(async { 7 }).await, Some(7));
    ///
    /// token.cancel();
    /// assert_eq!(token.run_until_cancelled(async { 7 }).await, None);
    /// # });
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub async fn run_until_cancelled<F: Future>(&self, future: F) -> Option<F::Output> {
        if self.is_cancelled() {
            return None;
        }
        let mut future = pin!(future);
        let mut cancelled = pin!(self.cancelled());
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => cancelled.as_mut().poll(cx).map(|()| None),
        })
        .await
    }
}

impl Default for CancelToken {
    fn default() -> CancelToken {
        CancelToken::new()
    }
}

impl fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelToken").field("cancelled", &self.is_cancelled()).finish_non_exhaustive()
    }
}

/// The future of [`CancelToken::cancelled`]. Ready once the token is cancelled, and from then on.
#[must_use = "futures do nothing unless awaited"]
pub struct Cancelled {
    token: CancelToken,
    /// The name of our waker in the token's list, once there is one.
    ticket: Option<u64>,
}

impl Future for Cancelled {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.token.is_cancelled() {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let node = self.token.node.clone();
        let (poll, stale) = match &mut *node.lock() {
            State::Cancelled => (Poll::Ready(()), Some(waker)),
            State::Running(listeners) => {
                let ticket = *self.ticket.get_or_insert_with(|| {
                    listeners.tickets += 1;
                    listeners.tickets
                });
                (Poll::Pending, listeners.wakers.insert(ticket, waker))
            }
        };
        drop(stale);
        poll
    }
}

impl Drop for Cancelled {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let stale = match &mut *self.token.node.lock() {
            State::Cancelled => None,
            State::Running(listeners) => listeners.wakers.remove(&ticket),
        };
        drop(stale);
    }
}

impl fmt::Debug for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancelled").field("token", &self.token).finish_non_exhaustive()
    }
}

struct Node {
    /// A copy of the state for those who only ask. Written under the lock.
    cancelled: AtomicBool,
    state: Mutex<State>,
    /// Held so that a token between two others passes the word on even if nobody else holds it.
    parent: Option<Arc<Node>>,
}

enum State {
    Running(Listeners),
    Cancelled,
}

/// Who is told.
#[derive(Default)]
struct Listeners {
    children: Vec<Weak<Node>>,
    wakers: BTreeMap<u64, Waker>,
    /// The last ticket that was given out.
    tickets: u64,
}

impl Node {
    fn new(parent: Option<Arc<Node>>) -> Node {
        Node {
            cancelled: AtomicBool::new(false),
            state: Mutex::new(State::Running(Listeners::default())),
            parent,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic half-way runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Step by step and not each within the other, or a long line of ancestors would overflow the stack.
        let mut parent = self.parent.take();
        while let Some(mut node) = parent.and_then(Arc::into_inner) {
            parent = node.parent.take();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;
    use crate::io::driver::waiter::waker_that_panics;

    /// Counts how often it is woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);
    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn poll<F: Future + Unpin>(future: &mut F, wakes: &Arc<Wakes>) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(&Waker::from(wakes.clone())))
    }

    #[test]
    fn whoever_waits_is_woken_once() {
        // A listener that is forgotten sleeps for ever.
        let token = CancelToken::new();
        let wakes = Arc::new(Wakes::default());
        let mut waiting = [(); 3].map(|()| token.clone().cancelled());
        for cancelled in &mut waiting {
            assert_eq!(poll(cancelled, &wakes), Poll::Pending);
            assert_eq!(poll(cancelled, &wakes), Poll::Pending, "polling again must not add a second waker");
        }
        token.cancel();
        token.cancel();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 3);
        for cancelled in &mut waiting {
            assert_eq!(poll(cancelled, &wakes), Poll::Ready(()));
        }
        assert_eq!(Arc::strong_count(&wakes), 1, "no waker is kept");
    }

    #[test]
    fn a_waker_that_panics_keeps_the_word_from_nobody() {
        // Those behind it, and below, are not told a second time: the token is cancelled already.
        let token = CancelToken::new();
        let wakes = Arc::new(Wakes::default());
        let [mut first, mut second] = [(); 2].map(|()| token.cancelled());
        let mut below = token.child().cancelled();
        assert!(Pin::new(&mut first).poll(&mut Context::from_waker(&waker_that_panics())).is_pending());
        assert!(poll(&mut second, &wakes).is_pending() && poll(&mut below, &wakes).is_pending());
        token.cancel();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_dropped_listener_leaves_nothing_behind() {
        // A token lives as long as its server; wakers of connections that came and went must not.
        let token = CancelToken::new();
        let wakes = Arc::new(Wakes::default());
        let mut cancelled = token.cancelled();
        assert_eq!(poll(&mut cancelled, &wakes), Poll::Pending);
        drop(cancelled);
        assert_eq!(Arc::strong_count(&wakes), 1);
        token.cancel();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_word_goes_down_and_never_up() {
        // A middle token that nobody holds must still pass it on; one that was cancelled by itself must stop
        // only its own.
        let root = CancelToken::new();
        let (leaf, other) = (root.child().child(), root.child());
        other.cancel();
        assert!(other.is_cancelled() && !root.is_cancelled() && !leaf.is_cancelled());
        let wakes = Arc::new(Wakes::default());
        let mut waiting = leaf.cancelled();
        assert_eq!(poll(&mut waiting, &wakes), Poll::Pending);
        root.cancel();
        assert!(leaf.is_cancelled());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(root.child().is_cancelled(), "a child of a cancelled token is born cancelled");
        assert_eq!(poll(&mut root.child().cancelled(), &wakes), Poll::Ready(()));
    }

    #[test]
    fn children_that_are_gone_are_forgotten() {
        // One child per connection, for years.
        let root = CancelToken::new();
        for _ in 0..10_000 {
            let _connection = root.child();
        }
        match &*root.node.lock() {
            State::Running(listeners) => {
                assert!(listeners.children.len() < 10, "{}", listeners.children.len())
            }
            State::Cancelled => panic!("nobody cancelled"),
        };
    }

    #[test]
    fn a_long_line_of_descent_does_not_overflow_the_stack() {
        // Recursion per generation, in cancelling or in dropping, would.
        let root = CancelToken::new();
        let mut youngest = root.child();
        for _ in 0..100_000 {
            youngest = youngest.child();
        }
        root.cancel();
        assert!(youngest.is_cancelled());
        drop(root);
        drop(youngest);
    }

    #[test]
    fn a_result_that_is_ready_beats_the_cancelling() {
        // Throwing it away would lose what the future had already done. But nothing is begun once cancelled.
        let token = CancelToken::new();
        let wakes = Arc::new(Wakes::default());
        let inner = token.clone();
        let mut late = Box::pin(token.run_until_cancelled(async move {
            inner.cancel();
            7
        }));
        assert_eq!(poll(&mut late, &wakes), Poll::Ready(Some(7)));
        let mut never = Box::pin(token.run_until_cancelled(async { panic!("it was polled") }));
        assert_eq!(poll(&mut never, &wakes), Poll::Ready(None::<()>));
        let token = CancelToken::new();
        let mut waiting = Box::pin(token.run_until_cancelled(std::future::pending::<()>()));
        assert_eq!(poll(&mut waiting, &wakes), Poll::Pending);
        token.cancel();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert_eq!(poll(&mut waiting, &wakes), Poll::Ready(None));
    }

    #[test]
    fn cancelling_while_others_begin_to_listen_loses_nobody() {
        // The race between registering and taking the list: whoever is not woken must have found it
        // cancelled, or this would hang.
        for _ in 0..200 {
            let token = CancelToken::new();
            std::thread::scope(|scope| {
                for parent in [token.clone(), token.child(), token.child().child()] {
                    scope.spawn(move || {
                        futures_util::future::FutureExt::now_or_never(parent.cancelled()).is_some()
                    });
                    let child = token.child();
                    scope.spawn(move || block_on(child.cancelled()));
                }
                token.cancel();
            });
        }
    }

    /// Polls, and parks the thread until it is woken.
    fn block_on(mut future: impl Future<Output = ()> + Unpin) {
        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        while Pin::new(&mut future).poll(&mut Context::from_waker(&waker)).is_pending() {
            std::thread::park();
        }
    }
}
