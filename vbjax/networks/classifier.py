"""A small classifier of images, trained where it is needed: its features measure samples, its classes count them.

`fit_classifier` takes seconds on small images; nothing is downloaded and nothing kept, and the same key gives the same
classifier.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from vbjax import datasets, training
from vbjax.networks.convolutional import ConvEncoderBody
from vbjax.types import PRNGKey


class Judgement(NamedTuple):
    """What a classifier says of one image. features: before the last layer, `(h,)`; logits: `(classes,)`."""

    features: Float[Array, " h"]
    logits: Float[Array, " classes"]


class Classifier(nn.Module):
    """An image -> its features and logits."""

    body: nn.Module
    classes: int

    @nn.compact
    def __call__(self, x: Array, key: PRNGKey | None = None) -> Judgement:
        """key: draws the dropout masks; None switches dropout off."""
        features = self.body(x, key)
        return Judgement(features, nn.Dense(self.classes, name="logits")(features))


Judge = Callable[[Array], Judgement]
"""Images `(n, *shape)`, with pixels as in the training set -> judgements on a leading axis."""


def fit_classifier(
    key: PRNGKey,
    images: Array,
    labels: Int[Array, " n"],
    *,
    classes: int,
    white: int,
    width: int = 64,
    steps: int = 1000,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
) -> Judge:
    """Train convolutions and a layer of `width` features on images `(n, rows, columns)` with labels `(n,)`.

    white: the largest pixel. The learning rate falls to zero along a cosine. Raises ValueError for bad numbers.
    """
    key_init, key_data, key_train = jax.random.split(key, 3)
    body = ConvEncoderBody(images.shape[1:], (16, 32), hidden=(width,), dropout=0.1)
    model = Classifier(body, classes)

    def scaled(image):
        return 2 * image.astype(jnp.float32) / white - 1

    def cross_entropy(key, params, image, label):
        judgement = cast(Judgement, model.apply(params, scaled(image), key))
        return -jax.nn.log_softmax(judgement.logits)[label]

    def loss(key, params, batch):
        keys = jax.random.split(key, batch[0].shape[0])
        return jax.vmap(cross_entropy, (0, None, 0, 0))(keys, params, *batch).mean(), {}

    optimizer = training.make_optimizer(learning_rate=learning_rate, schedule="cosine", steps=steps)
    state = training.init_state(jax.jit(model.init)(key_init, jnp.zeros(images.shape[1:])), optimizer)
    batch = datasets.batches(key_data, (images, labels), batch_size)
    params = training.fit(key_train, loss, batch, optimizer, state, steps=steps, chunk=steps).params
    judge = jax.jit(
        lambda params, images: jax.lax.map(lambda x: model.apply(params, scaled(x)), images, batch_size=256)
    )
    return lambda images: judge(params, images)


def accuracy(judgements: Judgement, labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """1 where the judged class is the label's, 0 elsewhere."""
    return (judgements.logits.argmax(-1) == labels).astype(judgements.logits.dtype)
