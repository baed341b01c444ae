# %% [markdown]
# # Two players: generative adversarial networks
#
# A generator turns noise into points, a discriminator tells them from data, and each learns against the other. No
# density is written down, so no bound tells how far training has come. What can be known exactly is known about small
# games, and this notebook goes through them first:
#
# - the best discriminator is a ratio of densities, and the value of the game against it a divergence;
# - why the loss that everybody uses is not the one of the minimax game;
# - simultaneous steps walk away from the equilibrium, alternating ones circle it, and two ways reach it, with their
#   exact rates;
# - a GAN on eight modes in the plane, trained in seconds, next to what the law itself would score.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt  # noqa: F401 - shows the figures in Jupyter

from vbjax import datasets, evaluation, sample_quality, training
from vbjax.derivations import check, select
from vbjax.gan import dirac, games, values
from vbjax.gan.penalties import r1
from vbjax.networks.gan import mlp_gan
from vbjax.reports import gan_pictures
from vbjax.reports.derivation_pictures import PICTURES, account
from vbjax.reports.numbers import uncertain

# %% [markdown]
# ## What the discriminator learns
#
# Its loss is the cross-entropy of a classifier on a balanced batch of data and fakes. Minimised freely, point by point,
# the answer is $D(x) = p(x) / (p(x) + q(x))$: the logit is $\log p - \log q$, a quantity that neither player could
# compute.

# %%
for name in ("gan-discriminator-bce", "gan-optimal-discriminator"):
    verdict = check(*select([name]))
    print(account(verdict), end="\n\n")
    assert verdict.passed

# %% [markdown]
# Put that discriminator back into the loss and what is left for the generator is the Jensen-Shannon divergence. Mind
# the halves: with the lecture's $J^{(D)}$ the equilibrium costs $\log 2$, in the original paper's units $-\log 4$.

# %%
verdict = check(*select(["gan-value-jsd"]))
print(account(verdict))
assert verdict.passed

# %% [markdown]
# ## What the generator learns
#
# It sees data only through the slope of the discriminator at its own fakes. Where the discriminator is sure of a fake
# (logit $\ell \ll 0$) the minimax loss has next to no slope, and the loss $-\frac{1}{2} \log D$ has all of it.

# %%
for name in ("gan-generator-goal", "gan-nonsaturating"):
    verdict = check(*select([name]))
    print(account(verdict), end="\n\n")
    assert verdict.passed

# %%
logits = jnp.array([-6.0, -4.0, -2.0, 0.0])
for game in (values.minimax, values.non_saturating):
    slopes = jax.vmap(jax.grad(game.generator))(logits)
    print(f"{game.name:15s}", *(f"{slope:9.5f}" for slope in slopes), f"  at logits {[*map(float, logits)]}")
assert abs(slopes[0]) > 0.49, "the non-saturating generator keeps its slope where the other has lost it"

# %% [markdown]
# ## Where the steps lead
#
# The equilibrium is a saddle of a value that one player lowers and the other raises. The smallest such game is $x y$.
# Gradient flow circles the saddle for ever; simultaneous steps of size $\eta$ multiply the distance by
# $\sqrt{1 + \eta^2}$, however small $\eta$ is. Steps in turns, the usual algorithm, circle it like the flow.

# %%
for name in ("gan-zero-sum-saddle", "gan-gda-rotation"):
    verdict = check(*select([name]))
    print(account(verdict), end="\n\n")
    assert verdict.passed
PICTURES["gan-gda-rotation"]()

# %% [markdown]
# The same happens in the smallest GAN, whose data are a point at 0, whose generator is a point $\theta$, and whose
# discriminator is $\psi x$. The rate follows from the game's Jacobian; 1000 steps show whether it is so. A penalty on
# the discriminator's slope at the data (R1) turns the circle into a spiral inwards.

# %%
with jax.enable_x64(True):
    start = games.Point(jnp.array(0.02), jnp.array(0.0))
    for method in (games.simultaneous, games.alternating, games.extragradient):
        for label, players in {
            "no penalty": dirac.dirac_gan(values.minimax),
            "R1": dirac.dirac_gan(values.minimax, lambda D, real, fake: 0.25 * r1(D, real)),
        }.items():
            predicted = games.convergence_rate(method, players, dirac.equilibrium(), rate=0.2)
            distance = jnp.hypot(*games.trajectory(method, players, start, rate=0.2, steps=1000))
            measured = (distance[1000] / distance[500]) ** (1 / 500)
            print(f"{method.name:14s} {label:11s} per step {measured:.5f}, predicted {predicted:.5f}")
            assert abs(measured - predicted) < 1e-3
            assert (predicted < 0.9995) == (label == "R1" or method is games.extragradient)

