//! Promise: what is sent from task to task over a channel arrives once and in order, wherever the two tasks run and however one of
//! them ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use veloq::mesh::{self, Receiver, Sender, TryRecvError, Unanswered};
use veloq::runtime::Builder;
use veloq::task::JoinHandle;
use veloq::{WorkerId, spawn_local, spawn_to};

/// Values of one stream: some hundred times around the ring.
const VALUES: u64 = 5_000;

fn runtime(workers: usize) -> veloq::Runtime {
    Builder::new().workers(workers).pin(false).build().expect("this kernel has io_uring")
}

fn other_worker() -> WorkerId {
    veloq::workers().last().expect("there is at least one")
}

async fn send_all(mut sender: Sender<u64>) {
    for value in 0..VALUES {
        sender.send(value).await.expect("it is being read");
    }
}

async fn receive_all(mut receiver: Receiver<u64>) {
    for value in 0..VALUES {
        assert_eq!(receiver.recv().await, Some(value));
    }
    assert_eq!(receiver.recv().await, None);
}

/// Both ends in tasks of each kind: a value that is lost, doubled or out of order fails, and a wake that is lost hangs.
#[test]
fn a_stream_arrives_in_order_whatever_kind_of_task_holds_its_ends() {
    runtime(2).block_on(async {
        type Start = fn(Sender<u64>) -> JoinHandle<()>;
        let senders: [Start; 4] = [
            |sender| spawn_local(send_all(sender)),
            |sender| spawn_to(other_worker(), async move || send_all(sender).await),
            |sender| veloq::spawn_pinned(async move || send_all(sender).await),
            |sender| veloq::spawn(send_all(sender)),
        ];
        type Receive = fn(Receiver<u64>) -> JoinHandle<()>;
        let receivers: [Receive; 4] = [
            |receiver| spawn_local(receive_all(receiver)),
            |receiver| spawn_to(other_worker(), async move || receive_all(receiver).await),
            |receiver| veloq::spawn_pinned(async move || receive_all(receiver).await),
            |receiver| veloq::spawn(receive_all(receiver)),
        ];
        for send in senders {
            for receive in receivers {
                let (sender, receiver) = mesh::channel(32);
                let (sent, received) = (send(sender), receive(receiver));
                sent.await.expect("it does not panic");
                received.await.expect("it does not panic");
            }
        }
    });
}

/// An end that is moved from worker to worker between two values must carry the protocol's state with it.
#[test]
fn the_ends_may_move_from_worker_to_worker_in_the_middle() {
    runtime(2).block_on(async {
        let (mut sender, mut receiver) = mesh::channel(4);
        for round in 0..200 {
            let (to, from) = (WorkerId::new(round % 2), WorkerId::new(round / 2 % 2));
            let sent = spawn_to(to, async move || {
                for n in 0..10 {
                    sender.send(round * 10 + n).await.expect("it is being read");
                }
                sender
            });
            let received = spawn_to(from, async move || {
                for n in 0..10 {
                    assert_eq!(receiver.recv().await, Some(round * 10 + n));
                }
                receiver
            });
            sender = sent.await.expect("it does not panic");
            receiver = received.await.expect("it does not panic");
        }
    });
}

/// Tasks that any worker may take whenever they are ready pass values around a ring of channels: an end that kept something of
/// the worker on which it was polled last would lose a wake.
#[test]
fn ends_in_tasks_that_are_stolen_lose_nothing() {
    const MEMBERS: u64 = 16;
    let moved = Arc::new(AtomicU64::new(0));
    // A round in which all stayed where they were shows nothing; on a busy machine there are some.
    const ROUNDS_MAX: usize = 100;
    for _ in 0..ROUNDS_MAX {
        assert_eq!(once_around(MEMBERS, &moved), MEMBERS * (VALUES / 10));
        if moved.load(Ordering::Relaxed) > 0 {
            return;
        }
    }
    panic!("void: nobody moved in {ROUNDS_MAX} rounds");
}

/// Lets so many tasks pass a one around, and counts how often one of them received on another worker than before. The sum of what was
/// received.
fn once_around(members: u64, moved: &Arc<AtomicU64>) -> u64 {
    runtime(2).block_on(async {
        let (mut sends, receives): (Vec<_>, Vec<_>) = (0..members).map(|_| mesh::channel(4)).unzip();
        sends.rotate_left(1);
        let tasks: Vec<_> = sends
            .into_iter()
            .zip(receives)
            .map(|(mut to_next, mut from_last)| {
                let moved = Arc::clone(moved);
                veloq::spawn(async move {
                    let (mut sum, mut here) = (0, veloq::current_worker());
                    to_next.send(1).await.expect("it is being read");
                    for _ in 0..VALUES / 10 {
                        let value: u64 = from_last.recv().await.expect("the ring stands to the end");
                        sum += value;
                        if std::mem::replace(&mut here, veloq::current_worker()) != here {
                            moved.fetch_add(1, Ordering::Relaxed);
                        }
                        // The last round is received by one who has gone already.
                        let _nobody_left = to_next.send(value).await;
                        // Work of unequal length, so that there is something to steal.
                        (0..(sum % 16) * 50).for_each(|_| std::hint::spin_loop());
                    }
                    (sum, to_next, from_last)
                })
            })
            .collect();
        let mut sum = 0;
        for task in tasks {
            let (part, _to_next, _from_last) = task.await.expect("it does not panic");
            sum += part;
        }
        sum
    })
}

