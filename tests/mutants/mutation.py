"""What a planted fault is."""

from collections.abc import Callable
from typing import NamedTuple


class Mutation(NamedTuple):
    """One fault.

    file: below `vbjax/`. name: the slip in words. old, new: `old`, which occurs once in the file, becomes `new`.
    killers: who should notice: ids of `vbjax check`, which are asked first and together, or tests as
    `test_bounds.py::test_name`, which are asked until one notices.
    raises: the exception by which a killer may notice it; any other one says that the fault broke the program, and not
    that a proof saw it.
    """

    file: str
    name: str
    old: str
    new: str
    killers: tuple[str, ...]
    raises: str | None = None


def within(file: str) -> Callable[..., Mutation]:
    """The constructor of the mutations of one file: `(name, old, new, *killers, raises=None)`."""

    def mutation(name: str, old: str, new: str, *killers: str, raises: str | None = None) -> Mutation:
        return Mutation(file, name, old, new, killers, raises)

    return mutation
