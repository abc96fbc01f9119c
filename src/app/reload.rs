//! A configuration file that changes while we run.
//!
//! The file is looked at, not listened to: a ConfigMap volume exchanges a symbolic link two folders
//! above it, editors put a new file in its place, and a look a second finds out all the same.

use crate::config::{CommandLine, ConfigFile, Effective, Resolved};
use crate::telemetry;
use std::path::Path;
use std::time::Duration;

const PERIOD: Duration = Duration::from_secs(1);
/// What can be changed without a restart.
const LIVE: &str = "logging.verbosity";

/// The configuration in force, and where it came from.
pub(super) struct Watched {
    line: CommandLine,
    effective: Effective,
    file: Option<ConfigFile>,
}

impl Watched {
    pub(super) fn new(line: CommandLine, effective: Effective) -> Self {
        Watched { line, effective, file: None }
    }

    /// Waits until the file asks for what only a restart gives; returns the settings that do.
    pub(super) async fn ask_for_restart(mut self) -> Vec<String> {
        let Some(path) = self.line.config_file() else { return std::future::pending().await };
        self.file = read(&path);
        let mut before = self.file.clone();
        let mut is_gone = false;
        let mut reading = tokio::time::interval(PERIOD);
        reading.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            reading.tick().await;
            let now = read(&path);
            // Twice the same: it is not being written.
            let settled = now == before;
            before.clone_from(&now);
            if settled && is_gone != now.is_none() {
                is_gone = now.is_none();
                tell_whether_it_is_there(&path, is_gone);
            }
            if !settled || now.is_none() || now == self.file {
                continue;
            }
            self.file = now;
            let reasons = self.take_over();
            if !reasons.is_empty() {
                return reasons;
            }
        }
    }

    /// Applies what can be applied at once; returns the settings that need a restart.
    fn take_over(&mut self) -> Vec<String> {
        let Resolved { config, effective, .. } = match super::resolve_file(&self.line, self.file.as_ref()) {
            Ok(resolved) => resolved,
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the changed configuration file is not valid; the configuration in force stays"
                );
                return Vec::new();
            }
        };
        let mut changed = self.effective.differences(&effective);
        if changed.iter().any(|path| path == LIVE) {
            telemetry::set_verbosity(config.logging.verbosity);
            tracing::info!(verbosity = config.logging.verbosity, "log verbosity changed");
        }
        self.effective = effective;
        changed.retain(|path| path != LIVE);
        changed
    }
}

fn tell_whether_it_is_there(path: &Path, is_gone: bool) {
    let file = path.display();
    if is_gone {
        tracing::warn!(%file, "the configuration file cannot be read any more; the configuration in force stays");
    } else {
        tracing::info!(%file, "the configuration file can be read again");
    }
}

/// `None` while the file is being exchanged, or is gone.
fn read(path: &Path) -> Option<ConfigFile> {
    super::read_config(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    /// A ConfigMap volume: `config.conf` leads to `..data/config.conf`, `..data` to a folder of a version.
    fn publish(volume: &Path, version: &str, text: &str) {
        let folder = volume.join(format!("..{version}"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.conf"), format!("{HEAD}{text}")).unwrap();
        symlink(format!("..{version}"), volume.join("..data_tmp")).unwrap();
        std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        let _ = symlink("..data/config.conf", volume.join("config.conf"));
    }

    fn watched(volume: &Path) -> Watched {
        let flag = format!("--config={}", volume.join("config.conf").display());
        let line = crate::config::parse([flag, "--hostname-override=node-0".to_owned()]).unwrap();
        let resolved = super::super::resolve(&line).unwrap();
        Watched::new(line, resolved.effective)
    }

    #[tokio::test(start_paused = true)]
    async fn a_config_map_that_changes_names_the_settings_that_need_a_restart() {
        let volume = tempfile::tempdir().unwrap();
        publish(volume.path(), "1", "");
        let watch = tokio::spawn(watched(volume.path()).ask_for_restart());
        tokio::time::sleep(3 * PERIOD).await;
        publish(volume.path(), "2", "logging: {verbosity: 3}\nconntrack: {min: 7}\nipvs: {scheduler: wrr}\n");
        assert_eq!(watch.await.unwrap(), ["conntrack.min", "ipvs.scheduler"]);
    }

    #[tokio::test(start_paused = true)]
    async fn verbosity_comments_and_mistakes_need_no_restart() {
        let volume = tempfile::tempdir().unwrap();
        publish(volume.path(), "1", "");
        let watch = tokio::spawn(watched(volume.path()).ask_for_restart());
        for (version, text) in
            [("2", "# a comment\n"), ("3", "logging: {verbosity: 1}\n"), ("4", "mode: nonsense\n")]
        {
            tokio::time::sleep(3 * PERIOD).await;
            publish(volume.path(), version, text);
        }
        tokio::time::sleep(3 * PERIOD).await;
        assert!(!watch.is_finished());
        publish(volume.path(), "5", "ipvs: {scheduler: wrr}\n");
        assert_eq!(watch.await.unwrap(), ["ipvs.scheduler"]);
    }
}
