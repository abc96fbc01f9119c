//! `explain --all`: the whole node.

use super::ask::Source;
use super::inspect;
use super::output::Answer;
use super::print::structured;
use crate::backend;
use crate::config::{Config, Explain, Form, Mode};
use crate::explain::{Node, NodeReport};
use anyhow::Result;

/// Every difference between what is wanted and what the kernel has, and every finding.
pub(super) async fn explain(config: &Config, source: &Source<'_>, asked: &Explain) -> Result<Answer> {
    let node = node(config, source).await?;
    let mut state = inspect::around_all(config, &node).await;
    state.proxy = source.running().await?.map(|running| running.proxy);
    let report = NodeReport::new(node, state);
    let text = match structured("NodeExplanation", &report, &asked.form)? {
        Some(text) => text,
        None => report.to_string(),
    };
    Ok(Answer { text, status: report.exit_status(), wraps: asked.form == Form::Text })
}

/// All that is known of this node's Services.
pub(super) async fn node(config: &Config, source: &Source<'_>) -> Result<Node> {
    let pages = source.pages().await?;
    let mode = pages.first().and_then(|page| Mode::named(&page.identity.mode)).unwrap_or(config.mode);
    let mode = backend::open(mode);
    Ok(Node::of(pages, |object| mode.holds_only_services(object)))
}
