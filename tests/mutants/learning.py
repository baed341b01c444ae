"""Slips in the models: mixtures and factors by EM, linear VAEs, auto-encoders, conditional models, codes, motions."""

from tests.mutants.mutation import within

gaussians, mixtures, kmeans = (within(f"em/{name}.py") for name in ("gaussians", "mixtures", "kmeans"))
factors, complexity = within("em/factor_models.py"), within("em/complexity.py")
linear, autoencoders = within("linear_gaussian.py"), within("autoencoders.py")
conditional, codes, motion = (within(f"{name}.py") for name in ("conditional", "latent_space", "motion"))

STEPS = "test_em.py::test_normal_mixtures_take_the_steps_of_scikit_learn"
COINS = "test_em.py::test_bernoulli_mixture_takes_the_steps_of_numpy"
PPCA = "test_em.py::test_ppca_by_em_is_its_closed_form_and_scikit_learn_divides_by_one_less"
COUNTED = "test_em.py::test_free_parameters_are_counted"
BEST = (
    "test_linear_gaussian.py::"
    "test_the_best_full_encoder_reaches_the_evidence_and_the_best_diagonal_one_loses_the_closed_gap"
)
FUTURES = "test_motion.py::test_scores_of_futures_are_those_of_loops_and_order_the_diverse_and_the_collapsed"

