//! Every kind of operation there is, started at once: the most that the end of a driver, or of its worker, has to deal with.
//!
//! Some are done at once, some wait for data that comes in the middle of the end, some for what never comes. Which kinds
//! there are is read where they are declared: one that is added to `io::op` and not here fails the tests that are built on this.
//! What makes an encoding of its own of a kind (a registered buffer, a direct descriptor, a zero-copy send) is started too.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::future::{Future, poll_fn};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;

use rustix::pipe::{PipeFlags, pipe_with};
use socket2::SockRef;

use super::{CANARY, Graveyard, poll_once};
use crate::io::buf::{BufPool, FixedBuf, Pool};
use crate::io::driver::{
    Descriptor, DriverHandle, Multishot, MultishotLifecycle, Op, Operation, PlatformDriver, SharedDescriptor,
};
use crate::io::op::fs::{
    Allocate, Allocation, MakeDirectory, Open, ReadAt, ReadVectoredAt, Remove, Rename, Status, Subject, Sync,
    Truncate, WriteAt, WriteVectoredAt,
};
use crate::io::op::misc::{Cancel, Close, Nop, Poll};
use crate::io::op::net::{
    Accept, AcceptMany, Connect, Recv, RecvFrom, RecvMany, RecvVectored, Send, SendTo, SendVectored,
    Shutdown, Socket, kept_whole,
};
use crate::io::stash::Stash;
use crate::os::OpenHow;

/// Rounds by default: enough for a few late writers to show on any machine, without holding up the other tests.
const ROUNDS: usize = 100;

/// How often a test ends what it looks at.
pub(crate) fn rounds() -> usize {
    std::env::var("VELOQ_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().expect("VELOQ_ROUNDS is a number"))
}

/// A future that owns one operation.
pub(crate) type Holder = Pin<Box<dyn Future<Output = ()>>>;

/// Has the kernel run every operation on one of its threads, which is where late writes come from.
pub(crate) fn force_async(driver: &DriverHandle, force: bool) {
    driver.with_backend(|backend| match backend {
        PlatformDriver::Uring(uring) => uring.force_async = force,
        PlatformDriver::Sim(_) => {}
    });
}

/// The ends of what the operations use that are the test's.
pub(crate) struct OtherEnds {
    writers: [SharedDescriptor; 2],
    unread: Vec<TcpStream>,
}

impl OtherEnds {
    /// Lets data arrive where operations wait for it.
    pub(crate) fn write(&self, byte: u8) {
        for writer in &self.writers {
            // The last time nobody may be left to read it.
            let _ = rustix::io::write(writer.as_os().expect("of the process"), &[byte; 700]);
        }
    }

    /// Hangs up where nothing was read: what a zero-copy send still has to keep is the kernel's own no more.
    pub(crate) fn hang_up(&mut self) {
        self.unread.clear();
    }
}

/// What its users left of a pool, taken and filled with a pattern: whatever the kernel still writes there is found.
pub(crate) struct Spare {
    bufs: Vec<FixedBuf>,
    _pool: Pool,
}

impl Spare {
    pub(crate) fn of(pool: &Pool) -> Spare {
        let bufs = std::iter::from_fn(|| {
            let mut buf = pool.try_alloc(BLOCK)?;
            buf.resize(BLOCK, CANARY);
            Some(buf)
        });
        Spare { bufs: bufs.collect(), _pool: pool.clone() }
    }

    /// Bytes of the pool that it has.
    pub(crate) fn bytes(&self) -> usize {
        self.bufs.len() * BLOCK
    }

    /// Bytes that somebody wrote to since.
    pub(crate) fn disturbed(&self) -> usize {
        self.bufs.iter().flat_map(|buf| buf.iter()).filter(|byte| **byte != CANARY).count()
    }
}

/// Bytes of a pool's smallest block.
const BLOCK: usize = 4096;

/// Makes at least one of each kind of operation for `driver`, and gives it to `start`. Buffers are from the yard and from the
/// driver's pool, names in `folder`.
pub(crate) fn start_every_kind(
    driver: &DriverHandle,
    yard: &Graveyard,
    folder: &Path,
    start: impl FnMut(Holder),
) -> OtherEnds {
    let mut starting = Starting { driver, yard, start, kinds: BTreeSet::new() };
    let (one, one_end) = pair();
    let mut unread = Vec::new();
    starting.receives(&one);
    starting.datagrams();
    starting.sends(&mut unread);
    starting.connections();
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    let (reader, writer) = (os(reader), os(writer));
    starting.files(&reader);
    starting.names(folder);
    starting.rest(reader);
    assert_eq!(starting.kinds, declared_kinds(), "of each kind that is declared one was started");
    OtherEnds { writers: [one_end, writer], unread }
}

/// The kinds that `io::op` declares.
fn declared_kinds() -> BTreeSet<&'static str> {
    let declarations =
        [include_str!("../../op/fs.rs"), include_str!("../../op/misc.rs"), include_str!("../../op/net.rs")];
    let lines = declarations.iter().flat_map(|text| text.lines());
    lines
        .filter_map(|line| line.trim().strip_prefix("const KIND: &'static str = \"")?.strip_suffix("\";"))
        .collect()
}

