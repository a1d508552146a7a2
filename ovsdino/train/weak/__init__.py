"""Training on captions and pseudo-masks."""
