//! UDP.
//!
//! A datagram that a dropped receive had got waits with the socket, as bytes of a stream do, and the next receive returns
//! it. It waits in a buffer of the length it was received with, so what the dropped receive's buffer could not hold is
//! lost, as it would have been. Datagrams that arrive while nobody receives wait in the kernel, which drops them when its
//! buffer is full.

use std::future::Future;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use socket2::{Domain, Protocol, Type};

use super::addr::resolve;
use super::{ToSocketAddrs, Write, internet, options};
use crate::io::buf::{BufResult, IoBuf, IoBufMut};
use crate::io::driver::{Descriptor, DriverHandle, InFlight, Op, SharedDescriptor};
use crate::io::op::misc::Nop;
use crate::io::op::net;
use crate::io::stash::{Datagram, Reader, Stash};
use crate::os::{self, message};

/// A UDP socket.
///
/// One task receives at a time; any number may send.
///
/// ```
/// use veloq::net::UdpSocket;
///
/// # #[veloq::main]
/// # async fn main() -> std::io::Result<()> {
/// let (one, two) = (UdpSocket::bind("127.0.0.1:0").await?, UdpSocket::bind("127.0.0.1:0").await?);
/// let (sent, _) = one.send_to("hello", two.local_addr()?).await;
/// assert_eq!(sent?, 5);
/// let (received, buf) = two.recv_from(Vec::with_capacity(1500)).await;
/// let (length, from) = received?;
/// assert_eq!((length, from), (5, one.local_addr()?));
/// assert_eq!(buf, b"hello");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct UdpSocket {
    endpoint: Rc<Endpoint>,
}

/// Options of a [`UdpSocket`] that is not there yet: made by [`UdpSocket::builder`].
#[derive(Clone, Debug, Default)]
#[must_use = "it is a socket once `bind` was awaited"]
pub struct UdpSocketBuilder {
    reuse_addr: bool,
    reuse_port: bool,
    only_v6: Option<bool>,
}

impl UdpSocketBuilder {
    /// Whether the address may be bound though another socket that says the same has it (`SO_REUSEADDR`): all of them then receive what
    /// comes for a multicast group, and one of them what comes for the machine. On Windows the other need not say it. Off.
    pub fn reuse_addr(mut self, reuse: bool) -> UdpSocketBuilder {
        self.reuse_addr = reuse;
        self
    }

    /// Whether several sockets of this user may be bound to one address, among which the kernel spreads what arrives, each sender's to
    /// one (`SO_REUSEPORT`): a socket for each worker. Off; Windows has no such thing.
    pub fn reuse_port(mut self, reuse: bool) -> UdpSocketBuilder {
        self.reuse_port = reuse;
        self
    }

    /// Whether a socket at an IPv6 address takes IPv6 datagrams alone (`IPV6_V6ONLY`). Then `0.0.0.0` and `[::]` can be bound at one
    /// port, each by its own socket. As the system has it, unless set.
    pub fn only_v6(mut self, only: bool) -> UdpSocketBuilder {
        self.only_v6 = Some(only);
        self
    }

    /// A socket bound to `addr`.
    ///
    /// # Errors
    ///
    /// As [`UdpSocket::bind`]; `Unsupported` for what this system has not.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    pub async fn bind(self, addr: impl ToSocketAddrs) -> io::Result<UdpSocket> {
        resolve(&addr).await?.try_each(|addr| self.bind_one(addr))
    }

    fn bind_one(&self, addr: SocketAddr) -> io::Result<UdpSocket> {
        let socket = socket2::Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if self.reuse_addr {
            socket.set_reuse_address(true)?;
        }
        if self.reuse_port {
            os::reuse_port(&socket)?;
        }
        if let (Some(only), true) = (self.only_v6, addr.is_ipv6()) {
            socket.set_only_v6(only)?;
        }
        socket.bind(&addr.into())?;
        Ok(UdpSocket::new(Descriptor::Os(socket.into())))
    }
}

/// What socket and futures share.
#[derive(Debug)]
struct Endpoint {
    fd: SharedDescriptor,
    driver: DriverHandle,
    stash: Rc<Stash<Datagram>>,
}

/// Turns that [`UdpSocket::into_std`] waits for operations whose futures were dropped; their cancellations are answered
/// within one or two.
const TURNS_MAX: u32 = 64;

