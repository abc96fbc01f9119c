//! A node's IPVS, ipsets and interfaces in memory, as strict as the kernel.

use crate::kernel::addresses::InterfaceAddress;
use crate::kernel::ipset::{Ipsets, SetSpec};
use crate::kernel::ipvs::{Connections, Listed, Reason, Refused, Timeouts, VirtualServers};
use crate::kernel::links::Links;
use crate::model::{
    Counts, Frontend, IpFamily, RealServer, ServerOperation, SetEntry, SetType, Traffic, VirtualServer,
};
use anyhow::{Result, bail};
use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

/// A virtual server with its real servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeServer {
    /// Its switches; `None` if they are none that we set.
    pub with: Option<VirtualServer>,
    /// Weight by address.
    pub reals: BTreeMap<SocketAddr, u32>,
}

/// What the kernel can refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FakeObject {
    /// A virtual server at an address.
    VirtualServer,
    /// A real server at an address.
    RealServer,
    /// An entry of a set that begins with an address.
    Entry,
    /// An address of an interface.
    Address,
}

/// The state.
#[derive(Debug)]
pub struct State {
    /// Virtual servers.
    pub servers: BTreeMap<Frontend, FakeServer>,
    /// Connections that real servers still have.
    pub connections: BTreeMap<(Frontend, SocketAddr), u32>,
    /// Connections that were opened, of 100 bytes from the client each; forgotten with their virtual
    /// server.
    pub opened: BTreeMap<(Frontend, SocketAddr), u64>,
    /// How often counts were read.
    pub counts_read: usize,
    /// Sets by name.
    pub sets: BTreeMap<String, (SetType, BTreeSet<SetEntry>)>,
    /// Addresses by interface.
    pub interfaces: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Schedulers that the kernel has.
    pub schedulers: Vec<&'static str>,
    /// The kernel takes no virtual server, set entry or address of a Service with one of these.
    pub refused: BTreeSet<(FakeObject, IpAddr)>,
    /// A virtual server that neither lists nor surveys show.
    pub hidden: Option<Frontend>,
    /// Writes that succeed before one fails; `None` means that all do.
    pub fails_after: Option<usize>,
    /// Every change, in order.
    pub log: Vec<ServerOperation>,
    /// Writing calls.
    pub writes: usize,
    /// Timeouts as set.
    pub timeouts: Timeouts,
    /// Questions that were asked, and the objects that the answers held.
    pub asked: (usize, usize),
    /// The interfaces when it was last told whether their addresses of a family changed.
    told: BTreeMap<IpFamily, BTreeMap<String, BTreeSet<IpAddr>>>,
}

/// A handle on a fake node; clones share it.
#[derive(Clone, Debug)]
pub struct FakeNode(Rc<RefCell<State>>);

impl Default for FakeNode {
    fn default() -> Self {
        let eth0 = ["10.200.0.11", "fd00:200::11", "fe80::1"].map(|ip| ip.parse().ok());
        let lo = ["127.0.0.1", "::1"].map(|ip| ip.parse().ok());
        let interface =
            |name: &str, ips: &[Option<IpAddr>]| (name.to_owned(), ips.iter().flatten().copied().collect());
        FakeNode(Rc::new(RefCell::new(State {
            servers: BTreeMap::new(),
            connections: BTreeMap::new(),
            opened: BTreeMap::new(),
            counts_read: 0,
            sets: BTreeMap::new(),
            interfaces: BTreeMap::from([interface("eth0", &eth0), interface("lo", &lo)]),
            schedulers: vec!["rr", "lc", "sh", "mh"],
            refused: BTreeSet::new(),
            hidden: None,
            fails_after: None,
            log: Vec::new(),
            writes: 0,
            timeouts: Timeouts::default(),
            asked: (0, 0),
            told: BTreeMap::new(),
        })))
    }
}

