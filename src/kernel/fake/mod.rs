//! In-memory twins of kernel handles, for tests: they keep state, refuse what the kernel refuses
//! and can be told to fail.

pub mod iptables;
pub mod ipvs;
