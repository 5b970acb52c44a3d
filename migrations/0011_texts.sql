-- Datasets of the modality text: one text, without shape and without classes.
ALTER TABLE datasets
    DROP CONSTRAINT datasets_shape_valid,
    DROP CONSTRAINT datasets_class_names_valid,
    ADD CONSTRAINT datasets_shape_valid CHECK (
        (modality = 'text' AND cardinality(shape) = 0) OR
        (modality <> 'text' AND cardinality(shape) > 0 AND 0 < ALL (shape))),
    ADD CONSTRAINT datasets_class_names_valid CHECK (
        (modality = 'text' AND cardinality(class_names) = 0) OR
        (modality <> 'text' AND cardinality(class_names) >= 2)),
    ADD CONSTRAINT datasets_text_valid CHECK (modality <> 'text' OR examples = 1);
