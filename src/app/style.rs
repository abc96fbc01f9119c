//! How prose looks at a terminal: lines that fit it, and words that stand out. Pure.

/// Narrower than this, lines are left as they are.
const NARROWEST: usize = 40;
const RED: &str = "\u{1b}[31m";
const YELLOW: &str = "\u{1b}[33m";
const GREEN: &str = "\u{1b}[32m";
const PLAIN: &str = "\u{1b}[0m";
/// Words of judgement; in capitals, or first in a line.
const WORDS: [(&str, &str); 14] = [
    ("NOT CONNECTED", RED),
    ("NOT as it should be", RED),
    ("BROKEN", RED),
    ("DEGRADED", RED),
    ("CLOSED", RED),
    ("FAILED", RED),
    ("PROBLEM", YELLOW),
    ("UNKNOWN", YELLOW),
    (super::status::HEALTHY, GREEN),
    ("Proxy   healthy", GREEN),
    ("Kernel  as it should be", GREEN),
    ("broken ", RED),
    ("problem ", YELLOW),
    ("ok ", GREEN),
];

/// Whether the user has not switched colours off (no-color.org).
pub(super) fn wants_colour() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The text as a terminal of this width shows it best.
pub(super) fn for_terminal(text: &str, width: usize, colours: bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for line in text.lines() {
        for part in wrapped(line, width) {
            shown.push_str(&if colours { painted(&part) } else { part });
            shown.push('\n');
        }
    }
    shown
}

/// The parts of a line, the further ones indented as the line is. Rules stay whole, so that they can be copied.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    let is_rule = line.contains(" -j ") || line.contains("-A ");
    if width < NARROWEST || is_rule || line.chars().count() <= width {
        return vec![line.to_owned()];
    }
    let indent = line.len() - line.trim_start().len();
    let deeper = " ".repeat(indent + 2);
    let (mut parts, mut part) = (Vec::new(), " ".repeat(indent));
    let mut is_empty = true;
    // Columns that are set apart by several spaces stay so.
    for word in line.trim_start().split(' ') {
        if !is_empty && part.chars().count() + 1 + word.chars().count() > width {
            parts.push(std::mem::replace(&mut part, deeper.clone()));
            is_empty = true;
        }
        if !is_empty {
            part.push(' ');
        }
        part.push_str(word);
        is_empty = is_empty && word.is_empty();
    }
    parts.push(part);
    parts
}

/// The first word of judgement of a line, in its colour.
fn painted(line: &str) -> String {
    let is_capital = |word: &str| word.starts_with(|c: char| c.is_uppercase());
    let found = WORDS.iter().find_map(|(word, colour)| {
        let at = if is_capital(word) { line.find(word) } else { line.starts_with(word).then_some(0) };
        at.map(|at| (at, *word, *colour))
    });
    match found {
        Some((at, word, colour)) => {
            let (before, rest) = line.split_at(at);
            let after = rest.strip_prefix(word).unwrap_or_default();
            format!("{before}{colour}{word}{PLAIN}{after}")
        }
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_broken_at_spaces_and_keep_their_indentation() {
        let text = "  one two three four five six seven eight nine ten\nshort\n";
        assert_eq!(
            for_terminal(text, 40, false),
            "  one two three four five six seven\n    eight nine ten\nshort\n"
        );
        assert_eq!(for_terminal(text, 20, false), text, "too narrow to be of use");
        let rule = format!("  {} -j DROP\n", "-m comment ".repeat(10));
        assert_eq!(for_terminal(&rule, 40, false), rule);
        let long = format!("{}\n", "x".repeat(60));
        assert_eq!(for_terminal(&long, 40, false), long);
    }

    #[test]
    fn judgements_stand_out_and_names_do_not() {
        assert_eq!(for_terminal("  BROKEN  x\n", 80, true), format!("  {RED}BROKEN{PLAIN}  x\n"));
        assert_eq!(for_terminal("ok       x\n", 80, true), format!("{GREEN}ok {PLAIN}      x\n"));
        assert_eq!(for_terminal("Service shop/ok x\n", 80, true), "Service shop/ok x\n");
    }
}
