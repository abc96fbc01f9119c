//! How values may be written: tables over every field of the file and every flag, found by asking the
//! record and the command line themselves, so that a new one is in the table.

use super::file::parse as parse_file;
use super::tests::{config_file, file};
use super::*;
use rstest::rstest;
use serde_json::Value;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// What a field holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Integer,
    Number,
    Duration,
    Bool,
    Text,
    List,
}

/// Every field of the file with what it holds. The effective configuration has them all.
fn fields() -> Vec<(String, Kind)> {
    let line = parse(["--vmodule=a=1", "--feature-gates=A=true"]).unwrap();
    let effective = resolve(&line, None, "host-1").unwrap().effective;
    let mut found = Vec::new();
    walk(&effective.to_json().unwrap(), "", &mut found);
    // Numbers where text belongs are quantities.
    found.retain(|(path, _)| {
        !["/apiVersion", "/kind"].contains(&path.as_str()) && !path.ends_with("/infoBufferSize")
    });
    found
}

fn walk(value: &Value, path: &str, found: &mut Vec<(String, Kind)>) {
    let kind = match value {
        Value::Object(fields) => {
            return fields.iter().for_each(|(name, value)| walk(value, &format!("{path}/{name}"), found));
        }
        Value::Array(items) if !items.is_empty() => return walk(&items[0], &format!("{path}/0"), found),
        Value::Array(_) => Kind::List,
        Value::Bool(_) => Kind::Bool,
        Value::Number(number) if number.is_f64() => Kind::Number,
        Value::Number(_) => Kind::Integer,
        Value::String(text) if text.ends_with('s') && text.parse::<GoDuration>().is_ok() => Kind::Duration,
        Value::String(_) => Kind::Text,
        Value::Null => panic!("{path} has no value"),
    };
    found.push((path.to_owned(), kind));
}

fn fields_of(kind: Kind) -> Vec<String> {
    fields().into_iter().filter(|(_, of)| *of == kind).map(|(path, _)| path).collect()
}

/// A file with one field, in line 3.
fn with(path: &str, value: &str) -> ConfigFile {
    let (section, rest) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    let inner =
        rest.split('/').filter(|part| !part.is_empty()).rev().fold(value.to_owned(), |value, part| {
            if part == "0" { format!("[{value}]") } else { format!("{{{part}: {value}}}") }
        });
    file(&format!("{section}: {inner}\n"))
}

/// What is decoded for a field.
fn decoded(path: &str, value: &str) -> Result<Value, Vec<String>> {
    let (config, notices) = parse_file(&with(path, value))?;
    assert_eq!(notices, Vec::<String>::new(), "{path}: {value}");
    let json = serde_json::to_value(config).unwrap();
    Ok(json.pointer(path).cloned().unwrap_or(Value::Null))
}

/// How complaints name a field.
fn dotted(path: &str) -> String {
    path[1..].replace("/0/", "[0].").replace('/', ".")
}

fn assert_refused(path: &str, value: &str) {
    let complaints = decoded(path, value).expect_err(&format!("{path}: {value}"));
    let [complaint] = complaints.as_slice() else { panic!("{complaints:?}") };
    let place = format!("config.yaml:3: {}: ", dotted(path));
    assert!(complaint.starts_with(&place), "{complaint} does not start with {place}");
}

#[test]
fn the_table_has_every_field_of_a_kind() {
    let source = include_str!("record.rs");
    let durations = source.matches(": GoDuration,\n").count();
    assert_eq!(fields_of(Kind::Duration).len(), durations, "{:?}", fields_of(Kind::Duration));
    let integers = source.matches(": i32,\n").count() + source.matches(": u32,\n").count();
    assert_eq!(fields_of(Kind::Integer).len(), integers + 1, "and the verbosity of a vmodule rule");
    let booleans = source.matches(": bool,\n").count();
    assert_eq!(
        fields_of(Kind::Bool).len(),
        booleans + 2,
        "and a feature gate, and two formats have the same"
    );
}

