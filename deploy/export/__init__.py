"""Export a model: trace, rewrite, build, prove and publish."""
