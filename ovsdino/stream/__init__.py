"""Segment live video: cameras and files in, labels and overlays out."""
