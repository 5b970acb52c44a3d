-- Feature extractors: registered ONNX image encoders. A generator's bundle carries a copy of its own, so an extractor
-- may go without harm to the generators that were trained with it.
CREATE TABLE extractors (
    id              uuid NOT NULL,
    name            resource_name NOT NULL,
    spec            jsonb NOT NULL,
    dim             int NOT NULL,
    artifact_digest digest NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    owner           text COLLATE "C" NOT NULL DEFAULT 'system',
    visibility      visibility NOT NULL DEFAULT 'public',
    tags            tag_list NOT NULL DEFAULT '{}',
    description     description NOT NULL DEFAULT '',
    updated_at      timestamptz NOT NULL DEFAULT now(),
    deleted_at      timestamptz,
    search          tsvector NOT NULL GENERATED ALWAYS AS (search_text(name, tags, description)) STORED,
    CONSTRAINT extractors_pkey PRIMARY KEY (id),
    CONSTRAINT extractors_name_key UNIQUE (name),
    CONSTRAINT extractors_name_valid CHECK (name <> 'pixels'),
    CONSTRAINT extractors_dim_valid CHECK (dim > 0),
    CONSTRAINT extractors_artifact_digest_fkey FOREIGN KEY (artifact_digest) REFERENCES artifacts (digest)
);
CREATE INDEX extractors_created_at_idx ON extractors (created_at, id);
CREATE INDEX extractors_name_id_idx ON extractors (name, id);
CREATE INDEX extractors_search_idx ON extractors USING gin (search);
CREATE INDEX extractors_tags_idx ON extractors USING gin ((tags::text[]));
CREATE INDEX extractors_owner_idx ON extractors (owner, created_at, id);
CREATE INDEX extractors_artifact_digest_idx ON extractors (artifact_digest);

-- Versions differ in the dimension of their embeddings, and an HNSW index has one: where a version has many, it gets a
-- partial index of its own (registry::nearest makes it), and an exact scan serves the others.
CREATE INDEX embeddings_subject_idx ON embeddings (subject_kind, subject_id);
