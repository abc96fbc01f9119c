//! One function for each thing that is read from outside. Each takes any bytes, must not panic and
//! must come back; some check what must hold of the result. `make fuzz` drives them by coverage; the
//! tests below replay the seeds and every input that ever found something.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod seeds;

use kube_proxy_rs::testing::parsers;

/// A target: its name, what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("api", api),
    ("command-line", command_line),
    ("configuration", configuration),
    ("http", http),
    ("ipvs", ipvs_rs::fuzzing::parse_anything),
    ("manifests", manifests),
    ("netlink", netlink),
    ("nftables", nftables_rs::fuzzing::parse_anything),
    ("protobuf", protobuf),
    ("rules", rules),
    ("tools", tools),
];

/// A line of a watch, of any of the three kinds.
fn api(bytes: &[u8]) {
    parsers::watch_line(bytes);
}

/// What a watch or a list sends in protobuf, of any of the three kinds.
fn protobuf(bytes: &[u8]) {
    parsers::protobuf(bytes);
}

/// One argument a line.
fn command_line(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        parsers::command_line(text.lines());
    }
}

/// A `KubeProxyConfiguration`.
fn configuration(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        parsers::configuration(text);
    }
}

/// What a stranger says to one of our servers: there is one reply at most, it is short and ours, and it ends the
/// connection.
fn http(bytes: &[u8]) {
    for answer in parsers::http_request(bytes) {
        let Ok(answer) = String::from_utf8(answer) else { panic!("a reply that is no text") };
        assert!(answer.is_empty() || answer.starts_with("HTTP/1."), "no reply: {answer:?}");
        assert!(
            answer.matches("HTTP/1.").count() <= 1 && answer.len() < 1024,
            "more than a reply: {answer:?}"
        );
        let is_plain = |c: char| c.is_ascii_graphic() || " \r\n".contains(c);
        assert!(answer.chars().all(is_plain), "not our words: {answer:?}");
    }
}

/// A manifest in JSON if it looks like that, else in YAML.
fn manifests(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        parsers::manifest(text);
    }
}

/// Answers of the kernel: what the netlink layer makes of them, and each reader on top of it.
fn netlink(bytes: &[u8]) {
    for message in netlink::Messages::new(bytes).map_while(Result::ok) {
        for header_len in [0, 4, 17] {
            let attributes = message.attributes(header_len).into_iter().flatten().map_while(Result::ok);
            for attribute in attributes {
                let _ = (attribute.u8(), attribute.be16(), attribute.u32(), attribute.be64());
                let _ = attribute.string();
                assert!(attribute.nested().count() <= attribute.value.len(), "more attributes than bytes");
            }
        }
    }
    parsers::kernel_reply(bytes);
}

/// What the iptables tools and /proc say.
fn tools(bytes: &[u8]) {
    parsers::tool_output(&String::from_utf8_lossy(bytes));
}

/// Whatever a manifest says, what is rendered of it holds nothing but rules of our own chains: no
/// name, comment or address gets out of its place.
fn rules(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for input in parsers::rules(text) {
        for line in input.lines() {
            assert!(is_line_of_ours(line), "not a line of ours: {line:?}");
        }
    }
}

fn is_line_of_ours(line: &str) -> bool {
    let is_own_chain = |rest: &str| {
        let name = rest.split(' ').next().unwrap_or_default();
        name.strip_prefix("KUBE-").is_some_and(|rest| {
            !rest.is_empty()
                && rest.bytes().all(|it| it.is_ascii_uppercase() || it.is_ascii_digit() || it == b'-')
        })
    };
    let quotes = line.bytes().filter(|it| *it == b'"').count();
    let is_plain =
        line.bytes().all(|it| (b' '..=b'~').contains(&it)) && quotes % 2 == 0 && !line.contains('\\');
    is_plain
        && match line.split_at_checked(1) {
            Some(("*", table)) => ["nat", "filter"].contains(&table),
            Some((":", rest)) => is_own_chain(rest),
            Some(("-", rest)) => {
                rest.strip_prefix("A ").or(rest.strip_prefix("X ")).is_some_and(is_own_chain)
            }
            _ => line == "COMMIT",
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_target_takes_its_seeds_and_they_are_of_use() {
        for (name, target) in TARGETS {
            let seeds = seeds::of(name).unwrap();
            assert!(!seeds.is_empty(), "{name} has no seeds");
            seeds.iter().for_each(|seed| target(seed));
        }
    }

    #[test]
    fn what_was_found_once_is_not_found_again() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
        let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
        for entry in entries.filter(|entry| entry.path().is_dir()) {
            let name = entry.file_name().into_string().unwrap();
            let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
            for input in std::fs::read_dir(entry.path()).unwrap().map(Result::unwrap) {
                target(&std::fs::read(input.path()).unwrap());
            }
        }
    }

    #[test]
    fn lines_that_are_not_ours_are_told() {
        for good in
            ["*nat", ":KUBE-SERVICES - [0:0]", "-A KUBE-SVC-A -m comment --comment \"a/b:c\" -j X", "COMMIT"]
        {
            assert!(is_line_of_ours(good), "{good}");
        }
        for bad in [
            "",
            "*raw",
            ":INPUT - [0:0]",
            "-A INPUT -j ACCEPT",
            "-A KUBE-A \"x",
            "-F KUBE-A",
            "-A KUBE-A \u{e4}",
        ] {
            assert!(!is_line_of_ours(bad), "{bad}");
        }
    }
}
