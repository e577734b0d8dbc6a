//! The list in which the tasks of a set stand once they have ended, in that order, so that nobody has to look through all of
//! them for it.
//!
//! Each task of a set has an *entry*, whose waker lies in the task's join slot. Being woken, which happens when the task completes,
//! on whichever worker, the entry pushes itself on the list and wakes the one who waits. List and waiter share one word:
//!
//! ```text
//!            ┌──────────── poll: take all ────────────┐
//!            ▼                                        │
//!          Empty ──────────── push ────────────▶ Entries ◀─┐
//!            │ ▲                                      ▲ └──┘ push
//!  poll: wait│ │poll: take the waker back             │
//!            ▼ │                                      │
//!          Waiting(waker) ──── push: wake it ─────────┘          any ── drop ──▶ Closed: what is pushed is dropped
//! ```
//!
//! The waiter is a box whose address is in the word, with a bit that says so. Hence whoever changes the word from Waiting to
//! something else has the box, alone; and no wake is lost, since there is no moment at which a waiter has looked and is
//! not yet seen: it looks and appears in the same instruction.
//!
//! Entries are linked newest first; the reader turns them round. Taking is always taking all, so a pusher's comparison is not
//! fooled by an entry that went and came back: whatever has that address now is what the new entry is linked to.
//!
//! A push is a compare-and-swap, tried again only when another one came between. It allocates nothing and waits for nobody.
#![expect(unsafe_code, reason = "one word holds a list of counted entries or a boxed waker")]

use std::collections::VecDeque;
use std::fmt;
use std::ptr;
use std::task::{Context, Poll, Wake, Waker};

use crate::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::sync::atomic::{AtomicBool, AtomicPtr};
use crate::sync::{Arc, mutant};

/// The reader's end of the list.
pub(crate) struct Finished {
    word: Arc<Word>,
}

/// See the text of this module. Null is Empty; an address is the newest entry's, or a waker's if WAITING is in it.
struct Word(AtomicPtr<()>);

/// One task's place in the set.
struct Entry {
    /// Where it goes when it is woken.
    word: Arc<Word>,
    place: usize,
    /// Whether it has been pushed. Who turns this on pushes, and nobody turns it off.
    pushed: AtomicBool,
    /// The one that was pushed before.
    next: AtomicPtr<Entry>,
}

impl Finished {
    /// An empty list.
    pub(crate) fn new() -> Finished {
        Finished { word: Arc::new(Word(AtomicPtr::new(ptr::null_mut()))) }
    }

    /// A waker that puts `place` on the list when it is first woken.
    pub(crate) fn entry(&self, place: usize) -> Waker {
        let (word, next) = (Arc::clone(&self.word), AtomicPtr::new(ptr::null_mut()));
        Waker::from(std::sync::Arc::new(Entry { word, place, pushed: AtomicBool::new(false), next }))
    }

    /// Moves all that is on the list into `places`, which is empty, oldest first. Whether there was any.
    pub(crate) fn take(&mut self, places: &mut VecDeque<usize>) -> bool {
        // Acquire: pairs with the exchanges in `push`, each of which continues the release sequence of those before, so every
        // entry of the list is visible.
        let found = self.word.0.swap(ptr::null_mut(), Acquire);
        match Found::of(found) {
            Found::Waiting(waker) => drop(waker),
            Found::Entries(newest) => collect(newest, places),
            Found::Closed => unreachable!("the list is closed when the reader's end is dropped"),
        }
        !places.is_empty()
    }

    /// As `take`, but if there is none, has `cx` woken by the next push.
    pub(crate) fn poll(&mut self, cx: &Context<'_>, places: &mut VecDeque<usize>) -> Poll<()> {
        if self.take(places) {
            return Poll::Ready(());
        }
        let waker = Box::into_raw(Box::new(cx.waker().clone()));
        let waiting = waker.map_addr(|address| address | WAITING).cast::<()>();
        if mutant("finished: wait without a look") {
            self.word.0.store(waiting, Release);
            return Poll::Pending;
        }
        // Release: publishes the waker to whoever takes it.
        if self.word.0.compare_exchange(ptr::null_mut(), waiting, Release, Relaxed).is_ok() {
            return Poll::Pending;
        }
        // SAFETY: made just above, and the word never had it.
        drop(unsafe { Box::from_raw(waker) });
        // Only the reader makes the word empty again, so what was pushed is there.
        self.take(places);
        Poll::Ready(())
    }
}

