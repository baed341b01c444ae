"""Slips in the laws: densities, moments, reparameterisations, flows, couplings."""

from tests.mutants.mutation import within

continuous, discrete = within("distributions/continuous.py"), within("distributions/discrete.py")
gamma, discretised = within("distributions/gamma.py"), within("distributions/discretised.py")
flows, compound = within("distributions/flows.py"), within("distributions/compound.py")
couplings, autoregressive = within("distributions/couplings.py"), within("distributions/autoregressive.py")

DENSITY = "test_distributions.py::test_log_density_matches_scipy_and_numpyro"
MASS = "test_distributions.py::test_log_mass_matches_scipy_and_numpyro"
MOMENTS = "test_distributions.py::test_mean_and_variance_match_scipy"
ENTROPY = "test_distributions.py::test_entropy_matches_scipy_and_sums_over_coordinates"
FLOW = "test_flows.py::test_density_is_the_change_of_variables_by_the_jacobian_and_the_inverse_is_exact"
LEVELS = "test_discretised.py::test_level_probabilities_are_differences_of_the_distribution_function_with_the_tails"
INTERVAL = "test_discretised.py::test_log_normal_interval_matches_high_precision_in_both_tails_and_across_the_branches"

MUTATIONS = (
    continuous(
        "Normal: the logarithm of the variance for that of the scale",
        "jnp.sum(-0.5 * (z**2 + LOG_2PI) - jnp.log(self.scale))",
        "jnp.sum(-0.5 * (z**2 + LOG_2PI) - 2 * jnp.log(self.scale))",
        "gaussian-observation-nll",
        DENSITY + "[Normal]",
    ),
    continuous(
        "full covariance: the Cholesky factor transposed in the transport",
        "(self.factor @ noise[..., None])[..., 0]",
        "(jnp.swapaxes(self.factor, -1, -2) @ noise[..., None])[..., 0]",
        "gaussian-affine-reparameterisation",
    ),
    continuous(
        "full covariance: squares summed over the wrong axis of the factor",
        "jnp.sum(self.factor**2, axis=-1)",
        "jnp.sum(self.factor**2, axis=-2)",
        "test_distributions.py::test_transport_of_a_multivariate_normal_has_its_covariance",
    ),
    continuous(
        "full covariance: LᵀL for LLᵀ",
        "return self.factor @ jnp.swapaxes(self.factor, -1, -2)",
        "return jnp.swapaxes(self.factor, -1, -2) @ self.factor",
        "test_distributions.py::test_multivariate_normal_of_any_condition_matches_scipy",
        "test_linear_gaussian.py::test_the_marginal_is_scipys_and_the_mean_evidence_its_average_over_the_data",
    ),
    continuous(
        "log-normal: no Jacobian",
        "self.log().log_prob(log_x) - log_x.sum(), -jnp.inf",
        "self.log().log_prob(log_x), -jnp.inf",
        DENSITY + "[LogNormal]",
    ),
    continuous(
        "log-normal: the median for the mean",
        "jnp.exp(self.loc + 0.5 * self.scale**2)",
        "jnp.exp(self.loc)",
        MOMENTS + "[LogNormal]",
    ),
    continuous(
        "Laplace: the scale for the standard deviation",
        "return 2 * self.scale**2",
        "return self.scale**2",
        MOMENTS + "[Laplace]",
    ),
    continuous(
        "logistic: an entropy of one nat too few",
        "jnp.sum(2 + jnp.log(self.scale))",
        "jnp.sum(1 + jnp.log(self.scale))",
        ENTROPY + "[Logistic]",
    ),
    continuous(
        "uniform: the transport reaches low + high",
        "return self.low + (self.high - self.low) * noise",
        "return self.low + self.high * noise",
        "test_reparameterisation.py::test_gradient_of_an_expectation_by_transport_matches_differences_of_quadrature[Uniform]",
    ),
    discrete(
        "Bernoulli: zeros and ones swapped",
        "jnp.where(x == 1, -self.logits, self.logits)",
        "jnp.where(x == 1, self.logits, -self.logits)",
        MASS + "[Bernoulli]",
    ),
    discrete(
        "Bernoulli: the entropy without its linear term",
        "jax.nn.softplus(-size) + size * jax.nn.sigmoid(-size)",
        "jax.nn.softplus(-size)",
        ENTROPY + "[Bernoulli]",
    ),
    discrete(
        "categorical: softmax over the wrong axis",
        "return jax.nn.log_softmax(self.logits)",
        "return jax.nn.log_softmax(self.logits, axis=0)",
        "test_distributions.py::test_rows_of_logits_are_independent_categories",
    ),
    discrete(
        "one-hot: p for p (1 - p)",
        "return self.probs * (1 - self.probs)",
        "return self.probs",
        "test_distributions.py::test_categorical_with_exact_zeros_matches_direct_sums",
    ),
    discrete(
        "Poisson: Γ(x + 2) for x!", "self.rate - gammaln(x + 1))", "self.rate - gammaln(x + 2))", MASS + "[Poisson]"
    ),
    discrete(
        "0 · log 0 is not zero",
        "possible = probs > 0",
        "possible = probs > -1",
        "test_distributions.py::test_categorical_with_exact_zeros_matches_direct_sums",
    ),
    gamma(
        "log-gamma: the gamma law's exponent a - 1, without the Jacobian",
        "log_density = self.concentration * x - jnp.exp(x)",
        "log_density = (self.concentration - 1) * x - jnp.exp(x)",
        DENSITY + "[LogGamma]",
    ),
    gamma(
        "implicit gradient: that of g for that of log g",
        "jax.lax.random_gamma_grad(a, g) / g)",
        "jax.lax.random_gamma_grad(a, g))",
        "test_reparameterisation.py::test_implicit_gamma_gradient_is_the_slope_of_the_quantile",
    ),
    gamma(
        "implicit gradient of tiny draws: ψ(a) for ψ(a + 1)",
        "(digamma(a + 1) - y) / a",
        "(digamma(a) - y) / a",
        "test_reparameterisation.py::test_implicit_gamma_gradient_is_the_slope_of_the_quantile",
    ),
    gamma(
        "the second implicit derivative holds the sample still",
        "    y = implicit_log_gamma(a, y)  # so that a further forward derivative follows y as a moves\n",
        "",
        "test_reparameterisation.py::test_second_derivative_of_the_implicit_gamma_is_forward_over_reverse",
    ),
    gamma(
        "Student: ν for ν/2 under the root",
        "jnp.log(self.df / 2) - log_g",
        "jnp.log(self.df) - log_g",
        "test_reparameterisation.py::test_implicit_student_gradient_is_the_slope_of_the_quantile_of_its_gamma",
    ),
    gamma(
        "gamma: the rate taken for a scale",
        "return self.concentration / self.rate\n",
        "return self.concentration * self.rate\n",
        MOMENTS + "[Gamma]",
    ),
    gamma("beta: a variance without the + 1", "total**2 * (total + 1)", "total**3", MOMENTS + "[Beta]"),
    gamma(
        "Dirichlet: the entropy counts k - 1 categories",
        "(total - a.shape[-1]) * digamma(total)",
        "(total - a.shape[-1] + 1) * digamma(total)",
        "test_distributions.py::test_dirichlet_matches_scipy_and_numpyro",
    ),
    discretised(
        "the first and the last level have no tails",
        "jnp.where(first, log_below, jnp.where(last, log_above, inner))",
        "inner",
        LEVELS,
    ),
    discretised(
        "bins are as wide as if there were one level more",
        "half = 1 / (self.levels - 1)",
        "half = 1 / self.levels",
        LEVELS,
    ),
    discretised("narrow bins: two points of Gauss for eight", "leggauss(8)", "leggauss(2)", INTERVAL),
    discretised(
        "wide bins: half of the difference of the squares",
        "-2 * centre * wide_radius",
        "-centre * wide_radius",
        INTERVAL,
    ),
    flows(
        "the log-determinant of the way back has the wrong sign",
        "log_determinant -= log_scale.sum()",
        "log_determinant += log_scale.sum()",
        FLOW,
    ),
    flows(
        "layers are undone in the order in which they were done",
        "in reversed([*enumerate(self.conditioners)])",
        "in enumerate(self.conditioners)",
        FLOW,
    ),
    flows(
        "the shift is taken off after the scaling",
        "(moved - shift) * jnp.exp(-log_scale)",
        "moved * jnp.exp(-log_scale) - shift",
        FLOW,
    ),
    compound(
        "mixture: a variance without the spread of the means",
        " + (means - self.mean()[None]) ** 2",
        "",
        "test_distributions.py::test_mixture_matches_a_direct_sum_and_its_posterior",
    ),
    compound(
        "mixture: coordinates are moved as if they were independent",
        " + jnp.cumsum(log_density, 1) - log_density",
        "",
        "test_pathwise.py::test_mixture_over_the_plane_moves_coordinate_by_coordinate",
    ),
    compound(
        "mixture: the implicit gradient points backwards",
        "z_dot - back.reshape(z.shape)",
        "z_dot + back.reshape(z.shape)",
        "test_pathwise.py::test_implicit_mixture_slope_is_that_of_its_quantile",
    ),
    couplings(
        "without replacement: an index is gone before it is drawn",
        "jnp.cumsum(taken, axis=0) > taken",
        "jnp.cumsum(taken, axis=0) > 0",
        "test_without_replacement.py::test_draws_without_replacement_have_the_mass_of_plackett_and_luce",
    ),
    couplings(
        "antithetic bits: 1/n for 1/(n - 1) in the threshold",
        "jax.nn.log_sigmoid(-jnp.abs(self.logits)) / (self.count - 1)",
        "jax.nn.log_sigmoid(-jnp.abs(self.logits)) / self.count",
        "test_binary.py::test_antithetic_bits_have_the_marginals_and_the_correlation_of_a_law",
    ),
    autoregressive(
        "a pixel sees itself",
        "jnp.tril(self.weights, -1)",
        "jnp.tril(self.weights)",
        "test_autoregressive.py::test_log_probs_sum_to_one_and_are_products_of_conditional_laws[coins]",
    ),
)
