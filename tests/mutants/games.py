"""Slips in the games of GANs: losses, penalties, best discriminators, dynamics, cycles."""

from tests.mutants.mutation import within

values, penalties, optimal, games, dirac, cycle = (
    within(f"gan/{name}.py") for name in ("values", "penalties", "optimal", "games", "dirac", "cycle")
)

LOSSES = "test_gan.py::test_least_losses_of_finite_laws_are_their_divergences"
PENALTIES = "test_gan.py::test_penalties_are_what_differences_of_the_discriminator_give"
LINE = "test_gan.py::test_wasserstein_distance_is_the_value_of_the_lipschitz_game"
POWER = "test_gan.py::test_power_iteration_is_within_its_bound_of_the_largest_singular_value"
MATRICES = "test_games.py::test_each_method_moves_deviations_by_its_matrix"
DIRAC = "test_games.py::test_dirac_eigenvalues_are_those_of_the_numerical_jacobian[minimax]"
R1 = "test_games.py::test_r1_makes_the_dirac_gan_attract_at_its_rate_up_to_the_largest_step[0.5]"
CYCLES = "test_gan.py::test_cycle_loss_sees_maps_that_do_not_undo_each_other_one_direction_at_a_time"

MUTATIONS = (
    values(
        "minimax: no halves",
        "return 0.5 * jax.nn.softplus(logit)",
        "return jax.nn.softplus(logit)",
        "gan-discriminator-bce",
    ),
    values(
        "the generator of the non-saturating game wants to be found out",
        "generator=lambda logit: _half_softplus(-logit))",
        "generator=lambda logit: _half_softplus(logit))",
        "gan-nonsaturating",
    ),
    values(
        "hinge: no margin for fakes",
        "jax.nn.relu(1 + score)",
        "jax.nn.relu(score)",
        "test_gan.py::test_optimal_output_minimises_the_loss_at_every_point[hinge]",
        LOSSES,
    ),
    values(
        "least squares: fakes are regressed to minus one",
        "fake=lambda score: 0.5 * score**2",
        "fake=lambda score: 0.5 * (score + 1) ** 2",
        "test_gan.py::test_optimal_output_minimises_the_loss_at_every_point[least_squares]",
    ),
    values(
        "the discriminator's loss reaches the generator",
        "discriminator(jax.lax.stop_gradient(x_fake))",
        "discriminator(x_fake)",
        "test_gan.py::test_generator_learns_through_the_slope_of_the_discriminator_alone[minimax]",
        "test_cycle_gan.py::test_discriminators_learn_from_their_own_game_and_generators_from_all_but_the_penalty",
    ),
    penalties(
        "gradient penalty: the slope is drawn to zero",
        "jnp.where(flat, 1, squared))) - 1) ** 2",
        "jnp.where(flat, 1, squared)))) ** 2",
        PENALTIES,
    ),
    penalties(
        "gradient penalty: the norm's square is drawn to one",
        "jnp.sqrt(jnp.where(flat, 1, squared))",
        "jnp.where(flat, 1, squared)",
        PENALTIES,
    ),
    penalties(
        "R1 without its half",
        "return 0.5 * _squared_slope(discriminator, x_real)",
        "return _squared_slope(discriminator, x_real)",
        R1,
    ),
    penalties(
        "penalties between: u and 1 - u swapped",
        "u * x_real + (1 - u) * jax.lax.stop_gradient(x_fake)",
        "(1 - u) * x_real + u * jax.lax.stop_gradient(x_fake)",
        PENALTIES,
    ),
    penalties(
        "spectral norm: the square of the singular value",
        "return v @ matrix @ u, u",
        "return (v @ matrix @ u) ** 2, u",
        POWER,
    ),
    penalties(
        "spectral norm: a vector of the wrong side",
        "v = _unit(fixed @ u, v)",
        "v = _unit(fixed @ jnp.abs(u), v)",
        POWER,
    ),
    penalties(
        "convolution: the norm of the reshaped kernel",
        "jnp.max(jax.vmap(jax.vmap(_largest_singular_value))(frequencies))",
        "dense_norm(kernel)",
        "test_gan.py::test_lipschitz_constant_of_a_convolution_is_that_of_its_operator_and_not_of_its_reshaped_kernel",
    ),
    optimal(
        "the best discriminator says fake to data",
        "optimum(jnp.where(nowhere, 0, log_p) - jnp.where(nowhere, 0, log_q))",
        "optimum(jnp.where(nowhere, 0, log_q) - jnp.where(nowhere, 0, log_p))",
        "gan-optimal-discriminator",
    ),
    optimal(
        "the expected loss shows fakes to both of its terms",
        "return mean(game.real, data) + mean(game.fake, model)",
        "return mean(game.real, model) + mean(game.fake, model)",
        "gan-value-jsd",
    ),
    optimal(
        "W₁: signed areas cancel",
        "jnp.sum(jnp.abs(excess) * jnp.diff(points))",
        "jnp.abs(jnp.sum(excess * jnp.diff(points)))",
        LINE,
    ),
    optimal(
        "W₁: the potential falls where it should rise",
        "jnp.cumsum(jnp.sign(excess) * jnp.diff(points))",
        "jnp.cumsum(-jnp.sign(excess) * jnp.diff(points))",
        LINE,
    ),
    games(
        "the field: one player climbs",
        "jax.tree.map(jnp.negative, jax.grad(players.discriminator, 1)(*point))",
        "jax.grad(players.discriminator, 1)(*point)",
        "gan-gda-rotation",
        "test_games.py::test_game_jacobian_is_that_of_the_blocks_and_not_a_hessian",
    ),
    games(
        "optimistic: the gradient before is not taken off",
        "lambda new, old: 2 * new - old, now, before",
        "lambda new, old: 2 * new, now, before",
        MATRICES + "[optimistic]",
    ),
    games(
        "extragradient: looks ahead, then steps from there",
        "return _moved(point, vector_field(players, _simultaneous(players, point, previous, rate)), rate)",
        """point = _simultaneous(players, point, previous, rate)
    return _moved(point, vector_field(players, point), rate)""",
        MATRICES + "[extragradient]",
    ),
    games(
        "alternating: the generator answers the old discriminator",
        "return generator @ discriminator",
        "return discriminator @ generator",
        MATRICES + "[alternating]",
    ),
    games(
        "consensus: climbs the field's norm",
        "lambda v, g: v - weight * g, field, towards",
        "lambda v, g: v + weight * g, field, towards",
        MATRICES + "[consensus]",
    ),
    games(
        "the rate: the largest real part for the largest modulus",
        "jnp.max(jnp.abs(jnp.linalg.eigvals(matrix)))",
        "jnp.max(jnp.linalg.eigvals(matrix).real)",
        "gan-gda-rotation",
        "test_games.py::test_rates_of_the_bilinear_game_are_those_worked_out_by_hand",
    ),
    dirac(
        "Dirac: the penalty is left out",
        " + penalty(D, real, theta)",
        "",
        R1,
    ),
    dirac(
        "Dirac: γ for γ/2",
        "(gamma / 2 + 0 * product, gamma**2 / 4 + product)",
        "(gamma + 0 * product, gamma**2 / 4 + product)",
        "test_games.py::test_dirac_eigenvalues_in_the_units_of_the_paper[1.0]",
        DIRAC,
    ),
    dirac(
        "Dirac: γ/4 for γ²/4",
        "gamma**2 / 4 + product",
        "gamma / 4 + product",
        "test_games.py::test_dirac_eigenvalues_in_the_units_of_the_paper[3.0]",
    ),
    cycle(
        "cycles: both go the same way round",
        "_distance(back(there(x)), x), _distance(there(back(y)), y)",
        "_distance(back(there(x)), x), _distance(back(there(y)), y)",
        CYCLES,
    ),
    cycle(
        "cycles: summed over coordinates",
        "return jnp.mean(jnp.abs(x - y))",
        "return jnp.sum(jnp.abs(x - y))",
        CYCLES,
        "test_gan.py::test_identity_loss_chooses_between_the_two_affine_pairs_that_the_cycle_loss_leaves",
    ),
    cycle(
        "affine pairs: the way back is turned the same way",
        "mapped(y_law, x_law, rotation.T)",
        "mapped(y_law, x_law, rotation)",
        "test_gan.py::test_every_rotation_gives_a_cycle_consistent_pair_between_normals_that_is_right_in_law",
    ),
)
