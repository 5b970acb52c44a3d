-- What every resource has in common: who owns it, who may see it, what it is about, and whether it was deleted.
-- A deleted row stays until it is purged: it can be restored, and what was made from it keeps its lineage.

-- array_to_string is only stable, for the sake of types other than text; a generated column needs an immutable one.
CREATE FUNCTION search_text(name text, tags text[], description text) RETURNS tsvector
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN setweight(to_tsvector('simple', translate(coalesce(name, ''), '-_', '  ')), 'A')
        || setweight(to_tsvector('simple', coalesce(name, '')), 'A')
        || setweight(array_to_tsvector(array_remove(array_remove(tags, NULL), '')), 'B')
        || setweight(to_tsvector('simple', coalesce(description, '')), 'C');

CREATE FUNCTION tags_valid(tags text[]) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN cardinality(tags) <= 50
        AND NOT EXISTS (SELECT FROM unnest(tags) t WHERE t IS NULL OR t !~ '^[a-z0-9][a-z0-9_.:/-]{0,99}$');

CREATE DOMAIN tag_list AS text[] DEFAULT '{}'
    CONSTRAINT tag_list_valid CHECK (tags_valid(VALUE));
CREATE DOMAIN visibility AS text DEFAULT 'public'
    CONSTRAINT visibility_valid CHECK (VALUE IN ('public', 'private'));
CREATE DOMAIN description AS text DEFAULT ''
    CONSTRAINT description_valid CHECK (length(VALUE) <= 10000);

