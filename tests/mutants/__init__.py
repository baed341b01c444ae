"""Faults planted on purpose: what the checks and the tests catch, one wrong formula at a time.

Each `Mutation` is a slip that a person could make in the mathematics: a half, a sign, σ for σ², the own sample in the
baseline. `make mutants` plants them one after the other in a copy of the package and asks the killers named beside
them, entries of `vbjax check` or tests, to notice. The tables (`objectives`, `laws`, `estimators`, …) read as a list
of what is proved; `trial` is the machine, `__main__` the command.
"""

from tests.mutants import attention, diffusion, energy, estimators, evaluation, games, laws, learning, objectives
from tests.mutants.mutation import Mutation

_TABLES = (objectives, laws, estimators, evaluation, learning, energy, games, diffusion, attention)
MUTATIONS: tuple[Mutation, ...] = tuple(mutation for table in _TABLES for mutation in table.MUTATIONS)
"""All of them, in the order of the tables."""
