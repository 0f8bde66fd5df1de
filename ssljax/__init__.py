"""Self-supervised pre-training in JAX/Flax, from a laptop to a pod."""

__version__ = '0.1.0'
