//! The effective configuration, written back as a file: for `--write-config-to` and `/configz`.

use super::record::KubeProxyConfiguration;

/// What is in effect after flags, file and defaults, in the form of a configuration file.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective(pub(super) KubeProxyConfiguration);

impl Effective {
    /// As a YAML file.
    ///
    /// # Errors
    /// When it cannot be serialised.
    pub fn to_yaml(&self) -> Result<String, String> {
        serde_saphyr::to_string(&self.0).map_err(|error| error.to_string())
    }

    pub(super) fn to_json(&self) -> Option<serde_json::Value> {
        serde_json::to_value(&self.0).ok()
    }

    /// As the answer of `/configz`.
    ///
    /// # Errors
    /// When it cannot be serialised.
    pub fn to_configz(&self) -> Result<String, String> {
        let body = serde_json::to_string(&self.0).map_err(|error| error.to_string())?;
        Ok(format!("{{\"kubeproxy.config.k8s.io\":{body}}}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::{ConfigFile, parse};
    use super::super::{command_line, resolve};
    use super::*;

    fn effective(args: &[&str]) -> Effective {
        let line = command_line::parse(args.iter().copied()).unwrap();
        Effective(resolve::record(&line, None, (&"host".into(), &mut Vec::new())).unwrap().0)
    }

    #[test]
    fn what_is_written_means_the_same_when_it_is_read() {
        for args in [
            &[][..],
            &["--mode=ipvs", "--ipvs-min-sync-period=2s", "--ipvs-scheduler=mh", "--masquerade-all"],
            &[
                "--hostname-override=Yes",
                "--cluster-cidr=10.0.0.0/8,fd00::/8",
                "--nodeport-addresses=primary",
            ],
            &[
                "--v=3",
                "--vmodule=a=1",
                "--feature-gates=A=false",
                "--conntrack-min=0",
                "--kubeconfig=~/k: #x",
            ],
            &[
                "--bind-address=::",
                "--healthz-bind-address=[::]:1",
                "--oom-score-adj=0",
                "--log-text-split-stream",
            ],
        ] {
            let written = effective(args);
            for text in [written.to_yaml().unwrap(), serde_json::to_string(&written.0).unwrap()] {
                let file = ConfigFile { path: "written".into(), content: text.clone().into() };
                let line = command_line::parse(["--config=written"]).unwrap();
                let mut notices = Vec::new();
                let after = resolve::record(&line, Some(&file), (&"host".into(), &mut notices)).unwrap().0;
                assert_eq!(notices, Vec::<String>::new(), "{text}");
                assert_eq!(after, written.0, "{text}");
            }
        }
    }

    #[test]
    fn text_that_looks_like_something_else_stays_text() {
        for text in [
            "yes", "1_000", "017", "08", "0o17", "1e3", ".5", "~", "null", "a: b", "a #b", "- a", " a", "é\n",
        ] {
            let content = effective(&[&format!("--kubeconfig={text}")]).to_yaml().unwrap().into_bytes();
            let (record, _) = parse(&ConfigFile { path: "written".into(), content }).unwrap();
            assert_eq!(record.client_connection.kubeconfig, text);
        }
    }

    #[test]
    fn periods_stand_in_the_section_of_the_mode() {
        let text = effective(&["--mode=ipvs"]).to_yaml().unwrap();
        let section = |name: &str| {
            text.split(&format!("\n{name}:\n")).nth(1).unwrap().split("\n  sync").nth(1).unwrap()
        };
        assert!(section("ipvs").starts_with("Period: 30s\n"), "{text}");
        assert!(section("iptables").starts_with("Period: 0s\n"), "{text}");
    }

    #[test]
    fn configz_has_the_file_under_its_group() {
        let text = effective(&[]).to_configz().unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let config = &value["kubeproxy.config.k8s.io"];
        assert_eq!(config["kind"], "KubeProxyConfiguration");
        assert_eq!(config["mode"], "iptables");
        assert_eq!(config["iptables"]["masqueradeBit"], 14);
        assert_eq!(config["conntrack"]["tcpEstablishedTimeout"], "24h0m0s");
    }
}
