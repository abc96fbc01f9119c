//! What is in the kernel, and traffic through it.

use crate::settings::Dataplane;
use anyhow::{Context as _, Result};
use ipvs_rs::{Key, Protocol};
use kube_proxy_rs::kernel::nft::Nft;
use kube_proxy_rs::kernel::xtables_info;
use kube_proxy_rs::model::IpFamily;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The port of our endpoints.
const PORT: u16 = 8080;
/// The virtual and real servers of this thread's network namespace.
const SERVERS: &str = "/proc/thread-self/net/ip_vs";

/// A number that changes whenever the endpoints of a Service do, and cheap to ask for.
pub(crate) fn stamp_of(dataplane: Dataplane, service: Ipv4Addr) -> Result<u64> {
    if dataplane != Dataplane::Ipvs {
        return stamp(dataplane);
    }
    let at = Key::Address { address: service.into(), port: 80, protocol: Protocol::Tcp };
    Ok(u64::try_from(ipvs_rs::Ipvs::open()?.list_real_servers(&at)?.len())?)
}

/// A number that changes whenever anything does.
pub(crate) fn stamp(dataplane: Dataplane) -> Result<u64> {
    match dataplane {
        Dataplane::Nft => Ok(Nft::open()?.generation()?.into()),
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

/// Rules in all and those that rewrite to an endpoint of ours, or virtual servers and our real ones.
/// Ours are recognised by their port: a real cluster has endpoints of its own.
pub(crate) fn count(dataplane: Dataplane) -> Result<(usize, usize)> {
    match dataplane {
        Dataplane::Ipvs => count_servers(),
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

/// What `iptables-save -t nat` shows.
fn count_rules(flavor: &str) -> Result<(usize, usize)> {
    let program = format!("iptables-{flavor}-save");
    let mut child = Command::new(&program).args(["-t", "nat"]).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().with_context(|| format!("{program} has no output"))?;
    let port = format!(":{PORT}");
    let (mut rules, mut endpoints) = (0, 0);
    for line in BufReader::new(output).lines() {
        let line = line?;
        rules += usize::from(line.starts_with("-A "));
        endpoints += usize::from(line.contains(" -j DNAT ") && line.ends_with(&port));
    }
    child.wait()?;
    Ok((rules, endpoints))
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

/// How long it takes to connect to Services, one after the other; sorted. The connection is taken
/// from the listener's queue afterwards: waking another thread for it would cost more than the
/// walk through the rules does, and much more on an idle machine than on a busy one.
pub(crate) fn connect_times(
    listener: &TcpListener,
    services: impl Iterator<Item = Ipv4Addr>,
) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for service in services {
        let start = Instant::now();
        let stream = TcpStream::connect(SocketAddrV4::new(service, 80));
        times.push(start.elapsed());
        let stream = stream.with_context(|| format!("connecting to {service}"))?;
        listener.accept()?;
        drop(stream);
    }
    times.sort_unstable();
    Ok(times)
}
