//! API objects to the model. Pure: what is wrong with an object comes back as [`Issue`]s beside
//! whatever could still be made of it, and the caller decides who is told.
//!
//! The model says what a proxy must act on and nothing else, so fields that do not apply (a health
//! check port without a load balancer, a policy that the Service's type ignores) end here.

mod names;
mod nodes;
mod parse;
mod service_cidrs;
mod services;
mod slices;

pub use nodes::node;
pub use service_cidrs::service_cidr;
pub use services::{node_ports_outside, service};
pub use slices::endpoint_slice;

pub(super) use parse::parse_ip;

use crate::model::word;
use std::fmt;

/// What became of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted<T> {
    /// The object in our own terms; `None` when it is not for this proxy, or unusable.
    pub value: Option<T>,
    /// What is wrong with it, in the order of its fields.
    pub issues: Vec<Issue>,
}

impl<T> Converted<T> {
    /// The same, with another value.
    pub(super) fn and_then<U>(self, of: impl FnOnce(T) -> Option<U>) -> Converted<U> {
        Converted { value: self.value.and_then(of), issues: self.issues }
    }

    /// Not for us, and nothing wrong with that.
    fn nothing() -> Self {
        Converted { value: None, issues: Vec::new() }
    }
}

/// How bad an [`Issue`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IssueSeverity {
    /// The API server allows it, but we can make no use of it.
    Warning,
    /// A present-day API server would have refused it.
    Error,
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    /// Where, as in `spec.externalIPs[0]`.
    pub field: String,
    /// What, as in `"10.0.0.300" is not an IP address`.
    pub message: String,
    /// How bad.
    pub severity: IssueSeverity,
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Namespace and name as messages show them, whatever a server calls an object.
pub(super) fn named(namespace: &str, name: &str) -> String {
    match namespace {
        "" => word(name).into_owned(),
        _ => format!("{}/{}", word(namespace), word(name)),
    }
}

/// The issues found so far.
#[derive(Debug, Default)]
pub(super) struct Issues(Vec<Issue>);

impl Issues {
    /// Notes what an API server would not have let through.
    pub(super) fn error(&mut self, field: impl fmt::Display, message: impl fmt::Display) {
        self.push(field, message, IssueSeverity::Error);
    }

    /// Notes what is allowed and useless.
    pub(super) fn warning(&mut self, field: impl fmt::Display, message: impl fmt::Display) {
        self.push(field, message, IssueSeverity::Warning);
    }

    /// All of them, in the order of their coming.
    pub(super) fn into_vec(self) -> Vec<Issue> {
        self.0
    }

    fn push(&mut self, field: impl fmt::Display, message: impl fmt::Display, severity: IssueSeverity) {
        self.0.push(Issue { field: field.to_string(), message: message.to_string(), severity });
    }

    fn converted<T>(self, value: Option<T>) -> Converted<T> {
        Converted { value, issues: self.0 }
    }
}
