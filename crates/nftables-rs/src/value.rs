//! Bytes that registers, keys and data hold.

use std::fmt;

/// What one register file line can hold (`NFT_DATA_VALUE_MAXLEN`).
const MOST: usize = 64;

/// A key, a datum or a constant: up to 64 bytes, held in place.
///
/// Packet fields are as on the wire. Numbers that never were in a packet (marks, `numgen`, interface indices)
/// are in host order.
///
/// ```
/// use nftables_rs::Value;
/// use std::net::Ipv4Addr;
///
/// // ip daddr . meta l4proto . th dport
/// let address = Ipv4Addr::new(10, 96, 0, 1).octets();
/// let key = Value::concat(&[&address, &[6], &80_u16.to_be_bytes()]);
/// assert_eq!(key.as_bytes(), [10, 96, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Value {
    len: u8,
    bytes: [u8; MOST],
}

impl Value {
    /// No byte.
    pub const EMPTY: Value = Value { len: 0, bytes: [0; MOST] };

    /// These bytes. What is beyond 64 is left out, and the kernel refuses the length.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Value {
        let mut value = Value::EMPTY;
        value.append(bytes);
        value
    }

    /// A concatenation: each part padded with zeros to four bytes.
    #[must_use]
    pub fn concat(parts: &[&[u8]]) -> Value {
        let mut value = Value::EMPTY;
        parts.iter().for_each(|part| value.push(part));
        value
    }

    /// Adds a part of a concatenation.
    pub fn push(&mut self, part: &[u8]) {
        self.append(part);
        let padding = part.len().next_multiple_of(4) - part.len();
        self.append(&[0; 3][..padding]);
    }

    /// A 32-bit number in host order.
    #[must_use]
    pub fn host(number: u32) -> Value {
        Value::new(&number.to_ne_bytes())
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    fn append(&mut self, bytes: &[u8]) {
        let at = usize::from(self.len);
        let len = bytes.len().min(MOST - at);
        self.bytes[at..at + len].copy_from_slice(&bytes[..len]);
        // No more than 64.
        self.len += len as u8;
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl<const N: usize> From<[u8; N]> for Value {
    fn from(bytes: [u8; N]) -> Value {
        Value::new(&bytes)
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_padded_to_four_bytes() {
        assert_eq!(
            Value::concat(&[&[1], &[2, 3], &[4, 5, 6, 7]]).as_bytes(),
            [1, 0, 0, 0, 2, 3, 0, 0, 4, 5, 6, 7]
        );
        assert_eq!(format!("{:?}", Value::from([0xab, 1])), "0xab01");
    }

    #[test]
    fn what_is_beyond_64_bytes_is_left_out() {
        assert_eq!(Value::new(&[7; 100]).as_bytes(), [7; 64]);
        assert_eq!(Value::concat(&[&[7; 63], &[8, 8]]).as_bytes().len(), 64);
    }
}
