//! Where each value of the effective configuration comes from, and in what two of them differ.

use super::file::given;
use super::record::{API_VERSION, KIND};
use super::resolve::record;
use super::{CommandLine, ConfigError, ConfigFile, Effective, Host, Resolved, parse, resolve};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Checks a configuration file and prints every setting that is then in effect, one a line, with
/// where it comes from: `iptables.masqueradeBit: 14  # default`.
///
/// # Errors
/// Every complaint about the file or the settings.
pub fn explain<'a>(
    line: &CommandLine,
    file: &ConfigFile,
    host: impl Into<Host<'a>>,
) -> Result<(String, Vec<String>), ConfigError> {
    let host = host.into();
    let Resolved { effective, notices, .. } = resolve(line, Some(file), host)?;
    let (of_file, given) = (without_flags(file, &host), given(file));
    let empty = ConfigFile { path: file.path.clone(), content: empty().into_bytes() };
    let defaults = without_flags(&empty, &host);
    let mut text = String::new();
    for (path, value) in effective.settings() {
        let source = match (given.contains(&path), of_file.get(&path), defaults.get(&path)) {
            (_, of_file, _) if of_file != Some(&value) => "flag",
            (false, ..) => "default",
            (true, _, default) if default == Some(&value) => "file, same as default",
            (true, ..) => "file",
        };
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{path}: {value}  # {source}");
    }
    Ok((text, notices))
}

/// A file that leaves everything at its default.
fn empty() -> String {
    format!("apiVersion: {API_VERSION}\nkind: {KIND}\n")
}

/// What a file means without any flags.
fn without_flags(file: &ConfigFile, host: &Host<'_>) -> BTreeMap<String, String> {
    let line = parse(std::iter::empty::<String>()).ok();
    let record = line.and_then(|line| record(&line, Some(file), (host, &mut Vec::new())).ok());
    record.map(|(record, _)| Effective(record).settings()).unwrap_or_default()
}

impl Effective {
    /// Every setting by its path in the file, as JSON.
    #[must_use]
    pub fn settings(&self) -> BTreeMap<String, String> {
        self.to_json().map(|value| flatten(&value)).unwrap_or_default()
    }

    /// The paths of the settings in which two configurations differ.
    #[must_use]
    pub fn differences(&self, other: &Effective) -> Vec<String> {
        let (mine, theirs) = (self.settings(), other.settings());
        let mut paths: Vec<&String> = mine.keys().chain(theirs.keys()).collect();
        paths.sort_unstable();
        paths.dedup();
        paths.into_iter().filter(|path| mine.get(*path) != theirs.get(*path)).cloned().collect()
    }
}

/// The leaves of a tree by their path; lists are leaves, and what is null is not there.
fn flatten(value: &Value) -> BTreeMap<String, String> {
    fn walk(value: &Value, path: &str, into: &mut BTreeMap<String, String>) {
        match value {
            Value::Null => {}
            Value::Object(fields) => {
                for (name, value) in fields {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    walk(value, &path, into);
                }
            }
            leaf => {
                into.insert(path.to_owned(), leaf.to_string());
            }
        }
    }
    let mut leaves = BTreeMap::new();
    walk(value, "", &mut leaves);
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config_file(body: &str) -> ConfigFile {
        ConfigFile { path: "config.yaml".into(), content: format!("{}{body}", empty()).into_bytes() }
    }

    fn effective(file: &str) -> Effective {
        let line = parse(std::iter::empty::<String>()).unwrap();
        resolve(&line, Some(&config_file(file)), "node-0").unwrap().effective
    }

    #[test]
    fn every_value_says_where_it_comes_from() {
        let line = parse(["-v=4"]).unwrap();
        let body =
            "mode: ipvs\niptables: {masqueradeBit: 14, masqueradeAll: true}\nlogging: {verbosity: 2}\n";
        let file = config_file(body);
        let (text, notices) = explain(&line, &file, "node-0").unwrap();
        assert_eq!(notices, Vec::<String>::new());
        for expected in [
            "mode: \"ipvs\"  # file",
            "iptables.masqueradeAll: true  # file",
            "iptables.masqueradeBit: 14  # file, same as default",
            "ipvs.strictARP: false  # default",
            "ipvs.syncPeriod: \"30s\"  # default",
            "logging.verbosity: 4  # flag",
        ] {
            assert!(text.lines().any(|found| found == expected), "{expected} is missing in\n{text}");
        }
    }

    #[test]
    fn mistakes_are_all_reported() {
        let line = parse(std::iter::empty::<String>()).unwrap();
        let file = config_file("mode: nonsense\niptables: {masqueradeBit: 77}\n");
        let error = explain(&line, &file, "node-0").unwrap_err();
        assert_eq!(error.complaints.len(), 2, "{error}");
    }

    #[test]
    fn differences_are_named_by_path_and_comments_make_none() {
        let plain = effective("");
        assert_eq!(plain.differences(&effective("# a comment\nmode: null\n")), Vec::<String>::new());
        let changed = effective("ipvs: {scheduler: wrr}\nlogging: {verbosity: 3}\nconntrack: {min: 7}\n");
        assert_eq!(plain.differences(&changed), ["conntrack.min", "ipvs.scheduler", "logging.verbosity"]);
    }
}