impl FakeNode {
    /// The state, to look at and to harm.
    #[must_use]
    pub fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    /// Counts a question with `objects` objects in its answer.
    fn answer(&self, objects: usize) {
        let (asked, answered) = self.state().asked;
        self.state().asked = (asked + 1, answered + objects);
    }

    fn write(&self) -> Result<RefMut<'_, State>> {
        let mut state = self.state();
        state.writes += 1;
        match &mut state.fails_after {
            Some(0) => bail!("fake failure (ENOBUFS)"),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(state)
    }
}

impl State {
    fn carry_out(&mut self, operation: &ServerOperation) -> Result<(), Refused> {
        let refuse = |at: &Frontend, reason: Reason, message: &str| {
            let (operation, message) = (operation.kind(), format!("{at}: {message}"));
            Err(Refused { frontend: *at, operation, reason, message })
        };
        let refused = |object, address| self.refused.contains(&(object, address));
        match operation {
            ServerOperation::Add(at, _) if refused(FakeObject::VirtualServer, at.address) => {
                refuse(at, Reason::Other, "no memory for this virtual server")
            }
            ServerOperation::AddReal(at, real) if refused(FakeObject::RealServer, real.address.ip()) => {
                refuse(at, Reason::Other, "no memory for this real server")
            }
            ServerOperation::Add(at, with) | ServerOperation::Update(at, with)
                if !self.schedulers.contains(&&*with.scheduler.name) =>
            {
                refuse(at, Reason::NoSuchScheduler, "no such scheduler")
            }
            ServerOperation::Add(at, _) if self.servers.contains_key(at) => {
                refuse(at, Reason::Exists, "it exists")
            }
            ServerOperation::Add(at, with) => {
                let server = FakeServer { with: Some(with.clone()), reals: BTreeMap::new() };
                self.servers.insert(*at, server);
                Ok(())
            }
            ServerOperation::Remove(at) => match self.servers.remove(at) {
                Some(_) => {
                    self.opened.retain(|(of, _), _| of != at);
                    Ok(())
                }
                None => refuse(at, Reason::NoSuchVirtualServer, "no such virtual server"),
            },
            ServerOperation::Update(at, _)
            | ServerOperation::AddReal(at, _)
            | ServerOperation::UpdateReal(at, _)
            | ServerOperation::RemoveReal(at, _) => match self.servers.get_mut(at) {
                None => refuse(at, Reason::NoSuchVirtualServer, "no such virtual server"),
                Some(server) => {
                    change_server(server, operation).or_else(|(reason, message)| refuse(at, reason, message))
                }
            },
        }
    }
}

fn change_server(server: &mut FakeServer, operation: &ServerOperation) -> Result<(), (Reason, &'static str)> {
    match operation {
        ServerOperation::Update(_, with) => server.with = Some(with.clone()),
        ServerOperation::AddReal(_, real) => {
            if server.reals.insert(real.address, real.weight).is_some() {
                return Err((Reason::Exists, "real server exists"));
            }
        }
        ServerOperation::UpdateReal(_, real) => match server.reals.get_mut(&real.address) {
            Some(weight) => *weight = real.weight,
            None => return Err((Reason::NoSuchRealServer, "no such real server")),
        },
        ServerOperation::RemoveReal(_, address) => {
            if server.reals.remove(address).is_none() {
                return Err((Reason::NoSuchRealServer, "no such real server"));
            }
        }
        ServerOperation::Add(..) | ServerOperation::Remove(_) => {}
    }
    Ok(())
}

fn counts(opened: u64) -> Counts {
    let traffic = Traffic { bytes_in: opened * 100, ..Traffic::default() };
    Counts { connections: opened, traffic: Some(traffic) }
}

fn address(entry: &SetEntry) -> Option<IpAddr> {
    match entry {
        SetEntry::Port(_) => None,
        SetEntry::Ip(address) => Some(*address),
        SetEntry::IpPort(at) | SetEntry::IpPortIp(at, _) | SetEntry::IpPortNet(at, _) => Some(at.address),
    }
}

