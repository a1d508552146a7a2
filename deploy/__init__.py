"""Export, quantisation and the torch-free runtime for edge devices; imported as ``ovsdino.deploy``."""
