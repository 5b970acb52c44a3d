-- Long work. graphile_worker (schema graphile_worker, migrated by the program after these) dispatches, the row of a job
-- is the truth: who holds `claim` works on it, and only that attempt may change it. Every clock here is the database's.
CREATE TABLE jobs (
    id                  uuid NOT NULL,
    kind                text COLLATE "C" NOT NULL,
    queue               resource_name NOT NULL,
    state               text COLLATE "C" NOT NULL DEFAULT 'queued',
    request             jsonb NOT NULL,
    -- Who asked, with what the token allowed: the job acts in that name.
    caller              jsonb NOT NULL,
    owner               text COLLATE "C" NOT NULL,
    visibility          visibility NOT NULL DEFAULT 'private',
    progress            jsonb,
    attempts            int NOT NULL DEFAULT 0,
    max_attempts        int NOT NULL,
    error               jsonb,
    result              jsonb,
    claim               uuid,
    worker              text,
    heartbeat_at        timestamptz,
    cancel_requested_at timestamptz,
    deadline            timestamptz,
    webhook_url         text,
    webhook_secret      text,
    last_event          bigint NOT NULL DEFAULT 0,
    created_at          timestamptz NOT NULL DEFAULT now(),
    started_at          timestamptz,
    finished_at         timestamptz,
    CONSTRAINT jobs_pkey PRIMARY KEY (id),
    CONSTRAINT jobs_kind_valid CHECK (kind IN ('zoo_build', 'train', 'import', 'evaluate', 'generate')),
    CONSTRAINT jobs_state_valid CHECK (state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    CONSTRAINT jobs_claim_valid CHECK ((state = 'running') = (claim IS NOT NULL)),
    CONSTRAINT jobs_finished_valid CHECK ((state IN ('succeeded', 'failed', 'cancelled')) = (finished_at IS NOT NULL)),
    CONSTRAINT jobs_attempts_valid CHECK (attempts >= 0),
    CONSTRAINT jobs_max_attempts_valid CHECK (max_attempts BETWEEN 1 AND 100),
    CONSTRAINT jobs_deadline_valid CHECK (deadline > created_at),
    CONSTRAINT jobs_webhook_valid CHECK ((webhook_url IS NULL) = (webhook_secret IS NULL))
);
CREATE INDEX jobs_created_at_idx ON jobs (created_at, id);
CREATE INDEX jobs_owner_idx ON jobs (owner, created_at, id);
CREATE INDEX jobs_state_idx ON jobs (state, created_at, id);
CREATE INDEX jobs_kind_idx ON jobs (kind, created_at, id);
CREATE INDEX jobs_unfinished_idx ON jobs (id) WHERE finished_at IS NULL;

-- Numbered under the lock of the job's row: the order of the numbers is the order of the commits, without gaps.
CREATE TABLE job_events (
    job_id   uuid NOT NULL,
    sequence bigint NOT NULL,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    type     text COLLATE "C" NOT NULL,
    data     jsonb NOT NULL,
    CONSTRAINT job_events_pkey PRIMARY KEY (job_id, sequence),
    CONSTRAINT job_events_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE
);

-- What an attempt has kept for the next one. Gone when the job has ended.
CREATE TABLE job_snapshots (
    job_id          uuid NOT NULL,
    name            text COLLATE "C" NOT NULL,
    artifact_digest digest NOT NULL,
    updated_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT job_snapshots_pkey PRIMARY KEY (job_id, name),
    CONSTRAINT job_snapshots_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE,
    CONSTRAINT job_snapshots_artifact_digest_fkey FOREIGN KEY (artifact_digest) REFERENCES artifacts (digest)
);
CREATE INDEX job_snapshots_artifact_digest_idx ON job_snapshots (artifact_digest);

-- Each try of telling a webhook that its job has ended; status is what it answered, error why it did not.
CREATE TABLE job_deliveries (
    job_id  uuid NOT NULL,
    attempt int NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    status  int,
    error   text,
    CONSTRAINT job_deliveries_pkey PRIMARY KEY (job_id, attempt),
    CONSTRAINT job_deliveries_attempt_valid CHECK (attempt > 0),
    CONSTRAINT job_deliveries_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs (id) ON DELETE CASCADE
);

-- What the samples of a generation measured on labelled data, once they were asked again.
CREATE TABLE evaluations (
    id             uuid NOT NULL,
    generation_id  uuid NOT NULL,
    dataset_id     uuid,
    dataset_digest digest NOT NULL,
    classes        text[] NOT NULL,
    results        jsonb NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT evaluations_pkey PRIMARY KEY (id),
    CONSTRAINT evaluations_generation_id_fkey FOREIGN KEY (generation_id) REFERENCES generations (id) ON DELETE CASCADE,
    CONSTRAINT evaluations_dataset_id_fkey FOREIGN KEY (dataset_id) REFERENCES datasets (id) ON DELETE SET NULL
);
CREATE INDEX evaluations_generation_id_idx ON evaluations (generation_id, created_at, id);
CREATE INDEX evaluations_dataset_id_idx ON evaluations (dataset_id);
