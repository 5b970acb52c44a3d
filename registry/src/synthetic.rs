//! A registry full of made-up rows, for measuring how lists, search, lineage and nearest hold at size.
//!
//! Ids are computed from a row's kind and number, so that rows refer to each other without looking anything up. The
//! artifacts of checkpoints have rows and no files.

use serde::Serialize;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::{Error, Registry, Result, VersionId};

/// How many rows of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Checkpoints, ten a run, a hundred runs a zoo.
    pub checkpoints: u32,
    /// Datasets.
    pub datasets: u32,
    /// Generators of one version each.
    pub generators: u32,
}

/// Checkpoints of a run.
const PER_RUN: u32 = 10;
/// Runs of a zoo.
const PER_ZOO: u32 = 100;

/// Kinds of rows, as the fourth group of their ids.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A dataset.
    Dataset = 0x8001,
    /// A zoo.
    Zoo = 0x8002,
    /// A run.
    Run = 0x8003,
    /// A checkpoint.
    Checkpoint = 0x8004,
    /// A generator.
    Generator = 0x8005,
    /// A generator version.
    Version = 0x8006,
    /// A generation.
    Generation = 0x8007,
    /// The architecture.
    Architecture = 0x8008,
}

/// The id of a row.
#[must_use]
pub fn id(kind: Kind, number: u32) -> Uuid {
    Uuid::from_fields(0, 0, 0x7000, &[(kind as u16 >> 8) as u8, (kind as u16 & 0xff) as u8, 0, 0, 0, 0, 0, 0])
        .as_u128()
        .checked_add(u128::from(number))
        .map_or(Uuid::nil(), Uuid::from_u128)
}

impl Sizes {
    /// Zoos that the checkpoints make.
    #[must_use]
    pub fn zoos(&self) -> u32 {
        self.checkpoints.div_ceil(PER_RUN * PER_ZOO).max(1)
    }

    /// Runs that the checkpoints make.
    #[must_use]
    pub fn runs(&self) -> u32 {
        self.checkpoints.div_ceil(PER_RUN).max(1)
    }
}

/// The version under which datasets have embeddings.
#[must_use]
pub fn version() -> VersionId {
    id(Kind::Version, 1).into()
}

/// Whether these rows are there already.
///
/// # Errors
/// `invalid_value` when the registry holds anything else: it is not to be mixed with made-up rows.
pub async fn filled(registry: &Registry, sizes: &Sizes) -> Result<bool> {
    let (checkpoints, datasets, generators): (i64, i64, i64) = sqlx::query_as(
        // The file that the benchmark sends becomes a checkpoint with an id of its own time.
        "SELECT (SELECT count(*) FROM checkpoints WHERE id < '00000001-0000-0000-0000-000000000000'), (SELECT count(*) FROM datasets), (SELECT count(*) FROM generators)",
    )
    .fetch_one(registry.pool())
    .await?;
    if (checkpoints, datasets, generators) == (0, 0, 0) {
        return Ok(false);
    }
    let expected = [sizes.checkpoints, sizes.datasets, sizes.generators].map(i64::from);
    if [checkpoints, datasets, generators] == expected {
        return Ok(true);
    }
    let rule = "the benchmark needs an empty registry, or the one it filled with the same sizes: give it a data folder \
                of its own";
    Err(Error::invalid("registry", rule))
}

/// Writes all rows in one transaction, and gathers statistics.
///
/// # Errors
/// `database`; nothing is written then.
pub async fn fill(registry: &Registry, sizes: &Sizes, artifact: &str) -> Result<()> {
    let mut transaction = registry.pool().begin().await?;
    for statement in statements(sizes) {
        run(&mut transaction, statement, artifact).await?;
    }
    transaction.commit().await?;
    sqlx::query("VACUUM ANALYZE").execute(registry.pool()).await?;
    Ok(())
}

async fn run(connection: &mut PgConnection, statement: String, artifact: &str) -> Result<()> {
    // Every statement names $1, the digest of a real file.
    sqlx::query(AssertSqlSafe(statement)).bind(artifact).execute(connection).await?;
    Ok(())
}

/// SQL for the id of a row of a kind with a number.
fn sql_id(kind: Kind, number: &str) -> String {
    format!("('00000000-0000-7000-{:04x}-' || lpad(to_hex({number}), 12, '0'))::uuid", kind as u16)
}

