"""The museum of wrong gradients: defects that well-known code shipped, each beside its corrected twin.

`EXHIBITS` is the collection; every mutant must be found biased and no twin may be. `python -m tests.museum` prints
what each defect does and after how many draws the sequential test sees it. Read `Exhibit` first.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbjax import bounds, testing
from vbjax.bounds import LogWeight
from vbjax.distributions import Bernoulli, Copies, Joint, LogGamma, Normal
from vbjax.distributions.couplings import AntitheticBernoulli, PiecewiseUniform
from vbjax.estimators.baselines import score_function_moving_average, score_function_optimal_baseline
from vbjax.estimators.binary import arm, disarm
from vbjax.estimators.doubly_reparameterised import doubly_reparameterised, sticking_the_landing
from vbjax.estimators.estimate import inject, score
from vbjax.estimators.measure_valued import measure_valued
from vbjax.estimators.multi_sample import vimco
from vbjax.estimators.pathwise import pathwise
from vbjax.estimators.rebar import rebar
from vbjax.estimators.relaxed import given, gumbel_softmax, held, relaxation_noise, soften, straight_through
from vbjax.estimators.score_function import Baseline, dice, leave_one_out, score_function
from vbjax.types import Bound, GradientEstimator, Problem, Spec, stop_gradient

BUDGET = 2**16
"""Draws within which the sequential test must see a defect, not counting their repetition on fresh draws."""


class Case(NamedTuple):
    """A problem at its parameters, {"q": of the law, "model": of the objective}, and K and B of its objective."""

    problem: Problem
    params: Any
    samples: int = 1
    bound: Bound = bounds.mean

    def at(self) -> Any:
        """The parameters as arrays of JAX's present precision."""
        return jax.tree.map(lambda x: jnp.asarray(np.float64(x)), self.params)


class Exhibit(NamedTuple):
    """A defect and its correction.

    found: where, with the version. defect: what is wrong. effect: what theory says of the relative bias, by entry of
    the parameters. rare: whether it shows in events too rare to be drawn. draws_only: no quadrature reaches it.
    """

    name: str
    found: str
    defect: str
    mutant: GradientEstimator
    twin: GradientEstimator
    case: Case
    effect: Mapping[str, float] = MappingProxyType({})
    rare: bool = False
    draws_only: bool = False


def bits(params):
    """A cost of two bits that is no sum of functions of one, with a parameter of the model."""
    t = params["model"]
    return Bernoulli(params["q"]), lambda b: (b[0] + 0.7 * b[1] - t) ** 2 + 0.4 * b[0] * b[1]


def bit(params):
    """REBAR's toy (b - t)², t = 0.45, and a model's parameter that multiplies it."""
    return Bernoulli(params["q"]), lambda b: params["model"] * (b - 0.45) ** 2


def belief(params):
    """The log-weight of two bits under a Bernoulli prior and a normal likelihood."""
    q, prior, model = Bernoulli(params["q"]), Bernoulli(params["model"][:2]), params["model"]
    return q, LogWeight(lambda b: -0.5 * (1.3 - model[2] * b[0] - b[0] * b[1]) ** 2, prior, q)


def ramp(params):
    """log(1 + exp(θ z)) under a normal law."""
    loc, scale = params["q"]
    return Normal(loc, scale), lambda z: jax.nn.softplus(params["model"] * z)


def gaussian(params):
    """The log-weight of z ~ N(m, 1), x | z ~ N(g z, 1/4)."""
    (loc, scale), (centre, gain) = params["q"], params["model"]
    q = Normal(loc, scale)
    half = jnp.full_like(gain, 0.5)
    return q, LogWeight(lambda z: Normal(gain * z, half).log_prob(1.2), Normal(centre, jnp.ones_like(centre)), q)


def pixels(params):
    """A linear function of two pixels: the gradient in the weights is the mean of the sampler's law."""
    return Bernoulli(params["q"]), lambda b: jnp.sum(params["model"] * b)


