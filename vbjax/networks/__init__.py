"""Linen modules: the only importer of flax. Parameters are explicit, keys are arguments, nothing is mutable."""
