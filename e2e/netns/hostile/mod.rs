//! Hostile ground: what neighbours on the network, users of one namespace, a hostile API server and local users can do to
//! the program. Each test is an attack with real sockets and real tools; meanwhile it measures what that costs, and limits
//! with room for noise hold it there. `docs/security.md` names the test of each promise.

mod connections;
mod descriptors;
mod disclosure;
mod ground;
mod large;
mod local;
mod logs;
mod siege;
