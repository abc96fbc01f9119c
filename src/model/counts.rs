//! What the kernel counts of a Service's traffic.

/// Since whatever counts was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were opened; for UDP, flows.
    pub connections: u64,
    /// What they carried, where that is counted.
    pub traffic: Option<Traffic>,
}

/// What connections carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

impl Counts {
    /// The growth from an earlier reading of the same counters to this one. They only grow, so that a
    /// smaller number means that the kernel reset them in between.
    #[must_use]
    pub fn since(self, earlier: Counts) -> Counts {
        let growth = (self.connections.checked_sub(earlier.connections)).and_then(|connections| {
            let traffic = match (self.traffic, earlier.traffic) {
                (Some(now), Some(then)) => Some(now.minus(then)?),
                (now, _) => now,
            };
            Some(Counts { connections, traffic })
        });
        growth.unwrap_or(self)
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Counts) -> Counts {
        let traffic = match (self.traffic, other.traffic) {
            (Some(one), Some(other)) => Some(one.plus(other)),
            (one, other) => one.or(other),
        };
        Counts { connections: self.connections.saturating_add(other.connections), traffic }
    }
}

impl Traffic {
    fn minus(self, other: Traffic) -> Option<Traffic> {
        Some(Traffic {
            packets_in: self.packets_in.checked_sub(other.packets_in)?,
            packets_out: self.packets_out.checked_sub(other.packets_out)?,
            bytes_in: self.bytes_in.checked_sub(other.bytes_in)?,
            bytes_out: self.bytes_out.checked_sub(other.bytes_out)?,
        })
    }

    fn plus(self, other: Traffic) -> Traffic {
        Traffic {
            packets_in: self.packets_in.saturating_add(other.packets_in),
            packets_out: self.packets_out.saturating_add(other.packets_out),
            bytes_in: self.bytes_in.saturating_add(other.bytes_in),
            bytes_out: self.bytes_out.saturating_add(other.bytes_out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_number_means_that_all_counters_began_anew() {
        let counts = |connections, bytes_in| {
            let traffic = Some(Traffic { bytes_in, packets_in: connections, ..Traffic::default() });
            Counts { connections, traffic }
        };
        assert_eq!(counts(7, 700).since(counts(5, 600)), counts(2, 100));
        assert_eq!(counts(2, 700).since(counts(5, 600)), counts(2, 700));
        assert_eq!(counts(7, 70).since(counts(5, 600)), counts(7, 70));
        let uncounted = Counts { connections: 3, traffic: None };
        assert_eq!(uncounted.since(Counts::default()), uncounted);
    }
}
