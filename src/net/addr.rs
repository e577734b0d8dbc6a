//! What counts as an address, and resolving names.
//!
//! An address that is written in numbers is known at once. A name is looked up by the C library, which blocks, so that
//! happens on a thread of the runtime's pool for blocking work; the awaiting task is woken from there. A lookup that is dropped
//! is not made, unless a thread has begun it: then it goes on there, unheard. The pool's bounds hold for lookups and everything
//! else that blocks; beyond them the lookup fails with `QuotaExceeded`. A strict runtime refuses to look up names: it is a silent
//! use of the pool.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::slice;

use crate::io::driver::DriverHandle;
use crate::io::driver::thread_pool::JobFailed;

/// What can be connected to, bound to or sent to: addresses, or a name that stands for some.
///
/// As std's trait of this name, and implemented for the same types: `SocketAddr` and its kin, pairs of host and port,
/// strings like `"example.org:80"` or `"[::1]:80"`, lists of addresses, and references to all of them. Only names need
/// time; they are resolved without blocking the worker. Sealed.
///
/// ```
/// use veloq::net::{TcpListener, TcpStream};
///
/// # #[veloq::main]
/// # async fn main() -> std::io::Result<()> {
/// let listener = TcpListener::bind("127.0.0.1:0").await?;
/// let port = listener.local_addr()?.port();
/// TcpStream::connect(("localhost", port)).await?;
/// # Ok(())
/// # }
/// ```
pub trait ToSocketAddrs: sealed::Target {}

impl<T: sealed::Target + ?Sized> ToSocketAddrs for T {}

mod sealed {
    /// Nothing outside this crate is a target.
    pub trait Target {
        #[doc(hidden)]
        fn target(&self) -> std::io::Result<super::Addresses>;
    }
}

/// What a target stands for.
#[derive(Clone, Debug)]
pub enum Addresses {
    One(SocketAddr),
    List(Vec<SocketAddr>),
    Name { host: String, port: u16 },
}

impl Addresses {
    fn name(host: &str, port: u16) -> Addresses {
        match host.parse::<IpAddr>() {
            Ok(ip) => Addresses::One((ip, port).into()),
            Err(_) => Addresses::Name { host: host.to_owned(), port },
        }
    }
}

/// The addresses that `target` stands for, in the order in which to try them. There is at least one.
///
/// # Errors
///
/// `InvalidInput` for what is not an address; what the resolver said; `QuotaExceeded` if too many lookups wait;
/// `Unsupported` for a name on a strict runtime.
pub(super) async fn resolve(target: &impl ToSocketAddrs) -> io::Result<Resolved> {
    let resolved = match target.target()? {
        Addresses::One(addr) => Resolved::One(addr),
        Addresses::List(addrs) => Resolved::List(addrs),
        Addresses::Name { host, port } => {
            let lookup = move || {
                std::net::ToSocketAddrs::to_socket_addrs(&(host.as_str(), port)).map(Iterator::collect)
            };
            // It is there while the future waits, which so stays on the worker where the socket will be.
            let driver = DriverHandle::current();
            let lookup = driver.threads().submit_silently("resolving a name", lookup)?;
            let answer = lookup.wanted().await;
            Resolved::List(answer.map_err(JobFailed::into_error)??)
        }
    };
    if resolved.as_slice().is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no address to go to: the list is empty"));
    }
    Ok(resolved)
}

/// Addresses to try, at least one.
#[derive(Debug)]
pub(super) enum Resolved {
    One(SocketAddr),
    List(Vec<SocketAddr>),
}

impl Resolved {
    pub(super) fn as_slice(&self) -> &[SocketAddr] {
        match self {
            Resolved::One(addr) => slice::from_ref(addr),
            Resolved::List(addrs) => addrs,
        }
    }

    /// The first success of `attempt` over the addresses, or the last failure.
    pub(super) fn try_each<T>(&self, mut attempt: impl FnMut(SocketAddr) -> io::Result<T>) -> io::Result<T> {
        let mut last = None;
        for addr in self.as_slice() {
            match attempt(*addr) {
                Ok(made) => return Ok(made),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("there is at least one address"))
    }
}

/// Types that are an address already.
macro_rules! known {
    ($($type:ty),+ $(,)?) => {
        $(impl sealed::Target for $type {
            fn target(&self) -> io::Result<Addresses> {
                Ok(Addresses::One((*self).into()))
            }
        })+
    };
}

known!(SocketAddr, SocketAddrV4, SocketAddrV6, (IpAddr, u16), (Ipv4Addr, u16), (Ipv6Addr, u16));

impl sealed::Target for (&str, u16) {
    fn target(&self) -> io::Result<Addresses> {
        Ok(Addresses::name(self.0, self.1))
    }
}

impl sealed::Target for (String, u16) {
    fn target(&self) -> io::Result<Addresses> {
        Ok(Addresses::name(&self.0, self.1))
    }
}

impl sealed::Target for str {
    fn target(&self) -> io::Result<Addresses> {
        if let Ok(addr) = self.parse() {
            return Ok(Addresses::One(addr));
        }
        let parts = self.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        match parts {
            Some((host, port)) if !host.is_empty() => Ok(Addresses::name(host, port)),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{self:?} is not an address; write host:port, or [address]:port for IPv6"),
            )),
        }
    }
}

impl sealed::Target for String {
    fn target(&self) -> io::Result<Addresses> {
        self.as_str().target()
    }
}

impl sealed::Target for [SocketAddr] {
    fn target(&self) -> io::Result<Addresses> {
        Ok(Addresses::List(self.to_vec()))
    }
}

impl<const N: usize> sealed::Target for [SocketAddr; N] {
    fn target(&self) -> io::Result<Addresses> {
        self.as_slice().target()
    }
}

impl sealed::Target for Vec<SocketAddr> {
    fn target(&self) -> io::Result<Addresses> {
        self.as_slice().target()
    }
}

impl<T: sealed::Target + ?Sized> sealed::Target for &T {
    fn target(&self) -> io::Result<Addresses> {
        (**self).target()
    }
}