#[rstest]
fn every_integer_may_be_written_as_go_reads_it(
    #[values(
        "14",
        "+14",
        "14.0",
        "14.",
        "1.4e+01",
        "1.4E1",
        "140e-1",
        "0x0e",
        "0X0E",
        "0o16",
        "016",
        "0b1110",
        "1_4",
        "1__4_",
        "!!int 14",
        "!!int '14'",
        "!!float 14"
    )]
    value: &str,
) {
    for path in fields_of(Kind::Integer) {
        assert_eq!(decoded(&path, value), Ok(Value::from(14)), "{path}: {value}");
    }
}

#[rstest]
fn no_integer_is_taken_from_anything_else(
    #[values(
        "14.5",
        "'14'",
        "true",
        "yes",
        "fourteen",
        "[14]",
        "{a: 1}",
        "4294967296",
        "1e30",
        "-4294967297",
        ".inf",
        ".nan",
        "99999999999999999999999",
        "0x",
        "0b2",
        "1:30",
        "!!str 14",
        "2020-01-01"
    )]
    value: &str,
) {
    for path in fields_of(Kind::Integer) {
        assert_refused(&path, value);
    }
}

#[rstest]
fn a_number_is_any_number(#[values("14", "14.0", "1.4e1", "0xe", "016")] value: &str) {
    for path in fields_of(Kind::Number) {
        assert_eq!(decoded(&path, value), Ok(Value::from(14.0)), "{path}: {value}");
        for refused in ["'14'", "many", ".nan", "1e60", "[1]", "true"] {
            assert_refused(&path, refused);
        }
    }
}

#[rstest]
fn every_duration_may_be_written_as_go_reads_it(
    #[values("1h30m", "90m", "5400s", "1.5h", "'1h30m'", "+1h30m0s", "5400000ms", "89m60s", "!!str 1h30m")]
    value: &str,
) {
    for path in fields_of(Kind::Duration) {
        assert_eq!(decoded(&path, value), Ok("1h30m0s".into()), "{path}: {value}");
    }
}

#[rstest]
fn no_duration_is_a_bare_number_or_anything_else(
    #[values(
        "86400", "0", "1.5", "1e3", "''", "'5'", "1d", "1h 30m", "true", "[1s]", "{a: 1s}", "soon",
        "3000000h"
    )]
    value: &str,
) {
    for path in fields_of(Kind::Duration) {
        let is_number = value.parse::<f64>().is_ok();
        if path == "/logging/flushFrequency" && is_number && value != "1.5" {
            // A number of nanoseconds, as upstream has it.
            decoded(&path, value).unwrap();
        } else {
            assert_refused(&path, value);
        }
    }
    assert_eq!(decoded("/logging/flushFrequency", "5e9"), Ok("5s".into()));
}

#[test]
fn a_bare_number_says_what_is_missing() {
    let complaint = decoded("/conntrack/tcpEstablishedTimeout", "86400").unwrap_err();
    let want = "config.yaml:3: conntrack.tcpEstablishedTimeout: 86400 has no unit; write a duration such as \
                30s, 5m or 1h30m";
    assert_eq!(complaint, [want]);
}

#[rstest]
fn every_boolean_is_a_word_of_go_s_yaml(
    #[values("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON", "y", "Y")] value: &str,
) {
    for path in fields_of(Kind::Bool) {
        assert_eq!(decoded(&path, value), Ok(true.into()), "{path}: {value}");
        for refused in ["'true'", "1", "t", "tRUE", "enabled", "[true]", "''"] {
            assert_refused(&path, refused);
        }
    }
}

#[test]
fn text_is_neither_a_number_nor_a_boolean() {
    for path in fields_of(Kind::Text) {
        for text in ["abc", "10.0.0.0/8", "2020-01-01", "tRUE"] {
            assert_eq!(decoded(&path, text), Ok(text.into()), "{path}: {text}");
            assert_eq!(decoded(&path, &format!("'{text}'")), Ok(text.into()), "{path}: {text}");
        }
        for quoted in ["14", "1e3", "yes", "null", "010"] {
            assert_eq!(decoded(&path, &format!("'{quoted}'")), Ok(quoted.into()), "{path}: {quoted}");
        }
        for refused in ["14", "1e3", "yes", "010", "[a]", "{a: b}"] {
            assert_refused(&path, refused);
        }
    }
}

