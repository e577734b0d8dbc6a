//! The address-stable home of operations in flight.
//!
//! Three parties meet in a slot. The *future* holds a [`Token`]; the *driver* owns the slot; the *kernel* holds pointers
//! into it. The kernel always wins: a slot is freed only after its terminal completion was reaped.
//!
//! ```text
//! Free ─▶ Queued ─▶ Armed ─▶ Answered ─▶ Done ─▶ Free        Queued: not yet visible to the kernel, removable
//!           └─────────┴─ future dropped ─▶ Abandoned ─▶ Free  Answered: result known, the kernel still owns the buffer
//! ```
//!
//! A slot has two parts that live apart. Its *head* (state, generation, who waits) is the driver's alone. Its *payload*
//! (the operation with its buffer, and the block of addresses and headers the kernel reads) is what the kernel may
//! touch, so it sits in an `UnsafeCell` that no exclusive reference ever covers while the operation is in flight.
//! Pages of slots are allocated as they are needed and never moved or freed while the slab lives; a slab that is dropped
//! with operations in flight leaks those pages, because a kernel thread may still write to them.
//!
//! User code (wakers, destructors of buffers) is never run here: who must be told goes on a list, and what must be dropped
//! becomes a [`Notice`]; the owner of the slab deals with both after it has ended its borrow.
//!
//! Every operation passes here three times: it is put in, it is answered, it is taken out. Each is one look at the head, and
//! what a head holds is plain data, an [`Answer`] too: what came with it gets its owner when it leaves.
#![expect(unsafe_code, reason = "typed values live in untyped slots whose address the kernel knows")]

use std::any::TypeId;
use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit, align_of, size_of};
use std::task::Context;

use super::token::Token;
use super::waiter::Waiter;
use super::{Answer, DescriptorName, DriverHandle, Yields};

/// Bytes a payload may have to live in its slot. Every operation of ours fits with a `FixedBuf`, a `Vec` or `Bytes`
/// (asserted beside the encodings); a larger one (a foreign buffer type of unusual size) is boxed and counted.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 320;

/// Slots per page: 64 heads and payloads come to about 32 KiB, so a quiet worker has one page and a busy one few.
const SLOTS_PER_PAGE: u32 = 64;

/// Where the payload of one slot lies.
#[repr(C, align(16))]
struct Storage(UnsafeCell<MaybeUninit<[u8; PAYLOAD_BYTES_MAX]>>);

/// What the slab must know of a payload's type.
#[derive(Debug)]
pub(crate) struct PayloadType {
    /// For dumps: the operation's name.
    pub(crate) kind: &'static str,
    /// The type, checked whenever a payload is taken out.
    id: TypeId,
    /// Finishes an abandoned operation whose terminal completion is in its slot.
    release: fn(&DriverHandle, Token),
    /// Has the operation let go of what the kernel needs no more between two answers.
    let_go: unsafe fn(*mut Storage),
    /// Drops the payload where it lies.
    drop: unsafe fn(*mut Storage),
}

impl PayloadType {
    /// Describes `P`. `release` is called once, with no borrow held, for an abandoned `P` that has its answer.
    pub(crate) const fn of<P: LetGo + 'static>(
        kind: &'static str,
        release: fn(&DriverHandle, Token),
    ) -> PayloadType {
        PayloadType { kind, id: TypeId::of::<P>(), release, let_go: let_go::<P>, drop: drop_payload::<P> }
    }
}

/// A payload that is abandoned between two answers.
pub(crate) trait LetGo {
    /// Lets go of what the kernel needs no more. It reads, until the second answer, what the payload's buffer points to, and
    /// nothing in the payload itself.
    fn let_go(&mut self);
}

/// # Safety
///
/// As [`drop_payload`], but for this: the kernel may still use the memory that the payload points to.
unsafe fn let_go<P: LetGo>(room: *mut Storage) {
    // SAFETY: the caller vouches for a live `P`, or a box of one; the kernel has no business in the payload itself any more.
    let payload =
        unsafe { if is_inline::<P>() { &mut *room.cast::<P>() } else { &mut **room.cast::<Box<P>>() } };
    payload.let_go();
}

