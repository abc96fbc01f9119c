//! What the kernel knows about our own process.

use crate::model::ProcessUse;
use anyhow::{Context, Result};
use caps::{CapSet, Capability};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs;
use std::os::unix::fs::MetadataExt as _;

/// Ticks per second in /proc. The kernel's ABI fixes it to 100 on every platform we build for,
/// whatever its own timer does.
const TICKS: f64 = 100.0;

/// Reads what our process uses now.
///
/// # Errors
/// When /proc cannot be read or does not look as expected.
pub fn read() -> Result<ProcessUse> {
    let text = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
    let stat = parse_stat(&text("/proc/self/stat")?).context("/proc/self/stat has an unknown form")?;
    let resident = parse_resident(&text("/proc/self/status")?).context("no VmRSS in /proc/self/status")?;
    let booted = parse_boot_time(&text("/proc/stat")?).context("no btime in /proc/stat")?;
    let open = fs::read_dir("/proc/self/fd").context("cannot list /proc/self/fd")?.count();
    Ok(ProcessUse {
        cpu_seconds: (stat.user_ticks + stat.system_ticks) as f64 / TICKS,
        resident_bytes: resident,
        virtual_bytes: stat.virtual_bytes,
        virtual_max_bytes: getrlimit(Resource::RLIMIT_AS)
            .context("cannot read the limit of the address space")?
            .0,
        // The descriptor of the folder itself is not counted.
        open_fds: u64::try_from(open.saturating_sub(1)).unwrap_or(u64::MAX),
        max_fds: getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of file descriptors")?.0,
        start_time_seconds: booted as f64 + stat.start_ticks as f64 / TICKS,
    })
}

/// Says how readily the kernel may end us when memory runs out: -1000 never, 1000 first.
///
/// # Errors
/// Without the permission to lower it.
pub fn set_oom_score_adj(score: i32) -> Result<()> {
    fs::write("/proc/self/oom_score_adj", score.to_string())
        .with_context(|| format!("cannot set oom_score_adj to {score}"))
}

/// Raises the number of file descriptors that we may have as far as we may, and returns it.
///
/// # Errors
/// When the kernel does not tell the limit, or does not change it.
pub fn raise_descriptor_limit() -> Result<u64> {
    let (soft, hard) =
        getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of file descriptors")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
            .with_context(|| format!("cannot raise the limit of file descriptors from {soft} to {hard}"))?;
    }
    Ok(hard)
}

/// What the kernel asks for of who programs its network: `NET_RAW` for legacy tables and IPVS mode only.
const NEEDED: [Capability; 2] = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW];

/// Puts into effect what a user other than root may do, and lets our tools inherit it. Container runtimes give such a
/// user capabilities only by way of the program's file, which says what is permitted and no more. Root has all in
/// effect that it may have.
///
/// # Errors
/// When the kernel refuses.
pub fn use_capabilities() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    for capability in NEEDED {
        if !caps::has_cap(None, CapSet::Permitted, capability)? {
            continue;
        }
        // In this order: only what is permitted and inheritable can be ambient.
        for set in [CapSet::Effective, CapSet::Inheritable, CapSet::Ambient] {
            caps::raise(None, set, capability)
                .with_context(|| format!("{capability} cannot be made {set:?}"))?;
        }
    }
    Ok(())
}

/// Whether we run as root.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// What we may do: a bit for each capability that is in effect.
///
/// # Errors
/// When /proc cannot be read or does not look as expected.
pub fn capabilities() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    parse_capabilities(&status).context("no CapEff in /proc/self/status")
}

fn parse_capabilities(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

/// Another process in our network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its number.
    pub pid: u32,
    /// Its name, as the kernel has it: at most 15 bytes.
    pub name: String,
    /// It runs the same program as we do, or one of its name.
    pub is_ours: bool,
}

/// The processes with one of these names that share our network namespace, but for ourselves, as
/// far as we may look.
#[must_use]
pub fn neighbours(names: &[&str]) -> Vec<Neighbour> {
    let own_space = fs::read_link("/proc/thread-self/ns/net").ok();
    let own_program = fs::metadata("/proc/self/exe").ok().map(|it| (it.dev(), it.ino()));
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(name) = fs::read_to_string(entry.path().join("comm")) else { continue };
        let name = name.trim_end();
        if pid == std::process::id() || !names.contains(&name) {
            continue;
        }
        if own_space.is_none() || fs::read_link(entry.path().join("ns/net")).ok() != own_space {
            continue;
        }
        let program = fs::metadata(entry.path().join("exe")).ok().map(|it| (it.dev(), it.ino()));
        // A program that was replaced meanwhile, by an upgrade, still has the name.
        let is_ours = name == env!("CARGO_PKG_NAME") || (program.is_some() && program == own_program);
        found.push(Neighbour { pid, name: name.to_owned(), is_ours });
    }
    found.sort_by_key(|it| it.pid);
    found
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    user_ticks: u64,
    system_ticks: u64,
    start_ticks: u64,
    virtual_bytes: u64,
}

/// The second field is the command in parentheses and may itself hold blanks and parentheses, so
/// fields are counted from the last one; the first after it is number 3 in proc(5).
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index - 3)?.parse().ok();
    Some(Stat {
        user_ticks: number(14)?,
        system_ticks: number(15)?,
        start_ticks: number(22)?,
        virtual_bytes: number(23)?,
    })
}

fn parse_resident(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn parse_boot_time(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn a_command_with_parentheses_does_not_shift_the_fields() {
        let text =
            "7 (a ) b) S 1 7 7 0 -1 4194560 10 0 0 0 11 12 0 0 20 0 1 0 345 67890 42 18446744073709551615\n";
        let want = Stat { user_ticks: 11, system_ticks: 12, start_ticks: 345, virtual_bytes: 67890 };
        assert_eq!(parse_stat(text), Some(want));
        assert_eq!(parse_stat("7 (a) S 1"), None);
    }

    #[test]
    fn memory_is_in_kibibytes() {
        assert_eq!(parse_resident("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2048 * 1024));
        assert_eq!(parse_resident("Name:\tx\n"), None);
    }

    #[test]
    fn capabilities_are_bits() {
        assert_eq!(parse_capabilities("Name:\tx\nCapEff:\t0000000000003000\n"), Some(0b11 << 12));
        assert_eq!(parse_capabilities("Name:\tx\n"), None);
        assert!(capabilities().is_ok());
    }

    #[test]
    fn a_neighbour_is_found_by_its_name_and_told_from_our_own_kind() {
        let mut sleeper = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        // Between fork and exec the child still bears our name.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let found = loop {
            let found = neighbours(&["sleep"]);
            if let Some(it) = found.into_iter().find(|it| it.pid == sleeper.id()) {
                break it;
            }
            assert!(std::time::Instant::now() < deadline, "the child never showed up");
            std::thread::yield_now();
        };
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        assert!(!found.is_ours);
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        assert!(neighbours(&[own.trim_end()]).iter().all(|it| it.pid != std::process::id()));
    }

    #[test]
    fn our_own_numbers_make_sense() {
        let found = read().unwrap();
        assert!(found.resident_bytes > 0 && found.resident_bytes <= found.virtual_bytes, "{found:?}");
        assert!(found.open_fds > 0 && found.open_fds <= found.max_fds, "{found:?}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(found.start_time_seconds <= now + 1.0, "{found:?}");
    }
}
