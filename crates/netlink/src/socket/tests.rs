use super::*;

fn message<'a>(kind: u16, flags: u16, payload: &'a [u8]) -> Message<'a> {
    Message { kind, flags, seq: 1, port: 0, payload }
}

/// A capped refusal as a 6.18 kernel sends it: errno, request header, text, offset.
fn refusal_bytes() -> Vec<u8> {
    let mut bytes = (-22_i32).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&[0; HEADER_LEN]);
    let mut text = MsgBuf::new();
    text.begin(0, 0);
    text.string(ERROR_ATTR_MESSAGE, "netmask");
    text.u32(ERROR_ATTR_OFFSET, 24);
    bytes.extend_from_slice(&text.as_bytes()[HEADER_LEN..]);
    bytes
}

#[test]
fn a_refusal_carries_the_kernels_words() {
    let bytes = refusal_bytes();
    let refusal = acknowledgement(&message(NLMSG_ERROR, F_CAPPED | F_ACK_TLVS, &bytes)).unwrap().unwrap_err();
    assert_eq!(refusal.errno, 22);
    assert_eq!(refusal.offset, Some(24));
    assert_eq!(refusal.to_string(), "Invalid argument (os error 22): netmask");
}

#[test]
fn every_truncation_of_a_refusal_is_still_a_refusal_or_malformed() {
    let bytes = refusal_bytes();
    for len in 0..bytes.len() {
        for flags in [0, F_CAPPED, F_ACK_TLVS, F_CAPPED | F_ACK_TLVS] {
            match acknowledgement(&message(NLMSG_ERROR, flags, &bytes[..len])) {
                Err(_) => assert!(len < 4),
                Ok(answer) => assert_eq!(answer.unwrap_err().errno, 22),
            }
        }
    }
}

#[test]
fn an_uncapped_echo_of_absurd_length_does_not_panic() {
    let mut bytes = refusal_bytes();
    bytes[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert!(acknowledgement(&message(NLMSG_ERROR, F_ACK_TLVS, &bytes)).unwrap().is_err());
    bytes[..4].copy_from_slice(&i32::MIN.to_ne_bytes());
    assert!(acknowledgement(&message(NLMSG_ERROR, F_ACK_TLVS, &bytes)).unwrap().is_err());
}

#[test]
fn batches_are_cut_between_messages() {
    let mut buf = MsgBuf::new();
    for _ in 0..300 {
        buf.begin(1, 0);
        buf.u32(1, 1);
    }
    assert_eq!(chunk(buf.as_bytes()), (128 * 24, 128));
    buf.clear();
    buf.begin(1, 0);
    buf.bytes(1, &[0; 60_000]);
    buf.begin(1, 0);
    buf.bytes(1, &[0; 60_000]);
    assert_eq!(chunk(buf.as_bytes()), (60_020, 1));
}

#[test]
fn the_controller_family_is_found_and_an_unknown_one_is_enoent() {
    let mut socket = Socket::open(Protocol::Generic).unwrap();
    assert_eq!(crate::family_id(&mut socket, "nlctrl").unwrap(), 16);
    let error = crate::family_id(&mut socket, "no-such-fam").unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENOENT));
    assert_eq!(crate::family_id(&mut socket, "nlctrl").unwrap(), 16, "the socket survives a refusal");
}

#[test]
fn a_batch_reports_each_refusal_with_its_place() {
    let mut socket = Socket::open(Protocol::Generic).unwrap();
    let mut batch = MsgBuf::new();
    for index in 0..300 {
        batch.begin(16, 0);
        batch.header(&crate::generic_header(3, 1));
        batch.string(2, if index % 50 == 49 { "no-such-fam" } else { "nlctrl" });
    }
    let refused = socket.batch(&mut batch).unwrap();
    let places: Vec<_> = refused.iter().map(|refused| refused.index).collect();
    assert_eq!(places, [49, 99, 149, 199, 249, 299]);
    assert!(refused.iter().all(|refused| refused.refusal.errno == libc::ENOENT));
}

#[test]
fn a_dump_is_streamed_and_errors_of_the_visitor_come_back() {
    let mut socket = Socket::open(Protocol::Generic).unwrap();
    let mut request = MsgBuf::new();
    request.begin(16, 0);
    request.header(&crate::generic_header(3, 1));
    let (mut starts, mut families) = (0, 0);
    socket
        .dump(&mut request, &mut |part| {
            match part {
                Part::Start => starts += 1,
                Part::Item(_) => families += 1,
            }
            Ok(())
        })
        .unwrap();
    assert!(starts >= 1 && families >= 1);

    let stop = |part: Part<Message<'_>>| match part {
        Part::Start => Ok(()),
        Part::Item(_) => Err(Error::from(Malformed("enough"))),
    };
    let error = socket.dump(&mut request, &mut { stop }).unwrap_err();
    assert!(matches!(error, Error::Malformed(Malformed("enough"))));
    assert_eq!(crate::family_id(&mut socket, "nlctrl").unwrap(), 16, "the socket is still in step");
}
