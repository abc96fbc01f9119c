//! What is done once, before the first virtual server: the kernel's settings, and whether it has
//! the scheduler.

use super::Kernel;
use crate::kernel::ipset::{self, Ipsets, KernelIpsets};
use crate::kernel::ipvs::{self, KernelIpvs, Reason, Timeouts, VirtualServers};
use crate::kernel::links::KernelLinks;
use crate::kernel::not_loaded::NotLoaded;
use crate::kernel::sysctl::Sysctls;
use crate::model::{Frontend, IpvsScheduler, Protocol, ServerOperation, VirtualServer};
use anyhow::{Context, Result, bail};

/// An address of the documentation's range, for a virtual server that lives a moment only.
const TRIAL: Frontend = Frontend {
    address: std::net::IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 0)),
    port: 20000,
    protocol: Protocol::Tcp,
};

impl Kernel {
    /// Handles on the calling thread's network namespace; the kernel loads `ip_vs` if it can.
    ///
    /// # Errors
    /// Says which module is missing.
    pub fn open() -> Result<Kernel> {
        Ok(Kernel {
            servers: Box::new(KernelIpvs::open()?),
            sets: Box::new(KernelIpsets::open()?),
            links: Box::new(KernelLinks::open()?),
        })
    }

    /// Handles for removing what was left. Nothing is loaded for it: what is not loaded holds nothing.
    ///
    /// # Errors
    /// On lack of permission.
    pub fn of_leftovers() -> Result<Kernel> {
        let servers: Box<dyn VirtualServers> =
            if ipvs::is_loaded() { Box::new(KernelIpvs::open()?) } else { Box::new(NotLoaded) };
        let sets: Box<dyn Ipsets> =
            if ipset::is_loaded() { Box::new(KernelIpsets::open()?) } else { Box::new(NotLoaded) };
        Ok(Kernel { servers, sets, links: Box::new(KernelLinks::open()?) })
    }
}

/// Prepares the node.
///
/// # Errors
/// Names the setting that cannot be made.
pub(super) fn prepare(kernel: &mut Kernel, strict_arp: bool, timeouts: &Timeouts) -> Result<()> {
    let sysctls = Sysctls::default();
    set(&sysctls, strict_arp)?;
    if *timeouts != Timeouts::default() {
        kernel.servers.set_timeouts(timeouts).context("setting the IPVS timeouts")?;
    }
    Ok(())
}

fn set(sysctls: &Sysctls, strict_arp: bool) -> Result<()> {
    // Without it, iptables rules do not see IPVS connections and nothing is masqueraded.
    sysctls.ensure("net/ipv4/vs/conntrack", "1")?;
    // With reuse detection on, kernels before 5.9 drop the first SYN of a client port that comes
    // again, which costs it a second; and off, newer ones send it to an endpoint that is gone.
    let release = sysctls.read("kernel/osrelease")?;
    if ((4, 1)..(5, 9)).contains(&kernel_version(&release)) {
        sysctls.ensure("net/ipv4/vs/conn_reuse_mode", "0")?;
    }
    // Connections to a removed real server end, rather than be dropped until they time out.
    sysctls.ensure("net/ipv4/vs/expire_nodest_conn", "1")?;
    // A client's affinity does not lead it to a real server that is being drained.
    sysctls.ensure("net/ipv4/vs/expire_quiescent_template", "1")?;
    sysctls.ensure("net/ipv4/ip_forward", "1")?;
    if strict_arp {
        sysctls.ensure("net/ipv4/conf/all/arp_ignore", "1")?;
        sysctls.ensure("net/ipv4/conf/all/arp_announce", "2")?;
    }
    Ok(())
}

fn kernel_version(release: &str) -> (u32, u32) {
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or_default());
    (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default())
}

/// Whether the kernel has a scheduler; if not, which it has.
pub(super) fn check_scheduler(servers: &mut dyn VirtualServers, scheduler: &IpvsScheduler) -> Result<()> {
    if is_available(servers, scheduler)? {
        return Ok(());
    }
    let mut available = Vec::new();
    for name in IpvsScheduler::KNOWN {
        if is_available(servers, &IpvsScheduler::as_upstream(name))? {
            available.push(name);
        }
    }
    let name = &scheduler.name;
    bail!("the kernel has no IPVS scheduler {name} (module ip_vs_{name}); it has: {}", available.join(", "))
}

fn is_available(servers: &mut dyn VirtualServers, scheduler: &IpvsScheduler) -> Result<bool> {
    let with = VirtualServer { scheduler: scheduler.clone(), affinity_seconds: None };
    servers.run(&[ServerOperation::Remove(TRIAL)])?;
    let refused = servers.run(&[ServerOperation::Add(TRIAL, with)])?;
    servers.run(&[ServerOperation::Remove(TRIAL)])?;
    match refused.first() {
        None => Ok(true),
        Some(refused) if refused.reason == Reason::NoSuchScheduler => Ok(false),
        Some(refused) => bail!("trying the scheduler {}: {}", scheduler.name, refused.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_by_their_first_two_numbers() {
        assert_eq!(kernel_version("6.1.0-37-amd64"), (6, 1));
        assert_eq!(kernel_version("5.10"), (5, 10));
        assert_eq!(kernel_version("4.19-rc1"), (4, 19));
    }

    #[test]
    fn reuse_detection_is_switched_off_on_old_kernels_only() {
        for (release, want) in [("4.0.9", "1"), ("5.4.0", "0"), ("5.9.0", "1"), ("6.12.1", "1")] {
            let root = tempfile::tempdir().unwrap();
            for folder in ["net/ipv4/vs", "net/ipv4/conf/all", "kernel"] {
                std::fs::create_dir_all(root.path().join(folder)).unwrap();
            }
            let vs = ["conntrack", "conn_reuse_mode", "expire_nodest_conn", "expire_quiescent_template"];
            for name in vs {
                std::fs::write(root.path().join("net/ipv4/vs").join(name), "1\n").unwrap();
            }
            std::fs::write(root.path().join("net/ipv4/ip_forward"), "0\n").unwrap();
            std::fs::write(root.path().join("kernel/osrelease"), release).unwrap();
            let sysctls = Sysctls::at(root.path());
            set(&sysctls, false).unwrap();
            assert_eq!(sysctls.read("net/ipv4/vs/conn_reuse_mode").unwrap(), want, "{release}");
            assert_eq!(sysctls.read("net/ipv4/ip_forward").unwrap(), "1");
            assert!(set(&sysctls, true).is_err(), "strict ARP needs its settings");
        }
    }
}