impl VirtualServers for FakeNode {
    /// Passes over the last of several and lists the first twice, as if another namespace's came and went.
    fn list(&mut self) -> Result<Vec<Listed>> {
        let mut all: Vec<Listed> =
            self.state().servers.iter().map(|(at, server)| (*at, server.with.clone())).collect();
        if all.len() > 1 {
            all.pop();
            all.push(all[0].clone());
        }
        all.retain(|(at, _)| self.state().hidden != Some(*at));
        self.answer(all.len());
        Ok(all)
    }

    fn find(&mut self, frontend: &Frontend) -> Result<Option<Listed>> {
        self.answer(1);
        Ok(self.state().servers.get(frontend).map(|server| (*frontend, server.with.clone())))
    }

    fn real_servers(&mut self, frontend: &Frontend) -> Result<Connections> {
        let objects = self.state().servers.get(frontend).map_or(0, |server| server.reals.len());
        self.answer(objects);
        let state = self.state();
        let Some(server) = state.servers.get(frontend) else { return Ok(Vec::new()) };
        let entry = |(address, weight): (&SocketAddr, &u32)| {
            let connections = state.connections.get(&(*frontend, *address)).copied().unwrap_or_default();
            (RealServer { address: *address, weight: *weight }, connections)
        };
        Ok(server.reals.iter().map(entry).collect())
    }

    /// Passes over the first, as if another namespace's came and went.
    fn survey(&mut self, visit: &mut dyn FnMut(Frontend, &[RealServer])) {
        let shown: Vec<(Frontend, Vec<RealServer>)> = {
            let state = self.state();
            let reals = |server: &FakeServer| {
                let real = |(address, weight): (&SocketAddr, &u32)| RealServer {
                    address: *address,
                    weight: *weight,
                };
                server.reals.iter().map(real).collect()
            };
            state
                .servers
                .iter()
                .skip(1)
                .filter(|(at, _)| state.hidden != Some(**at))
                .map(|(at, server)| (*at, reals(server)))
                .collect()
        };
        self.answer(shown.iter().map(|(_, reals)| 1 + reals.len()).sum());
        shown.iter().for_each(|(at, reals)| visit(*at, reals));
    }

    fn counts(&mut self, frontend: &Frontend) -> Result<Option<Counts>> {
        let mut state = self.state();
        state.counts_read += 1;
        let opened = state.opened.iter().filter(|((of, _), _)| of == frontend).map(|(_, count)| count).sum();
        Ok(state.servers.contains_key(frontend).then(|| counts(opened)))
    }

    fn real_counts(&mut self, frontend: &Frontend) -> Result<Vec<(SocketAddr, Counts)>> {
        let mut state = self.state();
        state.counts_read += 1;
        let Some(server) = state.servers.get(frontend) else { return Ok(Vec::new()) };
        let opened = |real| state.opened.get(&(*frontend, real)).copied().unwrap_or_default();
        Ok(server.reals.keys().map(|real| (*real, counts(opened(*real)))).collect())
    }

    fn run(&mut self, operations: &[ServerOperation]) -> Result<Vec<Refused>> {
        let mut state = self.write()?;
        state.log.extend(operations.iter().cloned());
        Ok(operations.iter().filter_map(|operation| state.carry_out(operation).err()).collect())
    }

    fn set_timeouts(&mut self, timeouts: &Timeouts) -> Result<()> {
        self.write()?.timeouts = *timeouts;
        Ok(())
    }
}

impl Ipsets for FakeNode {
    fn ensure(&mut self, set: SetSpec<'_>) -> Result<()> {
        if set.name.len() > 31 {
            bail!("name {} is too long", set.name);
        }
        let mut state = self.write()?;
        let (kind, _) = state.sets.entry(set.name.to_owned()).or_insert((set.kind, BTreeSet::new()));
        if *kind != set.kind {
            bail!("set {} has another type", set.name);
        }
        Ok(())
    }

