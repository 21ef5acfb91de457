"""A stored response is read again by two teachers; a played rollout server says how likely its tokens are."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from selenium.webdriver.common.keys import Keys

from services.contracts.teacher_text import teacher_text
from tests.page.calls import get, post
from tests.page.conftest import Api
from tests.page.player import Player, sample_group
from tests.page.test_try_it import Answers, answering_by
from tests.page.visitor import Visitor

GAPS = {0: 0.0, 1: 0.125, 2: -0.5}
"""What each prompt adds per token: that of the policy, of A and of B. A's gap grows with the position."""


class Reader(Answers):
    """Answers as vLLM's serving classes do if they are asked for a prompt's tokens, and for their log-probs."""

    read: list[str] = []
    """The last message of each prompt that was rendered."""

    def do_POST(self) -> None:
        wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer: dict[str, Any] = {"system_fingerprint": f"{wanted['model']}@3"}
        if "messages" in wanted:
            self.read.append(wanted["messages"][-1]["content"])
            answer["prompt_token_ids"] = [7] * (5 + len(self.read))
        else:
            answer["choices"] = [
                {"index": which, "prompt_logprobs": _logprobs(which, ids)} for which, ids in enumerate(wanted["prompt"])
            ]
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _logprobs(which: int, ids: list[int]) -> list[Any]:
    """Of the prompts' tokens and the response's, whose ids are their positions."""
    gap = {id_: GAPS[which] * (id_ if which == 1 else 1) for id_ in ids}
    return [None, *({str(id_): {"logprob": -6.0 + gap[id_]}} for id_ in ids[1:])]


def test_two_teachers_read_the_same_tokens(api: Api, browser: Visitor, player: Player, run_text: str) -> None:
    config = post(api, "/v1/run-files/check", {"text": run_text})["config"]
    run_id = post(api, "/v1/runs", config)["id"]
    browser.until(lambda: get(api, f"/v1/runs/{run_id}")["state"] == "starting", "the run starts")
    player.take(run_id)
    player.step(3)
    player.samples(3)
    browser.until(lambda: get(api, f"/v1/runs/{run_id}/samples")["items"], "the API has the samples")
    browser.go(f"#/runs/{run_id}/samples")
    browser.sees("Two teachers on the same tokens")
    browser.press(".teachers button", "Read")
    browser.sees("Rollout server rollout-0 does not answer")

    with answering_by(Reader) as url:
        player.rollout_url = url
        player.beat()
        browser.choose("Teacher B reads", "a solution of your own")
        browser.write(".teachers textarea:enabled", "Six sevens are 42.")
        browser.press(".teachers button", "Read")
        browser.sees(f"Read by {run_id}@3")
    prompt = sample_group(run_id, 3).prompt
    told = teacher_text(prompt, "It is <b>42</b>, says 0.", None)
    assert Reader.read == [prompt, told, teacher_text(prompt, "Six sevens are 42.", None)]
    sections = {name: f'.teachers section[aria-label="Teacher {name}"]' for name in "AB"}
    shown = {name: browser.all(f"{section} .token") for name, section in sections.items()}
    assert {name: len(tokens) for name, tokens in shown.items()} == {"A": 44, "B": 44}
    assert [token.get_attribute("data-value") for token in shown["A"][:3]] == ["0.000", "0.125", "0.250"]
    assert {token.get_attribute("data-value") for token in shown["B"]} == {"−0.500"}
    mean = sum(0.125 * i for i in range(44)) / 44
    browser.sees(f"{mean:.3f} nats")
    shown["A"][0].click()
    browser.keys(Keys.END)
    browser.sees(f"Token 44 of 44 {json.dumps('</script>')}: gap {0.125 * 43:.4f} nats")
    label = browser.find(".positions.pairs").get_attribute("aria-label") or ""
    last = sum(0.125 * i for i in range(44) if i * 10 // 44 == 9)
    assert f"A: most at 90 to 100% of the response, {100 * last / (44 * mean):.1f}%" in label
    browser.press(f"{sections['A']} summary", "What it reads")
    browser.sees("It is <b>42</b>, says 0.")
    browser.has_no_barriers()

    # A group that an older release stored says why it cannot be read.
    player.emit(msgspec.structs.replace(sample_group(run_id, 4), material=msgspec.UNSET))
    browser.until(lambda: len(browser.all(".filters select option")) == 2, "the other group joins the list")
    browser.choose("Group", "step 4: recall-4")
    browser.sees("stored by a release that did not keep token ids")
    assert not browser.all(".teachers form")
