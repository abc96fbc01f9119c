//! The KubeProxyConfiguration file: `kubeproxy.config.k8s.io/v1alpha1`, YAML or JSON.
//!
//! As upstream does for this version, fields that are unknown or stand there twice are said and
//! accepted; whatever else is wrong is an error. Absent and null are the same everywhere: kubeadm
//! writes most fields out as null.

use super::decode::decode;
use super::record::{API_VERSION, KIND, KubeProxyConfiguration};
use super::yaml::{self, Document, Fault, Node, Path, Value};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A configuration file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFile {
    /// Its name, for complaints.
    pub path: PathBuf,
    /// What is in it.
    pub content: Vec<u8>,
}

/// Decodes a file, without the defaults that zeros stand for. The second part says what is in it without
/// being used.
pub(super) fn parse(file: &ConfigFile) -> Result<(KubeProxyConfiguration, Vec<String>), Vec<String>> {
    let name = file.path.display();
    let said = |fault: &Fault| format!("{name}:{fault}");
    let document = document(file).map_err(|fault| vec![said(&fault)])?;
    let decoded = decode::<KubeProxyConfiguration>(document.root);
    let (record, unknown) = decoded.map_err(|faults| faults.iter().map(said).collect::<Vec<_>>())?;
    let mut notices: Vec<String> = unknown.iter().chain(&document.duplicates).map(said).collect();
    notices.extend(document.rest.map(|line| {
        format!("{name}:{line}: only the first YAML document of a file counts; what follows here is ignored")
    }));
    Ok((record, notices))
}

/// The fields that have a value in the file, as `logging.verbosity`; none of a file that cannot be read.
pub(super) fn given(file: &ConfigFile) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    if let Ok(document) = document(file) {
        document.root.leaves(&Path::default(), &mut paths);
    }
    paths
}

fn document(file: &ConfigFile) -> Result<Document, Fault> {
    let mut document = yaml::read(text(&file.content)?)?;
    check_kind(&mut document.root)?;
    Ok(document)
}

fn text(content: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(content).map_err(|error| {
        let before = &content[..error.valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Fault { line, message: "is not text in UTF-8".to_owned(), ..Fault::default() }
    })
}

/// Whether it is the kind of file that is ours; fields of another kind are not worth a complaint.
fn check_kind(root: &mut Node) -> Result<(), Fault> {
    for (field, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        // Upstream looks at these two without regard to case.
        root.rename(field);
        let found = root.get(field);
        let message = match found.map(|node| &node.value) {
            Some(Value::Text(text)) if text == expected => continue,
            Some(Value::Text(text)) if !text.is_empty() => format!("must be {expected}, but is {text:?}"),
            None | Some(Value::Null | Value::Text(_)) => format!("is missing; it must be {expected}"),
            Some(_) => format!("must be {expected}"),
        };
        let line = found.unwrap_or(root).line;
        return Err(Fault { line, path: Path::default().child(field), message });
    }
    Ok(())
}
