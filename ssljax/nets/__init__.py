"""Flax Linen networks: encoders and heads."""
