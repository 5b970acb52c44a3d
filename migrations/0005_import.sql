-- Zoos from outside: what is known of a model that others trained.

-- The first checkpoint says what the models of such a zoo look like; its content grows, so it has no digest.
ALTER TABLE zoos
    ALTER COLUMN architecture_id DROP NOT NULL,
    ALTER COLUMN digest DROP NOT NULL;

-- An imported run has a name; its dataset may be one that is registered, a name, or unknown, as are classes and seed.
ALTER TABLE runs
    ALTER COLUMN dataset_id DROP NOT NULL,
    ALTER COLUMN seed DROP NOT NULL,
    ADD COLUMN name text COLLATE "C",
    ADD COLUMN dataset_name text COLLATE "C",
    DROP CONSTRAINT runs_classes_valid,
    ADD CONSTRAINT runs_classes_valid CHECK (
        (cardinality(classes) >= 2 OR name IS NOT NULL AND cardinality(classes) = 0) AND 0 <= ALL (classes)),
    ADD CONSTRAINT runs_trained_whole CHECK (name IS NOT NULL OR dataset_id IS NOT NULL AND seed IS NOT NULL),
    ADD CONSTRAINT runs_name_valid CHECK (length(name) BETWEEN 1 AND 200),
    ADD CONSTRAINT runs_dataset_name_valid CHECK (length(dataset_name) BETWEEN 1 AND 200),
    ADD CONSTRAINT runs_zoo_id_name_key UNIQUE (zoo_id, name);

-- Where an imported checkpoint came from: the file, and what was taken out of it.
ALTER TABLE checkpoints
    ALTER COLUMN epoch DROP NOT NULL,
    ALTER COLUMN accuracy DROP NOT NULL,
    ALTER COLUMN loss DROP NOT NULL,
    ADD COLUMN source_name text,
    ADD COLUMN source_digest digest,
    ADD COLUMN source_key text,
    ADD COLUMN source_prefix text,
    ADD CONSTRAINT checkpoints_source_whole CHECK (
        num_nulls(source_name, source_digest, source_key, source_prefix) IN (0, 4)),
    ADD CONSTRAINT checkpoints_source_name_valid CHECK (length(source_name) BETWEEN 1 AND 1000),
    ADD CONSTRAINT checkpoints_source_key_valid CHECK (length(source_key) <= 1000 AND length(source_prefix) <= 1000),
    ADD CONSTRAINT checkpoints_trained_whole CHECK (
        source_digest IS NOT NULL OR num_nulls(epoch, accuracy, loss) = 0);
-- The same weights are in a zoo once, whatever files they came in; a deleted checkpoint still counts.
CREATE UNIQUE INDEX checkpoints_imported_idx ON checkpoints (zoo_id, artifact_digest) WHERE source_digest IS NOT NULL;
-- The journal of an import: which files are in already.
CREATE INDEX checkpoints_source_idx ON checkpoints (zoo_id, source_digest) WHERE source_digest IS NOT NULL;

-- An unknown accuracy is ordered below all others.
DROP INDEX checkpoints_accuracy_idx, checkpoints_zoo_accuracy_idx;
CREATE INDEX checkpoints_accuracy_idx ON checkpoints (coalesce(accuracy, -1::real), id);
CREATE INDEX checkpoints_zoo_accuracy_idx ON checkpoints (zoo_id, coalesce(accuracy, -1::real), id);
