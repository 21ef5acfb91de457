"""The rollout service: follows the assignment, keeps an engine running for it, and keeps its weights current.

Twice a second it compares the desired state (assigned run, published weights) with the actual one (engine, phase,
version) and acts on the difference. Crashes, restarts and late joining therefore need no notification.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Literal, cast

from redis.exceptions import RedisError

from services.contracts import streams
from services.contracts.errors import ConfigurationError, ConflictError, MalformedMessageError, TurnoutError
from services.contracts.evaluations.ids import is_evaluation
from services.contracts.events import Note
from services.contracts.heartbeat import GPUS, MACHINE, START_FAILURES, ServiceState
from services.contracts.run_config import RunConfig, read_run_config
from services.contracts.serving import ON_DEMAND
from services.contracts.transports.registry import transfer_for_joining
from services.contracts.turns import ASLEEP, WAITS_FOR_TURN, read_turn
from services.rollout import environment, metrics
from services.rollout.allowance import Allowance
from services.rollout.http import add_routes, include_vllm
from services.rollout.sampling.prompts import PromptRenderer, stop_tokens
from services.rollout.sampling.sampling import GroupSampler
from services.rollout.sampling.worker import RolloutWorker
from services.rollout.serving import endpoints
from services.rollout.serving.parsers import check_parsers
from services.rollout.vllm import engine as engines
from services.rollout.vllm import pulse, starting
from services.rollout.vllm.server import EngineServer
from services.rollout.weights.fetch import FetchedWeights
from services.runtime.address import machine_id
from services.runtime.courtesy import Courtesy
from services.runtime.inputs import check_model_place
from services.runtime.logs import get_logger, set_log_fields
from services.runtime.process import Service, end
from services.runtime.queue.queue import Queue
from services.runtime.tokenizer import load_tokenizer

log = get_logger(__name__)
TICK_SECONDS = 0.5
TURN_SECONDS = 0.1
"""Interval of checking whose turn it is on a shared GPU."""
LAG_SECONDS = 10.0
"""If published weights have not been pushed after this time, the server loads them itself."""
STUCK_SECONDS = 30.0
"""If an update has failed or made no progress for this time, the server replaces it with its own."""
RETRY_SECONDS = 10.0
"""Pause after a failed engine start."""


class RolloutServer:
    """Keeps engine, weights and worker of one server in line with its assignment."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._presence = service.presence
        self._redis = service.redis
        self._queue = Queue(service.redis, streams.GROUP_ROLLOUT, service.presence.instance)
        settings = service.settings
        fetched = FetchedWeights(settings.fetched_folder, settings.service_token)
        self.server = EngineServer(settings.weights_roots, fetched)
        service.presence.count_unfinished = self.server.count_unfinished
        self._courtesy = Courtesy()
        self.allowance = Allowance()
        self._spec: engines.EngineSpec | None = None
        self._run: RunConfig | None = None
        self._run_id: str | None = None
        self._worker: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        """Makes the next engine wait until the last one has released its memory."""
        self._loading = False
        self._behind_since: float | None = None
        self._retry_at = 0.0
        self._num_start_failures = 0

    def is_loading(self) -> bool:
        """Whether the server is running an update itself, so that pushes must wait."""
        return self._loading

    async def run(self) -> None:
        """Serve the assigned run until cancelled, then stop worker and engine."""
        watch = asyncio.create_task(pulse.watch(self.server, self._replace_hung), name="pulse")
        try:
            while not watch.done():
                try:
                    await self._tick()
                except RedisError as error:
                    log.warning("queue server unreachable", error=str(error))
                except TurnoutError as error:
                    await self._report(error)
                self._show()
                await asyncio.sleep(TURN_SECONDS if self._shares_gpu else TICK_SECONDS)
            watch.result()  # raise its error, which ends the service
        finally:
            await end([watch])
            await self._stop_worker()
            await self._end_engine()

    async def _tick(self) -> None:
        assigned = await self._presence.assignment()
        if assigned != self._run_id:
            await self._leave()
            self._run_id = self._presence.run_id = assigned
            set_log_fields(run_id=assigned)
            if assigned is not None:
                self._presence.state = "starting"  # the engine is still the last run's
        if self._run_id is None or time.monotonic() < self._retry_at:
            return
        if self._run is None:
            await self._join(self._run_id)
        if self._shares_gpu and not await self._may_use_gpu(self._run_id):
            return
        if self.server.is_dead or self.server.must_rebuild:
            reason = self.server.fault or "its process has died"
            await self._note("error", f"Rebuilding the engine: {reason}.")
            await self._end_engine()
        if self.server.engine is None:
            await self._start_engine()
        if self.server.phase == "asleep":
            await self._wake()
        if self.server.engine is not None:
            await self._catch_up()
        if self._worker is not None and self._worker.done():
            self._worker.result()  # raise its error, which ends the service and gets it restarted
        if self._worker is None and self.server.phase == "serving":
            try:
                worker = await asyncio.to_thread(self._make_worker)
            except TurnoutError:
                self._retry_at = time.monotonic() + RETRY_SECONDS
                raise
            self._worker = asyncio.create_task(worker.run(), name="rollout-worker")

    @property
    def _shares_gpu(self) -> bool:
        return self._run is not None and self._run.rollout.share_gpu

    async def _may_use_gpu(self, run_id: str) -> bool:
        """Whether the engine may hold the shared GPU's memory (`services.contracts.turns`). If the learner has asked
        for the GPU, free it first and say so."""
        turn = read_turn(cast(Any, await self._redis.hgetall(streams.turn(run_id))))
        server = self.server
        if turn.is_servers:
            return True
        if not turn.wanted:
            if server.engine is None or server.phase == "asleep":
                self._presence.waits_for(WAITS_FOR_TURN)
                return False
            return True
        if server.is_busy:
            return False
        if server.phase in ("serving", "paused"):
            try:
                await server.sleep()
            except TurnoutError as error:
                await self._note("error", f"The engine cannot sleep, so it is ended: {error}")
        if server.phase != "asleep":
            await self._end_engine()
        if turn.asleep != turn.request:
            await self._redis.hset(streams.turn(run_id), ASLEEP, turn.request)
        self._presence.waits_for(WAITS_FOR_TURN)
        return False

    async def _wake(self) -> None:
        """Wake the engine with the newest published weights. If that fails, the next tick starts another."""
        self._loading = True
        try:
            published = await self._published()
            if published is None:
                raise ConfigurationError("No weights are published.", remedy="The engine starts with the model's own.")
            seconds = await self.server.load(*published)
            log.info("engine woken", weight_version=self.server.version, seconds=seconds)
        except TurnoutError as error:
            await self._end_engine()
            await self._note("warning", f"The engine did not wake up, so another is started: {error}")
        finally:
            self._loading = False

    async def _join(self, run_id: str) -> None:
        """Read the run's configuration, and keep the engine if it fits. Retried until all of it succeeds."""
        self._retry_at = time.monotonic() + RETRY_SECONDS
        raw = await self._redis.get(streams.config(run_id))
        if raw is None:
            raise ConfigurationError(
                f"Run {run_id} is assigned, but Redis has no configuration for it.",
                remedy="Start the run through the API; it may have been deleted.",
            )
        run = read_run_config(raw)
        await asyncio.to_thread(check_model_place, run.model, self._service.settings)
        self.server.chat_template_kwargs = dict(run.model.chat_template_kwargs)
        self.server.recomputes_kv_cache = run.rollout.kv_cache_on_update == "recompute"
        spec = engines.spec_for(run, self._service.settings, self._presence.instance)
        server = self.server
        fits = spec == self._spec and not spec.sleeps  # a shared GPU is the learner's first
        reusable = server.phase == "serving" and fits and not server.is_dead
        # A push in progress would continue with the last run's weights.
        has_own_weights = server.checksum is None and not server.is_busy
        if not (reusable and has_own_weights and await self._reuse(run_id)):
            await self._end_engine()  # only another engine has the model's own weights again
        self._spec, self._run, self._retry_at = spec, run, 0.0
        self._forget_failures()
        self._courtesy.give_way(not is_training_run(run_id))
        log.info("run assigned", run_id=run_id, model=spec.model, engine_reused=self.server.engine is not None)

    async def _leave(self) -> None:
        await self._stop_worker()
        if self._shares_gpu:
            await self._end_engine()  # the next learner may need the GPU before this server has its next run
        self._run = None
        self._courtesy.give_way(False)
        self._behind_since, self._retry_at = None, 0.0
        self._forget_failures()

    def _make_worker(self) -> RolloutWorker:
        assert self._spec is not None
        assert self._run is not None
        assert self._run_id is not None
        spec = self._spec
        tokenizer = load_tokenizer(spec.model, trust_remote_code=spec.trust_remote_code)
        config = engines.hf_config(spec)
        arguments = (self._run.model.chat_template_kwargs, self._run.teacher_chat_template_kwargs)
        renderer = PromptRenderer(tokenizer, config.vocab_size, *arguments)
        stops = sorted({*stop_tokens(spec.model, config), *self._run.rollout.stop_token_ids})
        sampler = GroupSampler(self.server, renderer, stops, self._run.rollout.stop, self._run.model.thinking)
        allowance = None if is_training_run(self._run_id) else self.allowance
        return RolloutWorker(
            self._run_id, self._queue, self.server, sampler, self._presence, spec.max_num_seqs, allowance
        )

    async def _start_engine(self) -> None:
        assert self._spec is not None
        assert self._run_id is not None
        self._presence.state = "starting"
        self._presence.waits_for("engine start")
        started = time.monotonic()
        self._loading = True
        try:
            async with self._turn:
                engine = await starting.start(self._spec)
            await self.server.attach(engine, self._run_id)
            metrics.ENGINE_STARTS.inc()
            metrics.ENGINE_START_SECONDS.set(time.monotonic() - started)
            await self._bring_up()
        except starting.StuckStartError as error:
            await self._note("error", str(error))
            raise
        except TurnoutError:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self._num_start_failures += 1
            self._presence.details[START_FAILURES] = str(self._num_start_failures)
            raise
        finally:
            self._loading = False
            self._presence.waits_for("")
        self._forget_failures()
        log.info("engine started", seconds=round(time.monotonic() - started, 2), weight_version=self.server.version)

    def _forget_failures(self) -> None:
        self._num_start_failures = 0
        self._presence.details.pop("fault", None)
        self._presence.details.pop(START_FAILURES, None)

    async def _reuse(self, run_id: str) -> bool:
        """Serve this run with an earlier run's engine, which still has its model's own weights."""
        engine = self.server.engine
        assert engine is not None
        self._loading = True
        try:
            await self.server.while_attached(engine.pause_generation(mode="abort", clear_cache=True))
            await self.server.attach(engine, run_id)
            await self._bring_up()
        except Exception as error:  # noqa: BLE001 - whatever went wrong, another engine fixes it
            log.warning("engine not reusable", error=str(error))
            return False
        finally:
            self._loading = False
        return True

    async def _bring_up(self) -> None:
        """Serve with the run's published weights, or with the model's own if none are published."""
        published = await self._published()
        if published is not None:
            await self.server.load(*published)
        elif not self._awaits_first:
            await self.server.resume_generation()

    @property
    def _awaits_first(self) -> bool:
        """Whether the model's own weights are not the run's version 0, so that nothing may be sampled with them."""
        return self._run is not None and self._run.model.is_quantized

    async def _replace_hung(self, seconds: float) -> None:
        """End the engine, even if something waits for it; the next tick starts another."""
        await self._end_engine()
        await self._note("error", f"The engine did not respond for {seconds:.0f} s. Rebuilding it.")

    async def _end_engine(self) -> None:
        if (engine := self.server.detach()) is not None:
            async with self._turn:
                await asyncio.to_thread(engines.end, engine)

    async def _catch_up(self) -> None:
        """Load the published weights if they are not pushed: after a failed update, or without the API."""
        published, server, now = await self._published(), self.server, time.monotonic()
        if server.is_busy:  # a push
            return
        if published is None and self._awaits_first:
            return
        is_current = published is None or (published[0], published[2]) == (server.version, server.checksum)
        if is_current and server.phase == "serving":
            self._behind_since = None
            return
        if self._behind_since is None:
            self._behind_since = now
        lagging = server.phase == "serving" and now - self._behind_since > LAG_SECONDS
        stuck = server.phase != "serving" and now - server.changed_at > STUCK_SECONDS
        if not (lagging or stuck):
            return
        if server.phase in ("open", "loaded"):
            server.fail("the update was abandoned halfway", half_written=True)
            return
        self._loading = True
        try:
            if published is not None and not (is_current and server.phase == "paused"):
                await server.load(*published)
                await self._note(
                    "info",
                    f"Loaded weight version {published[0]} {'over HTTP' if published[3] else 'from the store'}.",
                )
            elif server.phase == "paused":
                await server.resume_generation()
        except ConflictError as error:
            log.info("own update skipped", reason=str(error))
        finally:
            self._loading = False
            self._behind_since = None

    async def _published(self) -> tuple[int, str, str, dict[str, Any] | None] | None:
        """Version, folder and checksum of the newest published weights, and how to fetch them if that is offered."""
        assert self._run_id is not None
        found = cast(dict[bytes, bytes], await self._redis.hgetall(streams.weights(self._run_id)))
        if not found:
            return None
        try:
            transfer = transfer_for_joining(found.get(b"transfer", b""))
            return int(found[b"version"]), found[b"path"].decode(), found[b"checksum"].decode(), transfer
        except (KeyError, ValueError) as error:
            raise MalformedMessageError(
                f"The announcement of run {self._run_id}'s published weights is malformed: {error!r}."
            ) from error

    def _show(self) -> None:
        """Show the current state in the heartbeat."""
        server, presence = self.server, self._presence
        # One that sleeps will start again with the newest weights, so nothing may be pushed to it.
        states: dict[str, ServiceState] = {
            "serving": "ready",
            "failed": "failed",
            "absent": "starting",
            "asleep": "starting",
        }
        if self._run_id is None:
            presence.state = "idle"
            presence.waits_for("")
        elif time.monotonic() < self._retry_at:
            presence.state = "failed"
        else:
            presence.state = states.get(server.phase, "updating") if self._run is not None else "starting"
        presence.weight_version = server.version
        if server.phase == "failed":
            presence.details["fault"] = server.fault
        elif server.phase == "serving":
            presence.details.pop("fault", None)
        if server.version is not None:
            metrics.WEIGHT_VERSION.labels("rollout", presence.instance).set(server.version)

    async def _report(self, error: TurnoutError) -> None:
        self._presence.details["fault"] = str(error)
        await self._note("error", str(error))

    async def _note(self, level: Literal["info", "warning", "error"], text: str) -> None:
        """Log a message and add it to the run's events."""
        (log.error if level == "error" else log.info)(text)
        if self._run_id is None:
            return
        source = f"rollout {self._presence.instance}"
        note = Note(run_id=self._run_id, at=time.time(), level=level, source=source, text=text)
        try:
            await self._queue.publish(streams.EVENTS, note)
        except RedisError as error:
            log.warning("event not sent", error=str(error))

    async def _stop_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            await end([worker])


def is_training_run(run_id: str) -> bool:
    """Whether the id is neither an evaluation's nor that of a model on demand."""
    return not (is_evaluation(run_id) or run_id.startswith(ON_DEMAND))


async def loops(service: Service) -> None:
    """Add the routes, import vLLM in a thread, then serve until cancelled."""
    rollout = RolloutServer(service)
    inner = add_routes(service.app, rollout.server, service.settings, rollout.is_loading)
    endpoints.add_routes(service.app, rollout.server, service.settings, rollout.allowance)
    service.presence.waits_for("import of vLLM")
    await asyncio.to_thread(environment.import_vllm)
    service.presence.details[MACHINE] = machine_id()
    background = []
    if environment.on_cpu():
        background.append(asyncio.create_task(rollout.allowance.follow(service.redis, machine_id())))
    else:
        import torch

        service.presence.details[GPUS] = str(torch.cuda.device_count())
    check_parsers(service.settings)
    include_vllm(inner)
    service.presence.waits_for("")
    try:
        await rollout.run()
    finally:
        await end(background)
