//! Balances the TCP connections that this machine opens to one address, or stops to.
//!
//! `balance 192.0.2.1:80 10.0.0.7:8080 10.0.0.8:8080` sets up, `balance 192.0.2.1:80` takes down (as root).

use nftables_rs::{
    BaseChain, Batch, Chain, Comparison, Element, Expression, Family, Hook, MetaKey, NatFlags, NatKind,
    Nftables, NumgenKind, PayloadBase, Register, Rule, Set, SetType, Table, TableName, TypeOf, Value,
};
use std::error::Error;
use std::net::SocketAddrV4;

const TABLE: TableName<'static> = TableName::new(Family::Ipv4, "balance");
const ENDPOINT: SetType<'static> = SetType::TypeOf(&[TypeOf::Ipv4Destination, TypeOf::DestinationPort]);

fn main() -> Result<(), Box<dyn Error>> {
    let addresses: Vec<SocketAddrV4> =
        std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let (service, endpoints) =
        addresses.split_first().ok_or("usage: balance ADDRESS:PORT [ENDPOINT-ADDRESS:PORT ...]")?;
    let mut batch = Batch::new();
    // Adding it first makes it no error that there is none to delete.
    batch.add_table(&Table::new(TABLE));
    batch.delete_table(TABLE);
    if !endpoints.is_empty() {
        set_up(&mut batch, *service, endpoints);
    }
    Ok(Nftables::open()?.commit(&mut batch, None)?)
}

fn value(address: SocketAddrV4) -> Value {
    Value::concat(&[&address.ip().octets(), &address.port().to_be_bytes()])
}

fn set_up(batch: &mut Batch, service: SocketAddrV4, endpoints: &[SocketAddrV4]) {
    let comment = format!("{service} over {}", endpoints.len());
    batch.add_table(&Table { comment: Some(&comment), ..Table::new(TABLE) });
    let modulus = u32::try_from(endpoints.len()).unwrap_or(u32::MAX);
    let number = &[TypeOf::Numgen { kind: NumgenKind::RANDOM, modulus, offset: 0 }];
    batch.add_set(&Set::map(TABLE, "endpoints", SetType::TypeOf(number), ENDPOINT));
    let mut list = batch.add_elements(TABLE, "endpoints");
    for (number, endpoint) in (0_u32..).zip(endpoints) {
        list.push(&Element::entry(&number.to_ne_bytes(), value(*endpoint).as_bytes()));
    }
    let base = BaseChain { kind: "nat", hook: Hook::Output, priority: -100, policy: None };
    batch.add_chain(&Chain { base: Some(base), ..Chain::new(TABLE, "output") });
    let expressions = &rule(service, modulus);
    batch.add_rule(&Rule { table: TABLE, chain: "output", expressions, comment: None });
}

/// `meta l4proto tcp ip daddr … th dport … dnat to numgen random mod … map @endpoints`
fn rule(service: SocketAddrV4, modulus: u32) -> [Expression<'static>; 9] {
    let [first, second] = [0, 1].map(Register::word);
    let equals = |value| Expression::Cmp { register: first, comparison: Comparison::EQUAL, value };
    let payload = |base, offset, len| Expression::Payload { to: first, base, offset, len };
    [
        Expression::Meta { to: first, key: MetaKey::L4PROTO },
        equals(Value::from([6])),
        payload(PayloadBase::NETWORK, 16, 4),
        equals(Value::from(service.ip().octets())),
        payload(PayloadBase::TRANSPORT, 2, 2),
        equals(Value::from(service.port().to_be_bytes())),
        Expression::Numgen { to: first, kind: NumgenKind::RANDOM, modulus, offset: 0 },
        Expression::Lookup { set: "endpoints".into(), key: first, to: Some(first), inverse: false },
        Expression::Nat {
            kind: NatKind::Destination,
            family: Family::Ipv4,
            address: Some(first),
            port: Some(second),
            flags: NatFlags::NONE,
        },
    ]
}
