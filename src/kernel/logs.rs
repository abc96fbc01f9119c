//! The log of a proxy that runs in a pod of this node, where its files can be read.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Where the kubelet has the logs of pods: `NAMESPACE_POD_UID/CONTAINER/N.log`.
const PODS: &str = "/var/log/pods";
/// Bytes of a log that are read, from its end.
const MOST_BYTES: u64 = 256 * 1024;
/// Folders that are looked at on each level.
const MOST_ENTRIES: usize = 10_000;

/// The end of the newest log of a pod called after kube-proxy.
///
/// # Errors
/// When there is none, or it cannot be read; says where else it may be.
pub fn tail() -> Result<String> {
    let pods = entries(Path::new(PODS)).into_iter().filter(|pod| is_proxy(pod));
    let files = pods.flat_map(|pod| entries(&pod)).flat_map(|container| entries(&container));
    let logs = files.filter(|file| file.extension().is_some_and(|it| it == "log"));
    let newest = logs.filter_map(|log| Some((fs::metadata(&log).ok()?.modified().ok()?, log))).max();
    match newest {
        Some((_, log)) => end_of(&log).with_context(|| format!("reading {}", log.display())),
        None => bail!(
            "no log of a pod in {PODS}: kubectl logs, or journalctl -u kube-proxy-rs where it is a service, has it"
        ),
    }
}

fn is_proxy(pod: &Path) -> bool {
    pod.file_name().is_some_and(|name| name.to_string_lossy().contains("_kube-proxy"))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.take(MOST_ENTRIES).map(|entry| entry.path()).collect()
}

fn end_of(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MOST_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_log_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "a".repeat(300 * 1024) + "end\n").unwrap();
        let text = end_of(file.path()).unwrap();
        assert!(text.ends_with("aend\n") && text.len() as u64 == MOST_BYTES, "{}", text.len());
        assert!(is_proxy(Path::new("/var/log/pods/kube-system_kube-proxy-x7_uid")));
    }
}
