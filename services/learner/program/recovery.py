"""Starting where the run stands, and finding what got lost on the way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.contracts import streams
from services.contracts.events import CheckpointWritten
from services.contracts.run_config import RunConfig
from services.learner.checkpoint import Loaded
from services.learner.connections.redis_link import RunLink
from services.learner.groups.batcher import Batcher
from services.learner.groups.feeder import CURSOR, Feeder
from services.learner.groups.ledger import DropReason, Ledger
from services.learner.program.reconcile import add_lost, groups_on_streams, read_lost, refeed
from services.learner.program.session import TrainingSession
from services.learner.publish.publisher import Publisher
from services.runtime.dead_letters import Buried
from services.runtime.weights.checkpoint_files import read_checkpoint_manifest
from services.runtime.weights.store import MANIFEST, CorruptWeightsError, verify


def starting_ledger(checkpoint: Loaded | None, config: RunConfig) -> Ledger:
    """The ledger to go on with, and so the position in the data.

    A fork keeps its parent's. Where it has other `prompts_per_step`, the steps before it count as if they had had that
    size too: the feeder's credit and each task's step follow from the position.
    """
    if checkpoint is None:
        return Ledger()
    ledger = Ledger.from_json(checkpoint.state.ledger)
    ledger.trained = checkpoint.state.step * config.training.prompts_per_step
    return ledger


def first_step(checkpoint: Loaded | None, run_id: str) -> int:
    """Step that the run began at: 0, or that of a checkpoint which another run wrote."""
    return 0 if checkpoint is None or checkpoint.state.run_id == run_id else checkpoint.state.step


def tell_checkpoint(link: RunLink, folder: Path, step: int, seconds: float = 0.0) -> None:
    """Report a checkpoint. Told again it is the same event, since its time is that of the checkpoint's last file."""
    at, size = (folder / MANIFEST).stat().st_mtime, read_checkpoint_manifest(folder).bytes
    path = str(folder.resolve())
    link.emit(CheckpointWritten(run_id=link.run_id, at=at, step=step, path=path, bytes=size, seconds=seconds))


def catch_up(link: RunLink, session: TrainingSession, batcher: Batcher, feeder: Feeder, publisher: Publisher) -> None:
    """Bring Redis and the checkpoint together before anything runs.

    The published version may be ahead of the checkpoint (steps since then will be replayed) or, where Redis lost data,
    behind it: then the checkpoint's weights are published again and the feeding cursor is moved up. Where the published
    weights are not whole any more (they lay in memory, or the disk lost them), the run goes back to the checkpoint's,
    and the replay publishes the later ones again.
    """
    published = link.read_weights()
    link.withdraw_offer()  # it was the predecessor's
    link.published_version = int(published.get("version", 0))
    if published and not is_whole(published, publisher.folder):
        link.note(f"Published weights of version {link.published_version} are not whole any more.", "warning")
        link.published_version = -1
    link.num_dropped = batcher.ledger.num_dropped
    batcher.lost = link.call(read_lost(link.redis, link.run_id))
    weights = session.weights()
    if session.step > link.published_version:
        publisher.publish(session.step, weights)
    decided = batcher.ledger.decided
    if link.call(feeder.read_cursor()) < decided:
        link.call(_set_cursor(link.redis, link.run_id, decided))
    if session.step:
        link.note(f"Resumed from the checkpoint of step {session.step}; published version {link.published_version}.")


def is_whole(published: Mapping[str, str], folder: Path) -> bool:
    """Whether the weights that the hash names are a version in `folder`, the run's, and can be loaded."""
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


def find_lost(link: RunLink, batcher: Batcher, feeder: Feeder) -> None:
    """Feed groups again that are on no stream and not here; give those up that were fed too often. A Redis that has
    lost its last moments (a replica was promoted) is also told again which weights are published."""
    link.announce_again()
    wanted = [number for number in range(batcher.next_sequence, feeder.fed) if not batcher.has(number)]
    if not wanted:
        return
    names = [make(link.run_id) for make in (streams.prompts, streams.completions, streams.scored)]
    present = link.call(groups_on_streams(link.redis, names))
    tasks = [feeder.task(number, batcher.ledger.num_dropped) for number in wanted if number not in batcher.lost]
    lost = [task for task in tasks if task.group_id not in present]
    if not lost:
        return
    again, given_up = link.call(refeed(link.queue, link.run_id, lost))
    if again:
        link.note(f"{len(again)} groups were on no stream and were fed again, the first: {again[0]}.", "warning")
    if given_up:
        numbers = {task.sequence: _reason(given_up[task.group_id]) for task in lost if task.group_id in given_up}
        batcher.lost = link.call(add_lost(link.redis, link.run_id, numbers))
        first, letter = next(iter(given_up.items()))
        link.note(f"{len(given_up)} groups were given up, the first, {first}: {letter.reason}"[:4000], "warning")


def _reason(letter: Buried) -> DropReason:
    return "fatal" if letter.fatal else "lost"
