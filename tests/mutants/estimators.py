"""Slips in the Monte-Carlo gradients; defects that known libraries shipped are in `tests.museum`."""

from tests.mutants.mutation import within

score_function, baselines = within("estimators/score_function.py"), within("estimators/baselines.py")
binary, rebar, relaxed = (within(f"estimators/{name}.py") for name in ("binary", "rebar", "relaxed"))
measure_valued, pathwise = within("estimators/measure_valued.py"), within("estimators/pathwise.py")
doubly_reparameterised = within("estimators/doubly_reparameterised.py")
multi_sample, without_replacement = within("estimators/multi_sample.py"), within("estimators/without_replacement.py")
coupling, control_variates = within("estimators/coupling.py"), within("estimators/control_variates.py")

ELBO = "test_score_family.py::test_score_family_is_unbiased_for_an_elbo_in_the_law_and_in_the_model"
BOUNDS = "test_score_family.py::test_score_function_and_vimco_are_unbiased_for_every_bound_in_the_law_and_in_the_model"
BITS = "test_binary.py::test_mean_is_the_gradient_for_a_function_of_the_whole_vector"
PARTS = "test_measure_valued.py::test_mean_is_the_derivative_of_the_characteristic_function"
PATHS = "test_pathwise.py::test_mean_is_the_gradient_of_the_bound_in_law_prior_and_likelihood"
SETS = "test_without_replacement.py::test_mean_is_the_gradient_of_the_enumerated_elbo"
NESTED = "test_mixed.py::test_nested_estimators_are_unbiased_for_both_levels_and_the_model"

