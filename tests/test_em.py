"""EM against scikit-learn, NumPy, enumeration and closed forms; it climbs, and what does not climb is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import holds_only_for, z_threshold
from scipy import stats
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.mixture import GaussianMixture

from vbjax import bounds, em
from vbjax.distributions import Bernoulli, Categorical, MultivariateNormal, Normal
from vbjax.em import gaussians
from vbjax.em.fitting import batches
from vbjax.em.kmeans import lloyd_step, nearest, plus_plus

pytestmark = pytest.mark.usefixtures("x64")


def key():
    return jax.random.key(0)


def clusters(seed, n=80, d=3):
    """Three normal clouds with covariances of their own."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 2 * rng.normal(size=d) for _ in "abc"])


X = clusters(3)
BITS = (np.median(X, 0) < X).astype(np.uint8)
LEVELS = np.clip(np.round(X + 3), 0, 5).astype(np.uint8)


def model_about(x, law, weights=(0.5, 0.3, 0.2)):
    """A first model with means at three data and unit scales."""
    means = jnp.asarray(x[[0, 100, 200]])
    identity = jnp.eye(x.shape[1])
    laws = (
        Normal(means, jnp.ones_like(means)) if law is Normal else MultivariateNormal(means, jnp.stack([identity] * 3))
    )
    return em.MixtureModel(jnp.log(jnp.asarray(weights)), laws)


def sklearn_from(kind, model, x, iterations):
    d = x.shape[1]
    precisions = {
        "full": np.stack([np.eye(d)] * 3),
        "tied": np.eye(d),
        "diag": np.ones((3, d)),
        "spherical": np.ones(3),
    }
    peer = GaussianMixture(
        3, covariance_type=kind, reg_covar=0, tol=0, max_iter=iterations, weights_init=np.exp(model.logits),
        means_init=np.asarray(model.components.mean()), precisions_init=precisions[kind],
    )  # fmt: skip
    with pytest.warns(UserWarning, match="did not converge"):
        peer.fit(x)
    shapes = {"full": (3, d, d), "tied": (1, d, d), "diag": (3, d), "spherical": (3, 1)}
    return peer, peer.covariances_.reshape(shapes[kind])


FAMILIES = {
    "full": (em.full_gaussians(3), MultivariateNormal),
    "tied": (em.tied_gaussians(3), MultivariateNormal),
    "diag": (em.diagonal_gaussians(3), Normal),
    "spherical": (em.spherical_gaussians(3), Normal),
}


@pytest.mark.parametrize("kind", FAMILIES)
def test_normal_mixtures_take_the_steps_of_scikit_learn(kind):
    family, law = FAMILIES[kind]
    initial = model_about(X, law)
    found = em.fit(key(), family, X, initial=initial, tolerance=0, max_iterations=12)
    laws = found.model.components
    covariance = laws.covariance() if law is MultivariateNormal else laws.variance()

    def distance(iterations):
        peer, peer_covariance = sklearn_from(kind, initial, X, iterations)
        pairs = (
            (np.exp(found.model.logits), peer.weights_),
            (np.asarray(laws.mean()), peer.means_),
            (np.asarray(covariance), np.broadcast_to(peer_covariance, covariance.shape)),
            (found.log_likelihood[-1], peer.score(X)),
        )
        return max(np.abs(ours - theirs).max() for ours, theirs in pairs)

    assert distance(12) < 1e-10
    assert distance(11) > 1e-6  # one step fewer is another model
    # the matrix products of the pass are the density of the mixture
    assert abs(np.mean(jax.vmap(found.model.log_prob)(jnp.asarray(X))) - found.log_likelihood[-1]) < 1e-12


def numpy_em(log_likelihoods, maximise, parameters, weights, iterations):
    for _ in range(iterations):
        joint = np.log(weights) + log_likelihoods(parameters)
        shares = np.exp(joint - np.logaddexp.reduce(joint, 1)[:, None])
        weights, parameters = shares.mean(0), maximise(shares)
    joint = np.log(weights) + log_likelihoods(parameters)
    return weights, parameters, np.logaddexp.reduce(joint, 1).mean()


