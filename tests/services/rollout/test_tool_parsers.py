"""Which of vLLM's tool parsers goes with which chat template."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.contracts.errors import ConfigurationError
from services.rollout.serving.parsers import DEEPSEEK, FORMS, Parsers, check_tools, parser_of
from tests.services.rollout.models import make_tokenizer

JSON = '<tool_call>{"name": {{ tool.name }}, "arguments": {{ tool.arguments }}}</tool_call>'
XML = "<tool_call><function={{ tool.name }}><parameter=x>1</parameter></function></tool_call>"


@pytest.mark.parametrize(
    ("form", "parser"),
    [
        (JSON, "hermes"),
        (XML, "qwen3_xml"),
        ("<tool_call>{{ name }}<arg_key>x</arg_key>", "glm45"),
        (f"{DEEPSEEK}```json", "deepseek_v3"),
        (DEEPSEEK, "deepseek_v31"),
        ("<｜DSML｜>", ""),
    ],
)
def test_the_form_of_calls_in_the_template_decides(form: str, parser: str) -> None:
    assert parser_of("{% if tools %}" + form + "{% endif %}") == parser
    assert parser_of(form) == "", "a template that shows the model no tools"


def test_every_parser_is_one_of_vllm() -> None:
    """Read, not imported, which takes seconds."""
    vllm = importlib.util.find_spec("vllm")
    assert vllm is not None
    registered = (Path(str(vllm.origin)).parent / "tool_parsers" / "__init__.py").read_text()
    for parser in {parser for _, parser in FORMS} | {"deepseek_v3", "deepseek_v31", "hf"}:
        assert f'"{parser}": (' in registered


def test_a_setting_decides() -> None:
    assert Parsers("llama3_json", "").fitting(make_tokenizer()).tool == "llama3_json"


def test_tools_without_a_parser_are_refused_unless_none_are_wanted() -> None:
    wanted = SimpleNamespace(tools=[{}], tool_choice="auto")
    check_tools(wanted, "hermes")
    check_tools(SimpleNamespace(tools=[{}], tool_choice="none"), "")
    check_tools(SimpleNamespace(), "")
    with pytest.raises(ConfigurationError, match="TURNOUT_TOOL_PARSER") as refused:
        check_tools(wanted, "")
    assert (refused.value.status, refused.value.field) == (422, "tools")
