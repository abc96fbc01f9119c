//! What is in the kernel, and traffic through it.

use crate::settings::Flavor;
use anyhow::{Context as _, Result};
use kube_proxy_rs::kernel::nft::Nft;
use kube_proxy_rs::kernel::xtables_info;
use kube_proxy_rs::model::IpFamily;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A number that changes whenever the nat table does.
pub(crate) fn stamp(flavor: Flavor) -> Result<u64> {
    match flavor {
        Flavor::Nft => Ok(Nft::open()?.generation()?.into()),
        Flavor::Legacy => {
            let size = xtables_info::num_entries(IpFamily::V4, "nat")?;
            Ok(size.map_or(0, |size| size.entries.into()))
        }
    }
}

/// What `iptables-save -t nat` shows: rules in all, and rules that rewrite to an endpoint.
pub(crate) fn count_rules(flavor: Flavor) -> Result<(usize, usize)> {
    let program = format!("iptables-{}-save", flavor.as_str());
    let mut child = Command::new(&program).args(["-t", "nat"]).stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().with_context(|| format!("{program} has no output"))?;
    let (mut rules, mut endpoints) = (0, 0);
    for line in BufReader::new(output).lines() {
        let line = line?;
        rules += usize::from(line.starts_with("-A "));
        endpoints += usize::from(line.contains(" -j DNAT "));
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
    Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080))?)
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
