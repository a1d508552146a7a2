"""Training on pixel labels."""
