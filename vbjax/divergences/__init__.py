"""Divergences between laws, in nats. Closed forms raise where there are none; Monte Carlo says its standard error."""

from vbjax.divergences.families import (
    chi_squared_divergence,
    f_divergence,
    jensen_shannon_divergence,
    renyi_divergence,
    total_variation,
)
from vbjax.divergences.kullback_leibler import (
    has_closed_form_kl,
    kl_divergence,
    monte_carlo_entropy,
    monte_carlo_kl,
)

__all__ = [
    "chi_squared_divergence",
    "f_divergence",
    "has_closed_form_kl",
    "jensen_shannon_divergence",
    "kl_divergence",
    "monte_carlo_entropy",
    "monte_carlo_kl",
    "renyi_divergence",
    "total_variation",
]
