"""Variational Bayes and its neighbours in JAX: losses, gradient estimators, and an oracle for each.

Start reading at `types` (the contracts), then `distributions`, `divergences`, `bounds` and `estimators`.
Nothing is imported here, so `import vbjax` and `vbjax --help` stay instant: import the module you need.
"""

__version__ = "0.1.0"
