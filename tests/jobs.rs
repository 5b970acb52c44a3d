//! Jobs as their users meet them: real workers over a real PostgreSQL, killed, stopped, cancelled, watched.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "jobs/ending.rs"]
mod ending;
#[path = "jobs/import.rs"]
mod import;
#[path = "jobs/killed.rs"]
mod killed;
#[path = "jobs/mixed.rs"]
mod mixed;
#[path = "jobs/search.rs"]
mod search;
#[path = "jobs/site.rs"]
mod site;
mod support;
