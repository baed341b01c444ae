"""Generative adversarial networks as games between two callables, each next to its exact answer.

A discriminator maps one point to a logit, a generator maps one latent to a point. Start at `values`.
"""
