# %% [markdown]
# # EM and auto-encoders
#
# Before encoders were networks there was EM, where the posterior is computed and not learned, and PCA, where the best
# code is an eigenvector. Both are limits of what the other notebooks train, and both come with exact answers. You will
# see
#
# - EM as the variational bound, made tight and raised in turns: it never goes down;
# - probabilistic PCA, which EM reaches in many steps and a formula in one, and k-means, its cousin without variance;
# - a linear auto-encoder that finds PCA's subspace and not its axes, and a curved one that beats PCA;
# - why decoding noise does not generate, and what does.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt  # noqa: F401 - shows the figures in Jupyter
import numpy as np

from vbjax import autoencoders, datasets, em, evaluation, training, vae
from vbjax.derivations import check, select
from vbjax.distributions import MultivariateNormal, Normal
from vbjax.divergences import kl_divergence
from vbjax.networks.autoencoders import Linear, batch_loss, deep
from vbjax.reports import autoencoder_pictures, pictures
from vbjax.reports.derivation_pictures import account
from vbjax.reports.numbers import uncertain

# %% [markdown]
# ## EM is the bound, climbed by turns
#
# The E-step sets $q(z)$ to the posterior, which makes the bound touch the evidence; the M-step raises the bound in the
# parameters, and the evidence cannot fall. Wrong responsibilities break that.

# %%
for name in ("em-e-step", "em-monotone"):
    verdict = check(*select([name]))
    print(account(verdict), end="\n\n")
    assert verdict.passed

# %% [markdown]
# On the digits, five-dimensional by PCA for the sake of speed: a mixture of ten normal laws, its ascent, and its mean
# log-likelihood on digits that it has not seen, each an exact evidence. The error bars are over test images.

# %%
digits = datasets.load("digits").on_device()
flat, test = (
    jnp.asarray(part, jnp.float32).reshape(len(part), -1) / 16 for part in (digits.train_images, digits.test_images)
)
projection = autoencoders.pca(flat, 5).autoencoder
codes, test_codes = (jax.jit(jax.vmap(projection.encode))(part) for part in (flat, test))
scores = {}
for components in (1, 10):
    fit = em.fit(jax.random.key(0), em.full_gaussians(components), codes, tolerance=1e-4, max_iterations=100)
    assert np.all(np.diff(fit.objective) > -1e-5), "EM went down"
    scores[components] = jax.jit(jax.vmap(fit.model.log_prob))(test_codes)
    found = evaluation.over_examples(scores[components])
    print(f"{components:2d} components: {fit.log_likelihood[0]:.3f} → {fit.log_likelihood[-1]:.3f} in ", end="")
    print(f"{len(fit.objective) - 1} updates; test {uncertain(found.value, found.standard_error)} nats a digit")
gain = evaluation.over_examples(scores[10] - scores[1])
print(f"ten over one: {uncertain(gain.value, gain.standard_error)} nats a digit")
assert gain.value > 5 * gain.standard_error

# %% [markdown]
# ## Probabilistic PCA
#
# Its evidence has a closed maximum: the discarded eigenvalues average to the noise. EM creeps towards it.

# %%
for name in ("ppca-ml", "kmeans-hard-em"):
    verdict = check(*select([name]))
    print(account(verdict), end="\n\n")
    assert verdict.passed

# %%
best = em.ppca_maximum(codes, 2)
fit = em.fit(jax.random.key(1), em.ppca(2), codes, tolerance=1e-6)
maximum = jax.jit(jax.vmap(best.log_prob))(codes).mean()
print(f"EM after {len(fit.objective) - 1} updates {fit.log_likelihood[-1]:.5f}, the formula {maximum:.5f} nats a digit")
assert abs(fit.log_likelihood[-1] - maximum) < 1e-3

# %% [markdown]
# The E-step is an encoder without a gap: with the exact posterior *every* importance weight is the evidence, so the
# bound has no noise either. With the prior in its place the bound drops by $\mathrm{KL}(q \| p(z \mid x))$, no more and
# no less.

# %%


def normal(q):
    """The same normal law with its covariance as a matrix."""
    covariance = jnp.diag(q.variance()) if isinstance(q, Normal) else q.covariance()
    return MultivariateNormal.from_covariance(q.mean(), covariance)