MUTATIONS = (
    score_function(
        "leave-one-out: a sum of K - 1 divided by K",
        "(values.sum() - values) / (values.shape[0] - 1)",
        "(values.sum() - values) / values.shape[0]",
        "rloo-variance",
    ),
    score_function(
        "the baseline is added",
        "jnp.mean(b + (values - b) * magic_box(log_q))",
        "jnp.mean((values + b) * magic_box(log_q) - b)",
        "rloo-variance",
    ),
    score_function(
        "the gradient of f itself is stopped",
        "    b = stop_gradient(baseline)\n",
        "    b, values = stop_gradient(baseline), stop_gradient(values)\n",
        ELBO,
    ),
    score_function(
        "the score's own derivative is lost",
        "one = magic_box(*primals)",
        "one = jnp.ones_like(primals[0])",
        "test_estimators.py::test_score_function_surrogate_has_the_right_second_derivatives[none]",
    ),
    score_function(
        "of a bound: the mean of the scores for their sum",
        "log_q.sum()[None]",
        "log_q.mean()[None]",
        BOUNDS + "[2]",
    ),
    baselines(
        "moving average: no correction for the start at zero",
        "self.total / jnp.where(self.weight > 0, self.weight, 1)",
        "self.total",
        "test_score_family.py::test_moving_average_is_corrected_for_its_start_and_averages_over_a_batch",
    ),
    baselines(
        "optimal baseline: weighed by |score|, not by its square",
        "square = sum_of_others(s**2)\n            best = sum_of_others(level * s**2)",
        "square = sum_of_others(jnp.abs(s))\n            best = sum_of_others(level * jnp.abs(s))",
        "test_score_family.py::test_optimal_baseline_weighs_the_other_samples_by_their_squared_scores",
    ),
    baselines(
        "optimal baseline: it sees its own sample",
        "others = 1 - jnp.eye(samples, dtype=values.dtype)",
        "others = jnp.ones((samples, samples), values.dtype)",
        "test_score_family.py::test_optimal_baseline_weighs_the_other_samples_by_their_squared_scores",
    ),
    baselines(
        "NVIL: the network learns from the sum over samples",
        "jnp.mean((values - network.apply(params, features(q))) ** 2)",
        "jnp.sum((values - network.apply(params, features(q))) ** 2)",
        "test_score_family.py::test_nvil_takes_one_step_of_least_squares_after_use",
    ),
    binary(
        "DisARM: without its half",
        "jax.nn.sigmoid(jnp.abs(q.logits)) / 2",
        "jax.nn.sigmoid(jnp.abs(q.logits))",
        BITS + "[estimator1-3]",
    ),
    binary(
        "DisARM: σ(φ) for σ(|φ|)",
        "jax.nn.sigmoid(jnp.abs(q.logits)) / 2",
        "jax.nn.sigmoid(q.logits) / 2",
        BITS + "[estimator1-3]",
    ),
    binary(
        "ARMS: the correlation of the draws is not undone",
        " / (\n            1 - law.pair_correlation()\n        )",
        "",
        BITS + "[estimator2-2]",
    ),
    binary(
        "ARM: u for u - 1/2",
        "_weighted_mean(one - other, u - 1 / 2)",
        "_weighted_mean(one - other, u)",
        "test_binary.py::test_variance_equals_the_closed_form_at_the_lowest_order[arm-estimator0]",
    ),
    rebar(
        "REBAR: the gradient is a sum over the draws",
        "lambda g: g.mean(0), gradients",
        "lambda g: g.sum(0), gradients",
        "test_rebar.py::test_several_draws_are_averaged_in_the_value_and_in_the_gradient",
    ),
    rebar(
        "REBAR: the scale of the control variate is ignored",
        "control.scale * f(soften",
        "f(soften",
        "test_rebar.py::test_rebar_of_scale_zero_is_the_score_function_and_a_control_variate_can_beat_it",
    ),
    rebar(
        "tuned REBAR: descends on the gradient, not on its square",
        "sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient))",
        "sum(jnp.sum(g) for g in jax.tree.leaves(gradient))",
        "test_rebar.py::test_the_mean_update_is_the_slope_of_the_exact_variance",
    ),
    rebar(
        "REBAR: the value is a sum over the draws",
        "return costs.mean() + inject",
        "return costs.sum() + inject",
        "test_rebar.py::test_several_draws_are_averaged_in_the_value_and_in_the_gradient",
    ),
    relaxed(
        "conditional relaxation: noise is added outside of the softplus",
        "jax.nn.softplus(s + up)",
        "jax.nn.softplus(s) + up",
        "test_relaxed.py::test_a_bernoulli_and_its_relaxation_have_the_joint_law",
    ),
    relaxed(
        "one-hot relaxation: plus Gumbel for minus Gumbel",
        "sign = 1 if isinstance(q, Bernoulli) else -1",
        "sign = 1",
        "test_relaxed.py::test_one_hot_gumbel_softmax_adds_gumbel_noise_and_not_its_mirror_image",
    ),
    relaxed(
        "the temperature multiplies",
        "jax.nn.sigmoid(z / temperature)",
        "jax.nn.sigmoid(z * temperature)",
        "test_relaxed.py::test_gumbel_softmax_is_the_gradient_of_the_relaxed_objective_and_biased_for_the_discrete_one",
    ),
    relaxed(
        "ReinMax: the whole of the first-order term is taken off",
        " - q.mean() / 2",
        " - q.mean()",
        "test_relaxed.py::test_straight_through_is_exact_for_linear_costs_and_reinmax_for_quadratic_ones",
    ),
    measure_valued(
        "normal scale: σ² for σ in the constant",
        "maxwell / q.scale",
        "maxwell / q.scale**2",
        "test_measure_valued.py::test_variance_of_the_coupled_normal_parts_equals_the_closed_form",
    ),
    measure_valued("Poisson: the positive part is z + 2", "last[None] + 1", "last[None] + 2", PARTS + "[poisson]"),
    measure_valued(
        "gamma rate: the sign of the parts",
        "(None, -change[0] * q.concentration / q.rate)",
        "(None, change[0] * q.concentration / q.rate)",
        PARTS + "[gamma]",
    ),
    measure_valued(
        "categorical: the mean over categories is not taken off",
        "(q.probs * (by_category - mean),)",
        "(q.probs * by_category,)",
        "test_measure_valued.py::test_single_category_has_no_variance",
    ),
    measure_valued(
        "Bernoulli: the same sign for a one as for a zero",
        "(variance(q) * (1 - 2 * z) * change[0],)",
        "(variance(q) * change[0],)",
        "test_measure_valued.py::test_single_bit_has_no_variance_and_a_certain_one_no_gradient",
    ),
    pathwise(
        "antithetic: the mirrored noise is the noise again",
        "jax.vmap(q.noise().reflect)(noise)",
        "noise",
        "test_pathwise.py::test_antithetic_variance_is_the_closed_form_of_the_square_cost",
    ),
    doubly_reparameterised(
        "DReG: the second derivative is added",
        "path = _inner(first - second, _minus(",
        "path = _inner(first + second, _minus(",
        PATHS + "[doubly_reparameterised-iwae-2]",
    ),
    doubly_reparameterised(
        "DReG: rows of the Hessian for its diagonal",
        "jnp.diagonal(jax.hessian(bound)(log_weights))",
        "jax.hessian(bound)(log_weights).sum(0)",
        PATHS + "[doubly_reparameterised-iwae-2]",
    ),
    doubly_reparameterised(
        "sticking the landing: the score is doubled, not cancelled",
        "bound(values) + _weighted(",
        "bound(values) - _weighted(",
        "test_pathwise.py::test_no_variance_is_left_at_the_posterior",
    ),
    doubly_reparameterised(
        "GDReG: the likelihood's part of the prior's path has the wrong sign",
        "path_of_prior += _inner(",
        "path_of_prior -= _inner(",
        PATHS + "[generalised_doubly_reparameterised-iwae-2]",
    ),
    multi_sample(
        "VIMCO: the replacement contains its own sample",
        "others = (values.sum() - values) / (samples - 1)",
        "others = jnp.full_like(values, values.mean())",
        BOUNDS + "[2]",
    ),
    multi_sample(
        "TVO covariance: not centred",
        "weights * (values - expected_log(weights, values))",
        "weights * values",
        "test_score_family.py::test_covariance_gradient_of_the_tvo_is_consistent_biased_and_says_so",
    ),
    multi_sample(
        "wake-sleep: the draws share q's gradient evenly",
        "_weighted_score(shares, z, q)",
        "_weighted_score(jnp.full_like(shares, 1 / samples), z, q)",
        "test_score_family.py::test_wake_phase_gradients_are_those_of_the_enumerated_weights",
    ),
    without_replacement(
        "unordered set: the ratio is not divided by the set's probability",
        "return log_h[member] - log_h[0], ",
        "return log_h[member], ",
        SETS + "[unordered_set_with_baseline(3)]",
    ),
    without_replacement(
        "unordered set: the second ratios transposed",
        "log_h[member[:, None] | member] - log_h[member][:, None]",
        "log_h[member[:, None] | member] - log_h[member][None]",
        "test_without_replacement.py::test_weights_of_a_set_are_its_brute_force_ratios",
    ),
    without_replacement(
        "sum and sample: the rest counts as if it had all the mass",
        "+ mass * jnp.mean(",
        "+ jnp.mean(",
        SETS + "[sum_and_sample(2, 2)]",
    ),
    coupling(
        "a coin falls on the wrong side",
        "(u < law.probs).astype(law.dtype)",
        "(u > law.probs).astype(law.dtype)",
        NESTED + "[coin-coin]",
    ),
    coupling(
        "a category below the break, not above it",
        "u[..., None] >= _breaks(law.probs)",
        "u[..., None] <= _breaks(law.probs)",
        "test_mixed.py::test_equal_steps_of_the_uniform_noise_draw_each_category_in_its_share",
    ),
    coupling(
        "the last possible category ends below one",
        "return (below / below[..., -1:])[..., :-1]",
        "return (below * (1 - 1e-6))[..., :-1]",
        "test_mixed.py::test_an_impossible_category_is_never_drawn",
    ),
    control_variates(
        "Taylor: the quadratic term without its half",
        "deviation @ curvature @ deviation / 2",
        "deviation @ curvature @ deviation",
        "test_score_family.py::test_second_order_taylor_leaves_a_quadratic_cost_no_variance_under_every_independent_law",
    ),
    control_variates(
        "Taylor: the expansion's own gradient is not given back",
        "jax.vmap(q.log_prob)(z)) + expected(q))(held)",
        "jax.vmap(q.log_prob)(z)))(held)",
        ELBO,
    ),
    control_variates(
        "Taylor: E h with the variance's whole, not its half",
        "ravel_pytree(q.variance())[0] / 2",
        "ravel_pytree(q.variance())[0]",
        "test_score_family.py::test_second_order_taylor_leaves_a_quadratic_cost_no_variance_under_every_independent_law",
    ),
)
