//! What disturbs all other tests, and so is for a time at which no other runs.

mod modules;
mod neighbours;
