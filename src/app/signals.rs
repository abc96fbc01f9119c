//! Which signals end the program, and which do not.

use anyhow::{Context, Result};
use futures::FutureExt;
use futures::future::{BoxFuture, select_all};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Those that ask to end.
const ENDING: [(&str, SignalKind); 3] = [
    ("SIGTERM", SignalKind::terminate()),
    ("SIGINT", SignalKind::interrupt()),
    ("SIGQUIT", SignalKind::quit()),
];
/// Those that would end the program unless it says otherwise, and mean something else: a terminal that went away, a
/// wish to read configuration or open log files again.
const OTHERS: [(&str, SignalKind); 4] = [
    ("SIGHUP", SignalKind::hangup()),
    ("SIGUSR1", SignalKind::user_defined1()),
    ("SIGUSR2", SignalKind::user_defined2()),
    ("SIGALRM", SignalKind::alarm()),
];

/// Waits for a signal that asks to end, and names it. Others are told of in the log from the call on.
pub(super) fn until_end() -> Result<impl Future<Output = &'static str>> {
    let mut waiting: Vec<BoxFuture<'static, &'static str>> = Vec::new();
    for (name, kind) in ENDING {
        let mut signal = listen(name, kind)?;
        waiting.push(async move { signal.recv().map(|_| name).await }.boxed());
    }
    for (name, kind) in OTHERS {
        let mut signal = listen(name, kind)?;
        waiting.push(
            async move {
                while signal.recv().await.is_some() {
                    let hint = "the configuration file and manifests are read again when they change";
                    tracing::info!(signal = name, hint, "this signal has no effect");
                }
                std::future::pending().await
            }
            .boxed(),
        );
    }
    Ok(select_all(waiting).map(|(name, ..)| name))
}

fn listen(name: &str, kind: SignalKind) -> Result<Signal> {
    signal(kind).with_context(|| format!("cannot handle signal {name}"))
}
