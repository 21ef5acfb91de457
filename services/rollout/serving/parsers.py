"""Which of vLLM's parsers reads the tool calls of a model: the one for the form that its chat template shows the model.

vLLM leaves the choice to its operator, who has one model. Here models come and go, so it follows from the template, as
vLLM's documentation pairs them ("Tool Calling"). `TURNOUT_TOOL_PARSER` decides for templates that are not listed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from services.contracts.errors import ConfigurationError
from services.runtime.logs import get_logger
from services.runtime.settings import Settings

log = get_logger(__name__)
FORMS = (
    ("<seed:tool_call>", "seed_oss"),
    ("<minimax:tool_call>", "minimax_m2"),
    ("<function=", "qwen3_xml"),
    ("<arg_key>", "glm45"),
    ("<tool_call>", "hermes"),
    ("<|tool_call|>", "granite"),
    ("<|tool_call_start|>", "lfm2"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_start|>", "llama4_pythonic"),
    ("<|python_tag|>", "llama3_json"),
    ("<|action_start|>", "internlm"),
    ("<function_calls>", "olmo3"),
    ("<|channel|>", "openai"),
)
"""What a chat template contains, and the parser. The first one that is found counts: some contain several."""
DEEPSEEK = "<｜tool▁calls▁begin｜>"
"""DeepSeek's templates, of which only the older ones write arguments as a block of Markdown."""


@dataclass(frozen=True, slots=True)
class Parsers:
    """Names of vLLM's parsers; empty for none."""

    tool: str
    reasoning: str

    def fitting(self, tokenizer: Any) -> Parsers:
        """The same with the tool parser for this model, unless one is set."""
        return self if self.tool else replace(self, tool=tool_parser_for(tokenizer))


def parser_of(template: str) -> str:
    """The tool parser for a chat template; empty if it has no tools, or a form that is not known."""
    if "tools" not in template:
        return ""
    if DEEPSEEK in template:
        return "deepseek_v3" if "```json" in template else "deepseek_v31"
    return next((parser for mark, parser in FORMS if mark in template), "")


def tool_parser_for(tokenizer: Any) -> str:
    """The tool parser for a tokenizer's chat template; empty if none is known, or the tokenizer lacks what it needs."""
    from vllm.parser import ParserManager

    if getattr(tokenizer, "response_template", None):
        found = "hf"
    else:
        template = getattr(tokenizer, "chat_template", None) or ""
        texts = template.values() if isinstance(template, dict) else [template]
        found = next(filter(None, map(parser_of, texts)), "")
    if not found:
        return ""
    try:
        ParserManager.get_parser(tool_parser_name=found, enable_auto_tools=True, tokenizer=tokenizer)
    except Exception as error:  # noqa: BLE001 - whatever a parser objects to, the model answers without it
        log.warning("tool parser not usable", tool_parser=found, error=str(error))
        return ""
    return found


def check_parsers(settings: Settings) -> None:
    """Raise `ConfigurationError` if vLLM lacks a parser that is set. Call `environment.import_vllm` first."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    tools = {*ToolParserManager.lazy_parsers, *ToolParserManager.tool_parsers}
    reasoning = {*ReasoningParserManager.lazy_parsers, *ReasoningParserManager.reasoning_parsers}
    for name, value, known in (
        ("tool", settings.tool_parser, tools),
        ("reasoning", settings.reasoning_parser, reasoning),
    ):
        if value and value not in known:
            setting = f"TURNOUT_{name.upper()}_PARSER"
            raise ConfigurationError(
                f"{setting} is {value!r}, which is no {name} parser of vLLM.",
                remedy=f"Use one of {', '.join(sorted(known))}, or unset it.",
                field=setting,
            )


def check_tools(wanted: Any, tool_parser: str) -> None:
    """Raise `ConfigurationError` if a request wants tool calls and there is nothing to parse them with."""
    if tool_parser or not getattr(wanted, "tools", None) or wanted.tool_choice in (None, "none"):
        return
    raise ConfigurationError(
        "tools are given, but the model's chat template shows no form of tool calls that is known here.",
        remedy="Set TURNOUT_TOOL_PARSER of the rollout servers to vLLM's parser for the model, or tool_choice to none.",
        field="tools",
    )
