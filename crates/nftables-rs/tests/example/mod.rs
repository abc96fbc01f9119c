//! An example: one table with sets and maps of each kind, and rules that use them. `recorded/example-ip.nft` says it in
//! nft's words.

use nftables_rs::{
    BaseChain, Batch, Chain, DataType, DynsetOperation, Element, Expression, Family, Hook, NumgenKind, Rule,
    Set, SetFlags, SetRef, SetType, Table, TableName, TypeOf, Verdict,
};
use std::time::Duration;

mod elements;
mod steps;

pub use steps::{KeyPart, Steps};

/// The example for one family.
#[derive(Clone, Copy, Debug)]
pub struct Example {
    pub table: TableName<'static>,
}

/// A rule of it.
#[derive(Debug)]
pub struct ExampleRule {
    pub chain: &'static str,
    pub comment: Option<&'static str>,
    pub expressions: Vec<Expression<'static>>,
    /// The anonymous set that it needs.
    anonymous: Option<SetRef<'static>>,
}

const PROTOCOL: DataType = DataType::INET_PROTO;
const PORT: DataType = DataType::INET_SERVICE;
/// Listings show the modulus; lookups do not heed it.
const NUMBER: TypeOf = TypeOf::Numgen { kind: NumgenKind::RANDOM, modulus: 2, offset: 0 };
const HOUR: Duration = Duration::from_secs(3600);

const SERVICE: &[KeyPart] = &[KeyPart::Destination, KeyPart::Protocol, KeyPart::Port];
const NUMBERED: &[KeyPart] = &[KeyPart::Destination, KeyPart::Protocol, KeyPart::Port, KeyPart::Random(2)];
const ORIGINAL_SERVICE: &[KeyPart] =
    &[KeyPart::OriginalDestination, KeyPart::Protocol, KeyPart::OriginalPort];

/// Names of sets, in the order of their numbers from 1.
const SETS: [&str; 5] = ["blocked", "services", "endpoints", "sources", "clients"];

