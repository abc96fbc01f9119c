//! From a tree of values to the types of the configuration file, as strictly as kube-proxy.
//!
//! Nothing is converted: text stands in quotes or is no number, a number is no duration. The exception is
//! kube-proxy's: a whole number may be written with a point or an exponent. Null leaves a field at its default;
//! in a list or a map of the user's own keys it is zero or empty. Every complaint has a line and a field.

use super::number;
use super::yaml::{Entry, Fault, Node, Path, Value, plain};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, Error, Expected, MapAccess, SeqAccess, Unexpected,
    Visitor,
};
use std::fmt;

/// Decodes a tree; the second part are fields that are not known. Complains about every field that does
/// not have the type that it must have.
pub(super) fn decode<T: DeserializeOwned>(mut root: Node) -> Result<(T, Vec<Fault>), Vec<Fault>> {
    let mut faults = Vec::new();
    loop {
        let mut unknown = Vec::new();
        let decoder = Decoder { node: &root, path: Path::default(), unknown: &mut unknown };
        match T::deserialize(decoder) {
            Ok(decoded) if faults.is_empty() => return Ok((decoded, unknown)),
            Ok(_) => return Err(faults),
            Err(fault) => {
                // Without that value, the next fault shows.
                let goes_on = root.forget(&fault.path);
                faults.push(fault);
                if !goes_on {
                    return Err(faults);
                }
            }
        }
    }
}

struct Decoder<'n, 'u> {
    node: &'n Node,
    path: Path,
    unknown: &'u mut Vec<Fault>,
}

impl Decoder<'_, '_> {
    fn fault(&self, message: String) -> Fault {
        Fault { line: self.node.line, path: self.path.clone(), message }
    }

    /// The value is not what it must be.
    fn wrong(&self, must_be: &str) -> Fault {
        let hint = match &self.node.value {
            Value::Text(text) if !matches!(plain(text), Value::Text(_) | Value::Null) => {
                "; leave the quotes out"
            }
            Value::Integer(_) | Value::Float(_) | Value::Bool(_) if must_be == TEXT => "; write it in quotes",
            _ => "",
        };
        self.fault(format!("must be {must_be}, but is {}{hint}", Found(&self.node.value)))
    }

    /// Gives a visitor's complaint its place.
    fn placed<T>(line: usize, path: &Path, result: Result<T, Fault>) -> Result<T, Fault> {
        result.map_err(|fault| match fault.line {
            0 => Fault { line, path: path.clone(), ..fault },
            _ => fault,
        })
    }

    fn integer(&self) -> Result<i128, Fault> {
        match self.node.value {
            Value::Integer(value) => Ok(value),
            Value::Float(value) if value.fract() == 0.0 => Ok(value as i128),
            _ => Err(self.wrong(WHOLE_NUMBER)),
        }
    }
}

const TEXT: &str = "text";
const WHOLE_NUMBER: &str = "a whole number";

/// What was found instead, for a complaint.
struct Found<'n>(&'n Value);

impl fmt::Display for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Null => f.write_str("null"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Integer(value) => write!(f, "the number {value}"),
            Value::Float(value) => write!(f, "the number {value}"),
            Value::Text(text) => write!(f, "the text {text:?}"),
            Value::List(_) => f.write_str("a list"),
            Value::Map(_) => f.write_str("a map"),
        }
    }
}

/// Both kinds of numbers are visited as the type that the field has.
macro_rules! integers {
    ($($deserialize:ident $visit:ident $type:ty),*) => {$(
        fn $deserialize<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            let value = number::within(self.integer()?, <$type>::MIN, <$type>::MAX);
            visitor.$visit(value.map_err(|message| self.fault(message))?)
        }
    )*};
}

impl<'de> Deserializer<'de> for Decoder<'_, '_> {
    type Error = Fault;

