//! Veloq.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use veloq::WorkerId;
use veloq::fs::File;
use veloq::net::{TcpListener, TcpStream};
use veloq::runtime::Builder;

use super::flume_stream;
use crate::measure::Sample;
use crate::rows::{BLOCK, Files, MESSAGE, Net, Pair, Peer, Stream, Timers};

/// One worker, or two.
pub struct Veloq;

impl Peer for Veloq {
    fn block_on<T: 'static>(future: impl Future<Output = T> + 'static) -> T {
        Builder::new().workers(1).build().expect("this kernel has io_uring").block_on(future)
    }

    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + 'static
    where
        F: Future + 'static,
        F::Output: 'static,
    {
        let task = veloq::spawn_local(future);
        async { task.await.expect("no panic") }
    }
}

impl Timers for Veloq {
    fn sleep(duration: Duration) -> impl Future<Output = ()> + 'static {
        veloq::time::sleep(duration)
    }

    fn timeout<F: Future>(duration: Duration, future: F) -> impl Future<Output = Option<F::Output>> {
        let timeout = veloq::time::timeout(duration, future);
        async { timeout.await.ok() }
    }
}

impl Pair for Veloq {
    fn pair<T, A, B>(
        first: impl FnOnce() -> A + Send + 'static,
        second: impl FnOnce() -> B + Send + 'static,
    ) -> T
    where
        T: Send + 'static,
        A: Future<Output = T> + 'static,
        B: Future<Output = ()> + 'static,
    {
        Builder::new().workers(2).build().expect("this kernel has io_uring").block_on(async {
            let second = veloq::spawn_to(WorkerId::new(1), second);
            let first = first().await;
            second.await.expect("no panic");
            first
        })
    }

    fn spawn(future: impl Future<Output = ()> + 'static) -> impl Future<Output = ()> + 'static {
        <Self as Peer>::spawn(future)
    }
}

impl Stream for Veloq {
    fn stream(warm: u64, count: u64) -> Sample {
        flume_stream::<Self>(warm, count)
    }
}

impl Net for Veloq {
    type Listener = TcpListener;
    type Stream = TcpStream;

    async fn listen() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a loopback port");
        let address = listener.local_addr().expect("it is bound");
        (listener, address)
    }

    async fn accept(listener: &TcpListener) -> TcpStream {
        listener.accept().await.expect("a client comes").0
    }

    async fn connect(address: SocketAddr) -> TcpStream {
        TcpStream::connect(address).await.expect("the listener is there")
    }

    async fn echo(stream: TcpStream) {
        while let Ok(data) = stream.recv().await {
            if data.is_empty() {
                return;
            }
            stream.write_all(data).await.0.expect("the client waits");
        }
    }

    async fn ask(stream: TcpStream, times: u64) {
        let mut buffer = vec![7; MESSAGE];
        for _ in 0..times {
            let (written, data) = stream.write_all(buffer).await;
            written.expect("the server reads");
            let (read, data) = stream.read(data).await;
            assert_eq!(read.expect("the server answers"), MESSAGE);
            buffer = data;
        }
    }
}

impl Files for Veloq {
    type File = File;

    async fn open(path: &'static str) -> File {
        File::open(path).await.expect("it is there")
    }

    async fn read(file: &File, offsets: impl Iterator<Item = u64>) {
        let mut buffer = veloq::alloc(BLOCK);
        for offset in offsets {
            let (read, data) = file.read_at(buffer, offset).await;
            assert_eq!(read.expect("within the file"), BLOCK);
            buffer = data;
        }
    }
}
