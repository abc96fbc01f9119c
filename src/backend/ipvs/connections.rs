//! Counting what is on its way out and, if wanted, connections, for those who watch the node.

use super::desired::Baseline;
use crate::kernel::ipvs::VirtualServers;
use crate::model::{IpFamily, ServiceName};
use anyhow::Result;

/// Connections are counted once in so many rounds of two seconds: each Service costs a question.
const ROUNDS: usize = 5;

/// What was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// Of which family.
    pub family: IpFamily,
    /// Real servers that get no new connections.
    pub draining: usize,
    /// The connections of each Service, active and inactive; `None` if they were not counted now.
    pub connections: Option<Vec<(ServiceName, u64)>>,
}

/// Who is told, and how much.
pub(super) struct Counting {
    tell: Box<dyn Fn(ConnectionCounts)>,
    /// Connections are counted for so many Services at most, the first ones by name.
    services: usize,
    rounds: usize,
}

impl Counting {
    pub(super) fn new(tell: Box<dyn Fn(ConnectionCounts)>, services: usize) -> Self {
        Counting { tell, services, rounds: 0 }
    }

    /// One round.
    pub(super) fn take(
        &mut self,
        servers: &mut dyn VirtualServers,
        family: IpFamily,
        baseline: &Baseline,
    ) -> Result<()> {
        let is_due = self.services > 0 && self.rounds.is_multiple_of(ROUNDS);
        self.rounds += 1;
        let connections = if is_due { Some(self.connections(servers, baseline)?) } else { None };
        (self.tell)(ConnectionCounts { family, draining: baseline.draining_reals(), connections });
        Ok(())
    }

    fn connections(
        &self,
        servers: &mut dyn VirtualServers,
        baseline: &Baseline,
    ) -> Result<Vec<(ServiceName, u64)>> {
        let mut counts = Vec::new();
        for (name, part) in baseline.services.iter().take(self.services) {
            let mut sum = 0;
            for (at, _) in &part.servers {
                let reals = servers.real_servers(at)?;
                sum += reals.iter().map(|(_, connections)| u64::from(*connections)).sum::<u64>();
            }
            counts.push((name.clone(), sum));
        }
        Ok(counts)
    }
}
