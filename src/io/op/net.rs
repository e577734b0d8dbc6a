//! Operations on sockets.
//!
//! Those that receive hold the socket's `Stash`: if nobody waits for their answer any more, what they received is kept
//! there for the next caller. It is there before the stash hears that the receive has ended, so nothing can overtake it.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;

use super::{copy_of, filled, filled_vec, seal};
use crate::io::buf::{BufResult, FixedBuf, IoBuf, IoBufMut, IoBufMutVec, IoBufVec, Slice};
use crate::io::driver::{
    Completion, Descriptor, MultishotLifecycle, OpLifecycle, Resource, SharedDescriptor,
};
use crate::io::stash::{Datagram, Stash, is_dry};
use crate::os::{AcceptRoom, message};

/// Makes a socket.
#[derive(Debug)]
pub struct Socket {
    pub(crate) domain: i32,
    pub(crate) kind: i32,
    pub(crate) protocol: i32,
    /// Whether the socket is to be a direct descriptor of this worker's ring.
    pub(crate) direct: bool,
}

/// Connects a socket.
#[derive(Debug)]
pub struct Connect {
    pub(crate) fd: SharedDescriptor,
    pub(crate) to: socket2::SockAddr,
}

/// Accepts one connection. Yields it and its peer.
#[derive(Debug)]
pub struct Accept {
    pub(crate) fd: SharedDescriptor,
    pub(crate) direct: bool,
    /// Who connected; known once the completion is decoded.
    pub(crate) peer: Option<SocketAddr>,
    /// What the kernel fills, where it makes no socket itself.
    pub(crate) room: AcceptRoom,
}

impl Accept {
    /// Accepts from the listener `fd`; a direct descriptor if that is wanted.
    pub(crate) fn new(fd: SharedDescriptor, direct: bool) -> Accept {
        Accept { fd, direct, peer: None, room: AcceptRoom::default() }
    }
}

/// Connections that may wait with a listener while nobody accepts: enough that a burst costs one kernel entry, few
/// enough that a listener nobody serves does not use up the process's descriptors.
pub(crate) const STASHED_MAX: usize = 64;

/// Accepts connection after connection. Their peers are asked for separately.
#[derive(Debug)]
pub struct AcceptMany {
    pub(crate) fd: SharedDescriptor,
    pub(crate) direct: bool,
    /// What the kernel fills first, where it makes no socket itself.
    pub(crate) room: AcceptRoom,
}

impl AcceptMany {
    /// Accepts from the listener `fd`; direct descriptors if that is wanted.
    pub(crate) fn new(fd: SharedDescriptor, direct: bool) -> AcceptMany {
        AcceptMany { fd, direct, room: AcceptRoom::default() }
    }
}

/// Makes what the kernel fills.
fn room_for_one_of(fd: &Descriptor) -> io::Result<AcceptRoom> {
    match fd {
        Descriptor::Os(listener) => AcceptRoom::for_one_of(listener),
        Descriptor::Direct(_) => Ok(AcceptRoom::default()),
    }
}

/// Receives into one buffer.
#[derive(Debug)]
pub struct Recv<B> {
    pub(crate) fd: SharedDescriptor,
    pub(crate) buf: B,
    /// `recv(2)` flags.
    pub(crate) flags: i32,
    /// Whether nothing is expected to be there yet: a kernel that would try first waits first.
    pub(crate) waits: bool,
    /// Where bytes go that nobody waits for; `None` where they may be lost.
    pub(crate) stash: Option<Rc<Stash>>,
    /// What goes there, of a buffer and the number of bytes that were received into it: [`kept_whole`],
    /// [`kept_with_begin`], or [`kept_nothing`].
    pub(crate) kept: fn(B, usize) -> FixedBuf,
}

/// The bytes received: what an abandoned receive leaves.
pub(crate) fn kept_whole<B: IoBufMut>(buf: B, bytes: usize) -> FixedBuf {
    copy_of(&[buf], bytes)
}

/// The bytes received, and those before them in the underlying buffer, which came earlier: what a receive leaves that was
/// one step of several.
pub(crate) fn kept_with_begin<B: IoBufMut>(part: Slice<B>, bytes: usize) -> FixedBuf {
    let begin = part.begin();
    copy_of(&[part.into_inner()], begin + bytes)
}

/// No byte, as the kernel has them still: what an abandoned peek leaves. Its error alone is kept.
pub(crate) fn kept_nothing<B>(_: B, _: usize) -> FixedBuf {
    FixedBuf::heap(0)
}

/// Receives into a buffer that the kernel picks from the receive ring: as a [`Multishot`](crate::io::driver::Multishot)
/// again and again, as an [`Op`](crate::io::driver::Op) once.
#[derive(Debug)]
pub struct RecvMany {
    pub(crate) fd: SharedDescriptor,
    /// Buffers of the ring that may wait untaken, when it receives again and again.
    pub(crate) credit: usize,
    /// To receive once: where the bytes go if nobody waits for them any more. `None` to receive again and again.
    pub(crate) once: Option<Rc<Stash>>,
}

