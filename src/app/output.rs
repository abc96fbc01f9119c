//! What commands say: an answer on stdout, everything else on stderr.
//!
//! The one place that writes to either (logs have `telemetry`), because writing can fail: an answer that
//! cannot be written is an error, a complaint that cannot be written changes nothing. What others wrote ends up in both,
//! rules of other programs for example, so no character reaches a terminal that does anything there.

use super::style;
use crate::kernel::terminal;
use crate::model::printable;
use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
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
    /// It is prose for people: long lines are broken where they end at a terminal, and words stand out.
    pub(super) wraps: bool,
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Answer { text, ..Answer::default() }
    }
}

impl Answer {
    /// Prints it, and says how the program ends.
    pub(super) fn deliver(&self) -> ExitCode {
        match self.write() {
            Ok(()) => ExitCode::from(self.status),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::from(READER_LEFT),
            Err(error) => {
                complain(format_args!("Error: writing the answer to stdout: {error}"));
                ExitCode::FAILURE
            }
        }
    }
}

impl Answer {
    /// Prints it.
    pub(super) fn write(&self) -> std::io::Result<()> {
        let mut stdout = std::io::stdout().lock();
        let text = printable(&self.text);
        if self.wraps && stdout.is_terminal() {
            let width = terminal::columns().unwrap_or(usize::MAX);
            stdout.write_all(style::for_terminal(&text, width, style::wants_colour()).as_bytes())?;
        } else {
            stdout.write_all(text.as_bytes())?;
        }
        stdout.flush()
    }
}

/// Writes a line to stderr. When that fails, there is no place left to say so.
pub(super) fn complain(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{}", printable(&line.to_string()));
}
