"""DeepCluster: deep clustering for unsupervised learning of visual features.

Every epoch the features of all images are clustered by k-means, and then the network learns to
tell to which cluster an image belongs, as if clusters were classes. f is kept. Caron, Bojanowski,
Joulin, Douze 2018, arXiv 1807.05520.

Views: a random crop and flip (`CropFlip`), and for the features the view for evaluation. Where
images have colours, `encoder=Sobel(...)` hides them: clusters would follow them otherwise.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ssljax.core import Batch, Method, Now, Run, Signature, Sweep, Tree
from ssljax.losses import contrastive
from ssljax.losses.classification import cross_entropy
from ssljax.methods.kmeans import kmeans, mutual_information
from ssljax.nets.heads import Classifier
from ssljax.nets.resnet import ResNet
from ssljax.nets.sobel import Sobel


@dataclasses.dataclass(frozen=True)
class DeepCluster(Method):
    """DeepCluster, of any encoder and with all of its data clustered at once.

    State: `assignment`, the cluster of every image, int32 [examples]; `weight`, for every cluster
    what an image of it weighs; `agreement`, the mutual information of the last two clusterings
    (NMI); `empty`, the share of clusters that are.

    The authors draw a cluster, then one of its images. Here every image comes once an epoch and
    weighs 1 / (clusters x size of its cluster) instead: the same expectation, so that a batch
    stays a function of the seed and the step.

    Attributes:
        encoder: f. Paper: AlexNet or VGG-16, behind Sobel filters; features are those of its last
            hidden layer.
        clusters: k. Paper: 10,000 for ImageNet's 1,000 classes.
        components: the principal components that features are reduced to and whitened in. Paper:
            256. As many as features have, if that is less.
        iterations: of k-means. Paper: 20.
        every: epochs from one clustering to the next. Paper: 1.
    """

    mean_over_examples: ClassVar[bool] = True

    encoder: nn.Module = dataclasses.field(default_factory=lambda: Sobel(ResNet()))
    clusters: int = 10_000
    components: int = 256
    iterations: int = 20
    every: float = 1.0

    def check(self, data: Signature, run: Run) -> None:
        """Raise ValueError if the views are missing or a number does not fit the data."""
        if 'image' not in dict(data.views):
            raise ValueError("DeepCluster needs views named 'image'; use a recipe such as CropFlip")
        if not 2 <= self.clusters <= data.examples:
            raise ValueError(
                f'{data.examples} images cannot be put into {self.clusters} clusters; use '
                f'--method.clusters from 2 to {data.examples}, about 10 for each class expected'
            )
        if self.components < 1 or self.iterations < 1:
            raise ValueError(
                f'components is {self.components} and iterations {self.iterations}; both must be '
                'at least 1'
            )
        if self.every <= 0:
            raise ValueError(f'every is {self.every} epochs; it must be above 0, such as 1')

    def init(self, key: PRNGKeyArray, batch: Batch, run: Run) -> tuple[Tree, Tree]:
        """Fresh encoder and classifier; until the first `refresh` all images are of one cluster."""
        k_encoder, k_head = jax.random.split(key)
        h, f = self.encoder.init_with_output(k_encoder, batch['image'][:, 0], train=False)
        g = self._head.init(k_head, h)
        return {'encoder': f['params'], 'head': g['params']}, {
            'stats': {'encoder': f.get('batch_stats', {})},
            'assignment': jnp.zeros(run.examples, jnp.int32),
            'weight': jnp.ones(self.clusters, jnp.float32),
            'agreement': jnp.zeros((), jnp.float32),
            'empty': jnp.zeros((), jnp.float32),
        }

    def forward(
        self, params: Tree, state: Tree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Tree, Tree]:
        """Scores of every view for all clusters; which images they are of travels along."""
        n = batch['image'].shape[0]
        x = rearrange(batch['image'], 'n v h w c -> (n v) h w c')
        f = {'params': params['encoder'], 'batch_stats': state['stats']['encoder']}
        h, f = self.encoder.apply(f, x, train=True, mutable=['batch_stats'])
        scores = self._head.apply({'params': params['head']}, h)
        outputs = {'scores': rearrange(scores, '(n v) k -> n v k', n=n), 'index': batch['index']}
        return outputs, {'encoder': f.get('batch_stats', {})}

    def objective(self, params: Tree, outputs: Tree, state: Tree, now: Now):
        """Cross-entropy with the clusters as classes (equation 1), all clusters alike."""
        scores = outputs['scores']
        cluster = state['assignment'][outputs['index']][:, None]
        labels = jnp.broadcast_to(cluster, scores.shape[:2])
        costs = cross_entropy(scores, labels)
        weight = jax.lax.stop_gradient(state['weight'])[cluster]
        loss = jnp.mean(weight * costs)
        return loss, (
            state,
            {
                'accuracy': jnp.mean(jnp.argmax(scores, axis=-1) == labels),
                'agreement': state['agreement'],
                'empty_clusters': state['empty'],
            },
        )

    def refresh_every(self, run: Run) -> int:
        """So many epochs, in steps."""
        return max(1, round(self.every * run.steps_per_epoch))

    def resets(self) -> tuple[str, ...]:
        """The classifier, which is another one after each clustering."""
        return ('^head/',)

    def refresh(self, params: Tree, state: Tree, now: Now, sweep: Sweep) -> tuple[Tree, Tree]:
        """Clusters all images, and gives them a classifier that knows nothing of the last one.

        k-means starts from other images each time: the names of clusters mean nothing from one
        time to the next.
        """
        k_means, k_head = jax.random.split(now.key)
        features = sweep(self.features)
        found = kmeans(
            k_means,
            contrastive.unit(whitened(features, self.components)),
            clusters=self.clusters,
            iterations=self.iterations,
        )
        weight = cluster_weights(found.assignment, self.clusters)
        head = self._head.init(k_head, jnp.zeros((1, features.shape[1]), features.dtype))
        as_was = lambda new, old: jnp.asarray(new).astype(old.dtype)
        params = {**params, 'head': jax.tree.map(as_was, head['params'], params['head'])}
        agreement = mutual_information(state['assignment'], found.assignment)
        new = {
            'assignment': found.assignment,
            'weight': weight,
            'agreement': agreement,
            'empty': jnp.mean(weight == 0),
        }
        return params, {**state, **{name: as_was(x, state[name]) for name, x in new.items()}}

    def features(
        self, params: Tree, state: Tree, image: Float[Array, 'n h w c']
    ) -> Float[Array, 'n d']:
        """What is clustered: f of images as they are, by running statistics."""
        f = {'params': params['encoder'], 'batch_stats': state['stats']['encoder']}
        return self.encoder.apply(f, image, train=False)

    def product(self, params: Tree, state: Tree) -> tuple[nn.Module, Tree]:
        """f, at its running statistics."""
        return self.encoder, {
            'params': params['encoder'],
            'batch_stats': state['stats']['encoder'],
        }

    def smoke(self) -> 'DeepCluster':
        """The same method for the few images of `made_images`."""
        return dataclasses.replace(self, clusters=min(self.clusters, 8))

    @property
    def _head(self) -> Classifier:
        return Classifier(self.clusters)


def cluster_weights(assignment: Int[Array, 'n'], clusters: int) -> Float[Array, 'clusters']:
    """What an image weighs in the mean over all images that is one over clusters.

    n / (clusters in use x size of its cluster), 0 for clusters that are empty: the n weights sum
    to n, and to the same in every cluster.
    """
    sizes = jnp.bincount(assignment, length=clusters)
    in_use = sizes > 0
    return jnp.where(in_use, len(assignment) / (in_use.sum() * jnp.maximum(sizes, 1)), 0)


@functools.partial(jax.jit, static_argnames='components')
def whitened(x: Float[Array, 'n d'], components: int) -> Float[Array, 'n p']:
    """The principal components of the rows, each scaled to variance 1.

    Directions in which the rows do not vary, beyond rounding, become 0 instead of being blown up.

    Args:
        x: features.
        components: how many of the largest are kept; at most all d.
    """
    x = x - jnp.mean(x, axis=0)
    covariance = jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST) / len(x)
    variances, directions = jnp.linalg.eigh(covariance)  # in rising order
    variances, directions = variances[::-1][:components], directions[:, ::-1][:, :components]
    varies = variances > x.shape[1] * jnp.finfo(x.dtype).eps * variances[0]
    scales = jnp.where(varies, jax.lax.rsqrt(jnp.where(varies, variances, 1)), 0)
    return jnp.matmul(x, directions * scales, precision=jax.lax.Precision.HIGHEST)
