"""How good samples are, from samples alone: Fréchet and kernel distances, precision and recall, modes covered."""
