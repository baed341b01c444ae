"""Energy-based and directed models against sums over every state, written in NumPy without them."""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from oracles import holds_only_for, z_threshold
from scipy import special, stats
from sklearn.neural_network import BernoulliRBM

from vbjax import datasets
from vbjax.distributions import Bernoulli, Normal
from vbjax.energy import (
    RBM,
    BoltzmannMachine,
    DeepBeliefNet,
    Phases,
    aggregated_posterior,
    contrastive_divergence,
    directed_model,
    expected_contrastive_divergence,
    gibbs_chain,
    hopfield_sweep,
    initial_rbm,
    layerwise_bound,
    likelihood_phases,
    persistent_contrastive_divergence,
    random_scan_kernel,
    random_scan_step,
    sequential_kernel,
    sequential_sweep,
    sigmoid_belief_net,
    states,
    tempered,
    visible_kernel,
)

pytestmark = pytest.mark.usefixtures("x64")


def corners(units):
    return np.array(list(itertools.product((0.0, 1.0), repeat=units))).reshape(-1, units)


def random_rbm(visible, hidden, *, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return RBM(*(jnp.asarray(scale * rng.normal(size=shape)) for shape in (visible, hidden, (visible, hidden))))


def random_machine(units, *, seed=0):
    rng = np.random.default_rng(seed)
    return BoltzmannMachine(jnp.asarray(rng.normal(size=units)), jnp.asarray(1.5 * rng.normal(size=(units, units))))


class Enumerated:
    """p(v, h) of an RBM as a table over all pairs of states."""

    def __init__(self, rbm, low=0.0):
        b, c, w = map(np.asarray, rbm)
        self.v, self.h = (low + (1 - low) * corners(len(x)) for x in (b, c))
        self.minus_energy = (self.v @ b)[:, None] + (self.h @ c)[None] + self.v @ w @ self.h.T
        self.log_z = special.logsumexp(self.minus_energy)
        self.joint = np.exp(self.minus_energy - self.log_z)
        self.visible, self.hidden = self.joint.sum(1), self.joint.sum(0)

    def gibbs_kernel(self):
        return (self.joint / self.visible[:, None]) @ (self.joint / self.hidden).T

    def mean_statistics(self, law):
        """Means of (v, h, v hᵀ) for v of this law and h given v."""
        joint = law[:, None] * self.joint / self.visible[:, None]
        return RBM(joint.sum(1) @ self.v, joint.sum(0) @ self.h, self.v.T @ joint @ self.h)


def agree(found, expected, **tolerance):
    jax.tree.map(lambda a, b: assert_allclose(a, b, **({"rtol": 1e-12, "atol": 1e-12} | tolerance)), found, expected)


def z_scores(draws, expected):
    """Of the means of draws over the leading axis, pairs of coordinates included."""
    expected_mean, expected_pairs = expected
    pairs = np.einsum("ni,nj->nij", draws, draws)
    scores = []
    for values, target in ((draws, expected_mean), (pairs, expected_pairs)):
        error = np.sqrt(target * (1 - target) / len(draws))
        scores.append(((values.mean(0) - target) / error).ravel())
    return np.concatenate(scores)


def moments(law, at):
    """E x and E x xᵀ of a law over the rows of `at`."""
    return law @ at, (at * law[:, None]).T @ at


def follows(draws, law, at):
    scores = z_scores(np.asarray(draws), moments(law, at))
    assert np.abs(scores).max() < z_threshold(len(scores))


def test_states_count_in_binary_with_the_first_unit_first():
    holds_only_for(lambda x: assert_allclose(states(3), x), corners(3), corners(3)[:, ::-1])


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 6)])
def test_log_partition_and_log_prob_are_those_of_all_pairs_of_states(shape):
    rbm = random_rbm(*shape, scale=2.0)

    @jax.jit
    def found():
        v = states(shape[0])
        pairs = jax.vmap(lambda v: jax.vmap(lambda h: rbm.energy(v, h))(states(shape[1])))(v)
        return rbm.log_partition(), jax.vmap(rbm.log_prob)(v), -pairs

    def check(table):
        agree(found(), (table.log_z, np.log(table.visible), table.minus_energy))

    holds_only_for(check, Enumerated(rbm), Enumerated(rbm, low=-1.0), Enumerated(rbm._replace(weights=-rbm.weights)))


