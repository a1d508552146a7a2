"""Quantize a graph: calibration, SmoothQuant, Q/DQ insertion, scores."""
