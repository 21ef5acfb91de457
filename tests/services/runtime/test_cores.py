from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.runtime import cores


def placed(monkeypatch: pytest.MonkeyPatch, folder: Path, own: str, quotas: dict[str, str]) -> int:
    """Usable cores of 16 in a control group `own`, with a `cpu.max` in some groups."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    for group, text in quotas.items():
        (folder / "groups" / group).mkdir(parents=True, exist_ok=True)
        (folder / "groups" / group / "cpu.max").write_text(text)
    (folder / "own").write_text(own)
    monkeypatch.setattr(cores, "PROCESS", folder / "own")
    monkeypatch.setattr(cores, "CGROUPS", folder / "groups")
    return cores.usable_cores()


@pytest.mark.parametrize(
    ("own", "quotas", "usable"),
    [
        ("0::/\n", {"": "200000 100000\n"}, 2),
        ("0::/\n", {"": "250000 100000\n"}, 3),
        ("0::/\n", {"": "1000 100000\n"}, 1),
        ("0::/\n", {"": "max 100000\n"}, 16),
        ("0::/\n", {"": "9900000 100000\n"}, 16),
        ("0::/a.slice/b.service\n", {"a.slice": "400000 100000\n", "a.slice/b.service": "max 100000\n"}, 4),
        ("1:cpu:/old\n", {}, 16),
        ("0::/\n", {"": "nonsense\n"}, 16),
    ],
)
def test_a_container_uses_as_many_cores_as_its_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: str, quotas: dict[str, str], usable: int
) -> None:
    assert placed(monkeypatch, tmp_path, own, quotas) == usable


def test_without_control_groups_all_cores_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    monkeypatch.setattr(cores, "PROCESS", tmp_path / "none")
    assert cores.usable_cores() == 2
