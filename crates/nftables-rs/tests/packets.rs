//! Packets through the layout: what the expressions are for. Needs root and nf_tables, hence ignored by default.
//!
//! `cargo test -p nftables-rs --test packets -- --ignored`. A node, a pod with endpoints on it, a pod with clients on it
//! and a client outside are network namespaces that live as long as the test.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

mod layout;
mod netns;

use layout::{Layout, NodePorts, Settings};
use netns::Namespace;
use nftables_rs::{Batch, Family, Nftables, Part};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// Which endpoint answered, and which client it saw; the last parts of their addresses.
    Served {
        by: u8,
        client: String,
    },
    Refused,
    Nothing,
}

use Outcome::{Nothing, Refused};

fn served(by: u8, client: &str) -> Outcome {
    Outcome::Served { by, client: client.to_owned() }
}

/// A node and what is around it.
struct Lab {
    family: Family,
    node: Namespace,
    /// Has the endpoints.
    servers: Namespace,
    /// A pod on the node.
    pod: Namespace,
    outside: Namespace,
}

const ENDPOINTS: [u8; 3] = [5, 6, 7];
const SERVED_PORT: u16 = 8080;

/// An address of the text's form `a.b.c.d`; in IPv6 `fd00:a:b:c::d`.
fn address(family: Family, ipv4: &str) -> IpAddr {
    let ipv4: Ipv4Addr = ipv4.parse().unwrap();
    match (family, ipv4.octets()) {
        (Family::Ipv6, [a, b, c, d]) => format!("fd00:{a}:{b}:{c}::{d}").parse::<Ipv6Addr>().unwrap().into(),
        _ => ipv4.into(),
    }
}

/// The text with every IPv4 address and prefix as that of the family.
fn of_family(family: Family, text: &str) -> String {
    if family != Family::Ipv6 {
        return text.to_owned();
    }
    let word = |word: &str| {
        let (start, len) = word.split_once('/').unwrap_or((word, ""));
        if start.parse::<Ipv4Addr>().is_err() {
            return word.to_owned();
        }
        let len = match len {
            "" => "",
            "16" => "/48",
            "24" => "/64",
            _ => "/128",
        };
        format!("{}{len}", address(family, start))
    };
    text.split_inclusive([' ', '\n', ','])
        .map(|piece| {
            let (start, end) = piece.split_at(piece.trim_end_matches([' ', '\n', ',']).len());
            word(start) + end
        })
        .collect()
}