def test_log_partition_sums_states_in_blocks_and_over_the_smaller_layer():
    """2^13 states are two blocks; 30 visible units would be a billion."""
    rbm = random_rbm(30, 13, scale=0.5)
    b, c, w = map(np.asarray, rbm)
    h = corners(13)
    expected = special.logsumexp(h @ c + np.logaddexp(0, b + h @ w.T).sum(1))

    def check(expected):
        assert_allclose(jax.jit(lambda: (rbm.log_partition(), rbm.transposed.log_partition()))(), [expected] * 2)

    holds_only_for(check, expected, special.logsumexp((h @ c + np.logaddexp(0, b + h @ w.T).sum(1))[:4096]))


def test_each_layer_is_independent_given_the_other():
    rbm = random_rbm(4, 3)

    @jax.jit
    def conditionals():
        v, h = states(4), states(3)
        given_v = jax.vmap(lambda v: jax.vmap(rbm.given_visible(v).log_prob)(h))(v)
        given_h = jax.vmap(lambda h: jax.vmap(rbm.given_hidden(h).log_prob)(v))(h)
        return jnp.exp(given_v), jnp.exp(given_h)

    def check(minus_energy):
        joint = np.exp(minus_energy)
        agree(conditionals(), (joint / joint.sum(1, keepdims=True), (joint / joint.sum(0)).T))

    table = Enumerated(rbm)
    coupled = table.minus_energy + (table.h[:, 0] * table.h[:, 1])[None]
    holds_only_for(
        check, table.minus_energy, coupled, Enumerated(rbm._replace(hidden_bias=-rbm.hidden_bias)).minus_energy
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_free_energy_and_its_slope_stay_finite_at_log_odds_of_800(dtype):
    rbm = RBM(jnp.array([1.0], dtype), jnp.array([400.0, -400.0, 0.0], dtype), jnp.array([[400.0, -400.0, 0.5]], dtype))
    v = jnp.ones(1, dtype)
    value, slope = jax.jit(jax.value_and_grad(lambda rbm: rbm.free_energy(v)))(rbm)
    with np.errstate(over="ignore"):
        naive = -1 - np.log1p(np.exp(np.array([800.0, -800.0, 0.5], dtype))).sum()

    holds_only_for(lambda x: assert_allclose(value, x, rtol=1e-6), -801 - np.logaddexp(0, 0.5), naive)
    agree(slope.hidden_bias, -special.expit([800.0, -800.0, 0.5]), rtol=1e-6)


def test_phases_are_the_slope_of_the_log_likelihood_by_finite_differences():
    rbm, h = random_rbm(4, 3), 1e-5
    v = jnp.array([1.0, 0.0, 1.0, 1.0])
    flat, unravel = jax.flatten_util.ravel_pytree(rbm)

    def log_prob(flat):
        b, c, w = map(np.asarray, unravel(jnp.asarray(flat)))
        every = corners(4)
        minus_free = every @ b + np.logaddexp(0, c + every @ w).sum(1)
        return minus_free[11] - special.logsumexp(minus_free)  # 1011 is 11

    slope = np.array([(log_prob(flat + h * e) - log_prob(flat - h * e)) / (2 * h) for e in np.eye(len(flat))])
    found = jax.jit(lambda: (likelihood_phases(rbm, v), jax.grad(lambda rbm: rbm.log_prob(v))(rbm)))()
    biased = jax.jit(lambda: expected_contrastive_divergence(rbm, v, steps=1))()

    def check(gradient):
        assert_allclose(jax.flatten_util.ravel_pytree(gradient)[0], slope, atol=1e-9)

    holds_only_for(check, found[0].gradient, found[0].positive, biased.gradient)
    agree(found[0].gradient, found[1])


def test_negative_phase_is_the_mean_under_the_model():
    rbm = random_rbm(3, 4)
    table = Enumerated(rbm)
    negative = jax.jit(lambda: likelihood_phases(rbm, jnp.ones(3)).negative)()
    uniform = np.full(8, 1 / 8)
    holds_only_for(
        lambda law: agree(negative, table.mean_statistics(law)), table.visible, uniform
    )  # fmt: skip


def test_block_gibbs_leaves_the_visible_law_invariant_and_is_reversible():
    rbm = random_rbm(3, 2)
    table, kernel = Enumerated(rbm), np.asarray(jax.jit(visible_kernel)(rbm))
    holds_only_for(lambda k: agree(kernel, k), table.gibbs_kernel(), table.gibbs_kernel().T)
    holds_only_for(lambda law: assert_allclose(law @ kernel, law, atol=1e-14), table.visible, np.full(8, 1 / 8))
    flow = table.visible[:, None] * kernel
    assert_allclose(flow, flow.T, atol=1e-15)


def test_expected_contrastive_divergence_is_that_of_the_kernels_power_and_forgets_its_start():
    rbm, v = random_rbm(3, 2), jnp.array([0.0, 1.0, 1.0])
    table, start = Enumerated(rbm), np.eye(8)[3]
    counts = (1, 3, 10, 60)
    found = {k: jax.jit(functools.partial(expected_contrastive_divergence, steps=k))(rbm, v) for k in counts}
    exact = jax.jit(likelihood_phases)(rbm, v)

    def check(shift):
        for k in counts[:3]:
            law = start @ np.linalg.matrix_power(table.gibbs_kernel(), k + shift)
            agree(found[k].negative, table.mean_statistics(law))

    holds_only_for(check, 0, 1, -1)
    errors = [np.abs(found[k].gradient.weights - exact.gradient.weights).max() for k in counts]
    assert errors[0] > 0.05
    assert np.all(np.diff(errors) < 0)
    assert errors[-1] < 1e-12


def test_sampled_contrastive_divergence_has_its_expected_mean():
    """CD-1, CD-3, and a persistent chain whose particle starts elsewhere."""
    rbm, v, other = random_rbm(3, 2), jnp.array([0.0, 1.0, 1.0]), jnp.array([1.0, 1.0, 0.0])
    keys = [jax.random.split(key, 20_000) for key in jax.random.split(jax.random.key(3), 3)]

    @jax.jit
    def drawn(*keys):
        cd = [jax.vmap(lambda key, k=k: contrastive_divergence(key, rbm, v, steps=k))(keys[i])
              for i, k in enumerate((1, 3))]  # fmt: skip
        kept, particles = jax.vmap(lambda key: persistent_contrastive_divergence(key, rbm, v, other, steps=2))(keys[2])
        after = jax.vmap(rbm.statistics)(particles)
        return [*cd, kept], jax.tree.map(lambda a, b: jnp.abs(a - b).max(), kept.negative, after)

    phases, differences = drawn(*keys)
    assert max(jax.tree.leaves(differences)) == 0

    def check(starts_and_steps):
        scores = []
        for found, (start, steps) in zip(phases, starts_and_steps, strict=True):
            expected = jax.jit(functools.partial(expected_contrastive_divergence, steps=steps))(rbm, start).negative
            for draws, mean in zip(map(np.asarray, found.negative), expected, strict=True):
                scores.append(((draws.mean(0) - mean) / (draws.std(0) / len(draws) ** 0.5)).ravel())
        scores = np.concatenate(scores)
        assert np.abs(scores).max() < z_threshold(len(scores))

    holds_only_for(check, [(v, 1), (v, 3), (other, 2)], [(v, 2), (v, 3), (other, 2)], [(v, 1), (v, 3), (v, 2)])
    positive = jax.jit(rbm.statistics)(v)
    jax.tree.map(lambda a, b: assert_allclose(a[0], b, rtol=1e-12), phases[2].positive, positive)


def test_gibbs_chain_follows_the_kernels_power():
    rbm, v = random_rbm(3, 2, scale=1.5), jnp.array([1.0, 0.0, 0.0])
    keys = jax.random.split(jax.random.key(4), 20_000)
    draws = jax.jit(jax.vmap(lambda key: gibbs_chain(key, rbm, v, steps=2)))(keys)
    kernel = Enumerated(rbm).gibbs_kernel()
    holds_only_for(lambda law: follows(draws, law, corners(3)), (kernel @ kernel)[4], kernel[4], (kernel @ kernel)[3])


def test_initial_rbm_is_the_datas_independent_law():
    mean = jnp.array([0.1, 0.5, 0.8])
    rbm = initial_rbm(jax.random.key(0), mean, hidden=2, scale=0)
    found = jax.jit(jax.vmap(rbm.log_prob))(states(3))
    expected = stats.bernoulli.logpmf(corners(3), np.asarray(mean)[None]).sum(1)
    holds_only_for(lambda p: assert_allclose(found, p, rtol=1e-12), expected, expected[::-1])
    assert np.std(initial_rbm(jax.random.key(0), mean, hidden=4000, scale=0.5).weights) == pytest.approx(0.5, rel=0.05)


class EnumeratedMachine:
    """π(x) and the visits' kernels of a Boltzmann machine, entry by entry."""

    def __init__(self, machine):
        b, w = np.asarray(machine.biases), np.tril(np.asarray(machine.weights), -1)
        self.w, self.b, self.x = w + w.T, b, corners(len(b))
        self.minus_energy = np.array([sum(w[i, j] * x[i] * x[j] for i in range(len(b)) for j in range(i)) + b @ x
                                      for x in self.x])  # fmt: skip
        self.law = np.exp(self.minus_energy - special.logsumexp(self.minus_energy))

    def visit(self, unit):
        """From ratios of π, not from net inputs."""
        kernel = np.zeros((len(self.x),) * 2)
        for row, x in enumerate(self.x):
            reachable = [i for i, y in enumerate(self.x) if np.array_equal(np.delete(y, unit), np.delete(x, unit))]
            kernel[row, reachable] = self.law[reachable] / self.law[reachable].sum()
        return kernel

    def sequential(self, order=None):
        return functools.reduce(np.matmul, map(self.visit, order or range(len(self.b))))

    def random_scan(self):
        return np.mean([self.visit(i) for i in range(len(self.b))], axis=0)

    def synchronous(self):
        on = special.expit(self.b + self.x @ self.w)
        return np.prod(np.where(self.x[None] == 1, on[:, None], 1 - on[:, None]), axis=2)


def test_boltzmann_law_counts_every_pair_of_units_once():
    machine = random_machine(4)
    both = jax.jit(lambda m: (jax.vmap(m.log_prob)(states(4)), jax.vmap(m.energy)(states(4))))
    table = EnumeratedMachine(machine)
    twice = EnumeratedMachine(machine._replace(weights=2 * machine.weights))

    def check(table):
        agree(both(machine), (np.log(table.law), -table.minus_energy))

    holds_only_for(check, table, twice)
    symmetric = machine._replace(weights=machine.couplings + jnp.eye(4))
    agree(both(symmetric), both(machine))


@pytest.mark.parametrize("temperature", [1.0, 0.4, 3.0])
def test_gibbs_kernels_are_those_of_the_conditionals_and_keep_the_law_of_their_temperature(temperature):
    machine = random_machine(4, seed=1)
    hot = tempered(machine, temperature)
    sequential, scan = map(np.asarray, jax.jit(lambda m: (sequential_kernel(m), random_scan_kernel(m)))(hot))
    table = EnumeratedMachine(BoltzmannMachine(*(leaf / temperature for leaf in machine)))
    holds_only_for(
        lambda k: agree(sequential, k), table.sequential(), table.sequential([3, 2, 1, 0]), table.synchronous()
    )
    holds_only_for(lambda k: agree(scan, k), table.random_scan(), table.visit(0))

    def stationary(kernel):
        assert_allclose(table.law @ kernel, table.law, atol=1e-14)

    holds_only_for(stationary, sequential, table.synchronous())
    holds_only_for(stationary, scan, sequential_kernel(tempered(machine, 2 * temperature)))
    flow = table.law[:, None] * scan
    assert_allclose(flow, flow.T, atol=1e-15)


def test_sampled_visits_follow_their_kernels():
    machine, x = random_machine(3, seed=2), jnp.array([1.0, 0.0, 1.0])
    keys = [jax.random.split(key, 20_000) for key in jax.random.split(jax.random.key(5))]
    sweep, step = jax.jit(lambda *keys: (
        jax.vmap(lambda key: sequential_sweep(key, machine, x))(keys[0]),
        jax.vmap(lambda key: random_scan_step(key, machine, x))(keys[1]),
    ))(*keys)  # fmt: skip
    table = EnumeratedMachine(machine)

    def swept(kernel):
        follows(sweep, kernel[5], corners(3))

    holds_only_for(swept, table.sequential(), table.synchronous(), table.sequential([2, 1, 0]), table.random_scan())
    holds_only_for(lambda kernel: follows(step, kernel[5], corners(3)), table.random_scan(), table.sequential())


def test_zero_temperature_is_the_hopfield_network_which_never_climbs():
    machine = random_machine(4, seed=3)
    table = EnumeratedMachine(machine)

    def hopfield(x, synchronous=False):
        x, old = x.copy(), x.copy()
        for i in range(len(x)):
            x[i] = float(table.b[i] + table.w[i] @ (old if synchronous else x) > 0)
        return x

    @jax.jit
    def found():
        swept = jax.vmap(lambda x: hopfield_sweep(machine, x))(states(4))
        return swept, sequential_kernel(tempered(machine, 1e-4)) @ states(4), jax.vmap(machine.energy)(swept)

    swept, cold, energies = found()

    def check(synchronous):
        expected = np.array([hopfield(x, synchronous) for x in table.x])
        agree((swept, cold), (expected, expected))

    holds_only_for(check, False, True)
    assert np.all(-table.minus_energy >= energies - 1e-12)
    assert np.any(-table.minus_energy > energies + 0.1)


def test_unit_without_net_input_stays_in_the_hopfield_network():
    free = BoltzmannMachine(jnp.zeros(2), jnp.zeros((2, 2)))
    for x in corners(2):
        assert_allclose(hopfield_sweep(free, jnp.asarray(x)), x)


def test_deep_belief_net_of_a_machine_and_its_transpose_is_that_machine_with_a_tight_bound():
    rbm = random_rbm(3, 2)

    @jax.jit
    def found(second):
        net = DeepBeliefNet((rbm, second))
        return jax.vmap(lambda v: (net.log_prob(v), net.bound(v).total))(states(3))

    expected = np.log(Enumerated(rbm).visible)

    def check(second):
        agree(found(second), (expected, expected))

    holds_only_for(check, rbm.transposed, random_rbm(2, 3, seed=1), rbm.transposed._replace(weights=rbm.weights.T / 2))


def belief_tables(machines):
    """log p(v), and the terms of the bound, by products of tables."""
    *lower, top = [Enumerated(rbm) for rbm in machines]
    below = np.log(top.visible)
    prior = below
    terms = []
    for table in reversed(lower):
        q = table.joint / table.visible[:, None]
        log_given = np.log(table.joint / table.hidden)
        terms = [(q * log_given).sum(1), q @ prior, -(q * np.log(q)).sum(1)]
        prior = sum(terms)
        below = special.logsumexp(log_given + below[None], axis=1)
    return below, terms


def test_bound_of_a_deep_belief_net_is_that_of_the_tables_and_below_its_likelihood():
    machines = tuple(random_rbm(*shape, seed=i) for i, shape in enumerate([(3, 2), (2, 3), (3, 2)]))

    @jax.jit
    def found():
        net = DeepBeliefNet(machines)
        return jax.vmap(lambda v: (net.log_prob(v), tuple(net.bound(v))))(states(3))

    log_prob, bound = found()

    def check(machines):
        expected, terms = belief_tables(machines)
        agree((log_prob, bound), (expected, tuple(terms)))

    holds_only_for(check, machines, machines[:2], (machines[0], machines[1], random_rbm(3, 2, seed=9)))
    assert_allclose(np.exp(log_prob).sum(), 1)
    assert np.all(sum(bound) < log_prob - 1e-3)


def test_bound_sums_codes_in_blocks():
    """2^13 codes are two blocks."""
    rbm, v = random_rbm(2, 13, scale=0.5), jnp.array([1.0, 0.0])
    second = random_rbm(13, 2, scale=0.5, seed=1)

    def found():
        net = DeepBeliefNet((rbm, second))
        return net.log_prob(v), tuple(net.bound(v)), layerwise_bound(rbm, v, second.log_prob).total

    likelihood, terms = belief_tables((rbm, second))

    def check(expected):
        agree(jax.jit(found)(), expected)

    table, prior = Enumerated(rbm), Enumerated(second).visible
    given = (table.joint / table.hidden)[2]
    half = np.log(given[:4096] @ prior[:4096])
    bound = tuple(term[2] for term in terms)
    holds_only_for(check, (likelihood[2], bound, sum(bound)), (half, bound, sum(bound)))


def test_largest_net_and_its_gradient_need_no_table_of_codes_times_data_times_pixels():
    """20 codes, 64 pixels and 20 data: such a table holds 5.4 GB."""
    rbm = RBM(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64,), (20,), (64, 20))))
    data = jax.ShapeDtypeStruct((20, 64), jnp.float32)

    def loss(rbm, data):
        net = DeepBeliefNet((rbm, rbm.transposed))
        return jax.vmap(lambda v: net.log_prob(v) + net.bound(v).total)(data).sum()

    memory = jax.jit(jax.grad(loss)).lower(rbm, data).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1e9


