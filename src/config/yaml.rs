//! The first document of a YAML text as a tree, with Go's idea of what a plain word is.
//!
//! kube-proxy reads its file with a YAML 1.1 library of Go: `yes` is a boolean, `010` is eight, `1_000`
//! a number, and whole numbers may be written as `1e3`. Files that it takes mean the same here.

use super::number;
use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, StrInput, Tag};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The namespace of the tags that YAML itself defines.
const TAGS: &str = "tag:yaml.org,2002:";
/// Values of a document at most, so that aliases of aliases cannot make it enormous.
const MOST_NODES: usize = 100_000;

/// A value and the line that it starts in.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) value: Value,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// Between the smallest `i64` and the largest `u64`.
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A field of a map; each key stands there once.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) node: Node,
}

/// A text, read.
#[derive(Debug)]
pub(super) struct Document {
    /// The value of the first document.
    pub(super) root: Node,
    /// Fields that stand there twice; the last one counts.
    pub(super) duplicates: Vec<Fault>,
    /// The line from which on other documents follow.
    pub(super) rest: Option<usize>,
}

/// The names of fields and the numbers of list items that lead to a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Path(Vec<String>);

/// What is wrong, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fault {
    /// From 1 up.
    pub(super) line: usize,
    /// Empty for the document as a whole.
    pub(super) path: Path,
    pub(super) message: String,
}

impl Path {
    pub(super) fn child(&self, name: &str) -> Path {
        let mut path = self.clone();
        path.0.push(name.to_owned());
        path
    }
}

impl fmt::Display for Path {
    /// `logging.vmodule[0].verbosity`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, name) in self.0.iter().enumerate() {
            match (depth, name.parse::<usize>()) {
                (_, Ok(index)) => write!(f, "[{index}]")?,
                (0, _) => f.write_str(name)?,
                (_, _) => write!(f, ".{name}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.line)?;
        if self.path != Path::default() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl Node {
    /// The value of a field, if this is a map that has it.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// Gives a field of this map its proper name, if it is written with other capitals.
    pub(super) fn rename(&mut self, key: &str) {
        let Value::Map(entries) = &mut self.value else { return };
        if let Some(entry) = entries.iter_mut().find(|entry| entry.key.eq_ignore_ascii_case(key)) {
            key.clone_into(&mut entry.key);
        }
    }

    /// Makes the value at a path null; whether there is one.
    pub(super) fn forget(&mut self, path: &Path) -> bool {
        let mut node = self;
        for name in &path.0 {
            let child = match &mut node.value {
                Value::Map(entries) => {
                    entries.iter_mut().find(|entry| entry.key == *name).map(|entry| &mut entry.node)
                }
                Value::List(items) => name.parse().ok().and_then(|index: usize| items.get_mut(index)),
                _ => None,
            };
            let Some(child) = child else { return false };
            node = child;
        }
        let was_there = !matches!(node.value, Value::Null);
        node.value = Value::Null;
        was_there
    }

    /// The paths of all values below this one; a list is one value, and null is none.
    pub(super) fn leaves(&self, path: &Path, into: &mut BTreeSet<String>) {
        match &self.value {
            Value::Null => {}
            Value::Map(entries) => {
                entries.iter().for_each(|entry| entry.node.leaves(&path.child(&entry.key), into));
            }
            _ => {
                into.insert(path.to_string());
            }
        }
    }

    fn size(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Node::size).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.node.size()).sum(),
            _ => 0,
        }
    }
}

/// Reads the first document.
pub(super) fn read(text: &str) -> Result<Document, Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = granit_parser::options! { emit_comments: false };
    let mut reader = Reader {
        parser: Parser::new_from_str_with_options(text, options),
        anchors: BTreeMap::new(),
        path: Path::default(),
        nodes: 0,
        duplicates: Vec::new(),
    };
    let root = reader.document()?;
    let rest = reader.rest()?.filter(|line| !is_blank_from(text, *line));
    Ok(Document { root, duplicates: reader.duplicates, rest })
}

/// Nothing but comments and document marks stands there.
fn is_blank_from(text: &str, line: usize) -> bool {
    let mut lines = text.lines().skip(line.saturating_sub(1)).map(str::trim);
    lines.all(|line| line.is_empty() || line.starts_with('#') || ["---", "..."].contains(&line))
}

