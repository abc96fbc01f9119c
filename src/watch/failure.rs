//! What the watcher's errors mean. Pure.

use kube::core::Status;
use kube::runtime::watcher::Error;

/// Answers of proxies can be whole web pages; this much of one is enough.
const SHOWN: usize = 300;

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

/// The server does not know streaming lists (400), or has them turned off (422).
pub(super) fn refuses_streaming(error: &Error) -> bool {
    matches!(error, Error::WatchStartFailed(_))
        && status(error).is_some_and(|status| matches!(status.code, 400 | 422))
}

/// Whether only a new list helps, which the watcher does not know by itself.
pub(super) fn needs_list(error: &Error) -> bool {
    match error {
        // A watch that is refused like this is refused for ever; kube knows the code inside of
        // streams only.
        Error::WatchStartFailed(_) => status(error).is_some_and(|status| status.code == 410),
        // Some change could not be read, and which one it was we cannot know.
        Error::WatchFailed(kube::Error::SerdeError(_)) => true,
        _ => false,
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
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// An error and its causes, less the causes that are part of the text already.
fn chain(error: &dyn std::error::Error) -> String {
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
    fn only_a_refused_watch_says_that_streaming_lists_are_off() {
        assert!(refuses_streaming(&refused(400)) && refuses_streaming(&refused(422)));
        assert!(!refuses_streaming(&refused(403)) && !refuses_streaming(&refused(500)));
        let status = Status::failure("", "").with_code(422).boxed();
        assert!(!refuses_streaming(&Error::InitialListFailed(kube::Error::Api(status))));
    }

    #[test]
    fn an_expired_version_needs_a_list_where_kube_does_not_know_it() {
        assert!(needs_list(&refused(410)));
        assert!(!needs_list(&refused(403)));
        assert!(!needs_list(&Error::WatchError(Status::failure("", "").with_code(410).boxed())));
    }

    #[test]
    fn a_status_is_described_in_the_servers_words() {
        assert_eq!(describe(&refused(403)), "403 nodes is forbidden");
        let page = Status::failure(&"x".repeat(5000), "").with_code(502).boxed();
        assert!(describe(&Error::WatchError(page)).len() < 400);
    }

    #[test]
    fn causes_are_added_without_repetition() {
        let io = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let error = Error::WatchFailed(kube::Error::ReadEvents(io));
        assert_eq!(describe(&error), "watch stream failed: Error reading events stream: connection refused");
    }
}
