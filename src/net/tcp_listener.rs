//! Listening for TCP connections.
//!
//! A listener keeps one multishot accept with the kernel, from the first call of [`accept`](TcpListener::accept) on. It
//! belongs to the listener, not to the future: connections that arrive while nobody waits stay with it, in order, and the
//! next call takes the first. 64 may wait so (`STASHED_MAX`); then the multishot is cancelled, further connections wait in
//! the kernel's backlog, and it is armed again when those that waited are taken.
//!
//! When the kernel refuses (`EMFILE`, say), the multishot ends, the caller gets the error once, and the next call arms
//! it again. A program that answers errors by calling `accept` at once should wait a little between.
//!
//! A multishot accept does not say who connected, so the peer is asked for when the connection is taken, also of one that
//! was reset before that: what it had sent is there to be read. A listener of *direct* descriptors cannot ask at all: it
//! accepts one connection at a time, with its address.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use socket2::{Domain, Protocol, Type};

use super::addr::resolve;
use super::{TcpStream, ToSocketAddrs, internet, options};
use crate::io::driver::{Descriptor, DriverHandle, Multishot, Op, SharedDescriptor};
use crate::io::op::net;
use crate::io::stash::is_cancelled;
use crate::os;

/// Connections that may wait in the kernel, unless told otherwise. The system's `somaxconn` bounds it further.
const BACKLOG: i32 = 1024;

/// A TCP socket that waits for connections.
///
/// ```
/// use veloq::net::TcpListener;
///
/// # #[veloq::main]
/// # async fn main() -> std::io::Result<()> {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let address = listener.local_addr()?;
/// let client = veloq::spawn_local(veloq::net::TcpStream::connect(address));
/// let (_stream, peer) = listener.accept().await?;
/// assert_eq!(peer.ip(), address.ip());
/// # client.await.expect("it does not panic")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TcpListener {
    acceptor: Rc<Acceptor>,
}

/// What listener and futures share.
#[derive(Debug)]
struct Acceptor {
    fd: SharedDescriptor,
    driver: DriverHandle,
    direct: bool,
    /// The accept that is with the kernel, while nobody waits for it: whoever waits has it.
    armed: RefCell<Option<Armed>>,
    /// Whether a future waits for a connection.
    has_caller: Cell<bool>,
}

/// The accept that is with the kernel.
#[derive(Debug)]
enum Armed {
    Many(Multishot<net::AcceptMany>),
    One(Op<net::Accept>),
}

/// Another task is accepting from the listener just now: the source of the [`io::Error`] of kind `ResourceBusy` that a
/// second one gets. Have one task accept and spawn, or give each a listener of its own
/// ([`reuse_port`](TcpListenerBuilder::reuse_port)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptorBusy;

impl fmt::Display for AcceptorBusy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another task is accepting from this listener; one at a time")
    }
}

impl Error for AcceptorBusy {}

