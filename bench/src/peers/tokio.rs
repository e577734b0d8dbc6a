//! tokio: a `LocalRuntime` for what stays on one thread, and the multi-thread runtime with two workers.
#![expect(unsafe_code, reason = "generic code cannot see that the futures of some rows are `Send`")]

use std::future::Future;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;

use super::{CHANNEL, two_threads};
use crate::measure::{Sample, pin, start};
use crate::rows::{BLOCK, Files, MESSAGE, Net, Pair, Peer, Steal, Stream, Timers};

/// One thread.
pub struct Tokio;

impl Peer for Tokio {
    fn block_on<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        runtime
            .expect("a runtime")
            .block_on(async { tokio::task::spawn_local(future).await.expect("no panic") })
    }

    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + 'static
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let task = tokio::task::spawn_local(future);
        async { task.await.expect("no panic") }
    }
}

impl Timers for Tokio {
    fn sleep(duration: Duration) -> impl Future<Output = ()> + 'static {
        tokio::time::sleep(duration)
    }

    fn timeout<F: Future>(duration: Duration, future: F) -> impl Future<Output = Option<F::Output>> {
        let timeout = tokio::time::timeout(duration, future);
        async { timeout.await.ok() }
    }
}

impl Pair for Tokio {
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

impl Stream for Tokio {
    fn stream(warm: u64, count: u64) -> Sample {
        mpsc_stream::<Self>(warm, count)
    }
}

impl Net for Tokio {
    type Listener = TcpListener;
    type Stream = TcpStream;

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
        let address = listener.local_addr().expect("it is bound");
        (listener, address)
    }

    async fn accept(listener: &TcpListener) -> TcpStream {
        listener.accept().await.expect("a client comes").0
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

impl Files for Tokio {
    type File = Arc<std::fs::File>;

    async fn open(path: &'static str) -> Arc<std::fs::File> {
        Arc::new(std::fs::File::open(path).expect("it is there"))
    }

    /// tokio's own `File` cannot read at an offset; what it does inside of `read` is this.
    async fn read(file: &Arc<std::fs::File>, offsets: impl Iterator<Item = u64>) {
        let mut buffer = vec![0; BLOCK];
        for offset in offsets {
            let file = Arc::clone(file);
            let read = move || {
                file.read_exact_at(&mut buffer, offset).expect("within the file");
                buffer
            };
            buffer = tokio::task::spawn_blocking(read).await.expect("no panic");
        }
    }
}

/// Two threads that share their tasks.
pub struct TokioShared;

/// A future of a row, which generic code cannot see to be `Send`.
struct IsSend<F>(F);

// SAFETY: the rows that are run with `TokioShared` hold nothing but `Arc`s, atomics, numbers and tokio's own futures across
// an await; what keeps the compiler from seeing it is that for other peers they hold those peers' futures.
unsafe impl<F> Send for IsSend<F> {}

impl<F: Future> Future for IsSend<F> {
    type Output = IsSend<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // SAFETY: the field is pinned as its owner is, and is not moved out of it.
        unsafe { self.map_unchecked_mut(|future| &mut future.0) }.poll(cx).map(IsSend)
    }
}

/// The runtime, with its workers pinned.
fn shared() -> tokio::runtime::Runtime {
    let started = AtomicUsize::new(0);
    let pin_next = move || pin(started.fetch_add(1, Ordering::Relaxed) % 2);
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(pin_next)
        .build()
        .expect("a runtime")
}

impl Peer for TokioShared {
    fn block_on<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
        let future = IsSend(future);
        shared().block_on(async { tokio::spawn(future).await.expect("no panic").0 })
    }

    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + 'static
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let task = tokio::spawn(IsSend(future));
        async { task.await.expect("no panic").0 }
    }
}

impl Timers for TokioShared {
    fn sleep(duration: Duration) -> impl Future<Output = ()> + 'static {
        tokio::time::sleep(duration)
    }

    fn timeout<F: Future>(duration: Duration, future: F) -> impl Future<Output = Option<F::Output>> {
        <Tokio as Timers>::timeout(duration, future)
    }
}

impl Steal for TokioShared {
    fn block_on<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
        shared().block_on(async { tokio::spawn(future).await.expect("no panic") })
    }

    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + Send + 'static
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = tokio::spawn(future);
        async { task.await.expect("no panic") }
    }
}

/// One way through tokio's bounded channel.
fn mpsc_stream<P: Pair>(warm: u64, count: u64) -> Sample {
    let (sender, mut receiver) = mpsc::channel::<u64>(CHANNEL);
    P::pair(
        move || async move {
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
            for number in 0..warm + count {
                sender.send(number).await.expect("the receiver stays to the end");
            }
        },
    )
}