fn statements(sizes: &Sizes) -> Vec<String> {
    let Sizes { checkpoints, datasets, generators } = *sizes;
    let (zoos, runs) = (sizes.zoos(), sizes.runs());
    let (dataset, zoo, run) = (sql_id(Kind::Dataset, "i"), sql_id(Kind::Zoo, "i"), sql_id(Kind::Run, "i"));
    let (checkpoint, generator) = (sql_id(Kind::Checkpoint, "i"), sql_id(Kind::Generator, "i"));
    let (version, generation) = (sql_id(Kind::Version, "i"), sql_id(Kind::Generation, "i"));
    let architecture = sql_id(Kind::Architecture, "1");
    let at = "now() - interval '1 day' + i * interval '1 millisecond'";
    vec![
        format!(
            "INSERT INTO architectures (id, name, config, parameters, layout)
             SELECT {architecture}, 'bench-mlp', '{{}}', 2245, '{{\"params\": []}}' WHERE $1::text IS NOT NULL"
        ),
        format!(
            "INSERT INTO datasets (id, name, modality, shape, class_names, examples, digest, artifact_digest, created_at,
                                   tags, description)
             SELECT {dataset}, 'bench-data-' || i, 'image', '{{1,8,8}}', '{{a,b,c}}', 100 + i % 1000,
                    'sha256:' || encode(sha256(('dataset ' || i)::bytea), 'hex'), $1, {at},
                    ARRAY['topic-' || i % 97, 'size-' || i % 7], 'Made-up data number ' || i || ' of group ' || i % 53
             FROM generate_series(1, {datasets}) i"
        ),
        format!(
            "INSERT INTO zoos (id, name, architecture_id, config, digest, created_at, tags, description)
             SELECT {zoo}, 'bench-zoo-' || i, {architecture}, '{{}}',
                    'sha256:' || encode(sha256(('zoo ' || i)::bytea), 'hex'), {at}, ARRAY['topic-' || i % 97],
                    'Made-up zoo number ' || i
             FROM generate_series(1, {zoos}) i WHERE $1::text IS NOT NULL"
        ),
        format!(
            "INSERT INTO runs (id, zoo_id, index, dataset_id, classes, seed, created_at)
             SELECT {run}, {}, (i - 1) % {PER_ZOO}, {}, '{{0,1,2}}', i, {at}
             FROM generate_series(1, {runs}) i WHERE $1::text IS NOT NULL",
            sql_id(Kind::Zoo, &format!("(i - 1) / {PER_ZOO} + 1")),
            sql_id(Kind::Dataset, &format!("(i - 1) % {datasets} + 1")),
        ),
        format!(
            "INSERT INTO artifacts (digest, size, media_type)
             SELECT 'sha256:' || encode(sha256(('checkpoint ' || i)::bytea), 'hex'), 9208, 'application/vnd.safetensors'
             FROM generate_series(1, {checkpoints}) i WHERE $1::text IS NOT NULL"
        ),
        format!(
            "INSERT INTO checkpoints (id, run_id, zoo_id, epoch, accuracy, loss, artifact_digest, created_at, tags,
                                      description)
             SELECT {checkpoint}, {}, {}, (i - 1) % {PER_RUN}, ((i * 7919::bigint) % 100003) / 100003.0, 0.5,
                    'sha256:' || encode(sha256(('checkpoint ' || i)::bytea), 'hex'), {at}, ARRAY['fold-' || i % 9973],
                    ''
             FROM generate_series(1, {checkpoints}) i WHERE $1::text IS NOT NULL",
            sql_id(Kind::Run, &format!("(i - 1) / {PER_RUN} + 1")),
            sql_id(Kind::Zoo, &format!("(i - 1) / {} + 1", PER_RUN * PER_ZOO)),
        ),
        format!(
            "INSERT INTO generators (id, name, last_version, created_at, tags, description)
             SELECT {generator}, 'bench-gen-' || i, 1, {at}, ARRAY['topic-' || i % 97],
                    'Made-up generator number ' || i || ' of family ' || i % 31
             FROM generate_series(1, {generators}) i WHERE $1::text IS NOT NULL"
        ),
        format!(
            "INSERT INTO generator_versions (id, generator_id, version, digest, modality, manifest, artifact_digest,
                                             zoo_id, created_at)
             SELECT {version}, {generator}, 1, 'sha256:' || encode(sha256(('version ' || i)::bytea), 'hex'), 'image',
                    '{{}}', $1, {}, {at}
             FROM generate_series(1, {generators}) i",
            sql_id(Kind::Zoo, &format!("(i - 1) % {zoos} + 1")),
        ),
        format!(
            "INSERT INTO generations (id, version_id, dataset_id, dataset_digest, request, provider, device, timings,
                                      seed, created_at)
             SELECT {generation}, {}, {}, 'sha256:' || encode(sha256(('dataset ' || i)::bytea), 'hex'), '{{}}', 'cpu',
                    'cpu', '{{}}', i, {at}
             FROM generate_series(1, {}) i WHERE $1::text IS NOT NULL",
            sql_id(Kind::Version, &format!("(i - 1) % {generators} + 1")),
            sql_id(Kind::Dataset, &format!("(i - 1) % {datasets} + 1")),
            generators * 10,
        ),
        format!(
            "INSERT INTO samples (generation_id, index, seed, artifact_digest, size, metrics)
             SELECT {generation}, s, i, $1, 9208, '{{}}'
             FROM generate_series(1, {}) i, generate_series(0, 1) s",
            generators * 10,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_statements() {
        assert_eq!(id(Kind::Zoo, 255).to_string(), "00000000-0000-7000-8002-0000000000ff");
        assert_eq!(id(Kind::Version, 1), version().as_uuid());
    }
}
