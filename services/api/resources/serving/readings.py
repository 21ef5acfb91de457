"""Reads a stored response as other teachers would: how likely are its tokens after another prompt?

Prompts are rendered by the rollout server that answers, as it renders a conversation; then one request asks for the
log-probs of the response's token ids after each of them, so that the same weights answer all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from services.api.resources.serving.forwarder import Forwarder
from services.api.storage import history
from services.api.storage.database import Database
from services.api.storage.runs import get_run
from services.contracts.errors import ConfigurationError, ConflictError, NotFoundError
from services.contracts.events import ReadableResponse, ReadingMaterial
from services.contracts.messages import Question
from services.contracts.records import TeacherReading, TeacherReadings
from services.contracts.run_config import RunConfig, read_run_config
from services.contracts.teacher_text import Wording, shown_solution, teacher_text

MAX_ATTEMPTS = 3
"""A response is read again if other weights were loaded meanwhile."""


@dataclass(frozen=True, slots=True)
class Told:
    """What one teacher reads in addition to the question. The texts around it are the run's if they are None."""

    demonstrations: Sequence[int]
    reference: bool
    feedback: bool
    solution: str | None
    solution_heading: str | None
    feedback_heading: str | None
    closing: str | None


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored response with what its readers need."""

    config: RunConfig
    question: Question
    group: Mapping[int, ReadableResponse]
    """All responses of the group by index."""
    token_ids: list[int]
    feedback: str

    def text(self, told: Told, field: str) -> str:
        """The user message of a teacher's prompt. Raises `ConfigurationError` for what the group does not have."""
        solutions = [told.solution] if told.solution else []
        solutions += [self._demonstration(index, f"{field}.demonstrations") for index in told.demonstrations]
        if told.reference:
            solutions.append(self._required(shown_solution(self.question, self.config), "solution", "reference", field))
        feedback = None
        if told.feedback:
            feedback = self._required(self.feedback.strip(), "feedback", "feedback", field)
        first, further = solutions[0] if solutions else None, solutions[1:]
        return teacher_text(self.question.prompt, first, feedback, further, wording=self._wording(told))

    def _demonstration(self, index: int, field: str) -> str:
        if index not in self.group:
            raise ConfigurationError(
                f"The group has no response {index}.",
                remedy=f"Choose one of {', '.join(map(str, sorted(self.group)))}.",
                field=field,
            )
        text = self.group[index].demonstration
        if not text:
            raise ConfigurationError(
                f"Response {index} leaves a teacher nothing to read: it has no answer after its thinking.",
                remedy="Choose another one.",
                field=field,
            )
        return text

    def _required(self, text: str, what: str, name: str, field: str) -> str:
        if not text:
            remedy = "Runs keep solutions if objective.demonstration is reference." if name == "reference" else ""
            raise ConfigurationError(
                f"This response has no {what} to read.", remedy=remedy or "Leave it out.", field=f"{field}.{name}"
            )
        return text

    def _wording(self, told: Told) -> Wording:
        own = Wording.of(self.config.objective)
        return Wording(
            own.solution_heading if told.solution_heading is None else told.solution_heading,
            own.feedback_heading if told.feedback_heading is None else told.feedback_heading,
            own.closing if told.closing is None else told.closing,
        )


