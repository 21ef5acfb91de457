"""Mathematics: placeholder until written below."""

from services.contracts.messages import Question
from services.verifier.rewards.registry import Judgement, register


@register("math", supervised=True)
def judge_math(question: Question, response_text: str, truncated: bool) -> Judgement:
    raise NotImplementedError
