//! The body of an answer that is read as a whole.

use crate::watch::failure::{Bound, Cause};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// Reads a page of at most `limit` bytes.
///
/// # Errors
/// When the connection breaks or the page is too long.
pub(in crate::watch) async fn read_page(mut body: Incoming, limit: usize) -> Result<Bytes, Cause> {
    let mut page = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Cause::BrokenOff(error.into()))?;
        let Ok(data) = frame.into_data() else { continue };
        if page.len() + data.len() > limit {
            return Err(Cause::TooLarge { what: Bound::PageBytes, limit });
        }
        page.extend_from_slice(&data);
    }
    Ok(page.into())
}
