"""The client of the REST API for scripts and notebooks. `make docs` makes this file from async_client.py.

Responses that are not 2xx raise the `TurnoutError` of their status, with the API's message and remedy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import httpx

from services.contracts.errors import UnavailableError
from services.contracts.records import (
    Checkpoint,
    Evaluation,
    EvaluationDifference,
    Experiment,
    ExperimentSummary,
    KeptSamples,
    Key,
    Model,
    ModelEvaluation,
    ModelEvaluationSummary,
    ModelList,
    NewKey,
    Probe,
    QuestionResult,
    QueueState,
    Results,
    Run,
    RunEvent,
    RunFile,
    Service,
    Step,
    TeacherReadings,
    WeightPush,
)
from turnout.client import calls
from turnout.client.calls import (
    Call,
    ChunkParser,
    EventParser,
    Page,
    connection,
    connection_fault,
    evaluation_path,
    experiment_path,
    given,
    idempotent,
    nothing,
    one,
    pages_of,
    parse,
    plain,
    quoted,
    raise_for_status,
    run_path,
    several,
)

if TYPE_CHECKING:
    from services.contracts.run_config import RunConfig

T = TypeVar("T")
LARGEST_PAGE = 200
"""Items that the API gives out at once."""


class Client:
    """Client for scripts and notebooks. Use it in a `with` statement, or close it.

    Without arguments it reads TURNOUT_API_URL and TURNOUT_API_KEY. Lists that may be long are iterators.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_seconds: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        arguments = connection(url, key, timeout_seconds)
        self.url: str = arguments["base_url"]
        self._http = httpx.Client(**arguments, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _send(self, call: Call[T]) -> T:
        try:
            answer = self._http.request(
                call.method,
                call.path,
                params=call.params,
                json=call.body,
                headers=call.headers,
                timeout=call.timeout,
            )
        except httpx.TransportError as error:
            raise connection_fault(self.url, error) from error
        return parse(call, answer)

    def _pages(self, call: Call[Page[T]]) -> Iterator[T]:
        while True:
            page = self._send(call)
            yield from page.items
            if page.next is None:
                return
            call = call.at(page.next)

    def _all(self, call: Call[Page[T]]) -> list[T]:
        return list(self._pages(call))

    def _newest(self, limit: int | None, path: str, read: Callable[[Any], Page[T]], **params: Any) -> list[T]:
        """The first `limit` items of a listing with pages, or all."""
        found: list[T] = []
        call = Call("GET", path, read, given(limit=min(limit or LARGEST_PAGE, LARGEST_PAGE), **params))
        for item in self._pages(call):
            found.append(item)
            if len(found) == limit:
                break
        return found

    def create_run(
        self, config: RunConfig | dict[str, Any], *, priority: int = 0, idempotency_key: str | None = None
    ) -> Run:
        """Queue a run; a repeated `idempotency_key` returns the run created the first time. Of queued runs, the one
        with the highest `priority` (-100 to 100) starts first.
        """
        query, headers = given(priority=priority or None), idempotent(idempotency_key)
        return self._send(Call("POST", "/v1/runs", one(Run), query, body=plain(config), headers=headers))

    def runs(
        self,
        *,
        state: str | Sequence[str] | None = None,
        name: str | None = None,
        config: str | Sequence[str] = (),
        tag: str | Sequence[str] = (),
        without_tag: str | Sequence[str] = (),
        field: str | Sequence[str] = (),
        metric: str | Sequence[str] = (),
        sort: str | None = None,
    ) -> Iterator[Run]:
        """All runs, newest first. Where several values are possible, one may be given as text.

        `name` is text that the name contains, `config` has values of the configuration such as `objective.name=grpo`,
        `tag` and `without_tag` tags that a run must have and must lack. `field` names fields of the configuration for
        the runs' `fields`, `metric` those metrics that their `metrics` are limited to. `sort` is a field, with - for
        descending order.
        """
        query = given(
            state=state,
            name=name,
            config=several(config),
            tag=several(tag),
            without_tag=several(without_tag),
            field=several(field),
            metric=several(metric),
            sort=sort,
        )
        return self._pages(Call("GET", "/v1/runs", pages_of(Run), query))

    def run(self, run_id: str) -> Run:
        return self._send(Call("GET", run_path(run_id), one(Run)))

    def change_run(
        self,
        run_id: str,
        *,
        name: str | None = None,
        priority: int | None = None,
        tags: Sequence[str] | None = None,
        note: str | None = None,
    ) -> Run:
        """Change a run's name, place in the queue, tags or note, in any state. `tags` replaces all of them."""
        body = given(name=name, priority=priority, tags=None if tags is None else list(tags), note=note)
        return self._send(Call("PATCH", run_path(run_id), one(Run), body=body))

    def stop(self, run_id: str, *, now: bool = False) -> Run:
        """End a run with a checkpoint or, with `now`, immediately and without one."""
        return self._send(Call("POST", run_path(run_id, "/stop"), one(Run), given(now="true" if now else None)))

    def pause(self, run_id: str) -> Run:
        return self._send(Call("POST", run_path(run_id, "/pause"), one(Run)))

    def resume(self, run_id: str) -> Run:
        """Continue after a pause, a stop or a failure, from the newest checkpoint."""
        return self._send(Call("POST", run_path(run_id, "/resume"), one(Run)))

    def fork(
        self,
        run_id: str,
        *,
        checkpoint: int | None = None,
        name: str | None = None,
        changes: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Run:
        """Queue a run that continues from a checkpoint of another (the newest unless `checkpoint` names a step), with
        `changes` merged into its configuration section by section.
        """
        body = given(checkpoint=checkpoint, name=name, changes=changes)
        call = Call("POST", run_path(run_id, "/fork"), one(Run), body=body, headers=idempotent(idempotency_key))
        return self._send(call)

    def delete(self, run_id: str) -> None:
        """Delete a run that has ended, with its files, queues and history."""
        self._send(Call("DELETE", run_path(run_id), nothing))

    def steps(self, run_id: str, *, after: int = 0) -> Iterator[Step]:
        """Training steps above `after`, in order."""
        return self._pages(Call("GET", run_path(run_id, "/steps"), pages_of(Step, run_id), given(after=after)))

    def evaluations(self, run_id: str) -> list[Evaluation]:
        return self._all(Call("GET", run_path(run_id, "/evaluations"), pages_of(Evaluation, run_id)))

    def compare_steps(self, run_id: str, first: int, second: int) -> EvaluationDifference:
        """Which questions the run learned and forgot between its own evaluations after two steps."""
        path = run_path(run_id, "/evaluations/difference")
        return self._send(Call("GET", path, one(EvaluationDifference), {"first": first, "second": second}))

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        return self._all(Call("GET", run_path(run_id, "/checkpoints"), pages_of(Checkpoint, run_id)))

    def weight_pushes(self, run_id: str, *, limit: int = 100) -> list[WeightPush]:
        """Attempts to update rollout servers to new weights, newest first."""
        read = pages_of(WeightPush, run_id)
        page = self._send(Call("GET", run_path(run_id, "/weight-pushes"), read, given(limit=limit)))
        return page.items

    def samples(self, run_id: str, *, step: int | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """Groups with all their rollouts (`services.contracts.events.SamplesTaken`), newest step first."""
        read = pages_of(dict[str, Any])
        page = self._send(Call("GET", run_path(run_id, "/samples"), read, given(step=step, limit=limit)))
        return page.items

    def read_sample(
        self,
        run_id: str,
        *,
        step: int,
        group_id: str,
        index: int,
        teachers: Sequence[dict[str, Any]],
        version: int | None = None,
    ) -> TeacherReadings:
        """A stored response (`samples`) as the policy and up to four teachers read it, with the run's newest weights
        or those of `version`. Each teacher is a dict of what it reads in addition to the question (docs/api.md).
        Raises `UnavailableError` if no rollout server has the weights or can load them.
        """
        which = {"step": step, "group_id": group_id, "index": index}
        body = which | given(version=version) | {"teachers": list(teachers)}
        path = run_path(run_id, "/samples/readings")
        return self._send(Call("POST", path, one(TeacherReadings), body=body, timeout=calls.ANSWER_TIMEOUT))

    def create_probe(
        self,
        config: RunConfig | dict[str, Any],
        *,
        num_questions: int = 32,
        steps: int = 3,
        idempotency_key: str | None = None,
    ) -> Run:
        """Queue a probe of a configuration: a short run that measures the task. `probe` returns what it found."""
        query, headers = {"num_questions": num_questions, "steps": steps}, idempotent(idempotency_key)
        return self._send(Call("POST", "/v1/probes", one(Run), query, body=plain(config), headers=headers))

    def probe(self, run_id: str) -> Probe:
        """What a probe found, with advice in words. Raises `ConflictError` until its questions have been sampled."""
        return self._send(Call("GET", f"/v1/probes/{quoted(run_id)}", one(Probe)))

    def create_experiment(self, file: dict[str, Any], *, idempotency_key: str | None = None) -> Experiment:
        """Store an experiment and start its runs; a repeated key returns the experiment of the first call."""
        headers = idempotent(idempotency_key)
        return self._send(Call("POST", "/v1/experiments", one(Experiment), body=file, headers=headers))

    def experiments(self, *, limit: int | None = None) -> list[ExperimentSummary]:
        """All experiments or the newest `limit`, newest first."""
        return self._newest(limit, "/v1/experiments", pages_of(ExperimentSummary))

    def experiment(self, experiment_id: str) -> Experiment:
        return self._send(Call("GET", experiment_path(experiment_id), one(Experiment)))

    def experiment_results(self, experiment_id: str) -> Results:
        """Tables, paired differences and verdicts from the final runs that have succeeded so far."""
        return self._send(Call("GET", experiment_path(experiment_id, "/results"), one(Results)))

    def stop_experiment(self, experiment_id: str) -> Experiment:
        """Stop its runs, each with a checkpoint, and start no more."""
        return self._send(Call("POST", experiment_path(experiment_id, "/stop"), one(Experiment)))

    def resume_experiment(self, experiment_id: str) -> Experiment:
        """Continue a stopped or failed experiment, its stopped and failed runs included."""
        return self._send(Call("POST", experiment_path(experiment_id, "/resume"), one(Experiment)))

    def delete_experiment(self, experiment_id: str) -> None:
        """Delete an experiment that is not running. Its runs stay."""
        self._send(Call("DELETE", experiment_path(experiment_id), nothing))

    def models(self) -> list[Model]:
        """The models that answer now: the policies of runs, and models that were loaded on demand."""
        return (self._send(Call("GET", "/v1/models", one(ModelList)))).data

    def chat(
        self, run_id: str, messages: str | Sequence[dict[str, Any]], *, version: int | None = None, **options: Any
    ) -> Iterator[dict[str, Any]]:
        """A model's answer to a conversation, or to one question, as OpenAI's chunks as they arrive.

        `run_id` is a run, or the path of a base model; what no rollout server has is loaded first. `version` asks for
        one weight version only; `options` are fields of OpenAI's and vLLM's request, such as `max_tokens`. The
        last chunk's `system_fingerprint` says which weights answered. Raises `NotFoundError` if there is no such model,
        and `UnavailableError` if no server is idle, there are too many requests, or the answer breaks.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        parser = ChunkParser()
        try:
            with self._http.stream(**calls.chat_request(run_id, version, messages, options)) as answer:
                if not answer.is_success:
                    answer.read()
                    raise_for_status(answer)
                for text in answer.iter_text():
                    yield from parser.feed(text)
        except httpx.TransportError as error:
            raise connection_fault(self.url, error) from error

    def create_evaluation(
        self, request: dict[str, Any], *, priority: int = 0, idempotency_key: str | None = None
    ) -> ModelEvaluation:
        """Queue an evaluation of a model or of a run's weights (docs/evaluations.md); a repeated key returns that of
        the first call. Of queued evaluations, the one with the highest `priority` (-100 to 100) starts first."""
        query, headers = given(priority=priority or None), idempotent(idempotency_key)
        call = Call("POST", "/v1/evaluations", one(ModelEvaluation), query, body=request, headers=headers)
        return self._send(call)

    def model_evaluations(self, *, run_id: str | None = None, limit: int | None = None) -> list[ModelEvaluationSummary]:
        """All evaluations or the newest `limit`, newest first; with `run_id` only those of its weights."""
        return self._newest(limit, "/v1/evaluations", pages_of(ModelEvaluationSummary), run=run_id)

    def evaluation(self, evaluation_id: str) -> ModelEvaluation:
        """One evaluation with the results of the questions judged so far."""
        return self._send(Call("GET", evaluation_path(evaluation_id), one(ModelEvaluation)))

    def evaluated_questions(self, evaluation_id: str) -> Iterator[QuestionResult]:
        """What each question came to, in the order of sets and questions."""
        path = evaluation_path(evaluation_id, "/questions")
        return self._pages(Call("GET", path, pages_of(QuestionResult), {"limit": 1000}))

    def evaluated_samples(self, evaluation_id: str, set_name: str, number: int) -> KeptSamples:
        """The prompt and up to four samples of the question with this number, from 0, in a set."""
        path = evaluation_path(evaluation_id, "/samples")
        return self._send(Call("GET", path, one(KeptSamples), {"set": set_name, "number": number}))

    def compare_evaluations(self, first: str, second: str) -> EvaluationDifference:
        """What the second evaluation gained and lost against the first, on the questions that both have."""
        path = evaluation_path(first, "/difference")
        return self._send(Call("GET", path, one(EvaluationDifference), {"second": second}))

    def change_evaluation(
        self, evaluation_id: str, *, name: str | None = None, priority: int | None = None
    ) -> ModelEvaluation:
        """Change an evaluation's name or place in the queue, in any state."""
        body = given(name=name, priority=priority)
        return self._send(Call("PATCH", evaluation_path(evaluation_id), one(ModelEvaluation), body=body))

    def cancel_evaluation(self, evaluation_id: str) -> ModelEvaluation:
        """End an evaluation. The results that it has stay."""
        return self._send(Call("POST", evaluation_path(evaluation_id, "/cancel"), one(ModelEvaluation)))

    def delete_evaluation(self, evaluation_id: str) -> None:
        """Delete an evaluation that has ended, with its results."""
        self._send(Call("DELETE", evaluation_path(evaluation_id), nothing))

    def queues(self, run_id: str | None = None) -> list[QueueState]:
        return self._all(Call("GET", "/v1/queues", pages_of(QueueState), given(run_id=run_id)))

    def services(self) -> list[Service]:
        return self._all(Call("GET", "/v1/services", pages_of(Service)))

    def run_files(self) -> list[RunFile]:
        """The run files that the deployment ships."""
        return self._all(Call("GET", "/v1/run-files", pages_of(RunFile)))

    def keys(self) -> list[Key]:
        return self._all(Call("GET", "/v1/keys", pages_of(Key)))

    def create_key(self, name: str, role: str = "read") -> NewKey:
        """Create a key with the role `read`, `use` or `operate`. Only the returned value has its text."""
        return self._send(Call("POST", "/v1/keys", one(NewKey), body={"name": name, "role": role}))

    def revoke_key(self, key_id: str) -> None:
        self._send(Call("DELETE", f"/v1/keys/{quoted(key_id)}", nothing))

    def ready(self) -> bool:
        """Whether the API answers and reports that it is ready."""
        try:
            answer = self._http.get("/readyz")
        except httpx.TransportError:
            return False
        return answer.is_success

    def events(self, run_id: str, *, after: str | None = None, follow: bool = True) -> Iterator[RunEvent]:
        """The run's events after the one with the id `after`: the existing ones and, with `follow`, further ones as
        they happen, until the connection ends. Raises `UnavailableError` if it breaks; `follow` reconnects.
        """
        parser = EventParser()
        try:
            with self._http.stream(**calls.event_request(run_id, after, follow)) as answer:
                if not answer.is_success:
                    answer.read()
                    raise_for_status(answer)
                for text in answer.iter_text():
                    yield from parser.feed(text)
        except httpx.TransportError as error:
            raise connection_fault(self.url, error) from error

    def follow(self, run_id: str, *, after: str | None = None) -> Iterator[RunEvent]:
        """Every event once, in order, until the run has ended. If the connection breaks or the API restarts, the stream
        resumes after the last event (Last-Event-ID). Other errors are raised.
        """
        failures = 0
        last: RunEvent | None = None
        while True:
            try:
                if self._has_ended(run_id, last):
                    return
                for event in self.events(run_id, after=after):
                    after, last, failures = event.id, event, 0
                    yield event
                    if self._has_ended(run_id, event):
                        return
            except UnavailableError:
                pass
            failures += 1
            time.sleep(calls.retry_seconds(failures))

    def _has_ended(self, run_id: str, event: RunEvent | None) -> bool:
        """Whether the run has ended, as the event says and the API confirms: an ended run can be resumed."""
        if not calls.says_end(event):
            return False
        run = self.run(run_id)
        return run.has_ended