_BITS = Case(bits, {"q": np.array([-0.8, 0.5]), "model": 0.9})
_LIKELY = Case(bits, {"q": np.array([1.5, 2.0]), "model": 0.9})
_BIT = Case(bit, {"q": 0.3, "model": 1.5})
_BELIEF = Case(belief, {"q": np.array([0.8, -0.6]), "model": np.array([-0.5, 0.4, 0.9])})
_BELIEF_2 = _BELIEF._replace(samples=2, bound=bounds.iwae)
_RAMP = Case(ramp, {"q": np.array([0.7, 1.3]), "model": 1.1})
_GAUSSIAN = Case(gaussian, {"q": np.array([0.3, 0.8]), "model": np.array([0.4, 0.9])}, 2, bounds.iwae)
# the posterior mean is just below the prior's, and w²q lies just above
_FAR = Case(gaussian, {"q": np.array([1.3, 1.2]), "model": np.array([2.4, 0.5])}, 10, bounds.iwae)


def _estimator(name: str, noise: Callable, surrogate: Callable, init: Callable | None = None) -> GradientEstimator:
    """A mutant's spec claims what its authors believed."""
    mutant = GradientEstimator(Spec(name, True, True, True, (), 1, None), noise, surrogate)
    return mutant if init is None else mutant._replace(init=init)


def _draws(samples: int = 1):
    return lambda q: Copies(stop_gradient(q), samples)


def _path(samples: int = 1):
    return lambda q: Copies(q.noise(), samples)


def _with_value(value, gradient):
    return stop_gradient(value) + gradient - stop_gradient(gradient)


def _squared_weights_everywhere(samples: int) -> GradientEstimator:
    def surrogate(state, noise, f, q):
        f = f._replace(q=stop_gradient(f.q))
        log_w = jax.vmap(lambda xi: f(q.transport(xi)))(noise)
        return _with_value(bounds.iwae(log_w), jnp.sum(stop_gradient(bounds.shares(log_w)) ** 2 * log_w))

    return _estimator(f"squared weights({samples})", _path(samples), surrogate)


def _no_score(samples: int, bound: Bound) -> GradientEstimator:
    return _estimator(f"no score({samples})", _draws(samples), lambda state, z, f, q: bound(jax.vmap(f)(z)))


def _frozen_guide(state, z, f, q):
    return bounds.iwae(jax.vmap(f._replace(q=stop_gradient(f.q)))(z))


def _average_updated_first(samples: int, decay: float) -> GradientEstimator:
    def surrogate(state, z, f, q):
        values = jax.vmap(f)(z)
        average = decay * state + (1 - decay) * values.mean()
        return dice(values, jax.vmap(q.log_prob)(z), jnp.full_like(values, 1) * average)

    return _estimator("average updated first", _draws(samples), surrogate, lambda q: jnp.full((), 0.3, q.dtype))


_own_sample = Baseline("own sample", lambda values: jnp.full_like(values, 1) * values.mean(), independent=False)


def _wrong_iwae(name: str, combine: Callable) -> GradientEstimator:
    def surrogate(state, noise, f, q):
        log_w = jax.vmap(lambda xi: f(q.transport(xi)))(noise)
        return _with_value(bounds.iwae(log_w), combine(log_w))

    return _estimator(name, _path(2), surrogate)


def _divided_by_log_variance(state, noise, f, q):
    def log_weight(xi):
        z = q.transport(xi)
        eps = (z - q.loc) / (2 * jnp.log(q.scale))
        log_q = Normal(jnp.zeros_like(eps), jnp.ones_like(eps)).log_prob(eps) - jnp.log(q.scale)
        return f.log_likelihood(z) + f.prior.log_prob(z) - log_q

    return bounds.iwae(jax.vmap(log_weight)(noise))


def _wrong_rebar(name: str, *, scored: int = 1, unconditional: int = 1, conditional: int = 1) -> GradientEstimator:
    def surrogate(state, noise, f, q):
        b, s = noise
        fixed = stop_gradient(q)
        z = given(fixed, b, s)
        control, slope = jax.value_and_grad(lambda z: f(soften(fixed, z, 0.5)))(z)

        def terms(q):
            paths = unconditional * held(q, z) - conditional * given(q, b, s)
            return (f(b) - scored * control) * q.log_prob(b) + jnp.vdot(slope, paths)

        return f(b) + inject(q, jax.grad(terms)(fixed), estimator=name)

    return _estimator(name, _relaxed_noise, surrogate)


def _relaxed_noise(q):
    return Joint((stop_gradient(q), relaxation_noise("museum", q)))


