"""Export and quantize models for edge devices; imported as ``ovsdino.deploy``."""
