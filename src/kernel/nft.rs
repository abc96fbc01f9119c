//! Reading nf_tables: enough to see, without running a tool, which chains `iptables-nft` has made and
//! whether anything changed.

use super::nfnetlink::{self, HEADER_LEN};
use crate::model::IpFamily;
use anyhow::{Context, Result};
use netlink::{Malformed, Message, MsgBuf, Protocol, Socket};
use std::collections::BTreeSet;

mod listing;
mod monitor;
mod rules;

pub use listing::list_table;
pub use monitor::{Act, Concerns, ForeignWrite, Heard, Monitor, Subscription};
pub use netlink::Part;

const NF_TABLES: u8 = 10;
const SUBSYSTEM: u16 = (NF_TABLES as u16) << 8;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const TABLE_NAME: u16 = 1;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_GENERATION: u16 = SUBSYSTEM | 15;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const HOOK_NUMBER: u16 = 1;
const GENERATION_ID: u16 = 1;

/// A handle on nf_tables in the calling thread's network namespace.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    request: MsgBuf,
}

impl Nft {
    /// Opens the handle.
    ///
    /// # Errors
    /// If the kernel has no netfilter netlink.
    pub fn open() -> Result<Nft> {
        let socket = Socket::open(Protocol::Netfilter).context("cannot reach nf_tables")?;
        Ok(Nft { socket, request: MsgBuf::new() })
    }

    /// Opens the handle, unless the kernel has no nf_tables: then there are no tables in it either.
    ///
    /// # Errors
    /// On lack of permission, or if the kernel fails otherwise.
    pub fn open_if_there() -> Result<Option<Nft>> {
        let opened = Nft::open().and_then(|mut nft| nft.generation().map(|_| nft));
        match opened {
            Err(error) if is_missing(&error) => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn begin(&mut self, kind: u16, family: u8) {
        self.request.clear();
        nfnetlink::begin(&mut self.request, kind, 0, family);
    }

    /// The ruleset's generation: it changes with every committed nf_tables transaction of this
    /// network namespace, of any program and in any family, and with nothing else.
    ///
    /// # Errors
    /// If the kernel has no nf_tables, or on lack of permission.
    pub fn generation(&mut self) -> Result<u32> {
        self.begin(GET_GENERATION, 0);
        let mut generation = None;
        self.socket
            .request(&mut self.request, &mut |reply| {
                if reply.kind == NEW_GENERATION {
                    generation = parse_generation(&reply)?;
                }
                Ok(())
            })
            .context("cannot read the nf_tables generation")?;
        generation.context("the kernel sent no nf_tables generation")
    }

    /// Deletes a table with all that is in it; says whether there was one.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn delete_table(&mut self, family: IpFamily, table: &str) -> Result<bool> {
        self.begin(DELETE_TABLE, nfnetlink::number(family));
        self.request.string(TABLE_NAME, table);
        let refused = self.socket.transaction(NF_TABLES, None, &mut self.request).and_then(|refused| {
            let refusal = refused.into_iter().next().map(|refused| refused.refusal);
            refusal.map_or(Ok(()), |refusal| Err(refusal.into()))
        });
        match refused {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot delete nf_tables table {table}")),
        }
    }

    /// Streams the names of a table's chains that are not on a netfilter hook, as `PREROUTING` is, through `visit`,
    /// in constant memory. A missing table has none.
    ///
    /// When the ruleset changes meanwhile the list starts over: at [`Part::Start`], which also comes
    /// first of all, forget what was seen before.
    ///
    /// # Errors
    /// If the kernel has no nf_tables, on lack of permission, or if the ruleset never held still.
    pub fn chains(&mut self, family: IpFamily, table: &str, visit: &mut dyn FnMut(Part<&str>)) -> Result<()> {
        // The kernel filters by family only. Each chain names its table, so ours are picked here.
        self.begin(GET_CHAIN, nfnetlink::number(family));
        self.socket
            .dump(&mut self.request, &mut |part| {
                match part {
                    Part::Start => visit(Part::Start),
                    Part::Item(message) => {
                        if let Some(chain) = parse_chain(&message, family, table)? {
                            visit(Part::Item(chain));
                        }
                    }
                }
                Ok(())
            })
            .with_context(|| format!("cannot list the {family} chains of nf_tables table {table}"))
    }
}

impl Nft {
    /// The tables that have a chain which routed packets of a family meet.
    ///
    /// # Errors
    /// If the kernel has no nf_tables, on lack of permission, or if the ruleset never held still.
    pub fn met_tables(&mut self, family: IpFamily) -> Result<MetTables> {
        self.begin(GET_CHAIN, 0);
        let mut found = MetTables::default();
        self.socket
            .dump(&mut self.request, &mut |part| {
                match part {
                    Part::Start => found = MetTables::default(),
                    Part::Item(message) => parse_met_table(&message, family, &mut found)?,
                }
                Ok(())
            })
            .context("cannot list the chains of nf_tables")?;
        Ok(found)
    }
}

/// Tables whose chains routed packets meet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetTables {
    /// Those that no iptables tool and no service proxy makes, as `nft` names them: `inet firewalld`.
    pub foreign: BTreeSet<String>,
    /// Those of the iptables tools: `filter`.
    pub of_tools: BTreeSet<String>,
    /// Those with chains at hooks of bridges or devices: `netdev filter`, `inet firewalld`.
    pub of_links: BTreeSet<String>,
    /// The table of a service proxy in mode nftables.
    pub of_proxy: bool,
}

