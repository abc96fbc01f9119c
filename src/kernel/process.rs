//! What /proc says about our own process.

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{SysconfVar, sysconf};
use std::fs;

/// Figures about this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProcessFigures {
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
    /// Memory in RAM, in bytes.
    pub resident_bytes: u64,
    /// Address space in use, in bytes.
    pub virtual_bytes: u64,
    /// Limit of the address space, in bytes.
    pub virtual_max_bytes: u64,
    /// Open file descriptors.
    pub open_fds: u64,
    /// Limit of open file descriptors.
    pub max_fds: u64,
    /// When the process started, in seconds since 1970.
    pub start_time_seconds: f64,
}

/// Reads them.
///
/// # Errors
/// When /proc is not there or says something unexpected.
pub fn figures() -> Result<ProcessFigures> {
    let stat = fs::read_to_string("/proc/self/stat").context("reading /proc/self/stat")?;
    // The program's name, the second field, may hold spaces; it ends with the last bracket.
    let (_, rest) = stat.rsplit_once(')').context("/proc/self/stat has no program name")?;
    let fields: Vec<u64> = rest.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect();
    // Numbered as in proc(5), where the first field after the name is the third.
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or_default();
    let ticks = clock(SysconfVar::CLK_TCK)?;
    Ok(ProcessFigures {
        cpu_seconds: seconds(field(14) + field(15), ticks),
        resident_bytes: field(24) * clock(SysconfVar::PAGE_SIZE)?,
        virtual_bytes: field(23),
        virtual_max_bytes: getrlimit(Resource::RLIMIT_AS)?.0,
        open_fds: fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or_default() as u64,
        max_fds: getrlimit(Resource::RLIMIT_NOFILE)?.0,
        start_time_seconds: boot_time()? + seconds(field(22), ticks),
    })
}

fn clock(variable: SysconfVar) -> Result<u64> {
    let value = sysconf(variable)?.context("the C library does not know")?;
    Ok(u64::try_from(value)?)
}

#[expect(clippy::cast_precision_loss, reason = "clock ticks stay far below 2^52")]
fn seconds(ticks: u64, per_second: u64) -> f64 {
    ticks as f64 / per_second.max(1) as f64
}

fn boot_time() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    line.context("/proc/stat has no btime")?.trim().parse().context("btime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_figures_are_plausible() {
        let figures = figures().unwrap();
        assert!(figures.resident_bytes > 100_000 && figures.virtual_bytes >= figures.resident_bytes);
        assert!(figures.open_fds > 2 && figures.max_fds >= figures.open_fds);
        assert!(figures.start_time_seconds > 1_600_000_000.0);
    }
}
