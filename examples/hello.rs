//! A task on every worker, and a word from each back to the first.
//!
//! Shows `#[veloq::main]`, `workers`, `spawn_to` and its `JoinHandle`: the closure travels to the worker that is named, the
//! future that it makes runs there, and its output comes back over the mesh. What this machine does not give the runtime, or not
//! wholly, it says first.
//!
//! ```sh
//! cargo run --example hello
//! ```
#![expect(clippy::print_stdout, reason = "printing is what it is for")]

#[veloq::main]
async fn main() -> Result<(), veloq::task::JoinError> {
    for feature in veloq::runtime::capabilities().refused() {
        eprintln!("hello: {feature}");
    }
    let greetings: Vec<_> = veloq::workers()
        .map(|worker| {
            veloq::spawn_to(worker, async || {
                let thread = std::thread::current();
                format!("hello from {} on thread {}", veloq::current_worker(), thread.name().unwrap_or("?"))
            })
        })
        .collect();
    for greeting in greetings {
        println!("{}", greeting.await?);
    }
    Ok(())
}
