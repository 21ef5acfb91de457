from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from services.learner.model import threads
from services.learner.model.threads import LARGE_PARAMETERS, num_threads, use_threads


@pytest.mark.parametrize(
    ("parameters", "cores", "ranks", "wanted", "overlapping", "in_turns"),
    [
        (LARGE_PARAMETERS - 1, 8, 1, 0, 1, 1),
        (LARGE_PARAMETERS, 8, 1, 0, 7, 8),
        (LARGE_PARAMETERS, 8, 2, 0, 3, 4),
        (LARGE_PARAMETERS, 2, 1, 0, 1, 2),
        (LARGE_PARAMETERS, 1, 4, 0, 1, 1),
        (10, 8, 1, 4, 4, 4),
    ],
)
def test_a_large_model_gets_all_cores_that_the_engine_does_not_need(
    parameters: int, cores: int, ranks: int, wanted: int, overlapping: int, in_turns: int
) -> None:
    assert num_threads(parameters, cores, ranks, wanted, in_turns=False) == overlapping
    assert num_threads(parameters, cores, ranks, wanted, in_turns=True) == in_turns


@pytest.fixture
def kept() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("kept")
def test_a_number_of_the_users_own_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    monkeypatch.setattr(threads, "LARGE_PARAMETERS", 1)
    model = torch.nn.Linear(2, 2)
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    use_threads(model, 0, in_turns=False)
    assert torch.get_num_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    use_threads(model, 0, in_turns=False)
    assert torch.get_num_threads() == 3
    use_threads(model, 0, in_turns=True)
    assert torch.get_num_threads() == 4
    use_threads(model, 2, in_turns=True)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("kept")
def test_parameters_that_zero_3_partitions_count_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.empty(0))])
    model[0].ds_numel = LARGE_PARAMETERS
    torch.set_num_threads(1)
    use_threads(model, 0, in_turns=False)
    assert torch.get_num_threads() == 3
