//! Promise: what may run anywhere is never stuck behind a worker that is busy.

use veloq::runtime::Builder;

/// A queue that lost or doubled a task between those who take from it would show in the sum, or hang.
#[test]
fn spawned_tasks_run_and_are_joined() {
    for _ in 0..20 {
        let runtime = Builder::new().workers(2).pin(false).build().expect("this kernel has io_uring");
        let sum = runtime.block_on(async {
            let tasks: Vec<_> = (0..1_000u64)
                .map(|n| {
                    veloq::spawn(async move {
                        veloq::task::yield_now().await;
                        n
                    })
                })
                .collect();
            let mut sum = 0;
            for task in tasks {
                sum += task.await.expect("no panic");
            }
            sum
        });
        assert_eq!(sum, 499_500);
    }
}