def _softplus_sampler(q):
    return Copies(Bernoulli.from_probs(jnp.minimum(jax.nn.softplus(stop_gradient(q.logits)), 1)), 1)


def _clipped(state, z, f, q):
    p = jnp.clip(q.probs, 1.2e-7, 1 - 1.2e-7)
    log_q = jax.vmap(lambda b: b * jnp.log(p) + (1 - b) * jnp.log1p(-p))(z)
    values = jax.vmap(f)(z)
    return dice(values, log_q, jnp.zeros_like(values))


def _samples_not_stopped(state, noise, f, q):
    z = jax.vmap(q.transport)(noise)
    values = jax.vmap(f)(z)
    return dice(values, jax.vmap(q.log_prob)(z), jnp.zeros_like(values))


def _dice_forgotten(state, z, f, q):
    values = stop_gradient(jax.vmap(f)(z))
    return dice(values, jax.vmap(q.log_prob)(z), jnp.zeros_like(values))


def _rounded(state, noise, f, q):
    b, s = noise
    return f(jnp.round(jax.nn.sigmoid(given(q, b, s))))


def _measure_valued_without_constant() -> GradientEstimator:
    """∂/∂loc E f = (E f(loc + s W) - E f(loc - s W)) / (s √(2π)), W Rayleigh; here without √(2π), the scale by path."""

    def noise(q):
        return Joint((LogGamma(jnp.ones_like(q.loc)), q.noise()))

    def surrogate(state, noise, f, q):
        log_energy, xi = noise
        fixed = stop_gradient(q)
        reach = fixed.scale * jnp.sqrt(2 * jnp.exp(log_energy))
        slope = (f(fixed.loc + reach) - f(fixed.loc - reach)) / fixed.scale
        return f(fixed.loc + q.scale * xi) + inject(q.loc, slope, estimator="no constant")

    return _estimator("no constant", noise, surrogate)


def arm_with(shift: float, factor: float) -> GradientEstimator:
    """factor (f(1[u ≥ σ(-φ)]) - f(1[u < σ(φ)])) (u - shift)."""

    def noise(q):
        logits = stop_gradient(q.logits)
        return PiecewiseUniform(jax.nn.sigmoid(jnp.stack([-logits, logits], axis=-1)))

    def surrogate(state, u, f, q):
        logits = stop_gradient(q.logits)
        one, other = (f(b.astype(q.dtype)) for b in (u >= jax.nn.sigmoid(-logits), u < jax.nn.sigmoid(logits)))
        return (one + other) / 2 + inject(q.logits, factor * (one - other) * (u - shift), estimator="ARM")

    return _estimator(f"{factor:g} ARM, u - {shift:g}", noise, surrogate)


def _unsigned_disarm(state, b, f, q):
    one, other = f(b[0]), f(b[1])
    gradient = (one - other) * (b[0] - b[1]) * jax.nn.sigmoid(q.logits) / 2
    return (one + other) / 2 + inject(q.logits, gradient, estimator="DisARM")


def _by_signals(name: str, samples: int, bound: Bound, signals: Callable) -> GradientEstimator:
    def surrogate(state, z, f, q):
        values = jax.vmap(f)(z)
        weights = stop_gradient(signals(values))
        gradient = jax.grad(lambda q: weights @ jax.vmap(q.log_prob)(z))(stop_gradient(q))
        return bound(values) + inject(q, gradient, estimator=name)

    return _estimator(name, _draws(samples), surrogate)


def _own_geometric_mean(values):
    replaced = jnp.where(jnp.eye(values.shape[0], dtype=bool), values.mean(), values[None])
    return bounds.iwae(values) - jax.vmap(bounds.iwae)(replaced)


def _optimal_baseline_of_all(state, z, f, q):
    values = jax.vmap(f)(z)
    scores = jax.vmap(lambda z: score(q, z).logits)(z)
    weight = jnp.sum(scores**2, 0)
    gradient = jnp.mean((values[:, None] - (values @ scores**2 / weight)[None]) * scores, 0)
    return values.mean() + inject(q.logits, gradient, estimator="optimal baseline of all")


def _standardised(values):
    return (values - values.mean()) / (values.std() + 1e-8) / values.shape[0]


