"""Benchmarks that take hours never mix runs of different configurations."""

import argparse
import json

import pytest

from benchmarks import discrete_vae


def test_a_run_of_another_configuration_is_not_taken_for_the_one_asked_for(tmp_path):
    config = {"dataset": "digits", "estimator": "rloo", "seed": 0, "steps": 10}
    (tmp_path / "rloo-0").mkdir()
    (tmp_path / "rloo-0" / "card.json").write_text(json.dumps({"config": config}))
    asked = argparse.Namespace(out=tmp_path, dataset="digits", steps=10, experiment=[])
    assert discrete_vae.train(asked, "rloo", 0)["config"] == config
    asked.steps = 20
    with pytest.raises(SystemExit, match="another configuration"):
        discrete_vae.train(asked, "rloo", 0)
