"""Benchmarks; run the scripts from a checkout."""
