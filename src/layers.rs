//! Who may import whom, as data, and the test that every file keeps to it.
//!
//! Imports point strictly downwards: a room may name rooms of lower layers, and of its own layer
//! only itself. What the table does not allow is a mistake in the design, not in the table.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Each room with the rooms it may import.
const ROOMS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("config", &["model"]),
    ("metrics", &["model"]),
    ("telemetry", &["model"]),
    ("http", &["model"]),
    ("kernel", &["model"]),
    ("state", &["model"]),
    ("plan", &["model"]),
    ("watch", &["model", "config"]),
    ("backend", &["model", "config", "metrics", "kernel", "plan"]),
    ("check", &["model", "config", "kernel", "backend"]),
    ("conntrack", &["model", "config", "kernel", "plan"]),
    ("health", &["model", "http", "plan"]),
    ("sync", &["model", "metrics", "state", "plan", "backend", "conntrack", "health"]),
    ("explain", &["model", "state", "plan", "backend", "sync"]),
];

/// What only some rooms may name: the words, and who may.
const OWNED: &[(&[&str], &[&str])] = &[
    (&["kube::", "k8s_openapi::"], &["watch", "app", "testing"]),
    (&["Command::new", "netlink::Socket"], &["kernel", "testing"]),
    (&["iptables::IPTables"], &["kernel"]),
];

/// In any backend, these files see plans and names only: no kernel, no clock, no async.
const PURE_FILES: &[&str] = &[
    "names",
    "chains",
    "desired",
    "render",
    "diff",
    "base",
    "restore_input",
    "lines",
    "masquerade",
    "text",
    "parse",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|it| it == "rs") {
            found.push(entry);
        }
    }
}

/// A file's room, and its text without tests and comments.
fn production_text(file: &Path) -> Option<(String, String)> {
    let inside = file.strip_prefix(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    let room = inside.components().next()?.as_os_str().to_str()?.trim_end_matches(".rs").to_owned();
    let is_test = ["tests", "/fake/", "/trace"].iter().any(|part| inside.to_str().unwrap().contains(part));
    if is_test || ["main", "lib", "layers", "app", "testing"].contains(&room.as_str()) {
        return None;
    }
    let text = std::fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    Some((room, lines.collect::<Vec<_>>().join("\n")))
}

/// Every `crate::room` that a text names, in paths as well as in `use crate::{a, b}`.
fn named_rooms(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let list =
            rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or(rest, |(list, _)| list);
        let several = rest.starts_with('{');
        for part in list.split(',').take(if several { usize::MAX } else { 1 }) {
            let name = part.trim().split(|c: char| !c.is_alphanumeric() && c != '_').next();
            found.extend(name.filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
    found
}

fn all_production() -> Vec<(PathBuf, String, String)> {
    let mut files = Vec::new();
    sources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut files);
    files
        .into_iter()
        .filter_map(|file| production_text(&file).map(|(room, text)| (file, room, text)))
        .collect()
}

#[test]
fn imports_point_downwards() {
    let mut wrong = Vec::new();
    for (file, room, text) in all_production() {
        let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            wrong.push(format!("{}: room {room} is not in the table", file.display()));
            continue;
        };
        for named in named_rooms(&text) {
            if named != room && !allowed.contains(&named.as_str()) {
                wrong.push(format!("{}: {room} must not import {named}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn words_with_an_owner_are_used_by_nobody_else() {
    let mut wrong = Vec::new();
    for (file, room, text) in all_production() {
        for (words, owners) in OWNED {
            let named = words.iter().find(|word| text.contains(**word));
            if let Some(word) = named.filter(|_| !owners.contains(&room.as_str())) {
                wrong.push(format!("{}: {word} belongs to {owners:?}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn deciding_files_of_backends_are_pure_and_backends_do_not_know_each_other() {
    const BACKENDS: [&str; 3] = ["iptables", "ipvs", "nftables"];
    let mut wrong = Vec::new();
    for (file, _, text) in all_production().into_iter().filter(|(_, room, _)| room == "backend") {
        let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let impure = ["crate::kernel", "crate::metrics", "async ", ".await", "Instant"];
        if PURE_FILES.contains(&stem) {
            wrong.extend(
                impure
                    .iter()
                    .filter(|word| text.contains(**word))
                    .map(|word| format!("{}: {word}", file.display())),
            );
        }
        let own = BACKENDS.iter().find(|name| file.to_str().unwrap().contains(&format!("/backend/{name}/")));
        for other in BACKENDS.iter().filter(|name| own.is_some() && Some(*name) != own) {
            if text.contains(&format!("backend::{other}")) {
                wrong.push(format!("{}: names its sibling {other}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_itself_has_no_cycle() {
    for (index, (room, allowed)) in ROOMS.iter().enumerate() {
        for below in *allowed {
            let place = ROOMS.iter().position(|(name, _)| name == below);
            assert!(
                place.is_some_and(|place| place < index),
                "{room} imports {below}, which is not below it"
            );
        }
    }
}
