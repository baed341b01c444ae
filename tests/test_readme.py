"""The README is true: its Python runs and gives the numbers in its comments, its files and commands exist."""

import re
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_code_gives_the_numbers_in_its_comments():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict = {}
    promised = []
    with jax.enable_x64(True):
        for line in code.splitlines():
            expression, _, comment = line.partition("#")
            number = re.match(r"\s*([0-9.]+)", comment)
            if number and "=" not in expression.replace("replications=", ""):
                promised.append((float(number[1]), float(eval(expression, names))))
            else:
                exec(line, names)
    assert len(promised) == 3
    for said, computed in promised:
        np.testing.assert_allclose(computed, said, rtol=1e-9)


def test_every_path_in_the_layout_exists():
    layout = README[README.index("## Layout") : README.index("## Design notes")]
    missing = []
    for path in re.findall(r"`([\w./]+(?:\.py|/))`", layout):
        candidates = [ROOT / path, ROOT / "vbjax" / path]
        missing += [] if any(candidate.exists() for candidate in candidates) else [path]
    assert missing == []


def test_every_make_target_in_the_readme_is_a_target():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"make (\w+)", README)) <= targets
