//! From a thread's registers to the name of the function that it is in.

use std::path::PathBuf;

use super::interrupt::Registers;
use crate::os::Frame;

/// Where a thread was interrupted, and the functions that were inlined there, the newest first. Its callers are not looked for: the module
/// `interrupt` says why.
pub(crate) fn frames(registers: &Registers, _stack: &[u64]) -> Vec<Frame> {
    let address = registers.instruction;
    let mut frames = Vec::new();
    backtrace::resolve(std::ptr::without_provenance_mut(usize::try_from(address).unwrap_or(0)), |symbol| {
        frames.push(Frame {
            address,
            function: symbol.name().map(|name| format!("{name:#}")),
            file: symbol.filename().map(PathBuf::from),
            line: symbol.lineno(),
        });
    });
    if frames.is_empty() {
        frames.push(Frame { address, function: None, file: None, line: None });
    }
    frames
}
