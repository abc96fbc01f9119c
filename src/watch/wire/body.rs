//! The body of an answer that is read as a whole.

use crate::watch::failure::{Bound, Cause};
use bytes::Bytes;
use flate2::write::GzDecoder;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::io::{self, Write};

/// Reads a page, and unpacks it if it is packed; it may have `limit` bytes.
///
/// # Errors
/// When the connection breaks, or the page is too long or cannot be unpacked.
pub(in crate::watch) async fn read_page(
    headers: &HeaderMap,
    mut body: Incoming,
    limit: usize,
) -> Result<Bytes, Cause> {
    let mut page = Unpacking::begin(headers, limit)?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Cause::BrokenOff(error.into()))?;
        if let Ok(data) = frame.into_data() {
            page.push(&data)?;
        }
    }
    page.end()
}

/// A page as it comes.
pub(super) enum Unpacking {
    Plain(Bounded),
    Gzip(Box<GzDecoder<Bounded>>),
}

impl Unpacking {
    pub(super) fn begin(headers: &HeaderMap, limit: usize) -> Result<Self, Cause> {
        let bounded = Bounded { bytes: Vec::new(), limit };
        match headers.get(header::CONTENT_ENCODING).map(|coding| coding.as_bytes()) {
            None | Some(b"identity") => Ok(Unpacking::Plain(bounded)),
            Some(b"gzip") => Ok(Unpacking::Gzip(Box::new(GzDecoder::new(bounded)))),
            Some(_) => Err(Cause::Unreadable("is packed in another way than asked for".to_owned())),
        }
    }

    pub(super) fn push(&mut self, data: &[u8]) -> Result<(), Cause> {
        match self {
            Unpacking::Plain(page) => page.write_all(data),
            Unpacking::Gzip(packed) => packed.write_all(data),
        }
        .map_err(|error| self.cause(&error))
    }

    pub(super) fn end(mut self) -> Result<Bytes, Cause> {
        if let Unpacking::Gzip(packed) = &mut self
            && let Err(error) = packed.try_finish()
        {
            return Err(self.cause(&error));
        }
        Ok(std::mem::take(&mut self.page().bytes).into())
    }

    fn page(&mut self) -> &mut Bounded {
        match self {
            Unpacking::Plain(page) => page,
            Unpacking::Gzip(packed) => packed.get_mut(),
        }
    }

    fn cause(&mut self, error: &io::Error) -> Cause {
        match error.kind() {
            io::ErrorKind::FileTooLarge => {
                Cause::TooLarge { what: Bound::PageBytes, limit: self.page().limit }
            }
            _ => Cause::Unreadable(format!("cannot be unpacked: {error}")),
        }
    }
}

/// Takes no more than `limit` bytes.
pub(super) struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + data.len() > self.limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
