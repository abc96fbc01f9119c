//! The body of a watch, cut into its events.

use crate::watch::failure::{Bound, Cause, is_end_of_file};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

/// After a longer frame, the memory that it took is given back.
const KEPT: usize = 256 << 10;

/// The frames of a watch, one event in each.
pub(in crate::watch) struct Frames {
    body: Incoming,
    cutter: Cutter,
}

impl Frames {
    /// No frame may be longer than `limit`.
    pub(in crate::watch) fn new(body: Incoming, limit: usize) -> Self {
        Frames { body, cutter: Cutter::new(limit) }
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
pub(super) struct Cutter {
    limit: usize,
    buffer: BytesMut,
    /// This much of the buffer has no end of a line in it.
    searched: usize,
}

impl Cutter {
    pub(super) fn new(limit: usize) -> Self {
        Cutter { limit, buffer: BytesMut::new(), searched: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    pub(super) fn push(&mut self, data: &[u8]) {
        self.buffer.extend_from_slice(data);
    }

    /// The next frame, if all of it is there.
    pub(super) fn cut(&mut self) -> Result<Option<Bytes>, Cause> {
        let frame = self.line()?;
        if frame.as_ref().is_some_and(|frame| frame.len() > KEPT) {
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        Ok(frame)
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
