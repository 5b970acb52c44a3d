-- Answers of POSTs that carried an Idempotency-Key, so that a repeated one gets the same answer and does nothing.
-- A row is first a claim (no status), held while `leased_until` is ahead, and then the answer, which is written in the
-- transaction of the change that it tells of.
CREATE TABLE idempotency (
    -- Whose key it is: a token, or a principal without one.
    principal    text COLLATE "C" NOT NULL,
    -- SHA-256 of the key. The key itself is not kept: it is what the body is sealed with.
    key_hash     bytea NOT NULL,
    -- Which attempt holds the key; an attempt that lost its lease no longer matches.
    claim_id     uuid NOT NULL,
    -- Method, path and query.
    target       text COLLATE "C" NOT NULL,
    leased_until timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    body_sha256  bytea,
    status       smallint,
    headers      jsonb,
    answer       bytea,
    CONSTRAINT idempotency_pkey PRIMARY KEY (principal, key_hash),
    CONSTRAINT idempotency_answer_whole CHECK (num_nulls(body_sha256, status, headers, answer) IN (0, 4))
);
CREATE INDEX idempotency_expires_idx ON idempotency (expires_at);
