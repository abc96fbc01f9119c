//! Dummy interfaces and their addresses, over rtnetlink.

use super::addresses::{AddressNotices, InterfaceAddress, interface_addresses};
use crate::model::IpFamily;
use anyhow::{Context, Result, bail};
use netlink::{MsgBuf, Protocol, Socket};
use nix::net::if_::if_nametoindex;
use std::net::IpAddr;
use std::path::Path;

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const LINK_NAME: u16 = 3;
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const ADDRESS: u16 = 1;
const LOCAL_ADDRESS: u16 = 2;
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;
/// `IFF_PROMISC`.
const PROMISCUOUS: u32 = 0x100;
/// Length of `struct ifinfomsg`.
const LINK_HEADER: [u8; 16] = [0; 16];

/// What a backend asks of the kernel's interfaces.
pub trait Links {
    /// Makes a dummy interface unless an interface of that name is there; says whether it did.
    ///
    /// # Errors
    /// When the kernel cannot: no permission, no module `dummy`.
    fn ensure_dummy(&mut self, name: &str) -> Result<bool>;

    /// Every address of one family on every interface.
    ///
    /// # Errors
    /// When the system cannot list them.
    fn addresses(&mut self, family: IpFamily) -> Result<Vec<InterfaceAddress>>;

    /// Whether addresses of one family may have come or gone since the last call; true at the first.
    /// Costs next to nothing, however many there are.
    ///
    /// # Errors
    /// When the kernel does not tell of changes.
    fn addresses_changed(&mut self, family: IpFamily) -> Result<bool>;

    /// Gives an interface addresses of full prefix length and takes other addresses away, in few messages.
    /// Those that are there, or gone, already are no error. Returns those that the kernel does not
    /// add, with its words.
    ///
    /// # Errors
    /// When there is no such interface or the kernel does not take an address away.
    fn change_addresses(
        &mut self,
        interface: &str,
        add: &[IpAddr],
        remove: &[IpAddr],
    ) -> Result<Vec<(IpAddr, String)>>;

    /// Removes an interface; says whether it was there.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn delete(&mut self, name: &str) -> Result<bool>;
}

/// The interfaces of the calling thread's network namespace.
#[derive(Debug)]
pub struct KernelLinks {
    socket: Socket,
    request: MsgBuf,
    notices: AddressNotices,
}

impl KernelLinks {
    /// Opens a handle.
    ///
    /// # Errors
    /// When rtnetlink cannot be reached.
    pub fn open() -> Result<KernelLinks> {
        let socket = Socket::open(Protocol::Route).context("cannot reach the kernel's interfaces")?;
        Ok(KernelLinks { socket, request: MsgBuf::new(), notices: AddressNotices::default() })
    }
}

impl Links for KernelLinks {
    fn ensure_dummy(&mut self, name: &str) -> Result<bool> {
        self.request.clear();
        self.request.begin(NEW_LINK, CREATE | EXCLUSIVE);
        self.request.header(&LINK_HEADER);
        self.request.string(LINK_NAME, name);
        self.request.nest(LINK_INFO, |buf| buf.string(INFO_KIND, "dummy"));
        match self.socket.request(&mut self.request, &mut |_| Ok(())) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::EEXIST) => Ok(false),
            Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => {
                bail!("cannot make interface {name}: the kernel module dummy is missing")
            }
            Err(error) => Err(error).with_context(|| format!("cannot make interface {name}")),
        }
    }

    fn addresses(&mut self, family: IpFamily) -> Result<Vec<InterfaceAddress>> {
        interface_addresses(family)
    }

    fn addresses_changed(&mut self, family: IpFamily) -> Result<bool> {
        self.notices.any(family)
    }

    fn change_addresses(
        &mut self,
        interface: &str,
        add: &[IpAddr],
        remove: &[IpAddr],
    ) -> Result<Vec<(IpAddr, String)>> {
        if add.is_empty() && remove.is_empty() {
            return Ok(Vec::new());
        }
        let index =
            if_nametoindex(interface).with_context(|| format!("there is no interface {interface}"))?;
        self.request.clear();
        for (kind, flags, addresses) in [(NEW_ADDRESS, CREATE | EXCLUSIVE, add), (DELETE_ADDRESS, 0, remove)]
        {
            for address in addresses {
                self.request.begin(kind, flags);
                self.request.header(&address_header(*address, index));
                match address {
                    IpAddr::V4(ip) => {
                        self.request.bytes(LOCAL_ADDRESS, &ip.octets());
                        self.request.bytes(ADDRESS, &ip.octets());
                    }
                    IpAddr::V6(ip) => self.request.bytes(ADDRESS, &ip.octets()),
                }
            }
        }
        let answers = self.socket.batch(&mut self.request).context("changing addresses")?;
        let mut refused = Vec::new();
        for answer in answers {
            if [libc::EEXIST, libc::EADDRNOTAVAIL].contains(&answer.refusal.errno) {
                continue;
            }
            let Some(address) = add.get(answer.index) else {
                let address = remove.get(answer.index - add.len()).map(ToString::to_string);
                let address = address.unwrap_or_default();
                bail!("cannot remove address {address} of {interface}: {}", answer.refusal);
            };
            refused.push((*address, format!("address {address} of {interface}: {}", answer.refusal)));
        }
        Ok(refused)
    }

    fn delete(&mut self, name: &str) -> Result<bool> {
        self.request.clear();
        self.request.begin(DELETE_LINK, 0);
        self.request.header(&LINK_HEADER);
        self.request.string(LINK_NAME, name);
        match self.socket.request(&mut self.request, &mut |_| Ok(())) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot delete interface {name}")),
        }
    }
}

