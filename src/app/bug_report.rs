//! `bug-report`: all that is known of this node's proxy in one archive, for those who are to find a fault.

use super::output::{Answer, complain};
use super::{ask, check, inspect, services};
use crate::config::{Config, Effective, Explain, Form, ListServices, build_text};
use crate::kernel::logs;
use crate::model::UtcTime;
use anyhow::{Context, Error, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The archive and its files are for their owner: they name Services and addresses.
const OWNER_ONLY: u32 = 0o600;

/// Writes the archive; what could not be found out is in it as an error.
pub(super) async fn bug_report(
    config: &Config,
    effective: &Effective,
    (path, now): (Option<&Path>, SystemTime),
) -> Result<Answer> {
    let time = UtcTime { nanosecond: 0, ..UtcTime::of(now) }.to_string();
    let parts = gathered(config, effective).await;
    let folder = format!("kube-proxy-rs-{}-{}", config.node_name, time.replace(':', ""));
    let archive = packed(&folder, &parts, now)?;
    let path = path.map_or_else(|| PathBuf::from(format!("{folder}.tar.gz")), Path::to_owned);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(OWNER_ONLY)
        .open(&path)
        .with_context(|| format!("making {}", path.display()))?;
    file.write_all(&archive).with_context(|| format!("writing {}", path.display()))?;
    let text = format!(
        "{}: {} files, {} bytes\nIt has names and addresses of this cluster's Services and endpoints, and no secrets: look \
         through it before you hand it on.\n",
        path.display(),
        parts.len(),
        archive.len()
    );
    Ok(Answer { text, wraps: true, ..Answer::default() })
}

/// A file of the archive.
struct Part {
    name: &'static str,
    content: Vec<u8>,
}

impl Part {
    fn of(name: &'static str, found: Result<Vec<u8>>) -> Part {
        match found {
            Ok(content) => Part { name, content },
            Err(error) => {
                complain(format_args!("Warning: {name}: {error:#}"));
                Part { name, content: format!("cannot be found out: {error:#}\n").into_bytes() }
            }
        }
    }
}

async fn gathered(config: &Config, effective: &Effective) -> Vec<Part> {
    let text = |answer: Result<Answer>| answer.map(|answer| answer.text.into_bytes());
    let all = Explain { form: Form::Json, ..Explain::default() };
    let list = ListServices { form: Form::Json, ..ListServices::default() };
    let asked = effective.to_yaml().map_err(Error::msg).map(|yaml| without_secrets(&yaml).into_bytes());
    let running = ask::answer(config, "/v1/config").await;
    let running = running.map(|json| without_secrets(&String::from_utf8_lossy(&json)).into_bytes());
    let rules = inspect::rules(config).await;
    vec![
        Part::of("version.txt", Ok(build_text().into_bytes())),
        Part::of("configuration-of-this-command.yaml", asked),
        Part::of("configuration-of-the-proxy.json", running),
        Part::of("status.json", text(ask::status(config, &Form::Json).await)),
        Part::of("check.txt", text(check::check(config, (None, false), &Form::Text).await)),
        Part::of("services.json", text(services::services(config, &list).await)),
        Part::of("explain-all.json", text(ask::explain(config, &all).await)),
        Part::of("rules.txt", rules.map(String::into_bytes)),
        Part::of("kernel-objects.json", ask::kernel_objects(config).await),
        Part::of("conntrack.txt", inspect::tracked().map(String::into_bytes)),
        Part::of("metrics.txt", ask::answer(config, "/v1/metrics").await),
        Part::of("log.txt", logs::tail().map(String::into_bytes)),
    ]
}

/// The text with what stands before an `@` in an address replaced: a name and a password can be there.
fn without_secrets(text: &str) -> String {
    let line = |line: &str| match line.split_once("://") {
        Some((scheme, rest)) => match rest.split_once('@') {
            Some((user, rest)) if !user.contains(['/', ' ']) => format!("{scheme}://REMOVED@{rest}"),
            _ => line.to_owned(),
        },
        None => line.to_owned(),
    };
    text.split_inclusive('\n').map(line).collect()
}

fn packed(folder: &str, parts: &[Part], now: SystemTime) -> Result<Vec<u8>> {
    let time = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    for part in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(part.content.len() as u64);
        header.set_mode(OWNER_ONLY);
        header.set_mtime(time);
        let path = format!("{folder}/{}", part.name);
        archive.append_data(&mut header, path, part.content.as_slice()).context("packing the archive")?;
    }
    let packed = archive.into_inner().context("packing the archive")?;
    packed.finish().context("compressing the archive")
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read;

    #[test]
    fn the_archive_has_every_part_and_no_password() {
        assert_eq!(
            without_secrets("a: https://me:secret@192.0.2.1/x\nb: 1\n"),
            "a: https://REMOVED@192.0.2.1/x\nb: 1\n"
        );
        assert_eq!(without_secrets("https://192.0.2.1/a@b"), "https://192.0.2.1/a@b");
        let parts = [
            Part::of("version.txt", Ok(b"1".to_vec())),
            Part::of("status.json", Err(Error::msg("no process answers"))),
        ];
        let archive = packed("node", &parts, UNIX_EPOCH).unwrap();
        let mut archive = tar::Archive::new(GzDecoder::new(archive.as_slice()));
        let found: Vec<(String, String)> = archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                (entry.path().unwrap().display().to_string(), text)
            })
            .collect();
        let wanted =
            [("node/version.txt", "1"), ("node/status.json", "cannot be found out: no process answers\n")];
        assert_eq!(found, wanted.map(|(path, text)| (path.to_owned(), text.to_owned())));
    }
}
