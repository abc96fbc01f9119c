use super::*;
use crate::wire::command;
use crate::{Scheduler, SchedulerFlags, read, recorded};
use netlink::{Message, Messages};

fn request(command: u8, fill: impl FnOnce(&mut MsgBuf)) -> MsgBuf {
    let mut buf = MsgBuf::new();
    begin(&mut buf, 32, command);
    fill(&mut buf);
    buf
}

fn only(bytes: &[u8]) -> Message<'_> {
    let mut messages = Messages::new(bytes);
    let message = messages.next().unwrap().unwrap();
    assert!(messages.next().is_none());
    message
}

/// The value of one top-level attribute.
fn attribute(bytes: &[u8], kind: u16) -> Vec<u8> {
    let attributes = only(bytes).attributes(4).unwrap();
    attributes.map(Result::unwrap).find(|attribute| attribute.kind == kind).unwrap().value.to_vec()
}

#[test]
fn an_ipv4_virtual_server_is_written_as_ipvsadm_writes_it() {
    let server = VirtualServer {
        scheduler_flags: SchedulerFlags::SECOND,
        persistence: Some(Persistence::new(Family::V4, Duration::from_secs(10_800))),
        ..VirtualServer::new(
            Key::address(Protocol::Tcp, "192.0.2.9:80".parse().unwrap()),
            Scheduler::MAGLEV_HASH,
        )
    };
    let ours = request(command::NEW_SERVICE, |buf| virtual_server(buf, &server));
    let theirs = recorded::ipvsadm_service_v4();
    assert_eq!(only(ours.as_bytes()).payload, only(&theirs).payload);
}

#[test]
fn an_ipv6_virtual_server_is_written_as_ipvsadm_writes_it() {
    let key = Key::address(Protocol::Udp, "[2001:db8::9]:53".parse().unwrap());
    let server = VirtualServer::new(key, Scheduler::WEIGHTED_ROUND_ROBIN);
    let ours = request(command::NEW_SERVICE, |buf| virtual_server(buf, &server));
    let theirs = recorded::ipvsadm_service_v6();
    assert_eq!(only(ours.as_bytes()).payload, only(&theirs).payload);
}

#[test]
fn a_tunnelled_real_server_is_written_as_ipvsadm_writes_it() {
    // ipvsadm replaces the port of a tunnelled real server by that of the virtual server.
    let server = RealServer {
        forward: Forward::Tunnel(Tunnel::Gue { port: 6080, flags: 0 }),
        ..RealServer::new("[2001:db8:1::1]:53".parse().unwrap())
    };
    let ours = request(command::NEW_DEST, |buf| real_server(buf, &server));
    let theirs = recorded::ipvsadm_dest_v6();
    assert_eq!(attribute(ours.as_bytes(), top::DEST), attribute(&theirs, top::DEST));
}

#[test]
fn a_masqueraded_real_server_means_what_ipvsadms_means() {
    // ipvsadm adds three tunnel attributes that say nothing here.
    let server = RealServer {
        weight: 5,
        upper_threshold: 7,
        lower_threshold: 3,
        ..RealServer::new("10.0.0.9:8080".parse().unwrap())
    };
    let theirs = recorded::ipvsadm_dest_v4();
    assert_eq!(read::real_server(&only(&theirs), Family::V6).unwrap().unwrap().server, server);
    let ours = request(command::NEW_DEST, |buf| real_server(buf, &server));
    assert_eq!(read::real_server(&only(ours.as_bytes()), Family::V6).unwrap().unwrap().server, server);
}

#[test]
#[cfg(target_endian = "little")]
fn removing_a_real_server_is_written_byte_for_byte() {
    let virtual_key = Key::fwmark(Family::V4, 7);
    let buf = request(command::DEL_DEST, |buf| {
        key(buf, &virtual_key);
        real_address(buf, "10.0.0.1:8080".parse().unwrap());
    });
    #[rustfmt::skip]
    assert_eq!(buf.as_bytes(), [
        80, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        7, 1, 0, 0,
        20, 0, 1, 0x80,
            6, 0, 1, 0, 2, 0, 0, 0,
            8, 0, 5, 0, 7, 0, 0, 0,
        40, 0, 2, 0x80,
            6, 0, 11, 0, 2, 0, 0, 0,
            20, 0, 1, 0, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            6, 0, 2, 0, 0x1f, 0x90, 0, 0,
    ]);
}

#[test]
#[cfg(target_endian = "little")]
fn timeouts_left_alone_are_written_as_zero() {
    let change = TimeoutChange { udp: Some(Duration::from_millis(5_900)), ..TimeoutChange::default() };
    let buf = request(command::SET_CONFIG, |buf| timeouts(buf, &change));
    #[rustfmt::skip]
    assert_eq!(only(buf.as_bytes()).payload, [
        12, 1, 0, 0,
        8, 0, 4, 0, 0, 0, 0, 0,
        8, 0, 5, 0, 0, 0, 0, 0,
        8, 0, 6, 0, 5, 0, 0, 0,
    ]);
}

#[test]
fn every_virtual_server_reads_back_as_written() {
    let bytes = recorded::services();
    for message in Messages::new(&bytes) {
        let server = read::virtual_server(&message.unwrap()).unwrap().unwrap().server;
        let buf = request(command::NEW_SERVICE, |buf| virtual_server(buf, &server));
        assert_eq!(read::virtual_server(&only(buf.as_bytes())).unwrap().unwrap().server, server);
    }
}

#[test]
fn every_real_server_reads_back_as_written() {
    for bytes in [recorded::dests_v4(), recorded::dests_v6()] {
        for message in Messages::new(&bytes) {
            let server = read::real_server(&message.unwrap(), Family::V4).unwrap().unwrap().server;
            let buf = request(command::NEW_DEST, |buf| real_server(buf, &server));
            assert_eq!(read::real_server(&only(buf.as_bytes()), Family::V4).unwrap().unwrap().server, server);
        }
    }
}
