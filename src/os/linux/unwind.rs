//! From a copy of a thread's registers and stack to its callers, and from their addresses to names.
//!
//! Frames are found by the tables that the compiler writes for panics, so code needs no frame pointers. The tables are read from the
//! files that the process is made of, not from memory: a library that is unloaded meanwhile is then a frame without a caller, and no
//! access to what is gone. All of this takes milliseconds, allocates and locks, so it is done on another thread than the one that was
//! interrupted.

use std::fs;
use std::path::PathBuf;

use framehop::{ExplicitModuleSectionInfo, FrameAddress, Module, Unwinder};
use object::{Object, ObjectSection, ObjectSegment};

use super::interrupt::Registers;
use crate::os::Frame;

#[cfg(target_arch = "aarch64")]
use framehop::aarch64::{CacheAarch64 as Cache, UnwindRegsAarch64 as Regs, UnwinderAarch64 as Tables};
#[cfg(target_arch = "x86_64")]
use framehop::x86_64::{CacheX86_64 as Cache, UnwindRegsX86_64 as Regs, UnwinderX86_64 as Tables};

/// Frames at most. The newest are what matters, and a recursion that ran away is longer than anybody reads.
const FRAMES_MAX: usize = 128;

/// The frames of a thread that was interrupted at `registers`, the newest first. `stack` is a copy of its newest words.
pub(crate) fn frames(registers: &Registers, stack: &[u64]) -> Vec<Frame> {
    let mut tables: Tables<Vec<u8>> = Tables::new();
    modules().into_iter().for_each(|module| tables.add_module(module));
    let mut cache = Cache::<_>::new();
    let mut word = |address: u64| {
        let offset = address.checked_sub(registers.stack).ok_or(())?;
        let index = usize::try_from(offset / 8).map_err(|_| ())?;
        stack.get(index).copied().ok_or(())
    };
    let start = starting(registers);
    let mut walk = tables.iter_frames(registers.instruction, start, &mut cache, &mut word);
    let mut frames = Vec::new();
    while frames.len() < FRAMES_MAX
        && let Ok(Some(address)) = walk.next()
    {
        resolve(address, &mut frames);
    }
    frames
}

#[cfg(target_arch = "x86_64")]
fn starting(registers: &Registers) -> Regs {
    Regs::new(registers.instruction, registers.stack, registers.frame)
}

#[cfg(target_arch = "aarch64")]
fn starting(registers: &Registers) -> Regs {
    Regs::new(registers.link, registers.stack, registers.frame)
}

/// Adds the frame of an address, and those of the functions that were inlined there.
fn resolve(address: FrameAddress, frames: &mut Vec<Frame>) {
    let before = frames.len();
    // Of a return address the call before it is meant.
    let lookup = usize::try_from(address.address_for_lookup()).unwrap_or(0);
    backtrace::resolve(std::ptr::without_provenance_mut(lookup), |symbol| {
        frames.push(Frame {
            address: address.address(),
            function: symbol.name().map(|name| format!("{name:#}")),
            file: symbol.filename().map(PathBuf::from),
            line: symbol.lineno(),
        });
    });
    if frames.len() == before {
        frames.push(Frame { address: address.address(), function: None, file: None, line: None });
    }
}

/// The files whose code the process has mapped, with their tables.
fn modules() -> Vec<Module<Vec<u8>>> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().filter_map(|line| Mapped::parse(line)?.module()).collect()
}

/// A line of `/proc/self/maps`: executable memory that is part of a file.
#[derive(Debug, PartialEq, Eq)]
struct Mapped<'a> {
    start: u64,
    end: u64,
    offset: u64,
    path: &'a str,
}

impl Mapped<'_> {
    fn parse(line: &str) -> Option<Mapped<'_>> {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let executable = fields.next()?.contains('x');
        let offset = u64::from_str_radix(fields.next()?, 16).ok()?;
        let path = &line[line.find('/')?..];
        let number = |text| u64::from_str_radix(text, 16).ok();
        executable.then_some(Mapped { start: number(start)?, end: number(end)?, offset, path })
    }

    fn module(&self) -> Option<Module<Vec<u8>>> {
        let bytes = fs::read(self.path).ok()?;
        let file = object::File::parse(&*bytes).ok()?;
        // Where the file's address 0 came to lie.
        let base = file.segments().find_map(|segment| {
            let (offset, _) = segment.file_range();
            let begins_here = (self.offset..self.offset + (self.end - self.start)).contains(&offset);
            let shift = segment.address().wrapping_sub(offset);
            begins_here.then(|| self.start.wrapping_sub(self.offset).wrapping_sub(shift))
        })?;
        let section = |name| {
            let section = file.section_by_name(name)?;
            let range = section.address()..section.address() + section.size();
            Some((range, section.uncompressed_data().ok()?.into_owned()))
        };
        let (text, frames, index) = (section(".text")?, section(".eh_frame")?, section(".eh_frame_hdr"));
        let (index_svma, index) = index.unzip();
        let sections = ExplicitModuleSectionInfo {
            base_svma: 0,
            text_svma: Some(text.0),
            text: Some(text.1),
            eh_frame_svma: Some(frames.0),
            eh_frame: Some(frames.1),
            eh_frame_hdr_svma: index_svma,
            eh_frame_hdr: index,
            ..ExplicitModuleSectionInfo::default()
        };
        Some(Module::new(self.path.to_owned(), self.start..self.end, base, sections))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A path with a space, a deleted file, memory of no file: each has its own look, and none may end the walk.
    #[test]
    fn only_executable_memory_of_files_is_a_module() {
        let line = "7f00a000-7f00c000 r-xp 00002000 08:01 1234  /usr/lib/a b.so (deleted)";
        let mapped = Mapped {
            start: 0x7f00_a000,
            end: 0x7f00_c000,
            offset: 0x2000,
            path: "/usr/lib/a b.so (deleted)",
        };
        assert_eq!(Mapped::parse(line), Some(mapped));
        assert_eq!(Mapped::parse("7f00a000-7f00c000 rw-p 00002000 08:01 1234  /usr/lib/a.so"), None);
        assert_eq!(Mapped::parse("7ffc1000-7ffc3000 r-xp 00000000 00:00 0  [vdso]"), None);
        assert_eq!(Mapped::parse(""), None);
    }
}
