//! compio: one io_uring runtime per thread. A task's handle cancels it when dropped; between threads, `flume`.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use compio::BufResult;
use compio::io::{AsyncRead, AsyncReadAt, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::Runtime;

use super::{flume_stream, two_threads};
use crate::measure::Sample;
use crate::rows::{BLOCK, Files, MESSAGE, Net, Pair, Peer, Stream, Timers};

/// One thread of compio.
pub struct Compio;

impl Peer for Compio {
    fn block_on<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
        // Room for the remote wakes of a burst; with less, whoever wakes waits.
        let runtime = Runtime::builder().sync_queue_size(1024).build();
        runtime.expect("this kernel has io_uring").block_on(future)
    }

    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + 'static
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let task = compio::runtime::spawn(future);
        async {
            match task.await {
                Ok(output) => output,
                Err(_) => unreachable!("no task panics, and none is cancelled"),
            }
        }
    }
}

impl Timers for Compio {
    fn sleep(duration: Duration) -> impl Future<Output = ()> + 'static {
        compio::time::sleep(duration)
    }

    fn timeout<F: Future>(duration: Duration, future: F) -> impl Future<Output = Option<F::Output>> {
        let timeout = compio::time::timeout(duration, future);
        async { timeout.await.ok() }
    }
}

impl Pair for Compio {
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

impl Stream for Compio {
    fn stream(warm: u64, count: u64) -> Sample {
        flume_stream::<Self>(warm, count)
    }
}

impl Net for Compio {
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
        let mut buffer = Vec::with_capacity(MESSAGE);
        loop {
            let BufResult(read, data) = stream.read(buffer).await;
            if !matches!(read, Ok(1..)) {
                return;
            }
            let BufResult(written, data) = stream.write_all(data).await;
            written.expect("the client waits");
            buffer = data;
        }
    }

    async fn ask(mut stream: TcpStream, times: u64) {
        let mut buffer = vec![7; MESSAGE];
        for _ in 0..times {
            let BufResult(written, data) = stream.write_all(buffer).await;
            written.expect("the server reads");
            let BufResult(read, data) = stream.read(data).await;
            assert_eq!(read.expect("the server answers"), MESSAGE);
            buffer = data;
        }
    }
}

impl Files for Compio {
    type File = compio::fs::File;

    async fn open(path: &'static str) -> compio::fs::File {
        compio::fs::File::open(path).await.expect("it is there")
    }

    async fn read(file: &compio::fs::File, offsets: impl Iterator<Item = u64>) {
        let mut buffer = vec![0; BLOCK];
        for offset in offsets {
            let BufResult(read, data) = file.read_at(buffer, offset).await;
            assert_eq!(read.expect("within the file"), BLOCK);
            buffer = data;
        }
    }
}
