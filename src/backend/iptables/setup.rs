//! What is done once, before the first rule: what the node can do, and the settings that node
//! ports on localhost need.

use super::base::Features;
use crate::kernel::iptables::Version;
use crate::kernel::sysctl::Sysctls;
use crate::plan::FamilySettings;
use anyhow::{Context, Result};

const BE_LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";
const ROUTE_LOCALNET: &str = "net/ipv4/conf/all/route_localnet";

/// Prepares the node.
///
/// # Errors
/// If node ports on localhost are wanted and `route_localnet` cannot be switched on.
pub(super) fn prepare(settings: &FamilySettings) -> Result<()> {
    if settings.localhost_node_ports {
        Sysctls::default()
            .ensure(ROUTE_LOCALNET, "1")
            .context("node ports on 127.0.0.1 need this setting; --iptables-localhost-nodeports=false does without them")?;
    }
    Ok(())
}

/// What the node can do, as it is now.
pub(super) fn features(masquerade_bit: u8, tools: Version) -> Features {
    let sysctls = Sysctls::default();
    Features {
        masquerade_mark: 1 << u32::from(masquerade_bit.min(31)),
        random_fully: tools >= Version::RANDOM_FULLY,
        be_liberal: sysctls.read(BE_LIBERAL).is_ok_and(|value| value.trim() != "0"),
        counts_invalid: false,
        counts_localhost: false,
        tree_threshold: usize::MAX,
    }
}
