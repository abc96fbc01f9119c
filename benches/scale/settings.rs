//! What to measure: `scale BINARY KEY=VALUE…`, the keys as `make bench-scale` takes them.

use anyhow::{Context as _, Result, bail};
use std::path::PathBuf;

/// What the program is to program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dataplane {
    Nft,
    Legacy,
    Ipvs,
    /// Mode nftables; `Nft` is mode iptables with nft-backed tools.
    Nftables,
}

impl Dataplane {
    /// Of iptables, the flavour in the tools' names; else the mode.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Dataplane::Nft => "nft",
            Dataplane::Legacy => "legacy",
            Dataplane::Ipvs => "ipvs",
            Dataplane::Nftables => "nftables",
        }
    }

    /// The value of `--proxy-mode`.
    pub(crate) fn mode(self) -> &'static str {
        match self {
            Dataplane::Nft | Dataplane::Legacy => "iptables",
            Dataplane::Ipvs | Dataplane::Nftables => self.as_str(),
        }
    }
}

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Our program.
    pub(crate) binary: String,
    /// Another one to measure beside it.
    pub(crate) peer: Option<String>,
    /// The kubeconfig of an API server to fill; without one a stub is.
    pub(crate) apiserver: Option<PathBuf>,
    /// Services.
    pub(crate) services: u32,
    /// Endpoints of each.
    pub(crate) endpoints: u32,
    pub(crate) dataplane: Dataplane,
    /// Changes that come alone.
    pub(crate) lone: u32,
    /// Changes that come in a storm, and how many a second.
    pub(crate) storm: u32,
    pub(crate) rate: u32,
    /// How long to watch it do nothing.
    pub(crate) idle_seconds: u64,
    /// How many connections to time.
    pub(crate) connections: u32,
    /// Foreign flows that are tracked meanwhile.
    pub(crate) flows: u32,
    /// Flags for our program besides the usual ones.
    pub(crate) flags: Vec<String>,
}

impl Settings {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Settings> {
        let binary = arguments
            .next()
            .context("usage: scale BINARY [N=…] [E=…] [FLAVOR=nft|legacy] [MODE=ipvs|nftables] …")?;
        let mut settings = Settings {
            binary,
            peer: None,
            apiserver: None,
            services: 1000,
            endpoints: 5,
            dataplane: Dataplane::Nft,
            lone: 20,
            storm: 1000,
            rate: 200,
            idle_seconds: 20,
            connections: 3000,
            flows: 0,
            flags: Vec::new(),
        };
        for argument in arguments {
            let (key, value) =
                argument.split_once('=').with_context(|| format!("{argument}: not KEY=VALUE"))?;
            settings.set(key, value).with_context(|| argument.clone())?;
        }
        Ok(settings)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        if value.is_empty() {
            return Ok(());
        }
        match key {
            "N" => self.services = value.parse()?,
            "E" => self.endpoints = value.parse()?,
            "FLAVOR" if value == "legacy" => self.dataplane = Dataplane::Legacy,
            "FLAVOR" if value == "nft" => self.dataplane = Dataplane::Nft,
            "MODE" if value == "ipvs" => self.dataplane = Dataplane::Ipvs,
            "MODE" if value == "nftables" => self.dataplane = Dataplane::Nftables,
            "MODE" if value == "iptables" => {}
            "LONE" => self.lone = value.parse()?,
            "STORM" => self.storm = value.parse()?,
            "RATE" => self.rate = value.parse()?,
            "IDLE" => self.idle_seconds = value.parse()?,
            "CONNECTIONS" => self.connections = value.parse()?,
            "FLOWS" => self.flows = value.parse()?,
            "FLAGS" => self.flags = value.split(' ').map(str::to_owned).collect(),
            "APISERVER" => self.apiserver = Some(value.into()),
            "PEER" => self.peer = Some(value.to_owned()),
            _ => bail!("no such setting"),
        }
        Ok(())
    }
}