def test_aggregated_posterior_raises_the_mean_bound_and_no_other_law_of_the_codes_raises_it_more():
    rbm = random_rbm(4, 3, scale=2)
    data = jnp.asarray((np.random.default_rng(0).random((20, 4)) < [0.9, 0.2, 0.6, 0.5]).astype(float))
    others = np.random.default_rng(1).dirichlet(np.ones(8), 20)

    def mean_bound(log_prior):
        return jax.vmap(lambda v: layerwise_bound(rbm, v, log_prior).total)(data).mean()

    @jax.jit
    def found():
        own, best = mean_bound(rbm.transposed.log_prob), mean_bound(aggregated_posterior(rbm, data).log_prob)
        weights = 2 ** jnp.arange(3)[::-1]
        table = jnp.log(jnp.asarray(others))
        tables = jax.vmap(lambda row: mean_bound(lambda h: row[h.astype(int) @ weights]))(table)
        return own, best, tables, jax.vmap(rbm.log_prob)(data).mean()

    own, best, tables, evidence = found()
    table = Enumerated(rbm)
    rows = (np.asarray(data) @ [8, 4, 2, 1]).astype(int)
    q = (table.joint / table.visible[:, None])[rows]
    log_given = np.log((table.joint / table.hidden)[rows])

    def check(prior):
        assert_allclose(best, (q * (log_given + np.log(prior) - np.log(q))).sum(1).mean())

    holds_only_for(check, q.mean(0), table.hidden)
    assert_allclose(own, evidence)
    assert best > own + 0.01
    assert tables.max() < best


