//! glommio: one `LocalExecutor` per thread, with its shared channels between them.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::channels::shared_channel;
use glommio::io::BufferedFile;
use glommio::net::{TcpListener, TcpStream};
use glommio::{LocalExecutorBuilder, Placement};

use super::{CHANNEL, two_threads};
use crate::measure::{Sample, start};
use crate::rows::{BLOCK, Files, MESSAGE, Net, Pair, Peer, Stream, TRIPS, Timers};

/// One thread of glommio, which spins for so many microseconds before it would sleep.
pub struct Glommio<const SPIN_US: u64 = 0>;

impl<const SPIN_US: u64> Peer for Glommio<SPIN_US> {
    fn block_on<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
        // The thread is pinned by whoever calls; glommio's own 10 MiB of I/O memory do not fit into the usual RLIMIT_MEMLOCK.
        let executor = LocalExecutorBuilder::new(Placement::Unbound)
            .spin_before_park(Duration::from_micros(SPIN_US))
            .io_memory(1 << 20)
            .make();
        executor.expect("glommio's rings").run(future)
    }

    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + 'static
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        glommio::spawn_local(future)
    }
}

impl Timers for Glommio {
    fn sleep(duration: Duration) -> impl Future<Output = ()> + 'static {
        glommio::timer::sleep(duration)
    }

    async fn timeout<F: Future>(duration: Duration, future: F) -> Option<F::Output> {
        glommio::timer::timeout(duration, async { Ok::<_, glommio::GlommioError<()>>(future.await) })
            .await
            .ok()
    }
}

impl<const SPIN_US: u64> Pair for Glommio<SPIN_US> {
    fn pair<T, A, B>(
        first: impl FnOnce() -> A + Send + 'static,
        second: impl FnOnce() -> B + Send + 'static,
    ) -> T
    where
        T: Send + 'static,
        A: Future<Output = T> + 'static,
        B: Future<Output = ()> + 'static,
    {
        two_threads::<Self, T, A, B>(first, second)
    }

    fn spawn(future: impl Future<Output = ()> + 'static) -> impl Future<Output = ()> + 'static {
        <Self as Peer>::spawn(future)
    }
}

impl Stream for Glommio {
    fn stream(warm: u64, count: u64) -> Sample {
        let (sender, receiver) = shared_channel::new_bounded::<u64>(CHANNEL);
        Self::pair(
            move || async move {
                let receiver = receiver.connect().await;
                let mut started = None;
                for number in 0..warm + count {
                    if number == warm {
                        started = Some(start());
                    }
                    assert_eq!(receiver.recv().await, Some(number));
                }
                started.expect("there is more than the warm-up").stop(count)
            },
            move || async move {
                let sender = sender.connect().await;
                for number in 0..warm + count {
                    assert!(sender.send(number).await.is_ok(), "the receiver stays to the end");
                }
            },
        )
    }
}

/// A number goes through a shared channel to another thread, and through another one back. A channel that is awaited is what
/// glommio looks at while it spins; a wake from another thread waits until it has stopped.
pub fn ping_pong_awake() -> Sample {
    type Spinning = Glommio<1_000>;
    let warm = TRIPS / 20;
    let (there, from_there) = shared_channel::new_bounded::<u64>(1);
    let (back, from_back) = shared_channel::new_bounded::<u64>(1);
    Spinning::pair(
        move || async move {
            let there = there.connect().await;
            let from_back = from_back.connect().await;
            let run = async |from: u64, to: u64| {
                for trip in from..to {
                    assert!(there.send(trip).await.is_ok(), "the other side stays to the end");
                    assert_eq!(from_back.recv().await, Some(trip));
                }
            };
            run(0, warm).await;
            let started = start();
            run(warm, warm + TRIPS).await;
            started.stop(TRIPS)
        },
        move || async move {
            let from_there = from_there.connect().await;
            let back = back.connect().await;
            for trip in 0..warm + TRIPS {
                assert_eq!(from_there.recv().await, Some(trip));
                assert!(back.send(trip).await.is_ok(), "the other side stays to the end");
            }
        },
    )
}

impl Net for Glommio {
    type Listener = TcpListener;
    type Stream = TcpStream;

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
        let address = listener.local_addr().expect("it is bound");
        (listener, address)
    }

    async fn accept(listener: &TcpListener) -> TcpStream {
        listener.accept().await.expect("a client comes")
    }

    async fn connect(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.expect("the listener is there")
    }

    async fn echo(mut stream: TcpStream) {
        let mut buffer = [0; MESSAGE];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..read]).await.expect("the client waits");
        }
    }

    async fn ask(mut stream: TcpStream, times: u64) {
        let mut buffer = [7; MESSAGE];
        for _ in 0..times {
            stream.write_all(&buffer).await.expect("the server reads");
            assert_eq!(stream.read(&mut buffer).await.expect("the server answers"), MESSAGE);
        }
    }
}

impl Files for Glommio {
    type File = BufferedFile;

    async fn open(path: &'static str) -> BufferedFile {
        BufferedFile::open(path).await.expect("it is there")
    }

    async fn read(file: &BufferedFile, offsets: impl Iterator<Item = u64>) {
        for offset in offsets {
            assert_eq!(file.read_at(offset, BLOCK).await.expect("within the file").len(), BLOCK);
        }
    }
}
