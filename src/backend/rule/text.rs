//! Rules as iptables-restore takes them.

use super::{Asks, Comment, Match, Network, Rule, SHARE_DIGITS, Share, States, Target};
use crate::model::Frontend;
use std::fmt;

impl fmt::Display for Rule<'_> {
    /// Without `-A CHAIN`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut space = "";
        for asked in self.asks() {
            write!(f, "{space}{asked}")?;
            space = " ";
        }
        match &self.target {
            Target::None => Ok(()),
            target => write!(f, "{space}-j {target}"),
        }
    }
}

impl fmt::Display for Match<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.is_negated { "! " } else { "" };
        match &self.asks {
            Asks::Nothing => Ok(()),
            Asks::Comment(comment) if comment.has_spaces() => write!(f, "-m comment --comment \"{comment}\""),
            Asks::Comment(comment) => write!(f, "-m comment --comment {comment}"),
            Asks::Source(network) => write!(f, "{not}-s {network}"),
            Asks::Destination(network) => write!(f, "{not}-d {network}"),
            Asks::Protocol(protocol, with_extension) if with_extension.0 => {
                write!(f, "-m {protocol} {not}-p {protocol}")
            }
            Asks::Protocol(protocol, _) => write!(f, "{not}-p {protocol}"),
            Asks::DestinationPort(port) => write!(f, "{not}--dport {port}"),
            Asks::InInterface(name, is_prefix) => {
                write!(f, "{not}-i {name}{}", if *is_prefix { "+" } else { "" })
            }
            Asks::SourceIsLocal => write!(f, "-m addrtype {not}--src-type LOCAL"),
            Asks::DestinationIsLocal => write!(f, "-m addrtype {not}--dst-type LOCAL"),
            Asks::Mark { value, mask } => write!(f, "-m mark {not}--mark 0x{value:08x}/0x{mask:08x}"),
            Asks::State(states) => write!(f, "-m conntrack {not}--ctstate {states}"),
            Asks::Share(share) => write!(f, "-m statistic --mode random {not}--probability {share}"),
            Asks::Recent(list, seconds) => {
                write!(f, "-m recent --name {list} {not}--rcheck --seconds {seconds} --reap")
            }
            Asks::Remember(list) => write!(f, "-m recent --name {list} --set"),
            Asks::Count(counter) => write!(f, "-m nfacct --nfacct-name {counter}"),
            Asks::InSet(set, parts) => write!(f, "-m set {not}--match-set {set} {parts}"),
            Asks::FromBridgePort => write!(f, "-m physdev {not}--physdev-is-in"),
            Asks::Through(Frontend { address, port, protocol }) => {
                write!(f, "-m ipvs --vaddr {address} --vproto {protocol} --vport {port}")
            }
            Asks::Unknown(hash) => write!(f, "-m unknown-{hash:x}"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::None => Ok(()),
            Target::Accept => f.write_str("ACCEPT"),
            Target::Drop => f.write_str("DROP"),
            Target::Reject(None) => f.write_str("REJECT"),
            Target::Reject(Some(hash)) => write!(f, "REJECT --unknown-{hash:x}"),
            Target::Return => f.write_str("RETURN"),
            Target::Masquerade(false) => f.write_str("MASQUERADE"),
            Target::Masquerade(true) => f.write_str("MASQUERADE --random-fully"),
            Target::Mark { clear, flip } if clear == flip => write!(f, "MARK --or-mark 0x{flip:08x}"),
            Target::Mark { clear: 0, flip } => write!(f, "MARK --xor-mark 0x{flip:08x}"),
            Target::Mark { clear, flip } => write!(f, "MARK --set-xmark 0x{flip:08x}/0x{clear:08x}"),
            Target::Dnat(to) => write!(f, "DNAT --to-destination {to}"),
            Target::Jump(chain) | Target::Goto(chain) => write!(f, "{chain}"),
            Target::Unknown(hash) => write!(f, "unknown-{hash:x}"),
        }
    }
}

impl Comment<'_> {
    /// Then it has to be quoted.
    fn has_spaces(&self) -> bool {
        match self {
            Comment::Text(text) => text.contains(' '),
            Comment::Port(before, _, after) => !(before.is_empty() && after.is_empty()),
            Comment::Endpoint(..) | Comment::Chain(..) => true,
        }
    }
}

impl fmt::Display for Comment<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Comment::Text(text) => f.write_str(text),
            Comment::Port(before, port, after) => write!(f, "{before}{port}{after}"),
            Comment::Endpoint(port, endpoint) => write!(f, "{port} -> {endpoint}"),
            Comment::Chain(port, text, chain) => write!(f, "{port}{text}{chain}"),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_bare.0 {
            true => write!(f, "{}", self.cidr.addr()),
            false => write!(f, "{}", self.cidr),
        }
    }
}

impl fmt::Display for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for name in self.names() {
            write!(f, "{comma}{name}")?;
            comma = ",";
        }
        Ok(())
    }
}

impl fmt::Display for Share {
    /// With kube-proxy's ten decimals.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number")]
        let one = SHARE_DIGITS as u64;
        write!(f, "{}.{:010}", self.digits.0 / one, self.digits.0 % one)
    }
}
