//! Connection tracking: its limits at start, and stale flows while we run.

use crate::config::ConntrackConfig;
use crate::conntrack::{Reconciled, Reconciler, settings};
use crate::kernel::cpus;
use crate::kernel::sysctl::Sysctls;
use crate::metrics::Metrics;
use anyhow::{Result, bail};
use std::sync::Arc;

/// Sets limits and timeouts. Traffic flows without them, too: what cannot be set is said, and ends
/// the start only where that was asked for.
pub(super) fn set_limits(config: &ConntrackConfig) -> Result<()> {
    let wanted = settings::wanted(config, cpus::online());
    let failures = settings::apply(&wanted, &Sysctls::default(), &Sysctls::at("/sys/module"));
    for failure in &failures {
        tracing::warn!(error = format!("{failure:#}"), "cannot set a conntrack parameter");
    }
    match failures.into_iter().next() {
        Some(first) if config.strict => {
            bail!("could not set conntrack parameters (--conntrack-strict): {first:#}")
        }
        _ => Ok(()),
    }
}

/// Starts deleting stale flows. Without it new connections go right even so.
pub(super) fn reconciler(metrics: Arc<Metrics>) -> Option<Reconciler> {
    match Reconciler::start(Box::new(move |run| record(&metrics, run))) {
        Ok(reconciler) => Some(reconciler),
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "flows of endpoints that are gone stay");
            None
        }
    }
}

fn record(metrics: &Metrics, run: &Reconciled) {
    let family = run.family;
    metrics.conntrack_duration(family).observe(run.elapsed.as_secs_f64());
    match &run.deleted {
        Ok(deleted) => {
            metrics.conntrack_deleted(family).inc_by(*deleted);
            tracing::debug!(%family, deleted, elapsed = ?run.elapsed, "stale flows deleted");
        }
        Err(error) => {
            tracing::warn!(%family, error = format!("{error:#}"), "cannot delete stale flows, will try again");
        }
    }
}
