//! How much of a long test is run.

/// What a test does in everyday runs, or, with the variable `THOROUGH` in the environment, all that it is there for.
#[must_use]
pub fn thorough<T>(everyday: T, all: T) -> T {
    if std::env::var_os("THOROUGH").is_some() { all } else { everyday }
}
