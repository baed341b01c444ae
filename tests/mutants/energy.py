"""Slips in energy-based and directed models: laws, chains, phases, bounds."""

from tests.mutants.mutation import within

rbm, boltzmann, deep_belief, directed, states = (
    within(f"energy/{name}.py") for name in ("rbm", "boltzmann", "deep_belief", "directed", "states")
)

PAIRS = "test_energy.py::test_log_partition_and_log_prob_are_those_of_all_pairs_of_states[shape0]"
KERNELS = "test_energy.py::test_gibbs_kernels_are_those_of_the_conditionals_and_keep_the_law_of_their_temperature[0.4]"
PHASES = "test_energy.py::test_phases_are_the_slope_of_the_log_likelihood_by_finite_differences"
SAMPLED = "test_energy.py::test_sampled_contrastive_divergence_has_its_expected_mean"
EXPECTED = "test_energy.py::test_expected_contrastive_divergence_is_that_of_the_kernels_power_and_forgets_its_start"
CHAIN = "test_energy.py::test_gibbs_chain_follows_the_kernels_power"

MUTATIONS = (
    rbm(
        "RBM: half the coupling in the energy",
        "v @ self.weights @ h)",
        "0.5 * (v @ self.weights @ h))",
        PAIRS,
        "rbm-joint-and-partition",
    ),
    rbm(
        "RBM: the free energy loses its visible bias",
        "return -(self.visible_bias @ v + jax.nn.softplus(",
        "return -(jax.nn.softplus(",
        "rbm-free-energy",
        PAIRS,
    ),
    rbm(
        "RBM: log(1 + exp(x)) as it is written",
        "jax.nn.softplus(self.given_visible(v).logits)",
        "jnp.log(1 + jnp.exp(self.given_visible(v).logits))",
        "test_energy.py::test_free_energy_and_its_slope_stay_finite_at_log_odds_of_800[float64]",
        "rbm-free-energy",
    ),
    rbm(
        "RBM: log p without log Z",
        "return -self.free_energy(v) - self.log_partition()",
        "return -self.free_energy(v)",
        PAIRS,
        "rbm-contrastive-divergence",
    ),
    rbm(
        "RBM: the transposed machine negates the visible bias",
        "return RBM(self.hidden_bias, self.visible_bias, self.weights.T)",
        "return RBM(self.hidden_bias, -self.visible_bias, self.weights.T)",
        "test_energy.py::test_each_layer_is_independent_given_the_other",
        "rbm-conditional-independence",
    ),
    rbm(
        "RBM: the phases are added",
        "jax.tree.map(jnp.subtract, *self)",
        "jax.tree.map(jnp.add, *self)",
        "rbm-likelihood-gradient",
        PHASES,
    ),
    rbm(
        "RBM: statistics of the net input, not of its probability",
        "h = self.given_visible(v).probs",
        "h = self.given_visible(v).logits",
        "rbm-likelihood-gradient",
        PHASES,
    ),
    rbm(
        "block Gibbs passes on probabilities, not states",
        "rbm.given_visible(v).sample(key_hidden)",
        "rbm.given_visible(v).probs",
        SAMPLED,
        CHAIN,
    ),
    rbm(
        "a Gibbs chain with the same noise at every step",
        "jax.random.fold_in(key, t)",
        "jax.random.fold_in(key, 0)",
        CHAIN,
        SAMPLED,
    ),
    rbm(
        "persistent chain that starts again at the datum",
        "particle = gibbs_chain(key, rbm, particle, steps=steps)",
        "particle = gibbs_chain(key, rbm, v, steps=steps)",
        SAMPLED,
    ),
    rbm(
        "expected CD: one step too few",
        "jax.lax.fori_loop(0, steps, lambda _, law",
        "jax.lax.fori_loop(1, steps, lambda _, law",
        EXPECTED,
    ),
    boltzmann(
        "every pair counted twice",
        "-(x @ jnp.tril(self.weights, -1) @ x",
        "-(x @ self.couplings @ x",
        "test_energy.py::test_boltzmann_law_counts_every_pair_of_units_once",
        "boltzmann-machine-gibbs",
    ),
    boltzmann(
        "a unit sees itself",
        "below = jnp.tril(self.weights, -1)",
        "below = jnp.tril(self.weights)",
        KERNELS,
    ),
    boltzmann(
        "temperature multiplies",
        "parameter / temperature",
        "parameter * temperature",
        "boltzmann-machine-gibbs",
        KERNELS,
    ),
    boltzmann(
        "the random scan visits the first unit only",
        "return _unit_kernels(machine).mean(0)",
        "return _unit_kernels(machine)[0]",
        KERNELS,
    ),
    boltzmann(
        "normal noise for logistic",
        "jax.random.logistic(key, x.shape, x.dtype)",
        "jax.random.normal(key, x.shape, x.dtype)",
        "test_energy.py::test_sampled_visits_follow_their_kernels",
    ),
    boltzmann(
        "a sampled unit ignores its bias",
        "level = biases[unit] + couplings[unit] @ x + noise",
        "level = couplings[unit] @ x + noise",
        "test_energy.py::test_sampled_visits_follow_their_kernels",
        "test_energy.py::test_zero_temperature_is_the_hopfield_network_which_never_climbs",
    ),
    boltzmann(
        "a unit without net input switches off",
        "jnp.where(level == 0, x[unit], (level > 0).astype(x.dtype))",
        "(level > 0).astype(x.dtype)",
        "test_energy.py::test_unit_without_net_input_stays_in_the_hopfield_network",
    ),
    deep_belief(
        "the bound loses the entropy",
        "return self.reconstruction + self.prior + self.entropy",
        "return self.reconstruction + self.prior",
        "dbn-layerwise-bound",
        "test_energy.py::test_deep_belief_net_of_a_machine_and_its_transpose_is_that_machine_with_a_tight_bound",
    ),
    deep_belief(
        "a deep net's bound takes the codes' likelihood for their bound",
        "lambda h: _bound(tuple(rest), log_z, h).total",
        "lambda h: _log_weight(tuple(rest), h) - log_z",
        "test_energy.py::test_bound_of_a_deep_belief_net_is_that_of_the_tables_and_below_its_likelihood",
    ),
    deep_belief(
        "the aggregated posterior of the first datum alone",
        "return Mixture(jnp.zeros_like(logits[:, 0]), Bernoulli(logits))",
        "return Mixture(jnp.zeros_like(logits[:1, 0]), Bernoulli(logits[:1]))",
        "dbn-layerwise-bound",
        "test_energy.py::test_aggregated_posterior_raises_the_mean_bound_and_no_other_law_of_the_codes_raises_it_more",
    ),
    deep_belief(
        "a net's draw skips the top pair's chain",
        "top, steps=steps)",
        "top, steps=1)",
        "test_energy.py::test_samples_of_a_deep_belief_net_follow_its_law",
    ),
    directed(
        "ancestral sampling in the order of the names",
        "for i, key_i in zip(self.order, ",
        "for i, key_i in zip(range(len(self.order)), ",
        "test_energy.py::test_ancestral_samples_follow_the_law",
    ),
    directed(
        "a belief net reads its weights along the wrong axis",
        "weights[i, jnp.array(parents[i], int)]",
        "weights[jnp.array(parents[i], int), i]",
        "test_energy.py::test_sigmoid_belief_net_sees_its_parents_only",
    ),
    states(
        "the first unit is the last digit of a state's number",
        "shifts = jnp.arange(units)[::-1]",
        "shifts = jnp.arange(units)",
        "test_energy.py::test_states_count_in_binary_with_the_first_unit_first",
    ),
    states(
        "a state looked up in the other order",
        "2 ** jnp.arange(x.shape[0])[::-1]",
        "2 ** jnp.arange(x.shape[0])",
        EXPECTED,
    ),
)