def _pair_not_halved(state, xi, f, q):
    return f(q.transport(xi)) + f(q.transport(-xi))


def _variance_for_scale(state, z, f, q):
    value, slopes = f(stop_gradient(z)), score(q, z)
    wrong = slopes.__class__(slopes.loc, slopes.scale / (2 * q.scale))  # ∂/∂s² = ∂/∂s / 2s
    return value + inject(q, jax.tree.map(lambda s: value * s, wrong), estimator="variance for scale")


def _negated(estimator: GradientEstimator) -> GradientEstimator:
    return estimator._replace(surrogate=lambda *args: -estimator.surrogate(*args))


_iwae_score = functools.partial(score_function, bound=bounds.iwae)
_iwae_path = pathwise(2, bound=bounds.iwae)
_rloo = functools.partial(score_function, baseline=leave_one_out)

EXHIBITS: tuple[Exhibit, ...] = (
    Exhibit("doubly reparameterised, model too", "TFP 0.25 DOUBLY_REPARAMETERIZED",
            "squared weights on the model's parameters", _squared_weights_everywhere(2),
            doubly_reparameterised(2), _GAUSSIAN),
    Exhibit("doubly reparameterised, wrong sign", "TFP 0.25 DOUBLY_REPARAMETERIZED",
            "the same with K = 10: the prior's mean is pushed the wrong way", _squared_weights_everywhere(10),
            doubly_reparameterised(10), _FAR, draws_only=True),
    Exhibit("discrete ELBO", "NumPyro 0.16 Trace_ELBO", "no score-function term", _no_score(1, bounds.mean),
            score_function(1), _BELIEF),
    Exhibit("discrete Rényi bound", "NumPyro 0.16 RenyiELBO(0)", "no score-function term", _no_score(2, bounds.iwae),
            _iwae_score(2), _BELIEF_2),
    Exhibit("guide without gradient", "Pyro 1.9 RenyiELBO(0)", "the guide's gradient is identically zero",
            _estimator("frozen guide", _draws(2), _frozen_guide), _iwae_score(2), _BELIEF_2, {"q": 1.0, "model": 0.0}),
    Exhibit("moving average, one sample", "optax 0.1.8, mc_gradients, Storchastic", "updated before use",
            _average_updated_first(1, 0.9), score_function_moving_average(1), _BIT, {"q": 0.1, "model": 0.0}),
    Exhibit("moving average, four samples", "optax 0.1.8, mc_gradients, Storchastic", "updated before use",
            _average_updated_first(4, 0.6), score_function_moving_average(4), _BIT, {"q": 0.1, "model": 0.0}),
    Exhibit("population baseline, two samples", "AdvancedVI.jl ScoreGradELBO", "no N/(N - 1): half the gradient",
            score_function(2, baseline=_own_sample), _rloo(2), _BITS, {"q": 0.5, "model": 0.0}),
    Exhibit("population baseline, one sample", "AdvancedVI.jl ScoreGradELBO", "no N/(N - 1): no gradient",
            score_function(1, baseline=_own_sample), score_function(1), _BITS, {"q": 1.0, "model": 0.0}),
    Exhibit("own-sample baseline", "classrooms", "the mean of all ten values as the baseline of each",
            score_function(10, baseline=_own_sample), _rloo(10), _BIT, {"q": 0.1, "model": 0.0}),
    Exhibit("importance weights upside down", "AntixK PyTorch-VAE iwae.py", "softmax over positive losses",
            _wrong_iwae("upside down", lambda w: jnp.sum(stop_gradient(bounds.shares(-w)) * w)), _iwae_path, _GAUSSIAN),
    Exhibit("importance weights not detached", "AntixK PyTorch-VAE iwae.py", "the weights are differentiated too",
            _wrong_iwae("not detached", lambda w: jnp.sum(bounds.shares(w) * w)), _iwae_path, _GAUSSIAN),
    Exhibit("noise over log-variance", "AntixK PyTorch-VAE iwae.py", "eps = (z - mu) / log_var",
            _estimator("eps over log-variance", _path(2), _divided_by_log_variance), _iwae_path, _GAUSSIAN),
    Exhibit("REBAR, conditional path", "duvenaud/relax #6, a port", "no path through the conditional noise",
            _wrong_rebar("no conditional path", conditional=0), rebar(1), _LIKELY),
    Exhibit("REBAR, score term", "classrooms", "the control variate is added to f in the score term",
            _wrong_rebar("score term", scored=-1), rebar(1), _LIKELY),
    Exhibit("REBAR, unconditional path", "classrooms", "one sign of the reparameterised terms is wrong",
            _wrong_rebar("unconditional path", unconditional=-1), rebar(1), _LIKELY),
    Exhibit("log-likelihood for loss", "pythae get_nll", "+log p where -log p is meant", _negated(_iwae_path),
            _iwae_path, _GAUSSIAN, {"q": 2.0, "model": 2.0}),
    Exhibit("samples floored to batches", "pythae get_nll", "three samples in batches of two are two",
            _iwae_score(2), _iwae_score(3), _BELIEF._replace(samples=3, bound=bounds.iwae)),
    Exhibit("softplus for a probability", "JAX examples/mnist_vae.py", "samples with bernoulli(logaddexp(0, logits))",
            score_function(1)._replace(noise=_softplus_sampler), score_function(1),
            Case(pixels, {"q": np.array([-0.7, 0.2]), "model": np.array([1.5, 0.8])})),
    Exhibit("clipped probabilities", "many", "the score of clip(p, 1.2e-7, 1 - 1.2e-7)",
            _estimator("clipped", _draws(1), _clipped), score_function(1),
            Case(bit, {"q": -16.0, "model": 1.5}), {"q": 1.0, "model": 0.0}, rare=True),
    Exhibit("samples not stopped", "classrooms", "the score is differentiated along the sample's path as well",
            _estimator("not stopped", _path(1), _samples_not_stopped), score_function(1), _RAMP),
    Exhibit("path through rounding", "classrooms", "round(sigmoid(·)) is differentiated: nowhere a slope",
            _estimator("rounded", _relaxed_noise, _rounded), score_function(1), _BITS, {"q": 1.0, "model": 0.0}),
    Exhibit("straight-through", "sold as unbiased", "a hard sample with the slope of its mean", straight_through(1),
            disarm(2), _BITS),
    Exhibit("Gumbel-softmax", "sold as unbiased", "the gradient of the relaxed problem",
            gumbel_softmax(1, temperature=0.5), disarm(2), _BITS),
    Exhibit("DiCE forgotten", "classrooms", "f is stopped: the model's gradient is missing",
            _estimator("f stopped", _draws(1), _dice_forgotten), score_function(1), _BIT, {"q": 0.0, "model": 1.0}),
    Exhibit("sticking the landing of the IWAE bound", "sold as unbiased", "the score is dropped although K > 1",
            sticking_the_landing(2, bound=bounds.iwae), doubly_reparameterised(2), _GAUSSIAN),
    Exhibit("the ELBO sold as the IWAE bound", "classrooms", "the mean over samples outside of the logarithm",
            pathwise(2), _iwae_path, _GAUSSIAN),
    Exhibit("measure-valued", "classrooms", "without the constant 1/√(2π)", _measure_valued_without_constant(),
            measure_valued(1), _RAMP),
    Exhibit("ARM", "classrooms", "half of it: the pair's difference is averaged, as its values are", arm_with(0.5, 0.5),
            arm(1), _BITS, {"q": 0.5, "model": 0.0}),
    Exhibit("DisARM", "classrooms", "σ(φ) for σ(|φ|)",
            _estimator("unsigned", lambda q: AntitheticBernoulli(stop_gradient(q.logits), 2), _unsigned_disarm),
            disarm(2), _BITS),
    Exhibit("VIMCO with its own sample", "classrooms", "the geometric mean includes the sample that it replaces",
            _by_signals("own geometric mean", 3, bounds.iwae, _own_geometric_mean), vimco(3),
            _BELIEF._replace(samples=3, bound=bounds.iwae)),
    Exhibit("VIMCO without a signal", "classrooms", "one signal for all, of the same samples: zero",
            _by_signals("no signal", 3, bounds.iwae, jnp.zeros_like), vimco(3),
            _BELIEF._replace(samples=3, bound=bounds.iwae)),
    Exhibit("optimal baseline with its own sample", "classrooms", "Σ f s² / Σ s² over all samples",
            _estimator("of all", _draws(4), _optimal_baseline_of_all), score_function_optimal_baseline(4), _BITS),
    Exhibit("standardised values", "classrooms", "(f - mean) / deviation of the same samples",
            _by_signals("standardised", 4, bounds.mean, _standardised), _rloo(4), _BITS),
    Exhibit("antithetic pair", "classrooms", "the sum of the pair, not its mean",
            _estimator("not halved", lambda q: q.noise(), _pair_not_halved), pathwise(1), _RAMP,
            {"q": 1.0, "model": 1.0}),
    Exhibit("variance for scale", "classrooms", "the score in s² where the parameter is s",
            _estimator("variance for scale", lambda q: stop_gradient(q), _variance_for_scale), score_function(1),
            _RAMP),
)  # fmt: skip


