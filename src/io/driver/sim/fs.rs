//! Encodings of `io::op::fs` for the simulation, which has no files: each of them ends as `Unsupported`.
#![expect(unsafe_code, reason = "an encoding is a promise about addresses")]

use std::io;

use super::{Request, SimDriver};
use crate::io::buf::{IoBuf, IoBufMut, IoBufMutVec, IoBufVec};
use crate::io::driver::PlatformOp;
use crate::io::op::fs::{
    Allocate, MakeDirectory, Open, ReadAt, ReadVectoredAt, Remove, Rename, Status, Sync, Truncate, WriteAt,
    WriteVectoredAt,
};

/// Encodes an operation on files: not at all.
macro_rules! no_files {
    ($($operation:ident $(<$buf:ident: $bound:ident>)?),+ $(,)?) => {$(
        // SAFETY: there is no request.
        unsafe impl$(<$buf: $bound>)? PlatformOp<SimDriver> for $operation$(<$buf>)? {
            type Block = ();

            fn encode(&mut self, (): &mut (), _: &mut SimDriver) -> io::Result<Request> {
                Err(io::Error::new(io::ErrorKind::Unsupported, "the simulation has no files"))
            }
        }
    )+};
}

no_files!(
    Open, ReadAt<B: IoBufMut>, WriteAt<B: IoBuf>, ReadVectoredAt<V: IoBufMutVec>, WriteVectoredAt<V: IoBufVec>, Sync,
    Allocate, Truncate, Status, Rename, Remove, MakeDirectory,
);