@pytest.mark.parametrize("smoothing", [0, 0.5])
def test_bernoulli_mixture_takes_the_steps_of_numpy(smoothing):
    probs = np.array([[0.2, 0.6, 0.5], [0.7, 0.3, 0.6], [0.5, 0.5, 0.9]])
    weights = np.array([0.5, 0.3, 0.2])
    initial = em.MixtureModel(jnp.log(jnp.asarray(weights)), Bernoulli.from_probs(probs))
    found = em.fit(key(), em.bernoulli_mixture(3, smoothing=smoothing), BITS, initial=initial, tolerance=0,
                   max_iterations=10)  # fmt: skip

    def answer(added):
        return numpy_em(
            lambda p: BITS @ np.log(p).T + (1 - BITS.astype(float)) @ np.log1p(-p).T,
            lambda r: (r.T @ BITS + added) / (r.sum(0)[:, None] + 2 * added),
            probs, weights, 10,
        )  # fmt: skip

    weights_then, probs_then, log_likelihood = answer(smoothing)
    np.testing.assert_allclose(np.exp(found.model.logits), weights_then, atol=1e-12)
    np.testing.assert_allclose(found.model.components.probs, probs_then, atol=1e-12)
    assert abs(found.log_likelihood[-1] - log_likelihood) < 1e-12
    assert np.abs(found.model.components.probs - answer(smoothing + 1)[1]).max() > 1e-3
    corners = jnp.asarray(np.indices((2,) * 3).reshape(3, -1).T, float)
    assert abs(jnp.exp(jax.vmap(found.model.log_prob)(corners)).sum() - 1) < 1e-12


@pytest.mark.parametrize("smoothing", [0, 0.5])
def test_categorical_mixture_takes_the_steps_of_numpy(smoothing):
    rng = np.random.default_rng(1)
    probs, weights = rng.dirichlet(np.ones(7), (3, 3)), np.array([0.5, 0.3, 0.2])
    initial = em.MixtureModel(jnp.log(jnp.asarray(weights)), Categorical.from_probs(probs))
    found = em.fit(key(), em.categorical_mixture(3, 7, smoothing=smoothing), LEVELS, initial=initial, tolerance=0,
                   max_iterations=10)  # fmt: skip
    one_hot = np.eye(7)[LEVELS]

    def log_likelihoods(p):
        with np.errstate(divide="ignore"):
            return np.log(np.stack([np.take_along_axis(p_k, LEVELS.T, 1).prod(0) for p_k in p], 1))

    def answer(added):
        def maximise(r):
            return (np.einsum("nk,ndl->kdl", r, one_hot) + added) / (r.sum(0)[:, None, None] + 7 * added)

        return numpy_em(log_likelihoods, maximise, probs, weights, 10)

    _, probs_then, log_likelihood = answer(smoothing)
    np.testing.assert_allclose(found.model.components.probs, probs_then, atol=1e-12)
    assert abs(found.log_likelihood[-1] - log_likelihood) < 1e-12
    assert np.abs(found.model.components.probs - answer(smoothing + 1)[1]).max() > 1e-3
    law = found.model.components
    grid = np.indices((7,) * 3).reshape(3, -1).T
    assert abs(jnp.exp(jax.vmap(found.model.log_prob)(jnp.asarray(grid, jnp.int32))).sum() - 1) < 1e-12
    assert (np.asarray(law.log_probs == -jnp.inf).any()) == (smoothing == 0)  # unseen levels


