//! The attribute macros of Veloq, to be used as `#[veloq::main]` and `#[veloq::test]`.
//!
//! Both turn an `async fn` into a plain one that builds a runtime and runs the body on worker 0. The async function is kept
//! whole, as an item inside the plain one that bears its name, so the compiler checks the body against the signature that was
//! written: types are inferred from it, and errors point at the user's own lines.
//!
//! ```text
//! #[veloq::main(workers = 2)]              fn main() -> io::Result<()> {
//! async fn main() -> io::Result<()> {          async fn main() -> io::Result<()> { body }
//!     body                          ───▶       Runtime::block_on(
//! }                                                match Builder::new().workers(2).build() { .. },
//!                                                  main(),
//!                                              )
//!                                          }
//! ```
//!
//! The macros are thin on purpose: everything they can ask for is a method of `veloq::runtime::Builder`, and a program that
//! needs more of it writes those lines itself. This crate is an implementation detail; depend on `veloq`.

use proc_macro2::TokenStream;

mod expand;

use expand::{Entry, expand};

/// Runs an `async fn main` on a new runtime; the body is a task of worker 0, which is the calling thread.
///
/// The function may return whatever a plain `main` may return. It takes no arguments.
///
/// # Options
///
/// - `workers = N`: how many workers the runtime has. Left out, there is one for each core the process may use.
/// - `pin = false`: leaves the workers to the operating system's scheduler. Left out, each worker is pinned to its core.
///
/// ```ignore
/// #[veloq::main(workers = 2)]
/// async fn main() -> std::io::Result<()> {
///     println!("on {:?}", veloq::workers());
///     Ok(())
/// }
/// ```
///
/// # Errors
///
/// Where the kernel refuses what the runtime needs, the program says so on standard error, in the words of the runtime's typed
/// report (what is needed, what was found, how to fix it), and exits with status 1. That is no bug of the program, so it is not
/// a panic; a program that wants to handle it calls `veloq::runtime::Builder` itself.
#[proc_macro_attribute]
pub fn main(options: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    expand(Entry::Main, TokenStream::from(options), TokenStream::from(item)).into()
}

/// Makes an `async fn` a test that runs on a runtime of its own.
///
/// There is one worker and it is not pinned, so that tests running side by side do not queue for the same core. Other
/// attributes stay (`#[should_panic]`, `#[ignore]`, `#[cfg(..)]`), and a test may return a `Result` as a plain one may.
///
/// # Options
///
/// - `workers = N`: how many workers the runtime has; 1 when left out.
/// - `pin = true`: pins each worker to a core of its own.
///
/// ```ignore
/// #[veloq::test(workers = 2)]
/// async fn a_task_sent_to_the_other_worker_comes_back() {
///     assert_eq!(veloq::spawn_to(other, async move || 42).await.expect("the task ends"), 42);
/// }
/// ```
///
/// # Panics
///
/// The test panics, and so fails, when the runtime cannot be built.
#[proc_macro_attribute]
pub fn test(options: proc_macro::TokenStream, item: proc_macro::TokenStream) -> proc_macro::TokenStream {
    expand(Entry::Test, TokenStream::from(options), TokenStream::from(item)).into()
}
