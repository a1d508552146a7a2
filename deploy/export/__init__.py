"""Exporting: graph passes, TensorRT builders, proof and publication."""