def test_ppca_by_em_is_its_closed_form_and_scikit_learn_divides_by_one_less():
    n, closed = len(X), em.ppca_maximum(X, 1)
    found = em.fit(key(), em.ppca(1), X, tolerance=1e-15, max_iterations=3000)
    best = np.mean(jax.vmap(closed.log_prob)(jnp.asarray(X)))
    assert found.converged
    assert abs(found.log_likelihood[-1] - best) < 1e-10

    def spread(model):
        return model.marginal().covariance()

    np.testing.assert_allclose(spread(found.model), spread(closed), atol=1e-5)
    peer = PCA(1).fit(X)
    np.testing.assert_allclose(spread(closed), peer.get_covariance() * (n - 1) / n, atol=1e-12)
    assert best - peer.score(X) > 1e-8  # 1/(n-1) is not the maximum
    eigenvalues = np.linalg.eigvalsh(np.cov(X.T, bias=True))
    np.testing.assert_allclose(closed.noise, eigenvalues[:2].mean(), rtol=1e-12)
    average = em.FactorModel(closed.loc, closed.loadings, jnp.full(3, eigenvalues.mean()))
    assert np.mean(jax.vmap(average.log_prob)(jnp.asarray(X))) < best - 1e-3  # not the mean of all eigenvalues


def test_factor_analysis_reaches_the_likelihood_of_scikit_learn():
    rng = np.random.default_rng(5)
    data = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6)) + rng.normal(size=(400, 6)) * rng.uniform(0.5, 1.5, 6)
    found = em.fit(key(), em.factor_analysis(2), data, tolerance=1e-14, max_iterations=5000)
    peer = FactorAnalysis(2, tol=1e-13, max_iter=5000, svd_method="lapack").fit(data)
    assert abs(found.log_likelihood[-1] - peer.score(data)) < 1e-9
    np.testing.assert_allclose(found.model.noise, peer.noise_variance_, atol=1e-4)
    assert found.log_likelihood[-1] > np.mean(jax.vmap(em.ppca_maximum(data, 2).log_prob)(jnp.asarray(data))) + 1e-3


def test_the_e_step_makes_one_elbo_tight_and_its_gradient_that_of_the_likelihood():
    # Fisher's identity: d log p(x) = d ELBO(q) at q = p(z|x) held fixed; at another q neither holds
    mixture = model_about(X, Normal)
    rng = np.random.default_rng(2)
    factors = em.FactorModel(
        jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=(3, 2))), jnp.asarray([0.3, 0.5, 0.8])
    )
    x = jnp.asarray([0.4, -0.2, 1.1])

    def elbo(model, q):
        nodes = q.nodes(4)  # the enumeration, or a rule that is exact for squares
        terms = jax.vmap(lambda z: bounds.elbo(lambda z: model.likelihood(z).log_prob(x), q, model.prior, z).total)
        return nodes.weights @ terms(nodes.points)

    for model in (mixture, factors):

        @jax.jit
        def gap(model, at):
            evidence, gradient = jax.value_and_grad(lambda model: model.log_prob(x))(model)
            bound, slope = jax.value_and_grad(elbo)(model, jax.lax.stop_gradient(model.posterior(at)))
            differences = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), slope, gradient)
            return evidence - bound, jnp.stack(jax.tree.leaves(differences)).max()

        loss, difference = gap(model, x)
        assert abs(loss) < 1e-12
        assert difference < 1e-10
        loss, difference = gap(model, x + 1)
        assert loss > 1e-3
        assert difference > 1e-3


def test_factor_posterior_is_that_of_the_joint_normal_law():
    model = em.FactorModel(jnp.asarray([0.2, -0.1, 0.4]), jnp.asarray([[1, 0.5], [-0.5, 1], [0.3, -0.2]]),
                           jnp.asarray([0.3, 0.2, 0.7]))  # fmt: skip
    W, x = np.asarray(model.loadings), np.array([1, -0.5, 0.7])
    gain = W.T @ np.linalg.inv(W @ W.T + np.diag(model.noise))
    posterior = model.posterior(jnp.asarray(x))
    np.testing.assert_allclose(posterior.mean(), gain @ (x - model.loc), atol=1e-13)
    np.testing.assert_allclose(posterior.covariance(), np.eye(2) - gain @ W, atol=1e-13)
    expected = stats.multivariate_normal(model.loc, W @ W.T + np.diag(model.noise)).logpdf(x)
    assert abs(model.log_prob(jnp.asarray(x)) - expected) < 1e-12


