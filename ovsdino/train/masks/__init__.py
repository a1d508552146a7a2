"""Pseudo-masks and SAM's embeddings, made before training."""
