//! What the watcher's errors mean. Pure.

use crate::model::excerpt;
use kube::core::Status;
use kube::runtime::watcher::Error;

/// The API server's own words about it, if it said any.
fn status(error: &Error) -> Option<&Status> {
    match error {
        Error::WatchError(status) => Some(status),
        Error::InitialListFailed(error) | Error::WatchStartFailed(error) | Error::WatchFailed(error) => {
            match error {
                kube::Error::Api(status) => Some(status),
                _ => None,
            }
        }
        Error::NoResourceVersion => None,
    }
}

/// Whether the server no longer has the version that we go on from. It is in order, and so are we.
pub(super) fn is_expired(error: &Error) -> bool {
    status(error).is_some_and(|status| status.code == 410)
}

/// Whether the watch cannot go on, so that a list is due.
pub(super) fn needs_list(error: &Error) -> bool {
    match error {
        // Some change could not be read, and which one it was we cannot know.
        Error::WatchFailed(kube::Error::SerdeError(_)) | Error::NoResourceVersion => true,
        _ => is_expired(error),
    }
}

/// What we were about to do.
pub(super) fn verb(error: &Error) -> &'static str {
    match error {
        Error::InitialListFailed(_) => "list",
        _ => "watch",
    }
}

/// One line for the log, without repetitions.
pub(super) fn describe(error: &Error) -> String {
    let text = match status(error) {
        Some(status) if status.message.is_empty() => format!("{} {}", status.code, status.reason),
        Some(status) => format!("{} {}", status.code, status.message),
        None => chain(error),
    };
    // Answers of proxies can be whole web pages.
    excerpt(&text)
}

/// An error and its causes, less the causes that are part of the text already.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16) -> Error {
        Error::WatchStartFailed(kube::Error::Api(
            Status::failure("nodes is forbidden", "").with_code(code).boxed(),
        ))
    }

    #[test]
    fn a_list_is_due_when_the_version_has_expired_wherever_that_is_said_or_a_change_is_lost() {
        let status = |code| Status::failure("", "").with_code(code).boxed();
        let listing = |code| Error::InitialListFailed(kube::Error::Api(status(code)));
        for expired in [refused(410), Error::WatchError(status(410)), listing(410)] {
            assert!(is_expired(&expired) && needs_list(&expired), "{expired}");
        }
        for other in [refused(403), Error::WatchError(status(500)), listing(503)] {
            assert!(!is_expired(&other) && !needs_list(&other), "{other}");
        }
        assert!(needs_list(&Error::NoResourceVersion) && !is_expired(&Error::NoResourceVersion));
    }

    #[test]
    fn a_status_is_described_in_the_servers_words() {
        assert_eq!(describe(&refused(403)), "403 nodes is forbidden");
        let page = Status::failure(&"x".repeat(5000), "").with_code(502).boxed();
        assert!(describe(&Error::WatchError(page)).len() < 600);
    }

    #[test]
    fn causes_are_added_without_repetition() {
        let io = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let error = Error::WatchFailed(kube::Error::ReadEvents(io));
        assert_eq!(describe(&error), "watch stream failed: Error reading events stream: connection refused");
    }
}
