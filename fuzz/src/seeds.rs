//! First inputs: the fixtures, the recorded messages, and a few of each kind that neither has.

use serde_json::{Value, json};
use std::io::{self, Error};
use std::path::{Path, PathBuf};

/// Well-made requests and some that are made to confuse.
const REQUESTS: &[&str] = &[
    "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET /livez?a=b&c HTTP/1.0\r\n\r\n",
    "HEAD /readyz HTTP/1.1\r\nhost: x\r\nconnection: keep-alive\r\n\r\n",
    "DELETE /metrics/slis HTTP/1.1\r\nhost: x\r\n\r\nGET /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
    "POST /healthz?verbose HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "PUT /debug/pprof/../status HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    "OPTIONS * HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\nupgrade: h2c\r\n\r\n",
    "CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\n\r\n",
    "GET http://[::1]:10256/configz?%00=%2e HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

const MANIFESTS: &str = "e2e/fixtures";
const IPVS: &str = "crates/ipvs-rs/src/recorded";
const ANSWERS: &str = "src/watch/wire/recorded";
const NF_TABLES: &str = "crates/nftables-rs/tests/recorded";

/// Writes every target's seeds into a folder of its name below `root`, and prints the names of the targets.
///
/// # Errors
/// When the repository's files cannot be read or a seed cannot be written.
pub fn write(root: &Path) -> io::Result<()> {
    for (name, _) in crate::TARGETS {
        let folder = root.join(name);
        std::fs::create_dir_all(&folder)?;
        for (index, seed) in of(name)?.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{index:03}")), seed)?;
        }
        println!("{name}");
    }
    Ok(())
}

/// The seeds of a target.
///
/// # Errors
/// When the repository's files cannot be read.
pub fn of(target: &str) -> io::Result<Vec<Vec<u8>>> {
    match target {
        "api" => watch_lines(),
        "manifests" | "rules" => manifests(),
        "protobuf" => files(ANSWERS, "pb")?.iter().map(std::fs::read).collect(),
        "ipvs" | "netlink" => Ok([recorded(IPVS)?, netfilter()].concat()),
        "nftables" => Ok(recorded(NF_TABLES)?.iter().flat_map(|bytes| messages(bytes)).collect()),
        "configuration" => Ok(texts(CONFIGURATIONS)),
        "command-line" => Ok(texts(COMMAND_LINES)),
        "http" => Ok(texts(REQUESTS)),
        _ => Ok(texts(TOOL_OUTPUT)),
    }
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Every file of a folder with this ending, in order.
fn files(folder: &str, ending: &str) -> io::Result<Vec<PathBuf>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(root)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    found.retain(|path| path.extension().is_some_and(|it| it == ending));
    found.sort();
    Ok(found)
}

/// The fixtures, and the same as one JSON list each.
fn manifests() -> io::Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    for path in files(MANIFESTS, "yaml")? {
        let text = std::fs::read_to_string(path)?;
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects(&text)?});
        found.extend([text.into_bytes(), list.to_string().into_bytes()]);
    }
    Ok(found)
}

fn objects(text: &str) -> io::Result<Vec<Value>> {
    let documents = text.split("\n---").map(str::trim).filter(|text| !text.is_empty());
    documents.map(|text| serde_saphyr::from_str(text).map_err(Error::other)).collect()
}

/// Each object of the fixtures as a line of a watch.
fn watch_lines() -> io::Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    for path in files(MANIFESTS, "yaml")? {
        for object in objects(&std::fs::read_to_string(path)?)? {
            found.push(json!({"type": "ADDED", "object": object}).to_string().into_bytes());
        }
    }
    found.push(br#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}"#.to_vec());
    found.push(br#"{"type":"ERROR","object":{"kind":"Status","status":"Failure","code":410}}"#.to_vec());
    Ok(found)
}

/// Recordings are hexadecimal digits, and comments after `#`.
fn recorded(folder: &str) -> io::Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    for path in files(folder, "hex")? {
        let text = std::fs::read_to_string(path)?;
        let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).map_err(Error::other);
        found.push((0..digits.len() - 1).step_by(2).map(byte).collect::<io::Result<_>>()?);
    }
    Ok(found)
}

/// The messages of a recording, each by itself: small inputs are tried more often.
fn messages(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    while let Some(len) = bytes.first_chunk().map(|len| u32::from_ne_bytes(*len)) {
        let len = usize::try_from(len).unwrap_or(usize::MAX).clamp(16, bytes.len().max(16));
        let (message, rest) = bytes.split_at_checked(len).unwrap_or((bytes, &[]));
        found.push(message.to_vec());
        bytes = rest;
    }
    found
}

