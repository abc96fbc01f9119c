//! Where the node would send Services' packets: its routes, and whether interfaces forward.

use crate::explain::{EndpointView, FamilyView, Unrouted};
use crate::kernel::addresses::{InterfaceAddress, interface_addresses};
use crate::kernel::sysctl::Sysctls;
use crate::model::IpFamily;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The node's routes of a family, as its sockets meet them. The kernel is asked once for each address.
#[derive(Debug, Default)]
pub(super) struct Routes {
    interfaces: Vec<InterfaceAddress>,
    /// The address that the kernel sends from, or the number of its error.
    sources: RefCell<HashMap<IpAddr, Result<IpAddr, i32>>>,
}

impl Routes {
    pub(super) fn of(family: IpFamily) -> Routes {
        Routes { interfaces: interface_addresses(family).unwrap_or_default(), sources: RefCell::default() }
    }

    /// The interface by which packets leave for an address: the one that has the address that the kernel would send
    /// from.
    pub(super) fn interface_towards(&self, to: SocketAddr) -> Option<String> {
        let from = self.source_towards(to).ok()?;
        self.interfaces.iter().find(|it| it.address == from).map(|it| it.interface.clone())
    }

    fn source_towards(&self, to: SocketAddr) -> Result<IpAddr, i32> {
        *self
            .sources
            .borrow_mut()
            .entry(to.ip())
            .or_insert_with(|| source_towards(to).map_err(|error| error.raw_os_error().unwrap_or_default()))
    }

    /// The used endpoints and the cluster IPs that the node has no route to, each with its Services.
    pub(super) fn lacking(&self, services: &[(&str, &FamilyView)]) -> Vec<Unrouted> {
        let mut found: BTreeMap<(&'static str, bool), Unrouted> = BTreeMap::new();
        let ports = services.iter().flat_map(|(name, it)| it.ports.iter().map(move |port| (*name, port)));
        for (service, port) in ports {
            let used = port.endpoints.iter().filter(|endpoint| endpoint.is_used());
            let used = used.filter_map(EndpointView::address).map(|to| (to, true));
            let cluster_ip = port.frontends.iter().filter(|it| it.kind == "cluster IP");
            let cluster_ip = cluster_ip.filter_map(|it| it.address.parse().ok()).map(|to| (to, false));
            for (to, is_endpoint) in used.chain(cluster_ip) {
                let Some(reason) = self.source_towards(to).err().and_then(lacking_route) else { continue };
                let of = || Unrouted { reason, is_endpoint, ..Unrouted::default() };
                let it = found.entry((reason, is_endpoint)).or_insert_with(of);
                it.at.insert(to);
                it.services.insert(service.to_owned());
            }
        }
        found.into_values().collect()
    }
}

/// The address that the kernel sends from to another one. Nothing is sent.
fn source_towards(to: SocketAddr) -> std::io::Result<IpAddr> {
    let unspecified: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((unspecified, 0))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

/// What the kernel's refusal to send says of the routes; `None` where it says something else.
fn lacking_route(errno: i32) -> Option<&'static str> {
    match errno {
        libc::ENETUNREACH => Some("no route"),
        libc::EHOSTUNREACH => Some("an unreachable route"),
        libc::EINVAL => Some("a blackhole route"),
        _ => None,
    }
}

/// Those of these interfaces that forward no packets of the family that come in on them. IPv6 has one setting for all.
pub(super) fn still(family: IpFamily, interfaces: BTreeSet<String>) -> Vec<String> {
    let sysctls = Sysctls::default();
    let is_still = |name: &String| {
        let value = sysctls.read(&format!("net/ipv4/conf/{name}/forwarding"));
        family == IpFamily::V4 && name != "lo" && value.is_ok_and(|value| value == "0")
    };
    interfaces.into_iter().filter(is_still).collect()
}