/// What they are made of: keys of `blocked`, `services`, `endpoints`, `sources` and `clients`; data of `endpoints` and `clients`.
type Types = [SetType<'static>; 7];

macro_rules! types {
    ($address:expr, $destination:expr) => {
        [
            SetType::Types(&[$address]),
            SetType::Types(&[$address, PROTOCOL, PORT]),
            SetType::TypeOf(&[$destination, TypeOf::L4Protocol, TypeOf::DestinationPort, NUMBER]),
            SetType::Types(&[$address, PROTOCOL, PORT, $address]),
            SetType::Types(&[$address, $address, PROTOCOL, PORT]),
            SetType::TypeOf(&[$destination, TypeOf::DestinationPort]),
            SetType::Types(&[$address, PORT]),
        ]
    };
}

static IPV4: Types = types!(DataType::IPV4_ADDRESS, TypeOf::Ipv4Destination);
static IPV6: Types = types!(DataType::IPV6_ADDRESS, TypeOf::Ipv6Destination);

/// A set by its name, with the number that it has within the transaction that makes it.
fn set(name: &'static str) -> SetRef<'static> {
    let index = SETS.iter().position(|it| *it == name).expect("a set of the example");
    SetRef { name, id: u32::try_from(index + 1).ok() }
}

impl Example {
    pub fn new(family: Family) -> Example {
        Example { table: TableName::new(family, "example") }
    }

    pub fn sets(&self) -> Vec<Set<'static>> {
        let [blocked, service, numbered, source, client, endpoint, learnt] =
            if self.table.family == Family::Ipv6 { IPV6 } else { IPV4 };
        let mut sets = vec![
            Set { comment: Some("a set of addresses"), ..Set::new(self.table, "blocked", blocked) },
            Set::new(self.table, "services", service),
            Set {
                comment: Some("destination . number : endpoint"),
                ..Set::map(self.table, "endpoints", numbered, endpoint)
            },
            Set { flags: SetFlags::INTERVAL, ..Set::new(self.table, "sources", source) },
            Set {
                flags: SetFlags::DYNAMIC | SetFlags::TIMEOUT,
                size: Some(1000),
                timeout: Some(HOUR),
                ..Set::map(self.table, "clients", client, learnt)
            },
        ];
        for it in &mut sets {
            it.id = set(it.name).id.unwrap_or_default();
        }
        sets
    }

    pub fn chains(&self) -> Vec<Chain<'static>> {
        let base = |name, kind, hook, priority| {
            let base = Some(BaseChain { kind, hook, priority, policy: None });
            Chain { base, ..Chain::new(self.table, name) }
        };
        vec![
            Chain::new(self.table, "pick"),
            Chain::new(self.table, "learn"),
            base("forward", "filter", Hook::Forward, 0),
            base("prerouting", "nat", Hook::Prerouting, -100),
            base("postrouting", "nat", Hook::Postrouting, 100),
        ]
    }

    /// Its rules, chain by chain.
    pub fn rules(&self) -> Vec<ExampleRule> {
        let steps = || Steps::new(self.table.family);
        let rule = |chain, steps: Steps| ExampleRule {
            chain,
            comment: None,
            expressions: steps.list,
            anonymous: None,
        };
        let of_three = |id, chain, take: &dyn Fn(Steps) -> Steps| {
            let anonymous = SetRef { name: "__set%d", id: Some(id) };
            let steps = take(steps().match_in(anonymous, &[KeyPart::Protocol]));
            ExampleRule { anonymous: Some(anonymous), ..rule(chain, steps) }
        };
        let clients = set("clients");
        let learn =
            |steps: Steps| steps.learn(DynsetOperation::UPDATE, clients, ORIGINAL_SERVICE, Some(HOUR));
        let forget = |steps: Steps| {
            steps.learn(DynsetOperation::DELETE, clients, ORIGINAL_SERVICE, None).verdict(Verdict::Drop)
        };
        let refused = steps().match_in(set("blocked"), &[KeyPart::Destination]).reject();
        vec![
            rule("pick", steps().translate_by(set("endpoints"), NUMBERED)),
            of_three(6, "learn", &learn),
            of_three(7, "learn", &forget),
            rule("forward", steps().match_new().match_translated().verdict(Verdict::Jump("learn"))),
            ExampleRule { comment: Some("no such service"), ..rule("forward", refused) },
            rule("forward", steps().match_no_source(set("sources")).verdict(Verdict::Drop)),
            rule("prerouting", steps().match_local_source().mark(0x4000).verdict(Verdict::Return)),
            rule("prerouting", steps().match_in(set("services"), SERVICE).verdict(Verdict::Goto("pick"))),
            rule("postrouting", steps().unmark(0x4000).masquerade()),
        ]
    }

    /// Writes all of it. Affinity of IPv6 is left out where nft has to say the same: version 1.0.6 aborts over it.
    pub fn write(&self, batch: &mut Batch, with_learning: bool) {
        batch.add_table(&Table { comment: Some("an example"), ..Table::new(self.table) });
        self.chains().iter().for_each(|chain| batch.add_chain(chain));
        self.sets().iter().for_each(|set| batch.add_set(set));
        for rule in self.rules().iter().filter(|rule| with_learning || rule.chain != "learn") {
            if let Some(set) = rule.anonymous {
                self.write_anonymous(batch, set);
            }
            let ExampleRule { chain, comment, expressions, .. } = rule;
            batch.add_rule(&Rule { table: self.table, chain, expressions, comment: *comment });
        }
    }

    /// TCP, UDP and SCTP; nft wants to know before it takes a port from connection tracking.
    fn write_anonymous(&self, batch: &mut Batch, set: SetRef<'static>) {
        batch.add_set(&Set {
            id: set.id.unwrap_or_default(),
            flags: SetFlags::ANONYMOUS | SetFlags::CONSTANT,
            size: Some(3),
            ..Set::new(self.table, set.name, SetType::TypeOf(&[TypeOf::L4Protocol]))
        });
        let mut list = batch.add_elements(self.table, set);
        for protocol in [&[6], &[17], &[132]] {
            list.push(&Element::new(protocol));
        }
    }
}
