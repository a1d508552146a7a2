"""Triton kernels, one file an op; imported as ``ovsdino.kernels``.

The folder lies outside ``ovsdino/`` and its parent has no ``__init__.py``: a well-known PyPI package is called
``kernels``, and a regular package of that name at the repository root would shadow it.
"""
