//! Names of chains, sets and lists: short, and many.

use std::fmt;
use std::hash::{Hash, Hasher};

/// The longest name of a set; those of chains are shorter.
const LONGEST: usize = 31;

/// A name, held in place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::backend) struct Name {
    bytes: [u8; LONGEST],
    len: u8,
}

impl Name {
    /// A name of ours, which is short enough.
    pub(in crate::backend) const fn new(text: &str) -> Name {
        let (mut bytes, mut len) = ([0; LONGEST], 0);
        while len < text.len() && len < LONGEST {
            bytes[len] = text.as_bytes()[len];
            len += 1;
        }
        Name { bytes, len: len as u8 }
    }

    /// Any name; `None` if it is too long.
    pub(in crate::backend) fn of(text: &str) -> Option<Name> {
        (text.len() <= LONGEST).then(|| Name::new(text))
    }

    /// A name in two pieces, the second of letters and digits.
    pub(in crate::backend) fn join(prefix: &str, rest: &[u8]) -> Name {
        let mut name = Name::new(prefix);
        for byte in rest.iter().take(LONGEST - prefix.len().min(LONGEST)) {
            name.bytes[usize::from(name.len)] = *byte;
            name.len += 1;
        }
        name
    }

    pub(in crate::backend) fn as_str(&self) -> &str {
        // It was made of a text.
        str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
