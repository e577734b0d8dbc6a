//! A future that is given so long and no longer.
//!
//! The future is polled first. Only when it has to wait does the timer come into being, and even then without
//! reading the clock (`runtime::timer` says how): a timeout around something that is answered soon, which is
//! nearly every timeout there is, costs a few nanoseconds. The price is that [`timeout`] counts from its
//! first poll and not from the call, which is the same in `timeout(d, future).await`.

use std::error::Error;
use std::fmt;
use std::future::{Future, IntoFuture};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;

use super::Instant;
use super::instant::nanoseconds;
use crate::runtime::timer::Timer;

/// Waits for `future`, but no longer than `duration` from when it is first polled.
///
/// What is ready at the deadline counts as in time. Dropping the `Timeout`, when it has elapsed or before,
/// drops the future, as with any other way to cancel it; an operation that gives back its buffer even then
/// has a deadline of its own. To go on with a future after its time is over, lend it: `timeout(duration, &mut
/// future)`.
///
/// The first poll of an operation hands it over, and the answer comes between two polls. So an operation
/// that is given no time, [`Duration::ZERO`], is dropped before it can be answered, though what it waits for
/// may be there: that is no way to look whether it is.
///
/// # Errors
///
/// [`Elapsed`] if the future was not ready in time. It converts into an [`io::Error`] of kind `TimedOut`.
///
/// ```
/// # use std::{future::pending, io, time::Duration};
/// use veloq::time::timeout;
/// # veloq::runtime::Builder::new().workers(1).build()?.block_on(async {
/// assert_eq!(timeout(Duration::from_secs(5), async { 7 }).await, Ok(7));
///
/// let late = timeout(Duration::from_millis(5), pending::<()>()).await.unwrap_err();
/// assert_eq!(io::Error::from(late).kind(), io::ErrorKind::TimedOut);
/// # });
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn timeout<F: IntoFuture>(duration: Duration, future: F) -> Timeout<F::IntoFuture> {
    Timeout { future: future.into_future(), timer: Timer::after(nanoseconds(duration)) }
}

/// Waits for `future`, but no longer than until `deadline`. Otherwise as [`timeout`].
///
/// # Errors
///
/// [`Elapsed`] if the future was not ready in time.
pub fn timeout_at<F: IntoFuture>(deadline: Instant, future: F) -> Timeout<F::IntoFuture> {
    Timeout { future: future.into_future(), timer: Timer::at(deadline.ns()) }
}

pin_project! {
    /// The future of [`timeout`] and [`timeout_at`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless awaited"]
    pub struct Timeout<F> {
        #[pin]
        future: F,
        timer: Timer,
    }
}

impl<F: Future> Future for Timeout<F> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        this.timer.poll(cx).map(|()| Err(Elapsed(())))
    }
}

/// The time a future was given is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed(());

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("deadline has elapsed")
    }
}

impl Error for Elapsed {}

impl From<Elapsed> for io::Error {
    fn from(elapsed: Elapsed) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, elapsed)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::future::{pending, ready};

    use super::super::{sleep, sleep::run};
    use super::*;
    use crate::runtime::timer::tests::{MS, virtual_timers};

    #[test]
    fn it_ends_what_takes_too_long_and_nothing_else() {
        // The two ways out, each with the time it took.
        let (timers, clock) = virtual_timers();
        let _entered = timers.enter();
        run(&timers, &clock, async {
            let start = Instant::now();
            let soon = async {
                sleep(Duration::from_millis(3)).await;
                "done"
            };
            assert_eq!(timeout(Duration::from_millis(5), soon).await, Ok("done"));
            assert!(start.elapsed() < Duration::from_millis(4));
            assert_eq!(timeout(Duration::from_millis(5), pending::<()>()).await, Err(Elapsed(())));
            assert!(start.elapsed() >= Duration::from_millis(8));
            assert!(start.elapsed() < Duration::from_millis(9));
        });
        assert_eq!(timers.armed(), 0);
    }

    #[test]
    fn what_is_ready_counts_even_without_time() {
        // A timer that is asked first would throw away a finished result.
        let (timers, clock) = virtual_timers();
        let _entered = timers.enter();
        run(&timers, &clock, async {
            assert_eq!(timeout(Duration::ZERO, ready(1)).await, Ok(1));
            assert_eq!(timeout_at(Instant::now(), ready(2)).await, Ok(2));
            assert_eq!(timeout(Duration::ZERO, pending::<()>()).await, Err(Elapsed(())));
            assert_eq!(timeout_at(Instant::now(), pending::<()>()).await, Err(Elapsed(())));
        });
    }

    #[test]
    fn a_future_that_was_lent_survives_its_timeout() {
        // Polling on must continue where it stopped.
        let (timers, clock) = virtual_timers();
        let _entered = timers.enter();
        run(&timers, &clock, async {
            let mut nap = sleep(Duration::from_millis(10));
            assert!(timeout(Duration::from_millis(4), &mut nap).await.is_err());
            assert!(timeout(Duration::from_millis(7), &mut nap).await.is_ok());
        });
    }

    #[test]
    fn it_needs_no_worker_until_it_waits() {
        // A client that wraps each call in a timeout must not be tied to a runtime by the calls that do not
        // wait.
        let (waker, _) = crate::runtime::timer::tests::waker();
        let mut done = timeout(Duration::from_nanos(MS), ready(3));
        assert_eq!(Pin::new(&mut done).poll(&mut Context::from_waker(&waker)), Poll::Ready(Ok(3)));
    }

    #[test]
    fn the_error_says_what_happened() {
        // Callers match on the kind, or look inside.
        let error = io::Error::from(Elapsed(()));
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (io::ErrorKind::TimedOut, "deadline has elapsed")
        );
        assert!(error.get_ref().is_some_and(|inner| inner.is::<Elapsed>()));
    }
}