impl Lab {
    fn new(family: Family) -> Lab {
        let [node, servers, pod, outside] = std::array::from_fn(|_| Namespace::new());
        for namespace in [&node, &servers, &pod, &outside] {
            // IPv6 addresses can be used at once.
            namespace
                .sh("for file in default all; do echo 0 > /proc/sys/net/ipv6/conf/$file/dad_transmits; done");
        }
        node.join("pod0", &servers, "eth0");
        node.join("pod1", &pod, "eth0");
        node.join("out0", &outside, "eth0");
        let lab = Lab { family, node, servers, pod, outside };
        let nodad = if family == Family::Ipv6 { "nodad" } else { "" };
        let add = |namespace: &Namespace, addresses: &[&str]| {
            for address in addresses {
                let (address, device) = address.split_once(' ').unwrap();
                lab.sh(namespace, &format!("ip addr add {address} dev {device} {nodad}"));
            }
        };
        add(&lab.node, &["10.244.1.1/24 pod0", "10.244.3.1/24 pod1", "192.168.50.4/24 out0"]);
        add(&lab.servers, &["10.244.1.5/24 eth0", "10.244.1.6/24 eth0", "10.244.1.7/24 eth0"]);
        add(&lab.pod, &["10.244.3.9/24 eth0"]);
        add(&lab.outside, &["192.168.50.9/24 eth0", "192.168.50.10/24 eth0 preferred_lft 0"]);
        lab.sh(&lab.node, "ip route add default via 192.168.50.9 src 192.168.50.4");
        lab.sh(&lab.servers, "ip route add default via 10.244.1.1 src 10.244.1.5");
        lab.sh(&lab.pod, "ip route add default via 10.244.3.1");
        lab.come_from(9);
        lab.node
            .sh("for file in ipv4/ip_forward ipv6/conf/all/forwarding; do echo 1 > /proc/sys/net/$file; done
             for file in ipv4/icmp_ratelimit ipv6/icmp/ratelimit; do echo 0 > /proc/sys/net/$file; done");
        lab.serve();
        lab
    }

    fn sh(&self, namespace: &Namespace, script: &str) -> String {
        let ip = if self.family == Family::Ipv6 { "ip -6" } else { "ip" };
        namespace.sh(&of_family(self.family, script).replacen("ip ", &format!("{ip} "), 1))
    }

    /// Gives the client outside this address.
    fn come_from(&self, last: u8) {
        let route = format!("ip route replace default via 192.168.50.4 src 192.168.50.{last}");
        self.sh(&self.outside, &route);
    }

    /// Every endpoint answers with its own address and the client's.
    fn serve(&self) {
        for last in ENDPOINTS {
            let address = SocketAddr::new(address(self.family, &format!("10.244.1.{last}")), SERVED_PORT);
            self.servers.run(move || {
                let listener = TcpListener::bind(address).unwrap();
                std::thread::spawn(move || {
                    for stream in listener.incoming().map_while(Result::ok) {
                        let answer = format!("{last} {}", stream.peer_addr().unwrap().ip());
                        let _ = (&stream).write_all(answer.as_bytes());
                    }
                });
                let socket = UdpSocket::bind(address).unwrap();
                std::thread::spawn(move || {
                    let mut buffer = [0; 16];
                    while let Ok((_, client)) = socket.recv_from(&mut buffer) {
                        let _ = socket.send_to(format!("{last} {}", client.ip()).as_bytes(), client);
                    }
                });
            });
        }
    }

    /// Changes the node's ruleset.
    fn commit(&self, write: impl FnOnce(&mut Batch) + Send + 'static) {
        self.node.run(move || {
            let mut batch = Batch::new();
            write(&mut batch);
            Nftables::open().unwrap().commit(&mut batch, None).unwrap();
        });
    }

    fn elements(&self, layout: &Layout, lines: &str) {
        let text = lines
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(|line| line.replacen(" element ", &format!(" element {} kube-proxy ", self.family), 1))
            .collect::<Vec<_>>()
            .join("\n");
        let text = of_family(self.family, &text);
        let layout = layout.clone();
        self.commit(move |batch| layout.write_elements(batch, &text));
    }

    /// Sends a request to `address:port`.
    fn ask(&self, from: &Namespace, protocol: &str, to: &str) -> Outcome {
        let (ip, port) = to.split_once(':').unwrap();
        let to = SocketAddr::new(address(self.family, ip), port.parse().unwrap());
        let is_tcp = protocol == "tcp";
        let answer = from.run(move || if is_tcp { ask_tcp(to) } else { ask_udp(to) });
        match answer {
            Ok(answer) => {
                let (by, client) = answer.split_once(' ').unwrap();
                let client = client.parse::<IpAddr>().unwrap();
                let known = [
                    "10.244.1.1",
                    "10.244.1.5",
                    "10.244.3.9",
                    "192.168.50.4",
                    "192.168.50.9",
                    "192.168.50.10",
                ];
                let client = known.into_iter().find(|name| address(self.family, name) == client);
                served(by.parse().unwrap(), client.expect("an address of the lab"))
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Refused,
            Err(_) => Nothing,
        }
    }

    fn ask_often(
        &self,
        from: &Namespace,
        protocol: &str,
        to: &str,
        times: usize,
    ) -> BTreeMap<Outcome, usize> {
        let mut outcomes = BTreeMap::new();
        (0..times).for_each(|_| *outcomes.entry(self.ask(from, protocol, to)).or_default() += 1);
        outcomes
    }

    /// All that twenty requests lead to.
    fn outcomes(&self, from: &Namespace, to: &str) -> Vec<Outcome> {
        self.ask_often(from, "tcp", to, 20).into_keys().collect()
    }
}

/// Longer than a SYN takes to be sent again.
const PATIENCE: Duration = Duration::from_millis(1_500);

fn ask_tcp(to: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn ask_udp(to: SocketAddr) -> std::io::Result<String> {
    let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"x")?;
    let mut buffer = [0; 64];
    let len = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
}

/// The layout of every size of Services, with affinity in both families.
fn programmed(family: Family, settings: impl FnOnce(Settings) -> Settings) -> (Lab, Layout) {
    let lab = Lab::new(family);
    let classes = (1..=10).map(|power| 1 << power).collect();
    let example = Settings { classes, tries: 8, has_affinity_rules: true, ..Settings::example(family) };
    let layout = Layout::new(settings(example));
    let written = layout.clone();
    lab.commit(move |batch| written.write(batch));
    (lab, layout)
}

/// Services: one with three endpoints, one without any, and so on.
const SERVICES: &str = "
    add element nodeport-ips { 192.168.50.4 }
    add element cluster-ips { 10.96.0.11, 10.96.0.12, 10.96.0.14 }
    add element hairpin-connections { 10.244.1.5 . 10.244.1.5 . tcp . 8080, 10.244.1.6 . 10.244.1.6 . tcp . 8080, 10.244.1.7 . 10.244.1.7 . tcp . 8080 }
    add element service-endpoints { 10.96.0.11 . tcp . 80 . 0 : 10.244.1.5 . 8080, 10.96.0.11 . tcp . 80 . 1 : 10.244.1.6 . 8080, 10.96.0.11 . tcp . 80 . 2 : 10.244.1.7 . 8080 }
    add element services-4 { 10.96.0.11 . tcp . 80 }
    add element service-endpoints { 10.96.0.11 . udp . 53 . 0 : 10.244.1.5 . 8080, 10.96.0.11 . udp . 53 . 1 : 10.244.1.6 . 8080 }
    add element services-2 { 10.96.0.11 . udp . 53 }
    add element reject-services { 10.96.0.12 . tcp . 80 }
    add element service-endpoints { 10.96.0.14 . tcp . 80 . 0 : 10.244.1.5 . 8080 }
    add element masquerade-services { 203.0.113.10 . tcp . 443 }
    add element firewall-services { 203.0.113.10 . tcp . 443 }
    add element firewall-sources { 203.0.113.10 . tcp . 443 . 192.168.50.9/32 }
    add element service-endpoints { 203.0.113.10 . tcp . 443 . 0 : 10.244.1.7 . 8080 }
    add element local-policy-services { 203.0.113.11 . tcp . 80, 203.0.113.12 . tcp . 80 }
    add element service-endpoints { 203.0.113.11 . tcp . 80 . 0 : 10.244.1.5 . 8080, 203.0.113.11 . tcp . 80 . 1 : 10.244.1.6 . 8080 }
    add element services-2 { 203.0.113.11 . tcp . 80 }
    add element local-service-endpoints { 203.0.113.11 . tcp . 80 . 0 : 10.244.1.5 . 8080 }
    add element service-endpoints { 203.0.113.12 . tcp . 80 . 0 : 10.244.1.6 . 8080 }
    add element drop-services { 203.0.113.12 . tcp . 80 }
    add element masquerade-nodeports { tcp . 30080 }
    add element nodeport-endpoints { tcp . 30080 . 0 : 10.244.1.5 . 8080, tcp . 30080 . 1 : 10.244.1.6 . 8080 }
    add element nodeports-2 { tcp . 30080 }
    add element local-policy-nodeports { tcp . 30081 }
    add element local-nodeport-endpoints { tcp . 30081 . 0 : 10.244.1.7 . 8080 }
    add element nodeport-endpoints { tcp . 30081 . 0 : 10.244.1.6 . 8080 }
    add element reject-nodeports { tcp . 30082 }
    add element drop-nodeports { tcp . 30083 }";

fn requests_go_where_they_should(family: Family) {
    let (lab, layout) = programmed(family, |settings| settings);
    lab.elements(&layout, SERVICES);
    cluster_ips(&lab);
    refused_cluster_ips(&lab);
    source_ranges(&lab);
    local_policy(&lab);
    node_ports(&lab);
}

/// All endpoints, evenly; from outside and from the node masqueraded, from pods not.
fn cluster_ips(lab: &Lab) {
    for (from, client) in [(&lab.outside, "10.244.1.1"), (&lab.node, "10.244.1.1"), (&lab.pod, "10.244.3.9")]
    {
        let outcomes = lab.ask_often(from, "tcp", "10.96.0.11:80", 90);
        assert_eq!(outcomes.len(), 3, "{outcomes:?}");
        for last in ENDPOINTS {
            assert!(outcomes[&served(last, client)] > 12, "{outcomes:?}");
        }
        let outcomes = lab.ask_often(from, "udp", "10.96.0.11:53", 20);
        let expected: Vec<_> = [5, 6].map(|last| served(last, client)).into();
        assert_eq!(outcomes.into_keys().collect::<Vec<_>>(), expected);
    }
    // A pod that is its own endpoint.
    assert_eq!(lab.ask(&lab.servers, "tcp", "10.96.0.14:80"), served(5, "10.244.1.1"));
}

/// No endpoints, no such port, no such Service.
fn refused_cluster_ips(lab: &Lab) {
    assert_eq!(lab.ask(&lab.outside, "tcp", "10.96.0.12:80"), Refused);
    assert_eq!(lab.ask(&lab.pod, "tcp", "10.96.0.12:80"), Refused);
    assert_eq!(lab.ask(&lab.pod, "udp", "10.96.0.11:54"), Refused);
    assert_eq!(lab.ask(&lab.pod, "tcp", "10.96.0.99:80"), Nothing);
}

fn source_ranges(lab: &Lab) {
    assert_eq!(lab.ask(&lab.outside, "tcp", "203.0.113.10:443"), served(7, "10.244.1.1"));
    lab.come_from(10);
    assert_eq!(lab.ask(&lab.outside, "tcp", "203.0.113.10:443"), Nothing);
    assert_eq!(lab.ask(&lab.outside, "tcp", "203.0.113.11:80"), served(5, "192.168.50.10"));
    lab.come_from(9);
}

/// Clients outside keep their address and get the endpoints of this node; pods and the node get all.
fn local_policy(lab: &Lab) {
    let local = "203.0.113.11:80";
    assert_eq!(lab.outcomes(&lab.outside, local), [served(5, "192.168.50.9")]);
    assert_eq!(lab.outcomes(&lab.pod, local), [5, 6].map(|last| served(last, "10.244.3.9")));
    assert_eq!(lab.outcomes(&lab.node, local), [5, 6].map(|last| served(last, "10.244.1.1")));
    assert_eq!(lab.ask(&lab.outside, "tcp", "203.0.113.12:80"), Nothing);
    assert_eq!(lab.ask(&lab.pod, "tcp", "203.0.113.12:80"), served(6, "10.244.3.9"));
}

fn node_ports(lab: &Lab) {
    let masqueraded = [5, 6].map(|last| served(last, "10.244.1.1"));
    assert_eq!(lab.outcomes(&lab.outside, "192.168.50.4:30080"), masqueraded);
    assert_eq!(lab.outcomes(&lab.pod, "192.168.50.4:30080"), masqueraded);
    assert_eq!(lab.outcomes(&lab.outside, "192.168.50.4:30081"), [served(7, "192.168.50.9")]);
    assert_eq!(lab.outcomes(&lab.pod, "192.168.50.4:30081"), [served(6, "10.244.3.9")]);
    assert_eq!(lab.ask(&lab.outside, "tcp", "192.168.50.4:30082"), Refused);
    assert_eq!(lab.ask(&lab.outside, "tcp", "192.168.50.4:30083"), Nothing);
    assert_eq!(lab.ask(&lab.outside, "tcp", "192.168.50.4:30084"), Refused, "nothing listens there");
}

#[test]
#[ignore = "needs root and nf_tables"]
fn requests_go_where_they_should_ipv4() {
    requests_go_where_they_should(Family::Ipv4);
}

#[test]
#[ignore = "needs root and nf_tables"]
fn requests_go_where_they_should_ipv6() {
    requests_go_where_they_should(Family::Ipv6);
}

/// A Service with affinity, reached by its own address and by a node port.
const STICKY: &str = "
    add element nodeport-ips { 192.168.50.4 }
    add element cluster-ips { 10.96.0.13 }
    add element service-endpoints { 10.96.0.13 . tcp . 80 . 0 : 10.244.1.5 . 8080, 10.96.0.13 . tcp . 80 . 1 : 10.244.1.6 . 8080, 10.96.0.13 . tcp . 80 . 2 : 10.244.1.7 . 8080 }
    add element services-4 { 10.96.0.13 . tcp . 80 }
    add element nodeport-endpoints { tcp . 30085 . 0 : 10.244.1.5 . 8080, tcp . 30085 . 1 : 10.244.1.6 . 8080, tcp . 30085 . 2 : 10.244.1.7 . 8080 }
    add element nodeports-4 { tcp . 30085 }
    add element masquerade-nodeports { tcp . 30085 }
    add element affinity-services-10800 { 10.96.0.13 . tcp . 80 }
    add element affinity-nodeports-10800 { tcp . 30085 }
    add element affinity-endpoints { 10.96.0.13 . tcp . 80 . 10.244.1.5 . 8080, 10.96.0.13 . tcp . 80 . 10.244.1.6 . 8080, 10.96.0.13 . tcp . 80 . 10.244.1.7 . 8080 }
    add element affinity-nodeport-endpoints { tcp . 30085 . 10.244.1.5 . 8080, tcp . 30085 . 10.244.1.6 . 8080, tcp . 30085 . 10.244.1.7 . 8080 }";

fn clients_keep_their_endpoint_until_it_is_gone(family: Family) {
    let (lab, layout) = programmed(family, |settings| settings);
    lab.elements(&layout, STICKY);
    let endpoint = |from, to| {
        let outcomes = lab.ask_often(from, "tcp", to, 12);
        assert_eq!(outcomes.len(), 1, "one endpoint for all: {outcomes:?}");
        match outcomes.into_keys().next() {
            Some(Outcome::Served { by, .. }) => by,
            other => panic!("{other:?}"),
        }
    };
    let routes = [
        (&lab.outside, "10.96.0.13:80"),
        (&lab.pod, "10.96.0.13:80"),
        (&lab.node, "10.96.0.13:80"),
        (&lab.outside, "192.168.50.4:30085"),
    ];
    let before = routes.map(|(from, to)| endpoint(from, to));
    let learnt = learnt(&lab, &layout);
    assert_eq!(learnt, [3, 1], "three clients of the Service, one of the node port");

    // All lose endpoint 5: the last number takes the place of the one that is gone.
    lab.elements(
        &layout,
        "
        delete element service-endpoints { 10.96.0.13 . tcp . 80 . 0, 10.96.0.13 . tcp . 80 . 2 }
        add element service-endpoints { 10.96.0.13 . tcp . 80 . 0 : 10.244.1.7 . 8080 }
        delete element services-4 { 10.96.0.13 . tcp . 80 }
        add element services-2 { 10.96.0.13 . tcp . 80 }
        delete element affinity-endpoints { 10.96.0.13 . tcp . 80 . 10.244.1.5 . 8080 }
        delete element nodeport-endpoints { tcp . 30085 . 0, tcp . 30085 . 2 }
        add element nodeport-endpoints { tcp . 30085 . 0 : 10.244.1.7 . 8080 }
        delete element nodeports-4 { tcp . 30085 }
        add element nodeports-2 { tcp . 30085 }
        delete element affinity-nodeport-endpoints { tcp . 30085 . 10.244.1.5 . 8080 }",
    );
    let after = routes.map(|(from, to)| endpoint(from, to));
    for (before, after) in before.into_iter().zip(after) {
        assert!(after != 5 && (after == before || before == 5), "{before} became {after}");
    }

    // The Service loses the endpoint that the client outside has, too.
    let (gone, left) = if after[0] == 6 { (6, 7) } else { (7, 6) };
    lab.elements(
        &layout,
        &format!(
            "
        delete element service-endpoints {{ 10.96.0.13 . tcp . 80 . 0, 10.96.0.13 . tcp . 80 . 1 }}
        add element service-endpoints {{ 10.96.0.13 . tcp . 80 . 0 : 10.244.1.{left} . 8080 }}
        delete element services-2 {{ 10.96.0.13 . tcp . 80 }}
        delete element affinity-endpoints {{ 10.96.0.13 . tcp . 80 . 10.244.1.{gone} . 8080 }}"
        ),
    );
    assert_eq!(endpoint(&lab.outside, "10.96.0.13:80"), left, "after the client has tried again");
}

/// How many clients are known, of Services and of node ports.
fn learnt(lab: &Lab, layout: &Layout) -> [usize; 2] {
    let table = layout.table;
    lab.node.run(move || {
        let mut nft = Nftables::open().unwrap();
        ["service-affinity", "nodeport-affinity"].map(|map| {
            let mut found = 0;
            nft.elements(table, map, &mut |part| match part {
                Part::Start => found = 0,
                Part::Item(listed) => {
                    assert!(listed.expires_in.unwrap() > Duration::from_secs(10_000));
                    found += 1;
                }
            })
            .unwrap();
            found
        })
    })
}

#[test]
#[ignore = "needs root and nf_tables"]
fn clients_keep_their_endpoint_until_it_is_gone_ipv4() {
    clients_keep_their_endpoint_until_it_is_gone(Family::Ipv4);
}

#[test]
#[ignore = "needs root and nf_tables"]
fn clients_keep_their_endpoint_until_it_is_gone_ipv6() {
    clients_keep_their_endpoint_until_it_is_gone(Family::Ipv6);
}

fn other_settings_do_what_they_say(family: Family) {
    let (lab, layout) = programmed(family, |settings| Settings {
        local: layout::Local::Interfaces("pod"),
        node_ports: NodePorts::AtAll,
        ..settings
    });
    lab.elements(&layout, SERVICES);
    let ask = |from, to| lab.ask(from, "tcp", to);

    assert!(
        matches!(ask(&lab.outside, "10.96.0.11:80"), Outcome::Served { client, .. } if client == "10.244.1.1")
    );
    assert_eq!(ask(&lab.pod, "203.0.113.12:80"), served(6, "10.244.3.9"));
    // An address that no set names.
    assert!(matches!(ask(&lab.pod, "10.244.3.1:30080"), Outcome::Served { .. }));
    assert_eq!(ask(&lab.pod, "10.244.3.1:30082"), Refused);
    assert_eq!(ask(&lab.pod, "10.244.3.1:30083"), Nothing);
}

#[test]
#[ignore = "needs root and nf_tables"]
fn other_settings_do_what_they_say_ipv4() {
    other_settings_do_what_they_say(Family::Ipv4);
}

#[test]
#[ignore = "needs root and nf_tables"]
fn other_settings_do_what_they_say_ipv6() {
    other_settings_do_what_they_say(Family::Ipv6);
}
