//! A small netlink layer.
