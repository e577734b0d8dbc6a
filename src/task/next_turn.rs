//! Letting the kernel go first.

use std::future::poll_fn;
use std::task::Poll;

use super::yield_now;
use crate::runtime::context::Context;

/// Goes behind all tasks that are ready on this worker, then behind a look at the kernel, and behind the tasks which that makes ready. What
/// the first submitted is on its way then, and who waited for what has arrived has been polled. The worker does not sleep in
/// between.
///
/// For work that is worth more the more of it is done at a time: a log, say, that answers those whose records are synced, and before
/// it syncs again takes the records of those who have asked meanwhile. [`yield_now()`] is the first third of it.
///
/// ```
/// use std::{cell::RefCell, rc::Rc};
/// use veloq::{io::op::misc::nop, spawn_local, task};
///
/// # veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
/// let order = Rc::new(RefCell::new(Vec::new()));
/// let theirs = Rc::clone(&order);
/// let other = spawn_local(async move {
///     nop().await.expect("the kernel answers");
///     theirs.borrow_mut().push("theirs");
/// });
/// task::next_turn().await;
/// order.borrow_mut().push("ours");
/// assert_eq!(*order.borrow(), ["theirs", "ours"]);
/// # other.await.expect("no panic");
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Panics
///
/// When polled outside a worker.
pub async fn next_turn() {
    yield_now().await;
    let mut asked_in = None;
    poll_fn(|cx| {
        let context = Context::current();
        let turn = context.turns.get();
        if *asked_in.get_or_insert(turn) != turn {
            return Poll::Ready(());
        }
        context.wake_after_look(cx.waker());
        Poll::Pending
    })
    .await;
}
