"""The experiments on the objective's options are valid, and claim something about each of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.contracts.experiments.experiment import Cell, parse_experiment, run_config
from tests.conftest import ROOT
from turnout.cli.commands.experiments import read_values

FOLDER = ROOT / "examples/experiments/options"
GROUPS = sorted({path.stem for path in FOLDER.glob("*.yaml")} - {"base", "staleness-4", "old-rollouts"})


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


def test_the_options_of_all_other_groups_are_tried_with_old_rollouts() -> None:
    old = parse_experiment(read_values([FOLDER / "old-rollouts.yaml"], []))
    assert old.tuning is None
    found = {}
    for group in set(GROUPS) - {"old-policies", "confirm"}:
        experiment = parse_experiment(read_values([FOLDER / "base.yaml", FOLDER / f"{group}.yaml"], []))
        for method in experiment.methods:
            found[method] = run_config(experiment, Cell.of("final", method, 0, 1)).objective
    tried = {method: run_config(old, Cell.of("final", method, 0, 1)) for method in old.methods}
    assert {method: config.objective for method, config in tried.items()} == found
    assert {config.training.max_staleness for config in tried.values()} == {4}