/// The tables of the iptables tools, in the families of IP.
const TOOLS_TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
/// The table of kube-proxy's nftables mode.
const PROXY_TABLE: &str = "kube-proxy";
/// The number of the family `inet`, which sees packets of both.
const INET: u8 = 1;
/// The families whose chains see the packets of devices and of bridges.
const NETDEV: u8 = 5;
const BRIDGE: u8 = 7;
/// The hooks from prerouting to postrouting.
const HOOKS: std::ops::RangeInclusive<u32> = 0..=4;

/// Notes the table of a chain, if routed packets meet the chain.
fn parse_met_table(message: &Message<'_>, family: IpFamily, found: &mut MetTables) -> Result<(), Malformed> {
    let of = message.payload.first().copied().unwrap_or_default();
    let ip = nfnetlink::number(family);
    if message.kind != NEW_CHAIN || ![INET, NETDEV, BRIDGE, ip].contains(&of) {
        return Ok(());
    }
    let chain = read_chain(message)?;
    let Some(hook) = chain.hook else { return Ok(()) };
    let of_family = match (of, family) {
        (INET, _) => "inet",
        (NETDEV, _) => "netdev",
        (BRIDGE, _) => "bridge",
        (_, IpFamily::V4) => "ip",
        (_, IpFamily::V6) => "ip6",
    };
    let is_of_links = [NETDEV, BRIDGE].contains(&of) || !HOOKS.contains(&hook);
    match chain.table {
        table if is_of_links => _ = found.of_links.insert(format!("{of_family} {table}")),
        PROXY_TABLE => found.of_proxy |= of == ip,
        table if of == ip && TOOLS_TABLES.contains(&table) => {
            found.of_tools.insert(table.to_owned());
        }
        table => _ = found.foreign.insert(format!("{of_family} {table}")),
    }
    Ok(())
}

/// Whether the kernel says that it has no nf_tables: no netfilter netlink at all, or none of that kind.
fn is_missing(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<netlink::Error>() {
        Some(netlink::Error::Io { source, .. }) => {
            matches!(source.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT))
        }
        Some(refused) => refused.errno() == Some(libc::EINVAL),
        None => false,
    }
}

