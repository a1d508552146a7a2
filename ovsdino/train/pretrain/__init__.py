"""Distillation before training: the backbone and the text tower."""
