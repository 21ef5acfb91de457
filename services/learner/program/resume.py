"""Continues a run from its checkpoint, and feeds lost groups again.

Groups are decided in feeding order, so one that never arrives would block the run. A lost group is fed again under the
same number, and counts as dropped after some tries (`services.runtime.queue.lost`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis

from services.contracts import streams
from services.contracts.events import CheckpointWritten
from services.contracts.run_config import RunConfig
from services.learner.checkpoint import Loaded
from services.learner.connections.redis_link import RunLink
from services.learner.groups.batcher import Batcher
from services.learner.groups.feeder import CURSOR, Feeder
from services.learner.groups.ledger import DropReason, Ledger
from services.learner.program.session import TrainingSession
from services.learner.publish.publisher import Publisher
from services.runtime.dead_letters import Buried
from services.runtime.queue.lost import feed_lost
from services.runtime.weights.checkpoint_files import read_checkpoint_manifest
from services.runtime.weights.store import MANIFEST, CorruptWeightsError, verify

_REASONS: Final[tuple[DropReason, ...]] = ("lost", "fatal")
"""Fields of the feeder hash that list sequence numbers."""


def starting_ledger(checkpoint: Loaded | None, config: RunConfig) -> Ledger:
    """The ledger to continue with, and so the position in the data.

    A fork keeps its parent's. If its `prompts_per_step` differs, earlier steps count as if they had the same size,
    because the feeder's credit and each task's step follow from the position.
    """
    if checkpoint is None:
        return Ledger()
    ledger = Ledger.from_json(checkpoint.state.ledger)
    ledger.trained = checkpoint.state.step * config.training.prompts_per_step
    return ledger


def first_step(checkpoint: Loaded | None, run_id: str) -> int:
    """The step that the run began at: 0, or for a fork that of its parent's checkpoint."""
    return 0 if checkpoint is None or checkpoint.state.run_id == run_id else checkpoint.state.step


def tell_checkpoint(link: RunLink, folder: Path, step: int, seconds: float = 0.0) -> None:
    """Report a checkpoint. A repeated report is the same event, since its time is that of the checkpoint's manifest."""
    at, size = (folder / MANIFEST).stat().st_mtime, read_checkpoint_manifest(folder).bytes
    path = str(folder.resolve())
    link.emit(CheckpointWritten(run_id=link.run_id, at=at, step=step, path=path, bytes=size, seconds=seconds))


def catch_up(link: RunLink, session: TrainingSession, batcher: Batcher, feeder: Feeder, publisher: Publisher) -> None:
    """Reconcile Redis with the checkpoint before anything runs.

    The published version may be ahead of the checkpoint (the steps since then are replayed) or, if Redis lost data,
    behind it. In that case the checkpoint's weights are published again and the feeding cursor moves up to it. If the
    published weights are damaged (they were in memory, or the disk lost them), the run returns to the checkpoint's
    weights, and the replay publishes the later versions again.
    """
    published = link.read_weights()
    link.withdraw_offer()  # it was the predecessor's
    # Servers have version 0 from the files of model.path, unless that is not what the learner trains.
    own = -1 if session.config.model.is_quantized else 0
    link.published_version = int(published.get("version", own))
    if published and not is_whole(published, publisher.folder):
        link.note(f"The published weights of version {link.published_version} are missing or damaged.", "warning")
        link.published_version = -1
    elif published:
        publisher.renew_offer(published)
    link.num_untrained = batcher.ledger.num_untrained
    batcher.lost = link.call(read_lost(link.redis, link.run_id))
    weights = session.weights()
    if session.step > link.published_version:
        publisher.publish(session.step, weights)
    decided = batcher.ledger.decided
    if link.call(feeder.read_cursor()) < decided:
        link.call(_set_cursor(link.redis, link.run_id, decided))
    if session.step:
        link.note(
            f"Resumed from the checkpoint of step {session.step}. The published version is {link.published_version}."
        )


def is_whole(published: Mapping[str, str], folder: Path) -> bool:
    """Whether the announced weights are a version in the run's `folder` and match their checksum."""
    path = Path(published["path"])
    try:
        if path.resolve().parent != folder.resolve():
            return False
        verify(path, published["checksum"])
    except (CorruptWeightsError, OSError, ValueError):
        return False
    return True


async def _set_cursor(redis: Any, run_id: str, value: int) -> None:
    await redis.hset(streams.feeder(run_id), CURSOR, value)


def find_lost_groups(link: RunLink, batcher: Batcher, feeder: Feeder) -> None:
    """Feed training groups again that are neither on a stream nor here, and give up those that were fed too often.
    Also restores the announcement of the published weights, in case a failover of Redis lost it."""
    link.announce_again()
    wanted = [number for number in range(batcher.next_sequence, feeder.end) if not batcher.has(number)]
    if not wanted:
        return
    tasks = [feeder.task(number, batcher.ledger.num_untrained) for number in wanted if number not in batcher.lost]
    again, given_up = link.call(feed_lost(link.queue, link.run_id, streams.scored(link.run_id), tasks))
    if again:
        link.note(f"Fed {len(again)} lost groups again, the first of them {again[0]}.", "warning")
    if given_up:
        numbers = {task.sequence: _reason(given_up[task.group_id]) for task in tasks if task.group_id in given_up}
        batcher.lost = link.call(add_lost(link.redis, link.run_id, numbers))
        first, letter = next(iter(given_up.items()))
        text = f"Gave up {len(given_up)} lost groups. Reason for the first, {first}: {letter.reason}"
        link.note(text[:4000], "warning")


def _reason(letter: Buried) -> DropReason:
    return "fatal" if letter.fatal else "lost"


async def read_lost(redis: Redis, run_id: str) -> dict[int, DropReason]:
    """Sequence numbers of train groups that were given up. Kept in Redis, so that a replay makes the same decision."""
    lost: dict[int, DropReason] = {}
    for reason in _REASONS:
        value: Any = await redis.hget(streams.feeder(run_id), reason)
        lost |= dict.fromkeys(json.loads(value) if value else [], reason)
    return lost


async def add_lost(redis: Redis, run_id: str, sequences: Mapping[int, DropReason]) -> dict[int, DropReason]:
    """Record these train groups as given up. Returns all that are."""
    lost = await read_lost(redis, run_id) | dict(sequences)
    fields = {reason: sorted(number for number, why in lost.items() if why == reason) for reason in _REASONS}
    await redis.hset(streams.feeder(run_id), mapping={reason: json.dumps(found) for reason, found in fields.items()})
    return lost