MUTATIONS = (
    gaussians(
        "M-step: the second moment for the variance",
        "jnp.sqrt(constrain(second - shift**2))",
        "jnp.sqrt(constrain(second))",
        STEPS + "[diag]",
        raises="NotMonotone",
    ),
    gaussians(
        "M-step: variances for standard deviations",
        "jnp.sqrt(constrain(second - shift**2))",
        "constrain(second - shift**2)",
        STEPS + "[diag]",
        raises="NotMonotone",
    ),
    gaussians(
        "M-step: covariances about the old means",
        "_outer(laws.loc - laws.loc.mean(0)[None], shift) - _outer(shift, shift)",
        "_outer(laws.loc - laws.loc.mean(0)[None], shift)",
        STEPS + "[full]",
    ),
    gaussians(
        "tied: divided by the number of components",
        "(second - first.T @ shift) / spread.count",
        "(second - first.T @ shift) / counts.shape[0]",
        STEPS + "[tied]",
        raises="NotMonotone",
    ),
    gaussians(
        "E-step: precisions for variances",
        "precision = laws.loc.mean(0), laws.scale**-2",
        "precision = laws.loc.mean(0), laws.scale**-1",
        STEPS + "[diag]",
        raises="NotMonotone",
    ),
    mixtures(
        "E-step: the weights of the components are forgotten",
        "log_joint = log_weights + log_probs(x)",
        "log_joint = 0 * log_weights + log_probs(x)",
        "em-monotone",
        STEPS + "[diag]",
    ),
    mixtures(
        "M-step: a Bernoulli's zeros are counted without smoothing",
        "jnp.log(ones + smoothing) - jnp.log(zeros + smoothing)",
        "jnp.log(ones + smoothing) - jnp.log(zeros + 2 * smoothing)",
        COINS + "[0.5]",
    ),
    mixtures(
        "M-step: counts, not shares, are exponentiated",
        "jnp.log(counts / counts.sum())",
        "counts / counts.sum()",
        COINS + "[0]",
    ),
    kmeans(
        "Lloyd: the farthest centre is the nearest",
        "jnp.argmin(0.5 * jnp.sum(moved**2, 1) - moved @ (x - about))",
        "jnp.argmin(0.5 * jnp.sum(moved**2, 1) + moved @ (x - about))",
        "kmeans-hard-em",
        raises="NotMonotone",
    ),
    kmeans(
        "nearest centre: a whole square for its half",
        "jnp.argmin(0.5 * jnp.sum(moved**2, 1)",
        "jnp.argmin(jnp.sum(moved**2, 1)",
        "test_em.py::test_the_nearest_centre_is_the_one_at_the_least_distance",
    ),
    kmeans(
        "k-means++: draws by the distance, not by its square",
        "jax.random.categorical(key, jnp.log(distance))",
        "jax.random.categorical(key, 0.5 * jnp.log(distance))",
        "test_em.py::test_k_means_plus_plus_draws_by_squared_distance",
    ),
    kmeans(
        "distortion: a sum over the data",
        "-distortion / blocks.count",
        "-distortion",
        "test_em.py::test_lloyd_is_the_limit_of_equal_spheres_and_of_scikit_learn",
    ),
    factors(
        "PPCA: the noise is the sum of the discarded eigenvalues",
        "values[:-latent].mean(), floor",
        "values[:-latent].sum(), floor",
        "ppca-ml",
        PPCA,
    ),
    factors(
        "PPCA: directions are as long as the data, noise included",
        "jnp.maximum(values[-latent:] - noise, 0)",
        "jnp.maximum(values[-latent:], 0)",
        "ppca-ml",
        PPCA,
    ),
    factors(
        "E-step: the posterior's spread is forgotten",
        "second = spread + regression @ cross",
        "second = regression @ cross",
        PPCA,
        raises="NotMonotone",
    ),
    factors(
        "the posterior's precision without the prior's",
        "return jnp.eye(scaled.shape[1], dtype=scaled.dtype) + scaled.T @ model.loadings",
        "return scaled.T @ model.loadings",
        "test_em.py::test_factor_posterior_is_that_of_the_joint_normal_law",
    ),
    complexity("mixtures: k free weights", "model.logits.shape[0] - 1 +", "model.logits.shape[0] +", COUNTED),
    complexity("full covariances: d² numbers", "* d * (d + 1) // 2", "* d * d", COUNTED),
    complexity("factors: rotations count", " - q * (q - 1) // 2", "", COUNTED),
    linear(
        "the gap of a diagonal encoder without its half",
        "0.5 * (jnp.log(jnp.diagonal(precision)).sum()",
        "(jnp.log(jnp.diagonal(precision)).sum()",
        BEST,
    ),
    linear(
        "the posterior mean forgets the noise",
        "self.weights.T @ (x - self.offset) / self.noise_variance)",
        "self.weights.T @ (x - self.offset))",
        "linear-vae-ppca",
        BEST,
    ),
    linear(
        "the best diagonal q has the posterior's marginal variances",
        "1 / jnp.sqrt(jnp.diagonal(self.posterior_precision()))",
        "jnp.sqrt(jnp.diagonal(jnp.linalg.inv(self.posterior_precision())))",
        BEST,
    ),
    linear(
        "β-VAE: the water level does not rise with β",
        "level = beta * noise_variance",
        "level = noise_variance / beta",
        "test_linear_gaussian.py::test_a_beta_vae_keeps_the_directions_above_beta_times_the_noise[3]",
    ),
    linear(
        "β-VAE: the rate without its half",
        "rate = 0.5 * jnp.log(",
        "rate = jnp.log(",
        "test_linear_gaussian.py::test_at_beta_one_the_spectrum_is_the_stated_numbers_and_the_rate_the_models_kl",
    ),
    linear(
        "maximum likelihood: weights as long as the data, noise included",
        "jnp.maximum(values - noise_variance, 0)",
        "jnp.maximum(values, 0)",
        "test_linear_gaussian.py::test_maximum_likelihood_is_what_gradient_ascent_on_the_evidence_finds[1]",
    ),
    autoencoders(
        "PCA keeps the smallest eigenvalues",
        "vectors[:, ::-1][:, :code_dim].T",
        "vectors[:, :code_dim].T",
        "linear-autoencoder-pca",
    ),
    autoencoders(
        "PCA divides by n - 1",
        "centred.T @ centred / count)",
        "centred.T @ centred / (count - 1))",
        "test_autoencoders.py::test_the_loss_of_every_code_size_is_the_sum_of_discarded_eigenvalues",
    ),
    autoencoders(
        "Tweedie: σ for σ²",
        "x + noise_scale**2 * score(x)",
        "x + noise_scale * score(x)",
        "denoising-ae-score",
    ),
    autoencoders(
        "smoothing: standard deviations add",
        "jnp.hypot(law.components.scale, noise_scale)",
        "law.components.scale + noise_scale",
        "denoising-ae-score",
    ),
    autoencoders(
        "sparsity: the KL with its arguments swapped",
        "kl_divergence(wanted, Bernoulli(jax.scipy.special.logit(activation)))",
        "kl_divergence(Bernoulli(jax.scipy.special.logit(activation)), wanted)",
        "test_autoencoders.py::test_bernoulli_sparsity_and_its_gradient_are_those_of_ng",
    ),
    autoencoders(
        "contraction: the spectral norm for Frobenius'",
        "jnp.sum(jnp.square(jax.jacrev(encode)(x)))",
        "jnp.linalg.norm(jax.jacrev(encode)(x), 2) ** 2",
        "test_autoencoders.py::test_the_contractive_penalty_is_the_closed_form_of_a_sigmoid_layer",
    ),
    conditional(
        "Bayes' rule without the classes' prior",
        "jax.nn.log_softmax(self.nats + self.log_prior[None])",
        "jax.nn.log_softmax(self.nats)",
        "test_conditional.py::test_evidence_over_classes_is_the_mixture_of_scipy_and_classifies_by_bayes_rule",
    ),
    conditional(
        "unlabelled data: the entropy is taken off",
        "return self.labelled + self.entropy",
        "return self.labelled - self.entropy",
        "semi-supervised-m2-bound",
    ),
    conditional(
        "labelled data: the class is free",
        "return self.reconstruction - self.kl + self.log_prior",
        "return self.reconstruction - self.kl",
        "test_conditional.py::test_the_unlabelled_bound_is_the_evidence_at_both_posteriors_and_loses_both_divergences",
    ),
    conditional(
        "the error of a sum over classes: shares for their squares",
        "jnp.sum(share**2 * self.variance, 1)",
        "jnp.sum(share * self.variance, 1)",
        "test_conditional.py::test_the_error_of_the_evidence_over_classes_is_its_spread_over_repeats",
    ),
    codes(
        "spherical: half of the angle",
        "angle = 2 * jnp.arctan2(",
        "angle = jnp.arctan2(",
        "latent-interpolation",
        "test_latent_space.py::test_spherical_paths_are_scipys_on_the_unit_sphere_and_linear_ones_are_not",
    ),
    codes(
        "vector arithmetic: a + b - c",
        "a.mean(0) - b.mean(0) + c.mean(0)",
        "a.mean(0) + b.mean(0) - c.mean(0)",
        "latent-arithmetic",
        "test_latent_space.py::test_attribute_arithmetic_finds_the_fourth_concept_and_averaging_makes_it_reliable",
    ),
    codes(
        "vector arithmetic: the variance of a code for that of a mean of codes",
        "sum(group.var(0, ddof=1) / group.shape[0] for group",
        "sum(group.var(0, ddof=1) for group",
        "test_latent_space.py::test_the_noise_of_attribute_arithmetic_is_three_over_n_and_its_standard_error_says_so",
    ),
    codes(
        "slant: to the left for each row upwards",
        "slant = -jnp.sum(",
        "slant = jnp.sum(",
        "test_latent_space.py::test_style_measures_the_moments_of_a_sheared_normal_density",
    ),
    motion(
        "energy score: the whole of the futures' distance",
        "return distance - 0.5 * _pairwise(futures)",
        "return distance - _pairwise(futures)",
        FUTURES,
    ),
    motion(
        "diversity: a future is compared with itself",
        "distances.sum() / (count * (count - 1))",
        "distances.sum() / count**2",
        FUTURES,
    ),
    motion(
        "the exact future is as wide as if the past said nothing",
        "np.linalg.cholesky(ahead - gain @ cross.swapaxes(1, 2))",
        "np.linalg.cholesky(ahead)",
        "test_motion.py::test_the_exact_conditional_is_that_of_a_kalman_filter",
    ),
)
