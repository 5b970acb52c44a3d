//! From the name of a violated constraint to the error a caller can act on.
//!
//! The table names every constraint of `migrations/`; a test compares it with the catalogue of a migrated database.

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use crate::Error;

enum Meaning {
    /// Unique key: such a thing exists.
    Taken(&'static str),
    /// Foreign key: the thing pointed to does not exist.
    Missing(&'static str),
    /// Foreign key to an artifact.
    MissingArtifact,
    /// The name's form.
    Name,
    /// A check: field and what would be right.
    Rule(&'static str, &'static str),
}

use Meaning::{Missing, MissingArtifact, Name, Rule, Taken};

pub(crate) const ACCURACY: &str = "give a fraction between 0 and 1";
const TAGS: &str =
    "give at most 50, each of 1 to 100 lowercase letters, digits and - _ . : /, beginning with a letter or digit";
const OWNER: &str = "use 1 to 100 letters, digits and . _ @ + -, beginning with a letter or digit";
pub(crate) const FINITE: &str = "give a finite number";
const PATTERNS: &str = "give at most 50, each of 1 to 200 lowercase letters, digits, - _ and *";
pub(crate) const COUNTING: &str = "give 0 or more";

#[rustfmt::skip]
const TABLE: &[(&str, Meaning)] = &[
    ("resource_name_valid", Name),
    ("digest_valid", Rule("digest", "write sha256: and 64 lowercase hex digits")),
    ("artifacts_pkey", Taken("artifact")),
    ("artifacts_size_valid", Rule("size", COUNTING)),
    ("uploads_pkey", Taken("upload")),
    ("architectures_pkey", Taken("architecture")),
    ("architectures_name_key", Taken("architecture")),
    ("architectures_parameters_valid", Rule("parameters", "an architecture has at least one")),
    ("architectures_forward_artifact_fkey", MissingArtifact),
    ("datasets_pkey", Taken("dataset")),
    ("datasets_digest_key", Taken("dataset")),
    ("datasets_shape_valid", Rule("shape", "give at least one dimension, each 1 or more; of a text none")),
    ("datasets_class_names_valid", Rule("class_names", "a labelled dataset has at least 2 classes, a text none")),
    ("datasets_examples_valid", Rule("examples", "a dataset has at least one example")),
    ("datasets_text_valid", Rule("examples", "a text is one example")),
    ("datasets_artifact_digest_fkey", MissingArtifact),
    ("extractors_pkey", Taken("extractor")),
    ("extractors_name_key", Taken("extractor")),
    ("extractors_name_valid", Rule("name", "pixels is the built-in extractor: choose another name")),
    ("extractors_dim_valid", Rule("dim", "an extractor gives at least one feature")),
    ("extractors_artifact_digest_fkey", MissingArtifact),
    ("zoos_pkey", Taken("zoo")),
    ("zoos_name_key", Taken("zoo")),
    ("zoos_architecture_id_fkey", Missing("architecture")),
    ("runs_pkey", Taken("run")),
    ("runs_zoo_id_index_key", Taken("run")),
    ("runs_index_valid", Rule("index", COUNTING)),
    ("runs_classes_valid", Rule("classes", "a task is at least 2 class numbers, each 0 or more")),
    ("runs_trained_whole", Rule("run", "give a dataset and a seed, or a name when it was trained elsewhere")),
    ("runs_name_valid", Rule("run", "use a name of 1 to 200 characters")),
    ("runs_dataset_name_valid", Rule("dataset", "use a name of 1 to 200 characters")),
    ("runs_zoo_id_name_key", Taken("run")),
    ("runs_zoo_id_fkey", Missing("zoo")),
    ("runs_dataset_id_fkey", Missing("dataset")),
    ("checkpoints_pkey", Taken("checkpoint")),
    ("checkpoints_run_id_epoch_key", Taken("checkpoint")),
    ("checkpoints_epoch_valid", Rule("epoch", COUNTING)),
    ("checkpoints_accuracy_valid", Rule("accuracy", ACCURACY)),
    ("checkpoints_loss_valid", Rule("loss", FINITE)),
    ("checkpoints_run_id_fkey", Missing("run")),
    ("checkpoints_source_whole", Rule("source", "give name, digest, key and prefix of the file, or none of them")),
    ("checkpoints_source_name_valid", Rule("source", "use a file name of 1 to 1000 characters")),
    ("checkpoints_source_key_valid", Rule("key", "use at most 1000 characters for key and prefix")),
    ("checkpoints_trained_whole", Rule("checkpoint", "give epoch, accuracy and loss, or the file it came in")),
    ("checkpoints_artifact_digest_fkey", MissingArtifact),
    ("generators_pkey", Taken("generator")),
    ("generators_name_key", Taken("generator")),
    ("description_valid", Rule("description", "use at most 10000 characters")),
    ("tag_list_valid", Rule("tags", TAGS)),
    ("visibility_valid", Rule("visibility", "use public or private")),
    ("audit_pkey", Taken("audit entry")),
    ("tokens_pkey", Taken("token")),
    ("tokens_prefix_key", Taken("token")),
    ("tokens_name_valid", Rule("name", "use 1 to 100 printable ASCII characters")),
    ("tokens_sha256_valid", Rule("sha256", "give 32 bytes")),
    ("tokens_owner_valid", Rule("owner", OWNER)),
    ("tokens_scopes_valid", Rule("scopes", "give at least one of read, generate, train and administer")),
    ("tokens_patterns_valid", Rule("patterns", PATTERNS)),
    ("tokens_administrator_valid", Rule("patterns", "a token that administers sees all names: give none")),
    ("tokens_samples_per_day_valid", Rule("samples_per_day", COUNTING)),
    ("tokens_compute_seconds_per_day_valid", Rule("compute_seconds_per_day", COUNTING)),
    ("usage_pkey", Taken("usage")),
    ("usage_token_id_fkey", Missing("token")),
    ("usage_samples_valid", Rule("samples", COUNTING)),
    ("usage_compute_seconds_valid", Rule("compute_seconds", COUNTING)),
    ("checkpoints_zoo_id_fkey", Missing("zoo")),
    ("retired_generators_pkey", Taken("generator")),
    ("generators_last_version_valid", Rule("last_version", COUNTING)),
    ("generators_last_version_grows", Rule("last_version", "version numbers only grow")),
    ("generator_versions_pkey", Taken("generator version")),
    ("generator_versions_generator_id_version_key", Taken("generator version")),
    ("generator_versions_generator_id_digest_key", Taken("generator version")),
    ("generator_versions_version_valid", Rule("version", "versions begin at 1")),
    ("generator_versions_immutable", Rule("version", "a published version never changes: publish a new one")),
    ("generator_versions_generator_id_fkey", Missing("generator")),
    ("generator_versions_artifact_digest_fkey", MissingArtifact),
    ("generator_versions_zoo_id_fkey", Missing("zoo")),
    ("aliases_pkey", Taken("alias")),
    ("aliases_alias_valid", Rule("alias", "an alias is neither `latest` nor a number")),
    ("aliases_version_fkey", Missing("generator version")),
    ("alias_history_pkey", Taken("alias change")),
    ("alias_history_generator_id_fkey", Missing("generator")),
    ("embeddings_pkey", Taken("embedding")),
    ("embeddings_subject_kind_valid", Rule("subject_kind", "use dataset or run")),
    ("embeddings_version_id_fkey", Missing("generator version")),
    ("generations_pkey", Taken("generation")),
    ("generations_version_id_fkey", Missing("generator version")),
    ("generations_dataset_id_fkey", Missing("dataset")),
    ("samples_pkey", Taken("sample")),
    ("idempotency_pkey", Taken("idempotency key")),
    ("idempotency_answer_whole", Rule("answer", "an answer has a status, headers and a body")),
    ("samples_index_valid", Rule("index", COUNTING)),
    ("samples_size_valid", Rule("size", COUNTING)),
    ("samples_accuracy_valid", Rule("accuracy", ACCURACY)),
    ("samples_origin_valid", Rule("origin", "it is generated, retrieved or closed_form")),
    ("samples_checkpoint_valid", Rule("checkpoint_id", "only a retrieved sample has one")),
    ("samples_checkpoint_id_fkey", Missing("checkpoint")),
    ("samples_generation_id_fkey", Missing("generation")),
    ("samples_artifact_digest_fkey", MissingArtifact),
    ("jobs_pkey", Taken("job")),
    ("jobs_kind_valid", Rule("kind", "use zoo_build, train, import, evaluate, generate or search")),
    ("jobs_state_valid", Rule("state", "use queued, running, succeeded, failed or cancelled")),
    ("jobs_claim_valid", Rule("claim", "exactly a running job has one")),
    ("jobs_finished_valid", Rule("finished_at", "exactly a job that has ended has it")),
    ("jobs_attempts_valid", Rule("attempts", COUNTING)),
    ("jobs_max_attempts_valid", Rule("max_attempts", "give 1 to 100")),
    ("jobs_deadline_valid", Rule("deadline", "give a time that is still to come")),
    ("jobs_webhook_valid", Rule("webhook", "give url and secret")),
    ("job_events_pkey", Taken("job event")),
    ("job_events_job_id_fkey", Missing("job")),
    ("job_snapshots_pkey", Taken("job snapshot")),
    ("job_snapshots_job_id_fkey", Missing("job")),
    ("job_snapshots_artifact_digest_fkey", MissingArtifact),
    ("job_deliveries_pkey", Taken("delivery")),
    ("job_deliveries_attempt_valid", Rule("attempt", "deliveries begin at 1")),
    ("job_deliveries_job_id_fkey", Missing("job")),
    ("evaluations_pkey", Taken("evaluation")),
    ("evaluations_generation_id_fkey", Missing("generation")),
    ("evaluations_dataset_id_fkey", Missing("dataset")),
];

/// The error behind a violated constraint; `None` for any other failure of the database.
pub(crate) fn explain(error: &dyn DatabaseError) -> Option<Error> {
    let constraint = error.constraint()?;
    let (_, meaning) = TABLE.iter().find(|(name, _)| *name == constraint)?;
    let value = offending_value(error).unwrap_or_else(|| "given".into());
    Some(match meaning {
        Taken(resource) => Error::AlreadyExists { resource, name: value },
        Missing(resource) => Error::NotFound { resource, name: value },
        MissingArtifact => Error::ArtifactMissing { digest: value },
        Name => Error::InvalidName { name: value, also: "" },
        Rule(field, rule) => Error::invalid(field, *rule),
    })
}

/// The value in Postgres' detail `Key (name)=(mnist) already exists.`
fn offending_value(error: &dyn DatabaseError) -> Option<String> {
    let detail = error.try_downcast_ref::<PgDatabaseError>()?.detail()?;
    let (_, rest) = detail.split_once(")=(")?;
    let end = rest.rfind(')')?;
    rest.get(..end).map(str::to_owned)
}

/// The constraints this module can explain, for the test that compares them with a real schema.
#[doc(hidden)]
pub fn known() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|(name, _)| *name)
}
