"""Augmentation: recipes with a host half (tf.data) and a device half (jit)."""
