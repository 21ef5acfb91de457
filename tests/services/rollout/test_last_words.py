"""An engine process that fails while starting passes the reason to the service that waits for it."""

from __future__ import annotations

import logging
import multiprocessing

from services.rollout import last_words


def fail_twice() -> None:
    last_words.record()
    logger = logging.getLogger("vllm.engine")
    for reason in ("a tensor has the wrong shape", "the engine is gone"):
        try:
            raise ValueError(reason)
        except ValueError:
            logger.exception("failed to start")


def test_the_first_reason_reaches_the_parent() -> None:
    with last_words.expected() as reason:
        assert reason() == ""
        process = multiprocessing.get_context("spawn").Process(target=fail_twice)
        process.start()
        process.join()
        assert reason() == "ValueError: a tensor has the wrong shape"
    fail_twice()  # nothing waits for the reason any more, so nothing is written and nothing breaks
    assert reason() == ""