impl Drop for Finished {
    fn drop(&mut self) {
        // Without this, an entry that is pushed later would hold the word that holds the entry. Acquire: as in `take`. Release is
        // not needed, since the pusher that finds it closed looks at nothing of ours.
        let closed = ptr::without_provenance_mut(CLOSED);
        let found = if mutant("finished: leave it open") {
            self.word.0.swap(ptr::null_mut(), Acquire)
        } else {
            self.word.0.swap(closed, Acquire)
        };
        match Found::of(found) {
            Found::Waiting(waker) => drop(waker),
            Found::Entries(newest) => collect(newest, &mut VecDeque::new()),
            Found::Closed => unreachable!("there is one reader's end, and it is dropped once"),
        }
    }
}

impl fmt::Debug for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finished").finish_non_exhaustive()
    }
}

impl Wake for Entry {
    fn wake(self: std::sync::Arc<Entry>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &std::sync::Arc<Entry>) {
        // Relaxed: this only counts to one.
        if !self.pushed.swap(true, Relaxed) {
            self.push();
        }
    }
}

impl Entry {
    /// Puts the entry on the list, and wakes whoever waits. The caller turned `pushed` on.
    fn push(self: &std::sync::Arc<Entry>) {
        // The list's reference. Ours, which the caller keeps, holds the word as well, whatever the reader does meanwhile.
        let listed = std::sync::Arc::into_raw(std::sync::Arc::clone(self)).cast_mut();
        // Relaxed: what is there is only compared, until the exchange makes it ours.
        let mut found = self.word.0.load(Relaxed);
        loop {
            if found.addr() == CLOSED {
                // SAFETY: made just above, and no list has it.
                return drop(unsafe { std::sync::Arc::from_raw(listed) });
            }
            let below = if found.addr() & WAITING == 0 { found.cast() } else { ptr::null_mut() };
            // Relaxed: published by the exchange.
            self.next.store(below, Relaxed);
            // Release: publishes the entry. Acquire: pairs with the Release of a waiter's exchange; its waker is visible.
            let order = if mutant("finished: pushed relaxed") { Relaxed } else { AcqRel };
            match self.word.0.compare_exchange_weak(found, listed.cast(), order, Relaxed) {
                Ok(_) => break,
                Err(now) => found = now,
            }
        }
        if found.addr() & WAITING != 0
            && let Found::Waiting(Some(waker)) = Found::of(found)
        {
            waker.wake();
        }
    }
}

/// What a word held that has been replaced, by the one who replaced it.
enum Found {
    /// Empty, or somebody who waited.
    Waiting(Option<Box<Waker>>),
    Entries(ptr::NonNull<Entry>),
    Closed,
}

impl Found {
    /// Takes over what `word` stood for: the caller has just exchanged it for something else, and calls this once.
    ///
    /// (Not an `unsafe fn`, because only the functions above call it, and each has made the exchange.)
    fn of(word: *mut ()) -> Found {
        if word.addr() == CLOSED {
            return Found::Closed;
        }
        if word.addr() & WAITING != 0 {
            let waker = word.map_addr(|address| address & !WAITING).cast::<Waker>();
            // SAFETY: `poll` made the box and gave it to the word, and whoever replaces the word has what it held, alone.
            return Found::Waiting(Some(unsafe { Box::from_raw(waker) }));
        }
        match ptr::NonNull::new(word.cast::<Entry>()) {
            Some(newest) => Found::Entries(newest),
            None => Found::Waiting(None),
        }
    }
}

/// Puts the places of a list that was taken into `places`, oldest first, and drops its entries.
fn collect(newest: ptr::NonNull<Entry>, places: &mut VecDeque<usize>) {
    let mut next = newest.as_ptr().cast_const();
    while !next.is_null() {
        // SAFETY: an entry on the list comes with the reference that `push` left, once, since it is pushed once; and the list was
        // taken as a whole by our caller.
        let entry = unsafe { std::sync::Arc::from_raw(next) };
        places.push_front(entry.place);
        // Relaxed: the exchange that took the list has acquired it.
        next = entry.next.load(Relaxed).cast_const();
    }
}

/// In the word's address: it is a waker's. Both a waker and an entry are aligned to more than this and the next.
const WAITING: usize = 1;

/// Instead of an address: the reader is gone.
const CLOSED: usize = 2;

const _: () = assert!(align_of::<Waker>() > CLOSED && align_of::<Entry>() > CLOSED);