def test_em_climbs_from_bad_starts_also_with_a_collapsing_component():
    family = em.full_gaussians(3, floor=1e-4)
    for seed in range(12):
        data = clusters(seed, n=20)
        data[:20] = data[0]  # one cluster is a single point: its covariance rests at the floor
        initial = model_about(np.tile(data, (5, 1)), MultivariateNormal)
        found = em.fit(key(), family, data, initial=initial, max_iterations=60)
        assert (np.diff(found.objective) > -1e-9).all()
        eigenvalues = np.linalg.eigvalsh(found.model.components.covariance())
        assert eigenvalues.min() > 1e-4 * (1 - 1e-6)
    wrong = em.fit(key(), family._replace(step=_forgets_weights(family)), data, initial=initial, max_iterations=1)
    assert np.isfinite(wrong.objective).all()
    with pytest.raises(em.NotMonotone, match="lowered the objective"):
        em.fit(key(), family._replace(step=_forgets_weights(family)), data, initial=found.model)


def test_float32_climbs_at_the_default_floor_with_components_of_low_rank(monkeypatch):
    # 20 components in 16 dimensions share 300 data: several have fewer data than directions
    data = np.random.default_rng(0).normal(size=(300, 16)).astype(np.float32)
    found = em.fit(key(), em.full_gaussians(20), data)
    covariance = np.asarray(found.model.components.covariance(), float)
    floor = gaussians.RESOLUTION * np.finfo(np.float32).eps * data.var(0).max()
    assert found.objective.dtype == np.float32
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance).min(), floor, rtol=0.05)  # it rests there
    monkeypatch.setattr(gaussians, "RESOLUTION", 0)
    with pytest.raises(em.NotMonotone, match="float64 or a higher floor"):
        em.fit(key(), em.full_gaussians.__wrapped__(20), data)  # the raw floor


def _forgets_weights(family):
    """The E-step q(z) ∝ p(x|z), without the prior."""

    def step(model, blocks):
        unweighted = em.MixtureModel(jnp.zeros_like(model.logits), model.components)
        return family.step(model, blocks)._replace(model=family.step(unweighted, blocks).model)

    return step


def test_the_likelihood_climbs_to_the_maximum_of_scikit_learn():
    rng = np.random.default_rng(0)
    data = np.concatenate([rng.normal(-2, 0.7, 150), rng.normal(1.5, 1, 100)])[:, None]
    found = em.fit(key(), em.full_gaussians(2), data, restarts=2, tolerance=1e-14)
    assert abs(250 * found.log_likelihood[-1] + 458.244465461) < 1e-8
    peer = GaussianMixture(2, tol=1e-13, max_iter=1000, reg_covar=0, random_state=0).fit(data)
    order, peer_order = np.argsort(found.model.components.loc[:, 0]), np.argsort(peer.means_[:, 0])
    np.testing.assert_allclose(found.model.components.loc[order], peer.means_[peer_order], atol=1e-5)
    np.testing.assert_allclose(np.exp(found.model.logits)[order], peer.weights_[peer_order], atol=1e-5)


def test_smoothed_objective_climbs_although_its_likelihood_may_fall():
    found = em.fit(key(), em.bernoulli_mixture(4, smoothing=3.0), BITS, restarts=4, tolerance=0, max_iterations=100)
    assert (np.diff(found.objective) > -1e-12).all()
    assert found.objective[-1] == found.restarts.max()
    probs = np.asarray(found.model.components.probs)
    log_prior = 3 * (np.log(probs) + np.log1p(-probs)).sum() / len(BITS)
    assert abs(found.objective[-1] - found.log_likelihood[-1] - log_prior) < 1e-12


