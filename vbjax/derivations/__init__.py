"""The lectures' equations, executable: both sides by independent routes, a verdict, and a control that must fail.

`identity` has the declaration and the check, `registry` finds entries by id, chapter or lecture, `command` is
`vbjax check`. One module per theme holds the entries; read `lower_bound.elbo_decomposition` first.
"""

from vbjax.derivations.identity import Agreement, AtLeast, AtMost, Control, Identity, Statistical, Verdict, check, entry
from vbjax.derivations.registry import CHAPTERS, LECTURES, UnknownEntry, identities, select

__all__ = [
    "CHAPTERS",
    "LECTURES",
    "Agreement",
    "AtLeast",
    "AtMost",
    "Control",
    "Identity",
    "Statistical",
    "UnknownEntry",
    "Verdict",
    "check",
    "entry",
    "identities",
    "select",
]
