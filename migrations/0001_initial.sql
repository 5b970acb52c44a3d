-- The catalogue. Ids are UUIDv7 made by the application; every constraint has a name that
-- registry/src/constraints.rs turns into an error.
CREATE EXTENSION IF NOT EXISTS vector;

-- COLLATE "C" keeps the order of a listing by name, and so its cursors, the same on every server.
CREATE DOMAIN resource_name AS text COLLATE "C"
    CONSTRAINT resource_name_valid CHECK (VALUE ~ '^[a-z0-9][a-z0-9_-]{0,99}$');
CREATE DOMAIN digest AS text COLLATE "C"
    CONSTRAINT digest_valid CHECK (VALUE ~ '^sha256:[0-9a-f]{64}$');

-- A row is written only after its file: a crash leaves a file without a row, never the reverse.
CREATE TABLE artifacts (
    digest     digest NOT NULL,
    size       bigint NOT NULL,
    media_type text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT artifacts_pkey PRIMARY KEY (digest),
    CONSTRAINT artifacts_size_valid CHECK (size >= 0)
);

CREATE TABLE architectures (
    id               uuid NOT NULL,
    name             resource_name NOT NULL,
    config           jsonb NOT NULL,
    parameters       bigint NOT NULL,
    layout           jsonb NOT NULL,
    forward_artifact digest,
    created_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT architectures_pkey PRIMARY KEY (id),
    CONSTRAINT architectures_name_key UNIQUE (name),
    CONSTRAINT architectures_parameters_valid CHECK (parameters > 0),
    CONSTRAINT architectures_forward_artifact_fkey FOREIGN KEY (forward_artifact) REFERENCES artifacts (digest)
);

CREATE TABLE datasets (
    id              uuid NOT NULL,
    name            resource_name NOT NULL,
    modality        text NOT NULL,
    shape           int[] NOT NULL,
    class_names     text[] NOT NULL,
    examples        bigint NOT NULL,
    digest          digest NOT NULL,
    artifact_digest digest NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT datasets_pkey PRIMARY KEY (id),
    CONSTRAINT datasets_digest_key UNIQUE (digest),
    CONSTRAINT datasets_shape_valid CHECK (cardinality(shape) > 0 AND 0 < ALL (shape)),
    CONSTRAINT datasets_class_names_valid CHECK (cardinality(class_names) >= 2),
    CONSTRAINT datasets_examples_valid CHECK (examples > 0),
    CONSTRAINT datasets_artifact_digest_fkey FOREIGN KEY (artifact_digest) REFERENCES artifacts (digest)
);
CREATE INDEX datasets_created_at_idx ON datasets (created_at, id);
CREATE INDEX datasets_name_idx ON datasets (name, created_at, id);

CREATE TABLE zoos (
    id              uuid NOT NULL,
    name            resource_name NOT NULL,
    architecture_id uuid NOT NULL,
    config          jsonb NOT NULL,
    digest          digest NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT zoos_pkey PRIMARY KEY (id),
    CONSTRAINT zoos_name_key UNIQUE (name),
    CONSTRAINT zoos_architecture_id_fkey FOREIGN KEY (architecture_id) REFERENCES architectures (id)
);
CREATE INDEX zoos_architecture_id_idx ON zoos (architecture_id);

-- One training of one model on one task: an ordered choice of a dataset's classes.
-- seed is an unsigned 64-bit number kept in two's complement.
CREATE TABLE runs (
    id         uuid NOT NULL,
    zoo_id     uuid NOT NULL,
    index      int NOT NULL,
    dataset_id uuid NOT NULL,
    classes    int[] NOT NULL,
    seed       bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT runs_pkey PRIMARY KEY (id),
    CONSTRAINT runs_zoo_id_index_key UNIQUE (zoo_id, index),
    CONSTRAINT runs_index_valid CHECK (index >= 0),
    CONSTRAINT runs_classes_valid CHECK (cardinality(classes) >= 2 AND 0 <= ALL (classes)),
    CONSTRAINT runs_zoo_id_fkey FOREIGN KEY (zoo_id) REFERENCES zoos (id),
    CONSTRAINT runs_dataset_id_fkey FOREIGN KEY (dataset_id) REFERENCES datasets (id)
);
CREATE INDEX runs_created_at_idx ON runs (created_at, id);
CREATE INDEX runs_zoo_id_idx ON runs (zoo_id, created_at, id);
CREATE INDEX runs_dataset_id_idx ON runs (dataset_id);

