"""Carries out evaluations: feeds their questions, stores what each comes to, and ends them.

Level-triggered: what is done is in the database, so a restarted API continues with the questions that are left. A
question's result is stored before its group is acknowledged, under its set and number, so none is lost or counted
twice. Groups go through rollout servers and verifiers as a run's do; if one of those dies, another takes them over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import msgspec
from redis.asyncio import Redis

from services.api.live.board import Board
from services.api.storage import evaluations as repository
from services.api.storage.database import Database
from services.api.storage.evaluations import EvaluationRow, Found
from services.contracts import streams
from services.contracts.errors import ConfigurationError, TurnoutError
from services.contracts.evaluations.results import question_result, set_results
from services.contracts.evaluations.samples import kept_samples
from services.contracts.evaluations.tasks import evaluation_task, setting_of
from services.contracts.messages import PromptTask, Question, ScoredGroup
from services.contracts.questions.reading import read_source
from services.contracts.questions.source import ValidationSet
from services.contracts.records import EvaluationState, QuestionResult, SetResult
from services.contracts.run_config import RunConfig, stored_run_config
from services.runtime.logs import get_logger
from services.runtime.queue.lost import feed_lost
from services.runtime.queue.queue import Delivery, Queue

log = get_logger(__name__)
CONSUMER = "evaluations"
"""One name for every process: only one API at a time has the database, and it takes over what the last one left."""
FED_AT_ONCE = 256
RECEIVED_AT_ONCE = 64
SILENCE_SECONDS = 10.0
"""Time without a result after which to look for lost groups."""
Place = tuple[int, int]
"""Number of the set, and of the question in it."""


@dataclass(slots=True)
class Work:
    """One evaluation in progress."""

    id: str
    config: RunConfig
    version: int
    sets: list[ValidationSet]
    tasks: dict[Place, PromptTask]
    """Those that are not done."""
    num_dead: int
    silent_since: float = field(default_factory=time.monotonic)

    def label(self, place: int) -> str:
        return self.sets[place].label


class Examiner:
    """Consumes: evaluations with a server, `evaluated`. Produces: `prompts`, questions' results, ends."""

    def __init__(
        self, redis: Redis, database: Database, board: Board, on_end: Callable[[str], Awaitable[None]]
    ) -> None:
        """`on_end` is told the id of each evaluation that has ended."""
        self.database = database
        self.board = board
        self.queue = Queue(redis, streams.GROUP_API, CONSUMER)
        self.on_end = on_end
        self._works: dict[str, Work] = {}

    async def step(self) -> None:
        """One round: every evaluation with a server."""
        async with self.database.read() as session:
            rows = [row for row in await repository.unended_evaluations(session) if row.state == "running"]
        self._works = {row.id: work for row in rows if (work := self._works.get(row.id)) is not None}
        for row in rows:
            try:
                await self._advance(row)
            except TurnoutError as error:
                await self._end(row.id, "failed", str(error))

    async def _advance(self, row: EvaluationRow) -> None:
        work = self._works.get(row.id)
        if work is None:
            work = self._works[row.id] = await self._begin(row)
        if await self._collect(work):
            work.silent_since = time.monotonic()
        elif work.tasks:
            await self._find_lost(work)
        if not work.tasks:
            await self._end(row.id, "succeeded")

    async def _begin(self, row: EvaluationRow) -> Work:
        """Read the questions and feed those that are left. What an earlier process fed is not fed again.

        Raises:
            ConfigurationError: a set cannot be read, or this version does not accept the configuration.
        """
        config = stored_run_config(row.config)
        sets = list(config.data.validation_sets())
        questions = [await asyncio.to_thread(read_questions, item, config.evaluation.max_questions) for item in sets]
        async with self.database.write() as session:
            stored = await repository.get_evaluation(session, row.id)
            stored.num_questions = sum(map(len, questions))
            done = await repository.done_places(session, row.id)
        work = Work(row.id, config, row.version, sets, {}, self.queue.num_dead_letters)
        for place, of_set in enumerate(questions):
            for first in range(0, len(of_set), FED_AT_ONCE):
                numbers = range(first, min(first + FED_AT_ONCE, len(of_set)))
                tasks = {
                    (place, number): _task(work, place, number, of_set[number])
                    for number in numbers
                    if (place, number) not in done
                }
                work.tasks |= tasks
                await self._feed(row.id, f"evaluation:{place}:{first}", list(tasks.values()))
        log.info("evaluation begun", evaluation=row.id, num_questions=sum(map(len, questions)), num_done=len(done))
        return work

    async def _feed(self, evaluation_id: str, field: str, tasks: Sequence[PromptTask]) -> None:
        if tasks:
            await self.queue.feed(streams.prompts(evaluation_id), streams.feeder(evaluation_id), field, 0, tasks)

    async def _collect(self, work: Work) -> int:
        """Store what has been judged; the number of groups."""
        stream = streams.evaluated(work.id)
        arrived = await self.queue.own_pending(stream, ScoredGroup)
        arrived += await self.queue.receive([stream], ScoredGroup, count=RECEIVED_AT_ONCE, block_seconds=0.001)
        if not arrived:
            return 0
        results: dict[Place, Found] = {}
        for delivery in arrived:
            place = _place(delivery)
            if place in work.tasks:
                result = question_result(delivery.message, work.label(place[0]), work.version)
                results[place] = Found(place[0], result, kept_samples(delivery.message, work.version))
        await self._store(work, results)
        await self.queue.acknowledge(arrived)
        return len(arrived)

    async def _find_lost(self, work: Work) -> None:
        """Feed groups again that are on no stream, and give up those that crash what holds them."""
        has_new_letters = self.queue.num_dead_letters != work.num_dead
        if not has_new_letters and time.monotonic() - work.silent_since < SILENCE_SECONDS:
            return
        work.silent_since, work.num_dead = time.monotonic(), self.queue.num_dead_letters
        again, given_up = await feed_lost(self.queue, work.id, streams.evaluated(work.id), work.tasks.values())
        if again:
            log.warning("lost questions fed again", evaluation=work.id, num_groups=len(again))
        lost = {
            place: Found(place[0], _given_up(work, place, task, given_up[task.group_id].reason))
            for place, task in work.tasks.items()
            if task.group_id in given_up
        }
        await self._store(work, lost)

    async def _store(self, work: Work, results: dict[Place, Found]) -> None:
        if not results:
            return
        async with self.database.write() as session:
            await repository.store_questions(session, work.id, results.values())
        for key, found in results.items():
            work.tasks.pop(key)
            self.board.evaluated_questions += 1
            self.board.evaluated_samples += found.result.num_samples

    async def _end(self, evaluation_id: str, state: EvaluationState, reason: str = "") -> None:
        async with self.database.read() as session:
            row = await repository.get_evaluation(session, evaluation_id)
            results = await results_of(row, await repository.questions(session, evaluation_id))
        async with self.database.write() as session:
            row = await repository.get_evaluation(session, evaluation_id)
            if row.state not in repository.UNENDED:
                return
            if state == "succeeded" and not any(item.num_questions for item in results):
                state, reason = "failed", "No question could be judged; the questions say why."
            row.state, row.reason, row.finished_at, row.rollout_servers = state, reason, time.time(), []
            row.results = msgspec.to_builtins(results)
        log.info("evaluation ended", evaluation=evaluation_id, state=state, reason=reason)
        await self.on_end(evaluation_id)


