"""The settings of all objectives: the fields of a run file's section `objective`.

An objective names those it takes (`Objective.takes`). `services.contracts.run_config` narrows `name` to the registry.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from services.contracts.chat_template import FullArguments
from services.contracts.model import Fraction, Positive, Section
from services.contracts.ranges import DivergenceAlpha

QUESTION: Final = "{question}"
"""Stands for the question in `teacher_closing`."""
Text = Annotated[str, Field(max_length=1000)]


class ObjectiveSettings(Section):
    name: str = "srpo"
    """The training objective."""
    success_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """A rollout is correct if its reward is at least this."""
    aggregation: Literal["token", "sequence", "constant"] = "token"
    """How token losses become one number, over the whole mini-batch: the mean over tokens; the mean over rollouts of
    each one's mean over its tokens; or their sum over rollouts times `rollout.max_response_tokens`, which favours no
    length (Dr. GRPO, arXiv 2503.20783)."""
    advantage: Literal["mean", "mean_std"] = "mean"
    """Group baseline: subtract the mean, or also divide by (standard deviation + 1e-6)."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Lower clip of the importance ratio: 1 - clip_low."""
    clip_high: Annotated[float, Field(gt=0, le=1e6)] = 0.28
    """Upper clip of the importance ratio: 1 + clip_high."""
    ratio: Literal["token", "sequence"] = "token"
    """Importance ratio of the GRPO branch: each token's own, or one of the whole response, the geometric mean of its
    tokens' ratios (GSPO, arXiv 2507.18071, whose clips are far narrower: 3e-4 and 4e-4)."""
    surrogate: Literal["ppo", "cispo"] = "ppo"
    """Policy gradient of the GRPO branch: the clipped surrogate, whose clip ends a token's gradient; or the clipped
    ratio as a weight of the log-probability, which keeps every token's (CISPO, arXiv 2506.13585)."""
    dual_clip: Annotated[float, Field(gt=1, le=1e6)] | None = None
    """Bound, above 1, on the importance ratio of tokens with a negative advantage, which the clip leaves open (arXiv
    1912.09729, which uses 3): above it a token's loss is constant. null for none."""
    reference_kl_coefficient: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """Weight of the KL divergence (k3 estimate) from the frozen initial model on the GRPO branch; 0 for none. Costs
    that model's memory and one more forward pass."""
    mask_truncated: bool = False
    """Responses cut at the limit are not trained on, and counted; their rewards stay in the group's baseline."""
    skip_uninformative_groups: bool = False
    """Groups that hold no signal (no advantage but 0, no teacher pass) are left out of the update, and counted."""
    importance_weight_cap: Annotated[float, Field(ge=0.01, le=1e6)] = 2.0
    """Truncation of the importance weights: engine correction pi_old/mu, and pi_theta/pi_old of the SDPO branch."""
    engine_mask: Literal["none", "token", "sequence"] = "none"
    """Leaves tokens out of the gradient if pi_old/mu is outside engine_mask_low and _high: each by its own ratio
    (IcePop, arXiv 2510.18855), or a whole response by the geometric mean of its tokens'."""
    engine_mask_low: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Lower edge of `engine_mask`. Geometric means are far closer to 1: about 0.99."""
    engine_mask_high: Annotated[float, Field(gt=1, le=1e6)] = 5.0
    """Upper edge of `engine_mask`. Geometric means are far closer to 1: about 1.01."""
    divergence_alpha: DivergenceAlpha = 0.5
    """Generalised Jensen-Shannon: 0 forward KL(teacher||student), 0.5 JSD, 1 reverse KL(student||teacher). Between 0
    and 1 at least 0.001 from either, because it vanishes there."""
    top_k: Positive | None = 100
    """Student's top tokens in the divergence, plus one tail bucket; null for the full vocabulary."""
    wrong_hint: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Strength of the contrast with a wrong hint: the teacher's distribution moves away from what the same teacher says
    if it reads a failed sibling as a correct solution; 0 for none. Costs a second teacher pass."""
    beta: Annotated[float, Field(ge=0)] = 1.0
    """Strength of the entropy-aware weights; 0 turns them off."""
    position_beta: Annotated[float, Field(ge=-10, le=10)] = 0.0
    """Weights by position: the last token of a response counts e to this times its first. Positive trusts the teacher
    late in a response (arXiv 2605.21606), negative early (arXiv 2606.22600); 0 for neither."""
    question_weight: Literal["none", "difficulty"] = "none"
    """Weights of distilled questions: all alike, or by sqrt(p (1 - p)), p being the share of correct rollouts (arXiv
    2605.27765)."""
    weight_floor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Least weight of a distilled token; the weights above it shrink, so that their mean stays 1."""
    teacher_update: Literal["ema", "frozen", "every", "gated"] = "ema"
    """Self-teacher: a moving average of the policy; the policy as the run began; or a copy that is renewed every
    `teacher_every_steps` steps, or only once the policy has become better and its responses not much longer (arXiv
    2606.03532: an average is slowly contaminated, a copy by the clock may take over a policy that drifts)."""
    teacher_every_steps: Annotated[int, Field(ge=1, le=10**6)] = 50
    """Training steps between copies, for `teacher_update: every`; for `gated` the least, and the number of steps whose
    rewards and lengths are compared."""
    teacher_ema_rate: Annotated[float, Field(ge=1e-6, le=1)] = 0.05
    """Self-teacher: teacher <- (1 - rate) * teacher + rate * student after every optimizer update."""
    teacher_path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Another model as the teacher, such as a larger one (on-policy distillation): a folder or a hub name. It has the
    policy's vocabulary and stays as it is (`teacher_update: frozen`). null: the self-teacher."""
    teacher_chat_template_kwargs: FullArguments | None = None
    """Arguments of the chat template for the self-teacher's prompt; null: `model.chat_template_kwargs`."""
    demonstration: Literal["first", "random", "shortest", "closest", "likeliest", "reference", "none"] = "first"
    """Which correct sibling the teacher's prompt shows; `closest`: with the fewest edits; `likeliest`: whose tokens the
    policy gave the highest mean log-probability as it sampled them. `reference`: the first, and if none is correct the
    row's `solution`. `none`: the teacher of `teacher_path` reads the question alone, and can teach every rollout."""
    demonstrations: Annotated[int, Field(ge=1, le=64)] = 1
    """Correct siblings that the teacher's prompt shows, the best by `demonstration` first: this many with different
    texts, or all there are."""
    teacher_solution_heading: Text = "Correct solution:"
    """What precedes the demonstration in the teacher's prompt; empty for nothing. Small models answer in the style of
    these texts: see `teacher_wording_ratio` and the probe's teacher gap."""
    teacher_feedback_heading: Text = "The following is feedback from your unsuccessful earlier attempt:"
    """What precedes the feedback; empty for nothing."""
    teacher_closing: Text = "Correctly solve the original question."
    """What ends the teacher's prompt; empty for nothing. `{question}` stands for the question, to repeat it."""
    demonstration_thinking: Literal["cut", "keep"] = "cut"
    """Whether the teacher reads the reasoning of a demonstration, too. The paper cuts it."""
    feedback: Literal["none", "alone", "with_solution", "fallback"] = "none"
    """Verifier feedback to the teacher: never, instead of the solution, with it, or if no sibling is correct."""
    routing: Literal["sample", "group", "failed_groups"] = "sample"
    """What SDPO gets of the rollouts with teacher information: failed ones (the paper); all of a group that failed more
    often than not, and none of another; or those of groups without a correct rollout only."""
    keep_contrast: Fraction = 0.0
    """Share of its negative advantage that a rollout routed to SDPO keeps: a policy gradient besides the divergence."""
    distil: Literal["all", "incorrect", "correct"] = "all"
    """Which rollouts with teacher information are distilled; the others contribute nothing. The SRPO paper's figure 1b
    compares them."""
    mix_lambda: Fraction = 0.9
    """Share of the GRPO advantage in the mixed one."""
    rlsd_lambda: Fraction = 0.5
    """Share of a token's advantage that the self-teacher scales; 0 is GRPO."""
    rlsd_clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Bound on the self-teacher's scale: within 1 - rlsd_clip and 1 + rlsd_clip."""