#[test]
fn lists_are_lists() {
    for path in fields_of(Kind::List) {
        assert_eq!(decoded(&path, "[a, 'b']"), Ok(vec!["a", "b"].into()), "{path}");
        for refused in ["a", "5", "{a: b}"] {
            assert_refused(&path, refused);
        }
        assert!(decoded(&path, "[a, 5]").unwrap_err()[0].contains("[1]: must be text"));
    }
}

#[rstest]
fn null_and_absent_are_the_same(#[values("null", "~", "")] value: &str) {
    for (path, _) in fields().into_iter().filter(|(path, _)| !path.contains("/0") && !path.ends_with("/A")) {
        // Without a value, braces are in the way of the field after it.
        let absent = serde_json::to_value(record::KubeProxyConfiguration::default()).unwrap();
        assert_eq!(decoded(&path, value), Ok(absent.pointer(&path).unwrap().clone()), "{path}: {value}");
    }
}

#[test]
fn all_complaints_about_a_file_come_at_once() {
    let body = "mode: 5\niptables: {masqueradeBit: x, syncPeriod: 7}\nlogging: {vmodule: [{verbosity: -1}]}\n\
                nodePortAddresses: [10.0.0.0/8, 5]\nconntrack: 7\n";
    let complaints = parse_file(&file(body)).unwrap_err();
    let want = [
        "config.yaml:3: mode: must be text, but is the number 5; write it in quotes",
        "config.yaml:4: iptables.masqueradeBit: must be a whole number, but is the text \"x\"",
        "config.yaml:4: iptables.syncPeriod: 7 has no unit; write a duration such as 30s, 5m or 1h30m",
        "config.yaml:5: logging.vmodule[0].verbosity: must be a whole number from 0 to 4294967295",
        "config.yaml:6: nodePortAddresses[1]: must be text, but is the number 5; write it in quotes",
        "config.yaml:7: conntrack: must be a map of fields, but is the number 7",
    ];
    assert_eq!(complaints, want);
}

/// Forms of a whole file that say no more than `mode: ipvs`.
#[rstest]
#[case::mark_before("---\n", "")]
#[case::comment_before("# a comment\n---\n", "")]
#[case::byte_order_mark("\u{feff}", "")]
#[case::mark_after("", "---\n")]
#[case::mark_at_the_end("", "---")]
#[case::dots_after("", "...\n")]
#[case::comment_after("", "---\n# nothing\n")]
fn what_stands_around_the_document_is_not_said(#[case] before: &str, #[case] after: &str) {
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    for end in ["\n", "\r\n"] {
        let text = format!("{before}{head}mode: ipvs\n{after}").replace('\n', end);
        let (config, notices) = parse_file(&config_file(text.clone())).unwrap();
        assert_eq!((config.mode.as_str(), notices), ("ipvs", Vec::new()), "{text:?}");
    }
}

#[rstest]
#[case("---\nmode: iptables\n", 4)]
#[case("---\n\t{ [\n", 4)]
#[case("--- text\n", 4)]
#[case("...\n{ [\n", 5)]
#[case("---\n---\na: b\n", 4)]
fn a_second_document_is_said_and_ignored(#[case] after: &str, #[case] line: usize) {
    let (config, notices) = parse_file(&file(&format!("mode: ipvs\n{after}"))).unwrap();
    assert_eq!(config.mode, "ipvs");
    let want = "only the first YAML document of a file counts; what follows here is ignored";
    assert_eq!(notices, [format!("config.yaml:{line}: {want}")]);
}

#[test]
fn an_anchor_and_a_merge_stand_for_their_fields() {
    let body =
        "iptables: &periods {syncPeriod: 7s, minSyncPeriod: 2s}\nnftables: {<<: *periods, syncPeriod: 9s}\n";
    let (config, notices) = parse_file(&file(body)).unwrap();
    assert_eq!(notices, Vec::<String>::new());
    let (secs, nftables) = (GoDuration::from_secs, config.nftables);
    assert_eq!((nftables.sync_period, nftables.min_sync_period), (secs(9), secs(2)));
}

#[test]
fn of_a_section_that_stands_there_twice_the_last_one_counts() {
    let (config, notices) = parse_file(&file("conntrack: {min: 1}\nconntrack: {maxPerCore: 2}\n")).unwrap();
    assert_eq!((config.conntrack.min, config.conntrack.max_per_core), (131_072, 2));
    assert_eq!(notices.len(), 1, "{notices:?}");
}