@functools.cache
def _truth(problem: Problem, params: tuple, samples: int, bound: Bound) -> testing.Truth:
    with jax.enable_x64(True):
        case = Case(problem, dict(zip(("q", "model"), (np.array(p) for p in params), strict=True)), samples, bound)
        if samples > 3 and problem is gaussian:
            value, gradient = jax.jit(jax.value_and_grad(iwae_by_laplace, 1), static_argnums=0)(samples, case.at())
            truth = testing.Truth(value, gradient, 0.0)
        else:
            truth = testing.exact_truth(problem, case.at(), samples=samples, bound=bound)
        return jax.tree.map(np.asarray, truth)._replace(error=truth.error)


def truth(case: Case) -> testing.Truth:
    """The exact objective and gradient, in float64, computed once for all exhibits on the same case."""
    params = tuple(tuple(np.ravel(p).tolist()) if np.ndim(p) else float(p) for p in case.params.values())
    return _truth(case.problem, params, case.samples, case.bound)


def iwae_by_laplace(samples: int, params: Any) -> jax.Array:
    """E log (1/K) Σ w_k of `gaussian` for any K: log S = ∫ (e^{-t} - e^{-tS}) dt/t, and E e^{-tS} = (E e^{-tw})^K."""
    q, f = gaussian(params)
    xi, step = jnp.linspace(-12.0, 12.0, 1201, retstep=True)
    weights = step * jnp.exp(jax.vmap(q.noise().log_prob)(xi))
    log_w = jax.vmap(lambda xi: f(q.transport(xi)))(xi)
    log_t, width = jnp.linspace(-45.0, 60.0, 2101, retstep=True)
    transform = jnp.exp(-jnp.exp(log_t[:, None] + log_w[None])) @ weights
    return width * jnp.sum(jnp.exp(-jnp.exp(log_t)) - transform**samples) - np.log(samples)


