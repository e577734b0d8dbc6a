//! Promise: what does I/O stays on its worker, and the type system says so.
//!
//! A task that can be stolen is a future that is `Send`. So no object, operation or future of I/O may be `Send`, and all that such a task
//! shall hold must be. Both tables below are looked at by the compiler, and what `net` and `fs` offer stands in one of them.
//! That a task with such a thing does not compile is shown beside `spawn`.

use std::collections::BTreeSet;
use std::marker::PhantomData;

use veloq::fs::{self, File};
use veloq::io::buf::{AllocAsync, BuddyPool, FixedBuf, HybridPool, SharedBuf};
use veloq::io::driver::{Completion, Descriptor, Multishot, Op};
use veloq::io::op;
use veloq::mesh;
use veloq::net::{self, TcpListener, TcpStream, UdpSocket};
use veloq::runtime::{Handle, Instance, Runtime};
use veloq::task::{CancelToken, Gate, GatePass, JoinHandle, JoinSet};
use veloq::time;

/// Asks whether a type is `Send`: the inherent method is there for those that are, and else the trait's is the next to be found.
struct Probe<T>(PhantomData<T>);

impl<T: Send> Probe<T> {
    fn is_send(&self) -> bool {
        true
    }
}

trait Otherwise {
    fn is_send(&self) -> bool {
        false
    }
}

impl<T> Otherwise for Probe<T> {}

/// A probe of what `make` makes. It is not called.
fn made_by<T>(_make: impl FnOnce() -> T) -> Probe<T> {
    Probe(PhantomData)
}

/// Names and answers.
macro_rules! probed {
    ($($type:ty),+ $(,)?) => { [$((stringify!($type), Probe::<$type>(PhantomData).is_send())),+] };
}

/// The last part of a type's path, without what it is of.
fn bare(name: &str) -> &str {
    let name = name.split('<').next().expect("there is a first part");
    name.rsplit("::").next().expect("there is a last part").trim()
}

/// If one of the first were `Send`, safe code could use a ring from two threads; if one of the second were not, a task that may
/// move could not have it.
#[test]
fn objects_and_operations_of_io_are_not_send_and_what_travels_is() {
    let stays = probed![
        net::TcpStream,
        net::TcpListener,
        net::UdpSocket,
        net::OwnedReadHalf,
        net::OwnedWriteHalf,
        net::ReadHalf<'static>,
        net::WriteHalf<'static>,
        net::ReuniteError,
        net::IntoStdError,
        net::Accept,
        net::Incoming,
        net::Read<Vec<u8>>,
        net::ReadExact<Vec<u8>>,
        net::ReadVectored<Vec<Vec<u8>>>,
        net::Recv,
        net::RecvFrom<Vec<u8>>,
        net::Write<Vec<u8>>,
        net::WriteAll<Vec<u8>>,
        net::WriteVectored<Vec<Vec<u8>>>,
        net::WriteAllVectored<Vec<Vec<u8>>>,
        fs::File,
        fs::AllocateFile,
        fs::SyncFile,
        fs::ReadAt<Vec<u8>>,
        fs::ReadVectoredAt<Vec<Vec<u8>>>,
        fs::WriteAt<Vec<u8>>,
        fs::WriteVectoredAt<Vec<Vec<u8>>>,
        Op<op::misc::Nop>,
        Multishot<op::net::AcceptMany>,
        Completion,
        Descriptor,
        AllocAsync,
        BuddyPool,
        HybridPool,
        Runtime,
        Instance<u8>,
        Gate,
        GatePass,
    ];
    let travels = probed![
        net::AcceptorBusy,
        net::ReaderBusy,
        net::Shutdown,
        net::TcpListenerBuilder,
        fs::Alignment,
        fs::Allocation,
        fs::Buffering,
        fs::DirEntry,
        fs::FileType,
        fs::Metadata,
        fs::Misaligned,
        fs::OpenOptions,
        fs::ReadDir,
        net::TcpKeepalive,
        net::UdpSocketBuilder,
        FixedBuf,
        SharedBuf,
        Handle,
        JoinHandle<u8>,
        JoinSet<u8>,
        CancelToken,
        mesh::Sender<u8>,
        mesh::Receiver<u8>,
        time::Sleep,
        time::Interval,
    ];
    for (name, is_send) in stays {
        assert!(!is_send, "{name} can be taken along by a task that is stolen");
    }
    for (name, is_send) in travels {
        assert!(is_send, "{name} cannot be held by a task that may be stolen");
    }
    let tables: BTreeSet<&str> = stays.iter().chain(&travels).map(|(name, _)| bare(name)).collect();
    for (module, text) in
        [("net", include_str!("../src/net/mod.rs")), ("fs", include_str!("../src/fs/mod.rs"))]
    {
        for name in offered(text) {
            let is_trait = name == "ToSocketAddrs";
            assert!(is_trait || tables.contains(name), "may {module}::{name} travel? Add it to a table");
        }
    }
}

/// The types that a module offers: the names that it uses publicly and that begin with a capital.
fn offered(module: &str) -> BTreeSet<&str> {
    let uses = module.split("pub use ").skip(1).map(|rest| rest.split(';').next().expect("it ends"));
    let names = uses.flat_map(|list| list.split(['{', '}', ',', ':']).map(str::trim));
    names.filter(|name| name.starts_with(|first: char| first.is_ascii_uppercase())).collect()
}

/// Calls that are `async` have futures without a name.
#[test]
fn futures_of_io_without_a_name_are_not_send_either() {
    let futures = [
        ("connect", made_by(|| TcpStream::connect("[::1]:1")).is_send()),
        ("listen", made_by(|| TcpListener::bind("[::1]:1")).is_send()),
        ("bind", made_by(|| UdpSocket::bind("[::1]:1")).is_send()),
        ("open", made_by(|| File::open("name")).is_send()),
        ("read", made_by(|| fs::read("name")).is_send()),
        ("metadata", made_by(|| fs::metadata("name")).is_send()),
        ("rename", made_by(|| fs::rename("from", "to")).is_send()),
    ];
    for (name, is_send) in futures {
        assert!(!is_send, "the future of {name} can be taken along by a task that is stolen");
    }
    assert!(made_by(|| async { 1 }).is_send(), "the probe sees what is `Send`");
}
