//! The two halves of a connection, for two tasks.
//!
//! All methods of a [`TcpStream`] take `&self`, so an `Rc<TcpStream>` in two tasks does as well. Halves say by their type
//! who does what, and the owned writing half tells the peer when nothing more will come.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use super::{
    Read, ReadExact, ReadVectored, Recv, Shutdown, TcpStream, Write, WriteAll, WriteAllVectored,
    WriteVectored,
};
use crate::io::buf::{IoBuf, IoBufMut, IoBufMutVec, IoBufVec};
use crate::io::socket::WritingEnd;

/// The reading half of a borrowed [`TcpStream`]: made by [`TcpStream::split`].
#[derive(Debug)]
pub struct ReadHalf<'a> {
    stream: &'a TcpStream,
}

/// The writing half of a borrowed [`TcpStream`]: made by [`TcpStream::split`].
#[derive(Debug)]
pub struct WriteHalf<'a> {
    stream: &'a TcpStream,
}

/// The reading half of a [`TcpStream`]: made by [`TcpStream::into_split`].
#[derive(Debug)]
pub struct OwnedReadHalf {
    stream: Rc<TcpStream>,
}

/// The writing half of a [`TcpStream`]: made by [`TcpStream::into_split`].
///
/// Dropping it ends the direction: the peer reads the end of the stream. What it was told to send is sent before: the direction ends with
/// the last of the half and its futures. (A connection with a direct descriptor has no call for that outside the ring; there,
/// [`shutdown`](Self::shutdown) does it, or the drop of both halves.)
#[derive(Debug)]
pub struct OwnedWriteHalf {
    stream: Rc<TcpStream>,
    end: Rc<WritingEnd>,
}

/// Two halves that are not of the same stream; they come back.
#[derive(Debug)]
pub struct ReuniteError(pub OwnedReadHalf, pub OwnedWriteHalf);

impl fmt::Display for ReuniteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the two halves are not of the same stream")
    }
}

impl Error for ReuniteError {}

impl<'a> ReadHalf<'a> {
    pub(super) fn new(stream: &'a TcpStream) -> ReadHalf<'a> {
        ReadHalf { stream }
    }
}

impl<'a> WriteHalf<'a> {
    pub(super) fn new(stream: &'a TcpStream) -> WriteHalf<'a> {
        WriteHalf { stream }
    }

    /// Borrowed, it ends nothing.
    #[expect(clippy::unused_self, reason = "the owned half has one")]
    fn end(&self) -> Option<&Rc<WritingEnd>> {
        None
    }
}

impl OwnedWriteHalf {
    fn end(&self) -> Option<&Rc<WritingEnd>> {
        Some(&self.end)
    }
}

impl OwnedReadHalf {
    pub(super) fn pair(stream: TcpStream) -> (OwnedReadHalf, OwnedWriteHalf) {
        let (end, stream) = (stream.writing_end(), Rc::new(stream));
        (OwnedReadHalf { stream: Rc::clone(&stream) }, OwnedWriteHalf { stream, end })
    }

    /// Puts the stream together again.
    ///
    /// # Errors
    ///
    /// The halves, if they are not of the same stream.
    pub fn reunite(self, write: OwnedWriteHalf) -> Result<TcpStream, ReuniteError> {
        if !Rc::ptr_eq(&self.stream, &write.stream) {
            return Err(ReuniteError(self, write));
        }
        write.end.call_off();
        drop(write);
        Ok(Rc::try_unwrap(self.stream).expect("a stream has two halves, and the other one is gone"))
    }
}

/// What reading halves do.
macro_rules! reads {
    ($($half:ty),+) => {
        $(impl $half {
            /// As [`TcpStream::recv`].
            pub fn recv(&self) -> Recv {
                self.stream.recv()
            }

            /// As [`TcpStream::read`].
            pub fn read<B: IoBufMut>(&self, buf: B) -> Read<B> {
                self.stream.read(buf)
            }

            /// As [`TcpStream::peek`].
            pub fn peek<B: IoBufMut>(&self, buf: B) -> Read<B> {
                self.stream.peek(buf)
            }

            /// As [`TcpStream::read_exact`].
            pub fn read_exact<B: IoBufMut>(&self, buf: B) -> ReadExact<B> {
                self.stream.read_exact(buf)
            }

            /// As [`TcpStream::read_vectored`].
            pub fn read_vectored<V: IoBufMutVec>(&self, bufs: V) -> ReadVectored<V> {
                self.stream.read_vectored(bufs)
            }

            /// As [`TcpStream::peer_addr`].
            ///
            /// # Errors
            ///
            /// What the system says.
            pub fn peer_addr(&self) -> io::Result<SocketAddr> {
                self.stream.peer_addr()
            }

            /// As [`TcpStream::local_addr`].
            ///
            /// # Errors
            ///
            /// What the system says.
            pub fn local_addr(&self) -> io::Result<SocketAddr> {
                self.stream.local_addr()
            }
        })+
    };
}

/// What writing halves do.
macro_rules! writes {
    ($($half:ty),+) => {
        $(impl $half {
            /// As [`TcpStream::write`].
            pub fn write<B: IoBuf>(&self, buf: B) -> Write<B> {
                self.stream.write(buf).before(self.end())
            }

            /// As [`TcpStream::write_zero_copy`].
            pub fn write_zero_copy<B: IoBuf>(&self, buf: B) -> Write<B> {
                self.stream.write_zero_copy(buf).before(self.end())
            }

            /// As [`TcpStream::write_all`].
            pub fn write_all<B: IoBuf>(&self, buf: B) -> WriteAll<B> {
                self.stream.write_all(buf).before(self.end())
            }

            /// As [`TcpStream::write_vectored`].
            pub fn write_vectored<V: IoBufVec>(&self, bufs: V) -> WriteVectored<V> {
                self.stream.write_vectored(bufs).before(self.end())
            }

            /// As [`TcpStream::write_all_vectored`].
            pub fn write_all_vectored<V: IoBufVec>(&self, bufs: V) -> WriteAllVectored<V> {
                self.stream.write_all_vectored(bufs).before(self.end())
            }

            /// Ends the writing direction.
            ///
            /// # Errors
            ///
            /// As [`TcpStream::shutdown`].
            pub async fn shutdown(&self) -> io::Result<()> {
                self.stream.shutdown(Shutdown::Write).await
            }

            /// As [`TcpStream::peer_addr`].
            ///
            /// # Errors
            ///
            /// What the system says.
            pub fn peer_addr(&self) -> io::Result<SocketAddr> {
                self.stream.peer_addr()
            }

            /// As [`TcpStream::local_addr`].
            ///
            /// # Errors
            ///
            /// What the system says.
            pub fn local_addr(&self) -> io::Result<SocketAddr> {
                self.stream.local_addr()
            }
        })+
    };
}

reads!(ReadHalf<'_>, OwnedReadHalf);
writes!(WriteHalf<'_>, OwnedWriteHalf);