fn parse_generation(message: &Message<'_>) -> Result<Option<u32>, Malformed> {
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        if attribute.kind == GENERATION_ID {
            return attribute.be32().map(Some);
        }
    }
    Ok(None)
}

/// The name of a chain; `None` if it belongs to another table or family, or is on a hook.
fn parse_chain<'a>(
    message: &Message<'a>,
    family: IpFamily,
    table: &str,
) -> Result<Option<&'a str>, Malformed> {
    if message.kind != NEW_CHAIN || message.payload.first() != Some(&nfnetlink::number(family)) {
        return Ok(None);
    }
    let chain = read_chain(message)?;
    if chain.table != table || chain.is_base {
        return Ok(None);
    }
    if chain.name.is_empty() {
        return Err(Malformed("chain without a name"));
    }
    Ok(Some(chain.name))
}

/// A chain, as a message has it.
#[derive(Default)]
struct Chain<'a> {
    table: &'a str,
    name: &'a str,
    is_base: bool,
    /// The number of the hook that it hangs on.
    hook: Option<u32>,
}

fn read_chain<'a>(message: &Message<'a>) -> Result<Chain<'a>, Malformed> {
    let mut chain = Chain::default();
    for attribute in message.attributes(HEADER_LEN)? {
        let attribute = attribute?;
        match attribute.kind {
            CHAIN_TABLE => chain.table = attribute.string()?,
            CHAIN_NAME => chain.name = attribute.string()?,
            CHAIN_HOOK => {
                chain.is_base = true;
                for of_hook in attribute.nested() {
                    let of_hook = of_hook?;
                    if of_hook.kind == HOOK_NUMBER {
                        chain.hook = Some(of_hook.be32()?);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(chain)
}

/// Reads whatever it is, for fuzzing.
#[cfg(any(test, feature = "testing"))]
pub(super) fn read_anything(message: &Message<'_>) {
    let _ = parse_generation(message);
    let _ = IpFamily::ALL.map(|family| parse_chain(message, family, "nat").is_ok());
    let _ = IpFamily::ALL.map(|family| parse_met_table(message, family, &mut MetTables::default()).is_ok());
    monitor::read_anything(message);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fresh_netns::{in_fresh_netns, run};
    use std::fmt::Write as _;

    fn list(nft: &mut Nft, family: IpFamily, table: &str) -> BTreeSet<String> {
        let mut chains = BTreeSet::new();
        nft.chains(family, table, &mut |part| match part {
            Part::Start => chains.clear(),
            Part::Item(chain) => drop(chains.insert(chain.to_owned())),
        })
        .unwrap();
        chains
    }

    #[test]
    fn tables_of_other_programs_in_the_way_of_packets_are_found_and_those_of_the_tools_are_not() {
        in_fresh_netns(|| {
            run("iptables-nft -t nat -I PREROUTING -j ACCEPT");
            run("nft add table inet firewalld");
            run("nft 'add chain inet firewalld forward { type filter hook forward priority 10; }'");
            run("nft add table ip6 other");
            run("nft 'add chain ip6 other input { type filter hook input priority 10; }'");
            run("nft add table netdev dev");
            run("nft 'add chain netdev dev in { type filter hook ingress device lo priority 0; }'");
            run("nft add table bridge br");
            run("nft 'add chain bridge br forward { type filter hook forward priority 0; }'");
            run("nft 'add chain inet firewalld in { type filter hook ingress device lo priority 0; }'");
            run("nft add table ip kube-proxy");
            run("nft 'add chain ip kube-proxy forward { type filter hook forward priority 0; }'");
            let found = |family| Nft::open().unwrap().met_tables(family).unwrap();
            let set = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect();
            let of_links = || set(&["bridge br", "inet firewalld", "netdev dev"]);
            let (of_tools, foreign) = (set(&["nat"]), set(&["inet firewalld"]));
            let v4 = MetTables { foreign, of_tools, of_links: of_links(), of_proxy: true };
            assert_eq!(found(IpFamily::V4), v4);
            let foreign = set(&["inet firewalld", "ip6 other"]);
            let v6 = MetTables { foreign, of_links: of_links(), ..MetTables::default() };
            assert_eq!(found(IpFamily::V6), v6);
            let text = listing::blocking("inet firewalld");
            assert!(text.contains("type filter hook forward priority 10;"), "{text}");
        });
    }

    #[test]
    fn the_chains_of_one_table_and_family_are_listed_but_for_built_in_ones() {
        in_fresh_netns(|| {
            run("iptables-nft -t nat -N A
                 iptables-nft -t nat -N B
                 iptables-nft -t nat -I PREROUTING -j A
                 iptables-nft -t filter -N IN-FILTER
                 ip6tables-nft -t nat -N IN-IPV6");
            let mut nft = Nft::open().unwrap();
            assert_eq!(list(&mut nft, IpFamily::V4, "nat"), ["A", "B"].map(str::to_owned).into());
            assert_eq!(list(&mut nft, IpFamily::V6, "nat"), ["IN-IPV6".to_owned()].into());
        });
    }

    #[test]
    fn a_table_is_deleted_with_all_in_it_and_others_stay() {
        in_fresh_netns(|| {
            run("nft add table ip doomed
                 nft add chain ip doomed a
                 nft add rule ip doomed a counter
                 nft add table ip other
                 nft add chain ip other b
                 nft add table ip6 doomed
                 nft add chain ip6 doomed c");
            let mut nft = Nft::open().unwrap();
            assert!(nft.delete_table(IpFamily::V4, "doomed").unwrap());
            assert!(!nft.delete_table(IpFamily::V4, "doomed").unwrap(), "there is none any more");
            assert!(list(&mut nft, IpFamily::V4, "doomed").is_empty());
            assert_eq!(list(&mut nft, IpFamily::V4, "other").len(), 1);
            assert_eq!(list(&mut nft, IpFamily::V6, "doomed").len(), 1);
        });
    }

    #[test]
    fn a_kernel_without_the_subsystem_says_so() {
        in_fresh_netns(|| {
            assert!(Nft::open_if_there().unwrap().is_some());
            // As the kernel answers where a module is missing.
            const NO_SUBSYSTEM: u16 = 200 << 8;
            let mut nft = Nft::open().unwrap();
            nft.begin(NO_SUBSYSTEM, 0);
            let refused = nft.socket.request(&mut nft.request, &mut |_| Ok(())).unwrap_err();
            assert!(is_missing(&anyhow::Error::from(refused).context("asking")));
        });
    }

    #[test]
    fn a_missing_table_has_no_chains() {
        in_fresh_netns(|| {
            let mut nft = Nft::open().unwrap();
            for family in IpFamily::ALL {
                assert!(list(&mut nft, family, "nat").is_empty());
            }
        });
    }

    #[test]
    fn the_generation_moves_with_each_change_and_not_with_reading() {
        in_fresh_netns(|| {
            let mut nft = Nft::open().unwrap();
            let before = nft.generation().unwrap();
            list(&mut nft, IpFamily::V4, "nat");
            assert_eq!(nft.generation().unwrap(), before);
            run("iptables-nft -t nat -N A");
            let after = nft.generation().unwrap();
            assert_ne!(after, before);
            run("iptables-nft -t nat -X A");
            assert_ne!(nft.generation().unwrap(), after);
        });
    }

    #[test]
    fn thousands_of_chains_are_listed_whole() {
        in_fresh_netns(|| {
            let mut rules = String::from("add table ip nat\n");
            for number in 0..20_000 {
                writeln!(rules, "add chain ip nat KUBE-SEP-{number:016}").unwrap();
            }
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(&file, rules).unwrap();
            run(&format!("nft -f {}", file.path().display()));
            assert_eq!(list(&mut Nft::open().unwrap(), IpFamily::V4, "nat").len(), 20_000);
        });
    }
}