def test_lloyd_is_the_limit_of_equal_spheres_and_of_scikit_learn():
    rng = np.random.default_rng(0)
    data = np.concatenate([rng.normal(-3, 1, 100), rng.normal(2, 1, 100)])[:, None]
    initial = np.array([[-1.0], [0.0]])
    hard = em.k_means(key(), data, 2, initial=jnp.asarray(initial))
    assert hard.converged
    np.testing.assert_allclose(hard.centres[:, 0], [-2.9189, 1.9494], atol=5e-5)
    assert abs(200 * hard.distortion[-1] - 183.906) < 5e-4
    peer = KMeans(2, init=initial, n_init=1, tol=0).fit(data)
    np.testing.assert_allclose(hard.centres, peer.cluster_centers_, atol=1e-12)
    np.testing.assert_array_equal(hard.assignment, peer.labels_)

    def soft(variance):
        laws = Normal(jnp.asarray(initial), jnp.full((2, 1), variance**0.5))
        start = em.MixtureModel(jnp.zeros(2), laws)
        family = em.soft_k_means(2, variance=variance)
        return em.fit(key(), family, data, initial=start, tolerance=1e-12).model.components.loc[:, 0]

    assert np.abs(soft(1e-4) - hard.centres[:, 0]).max() < 1e-3
    np.testing.assert_allclose(soft(4.0), [-2.587, 1.624], atol=1e-3)  # far from the limit


def test_the_nearest_centre_is_the_one_at_the_least_distance():
    rng = np.random.default_rng(7)
    centres, points = rng.normal(size=(6, 3)) * [1, 3, 0.5] + 20, rng.normal(size=(300, 3)) * 2 + 20
    found = jax.vmap(nearest, (None, 0))(jnp.asarray(centres), jnp.asarray(points))
    distances = cdist(points, centres)
    np.testing.assert_array_equal(found, distances.argmin(1))
    # the control: the spread of the centres decides for some points
    assert (distances.argmin(1) != (points @ centres.T).argmax(1)).any()


def test_k_means_plus_plus_draws_by_squared_distance():
    count, points = 20_000, np.array([[0.0], [1.0], [3.0]])
    draw = jax.jit(jax.vmap(lambda seed: plus_plus(jax.random.key(seed), jnp.asarray(points), 2)[:, 0]))
    with jax.debug_key_reuse(False):  # which takes the keys of a scan for used once they are vmapped
        first, second = np.asarray(draw(jnp.arange(count))).T
    seen = np.array([[((first == a) & (second == b)).sum() for b in points[:, 0]] for a in points[:, 0]])

    def check(distances):
        law = distances / distances.sum(1, keepdims=True) / 3
        deviation = np.where(law > 0, np.sqrt(count * law * (1 - law)), 1e-9)
        assert (np.abs(seen - count * law) <= z_threshold(9) * deviation).all()

    distances = cdist(points, points)
    holds_only_for(check, distances**2, distances)


def test_lloyd_with_ties_empty_clusters_and_repeated_data():
    data = np.array([[0.0], [0.0], [1.0], [9.0], [10.0], [11.0]])
    # the third centre attracts nothing: it moves to the farthest datum
    found = em.k_means(key(), data, 3, initial=jnp.asarray([[0.5], [10.0], [500.0]]))
    assert (np.diff(found.distortion) <= 0).all()
    assert len(set(np.asarray(found.assignment).tolist())) == 3
    tied = em.k_means(key(), np.array([[0.0], [1.0], [2.0]]), 2, initial=jnp.asarray([[0.0], [2.0]]))
    assert tied.assignment[1] == 0  # half-way: the first
    same = em.k_means(key(), np.ones((4, 2)), 3)
    np.testing.assert_array_equal(same.distortion, 0)
    blocks = batches(jnp.asarray(data), 4, data.dtype)
    right = lloyd_step(jnp.asarray([[0.0], [10.0]]), blocks)
    np.testing.assert_allclose(right.model, [[1 / 3], [10.0]], rtol=1e-15)


