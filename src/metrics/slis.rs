//! Service level indicators as every Kubernetes component has them: what became of the checks behind
//! `/healthz` of the metrics server. That server has one check, which it passes by answering.

use prometheus::{Encoder, IntCounterVec, IntGaugeVec, Opts, Registry, Result, TextEncoder};

/// Counts the checks. They are shown on a page of their own and can be forgotten.
pub struct Slis {
    registry: Registry,
    last: IntGaugeVec,
    total: IntCounterVec,
}

impl Slis {
    pub(super) fn new() -> Result<Slis> {
        let last = Opts::new("kubernetes_healthcheck", "[BETA] Whether the last run of a check went well");
        let total = Opts::new("kubernetes_healthchecks_total", "[BETA] Runs of a check, by result");
        let slis = Slis {
            registry: Registry::new(),
            last: IntGaugeVec::new(last, &["name", "type"])?,
            total: IntCounterVec::new(total, &["name", "type", "status"])?,
        };
        slis.registry.register(Box::new(slis.last.clone()))?;
        slis.registry.register(Box::new(slis.total.clone()))?;
        Ok(slis)
    }

    /// A client asked `/healthz` and gets an answer.
    pub fn observe_ping(&self) {
        self.last.with_label_values(&["ping", "healthz"]).set(1);
        self.total.with_label_values(&["ping", "healthz", "success"]).inc();
    }

    /// Forgets all that was counted.
    pub fn reset(&self) {
        self.last.reset();
        self.total.reset();
    }

    /// In the text format.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_are_counted_until_they_are_forgotten() {
        let slis = Slis::new().unwrap();
        let text = |slis: &Slis| String::from_utf8(slis.encode().unwrap()).unwrap();
        assert_eq!(text(&slis), "");
        slis.observe_ping();
        slis.observe_ping();
        let shown = text(&slis);
        assert!(shown.contains("kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n"), "{shown}");
        let total = "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 2\n";
        assert!(shown.contains(total), "{shown}");
        slis.reset();
        assert_eq!(text(&slis), "");
    }
}
