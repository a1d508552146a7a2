"""Trials of the promises for damaged files, killed processes and hostile settings: ``python -m scripts.reliability``.

``mutate`` damages bytes; ``data_formats`` and ``model_formats`` have a sample and a reader of every format, ``mutants``
reads the damaged samples; ``kills`` kills processes while they write; ``cases`` tries the command line; ``page`` tables
the outcomes.
"""
