"""Self-supervised pre-training in JAX/Flax, from a laptop to a pod."""

from ssljax.gpu import avoid_crash

__version__ = '0.1.0'

avoid_crash()
