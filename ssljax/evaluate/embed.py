"""A trained method as a function from images to features."""

import jax
from jaxtyping import Array, Float, UInt8

from ssljax.core import Method, Tree
from ssljax.views.recipe import Recipe


def embedder(method: Method, recipe: Recipe, layer: str = 'pool'):
    """A function `(params, state, images) -> features`, in evaluation mode, to be put under jit.

    Args:
        method: whose `product` is the encoder.
        recipe: that says how its images are normalised.
        layer: which of the encoder's `features`; `pool` is the representation h.

    Returns:
        A function of uint8 images [n, h, w, c] to float32 features [n, d]. Layers that are maps are
        averaged over their positions.
    """
    encode = encoder(method, layer)

    def embed(params: Tree, state: Tree, images: UInt8[Array, 'n h w c']) -> Float[Array, 'n d']:
        return encode(params, state, recipe.normalize(images))

    return embed


def encoder(method: Method, layer: str = 'pool'):
    """As `embedder`, of images that the recipe has normalised already, such as its views."""

    def encode(params: Tree, state: Tree, images: Float[Array, 'n h w c']) -> Float[Array, 'n d']:
        module, variables = method.product(params, state)
        layers = module.apply(variables, images, train=False, method='features')
        if layer not in layers:
            raise ValueError(f'layer {layer!r} is not one of {", ".join(layers)}')
        features = layers[layer]
        return features.mean(axis=tuple(range(1, features.ndim - 1))).astype('float32')

    return encode


def jitted(method: Method, recipe: Recipe, params: Tree, state: Tree, layer: str = 'pool'):
    """`images -> features` with the weights held."""
    compiled = jax.jit(embedder(method, recipe, layer))
    return lambda images: compiled(params, state, images)
