//! Where a packet to a Service ends.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where a packet ends: from the plan over the tracer to what people read. `E` is what is known of the endpoint: in a plan the
/// list that is balanced over, in a trace its address, for people nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<E = ()> {
    /// An endpoint gets it.
    Served(E),
    /// Refused at once: the Service has no endpoint anywhere.
    Refused,
    /// Dropped silently: there are endpoints, but none that the Local policy allows here, so a load balancer or a client
    /// tries another node; or the client is outside of the source ranges.
    Dropped,
    /// No rule takes it: routed unchanged.
    Untouched,
}

impl<E> Verdict<E> {
    /// The same, whatever the endpoint.
    #[must_use]
    pub fn kind(&self) -> Verdict {
        match self {
            Verdict::Served(_) => Verdict::Served(()),
            Verdict::Refused => Verdict::Refused,
            Verdict::Dropped => Verdict::Dropped,
            Verdict::Untouched => Verdict::Untouched,
        }
    }
}

impl Verdict {
    const ALL: [Verdict; 4] = [Verdict::Served(()), Verdict::Refused, Verdict::Dropped, Verdict::Untouched];

    fn as_str(self) -> &'static str {
        match self {
            Verdict::Served(()) => "served",
            Verdict::Refused => "refused",
            Verdict::Dropped => "dropped",
            Verdict::Untouched => "untouched",
        }
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Verdict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = String::deserialize(deserializer)?;
        let verdict = Verdict::ALL.into_iter().find(|verdict| verdict.as_str() == word);
        verdict.ok_or_else(|| D::Error::custom(format_args!("{word:?} is no verdict")))
    }
}
