//! Copies a file past the page cache, with several reads and writes in flight, and a progress bar.
//!
//! Shows Direct I/O and its rules. Addresses, offsets and lengths must be multiples of what the device works in: buffers
//! of `veloq::alloc` and whole chunks are. The end of a file is not, so the last chunk is written up to the next multiple,
//! and the file is cut to its length afterwards. Where a file system has no Direct I/O, the copy goes through the cache.
//!
//! ```sh
//! cargo run --release --example cp -- FROM TO
//! ```

use std::cell::Cell;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use veloq::fs::{self, Buffering, File, OpenOptions};
use veloq::time::Instant;

/// Bytes that one read or write moves: enough that its fixed costs vanish, and a multiple of every device's block.
const CHUNK_BYTES: usize = 128 * 1024;
/// Chunks on their way at once: a fast device wants its queue filled, and 1 MiB of buffers is a quarter of the worker's
/// pool, so that all of them are registered with the kernel.
const CHUNKS_IN_FLIGHT: usize = 8;
/// How often the bar is drawn.
const FRAME: Duration = Duration::from_millis(100);
/// Columns of the bar.
const BAR_COLUMNS: u64 = 40;

#[veloq::main(workers = 1)]
async fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [from, to] = arguments.as_slice() else {
        eprintln!(
            "usage: cp FROM TO\n\nCopies the file FROM to TO, which may be a directory, by Direct I/O."
        );
        return ExitCode::from(2);
    };
    for feature in veloq::runtime::capabilities().refused() {
        eprintln!("cp: {feature}");
    }
    match copy(Path::new(from), Path::new(to)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cp: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A copy under way, as its tasks share it.
struct Copy {
    from: File,
    to: File,
    len: u64,
    /// Where the next chunk begins that nobody has taken.
    next: Cell<u64>,
    /// Bytes that have arrived.
    done: Cell<u64>,
    started: Instant,
}

async fn copy(from_path: &Path, to_path: &Path) -> io::Result<()> {
    let from = open(OpenOptions::new().read(true), from_path).await?;
    let source = from.metadata().await?;
    if !source.is_file() {
        return Err(told(from_path, io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    let to_path = within(to_path, from_path).await;
    // Not truncated yet: it might be the source, by another name.
    let to = open(OpenOptions::new().write(true).create(true), &to_path).await?;
    let refuse = |what| Err(told(&to_path, io::Error::new(io::ErrorKind::InvalidInput, what)));
    if !to.metadata().await?.is_file() {
        return refuse("not a regular file");
    }
    if same_file(from_path, &to_path).await? {
        return refuse("the file that is to be copied");
    }
    // Before there is anything in it that others must not read. By a call that blocks.
    let (named, permissions) = (to_path.clone(), source.permissions());
    veloq::spawn_blocking(move || std::fs::set_permissions(named, permissions)).await??;
    to.set_len(0).await.map_err(|error| told(&to_path, error))?;
    if source.len() > 0 {
        // With its space reserved, the copy cannot fail half way for want of it. Not every file system can do that.
        match to.allocate(0, source.len()).await {
            Err(error) if error.kind() != io::ErrorKind::Unsupported => return Err(told(&to_path, error)),
            _ => {}
        }
    }

    let (len, started) = (source.len(), Instant::now());
    let copy = Rc::new(Copy { from, to, len, next: Cell::new(0), done: Cell::new(0), started });
    let bar = veloq::spawn_local(show(Rc::clone(&copy)));
    let chunks: Vec<_> =
        (0..CHUNKS_IN_FLIGHT).map(|_| veloq::spawn_local(copy_chunks(Rc::clone(&copy)))).collect();
    let mut result = Ok(());
    for task in chunks {
        // All of them are awaited, also after an error: none may write any more when this returns.
        result = task.await.map_err(io::Error::from).flatten().and(result);
    }
    bar.abort();
    draw(&copy);
    eprintln!();
    result?;
    copy.to.set_len(copy.len).await?;
    copy.to.sync_all().await
}

/// Moves chunks, one after the other, until none is left that nobody has taken.
async fn copy_chunks(copy: Rc<Copy>) -> io::Result<()> {
    let block = copy.to.direct_alignment().map_or(1, |alignment| alignment.offset);
    let block = usize::try_from(block).expect("a block is smaller than a chunk");
    let mut buf = veloq::alloc(CHUNK_BYTES);
    loop {
        let offset = copy.next.get();
        if offset >= copy.len {
            return Ok(());
        }
        copy.next.set(offset + CHUNK_BYTES as u64);
        let wanted = usize::try_from(copy.len - offset).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));

        // Asks for a whole chunk also at the end, as Direct I/O must, and takes what there is.
        let (read, mut chunk) = copy.from.read_exact_at(buf, offset).await;
        match read {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && chunk.len() >= wanted => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::Error::new(error.kind(), "the source became shorter while it was copied"));
            }
            read => read?,
        }
        chunk.truncate(wanted);
        chunk.resize(wanted.next_multiple_of(block), 0);
        let (written, chunk) = copy.to.write_all_at(chunk, offset).await;
        written?;
        copy.done.set(copy.done.get() + wanted as u64);
        buf = chunk;
        buf.clear();
    }
}

/// Opens a file for Direct I/O, or through the cache where the file system has none.
async fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let opened = match options.buffering(Buffering::Direct).open(path).await {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            eprintln!("{}: no Direct I/O on this file system; going through the cache", path.display());
            options.buffering(Buffering::Cached).open(path).await
        }
        opened => opened,
    };
    opened.map_err(|error| told(path, error))
}

/// `to`, or in it a file of the same name as `from` if it is a directory.
async fn within(to: &Path, from: &Path) -> PathBuf {
    match from.file_name() {
        Some(name) if fs::metadata(to).await.is_ok_and(|found| found.is_dir()) => to.join(name),
        _ => to.to_owned(),
    }
}

/// Whether two names lead to one file. That too is asked by calls that block.
async fn same_file(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (one.to_owned(), other.to_owned());
    veloq::spawn_blocking(move || same_file::is_same_file(one, other)).await?
}

/// Draws the bar until it is aborted.
async fn show(copy: Rc<Copy>) {
    let mut frames = veloq::time::interval(FRAME);
    loop {
        frames.tick().await;
        draw(&copy);
    }
}

/// `[#########-------]  56 %  1200 of 2143 MiB  1834 MiB/s`
#[expect(clippy::cast_precision_loss, reason = "a rate is shown in four digits")]
fn draw(copy: &Copy) {
    const MIB: u64 = 1 << 20;
    let (done, len) = (copy.done.get(), copy.len);
    let of = |whole: u64| (u128::from(done) * u128::from(whole)).checked_div(u128::from(len));
    let share =
        |whole: u64| of(whole).map_or(whole, |part| u64::try_from(part).expect("a part of the whole"));
    let filled = usize::try_from(share(BAR_COLUMNS)).expect("a few columns");
    let bar = "#".repeat(filled);
    let rate = done as f64 / MIB as f64 / copy.started.elapsed().as_secs_f64().max(1e-6);
    let width = usize::try_from(BAR_COLUMNS).expect("a few columns");
    let (percent, done, len) = (share(100), done / MIB, len / MIB);
    eprint!("\r[{bar:-<width$}] {percent:>3} %  {done} of {len} MiB  {rate:.0} MiB/s ");
}

/// The same error, with the file that it is about.
fn told(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}
