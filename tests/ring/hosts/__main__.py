"""A run on three hosts that share nothing, with cables that are cut in the middle of it: `make test-hosts`.

    a  10.213.7.1   queue server, API, verifier, the learner with rank 0
    b  10.213.7.2   the learner with rank 1
    c  10.213.7.3   the rollout server, which fetches weights over HTTP

Hosts are network namespaces, so this needs Linux, root, and the programs ip, tc, unshare and mount. Prints a report;
the exit code is 1 if a promise does not hold, 2 if this machine cannot have such hosts. Takes about five minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis as redis_sync
from safetensors.torch import load_file

from services.contracts import codec, streams
from services.contracts.events import RunStateChanged
from services.contracts.records import Run
from services.learner.machines.protocol import SILENCE_SECONDS
from services.runtime.weights.checkpoint_files import checkpoint_folder
from tests.ring.chaos import ledger_faults
from tests.ring.deployment import notes
from tests.ring.hosts.network import Host, MissingError, enter, network
from tests.ring.hosts.replay import Player, Recorder
from tests.ring.hosts.site import Site, config, service_shown
from tools.deployment import finish, patiently
from turnout import Client

SHORT_CUT, LONG_CUT = 4.0, SILENCE_SECONDS + 8.0
SLOW = "1mbit"
REPLAY = "replay"
COMPARED = ("hf/model.safetensors", "state/optimizer.safetensors", "state/teacher.safetensors")


@dataclass(slots=True)
class Trial:
    """One run and what is done to it."""

    site: Site
    client: Client
    run_id: str
    num_training_steps: int
    faults: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    """Rows of the report."""
    _began: float = field(default_factory=time.monotonic)

    def say(self, what: str, seen: str = "") -> None:
        at, step = time.monotonic() - self._began, self.run().step
        self.lines.append(f"| {at:.0f} s | {step} | {what} | {seen} |")
        print(f"{at:6.1f} s  step {step}  {what}  {seen}", flush=True)

    def expect(self, holds: bool, promise: str) -> None:
        if not holds:
            self.faults.append(promise)
            print(f"FAULT: {promise}", flush=True)

    def run(self) -> Run:
        found: Run = patiently(lambda: self.client.run(self.run_id), lambda _: True)
        return found

    def reach(self, step: int) -> None:
        run = patiently(self.run, lambda run: run.step >= step or run.has_ended)
        self.expect(not run.has_ended or run.state == "succeeded", f"the run {run.state}: {run.reason}")

    def ranks(self) -> dict[str, set[int]]:
        return {host.name: self.site.ranks(host) for host in (self.site.a, self.site.b)}

    def short_cut(self) -> None:
        """Less than anyone waits: TCP repeats what was lost."""
        before, step = self.ranks(), self.run().step
        self.site.network.cut(self.site.b)
        time.sleep(SHORT_CUT)
        self.site.network.reconnect(self.site.b)
        self.reach(step + 1)
        self.expect(self.ranks() == before, "a cut of 4 s restarted the ranks")
        self.say(f"b cut off for {SHORT_CUT:.0f} s", "the run waits, the same ranks continue")

    def long_cut(self) -> None:
        """Ranks on both sides end, each side on its own; the run resumes with new ones."""
        before, began = self.ranks(), time.monotonic()
        self.site.network.cut(self.site.b)
        gone = self._until_ranks_are_gone(before, began)
        time.sleep(max(0.0, LONG_CUT - (time.monotonic() - began)))
        self.expect(not any(self.ranks().values()), "half a run was started during the cut")
        self.say(f"b cut off for {time.monotonic() - began:.0f} s", gone)
        self._resumes("b reconnected", lambda: self.site.network.reconnect(self.site.b))

    def lost_hosts(self) -> None:
        """All processes of b and c are killed at once; then they boot. c has to fetch the version that is published."""
        before, began = self.ranks(), time.monotonic()
        for host, instance in ((self.site.b, "learner-1"), (self.site.c, "rollout-0")):
            for pid in self.site.network.pids(host):
                os.kill(pid, signal.SIGKILL)
            self.site.processes[instance].wait()
        gone = self._until_ranks_are_gone(before, began)
        shutil.rmtree(self.site.c.files / "fetched")
        self.say("b and c lost their power, c its disk", gone)
        self._resumes("b and c started again", self.site.start_others)

    def _until_ranks_are_gone(self, before: dict[str, set[int]], began: float) -> str:
        """Wait until no rank of the attempt lives anywhere. Says when each ended."""
        ended: dict[str, float] = {}

        def look() -> bool:
            living = self.ranks()
            for name, pids in before.items():
                if not pids & living[name]:
                    ended.setdefault(name, time.monotonic() - began)
            return len(ended) == len(before)

        patiently(look, bool)
        return ", ".join(f"the rank on {name} ended after {seconds:.0f} s" for name, seconds in sorted(ended.items()))

    def _resumes(self, what: str, act: Callable[[], None]) -> None:
        step = self.run().step
        act()
        seconds = self._seconds_until(lambda: self.run().step > step)
        self.say(what, f"a new step {seconds:.0f} s later")

    def cut_in_a_push(self) -> None:
        """The rollout server has a part of a version; it fetches the rest after the cut."""
        site, fetched = self.site, self.site.c.files / "fetched"
        before = site.log("rollout-0").count("fetch continues")
        site.network.slow_down(site.c, SLOW)
        self._seconds_until(lambda: any(part.stat().st_size for part in fetched.rglob("*.part") if part.exists()))
        site.network.cut(site.c)
        (part,) = fetched.rglob("*.part")
        size = part.stat().st_size
        time.sleep(LONG_CUT)
        site.network.reconnect(site.c)
        seconds = self._seconds_until(lambda: not part.exists())
        site.network.speed_up(site.c)
        continued = site.log("rollout-0").count("fetch continues") - before
        self.expect(continued > 0, "the fetch did not continue where it broke")
        self.say(f"c cut off for {LONG_CUT:.0f} s while it fetched {part.parent.name[:9]}", f"{size} bytes were there")
        self.say("c reconnected", f"fetched from that byte on, whole {seconds:.0f} s later")

    def _seconds_until(self, holds: Callable[[], Any]) -> float:
        began = time.monotonic()
        patiently(holds, bool)
        return time.monotonic() - began


def wait_for_services(client: Client) -> None:
    """Until all have reported themselves."""
    for instance in ("verifier-0", "learner-0", "learner-1", "rollout-0"):
        patiently(lambda instance=instance: service_shown(client, instance), lambda found: found is not None)


def replayed(site: Site, run_id: str, recorder: Recorder) -> str:
    """The state in which an undisturbed run of the same groups ends. API, verifier and rollout server are stopped."""
    site.network.stop([site.processes[name] for name in ("rollout-0", "verifier-0", "api-0")])
    with redis_sync.Redis.from_url(site.queue_url()) as client:
        text = client.get(streams.config(run_id))
        assert isinstance(text, bytes)
        client.set(streams.config(REPLAY), text)
        client.set(streams.desired(REPLAY), "running")
        client.delete(streams.EVENTS)
        player = Player(site.queue_url(), REPLAY, recorder.groups)
        player.start()
        client.set(streams.assignment("learner-0"), REPLAY)

        def state() -> str:
            events = [codec.decode_any(fields[b"m"]) for _, fields in client.xrange(streams.EVENTS)]
            return next((e.state for e in reversed(events) if isinstance(e, RunStateChanged)), "")

        try:
            ended: str = patiently(state, lambda found: found in ("succeeded", "failed", "stopped"))
        finally:
            player.close()
    return ended


def differences(host: Host, run_id: str, num_training_steps: int) -> list[str]:
    """Where the last checkpoints of the run and its replay differ."""
    found = []
    folders = [checkpoint_folder(host.files / "runs" / name, num_training_steps) for name in (run_id, REPLAY)]
    for name in COMPARED:
        first, second = (load_file(folder / name) for folder in folders)
        if first.keys() != second.keys() or not all(value.equal(second[key]) for key, value in first.items()):
            found.append(f"{name} differs from the undisturbed run's")
    return found


def trial(folder: Path, num_training_steps: int) -> list[str]:
    """Everything. Prints the report; returns what did not hold."""
    with network(folder) as net:
        site = Site(net)
        enter(site.a)
        site.start()
        with site.client() as client:
            wait_for_services(client)
            run_id = client.create_run(config(num_training_steps)).id
            recorder = Recorder(site.queue_url(), run_id)
            recorder.start()
            trial = Trial(site, client, run_id, num_training_steps)
            trial.reach(1)
            trial.say("begins", f"ranks {trial.ranks()}")
            trial.short_cut()
            trial.long_cut()
            trial.reach(trial.run().step + 1)
            trial.cut_in_a_push()
            trial.reach(trial.run().step + 1)
            trial.lost_hosts()
            ended = finish(client, run_id)
            trial.say("ends", ended.state)
            recorder.close()
            trial.faults += audit(trial, ended, recorder)
            warnings = [f"- {text}" for text in notes(client, run_id)]
        trial.expect(replayed(site, run_id, recorder) == "succeeded", "the undisturbed run did not succeed")
        trial.faults += differences(site.a, run_id, num_training_steps)
        print("\n".join([report(trial, ended), "Notes on the run:", "", *warnings, ""]))
        return trial.faults


def audit(trial: Trial, ended: Run, recorder: Recorder) -> list[str]:
    """What is wrong with a finished run's accounts and pushes."""
    faults = ledger_faults(trial.client, ended.id, num_training_steps=trial.num_training_steps)
    if ended.state != "succeeded":
        faults.append(f"the run {ended.state}: {ended.reason}")
    if recorder.num_twice:
        faults.append(f"{recorder.num_twice} groups were judged twice")
    if any(step.metrics["staleness_max"] for step in trial.client.steps(ended.id)):
        faults.append("a token was older than max_staleness 0 allows")
    ways = {push.transport for push in trial.client.weight_pushes(ended.id) if not push.error}
    if ways != {"http"}:
        faults.append(f"weights went by {sorted(ways)}")
    return faults


def report(trial: Trial, ended: Run) -> str:
    rows = ["", "| at | step | what | seen |", "|---:|---:|---|---|", *trial.lines, "", "| groups | |", "|---|---:|"]
    rows += [f"| {name.replace('_', ' ')} | {count} |" for name, count in ended.groups.items()]
    same = "differ from" if any("undisturbed" in fault for fault in trial.faults) else "are those of"
    rows += [
        "",
        f"Weights, optimizer and teacher of step {ended.step} {same} an undisturbed run on the same groups.",
        "",
    ]
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--keep", type=Path, help="folder for files and logs, to be looked at afterwards")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory(prefix="turnout-hosts-") as temporary:
            faults = trial(options.keep or Path(temporary), options.steps)
    except MissingError as error:
        print(f"test-hosts cannot run here. {error}", file=sys.stderr)
        return 2
    for fault in faults:
        print(f"FAULT: {fault}")
    print("Every promise held." if not faults else f"{len(faults)} faults.")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
