"""Families of distributions as pytrees: `sample`, `log_prob`, moments, entropy, support, reparameterisation, nodes.

One object is the law of *one event*; its array fields are the parameters and the leaves of a pytree, so a law can
be a model's output, a gradient, or an optimiser's target. Batches come from `jax.vmap`. Parameters are validated
when you build the law, by name. Read `family` for the interface, `continuous` and `gamma` for the reparameterisations.
"""

from vbjax.distributions.autoregressive import Autoregressive
from vbjax.distributions.compound import Copies, Joint, Mixture
from vbjax.distributions.continuous import Laplace, Logistic, LogNormal, MultivariateNormal, Normal, Uniform
from vbjax.distributions.continuous_bernoulli import ContinuousBernoulli
from vbjax.distributions.discrete import Bernoulli, Categorical, OneHotCategorical, Poisson
from vbjax.distributions.discretised import DiscretisedLogistic, DiscretisedLogisticMixture, DiscretisedNormal
from vbjax.distributions.family import Capabilities, Distribution
from vbjax.distributions.flows import CouplingFlow
from vbjax.distributions.gamma import Beta, Dirichlet, Gamma, LogGamma, StudentT
from vbjax.distributions.hierarchy import Hierarchy
from vbjax.distributions.sobol import ScrambledSobol

__all__ = [
    "Autoregressive",
    "Bernoulli",
    "Beta",
    "Capabilities",
    "Categorical",
    "ContinuousBernoulli",
    "Copies",
    "CouplingFlow",
    "Dirichlet",
    "DiscretisedLogistic",
    "DiscretisedLogisticMixture",
    "DiscretisedNormal",
    "Distribution",
    "Gamma",
    "Hierarchy",
    "Joint",
    "Laplace",
    "LogGamma",
    "LogNormal",
    "Logistic",
    "Mixture",
    "MultivariateNormal",
    "Normal",
    "OneHotCategorical",
    "Poisson",
    "ScrambledSobol",
    "StudentT",
    "Uniform",
]
