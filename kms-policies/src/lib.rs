//! KMS key policies: templates as data, renderer and evaluator.
