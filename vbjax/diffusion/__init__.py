"""Diffusion models, each next to its exact answer: noise schedules, the process, the bound term by term, samplers.

Everything is written for one datum and in one coordinate of time, γ = log(σ²/α²), the negative log signal-to-noise
ratio; x_t = α x_0 + σ ε with α² = sigmoid(-γ) = ᾱ_t and σ² = sigmoid(γ). Start at `process`, then `bound`; to train,
`schedules`, `times` and `losses`; to draw, `samplers`; to know what is right, `exact`.
"""