type Parsed<'t> = (Event<'t>, usize);

struct Reader<'t> {
    parser: Parser<'t, StrInput<'t>>,
    anchors: BTreeMap<usize, Node>,
    /// Where we are.
    path: Path,
    nodes: usize,
    duplicates: Vec<Fault>,
}

impl<'t> Reader<'t> {
    fn document(&mut self) -> Result<Node, Fault> {
        loop {
            let (event, line) = self.next()?;
            match event {
                Event::StreamStart => {}
                Event::StreamEnd => return Ok(Node { line, value: Value::Null }),
                Event::DocumentStart(..) => break,
                _ => return Err(self.fault(line, "cannot be read as YAML")),
            }
        }
        let root = self.value()?;
        self.next()?;
        Ok(root)
    }

    /// The line of what follows the first document, even if it is not YAML; only a mark may stand between.
    fn rest(&mut self) -> Result<Option<usize>, Fault> {
        match self.parser.next_event() {
            None | Some(Ok((Event::StreamEnd, _))) => Ok(None),
            Some(Ok((_, span))) => Ok(Some(span.start.line())),
            Some(Err(error)) if *error.kind() == ErrorKind::ExpectedDocumentStart => {
                Err(self.fault(error.marker().line(), &syntax(&error)))
            }
            Some(Err(error)) => Ok(Some(error.marker().line())),
        }
    }

    fn next(&mut self) -> Result<Parsed<'t>, Fault> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => Err(self.fault(error.marker().line(), &syntax(&error))),
            None => Err(self.fault(1, "cannot be read as YAML")),
        }
    }

    fn fault(&self, line: usize, message: &str) -> Fault {
        Fault { line, path: self.path.clone(), message: message.to_owned() }
    }

    fn value(&mut self) -> Result<Node, Fault> {
        let parsed = self.next()?;
        self.node(parsed)
    }

    fn node(&mut self, (event, line): Parsed<'t>) -> Result<Node, Fault> {
        let (value, anchor) = match event {
            Event::Alias(anchor) => return self.alias(anchor, line),
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref());
                (value.map_err(|message| self.fault(line, &message))?, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (self.list()?, anchor),
            Event::MappingStart(_, anchor, _) => (self.map()?, anchor),
            _ => return Err(self.fault(line, "cannot be read as YAML")),
        };
        let node = Node { line, value };
        self.count(1, line)?;
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, anchor: usize, line: usize) -> Result<Node, Fault> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(self.fault(line, "this alias stands within the value that it names"));
        };
        let node = Node { line, ..node.clone() };
        self.count(node.size(), line)?;
        Ok(node)
    }

    fn count(&mut self, nodes: usize, line: usize) -> Result<(), Fault> {
        self.nodes += nodes;
        if self.nodes > MOST_NODES {
            return Err(self.fault(line, &format!("the document has more than {MOST_NODES} values")));
        }
        Ok(())
    }

    fn list(&mut self) -> Result<Value, Fault> {
        let mut items = Vec::new();
        let outer = self.path.clone();
        loop {
            self.path = outer.child(&items.len().to_string());
            match self.next()? {
                (Event::SequenceEnd, _) => break,
                parsed => items.push(self.node(parsed)?),
            }
        }
        self.path = outer;
        Ok(Value::List(items))
    }

    fn map(&mut self) -> Result<Value, Fault> {
        let mut fields = Fields::default();
        let mut named = BTreeSet::new();
        let outer = self.path.clone();
        loop {
            let parsed = self.next()?;
            if matches!(parsed.0, Event::MappingEnd) {
                break;
            }
            let (line, is_merge) = (parsed.1, is_merge_key(&parsed.0));
            let key = self.key(parsed)?;
            self.path = outer.child(&key);
            let node = self.value()?;
            if is_merge {
                fields.merge(node).map_err(|line| {
                    self.fault(line, "must be a map, or a list of maps, whose fields are taken over")
                })?;
            } else {
                if !named.insert(key.clone()) {
                    let message = "stands here a second time; the last value counts";
                    self.duplicates.push(self.fault(line, message));
                }
                fields.put(Entry { line, key, node });
            }
            self.path.clone_from(&outer);
        }
        Ok(Value::Map(fields.0))
    }

    /// The name of a field. Numbers and booleans are names, too.
    fn key(&mut self, parsed: Parsed<'t>) -> Result<String, Fault> {
        let written = match &parsed.0 {
            Event::Scalar(text, ..) => Some(text.clone().into_owned()),
            _ => None,
        };
        let node = self.node(parsed)?;
        match (node.value, written) {
            (Value::Text(text), _) => Ok(text),
            (Value::Bool(_) | Value::Integer(_) | Value::Float(_), Some(written)) => Ok(written),
            _ => Err(self.fault(node.line, "the name of a field must be text")),
        }
    }
}