ALTER TABLE generators DROP CONSTRAINT generators_description_valid;
ALTER TABLE generators ALTER COLUMN description TYPE description;

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['architectures', 'datasets', 'zoos', 'generators', 'generations'] LOOP
        EXECUTE format('ALTER TABLE %I ADD COLUMN owner text COLLATE "C" NOT NULL DEFAULT ''system'',
            ADD COLUMN visibility visibility NOT NULL DEFAULT ''public'',
            ADD COLUMN tags tag_list NOT NULL DEFAULT ''{}'',
            ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now(),
            ADD COLUMN deleted_at timestamptz', t);
        IF t <> 'generators' THEN
            EXECUTE format('ALTER TABLE %I ADD COLUMN description description NOT NULL DEFAULT ''''', t);
        END IF;
        IF t = 'generations' THEN
            EXECUTE format('ALTER TABLE %I ADD COLUMN search tsvector NOT NULL
                GENERATED ALWAYS AS (search_text('''', tags, description)) STORED', t);
        ELSE
            EXECUTE format('ALTER TABLE %I ADD COLUMN search tsvector NOT NULL
                GENERATED ALWAYS AS (search_text(name, tags, description)) STORED', t);
        END IF;
        EXECUTE format('CREATE INDEX %I ON %I USING gin (search)', t || '_search_idx', t);
        EXECUTE format('CREATE INDEX %I ON %I USING gin ((tags::text[]))', t || '_tags_idx', t);
        EXECUTE format('CREATE INDEX %I ON %I (owner, created_at, id)', t || '_owner_idx', t);
    END LOOP;
END $$;

-- Checkpoints and versions are seen by whoever sees their zoo or generator: they have no owner of their own to check.
ALTER TABLE checkpoints
    ADD COLUMN zoo_id uuid,
    ADD COLUMN tags tag_list NOT NULL DEFAULT '{}',
    ADD COLUMN description description NOT NULL DEFAULT '',
    ADD COLUMN deleted_at timestamptz;
UPDATE checkpoints SET zoo_id = runs.zoo_id FROM runs WHERE runs.id = run_id;
ALTER TABLE checkpoints
    ALTER COLUMN zoo_id SET NOT NULL,
    ADD CONSTRAINT checkpoints_zoo_id_fkey FOREIGN KEY (zoo_id) REFERENCES zoos (id),
    ADD COLUMN search tsvector NOT NULL GENERATED ALWAYS AS (search_text('', tags, description)) STORED;
CREATE INDEX checkpoints_zoo_id_idx ON checkpoints (zoo_id, created_at, id);
CREATE INDEX checkpoints_search_idx ON checkpoints USING gin (search);
CREATE INDEX checkpoints_tags_idx ON checkpoints USING gin ((tags::text[]));

ALTER TABLE generator_versions
    ADD COLUMN tags tag_list NOT NULL DEFAULT '{}',
    ADD COLUMN description description NOT NULL DEFAULT '',
    ADD COLUMN yanked_at timestamptz,
    ADD COLUMN yank_reason text NOT NULL DEFAULT '',
    ADD COLUMN search tsvector NOT NULL GENERATED ALWAYS AS (search_text('', tags, description)) STORED;

-- What a version is never changes; whether it is recommended, and what is said about it, may.
CREATE OR REPLACE FUNCTION generator_versions_refuse_update() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (to_jsonb(OLD) - '{tags,description,yanked_at,yank_reason,search}'::text[])
        IS DISTINCT FROM (to_jsonb(NEW) - '{tags,description,yanked_at,yank_reason,search}'::text[]) THEN
        RAISE EXCEPTION 'a published generator version never changes'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'generator_versions_immutable';
    END IF;
    RETURN NEW;
END $$;

ALTER TABLE alias_history ADD COLUMN actor text COLLATE "C" NOT NULL DEFAULT 'system';

-- Who did what. Written in the transaction of the change itself, so neither is there without the other.
CREATE TABLE audit (
    id          uuid NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor       text COLLATE "C" NOT NULL,
    token_id    uuid,
    action      text COLLATE "C" NOT NULL,
    resource    text COLLATE "C" NOT NULL,
    resource_id text COLLATE "C" NOT NULL,
    before      jsonb,
    after       jsonb,
    request_id  text,
    address     text,
    CONSTRAINT audit_pkey PRIMARY KEY (id)
);
CREATE INDEX audit_at_idx ON audit (at, id);
CREATE INDEX audit_resource_idx ON audit (resource, resource_id, at, id);
CREATE INDEX audit_actor_idx ON audit (actor, at, id);

-- How many runs and checkpoints a zoo has is on every list of zoos: counted once when they come and go, by statement.
ALTER TABLE zoos
    ADD COLUMN runs bigint NOT NULL DEFAULT 0,
    ADD COLUMN checkpoints bigint NOT NULL DEFAULT 0;
UPDATE zoos SET
    runs = (SELECT count(*) FROM runs r WHERE r.zoo_id = zoos.id),
    checkpoints = (SELECT count(*) FROM checkpoints c WHERE c.zoo_id = zoos.id);

CREATE FUNCTION zoos_count() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    sign int := CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END;
BEGIN
    EXECUTE format('UPDATE zoos SET %1$I = zoos.%1$I + $1 * n.count
        FROM (SELECT zoo_id, count(*) AS count FROM changed GROUP BY zoo_id ORDER BY zoo_id) n
        WHERE zoos.id = n.zoo_id', TG_TABLE_NAME) USING sign;
    RETURN NULL;
END $$;
CREATE TRIGGER runs_counted AFTER INSERT ON runs REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION zoos_count();
CREATE TRIGGER runs_uncounted AFTER DELETE ON runs REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION zoos_count();
CREATE TRIGGER checkpoints_counted AFTER INSERT ON checkpoints REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION zoos_count();
CREATE TRIGGER checkpoints_uncounted AFTER DELETE ON checkpoints REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION zoos_count();

-- Orders of the lists: (expression, id) for each.
CREATE INDEX architectures_created_at_idx ON architectures (created_at, id);
CREATE INDEX zoos_created_at_idx ON zoos (created_at, id);
CREATE INDEX generators_created_at_idx ON generators (created_at, id);
CREATE INDEX datasets_name_id_idx ON datasets (name, id);
CREATE INDEX datasets_examples_idx ON datasets (examples, id);
CREATE INDEX checkpoints_accuracy_idx ON checkpoints (accuracy, id);
CREATE INDEX checkpoints_zoo_accuracy_idx ON checkpoints (zoo_id, accuracy, id);
