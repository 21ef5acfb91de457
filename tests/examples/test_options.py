"""The experiments on the objective's options are valid, and claim something about each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.contracts.experiments.experiment import Cell, parse_experiment, run_config
from tests.conftest import ROOT
from turnout.cli.commands.experiments import read_values

FOLDER = ROOT / "examples/experiments/options"
GROUPS = sorted({path.stem for path in FOLDER.glob("*.yaml")} - {"base", "staleness-4"})


@pytest.mark.parametrize("staleness", [[], [FOLDER / "staleness-4.yaml"]])
@pytest.mark.parametrize("group", GROUPS)
def test_each_option_of_a_group_is_a_method_with_claims_against_srpo(group: str, staleness: list[Path]) -> None:
    experiment = parse_experiment(read_values([FOLDER / "base.yaml", FOLDER / f"{group}.yaml", *staleness], []))
    assert experiment.name == f"options-{group}"
    claimed = {claim.higher.method for claim in experiment.claims}
    assert claimed | {"srpo"} == set(experiment.methods)
    assert {claim.lower.method for claim in experiment.claims} == {experiment.baseline} == {"srpo"}
    plain = run_config(experiment, Cell.of("final", "srpo", 0, 1)).objective
    for method in claimed:
        config = run_config(experiment, Cell.of("final", method, 0, 1))
        assert config.objective != plain, "the option changes something"
        assert config.training.max_staleness == (4 if staleness or group == "old-policies" else 0)
