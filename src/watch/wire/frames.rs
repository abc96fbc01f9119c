//! The body of a watch, cut into its events.

use super::Encoding;
use crate::watch::failure::{Bound, Cause, is_end_of_file};
use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// After a longer frame, the memory that it took is given back.
const KEPT: usize = 256 << 10;

/// The frames of a watch, one event in each.
pub(in crate::watch) struct Frames {
    body: Incoming,
    encoding: Encoding,
    cutter: Cutter,
}

impl Frames {
    /// No frame may be longer than `limit`.
    pub(in crate::watch) fn new(body: Incoming, encoding: Encoding, limit: usize) -> Self {
        Frames { body, encoding, cutter: Cutter::new(encoding, limit) }
    }

    /// What the frames are in.
    pub(in crate::watch) fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// The next frame; `None` is the end of the watch. A connection that is closed ends it, too: what there was of
    /// a frame is sent again in the next watch.
    ///
    /// # Errors
    /// When the connection fails, the watch ends within a frame, or a frame is too long.
    pub(in crate::watch) async fn next(&mut self) -> Result<Option<Bytes>, Cause> {
        loop {
            if let Some(frame) = self.cutter.cut()? {
                return Ok(Some(frame));
            }
            match self.body.frame().await {
                Some(Ok(piece)) => {
                    if let Ok(data) = piece.into_data() {
                        self.cutter.push(&data);
                    }
                }
                Some(Err(error)) if is_end_of_file(&error) => return Ok(None),
                Some(Err(error)) => return Err(Cause::BrokenOff(error.into())),
                None if self.cutter.is_empty() => return Ok(None),
                None => return Err(Cause::BrokenOff("it ends within an event".into())),
            }
        }
    }
}

/// Cuts bytes into frames as they come.
pub(in crate::watch) struct Cutter {
    encoding: Encoding,
    limit: usize,
    buffer: BytesMut,
    /// This much of the buffer has no end of a line in it.
    searched: usize,
}

impl Cutter {
    pub(in crate::watch) fn new(encoding: Encoding, limit: usize) -> Self {
        Cutter { encoding, limit, buffer: BytesMut::new(), searched: 0 }
    }

    pub(in crate::watch) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    pub(in crate::watch) fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next frame, if all of it is there.
    pub(in crate::watch) fn cut(&mut self) -> Result<Option<Bytes>, Cause> {
        let frame = match self.encoding {
            Encoding::Json => self.line()?,
            Encoding::Protobuf => self.counted()?,
        };
        if frame.as_ref().is_some_and(|frame| frame.len() > KEPT) {
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        Ok(frame)
    }

    /// What follows its length, which has four bytes.
    fn counted(&mut self) -> Result<Option<Bytes>, Cause> {
        let Some(length) = self.buffer.first_chunk() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        self.check(length)?;
        if self.buffer.len() - size_of::<u32>() < length {
            return Ok(None);
        }
        self.buffer.advance(size_of::<u32>());
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// A line; those with nothing in them count for nothing.
    fn line(&mut self) -> Result<Option<Bytes>, Cause> {
        while let Some(found) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
            let line = self.buffer.split_to(self.searched + found + 1).freeze();
            self.searched = 0;
            self.check(line.len())?;
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
        self.searched = self.buffer.len();
        self.check(self.searched)?;
        Ok(None)
    }

    fn check(&self, length: usize) -> Result<(), Cause> {
        if length > self.limit {
            return Err(Cause::TooLarge { what: Bound::EventBytes, limit: self.limit });
        }
        Ok(())
    }
}
