"""Slips in what is optimised: bounds on the evidence, objectives of VAEs, hierarchies, divergences."""

from tests.mutants.mutation import within

bounds, objectives, hierarchical = within("bounds.py"), within("objectives.py"), within("hierarchical.py")
kl, divergences = within("divergences/kullback_leibler.py"), within("divergences/families.py")

DEFINITIONS = "test_bounds.py::test_bound_equals_its_definition_in_extended_precision"
OBJECTIVES = "test_objectives.py::test_gradients_match_finite_differences_of_the_closed_form"
QUADRATURE = "test_divergences.py::test_closed_form_matches_quadrature_and_its_gradient_matches_differences"
FINITE = "test_divergences.py::test_finite_divergences_with_exact_zeros_match_direct_sums"

MUTATIONS = (
    bounds(
        "the ELBO is reconstruction plus KL",
        "return self.reconstruction - self.kl",
        "return self.reconstruction + self.kl",
        "elbo-reconstruction-minus-kl",
    ),
    bounds(
        "the ELBO's KL with its arguments swapped",
        "kl_divergence(q, prior))",
        "kl_divergence(prior, q))",
        "elbo-reconstruction-minus-kl",
    ),
    bounds(
        "a log-weight forgets q",
        "self.prior.log_prob(z) - self.q.log_prob(z)",
        "self.prior.log_prob(z)",
        "test_score_family.py::test_leave_one_out_signals_vanish_at_the_posterior_and_the_plain_score_does_not",
    ),
    bounds(
        "IWAE: the sum of the weights for their mean",
        "return _log_sum_exp(log_weights) - math.log(log_weights.shape[0])",
        "return _log_sum_exp(log_weights)",
        "iwae-bound-monotone",
    ),
    bounds(
        "IWAE: the slopes in the log-weights do not sum to one",
        "share * x_dot, 0))",
        "jnp.exp(x) * x_dot, 0))",
        "test_bounds.py::test_gradient_and_hessian_equal_differences_of_the_definition[iwae]",
    ),
    bounds(
        "IWAE's variance: 1/ESS without the 1/K that equal weights have",
        "jnp.maximum(1 / effective_samples - 1 / log_weights.shape[0], 0)",
        "1 / effective_samples",
        "test_vae.py::test_equal_weights_have_no_monte_carlo_error",
    ),
    bounds(
        "Rényi: α for 1 - α",
        "iwae((1 - alpha) * log_weights) / (1 - alpha)",
        "iwae(alpha * log_weights) / alpha",
        DEFINITIONS + "[renyi(0.5)]",
        raises="ZeroDivisionError",
    ),
    bounds("CUBO: not divided by n", "iwae(n * log_weights) / n", "iwae(n * log_weights)", DEFINITIONS + "[cubo(2)]"),
    bounds(
        "TVO: the path is walked from the posterior",
        "shares(beta * log_weights) if beta",
        "shares((1 - beta) * log_weights) if beta",
        DEFINITIONS + "[tvo]",
    ),
    objectives(
        "β on the reconstruction",
        "terms.reconstruction - beta * terms.kl",
        "beta * terms.reconstruction - terms.kl",
        OBJECTIVES + "[beta]",
    ),
    objectives(
        "capacity: the excess squared",
        "gamma * excess * jnp.sign(excess)",
        "gamma * excess**2",
        OBJECTIVES + "[capacity above]",
    ),
    objectives(
        "free bits: a floor under the whole KL, not under each group's",
        "jnp.maximum(free_nats, terms.kls).sum()",
        "jnp.maximum(free_nats, terms.kls.sum())",
        OBJECTIVES + "[free bits]",
    ),
    objectives(
        "warm-up: the ramp goes on rising",
        "jnp.minimum(jnp.asarray(step, float) / steps, 1.0)",
        "jnp.asarray(step, float) / steps",
        "test_objectives.py::test_a_ramp_is_a_line_that_stays_at_one",
    ),
    hierarchical(
        "a lower level's KL with its arguments swapped",
        "_chain(q.then(above), p.then(above), below)",
        "_chain(p.then(above), q.then(above), below)",
        "test_hierarchical.py::test_the_levels_kls_average_under_q_to_the_kl_of_the_whole_and_under_p_do_not",
    ),
    hierarchical(
        "ladder: means weighted by standard deviations",
        "prior.loc + slant**2 *",
        "prior.loc + slant *",
        "test_hierarchical.py::test_the_precision_weighted_law_is_the_normalised_product_of_the_two_densities",
    ),
    hierarchical(
        "ladder: standard deviations add, not their squares",
        "jnp.hypot(evidence.scale, prior.scale)",
        "(evidence.scale + prior.scale)",
        "test_hierarchical.py::test_the_precision_weighted_law_is_the_normalised_product_of_the_two_densities",
    ),
    hierarchical(
        "the sampled KL with the sign turned",
        "else q.log_prob(z) - p.log_prob(z)",
        "else p.log_prob(z) - q.log_prob(z)",
        "test_vae.py::test_a_kl_without_a_closed_form_is_estimated_without_bias_at_the_draw",
    ),
    kl(
        "Normal: the logarithm of σ for that of σ²",
        "excess(2 * jnp.log(q.scale / p.scale))",
        "excess(jnp.log(q.scale / p.scale))",
        "gaussian-kl-closed-form",
    ),
    kl(
        "Normal: the distance in units of q's scale",
        "+ ((q.loc - p.loc) / p.scale) ** 2)",
        "+ ((q.loc - p.loc) / q.scale) ** 2)",
        "gaussian-kl-closed-form",
    ),
    kl(
        "full covariance: correlations cost nothing",
        "jnp.sum(jnp.tril(ratio, -1) ** 2)",
        "0.0",
        "gaussian-kl-full-covariance",
    ),
    kl(
        "full covariance: the mean term is not squared",
        "jnp.sum(p.whiten(q.loc) ** 2)",
        "jnp.sum(jnp.abs(p.whiten(q.loc)))",
        "gaussian-kl-full-covariance",
    ),
    kl(
        "Laplace: the distance is not scaled",
        "q.scale / p.scale * excess(-distance)",
        "excess(-distance)",
        QUADRATURE + "[Laplace-Laplace]",
    ),
    kl(
        "log-normal: the entropy of log x without its Jacobian",
        "entropy_of_log = q.entropy() - mean.sum()",
        "entropy_of_log = q.entropy()",
        "test_divergences.py::test_kl_from_a_uniform_law_that_starts_at_zero_is_the_integral_and_has_slopes[2.0-LogNormal]",
    ),
    kl(
        "finite laws: q weighs log p/q",
        "jnp.where(q > 0, log_q - log_p, 0)",
        "jnp.where(q > 0, log_p - log_q, 0)",
        "hierarchical-vae-elbo",
    ),
    kl(
        "Poisson: log q/p for log p/q",
        "rate * jnp.log1p(gap / rate)",
        "-rate * jnp.log1p(gap / rate)",
        "test_divergences.py::test_poisson_kl_matches_summation_at_zero_and_for_large_near_equal_rates",
    ),
    kl(
        "Monte Carlo: the standard error falls like 1/n",
        "values.std(ddof=1) / num_samples**0.5",
        "values.std(ddof=1) / num_samples",
        "test_divergences.py::test_monte_carlo_standard_error_covers_as_often_as_it_says",
    ),
    divergences(
        "Rényi: the distance in units of p's variance alone",
        "((q.loc - p.loc) / p.scale) ** 2 / (1 + excess)",
        "((q.loc - p.loc) / p.scale) ** 2",
        "test_divergences.py::test_renyi_divergence_of_normal_laws_matches_quadrature[0.6]",
    ),
    divergences(
        "Jensen-Shannon: the middle is a sum, not a mean",
        "jnp.logaddexp(0, gap) - math.log(2)",
        "jnp.logaddexp(0, gap)",
        "gan-value-jsd",
        FINITE,
    ),
    divergences(
        "total variation: the whole L1 distance",
        "lambda t: 0.5 * jnp.abs(t - 1), slope_at_infinity=0.5",
        "lambda t: jnp.abs(t - 1), slope_at_infinity=1.0",
        FINITE,
    ),
    divergences(
        "f-divergences: mass outside of p's support costs nothing",
        "slope_at_infinity * jnp.where(outside > 0, outside, 1)",
        "0.0",
        FINITE,
    ),
)