/// The fields of a map in the making.
#[derive(Default)]
struct Fields(Vec<Entry>);

impl Fields {
    fn put(&mut self, new: Entry) {
        match self.0.iter_mut().find(|entry| entry.key == new.key) {
            Some(entry) => *entry = new,
            None => self.0.push(new),
        }
    }

    /// Takes over the fields of a map; of several maps, the first one wins. The error is a line.
    fn merge(&mut self, from: Node) -> Result<(), usize> {
        match from.value {
            Value::Map(entries) => entries.into_iter().for_each(|entry| self.put(entry)),
            Value::List(maps) if maps.iter().all(|map| matches!(map.value, Value::Map(_))) => {
                return maps.into_iter().rev().try_for_each(|map| self.merge(map));
            }
            _ => return Err(from.line),
        }
        Ok(())
    }
}

/// `<<`, whose value is a map to take over.
fn is_merge_key(event: &Event<'_>) -> bool {
    let Event::Scalar(text, style, _, tag) = event else { return false };
    match tag {
        Some(tag) => text == "<<" && tag.suffix_in_namespace(TAGS).as_deref() == Some("merge"),
        None => text == "<<" && *style == ScalarStyle::Plain,
    }
}

/// What a scalar is: by its tag, or because it is written without quotes.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    let Some(tag) = tag else {
        let is_plain = style == ScalarStyle::Plain;
        return Ok(if is_plain { plain(text) } else { Value::Text(text.to_owned()) });
    };
    let name = tag.suffix_in_namespace(TAGS);
    match (name.as_deref(), plain(text)) {
        (Some("int"), value @ Value::Integer(_))
        | (Some("bool"), value @ Value::Bool(_))
        | (Some("null"), value @ Value::Null)
        | (Some("float"), value @ (Value::Integer(_) | Value::Float(_))) => Ok(value),
        (Some(tag @ ("int" | "bool" | "null" | "float")), _) => {
            Err(format!("{text:?} is not what its tag !!{tag} says"))
        }
        (Some("binary"), _) => binary(text),
        _ => Ok(Value::Text(text.to_owned())),
    }
}

fn binary(text: &str) -> Result<Value, String> {
    let compact: String = text.split_ascii_whitespace().collect();
    let bytes = data_encoding::BASE64.decode(compact.as_bytes()).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.map(Value::Text).ok_or_else(|| "is tagged !!binary, but is not text in base64".to_owned())
}

/// What a word without quotes is.
pub(super) fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Value::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Value::Bool(false)
        }
        ".nan" | ".NaN" | ".NAN" => Value::Float(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Value::Float(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => Value::Float(f64::NEG_INFINITY),
        _ => plain_number(text).unwrap_or_else(|| Value::Text(text.to_owned())),
    }
}

/// A number starts with a digit, a sign or a point; underscores in it say nothing.
fn plain_number(text: &str) -> Option<Value> {
    if text.starts_with('.') {
        return number::decimal(text).map(Value::Float);
    }
    if !text.starts_with(|first: char| first.is_ascii_digit() || "+-".contains(first)) {
        return None;
    }
    let digits = text.replace('_', "");
    let bounds = i128::from(i64::MIN)..=i128::from(u64::MAX);
    number::integer(&digits)
        .filter(|value| bounds.contains(value))
        .map(Value::Integer)
        .or_else(|| number::decimal(&digits).map(Value::Float))
}