/// A thread outside of the runtime has no turn at whose end it could ring; what it sends must arrive all the same.
#[test]
fn a_thread_outside_can_hold_an_end() {
    let (mut sender, mut receiver) = mesh::channel::<u64>(8);
    let (mut echoes, mut echoed) = mesh::channel::<u64>(8);
    let outside = thread::spawn(move || {
        for value in 0..VALUES {
            while sender.try_send(value).is_err() {
                thread::yield_now();
            }
            loop {
                match echoed.try_recv() {
                    Ok(echo) => break assert_eq!(echo, value),
                    Err(TryRecvError::Empty) => thread::yield_now(),
                    Err(TryRecvError::Closed) => panic!("the runtime goes last"),
                }
            }
        }
    });
    runtime(1).block_on(async move {
        while let Some(value) = receiver.recv().await {
            echoes.send(value).await.expect("it is being read");
        }
    });
    outside.join().expect("it does not panic");
}

/// Counts its drops.
struct Counted(Arc<AtomicUsize>);
impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Receivers that go while their senders are sending at full speed: each value must be dropped once, and every sender be told.
#[test]
fn a_receiver_that_goes_in_the_middle_leaves_nothing_and_is_seen() {
    let dropped = Arc::new(AtomicUsize::new(0));
    let made = runtime(2).block_on({
        let dropped = Arc::clone(&dropped);
        async move {
            let mut made = 0;
            for round in 0..500 {
                let (mut sender, mut receiver) = mesh::channel(8);
                let reads = spawn_to(other_worker(), async move || {
                    for _ in 0..round % 20 {
                        receiver.recv().await;
                    }
                });
                loop {
                    made += 1;
                    if sender.send(Counted(Arc::clone(&dropped))).await.is_err() {
                        break;
                    }
                }
                reads.await.expect("it does not panic");
                assert_eq!(dropped.load(Ordering::Relaxed), made, "nothing waits for the sender's end");
            }
            made
        }
    });
    assert_eq!(dropped.load(Ordering::Relaxed), made);
}

/// A question that is dropped unread, in the ring or with the task that had taken it, would leave its asker waiting.
#[test]
fn an_asker_is_told_when_nobody_will_answer() {
    runtime(2).block_on(async {
        for round in 0..200 {
            let (mut questions, mut asked) = mesh::channel::<mesh::Reply<u64>>(8);
            let serves = spawn_to(other_worker(), async move || {
                for n in 0..round % 5 {
                    let reply = asked.recv().await.expect("more are asked than answered");
                    reply.send(n).expect("somebody waits");
                }
                let _unanswered = asked.recv().await;
            });
            let mut answers = Vec::new();
            for _ in 0..8 {
                let (reply, answer) = mesh::reply();
                if questions.send(reply).await.is_ok() {
                    answers.push(answer);
                }
            }
            for (n, answer) in answers.into_iter().enumerate() {
                let n = n as u64;
                let expected = if n < round % 5 { Ok(n) } else { Err(Unanswered) };
                assert_eq!(answer.await, expected);
            }
            serves.await.expect("it does not panic");
        }
    });
}

/// Everybody asks everybody: an end of the mesh that went to the wrong worker, or a receiver that misses one of its rings, hangs.
#[test]
fn everybody_reaches_everybody_over_a_full_mesh() {
    let sums = runtime(3).block_on(async {
        let tasks: Vec<_> = veloq::workers()
            .zip(mesh::full::<(usize, u64)>(4))
            .map(|(worker, mut ends)| {
                spawn_to(worker, async move || {
                    let (mut sent, mut received, mut sum) = ([0; 3], 0, 0);
                    while received < 3 * 100 || sent != [100; 3] {
                        for (other, sent) in veloq::workers().zip(&mut sent) {
                            // Never waits for room without reading: two that did would wait for each other.
                            if *sent < 100 && ends.try_send(other, (worker.index(), 1)).is_ok() {
                                *sent += 1;
                            }
                        }
                        match ends.try_recv() {
                            Some((_from, value)) => (received, sum) = (received + 1, sum + value),
                            None => veloq::task::yield_now().await,
                        }
                    }
                    sum
                })
            })
            .collect();
        let mut sums = Vec::new();
        for task in tasks {
            sums.push(task.await.expect("it does not panic"));
        }
        sums
    });
    assert_eq!(sums.iter().sum::<u64>(), 900);
}
