//! TCP connections.
//!
//! A [`TcpStream`] is std's shape over [`Socket`], which holds what makes receiving lossless; its module says how. This
//! one adds connecting, options, and the way from and to std.

use std::error::Error;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use socket2::{Domain, Protocol, Type};

use super::addr::resolve;
use super::split::{OwnedReadHalf, OwnedWriteHalf, ReadHalf, WriteHalf};
use super::{
    Read, ReadExact, ReadVectored, Recv, Shutdown, ToSocketAddrs, Write, WriteAll, WriteAllVectored,
    WriteVectored, internet, options,
};
use crate::io::buf::{IoBuf, IoBufMut, IoBufMutVec, IoBufVec};
use crate::io::driver::{Descriptor, DriverHandle, Op, SharedDescriptor};
use crate::io::op::misc::Nop;
use crate::io::op::net;
use crate::io::socket::{Socket, WritingEnd};
use crate::io::stash::Reader;
use crate::os;
use crate::time::timeout;

/// A TCP connection.
///
/// One task can read while another writes, through `&self` or through halves. One task reads at a time; of several that
/// write at the same time the bytes may be mixed.
///
/// Dropping the last of stream, halves and futures closes the connection.
///
/// ```
/// use std::net::Shutdown;
/// use veloq::net::{TcpListener, TcpStream};
///
/// # #[veloq::main]
/// # async fn main() -> std::io::Result<()> {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let stream = TcpStream::connect(listener.local_addr()?).await?;
/// stream.set_nodelay(true)?;
/// let (sent, _) = stream.write_all("GET /").await;
/// sent?;
/// stream.shutdown(Shutdown::Write).await?;
///
/// let (server, _) = listener.accept().await?;
/// let mut request = Vec::new();
/// loop {
///     let data = server.recv().await?;
///     if data.is_empty() {
///         break; // The client has said all.
///     }
///     request.extend_from_slice(&data);
/// }
/// assert_eq!(request, b"GET /");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TcpStream {
    socket: Rc<Socket>,
    /// Who connected, if that was known when the connection was made. The only way to know for a direct descriptor.
    peer: Option<SocketAddr>,
}

/// Why [`TcpStream::into_std`] refused, and the stream.
#[derive(Debug)]
pub struct IntoStdError {
    error: io::Error,
    stream: TcpStream,
}

impl IntoStdError {
    /// Why.
    pub fn error(&self) -> &io::Error {
        &self.error
    }

    /// The stream, as it was, and why.
    pub fn into_parts(self) -> (io::Error, TcpStream) {
        (self.error, self.stream)
    }
}

impl fmt::Display for IntoStdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the stream cannot be handed to std: {}", self.error)
    }
}

impl Error for IntoStdError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.error)
    }
}

impl From<IntoStdError> for io::Error {
    /// Drops the stream.
    fn from(refused: IntoStdError) -> io::Error {
        refused.error
    }
}

/// When the system probes an idle connection: see [`TcpStream::set_tcp_keepalive`]. Times are whole seconds, what is less is cut off.
#[derive(Clone, Debug)]
#[must_use = "it is a wish until a connection has it"]
pub struct TcpKeepalive(socket2::TcpKeepalive);

impl TcpKeepalive {
    /// Leaves everything to the system.
    pub const fn new() -> TcpKeepalive {
        TcpKeepalive(socket2::TcpKeepalive::new())
    }

    /// How long a connection is idle before it is probed (`TCP_KEEPIDLE`).
    pub const fn with_time(self, idle: Duration) -> TcpKeepalive {
        TcpKeepalive(self.0.with_time(idle))
    }

    /// How long the system waits for the answer to a probe, before the next (`TCP_KEEPINTVL`).
    pub const fn with_interval(self, interval: Duration) -> TcpKeepalive {
        TcpKeepalive(self.0.with_interval(interval))
    }

