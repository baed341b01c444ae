"""Find entries by id, chapter or lecture. A new chapter is a module with entries, named in `_MODULES`."""

import difflib
import importlib
from collections.abc import Sequence

from vbjax.derivations.identity import Identity

LECTURES = {
    "000": "KIT, Machine Learning: Variational Auto-Encoders",
    "001": "TUM, Introduction to Deep Learning: Advanced Topics",
    "002": "OVGU Magdeburg, Neuronale Netze: Zusammenfassung",
    "003": "KTH: Variational Auto-Encoders",
    "004": "Unsupervised Approaches, Autoencoders, GANs",
}
CHAPTERS = {
    1: "Latent variables and variational Bayes",
    2: "Gradient estimators",
    3: "Variational auto-encoders",
    4: "Generative adversarial networks",
    5: "Denoising diffusion",
    6: "Auto-encoders and PCA",
    7: "EM, probabilistic PCA and k-means",
    8: "Conditional VAEs and the geometry of codes",
    9: "Diffusion: guidance, inpainting and skeletons",
    10: "Energy-based and directed models",
    11: "Attention",
}
_MODULES = (
    "latent_variables",
    "lower_bound",
    "variational_bayes",
    "dataset_bound",
    "score_function",
    "reparameterisation",
    "variational_autoencoders",
    "codes",
    "objectives",
    "adversarial",
    "generators",
    "forward_process",
    "reverse_process",
    "diffusion_bound",
    "autoencoders",
    "representations",
    "expectation_maximisation",
    "conditional_codes",
    "diffusion_extensions",
    "skeletons",
    "shapes",
    "energy_based",
    "attention",
)


class UnknownEntry(LookupError):  # noqa: N818 - it reads as the answer that it is
    """No entry has that id, chapter or lecture; the message names the closest ones."""


def identities() -> tuple[Identity, ...]:
    """All entries, by chapter, and within one in the order of the lectures' argument."""
    modules = [importlib.import_module(f"vbjax.derivations.{name}") for name in _MODULES]
    found = [item for module in modules for item in vars(module).values() if isinstance(item, Identity)]
    return tuple(sorted(found, key=lambda identity: identity.chapter))


def select(ids: Sequence[str] = (), *, chapter: int | None = None, lecture: str | None = None) -> tuple[Identity, ...]:
    """The entries with these ids (all, if none are given) that belong to the chapter and the lecture.

    Raises `UnknownEntry` for an id, chapter or lecture without entries.
    """
    everything = identities()
    known = {identity.id: identity for identity in everything}
    for name in ids:
        if name not in known:
            raise UnknownEntry(_unknown("entry", name, known))
    chosen = [known[name] for name in ids] or list(everything)
    if chapter is not None and chapter not in CHAPTERS:
        raise UnknownEntry(_unknown("chapter", str(chapter), map(str, CHAPTERS)))
    if lecture is not None and lecture not in LECTURES:
        raise UnknownEntry(_unknown("lecture", lecture, LECTURES))
    chosen = [i for i in chosen if chapter in (None, i.chapter) and lecture in (None, i.lecture)]
    if not chosen:
        raise UnknownEntry("no entry belongs to both this chapter and this lecture")
    return tuple(chosen)


def _unknown(kind: str, name: str, known) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or [k for k in known if name and name in k][:3]
    hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(known[:12])}"
    return f"no {kind} {name!r}; {hint}"
