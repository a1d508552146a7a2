"""Quantization: calibration, SmoothQuant, Q/DQ insertion, scoring."""
