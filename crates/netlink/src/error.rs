//! What can go wrong, told apart as far as a caller may want to act on it.

use std::fmt;
use std::io;

/// Why an exchange with the kernel did not give an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel understood who was asking and said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A system call on the socket failed.
    #[error("netlink: {doing}: {source}")]
    Io {
        /// The step that failed, as in "open socket".
        doing: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel dropped answers because the receive buffer was full; what it did is unknown.
    #[error("netlink: the kernel dropped answers (receive buffer full)")]
    Overrun,
    /// No answer came within the socket's time limit.
    #[error("netlink: no answer within the time limit")]
    Timeout,
    /// What was listed kept changing until the attempts ran out.
    #[error("netlink: the list changed while it was read, {attempts} times in a row")]
    Interrupted {
        /// How often it was tried.
        attempts: u32,
    },
    /// The answer does not follow the protocol.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// A request holds an attribute that is longer than the 65,535 bytes its length field can say.
    #[error("netlink: an attribute of the request is longer than 65535 bytes")]
    TooLong,
}

impl Error {
    /// The kernel's error number, if it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Refused(refusal) => Some(refusal.errno),
            _ => None,
        }
    }
}

/// The kernel's "no" to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Positive error number; some subsystems (ipset) add codes of their own above 4096.
    pub errno: i32,
    /// The kernel's explanation (extended acknowledgement), where it gave one.
    pub message: Option<Box<str>>,
    /// Where in the request the offending attribute starts, where the kernel said so.
    pub offset: Option<u32>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.errno < 4096 {
            write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        } else {
            write!(f, "subsystem error {}", self.errno)?;
        }
        match &self.message {
            Some(message) => write!(f, ": {message}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

/// Bytes that are not the message or attribute they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("netlink: malformed answer: {0}")]
pub struct Malformed(pub &'static str);