impl UdpSocket {
    /// A socket bound to `addr`. Port 0 stands for any free one.
    ///
    /// # Errors
    ///
    /// What the system says to socket and bind (of the last address that was tried), and what resolving a name can
    /// yield.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    pub async fn bind(addr: impl ToSocketAddrs) -> io::Result<UdpSocket> {
        UdpSocket::builder().bind(addr).await
    }

    /// Options to set before binding.
    ///
    /// ```
    /// # #[cfg(unix)]
    /// # #[veloq::main]
    /// # async fn main() -> std::io::Result<()> {
    /// use veloq::net::UdpSocket;
    ///
    /// // Each worker receives its own share of the senders.
    /// let first = UdpSocket::builder().reuse_port(true).bind("127.0.0.1:0").await?;
    /// let second = UdpSocket::builder().reuse_port(true).bind(first.local_addr()?).await?;
    /// assert_eq!(first.local_addr()?, second.local_addr()?);
    /// # Ok(())
    /// # }
    /// # #[cfg(windows)]
    /// # fn main() {}
    /// ```
    pub fn builder() -> UdpSocketBuilder {
        UdpSocketBuilder::default()
    }

    /// Makes a socket of std's Veloq's, on this worker. It is switched to blocking mode, which is what the kernel's ring
    /// wants; that holds for all copies of the descriptor.
    ///
    /// # Errors
    ///
    /// If the system does not switch the mode.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    pub fn from_std(socket: std::net::UdpSocket) -> io::Result<UdpSocket> {
        socket.set_nonblocking(false)?;
        Ok(UdpSocket::new(Descriptor::Os(socket.into())))
    }

    /// Makes the socket std's, which can be sent to another thread or worker. Datagrams that a dropped receive had got
    /// come with it, in order. An error that one had got is not told.
    ///
    /// # Errors
    ///
    /// `ResourceBusy` if a receive or a send is still there. The socket is closed then.
    pub async fn into_std(self) -> io::Result<(std::net::UdpSocket, Vec<(Vec<u8>, SocketAddr)>)> {
        let Endpoint { fd, driver, .. } = &*self.endpoint;
        for _ in 0..TURNS_MAX {
            if Rc::strong_count(fd) == 1 {
                break;
            }
            Op::new(Nop, driver).await?;
        }
        let busy = || {
            io::Error::new(
                io::ErrorKind::ResourceBusy,
                "a receive or send of the socket is still there; drop it or await it first",
            )
        };
        let Endpoint { fd, stash, .. } = Rc::try_unwrap(self.endpoint).map_err(|_| busy())?;
        let mut unread = Vec::new();
        while let Some(message) = stash.pop() {
            // An error that a dropped receive had got is about something sent, not about what was received.
            let Ok(message) = message else { continue };
            unread.push((message.bytes.to_vec(), sender(message.from)?));
        }
        match Rc::try_unwrap(fd).map_err(|_| busy())? {
            Descriptor::Os(fd) => Ok((fd.into(), unread)),
            Descriptor::Direct(_) => unreachable!("there are no direct datagram sockets"),
        }
    }

    fn new(fd: Descriptor) -> UdpSocket {
        let endpoint = Endpoint { fd: Rc::new(fd), driver: DriverHandle::current(), stash: Rc::default() };
        UdpSocket { endpoint: Rc::new(endpoint) }
    }

    /// Names the peer that [`send`](Self::send) sends to, and from which alone datagrams are received.
    ///
    /// # Errors
    ///
    /// What the system says of the last address that was tried, and what resolving a name can yield.
    pub async fn connect(&self, addr: impl ToSocketAddrs) -> io::Result<()> {
        // Connecting a datagram socket only notes the address; nothing is waited for.
        resolve(&addr).await?.try_each(|addr| self.options()?.connect(&addr.into()))
    }

    /// Receives a datagram into `buf`, from its start up to its capacity; the rest of a longer one is lost. Yields its
    /// length and who sent it.
    ///
    /// Dropping the future loses no datagram, but the buffer.
    ///
    /// # Errors
    ///
    /// [`ReaderBusy`](super::ReaderBusy) if another task receives; what the system said, as `ConnectionRefused` when a
    /// peer that the socket is connected to has said so.
    pub fn recv_from<B: IoBufMut>(&self, buf: B) -> RecvFrom<B> {
        let endpoint = Rc::clone(&self.endpoint);
        let reader = Reader::new(&endpoint.stash);
        RecvFrom { endpoint, reader, peeks: false, step: Step::Start(buf) }
    }

    /// Shows in `buf` the datagram that comes next, as [`recv_from`](Self::recv_from) would, and leaves it to be received.
    ///
    /// ```
    /// # use veloq::net::UdpSocket;
    /// # #[veloq::main]
    /// # async fn main() -> std::io::Result<()> {
    /// # let (one, two) = (UdpSocket::bind("127.0.0.1:0").await?, UdpSocket::bind("127.0.0.1:0").await?);
    /// # one.send_to("hello", two.local_addr()?).await.0?;
    /// let (shown, buf) = two.peek_from(Vec::with_capacity(1500)).await;
    /// let (received, again) = two.recv_from(Vec::with_capacity(1500)).await;
    /// assert_eq!((shown?, buf), (received?, again));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`recv_from`](Self::recv_from).
    pub fn peek_from<B: IoBufMut>(&self, buf: B) -> RecvFrom<B> {
        RecvFrom { peeks: true, ..self.recv_from(buf) }
    }

    /// Shows the datagram that comes next, as [`peek_from`](Self::peek_from), without saying who sent it.
    ///
    /// # Errors
    ///
    /// As [`recv_from`](Self::recv_from).
    pub async fn peek<B: IoBufMut>(&self, buf: B) -> BufResult<usize, B> {
        let (shown, buf) = self.peek_from(buf).await;
        (shown.map(|(length, _)| length), buf)
    }

    /// Receives a datagram, as [`recv_from`](Self::recv_from), without saying who sent it.
    ///
    /// # Errors
    ///
    /// As [`recv_from`](Self::recv_from).
    pub async fn recv<B: IoBufMut>(&self, buf: B) -> BufResult<usize, B> {
        let (received, buf) = self.recv_from(buf).await;
        (received.map(|(length, _)| length), buf)
    }

    /// Sends `buf` as one datagram to `addr`, the first that this stands for.
    ///
    /// # Errors
    ///
    /// What the system said, and what resolving a name can yield.
    pub async fn send_to<B: IoBuf>(&self, buf: B, addr: impl ToSocketAddrs) -> BufResult<usize, B> {
        let to = match resolve(&addr).await {
            Ok(resolved) => resolved.as_slice()[0],
            Err(error) => return (Err(error), buf),
        };
        let send = net::SendTo { fd: Rc::clone(&self.endpoint.fd), buf, to: to.into() };
        Op::new(send, &self.endpoint.driver).await
    }

    /// Sends `buf` as one datagram to the peer that [`connect`](Self::connect) named.
    ///
    /// # Errors
    ///
    /// What the system said: `ENOTCONN` or `EDESTADDRREQ` if there is no peer.
    pub fn send<B: IoBuf>(&self, buf: B) -> Write<B> {
        Write::to(&self.endpoint.fd, &self.endpoint.driver, buf)
    }

    /// The address that the socket is bound to.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        internet(&self.options()?.local_addr()?)
    }

    /// The peer that the socket is connected to.
    ///
    /// # Errors
    ///
    /// `NotConnected` if there is none.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        internet(&self.options()?.peer_addr()?)
    }

    /// Whether datagrams may be sent to broadcast addresses.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn broadcast(&self) -> io::Result<bool> {
        self.options()?.broadcast()
    }

    /// Says whether datagrams may be sent to broadcast addresses.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn set_broadcast(&self, broadcast: bool) -> io::Result<()> {
        self.options()?.set_broadcast(broadcast)
    }

    /// The time to live of packets sent, IPv4.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn ttl(&self) -> io::Result<u32> {
        self.options()?.ttl_v4()
    }

    /// Sets the time to live of packets sent, IPv4.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn set_ttl(&self, hops: u32) -> io::Result<()> {
        self.options()?.set_ttl_v4(hops)
    }

    /// Joins a multicast group, IPv4.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn join_multicast_v4(&self, group: &Ipv4Addr, interface: &Ipv4Addr) -> io::Result<()> {
        self.options()?.join_multicast_v4(group, interface)
    }

    /// Joins a multicast group, IPv6.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn join_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.options()?.join_multicast_v6(group, interface)
    }

    /// Leaves a multicast group, IPv4.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn leave_multicast_v4(&self, group: &Ipv4Addr, interface: &Ipv4Addr) -> io::Result<()> {
        self.options()?.leave_multicast_v4(group, interface)
    }

    /// Leaves a multicast group, IPv6.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn leave_multicast_v6(&self, group: &Ipv6Addr, interface: u32) -> io::Result<()> {
        self.options()?.leave_multicast_v6(group, interface)
    }

    /// Whether what is sent to a multicast group comes back to this machine's members, IPv4.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn multicast_loop_v4(&self) -> io::Result<bool> {
        self.options()?.multicast_loop_v4()
    }

    /// Says whether what is sent to a multicast group is to come back to this machine's members, IPv4.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn set_multicast_loop_v4(&self, looped: bool) -> io::Result<()> {
        self.options()?.set_multicast_loop_v4(looped)
    }

    /// Whether what is sent to a multicast group comes back to this machine's members, IPv6.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn multicast_loop_v6(&self) -> io::Result<bool> {
        self.options()?.multicast_loop_v6()
    }

    /// Says whether what is sent to a multicast group is to come back to this machine's members, IPv6.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn set_multicast_loop_v6(&self, looped: bool) -> io::Result<()> {
        self.options()?.set_multicast_loop_v6(looped)
    }

    /// The time to live of multicast packets sent, IPv4.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn multicast_ttl_v4(&self) -> io::Result<u32> {
        self.options()?.multicast_ttl_v4()
    }

    /// Sets the time to live of multicast packets sent, IPv4.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn set_multicast_ttl_v4(&self, hops: u32) -> io::Result<()> {
        self.options()?.set_multicast_ttl_v4(hops)
    }

    /// Bytes of the system's receive buffer; Linux counts its own books in, so it is twice what was set.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn recv_buffer_size(&self) -> io::Result<usize> {
        self.options()?.recv_buffer_size()
    }

    /// Sets the bytes of the system's receive buffer.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn set_recv_buffer_size(&self, bytes: usize) -> io::Result<()> {
        self.options()?.set_recv_buffer_size(bytes)
    }

    /// Bytes of the system's send buffer; Linux counts its own books in, so it is twice what was set.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn send_buffer_size(&self) -> io::Result<usize> {
        self.options()?.send_buffer_size()
    }

    /// Sets the bytes of the system's send buffer.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn set_send_buffer_size(&self, bytes: usize) -> io::Result<()> {
        self.options()?.set_send_buffer_size(bytes)
    }

    /// The descriptor of the process, for calls that Veloq does not have. It stays the socket's.
    ///
    /// # Errors
    ///
    /// None as yet; sockets with a direct descriptor have no such thing.
    #[cfg(unix)]
    pub fn as_fd(&self) -> io::Result<std::os::fd::BorrowedFd<'_>> {
        self.endpoint.fd.as_os()
    }

    #[cfg(windows)]
    pub(super) fn fd(&self) -> &SharedDescriptor {
        &self.endpoint.fd
    }

    /// Takes the error that waits at the socket, if any.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.options()?.take_error()
    }

    fn options(&self) -> io::Result<socket2::SockRef<'_>> {
        options(&self.endpoint.fd)
    }
}

