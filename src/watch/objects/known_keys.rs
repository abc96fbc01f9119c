//! Labels and annotations, of which we keep the few that we read.

use super::{
    HEADLESS_LABEL, IPVS_SCHEDULER_ANNOTATION, LIST_END_ANNOTATION, PROXY_NAME_LABEL, SERVICE_NAME_LABEL,
    TRIGGER_TIME_ANNOTATION, ZONE_LABEL,
};
use prost::bytes::{Buf, BufMut};
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use std::fmt;

/// All labels and annotations that we read.
const KNOWN_KEYS: [&str; 7] = [
    PROXY_NAME_LABEL,
    HEADLESS_LABEL,
    SERVICE_NAME_LABEL,
    ZONE_LABEL,
    TRIGGER_TIME_ANNOTATION,
    IPVS_SCHEDULER_ANNOTATION,
    LIST_END_ANNOTATION,
];

/// Those of a map's entries whose keys are in `KNOWN_KEYS`; all others are skipped without being stored.
#[derive(Clone, Debug, Default)]
pub struct KnownKeys {
    values: [Option<String>; KNOWN_KEYS.len()],
    /// The place of the key that was read last, until its value is.
    place: Option<usize>,
}

impl PartialEq for KnownKeys {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

impl KnownKeys {
    /// The value of a known key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        place(key).and_then(|place| self.values.get(place)?.as_deref())
    }

    fn put(&mut self, place: usize, value: String) {
        if let Some(entry) = self.values.get_mut(place) {
            *entry = Some(value);
        }
    }
}

/// Where a key is among the known ones.
fn place(key: &str) -> Option<usize> {
    KNOWN_KEYS.iter().position(|known| *known == key)
}

/// In protobuf a map is a repeated message of a key and a value; all of them are merged into this.
impl Message for KnownKeys {
    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        input: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match (tag, self.place) {
            (1, _) => {
                let mut key = String::new();
                encoding::string::merge(wire_type, &mut key, input, context)?;
                self.place = place(&key);
            }
            (2, Some(place)) => {
                let mut value = String::new();
                encoding::string::merge(wire_type, &mut value, input, context)?;
                self.put(place, value);
                self.place = None;
            }
            _ => encoding::skip_field(wire_type, tag, input, context)?,
        }
        Ok(())
    }

    // Nothing of ours is sent.
    fn encode_raw(&self, _output: &mut impl BufMut) {}

    fn encoded_len(&self) -> usize {
        0
    }

    fn clear(&mut self) {
        *self = KnownKeys::default();
    }
}

impl<'de> Deserialize<'de> for KnownKeys {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_map(KnownKeysVisitor)
    }
}

struct KnownKeysVisitor;

impl<'de> Visitor<'de> for KnownKeysVisitor {
    type Value = KnownKeys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of text to text")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<KnownKeys, A::Error> {
        let mut known = KnownKeys::default();
        while let Some(MapKey(key)) = entries.next_key()? {
            let Some(place) = key else {
                entries.next_value::<IgnoredAny>()?;
                continue;
            };
            if let Some(value) = entries.next_value::<Option<String>>()? {
                known.put(place, value);
            }
        }
        Ok(known)
    }
}

/// A key's place among the known ones; decoded without storing the text.
struct MapKey(Option<usize>);

impl<'de> Deserialize<'de> for MapKey {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct KeyVisitor;
        impl Visitor<'_> for KeyVisitor {
            type Value = MapKey;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }

            fn visit_str<E>(self, text: &str) -> Result<MapKey, E> {
                Ok(MapKey(place(text)))
            }
        }
        input.deserialize_str(KeyVisitor)
    }
}
