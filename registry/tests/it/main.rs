//! The registry on a real PostgreSQL: DATABASE_URL names a server (each test gets a database of its own), and
//! WEIGHTSMITH_POSTGRES the distribution that the tests of the private server start.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod aliases;
mod architectures;
mod artifacts;
mod calls;
mod connect;
mod constraints;
mod datasets;
mod embedded;
mod embeddings;
mod extractors;
mod faults;
mod fixtures;
mod garbage;
mod generations;
mod generators;
mod idempotency;
mod imports;
mod jobs;
mod lifecycle;
mod lineage;
#[path = "../../../tests/support/moto.rs"]
mod moto;
mod nearest;
mod plans;
mod quotas;
mod s3;
mod tokens;
mod zoos;
