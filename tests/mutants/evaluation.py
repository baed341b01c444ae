"""Slips in what judges the rest: quadrature, tests of bias, moments, tails, repetition, random bits, scores."""

from tests.mutants.mutation import within

exact, testing, moments, tails = (within(f"{name}.py") for name in ("exact", "testing", "moments", "tails"))
replication, random, annealing = (within(f"{name}.py") for name in ("replication", "random", "annealing"))
evaluation, dequantisation = within("evaluation.py"), within("dequantisation.py")
frechet, kernel = within("sample_quality/frechet.py"), within("sample_quality/kernel.py")
modes, neighbours = within("sample_quality/modes.py"), within("sample_quality/neighbours.py")

DRAWS = "test_moments.py::test_moments_equal_numpy_on_the_same_draws"
TAILS = "test_tails.py::test_index_finds_the_tail_of_known_laws"
WALKS = "test_annealing.py::test_walks_up_average_to_the_evidence_and_walks_down_to_its_inverse"
SPREAD = "test_vae.py::test_monte_carlo_error_is_the_spread_over_repeated_evaluations"
BY_HAND = "test_sample_quality.py::test_neighbourhoods_of_a_set_counted_by_hand"

MUTATIONS = (
    exact(
        "the covariance of an estimator without the nodes' weights",
        "(weights[:, None] * deviations).T @ deviations",
        "deviations.T @ deviations / len(deviations)",
        "test_exact.py::test_exact_moments_equal_numpy_over_the_enumerated_draws",
    ),
    exact(
        "the certificate asks no odd order",
        "odd, _ = integrate(law.nodes(3 * order // 4 + 1))",
        "odd, _ = integrate(law.nodes(order))",
        "test_exact.py::test_two_rules_that_agree_by_accident_are_caught_by_the_odd_order",
    ),
    exact(
        "the certificate forgets that a rule may miss mass",
        ", abs(float(np.sum(nodes.weights)) - 1))",
        ", 0.0)",
        "test_exact.py::test_rules_that_agree_but_miss_mass_are_refused",
    ),
    exact(
        "the gradients along the path and by the score are not compared",
        "if by_path and by_score:",
        "if not by_path and by_score:",
        "test_exact.py::test_exact_gradient_refuses_a_jump_even_at_the_centre_of_symmetry",
    ),
    testing(
        "bias test: half of the two-sided half-width's error rate",
        "(np.log(spread) / 2 - np.log(alpha))",
        "(np.log(spread) / 2 - np.log(2 * alpha))",
        "test_testing.py::test_half_width_is_two_sided_at_its_rate_and_covers_at_all_counts_at_once",
    ),
    testing(
        "bias test: merged chunks forget that their means differ",
        " + delta**2 * count * len(x) / total",
        "",
        "test_testing.py::test_half_width_is_that_of_all_draws_at_the_rate_that_the_directions_share",
    ),
    testing(
        "bias test: a draw is certified while its interval is still wide",
        "np.all(np.abs(mean) + h < looks.delta)",
        "np.all(np.abs(mean) < looks.delta)",
        "test_testing.py::test_verdicts_reject_certify_and_stay_undecided",
    ),
    testing(
        "bias test: every direction gets the whole error rate",
        "error_rate / size, first_look",
        "error_rate, first_look",
        "test_testing.py::test_half_width_is_that_of_all_draws_at_the_rate_that_the_directions_share",
    ),
    testing(
        "bias test: a first rejection is final",
        'if found.outcome != "reject" or not np.isfinite(found.deviation):',
        "if True:",
        "test_testing.py::test_a_rejection_must_happen_twice",
    ),
    moments("variance: divided by n", "return s.second / (s.count - 1)", "return s.second / s.count", DRAWS + "[255]"),
    moments(
        "merged third powers: a sign",
        "3 * delta * (n_a * b.second - n_b * a.second)",
        "3 * delta * (n_a * b.second + n_b * a.second)",
        "test_moments.py::test_merged_power_sums_equal_those_of_the_whole_and_an_empty_block_changes_no_bit",
    ),
    moments(
        "merged fourth powers: n_a n_b with the wrong sign",
        "(n_a**2 - n_a * n_b + n_b**2)",
        "(n_a**2 + n_a * n_b + n_b**2)",
        "test_moments.py::test_merged_power_sums_equal_those_of_the_whole_and_an_empty_block_changes_no_bit",
    ),
    moments(
        "the standard error of the variance as if draws were normal",
        "np.maximum(_kurtosis(s) - (n - 3) / (n - 1), 0)",
        "np.full_like(s.mean, 2.0)",
        DRAWS + "[2049]",
    ),
    tails(
        "the Pareto index with the sign turned",
        "return np.log1p(-best[:, None] * x).mean(1)",
        "return -np.log1p(-best[:, None] * x).mean(1)",
        "test_tails.py::test_pareto_shape_is_near_maximum_likelihood",
    ),
    tails("extremes, not their excess over the threshold", "largest[:, 1:] - largest[:, :1]", "largest[:, 1:]", TAILS),
    tails(
        "the alarm's margin falls like 1/m",
        "1.5 / math.sqrt(exceedances)",
        "1.5 / exceedances",
        "test_tails.py::test_infinite_variance_is_found_with_the_power_that_theory_gives",
    ),
    replication(
        "every block draws what the first one drew",
        "sample(arguments, jax.random.fold_in(key, r)))(r)",
        "sample(arguments, jax.random.fold_in(key, r % np.uint32(BLOCK))))(r)",
        DRAWS + "[2049]",
    ),
    replication(
        "one replication too many is counted",
        "fold(statistics, x, r < replications)",
        "fold(statistics, x, r <= replications)",
        DRAWS + "[255]",
    ),
    replication(
        "blocks overlap by one replication",
        "begin = (first[0] + i) * np.uint32(BLOCK)",
        "begin = (first[0] + i) * np.uint32(BLOCK - 1)",
        DRAWS + "[2049]",
    ),
    random(
        "Threefry: one rotation is off by one",
        "(13, 15, 26, 6)",
        "(13, 15, 26, 7)",
        "test_random.py::test_cipher_gives_the_known_answers_of_random123",
    ),
    random(
        "Threefry: injections are counted from zero",
        "jnp.uint32(step + 1)",
        "jnp.uint32(step)",
        "test_random.py::test_cipher_gives_the_known_answers_of_random123",
    ),
    random(
        "split and fold_in share a stream",
        "_BITS, _FOLD_IN, _SPLIT = 0, 1, 2",
        "_BITS, _FOLD_IN, _SPLIT = 0, 1, 1",
        "test_random.py::test_streams_of_one_key_do_not_meet",
    ),
    annealing(
        "Hamiltonian chains: the kinetic energy without its half",
        "0.5 * (final @ final - momentum @ momentum)",
        "(final @ final - momentum @ momentum)",
        WALKS,
    ),
    annealing(
        "Hamiltonian chains: the first kick is a whole one",
        "momentum = momentum + 0.5 * step_size * point.slope(beta)",
        "momentum = momentum + step_size * point.slope(beta)",
        WALKS,
    ),
    annealing(
        "the way down is weighed with the sign of the way up",
        "return -jax.vmap(lambda key: _walk(",
        "return jax.vmap(lambda key: _walk(",
        WALKS,
    ),
    annealing(
        "the path runs from the posterior to q",
        "(1 - beta) * self.log_initial + beta * self.log_joint",
        "beta * self.log_initial + (1 - beta) * self.log_joint",
        WALKS,
    ),
    evaluation(
        "bits per dimension: divided by log 2 once too little",
        "unit = self.dimensions * math.log(2)",
        "unit = self.dimensions",
        "test_vae.py::test_bits_per_dimension_is_nats_over_size_times_log_two",
    ),
    evaluation(
        "the Monte-Carlo error of a mean falls like 1/√n twice over",
        "jnp.sqrt(self.variance.sum()) / self.nats.shape[0]",
        "jnp.sqrt(self.variance.mean()) / self.nats.shape[0]",
        SPREAD,
    ),
    evaluation(
        "active units: the deviation for the variance",
        "codes.var(0, ddof=1) > ACTIVE_VARIANCE",
        "codes.std(0, ddof=1) > ACTIVE_VARIANCE",
        "test_vae.py::test_active_units_counts_coordinates_whose_mean_varies",
    ),
    evaluation(
        "the upper bound is the lower bound of the way down",
        "return bounds.iwae(up), -bounds.iwae(-down)",
        "return bounds.iwae(up), bounds.iwae(down)",
        "test_exact_answers.py::test_on_data_drawn_from_the_model_the_bidirectional_bounds_close_and_their_gap_is_what_is_lost",
    ),
    dequantisation(
        "the cell is [0, 1), not about the integer",
        "minval=-0.5, maxval=0.5",
        "minval=0.0, maxval=1.0",
        "test_dequantisation.py::test_the_mean_of_densities_under_unit_noise_is_the_mass",
    ),
    dequantisation(
        "the noise fills half of the cell",
        "minval=-0.5, maxval=0.5",
        "minval=-0.25, maxval=0.25",
        "test_dequantisation.py::test_the_mean_of_densities_under_unit_noise_is_the_mass",
    ),
    dequantisation(
        "what the draws closed, with the sign turned",
        "return self.importance_weighted - self.bound",
        "return self.bound - self.importance_weighted",
        "test_dequantisation.py::test_dequantised_bounds_have_their_expectations",
    ),
    frechet(
        "Fréchet: the overlap once, not twice",
        "jnp.trace(q.covariance) - 2 * overlap",
        "jnp.trace(q.covariance) - overlap",
        "test_sample_quality.py::test_frechet_distance_is_that_of_the_matrix_square_root",
    ),
    frechet(
        "Fréchet: covariances divided by n",
        "centred.T @ centred / (count - 1)",
        "centred.T @ centred / count",
        "test_sample_quality.py::test_a_fitted_gaussian_has_the_unbiased_covariance",
    ),
    frechet(
        "Fréchet: the bias of the covariances doubled",
        "jnp.where(sums > 0, sums, 1), 0).sum() / 2",
        "jnp.where(sums > 0, sums, 1), 0).sum()",
        "test_sample_quality.py::test_the_bias_for_the_identity_is_2d_over_n_plus_half_d_times_d_plus_1_over_n",
    ),
    kernel(
        "kernel distance: a point's kernel with itself counts",
        "off_diagonal = within.sum(1) - jnp.diagonal(within)",
        "off_diagonal = within.sum(1)",
        "test_sample_quality.py::test_the_kernel_distance_is_the_u_statistic_of_all_pairs_and_not_the_v_statistic",
    ),
    kernel(
        "cubic kernel: not divided by the dimension",
        "jnp.vdot(x, y) / x.shape[0] + 1",
        "jnp.vdot(x, y) + 1",
        "test_sample_quality.py::test_the_kernel_distance_is_the_u_statistic_of_all_pairs_and_not_the_v_statistic",
    ),
    kernel(
        "kernel distance: the cross term once in either half",
        "without -= 2 * (cross - to_other.sum(1))",
        "without -= (cross - to_other.sum(1))",
        "test_sample_quality.py::test_the_kernel_distance_is_the_u_statistic_of_all_pairs_and_not_the_v_statistic",
    ),
    modes(
        "modes: log k plus the entropy",
        "shares.dtype)) + negative_entropy",
        "shares.dtype)) - negative_entropy",
        "test_sample_quality.py::test_modes_are_counted_and_a_stray_point_covers_none",
    ),
    modes(
        "modes: the bias of k modes for that of k - 1",
        "return (modes - 1) / (2 * count)",
        "return modes / (2 * count)",
        "test_sample_quality.py::test_the_bias_of_the_histograms_divergence_is_that_of_the_binomial_law",
    ),
    modes(
        "modes: the radius for its square",
        "jnp.asarray(deviations**2 / 2)",
        "jnp.asarray(deviations / 2)",
        "test_sample_quality.py::test_the_share_within_three_deviations_is_the_chi_square_law",
    ),
    neighbours(
        "a point is its own first neighbour",
        "_squared_distances(points, points), 1)[:, k]",
        "_squared_distances(points, points), 1)[:, k - 1]",
        BY_HAND,
    ),
    neighbours(
        "precision and recall swapped",
        "in_real.any(0), real.dtype),\n        recall=_share(in_model.any(1)",
        "in_model.any(1), real.dtype),\n        recall=_share(in_real.any(0)",
        BY_HAND,
    ),
    neighbours(
        "expected coverage: products from zero",
        "for i in range(1, k + 1))",
        "for i in range(k))",
        "test_sample_quality.py::test_for_equal_laws_density_is_one_and_coverage_as_expected_in_any_dimension",
    ),
)
