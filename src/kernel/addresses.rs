//! The addresses of this machine's interfaces.

use crate::model::{IpFamily, PerFamily, SERVICES_INTERFACE};
use anyhow::{Context, Result};
use netlink::{Notices, Protocol};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use std::cell::RefCell;
use std::net::IpAddr;

/// The multicast groups that tell of addresses (`RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR`).
const V4_ADDRESS_GROUP: u32 = 5;
const V6_ADDRESS_GROUP: u32 = 9;

/// One address on one interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct InterfaceAddress {
    /// The interface's name.
    pub interface: String,
    /// The address, without its prefix length.
    pub address: IpAddr,
}

/// Every address of one family on every interface of the calling thread's network namespace, whether
/// the interface is up or not, sorted.
///
/// # Errors
/// If the system cannot list them.
pub fn interface_addresses(family: IpFamily) -> Result<Vec<InterfaceAddress>> {
    let mut addresses: Vec<_> = getifaddrs()
        .context("cannot list interface addresses")?
        .filter_map(|entry| {
            let address = ip_address(entry.address.as_ref()?)?;
            Some(InterfaceAddress { interface: entry.interface_name, address })
        })
        .filter(|entry| IpFamily::of(entry.address) == family)
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    Ok(addresses)
}

/// The addresses of one family that this machine has, each once, sorted.
///
/// # Errors
/// If the system cannot list them.
pub fn local_addresses(family: IpFamily) -> Result<Vec<IpAddr>> {
    Ok(distinct(interface_addresses(family)?.into_iter()))
}

/// The same without those that only the interface of Services has.
///
/// # Errors
/// If the system cannot list them.
pub fn node_addresses(family: IpFamily) -> Result<Vec<IpAddr>> {
    let found = interface_addresses(family)?.into_iter();
    Ok(distinct(found.filter(|entry| entry.interface != SERVICES_INTERFACE)))
}

/// What the kernel tells of addresses that come and go.
#[derive(Debug, Default)]
pub struct AddressNotices(PerFamily<Option<Notices>>);

impl AddressNotices {
    /// Whether addresses of one family may have come or gone since the last call; true at the first. Costs next to nothing,
    /// however many there are.
    ///
    /// # Errors
    /// When the kernel does not tell of changes.
    pub fn any(&mut self, family: IpFamily) -> Result<bool> {
        let doing = "asking the kernel for changes of interface addresses";
        let notices = self.0.get_mut(family);
        if let Some(notices) = notices {
            return notices.any().context(doing);
        }
        let group = match family {
            IpFamily::V4 => V4_ADDRESS_GROUP,
            IpFamily::V6 => V6_ADDRESS_GROUP,
        };
        *notices = Some(Notices::of(Protocol::Route, group).context(doing)?);
        Ok(true)
    }
}

/// Makes a function that reads addresses again only after the kernel told of a change: listing them lists all interfaces, which is the
/// dearest part of a small change on a node with many pods. Where the kernel does not tell, they are read each time.
pub fn reading_when_changed(
    read: impl Fn(IpFamily) -> Result<Vec<IpAddr>>,
) -> impl Fn(IpFamily) -> Result<Vec<IpAddr>> {
    let state = RefCell::new((AddressNotices::default(), PerFamily::<Option<Vec<IpAddr>>>::default()));
    move |family| {
        let (notices, known) = &mut *state.borrow_mut();
        let known = known.get_mut(family);
        if notices.any(family).unwrap_or(true) {
            *known = None;
        }
        if let Some(known) = known {
            return Ok(known.clone());
        }
        Ok(known.insert(read(family)?).clone())
    }
}

fn distinct(found: impl Iterator<Item = InterfaceAddress>) -> Vec<IpAddr> {
    let mut addresses: Vec<_> = found.map(|entry| entry.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// The IP address in a socket address, if it is one.
fn ip_address(address: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(IpAddr::V4(v4.ip()));
    }
    address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fresh_netns::{in_fresh_netns, run};

    #[test]
    fn addresses_are_read_again_only_after_one_came_or_went() {
        in_fresh_netns(|| {
            let times = std::cell::Cell::new(0);
            let read = reading_when_changed(|family| {
                times.set(times.get() + 1);
                local_addresses(family)
            });
            let there = |text: &str| read(IpFamily::V4).unwrap().contains(&text.parse().unwrap());
            assert!(!there("192.0.2.9") && !there("192.0.2.9"));
            assert_eq!(times.get(), 1);
            run("ip link add v0 type veth peer name v1; ip address add 192.0.2.9/24 dev v0");
            assert!(there("192.0.2.9") && there("192.0.2.9"));
            run("ip address del 192.0.2.9/24 dev v0");
            assert!(!there("192.0.2.9") && !there("192.0.2.9"));
            assert_eq!(times.get(), 3);
            run("ip address add 192.0.2.9/24 dev v0; ip link del v0");
            assert!(!there("192.0.2.9"), "it went with its interface");
            assert!(read(IpFamily::V6).is_ok());
        });
    }

    #[test]
    fn addresses_are_listed_once_per_family_in_order() {
        in_fresh_netns(|| {
            run("ip link add v0 type veth peer name kube-ipvs0
                 ip address add 192.0.2.9/24 dev v0
                 ip address add 192.0.2.9/32 dev kube-ipvs0
                 ip address add 10.0.0.1/8 dev kube-ipvs0
                 ip address add 2001:db8::1/64 dev v0 nodad");
            let texts = |family| -> Vec<String> {
                local_addresses(family).unwrap().iter().map(ToString::to_string).collect()
            };
            assert_eq!(texts(IpFamily::V4), ["10.0.0.1", "127.0.0.1", "192.0.2.9"]);
            assert_eq!(texts(IpFamily::V6), ["::1", "2001:db8::1"]);
            let own: Vec<_> = node_addresses(IpFamily::V4).unwrap();
            assert_eq!(own, ["127.0.0.1", "192.0.2.9"].map(|text| text.parse::<IpAddr>().unwrap()));
            let all = interface_addresses(IpFamily::V4).unwrap();
            assert_eq!(all.iter().filter(|entry| entry.interface == SERVICES_INTERFACE).count(), 2);
        });
    }
}