/// Our words for what the parser found.
fn syntax(error: &ScanError) -> String {
    use ErrorKind as Kind;
    let what = match error.kind() {
        Kind::TabNotAllowed
        | Kind::TabInBlockIndentation
        | Kind::TabInIndentation
        | Kind::TabAtBlockScalarStart
        | Kind::TabInPlainScalar => "a tab stands where only spaces may; indent with spaces",
        Kind::UnclosedQuotedScalar | Kind::DocumentIndicatorInQuotedScalar => "a quote is not closed",
        Kind::UnclosedFlowCollection { .. }
        | Kind::MismatchedFlowCollectionEnd { .. }
        | Kind::ExpectedFlowMappingSeparator
        | Kind::ExpectedFlowSequenceSeparator
        | Kind::UnexpectedEofFlowMapping
        | Kind::UnexpectedEofFlowSequence
        | Kind::UnexpectedEofImplicitFlowMapping => "a bracket is not closed, or a comma is missing",
        Kind::InvalidIndentation | Kind::InvalidQuotedScalarIndent | Kind::InvalidBlockScalarIndent => {
            "this line is not indented like those that it belongs to"
        }
        Kind::ExpectedBlockMappingKey | Kind::SimpleKeyExpected | Kind::InvalidSimpleKey => {
            "expected NAME: VALUE, indented like the lines before"
        }
        Kind::MappingValueNotAllowed => {
            "a colon too many, or the wrong indentation; quote text with a colon in it"
        }
        Kind::MisplacedFlowCollectionEnd => "a bracket is closed that was not opened",
        Kind::ExpectedDocumentStart => "the document ends before this line, and --- begins another one",
        Kind::UnknownAnchor => "the alias names an anchor that is not in this document",
        Kind::UnexpectedCharacter { .. } => "a character that only text in quotes may start with or contain",
        Kind::UnknownQuotedScalarEscape => "text in double quotes has a backslash that stands for nothing",
        Kind::RecursionLimitExceeded => "values are nested too deeply",
        _ => return "cannot be read as YAML".to_owned(),
    };
    format!("cannot be read as YAML: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn root(text: &str) -> Node {
        read(text).unwrap().root
    }

    fn complaint(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn later_fields_and_merged_maps_win_as_in_go() {
        let number = |text: &str| root(text).get("b").and_then(|map| map.get("x")).unwrap().value.clone();
        let first = "a: &a {x: 1, y: 2}\n";
        assert!(matches!(number(&format!("{first}b: {{<<: *a, x: 3}}")), Value::Integer(3)));
        assert!(matches!(number(&format!("{first}b: {{x: 3, <<: *a}}")), Value::Integer(1)));
        assert!(matches!(number(&format!("{first}b: {{<<: [{{x: 4}}, *a]}}")), Value::Integer(4)));
        assert!(matches!(number("b: {x: 1, x: 2}"), Value::Integer(2)));
        let quoted = root("b: {'<<': {x: 1}}");
        assert!(quoted.get("b").unwrap().get("x").is_none());
    }

    #[test]
    fn what_is_no_tree_of_fields_is_refused_by_line_and_field() {
        for (text, want) in [
            ("a: *b", "1: a: cannot be read as YAML: the alias names an anchor that is not in this document"),
            ("a: &b\n  c: *b", "2: a.c: this alias stands within the value that it names"),
            ("a: {<<: 5}", "1: a.<<: must be a map, or a list of maps, whose fields are taken over"),
            ("? [a]\n: b", "1: the name of a field must be text"),
            ("~: b", "1: the name of a field must be text"),
            ("a: !!int b", "1: a: \"b\" is not what its tag !!int says"),
            ("a: [1, !!binary '?']", "1: a[1]: is tagged !!binary, but is not text in base64"),
            ("a: \"b", "1: a: cannot be read as YAML: a quote is not closed"),
            ("a: b\n]", "2: cannot be read as YAML: a bracket is closed that was not opened"),
            (
                "{a: b}\n{}",
                "2: cannot be read as YAML: the document ends before this line, and --- begins another one",
            ),
        ] {
            assert_eq!(complaint(text), want, "{text}");
        }
    }

    #[test]
    fn aliases_of_aliases_come_to_an_end() {
        let mut text = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n".to_owned();
        for level in 1..30 {
            let before = vec![format!("*a{}", level - 1); 10].join(", ");
            text += &format!("a{level}: &a{level} [{before}]\n");
        }
        assert!(
            complaint(&text).contains("the document has more than 100000 values"),
            "{}",
            complaint(&text)
        );
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "[-a-c01:{}\\[\\],&*!<>|'\"#%@? \t\n.]{0,60}") {
            drop(read(&text));
        }
    }
}