def test_samples_of_a_deep_belief_net_follow_its_law():
    machines = random_rbm(3, 2), random_rbm(2, 2, scale=2, seed=1)
    keys = jax.random.split(jax.random.key(6), 20_000)
    draws = jax.jit(jax.vmap(lambda key: DeepBeliefNet(machines).sample(key, jnp.zeros(2), steps=12)))(keys)
    law = np.exp(belief_tables(machines)[0])
    first, top = map(Enumerated, machines)
    one_step = (first.joint / first.hidden) @ top.gibbs_kernel()[0]
    holds_only_for(lambda p: follows(draws, p, corners(3)), law, first.visible, one_step)


PARENTS = ((2,), (0, 2), (), (1, 0, 2))
"""x₂ → x₀ → x₁ → x₃, and all shortcuts: the order of the names is not the order of the variables."""


def deep_conditionals(seed=0):
    """Small networks, each of another function of its parents."""
    rng = np.random.default_rng(seed)

    def network(size):
        first, second = jnp.asarray(rng.normal(size=(4, size))), jnp.asarray(2 * rng.normal(size=4))
        return lambda values: Bernoulli(second @ jnp.tanh(first @ values + 0.5))

    return [network(len(parents)) for parents in PARENTS]


def test_directed_model_is_normalised_whatever_networks_its_conditionals_are():
    conditionals = deep_conditionals()
    total = jax.jit(lambda: jnp.exp(jax.vmap(directed_model(PARENTS, conditionals).log_prob)(states(4))).sum())()
    cyclic = ((2,), (0, 2), (3,), (1, 0, 2))
    x = corners(4)

    def by_hand(parents):
        networks = deep_conditionals()
        networks[2] = lambda values: Bernoulli(jnp.where(values.sum() > 0, 2.0, -2.0))
        factors = [[networks[i](jnp.asarray(row[list(p)])).probs for row in x] for i, p in enumerate(parents)]
        return np.prod(np.where(x.T == 1, factors, 1 - np.array(factors)), axis=0).sum()

    assert_allclose(total, 1, rtol=1e-13)
    assert_allclose(by_hand(PARENTS), 1, rtol=1e-13)
    assert abs(by_hand(cyclic) - 1) > 0.05