struct Starting<'a, F> {
    driver: &'a DriverHandle,
    yard: &'a Graveyard,
    start: F,
    kinds: BTreeSet<&'static str>,
}

impl<F: FnMut(Holder)> Starting<'_, F> {
    fn op<T: Operation>(&mut self, operation: T) {
        let op = Op::new(operation, self.driver);
        self.begun(op);
    }

    fn begun<T: Operation>(&mut self, op: Op<T>) {
        self.kinds.insert(T::KIND);
        (self.start)(Box::pin(async move {
            let _ = op.await;
        }));
    }

    fn stream<T: Operation + MultishotLifecycle>(&mut self, operation: T) {
        self.kinds.insert(T::KIND);
        let mut stream = Multishot::new(operation, self.driver);
        (self.start)(Box::pin(async move { while poll_fn(|cx| stream.poll_next(cx)).await.is_some() {} }));
    }

    /// A buffer that the kernel knows by index.
    fn fixed(&self) -> FixedBuf {
        self.driver.alloc(BLOCK)
    }

    /// Plain, vectored, multishot, once into a buffer that the kernel picks.
    fn receives(&mut self, fd: &SharedDescriptor) {
        let yard = self.yard;
        let buf = || yard.buf(512);
        for _ in 0..4 {
            self.op(recv(fd, buf()));
        }
        self.op(recv(fd, self.fixed()));
        self.op(RecvVectored { fd: Rc::clone(fd), bufs: [buf(), buf()], stash: None });
        self.stream(RecvMany { fd: Rc::clone(fd), credit: usize::MAX, once: None });
        let stash = Rc::new(Stash::default());
        stash.receive_begins();
        self.op(RecvMany { fd: Rc::clone(fd), credit: 1, once: Some(stash) });
    }

    fn datagrams(&mut self) {
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let to = udp.local_addr().expect("it is bound");
        let (udp, yard) = (os(udp), self.yard);
        let buf = || yard.buf(512);
        self.op(RecvFrom { fd: Rc::clone(&udp), buf: buf(), flags: 0, from: None, stash: None });
        self.op(SendTo { fd: Rc::clone(&udp), buf: buf(), to: to.into() });
        self.op(SendVectored { fd: udp, bufs: vec![buf(), buf()], flags: 0, to: Some(Box::new(to.into())) });
    }

    /// Into pipes that are full; and by zero-copy into one that is not, whose reader does not read.
    fn sends(&mut self, unread: &mut Vec<TcpStream>) {
        let (full, _full_end) = pair();
        // More than the pipe holds; not of the yard, which keeps all memory.
        self.op(Send { fd: Some(Rc::clone(&full)), buf: vec![0u8; 1 << 20], flags: 0, zero_copy: false });
        self.op(Send { fd: Some(Rc::clone(&full)), buf: self.yard.buf(512), flags: 0, zero_copy: false });
        self.op(SendVectored {
            fd: Rc::clone(&full),
            bufs: vec![self.yard.buf(512), self.yard.buf(512)],
            flags: 0,
            to: None,
        });
        let (empty, empty_end) = tcp_pair();
        let (stuffed, stuffed_end) = tcp_pair();
        stuff(&stuffed);
        for fd in [os(empty), os(stuffed)] {
            let buf = self.yard.buf(1 << 14);
            self.op(Send { fd: Some(Rc::clone(&fd)), buf, flags: 0, zero_copy: true });
            let mut buf = self.fixed();
            buf.resize(BLOCK, 7);
            self.op(Send { fd: Some(fd), buf, flags: 0, zero_copy: true });
        }
        unread.extend([empty_end, stuffed_end]);
        self.op(Shutdown { fd: full, how: std::net::Shutdown::Read });
    }

    fn connections(&mut self) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address: SocketAddr = listener.local_addr().expect("it is bound");
        let listener = os(listener);
        for direct in [false, true] {
            self.op(Accept::new(Rc::clone(&listener), direct));
            self.op(Socket { domain: libc::AF_INET, kind: libc::SOCK_STREAM, protocol: 0, direct });
        }
        self.stream(AcceptMany::new(Rc::clone(&listener), false));
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        self.op(Connect { fd: os(socket.expect("a socket")), to: address.into() });
    }

    /// Of a pipe that nothing has been written to, which is where a kernel thread waits; and of a file, which is ready at once.
    fn files(&mut self, pipe: &SharedDescriptor) {
        let yard = self.yard;
        let buf = || yard.buf(512);
        for _ in 0..4 {
            self.op(ReadAt { fd: Rc::clone(pipe), buf: buf(), offset: 0 });
        }
        self.op(ReadAt { fd: Rc::clone(pipe), buf: self.fixed(), offset: 0 });
        self.op(ReadVectoredAt { fd: Rc::clone(pipe), bufs: vec![buf(), buf()], offset: 0 });
        let file = os(tempfile::tempfile().expect("a temporary file"));
        let fd = || Rc::clone(&file);
        let allocation = Allocation::Extend;
        self.op(Allocate { fd: fd(), allocation, offset: 0, len: 1 << 16 });
        for durable in [false, true] {
            self.op(WriteAt { fd: fd(), buf: self.yard.buf(1 << 13), offset: 0, durable });
        }
        let mut written = self.fixed();
        written.resize(BLOCK, 7);
        self.op(WriteAt { fd: fd(), buf: written, offset: 0, durable: false });
        self.op(WriteVectoredAt { fd: fd(), bufs: vec![buf(), buf()], offset: 0 });
        self.op(ReadAt { fd: fd(), buf: self.yard.buf(1 << 13), offset: 0 });
        self.op(ReadAt { fd: fd(), buf: self.fixed(), offset: 0 });
        self.op(Sync { fd: fd(), data_only: true });
        self.op(Status { subject: Subject::Open(fd()), status: None });
        self.op(Truncate { fd: file, len: 1 });
    }

    fn names(&mut self, folder: &Path) {
        let path =
            |name: &str| CString::new(folder.join(name).as_os_str().as_bytes()).expect("no zero inside");
        std::fs::write(folder.join("first"), "text").expect("the folder is there");
        for direct in [false, true] {
            let how = OpenHow { flags: libc::O_RDONLY, mode: 0 };
            self.op(Open { path: path("first"), how, direct });
        }
        self.op(Status { subject: Subject::Path(path("first"), true), status: None });
        self.op(Rename { from: path("first"), to: path("second") });
        self.op(MakeDirectory { path: path("below"), mode: 0o700 });
        self.op(Remove { path: path("second"), directory: false });
        self.op(Remove { path: path("below"), directory: true });
    }

    fn rest(&mut self, pipe: SharedDescriptor) {
        let buf = self.yard.buf(512);
        let mut target = Op::new(ReadAt { fd: Rc::clone(&pipe), buf, offset: 0 }, self.driver);
        if poll_once(&mut target).is_pending() {
            self.op(Cancel { target: target.token().expect("it is submitted") });
            self.begun(target);
        }
        self.op(Nop);
        self.op(Poll { fd: pipe });
        let own_end = UnixStream::pair().expect("a pair of sockets").0;
        self.op(Close { descriptor: Some(Descriptor::Os(own_end.into())) });
    }
}

fn recv<B: crate::io::buf::IoBufMut>(fd: &SharedDescriptor, buf: B) -> Recv<B> {
    Recv { fd: Rc::clone(fd), buf, flags: 0, waits: false, stash: None, kept: kept_whole }
}

fn os(fd: impl Into<OwnedFd>) -> SharedDescriptor {
    Rc::new(Descriptor::Os(fd.into()))
}

fn pair() -> (SharedDescriptor, SharedDescriptor) {
    let (one, other) = UnixStream::pair().expect("a pair of sockets");
    (os(one), os(other))
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let one = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it listens");
    (one, listener.accept().expect("it has connected").0)
}

/// Writes until the connection takes no more.
fn stuff(stream: &TcpStream) {
    use std::io::Write;
    SockRef::from(stream).set_send_buffer_size(1 << 12).expect("a size is a wish");
    stream.set_nonblocking(true).expect("it is open");
    let bytes = [3; 1 << 16];
    while (&*stream).write(&bytes).is_ok() {}
    stream.set_nonblocking(false).expect("it is open");
}