/// # Safety
///
/// `room` holds a `P` that [`StableSlab::insert`] wrote there and nobody has taken out; the kernel is done with it.
unsafe fn drop_payload<P>(room: *mut Storage) {
    if is_inline::<P>() {
        // SAFETY: the caller vouches for a live `P` at this address, which `insert` aligned.
        unsafe { room.cast::<P>().drop_in_place() }
    } else {
        // SAFETY: for such a `P`, `insert` wrote a `Box<P>`.
        unsafe { room.cast::<Box<P>>().drop_in_place() }
    }
}

/// Whether a `P` lives in the slot itself.
pub(crate) const fn is_inline<P>() -> bool {
    size_of::<P>() <= PAYLOAD_BYTES_MAX && align_of::<P>() <= align_of::<Storage>()
}

/// Where an operation stands. The slot of one that is `Answered` or `Done` owns what the kernel gave.
#[derive(Clone, Copy)]
enum State {
    Free { next: u32 },
    Queued,
    Armed,
    Answered(Answer),
    Done(Answer),
    Abandoned,
}

/// How far an operation is, in a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OperationState {
    /// The kernel has not seen it: the submission ring is full, or the turn has not ended.
    Queued,
    /// The kernel has it.
    InFlight,
    /// The kernel has answered, and the task has not asked; or it still holds the buffer of a zero-copy send.
    Answered,
    /// Its future was dropped, and the kernel has not answered the cancellation.
    Abandoned,
}

impl fmt::Display for OperationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OperationState::Queued => "queued",
            OperationState::InFlight => "in flight",
            OperationState::Answered => "answered",
            OperationState::Abandoned => "abandoned",
        })
    }
}

/// What a slot tells of its operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OperationInSlot {
    /// The operation's name.
    pub(crate) kind: &'static str,
    /// What it is done to.
    pub(crate) descriptor: Option<DescriptorName>,
    /// How far it is.
    pub(crate) state: OperationState,
    /// The last reading of the worker's clock before it came.
    pub(crate) since_ns: u64,
}

/// The driver's own half of a slot.
struct Head {
    generation: u32,
    state: State,
    payload_type: Option<&'static PayloadType>,
    about: About,
    waiter: Option<Waiter>,
    /// The last reading of the clock before the operation came, for dumps.
    since_ns: u64,
    /// What a multishot operation has yielded and nobody has taken. Keeps its capacity from tenant to tenant.
    items: VecDeque<Answer>,
}

/// What a slot is told of its operation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About {
    /// Whether answers with `more` are items (a multishot operation) or the first of two stages (`send_zc`).
    pub(crate) multishot: bool,
    /// With so many items waiting for a turn the driver asks the kernel to stop.
    pub(crate) items_max: usize,
    /// What a successful answer's number is.
    pub(crate) yields: Yields,
    /// What the operation is done to, for dumps.
    pub(crate) descriptor: Option<DescriptorName>,
}

/// Something to do once the driver's borrow has ended, because it may run user code.
pub(crate) enum Notice {
    /// Nobody waits as this one any more: drop it.
    Forget(Waiter),
    /// An abandoned operation has its terminal completion: finish it and free the slot.
    Release(Token),
    /// Nobody will ask for this: drop what came with it. Its descriptor is closed, its buffer goes back.
    Discard(Yields, Answer),
}

/// What [`StableSlab::abandon`] asks of the driver.
#[must_use]
pub(crate) enum Abandon {
    /// The kernel has it: ask for cancellation. The slot frees itself when the answer is in.
    Cancel,
    /// The kernel never saw it, or is done with it: release it now.
    ReleaseNow,
    /// The token is stale.
    Nothing,
}

/// The slots of one driver.
pub(crate) struct StableSlab {
    heads: Vec<Head>,
    pages: ManuallyDrop<Vec<Box<[Storage]>>>,
    free_head: u32,
    slots_max: u32,
    in_flight: usize,
    occupied: usize,
    boxed: u64,
    stale: u64,
    /// Whose operations have news.
    woken: Vec<Waiter>,
    notices: Vec<Notice>,
    /// Multishot operations that reached their bound of items since the last turn.
    overfull: Vec<Token>,
    /// The last reading of the clock.
    now_ns: u64,
}

/// End of the free list.
const NO_SLOT: u32 = u32::MAX;

