//! What this kernel gives, and what it refused: what, why, and how to get it.
//!
//! Where the kernel lacks something, the driver says so here and goes on without that one thing. Only what it cannot do
//! without at all is an error: an [`io::Error`] whose source is an [`Unavailable`].

use std::error::Error;
use std::fmt;
use std::io;

/// The features a driver asked for, in the order it asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Every feature that was asked for.
    pub features: Vec<Feature>,
}

/// One feature, and whether the kernel gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Feature {
    /// The kernel's own name for it, in lower case.
    pub name: &'static str,
    /// `None` if it is in use, else why not and what to do about it.
    pub refused: Option<Refusal>,
}

/// Why a feature is not in use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// What happened.
    pub why: String,
    /// What gives the feature, and what is done without it.
    pub remedy: &'static str,
}

impl Capabilities {
    /// Whether the feature of that name is in use.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.features.iter().any(|feature| feature.name == name && feature.refused.is_none())
    }

    pub(crate) fn granted(&mut self, name: &'static str) {
        self.features.push(Feature { name, refused: None });
    }

    pub(crate) fn refused(&mut self, name: &'static str, why: impl fmt::Display, remedy: &'static str) {
        self.features.push(Feature { name, refused: Some(Refusal { why: why.to_string(), remedy }) });
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for feature in &self.features {
            match &feature.refused {
                None => writeln!(f, "{}: in use", feature.name)?,
                Some(refusal) => {
                    writeln!(f, "{}: not in use: {}; {}", feature.name, refusal.why, refusal.remedy)?
                }
            }
        }
        Ok(())
    }
}

/// The kernel connection cannot be had at all. The source of the [`io::Error`] that building a runtime returns.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unavailable {
    /// What Veloq needs.
    pub need: &'static str,
    /// What it found.
    pub found: String,
    /// What to do.
    pub remedy: &'static str,
}

impl Unavailable {
    pub(crate) fn into_error(self, kind: io::ErrorKind) -> io::Error {
        io::Error::new(kind, self)
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Veloq needs {}; found: {}; remedy: {}", self.need, self.found, self.remedy)
    }
}

impl Error for Unavailable {}
