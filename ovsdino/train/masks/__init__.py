"""Pseudo-masks and SAM's targets, made before training."""