# %% [markdown]
# ## A game that both can win
#
# A generator $m + s z$ and a discriminator with a quadratic logit can express the data's normal law and the optimal
# ratio. Trained against each other by plain gradients with expectations in place of samples, they find it; with a
# discriminator that never learns, they do not.

# %%
verdict = check(*select(["gan-toy-training"]))
print(account(verdict))
assert verdict.passed

# %% [markdown]
# ## Eight modes in the plane
#
# Now two perceptrons and samples. The data are eight narrow normal laws on a circle, so every quality of the generator
# has an exact counterpart: all eight modes, equally often, and 98.9% of the points within three standard deviations of
# one. The usual loss twice, with R1 and without.

# %%
modes = datasets.ring_modes(8, 2.0)
networks = mlp_gan((2,), hidden=(64, 64), latent_dim=2, spectral=False)
key_init, key_data, key_train, key_z, key_real = jax.random.split(jax.random.key(0), 5)


def ring(key, count):
    """So many draws of the data, each within 0.05 or so of one of the modes."""
    return jax.vmap(lambda key: datasets.gaussian_mixture_ring(key, scale=0.05))(jax.random.split(key, count))


def adam(rate):
    return training.make_optimizer(learning_rate=rate, schedule="cosine", steps=2000, beta1=0.5, beta2=0.99)


def batch(step):
    return ring(jax.random.fold_in(key_data, step), 128), jnp.zeros(128, jnp.int32)


optimizer = training.each({"discriminator": adam(2e-3), "generator": adam(1e-3)})
begin = training.init_state(jax.jit(networks.init)(key_init), optimizer, ema_decay=0.99)
states = {}
for label, weight in (("R1", 0.02), ("no penalty", 0.0)):
    loss = networks.loss(values.non_saturating, r1=weight)
    states[label] = training.fit(key_train, loss, batch, optimizer, begin, steps=2000, ema_decay=0.99)

# %% [markdown]
# The law itself, by as many fresh draws, is what a perfect generator would score. Unevenness is the divergence of the
# histogram over modes from the even one; the kernel distance is an unbiased estimate of a squared distance, so it may
# fall below zero. Nothing is claimed of the trained two: this is one seed, others differ in how many modes go missing
# without the penalty, and so may another machine's rounding.

# %%
real = ring(key_real, 2000)
z = jax.random.normal(key_z, (2000, 2))
drawn = {"the law itself": ring(jax.random.key(9), 2000)}
drawn |= {label: jax.jit(jax.vmap(networks.generate(state.averaged)))(z) for label, state in states.items()}
exact_share = sample_quality.high_quality_share(2, deviations=3)
print(f"exactly, of the law: modes 8, unevenness 0, near one {exact_share:.4f}, kernel distance 0")
for label, points in drawn.items():
    assigned, distance = jax.vmap(sample_quality.nearest_mode, (0, None))(points, modes)
    coverage = sample_quality.mode_coverage(assigned, distance < 0.15, modes=8)
    near = evaluation.over_examples((distance < 0.15).astype(float))
    kernel = sample_quality.kernel_distance(real, points)
    share, apart = (uncertain(found.value, found.standard_error) for found in (near, kernel))
    print(f"{label:15s} modes {coverage.covered}, unevenness {coverage.kl:.4f} nats, ", end="")
    print(f"near one {share}, kernel distance {apart}")
    if label == "the law itself":
        assert coverage.covered == 8
        assert abs(near.value - exact_share) < 5 * near.standard_error
        assert abs(kernel.value) < 5 * kernel.standard_error

# %% [markdown]
# Points over the discriminator's output, whose zero line runs where it cannot decide. The threads between modes are
# what a continuous map of a disc onto eight islands has to pay.

# %%
params = states["R1"].params
gan_pictures.plane(real, drawn["R1"], networks.discriminate(params))

# %%
params = states["no penalty"].params
gan_pictures.plane(real, drawn["no penalty"], networks.discriminate(params))

# %% [markdown]
# ## What is not there
#
# A generator is no decoder: its output *is* the sample, not the mean of a density. With fewer latents than coordinates
# there is no density at all, as the check shows by adding noise of scale $\sigma$ and taking it away again.

# %%
verdict = check(*select(["gan-implicit-density"]))
print(account(verdict))
assert verdict.passed

# %% [markdown]
# ## Try this
#
# - `python experiments/gan.py --dataset grid`: twenty-five modes, a result card, and the pictures.
# - `python experiments/gan.py --dataset digits --conditional`: digits by class, judged by a classifier.
# - `python experiments/cycle_gan.py`: two domains and the two maps between them.
# - `vbjax check --chapter 4 --instances 20`: every statement of this theme on twenty random instances.
