//! What must exist before a connection can be accepted: on Linux, nothing.

use std::io;

use super::OwnedDescriptor;

/// Room for a connection: none is needed.
#[derive(Debug, Default)]
pub(crate) struct AcceptRoom(());

impl AcceptRoom {
    /// Makes the room for a connection of `listener`'s.
    #[expect(clippy::unnecessary_wraps, reason = "elsewhere it is a socket that may not be had")]
    pub(crate) fn for_one_of(_listener: &OwnedDescriptor) -> io::Result<AcceptRoom> {
        Ok(AcceptRoom(()))
    }
}
