"""Expectation maximisation: mixtures, probabilistic PCA, factor analysis, and k-means as the limit of one of them.

A family (`full_gaussians(16)`, `factor_analysis(5)`, …) says how to start and how to take one EM step; `fit` climbs.
The fitted model is a law with a latent variable: `prior`, `likelihood(z)` and `posterior(x)` are vbjax distributions,
so `VAE(model.prior, model.posterior, model.likelihood)` and `bounds.elbo` read it as they read a network, and the
E-step is the encoder without a gap. Read `fitting` first.
"""

from vbjax.em.complexity import free_parameters
from vbjax.em.factor_models import FactorModel, factor_analysis, ppca, ppca_maximum
from vbjax.em.fitting import Family, Fit, NotMonotone, Step, fit
from vbjax.em.gaussians import (
    diagonal_gaussians,
    discretised,
    full_gaussians,
    soft_k_means,
    spherical_gaussians,
    tied_gaussians,
)
from vbjax.em.kmeans import Clusters, k_means
from vbjax.em.mixtures import Components, MixtureModel, bernoulli_mixture, categorical_mixture, mixture

__all__ = [
    "Clusters",
    "Components",
    "FactorModel",
    "Family",
    "Fit",
    "MixtureModel",
    "NotMonotone",
    "Step",
    "bernoulli_mixture",
    "categorical_mixture",
    "diagonal_gaussians",
    "discretised",
    "factor_analysis",
    "fit",
    "free_parameters",
    "full_gaussians",
    "k_means",
    "mixture",
    "ppca",
    "ppca_maximum",
    "soft_k_means",
    "spherical_gaussians",
    "tied_gaussians",
]
