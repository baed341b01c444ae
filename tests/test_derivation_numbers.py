"""Entries give, on the instances where they were worked out before in NumPy and mpmath, the numbers found there."""

import numpy as np
import pytest

from vbjax.derivations import check, select
from vbjax.derivations.adversarial import Logits
from vbjax.derivations.codes import Spectrum
from vbjax.derivations.dataset_bound import Scalars
from vbjax.derivations.diffusion_chain import Chain, Noised, OneStep, Spreads, Terminal
from vbjax.derivations.generators import Numbers, Steps
from vbjax.derivations.gradients import NormalLaw, Quadratic
from vbjax.derivations.latent_variables import Dimensions, FiniteModel
from vbjax.derivations.linear_gaussian import LinearGaussian
from vbjax.derivations.lower_bound import DiagonalGaussian, Discrete
from vbjax.derivations.objectives import Residual
from vbjax.derivations.reparameterisation import Variances
from vbjax.derivations.skeletons import TREE, Alphas
from vbjax.derivations.variational_autoencoders import Encoder, Masses
from vbjax.derivations.variational_bayes import ModelStep, Targets

LINEAR = LinearGaussian(
    weights=((1.0, 0.5), (-0.5, 1.0), (0.3, -0.2)),
    offset=(0.2, -0.1, 0.4),
    noise_variance=0.3,
    observation=(1.0, -0.5, 0.7),
    q_mean=(0.4, -0.3),
    q_covariance=((0.5, 0.1), (0.1, 0.3)),
)
BETAS = tuple(np.linspace(0.02, 0.4, 10).tolist())
SQUARE = Quadratic(mean=0.7, scale=1.3, target=-0.4)
SIGNAL = float(np.prod(1 - np.array(BETAS[:5])))

