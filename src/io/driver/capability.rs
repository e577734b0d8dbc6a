//! What this kernel gives, and what it refused: what, why, and how to get it.
//!
//! Where the kernel lacks something, the driver says so here and goes on without that one thing; where a limit leaves room
//! for less than was asked for, it takes less and says that. Only what it cannot do without at all is an error: an
//! [`io::Error`] whose source is an [`Unavailable`]. A program that cannot do without something else says so
//! ([`DriverConfig::required`](super::DriverConfig::required)), and gets the same error.

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
    /// The kernel's own name for it, in lower case; or the setting's, where it is a size.
    pub name: &'static str,
    /// Whether it is in use, if only in part.
    pub in_use: bool,
    /// `None` if it is in use as asked for, else why not and what to do about it.
    pub refused: Option<Refusal>,
}

/// Why a feature is not in use, or only in part.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// What happened.
    pub why: String,
    /// What gives the feature, and what is done without it.
    pub remedy: &'static str,
}

impl Capabilities {
    /// Whether the feature of that name is in use, if only in part.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.features.iter().any(|feature| feature.name == name && feature.in_use)
    }

    /// The features that are not in use, or only in part: what a program shows to whoever can change it.
    ///
    /// ```
    /// let runtime = veloq::Runtime::new()?;
    /// for feature in runtime.capabilities().iter().flat_map(|worker| worker.refused()) {
    ///     eprintln!("{feature}");
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn refused(&self) -> impl Iterator<Item = &Feature> {
        self.features.iter().filter(|feature| feature.refused.is_some())
    }

    /// Notes that a feature is in use as asked for.
    pub(crate) fn grant(&mut self, name: &'static str) {
        self.features.push(Feature { name, in_use: true, refused: None });
    }

    /// Notes that a feature is in use, but less of it than was asked for.
    pub(crate) fn grant_part(&mut self, name: &'static str, why: impl fmt::Display, remedy: &'static str) {
        let refused = Some(Refusal { why: why.to_string(), remedy });
        self.features.push(Feature { name, in_use: true, refused });
    }

    /// Notes that a feature is not in use.
    pub(crate) fn refuse(&mut self, name: &'static str, why: impl fmt::Display, remedy: &'static str) {
        let refused = Some(Refusal { why: why.to_string(), remedy });
        self.features.push(Feature { name, in_use: false, refused });
    }

    /// Whether every feature that the program insists on is in use as asked for.
    ///
    /// # Errors
    ///
    /// With an [`Unavailable`] as source, for the first that is not; `InvalidInput` for a name that nothing has.
    pub(crate) fn check_required(&self, required: &[&'static str]) -> io::Result<()> {
        for name in required {
            let Some(feature) = self.features.iter().find(|feature| feature.name == *name) else {
                let message = format!("{name:?} is required, but no feature has that name");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            };
            if let Some(Refusal { why, remedy }) = &feature.refused {
                let unavailable = Unavailable { need: name, found: why.clone(), remedy };
                return Err(unavailable.into_error(io::ErrorKind::Unsupported));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match (self.in_use, &self.refused) {
            (true, None) => "in use",
            (true, Some(_)) => "in part",
            (false, _) => "not in use",
        };
        write!(f, "{}: {how}", self.name)?;
        match &self.refused {
            None => Ok(()),
            Some(Refusal { why, remedy }) => write!(f, ": {why}; {remedy}"),
        }
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.features.iter().try_for_each(|feature| writeln!(f, "{feature}"))
    }
}

/// The kernel connection, a worker's thread, or a feature that the program insists on, cannot be had. The source of the
/// [`io::Error`] that building a runtime returns.
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