impl TcpListener {
    /// Listens at `addr`, with the options of [`builder`](Self::builder) as they are. Port 0 stands for any free one.
    ///
    /// If `addr` stands for several addresses, the first that can be bound is.
    ///
    /// # Errors
    ///
    /// What the system says to socket, bind and listen (of the last address that was tried), and what resolving a name
    /// can yield.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    pub async fn bind(addr: impl ToSocketAddrs) -> io::Result<TcpListener> {
        TcpListener::builder().bind(addr).await
    }

    /// Options to set before binding.
    ///
    /// ```
    /// # #[veloq::main]
    /// # async fn main() -> std::io::Result<()> {
    /// use veloq::net::TcpListener;
    ///
    /// // Each worker accepts its own share of the connections.
    /// let first = TcpListener::builder().reuse_port(true).bind("127.0.0.1:0").await?;
    /// let second = TcpListener::builder().reuse_port(true).bind(first.local_addr()?).await?;
    /// assert_eq!(first.local_addr()?, second.local_addr()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder() -> TcpListenerBuilder {
        TcpListenerBuilder {
            reuse_addr: true,
            reuse_port: false,
            only_v6: None,
            backlog: BACKLOG,
            direct: false,
        }
    }

    /// Makes a listener of std's Veloq's, on this worker. It is switched to blocking mode, which is what the kernel's
    /// ring wants; that holds for all copies of the descriptor.
    ///
    /// # Errors
    ///
    /// If the system does not switch the mode.
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<TcpListener> {
        listener.set_nonblocking(false)?;
        Ok(TcpListener::new(Descriptor::Os(listener.into()), false))
    }

    /// Makes the listener std's, which can be sent to another thread or worker. Connections that were accepted and not taken come with
    /// it, in order, each with its peer. It is in blocking mode.
    ///
    /// Dropping the future closes the listener and those connections.
    ///
    /// ```
    /// # use veloq::net::TcpListener;
    /// # #[veloq::main]
    /// # async fn main() -> std::io::Result<()> {
    /// let listener = TcpListener::bind("127.0.0.1:0").await?;
    /// let address = listener.local_addr()?;
    /// let (std_listener, waiting) = listener.into_std().await?;
    /// assert_eq!((std_listener.local_addr()?, waiting.len()), (address, 0));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// `ResourceBusy` if an [`accept`](Self::accept) or [`incoming`](Self::incoming) is still there; `Unsupported` if it accepts direct
    /// descriptors, which are its ring's; an error that the system gave for an accept while nobody waited. The listener is closed then.
    pub async fn into_std(
        self,
    ) -> io::Result<(std::net::TcpListener, Vec<(std::net::TcpStream, SocketAddr)>)> {
        let busy = || {
            io::Error::new(
                io::ErrorKind::ResourceBusy,
                "an accept of the listener is still there; drop it or await it first",
            )
        };
        if self.acceptor.direct {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a listener of direct descriptors stays with its ring, as its connections do",
            ));
        }
        let mut acceptor = Rc::try_unwrap(self.acceptor).map_err(|_| busy())?;
        let mut waiting = Vec::new();
        while let Some(descriptor) = poll_fn(|cx| acceptor.poll_last(cx)).await? {
            let peer = match os::peer_name(descriptor.as_os()?) {
                // It was reset, and this system has forgotten it, as in `accept`.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => continue,
                peer => internet(&peer?)?,
            };
            let Descriptor::Os(fd) = descriptor else { unreachable!("direct ones were refused above") };
            waiting.push((fd.into(), peer));
        }
        match Rc::try_unwrap(acceptor.fd).map_err(|_| busy())? {
            Descriptor::Os(fd) => Ok((fd.into(), waiting)),
            Descriptor::Direct(_) => unreachable!("there are no direct listeners"),
        }
    }

    fn new(fd: Descriptor, direct: bool) -> TcpListener {
        let acceptor = Acceptor {
            fd: Rc::new(fd),
            driver: DriverHandle::current(),
            direct,
            armed: RefCell::default(),
            has_caller: Cell::new(false),
        };
        TcpListener { acceptor: Rc::new(acceptor) }
    }

    /// Accepts a connection: yields it and its peer's address.
    ///
    /// Dropping the future loses no connection. One task accepts at a time.
    ///
    /// # Errors
    ///
    /// [`AcceptorBusy`] if another task is accepting. What the system said, once: as `EMFILE` and `ENFILE`, when the
    /// process or the system has no descriptor left; connections then wait in the backlog.
    pub fn accept(&self) -> Accept {
        Accept { acceptor: Rc::clone(&self.acceptor), holds: false, armed: None }
    }

    /// The connections, one after the other, as a stream that never ends.
    pub fn incoming(&self) -> Incoming {
        Incoming { accept: self.accept() }
    }

    /// The address that the listener is bound to.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        internet(&self.options()?.local_addr()?)
    }

    /// The descriptor of the process, for calls that Veloq does not have. It stays the listener's.
    ///
    /// # Errors
    ///
    /// None as yet; listeners with a direct descriptor have no such thing.
    #[cfg(unix)]
    pub fn as_fd(&self) -> io::Result<std::os::fd::BorrowedFd<'_>> {
        self.acceptor.fd.as_os()
    }

    #[cfg(windows)]
    pub(super) fn fd(&self) -> &SharedDescriptor {
        &self.acceptor.fd
    }

    /// Takes the error that waits at the socket, if any.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        self.options()?.take_error()
    }

    /// The time to live of packets sent, IPv4.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn ttl(&self) -> io::Result<u32> {
        self.options()?.ttl_v4()
    }

    /// Sets the time to live of packets sent, IPv4. Accepted connections inherit it.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn set_ttl(&self, hops: u32) -> io::Result<()> {
        self.options()?.set_ttl_v4(hops)
    }

    fn options(&self) -> io::Result<socket2::SockRef<'_>> {
        options(&self.acceptor.fd)
    }

    #[cfg(test)]
    pub(super) fn stashed(&self) -> usize {
        match &*self.acceptor.armed.borrow() {
            Some(Armed::Many(many)) => many.waiting(),
            _ => 0,
        }
    }
}

