//! Balances one virtual server over real servers, or takes it down again.
//!
//! `balance 192.0.2.1:80 10.0.0.7:8080 10.0.0.8:8080` sets up, `balance 192.0.2.1:80` takes down (as root).

use ipvs_rs::{Ipvs, Key, Protocol, RealServer, Reason, Scheduler, VirtualServer};
use std::error::Error;
use std::net::SocketAddr;

fn main() -> Result<(), Box<dyn Error>> {
    let addresses: Vec<SocketAddr> =
        std::env::args().skip(1).map(|text| text.parse()).collect::<Result<_, _>>()?;
    let (virtual_address, real_addresses) =
        addresses.split_first().ok_or("usage: balance VIRTUAL-ADDRESS:PORT [REAL-ADDRESS:PORT ...]")?;
    let key = Key::address(Protocol::Tcp, *virtual_address);
    let mut ipvs = Ipvs::open()?;

    if real_addresses.is_empty() {
        return Ok(ipvs.remove_virtual_server(&key)?);
    }
    let mut batch = ipvs.batch();
    batch.add_virtual_server(&VirtualServer::new(key, Scheduler::ROUND_ROBIN));
    for address in real_addresses {
        batch.add_real_server(&key, &RealServer::new(*address));
    }
    for refused in ipvs.run(&mut batch)? {
        // Running it twice is fine.
        if refused.reason() != Reason::Exists {
            return Err(refused.into());
        }
    }
    Ok(())
}
