//! How the demonstration looks: colours when a person reads it, plain text otherwise.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, stdout};

use kube_proxy_rs::testing::traffic::Answer;

/// Columns a bar of all requests would fill.
const WIDTH: usize = 60;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint {
    colours: bool,
}

impl Paint {
    pub(crate) fn for_stdout() -> Paint {
        Paint { colours: stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    pub(crate) fn title(self, text: &str) {
        println!("\n{}", self.colour("1;36", text));
    }

    pub(crate) fn say(self, text: &str) {
        println!("   {text}");
    }

    pub(crate) fn code(self, line: &str) {
        println!("   {}", self.colour("2", line));
    }

    /// One bar per pod that answered, and one per other outcome.
    pub(crate) fn spread(self, caption: &str, answers: &[Answer]) {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for answer in answers {
            let who = match answer {
                Answer::Answered { pod, .. } => pod.clone(),
                Answer::Refused => "refused".to_owned(),
                Answer::Silence => "silence".to_owned(),
                Answer::Failed(why) => why.clone(),
            };
            *counts.entry(who).or_default() += 1;
        }
        println!("   {} ({} requests)", self.colour("1", caption), answers.len());
        for (who, count) in counts {
            let bar = "█".repeat((count * WIDTH).div_ceil(answers.len().max(1)));
            println!("     {who:<9} {} {count}", self.colour("32", &bar));
        }
    }

    fn colour(self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