def test_the_answer_does_not_depend_on_the_blocks():
    initial = model_about(X, Normal)
    ends = [
        em.fit(key(), em.diagonal_gaussians(3), X, initial=initial, max_iterations=5, batch_size=size).model
        for size in (240, 7)
    ]
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), *ends))) < 1e-12


def test_one_component_is_the_maximum_likelihood_normal_law():
    data = np.column_stack([X[:, 0], np.full(len(X), 2.5)])  # a constant column rests at the floor
    for family in (em.full_gaussians(1), em.diagonal_gaussians(1)):
        laws = em.fit(key(), family, data).model.components
        np.testing.assert_allclose(laws.mean()[0], data.mean(0), atol=1e-12)
        np.testing.assert_allclose(laws.variance()[0], [data[:, 0].var(), 1e-6], rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "data", "expected"),
    [
        (em.full_gaussians(3), X, 2 + 3 * (3 + 6)),
        (em.tied_gaussians(3), X, 2 + 3 * 3 + 6),
        (em.diagonal_gaussians(3), X, 2 + 2 * 3 * 3),
        (em.spherical_gaussians(3), X, 2 + 3 * (3 + 1)),
        (em.bernoulli_mixture(3), BITS, 2 + 3 * 3),
        (em.categorical_mixture(3, 7), LEVELS, 2 + 3 * 3 * 6),
        (em.ppca(2), X, 3 + 3 * 2 - 1 + 1),
        (em.factor_analysis(2), X, 2 * 3 + 3 * 2 - 1),
    ],
)
def test_free_parameters_are_counted(family, data, expected):
    assert em.free_parameters(em.fit(key(), family, data, max_iterations=2).model) == expected


@pytest.mark.parametrize(
    ("family", "data", "message"),
    [
        (em.full_gaussians(3), X[:2], "at most the number of data"),
        (em.full_gaussians(3), np.zeros((0, 3)), "at least 1"),
        (em.full_gaussians(3), X[:, 0], "data\\[:, None\\]"),
        (em.full_gaussians(3), np.where(X[0, 0] == X, np.nan, X), "finite, got 1 NaN"),
        (em.bernoulli_mixture(2), X, "0 or 1"),
        (em.categorical_mixture(2, 5), LEVELS, "0 … 4"),
        (em.ppca(1), np.array([["a"]]), "real numbers"),
    ],
)
def test_bad_data_are_refused_by_name(family, data, message):
    with pytest.raises(ValueError, match=message):
        em.fit(key(), family, data)


def test_bad_arguments_are_refused_by_name():
    for call, message in [
        (lambda: em.full_gaussians(0), "components"),
        (lambda: em.diagonal_gaussians(2, floor=0), "floor"),
        (lambda: em.bernoulli_mixture(2, smoothing=-1), "smoothing"),
        (lambda: em.categorical_mixture(2, 1), "levels"),
        (lambda: em.ppca(0), "latent"),
        (lambda: em.ppca_maximum(X, 3), "latent must be below"),
        (lambda: em.k_means(key(), X, 0), "clusters"),
        (lambda: em.k_means(key(), X, 3, batch_size=0), "batch_size"),
        (lambda: em.k_means(key(), X[:2], 3), "clusters must be at most"),
        (lambda: em.fit(key(), em.ppca(1), X, restarts=0), "restarts"),
        (lambda: em.fit(key(), em.ppca(1), X, tolerance=-1), "tolerance"),
        (lambda: em.fit(key(), em.ppca(1), X, max_iterations=0), "max_iterations"),
        (lambda: em.discretised(model_about(X, MultivariateNormal), 17), "must be Normal"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
