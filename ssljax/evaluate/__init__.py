"""Measures of frozen features: kNN, linear probes, collapse; and the table comparing encoders."""