/// The future of [`UdpSocket::recv_from`] and [`UdpSocket::peek_from`].
#[must_use = "nothing is received until it is awaited"]
#[derive(Debug)]
pub struct RecvFrom<B: IoBufMut> {
    endpoint: Rc<Endpoint>,
    reader: Reader<Datagram>,
    /// Whether what is received stays where it is.
    peeks: bool,
    step: Step<B>,
}

/// How far a receive has come: the buffer is here, or with its operation.
#[derive(Debug)]
enum Step<B: IoBufMut> {
    Start(B),
    InFlight(InFlight<net::RecvFrom<B>>),
    Finished,
}

// What the kernel sees is in a slot of the driver; nothing in the future itself is pinned.
impl<B: IoBufMut> Unpin for RecvFrom<B> {}

impl<B: IoBufMut> Future for RecvFrom<B> {
    type Output = BufResult<(usize, SocketAddr), B>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let (received, buf) = ready!(this.poll_step(cx));
        this.reader.release();
        Poll::Ready((received.and_then(|(length, from)| Ok((length, sender(from)?))), buf))
    }
}

impl<B: IoBufMut> RecvFrom<B> {
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<BufResult<(usize, Option<SocketAddr>), B>> {
        if let Step::InFlight(receive) = &mut self.step {
            let answer = ready!(receive.poll(cx));
            self.step = Step::Finished;
            return Poll::Ready(answer);
        }
        let Step::Start(mut buf) = mem::replace(&mut self.step, Step::Finished) else {
            panic!("a receive was polled after it was ready")
        };
        if let Err(error) = self.reader.claim() {
            return Poll::Ready((Err(error), buf));
        }
        let stash = &self.endpoint.stash;
        let waiting = if self.peeks { stash.show_into(&mut buf) } else { stash.take_into(&mut buf) };
        if let Some(received) = waiting {
            return Poll::Ready((received, buf));
        }
        if self.endpoint.stash.poll_quiet(cx).is_pending() {
            self.step = Step::Start(buf);
            return Poll::Pending;
        }
        let Endpoint { fd, driver, stash } = &*self.endpoint;
        stash.receive_begins();
        let flags = if self.peeks { message::PEEK } else { 0 };
        let (fd, stash) = (Rc::clone(fd), Some(Rc::clone(stash)));
        let receive = net::RecvFrom { fd, buf, flags, from: None, stash };
        match InFlight::submit(receive, driver, cx) {
            Ok(receive) => {
                self.step = Step::InFlight(receive);
                Poll::Pending
            }
            Err(answer) => Poll::Ready(answer),
        }
    }
}

/// The sender of a datagram on an internet socket.
fn sender(from: Option<SocketAddr>) -> io::Result<SocketAddr> {
    from.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "the datagram's sender has no address that is IPv4 or IPv6",
        )
    })
}
