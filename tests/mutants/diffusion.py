"""Slips in diffusion: schedules, the process, the bound, decoders, samplers, the flow, guidance, skeletons."""

from tests.mutants.mutation import within

schedules, process, bound, decoders, continuous, losses, times, exact = (
    within(f"diffusion/{name}.py")
    for name in ("schedules", "process", "bound", "decoders", "continuous", "losses", "times", "exact")
)
samplers, flow, guidance, inpainting, anisotropic = (
    within(f"diffusion/{name}.py") for name in ("samplers", "probability_flow", "guidance", "inpainting", "anisotropic")
)

PAPERS = "test_diffusion.py::test_schedules_are_the_papers_for_any_number_of_steps"
KNOWN_DATUM = "test_diffusion.py::test_where_the_model_knows_the_datum_every_term_of_the_bound_is_a_ratio_of_variances"
ONE_TERM = "test_diffusion.py::test_one_sampled_time_estimates_the_whole_bound_without_bias"
PREDICTIONS = "test_diffusion.py::test_every_prediction_is_the_datum_in_other_coordinates"
EXACT_BOUND = "test_diffusion_exact.py::test_the_librarys_bound_is_the_exact_one_and_mutants_of_it_are_not"
ONE_TIME = "test_diffusion_exact.py::test_one_random_time_estimates_the_continuous_bound_and_its_ends"
DECODERS = "test_diffusion.py::test_decoders_are_normalised_laws_of_the_pixels"
ORDER = "test_samplers.py::test_solvers_have_their_order_on_steps_of_two_lengths"
FLOW_DENSITY = "test_samplers.py::test_the_log_density_is_that_of_the_mixture_and_its_error_is_the_one_it_states"
PAINTED = "test_inpainting.py::test_draws_have_the_law_of_the_affine_recursion"
DENSE = "test_anisotropic.py::test_marginal_and_step_covariances_are_those_of_the_dense_recursion"

