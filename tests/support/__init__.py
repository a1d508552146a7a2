"""Helpers of several folders of tests: small models, graphs, weights and data sets.

A helper of one folder stays in that folder.
"""
