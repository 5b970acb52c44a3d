-- Jobs that search a language model's layers (Algorithm 1).
ALTER TABLE jobs
    DROP CONSTRAINT jobs_kind_valid,
    ADD CONSTRAINT jobs_kind_valid
        CHECK (kind IN ('zoo_build', 'train', 'import', 'evaluate', 'generate', 'search'));
