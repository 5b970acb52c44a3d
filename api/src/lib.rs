//! The HTTP API: axum handlers and their OpenAPI 3.1 description, from one declaration each.
//!
//! A handler parses, calls one function of `registry` or one piece of work on `inference`, and answers. There is no
//! SQL and no tensor here. Every error leaves as `application/problem+json` ([`problem::Problem`]); [`error`] is the
//! one place that says which status an error has.
//!
//! One file a resource, with the name it has in `registry`.

mod about;
mod answer;
mod architectures;
mod audit;
mod auth;
mod cache;
mod checkpoints;
mod datasets;
mod envelope;
pub mod error;
mod extract;
mod extractors;
mod files;
mod generations;
mod generators;
mod health;
mod idempotency;
pub mod imports;
mod inline;
pub mod jobs;
mod lifecycle;
mod limits;
mod lineage;
mod listen;
mod manners;
mod metrics;
pub mod models;
mod openapi;
mod page;
pub mod problem;
pub mod server;
mod slow;
mod spans;
mod state;
mod texts;
mod tokens;
mod upload;
mod zoos;

pub use auth::{AuthSettings, RateLimit};
pub use error::{Error, Result};
pub use generations::Recorded;
pub use manners::Origin;
pub use openapi::{openapi, openapi_json};
pub use server::{router, serve, serve_metrics, serve_when_ready};
pub use state::{AppState, Settings};
