# %% [markdown]
# # Variational auto-encoders
#
# A VAE is a latent-variable model whose decoder is a network, trained on the variational bound with an encoder that
# answers for $q(z \mid x)$. `variational_bound.py` is about the bound; here it is about the model. You will see
#
# - which likelihood the squared error is, and what becomes of the KL term in closed form;
# - a linear VAE, trained, beside the optimum that is known to the last digit: it is probabilistic PCA;
# - what $\beta$ switches off, predicted and found;
# - two gaps between bound and evidence, of which one is the encoder's alone;
# - digits: reconstructions, draws, and why draws are not the decoder's means.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt  # noqa: F401 - shows the figures in Jupyter

from vbjax import autoencoders, datasets, evaluation, objectives, training, vae
from vbjax.derivations import check, select
from vbjax.distributions import Normal
from vbjax.divergences import kl_divergence
from vbjax.linear_gaussian import LinearVAE, spectrum
from vbjax.networks.vae import mlp_vae
from vbjax.recipe import fit_vae
from vbjax.reports import pictures
from vbjax.reports.derivation_pictures import PICTURES, account
from vbjax.reports.numbers import uncertain

# %% [markdown]
# ## The loss
#
# Squared error is a likelihood as soon as its variance is said; without one, the weight between the two terms is
# whatever the code happens to do. The KL term of a diagonal normal encoder needs no sampling.

# %%
for name in ("vae-objective", "gaussian-observation-nll", "gaussian-kl-closed-form"):
    verdict = check(*select([name]))
    print(account(verdict), end="\n\n")
    assert verdict.passed

# %% [markdown]
# ## A linear VAE, beside its optimum
#
# The data are five-dimensional with three directions of length 2, 1 and 1/2 and noise of variance 1/4. Decoder and
# encoder are linear, so the best bound is known: a direction whose eigenvalue $\lambda$ exceeds the noise is worth
# $\frac{1}{2} \log (\lambda / \sigma^2)$ nats, the others are switched off.

# %%
verdict = check(*select(["linear-vae-ppca"]))
print(account(verdict))
assert verdict.passed
PICTURES["latent-dimension-active-units"]()

# %%
noise_variance, steps = 0.25, 600
directions = jnp.linalg.qr(jax.random.normal(jax.random.key(7), (5, 5)))[0][:, :3] * jnp.array([2.0, 1.0, 0.5])
source = LinearVAE(directions, jnp.arange(5.0), jnp.array(noise_variance))
data = source.marginal().sample(jax.random.key(8), (4000,))
mean = data.mean(0)
eigenvalues = autoencoders.pca(data, 3).eigenvalues
print("eigenvalues of the data:", eigenvalues)


def bind(params):
    """The VAE at these parameters: a linear decoder of known noise and a linear encoder with one scale a coordinate."""
    model = LinearVAE(params["decoder"], mean, jnp.array(noise_variance))
    scale = jnp.exp(params["log scale"])
    return vae.VAE(model.prior, lambda x: Normal(params["encoder"] @ (x - mean), scale), model.decode)


def loss(key, params, batch, beta):
    """Minus the β-bound, averaged over a batch."""
    keys = jax.random.split(key, len(batch))
    terms = jax.vmap(lambda key, x: vae.grouped_elbo(key, bind(params), x))(keys, batch)
    return -objectives.beta_elbo(beta)(jax.tree.map(lambda term: term.mean(0), terms)), {}


optimizer = training.make_optimizer(learning_rate=2e-2, schedule="cosine", steps=steps)
start = {"decoder": 0.3 * jax.random.normal(jax.random.key(9), (5, 3)), "log scale": jnp.zeros(3)}
start["encoder"] = start["decoder"].T
trained = {}
for beta in (1.0, 6.0):
    state = training.fit(
        jax.random.key(10),
        lambda key, params, batch, beta=beta: loss(key, params, batch, beta),
        datasets.batches(jax.random.key(11), data, 250),
        optimizer,
        training.init_state(start, optimizer),
        steps=steps,
    )
    trained[beta] = bind(state.params)

# %% [markdown]
# The optimum depends on $\beta$ only through the water level $\beta \sigma^2$: a direction below it is not worth its
# nats. The numbers beside each other are the trained model's and the formula's.