    /// After how many probes without an answer the connection is given up (`TCP_KEEPCNT`).
    pub const fn with_retries(self, probes: u32) -> TcpKeepalive {
        TcpKeepalive(self.0.with_retries(probes))
    }
}

impl Default for TcpKeepalive {
    fn default() -> TcpKeepalive {
        TcpKeepalive::new()
    }
}

/// Turns that [`TcpStream::into_std`] waits for operations whose futures were dropped. Their cancellations are answered
/// within one or two; what takes longer than this was not cancelled.
const TURNS_MAX: u32 = 64;

impl TcpStream {
    /// Connects to `addr`. If that stands for several addresses, they are tried in order.
    ///
    /// Dropping the future closes what was begun. For a bound on the time see [`connect_timeout`](Self::connect_timeout).
    ///
    /// # Errors
    ///
    /// What the system said to the last attempt, and what resolving a name can yield.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    pub async fn connect(addr: impl ToSocketAddrs) -> io::Result<TcpStream> {
        let driver = DriverHandle::current();
        let mut last = None;
        for addr in resolve(&addr).await?.as_slice() {
            match connect_one(*addr, &driver).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("there is at least one address"))
    }

    /// Connects to `addr`, within `limit` for all addresses together, resolving included.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and those of [`connect`](Self::connect).
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    pub async fn connect_timeout(addr: impl ToSocketAddrs, limit: Duration) -> io::Result<TcpStream> {
        match timeout(limit, TcpStream::connect(addr)).await {
            Ok(connected) => connected,
            Err(elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, elapsed)),
        }
    }

    /// Makes a stream of std's Veloq's, on this worker. It is switched to blocking mode, which is what the kernel's ring
    /// wants; that holds for all copies of the descriptor.
    ///
    /// # Errors
    ///
    /// If the system does not switch the mode.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    pub fn from_std(stream: std::net::TcpStream) -> io::Result<TcpStream> {
        stream.set_nonblocking(false)?;
        Ok(TcpStream::new(Descriptor::Os(stream.into()), DriverHandle::current(), None))
    }

    /// Makes the stream std's, which can be sent to another thread or worker, and gives the bytes that were received
    /// and not taken: they come before what is read from it. It is in blocking mode.
    ///
    /// ```
    /// # use veloq::net::{TcpListener, TcpStream};
    /// # #[veloq::main]
    /// # async fn main() -> std::io::Result<()> {
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let stream = TcpStream::connect(listener.local_addr()?).await?;
    /// let (std_stream, unread) = stream.into_std().await?;
    /// let moved = std::thread::spawn(move || (std_stream, unread));
    /// # let _ = moved.join();
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// The stream comes back with the error: `ResourceBusy` if a half or a future of it is still there; `Unsupported`
    /// for a direct descriptor; an error that a dropped receive had got, which is reported once.
    pub async fn into_std(self) -> Result<(std::net::TcpStream, Vec<u8>), IntoStdError> {
        let refuse = |error, stream| Err(IntoStdError { error, stream });
        if let Err(error) = self.socket.fd().as_os() {
            return refuse(error, self);
        }
        let mut reader = Reader::new(self.socket.stash());
        if let Err(error) = reader.claim() {
            return refuse(error, self);
        }
        poll_fn(|cx| self.socket.poll_disarmed(cx)).await;
        for _ in 0..TURNS_MAX {
            if Rc::strong_count(self.socket.fd()) == 1 {
                break;
            }
            if let Err(error) = Op::new(Nop, self.socket.driver()).await {
                return refuse(error, self);
            }
        }
        if Rc::strong_count(&self.socket) > 1 || Rc::strong_count(self.socket.fd()) > 1 {
            return refuse(
                io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    "a half of the stream or a read or write of it is still there; drop it or await it first",
                ),
                self,
            );
        }
        let stash = Rc::clone(self.socket.stash());
        if let Some(error) = stash.take_error() {
            return refuse(error, self);
        }
        let mut unread = Vec::new();
        while let Some(Ok(bytes)) = stash.pop() {
            unread.extend_from_slice(&bytes);
        }
        drop(reader);
        let fd = self.socket.into_fd().expect("this is the only reference, as was just seen");
        match Rc::try_unwrap(fd).expect("this is the only reference, as was just seen") {
            Descriptor::Os(fd) => Ok((fd.into(), unread)),
            Descriptor::Direct(_) => unreachable!("direct descriptors were refused above"),
        }
    }

    pub(super) fn new(fd: Descriptor, driver: DriverHandle, peer: Option<SocketAddr>) -> TcpStream {
        TcpStream::of_shared(Rc::new(fd), driver, peer)
    }

    fn of_shared(fd: SharedDescriptor, driver: DriverHandle, peer: Option<SocketAddr>) -> TcpStream {
        TcpStream { socket: Socket::new(fd, driver), peer }
    }

    /// Receives the next piece of the stream, in a buffer that is taken only when data is there. An empty one is the end
    /// of the stream, and so is every one after it.
    ///
    /// The buffer is one of the few that the kernel fills (`DriverConfig::receive_buffers`): use it and let go of it,
    /// best by sending it on. Calls of `recv` and of `read` may be mixed; a `read` after a `recv` takes an extra step.
    ///
    /// Dropping the future loses no byte.
    ///
    /// # Errors
    ///
    /// [`ReaderBusy`](super::ReaderBusy) if another task reads; what the system said.
    pub fn recv(&self) -> Recv {
        Recv::new(&self.socket)
    }

    /// Reads what is there, at least one byte, into `buf` from its start, up to its capacity. 0 is the end of the
    /// stream, or a buffer without capacity.
    ///
    /// Dropping the future loses no byte, but the buffer.
    ///
    /// # Errors
    ///
    /// [`ReaderBusy`](super::ReaderBusy) if another task reads; what the system said.
    pub fn read<B: IoBufMut>(&self, buf: B) -> Read<B> {
        Read::new(&self.socket, buf)
    }

    /// Shows in `buf` what is there, at least one byte, up to its capacity, and leaves it to be read. 0 is the end of the stream, or
    /// a buffer without capacity.
    ///
    /// It shows what has arrived when it looks; to wait for so many bytes, [`read_exact`](Self::read_exact) them. Bytes that an earlier
    /// call had received without handing them out (a dropped `read`, a `recv`) are shown alone, until they are read.
    ///
    /// ```
    /// # use veloq::net::{TcpListener, TcpStream};
    /// # #[veloq::main]
    /// # async fn main() -> std::io::Result<()> {
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let client = TcpStream::connect(listener.local_addr()?).await?;
    /// # client.write_all("GET /").await.0?;
    /// let (stream, _) = listener.accept().await?;
    /// let (shown, first) = stream.peek(Vec::with_capacity(1)).await;
    /// assert_eq!((shown?, first), (1, b"G".to_vec()));
    /// let (read, request) = stream.read_exact(vec![0; 5]).await;
    /// read?;
    /// assert_eq!(request, b"GET /");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn peek<B: IoBufMut>(&self, buf: B) -> Read<B> {
        Read::peek(&self.socket, buf)
    }

    /// Reads until `buf` is full.
    ///
    /// Full is its capacity, and a `Vec` may have more of it than was asked for: say how much with
    /// [`slice`](IoBuf::slice), or take a [`FixedBuf`](crate::io::buf::FixedBuf) or a `Box<[u8]>`.
    ///
    /// Dropping the future puts back what it had read.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the stream ends before: the buffer holds what came. [`ReaderBusy`](super::ReaderBusy) if
    /// another task reads; what the system said.
    pub fn read_exact<B: IoBufMut>(&self, buf: B) -> ReadExact<B> {
        ReadExact::new(&self.socket, buf)
    }

    /// Reads what is there into several buffers, filling each before the next.
    ///
    /// Dropping the future loses no byte, but the buffers.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn read_vectored<V: IoBufMutVec>(&self, bufs: V) -> ReadVectored<V> {
        ReadVectored::new(&self.socket, bufs)
    }

    /// Sends some of `buf`, and says how much.
    ///
    /// # Errors
    ///
    /// What the system said, as `BrokenPipe` and `ConnectionReset` when the peer is gone. No signal is raised.
    pub fn write<B: IoBuf>(&self, buf: B) -> Write<B> {
        Write::new(&self.socket, buf)
    }

    /// Sends `buf` without copying it, and says how much: all of it, unless the connection failed on the way.
    ///
    /// The network takes the bytes from the buffer itself, so the buffer comes back only when they have left the machine, which
    /// over a real network is when the peer has acknowledged them. To keep a connection busy have several on their way, each
    /// sent by a task of its own or from a set of futures that is polled in order. It pays for large buffers (tens of KiB and
    /// more); for small ones, and over loopback, where the kernel copies in the end, [`write`](Self::write) is faster. A buffer of
    /// [`veloq::alloc`](crate::alloc) is registered already; the pages of any other are pinned for each call.
    ///
    /// Dropping the future leaves the buffer with the kernel until it has let go of it: that is until the peer has read, or is given
    /// up. The connection is not kept so long.
    ///
    /// ```
    /// # use veloq::net::{TcpListener, TcpStream};
    /// # #[veloq::main]
    /// # async fn main() -> std::io::Result<()> {
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let stream = TcpStream::connect(listener.local_addr()?).await?;
    /// let mut page = veloq::alloc(64 * 1024);
    /// page.resize(64 * 1024, b'x');
    /// let (sent, page) = stream.write_zero_copy(page).await;
    /// assert_eq!((sent?, page.len()), (64 * 1024, 64 * 1024));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write); a part may have been sent. `Unsupported` where the kind of socket has no such call.
    pub fn write_zero_copy<B: IoBuf>(&self, buf: B) -> Write<B> {
        Write::zero_copy(&self.socket, buf)
    }

    /// Sends all of `buf`.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write); a part may have been sent.
    pub fn write_all<B: IoBuf>(&self, buf: B) -> WriteAll<B> {
        WriteAll::new(&self.socket, buf)
    }

    /// Sends some of several buffers, in order, at most 1024 of them, and says how many bytes.
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write).
    pub fn write_vectored<V: IoBufVec>(&self, bufs: V) -> WriteVectored<V> {
        WriteVectored::new(&self.socket, bufs)
    }

    /// Sends all of several buffers, in order: a list, an array, or a tuple of buffers of different types.
    ///
    /// ```
    /// # use veloq::net::{TcpListener, TcpStream};
    /// # #[veloq::main]
    /// # async fn main() -> std::io::Result<()> {
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let client = TcpStream::connect(listener.local_addr()?).await?;
    /// # let (stream, _) = listener.accept().await?;
    /// let body = vec![b'x'; 10_000];
    /// let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    /// let (written, (_head, body)) = stream.write_all_vectored((head, body)).await;
    /// written?;
    /// # assert_eq!(body.len(), 10_000);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`write`](Self::write); a part may have been sent.
    pub fn write_all_vectored<V: IoBufVec>(&self, bufs: V) -> WriteAllVectored<V> {
        WriteAllVectored::new(&self.socket, bufs)
    }

    /// The descriptor of the process, for calls that Veloq does not have. It stays the stream's.
    ///
    /// # Errors
    ///
    /// `Unsupported` for a direct descriptor, which no call outside the ring can name.
    #[cfg(unix)]
    pub fn as_fd(&self) -> io::Result<std::os::fd::BorrowedFd<'_>> {
        self.socket.fd().as_os()
    }

    /// Ends one or both directions. After `Write` the peer reads the end of the stream, once it has read the rest.
    ///
    /// # Errors
    ///
    /// What the system said; `NotConnected` if the peer was faster.
    pub async fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let shutdown = net::Shutdown { fd: Rc::clone(self.socket.fd()), how };
        Op::new(shutdown, self.socket.driver()).await
    }

    /// A half to read from and one to write to, as long as the stream is borrowed.
    pub fn split(&self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        (ReadHalf::new(self), WriteHalf::new(self))
    }

    /// Takes the stream apart into a half to read from and one to write to, which two tasks of this worker may own.
    /// Dropping the writing half ends that direction, as [`shutdown`](Self::shutdown) does, when its futures are gone as well.
    pub fn into_split(self) -> (OwnedReadHalf, OwnedWriteHalf) {
        OwnedReadHalf::pair(self)
    }

    /// Who is at the other end.
    ///
    /// # Errors
    ///
    /// What the system says: `NotConnected` once the connection was reset. Who connected to a listener is remembered, and
    /// known for good.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        match self.peer {
            Some(peer) => Ok(peer),
            None => internet(&self.options()?.peer_addr()?),
        }
    }

    /// The address of this end.
    ///
    /// # Errors
    ///
    /// What the system says; `Unsupported` for a direct descriptor.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        internet(&self.options()?.local_addr()?)
    }

    /// Whether small writes are sent at once (`TCP_NODELAY`).
    ///
    /// # Errors
    ///
    /// What the system says; `Unsupported` for a direct descriptor, as with all options.
    pub fn nodelay(&self) -> io::Result<bool> {
        self.options()?.tcp_nodelay()
    }

    /// Says whether small writes are to be sent at once, instead of waiting for more. Off unless set, as in std.
    ///
    /// # Errors
    ///
    /// As [`nodelay`](Self::nodelay).
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.options()?.set_tcp_nodelay(nodelay)
    }

    /// How long closing waits for unsent data (`SO_LINGER`), if it does.
    ///
    /// # Errors
    ///
    /// As [`nodelay`](Self::nodelay).
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        self.options()?.linger()
    }

    /// Sets how long closing waits for unsent data. `Some(Duration::ZERO)` makes closing reset the connection; a longer
    /// time makes the close, and with it the worker, block that long.
    ///
    /// # Errors
    ///
    /// As [`nodelay`](Self::nodelay).
    pub fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        self.options()?.set_linger(linger)
    }

    /// The time to live of packets sent, IPv4.
    ///
    /// # Errors
    ///
    /// As [`nodelay`](Self::nodelay).
    pub fn ttl(&self) -> io::Result<u32> {
        self.options()?.ttl_v4()
    }

    /// Sets the time to live of packets sent, IPv4.
    ///
    /// # Errors
    ///
    /// As [`nodelay`](Self::nodelay).
    pub fn set_ttl(&self, hops: u32) -> io::Result<()> {
        self.options()?.set_ttl_v4(hops)
    }

    /// Whether the system probes an idle connection (`SO_KEEPALIVE`).
    ///
    /// # Errors
    ///
    /// As [`nodelay`](Self::nodelay).
    pub fn keepalive(&self) -> io::Result<bool> {
        self.options()?.keepalive()
    }

    /// Says whether the system is to probe an idle connection.
    ///
    /// # Errors
    ///
    /// As [`nodelay`](Self::nodelay).
    pub fn set_keepalive(&self, keepalive: bool) -> io::Result<()> {
        self.options()?.set_keepalive(keepalive)
    }

    /// Says when the system is to probe an idle connection, and when to give it up; what `keepalive` leaves open stays as it is. It
    /// switches probing on.
    ///
    /// ```
    /// use std::time::Duration;
    /// use veloq::net::TcpKeepalive;
    /// # use veloq::net::{TcpListener, TcpStream};
    ///
    /// # #[veloq::main]
    /// # async fn main() -> std::io::Result<()> {
    /// # let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// # let stream = TcpStream::connect(listener.local_addr()?).await?;
    /// // A peer that is gone is noticed after a minute and a half.
    /// let probing = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));
    /// stream.set_tcp_keepalive(&probing.with_retries(3))?;
    /// assert!(stream.keepalive()?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`nodelay`](Self::nodelay); `InvalidInput` for a time or a number that the system does not take.
    pub fn set_tcp_keepalive(&self, keepalive: &TcpKeepalive) -> io::Result<()> {
        self.options()?.set_tcp_keepalive(&keepalive.0)
    }

    /// How long sent data may go without an acknowledgement before the system gives the connection up (`TCP_USER_TIMEOUT`), if it
    /// was set.
    ///
    /// # Errors
    ///
    /// As [`nodelay`](Self::nodelay); `Unsupported` on Windows.
    pub fn tcp_user_timeout(&self) -> io::Result<Option<Duration>> {
        os::user_timeout(&self.options()?)
    }

    /// Sets how long sent data may go without an acknowledgement, in milliseconds; `None` leaves it to the system.
    ///
    /// # Errors
    ///
    /// As [`tcp_user_timeout`](Self::tcp_user_timeout).
    pub fn set_tcp_user_timeout(&self, limit: Option<Duration>) -> io::Result<()> {
        os::set_user_timeout(&self.options()?, limit)
    }

    /// Bytes of the system's receive buffer (`SO_RCVBUF`); Linux counts its own books in, so it is twice what was set.
    ///
    /// # Errors
    ///
    /// As [`nodelay`](Self::nodelay).
    pub fn recv_buffer_size(&self) -> io::Result<usize> {
        self.options()?.recv_buffer_size()
    }

    /// Sets the bytes of the system's receive buffer, and with it ends its adjusting itself.
    ///
    /// # Errors
    ///
    /// As [`nodelay`](Self::nodelay).
    pub fn set_recv_buffer_size(&self, bytes: usize) -> io::Result<()> {
        self.options()?.set_recv_buffer_size(bytes)
    }

    /// Bytes of the system's send buffer (`SO_SNDBUF`); Linux counts its own books in, so it is twice what was set.
    ///
    /// # Errors
    ///
    /// As [`nodelay`](Self::nodelay).
    pub fn send_buffer_size(&self) -> io::Result<usize> {
        self.options()?.send_buffer_size()
    }

    /// Sets the bytes of the system's send buffer, and with it ends its adjusting itself.
    ///
    /// # Errors
    ///
    /// As [`nodelay`](Self::nodelay).
    pub fn set_send_buffer_size(&self, bytes: usize) -> io::Result<()> {
        self.options()?.set_send_buffer_size(bytes)
    }

    /// Takes the error that waits at the socket, if any.
    ///
    /// # Errors
    ///
    /// As [`nodelay`](Self::nodelay).
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.options()?.take_error()
    }

    fn options(&self) -> io::Result<socket2::SockRef<'_>> {
        options(self.socket.fd())
    }

    #[cfg(test)]
    pub(super) fn socket_waits(&self) -> usize {
        self.socket.waits()
    }

    #[cfg(windows)]
    pub(super) fn fd(&self) -> &SharedDescriptor {
        self.socket.fd()
    }

    /// The end of its writing direction, for a half.
    pub(super) fn writing_end(&self) -> Rc<WritingEnd> {
        WritingEnd::of(&self.socket)
    }
}

async fn connect_one(addr: SocketAddr, driver: &DriverHandle) -> io::Result<TcpStream> {
    let socket = net::Socket {
        domain: Domain::for_address(addr).into(),
        kind: Type::STREAM.into(),
        protocol: Protocol::TCP.into(),
        direct: false,
    };
    let fd = Rc::new(Op::new(socket, driver).await?);
    Op::new(net::Connect { fd: Rc::clone(&fd), to: addr.into() }, driver).await?;
    // Who answered is asked for when somebody wants to know: a wildcard address is answered by another.
    Ok(TcpStream::of_shared(fd, driver.clone(), None))
}