    fn entries(&mut self, set: SetSpec<'_>) -> Result<Option<BTreeSet<SetEntry>>> {
        let entries = self.state().sets.get(set.name).map(|(_, entries)| entries.clone());
        self.answer(entries.as_ref().map_or(0, BTreeSet::len));
        Ok(entries)
    }

    fn count(&mut self, set: SetSpec<'_>) -> Result<Option<usize>> {
        self.answer(0);
        Ok(self.state().sets.get(set.name).map(|(_, entries)| entries.len()))
    }

    fn add(&mut self, set: SetSpec<'_>, added: &[SetEntry]) -> Result<Vec<(SetEntry, String)>> {
        let mut state = self.write()?;
        let State { sets, refused, .. } = &mut *state;
        let Some((_, entries)) = sets.get_mut(set.name) else { bail!("no set {}", set.name) };
        let is_refused = |entry: &&SetEntry| {
            address(entry).is_some_and(|address| refused.contains(&(FakeObject::Entry, address)))
        };
        let (no, yes): (Vec<&SetEntry>, Vec<&SetEntry>) = added.iter().partition(is_refused);
        entries.extend(yes);
        Ok(no.into_iter().map(|entry| (*entry, format!("ipset {} is full", set.name))).collect())
    }

    fn delete(&mut self, set: SetSpec<'_>, deleted: &[SetEntry]) -> Result<()> {
        match self.write()?.sets.get_mut(set.name) {
            Some((_, entries)) => entries.retain(|entry| !deleted.contains(entry)),
            None => bail!("no set {}", set.name),
        }
        Ok(())
    }

    fn swap(&mut self, one: &str, other: &str) -> Result<()> {
        let mut state = self.write()?;
        let (Some(a), Some(b)) = (state.sets.remove(one), state.sets.remove(other)) else {
            bail!("no such set")
        };
        state.sets.insert(one.to_owned(), b);
        state.sets.insert(other.to_owned(), a);
        Ok(())
    }

    fn destroy(&mut self, name: &str) -> Result<bool> {
        Ok(self.write()?.sets.remove(name).is_some())
    }
}

impl Links for FakeNode {
    fn ensure_dummy(&mut self, name: &str) -> Result<bool> {
        let mut state = self.write()?;
        let is_new = !state.interfaces.contains_key(name);
        state.interfaces.entry(name.to_owned()).or_default();
        Ok(is_new)
    }

    fn addresses(&mut self, family: IpFamily) -> Result<Vec<InterfaceAddress>> {
        let state = self.state();
        let all = state.interfaces.iter().flat_map(|(name, ips)| {
            ips.iter().map(|address| InterfaceAddress { interface: name.clone(), address: *address })
        });
        let found: Vec<_> = all.filter(|it| IpFamily::of(it.address) == family).collect();
        drop(state);
        self.answer(found.len());
        Ok(found)
    }

    fn addresses_changed(&mut self, family: IpFamily) -> Result<bool> {
        let mut state = self.state();
        let now = state.interfaces.clone();
        let before = state.told.insert(family, now.clone());
        Ok(before != Some(now))
    }

    fn change_addresses(
        &mut self,
        interface: &str,
        add: &[IpAddr],
        remove: &[IpAddr],
    ) -> Result<Vec<(IpAddr, String)>> {
        if add.is_empty() && remove.is_empty() {
            return Ok(Vec::new());
        }
        let mut state = self.write()?;
        let State { interfaces, refused, .. } = &mut *state;
        let Some(addresses) = interfaces.get_mut(interface) else { bail!("no interface {interface}") };
        let is_refused = |address: &&IpAddr| refused.contains(&(FakeObject::Address, **address));
        let (no, yes): (Vec<&IpAddr>, Vec<&IpAddr>) = add.iter().partition(is_refused);
        addresses.extend(yes);
        addresses.retain(|address| !remove.contains(address));
        Ok(no.into_iter().map(|address| (*address, format!("address {address} refused"))).collect())
    }

    fn delete(&mut self, name: &str) -> Result<bool> {
        Ok(self.write()?.interfaces.remove(name).is_some())
    }
}
