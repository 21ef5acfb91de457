"""What users do with the page: start, watch, read samples, compare, stop; by mouse, by keyboard and on a phone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys

from services.runtime.weights.checkpoint_files import checkpoint_folder
from tests.page.calls import get, post
from tests.page.conftest import Api
from tests.page.player import ENTROPY, Player
from tests.page.visitor import PHONE, Visitor
from tests.services.api.test_forks import write_checkpoint


def start(api: Api, browser: Visitor, player: Player, text: str, *, steps: int = 6) -> str:
    """The id of a running run with some history."""
    config = post(api, "/v1/run-files/check", {"text": text})["config"]
    run_id: str = post(api, "/v1/runs", config)["id"]
    browser.until(lambda: get(api, f"/v1/runs/{run_id}")["state"] == "starting", "the run starts")
    player.take(run_id)
    player.evaluation(0, 0.25)
    for step in range(1, steps + 1):
        player.step(step)
    player.samples(steps)
    browser.until(lambda: get(api, f"/v1/runs/{run_id}/samples")["items"], "the API has the samples")
    return run_id


def test_a_run_from_start_to_stop(api: Api, browser: Visitor, player: Player, run_text: str) -> None:
    browser.go()
    browser.sees("No runs yet.")
    browser.press("a", "Start a run")

    # The editor completes and explains fields by keyboard, and marks the line of a fault as one types.
    browser.until(lambda: len(browser.all("label.field select")) == 4, "files, models and data are there")
    browser.write("#run-file", "objective:\n  na")
    browser.find('[role="option"]')
    browser.has_no_barriers()
    browser.keys(Keys.ARROW_DOWN)
    browser.sees("The training objective.")
    browser.keys(Keys.ENTER, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ENTER)
    written = "return document.querySelector('#run-file').value"
    assert browser.run(written) == "objective:\n  name: grpo"
    browser.write("#run-file", run_text.replace("0.2", "7"))
    browser.until(lambda: [one.text for one in browser.all(".lines .fault")] == ["7"], "the line is marked")
    browser.press("button", "Line 7")
    browser.choose("Model", "examples/embedded/policy")
    browser.until(lambda: "path: examples/embedded/policy\n" in browser.run(written), "the model is chosen")

    # What the model will read.
    browser.choose("Start from", "demo.yaml")
    browser.press("button", "Show questions")
    browser.sees("<|system|>Recall each weight")

    # An objective with another one's settings gets a note, but may run.
    browser.write(
        "#run-file", "name: a\nmodel: {path: m}\ndata: {train: t}\nobjective: {name: grpo}\ntraining: {steps: 1}"
    )
    browser.press("button", "Check only")
    browser.sees("Every field is valid")
    browser.sees("Set `preset: paper-grpo`")

    # An invalid field is named next to the form, with a button that goes to it.
    browser.write("#run-file", run_text.replace("0.2", "7"))
    browser.press("button", "Start run")
    browser.sees("objective.clip_low is 7")
    browser.press("button", "Go to objective.clip_low")
    selected = "const t = document.activeElement; return t.value.slice(t.selectionStart, t.selectionEnd).trim();"
    assert browser.run(selected) == "clip_low: 7"

    browser.write("#run-file", run_text)
    browser.press("button", "Start run")
    browser.sees("starting")
    run_id = browser.driver.current_url.rsplit("/", 1)[1]
    assert get(api, f"/v1/runs/{run_id}")["state"] == "starting"

    # Steps arrive without a reload.
    player.take(run_id)
    browser.find('.run-head .badge[data-state="running"]')
    browser.run("window.notReloaded = true")
    player.step(1)
    browser.until(lambda: "step 1 of 60" in browser.text(), "step 1 arrives")
    player.step(2)
    player.evaluation(2, 0.4375)
    browser.until(lambda: "step 2 of 60" in browser.text(), "step 2 arrives")
    browser.sees("43.8%")
    browser.sees("scored groups")
    browser.find('[data-chart="Reward and accuracy"] .scatterlayer')
    label = browser.find('[data-chart="Routing"] .plot').get_attribute("aria-label")
    assert label is not None
    assert "GRPO" in label
    assert browser.run("return window.notReloaded")

    # Pause and resume.
    browser.press("button", "Pause")
    browser.sees("pausing after this step")
    player.state("paused")
    browser.find('.run-head .badge[data-state="paused"]')
    browser.press("button", "Resume")
    browser.until(lambda: player.desired() == "running", "the learner is told to continue")
    player.state("running")
    browser.find('.run-head .badge[data-state="running"]')

    # Stopping needs confirmation.
    browser.press("button", "Stop …")
    browser.press("button", "Keep running")
    assert get(api, f"/v1/runs/{run_id}")["state"] == "running"
    browser.press("button", "Stop …")
    browser.press("button", "Stop with checkpoint")
    browser.find('.run-head .badge[data-state="stopping"]')
    browser.until(lambda: player.desired() == "stopped", "the learner is told to stop")
    player.checkpoint(2)
    player.state("stopped", "stopped by request")
    browser.find('.run-head .badge[data-state="stopped"]')
    browser.sees("Checkpoint of step 2: 11.8 MiB")
    browser.go()
    browser.find('.run .badge[data-state="stopped"]')
    browser.sees("2 of 60 steps")
    browser.find(".spark path")


def test_samples_show_each_tokens_value_and_texts_stay_text(
    api: Api, browser: Visitor, player: Player, run_text: str
) -> None:
    run_id = start(api, browser, player, run_text)
    player.note("warning", "a note with <b>marks</b>")
    browser.go(f"#/runs/{run_id}")
    browser.sees("a note with <b>marks</b>")
    browser.press("a", "Samples")
    taught = '.sample[data-route="sdpo"]'
    browser.find(f"{taught} .token")
    tokens = browser.all(f"{taught} .token")
    assert len(tokens) == 44
    browser.sees("Part length")

    # Exact values by hover and by keys.
    tokens[4].click()
    browser.sees(f"teacher entropy {ENTROPY[4]:.4f} nats")
    browser.keys(Keys.ARROW_RIGHT)
    browser.sees(f"teacher entropy {ENTROPY[5]:.4f} nats")
    browser.choose("Colour by", "Distillation weight")
    browser.all(f"{taught} .token")[4].click()
    browser.sees(f"distillation weight {0.3 + 0.8 * ENTROPY[4]:.4f}")
    colours = [token.value_of_css_property("background-color") for token in browser.all(f"{taught} .token")[:11]]
    assert len(set(colours)) == 11

    # Where in a response the quantity is high: the highest of the means by tenth.
    taught_tokens = ENTROPY * 4
    tenths = [[value for i, value in enumerate(taught_tokens) if 10 * i // 44 == tenth] for tenth in range(10)]
    means = [sum(0.3 + 0.8 * value for value in values) / len(values) for values in tenths]
    highest = means.index(max(means))
    label = browser.find('.positions[aria-label^="Distillation weight by position"]').get_attribute("aria-label")
    assert label is not None
    assert f"highest at {10 * highest} to {10 * highest + 10}%" in label
    assert f"{means[highest]:.3f}" in label

    # Colour is not needed: values can be shown next to the tokens.
    browser.find(".colouring input").click()
    assert browser.all(f"{taught} .token")[4].get_attribute("data-value") == f"{0.3 + 0.8 * ENTROPY[4]:.3f}"
    browser.sees("not available, because the teacher did not read this response")

    assert "<script>" in browser.text()
    assert browser.run("return document.querySelectorAll('main script, main b, main i').length") == 0
    browser.press(f"{taught} summary", "Teacher’s prompt")
    browser.sees("A correct reply was")

    # The group that is being read stays while others arrive.
    player.step(7)
    player.samples(7)
    browser.until(lambda: len(browser.all(".filters select option")) == 2, "the new group joins the list")
    browser.sees("A correct reply was")
    browser.write('input[type="number"]', f"5{Keys.TAB}")
    browser.sees("No samples of step 5.")


def test_runs_are_compared_on_one_plot(api: Api, browser: Visitor, player: Player, run_text: str) -> None:
    first = start(api, browser, player, run_text)
    player.state("succeeded")
    browser.until(lambda: get(api, f"/v1/runs/{first}")["state"] == "succeeded", "the first run ends")
    player.run_id = None
    player.beat()
    second = start(api, browser, player, run_text.replace("first run", "second run"), steps=4)
    browser.go("#/compare")
    browser.sees("Choose one or more runs.")
    for run_id in (first, second):
        browser.find(f'input[value="{run_id}"]').click()
    plot = '.chart[data-chart="{}"] .plot'
    traces = (
        "const p = document.querySelector(arguments[0]); return (p?.data ?? []).map((t) => [t.x.length, t.line.dash]);"
    )
    reward = plot.format("Reward")
    browser.until(lambda: len(browser.run(traces, reward)) == 2, "both runs are drawn")
    drawn = browser.run(traces, reward)
    assert [length for length, _ in drawn] == [6, 4]
    assert len({dash for _, dash in drawn}) == 2
    browser.choose("Show", "Evaluation accuracy (avg@k)")
    browser.choose("Against", "wall-clock time")
    browser.until(lambda: len(browser.run(traces, plot.format("Evaluation accuracy (avg@k)"))) == 2, "evaluations")
    # The address holds the comparison.
    address = browser.driver.current_url.split("/", 3)[3]
    browser.go(address)
    browser.until(lambda: len(browser.run(traces, plot.format("Evaluation accuracy (avg@k)"))) == 2, "the same again")


def test_a_waiting_run_says_why_and_is_found_by_its_tags(
    api: Api, browser: Visitor, player: Player, run_text: str
) -> None:
    first = start(api, browser, player, run_text)
    config = get(api, f"/v1/runs/{first}")["config"]
    waiting = post(api, "/v1/runs", config)["id"]
    browser.go(f"#/runs/{waiting}")
    browser.sees(f"1. in the queue. The only learner works for {first}.")
    browser.press("button", "Edit …")
    browser.has_no_barriers()
    browser.keys(Keys.ESCAPE)
    browser.until(lambda: browser.focused() == "BUTTON Edit …", "the focus returns")
    browser.keys(Keys.ENTER)
    browser.write('dialog input[name="name"]', "renamed")
    browser.write('dialog input[name="tags"]', "base/line")
    browser.press("dialog button", "Save")
    browser.sees("base/line")
    browser.write('dialog input[name="tags"]', "baseline week-48")
    browser.write("dialog textarea", "Before the new rewards.")
    browser.press("dialog button", "Save")
    browser.sees("Before the new rewards.")
    browser.press(".tag", "baseline")
    browser.sees("renamed")
    browser.until(lambda: not browser.driver.find_elements("css selector", f'[data-run="{first}"]'), "it has no tag")


def test_a_run_is_forked_and_deleted(api: Api, browser: Visitor, player: Player, run_text: str) -> None:
    parent = start(api, browser, player, run_text)
    browser.go(f"#/runs/{parent}")
    browser.sees("No checkpoint on disk yet.")
    player.state("stopped", "stopped by request")
    write_checkpoint(api.home / "runs" / parent, 6)
    player.checkpoint(6, str(checkpoint_folder(api.home / "runs" / parent, 6)))
    browser.press("button", "Fork …")
    browser.sees("This run does not change.")
    browser.write("dialog textarea", "training.steps 80")
    browser.press("dialog button", "Fork")
    browser.sees("“training.steps 80” is not of the form field=value.")
    browser.write("dialog textarea", "training.steps=3")
    browser.press("dialog button", "Fork")
    browser.sees("training.steps is 3, but the fork begins at step 6")
    browser.has_no_barriers()
    browser.write("dialog textarea", 'training.steps=80\nobjective.name=grpo\ndata={"shuffle": false}')
    browser.write("dialog input", "the child")
    browser.press("dialog button", "Fork")
    browser.sees(f"Forked from {parent} at step 6")
    child = get(api, f"/v1/runs/{browser.driver.current_url.rsplit('/', 1)[1]}")
    assert (child["name"], child["num_steps"], child["objective"]) == ("the child", 80, "grpo")
    assert child["config"]["data"] == get(api, f"/v1/runs/{parent}")["config"]["data"] | {"shuffle": False}
    assert browser.find(".run-head a.button:last-of-type").get_attribute("href").endswith(f"{child['id']},{parent}")

    browser.press(".reason a", parent)
    browser.press("button", "Delete …")
    browser.has_no_barriers()
    browser.press("button", "Keep it")
    browser.press("button", "Delete …")
    browser.press("button", "Delete permanently")
    browser.find(f'.run[data-run="{child["id"]}"]')
    browser.until(lambda: [run["id"] for run in get(api, "/v1/runs")["items"]] == [child["id"]], "the parent is gone")

    player.run_id = None
    browser.until(lambda: get(api, f"/v1/runs/{child['id']}")["state"] == "starting", "the child has its services")
    player.take(child["id"])
    player.state("failed", "The whole reason.")
    browser.until(lambda: browser.find(".run-why").text == "The whole reason.", "the list says why a run failed")
    browser.go(f"#/runs/{child['id']}")
    browser.sees("The whole reason.")
    browser.lacks("No data yet")  # none will arrive


def test_no_view_has_barriers_in_light_and_dark(api: Api, browser: Visitor, player: Player, run_text: str) -> None:
    run_id = start(api, browser, player, run_text)
    player.note("warning", "a warning")
    player.note("error", "an error")
    for address, sign in (
        ("", ".run"),
        (f"#/runs/{run_id}", '.events [data-level="error"]'),
        (f"#/runs/{run_id}/samples?numbers=1", ".token"),
        (f"#/runs/{run_id}/samples?color=advantage", ".token"),
        (f"#/compare?runs={run_id}", ".compare-main td"),
        ("#/start", "#run-file"),
        ("#/table", "tr[data-run]"),
        ("#/experiments", ".notice.empty"),
        ("#/nowhere", ".notice.empty"),
    ):
        browser.go(address)
        browser.find(sign)
        browser.has_no_barriers()


def test_a_long_run_is_drawn_as_means_and_largest_values(browser: Visitor) -> None:
    browser.go("#/start")
    script = """
    const [done] = [...arguments].slice(-1);
    const charts = document.querySelector('link[rel=modulepreload]').href.replace('app.js', 'parts/run_charts.js');
    const steps = Array.from({ length: 1500 }, (_, i) => ({
      step: i + 1, at: i, metrics: { reward_mean: i % 3, staleness_max: i % 3, ...(i % 2 ? {} : { rare: 4 }) } }));
    import(charts).then(({ thinned }) => done([thinned(steps), thinned(steps.slice(0, 600)).width]));"""
    thin, short_width = browser.driver.execute_async_script(script)
    assert (thin["width"], len(thin["points"]), short_width) == (3, 500, 1)
    assert {point["metrics"]["reward_mean"] for point in thin["points"]} == {1}
    assert {point["metrics"]["staleness_max"] for point in thin["points"]} == {2}
    assert {point["metrics"]["rare"] for point in thin["points"]} == {4}
    assert thin["points"][-1]["step"] == 1500


def test_addresses_of_nothing_say_so(browser: Visitor) -> None:
    browser.go("#/runs/nothing")
    browser.sees("Not found")
    browser.press("a", "See all runs")
    browser.sees("No runs yet.")
    browser.go("#/elsewhere")
    browser.sees("There is no page at this address.")


def tab_to(browser: Visitor, name: str) -> None:
    """Press Tab until the element with this text or name has the focus, and can be seen to have it."""
    for _ in range(60):
        browser.keys(Keys.TAB)
        if name.lower() in browser.focused().lower():
            break
    else:
        raise AssertionError(f"Tab never reached {name!r}")
    outline = browser.run("const s = getComputedStyle(document.activeElement); return s.outlineStyle + s.outlineWidth;")
    assert not outline.startswith("none"), f"{name} does not show its focus"


def test_everything_by_keyboard(api: Api, browser: Visitor, player: Player, run_text: str) -> None:
    browser.go()
    browser.sees("No runs yet.")
    tab_to(browser, "Skip to content")
    browser.keys(Keys.ENTER)
    assert browser.focused().startswith("MAIN")
    tab_to(browser, "A Start a run")
    browser.keys(Keys.ENTER)
    browser.until(lambda: browser.focused() == "H1 Start a run", "the new view's heading has the focus")
    tab_to(browser, "TEXTAREA")
    browser.replace_by_keys(run_text)
    tab_to(browser, "BUTTON Start run")
    browser.keys(Keys.ENTER)
    browser.until(lambda: browser.focused().startswith("H1 first run"), "the run's heading has the focus")
    run_id = browser.driver.current_url.rsplit("/", 1)[1]
    browser.find('.run-head .badge[data-state="starting"]')
    player.take(run_id)
    player.step(1)
    player.samples(1)
    browser.find('.run-head .badge[data-state="running"]')
    browser.sees("step 1 of 60")
    tab_to(browser, "BUTTON Stop")
    browser.keys(Keys.ENTER)
    browser.until(lambda: browser.focused() == "BUTTON Keep running", "the harmless choice has the focus")
    browser.keys(Keys.ESCAPE)
    browser.until(lambda: browser.focused().startswith("BUTTON Stop"), "the focus returns")
    tab_to(browser, "A Samples")
    browser.keys(Keys.ENTER)
    browser.find(".token")
    tab_to(browser, "SPAN The")
    browser.keys(Keys.END)
    browser.sees("Token 33 of 33")


def test_a_phone_never_scrolls_sideways(api: Api, browser: Visitor, player: Player, run_text: str) -> None:
    run_id = start(api, browser, player, run_text)
    browser.resize(*PHONE)
    for address, sign in (
        ("", ".spark path"),
        (f"#/runs/{run_id}", '[data-chart="Gradient and clipping"] .scatterlayer'),
        (f"#/runs/{run_id}/samples?numbers=1", ".token"),
        (f"#/compare?runs={run_id}", ".chart .scatterlayer"),
        ("#/table", "tr[data-run]"),
        ("#/start", "#run-file"),
    ):
        browser.go(address)
        browser.find(sign)
        browser.until(lambda: browser.overflow() <= 0, f"{address or 'the list'} fits {PHONE[0]} pixels")


def test_dark_and_light_follow_the_system(api: Api, browser: Visitor, player: Player, run_text: str) -> None:
    run_id = start(api, browser, player, run_text)
    browser.go(f"#/runs/{run_id}")
    browser.find('[data-chart="Entropy"] .scatterlayer')
    line = "return document.querySelector('[data-chart=Entropy] .plot').data[0].line.color"
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = (browser.run(paper), browser.run(line))
    browser.dark(True)
    browser.until(lambda: browser.run(line) != light[1], "the charts follow without a reload")
    assert browser.run(paper) != light[0]
    browser.dark(False)
    browser.until(lambda: (browser.run(paper), browser.run(line)) == light, "and back")


def test_a_lost_api_is_said_and_found_again(api: Api, browser: Visitor, player: Player, run_text: str) -> None:
    run_id = start(api, browser, player, run_text)
    browser.go(f"#/runs/{run_id}")
    browser.sees("step 6 of 60")
    browser.find('#connection[data-state="live"]')
    api.kill()
    browser.find('#connection[data-state="disconnected"]')
    browser.sees("Disconnected, retrying")
    browser.sees("step 6 of 60")  # known data stays
    player.step(7)
    api.start()
    browser.find('#connection[data-state="live"]')
    browser.lacks("Disconnected")
    browser.sees("step 7 of 60")
    browser.until(
        lambda: browser.run("return document.querySelector('[data-chart=Entropy] .plot').data?.[0].x.length") == 7,
        "every step once",
    )


@pytest.fixture
def locked(tmp_path: Path, valkey_url: str) -> Iterator[Api]:
    made = Api(tmp_path / "locked", valkey_url, key="right key")
    made.start()
    yield made
    made.kill()


def test_the_key_is_asked_for_and_kept_for_the_tab(driver: Chrome, locked: Api) -> None:
    browser = Visitor(driver, locked.url)
    browser.reset()
    browser.go()
    browser.sees("This API requires a key")
    browser.write("dialog input", f"wrong{Keys.ENTER}")
    browser.sees("The key was not accepted.")
    browser.write("dialog input", f"right key{Keys.ENTER}")
    browser.sees("No runs yet.")
    browser.go("#/start")
    browser.choose("Start from", "demo.yaml")
    assert "right key" not in browser.run("return JSON.stringify(localStorage) + document.cookie + location.href")

    # A read key cannot start runs: the page offers nothing that would be refused, and the first key can be restored.
    call = """
    const [done] = [...arguments].slice(-1);
    const headers = { Authorization: 'Bearer right key', 'Content-Type': 'application/json' };
    fetch('/v1/keys', { method: 'POST', headers, body: JSON.stringify({ name: 'a reader' }) })
      .then((answer) => answer.json()).then((made) => done(made.key));"""
    reader = browser.driver.execute_async_script(call)
    browser.press("button", "Change key …")
    browser.has_no_barriers()
    browser.press("dialog button", "Cancel")
    browser.until(lambda: browser.focused() == "BUTTON Change key …", "the focus returns")
    browser.press("button", "Change key …")
    browser.write("dialog input", f"{reader}{Keys.ENTER}")
    browser.sees("This key cannot start runs.")
    assert [one.text for one in browser.all("a, button") if "Start" in one.text] == []
    browser.press("button", "Change key …")
    browser.write("dialog input", f"right key{Keys.ENTER}")
    browser.sees("The API checks every field before anything starts")
    browser.leave()