impl StableSlab {
    /// An empty slab that will hold `slots_max` operations at the most.
    pub(crate) fn new(slots_max: u32) -> StableSlab {
        StableSlab {
            heads: Vec::new(),
            pages: ManuallyDrop::new(Vec::new()),
            free_head: NO_SLOT,
            slots_max: slots_max.min(Token::RESERVED),
            in_flight: 0,
            occupied: 0,
            boxed: 0,
            stale: 0,
            woken: Vec::new(),
            notices: Vec::new(),
            overfull: Vec::new(),
            now_ns: 0,
        }
    }

    /// Operations whose terminal completion has not been reaped.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Slots that are not free: in flight, or answered and not yet asked for.
    pub(crate) fn occupied(&self) -> usize {
        self.occupied
    }

    /// Payloads that were too large for their slot, ever.
    pub(crate) fn boxed(&self) -> u64 {
        self.boxed
    }

    /// Completions whose token named no operation in flight, ever.
    pub(crate) fn stale(&self) -> u64 {
        self.stale
    }

    /// Whether there is room for one more operation.
    #[inline]
    pub(crate) fn has_room(&mut self) -> bool {
        self.free_head != NO_SLOT || self.grow()
    }

    /// Puts `payload` into a free slot, queued. Its stable address comes for encoding; the reference must end before the kernel
    /// sees the entry. (What does not fit is refused before, by [`has_room`](Self::has_room): a payload that may come back would
    /// be moved once more.)
    ///
    /// # Panics
    ///
    /// If there is no room.
    #[inline]
    pub(crate) fn insert<P: 'static>(
        &mut self,
        payload: P,
        payload_type: &'static PayloadType,
        about: About,
        waiter: Option<Waiter>,
    ) -> (Token, &mut P) {
        debug_assert_eq!(payload_type.id, TypeId::of::<P>());
        assert!(self.has_room(), "a full slab refuses before");
        let index = self.free_head;
        let head = &mut self.heads[index as usize];
        let State::Free { next } = head.state else { panic!("slot {index} on the free list is not free") };
        self.free_head = next;
        head.state = State::Queued;
        head.payload_type = Some(payload_type);
        head.about = about;
        head.waiter = waiter;
        head.since_ns = self.now_ns;
        let token = Token::new(index, head.generation);
        self.in_flight += 1;
        self.occupied += 1;
        let room = self.room(index);
        // SAFETY: the slot was free, so its room holds no value and the kernel knows nothing of it; `room` is valid for
        // `PAYLOAD_BYTES_MAX` bytes at alignment 16, which `is_inline` compared with `P`'s; a `Box` always fits. The reference
        // is the only one: it borrows the slab, and the kernel is shown nothing while it lasts.
        let payload = unsafe {
            if is_inline::<P>() {
                room.cast::<P>().write(payload);
                &mut *room.cast::<P>()
            } else {
                self.boxed += 1;
                room.cast::<Box<P>>().write(Box::new(payload));
                &mut **room.cast::<Box<P>>()
            }
        };
        (token, payload)
    }

    /// The kernel can see it now.
    pub(crate) fn arm(&mut self, token: Token) {
        let head =
            self.head(token).expect("an operation is armed right after it was inserted or left the backlog");
        assert!(matches!(head.state, State::Queued), "only what is queued can be armed");
        head.state = State::Armed;
    }

    /// Whether the operation still waits to be shown to the kernel (it may have been removed meanwhile).
    pub(crate) fn is_queued(&mut self, token: Token) -> bool {
        self.head(token).is_some_and(|head| matches!(head.state, State::Queued))
    }

    /// Stores an answer. Stale ones are counted, and what they carry is discarded.
    pub(crate) fn complete(&mut self, token: Token, answer: Answer) {
        let Some(head) = live(&mut self.heads, token) else {
            self.stale += 1;
            self.notices.push(Notice::Discard(Yields::Number, answer));
            return;
        };
        let terminal = !answer.more;
        match head.state {
            // The usual case: an answer that somebody waits for.
            State::Queued | State::Armed if terminal => head.state = State::Done(answer),
            State::Queued | State::Armed if head.about.multishot => {
                head.items.push_back(answer);
                self.overfull.extend((head.items.len() == head.about.items_max).then_some(token));
            }
            State::Queued | State::Armed => {
                head.state = State::Answered(answer);
                return;
            }
            // The second stage says only that the kernel has let go of the buffer.
            State::Answered(first) if terminal => head.state = State::Done(Answer { more: false, ..first }),
            State::Abandoned if terminal => {
                head.state = State::Done(answer);
                self.in_flight -= 1;
                self.notices.push(Notice::Release(token));
                return;
            }
            State::Abandoned => {
                self.notices.push(Notice::Discard(head.about.yields, answer));
                return self.let_go(token);
            }
            State::Answered(_) | State::Done(_) | State::Free { .. } => {
                self.stale += 1;
                return self.notices.push(Notice::Discard(head.about.yields, answer));
            }
        }
        self.in_flight -= usize::from(terminal);
        if let Some(waiter) = head.waiter.take() {
            self.woken.push(waiter);
        }
    }

    /// Has an abandoned operation that was answered, and will be answered again, let go of what the kernel needs no more.
    fn let_go(&mut self, token: Token) {
        let room = self.room(token.index());
        let Some(head) = self.head(token).filter(|head| !head.about.multishot) else { return };
        let let_go = head.payload_type.expect("an occupied slot knows its payload").let_go;
        // SAFETY: the slot is occupied by this type; the slab is borrowed exclusively, and of an operation with two answers the
        // kernel uses after the first only the memory that its buffer points to.
        unsafe { let_go(room) };
    }

    /// Takes the next multishot operation that had as many items waiting as it may when it was last answered, and has them
    /// still. Asked once a turn, after the tasks have run: whoever reads has taken them by then, and is not disturbed.
    pub(crate) fn pop_overfull(&mut self) -> Option<Token> {
        while let Some(token) = self.overfull.pop() {
            let unattended = self.head(token).is_some_and(|head| {
                matches!(head.state, State::Armed) && head.items.len() >= head.about.items_max
            });
            if unattended {
                return Some(token);
            }
        }
        None
    }

    /// What a successful answer's number is. A stale token's answer is a number: nobody can say otherwise.
    pub(crate) fn yields(&mut self, token: Token) -> Yields {
        self.head(token).map_or(Yields::Number, |head| head.about.yields)
    }

    /// Whether waking the present waiter would wake `cx`.
    pub(crate) fn is_waited_for_by(&mut self, token: Token, cx: &Context<'_>) -> bool {
        self.head(token).is_some_and(|head| head.waiter.as_ref().is_some_and(|waiter| waiter.will_wake(cx)))
    }

    /// Makes `waiter` the one to tell, and gives back the one before.
    pub(crate) fn replace_waiter(&mut self, token: Token, waiter: Waiter) -> Option<Waiter> {
        match self.head(token) {
            Some(head) => head.waiter.replace(waiter),
            None => Some(waiter),
        }
    }

    /// Takes the next item of a multishot operation, if one is there.
    pub(crate) fn pop_item(&mut self, token: Token) -> Option<(Yields, Answer)> {
        let head = self.head(token)?;
        Some((head.about.yields, head.items.pop_front()?))
    }

    /// Items of a multishot operation that nobody has taken.
    pub(crate) fn items(&mut self, token: Token) -> usize {
        self.head(token).map_or(0, |head| head.items.len())
    }

    /// Whether the terminal completion is in.
    pub(crate) fn is_done(&mut self, token: Token) -> bool {
        self.head(token).is_some_and(|head| matches!(head.state, State::Done(_)))
    }

    /// The answer of a finished operation, and what it yields; [`take`](Self::take) comes next.
    #[inline]
    pub(crate) fn answer(&mut self, token: Token) -> Option<(Yields, Answer)> {
        let head = self.head(token)?;
        let State::Done(answer) = head.state else { return None };
        Some((head.about.yields, answer))
    }

    /// Takes a finished operation out and frees its slot.
    ///
    /// # Panics
    ///
    /// If it is not finished, or is not a `P`: both are errors of ours.
    #[inline]
    pub(crate) fn take<P: 'static>(&mut self, token: Token) -> P {
        let head = &self.heads[token.index() as usize];
        assert!(
            matches!(head.state, State::Done(_)) && head.generation == token.generation(),
            "a slot is taken only after its terminal answer"
        );
        self.vacate::<P>(token)
    }

    /// Takes back an operation that the kernel never saw: its encoding failed.
    pub(crate) fn withdraw<P: 'static>(&mut self, token: Token) -> P {
        assert!(self.is_queued(token), "only an operation that the kernel never saw can be withdrawn");
        let waiter = self.head(token).and_then(|head| head.waiter.take());
        self.notices.extend(waiter.map(Notice::Forget));
        self.in_flight -= 1;
        self.vacate::<P>(token)
    }

    /// The future is gone. What it left is finished when the kernel has answered, or now.
    pub(crate) fn abandon(&mut self, token: Token) -> Abandon {
        let Some(head) = self.head(token) else { return Abandon::Nothing };
        let waiter = head.waiter.take();
        let yields = head.about.yields;
        let items = std::mem::take(&mut head.items);
        let next = match head.state {
            State::Armed => {
                head.state = State::Abandoned;
                Abandon::Cancel
            }
            State::Answered(_) => {
                head.state = State::Abandoned;
                self.let_go(token);
                Abandon::Cancel
            }
            State::Queued => {
                head.state = State::Done(Answer::cancelled());
                self.in_flight -= 1;
                Abandon::ReleaseNow
            }
            State::Done(_) => Abandon::ReleaseNow,
            State::Abandoned | State::Free { .. } => Abandon::Nothing,
        };
        // The waiter's drop may be user code (a foreign waker), as may be that of an item's buffer.
        self.notices.extend(waiter.map(Notice::Forget));
        self.notices.extend(items.into_iter().map(|item| Notice::Discard(yields, item)));
        next
    }

    /// How to finish an abandoned operation that has its answer.
    pub(crate) fn release_fn(&mut self, token: Token) -> Option<fn(&DriverHandle, Token)> {
        let head = self.head(token)?;
        matches!(head.state, State::Done(_)).then_some(head.payload_type?.release)
    }

    /// Takes every answer that nobody has asked for and nobody will: the driver ends, and what came with them is to be dropped.
    pub(crate) fn take_unasked(&mut self, mut each: impl FnMut(Yields, Answer)) {
        for head in &mut self.heads {
            let yields = head.about.yields;
            head.items.drain(..).for_each(|item| each(yields, item));
            if let State::Answered(answer) | State::Done(answer) = &mut head.state {
                each(yields, std::mem::replace(answer, Answer::cancelled()));
            }
        }
    }

    /// Who is to be told, and what is to be done, once the borrow has ended. Nothing if there is neither.
    pub(crate) fn take_notices(&mut self) -> Option<(Vec<Waiter>, Vec<Notice>)> {
        self.has_notices().then(|| (std::mem::take(&mut self.woken), std::mem::take(&mut self.notices)))
    }

    /// Gives emptied lists back, so that their capacity is used again.
    pub(crate) fn return_notices(&mut self, woken: Vec<Waiter>, notices: Vec<Notice>) {
        debug_assert!(woken.is_empty() && notices.is_empty());
        if self.woken.is_empty() {
            self.woken = woken;
        }
        if self.notices.is_empty() {
            self.notices = notices;
        }
    }

    /// Whether anybody must be told of anything.
    pub(crate) fn has_notices(&self) -> bool {
        !self.woken.is_empty() || !self.notices.is_empty()
    }

    /// The operations that the kernel has: what a shutdown must cancel, and a dump shows.
    pub(crate) fn in_kernel(&self) -> impl Iterator<Item = (Token, &'static str)> + '_ {
        self.heads.iter().zip(0u32..).filter_map(|(head, index)| match head.state {
            State::Armed | State::Answered(_) | State::Abandoned => {
                Some((Token::new(index, head.generation), head.payload_type?.kind))
            }
            State::Free { .. } | State::Queued | State::Done(_) => None,
        })
    }

    /// Notes the time, so that what is submitted from now on knows its age.
    pub(crate) fn note_time(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
    }

    /// Describes every operation that is not free, with the address of the task that it will wake.
    pub(crate) fn each(&self, mut each: impl FnMut(OperationInSlot, Option<*const ()>)) {
        for head in &self.heads {
            let state = match head.state {
                State::Free { .. } => continue,
                State::Queued => OperationState::Queued,
                State::Armed => OperationState::InFlight,
                State::Answered(_) | State::Done(_) => OperationState::Answered,
                State::Abandoned => OperationState::Abandoned,
            };
            let Some(payload_type) = head.payload_type else { continue };
            let operation = OperationInSlot {
                kind: payload_type.kind,
                descriptor: head.about.descriptor,
                state,
                since_ns: head.since_ns,
            };
            each(operation, head.waiter.as_ref().and_then(Waiter::task));
        }
    }

    /// The operations that wait to be shown to the kernel.
    pub(crate) fn queued(&self) -> impl Iterator<Item = Token> + '_ {
        self.heads.iter().zip(0u32..).filter_map(|(head, index)| match head.state {
            State::Queued => Some(Token::new(index, head.generation)),
            _ => None,
        })
    }

    /// Moves the value out of its slot and frees the slot, which is occupied.
    #[inline]
    fn vacate<P: 'static>(&mut self, token: Token) -> P {
        let room = self.room(token.index());
        let head = &mut self.heads[token.index() as usize];
        let payload_type = head.payload_type.take().expect("an occupied slot knows its payload");
        assert!(payload_type.id == TypeId::of::<P>(), "a payload is taken out as what it was put in");
        debug_assert!(head.items.is_empty(), "items are taken before the terminal completion");
        head.state = State::Free { next: self.free_head };
        head.generation = head.generation.wrapping_add(1);
        self.free_head = token.index();
        self.occupied -= 1;
        // SAFETY: the id says that `insert` wrote a `P` here, or a `Box<P>` for one of this size. The kernel is done with it (its
        // terminal completion was reaped, or it never saw the entry), and the slot is free now: it is moved out only once.
        unsafe { if is_inline::<P>() { room.cast::<P>().read() } else { *room.cast::<Box<P>>().read() } }
    }

    #[inline]
    fn head(&mut self, token: Token) -> Option<&mut Head> {
        live(&mut self.heads, token)
    }

    /// The room of a slot, at the alignment of a [`Storage`].
    #[inline]
    fn room(&self, index: u32) -> *mut Storage {
        let page = &self.pages[(index / SLOTS_PER_PAGE) as usize];
        page[(index % SLOTS_PER_PAGE) as usize].0.get().cast()
    }

    /// Adds a page of free slots, unless the bound is reached.
    #[expect(clippy::cast_possible_truncation, reason = "there are fewer than `slots_max` heads, a u32")]
    fn grow(&mut self) -> bool {
        let first = self.heads.len() as u32;
        let count = SLOTS_PER_PAGE.min(self.slots_max - first.min(self.slots_max));
        if count == 0 {
            return false;
        }
        let page = (0..SLOTS_PER_PAGE).map(|_| Storage(UnsafeCell::new(MaybeUninit::uninit())));
        self.pages.push(page.collect());
        for index in first..first + count {
            let next = if index + 1 == first + count { NO_SLOT } else { index + 1 };
            self.heads.push(Head {
                generation: 0,
                state: State::Free { next },
                payload_type: None,
                about: About {
                    multishot: false,
                    items_max: usize::MAX,
                    yields: Yields::Number,
                    descriptor: None,
                },
                waiter: None,
                since_ns: 0,
                items: VecDeque::new(),
            });
        }
        self.free_head = first;
        true
    }
}

/// The head of the slot that a token names, unless its operation is gone.
#[inline]
fn live(heads: &mut [Head], token: Token) -> Option<&mut Head> {
    let head = heads.get_mut(token.index() as usize)?;
    let live = head.generation == token.generation() && !matches!(head.state, State::Free { .. });
    live.then_some(head)
}

impl Drop for StableSlab {
    fn drop(&mut self) {
        for (head, index) in self.heads.iter().zip(0u32..) {
            if let (State::Done(_) | State::Queued, Some(payload_type)) = (&head.state, head.payload_type) {
                // SAFETY: the slot is occupied by this type, and the kernel is done with it or never saw it.
                unsafe { (payload_type.drop)(self.room(index)) };
            }
        }
        let kernel_has_some = self.in_kernel().next().is_some();
        if !kernel_has_some {
            // SAFETY: dropped once, here; no slot is known to the kernel, and every value inside was dropped above.
            unsafe { ManuallyDrop::drop(&mut self.pages) };
        }
    }
}

impl fmt::Debug for StableSlab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StableSlab")
            .field("in_flight", &self.in_flight)
            .field("occupied", &self.occupied)
            .field("slots", &self.heads.len())
            .finish_non_exhaustive()
    }
}