x = codes[0]
evidence = best.log_prob(x)
for name, q in (("posterior", best.posterior(x)), ("prior", best.prior)):
    model = vae.VAE(best.prior, lambda x, q=q: q, best.likelihood)
    weights = jax.jit(lambda key, model=model: vae.log_weights(key, model, x, samples=20_000))(jax.random.key(2))
    found = evaluation.over_examples(weights)
    exact = evidence - kl_divergence(normal(q), normal(best.posterior(x)))
    print(f"q the {name:9s}: bound {uncertain(found.value, found.standard_error)}, exactly {exact:.4f}, ", end="")
    print(f"evidence {evidence:.4f}")
    assert abs(found.value - exact) < 5 * found.standard_error + 1e-4

# %% [markdown]
# ## Auto-encoders
#
# With linear layers the least squared error is PCA's, and gradient descent finds its *subspace*; the axes inside it are
# whatever the initial weights made of them.

# %%
verdict = check(*select(["linear-autoencoder-pca"]))
print(account(verdict))
assert verdict.passed

# %%
images, test_images = flat.reshape(-1, 8, 8), test.reshape(-1, 8, 8)
batches = datasets.batches(jax.random.key(4), images, 128)


def train(networks, rate):
    """The parameters after a thousand steps of Adam on the squared error."""
    optimizer = training.make_optimizer(learning_rate=rate, schedule="cosine", steps=1000)
    begin = training.init_state(jax.jit(networks.init)(jax.random.key(3)), optimizer)
    loss = batch_loss(networks.bind)
    return training.fit(jax.random.key(5), loss, batches, optimizer, begin, steps=1000).params


def errors(autoencoder, images):
    return jax.jit(jax.vmap(lambda x: autoencoders.reconstruction_error(autoencoder, x)))(images)


pca, networks = autoencoders.pca(flat, 2), Linear((8, 8), 2)
params = train(networks, 5e-2)
error = errors(networks.bind(params), images).mean()
angle = autoencoders.largest_principal_angle(params["decoder"], pca.components.T)
column = params["decoder"][:, 0]
cosine = abs(column @ pca.components[0]) / jnp.linalg.norm(column)
print(f"squared error {error:.4f}, PCA's {pca.loss:.4f}")
print(f"angle between the subspaces {angle:.4f}, cosine of a column to the first principal axis {cosine:.3f}")
assert pca.loss - 1e-3 < error < 1.001 * pca.loss
assert angle < 0.05
assert cosine < 0.99, "an axis was found"

# %% [markdown]
# Curved codes can do better with the same two numbers; on digits that they have not seen, too. The difference is taken
# image by image, so its error is smaller than that of either.

# %%
networks = deep((8, 8), code_dim=2, hidden=(64, 32))
curved, straight = networks.bind(train(networks, 5e-3)), autoencoders.on_images(pca.autoencoder, (8, 8))
of_pca = errors(straight, test_images)
lead = evaluation.over_examples(of_pca - errors(curved, test_images))
print(f"test error of PCA {of_pca.mean():.3f}, less the curved code's {uncertain(lead.value, lead.standard_error)}")
assert lead.value > 5 * lead.standard_error
noisy = autoencoders.gaussian_noise(0.2)
autoencoder_pictures.reconstructions(jax.random.key(6), curved, straight, noisy, test_images[:12])

# %%
pictures.latent_map(jax.jit(jax.vmap(curved.encode))(test_images), digits.test_labels)

# %% [markdown]
# ## What noise decodes to
#
# A plain auto-encoder has no law of codes, so decoding standard normal noise generates nothing in particular. A density
# fitted to the codes afterwards mends that; a VAE has it from the start.

# %%
verdict = check(*select(["ae-not-generative"]))
print(account(verdict))
assert verdict.passed
autoencoder_pictures.decoded_noise(jax.random.key(7), curved, jax.jit(jax.vmap(curved.encode))(test_images))

# %% [markdown]
# Trained on corrupted images the auto-encoder learns something else: the best answer is the mean of the clean image
# given the noisy one, and the step towards it is the score of the *noisy* data. That sentence is where diffusion
# begins.

# %%
verdict = check(*select(["denoising-ae-score"]))
print(account(verdict))
assert verdict.passed

# %% [markdown]
# ## Try this
#
# - `python experiments/autoencoder.py`: all kinds on the digits, with a result card and the pictures; `--help` lists
#   them.
# - `python experiments/likelihoods.py`: mixtures by EM and VAEs on one scale, in bits per dimension.
# - `vbjax check --chapter 6 --instances 20`, and `--chapter 7`: every statement of this theme on random instances.
