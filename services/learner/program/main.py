"""The training program: `python -m services.learner.program.main`, one process per rank.

The learner service starts it. Rank 0 leads: it talks to Redis through `RunLink`, which has its own thread, makes
batches, and sends commands to the other ranks, which follow (`follow`). Settings come from the environment:
`TURNOUT_*`, `TURNOUT_RUN_ID` and torch's rank variables.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import IO

import msgspec

from services.learner.model.ranks import join, leave, prepare_environment

prepare_environment()

from services.contracts.errors import TurnoutError, UnavailableError  # noqa: E402
from services.contracts.run_config import RunConfig, parse_run_config  # noqa: E402
from services.learner.checkpoint import CheckpointStore, Loaded  # noqa: E402
from services.learner.connections.farewell import end_on_sigterm, end_when_written  # noqa: E402
from services.learner.connections.progress_pipe import (  # noqa: E402
    EXIT_NO_QUEUE,
    EXIT_REFUSED,
    EXIT_REPORTED,
    RUN_VARIABLE,
    Progress,
    ProgressPipe,
    end_with_service,
)
from services.learner.connections.redis_link import RunLink  # noqa: E402
from services.learner.connections.turn import GpuTurn, Stopped  # noqa: E402
from services.learner.groups.questions import load_datasets  # noqa: E402
from services.learner.machines.checkpoints import checkpoint_here  # noqa: E402
from services.learner.model.quantized import check_installed  # noqa: E402
from services.learner.model.ranks import Ranks  # noqa: E402
from services.learner.model.threads import use_threads  # noqa: E402
from services.learner.program.commands import Finish, Save, Start, Step, receive, receive_start, send_start  # noqa: E402
from services.learner.program.leader import Leader  # noqa: E402
from services.learner.program.session import TrainingSession  # noqa: E402
from services.learner.settings import LearnerSettings  # noqa: E402
from services.runtime.connection import is_outage  # noqa: E402
from services.runtime.files import lock  # noqa: E402
from services.runtime.inputs import check_model, check_places  # noqa: E402
from services.runtime.logs import configure_logs, get_logger, set_log_fields  # noqa: E402
from services.runtime.settings import Settings, load, load_settings  # noqa: E402
from services.runtime.traces import configure_traces, flush_traces  # noqa: E402
from services.runtime.weights.store import WeightStore  # noqa: E402

log = get_logger(__name__)
LOCK_SECONDS = 30.0


def main() -> int:
    """Run the program. Returns exit code 0 if the run ended, `EXIT_REPORTED` if it failed and reported so,
    `EXIT_NO_QUEUE` to be restarted once the queue server answers, and another code to be restarted."""
    # Ctrl-C reaches the whole process group, but the service decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = load_settings()
    configure_logs(settings, "learner")
    run_id = os.environ[RUN_VARIABLE]
    set_log_fields(run_id=run_id)
    configure_traces("learner", settings.instance_name("learner"))
    if os.environ["RANK"] == "0":
        end_on_sigterm()
        return lead(settings, run_id)
    end_with_service()
    try:
        return follow(settings, run_id)
    except Exception as error:
        log.error("training failed", error=describe(error), exc_info=error)
        return report_to_helper(error, ProgressPipe())


def lead(settings: Settings, run_id: str) -> int:
    """Rank 0."""
    folder = settings.run_folder(run_id)
    link = RunLink(settings, run_id)
    try:
        with lock_run(folder):
            config = link.read_config()
            check_places(config, settings)  # again after the API, since this came through Redis
            check_installed(config.model)
            questions = load_datasets(config)  # before the model, which may take minutes to load
            turn = take_turn(config, link)
            link.report(waiting_for="the model to load")
            link.send_progress()
            checkpoint = newest_checkpoint(folder, link)
            ranks = join()
            place = None if checkpoint is None else str(checkpoint.folder)
            send_start(Start(config.model_dump_json(), place), ranks.device)
            session = open_session(config, ranks, checkpoint, settings)
            Leader(link, session, folder, checkpoint, settings, questions, turn).run()
        if settings.weights_folder is not None:  # probably in memory, where a finished run keeps one version only
            WeightStore(settings.weights_of(run_id), run_id).collect(1)
        return 0
    except Stopped:
        link.emit_state("stopped", "as asked")
        return 0
    except Exception as error:  # noqa: BLE001 - every fault must become a recorded status
        return report_failure(link, error)
    finally:
        link.close()
        leave()


def take_turn(config: RunConfig, link: RunLink) -> GpuTurn | None:
    """Get the GPU from the rollout server before the model is loaded onto it; None if the run does not share it.

    Raises:
        Stopped: the run was asked to stop while it waited.
    """
    if not config.rollout.share_gpu:
        return None
    turn = GpuTurn(link)

    def idle(seconds: float) -> None:
        link.send_progress()
        time.sleep(seconds)

    turn.take(idle)
    return turn


def follow(settings: Settings, run_id: str) -> int:
    """Ranks other than 0. Consumes rank 0's commands until `Finish`; waits only in collectives, each of which rank 0's
    `Wait` commands end within seconds."""
    ranks = join()
    start = receive_start(ranks.device)
    config = parse_run_config(msgspec.json.decode(start.config))
    check_model(config, settings)  # it may be missing on this machine alone
    checkpoint = None if start.checkpoint is None else checkpoint_here(Path(start.checkpoint), settings, run_id)
    session = open_session(config, ranks, checkpoint, settings)
    weights = session.weights()
    while True:
        command = receive(ranks.device)
        if isinstance(command, Finish):
            leave()
            return 0
        if isinstance(command, Step):
            session.train(command)
            weights = session.weights()
        if isinstance(command, Save) or (isinstance(command, Step) and command.checkpoint):
            session.snapshot(run_id, {}, weights)


def open_session(config: RunConfig, ranks: Ranks, checkpoint: Loaded | None, settings: Settings) -> TrainingSession:
    session = TrainingSession(config, ranks, checkpoint, allow_remote_code=settings.allow_remote_code)
    if ranks.device.type == "cpu":
        wanted, in_turns = load(LearnerSettings).threads, config.training.max_staleness == 0
        use_threads(session.engine.student, wanted, in_turns=in_turns)
    return session


def newest_checkpoint(folder: Path, link: RunLink) -> Loaded | None:
    """The checkpoint to continue from. Damaged ones are noted in the run's history and skipped."""
    store = CheckpointStore(folder, lambda *_: None)
    store.clear(".writing-*")
    return store.load_newest(lambda text: link.note(f"{text} Using the previous checkpoint.", "warning"))


