"""Studies of gradient estimators: bias, variance and cost, exactly where possible and by Monte Carlo elsewhere.

`study(grid(problems, estimators), replications=...)` returns a `Result` for each cell; `rows` makes a table of them
and `plots` draws them. `vbjax study` is the same as a command.
"""

from vbjax.studies.cells import Cell, Result
from vbjax.studies.plots import figures
from vbjax.studies.rows import standings
from vbjax.studies.schedule import grid, study
from vbjax.studies.toy_problems import ToyProblem

__all__ = ["Cell", "Result", "ToyProblem", "figures", "grid", "standings", "study"]
