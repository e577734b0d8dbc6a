//! What a task is known by besides its number: where it was spawned, and what it was called if it was given a name.
//!
//! A label is two words of the header. A task without a name, which nearly every task is, pays for the second with one store
//! at its birth and one look at its end; a name is shared by the task, its [`JoinError`](super::JoinError) and whoever asks.

use std::borrow::Cow;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;

/// What a task is known by.
#[derive(Clone)]
pub(crate) struct Label {
    location: &'static Location<'static>,
    /// Behind a pointer, so that one word says that there is none.
    name: Option<Arc<Cow<'static, str>>>,
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
        Label { location, name: None }
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