/// Options of a [`TcpListener`] that is not there yet.
#[derive(Clone, Debug)]
#[must_use = "it listens once `bind` was awaited"]
pub struct TcpListenerBuilder {
    reuse_addr: bool,
    reuse_port: bool,
    only_v6: Option<bool>,
    backlog: i32,
    direct: bool,
}

impl TcpListenerBuilder {
    /// Whether the address may be bound though connections of an earlier listener linger (`SO_REUSEADDR`). On, as in std.
    pub fn reuse_addr(mut self, reuse: bool) -> TcpListenerBuilder {
        self.reuse_addr = reuse;
        self
    }

    /// Whether several listeners may be bound to one address, among which the kernel spreads connections
    /// (`SO_REUSEPORT`). Off.
    pub fn reuse_port(mut self, reuse: bool) -> TcpListenerBuilder {
        self.reuse_port = reuse;
        self
    }

    /// Whether a listener at an IPv6 address takes IPv6 connections alone (`IPV6_V6ONLY`). Then `0.0.0.0` and `[::]` can be
    /// bound at one port, each by its own listener. As the system has it, unless set.
    pub fn only_v6(mut self, only: bool) -> TcpListenerBuilder {
        self.only_v6 = Some(only);
        self
    }

    /// How many connections may wait in the kernel. 1024, and never more than the system's `somaxconn`.
    pub fn backlog(mut self, connections: u32) -> TcpListenerBuilder {
        self.backlog = i32::try_from(connections).unwrap_or(i32::MAX);
        self
    }

    /// Whether accepted connections are direct descriptors: cheaper for the kernel to look up, and known to this worker's
    /// ring alone. They have no options, no local address and no [`into_std`](TcpStream::into_std), and there are as
    /// many as [`DriverConfig::direct_descriptors`](crate::io::driver::DriverConfig::direct_descriptors) says: the kernel
    /// closes a connection that finds the table full, and `accept` yields `ENFILE`. Off.
    pub fn direct(mut self, direct: bool) -> TcpListenerBuilder {
        self.direct = direct;
        self
    }

    /// Listens at `addr`.
    ///
    /// # Errors
    ///
    /// As [`TcpListener::bind`].
    ///
    /// # Panics
    ///
    /// If no worker runs on this thread.
    pub async fn bind(self, addr: impl ToSocketAddrs) -> io::Result<TcpListener> {
        resolve(&addr).await?.try_each(|addr| self.bind_one(addr))
    }

    fn bind_one(&self, addr: SocketAddr) -> io::Result<TcpListener> {
        let socket = socket2::Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        os::reuse_address(&socket, self.reuse_addr)?;
        if self.reuse_port {
            os::reuse_port(&socket)?;
        }
        if let (Some(only), true) = (self.only_v6, addr.is_ipv6()) {
            socket.set_only_v6(only)?;
        }
        socket.bind(&addr.into())?;
        socket.listen(self.backlog)?;
        Ok(TcpListener::new(Descriptor::Os(socket.into()), self.direct))
    }
}

