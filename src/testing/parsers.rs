//! Every parser of untrusted input, as one function each: what the fuzz targets drive.

pub use crate::kernel::fuzzing::{reply as kernel_reply, tool_output};
pub use crate::watch::fuzzing::{protobuf, watch_line};

use crate::backend::iptables::{Features, render_inputs};
use crate::config::{self, CommandLine, ConfigFile};
use crate::health::{self, Now, ProxyHealth};
use crate::http::{self, Reply, Site, SlotLimits, Slots};
use crate::kernel::iptables::Flavor;
use crate::model::{IpFamily, NodeFacts, WatchEvent};
use crate::plan::{FamilySettings, Plan, Scope};
use crate::state::Tracker;
use crate::watch::manifests::{self, ManifestOptions};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

/// The node that the fixtures call ours.
const NODE: &str = "node-1";

/// Takes text for a manifest, in JSON if it looks like that.
pub fn manifest(text: &str) -> Vec<WatchEvent> {
    let name = if text.trim_start().starts_with('{') { "fuzzed.json" } else { "fuzzed.yaml" };
    manifests::of_text(
        name,
        text,
        &ManifestOptions { node_name: NODE.to_owned(), node_port_range: 1..=u16::MAX, last_good: None },
    )
}

/// What is sent to iptables-restore for a manifest, for both families, with and without the tree of
/// chains.
pub fn rules(text: &str) -> Vec<String> {
    let node = NodeFacts { name: NODE.into(), ..NodeFacts::default() };
    let mut tracker = Tracker::new(node, 0);
    manifest(text).into_iter().for_each(|event| tracker.fold(event));
    tracker.allot();
    let mut inputs = Vec::new();
    for family in IpFamily::ALL {
        let settings = FamilySettings::new(family);
        let plan = Plan::new(&settings, tracker.snapshot(), Scope::All);
        for tree_threshold in [0, 500] {
            let features = Features { tree_threshold, ..Features::default() };
            inputs.extend(render_inputs(&plan, &features, Flavor::Nft));
        }
    }
    inputs
}

/// Takes text for a configuration file.
pub fn configuration(text: &str) {
    static LINE: LazyLock<Option<CommandLine>> = LazyLock::new(|| config::parse(["--config=fuzzed"]).ok());
    let Some(line) = &*LINE else { return };
    let file = ConfigFile { path: "fuzzed".into(), content: text.into() };
    if config::resolve(line, Some(&file), "host").is_ok() {
        drop(config::explain(line, &file, "host"));
    }
}

/// Says bytes to the health server and to the metrics server; what each answers.
pub fn http_request(bytes: &[u8]) -> [Vec<u8>; 2] {
    static SITES: LazyLock<[Site; 2]> = LazyLock::new(|| {
        let slots = Slots::new(SlotLimits::within(1024));
        let (health, start) = (Arc::new(ProxyHealth::new(Duration::from_secs(30))), Instant::now());
        let now = move || Now { steady: start, wall: SystemTime::UNIX_EPOCH };
        let pages = http::Pages {
            mode: "iptables",
            configz: "{}".to_owned(),
            flagz: String::new(),
            statusz: Box::new(String::new),
            readyz: Box::new(|| Reply::json(200, "{}")),
            metrics: Box::new(|| Ok(("text/plain", Vec::new()))),
            slis: Box::new(|| Ok(("text/plain", Vec::new()))),
            reset_slis: Box::new(|| {}),
            pinged: Box::new(|| {}),
        };
        let routes = [health::routes(health, Arc::new(now), Box::new(|_, _| {})), http::diagnostics(pages)];
        routes.map(|routes| Site::of(routes, &slots))
    });
    SITES.each_ref().map(|site| http::fuzzing::conversation(bytes, site))
}

/// Takes texts for the arguments of the program.
pub fn command_line<'a>(arguments: impl Iterator<Item = &'a str>) {
    if let Ok(line) = config::parse(arguments) {
        drop(config::resolve(&line, None, "host"));
    }
}
