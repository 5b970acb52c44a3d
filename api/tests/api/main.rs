//! The API over `oneshot`: real Postgres, real ONNX Runtime, real files, no socket.

// Helpers outside #[test] functions fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod any_number;
mod authorization;
mod candidates;
mod catalogue;
mod described;
mod files;
mod generations;
mod idempotency;
mod lifecycle;
mod manners;
mod mixed;
mod openapi;
mod predicted;
mod refusals;
mod serving;
mod support;
mod uploads;

#[path = "../../../inference/tests/support/any_number.rs"]
#[allow(dead_code)]
mod train;
