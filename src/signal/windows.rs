//! Each future leaves its waker with the console's events.

use std::future::poll_fn;
use std::io;

use crate::os::{ConsoleEvent, Events};

pub(super) async fn interrupt() -> io::Result<()> {
    wait(ConsoleEvent::Interrupt).await
}

pub(super) async fn terminate() -> io::Result<()> {
    wait(ConsoleEvent::Terminate).await
}

async fn wait(event: ConsoleEvent) -> io::Result<()> {
    let mut events = Events::new(event)?;
    poll_fn(|cx| events.poll(cx)).await;
    Ok(())
}