-- NaN sorts above every number in Postgres, so the upper bounds below refuse it too.
CREATE TABLE checkpoints (
    id              uuid NOT NULL,
    run_id          uuid NOT NULL,
    epoch           int NOT NULL,
    accuracy        real NOT NULL,
    loss            real NOT NULL,
    artifact_digest digest NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT checkpoints_pkey PRIMARY KEY (id),
    CONSTRAINT checkpoints_run_id_epoch_key UNIQUE (run_id, epoch),
    CONSTRAINT checkpoints_epoch_valid CHECK (epoch >= 0),
    CONSTRAINT checkpoints_accuracy_valid CHECK (accuracy >= 0 AND accuracy <= 1),
    CONSTRAINT checkpoints_loss_valid CHECK (loss > '-Infinity' AND loss < 'Infinity'),
    CONSTRAINT checkpoints_run_id_fkey FOREIGN KEY (run_id) REFERENCES runs (id),
    CONSTRAINT checkpoints_artifact_digest_fkey FOREIGN KEY (artifact_digest) REFERENCES artifacts (digest)
);
CREATE INDEX checkpoints_created_at_idx ON checkpoints (created_at, id);
CREATE INDEX checkpoints_artifact_digest_idx ON checkpoints (artifact_digest);

-- created_at of a version is the clock's: publishing waits for its turn, and the order by time is that of the numbers.
-- last_version only grows, so a number is never given twice even when a version is deleted.
CREATE TABLE generators (
    id           uuid NOT NULL,
    name         resource_name NOT NULL,
    description  text NOT NULL DEFAULT '',
    last_version int NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT generators_pkey PRIMARY KEY (id),
    CONSTRAINT generators_name_key UNIQUE (name),
    CONSTRAINT generators_description_valid CHECK (length(description) <= 10000),
    CONSTRAINT generators_last_version_valid CHECK (last_version >= 0)
);

CREATE TABLE generator_versions (
    id              uuid NOT NULL,
    generator_id    uuid NOT NULL,
    version         int NOT NULL,
    digest          digest NOT NULL,
    modality        text NOT NULL,
    manifest        jsonb NOT NULL,
    artifact_digest digest NOT NULL,
    zoo_id          uuid,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT generator_versions_pkey PRIMARY KEY (id),
    CONSTRAINT generator_versions_generator_id_version_key UNIQUE (generator_id, version),
    CONSTRAINT generator_versions_generator_id_digest_key UNIQUE (generator_id, digest),
    CONSTRAINT generator_versions_version_valid CHECK (version > 0),
    CONSTRAINT generator_versions_generator_id_fkey FOREIGN KEY (generator_id) REFERENCES generators (id),
    CONSTRAINT generator_versions_artifact_digest_fkey FOREIGN KEY (artifact_digest) REFERENCES artifacts (digest),
    CONSTRAINT generator_versions_zoo_id_fkey FOREIGN KEY (zoo_id) REFERENCES zoos (id)
);
CREATE INDEX generator_versions_zoo_id_idx ON generator_versions (zoo_id);

CREATE FUNCTION generators_keep_counter() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.last_version < OLD.last_version THEN
        RAISE EXCEPTION 'generators.last_version never decreases'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'generators_last_version_grows';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER generators_last_version_grows BEFORE UPDATE ON generators
    FOR EACH ROW EXECUTE FUNCTION generators_keep_counter();

