"""Single studies, each with a JSON in benchmarks/results."""
