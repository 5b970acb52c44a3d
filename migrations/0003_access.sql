-- Who may ask, and how much. A token's secret is not here, only its SHA-256: whoever reads the database cannot ask.
CREATE FUNCTION token_patterns_valid(patterns text[]) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN cardinality(patterns) <= 50
        AND NOT EXISTS (SELECT FROM unnest(patterns) p WHERE p IS NULL OR p !~ '^[a-z0-9_*-]{1,200}$');

CREATE TABLE tokens (
    id                      uuid NOT NULL,
    name                    text COLLATE "C" NOT NULL,
    prefix                  text COLLATE "C" NOT NULL,
    sha256                  bytea NOT NULL,
    owner                   text COLLATE "C" NOT NULL,
    scopes                  text[] NOT NULL,
    patterns                text[] NOT NULL DEFAULT '{}',
    samples_per_day         bigint,
    compute_seconds_per_day double precision,
    expires_at              timestamptz,
    last_used_at            timestamptz,
    created_at              timestamptz NOT NULL DEFAULT now(),
    revoked_at              timestamptz,
    CONSTRAINT tokens_pkey PRIMARY KEY (id),
    CONSTRAINT tokens_prefix_key UNIQUE (prefix),
    CONSTRAINT tokens_name_valid CHECK (name ~ '^[ -~]{1,100}$'),
    CONSTRAINT tokens_sha256_valid CHECK (length(sha256) = 32),
    CONSTRAINT tokens_owner_valid CHECK (owner ~ '^[A-Za-z0-9][A-Za-z0-9._@+-]{0,99}$'),
    CONSTRAINT tokens_scopes_valid
        CHECK (cardinality(scopes) > 0 AND scopes <@ ARRAY['read', 'generate', 'train', 'administer']),
    CONSTRAINT tokens_patterns_valid CHECK (token_patterns_valid(patterns)),
    -- An administrator makes tokens, so patterns would not hold them.
    CONSTRAINT tokens_administrator_valid CHECK (NOT ('administer' = ANY (scopes) AND cardinality(patterns) > 0)),
    CONSTRAINT tokens_samples_per_day_valid CHECK (samples_per_day >= 0),
    CONSTRAINT tokens_compute_seconds_per_day_valid
        CHECK (compute_seconds_per_day >= 0 AND compute_seconds_per_day < 'Infinity')
);
CREATE INDEX tokens_created_at_idx ON tokens (created_at, id);

-- What a token used on a day (UTC). A reservation adds to it before the work begins: sums never exceed a quota.
CREATE TABLE usage (
    token_id        uuid NOT NULL,
    day             date NOT NULL,
    samples         bigint NOT NULL DEFAULT 0,
    compute_seconds double precision NOT NULL DEFAULT 0,
    CONSTRAINT usage_pkey PRIMARY KEY (token_id, day),
    CONSTRAINT usage_token_id_fkey FOREIGN KEY (token_id) REFERENCES tokens (id),
    CONSTRAINT usage_samples_valid CHECK (samples >= 0),
    CONSTRAINT usage_compute_seconds_valid CHECK (compute_seconds >= 0)
);