NUMBERS = [
    ("latent-variable-marginal", LINEAR, {"log p(x)": -2.908843190961}),
    ("elbo-reconstruction-minus-kl", LINEAR, {"ELBO": -3.745412821312}),
    ("elbo-tightness", LINEAR, {"gap, diagonal q": 0.000690766861}),
    ("fisher-identity", LINEAR, {"∂/∂μ [0]": 0.47389, "∂/∂μ [1]": -0.18414, "∂/∂μ [2]": 0.32738}),
    ("posterior-directed-sampling", LINEAR, {"ESS / n, prior": 0.2645}),
    ("gaussian-observation-nll", Residual((0.5, -0.5, -1.0), (0.0, 0.0, 0.0), 0.09),
     {"-log p(x|z)": 7.4782305200, "best σ²": 0.5}),
    ("naive-mc-variance-dimension", Dimensions(0.0, 0.25, (5, 50)),
     {"d = 5": 2.554128, "d = 50": 25.54128}),
    ("em-e-step", FiniteModel((0.3, 0.7), (0.2, 0.5)), {"best q [0]": 0.14634, "best q [1]": 0.85366}),
    ("elbo-ascent-vs-evidence", ModelStep((0.5, 0.5), (0.1, 0.9), (0.2, 0.3), (0.9, 0.1)),
     {"Δ ELBO": 2.4509268424 - 1.9369556088, "Δ ELBO + Δ KL": 0.6931471806 - 1.3862943611}),
    ("reverse-kl-behaviour", Targets(((1.0, 0.9), (0.9, 1.0)), 3.0),
     {"variances, min KL(q‖p) [0]": 0.19, "two modes, min KL(q‖p)": 0.68877}),
    ("amortised-elbo-and-gap", Scalars(1.5, 0.7, 0.4, (-1.0, 0.0, 0.5, 2.0, 3.0)),
     {"without bias": -2.170915473, "with bias": -1.798671183}),
    ("gaussian-kl-closed-form", DiagonalGaussian((0.5, -1.2, 0.0), (-0.3, 0.8, -2.0)), {"KL": 1.645847216205}),
    ("gradient-variance-quadratic", SQUARE,
     {"pathwise ∂μ": 6.76, "pathwise ∂σ": 18.36, "score ∂μ": 43.15633136, "score ∂σ": 199.39266272}),
    ("reparameterisation-lotus", NormalLaw(0.2, 0.5), {"E f": 1.345586385513}),
    ("encoder-diagonal-covariance", Variances((0.1, 2.0)), {"best common variance": 0.190476, "KL left": 0.853509}),
    ("reparameterised-elbo-estimator", NormalLaw(0.8, 0.6), {"mean": -0.510825623766, "variance": 0.4352}),
    ("aggregate-posterior-kl", Encoder((0.2, 0.5, 0.3), (-1.0, 0.5, 2.0), (0.5, 0.8, 0.3)),
     {"E KL(q(z|x)‖p)": 1.072393053067}),
    ("latent-dimension-active-units", Spectrum((4.0, 2.0, 0.5, 0.2), 1.0),
     {"|w| [0]": 1.7321, "|w| [1]": 1.0, "active units": 2}),
    ("bits-back-compression", Discrete((0.5, 0.25, 0.25), (0.6, 0.2, 0.7), (0.2, 0.3, 0.5)), {"net bits": 1.41578}),
    ("max-likelihood-is-forward-kl", Masses((0.1, 0.2, 0.3, 0.4), (0.25, 0.25, 0.3, 0.2)),
     {"-E log p": 1.420855314607}),
    ("gan-nonsaturating", Logits((), (-4.0,)), {"minimax [0]": -0.008993104981, "non_saturating [0]": -0.491006895019}),
    ("gan-gda-rotation", Steps(0.1, 100), {"‖(x, y)‖², simultaneous": 1.25 * 2.704813829421}),
    ("l2-mean-l1-median", Numbers((0.0, 1.0, 1.0, 4.0, 10.0)), {"normal": 3.2, "Laplace": 1.0}),
    ("ddpm-terminal-gaussian", Terminal(1e-4, 0.02, 1000, 1.0), {"KL(q(x_T|x_0)‖N(0, I)), linear": 2.0180e-5}),
    ("ddpm-reverse-gaussianity", OneStep((0.9, 0.5, 0.1), (-1.0, 1.0), 0.3, 0.0),
     {"β = 0.9": 0.551, "β = 0.5": 0.517, "β = 0.1": 0.308}),
    ("ddpm-exact-reverse-sampling", Chain(BETAS),
     {"mean of x_0, from N(0, 1)": 1.466406, "variance of x_0, from N(0, 1)": 0.250376, "KL(q(x_0)‖p(x_0))": 0.002254}),
    ("ddpm-optimal-denoiser", Noised((0.3, 0.7), (-1.0, 2.0), (0.4, 0.6), SIGNAL, (-1.0, 0.2, 1.5)),
     {"E[x_0|x_t] [0]": -1.02599, "E[x_0|x_t] [1]": 0.48114, "E[x_0|x_t] [2]": 1.98702}),
    ("ddpm-reverse-variance-choice", Spreads(BETAS[:5], (0.25, 4.0)),
     {"best variance [0]": 0.156076, "best variance [1]": 0.216640}),
    ("anisotropic-recap-sqrt", Alphas((0.9, 0.8, 0.7)), {"variance given x_0 [2]": 0.496}),
    ("anisotropic-sigma-n", TREE, {"Σ_N [0, 1]": 0.270598050073}),
]  # fmt: skip


def last_digit(number):
    """One unit in the last digit of the number as it is written, of at most twelve."""
    digits = np.format_float_positional(number, precision=12, trim="-").partition(".")[2]
    return 10.0 ** -max(len(digits), 1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "instance", "numbers"), NUMBERS, ids=[row[0] for row in NUMBERS])
def test_entry_gives_the_number_found_before(name, instance, numbers):
    (identity,) = select([name])
    verdict = check(identity, instance=instance)
    assert verdict.passed, verdict.failure
    found = dict(zip(verdict.lhs.names, verdict.lhs.values, strict=True))
    for quantity, number in numbers.items():
        rounding = max(last_digit(number), 1e-12 * abs(number))
        assert abs(found[quantity] - number) <= 1.01 * rounding, (quantity, found[quantity], number)
