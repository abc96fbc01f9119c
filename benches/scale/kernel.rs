//! What is in the kernel, and traffic through it.

use crate::settings::Dataplane;
use anyhow::{Context as _, Result};
use ipvs_rs::{Key, Protocol};
use kube_proxy_rs::kernel::nft::Nft;
use kube_proxy_rs::kernel::xtables_info;
use kube_proxy_rs::model::IpFamily;
use nftables_rs::{Data, Family, ListedElement, Nftables, Part, TableName};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The port of our endpoints.
const PORT: u16 = 8080;
/// The virtual and real servers of this thread's network namespace.
const SERVERS: &str = "/proc/thread-self/net/ip_vs";

/// Tells whether anything was changed, by a handle that stays open: at the close of one, the kernel waits until what a transaction has
/// deleted is gone, which takes longer than the change that is timed.
pub(crate) struct Stamps {
    dataplane: Dataplane,
    nft: Nft,
}

impl Stamps {
    pub(crate) fn open(dataplane: Dataplane) -> Result<Stamps> {
        Ok(Stamps { dataplane, nft: Nft::open()? })
    }

    /// A number that changes whenever the endpoints of a Service do, and cheap to ask for.
    pub(crate) fn of(&mut self, service: Ipv4Addr) -> Result<u64> {
        if self.dataplane != Dataplane::Ipvs {
            return self.now();
        }
        let at = Key::Address { address: service.into(), port: 80, protocol: Protocol::Tcp };
        Ok(u64::try_from(ipvs_rs::Ipvs::open()?.list_real_servers(&at)?.len())?)
    }

    /// A number that changes whenever anything does.
    pub(crate) fn now(&mut self) -> Result<u64> {
        match self.dataplane {
            Dataplane::Nft | Dataplane::Nftables => Ok(self.nft.generation()?.into()),
            Dataplane::Legacy => {
                let size = xtables_info::num_entries(IpFamily::V4, "nat")?;
                Ok(size.map_or(0, |size| size.entries.into()))
            }
            Dataplane::Ipvs => {
                let mut hasher = DefaultHasher::new();
                std::fs::read_to_string(SERVERS)?.hash(&mut hasher);
                Ok(hasher.finish())
            }
        }
    }
}

/// Rules or elements in all and those that lead to an endpoint of ours, or virtual servers and our real ones.
/// Ours are recognised by their port: a real cluster has endpoints of its own.
pub(crate) fn count(dataplane: Dataplane) -> Result<(usize, usize)> {
    match dataplane {
        Dataplane::Ipvs => count_servers(),
        Dataplane::Nftables => count_elements(),
        Dataplane::Nft | Dataplane::Legacy => count_rules(dataplane.as_str()),
    }
}

/// What the kernel's own list shows.
fn count_servers() -> Result<(usize, usize)> {
    let text = std::fs::read_to_string(SERVERS)?;
    let servers = text.lines().filter(|line| line.starts_with("TCP ")).count();
    let port = format!(":{PORT:04X} ");
    Ok((servers, text.lines().filter(|line| line.starts_with("  -> ") && line.contains(&port)).count()))
}

/// What `iptables-save -t nat` shows. An endpoint counts if a Service leads to it: above 1,000 endpoints kube-proxy leaves the chains of
/// former ones in place until a later sync.
fn count_rules(flavor: &str) -> Result<(usize, usize)> {
    let program = format!("iptables-{flavor}-save");
    let mut child = Command::new(&program).args(["-t", "nat"]).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().with_context(|| format!("{program} has no output"))?;
    let port = format!(":{PORT}");
    let mut rules = 0;
    let (mut reached, mut endpoints) = (HashSet::new(), HashSet::new());
    for line in BufReader::new(output).lines() {
        let line = line?;
        let Some((chain, _)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) else {
            continue;
        };
        rules += 1;
        match line.rsplit_once(" -j ") {
            Some((_, target)) if target.starts_with("DNAT ") && target.ends_with(&port) => {
                endpoints.insert(chain.to_owned());
            }
            Some((_, target)) if chain != target => _ = reached.insert(target.to_owned()),
            _ => {}
        }
    }
    child.wait()?;
    Ok((rules, endpoints.intersection(&reached).count()))
}

/// What the sets and maps of kube-proxy's table have, in its layout or in ours.
fn count_elements() -> Result<(usize, usize)> {
    let mut nft = Nftables::open()?;
    let table = TableName { family: Family::Ipv4, name: "kube-proxy" };
    let mut names: Vec<String> = Vec::new();
    nft.sets(table, &mut |part| match part {
        Part::Start => names.clear(),
        Part::Item(set) => names.push(set.name.to_owned()),
    })?;
    let (mut all, mut endpoints) = (0, 0);
    for name in names {
        let (mut here, mut leading) = (0, 0);
        nft.elements(table, &name, &mut |part| match part {
            Part::Start => (here, leading) = (0, 0),
            Part::Item(listed) => {
                here += 1;
                leading += usize::from(leads_to_endpoint(&name, &listed));
            }
        })?;
        all += here;
        endpoints += leading;
    }
    Ok((all, endpoints))
}

/// An endpoint's address and port are in our map of endpoints; kube-proxy has an anonymous map for each Service.
fn leads_to_endpoint(set: &str, listed: &ListedElement<'_>) -> bool {
    let is_of_endpoints = set == "service-endpoints" || set.starts_with("__map");
    match listed.element.data {
        Some(Data::Value(value)) => is_of_endpoints && value.get(4..6) == Some(&PORT.to_be_bytes()),
        _ => false,
    }
}

/// Makes every address that the stub server hands out reachable in this namespace.
pub(crate) fn route_everything_here() -> Result<()> {
    for route in ["10.244.0.0/14 dev lo", "10.96.0.0/12 dev lo src 10.247.255.254"] {
        let arguments = format!("route add local {route}");
        let status = Command::new("ip").args(arguments.split(' ')).status().context("cannot run ip")?;
        anyhow::ensure!(status.success(), "ip {arguments} failed");
    }
    Ok(())
}

/// What every endpoint is: a listener.
pub(crate) fn listen() -> Result<TcpListener> {
    Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?)
}

/// An endpoint's own address, which no rule rewrites.
pub(crate) fn direct() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 244, 0, 1), PORT)
}

/// How long it takes to connect, to one after the other; sorted. The connection is taken
/// from the listener's queue afterwards: waking another thread for it would cost more than the
/// walk through the rules does, and much more on an idle machine than on a busy one.
pub(crate) fn connect_times(
    listener: &TcpListener,
    destinations: impl Iterator<Item = SocketAddrV4>,
) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for destination in destinations {
        let start = Instant::now();
        let stream = TcpStream::connect(destination);
        times.push(start.elapsed());
        let stream = stream.with_context(|| format!("connecting to {destination}"))?;
        listener.accept()?;
        drop(stream);
    }
    times.sort_unstable();
    Ok(times)
}