    integers!(
        deserialize_i8 visit_i8 i8, deserialize_i16 visit_i16 i16, deserialize_i32 visit_i32 i32,
        deserialize_i64 visit_i64 i64, deserialize_u8 visit_u8 u8, deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32, deserialize_u64 visit_u64 u64
    );

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let (line, path) = (self.node.line, self.path.clone());
        let visited = match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => match i64::try_from(*value) {
                Ok(value) => visitor.visit_i64(value),
                Err(_) => visitor.visit_f64(*value as f64),
            },
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(text) => visitor.visit_str(text),
            Value::List(_) => self.deserialize_seq(visitor),
            Value::Map(_) => self.deserialize_map(visitor),
        };
        Self::placed(line, &path, visited)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Null => visitor.visit_bool(false),
            Value::Bool(value) => visitor.visit_bool(value),
            _ => Err(self.wrong("true or false")),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Integer(value) => visitor.visit_f64(value as f64),
            Value::Float(value) if value.is_finite() => visitor.visit_f64(value),
            _ => Err(self.wrong("a number")),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Float(value) if value.is_finite() && value.abs() > f32::MAX.into() => {
                Err(self.wrong("a smaller number"))
            }
            _ => self.deserialize_f64(visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => visitor.visit_str(""),
            Value::Text(text) => Self::placed(self.node.line, &self.path, visitor.visit_str(text)),
            _ => Err(self.wrong(TEXT)),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let Value::List(items) = &self.node.value else { return Err(self.wrong("a list")) };
        visitor.visit_seq(Items { items: items.iter().enumerate(), path: self.path, unknown: self.unknown })
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.fields("a map", None, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.fields("a map of fields", Some(known), visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char bytes byte_buf option unit unit_struct tuple tuple_struct enum identifier
    }
}

impl<'n, 'u> Decoder<'n, 'u> {
    /// Visits the fields of a map. Those that are not known are noted and left out; known ones that are null
    /// are as absent.
    fn fields<'de, V: Visitor<'de>>(
        self,
        must_be: &str,
        known: Option<&[&str]>,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let entries: &[Entry] = match &self.node.value {
            Value::Null => &[],
            Value::Map(entries) => entries,
            _ => return Err(self.wrong(must_be)),
        };
        let is_known = |entry: &&Entry| known.is_none_or(|known| known.contains(&entry.key.as_str()));
        let (mut read, left): (Vec<_>, Vec<_>) = entries.iter().partition(is_known);
        read.retain(|entry| known.is_none() || !matches!(entry.node.value, Value::Null));
        self.unknown.extend(left.into_iter().map(|entry| {
            let meant = known.unwrap_or_default().iter().find(|name| name.eq_ignore_ascii_case(&entry.key));
            let hint = meant.map(|name| format!("; {name} is one")).unwrap_or_default();
            let message = format!("there is no such field, it is ignored{hint}");
            Fault { line: entry.line, path: self.path.child(&entry.key), message }
        }));
        let fields =
            Fields { entries: read.into_iter(), value: None, path: self.path, unknown: self.unknown };
        visitor.visit_map(fields)
    }
}

struct Items<'n, 'u> {
    items: std::iter::Enumerate<std::slice::Iter<'n, Node>>,
    path: Path,
    unknown: &'u mut Vec<Fault>,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let Some((index, node)) = self.items.next() else { return Ok(None) };
        let path = self.path.child(&index.to_string());
        seed.deserialize(Decoder { node, path, unknown: self.unknown }).map(Some)
    }
}

struct Fields<'n, 'u> {
    entries: std::vec::IntoIter<&'n Entry>,
    value: Option<&'n Entry>,
    path: Path,
    unknown: &'u mut Vec<Fault>,
}

impl<'de> MapAccess<'de> for Fields<'_, '_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        self.value = self.entries.next();
        let Some(entry) = self.value else { return Ok(None) };
        seed.deserialize(de::value::StrDeserializer::new(&entry.key)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let entry = self.value.ok_or_else(|| Fault::custom("a value without a field"))?;
        let path = self.path.child(&entry.key);
        seed.deserialize(Decoder { node: &entry.node, path, unknown: self.unknown })
    }
}

impl std::error::Error for Fault {}

impl Error for Fault {
    /// Without a place, until the decoder adds it.
    fn custom<T: fmt::Display>(message: T) -> Self {
        Fault { message: message.to_string(), ..Fault::default() }
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Fault::custom(format_args!("must be {expected}"))
    }
}
