//! The end of a worker, with every kind of operation in flight, held by tasks in every state.
//!
//! What a driver owes at its end is shown beside the driver (`io::driver::tests::shut_down`). Here a real runtime ends, by its own
//! way: its worker drops the futures, lets go of what the mesh and the services hold, and has its driver drained, while handles,
//! futures that were begun on it, buffers' memory and, every other round, the driver itself are held beyond it.
//! `VELOQ_ROUNDS` says how many rounds; 100 take some seconds.

use std::path::{Path, PathBuf};

use crate::io::buf::{BufPool, Pool};
use crate::io::driver::tests::every_kind::{Holder, OtherEnds, Spare, force_async, rounds, start_every_kind};
use crate::io::driver::tests::{CANARY, Graveyard, poll_once};
use crate::io::driver::{DriverConfig, DriverHandle};
use crate::runtime::builder::Builder;
use crate::runtime::context::Context;
use crate::runtime::task::JoinHandle;
use crate::spawn_local;
use crate::sync::caught;
use crate::task::yield_now;

/// What outlives its worker.
struct Survivors {
    handles: Vec<JoinHandle<()>>,
    begun: Vec<Holder>,
    pool: Pool,
    driver: Option<DriverHandle>,
    other_ends: OtherEnds,
}

/// One runtime's life. Data arrives right before its end. Yields what is left of its worker's pool.
fn live_and_end(round: usize, yard: &Graveyard, folder: &Path) -> Spare {
    let config = DriverConfig { receive_buffers: 8, receive_buffer_bytes: 512, ..DriverConfig::default() };
    let builder = Builder::new().workers(1).pin(false).driver(config).pool_bytes(1 << 16);
    let runtime = builder.build().expect("a runtime can be had");
    let handle = runtime.handle();
    let survivors = runtime.block_on(begin(round, yard.clone(), folder.to_owned()));
    assert_eq!(handle.leaked_operations(), 0, "round {round}");
    let Survivors { handles, begun, pool, driver, other_ends } = survivors;
    assert!(
        handles.iter().all(JoinHandle::is_finished),
        "round {round}: whoever waits for a task hears of its end"
    );
    drop(begun);
    assert_eq!(yard.dropped(), yard.made(), "round {round}: each buffer is dropped, once");
    if let Some(driver) = &driver {
        assert_eq!((driver.in_flight(), driver.occupied()), (0, 0), "round {round}: {driver:?}");
    }
    let spare = Spare::of(&pool);
    // What comes now finds nobody.
    other_ends.write(2);
    drop(driver);
    assert_eq!(
        pool.stats().free_bytes + spare.bytes(),
        pool.stats().arena_bytes,
        "round {round}: every block is back"
    );
    spare
}

/// The main task: starts tasks that wait for each kind of operation, and ends in the middle.
async fn begin(round: usize, yard: Graveyard, folder: PathBuf) -> Survivors {
    let parts = Context::current();
    let (driver, pool) = (parts.driver.clone(), parts.pool.clone());
    drop(parts);
    force_async(&driver, round % 2 == 1);
    let (mut handles, mut begun, mut started) = (Vec::new(), Vec::new(), round);
    let mut other_ends = start_every_kind(&driver, &yard, &folder, |mut future| {
        started += 1;
        match started % 5 {
            // Nobody waits for the task; somebody does, beyond the worker's end; it is aborted in the middle.
            0 => drop(spawn_local(future)),
            1 | 2 => handles.push(spawn_local(future)),
            3 => {
                let task = spawn_local(future);
                drop(spawn_local(async move {
                    yield_now().await;
                    task.abort();
                }));
            }
            // Begun here, and then in nobody's hands until after the end.
            _ => begun.extend(poll_once(&mut future).is_pending().then_some(future)),
        }
    });
    for _ in 0..round % 4 {
        yield_now().await;
    }
    other_ends.write(1);
    other_ends.hang_up();
    if round.is_multiple_of(3) {
        yield_now().await;
    }
    let driver = (round % 4 < 2).then_some(driver);
    Survivors { handles, begun, pool, driver, other_ends }
}

/// A buffer that is freed while the kernel still writes to it shows as a canary disturbed; one that is never freed, as a
/// count that is short; an operation that never ends, as one that was leaked; a task that is forgotten, as a handle that waits.
#[test]
fn a_worker_ends_with_every_kind_of_operation_in_flight_and_nobody_writes_afterwards() {
    let (yard, folder) = (Graveyard::default(), tempfile::tempdir().expect("a folder"));
    let mut spares = Vec::new();
    for round in 0..rounds() {
        spares.push(live_and_end(round, &yard, folder.path()));
    }
    let disturbed = yard.disturbed() + spares.iter().map(Spare::disturbed).sum::<usize>();
    assert_eq!(disturbed, 0, "bytes were written to buffers that had been freed (canary {CANARY:#x})");
}

/// The storm must notice a worker whose drain leaves something out.
#[test]
fn a_worker_whose_drain_leaves_out_reads_is_caught() {
    let storm = "a_worker_ends_with_every_kind_of_operation_in_flight_and_nobody_writes_afterwards";
    let test = format!("runtime::tests::tear_down::{storm}");
    caught("the drain leaves out reads", &test, "bytes were written to buffers that had been freed");
}
