//! Reads answers. No length is believed before it was compared with the bytes that are there.

use crate::{ATTRIBUTE_HEADER_LEN, HEADER_LEN, Malformed, align};

/// Attribute types come with two flag bits on top.
const TYPE_MASK: u16 = 0x3fff;

/// One netlink message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Message type.
    pub kind: u16,
    /// `NLM_F_*` flags.
    pub flags: u16,
    /// Sequence number of the request it answers.
    pub seq: u32,
    /// Port id of the socket that it answers, or whose request it is about; 0 for the kernel itself.
    pub port: u32,
    /// What follows the netlink header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes that follow a protocol header of `header_len` bytes.
    ///
    /// # Errors
    /// If the message is shorter than that header.
    pub fn attributes(&self, header_len: usize) -> Result<Attributes<'a>, Malformed> {
        let rest = self.payload.get(align(header_len)..).ok_or(Malformed("message without its header"))?;
        Ok(Attributes::new(rest))
    }
}

/// Iterates over the messages of one received datagram; ends at the first malformed one.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    /// Reads the messages in `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Messages<'a> {
        Messages { rest: bytes }
    }

    fn read(&mut self) -> Result<Message<'a>, Malformed> {
        let bytes = std::mem::take(&mut self.rest);
        let header = bytes.get(..HEADER_LEN).ok_or(Malformed("truncated message header"))?;
        let len = usize::try_from(word(header, 0)).unwrap_or(usize::MAX);
        let payload = bytes.get(HEADER_LEN..len).ok_or(Malformed("message length out of bounds"))?;
        // The padding of the last message may be missing.
        self.rest = bytes.get(align(len)..).unwrap_or_default();
        Ok(Message {
            kind: half(header, 4),
            flags: half(header, 6),
            seq: word(header, 8),
            port: word(header, 12),
            payload,
        })
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() { None } else { Some(self.read()) }
    }
}

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Attribute type without its flag bits.
    pub kind: u16,
    /// The value, without padding.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attributes inside this one.
    #[must_use]
    pub fn nested(&self) -> Attributes<'a> {
        Attributes::new(self.value)
    }

    /// One byte.
    ///
    /// # Errors
    /// If the value has another length; this holds for all number readers.
    pub fn u8(&self) -> Result<u8, Malformed> {
        self.array().map(u8::from_ne_bytes)
    }

    /// 16 bits in host order.
    ///
    /// # Errors
    /// If the value has another length.
    pub fn u16(&self) -> Result<u16, Malformed> {
        self.array().map(u16::from_ne_bytes)
    }

    /// 32 bits in host order.
    ///
    /// # Errors
    /// If the value has another length.
    pub fn u32(&self) -> Result<u32, Malformed> {
        self.array().map(u32::from_ne_bytes)
    }

    /// 64 bits in host order.
    ///
    /// # Errors
    /// If the value has another length.
    pub fn u64(&self) -> Result<u64, Malformed> {
        self.array().map(u64::from_ne_bytes)
    }

    /// 16 bits in network order.
    ///
    /// # Errors
    /// If the value has another length.
    pub fn be16(&self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    /// 32 bits in network order.
    ///
    /// # Errors
    /// If the value has another length.
    pub fn be32(&self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// 64 bits in network order.
    ///
    /// # Errors
    /// If the value has another length.
    pub fn be64(&self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// Text up to the first zero, or to the end where there is none.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn string(&self) -> Result<&'a str, Malformed> {
        let end = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        std::str::from_utf8(&self.value[..end]).map_err(|_| Malformed("string attribute is not UTF-8"))
    }

    /// The value, if it has exactly `N` bytes.
    ///
    /// # Errors
    /// If it has not.
    pub fn array<const N: usize>(&self) -> Result<[u8; N], Malformed> {
        self.value.try_into().map_err(|_| Malformed("attribute of unexpected length"))
    }
}

/// Iterates over a list of attributes; ends at the first malformed one.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// Reads the attributes in `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Attributes<'a> {
        Attributes { rest: bytes }
    }

    fn read(&mut self) -> Result<Attribute<'a>, Malformed> {
        let bytes = std::mem::take(&mut self.rest);
        let header = bytes.get(..ATTRIBUTE_HEADER_LEN).ok_or(Malformed("truncated attribute header"))?;
        let len = usize::from(half(header, 0));
        let value =
            bytes.get(ATTRIBUTE_HEADER_LEN..len).ok_or(Malformed("attribute length out of bounds"))?;
        self.rest = bytes.get(align(len)..).unwrap_or_default();
        Ok(Attribute { kind: half(header, 2) & TYPE_MASK, value })
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() { None } else { Some(self.read()) }
    }
}

