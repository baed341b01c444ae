"""How good samples are, from samples alone, and what each measure reads when they are perfect.

Every function takes points or features `(n, d)`, one row a sample; nothing here knows where they come from. Fréchet
(`frechet`) and kernel (`kernel`) distances, precision, recall, density and coverage (`neighbours`), modes and classes
covered (`modes`). A finite sample of the law itself does not read zero, or one: next to each measure stands its value
for equal laws where that is known, and real data against real data of the same size is the yardstick where it is not.
"""

from vbjax.sample_quality.frechet import (
    Gaussian,
    extrapolated_frechet_distance,
    fit_gaussian,
    frechet_bias,
    frechet_distance,
    gaussian_frechet_bias,
)
from vbjax.sample_quality.kernel import cubic_kernel, kernel_distance
from vbjax.sample_quality.modes import (
    ModeCoverage,
    high_quality_share,
    histogram_kl,
    histogram_kl_bias,
    mode_coverage,
    nearest_mode,
)
from vbjax.sample_quality.neighbours import Neighbourhoods, expected_coverage, neighbourhoods

__all__ = [
    "Gaussian",
    "ModeCoverage",
    "Neighbourhoods",
    "cubic_kernel",
    "expected_coverage",
    "extrapolated_frechet_distance",
    "fit_gaussian",
    "frechet_bias",
    "frechet_distance",
    "gaussian_frechet_bias",
    "high_quality_share",
    "histogram_kl",
    "histogram_kl_bias",
    "kernel_distance",
    "mode_coverage",
    "nearest_mode",
    "neighbourhoods",
]
