//! Letting others go first.

use std::future::poll_fn;
use std::task::Poll;

/// Goes behind all tasks that are ready on this worker, and comes back in its turn. For long computations in pieces: the
/// worker looks at arriving data and due timers after so many polls ([`Builder::budget`](crate::runtime::Builder::budget)),
/// or half a millisecond, however many tasks yield.
///
/// ```
/// # veloq::runtime::Builder::new().workers(1).pin(false).build()?.block_on(async {
/// let mut sum = 0u64;
/// for chunk in 0..10 {
///     sum += (chunk * 1000..(chunk + 1) * 1000).sum::<u64>();
///     veloq::task::yield_now().await;
/// }
/// # assert_eq!(sum, 49_995_000);
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
