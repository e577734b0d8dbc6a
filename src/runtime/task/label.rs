//! What is said of a task when it is spawned: where that is, what it is called if it is given a name, and its class.
//!
//! A label is two words and a byte of the header. A task without a name, which nearly every task is, pays for the second with a look
//! at its birth and one at its end; a name is shared by the task, its [`JoinError`](super::JoinError) and whoever asks.

use std::borrow::Cow;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;

/// What a task is known by.
#[derive(Clone)]
pub(crate) struct Label {
    pub(super) location: &'static Location<'static>,
    pub(super) name: Option<Name>,
    /// If it was said.
    pub(super) class: Option<Class>,
}

/// What a task is called. Behind a pointer, so that one word says that it is not.
pub(super) type Name = Arc<Cow<'static, str>>;

/// Who goes first: which of a worker's two queues a task waits in while it is ready. Set by
/// [`Builder::class`](crate::task::Builder::class).
///
/// *Foreground* tasks run in the order in which they became ready. *Background* tasks do so among themselves, and only when no
/// foreground task is ready, or when they have had less than their share of a busy worker's time
/// ([`Builder::background_percent`](crate::runtime::Builder::background_percent)). They run one at a time, and after each poll
/// the worker looks what else there is, so a foreground task waits for one poll of theirs at the most. How long such a poll takes
/// is theirs to say: [`yield_now`](crate::task::yield_now) in a long loop keeps it short.
///
/// Whoever waits for a background task waits for its share: what others need soon is not background work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// Requests and whatever somebody waits for.
    #[default]
    Foreground,
    /// Compaction, backup, scrubbing: work without a deadline.
    Background,
}

impl Label {
    /// The label of a task that the caller spawns.
    #[track_caller]
    pub(crate) fn here() -> Label {
        Label::from(Location::caller())
    }

    /// The same with a name.
    pub(crate) fn named(self, name: Cow<'static, str>) -> Label {
        Label { name: Some(Arc::new(name)), ..self }
    }

    /// The span of a task of this label, which follows from the one that spawns it.
    #[cfg(feature = "tracing")]
    pub(super) fn span(&self, id: super::TaskId) -> tracing::Span {
        let (id, name, location) = (id.as_u64(), self.name().map(AsRef::as_ref), self.location);
        let span = tracing::trace_span!(target: "veloq::task", parent: None, "task", id, name, %location);
        span.follows_from(tracing::Span::current());
        span
    }

    /// The same for a task of that class.
    pub(crate) fn of_class(self, class: Class) -> Label {
        Label { class: Some(class), ..self }
    }

    /// The same for a task that is of the class of the one that spawns it, unless another was said.
    pub(super) fn inheriting(self, class: Class) -> Label {
        Label { class: self.class.or(Some(class)), ..self }
    }

    /// The task's class: foreground unless another was said.
    pub(crate) fn class(&self) -> Class {
        self.class.unwrap_or_default()
    }

    /// Where the task was spawned.
    pub(crate) fn location(&self) -> &'static Location<'static> {
        self.location
    }

    /// What the task was called.
    pub(crate) fn name(&self) -> Option<&Cow<'static, str>> {
        self.name.as_deref()
    }
}

impl From<&'static Location<'static>> for Label {
    fn from(location: &'static Location<'static>) -> Label {
        Label { location, name: None, class: None }
    }
}

/// As it is read after a task's number: its name if it has one, and its place.
impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name:?}, ")?;
        }
        write!(f, "spawned at {}", self.location)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
