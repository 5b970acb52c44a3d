-- A purged generator leaves its counter: when the name comes back, its numbers go on.
CREATE TABLE retired_generators (
    name         resource_name NOT NULL,
    last_version int NOT NULL,
    CONSTRAINT retired_generators_pkey PRIMARY KEY (name)
);

-- A removed alias is a move to nowhere.
ALTER TABLE alias_history ALTER COLUMN version DROP NOT NULL;
