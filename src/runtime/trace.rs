//! What is told to `tracing`, if the crate is built with that feature. Without it every call here is nothing.
//!
//! | what | level, target | when |
//! |---|---|---|
//! | span `task` (`id`, `name`, `location`) | trace, `veloq::task` | from spawn to end, entered for each poll |
//! | `degraded` (`feature`, `why`, `remedy`) | debug, `veloq::runtime` | at start, for each feature that the kernel refused |
//! | `stall` | warn, `veloq::runtime` | a poll takes too long ([`stall`](super::stall)) |
//! | `receive ring dry` | warn, `veloq::runtime` | the kernel found the receive ring empty since the counters were last shared |
//! | `leaked` | error, `veloq::runtime` | a worker ended without getting back what the kernel had |
//! | `unfinished jobs` | warn, `veloq::runtime` | the runtime ended before blocking jobs did |

use super::stall::StallReport;
use super::worker_id::WorkerId;
use crate::io::driver::Capabilities;

/// Says which features the kernel refused.
#[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "nobody is told"))]
pub(super) fn degraded(capabilities: &Capabilities) {
    #[cfg(feature = "tracing")]
    for feature in &capabilities.features {
        if let Some(refusal) = &feature.refused {
            let (name, why, remedy) = (feature.name, &*refusal.why, refusal.remedy);
            tracing::debug!(target: "veloq::runtime", feature = name, why, remedy, "degraded");
        }
    }
}

/// Says that a worker is stuck.
#[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "nobody is told"))]
pub(super) fn stall(report: &StallReport) {
    #[cfg(feature = "tracing")]
    {
        let lasts_ms = u64::try_from(report.lasts.as_millis()).unwrap_or(u64::MAX);
        let worker = report.worker.index();
        tracing::warn!(target: "veloq::runtime", worker, lasts_ms, %report, "stall");
    }
}

/// Says that receives found no buffer.
#[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "nobody is told"))]
pub(super) fn ring_dry(worker: WorkerId, times: u64) {
    #[cfg(feature = "tracing")]
    if times > 0 {
        tracing::warn!(target: "veloq::runtime", worker = worker.index(), times, "receive ring dry");
    }
}

/// Says that a worker has ended without what the kernel had.
#[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "nobody is told"))]
pub(super) fn leaked(worker: WorkerId, operations: usize) {
    #[cfg(feature = "tracing")]
    if operations > 0 {
        tracing::error!(target: "veloq::runtime", worker = worker.index(), operations, "leaked");
    }
}

/// Says that the runtime has ended before blocking jobs did.
#[cfg_attr(not(feature = "tracing"), expect(unused_variables, reason = "nobody is told"))]
pub(super) fn unfinished_jobs(jobs: usize) {
    #[cfg(feature = "tracing")]
    if jobs > 0 {
        tracing::warn!(target: "veloq::runtime", jobs, "unfinished jobs");
    }
}
