"""Creates everything that endpoints and loops need, once for both."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from redis.asyncio import Redis

from services.api.control.examiner import Examiner
from services.api.control.ingest import Ingest
from services.api.control.on_demand import OnDemand
from services.api.control.pusher import Pusher
from services.api.control.scheduler import Scheduler
from services.api.control.watchdog import Watchdog
from services.api.control.weight_client import WeightClient
from services.api.live.board import Board
from services.api.live.broadcaster import Broadcaster
from services.api.live.journal import Journal
from services.api.live.repeat import LoopStatus
from services.api.live.signals import Signals
from services.api.metrics.federation import Federation
from services.api.metrics.refresh import MetricsRefresh
from services.api.resources.evaluations.service import EvaluationService
from services.api.resources.experiments.service import ExperimentService
from services.api.resources.run_files.questions import QuestionReader
from services.api.resources.runs.service import RunService
from services.api.resources.serving.forwarder import Forwarder
from services.api.resources.serving.loading import Loading
from services.api.resources.serving.readings import Readings
from services.api.storage.database import Database
from services.api.storage.keyring import Keyring
from services.contracts.events import Event, RunStateChanged
from services.runtime.connection import connect_impatiently
from services.runtime.settings import Settings


@dataclass(slots=True)
class Parts:
    """The API's parts."""

    settings: Settings
    redis: Redis
    """For requests, whose clients are waiting. Loops have another one, which waits for the queue server."""
    database: Database
    http: httpx.AsyncClient
    broadcaster: Broadcaster
    signals: Signals
    status: LoopStatus
    board: Board
    federation: Federation
    journal: Journal
    keys: Keyring
    runs: RunService
    questions: QuestionReader
    experiments: ExperimentService
    on_demand: OnDemand
    forwarder: Forwarder
    readings: Readings
    evaluations: EvaluationService
    scheduler: Scheduler
    examiner: Examiner
    ingest: Ingest
    pusher: Pusher
    watchdog: Watchdog
    refresh: MetricsRefresh

    async def close(self) -> None:
        await self.pusher.close()
        await self.forwarder.close()
        await self.http.aclose()
        await self.redis.aclose()
        await self.database.close()


def make_parts(settings: Settings, redis: Redis, database: Database) -> Parts:
    """Wire the parts together. Nothing runs yet. `redis` is for the loops, and stays open."""
    instance = settings.instance_name("api")
    # Services are addressed directly, never through a proxy from the environment.
    http = httpx.AsyncClient(trust_env=False)
    impatient = connect_impatiently(settings.redis_url)
    broadcaster, signals, board = Broadcaster(), Signals(), Board()
    journal = Journal(database, broadcaster, instance)
    client = WeightClient(http, settings.service_token)
    pusher = Pusher(redis, database, journal, client, signals, board.on_push)
    watchdog = Watchdog(redis, database, journal, board, settings.home, settings.stall_seconds)
    federation = Federation(http, settings.service_token)

    def wake(event: Event) -> None:
        if isinstance(event, RunStateChanged):
            signals.schedule.set()
            signals.experiments.set()

    runs = RunService(settings, impatient, database, journal, signals)
    evaluations = EvaluationService(settings, impatient, database, signals, runs)
    on_demand = OnDemand(signals.schedule.set, evaluations.discard_files)
    loading = Loading(settings, database, evaluations.discard_files)
    forwarder = Forwarder(impatient, database, on_demand, loading, settings.service_token)
    journal.listen(board.on_event)
    journal.listen(wake)
    return Parts(
        settings=settings,
        redis=impatient,
        database=database,
        http=http,
        broadcaster=broadcaster,
        signals=signals,
        status=LoopStatus(),
        board=board,
        federation=federation,
        journal=journal,
        keys=Keyring(database, settings.api_key, settings.read_key),
        runs=runs,
        questions=QuestionReader(settings),
        experiments=ExperimentService(settings, impatient, database, runs),
        on_demand=on_demand,
        forwarder=forwarder,
        readings=Readings(database, forwarder),
        evaluations=evaluations,
        scheduler=Scheduler(redis, database, journal, on_demand, evaluations.discard_files, settings.max_runs_per_key),
        examiner=Examiner(redis, database, board, evaluations.discard_files),
        ingest=Ingest(redis, journal, signals, instance),
        pusher=pusher,
        watchdog=watchdog,
        refresh=MetricsRefresh(redis, database, board, federation, pusher, watchdog),
    )
