//! Entry points for fuzzers: whatever the kernel or its tools say, reading it comes to an end.

use super::iptables::read_tool_output;
use super::{conntrack, cpus, ipset, nfacct, nft, sockets};
use netlink::Messages;

/// Takes bytes for an answer of the kernel, of every kind that is read here.
pub fn reply(bytes: &[u8]) {
    for message in Messages::new(bytes).map_while(Result::ok) {
        conntrack::read_anything(&message);
        ipset::read_anything(&message);
        nft::read_anything(&message);
        nfacct::read_anything(&message);
    }
}

/// Takes text for what a tool or a file of the kernel says.
pub fn tool_output(text: &str) {
    read_tool_output(text);
    sockets::read_anything(text);
    cpus::read_anything(text);
}