def belief_net():
    rng = np.random.default_rng(7)
    biases, weights = rng.normal(size=4), 2 * rng.normal(size=(4, 4))
    mask = np.array([[j in parents for j in range(4)] for parents in PARENTS])
    x = corners(4)
    net = sigmoid_belief_net(PARENTS, jnp.asarray(biases), jnp.asarray(weights))
    on = special.expit(biases + x @ (weights * mask).T)
    all_seen = special.expit(biases + x @ weights.T)
    return net, *(np.prod(np.where(x == 1, p, 1 - p), axis=1) for p in (on, all_seen))


def test_sigmoid_belief_net_sees_its_parents_only():
    net, expected, unmasked = belief_net()
    found = jax.jit(jax.vmap(net.log_prob))(states(4))
    holds_only_for(lambda p: assert_allclose(found, np.log(p), rtol=1e-12), expected, unmasked)


def test_ancestral_samples_follow_the_law():
    net, law, _ = belief_net()
    draws = jax.jit(jax.vmap(net.sample))(jax.random.split(jax.random.key(8), 20_000))
    at = corners(4)
    independent = np.prod(np.where(at == 1, law @ at, 1 - law @ at), axis=1)
    holds_only_for(lambda p: follows(draws, p, at), law, independent)


def test_directed_model_of_normal_conditionals_is_the_joint_normal():
    """x₁ ~ N(1, 1), x₀ = -x₁ + N(0, ½²), x₂ = x₀ + 2 x₁ + N(0, 1): a linear map of independent noise."""
    model = directed_model(
        ((1,), (), (0, 1)),
        [
            lambda pa: Normal(-pa[0], 0.5),
            lambda pa: Normal(jnp.array(1.0), 1.0),
            lambda pa: Normal(pa[0] + 2 * pa[1], 1.0),
        ],
    )
    root = np.array([[0.5, -1, 0], [0, 1, 0], [0.5, 1, 1]])
    points = np.random.default_rng(0).normal(size=(5, 3))
    found = jax.jit(jax.vmap(model.log_prob))(jnp.asarray(points))

    def check(root):
        assert_allclose(found, stats.multivariate_normal([-1, 1, 1], root @ root.T).logpdf(points), rtol=1e-12)

    holds_only_for(check, root, root * [1, 1, -0.5])
    draws = np.asarray(jax.jit(jax.vmap(model.sample))(jax.random.split(jax.random.key(9), 20_000)))
    noise = np.linalg.solve(root, (draws - [-1, 1, 1]).T).T
    scores = np.concatenate([noise.mean(0), (noise**2 - 1).mean(0) / 2**0.5, (noise * noise[:, [1, 2, 0]]).mean(0)])
    assert np.abs(scores).max() * 20_000**0.5 < z_threshold(len(scores))