class Readings:
    """Asks the rollout servers to read stored responses."""

    def __init__(self, database: Database, forwarder: Forwarder) -> None:
        self._database = database
        self._forwarder = forwarder

    async def read(
        self, run_id: str, step: int, group_id: str, index: int, version: int | None, teachers: Sequence[Told]
    ) -> TeacherReadings:
        """One response as the policy and as `teachers` read it, with this weight version of the run or the newest.

        Raises:
            NotFoundError: there is no such response or version.
            ConfigurationError: a teacher is to read what the group does not have, or more than the model can.
            ConflictError: the response was stored without token ids, or new weights arrived at each attempt.
            UnavailableError: no rollout server has the weights, or can load them.
        """
        stored = await self._stored(run_id, step, group_id, index)
        config = stored.config
        texts = [stored.text(told, f"teachers.{number}") for number, told in enumerate(teachers)]
        model = run_id if version is None else f"{run_id}@{version}"
        prompts = [
            await self._rendered(model, stored.question, stored.question.prompt, config.model.chat_template_kwargs)
        ]
        prompts += [
            await self._rendered(model, stored.question, text, config.teacher_chat_template_kwargs) for text in texts
        ]
        weights, (policy, *rest) = await self._logprobs(model, prompts, stored.token_ids)
        return TeacherReadings(
            weights=weights,
            policy=policy,
            teachers=[
                TeacherReading(prompt=text, num_prompt_tokens=len(prompt), logprobs=values)
                for text, prompt, values in zip(texts, prompts[1:], rest, strict=True)
            ],
        )

    async def _stored(self, run_id: str, step: int, group_id: str, index: int) -> Stored:
        async with self._database.read() as session:
            run = await get_run(session, run_id)
            group = await history.sampled_group(session, run_id, step, group_id)
        samples = {} if group is None else {int(sample["index"]): sample for sample in group["samples"]}
        if group is None or index not in samples:
            raise NotFoundError(
                f"Run {run_id} has no response {index} of group {group_id[:100]!r} of step {step}.",
                remedy=f"GET /v1/runs/{run_id}/samples lists the responses.",
            )
        if group["material"] is None:
            raise ConflictError(
                "This response was stored by a release that did not keep its token ids.",
                remedy="Choose one of a newer step or run.",
            )
        config = read_run_config(msgspec.json.encode(run.config))
        unset = set(config.model.chat_template_kwargs) - set(config.teacher_chat_template_kwargs)
        if unset:
            raise ConflictError(
                f"Rollout servers cannot render this run's teacher: objective.teacher_chat_template_kwargs leaves out "
                f"{', '.join(sorted(unset))}, which model.chat_template_kwargs sets.",
                remedy="Set them in both.",
            )
        material = msgspec.convert(group["material"], ReadingMaterial)
        responses = {response.index: response for response in material.responses}
        feedback = samples[index]["feedback"]
        return Stored(config, material.question, responses, responses[index].token_ids, feedback)

    async def _rendered(self, model: str, question: Question, text: str, arguments: Mapping[str, Any]) -> list[int]:
        """The token ids of a prompt, as training renders it."""
        messages = [{"role": "system", "content": question.system}] if question.system else []
        messages += [{"role": turn.role, "content": turn.content} for turn in question.turns]
        messages.append({"role": "user", "content": text})
        body = {"model": model, "messages": messages, "max_tokens": 1, "return_token_ids": True}
        answer = await self._forwarder.ask("/v1/chat/completions", {**body, "chat_template_kwargs": dict(arguments)})
        ids: list[int] = answer["prompt_token_ids"]
        return ids

    async def _logprobs(
        self, model: str, prompts: Sequence[list[int]], token_ids: list[int]
    ) -> tuple[str, list[list[float]]]:
        """The weights that answered, and the log-probs of the tokens after each of the prompts."""
        body = {"model": model, "prompt": [[*prompt, *token_ids] for prompt in prompts], "max_tokens": 1}
        weights = ""
        for _ in range(MAX_ATTEMPTS):
            answer = await self._forwarder.ask("/v1/completions", {**body, "prompt_logprobs": 0})
            weights = answer["system_fingerprint"]
            if ".." not in weights:
                read = [choice["prompt_logprobs"] for choice in sorted(answer["choices"], key=lambda one: one["index"])]
                return weights, [
                    [
                        found[str(token)]["logprob"]
                        for found, token in zip(all_of[len(prompt) :], token_ids, strict=True)
                    ]
                    for all_of, prompt in zip(read, prompts, strict=True)
                ]
        raise ConflictError(
            f"New weights were loaded while the response was read ({weights}).",
            remedy="Try again, or choose a weight version.",
        )
