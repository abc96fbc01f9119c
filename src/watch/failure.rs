//! What goes wrong with a list or a watch, and what follows from it. Pure.

use super::wire::Status;
use crate::model::excerpt;
use std::error::Error;
use std::{fmt, io};
use tower::BoxError;

/// What we were about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    List,
    Watch,
}

impl Verb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Verb::List => "list",
            Verb::Watch => "watch",
        }
    }
}

/// Why something has failed.
#[derive(Debug)]
pub(super) enum Cause {
    /// The server says so, instead of an answer or within one.
    Status(Status),
    /// There was no answer.
    NoAnswer(BoxError),
    /// There was one, and it broke off.
    BrokenOff(BoxError),
    /// It ended, or went on, where it should not have.
    Unexpected(&'static str),
    /// It cannot be decoded.
    Unreadable(String),
    /// There are more of these than we take.
    TooLarge { what: Bound, limit: usize },
    /// It does not say which version it is of.
    NoVersion,
}

/// What an answer has a limit of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    EventBytes,
    PageBytes,
    Pages,
    Objects,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Bound::EventBytes => "bytes in an event of a watch",
            Bound::PageBytes => "bytes in a page of a list",
            Bound::Pages => "pages in a list",
            Bound::Objects => "objects in a list",
        })
    }
}

/// A list or a watch that has failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) verb: Verb,
    pub(super) cause: Cause,
}

impl Failure {
    /// Whether the server no longer has the version that we go on from. It is in order, and so are we.
    pub(super) fn is_expired(&self) -> bool {
        matches!(&self.cause, Cause::Status(status) if status.code == 410)
    }

    /// Whether the server does not have such objects, or not for us.
    pub(super) fn is_not_offered(&self) -> bool {
        matches!(&self.cause, Cause::Status(status) if [403, 404].contains(&status.code))
    }

    /// Whether a watch cannot go on from its version, so that a list is due at once.
    pub(super) fn needs_list(&self) -> bool {
        // Some change could not be read, and which one it was we cannot know.
        let is_lost = matches!(self.cause, Cause::Unreadable(_) | Cause::TooLarge { .. } | Cause::NoVersion);
        self.is_expired() || self.verb == Verb::Watch && is_lost
    }

    /// Whether a watch can go on from the version it was at.
    pub(super) fn leaves_version(&self) -> bool {
        self.verb == Verb::Watch && !self.needs_list()
    }
}

/// One line for the log, without repetitions.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl Error for Cause {}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Cause::Status(status) if status.message.is_empty() => {
                format!("{} {}", status.code, status.reason)
            }
            Cause::Status(status) => format!("{} {}", status.code, status.message),
            Cause::NoAnswer(error) => chain(&**error),
            Cause::BrokenOff(error) => format!("the answer broke off: {}", chain(&**error)),
            Cause::Unexpected(what) => (*what).to_owned(),
            Cause::Unreadable(what) => format!("the answer cannot be read: {what}"),
            Cause::TooLarge { what, limit } => format!("the answer has more than {limit} {what}"),
            Cause::NoVersion => "the answer has no metadata.resourceVersion".to_owned(),
        };
        // Answers of proxies can be whole web pages.
        f.write_str(&excerpt(&text))
    }
}

/// An error and its causes, less the causes that are part of the text already.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let more = without_number(&cause.to_string());
        next = cause.source();
        let is_layer = next.is_some() && LAYERS.contains(&more.as_str());
        if !is_layer && !text.contains(&more) {
            text.push_str(if text.is_empty() { "" } else { ": " });
            text.push_str(&more);
        }
    }
    text
}

/// What hyper says of a connection that fails before it says why.
const LAYERS: [&str; 2] = ["client error (Connect)", "tcp connect error"];

/// An error of the system without its number, which says nothing that its words do not.
fn without_number(text: &str) -> String {
    match text.split_once(" (os error ") {
        Some((words, rest)) => match rest.split_once(')') {
            Some((_, after)) => format!("{words}{after}"),
            None => text.to_owned(),
        },
        None => text.to_owned(),
    }
}

/// Whether a connection was closed where an answer goes on: a watch that ends so is resumed.
pub(super) fn is_end_of_file(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        let io = cause.downcast_ref::<io::Error>();
        if io.is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof) {
            return true;
        }
        next = cause.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(code: i64, message: &str) -> Cause {
        Cause::Status(Status { code, message: message.to_owned(), ..Status::default() })
    }

    fn failure(cause: Cause) -> Failure {
        Failure { verb: Verb::Watch, cause }
    }

    #[test]
    fn a_list_is_due_when_the_version_has_expired_or_a_change_is_lost() {
        let expired = failure(says(410, "too old"));
        assert!(expired.is_expired() && expired.needs_list());
        for refused in [failure(says(403, "")), failure(says(500, "")), failure(Cause::Unexpected("end"))] {
            assert!(!refused.is_expired() && !refused.needs_list(), "{refused}");
        }
        let lost = [
            Cause::NoVersion,
            Cause::Unreadable(String::new()),
            Cause::TooLarge { what: Bound::Objects, limit: 1 },
        ];
        for lost in lost.map(failure) {
            assert!(!lost.is_expired() && lost.needs_list(), "{lost}");
        }
    }

    #[test]
    fn a_status_is_described_in_the_servers_words() {
        assert_eq!(failure(says(403, "nodes is forbidden")).to_string(), "403 nodes is forbidden");
        assert!(failure(says(502, &"x".repeat(5000))).to_string().len() < 600);
    }

    #[test]
    fn causes_are_added_without_repetition() {
        let io = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let error = anyhow::Error::new(io).context("sending failed: connection refused").context("no answer");
        let cause = Cause::NoAnswer(error.into());
        assert_eq!(cause.to_string(), "no answer: sending failed: connection refused");
    }

    #[test]
    fn a_refused_connection_is_named_without_the_layers_around_it() {
        let io = io::Error::from_raw_os_error(nix::libc::ECONNREFUSED);
        let error = anyhow::Error::new(io).context("tcp connect error").context("client error (Connect)");
        assert_eq!(Cause::NoAnswer(error.into()).to_string(), "Connection refused");
        assert_eq!(
            without_number("cannot read x: No such file (os error 2); y"),
            "cannot read x: No such file; y"
        );
    }
}
