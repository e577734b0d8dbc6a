//! The runtimes, and for each row a loop written by hand.

pub mod bare;
pub mod compio;
pub mod glommio;
pub mod monoio;
pub mod tokio;
pub mod veloq;

use std::future::Future;

use crate::measure::{Sample, pin};
use crate::rows::{Pair, Peer};

/// Two threads for the peers whose runtimes have one each.
pub fn two_threads<P: Peer, T, A, B>(
    first: impl FnOnce() -> A + Send + 'static,
    second: impl FnOnce() -> B + Send + 'static,
) -> T
where
    T: 'static,
    A: Future<Output = T> + 'static,
    B: Future<Output = ()> + 'static,
{
    std::thread::scope(|threads| {
        threads.spawn(|| {
            pin(1);
            P::block_on(async { second().await });
        });
        pin(0);
        P::block_on(async { first().await })
    })
}

/// One way through a channel of the crate flume, which is what the authors of several peers show for use between threads.
pub fn flume_stream<P: Pair>(warm: u64, count: u64) -> Sample {
    let (sender, receiver) = flume::bounded::<u64>(CHANNEL);
    P::pair(
        move || async move {
            let mut started = None;
            for number in 0..warm + count {
                if number == warm {
                    started = Some(crate::measure::start());
                }
                assert_eq!(receiver.recv_async().await, Ok(number));
            }
            started.expect("there is more than the warm-up").stop(count)
        },
        move || async move {
            for number in 0..warm + count {
                sender.send_async(number).await.expect("the receiver stays to the end");
            }
        },
    )
}

/// Messages that a channel holds.
pub const CHANNEL: usize = 1024;
