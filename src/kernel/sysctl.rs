//! Kernel settings under /proc/sys.
//!
//! Settings below `net/` belong to the network namespace of the calling thread.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// A handle on the settings.
#[derive(Clone, Debug)]
pub struct Sysctls {
    root: PathBuf,
}

impl Default for Sysctls {
    fn default() -> Self {
        Sysctls::at("/proc/sys")
    }
}

impl Sysctls {
    /// Settings below another folder, such as the host's /proc/sys mounted elsewhere.
    pub fn at(root: impl AsRef<Path>) -> Sysctls {
        Sysctls { root: root.as_ref().to_owned() }
    }

    /// The value of a setting named by its path, as in `net/ipv4/conf/all/route_localnet`.
    ///
    /// # Errors
    /// If it does not exist or cannot be read.
    pub fn read(&self, name: &str) -> Result<String> {
        let value = std::fs::read_to_string(self.root.join(name))
            .with_context(|| format!("cannot read sysctl {name}"))?;
        Ok(value.trim_end().to_owned())
    }

    /// Whether a setting could be written; it is not.
    #[must_use]
    pub fn is_writable(&self, name: &str) -> bool {
        std::fs::OpenOptions::new().write(true).open(self.root.join(name)).is_ok()
    }

    /// Writes a setting.
    ///
    /// # Errors
    /// If it does not exist, cannot be written, or the kernel does not accept the value.
    pub fn write(&self, name: &str, value: &str) -> Result<()> {
        // No create flag: a missing setting must be an error also where the root is a plain folder.
        let mut options = std::fs::OpenOptions::new();
        options
            .write(true)
            .truncate(true)
            .open(self.root.join(name))
            .and_then(|mut file| std::io::Write::write_all(&mut file, value.as_bytes()))
            .with_context(|| format!("cannot set sysctl {name} to {value}"))
    }

    /// Writes a setting only if its value differs; says whether it did. What cannot be read differs.
    ///
    /// # Errors
    /// As [`write`](Sysctls::write).
    pub fn ensure(&self, name: &str, value: &str) -> Result<bool> {
        if self.read(name).is_ok_and(|current| current == value) {
            return Ok(false);
        }
        self.write(name, value)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fresh_netns::in_fresh_netns;

    #[test]
    fn a_setting_is_written_only_when_it_differs() {
        in_fresh_netns(|| {
            let sysctls = Sysctls::default();
            let name = "net/ipv4/conf/all/route_localnet";
            sysctls.write(name, "0").unwrap();
            assert!(sysctls.ensure(name, "1").unwrap());
            assert!(!sysctls.ensure(name, "1").unwrap());
            assert_eq!(sysctls.read(name).unwrap(), "1");
        });
    }

    #[test]
    fn an_equal_value_needs_no_permission_to_write() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("knob"), "7\n").unwrap();
        let sysctls = Sysctls::at(root.path());
        assert!(!sysctls.ensure("knob", "7").unwrap());
        assert_eq!(std::fs::read_to_string(root.path().join("knob")).unwrap(), "7\n", "untouched");
    }

    #[test]
    fn errors_name_the_setting_and_the_value() {
        let root = tempfile::tempdir().unwrap();
        let error = Sysctls::at(root.path()).ensure("net/no/such", "1").unwrap_err();
        assert_eq!(error.to_string(), "cannot set sysctl net/no/such to 1");
        assert!(!root.path().join("net").exists());
    }
}