ALWAYS: Final = frozenset(
    {
        "name",
        "success_threshold",
        "aggregation",
        "mask_truncated",
        "importance_weight_cap",
        "engine_mask",
        "engine_mask_low",
        "engine_mask_high",
    }
)
"""Fields that every objective takes."""
POLICY: Final = frozenset(
    {
        "advantage",
        "clip_low",
        "clip_high",
        "ratio",
        "surrogate",
        "dual_clip",
        "reference_kl_coefficient",
        "skip_uninformative_groups",
    }
)
"""Fields of a policy-gradient branch."""
TEACHER: Final = frozenset(
    {
        "teacher_update",
        "teacher_every_steps",
        "teacher_ema_rate",
        "teacher_path",
        "teacher_chat_template_kwargs",
        "demonstration",
        "demonstrations",
        "teacher_solution_heading",
        "teacher_feedback_heading",
        "teacher_closing",
        "demonstration_thinking",
        "feedback",
    }
)
"""Fields of a teacher and what it reads."""
WEIGHTS: Final = frozenset({"position_beta", "question_weight", "weight_floor"})
"""Fields of weights of distilled tokens, but for `beta`."""
DIVERGENCE: Final = frozenset({"divergence_alpha", "top_k", "wrong_hint"})
"""Fields of a divergence from the teacher's distribution."""
