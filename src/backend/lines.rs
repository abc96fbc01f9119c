//! A buffer of rule lines.

use std::fmt;

/// Lines of restore input.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// Adds one line; use it through `line!`.
    pub(super) fn add(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = fmt::Write::write_fmt(&mut self.0, line);
        self.0.push('\n');
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn push_str(&mut self, lines: &str) {
        self.0.push_str(lines);
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

/// Adds one formatted line to a `Text`.
macro_rules! line {
    ($text:expr, $($format:tt)*) => { $text.add(format_args!($($format)*)) };
}
pub(super) use line;
