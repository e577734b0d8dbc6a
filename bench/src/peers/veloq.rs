//! Veloq.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use veloq::WorkerId;
use veloq::fs::File;
use veloq::mesh;
use veloq::net::{TcpListener, TcpStream};
use veloq::runtime::{Builder, Runtime};

use super::CHANNEL;
use crate::measure::{Sample, spinning, start};
use crate::rows::{BLOCK, Files, MESSAGE, Net, Pair, Peer, Steal, Stream, Timers};

/// One worker, or two, which look out for so many microseconds before they would sleep: by default as many as the runtime's own default.
pub struct Veloq<const SPIN_US: u64 = 20>;

impl<const SPIN_US: u64> Veloq<SPIN_US> {
    /// A runtime of two workers, which tells the measurement what it spent spinning.
    fn two() -> Runtime {
        let spin = Duration::from_micros(SPIN_US);
        let runtime = Builder::new().workers(2).spin(spin).build().expect("this kernel has io_uring");
        let handle = runtime.handle();
        spinning(move || handle.metrics().iter().map(|worker| worker.spin_ns).sum());
        runtime
    }
}

impl<const SPIN_US: u64> Peer for Veloq<SPIN_US> {
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

impl<const SPIN_US: u64> Pair for Veloq<SPIN_US> {
    fn pair<T, A, B>(
        first: impl FnOnce() -> A + Send + 'static,
        second: impl FnOnce() -> B + Send + 'static,
    ) -> T
    where
        T: Send + 'static,
        A: Future<Output = T> + 'static,
        B: Future<Output = ()> + 'static,
    {
        Self::two().block_on(async {
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
        let (mut sender, mut receiver) = mesh::channel::<u64>(CHANNEL);
        Self::pair(
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
}

impl Steal for Veloq {
    fn block_on<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
        Self::two().block_on(future)
    }

    fn spawn<F>(future: F) -> impl Future<Output = F::Output> + Send + 'static
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = veloq::spawn(future);
        async { task.await.expect("no panic") }
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
