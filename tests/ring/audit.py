"""The ledger at every moment, from two sides: what Redis holds, and what the API shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import redis as redis_sync

from services.contracts import codec, streams
from services.contracts.errors import TurnoutError
from services.contracts.messages import CompletedGroup, PromptTask, ScoredGroup
from turnout import Client
from turnout.cli.local.processes import read_state


class Auditor:
    """Looks at a run again and again. For a run without drops, so that what is acknowledged is known.

    - Every group fed is on exactly one stream until a checkpoint that holds its step is durable. So fed less those on
      streams is what the checkpoints so far have trained, and nothing else, at any moment.
    - The API's counts add up: fed = trained + dropped + in flight.
    """

    def __init__(self, client: Client, home: Path, run_id: str, *, checkpoint_groups: int, all_groups: int) -> None:
        state = read_state(home)
        assert state is not None
        self.faults: list[str] = []
        self.num_looks = 0
        self._client = client
        self._run_id = run_id
        self._redis = redis_sync.Redis.from_url(state.redis_url)
        self._settled_before = 0
        self._possible = {*range(0, all_groups, checkpoint_groups), all_groups}

    def look(self) -> None:
        """One look. A Redis or an API that is away at the moment shows nothing."""
        try:
            self._look_at_redis()
            self._look_at_api()
        except (redis_sync.RedisError, TurnoutError):
            return
        self.num_looks += 1

    def _look_at_redis(self) -> None:
        names = [make(self._run_id) for make in (streams.prompts, streams.completions, streams.scored)]
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hget(streams.feeder(self._run_id), "train")
            for name in names:
                pipe.xrange(name)
            fed, *found = pipe.execute()
        tasks = [_task(codec.decode_any(fields[b"m"])) for entries in found for _, fields in entries]
        held = [task.sequence for task in tasks if task.purpose == "train"]
        settled = int(fed or 0) - len(held)
        if len(set(held)) != len(held):
            self.faults.append(f"groups are on two streams: {sorted(held)}")
        if settled not in self._possible or settled < self._settled_before:
            self.faults.append(f"{settled} groups are settled, after {self._settled_before}: fed {fed}, held {held}")
        self._settled_before = settled

    def _look_at_api(self) -> None:
        groups = self._client.run(self._run_id).groups
        dropped = sum(count for name, count in groups.items() if name == "replaced" or name.startswith("dropped_"))
        if groups and groups["fed"] != groups["trained"] + dropped + groups["in_flight"]:
            self.faults.append(f"the API's counts do not add up: {groups}")


def _task(message: Any) -> PromptTask:
    if isinstance(message, ScoredGroup):
        message = message.group
    if isinstance(message, CompletedGroup):
        message = message.task
    assert isinstance(message, PromptTask)
    return message