/// Receives into several buffers, one after the other.
#[derive(Debug)]
pub struct RecvVectored<V> {
    pub(crate) fd: SharedDescriptor,
    pub(crate) bufs: V,
    pub(crate) stash: Option<Rc<Stash>>,
}

/// Receives one message and who sent it.
#[derive(Debug)]
pub struct RecvFrom<B> {
    pub(crate) fd: SharedDescriptor,
    pub(crate) buf: B,
    /// `recvmsg(2)` flags.
    pub(crate) flags: i32,
    /// Who sent it, if that is an internet address; known once the completion is decoded.
    pub(crate) from: Option<SocketAddr>,
    /// Where the message goes if nobody waits for it any more.
    pub(crate) stash: Option<Rc<Stash<Datagram>>>,
}

/// Sends one buffer.
#[derive(Debug)]
pub struct Send<B> {
    /// `None` once the kernel has sent, and nobody waits to hear that it has let go of the buffer.
    pub(crate) fd: Option<SharedDescriptor>,
    pub(crate) buf: B,
    /// `send(2)` flags.
    pub(crate) flags: i32,
    /// Whether the network takes the bytes from the buffer itself. Then there are two answers: how many were taken, and that
    /// the kernel has let go of the buffer. The operation ends with the second.
    pub(crate) zero_copy: bool,
}

/// Sends several buffers, one after the other, as one message where messages are kept apart.
#[derive(Debug)]
pub struct SendVectored<V> {
    pub(crate) fd: SharedDescriptor,
    pub(crate) bufs: V,
    /// `sendmsg(2)` flags.
    pub(crate) flags: i32,
    /// To whom, for a socket that is not connected; boxed, so that the usual case stays small.
    pub(crate) to: Option<Box<socket2::SockAddr>>,
}

/// Sends one message to an address.
#[derive(Debug)]
pub struct SendTo<B> {
    pub(crate) fd: SharedDescriptor,
    pub(crate) buf: B,
    pub(crate) to: socket2::SockAddr,
}

/// Ends one or both directions of a connection.
#[derive(Debug)]
pub struct Shutdown {
    pub(crate) fd: SharedDescriptor,
    pub(crate) how: std::net::Shutdown,
}

seal!(
    Socket, Connect, Accept, AcceptMany, RecvMany, Shutdown, Recv<B: IoBufMut>, RecvVectored<V: IoBufMutVec>,
    RecvFrom<B: IoBufMut>, Send<B: IoBuf>, SendVectored<V: IoBufVec>, SendTo<B: IoBuf>,
);

impl OpLifecycle for Socket {
    type Output = io::Result<Descriptor>;
    const KIND: &'static str = "socket";

    fn into_output(self, completion: Completion) -> io::Result<Descriptor> {
        completion.into_descriptor()
    }
}

impl OpLifecycle for Connect {
    type Output = io::Result<()>;
    const KIND: &'static str = "connect";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn into_output(self, completion: Completion) -> io::Result<()> {
        completion.into_unit()
    }
}

impl OpLifecycle for Accept {
    type Output = io::Result<(Descriptor, Option<SocketAddr>)>;
    const KIND: &'static str = "accept";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn pre_alloc(&mut self) -> io::Result<()> {
        self.room = room_for_one_of(&self.fd)?;
        Ok(())
    }

    fn into_output(self, completion: Completion) -> io::Result<(Descriptor, Option<SocketAddr>)> {
        Ok((completion.into_descriptor()?, self.peer))
    }
}

impl OpLifecycle for AcceptMany {
    type Output = io::Result<Descriptor>;
    const KIND: &'static str = "accept (multishot)";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn pre_alloc(&mut self) -> io::Result<()> {
        self.room = room_for_one_of(&self.fd)?;
        Ok(())
    }

    fn items_max(&self) -> usize {
        STASHED_MAX
    }

    fn into_output(self, completion: Completion) -> io::Result<Descriptor> {
        completion.into_descriptor()
    }
}

impl MultishotLifecycle for AcceptMany {
    type Item = io::Result<Descriptor>;

    fn into_item(completion: Completion) -> io::Result<Descriptor> {
        completion.into_descriptor()
    }
}

impl<B: IoBufMut> OpLifecycle for Recv<B> {
    type Output = BufResult<usize, B>;
    const KIND: &'static str = "recv";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn into_output(self, completion: Completion) -> BufResult<usize, B> {
        if let Some(stash) = &self.stash {
            stash.set_drained(completion.drained);
            stash.receive_ended();
        }
        filled(self.buf, completion)
    }

    /// The kernel's answer may be an error, and the buffer still hold bytes of an earlier step.
    fn abandon(self, completion: Completion) {
        let Some(stash) = self.stash else { return };
        let (result, buf) = filled(self.buf, completion);
        let bytes = (self.kept)(buf, result.as_ref().map_or(0, |bytes| *bytes));
        if !bytes.is_empty() {
            stash.push(Ok(bytes));
        }
        if let Err(error) = result {
            stash.keep_error(error);
        }
        stash.receive_ended();
    }
}