def exact_bias(exhibit: Exhibit, estimator: GradientEstimator) -> testing.ExactBias:
    """The bias of the mutant or the twin, by integration."""
    case = exhibit.case
    with jax.enable_x64(True):
        return testing.exact_bias(estimator, case.problem, case.at(), truth=truth(case))


def verdict(exhibit: Exhibit, estimator: GradientEstimator, *, error_rate: float, seed: int = 0) -> testing.Verdict:
    """What the sequential test says of the mutant or the twin within the budget, in float32."""
    case = exhibit.case
    return testing.bias_test(
        jax.random.key(seed),
        estimator,
        case.problem,
        case.at(),
        truth=truth(case).gradient,
        delta=1e-2,
        error_rate=error_rate,
        last_look=BUDGET,
    )


def main() -> None:
    """Print the museum."""
    print(f"{'exhibit':40} {'found in':40} {'bias in q':>10} {'in model':>10}  seen after (twin)")
    for exhibit in EXHIBITS:
        biases = {"q": np.nan, "model": np.nan}
        if not exhibit.draws_only:
            biases = exact_bias(exhibit, exhibit.mutant).gradient
        found, twin = (verdict(exhibit, e, error_rate=1e-6 / len(EXHIBITS)) for e in (exhibit.mutant, exhibit.twin))
        seen = f"{found.draws:,} draws" if found.outcome == "reject" else found.outcome
        print(f"{exhibit.name:40} {exhibit.found:40} {biases['q']:10.3g} {biases['model']:10.3g}  {seen} "
              f"({twin.outcome})")  # fmt: skip


if __name__ == "__main__":
    main()
