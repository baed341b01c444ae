"""The discrete VAE: gradients by an estimator average to the enumerated ELBO's, runs resume, refusals come first."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import discrete_vae as experiment
from vbjax import runs
from vbjax.divergences import kl_divergence
from vbjax.estimators import catalogue
from vbjax.exact import exact_moments
from vbjax.networks.discrete_vae import discrete_vae

TINY = experiment.Config(latent_shape=(8,), steps=40, log_every=20, batch_size=16, eval_samples=4)


def run_in(folder, **options):
    return experiment.Run(out=folder, quiet=True, **options)


@pytest.mark.parametrize(("latents", "shape"), [("bernoulli", (3,)), ("categorical", (2, 3))])
def test_the_exact_mean_of_rloo_is_the_gradient_of_the_enumerated_elbo(latents, shape):
    networks = discrete_vae(np.array([[0.2, 0.7]]), latents=latents, latent_shape=shape)
    initial = networks.init(jax.random.key(0))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(float) + 0.1, initial)
        x = jnp.array([[1.0, 0.0]])

        def elbo(params):
            vae = networks.bind(params)
            q = vae.encode(x)
            z = q.enumerate()
            weights = jnp.exp(jax.vmap(q.log_prob)(z))
            return weights @ jax.vmap(lambda z: vae.decode(z).log_prob(x))(z) - kl_divergence(q, vae.prior)

        truth = jax.grad(elbo)(params)
        mean = exact_moments(catalogue.make("rloo", 2), networks.problem(x), params).mean
        wrong = exact_moments(catalogue.make("score", 1), lambda p: (networks.problem(x)(p)[0], jnp.sum), params).mean
        for part in ("encoder", "decoder", "prior"):
            for a, b in zip(jax.tree.leaves(mean[part]), jax.tree.leaves(truth[part]), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-12)
        assert not np.allclose(jax.tree.leaves(wrong["encoder"])[0], jax.tree.leaves(truth["encoder"])[0])


def test_what_an_estimator_learns_is_the_mean_of_the_examples_updates_after_each_step():
    networks = discrete_vae(np.full((2, 2), 0.5), latent_shape=(3,))
    estimator = catalogue.make("score_moving_average", 1)
    params = networks.init(jax.random.key(0), estimator)
    images = jnp.array([[[0, 1], [1, 0]], [[1, 1], [0, 0]]], jnp.uint8)
    gradient, terms = jax.grad(networks.loss(estimator, levels=2), argnums=1, has_aux=True)(
        jax.random.key(1), params, images
    )
    after = jax.tree.map(lambda p, g: p - g, params["estimator"], gradient["estimator"])
    # the average moves by a tenth of the batch's mean value of f, which is the loss's own term
    np.testing.assert_allclose(after.total, 0.1 * terms["bound"], rtol=1e-5)
    np.testing.assert_allclose(after.weight, 0.1, rtol=1e-5)


@pytest.mark.slow
def test_a_run_with_a_learning_estimator_resumes_to_the_same_bits(tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, estimator="nvil", samples=1)
    whole = experiment.main(config, run_in(tmp_path / "whole"))
    log = runs.RunFolder.log

    def interrupted(folder, row):
        if row["step"] == 40:
            raise KeyboardInterrupt
        log(folder, row)

    with monkeypatch.context() as patch:
        patch.setattr(runs.RunFolder, "log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiment.main(config, run_in(tmp_path / "cut"))
    resumed = experiment.main(config, run_in(tmp_path / "cut", resume=True))
    assert resumed.numbers == whole.numbers
    rows = runs.read_metrics(tmp_path / "cut" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [20, 40]
    assert {"train_elbo", "gradient_variance", "gradient_snr"} <= set(rows[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimator": "rlo"}, "did you mean rloo"),
        ({"estimator": "pathwise"}, "reparameterised"),
        ({"samples": 1}, "samples >= 2"),
        ({"latents": "categorical"}, "(d, k)"),
        ({"batch_size": 10**6}, "1347 training examples"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(change, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as refusal:
        experiment.main(dataclasses.replace(TINY, **change), run_in(tmp_path / "run"))
    assert refusal.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