# %%
for beta, model in trained.items():
    optimum = spectrum(eigenvalues, noise_variance, beta=beta)
    kl = jax.vmap(lambda x, model=model: kl_divergence(model.encode(x), model.prior))(data).mean()
    terms = jax.jit(jax.vmap(lambda key, x, model=model: vae.elbo(key, model, x)))(
        jax.random.split(jax.random.key(12), len(data)), data
    )
    found = evaluation.over_examples(terms.reconstruction)
    exact = -0.5 * (optimum.distortion.sum() / noise_variance + 5 * jnp.log(2 * jnp.pi * noise_variance))
    print(f"β = {beta:.0f}: KL {kl:.4f} (optimum {optimum.rate.sum():.4f}, {optimum.active_units} units), ", end="")
    print(f"reconstruction {uncertain(found.value, found.standard_error)} (optimum {exact:.4f}) nats")
    assert abs(kl - optimum.rate.sum()) < 0.05
    assert abs(found.value - exact) < 5 * found.standard_error + 0.05
    if beta > 1:
        assert abs(kl - spectrum(eigenvalues, noise_variance).rate.sum()) > 0.5, "β = 1 is another optimum"

# %% [markdown]
# ## Where a bound is lost
#
# At the end of training the encoder of $\beta = 1$ is the exact posterior, because the axes of its code have turned to
# the principal directions, where coordinates are independent given $x$. Turn the code (the evidence does not change)
# and a diagonal encoder loses what no amount of training of the encoder brings back.

# %%
angle = jnp.pi / 5
turn = jnp.eye(3).at[:2, :2].set(jnp.array([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]))
turned = source._replace(weights=source.weights @ turn)
for name, model in (("principal axes", source), ("turned", turned)):
    x = data[0]
    gap = model.marginal().log_prob(x) - model.elbo(x, model.best_diagonal(x))
    print(f"{name:15s} log p(x) {model.marginal().log_prob(x):.5f}, gap of the best diagonal encoder {gap:.5f}")
    assert abs(gap - model.diagonal_gap()) < 1e-4
assert source.diagonal_gap() < 1e-4 < 0.05 < turned.diagonal_gap()

# %%
for name in ("latent-rotation-nonidentifiability", "aggregate-posterior-kl"):
    verdict = check(*select([name]))
    print(account(verdict), end="\n\n")
    assert verdict.passed

# %% [markdown]
# ## Digits
#
# Now networks on both sides, eight latent numbers, and a likelihood of the integer grey levels. No exact evidence here,
# but two bounds: the ELBO, and the importance-weighted one with 20 draws, which can only be closer.

# %%
digits = datasets.load("digits").on_device()
networks = mlp_vae((8, 8), likelihood="discretised_logistic_mixture", levels=17, latent_dim=8, hidden=(64,))
state = fit_vae(jax.random.key(0), networks, digits.train_images, samples=1, steps=400, ema_decay=0.99)
model, test = networks.bind(state.averaged), jnp.asarray(digits.test_images, jnp.float32)
report = jax.jit(lambda key: evaluation.elbo_report(key, model, test))(jax.random.key(1))
nll = jax.jit(lambda key: evaluation.importance_weighted_nll(key, model, test, samples=20))(jax.random.key(2))
print(f"-ELBO   {uncertain(report.negative_elbo.value, report.negative_elbo.standard_error)} nats")
print(f"IWAE-20 {uncertain(nll.nats.value, nll.nats.standard_error)} nats")
assert nll.nats.value < report.negative_elbo.value

# %% [markdown]
# Reconstructions are the decoder's answer to a code of $q(z \mid x)$. To *draw* a digit, draw $z$ from the prior, then
# pixels from $p(x \mid z)$; the smooth pictures that are usually shown are centres of that law, not draws of it.

# %%
verdict = check(*select(["vae-ancestral-sampling"]))
print(account(verdict))
assert verdict.passed
pictures.reconstructions(model, test[:12])

# %%
pictures.samples(jax.random.key(3), model, count=24)

# %% [markdown]
# Blurred centres are no defect of variational Bayes: a unimodal law of a pixel that may be black or white has to sit in
# between. With a flexible likelihood the same code is sharp.

# %%
verdict = check(*select(["vae-blurriness"]))
print(account(verdict))
assert verdict.passed

# %% [markdown]
# ## Try this
#
# - `python experiments/vae.py`: the digits, with a result card; `--help` shows likelihoods, priors and encoders.
# - `python experiments/hierarchical_vae.py` and `python experiments/conditional_vae.py`: layers of codes, and classes.
# - `python experiments/likelihoods.py`: what each likelihood of pixels is worth.
# - `vbjax check --chapter 3 --instances 20`: every statement of this theme on twenty random instances.
