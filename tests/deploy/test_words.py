"""The prose check finds what it should, and nothing else."""

from __future__ import annotations

from docs.check_words import findings, load_words, stale_quotes

WORDS = load_words()


def refused(text: str, *, markdown: bool = False) -> list[tuple[int, str]]:
    return [(finding.line, finding.phrase) for finding in findings(text, WORDS, markdown=markdown)]


def test_phrases_are_found_with_their_line_also_over_the_end_of_one() -> None:
    assert refused("A run\nGoes on after a restart.") == [(2, "Goes on")]
    assert refused("x = 1  # a learner that goes\n# on after a restart") == [(1, "goes on")]
    assert refused("One process a rank.") == [(1, "One process a rank")]


def test_code_and_harmless_neighbours_are_not() -> None:
    assert refused("`beside` and\n```sh\nfind . -name beside\n```\n", markdown=True) == []
    assert refused("for good in goods: amend(besides)") == []
    assert refused("The ratio lies in [0, 1].") == []


def test_a_message_that_the_runbook_quotes_is_in_the_code_but_for_its_values() -> None:
    page = '"away"\n## Symptoms\n| "Port ... is in use" |\n### Docker\n| "no such image" |\n### Runs\n| "No learner" |'
    assert stale_quotes(page, "Port \0 is in use, so") == ["No learner"]
    assert stale_quotes(page, "Port \0 is taken.\0No learner is free.") == ["is in use"]
