//! Typed identifiers: UUIDv7, so that ids sort by the time they were made.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A new id; later ones of this process sort after earlier ones.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The plain UUID.
            #[must_use]
            pub fn as_uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

id!(
    /// Identifies an architecture.
    ArchitectureId
);
id!(
    /// Identifies a dataset.
    DatasetId
);
id!(
    /// Identifies a zoo.
    ZooId
);
id!(
    /// Identifies a run: one training of one model on one task.
    RunId
);
id!(
    /// Identifies a checkpoint of a run.
    CheckpointId
);
id!(
    /// Identifies a generator (the name; its bundles are versions).
    GeneratorId
);
id!(
    /// Identifies one immutable version of a generator.
    VersionId
);
id!(
    /// Identifies a generation: one answered request for weights.
    GenerationId
);

id!(
    /// Identifies a feature extractor.
    ExtractorId
);
id!(
    /// Identifies an evaluation of a generation.
    EvaluationId
);
id!(
    /// Identifies a token.
    TokenId
);
id!(
    /// Identifies a job.
    JobId
);

/// A seed of 64 unsigned bits; Postgres keeps it as the `bigint` with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seed(pub u64);

impl From<i64> for Seed {
    fn from(bits: i64) -> Self {
        Self(bits.cast_unsigned())
    }
}

impl From<u64> for Seed {
    fn from(seed: u64) -> Self {
        Self(seed)
    }
}

impl sqlx::Type<sqlx::Postgres> for Seed {
    fn type_info() -> sqlx::postgres::PgTypeInfo {
        <i64 as sqlx::Type<sqlx::Postgres>>::type_info()
    }
}

impl<'r> sqlx::Decode<'r, sqlx::Postgres> for Seed {
    fn decode(value: sqlx::postgres::PgValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
        <i64 as sqlx::Decode<'r, sqlx::Postgres>>::decode(value).map(Self::from)
    }
}

impl Seed {
    pub(crate) fn to_bigint(self) -> i64 {
        self.0.cast_signed()
    }
}
