//! Entry point for fuzzers: whatever a stranger sends, the conversation comes to an end.

use super::{CONNECTION_LIFE, MAX_HEAD, Site, converse_by, route};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Builder;

/// Says these bytes to a site and closes; what it answers.
///
/// # Panics
/// Without a runtime.
#[must_use]
pub fn conversation(bytes: &[u8], site: &Site) -> Vec<u8> {
    let (mut client, server) = tokio::io::duplex(MAX_HEAD);
    let (mut ours, mut theirs) = (Vec::new(), tokio::io::split(&mut client));
    let talk = async {
        let say = async {
            // The server may have hung up already.
            let _ = theirs.1.write_all(bytes).await;
            let _ = theirs.1.shutdown().await;
        };
        let _ = tokio::join!(say, theirs.0.read_to_end(&mut ours));
    };
    let serve = converse_by(server, CONNECTION_LIFE, |request| route(site, &request));
    let Ok(runtime) = Builder::new_current_thread().enable_time().build() else { panic!("no runtime") };
    runtime.block_on(async { tokio::join!(serve, talk) });
    ours
}