/// Answers of nf_tables, ipset, conntrack and nfacct, as small as they come.
fn netfilter() -> Vec<Vec<u8>> {
    let message = |kind: u16, family: u8, fill: &dyn Fn(&mut netlink::MsgBuf)| {
        let mut buf = netlink::MsgBuf::new();
        buf.begin(kind, 2);
        buf.header(&[family, 0, 0, 0]);
        fill(&mut buf);
        buf.as_bytes().to_vec()
    };
    let address = |buf: &mut netlink::MsgBuf, kind: u16| buf.nest(kind, |buf| buf.bytes(1, &[10, 0, 0, 1]));
    vec![
        message(0x0a03, 2, &|buf| {
            buf.string(1, "nat");
            buf.string(3, "KUBE-SERVICES");
            buf.nest(4, |buf| buf.be32(1, 0));
            buf.be32(6, 7);
        }),
        message(0x0a0f, 0, &|buf| buf.be32(1, 42)),
        message(0x0607, 2, &|buf| {
            buf.string(2, "KUBE-CLUSTER-IP");
            buf.nest(7, |buf| buf.be32(25, 1));
            buf.nest(8, |buf| {
                buf.nest(7, |buf| {
                    address(buf, 1);
                    buf.be16(4, 80);
                    buf.u8(7, 6);
                    address(buf, 20);
                    buf.u8(21, 24);
                });
            });
        }),
        message(0x0100, 2, &|buf| {
            for direction in [1, 2] {
                buf.nest(direction, |buf| {
                    buf.nest(1, |buf| {
                        buf.bytes(1, &[10, 0, 0, 1]);
                        buf.bytes(2, &[10, 0, 0, 2]);
                    });
                    buf.nest(2, |buf| {
                        buf.u8(1, 17);
                        buf.be16(2, 5353);
                        buf.be16(3, 53);
                    });
                });
            }
            buf.be32(12, 9);
        }),
        message(0x0700, 0, &|buf| {
            buf.string(1, "ct_state_invalid_dropped_pkts");
            buf.bytes(2, &7_u64.to_be_bytes());
            buf.bytes(3, &99_u64.to_be_bytes());
        }),
    ]
}

const CONFIGURATIONS: &[&str] = &[
    "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n",
    "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvs\nclusterCIDR: 10.0.0.0/8,fd00::/64\n\
     bindAddress: '::'\nhealthzBindAddress: '[::1]:10256'\nmetricsBindAddress: 127.0.0.1\nconfigSyncPeriod: 15m\n\
     clientConnection: {kubeconfig: /k, qps: 5, burst: 10, contentType: x}\nfeatureGates: {AllowServiceExternalIPs: false}\n\
     iptables: {masqueradeBit: 14, masqueradeAll: true, localhostNodePorts: null, minSyncPeriod: 1s, syncPeriod: 30s}\n\
     ipvs: {excludeCIDRs: [10.0.0.0/8], scheduler: rr, strictARP: true, tcpTimeout: 1m30s, udpTimeout: 0s}\n\
     conntrack: {maxPerCore: 32768, min: 131072, tcpBeLiberal: true, tcpEstablishedTimeout: 24h0m0s}\n\
     detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth, bridgeInterface: cni0}\n\
     nodePortAddresses: [primary]\noomScoreAdj: -999\nlogging: {format: json, verbosity: 2, vmodule: [{filePattern: a, verbosity: 1}],\n\
     options: {text: {splitStream: true, infoBufferSize: 64Ki}}}\n",
    r#"{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","conntrack":{"min":-1},"portRange":"1-2","winkernel":{"enableDSR":true}}"#,
];

const COMMAND_LINES: &[&str] = &[
    "--mode=ipvs\n--cluster-cidr=10.0.0.0/8,fd00::/64\n--v=4",
    "--config\n/etc/config.conf\n--hostname-override=Node_1\n--cleanup",
    "render\n--manifests\na.yaml\n--family=ipv6\n--nodeport-addresses=primary",
    "check\n-o\njson\n--service-node-port-range=30000-32767\n--service-cluster-ip-range=10.96.0.0/12",
    "config\ncheck\nfile",
    "--iptables-sync-period=1h2m3.5s\n--ipvs_min_sync_period\n-1ms\n--feature-gates=A=true,B=f\n--vmodule=a=1,b*=2",
    "--version=raw",
];

const TOOL_OUTPUT: &[&str] = &[
    "iptables-restore: line 7 failed\n",
    "iptables-nft-restore v1.8.9 (nf_tables): \nline 3: CHAIN_ADD failed (File exists): chain KUBE-A",
    "iptables-restore v1.8.9 (legacy): Couldn't load match `recent':No such file or directory\nError occurred at line: 12\n",
    "Another app is currently holding the xtables lock; still 1s 0us time ahead to have a chance to grab the lock...\n",
    "*nat\n:PREROUTING ACCEPT [1:60]\n:KUBE-SERVICES - [0:0]\n-A PREROUTING -m comment --comment \"a -j b\" -j KUBE-SERVICES\n-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -j KUBE-SVC-A\nCOMMIT\n",
    "  sl  local_address rem_address   st tx_queue\n   0: 0100007F:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1\n   1: B80D0120000000000000000001000000:0050 00000000000000000000000000000000:0000 07 0:0 0:0 0 0 0 7 1\n",
    "0-3,6,8-9",
];
