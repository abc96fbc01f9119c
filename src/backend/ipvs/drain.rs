//! Real servers that get no new connections: they go once their last connection has ended.

use super::desired::{Baseline, Held, Server};
use crate::kernel::ipvs::VirtualServers;
use crate::model::{Frontend, ServerOperation};
use anyhow::{Result, bail};
use std::net::SocketAddr;
use std::sync::Arc;

/// Looks at virtual servers and removes those of their draining real servers that have no
/// connections left. Returns how many.
pub(super) fn sweep(
    servers: &mut dyn VirtualServers,
    frontends: impl IntoIterator<Item = Frontend>,
    baseline: &mut Baseline,
) -> Result<usize> {
    let mut done: Vec<(Frontend, SocketAddr)> = Vec::new();
    for at in frontends {
        let Some(held) = baseline.servers.get(&at).filter(|held| !held.is_foreign) else { continue };
        let there = servers.real_servers(&at)?;
        let drains = held.server.reals.iter().filter(|real| real.weight == 0);
        let idle = drains.filter(|real| {
            let found = there.iter().find(|(it, _)| it.address == real.address);
            found.is_none_or(|(_, connections)| *connections == 0)
        });
        done.extend(idle.map(|real| (at, real.address)));
    }
    let removals: Vec<_> = done.iter().map(|(at, real)| ServerOperation::RemoveReal(*at, *real)).collect();
    if !removals.is_empty() {
        let refused = servers.run(&removals)?;
        if let Some(refused) = refused.iter().find(|refused| !refused.is_missing()) {
            bail!("{}", refused.message);
        }
    }
    for (at, real) in &done {
        forget(baseline, *at, *real);
    }
    Ok(done.len())
}

fn forget(baseline: &mut Baseline, at: Frontend, real: SocketAddr) {
    let Some(held) = baseline.servers.get(&at) else { return };
    let mut server = Server::clone(&held.server);
    server.reals.retain(|it| it.address != real);
    let held = Held { server: Arc::new(server), ..held.clone() };
    baseline.note_server(at, Some(held));
}
