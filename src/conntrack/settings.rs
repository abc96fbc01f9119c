//! Limits and timeouts of connection tracking, set once at start as kube-proxy sets them.

use crate::config::ConntrackConfig;
use crate::kernel::sysctl::Sysctls;
use anyhow::{Context, Result};
use std::time::Duration;

const MAX: &str = "net/netfilter/nf_conntrack_max";
/// Below /sys/module; not a sysctl, and shared by all network namespaces.
const HASH_SIZE: &str = "nf_conntrack/parameters/hashsize";
/// More is never asked for by cores alone (kube-proxy).
const MOST: u64 = 1 << 20;

/// One setting to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    name: &'static str,
    value: u64,
}

/// The settings a configuration asks for. What it leaves at zero is left alone.
#[must_use]
pub fn wanted(config: &ConntrackConfig, cpus: u32) -> Vec<Setting> {
    let seconds = |name, timeout: Duration| Setting { name, value: timeout.as_secs() };
    let mut settings = vec![
        Setting { name: MAX, value: max(config, cpus) },
        seconds("net/netfilter/nf_conntrack_tcp_timeout_established", config.tcp_established_timeout),
        seconds("net/netfilter/nf_conntrack_tcp_timeout_close_wait", config.tcp_close_wait_timeout),
        Setting {
            name: "net/netfilter/nf_conntrack_tcp_be_liberal",
            value: u64::from(config.tcp_be_liberal),
        },
        seconds("net/netfilter/nf_conntrack_udp_timeout", config.udp_timeout),
        seconds("net/netfilter/nf_conntrack_udp_timeout_stream", config.udp_stream_timeout),
    ];
    settings.retain(|setting| setting.value > 0);
    settings
}

/// Zero per core leaves the limit alone, whatever the minimum says; the upper bound beats the
/// minimum (kube-proxy).
fn max(config: &ConntrackConfig, cpus: u32) -> u64 {
    let scaled = u64::from(config.max_per_core) * u64::from(cpus);
    match scaled {
        0 => 0,
        scaled if scaled > MOST => MOST,
        scaled => scaled.max(u64::from(config.min)),
    }
}

/// Makes the settings; goes on past failures and returns each of them.
pub fn apply(settings: &[Setting], sysctls: &Sysctls, modules: &Sysctls) -> Vec<anyhow::Error> {
    let mut failures = Vec::new();
    for setting in settings {
        let made = sysctls.ensure(setting.name, &setting.value.to_string());
        let made = made.and_then(|_| match setting.name {
            MAX => ensure_hash_size(modules, setting.value),
            _ => Ok(()),
        });
        failures.extend(made.err());
    }
    failures
}

/// A table with more than four entries per bucket gets slow, so it grows with the limit.
fn ensure_hash_size(modules: &Sysctls, max: u64) -> Result<()> {
    let current: u64 = modules.read(HASH_SIZE)?.parse().context("reading the size of the hash table")?;
    if current >= max / 4 {
        return Ok(());
    }
    modules.write(HASH_SIZE, &(max / 4).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use std::path::Path;

    fn config() -> ConntrackConfig {
        ConntrackConfig {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established_timeout: Duration::from_secs(86_400),
            tcp_close_wait_timeout: Duration::from_millis(3_600_900),
            tcp_be_liberal: false,
            udp_timeout: Duration::ZERO,
            udp_stream_timeout: Duration::ZERO,
            strict: false,
        }
    }

    /// Fake trees with every setting at 1 and this hash size.
    fn trees(hash_size: &str) -> (tempfile::TempDir, Sysctls, Sysctls) {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &Path, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let everything = ConntrackConfig {
            tcp_be_liberal: true,
            udp_timeout: Duration::from_secs(1),
            udp_stream_timeout: Duration::from_secs(1),
            ..config()
        };
        for setting in wanted(&everything, 4) {
            write(&root.path().join("sys").join(setting.name), "1\n");
        }
        write(&root.path().join("module").join(HASH_SIZE), hash_size);
        let at = |name: &str| Sysctls::at(root.path().join(name));
        let (sysctls, modules) = (at("sys"), at("module"));
        (root, sysctls, modules)
    }

    #[rstest]
    #[case(32_768, 131_072, 2, 131_072)]
    #[case(32_768, 131_072, 8, 262_144)]
    #[case(32_768, 131_072, 64, MOST)]
    #[case(0, 131_072, 8, 0)]
    #[case(1, 5_000_000, 8, 5_000_000)]
    #[case(1_000_000, 5_000_000, 8, MOST)]
    fn the_limit_follows_cores_minimum_and_upper_bound(
        #[case] max_per_core: u32,
        #[case] min: u32,
        #[case] cpus: u32,
        #[case] expected: u64,
    ) {
        assert_eq!(max(&ConntrackConfig { max_per_core, min, ..config() }, cpus), expected);
    }

    #[test]
    fn only_what_is_asked_for_is_set_in_whole_seconds() {
        let (_root, sysctls, modules) = trees("1000000");
        assert!(apply(&wanted(&config(), 4), &sysctls, &modules).is_empty());
        let value = |name: &str| sysctls.read(&format!("net/netfilter/nf_conntrack_{name}")).unwrap();
        assert_eq!(value("max"), "131072");
        assert_eq!(value("tcp_timeout_established"), "86400");
        assert_eq!(value("tcp_timeout_close_wait"), "3600");
        for untouched in ["tcp_be_liberal", "udp_timeout", "udp_timeout_stream"] {
            assert_eq!(value(untouched), "1", "{untouched}");
        }
    }

    #[rstest]
    #[case("32767", "32768")]
    #[case("32768", "32768")]
    #[case("65536", "65536")]
    fn the_hash_table_grows_with_the_limit_and_never_shrinks(#[case] before: &str, #[case] after: &str) {
        let (_root, sysctls, modules) = trees(before);
        assert!(apply(&wanted(&config(), 4), &sysctls, &modules).is_empty());
        assert_eq!(modules.read(HASH_SIZE).unwrap(), after);
    }

    #[test]
    fn every_failure_is_told_and_none_stops_the_others() {
        let (root, sysctls, modules) = trees("1");
        std::fs::remove_file(root.path().join("sys").join(MAX)).unwrap();
        let failures = apply(&wanted(&config(), 4), &sysctls, &modules);
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert!(failures[0].to_string().contains(MAX), "{}", failures[0]);
        assert_eq!(modules.read(HASH_SIZE).unwrap(), "1", "no table for a limit that is not in force");
        assert_eq!(sysctls.read("net/netfilter/nf_conntrack_tcp_timeout_close_wait").unwrap(), "3600");
    }
}
