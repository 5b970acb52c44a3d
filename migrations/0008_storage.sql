-- What gc needs to know, and to find quickly.

-- When an upload last gave these bytes. Whoever uploads refers to them soon: until the grace period is over they are
-- left alone, also when they were there long before.
ALTER TABLE artifacts ADD COLUMN touched_at timestamptz NOT NULL DEFAULT now();

-- Every column that refers to artifacts has an index: deleting an artifact looks into each of them.
CREATE INDEX architectures_forward_artifact_idx ON architectures (forward_artifact) WHERE forward_artifact IS NOT NULL;
CREATE INDEX datasets_artifact_digest_idx ON datasets (artifact_digest);
CREATE INDEX generator_versions_artifact_digest_idx ON generator_versions (artifact_digest);

-- Uploads in parts that a bucket has under way. A bucket keeps (and bills) the parts of one that was cut off, and does
-- not list them with its objects.
CREATE TABLE uploads (
    key        text COLLATE "C" NOT NULL,
    upload_id  text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT uploads_pkey PRIMARY KEY (key)
);

-- The function compares what may not change by itself. With a condition on whole rows, which now have a generated
-- column, a dump of the database could not be restored: PostgreSQL refuses to create such a trigger.
DROP TRIGGER generator_versions_immutable ON generator_versions;
CREATE TRIGGER generator_versions_immutable BEFORE UPDATE ON generator_versions
    FOR EACH ROW EXECUTE FUNCTION generator_versions_refuse_update();