CREATE FUNCTION generator_versions_refuse_update() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a published generator version never changes'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'generator_versions_immutable';
END $$;
CREATE TRIGGER generator_versions_immutable BEFORE UPDATE ON generator_versions
    FOR EACH ROW WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION generator_versions_refuse_update();

-- An alias may be neither a number nor "latest": name@3 and name@latest mean something else.
CREATE TABLE aliases (
    generator_id uuid NOT NULL,
    alias        resource_name NOT NULL,
    version      int NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT aliases_pkey PRIMARY KEY (generator_id, alias),
    CONSTRAINT aliases_alias_valid CHECK (alias <> 'latest' AND alias !~ '^[0-9]+$'),
    CONSTRAINT aliases_version_fkey FOREIGN KEY (generator_id, version)
        REFERENCES generator_versions (generator_id, version)
);

CREATE TABLE alias_history (
    id           uuid NOT NULL,
    generator_id uuid NOT NULL,
    alias        resource_name NOT NULL,
    previous     int,
    version      int NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT alias_history_pkey PRIMARY KEY (id),
    CONSTRAINT alias_history_generator_id_fkey FOREIGN KEY (generator_id) REFERENCES generators (id)
);
CREATE INDEX alias_history_idx ON alias_history (generator_id, alias, created_at, id);

-- Embeddings of versions differ in dimension: no index on the vector, nearest is an exact scan.
CREATE TABLE embeddings (
    version_id   uuid NOT NULL,
    subject_kind text NOT NULL,
    subject_id   uuid NOT NULL,
    classes      int[] NOT NULL,
    embedding    vector NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT embeddings_pkey PRIMARY KEY (version_id, subject_kind, subject_id, classes),
    CONSTRAINT embeddings_subject_kind_valid CHECK (subject_kind IN ('dataset', 'run')),
    CONSTRAINT embeddings_version_id_fkey FOREIGN KEY (version_id) REFERENCES generator_versions (id)
);

CREATE TABLE generations (
    id             uuid NOT NULL,
    version_id     uuid NOT NULL,
    dataset_id     uuid,
    dataset_digest digest NOT NULL,
    request        jsonb NOT NULL,
    provider       text NOT NULL,
    device         text NOT NULL,
    timings        jsonb NOT NULL,
    seed           bigint NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT generations_pkey PRIMARY KEY (id),
    CONSTRAINT generations_version_id_fkey FOREIGN KEY (version_id) REFERENCES generator_versions (id),
    CONSTRAINT generations_dataset_id_fkey FOREIGN KEY (dataset_id) REFERENCES datasets (id)
);
CREATE INDEX generations_created_at_idx ON generations (created_at, id);
CREATE INDEX generations_version_id_idx ON generations (version_id, created_at, id);
CREATE INDEX generations_dataset_id_idx ON generations (dataset_id);

CREATE TABLE samples (
    generation_id   uuid NOT NULL,
    index           int NOT NULL,
    seed            bigint NOT NULL,
    artifact_digest digest NOT NULL,
    size            bigint NOT NULL,
    accuracy        real,
    metrics         jsonb NOT NULL,
    CONSTRAINT samples_pkey PRIMARY KEY (generation_id, index),
    CONSTRAINT samples_index_valid CHECK (index >= 0),
    CONSTRAINT samples_size_valid CHECK (size >= 0),
    CONSTRAINT samples_accuracy_valid CHECK (accuracy >= 0 AND accuracy <= 1),
    CONSTRAINT samples_generation_id_fkey FOREIGN KEY (generation_id) REFERENCES generations (id),
    CONSTRAINT samples_artifact_digest_fkey FOREIGN KEY (artifact_digest) REFERENCES artifacts (digest)
);
CREATE INDEX samples_artifact_digest_idx ON samples (artifact_digest);
