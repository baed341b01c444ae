"""A published result beside our numbers: a table, the findings that can fail, and the verdict that follows."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vbjax.types import Estimate


class Finding(NamedTuple):
    """One statement with our numbers in it, and whether they bear it out."""

    statement: str
    holds: bool


class PublishedCase(NamedTuple):
    """A result of the literature, reproduced.

    name: as commands take it. title: of its section. claim: what was published, in a sentence or two. source: paper
    and place. columns, rows: a table; a cell is text, a number or a `types.Estimate`. findings: what was checked.
    remark: what a reader should know besides, or "".
    """

    name: str
    title: str
    claim: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    findings: tuple[Finding, ...]
    remark: str = ""

    @property
    def verdict(self) -> bool:
        """Whether every finding holds; False without any."""
        return bool(self.findings) and all(finding.holds for finding in self.findings)


def mean_of(values: np.ndarray) -> Estimate:
    """The mean of independent results, as of seeds or batches, with its standard error."""
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    return Estimate(jnp.asarray(np.mean(values), float), jnp.asarray(error, float), len(values))
