//! What commands say: an answer on stdout, everything else on stderr.
//!
//! The one place that writes to either (logs have `telemetry`), because writing can fail: an answer that
//! cannot be written is an error, a complaint that cannot be written changes nothing. What others wrote ends up in both,
//! rules of other programs for example, so no character reaches a terminal that does anything there.

use crate::model::printable;
use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// The exit status after a reader went away, as a shell reports it of a tool that SIGPIPE ends.
const READER_LEFT: u8 = 141;

/// What a command found out.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// For stdout.
    pub(super) text: String,
    /// The exit status, if the text can be written.
    pub(super) status: u8,
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Answer { text, status: 0 }
    }
}

impl Answer {
    /// Prints it, and says how the program ends.
    pub(super) fn deliver(&self) -> ExitCode {
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(printable(&self.text).as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => ExitCode::from(self.status),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::from(READER_LEFT),
            Err(error) => {
                complain(format_args!("Error: writing the answer to stdout: {error}"));
                ExitCode::FAILURE
            }
        }
    }
}

/// Writes a line to stderr. When that fails, there is no place left to say so.
pub(super) fn complain(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{}", printable(&line.to_string()));
}
