"""The class-conditional VAE as callables, the sum over its classes, and the semi-supervised M2 bound.

A `CVAE` at one class is a `VAE` (`given`), so all bounds, evaluations and pictures of VAEs serve it. Its prior p(z)
is the same for every class: z holds what the label leaves open, the style. `class_evidence` sums over the classes,
which compares it with unconditional models on the same x, and classifies by Bayes' rule.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int

from vbjax.distributions import Categorical, Distribution
from vbjax.distributions.discrete import expected_log
from vbjax.evaluation import Evidence, importance_weighted_evidence
from vbjax.types import PRNGKey, Scalar
from vbjax.vae import VAE, elbo

Label = int | Int[Array, ""]


class CVAE(NamedTuple):
    """prior: p(z), independent of the class. encode: (x, y) -> q(z|x,y). decode: (z, y) -> p(x|z,y).

    One example at a time. Source: Kingma et al. (2014), model M2 with the label observed.
    """

    prior: Distribution
    encode: Callable[[Array, Label], Distribution]
    decode: Callable[[Array, Label], Distribution]


def given(cvae: CVAE, y: Label) -> VAE:
    """The VAE of one class: its evidence is log p(x|y)."""
    return VAE(cvae.prior, lambda x: cvae.encode(x, y), lambda z: cvae.decode(z, y))


class ClassEvidence(NamedTuple):
    """log p(x|y) of n examples under each of c classes. nats: `(n, c)`; variance: of these over the random weights;
    log_prior: log p(y), `(c,)`.
    """

    nats: Float[Array, "n c"]
    variance: Float[Array, "n c"]
    log_prior: Float[Array, " c"]

    def log_posterior(self) -> Float[Array, "n c"]:
        """log p(y|x) by Bayes' rule; its largest entry is the Bayes classifier."""
        return jax.nn.log_softmax(self.nats + self.log_prior[None])

    def marginal(self) -> Evidence:
        """log p(x) = log Σ_y p(y) p(x|y): the number of a model that is not told the class."""
        share = jnp.exp(self.log_posterior())
        return Evidence(logsumexp(self.nats + self.log_prior[None], 1), jnp.sum(share**2 * self.variance, 1))

    def at(self, labels: Int[Array, " n"]) -> Evidence:
        """log p(x|y) at the class of each example."""
        rows = jnp.arange(labels.shape[0])
        return Evidence(self.nats[rows, labels], self.variance[rows, labels])


def class_evidence(
    key: PRNGKey, cvae: CVAE, class_prior: Categorical, images: Array, *, samples: int, batch_size: int = 16
) -> ClassEvidence:
    """log p(x|y) of images `(n, *event)` under every class, by the IWAE bound with K draws of q(z|x,y).

    Lower bounds in expectation, and so is `marginal`. One class after another; memory and ValueError as
    `evaluation.importance_weighted_nll`.
    """

    def of(example):
        key, y = example
        return importance_weighted_evidence(key, given(cvae, y), images, samples=samples, batch_size=batch_size)

    log_prior = class_prior.log_probs
    classes = log_prior.shape[0]
    evidence = jax.lax.map(of, (jax.random.split(key, classes), jnp.arange(classes)))
    return ClassEvidence(evidence.nats.T, evidence.variance.T, log_prior)


class M2(NamedTuple):
    """p(y) p(z) p(x|z,y), with q(y|x) q(z|x,y) where y is not seen. classify: x -> q(y|x)."""

    cvae: CVAE
    class_prior: Categorical
    classify: Callable[[Array], Categorical]


class LabelledBound(NamedTuple):
    """A lower bound on log p(x, y) by its terms, in nats: `total = reconstruction - kl + log_prior`."""

    reconstruction: Scalar
    kl: Scalar
    log_prior: Scalar

    @property
    def total(self) -> Array:
        """The bound itself."""
        return self.reconstruction - self.kl + self.log_prior


class UnlabelledBound(NamedTuple):
    """A lower bound on log p(x) by its terms, in nats: `total = labelled + entropy`.

    labelled: the mean over q(y|x) of the labelled bounds; entropy: of q(y|x).
    """

    labelled: Scalar
    entropy: Scalar

    @property
    def total(self) -> Array:
        """The bound itself."""
        return self.labelled + self.entropy


def labelled_bound(key: PRNGKey, m2: M2, x: Array, y: Label) -> LabelledBound:
    """A one-draw estimate of the bound on log p(x, y), the KL exact (Kingma et al. 2014, eq. 6)."""
    terms = elbo(key, given(m2.cvae, y), x)
    return LabelledBound(terms.reconstruction, terms.kl, m2.class_prior.log_probs[y])


def unlabelled_bound(key: PRNGKey, m2: M2, x: Array) -> UnlabelledBound:
    """An estimate of the bound on log p(x): one draw of z for each class, the sum over classes exact.

    Source: Kingma et al. (2014), eq. 7.
    """
    q = m2.classify(x)
    classes = q.logits.shape[0]
    keys = jax.random.split(key, classes)
    labelled = jax.vmap(lambda key, y: labelled_bound(key, m2, x, y).total)(keys, jnp.arange(classes))
    return over_classes(q, labelled)


def over_classes(q: Categorical, labelled: Float[Array, " c"]) -> UnlabelledBound:
    """Σ_y q(y) ℒ(x, y) + H(q) by enumeration, for bounds or values ℒ of log p(x, y) in nats.

    Equal to log Σ_y exp ℒ(x, y) at q ∝ exp ℒ, and below it elsewhere.
    """
    return UnlabelledBound(expected_log(q.probs, labelled), q.entropy())


def nearest_label(
    known: Float[Array, "m *pixels"], labels: Int[Array, " m"], images: Float[Array, "n *pixels"]
) -> Int[Array, " n"]:
    """The label of the known image at the least squared distance: what a learned classifier should beat.

    Memory grows with m × n.
    """
    known, images = known.reshape(known.shape[0], -1), images.reshape(images.shape[0], -1)
    # without the images' own squares, which change no order
    return labels[jnp.argmin(jnp.sum(known**2, 1)[None] - 2 * images @ known.T, 1)]