/// Whether the kernel has this driver ready: built in or loaded.
#[must_use]
pub fn has_driver(name: &str) -> bool {
    Path::new("/sys/module").join(name).exists()
}

/// Whether an interface is a bridge.
#[must_use]
pub fn has_bridge() -> bool {
    let interfaces = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    interfaces.into_iter().any(|interface| interface.path().join("bridge").exists())
}

/// How many interfaces are ports of a bridge; 0 for an interface that is none.
#[must_use]
pub fn bridge_ports(name: &str) -> usize {
    let ports = std::fs::read_dir(Path::new("/sys/class/net").join(name).join("brif"));
    ports.into_iter().flatten().flatten().count()
}

/// Whether an interface is a bridge with ports none of which sends a frame back where it came from, and that does not take
/// every frame up itself (`promisc`).
#[must_use]
pub fn lacks_hairpin(bridge: &str) -> bool {
    let of = Path::new("/sys/class/net").join(bridge);
    let flags = std::fs::read_to_string(of.join("flags")).unwrap_or_default();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16);
    let is_promiscuous = flags.is_ok_and(|flags| flags & PROMISCUOUS != 0);
    let ports = std::fs::read_dir(of.join("brif")).into_iter().flatten().flatten();
    let mut modes = ports.map(|port| std::fs::read_to_string(port.path().join("hairpin_mode"))).peekable();
    let is_off = |mode: std::io::Result<String>| mode.is_ok_and(|mode| mode.trim() == "0");
    !is_promiscuous && modes.peek().is_some() && modes.all(is_off)
}

/// `struct ifaddrmsg` of a host address.
fn address_header(address: IpAddr, index: u32) -> [u8; 8] {
    let (family, prefix) =
        if address.is_ipv4() { (libc::AF_INET as u8, 32) } else { (libc::AF_INET6 as u8, 128) };
    let [a, b, c, d] = index.to_ne_bytes();
    [family, prefix, 0, 0, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fresh_netns::{in_fresh_netns, run};

    /// Kernels without the dummy driver have veth, whose addresses work the same.
    #[test]
    fn addresses_come_and_go_by_the_thousand() {
        in_fresh_netns(|| {
            run("ip link add kube-ipvs0 type veth peer name other");
            let mut links = KernelLinks::open().unwrap();
            let v4: Vec<IpAddr> =
                (0..1500_u32).map(|it| IpAddr::from((0x0a60_0000 + it).to_be_bytes())).collect();
            let v6: Vec<IpAddr> = vec!["fd00:96::1".parse().unwrap(), "fd00:96::2".parse().unwrap()];
            let mine = |links: &mut KernelLinks, family| -> Vec<IpAddr> {
                let all = links.addresses(family).unwrap();
                all.iter().filter(|it| it.interface == "kube-ipvs0").map(|it| it.address).collect()
            };
            for _ in 0..2 {
                links.change_addresses("kube-ipvs0", &v4, &[]).unwrap();
                links.change_addresses("kube-ipvs0", &v6, &[]).unwrap();
                assert_eq!(mine(&mut links, IpFamily::V4), v4);
                assert_eq!(mine(&mut links, IpFamily::V6), v6);
            }
            for _ in 0..2 {
                links.change_addresses("kube-ipvs0", &v6[..1], &v4[1..]).unwrap();
                assert_eq!(mine(&mut links, IpFamily::V4), v4[..1]);
            }
            assert!(links.delete("kube-ipvs0").unwrap());
            assert!(!links.delete("kube-ipvs0").unwrap());
            let error = links.change_addresses("kube-ipvs0", &v6, &[]).unwrap_err();
            assert!(error.to_string().contains("no interface kube-ipvs0"), "{error:#}");
        });
    }

    #[test]
    fn addresses_that_come_and_go_are_told_of_once_per_family() {
        in_fresh_netns(|| {
            run("ip link add kube-ipvs0 type veth peer name other");
            let mut links = KernelLinks::open().unwrap();
            let mut told = || IpFamily::ALL.map(|family| links.addresses_changed(family).unwrap());
            assert_eq!(told(), [true, true], "nothing is known at first");
            assert_eq!(told(), [false, false]);
            for (script, wanted) in [
                ("ip address add 192.0.2.9/32 dev kube-ipvs0", [true, false]),
                ("ip address add 2001:db8::9/128 dev kube-ipvs0", [false, true]),
                ("ip address del 192.0.2.9/32 dev kube-ipvs0", [true, false]),
                ("ip address add 192.0.2.9/32 dev other", [true, false]),
                ("ip link del kube-ipvs0", [true, true]),
            ] {
                run(script);
                assert_eq!(told(), wanted, "{script}");
                assert_eq!(told(), [false, false]);
            }
            // More than the socket's buffer holds.
            run("ip link add more type veth peer name other
                 (for i in $(seq 5000); do echo address add 10.1.$((i / 250)).$((i % 250 + 1))/32 dev more; done) | ip -batch -");
            assert_eq!(told(), [true, false]);
            assert_eq!(told(), [false, false]);
        });
    }
}
