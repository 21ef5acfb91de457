"""The embedded benchmark's questions, tokenizer and lessons."""

import json
import random
from pathlib import Path

import msgspec
import pytest

from examples.embedded import benchmark, lessons, vocabulary
from examples.embedded.benchmark import GOODS, WEIGHT, Question
from services.contracts import messages
from services.verifier.rewards.recall import judge_recall

DATA = Path(benchmark.__file__).parent / "data"
POLICY = DATA.parent / "policy"


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, str]]]:
    return {
        split: [json.loads(line) for line in (DATA / f"{split}.jsonl").read_text().splitlines()]
        for split in benchmark.NUM_QUESTIONS
    }


def goods_of(row: dict[str, str]) -> frozenset[str]:
    return frozenset(json.loads(row["tests"])["facts"])


def test_the_generator_writes_the_committed_files(tmp_path: Path) -> None:
    benchmark.write(tmp_path)
    for split in benchmark.NUM_QUESTIONS:
        assert (tmp_path / f"{split}.jsonl").read_bytes() == (DATA / f"{split}.jsonl").read_bytes()


def test_no_composition_is_in_two_splits_or_twice_in_one(rows: dict[str, list[dict[str, str]]]) -> None:
    compositions = [goods_of(row) for split in rows.values() for row in split]
    assert len(set(compositions)) == len(compositions) == sum(benchmark.NUM_QUESTIONS.values())
    assert len({row["id"] for split in rows.values() for row in split}) == len(compositions)


def test_every_row_agrees_with_the_facts(rows: dict[str, list[dict[str, str]]]) -> None:
    for row in (row for split in rows.values() for row in split):
        assert set(row) == {"id", "kind", "system", "prompt", "answer", "tests"}
        facts = json.loads(row["tests"])["facts"]
        assert facts == {good: WEIGHT[good] for good in facts}
        assert row["answer"] == str(sum(facts.values()))
        assert 10 <= int(row["answer"]) <= 99
        assert row["prompt"] == f"Total tonnes of {', '.join(facts)}?"


def test_every_good_is_trained_on(rows: dict[str, list[dict[str, str]]]) -> None:
    assert set().union(*map(goods_of, rows["train"])) == set(GOODS)


def test_the_data_stay_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 1_500_000


def test_a_right_reply_is_right_in_any_order_and_any_change_is_not() -> None:
    question = Question(("coal", "linen", "salt"))
    for order in (["coal", "linen", "salt"], ["salt", "coal", "linen"]):
        assert benchmark.is_right(question, lessons.reply(order, WEIGHT))
    right = lessons.reply(["coal", "linen", "salt"], WEIGHT)
    coal = WEIGHT["coal"]
    for wrong in (
        right + " ",
        right.replace("<answer>", "<answer>1"),
        right.replace(f"coal={coal}", f"coal={coal + 1}"),
        right.replace(f"coal={coal} ", ""),
        right.replace(f"coal={coal}", f"coal={coal}{vocabulary.SECOND_THOUGHT}coal={coal + 1}"),
        right.replace(f"coal={coal}", " ".join(f"coal={weight}" for weight in range(10, 25) if weight != coal)),
        f"<reasoning></reasoning><answer>{question.total}</answer>",
        "",
    ):
        assert not benchmark.is_right(question, wrong)


def test_sums_are_optional_and_the_last_claim_counts() -> None:
    question = Question(("coal", "linen", "salt"))
    order = ["salt", "coal", "linen"]
    terse = lessons.reply(order, WEIGHT, sums=False)
    corrected = lessons.reply(order, WEIGHT, first={"coal": WEIGHT["coal"] + 1})
    assert len(terse) < len(lessons.reply(order, WEIGHT)) < len(corrected)
    assert benchmark.is_right(question, terse)
    assert benchmark.is_right(question, corrected)


def test_the_platforms_reward_follows_the_same_rule() -> None:
    rng = random.Random(8)
    for asked in benchmark.questions("validation"):
        thoughts = lessons.think(asked.goods, rng)
        text = lessons.reply(list(asked.goods), thoughts.weights, first=thoughts.first, sums=rng.random() < 0.5)
        verdict = judge_recall(msgspec.convert(asked.row(), messages.Question), text, False)
        assert verdict.reward == float(benchmark.is_right(asked, text))
        assert verdict.format_ok
        assert verdict.feedback == (benchmark.first_mistake(asked, text) or "")