def mean_over(phases):
    return jax.tree.map(lambda leaf: leaf.mean(0), phases)


def exact_phases(keys, rbm, batch, particles):
    return Phases(mean_over(jax.vmap(rbm.statistics)(batch)), jax.grad(RBM.log_partition)(rbm)), particles


def one_step_phases(keys, rbm, batch, particles):
    return mean_over(jax.vmap(lambda key, v: contrastive_divergence(key, rbm, v))(keys, batch)), particles


def persistent_phases(keys, rbm, batch, particles):
    phases, particles = jax.vmap(lambda key, v, p: persistent_contrastive_divergence(key, rbm, v, p))(
        keys, batch, particles
    )
    return mean_over(phases), particles


def swapped_phases(keys, rbm, batch, particles):
    phases, particles = one_step_phases(keys, rbm, batch, particles)
    return Phases(*reversed(phases)), particles


@pytest.mark.slow
def test_contrastive_divergence_climbs_the_exact_likelihood_of_digits_as_far_as_its_exact_gradient():
    """Ten hidden units on binarised digits, 400 steps: each route gains 4.3 nats a test image over pixels alone.

    Measured on the test images: start -24.87, exact -20.53, CD-1 -20.60, persistent -20.54; scikit-learn's persistent
    chains after 20 epochs -22.58.
    """
    digits = datasets.load("digits").binarised(7)
    with jax.enable_x64(False):
        train, test = (
            jnp.asarray(x, jnp.float32).reshape(len(x), -1) for x in (digits.train_images, digits.test_images)
        )
        initial = initial_rbm(jax.random.key(0), (train.sum(0) + 1) / (len(train) + 2), hidden=10)

        def step(phases, state, t):
            rbm, particles = state
            key_batch, key_phases = jax.random.split(jax.random.fold_in(jax.random.key(1), t))
            batch = train[jax.random.randint(key_batch, (100,), 0, len(train))]
            found, particles = phases(jax.random.split(key_phases, 100), rbm, batch, particles)
            rate = 0.4 * (1 - t / 400)
            return (jax.tree.map(lambda parameter, g: parameter + rate * g, rbm, found.gradient), particles), None

        def trained(phases):
            start = initial, train[:100]
            return jax.jit(lambda: jax.lax.scan(functools.partial(step, phases), start, jnp.arange(400)))()[0][0]

        log_prob = jax.jit(lambda rbm: jax.vmap(rbm.log_prob)(test).mean())
        start, exact = log_prob(initial), log_prob(trained(exact_phases))

        peer = BernoulliRBM(10, learning_rate=0.1, batch_size=20, n_iter=20, random_state=0).fit(np.asarray(train))
        theirs = RBM(*map(jnp.asarray, (peer.intercept_visible_, peer.intercept_hidden_, peer.components_.T)))
        assert_allclose(jax.vmap(theirs.free_energy)(test), peer._free_energy(np.asarray(test)), atol=1e-4)

        def check(phases):
            found = log_prob(trained(phases))
            assert found > start + 3.5
            assert abs(found - exact) < 0.15
            assert found > log_prob(theirs) + 1

        holds_only_for(check, one_step_phases, swapped_phases)
        check(persistent_phases)


