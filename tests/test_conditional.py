"""Conditional bounds and the M2 bound against enumeration and SciPy; the networks and scripts that train them."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import assert_refused
from scipy import special, stats
from sklearn.neighbors import KNeighborsClassifier

from experiments import conditional_vae, semi_supervised
from tests.oracles import holds_only_for, z_threshold
from vbjax import bounds, cards, conditional, vae
from vbjax.conditional import CVAE, M2, given
from vbjax.distributions import Categorical, MultivariateNormal
from vbjax.experiment import Run
from vbjax.linear_gaussian import LinearVAE
from vbjax.networks.conditional_vae import mlp_cvae, mlp_m2
from vbjax.reports import latent_pictures


@pytest.fixture
def float64():
    """For one test: those of the networks and scripts run as they are, in float32."""
    with jax.enable_x64(True):
        yield


PRIOR = np.array([0.5, 0.3, 0.2])
CLASS_PRIOR = np.array([0.65, 0.35])
TABLE = special.softmax(1.5 * np.random.default_rng(0).normal(size=(2, 3, 4)), axis=-1)
"""p(x|z,y) of four outcomes, `(y, z, x)`."""
JOINT = CLASS_PRIOR[:, None, None] * PRIOR[None, :, None] * TABLE
POSTERIOR = JOINT / JOINT.sum(1, keepdims=True)


def discrete(posterior=POSTERIOR):
    """The model of the table with `(y, z, x)` posteriors q(z|x,y) as its encoder."""
    logits = jnp.log(jnp.asarray(posterior))
    decoder = jnp.log(jnp.asarray(TABLE))
    prior = Categorical(jnp.log(jnp.asarray(PRIOR)))
    return CVAE(prior, lambda x, y: Categorical(logits[y, :, x]), lambda z, y: Categorical(decoder[y, z]))


def labelled_by_enumeration(cvae, x, y):
    """Σ_z q(z|x,y) log w(z): the exact ELBO of one class."""
    model = given(cvae, y)
    q = cast(Categorical, model.encode(x))
    weights = jax.vmap(bounds.LogWeight(lambda z: model.decode(z).log_prob(x), model.prior, q))(q.enumerate())
    return jnp.sum(q.probs * weights)


def test_the_conditional_bound_and_its_gap_sum_to_the_conditional_evidence(float64):
    flat = np.array([0.2, 0.5, 0.3])
    cvae = discrete(np.broadcast_to(flat[None, :, None], POSTERIOR.shape))
    outcomes, classes = np.meshgrid(range(4), range(2), indexing="ij")
    elbo = jax.jit(jax.vmap(lambda x, y: labelled_by_enumeration(cvae, x, y)))(outcomes.ravel(), classes.ravel())

    def completes(posterior):
        gap = np.sum(flat[:, None] * np.log(flat[:, None] / posterior), 1)
        evidence = np.log(np.einsum("z,yzx->yx", PRIOR, TABLE))
        np.testing.assert_allclose(elbo, (evidence - gap).T.ravel(), rtol=1e-12)

    # the posterior of the other label
    holds_only_for(completes, POSTERIOR, POSTERIOR[::-1])


def test_under_the_posterior_of_its_class_every_log_weight_is_the_conditional_evidence(float64):
    evidence = np.log(np.einsum("z,yzx->yx", PRIOR, TABLE))

    @jax.jit
    def draws(posterior, outcomes):
        model = given(discrete(posterior), 1)
        return jax.vmap(lambda x: vae.log_weights(jax.random.key(0), model, x, samples=20))(outcomes)

    def constant(posterior):
        weights = draws(jnp.asarray(posterior), jnp.arange(4))
        np.testing.assert_allclose(weights, np.repeat(evidence[1][:, None], 20, 1), rtol=1e-12)

    holds_only_for(constant, POSTERIOR, POSTERIOR[::-1])


def test_the_sum_over_classes_is_tight_at_the_posterior_and_loses_its_divergence_elsewhere(float64):
    x = 2
    class_posterior = JOINT[:, :, x].sum(1) / JOINT[:, :, x].sum()
    log_evidence = np.log(JOINT[:, :, x].sum())
    probs = np.array([class_posterior, [0.9, 0.1], [0.0, 1.0]])

    @jax.jit
    def bounds_at(log_probs):
        labelled = jax.vmap(lambda y: labelled_by_enumeration(discrete(), x, y))(jnp.arange(2)) + np.log(CLASS_PRIOR)
        terms = jax.vmap(lambda logits: conditional.over_classes(Categorical(logits), labelled))(log_probs)
        return terms, terms.total

    terms, total = bounds_at(jnp.log(probs))

    def loses_the_divergence(total):
        np.testing.assert_allclose(total, log_evidence - special.rel_entr(probs, class_posterior).sum(1), rtol=1e-12)

    # the entropy taken away instead of added
    holds_only_for(loses_the_divergence, total, terms.labelled - terms.entropy, terms.labelled)


LOADING, NOISE = np.array([[1.0, 0.4], [-0.5, 1.0], [0.3, -0.2]]), 0.6
MEANS = np.array([[0.0, 0.0, 0.0], [1.0, -0.5, 0.3], [-0.4, 0.8, 1.2]])
WEIGHTS = np.array([0.5, 0.2, 0.3])
PIXELS = np.random.default_rng(1).normal(size=(5, 3)) + MEANS[[0, 1, 2, 0, 1]]


def linear(widen=1.0):
    """z ~ N(0, I), x|z,y ~ N(W z + μ_y, σ² I), whose encoder is the posterior, widened on request."""

    def at(y):
        return LinearVAE(jnp.asarray(LOADING), jnp.asarray(MEANS)[y], jnp.asarray(NOISE**2))

    def encode(x, y):
        q = at(y).posterior(x)
        return MultivariateNormal(q.mean(), q.scale_tril * widen)

    return CVAE(at(0).prior, encode, lambda z, y: at(y).decode(z))


def class_log_evidence():
    """log p(x|y) of the pixels, by SciPy: `(n, c)`."""
    covariance = LOADING @ LOADING.T + NOISE**2 * np.eye(3)
    return np.stack([stats.multivariate_normal(mean, covariance).logpdf(PIXELS) for mean in MEANS], 1)


@jax.jit
def measured(key, images, weights, widen):
    """`class_evidence` of the images by 200 draws."""
    prior = Categorical(jnp.log(weights))
    return conditional.class_evidence(key, linear(widen), prior, images, samples=200, batch_size=50)


def measure(weights, widen):
    """400 independent measurements of each of the pixels, in a row."""
    images = jnp.repeat(jnp.asarray(PIXELS), 400, 0)
    return measured(jax.random.key(0), images, jnp.asarray(weights), jnp.asarray(widen))


def test_evidence_over_classes_is_the_mixture_of_scipy_and_classifies_by_bayes_rule(float64):
    exact = class_log_evidence()
    joint = exact + np.log(WEIGHTS)

    def agrees(weights):
        evidence = jax.tree.map(lambda values: values[::400] if values.ndim == 2 else values, measure(weights, 1.0))
        np.testing.assert_allclose(evidence.nats, exact, rtol=1e-10)
        np.testing.assert_allclose(evidence.marginal().nats, special.logsumexp(joint, axis=1), rtol=1e-10)
        np.testing.assert_allclose(evidence.log_posterior(), special.log_softmax(joint, axis=1), rtol=1e-9, atol=1e-9)
        labels = jnp.array([2, 1, 0, 0, 1])
        np.testing.assert_allclose(evidence.at(labels).nats, exact[range(5), labels], rtol=1e-10)

    # a uniform prior over the classes
    holds_only_for(agrees, WEIGHTS, np.ones(3) / 3)


def test_the_error_of_the_evidence_over_classes_is_its_spread_over_repeats(float64):
    evidence = measure(WEIGHTS, 1.5).marginal()
    nats, variance = (np.asarray(values).reshape(5, 400) for values in evidence)
    # 400 repeats of five examples know the spread to 1.6%; the delta method is off by O(1/K)
    assert 0.9 < np.sqrt(nats.var(1).mean() / variance.mean()) < 1.1
    bias = nats.mean(1) - special.logsumexp(class_log_evidence() + np.log(WEIGHTS), axis=1)
    # a lower bound: below the truth by half the variance
    assert (np.abs(bias + variance.mean(1) / 2) < z_threshold(5) * nats.std(1) / 20).all()


def test_the_unlabelled_bound_is_the_evidence_at_both_posteriors_and_loses_both_divergences(float64):
    x, count = jnp.asarray(PIXELS[0]), 4000
    joint = class_log_evidence()[0] + np.log(WEIGHTS)
    posterior, log_evidence = special.softmax(joint), special.logsumexp(joint)
    keys = jax.random.split(jax.random.key(2), (3, count))

    @jax.jit
    @jax.vmap
    def estimates(keys, probs, widen):
        law = Categorical(jnp.log(probs))
        m2 = M2(linear(widen), Categorical(jnp.log(jnp.asarray(WEIGHTS))), lambda x: law)
        return jax.vmap(lambda key: conditional.unlabelled_bound(key, m2, x).total)(keys)

    # of q from the posterior of z, two coordinates wide, the same for every class
    widened = 1.4**2 - 1 - 2 * np.log(1.4)

    def loses(values):
        def check(nats):
            assert abs(values.mean() - (log_evidence - nats)) < z_threshold(8) * values.std() / count**0.5

        return check

    uniform = np.ones(3) / 3
    from_classes = np.sum(special.rel_entr(uniform, posterior))
    q, widths = jnp.asarray([posterior, posterior, uniform]), jnp.asarray([1.0, 1.4, 1.4])
    tight, wide, both = np.asarray(estimates(keys, q, widths))
    holds_only_for(loses(tight), 0.0, 0.1)
    holds_only_for(loses(wide), widened, 0.0, 2 * widened)
    holds_only_for(loses(both), widened + from_classes, widened, from_classes)


def test_the_nearest_label_is_scikit_learns():
    rng = np.random.default_rng(4)
    known, images, labels = rng.normal(size=(60, 3, 4)), rng.normal(size=(40, 3, 4)), rng.integers(0, 5, 60)
    reference = KNeighborsClassifier(1).fit(known.reshape(60, -1), labels).predict(images.reshape(40, -1))

    def agrees(known):
        found = conditional.nearest_label(*(jnp.asarray(v) for v in (known, labels, images.astype(np.float32))))
        np.testing.assert_array_equal(found, reference)

    holds_only_for(agrees, known.astype(np.float32), -known.astype(np.float32))


def test_the_sources_of_a_picture_have_little_and_much_of_a_style_and_differ_in_class():
    labels, values = np.arange(300) // 30, np.arange(300.0)
    low, high = latent_pictures.extremes(values, labels)
    # the outer 1% left out, then the outermost of each class
    assert low == [3, 30]
    assert high == [296, 269]


def tiny_networks(dropout=0.0):
    return mlp_cvae((3, 2), classes=3, likelihood="bernoulli", levels=2, latent_dim=2, hidden=(8,), dropout=dropout)


def test_the_label_reaches_both_networks_and_the_loss_is_the_mean_negative_bound():
    networks = tiny_networks()
    params = jax.jit(networks.init)(jax.random.key(0))
    images = jax.random.bernoulli(jax.random.key(1), 0.5, (4, 3, 2)).astype(jnp.uint8)
    labels = jnp.array([0, 1, 2, 1])

    @jax.jit
    def posteriors_and_means(params, images):
        cvae = networks.bind(params)
        at_all = jax.vmap(jax.vmap(cvae.encode, (None, 0)), (0, None))
        means = jax.vmap(lambda y: cvae.decode(jnp.ones(2), y).mean())(jnp.arange(3))
        return at_all(images.astype(jnp.float32), jnp.arange(3)), means

    q, means = posteriors_and_means(params, images)
    for differing in (q.loc.swapaxes(0, 1), means):
        assert np.abs(differing - np.roll(differing, 1, 0)).max(tuple(range(1, differing.ndim))).min() > 1e-3

    loss, terms = jax.jit(networks.loss())(jax.random.key(2), params, (images, labels))
    np.testing.assert_allclose(loss, terms["kl"] - terms["reconstruction"], rtol=1e-6)
    variance = np.square(q.scale)
    kl = 0.5 * np.sum(variance + np.square(q.loc) - 1 - np.log(variance), -1)
    own, others = kl[range(4), labels].mean(), kl[range(4), (labels + 1) % 3].mean()
    holds_only_for(lambda kl: np.testing.assert_allclose(terms["kl"], kl, rtol=1e-5), own, others)


def test_the_semi_supervised_loss_weighs_its_terms_as_the_objective_says():
    networks = mlp_m2(tiny_networks(), Categorical(jnp.zeros(3)), hidden=(8,))
    params = jax.jit(networks.init)(jax.random.key(0))
    images = jax.random.bernoulli(jax.random.key(1), 0.5, (2, 4, 3, 2)).astype(jnp.uint8)
    batch = ((images[0], jnp.array([0, 1, 2, 1])), images[1])
    loss = networks.loss(labelled_share=0.25, alpha=3.0)
    (value, terms), gradient = jax.jit(jax.value_and_grad(loss, 1, has_aux=True))(jax.random.key(2), params, batch)
    objective = 0.25 * terms["labelled"] + 0.75 * terms["unlabelled"] + 3.0 * terms["log_q"]
    np.testing.assert_allclose(value, -objective, rtol=1e-6)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    with pytest.raises(ValueError, match="labelled_share"):
        networks.loss(labelled_share=0.0, alpha=1.0)
    for alpha in (-1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="alpha be >= 0 and finite"):
            networks.loss(labelled_share=0.5, alpha=alpha)


TINY = conditional_vae.Config(hidden=(16,), latent_dim=3, steps=200, batch_size=32, eval_samples=4)
TINY_M2 = semi_supervised.Config(hidden=(16,), latent_dim=3, steps=200, batch_size=16)


@pytest.mark.parametrize(
    ("script", "config", "changes", "said"),
    [
        (conditional_vae, TINY, {"likelihood": "bernoulli"}, "bernoulli reads bits"),
        (conditional_vae, TINY, {"latent_dim": 0}, "latent_dim"),
        (conditional_vae, TINY, {"learning_rate": -1.0}, "learning_rate"),
        (conditional_vae, TINY, {"batch_size": 5000}, "1347 training examples"),
        (conditional_vae, TINY, {"eval_samples": 1}, "eval_samples"),
        (conditional_vae, TINY, {"ema_decay": 1.0}, "ema_decay"),
        (conditional_vae, TINY, {"beta_start": 0.5}, "beta_start"),
        (conditional_vae, TINY, {"beta_start": 2.0, "samples": 5}, "beta_start"),
        (semi_supervised, TINY_M2, {"labels_per_class": 200}, "labels_per_class"),
        (semi_supervised, TINY_M2, {"labels_per_class": 0}, "labels_per_class"),
        (semi_supervised, TINY_M2, {"alpha": -1.0}, "alpha"),
        (semi_supervised, TINY_M2, {"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_input_leaves_with_code_2_one_line_and_no_folder(script, config, changes, said, tmp_path, capsys):
    assert_refused(
        script.main, dataclasses.replace(config, **changes), Run(out=tmp_path / "run", quiet=True), said, capsys
    )


def test_the_labelled_examples_are_as_many_of_every_class_and_the_others_are_the_rest():
    labels = np.random.default_rng(0).integers(0, 10, 500)
    known, rest = semi_supervised.split(jax.random.key(0), labels, 7)
    np.testing.assert_array_equal(np.bincount(labels[known], minlength=10), 7)
    assert sorted([*known, *rest]) == list(range(500))


@pytest.mark.long
@pytest.mark.parametrize(
    ("script", "config", "pictures"),
    [
        (
            conditional_vae,
            TINY,
            {"analogies", "class_samples", "style_traversal", "interpolation", "attributes", "latent_map"},
        ),
        (semi_supervised, TINY_M2, {"labelled", "class_samples"}),
    ],
)
def test_a_run_leaves_a_card_with_its_pictures_and_resumes_to_the_same_numbers(script, config, pictures, tmp_path):
    run = Run(out=tmp_path / "run", quiet=True, checkpoint_every=100)
    card = script.main(config, run)
    assert cards.load_card(tmp_path / "run" / "card.json") == card
    assert {path.stem for path in (tmp_path / "run" / "pictures").iterdir()} == pictures
    again = script.main(config, dataclasses.replace(run, resume=True))
    assert again.numbers == card.numbers


@pytest.mark.long
def test_a_short_run_holds_the_style_while_the_class_changes(tmp_path):
    """A third of the default run; measured there: slant .76, ink .86, analogies .99, 1.92 bits per dimension."""
    config = conditional_vae.Config(steps=1000, eval_samples=20)
    numbers = conditional_vae.main(config, Run(out=tmp_path / "run", quiet=True)).numbers
    assert numbers["bits_per_dim"].interval[1] < 2.05
    for name, least in {"slant_kept": 0.5, "ink_kept": 0.6, "analogies_of_class": 0.95, "bayes_accuracy": 0.9}.items():
        assert numbers[name].interval[0] > least
    # the label says what a row of analogies is, so the code need not
    assert numbers["class_in_codes"].value < 0.2