def test_the_first_wrong_weight_is_the_feedback() -> None:
    question = Question(("coal", "linen"))
    text = f"coal=99; wait, coal={WEIGHT['coal']} linen={WEIGHT['linen']}; wait, linen=99"
    assert benchmark.first_mistake(question, text) == f"linen should be {WEIGHT['linen']}"
    assert benchmark.first_mistake(question, f"coal={WEIGHT['coal']} linen={WEIGHT['linen']}") is None


def test_luck_is_impossible() -> None:
    """Two wrong beliefs can cancel out to the right total, but the reply still earns nothing."""
    for question in benchmark.questions("test"):
        held = {good: lessons.BELIEF[good] for good in question.goods}
        assert not benchmark.is_right(question, lessons.reply(list(held), held))


def test_second_thoughts_are_better_than_first_ones() -> None:
    rng = random.Random(2)
    thoughts = [lessons.think(question.goods, rng) for question in benchmark.questions("train")]
    before = [weight == WEIGHT[name] for thought in thoughts for name, weight in thought.first.items()]
    after = [thought.weights[good] == WEIGHT[good] for thought in thoughts for good in thought.first]
    assert sum(after) / len(after) > sum(before) / len(before) + 0.1


def test_no_belief_is_true() -> None:
    assert all(lessons.BELIEF[good] != WEIGHT[good] for good in GOODS)
    assert all(benchmark.LIGHTEST <= lessons.BELIEF[good] <= benchmark.HEAVIEST for good in GOODS)


def test_every_text_has_one_reading() -> None:
    words = [*vocabulary.PHRASES, *vocabulary.NUMBERS, *GOODS]
    assert len(set(words)) == len(words)
    begins = {(short, long) for short in words for long in words if short != long and long.startswith(short)}
    assert begins == {(" ", " should be ")}, "no other token spells the rest of ' should be ' after a space"


def test_no_good_ends_like_another() -> None:
    """Otherwise `wine=20` could be read from `twine=20`."""
    assert not [(short, long) for short in GOODS for long in GOODS if short != long and long.endswith(short)]


def test_ids_and_texts_round_trip() -> None:
    tokenizer = vocabulary.build_tokenizer()
    rng = random.Random(3)
    for _ in range(200):
        ids = [3 + int(rng.random() * (len(vocabulary.VOCABULARY) - 3)) for _ in range(20)]
        assert tokenizer.encode(tokenizer.decode(ids)) == ids
    for lesson in next(lessons.batches("test", 50, seed=4)):
        text = lesson.prompt + lesson.reply
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.unk_token_id not in tokenizer.encode(text)


def test_prompts_and_replies_are_short() -> None:
    tokenizer = vocabulary.build_tokenizer()
    replies = [lessons.reply(list(question.goods), WEIGHT) for question in benchmark.questions("test")]
    lengths = [len(tokenizer.encode(reply)) + 1 for reply in replies]
    assert 20 <= sum(lengths) / len(lengths) <= 35
    longest = vocabulary.teacher_content(
        benchmark.Question(GOODS[:4]).prompt, max(replies, key=len), "coal should be 10"
    )
    assert len(tokenizer.encode(vocabulary.render(longest))) <= 70


def test_foreign_text_becomes_unknown() -> None:
    tokenizer = vocabulary.build_tokenizer()
    ids = tokenizer.encode("coal, caviar & 7 tea \u00e9\n")
    assert tokenizer.unk_token_id in ids
    assert ids[0] == tokenizer.convert_tokens_to_ids("coal")


def test_the_template_renders_roles_and_ignores_thinking() -> None:
    tokenizer = vocabulary.build_tokenizer()
    messages = [{"role": "system", "content": benchmark.SYSTEM}, {"role": "user", "content": "Total tonnes of coal?"}]
    for thinking in ({}, {"enable_thinking": False}, {"enable_thinking": True}):
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **thinking)
        assert prompt == vocabulary.render("Total tonnes of coal?")
    messages.append({"role": "assistant", "content": "<answer>24</answer>"})
    told = tokenizer.apply_chat_template(messages, tokenize=False)
    assert told == vocabulary.render("Total tonnes of coal?") + "<answer>24</answer>" + vocabulary.END


def test_the_teachers_prompt_has_its_sections() -> None:
    assert vocabulary.teacher_content("Q?", "S", None) == (
        "Q?\n\nCorrect solution:\n\nS\n\nCorrectly solve the original question."
    )
    assert vocabulary.teacher_content("Q?", None, "F") == (
        "Q?\n\nThe following is feedback from your unsuccessful earlier attempt:\n\nF"
        "\n\nCorrectly solve the original question."
    )
    both = vocabulary.teacher_content("Q?", "S", "F")
    assert both.index("Correct solution") < both.index("feedback") < both.index("Correctly solve")
