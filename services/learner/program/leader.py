"""Rank 0's loops: turn groups into steps, evaluations and checkpoints, and follow the desired state."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from services.contracts.errors import TurnoutError
from services.contracts.events import SAMPLES_EVERY_STEPS, Event, StepFinished
from services.contracts.heartbeat import WAITS_FOR_RESUME
from services.learner.checkpoint import CheckpointStore, Loaded, Snapshot
from services.learner.connections.farewell import writing
from services.learner.connections.redis_link import RunLink, check_scored
from services.learner.connections.turn import STOPS, GpuTurn, Stopped
from services.learner.groups.batcher import Batch, Batcher, Scored
from services.learner.groups.curriculum import Curriculum
from services.learner.groups.feeder import Feeder
from services.learner.groups.prepare import PreparedGroup, prepare_group
from services.learner.groups.questions import Datasets
from services.learner.model.check import check_run, check_teacher, num_positions, table_of_positions
from services.learner.model.engine import warmup_warning
from services.learner.objectives.teacher_gate import TeacherGate
from services.learner.objectives.teacher_prompt import position_warning, template_warning
from services.learner.program.commands import BEAT_SECONDS, Finish, Save, Step, Wait, send
from services.learner.program.evaluate import evaluators, stored_accuracies
from services.learner.program.probe import Probe
from services.learner.program.resume import (
    catch_up,
    find_lost_groups,
    first_step,
    starting_ledger,
    tell_checkpoint,
)
from services.learner.program.session import Trained, TrainingSession
from services.learner.program.step_report import (
    gate_evidence,
    part_means,
    samples_taken,
    source_numbers,
    step_histograms,
    step_numbers,
    with_rates,
)
from services.learner.program.tracing import record_trained, record_untrained
from services.learner.program.writer import Writer
from services.learner.publish.factory import make_sender
from services.learner.publish.publisher import Publisher
from services.runtime.inputs import trusts_remote_code
from services.runtime.logs import get_logger
from services.runtime.settings import Settings
from services.runtime.tokenizer import load_tokenizer
from services.runtime.weights.store import WeightStore

log = get_logger(__name__)
E = TypeVar("E", bound=Event)
SILENCE_SECONDS = 15.0
"""Time without the awaited group after which to check whether it is lost."""


class Leader:
    """Leads one run from its current step to its end."""

    def __init__(
        self,
        link: RunLink,
        session: TrainingSession,
        folder: Path,
        checkpoint: Loaded | None,
        settings: Settings,
        questions: Datasets,
        turn: GpuTurn | None = None,
    ) -> None:
        """With `turn`, the GPU is shared with the rollout server, and is the learner's when this is called."""
        self.turn = turn
        self.link, self.session, self.config = link, session, session.config
        self.tokenizer = load_tokenizer(
            self.config.model.path,
            trust_remote_code=trusts_remote_code(self.config.model, settings.allow_remote_code),
        )
        check_run(session.engine.module, self.tokenizer, self.config)
        self._num_table = table_of_positions(session.engine.module)
        if self.config.objective.teacher_path is not None:
            teacher = session.engine.teacher
            assert teacher is not None
            check_teacher(teacher, session.engine.module, self.tokenizer, self.config)
            self._num_table = table_of_positions(teacher)
        train = questions.train
        ledger = starting_ledger(checkpoint, self.config)
        self.batcher = Batcher.for_run(self.config, ledger)
        known = None if checkpoint is None else checkpoint.state.curriculum
        self.batcher.curriculum = Curriculum.for_run(self.config, train, ledger, session.step, known)
        self.gate = TeacherGate.for_run(self.config, None if checkpoint is None else checkpoint.state.teacher_gate)
        self.feeder = Feeder(link.queue, link.run_id, self.config, self.batcher.curriculum or train)
        link.queue.border = partial(check_scored, vocabulary_size=session.vocabulary_size)
        began = first_step(checkpoint, link.run_id)
        self.evaluators = evaluators(link.queue, link.run_id, self.config, questions.validation, began)
        self.probe = Probe(link.queue, link.run_id, self.config, train) if self.config.probe else None
        self.publisher = Publisher(
            link,
            WeightStore(settings.weights_of(link.run_id), link.run_id),
            session.write_published,
            make_sender(
                self.config.weights.transport, session.ranks.device, settings, lambda text: link.note(text, "warning")
            ),
        )
        self.store = CheckpointStore(folder, lambda path, weights: session.save_model(path, weights, self.tokenizer))
        self.writer = Writer()
        self._beat_at = time.monotonic()
        self._began_at = time.monotonic()
        """Start of the current step on the monotonic clock; reset by a pause."""
        self._resumed_from = checkpoint
        self._checkpoint_step = session.step
        self._num_dead_seen = 0
        self._tokens = 0
        self._weights: dict[str, Tensor] = {}
        """CPU copies of the newest weights."""

    def run(self) -> None:
        """Train the run to its end, then report its state: succeeded or stopped."""
        catch_up(self.link, self.session, self.batcher, self.feeder, self.publisher)
        if self.turn is not None:
            self.session.parking.park()
            self.turn.give()
        if self._resumed_from is not None and self._resumed_from.state.run_id == self.link.run_id:
            tell_checkpoint(self.link, self._resumed_from.folder, self.session.step)  # may not have been reported yet
        self.link.start(self.feeder)
        self.link.emit_state("paused" if self.link.wanted() == "paused" else "running")
        self.link.report(state="ready", weight_version=self.link.published_version)
        engine = self.session.engine
        other = engine.teacher if self.config.objective.teacher_path is not None else None
        limits = num_positions(engine.module), num_positions(other or engine.module)
        warnings = [
            position_warning(self.config, *limits),
            warmup_warning(self.config),
            template_warning(self.config, str(self.tokenizer.chat_template)),
        ]
        for warning in warnings if self._resumed_from is None else []:
            if warning is not None:
                self.link.note(warning, "warning")
        try:
            self._steps()
            ended, reason = "succeeded", ""
        except Stopped:
            ended, reason = "stopped", "as asked"
            if self.link.wanted() == "stopped" and self.session.step > self._checkpoint_step:
                with suppress(Stopped):  # the wish became to stop without one
                    self._submit_checkpoint()
        self.writer.drain()
        send(Finish(), self.session.ranks.device)
        self.link.emit_state(ended, reason)  # type: ignore[arg-type]
        self.writer.close()
        self.publisher.close()

    def _steps(self) -> None:
        """Consumes batches; produces steps, evaluations and checkpoints; waits for groups, and while paused."""
        self._probe()
        self._evaluate(self.session.step)  # continues one that a crash interrupted; reports a finished one again
        while self.session.step < self.config.training.steps:
            self._began_at = time.monotonic()
            self._train(self._collect(self.session.step + 1))
            self._evaluate(self.session.step)
        self.writer.drain()
        self.link.acknowledge_rest()

    def _obey(self) -> None:
        """Wait while the run is paused. Raises `Stopped` if the run must stop."""
        if self.link.wanted() == "paused":
            self.writer.drain()  # report the last step before the pause
            self.link.emit_state("paused")
            self.link.report(waiting_for=WAITS_FOR_RESUME)
            while self.link.wanted() == "paused":
                self._idle(0.1)
            if self.link.wanted() == "running":
                self.link.emit_state("running")
                self.link.wake_feeder()
            self.link.report(waiting_for="")
            self._began_at = time.monotonic()
        if self.link.wanted() in STOPS:
            raise Stopped

    def _idle(self, seconds: float) -> None:
        """Sleep, but raise the other threads' faults and keep the other ranks' collectives alive."""
        self.link.check()
        self.writer.check()
        if time.monotonic() - self._beat_at > BEAT_SECONDS:
            self._send(Wait())
        time.sleep(seconds)

    def _send(self, command: Wait | Step | Save) -> None:
        if self.session.ranks.num_ranks > 1:
            send(command, self.session.ranks.device)
        self._beat_at = time.monotonic()

    def _collect(self, step: int) -> Batch:
        """Consumes arrivals; produces the batch of `step`; waits for the verifier to publish the next group in feeding
        order. Drops and replacements give the feeder credit immediately. A pause takes effect here as well, since the
        missing groups may not have been fed yet."""
        self.link.check()
        silent_since = time.monotonic()
        while True:
            self._obey()
            arrived = self._take_arrivals()
            batch = self.batcher.take(step)
            self._account()
            if batch is not None:
                self.link.report(waiting_for="")
                return batch
            if arrived:
                silent_since = time.monotonic()
            missing = self.config.training.prompts_per_step - self.batcher.num_chosen
            self.link.report(waiting_for=f"{missing} scored groups for step {step}")
            num_dead = self.link.queue.num_dead_letters
            if time.monotonic() - silent_since > SILENCE_SECONDS or num_dead != self._num_dead_seen:
                self._num_dead_seen = num_dead
                find_lost_groups(self.link, self.batcher, self.feeder)
                if self.turn is not None:
                    self.turn.say_again()
                silent_since = time.monotonic()
            self._wait_for_arrival()

    def _take_arrivals(self) -> int:
        count = 0
        while True:
            try:
                delivery = self.link.arrivals.get_nowait()
            except queue.Empty:
                return count
            count += 1
            self.batcher.offer(delivery)

    def _wait_for_arrival(self) -> None:
        try:
            delivery = self.link.arrivals.get(timeout=0.25)
            self.link.arrivals.put(delivery)  # order does not matter, groups are decided by number
        except queue.Empty:
            self._idle(0.0)

    def _account(self) -> None:
        """Tell the feeder about drops and replacements, and fail a run whose groups are all dropped. Groups that a
        predecessor had received do not count, since they may be the reason that it died."""
        record_untrained(self.batcher)
        untrained = self.batcher.ledger.num_untrained
        if untrained != self.link.num_untrained:
            self.link.num_untrained = untrained
            self.link.wake_feeder()
        limit = max(32, 4 * self.config.training.prompts_per_step) + self.link.num_replayed
        if self.batcher.num_dropped_in_a_row >= limit and self.batcher.last_drop is not None:
            reason, fault = self.batcher.last_drop
            raise TurnoutError(
                f"The last {limit} groups were all dropped; reason: {reason}"
                f"{' (' + fault.rstrip('.') + ')' if fault else ''}.",
                remedy="Fix the cause, then resume the run.",
            )

    def _train(self, batch: Batch) -> None:
        """Consumes a batch; produces the step's weights; hands publishing, reports and checkpoint to the writer."""
        version, began, waited = self.session.step, time.time(), time.monotonic() - self._began_at
        groups = [prepare_group(group, self.config, self.tokenizer, self._num_table) for group in batch.groups]
        seconds_turn = self._take_turn()
        due = self._checkpoint_due(batch.step)
        renew = self.gate is not None and self.gate.observe(*gate_evidence(groups))
        command = Step(self._minibatches(groups), due, renew)
        self._send(command)
        shown = self._shown_group(groups, batch.step)
        trained = self.session.train(command, shown)
        weights = self._weights = self.session.weights()
        record_trained(batch, began)
        paused = time.monotonic()
        snapshot = self._snapshot(weights) if due else None
        self.writer.wait_for_room()
        blocked = time.monotonic() - paused
        seconds_turn += self._end_turn()
        metrics = step_numbers(
            groups,
            version,
            trained.reports,
            num_replaced=batch.num_replaced,
            pools=batch.pools,
            learning_rate=self.session.engine.last_learning_rate,
            seconds_wait=waited,
            peak_bytes=trained.peak_bytes,
        )
        metrics["teacher_age_steps"] = float(self._teacher_age(version))
        metrics |= source_numbers(groups, self.config) | part_means(groups, by_name=True)
        if self.turn is not None:
            metrics["seconds_turn"] = seconds_turn
        self._tokens += int(metrics["num_tokens"])
        self.link.report(step=batch.step, tokens_total=self._tokens)
        event = StepFinished(
            run_id=self.link.run_id,
            at=time.time(),
            step=batch.step,
            metrics=metrics,
            histograms=step_histograms(groups, version, trained.reports),
            groups=self.batcher.boundary.groups(self.feeder.fed),
        )
        samples = self._samples(groups, trained, batch.step) if shown else None
        event = with_rates(event, seconds=time.monotonic() - self._began_at, seconds_checkpoint=blocked)
        self._submit(event, samples, weights, snapshot)

    def _take_turn(self) -> float:
        """Get the GPU if it is shared, with all states on it. Returns the seconds that took.

        Raises:
            Stopped: the run is to stop immediately. A batch that is complete is trained before any other stop.
        """
        if self.turn is None:
            return 0.0
        started = time.monotonic()
        self.writer.drain()  # otherwise the last step's job would give this turn away
        self.turn.take(self._idle, frozenset({"stopped_now"}))
        self.session.parking.unpark()
        return time.monotonic() - started

    def _end_turn(self) -> float:
        """Move all states to CPU memory if the GPU is shared; the server gets it once the weights are published.
        Returns the seconds that took."""
        if self.turn is None:
            return 0.0
        started = time.monotonic()
        self.session.parking.park()
        return time.monotonic() - started

    def _teacher_age(self, version: int) -> int:
        """Training steps since the teacher was the policy, as a step begins from weights of `version`."""
        if self.gate is not None:
            return self.gate.state.age
        section = self.config.objective
        if section.teacher_path is not None:
            return 0
        return {"every": version % section.teacher_every_steps, "frozen": version}.get(section.teacher_update, 0)

    def _minibatches(self, groups: Sequence[PreparedGroup]) -> list[list[Any]]:
        size = self.config.prompts_per_minibatch
        parts = [groups[start : start + size] for start in range(0, len(groups), size)]
        return [[sequence for group in part for sequence in group.sequences] for part in parts]

    def _shown_group(self, groups: Sequence[PreparedGroup], step: int) -> range:
        """The sequences of the first mini-batch that are published as samples: every few steps its first group."""
        return range(len(groups[0].sequences) if step == 1 or step % SAMPLES_EVERY_STEPS == 0 else 0)

    def _samples(self, groups: Sequence[PreparedGroup], trained: Trained, step: int) -> Any:
        share, details = trained.shares[0], trained.reports[0].details
        by_rollout = {share[index]: detail for index, detail in details.items()}
        return samples_taken(groups[0], by_rollout, self.link.run_id, step, self.tokenizer, self.config)

    def _submit(self, event: StepFinished, samples: Any, weights: dict[str, Tensor], snapshot: Snapshot | None) -> None:
        settled = self.batcher.take_settled() if snapshot is not None else []

        def job() -> None:
            seconds = self.publisher.publish(event.step, weights)
            if self.turn is not None:
                self.turn.give()
            self.link.emit(with_rates(event, seconds_publish=seconds))
            if samples is not None:
                self.link.emit(samples)
            if snapshot is not None:
                self._write_checkpoint(snapshot, settled)

        self.writer.submit(job)

    def _checkpoint_due(self, step: int) -> bool:
        if self.config.probe is not None:
            return False  # a probe is not resumed, and its few steps are timed
        due = step % self.config.checkpoint.every_steps == 0 or step == self.config.training.steps
        if due:
            self._checkpoint_step = step
        return due

    def _snapshot(self, weights: dict[str, Tensor]) -> Snapshot:
        ledger, curriculum = self.batcher.boundary.to_json(), self.batcher.curriculum_boundary
        gate = None if self.gate is None else self.gate.state
        return self.session.snapshot(self.link.run_id, ledger, weights, curriculum, gate)

    def _submit_checkpoint(self) -> None:
        """Write a checkpoint outside the schedule."""
        self._take_turn()
        self._send(Save())
        snapshot = self._snapshot(self._weights)
        self._end_turn()
        settled = self.batcher.take_settled()
        self.writer.submit(lambda: self._write_checkpoint(snapshot, settled))

    def _write_checkpoint(self, snapshot: Snapshot, settled: list[Scored]) -> None:
        """Make a checkpoint durable, then acknowledge the groups that it covers. Runs on the writer thread."""
        started = time.monotonic()
        with writing():
            path, _ = self.store.write(snapshot)
            self.link.acknowledge(settled)
            tell_checkpoint(self.link, path, snapshot.state.step, time.monotonic() - started)
        section = self.config.checkpoint
        accuracies = self.link.call(stored_accuracies(self.link.redis, self.link.run_id))
        self.store.collect(section.keep_last, section.keep_best, accuracies)

    def _probe(self) -> None:
        """Consumes `evaluated`; produces the probe's result if the run is one; waits for all its samples."""
        if (probe := self.probe) is not None:
            self.link.emit(self._await(probe.run(), lambda: f"the probe: {probe.num_done} of {probe.num_tasks}"))

    def _evaluate(self, step: int) -> None:
        """Consumes `evaluated`; produces the evaluations due after `step`, one set after another; waits for all their
        samples."""
        for evaluator in self.evaluators:
            if evaluator.due(step):
                result = self._await(evaluator.run(step), partial(evaluator.progress, step))
                self.writer.drain()  # report the step before its evaluation
                self.link.emit(result)

    def _await(self, work: Coroutine[Any, Any, E], progress: Callable[[], str]) -> E:
        """The result of `work` on the link's thread. Raises `Stopped` if the run must stop before it is there."""
        future = self.link.submit(work)
        while not future.done():
            self.link.report(waiting_for=progress())
            if self.link.wanted() in STOPS:
                future.cancel()
                raise Stopped
            self._idle(0.05)
        self.link.report(waiting_for="")
        return future.result()