/// 16 bits at `at`, in host order; the caller has checked that they are there.
fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

/// 32 bits at `at`, in host order; the caller has checked that they are there.
pub(crate) fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MsgBuf;
    use proptest::prelude::*;

    /// Walks everything reachable in `bytes`; must end and must not panic.
    fn walk(bytes: &[u8]) {
        for message in Messages::new(bytes).flatten() {
            for header_len in [0, 4, 17] {
                let attributes = message.attributes(header_len).into_iter().flatten();
                for attribute in attributes.flatten() {
                    let _ = (attribute.u8(), attribute.be16(), attribute.u32(), attribute.be64());
                    let _ = attribute.string();
                    assert!(attribute.nested().count() <= attribute.value.len());
                }
            }
        }
    }

    fn sample() -> MsgBuf {
        let mut buf = MsgBuf::new();
        buf.begin(0x0a03, 2);
        buf.header(&[2, 0, 0, 0]);
        buf.string(1, "nat");
        buf.nest(4, |buf| {
            buf.be32(1, 7);
            buf.u8(2, 9);
        });
        buf.begin(3, 0);
        buf
    }

    #[test]
    fn what_was_written_reads_back() {
        let buf = sample();
        let messages: Vec<_> = Messages::new(buf.as_bytes()).collect::<Result<_, _>>().unwrap();
        assert_eq!(messages.len(), 2);
        assert_eq!((messages[0].kind, messages[0].flags, messages[1].kind), (0x0a03, 2, 3));
        let attributes: Vec<_> = messages[0].attributes(4).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(attributes[0].string(), Ok("nat"));
        assert_eq!(attributes[1].kind, 4);
        let nested: Vec<_> = attributes[1].nested().collect::<Result<_, _>>().unwrap();
        assert_eq!((nested[0].be32(), nested[1].u8()), (Ok(7), Ok(9)));
        assert!(nested[0].u16().is_err());
    }

    #[test]
    fn every_truncation_of_a_message_is_an_error_or_a_shorter_list() {
        let buf = sample();
        for len in 0..buf.len() {
            walk(&buf.as_bytes()[..len]);
            let whole = Messages::new(&buf.as_bytes()[..len]).filter(Result::is_ok).count();
            assert!(whole < 2, "{len} bytes cannot hold both messages");
        }
    }

    #[test]
    fn a_length_shorter_than_the_header_ends_the_list() {
        let mut bytes = sample().as_bytes().to_vec();
        bytes[..4].copy_from_slice(&0_u32.to_ne_bytes());
        let all: Vec<_> = Messages::new(&bytes).collect();
        assert_eq!(all, [Err(Malformed("message length out of bounds"))]);
        let zero_attribute: Vec<_> = Attributes::new(&[0; 8]).collect();
        assert_eq!(zero_attribute, [Err(Malformed("attribute length out of bounds"))]);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            walk(&bytes);
        }

        #[test]
        fn flipped_bytes_never_panic(at in 0_usize..60, value in any::<u8>()) {
            let mut bytes = sample().as_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] = value;
            walk(&bytes);
        }
    }
}
