//! Objects as the files have them, for those who ask what became of one: also those that no proxy serves.

use super::document::{self, Decoded, Format, Typed};
use super::folder::{self, Reading};
use crate::watch::lookup::Raw;
use anyhow::Result;
use std::path::PathBuf;

/// What the files have of one Service, whatever the API server would say of them.
///
/// # Errors
/// If one of the paths does not exist or cannot be looked at.
pub fn raw(paths: &[PathBuf], namespace: &str, name: &str) -> Result<Raw> {
    folder::check_paths(paths)?;
    let mut raw = Raw::default();
    for path in folder::list(paths).files {
        let (Reading::Text(text) | Reading::Unsettled(text)) = folder::read(&path) else { continue };
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let format = if is_json { Format::Json } else { Format::Yaml };
        document::decode(&text, format, &mut |_, decoded| match decoded {
            Decoded::Object(object) => note(object.typed.ok(), &mut raw, namespace, name),
            Decoded::Other(_) | Decoded::Broken(_) => {}
        });
    }
    Ok(raw)
}

fn note(object: Option<Typed>, raw: &mut Raw, namespace: &str, name: &str) {
    match object {
        Some(Typed::Service(mut service)) => {
            super::defaults::service(&mut service);
            raw.note_service(*service, namespace, name);
        }
        Some(Typed::Slice(mut slice)) => {
            super::defaults::endpoint_slice(&mut slice);
            raw.note_slice(&slice, namespace, name);
        }
        Some(Typed::Node(_)) | None => {}
    }
}