async def results_of(row: EvaluationRow, questions: Sequence[QuestionResult]) -> list[SetResult]:
    """The results so far, computed in a thread: a large evaluation's intervals take a second.

    None if this version does not accept the configuration.
    """
    try:
        config = stored_run_config(row.config)
    except ConfigurationError:
        return []
    sets = {
        item.label: (int(setting_of(config, item, "num_samples")), float(setting_of(config, item, "temperature")))
        for item in config.data.validation_sets()
    }
    return await asyncio.to_thread(set_results, sets, questions)


def read_questions(source: ValidationSet, most: int | None) -> list[Question]:
    """The first `most` questions of a set, without solutions, which no service here needs.

    Raises:
        ConfigurationError: names file, line and remedy.
    """
    found = [msgspec.structs.replace(question, solution=msgspec.UNSET) for _, question in read_source(source)]
    return found[:most]


def _task(work: Work, place: int, number: int, question: Question) -> PromptTask:
    return evaluation_task(
        work.config,
        work.id,
        work.sets[place],
        question,
        group_id=f"evaluation-{place}-{number}",
        sequence=number,
        version=work.version,
        seed=work.config.training.seed,
    )


def _place(delivery: Delivery[ScoredGroup]) -> Place:
    """Place in the evaluation; one that does not exist for a group that is not of its own."""
    task = delivery.message.group.task
    _, _, place = task.group_id.partition("-")
    return (int(place.partition("-")[0]) if place.partition("-")[0].isdecimal() else -1), task.sequence


def _given_up(work: Work, place: Place, task: PromptTask, reason: str) -> QuestionResult:
    return QuestionResult(
        set=work.label(place[0]),
        number=place[1],
        question_id=task.question.id,
        kind=task.question.kind,
        num_samples=0,
        num_correct=0,
        num_truncated=0,
        num_faults=task.sampling.num_samples,
        response_tokens=0,
        fault=f"Given up: {reason}"[:1000],
    )
