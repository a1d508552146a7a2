"""Rows for words of one's own, learned from a few labelled images."""
