-- A sample need not be generated: it may be a checkpoint of the zoo, or a closed form of the request's examples.
ALTER TABLE samples
    ADD COLUMN origin text COLLATE "C" NOT NULL DEFAULT 'generated',
    -- What it was ranked by; NULL where samples are in the order of the noise.
    ADD COLUMN scores jsonb,
    -- The checkpoint that was retrieved. Purging that leaves the sample, whose weights are its own.
    ADD COLUMN checkpoint_id uuid,
    ADD CONSTRAINT samples_origin_valid CHECK (origin IN ('generated', 'retrieved', 'closed_form')),
    ADD CONSTRAINT samples_checkpoint_valid CHECK (checkpoint_id IS NULL OR origin = 'retrieved'),
    ADD CONSTRAINT samples_checkpoint_id_fkey FOREIGN KEY (checkpoint_id) REFERENCES checkpoints (id)
        ON DELETE SET NULL;
CREATE INDEX samples_checkpoint_id_idx ON samples (checkpoint_id) WHERE checkpoint_id IS NOT NULL;