MUTATIONS = (
    schedules(
        "times are counted from one",
        "jnp.concatenate([start, self.gamma])[t]",
        "self.gamma[t]",
        "ddpm-alphabar-index",
    ),
    schedules(
        "ᾱ is the product of the β",
        "jnp.cumsum(jnp.log1p(-betas))",
        "jnp.cumsum(jnp.log(betas))",
        "ddpm-alphabar-index",
        "test_diffusion.py::test_alpha_bar_is_the_product_of_the_first_t_factors",
    ),
    schedules("cosine: not squared", "(1 + offset)) ** 2", "(1 + offset))", PAPERS + "[10]"),
    schedules(
        "γ is the log-odds of ᾱ, not of 1 - ᾱ",
        "return jnp.log(-jnp.expm1(-lost)) + lost",
        "return -jnp.log(-jnp.expm1(-lost)) - lost",
        "ddpm-forward-marginal",
        raises="ValueError",
    ),
    schedules(
        "variance-preserving: ∫ β without the half of its slope",
        "(last - first) / 2 * time**2",
        "(last - first) * time**2",
        "test_diffusion.py::test_the_continuous_limits_are_those_of_the_discrete_schedules",
    ),
    process(
        "the signal: ᾱ for its root",
        "return jnp.sqrt(jax.nn.sigmoid(-gamma))",
        "return jax.nn.sigmoid(-gamma)",
        "ddpm-forward-marginal",
    ),
    process(
        "the noise: a variance for a standard deviation",
        "return jnp.sqrt(jax.nn.sigmoid(gamma))",
        "return jax.nn.sigmoid(gamma)",
        "ddpm-forward-marginal",
    ),
    process(
        "the posterior's variance is the forward one",
        "return jax.nn.sigmoid(gamma_s) * _lost(gamma_s, gamma_t)",
        "return jax.nn.sigmoid(gamma_t) * _lost(gamma_s, gamma_t)",
        "ddpm-posterior-mean",
    ),
    process(
        "the posterior's mean: α_t for α_s before the datum",
        "kept * x_t + signal(gamma_s) * _lost(gamma_s, gamma_t) * x0",
        "kept * x_t + signal(gamma_t) * _lost(gamma_s, gamma_t) * x0",
        "ddpm-posterior-mean",
    ),
    process(
        "the posterior's mean: SNR_t / SNR_s alone before x_t",
        "jnp.exp(gamma_s - gamma_t - _log_signal_ratio(gamma_s, gamma_t))",
        "jnp.exp(gamma_s - gamma_t)",
        "ddpm-posterior-mean",
    ),
    process(
        "the best variance: the slope is not squared",
        "+ slope**2 * error(gamma_t)",
        "+ slope * error(gamma_t)",
        "test_diffusion.py::test_the_best_reverse_variance_lies_where_the_data_put_it",
    ),
    process(
        "v: a sign",
        "signal(gamma) * x_t - noise(gamma) * predict(x_t, gamma)",
        "signal(gamma) * x_t + noise(gamma) * predict(x_t, gamma)",
        "ddpm-parameterisations",
    ),
    process(
        "ε to datum: not divided by α",
        "(x_t - noise(gamma) * predict(x_t, gamma)) / signal(gamma)",
        "(x_t - noise(gamma) * predict(x_t, gamma))",
        "ddpm-parameterisations",
    ),
    process(
        "the score: σ for σ²",
        "(signal(gamma) * denoiser(x_t, gamma) - x_t) / noise(gamma) ** 2",
        "(signal(gamma) * denoiser(x_t, gamma) - x_t) / noise(gamma)",
        "ddpm-parameterisations",
        PREDICTIONS,
    ),
    bound(
        "the terms' KLs with their arguments swapped",
        "kl_divergence(posterior(x_t, x0, gamma_s, gamma_t), model.reverse(x_t, gamma_s, gamma_t))",
        "kl_divergence(model.reverse(x_t, gamma_s, gamma_t), posterior(x_t, x0, gamma_s, gamma_t))",
        KNOWN_DATUM,
    ),
    bound(
        "the sampled term's KL with its arguments swapped",
        "kl_divergence(posterior(x_t, model.embed(x), gamma_s, gamma_t), model.reverse(x_t, gamma_s, gamma_t))",
        "kl_divergence(model.reverse(x_t, gamma_s, gamma_t), posterior(x_t, model.embed(x), gamma_s, gamma_t))",
        EXACT_BOUND,
    ),
    bound(
        "the terms are taken at the level below",
        "model.embed(x), schedule.at(t - 1), schedule.at(t)\n",
        "model.embed(x), schedule.at(t - 2), schedule.at(t - 1)\n",
        KNOWN_DATUM,
        raises="ValueError",
    ),
    bound(
        "the last term is left out",
        "jnp.arange(2, schedule.steps + 1)",
        "jnp.arange(2, schedule.steps)",
        KNOWN_DATUM,
    ),
    bound(
        "the bound is without its prior",
        "return self.prior + self.diffusion.sum() + self.reconstruction",
        "return self.diffusion.sum() + self.reconstruction",
        KNOWN_DATUM,
    ),
    bound(
        "one sampled time without its weight",
        "term = time.weight * bound_term(",
        "term = bound_term(",
        ONE_TERM,
    ),
    decoders(
        "levels: σ for σ²",
        "-0.5 * ((x_1[..., None] - signal(gamma_1) * grid) / noise(gamma_1)) ** 2",
        "-0.5 * (x_1[..., None] - signal(gamma_1) * grid) ** 2 / noise(gamma_1)",
        DECODERS,
    ),
    decoders(
        "levels: the datum is not shrunk",
        "signal(gamma_1) * grid)",
        "grid)",
        DECODERS,
    ),
    decoders("embedding: L for L - 1", "return 2 * x / (levels - 1) - 1", "return 2 * x / levels - 1", DECODERS),
    decoders(
        "a variance for a standard deviation",
        "scale = jnp.sqrt(variance(x_1, jnp.full_like(gamma_1, -jnp.inf), gamma_1))",
        "scale = variance(x_1, jnp.full_like(gamma_1, -jnp.inf), gamma_1)",
        EXACT_BOUND,
        DECODERS,
    ),
    continuous("the integral without its half", "speed * noise_error / 2", "speed * noise_error", ONE_TIME),
    continuous("the integral without the schedule's speed", "speed * noise_error / 2", "noise_error / 2", ONE_TIME),
    continuous("the prior at the wrong end", "prior_kl(x0, end)", "prior_kl(x0, start)", ONE_TIME),
    losses(
        "L_simple: SNR upside down",
        "return jnp.exp(-gamma)\n\n\ndef x0_weight",
        "return jnp.exp(gamma)\n\n\ndef x0_weight",
        "ddpm-kl-to-mse",
        "test_diffusion.py::test_weights_turn_the_error_of_the_datum_into_that_of_the_prediction",
    ),
    losses(
        "hybrid loss: a term of the bound for the whole",
        "bound_weight * schedule.steps * bound_term(",
        "bound_weight * bound_term(",
        "test_diffusion.py::test_the_hybrid_loss_trains_the_mean_by_the_simple_loss_and_the_variance_by_the_bound",
    ),
    losses(
        "a mean over coordinates for a sum",
        "return jnp.sum((jnp.sqrt(weight(gamma))",
        "return jnp.mean((jnp.sqrt(weight(gamma))",
        "ddpm-kl-to-mse",
        "test_diffusion.py::test_weights_turn_the_error_of_the_datum_into_that_of_the_prediction",
    ),
    times(
        "the weight of a time is its probability",
        "+ 1, 1 / law[index])",
        "+ 1, law[index])",
        "test_diffusion.py::test_stratified_times_fall_within_one_of_their_expected_number",
    ),
    times(
        "times follow the mean squared loss, not its root",
        "size = jnp.sqrt(self.squares.mean(1))",
        "size = self.squares.mean(1)",
        "test_diffusion.py::test_times_learn_the_root_of_the_mean_squared_loss",
    ),
    times(
        "stratified: the circle is cut into one piece too many",
        "jnp.arange(count) / count) % 1.0",
        "jnp.arange(count) / (count + 1)) % 1.0",
        "test_diffusion.py::test_stratified_times_fall_within_one_of_their_expected_number",
    ),
    exact(
        "what is left to know: σ for σ²",
        "variance * noise(gamma) ** 2 / _diffused(variance, gamma)",
        "variance * noise(gamma) / _diffused(variance, gamma)",
        "test_diffusion_exact.py::test_every_gap_between_entropy_likelihood_and_bound_has_its_closed_form",
    ),
    exact(
        "the best denoiser forgets the noise",
        "return signal(gamma) ** 2 * variance + noise(gamma) ** 2",
        "return signal(gamma) ** 2 * variance",
        "ddpm-optimal-denoiser",
        "test_diffusion_exact.py::test_the_denoiser_of_a_mixture_is_bayes_and_its_score_that_of_the_marginal",
    ),
    exact(
        "the mixture's denoiser: responsibilities without the components' widths",
        "(residuals**2 / spread + jnp.log(spread))",
        "(residuals**2 / spread)",
        "test_diffusion_exact.py::test_the_denoiser_of_a_mixture_is_bayes_and_its_score_that_of_the_marginal",
    ),
    samplers(
        "DDIM: η for η²",
        "fresh = eta**2 *",
        "fresh = eta *",
        "test_samplers.py::test_ddim_at_eta_one_is_the_reverse_kernel_and_its_scale_goes_like_eta",
    ),
    samplers(
        "DPM-Solver: the ratio of the steps upside down",
        "width / (2 * width_before)",
        "width_before / (2 * width)",
        ORDER + "[2-dpm_solver-as_if_steps_were_even]",
    ),
    samplers(
        "Heun: the slope at the start alone",
        "(at_s - at_t) * (first + second) / 2",
        "(at_s - at_t) * first",
        ORDER + "[2-heun-ddim]",
    ),
    samplers(
        "the affine law: a scale for a variance",
        "jnp.where(jnp.isneginf(gamma_s), 0, drawn.scale**2)",
        "jnp.where(jnp.isneginf(gamma_s), 0, drawn.scale)",
        "test_samplers.py::test_exact_kernels_return_the_datas_law_and_from_white_noise_the_error_is_the_priors",
    ),
    samplers(
        "the last step adds noise",
        "jnp.where(jnp.isneginf(gamma_s), law.mean(), law.sample(jax.random.fold_in(key, i)))",
        "law.mean() + jnp.sqrt(jax.nn.sigmoid(gamma_t)) * jax.random.normal(jax.random.fold_in(key, i), x_t.shape)",
        "test_samplers.py::test_draws_have_the_law_of_the_affine_recursion",
        "test_samplers.py::test_generated_data_have_the_models_law",
    ),
    flow(
        "the drift without its half",
        "(signal(gamma) * x - denoiser(x, gamma)) / 2",
        "(signal(gamma) * x - denoiser(x, gamma))",
        "test_samplers.py::test_the_drift_is_the_limit_of_ddims_step",
    ),
    flow(
        "the change of volume is taken off",
        ".log_prob(latent) + change, latent",
        ".log_prob(latent) - change, latent",
        FLOW_DENSITY,
    ),
    flow(
        "Runge-Kutta: equal weights",
        "jnp.array([1, 2, 2, 1], levels.dtype) / 6",
        "jnp.array([1, 1, 1, 1], levels.dtype) / 4",
        ORDER + "[4-flow-heun]",
    ),
    flow(
        "Hutchinson: the probe meets the drift, not its derivative",
        "jnp.vdot(probe, _derivative(drift, x, gamma, probe))",
        "jnp.vdot(probe, drift(x, gamma))",
        "test_samplers.py::test_a_probe_estimates_the_density_without_bias",
    ),
    guidance(
        "classifier-free: w for 1 + w",
        "given + w * (given - unconditional(x_t, gamma))",
        "unconditional(x_t, gamma) + w * (given - unconditional(x_t, gamma))",
        "classifier-free-guidance",
    ),
    guidance(
        "classifier: σ for σ²",
        "scale * noise(gamma) ** 2 / signal(gamma) * slope",
        "scale * noise(gamma) / signal(gamma) * slope",
        "test_guidance.py::test_an_exact_classifier_of_noisy_data_guides_to_its_class[1]",
    ),
    guidance(
        "Gaussian evidence: Tweedie's covariance is not divided by α",
        "noise(gamma) ** 2 / signal(gamma) * (rows",
        "noise(gamma) ** 2 * (rows",
        "test_guidance.py::test_gaussian_evidence_makes_the_exact_conditional_denoiser_of_gaussian_data",
    ),
    guidance(
        "score distillation: the noise is added",
        "epsilon(denoiser)(x_t, gamma) - eps",
        "epsilon(denoiser)(x_t, gamma) + eps",
        "sds-gradient",
        "test_guidance.py::test_score_distillation_follows_the_slope_of_the_divergence_to_the_noised_data",
    ),
    inpainting(
        "replacement: a variance for a standard deviation",
        "jnp.where(known, noise(gamma_s), drawn.scale)",
        "jnp.where(known, noise(gamma_s) ** 2, drawn.scale)",
        "diffusion-inpainting",
        PAINTED,
    ),
    inpainting(
        "replacement: the known part is not noised to this level's mean",
        "jnp.where(known, signal(gamma_s) * x0, drawn.loc)",
        "jnp.where(known, x0, drawn.loc)",
        "diffusion-inpainting",
        PAINTED,
    ),
    inpainting(
        "RePaint: up and down confused",
        "transition(x_t, gamma_t, gamma_s)",
        "transition(x_t, gamma_s, gamma_t)",
        PAINTED,
        "test_inpainting.py::test_repaint_comes_nearer_to_the_exact_law_with_every_doubling_of_its_repetitions",
    ),
    inpainting(
        "RePaint: repetitions do not go up first",
        "for i in (top, *down)",
        "for i in down",
        "test_inpainting.py::test_a_resampling_ladder_goes_up_in_one_move_after_every_jump",
    ),
    anisotropic(
        "skeleton: the least eigenvalue is not taken off",
        "(A - eigenvalues[0] * np.eye(len(A))) / (",
        "A / (",
        "anisotropic-sigma-n",
    ),
    anisotropic(
        "mixing: m and 1 - m swapped",
        "np.log(1 - mixed + mixed * np.clip(eigenvalues, 0, 1)[None])",
        "np.log(mixed + (1 - mixed) * np.clip(eigenvalues, 0, 1)[None])",
        "anisotropic-forward-marginal",
        DENSE,
        raises="RuntimeWarning",
    ),
    anisotropic(
        "the posterior's mean: √α upside down",
        "jnp.exp(level_s.modes - level_t.modes) * signal(level_s) / signal(level_t)",
        "jnp.exp(level_s.modes - level_t.modes) * signal(level_t) / signal(level_s)",
        "anisotropic-posterior",
    ),
    anisotropic(
        "modes and joints confused",
        "return self.basis.T @ x",
        "return self.basis @ x",
        "test_anisotropic.py::test_constant_mixing_is_the_isotropic_process_in_whitened_coordinates",
        "test_anisotropic.py::test_bound_and_samples_follow_the_law_and_the_white_prior_is_caught",
    ),
    anisotropic(
        "the prior: as wide as q(x_T) of data at zero",
        "mode_variance(last) / jax.nn.sigmoid(last.gamma)",
        "mode_variance(last)",
        "anisotropic-terminal",
        "test_anisotropic.py::test_white_noise_is_the_isotropic_process",
    ),
)