def lock_run(folder: Path) -> IO[bytes]:
    """Lock the run's folder, waiting up to `LOCK_SECONDS` for a predecessor to exit. Closing the file unlocks it.

    Raises:
        UnavailableError: another learner has the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "learner.lock").open("ab")
    if lock(file, LOCK_SECONDS):
        return file
    file.close()
    raise UnavailableError(
        f"Timed out after {LOCK_SECONDS:.0f} s waiting for another learner to release {folder}.",
        remedy="Stop the other learner, or wait until it has exited.",
    )


def report_failure(link: RunLink, error: Exception) -> int:
    """Report a fault and return the exit code. User errors and numerical faults end the run; for other faults the
    service restarts the program."""
    sentence = describe(error)
    log.error("training failed", error=sentence, exc_info=error)
    if is_outage(error):
        return EXIT_NO_QUEUE
    try:
        link.report(error=sentence)
        link.send_progress()
        if ends_run(error) or is_disk_full(error):
            link.emit_state("failed", sentence)
            return EXIT_REPORTED
    except Exception as second:  # noqa: BLE001 - Redis may be what failed
        log.error("failure not reported", error=str(second))
    return 1


def report_to_helper(error: Exception, pipe: ProgressPipe) -> int:
    """Say why a rank other than 0 ends: only the first one on another machine has a pipe. Returns the exit code."""
    pipe.write(Progress(error=describe(error)))
    return EXIT_REFUSED if ends_run(error) and pipe.is_connected else 1


def ends_run(error: BaseException) -> bool:
    """Whether starting again would not help: a mistake in the run, or broken numbers."""
    return isinstance(error, TurnoutError) and not isinstance(error, UnavailableError)


def describe(error: BaseException) -> str:
    """The error in one sentence."""
    if isinstance(error, TurnoutError):
        return str(error)
    if is_disk_full(error):
        return "The disk is full, so weights or a checkpoint could not be written. Free space, then resume the run."
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def is_disk_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or (
        "No space left on device" in str(error)
    )


if __name__ == "__main__":
    code = main()
    flush_traces()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of native libraries can hang an ordinary exit; all our resources are closed by now.
    end_when_written(code)