/// The flags that take a whole number.
fn integer_flags() -> Vec<String> {
    let rows = flag_rows().into_iter();
    let numbers = rows.filter(|row| row.default.parse::<i64>().is_ok()).map(|row| row.name);
    // klog reads its level by itself; quantities have units; the last one has a fraction.
    let others = ["v", "log-text-info-buffer-size", "log-json-info-buffer-size", "kube-api-qps"];
    numbers.filter(|name| !others.contains(&name.as_str())).collect()
}

#[rstest]
fn every_integer_flag_is_read_as_go_reads_it(
    #[values("+14", "0x0e", "0X_E", "0o16", "016", "0b1110", "1_4")] value: &str,
) {
    let flags = |value: &str, name: &str| {
        let line = parse([format!("--{name}={value}")]).map_err(|stop| stop.text);
        line.map(|line| format!("{:?}", line.flags))
    };
    assert!(integer_flags().len() > 8, "{:?}", integer_flags());
    for name in integer_flags() {
        assert_eq!(flags(value, &name), flags("14", &name), "--{name}={value}");
        for refused in ["", "1e3", "14.0", "08", "1__4", "0x", "4294967296", " 14", "many"] {
            let complaint = flags(refused, &name).unwrap_err();
            assert!(complaint.contains("must be a whole number"), "--{name}={refused}: {complaint}");
        }
    }
}

#[test]
fn an_argument_that_is_not_text_is_named() {
    let bad = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    for argument in [bad(b"\xff"), bad(b"--config=\xff"), bad(b"--\xff=1"), bad(b"explain\xff")] {
        let stop = parse([OsString::from("-v=2"), argument]).unwrap_err();
        assert_eq!(stop.exit_code, 1);
        assert!(stop.text.starts_with("Error: argument 2 is not text in UTF-8: "), "{}", stop.text);
        assert!(stop.text.contains("\\xFF"), "{}", stop.text);
    }
}

#[test]
fn empty_arguments_mean_nothing_unless_they_are_values() {
    for args in [&["", "-v", "2"][..], &["-v=2", ""], &["--masquerade-all", "", "--v", "2"], &["--", ""]] {
        parse(args.iter().copied()).unwrap();
    }
    let line = parse(["--kubeconfig", "", "--proxy_mode", "ipvs", "", "render", ""]).unwrap();
    let family = crate::model::IpFamily::V4;
    assert_eq!(line.action, Action::Render(Render { family, node_addresses: vec![] }));
    assert_eq!(resolve(&line, None, "host-1").unwrap().config.mode, Mode::Ipvs);
}

#[test]
fn the_value_of_a_flag_may_look_like_a_flag() {
    let config =
        |args: &[&str]| resolve(&parse(args.iter().copied()).unwrap(), None, "host-1").unwrap().config;
    assert_eq!(config(&["--kubeconfig", "--a_b"]).sources.kubeconfig, Some("--a_b".into()));
    assert_eq!(config(&["--master", "", "--kubeconfig=a_b"]).sources.kubeconfig, Some("a_b".into()));
}

#[rstest]
#[case("--feature-gates=,AllAlpha=false,", "--feature-gates=AllAlpha=false")]
#[case("--feature-gates=", "--v=0")]
#[case("--vmodule=a=1,", "--vmodule=a=1")]
#[case("--nodeport-addresses=\"10.0.0.0/8\",\"fd00::/8\"", "--nodeport-addresses=10.0.0.0/8,fd00::/8")]
#[case("--nodeport-addresses=10.0.0.0/8,", "--nodeport-addresses=10.0.0.0/8")]
#[case("--bind-address=010.0.0.1", "--bind-address=10.0.0.1")]
#[case("--healthz-bind-address=010.0.0.1:080", "--healthz-bind-address=10.0.0.1:80")]
#[case("--cluster-cidr=010.0.0.0/08", "--cluster-cidr=10.0.0.0/8")]
#[case("--kube-api-qps=1_0", "--kube-api-qps=10")]
fn two_spellings_of_a_flag_mean_the_same(#[case] one: &str, #[case] other: &str) {
    let config = |arg: &str| resolve(&parse([arg]).unwrap(), None, "host-1").unwrap().config;
    assert_eq!(config(one), config(other));
}
