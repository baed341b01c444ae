# %% [markdown]
# # The variational bound, on the digits
#
# A latent-variable model says how an image $x$ arises from a code $z$: $p(x) = \int p(z)\,p(x\mid z)\,dz$.
# The integral is out of reach for a neural decoder. Variational Bayes replaces it by a bound that needs only draws of
# $z$ from a law $q(z\mid x)$ that we choose:
#
# $$\log p(x) = \underbrace{E_q[\log p(x\mid z)] - \mathrm{KL}(q\,\|\,p(z))}_{\text{the bound}}
#   + \underbrace{\mathrm{KL}(q\,\|\,p(z\mid x))}_{\text{the gap}}.$$
#
# First we watch this identity hold to rounding error where everything is known, then train a model where it is not.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt  # noqa: F401 - shows the figures in Jupyter
import numpy as np

from vbjax import bounds, datasets, evaluation, training, vae
from vbjax.distributions import MultivariateNormal
from vbjax.divergences import kl_divergence
from vbjax.networks.vae import mlp_vae
from vbjax.reports import pictures

# %% [markdown]
# ## Where everything is known: a linear decoder with normal noise
#
# With $x = Wz + \mu + \sigma\varepsilon$ the evidence, the posterior and the bound all have closed forms.

# %%
W = jnp.array([[1.0, 0.5], [-0.5, 1.0], [0.3, -0.2]])
mu, noise_variance = jnp.array([0.2, -0.1, 0.4]), 0.3
x = jnp.array([1.0, -0.5, 0.7])

prior = MultivariateNormal(jnp.zeros(2), jnp.eye(2))
evidence = MultivariateNormal.from_covariance(mu, W @ W.T + noise_variance * jnp.eye(3)).log_prob(x)
posterior_covariance = jnp.linalg.inv(jnp.eye(2) + W.T @ W / noise_variance)
posterior = MultivariateNormal.from_covariance(
    posterior_covariance @ W.T @ (x - mu) / noise_variance, posterior_covariance
)


def expected_reconstruction(q):
    """E_q log p(x|z) for the linear decoder: a residual, and what q's own spread costs."""
    residual = x - W @ q.mean() - mu
    spread = jnp.trace(W @ q.covariance() @ W.T)
    return -0.5 * ((residual @ residual + spread) / noise_variance + 3 * jnp.log(2 * jnp.pi * noise_variance))


def bound(q):
    """The ELBO of q by its two terms, in nats."""
    return bounds.ELBO(expected_reconstruction(q), kl_divergence(q, prior))


q = MultivariateNormal.from_covariance(jnp.array([0.4, -0.3]), jnp.array([[0.5, 0.1], [0.1, 0.3]]))
gap = kl_divergence(q, posterior)
print(f"bound {bound(q).total:.6f} + gap {gap:.6f} = {bound(q).total + gap:.6f}; evidence {evidence:.6f}")
assert abs(bound(q).total + gap - evidence) < 1e-5

# %% [markdown]
# The gap is the divergence *from q to the posterior*. Swapping its arguments breaks the identity, and the bound is
# tight exactly when q is the posterior, for this model as much as for EM.

# %%
assert abs(bound(q).total + kl_divergence(posterior, q) - evidence) > 0.1
assert abs(bound(posterior).total - evidence) < 1e-5

# %% [markdown]
# More draws close the gap too: the IWAE bound grows with K from the ELBO to the evidence, without touching q.

# %%
linear = vae.VAE(
    prior=prior,
    encode=lambda x: q,
    decode=lambda z: MultivariateNormal(W @ z + mu, noise_variance**0.5 * jnp.eye(3)),
)
keys = jax.random.split(jax.random.key(0), 20_000)
log_weights = jax.jit(jax.vmap(lambda key: vae.log_weights(key, linear, x, samples=64)))(keys)
for k in (1, 4, 16, 64):
    values = jax.vmap(bounds.iwae)(log_weights[:, :k])
    print(f"K = {k:2d}: {values.mean():.4f} ± {values.std() / len(values) ** 0.5:.4f}   (evidence {evidence:.4f})")

# %% [markdown]
# ## Where it is not: a network on the 8x8 digits
#
# The same bound, with an encoder and a decoder to learn. The pixels are integers from 0 to 16; the decoder gives each
# a mixture of discretised logistic laws, so the likelihood is one of integers and bits per dimension mean something.

# %%
digits = datasets.load("digits").on_device()
networks = mlp_vae((8, 8), likelihood="discretised_logistic_mixture", levels=17, latent_dim=2, hidden=(256, 128))
optimizer = training.make_optimizer(learning_rate=2e-3, schedule="cosine", steps=600)
key_init, key_data, key_train, key_test = jax.random.split(jax.random.key(0), 4)
state = training.fit(
    key_train,
    networks.loss(),
    lambda step: digits.train_images[datasets.batch_indices(key_data, step, 1347, 128)],
    optimizer,
    training.init_state(networks.init(key_init), optimizer),
    steps=600,
    on_chunk=lambda state, row: print(f"step {row['step']:4d}: -ELBO {row['loss']:6.2f} nats, KL {row['kl']:.2f}"),
)

# %%
model = networks.bind(state.params)
test = digits.test_images.astype(jnp.float32)
report = jax.jit(lambda key: evaluation.elbo_report(key, model, test))(key_test)
nll = jax.jit(lambda key: evaluation.importance_weighted_nll(key, model, test, samples=100))(key_test)
print(f"-ELBO {report.negative_elbo.value:.2f} ± {report.negative_elbo.standard_error:.2f} nats")
bits = nll.bits_per_dim
print(f"IWAE-100 {nll.nats.value:.2f} nats = {bits.value:.3f} ± {bits.standard_error:.3f} bits/dim")
assert nll.nats.value < report.negative_elbo.value

# %% [markdown]
# Two latent numbers per digit already tell the classes apart.

# %%
figures = pictures.latent_variable_model(jax.random.key(1), model, test, digits.test_labels)
codes = np.asarray(evaluation.posterior_means(model, test))
print(f"codes {codes.shape}, active units {evaluation.active_units(jnp.asarray(codes))}; figures: {', '.join(figures)}")
figures["latent_map"]

# %%
figures["latent_grid"]