impl OpLifecycle for RecvMany {
    type Output = io::Result<FixedBuf>;
    const KIND: &'static str = "recv (multishot)";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn items_max(&self) -> usize {
        self.credit
    }

    fn into_output(self, completion: Completion) -> io::Result<FixedBuf> {
        if let Some(stash) = &self.once {
            stash.receive_ended();
        }
        Self::into_item(completion)
    }

    /// What arrived is copied: a buffer of the ring may not wait where nobody looks.
    fn abandon(self, completion: Completion) {
        let Some(stash) = self.once else { return };
        match Self::into_item(completion) {
            Ok(buf) => stash.keep(Ok(buf.len()), |bytes| copy_of(&[buf], bytes)),
            Err(error) if is_dry(&error) => {}
            Err(error) => stash.keep_error(error),
        }
        stash.receive_ended();
    }
}

impl MultishotLifecycle for RecvMany {
    type Item = io::Result<FixedBuf>;

    /// The end of the stream is an empty buffer.
    fn into_item(completion: Completion) -> io::Result<FixedBuf> {
        completion.result?;
        match completion.resource {
            Resource::Buffer(buf) => Ok(buf),
            Resource::None => Ok(FixedBuf::heap(0)),
            Resource::Descriptor(_) => panic!("a receive does not yield a descriptor"),
        }
    }
}

impl<V: IoBufMutVec> OpLifecycle for RecvVectored<V> {
    type Output = BufResult<usize, V>;
    const KIND: &'static str = "recv (vectored)";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn into_output(self, completion: Completion) -> BufResult<usize, V> {
        if let Some(stash) = &self.stash {
            stash.receive_ended();
        }
        filled_vec(self.bufs, completion)
    }

    fn abandon(self, completion: Completion) {
        let Some(stash) = self.stash else { return };
        let (result, bufs) = filled_vec(self.bufs, completion);
        stash.keep(result, |bytes| copy_of(&bufs, bytes));
        stash.receive_ended();
    }
}

impl<B: IoBufMut> OpLifecycle for RecvFrom<B> {
    type Output = BufResult<(usize, Option<SocketAddr>), B>;
    const KIND: &'static str = "recvmsg";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn into_output(self, completion: Completion) -> Self::Output {
        if let Some(stash) = &self.stash {
            stash.receive_ended();
        }
        let from = self.from;
        let (result, buf) = filled(self.buf, completion);
        (result.map(|bytes| (bytes, from)), buf)
    }

    fn abandon(self, completion: Completion) {
        let Some(stash) = self.stash else { return };
        let (result, buf) = filled(self.buf, completion);
        match result {
            // After a peek the kernel has it still.
            Ok(_) if self.flags == message::PEEK => {}
            // A message may be empty.
            Ok(bytes) => stash.push(Ok(Datagram { bytes: copy_of(&[buf], bytes), from: self.from })),
            Err(error) => stash.keep_error(error),
        }
        stash.receive_ended();
    }
}

impl<B> Send<B> {
    /// What it is sent to.
    pub(crate) fn target(&self) -> &Descriptor {
        self.fd.as_ref().expect("it is let go only after the kernel has sent")
    }
}

impl<B: IoBuf> OpLifecycle for Send<B> {
    type Output = BufResult<usize, B>;
    const KIND: &'static str = "send";

    fn descriptor(&self) -> Option<&Descriptor> {
        self.fd.as_deref()
    }

    /// The buffer stays, the connection need not: it may be the peer's reading that the kernel waits for.
    fn let_go(&mut self) {
        self.fd = None;
    }

    fn into_output(self, completion: Completion) -> BufResult<usize, B> {
        (completion.into_bytes(), self.buf)
    }
}

impl<V: IoBufVec> OpLifecycle for SendVectored<V> {
    type Output = BufResult<usize, V>;
    const KIND: &'static str = "sendmsg (vectored)";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn into_output(self, completion: Completion) -> BufResult<usize, V> {
        (completion.into_bytes(), self.bufs)
    }
}

impl<B: IoBuf> OpLifecycle for SendTo<B> {
    type Output = BufResult<usize, B>;
    const KIND: &'static str = "sendmsg";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn into_output(self, completion: Completion) -> BufResult<usize, B> {
        (completion.into_bytes(), self.buf)
    }
}

impl OpLifecycle for Shutdown {
    type Output = io::Result<()>;
    const KIND: &'static str = "shutdown";

    fn descriptor(&self) -> Option<&Descriptor> {
        Some(&self.fd)
    }

    fn into_output(self, completion: Completion) -> io::Result<()> {
        completion.into_unit()
    }
}