/// The future of [`TcpListener::accept`].
#[must_use = "nothing is accepted until it is awaited"]
#[derive(Debug)]
pub struct Accept {
    acceptor: Rc<Acceptor>,
    /// Whether it is the one that `has_caller` speaks of.
    holds: bool,
    /// If so, what is with the kernel: nothing is borrowed when it is polled, and with it foreign code.
    armed: Option<Armed>,
}

impl Accept {
    fn release(&mut self) {
        if std::mem::take(&mut self.holds) {
            self.acceptor.armed.replace(self.armed.take());
            self.acceptor.has_caller.set(false);
        }
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        loop {
            let (descriptor, peer) = ready!(self.poll_descriptor(cx))?;
            let peer = match peer {
                Some(peer) => Ok(peer),
                None => descriptor.as_os().and_then(os::peer_name).and_then(|address| internet(&address)),
            };
            match peer {
                // It was reset, and this system has forgotten it. Others may wait behind it.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                peer => {
                    let (peer, driver) = (peer?, self.acceptor.driver.clone());
                    return Poll::Ready(Ok((TcpStream::new(descriptor, driver, Some(peer)), peer)));
                }
            }
        }
    }

    /// The next connection, and its peer if the kernel has said so.
    fn poll_descriptor(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<(Descriptor, Option<SocketAddr>)>> {
        loop {
            let answer = match self.armed.get_or_insert_with(|| self.acceptor.arm()) {
                Armed::Many(many) => {
                    let item = ready!(many.poll_next(cx));
                    if many.is_finished() {
                        self.armed = None;
                    }
                    item.map(|item| item.map(|descriptor| (descriptor, None)))
                }
                Armed::One(accept) => {
                    let answer = ready!(Pin::new(accept).poll(cx));
                    self.armed = None;
                    Some(answer)
                }
            };
            match answer {
                None => {}
                Some(Err(error)) if is_cancelled(&error) => {}
                Some(answer) => return Poll::Ready(answer),
            }
        }
    }
}

impl Future for Accept {
    type Output = io::Result<(TcpStream, SocketAddr)>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if !self.holds {
            if self.acceptor.has_caller.replace(true) {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::ResourceBusy, AcceptorBusy)));
            }
            self.holds = true;
            self.armed = self.acceptor.armed.take();
        }
        let accepted = ready!(self.poll_accept(cx));
        self.release();
        Poll::Ready(accepted)
    }
}

impl Drop for Accept {
    fn drop(&mut self) {
        self.release();
    }
}

/// The connections of a listener: made by [`TcpListener::incoming`].
#[must_use = "nothing is accepted until it is polled"]
#[derive(Debug)]
pub struct Incoming {
    accept: Accept,
}

impl Stream for Incoming {
    type Item = io::Result<(TcpStream, SocketAddr)>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.accept).poll(cx).map(Some)
    }
}

impl Acceptor {
    fn arm(&self) -> Armed {
        let (fd, direct) = (Rc::clone(&self.fd), self.direct);
        if direct {
            Armed::One(Op::new(net::Accept::new(fd, direct), &self.driver))
        } else {
            Armed::Many(Multishot::new(net::AcceptMany::new(fd, direct), &self.driver))
        }
    }

    /// The connections that the armed accept still brings, which is asked to stop.
    fn poll_last(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Descriptor>>> {
        let Acceptor { armed, driver, .. } = self;
        let slot = armed.get_mut();
        loop {
            let Some(Armed::Many(many)) = slot else { return Poll::Ready(Ok(None)) };
            if let Some(token) = many.begin_cancel() {
                driver.request_cancel(token);
            }
            let item = ready!(many.poll_next(cx));
            if many.is_finished() {
                *slot = None;
            }
            match item {
                None => {}
                Some(Err(error)) if is_cancelled(&error) => {}
                Some(answer) => return Poll::Ready(answer.map(Some)),
            }
        }
    }
}
