"""Data sets: labelled images for training and evaluation."""