def wide(visible, hidden):
    return RBM(jnp.zeros(visible), jnp.zeros(hidden), jnp.zeros((visible, hidden)))


REFUSALS = {
    "both layers large": (
        lambda: wide(21, 30).log_prob(jnp.zeros(21)),
        "log Z .* at most 20 .* got 21; make one layer",
    ),
    "large kernel": (lambda: visible_kernel(wide(3, 11)), "at most 10 .* got 11; run chains with gibbs_step"),
    "large expected CD": (lambda: expected_contrastive_divergence(wide(11, 2), jnp.zeros(11)), "at most 10"),
    "large machine": (lambda: BoltzmannMachine(jnp.zeros(21), jnp.zeros((21, 21))).log_partition(), "at most 20"),
    "large machine's kernel": (
        lambda: sequential_kernel(BoltzmannMachine(jnp.zeros(11), jnp.zeros((11, 11)))),
        "at most 10",
    ),
    "many codes": (lambda: layerwise_bound(wide(2, 21), jnp.zeros(2), jnp.sum), "at most 20 .* draws of given_visible"),
    "many codes in all": (
        lambda: DeepBeliefNet((wide(2, 11), wide(11, 11), wide(11, 2))).bound(jnp.zeros(2)),
        "at most 20 .* got 22",
    ),
    "many states": (lambda: states(21), "at most 20"),
    "no step": (lambda: contrastive_divergence(jax.random.key(0), wide(2, 2), jnp.zeros(2), steps=0), "steps .* got 0"),
    "no step, persistent": (
        lambda: persistent_contrastive_divergence(jax.random.key(0), wide(2, 2), *[jnp.zeros(2)] * 2, steps=0),
        "steps",
    ),
    "no expected step": (lambda: expected_contrastive_divergence(wide(2, 2), jnp.zeros(2), steps=0), "steps must be"),
    "no step of a chain": (lambda: gibbs_chain(jax.random.key(0), wide(2, 2), jnp.zeros(2), steps=-1), "got -1"),
    "no step of the top pair": (
        lambda: DeepBeliefNet((wide(2, 3), wide(3, 2))).sample(jax.random.key(0), jnp.zeros(2), steps=0),
        "steps must be at least 1, got 0",
    ),
    "no temperature": (lambda: tempered(random_machine(2), 0.0), "temperature .* got 0; hopfield_sweep"),
    "layers that do not fit": (
        lambda: DeepBeliefNet((wide(2, 3), wide(2, 3))).log_prob(jnp.zeros(2)),
        "visible units as",
    ),
    "one layer": (lambda: DeepBeliefNet((wide(2, 3),)).bound(jnp.zeros(2)), "two or more"),
    "constant pixel": (
        lambda: initial_rbm(jax.random.key(0), jnp.array([0.0, 0.5]), hidden=2),
        r"inside \(0, 1\), got 0",
    ),
    "no hidden unit": (lambda: initial_rbm(jax.random.key(0), jnp.array([0.5]), hidden=0), "hidden must be"),
    "cycle": (lambda: directed_model(((1,), (2,), (0,)), [lambda pa: None] * 3), "cycle, .* → .*undirected"),
    "cyclic belief net": (lambda: sigmoid_belief_net(((1,), (0,)), jnp.zeros(2), jnp.zeros((2, 2))), "cycle"),
    "own parent": (lambda: directed_model(((0,),), [lambda pa: None]), "cycle, 0 → 0"),
    "strange parent": (lambda: directed_model(((3,), ()), [lambda pa: None] * 2), r"variables 0 … 1, got \[3\]"),
    "doubled parent": (
        lambda: directed_model(((), (0, 0)), [lambda pa: None] * 2),
        r"named once each, got \(0, 0\) for variable 1",
    ),
    "few biases": (
        lambda: inspect.unwrap(sigmoid_belief_net)(((), (0,)), jnp.zeros(1), jnp.zeros((2, 2))),
        r"biases must be \(2,\), .* got shape \(1,\)",
    ),
    "few weights": (
        lambda: inspect.unwrap(sigmoid_belief_net)(((), (0,)), jnp.zeros(2), jnp.zeros((2, 1))),
        r"weights must be \(2, 2\), .* got shape \(2, 1\)",
    ),
    "missing conditional": (
        lambda: directed_model(((), (0,)), [lambda pa: None]),
        "one per variable: 2 .* 1 have a law",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_done_is_refused_with_a_way_out(name):
    call, message = REFUSALS[name]
    with pytest.raises(ValueError, match=message):
        call()
