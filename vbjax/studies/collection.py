"""Problems by the names that commands take.

`find("coin")` picks: a name's first part stands for all that share it.
"""

import difflib
import re
from collections.abc import Sequence

from vbjax.runs import RunError
from vbjax.studies.bundled import bundled_problems
from vbjax.studies.toy_problems import ToyProblem


class UnknownName(RunError):  # noqa: N818 - it reads as what was found
    """No problem, estimator or parameter has that name; the message has the nearest."""


def slug(name: str) -> str:
    """A name as one word: `coin t=0.45` is `coin-t-0.45`."""
    return re.sub(r"[^\w.+]+", "-", name.lower()).strip("-")


def find(name: str) -> list[ToyProblem]:
    """The bundled problem of this name, or all whose names begin with it and a hyphen, under the names of the list.

    Raises UnknownName with the nearest names.
    """
    known, wanted = bundled_problems(), slug(name)
    chosen = [wanted] if wanted in known else [key for key in known if key.startswith(f"{wanted}-")]
    if not chosen:
        raise unknown("problem", name, list(known))
    problems = []
    for key in chosen:
        entry, problem = known[key], known[key].make()
        source, summary = problem.source or entry.source, problem.summary or entry.summary
        problems.append(problem._replace(name=key, source=source, summary=summary))
    return problems


def unknown(what: str, name: str, known: Sequence[str]) -> UnknownName:
    """The error for a name that nothing has."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return UnknownName(f"there is no {what} {name!r}; {hint}")
