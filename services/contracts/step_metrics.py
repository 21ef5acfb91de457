"""The numbers that a training step reports: one record each, which everything that computes or shows them reads.

To add one, add its record here and compute it in `services.learner.program.step_report` or
`services.learner.update.statistics`; `make docs` then rewrites docs/metrics.md and the Grafana dashboards. A record's
place in `CATALOGUE` is its place among columns, lines and panels. docs/metrics.md lists all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Unit = Literal["", "share", "nats", "tokens", "versions", "seconds", "tokens/s", "GiB"]
"""`share` is 0 to 1; an empty unit is a plain number."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A Grafana panel: a dashboard of deploy/grafana/dashboards.yaml, how to read the panel, and what to do."""

    dashboard: str
    text: str


@dataclass(frozen=True, slots=True)
class Family:
    """The Prometheus gauge `turnout_<name>`, with the labels `run_id` and `labels`."""

    name: str
    title: str
    help: str
    unit: Unit = ""
    labels: tuple[str, ...] = ()
    panel: Panel | None = None
    legend: str = ""
    """Of the panel's lines; empty: the values of all labels."""


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of the page, and of a run's report."""

    key: str
    title: str
    caption: str
    unit: Unit = ""
    """Of the left axis."""
    from_zero: bool = True
    empty: str = "No data yet"
    with_evaluations: bool = False
    """Draws evaluations as points."""
    rest_of: str = ""
    """The metric of which a further band shows what the chart's bands leave over."""


@dataclass(frozen=True, slots=True)
class Line:
    """A metric in a chart."""

    chart: str
    """Key of the chart."""
    label: str
    color: int = 0
    dash: Literal["solid", "dash", "dot"] = "solid"
    kind: Literal["line", "area", "bar"] = "line"
    """Areas and bars are stacked."""
    right: bool = False
    """Uses an axis of its own, on the right."""
    only_if: str = ""
    """Left out of steps in which this metric is 0: the metric has no value there, and its 0 would mislead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMetric:
    """One number of `StepFinished.metrics`."""

    name: str
    title: str
    help: str
    unit: Unit = ""
    form: str = ".3f"
    """Format of its value in a terminal."""
    gauge: bool = False
    """Is a Prometheus gauge of its own; `panel` is that gauge's."""
    panel: Panel | None = None
    part_of: Family | None = None
    """The gauge that it shares with other metrics; `labels` are its values of the gauge's labels."""
    labels: tuple[str, ...] = ()
    line: Line | None = None
    watch: str = ""
    """Label in the lines of `turnout runs watch`."""
    live: tuple[str, str] | None = None
    """Row and label in the live view of `turnout runs watch`."""
    column: bool = False
    """Is a column of `turnout runs steps`, and in `turnout runs events`."""
    compared: tuple[str, int] | None = None
    """Column of `turnout runs compare`, and the number of last steps that it is the mean of (0: all)."""
    reported: bool = False
    """Its mean is in a run's report."""
    optional: bool = False
    """Is in a step only if the run's configuration asks for it."""

    @property
    def family(self) -> Family | None:
        """The gauge that shows it, if any."""
        if self.gauge:
            return Family(self.name, self.title, self.help, self.unit, panel=self.panel)
        return self.part_of

    def text(self, value: float | None) -> str:
        """A value with its unit, for a terminal."""
        if value is None:
            return "-"
        return f"{value:{self.form}} {'' if self.unit == 'share' else self.unit}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepHistogram:
    """One histogram of `StepFinished.histograms`; Prometheus shows its sum over all steps."""

    name: str
    title: str
    help: str
    panel: Panel


CHARTS: Final = (
    Chart(
        "reward",
        "Reward and accuracy",
        "Lines: the step's own rollouts. Points: evaluations, avg@k and pass@k.",
        from_zero=False,
        with_evaluations=True,
    ),
    Chart(
        "parts",
        "Parts of the reward",
        "Mean of each part before its weight. A part that rises while accuracy does not is being exploited.",
        empty="The row's kind is the whole reward (rewards)",
    ),
    Chart(
        "routing",
        "Routing",
        "Correct rollouts go to GRPO, failed ones with a correct sibling to SDPO. SDPO should shrink as the policy "
        "learns.",
        "share",
    ),
    Chart(
        "teaching",
        "Groups that teach",
        "Groups all right, or all wrong with nothing for the teacher to read, teach nothing. With training.refill, a "
        "step replaces them.",
        "share",
    ),
    Chart(
        "curriculum",
        "Curriculum",
        "Questions by their last result, without those in flight. A question may move either way.",
        empty="The run has no curriculum (data.curriculum)",
    ),
    Chart(
        "entropy",
        "Entropy",
        "A policy that falls to 0 early has stopped exploring. The teacher should be more certain than the policy.",
        "nats",
    ),
    Chart(
        "divergence",
        "Divergence",
        "From the policy to its teacher, over tokens routed to SDPO: what there is to correct.",
        "nats",
        empty="No rollout was routed to SDPO yet",
    ),
    Chart(
        "staleness",
        "Staleness",
        "Age of the trained tokens. The largest stays within the run's max_staleness.",
        "versions",
    ),
    Chart(
        "mismatch",
        "Engine mismatch",
        "Distance between the log-probs of sampling and training. A rise means that the two no longer agree.",
        "nats",
    ),
    Chart("length", "Response length", "Responses that reach the limit are cut, and count as failed.", "tokens"),
    Chart(
        "time",
        "Step time",
        "If wait dominates, sampling is the bottleneck: add rollout servers or allow more staleness.",
        "seconds",
        rest_of="seconds",
    ),
    Chart(
        "memory",
        "Peak memory of the learner",
        "The most that a rank has held since the learner started. Compare it with what its device has.",
        "GiB",
    ),
    Chart("gradient", "Gradient and clipping", "Norm before clipping, and the shares of tokens clipped or truncated."),
)

ACCURACY: Final = Family(
    "accuracy",
    "Accuracy",
    "avg@k of the newest evaluation (samples=k); split train: the newest step's rollouts, samples=1.",
    "share",
    ("split", "samples"),
    Panel(
        "training",
        "Evaluations (validation) and each step's rollouts (train). A gap that widens is overfitting.",
    ),
    legend="{{run_id}} {{split}} avg@{{samples}}",
)
"""Shows evaluations too."""
_PARTS: Final = Family(
    "reward_part",
    "Reward by part",
    "Mean reward of the newest step's rollouts by kind of part, before weights, in runs with rewards.",
    "",
    ("part",),
    Panel(
        "training",
        "Mean of each part of a combined reward. If a judge's rises and the row's own does not, the policy is learning "
        "to please the judge: read samples.",
    ),
)
_TEACHING: Final = Family(
    "teaching_ratio",
    "Groups that teach",
    "Share of groups that can move the policy: of all sampled for the newest step, and of those trained.",
    "share",
    ("groups",),
    Panel(
        "routing",
        "Share of groups that can move the policy; with training.refill, trained is above sampled. Trained below 1: "
        "the refill's bound was reached, or it is off. Sampled near 0: use questions of a different difficulty.",
    ),
)
_LOSS: Final = Family(
    "loss",
    "Loss",
    "The objective's value and its parts, by branch.",
    "",
    ("branch",),
    Panel("training", "The objective and its two branches. Its size says little; NaN or a jump: see Gradient norm."),
)
_ROUTING: Final = Family(
    "routing_ratio",
    "Routing shares",
    "Share of rollouts routed to a branch.",
    "share",
    ("branch",),
    Panel(
        "routing",
        "SDPO's share starts high and falls as failures become fewer. Stuck high: demonstrations do not help.",
    ),
)
_SECONDS: Final = Family(
    "step_seconds",
    "Step time by phase",
    "Wall-clock time of the newest step, by phase.",
    "seconds",
    ("phase",),
    Panel("training", "Mostly waiting: add rollout servers. Mostly training: add ranks."),
)

CATALOGUE: Final[tuple[StepMetric | StepHistogram, ...]] = (
    StepMetric(
        name="reward_mean",
        title="Reward",
        help="Mean reward of the newest step's rollouts.",
        gauge=True,
        panel=Panel(
            "training",
            "Mean reward of each step. Should rise. If it is flat, groups may be uniform: read samples, or raise the "
            "learning rate.",
        ),
        line=Line("reward", "reward", 0),
        watch="reward",
        live=("reward", ""),
        column=True,
        compared=("reward_mean", 10),
    ),
    StepMetric(
        name="reward_row",
        title="Reward by the row's kind",
        help="Mean reward by the rows' own kind (part row).",
        part_of=_PARTS,
        labels=("row",),
        line=Line("parts", "row", 0),
        live=("reward", "row"),
        optional=True,
    ),
    StepMetric(
        name="reward_judge",
        title="Reward by judges",
        help="Mean score of the parts of kind judge.",
        part_of=_PARTS,
        labels=("judge",),
        line=Line("parts", "judge", 1),
        live=("reward", "judge"),
        optional=True,
    ),
    StepMetric(
        name="reward_length",
        title="Reward for length",
        help="Mean reward of the parts of kind length.",
        part_of=_PARTS,
        labels=("length",),
        line=Line("parts", "length", 2),
        live=("reward", "length"),
        optional=True,
    ),
    StepMetric(
        name="reward_format",
        title="Reward for format",
        help="Mean reward of the parts of kind format.",
        part_of=_PARTS,
        labels=("format",),
        line=Line("parts", "format", 3),
        live=("reward", "format"),
        optional=True,
    ),
    StepMetric(
        name="reward_other",
        title="Reward by other parts",
        help="Mean reward of the parts of other kinds.",
        part_of=_PARTS,
        labels=("other",),
        line=Line("parts", "other", 4),
        live=("reward", "other"),
        optional=True,
    ),
    StepMetric(
        name="accuracy",
        title="Correct rollouts",
        help="Share of the step's rollouts that are correct.",
        unit="share",
        part_of=ACCURACY,
        labels=("train", "1"),
        line=Line("reward", "correct", 1, "dash"),
        watch="accuracy",
        live=("accuracy", ""),
        column=True,
    ),
    StepMetric(
        name="mixed_group_ratio",
        title="Mixed groups",
        help="Share of groups with both correct and failed rollouts.",
        unit="share",
        gauge=True,
        panel=Panel(
            "routing",
            "Share of groups with correct and failed rollouts: only they have advantages and demonstrations. If it is "
            "small, use questions of a different difficulty.",
        ),
        line=Line("routing", "mixed groups", 2, "dash"),
        live=("accuracy", "mixed groups"),
    ),
    StepMetric(
        name="failed_group_ratio",
        title="Failed groups",
        help="Share of groups with no correct rollout.",
        unit="share",
        gauge=True,
        panel=Panel(
            "routing",
            "Share of groups with no correct rollout. Only feedback or a reference solution can teach there.",
        ),
        line=Line("routing", "failed groups", 3, "dot"),
    ),
    StepMetric(
        name="sampled_teaching_ratio",
        title="Sampled groups that teach",
        help="Share of the groups sampled for the step that can move the policy: those trained and those replaced.",
        unit="share",
        form=".2f",
        part_of=_TEACHING,
        labels=("sampled",),
        line=Line("teaching", "of the groups sampled", 1, "dash"),
        reported=True,
    ),
    StepMetric(
        name="trained_teaching_ratio",
        title="Trained groups that teach",
        help="Share of the step's groups that can move the policy: an advantage or a teacher pass.",
        unit="share",
        form=".2f",
        part_of=_TEACHING,
        labels=("trained",),
        line=Line("teaching", "of the groups trained", 0),
        reported=True,
    ),
    StepMetric(
        name="num_replaced_groups",
        title="Replaced groups",
        help="Groups that would have taught nothing, replaced by others (training.refill).",
        line=Line("teaching", "replaced", 4, "dot", right=True),
    ),
    StepMetric(
        name="num_unseen_questions",
        title="Unseen questions",
        help="Questions without a result, or returned after a rest, waiting for their turn (data.curriculum).",
        line=Line("curriculum", "unseen", 0, kind="area", only_if="num_unseen_questions"),
    ),
    StepMetric(
        name="num_mixed_questions",
        title="Mixed questions",
        help="Questions that some rollouts of the last group solved, waiting for their turn (data.curriculum).",
        line=Line("curriculum", "mixed", 1, kind="area", only_if="num_mixed_questions"),
    ),
    StepMetric(
        name="num_failed_questions",
        title="Failed questions",
        help="Questions that no rollout of the last group solved, waiting for their turn (data.curriculum).",
        line=Line("curriculum", "failed", 2, kind="area", only_if="num_failed_questions"),
    ),
    StepMetric(
        name="num_solved_questions",
        title="Solved questions",
        help="Questions that all rollouts of the last group solved, waiting for their turn (data.curriculum).",
        line=Line("curriculum", "solved", 3, kind="area", only_if="num_solved_questions"),
    ),
    StepMetric(
        name="loss", title="Loss", help="The objective's value over the whole step.", part_of=_LOSS, labels=("all",)
    ),
    StepMetric(
        name="loss_grpo",
        title="Loss, GRPO branch",
        help="The GRPO branch's part of the loss.",
        part_of=_LOSS,
        labels=("grpo",),
    ),
    StepMetric(
        name="loss_sdpo",
        title="Loss, SDPO branch",
        help="The SDPO branch's part of the loss.",
        part_of=_LOSS,
        labels=("sdpo",),
    ),
    StepMetric(
        name="routing_ratio_grpo",
        title="Routed to GRPO",
        help="Share of rollouts routed to the GRPO branch.",
        unit="share",
        form=".2f",
        part_of=_ROUTING,
        labels=("grpo",),
        line=Line("routing", "GRPO", 0, kind="area"),
        watch="grpo",
        live=("routing", "GRPO"),
    ),
    StepMetric(
        name="routing_ratio_sdpo",
        title="Routed to SDPO",
        help="Share of rollouts routed to the SDPO branch.",
        unit="share",
        form=".2f",
        part_of=_ROUTING,
        labels=("sdpo",),
        line=Line("routing", "SDPO", 1, kind="area"),
        watch="sdpo",
        live=("routing", "SDPO"),
        column=True,
    ),
    StepMetric(
        name="teacher_information_ratio",
        title="Teacher information",
        help="Share of rollouts with teacher information.",
        unit="share",
        form=".2f",
        gauge=True,
        panel=Panel(
            "routing",
            "Share of rollouts with a correct sibling or feedback. Near 0: the task is too hard to distil.",
        ),
        line=Line("routing", "with teacher information", 4, "dot"),
        live=("routing", "with teacher information"),
    ),
    StepMetric(
        name="policy_entropy_nats",
        title="Policy entropy",
        help="Mean entropy of the policy over response tokens.",
        unit="nats",
        gauge=True,
        panel=Panel(
            "training",
            "Nats per token. Near 0 is collapse: lower the learning rate, or fork from an earlier checkpoint.",
        ),
        line=Line("entropy", "policy", 0),
        watch="policy entropy",
        live=("entropy", "policy"),
        column=True,
    ),
    StepMetric(
        name="teacher_entropy_nats",
        title="Teacher entropy",
        help="Mean entropy of the self-teacher over tokens routed to SDPO.",
        unit="nats",
        gauge=True,
        panel=Panel(
            "routing",
            "Nats over distilled tokens. Rising: the teacher is less certain, and the weights matter more. Above the "
            "policy: the demonstrations do not help it; read samples.",
        ),
        line=Line("entropy", "teacher", 1, "dash", only_if="routing_ratio_sdpo"),
        watch="teacher entropy",
        live=("entropy", "teacher"),
        column=True,
    ),
    StepMetric(
        name="teacher_age_steps",
        title="Teacher age",
        help="Training steps since the self-teacher was a copy of the policy; 0 for a moving average or another model.",
        line=Line("divergence", "teacher age, steps", 2, "dot", right=True, only_if="teacher_age_steps"),
    ),
    StepMetric(
        name="divergence_nats",
        title="Divergence",
        help="Mean unweighted divergence over tokens routed to SDPO.",
        unit="nats",
        line=Line("divergence", "mean", 1, only_if="routing_ratio_sdpo"),
    ),
    StepHistogram(
        name="distillation_weight",
        title="Distillation weight",
        help="Weights of tokens routed to SDPO; their mean is 1.",
        panel=Panel(
            "routing",
            "Mean is 1 by construction; a wide spread means that few tokens carry the correction. Too few: lower "
            "objective.beta.",
        ),
    ),
    StepHistogram(
        name="staleness_versions",
        title="Staleness",
        help="Age of trained tokens in weight versions.",
        panel=Panel(
            "asynchrony",
            "Age of trained tokens in versions; max_staleness bounds it. Always at the bound: rollout runs ahead of "
            "the learner.",
        ),
    ),
    StepMetric(
        name="staleness_mean",
        title="Staleness",
        help="Mean age of the step's tokens, in weight versions.",
        unit="versions",
        form=".2f",
        line=Line("staleness", "mean", 0),
        watch="staleness",
        live=("staleness", "mean"),
        column=True,
        reported=True,
    ),
    StepMetric(
        name="staleness_max",
        title="Largest staleness",
        help="Largest age of the step's tokens, in weight versions.",
        unit="versions",
        form=".0f",
        line=Line("staleness", "largest", 1, "dash"),
        live=("staleness", "max"),
    ),
    StepMetric(
        name="logprob_mismatch_nats",
        title="Log-prob mismatch",
        help="Mean |learner minus behaviour log-prob| over response tokens.",
        unit="nats",
        form=".2g",
        gauge=True,
        panel=Panel(
            "asynchrony",
            "Mean |learner - behaviour|. Off-policy age and numerics; above 0.1 check dtype and temperature.",
        ),
        line=Line("mismatch", "mean |difference|", 0),
        live=("mismatch", "log-probs"),
        reported=True,
    ),
    StepMetric(
        name="logprob_mismatch_kl_nats",
        title="Log-prob mismatch, KL",
        help="k3 estimate of KL(behaviour || learner).",
        unit="nats",
        form=".2g",
        line=Line("mismatch", "KL", 1, "dash"),
    ),
    StepMetric(
        name="importance_weight_truncated_ratio",
        title="Truncated importance weights",
        help="Share of tokens whose engine correction was truncated.",
        unit="share",
        gauge=True,
        panel=Panel("asynchrony", "Share of tokens at the cap. Rising: lower max_staleness."),
        line=Line("gradient", "truncated", 4, "dot", right=True),
    ),
    StepMetric(
        name="engine_masked_ratio",
        title="Masked tokens",
        help="Share of tokens that objective.engine_mask leaves out of the gradient; 0 without it.",
        unit="share",
        gauge=True,
        panel=Panel(
            "asynchrony",
            "Share of tokens that the engine mask leaves out. Rising: engine and learner drift apart; lower "
            "max_staleness.",
        ),
        line=Line("gradient", "masked", 3, "dot", right=True),
    ),
    StepMetric(name="importance_weight_mean", title="Mean importance weight", help="Mean engine correction weight."),
    StepMetric(
        name="clip_ratio",
        title="Clipped ratios",
        help="Share of GRPO tokens whose importance ratio was clipped.",
        unit="share",
        gauge=True,
        panel=Panel(
            "asynchrony",
            "Share of GRPO tokens outside the clip range. Above a few percent: lower the learning rate.",
        ),
        line=Line("gradient", "clipped", 1, "dash", right=True),
    ),
    StepMetric(
        name="dual_clip_ratio",
        title="Ratios at the dual clip",
        help="Share of GRPO tokens with a negative advantage and a ratio above objective.dual_clip; 0 without it.",
        unit="share",
        gauge=True,
        panel=Panel(
            "asynchrony",
            "Share of GRPO tokens whose loss the dual clip bounds. Not near 0: the policy runs from its samples; lower "
            "the learning rate or max_staleness.",
        ),
        line=Line("gradient", "at the dual clip", 2, "dash", right=True),
    ),
    StepMetric(
        name="reference_kl_nats",
        title="KL to the initial model",
        help="k3 estimate of KL(policy || initial model) over GRPO tokens; 0 if it is not measured.",
        unit="nats",
    ),
    StepMetric(
        name="response_tokens_mean",
        title="Response length",
        help="Mean response length.",
        unit="tokens",
        form=".1f",
        gauge=True,
        panel=Panel(
            "training",
            "Tokens. GRPO tends to lengthen, SDPO to shorten. Near max_response_tokens: responses are cut and count as "
            "failed.",
        ),
        line=Line("length", "mean", 0),
        live=("response", "mean"),
        column=True,
        compared=("response_tokens_mean", 10),
    ),
    StepMetric(
        name="response_tokens_max",
        title="Longest response",
        help="Longest response.",
        unit="tokens",
        form=".0f",
        line=Line("length", "longest", 1, "dash"),
    ),
    StepMetric(
        name="thinking_tokens_mean",
        title="Mean thinking",
        help="Mean length of the thinking at the beginning of a response; 0 without model.thinking.",
        unit="tokens",
        form=".0f",
        gauge=True,
        panel=Panel(
            "training",
            "Tokens of a response before its answer (model.thinking). Near max_response_tokens: responses are cut "
            "before they answer.",
        ),
        line=Line("length", "mean thinking", 2, only_if="thinking_tokens_mean"),
    ),
    StepMetric(
        name="unfinished_thinking_ratio",
        title="Unfinished thinking",
        help="Share of responses whose thinking never ends, which have no answer (model.thinking).",
        unit="share",
        line=Line("length", "thinking never ends", 3, "dash", right=True, only_if="thinking_tokens_mean"),
    ),
    StepMetric(
        name="truncated_ratio",
        title="Cut responses",
        help="Share of responses cut at the limit.",
        unit="share",
        line=Line("length", "cut at the limit", 4, "dot", right=True),
    ),
    StepMetric(
        name="teacher_wording_ratio",
        title="Teacher's wording",
        help="Share of responses with a word of the teacher's headings (such as correct or solution) that their "
        "question does not have.",
        unit="share",
        gauge=True,
        panel=Panel(
            "routing",
            "Responses with words that only the teacher's prompt has. If it rises, the policy imitates how its teacher "
            "was asked: look at the samples.",
        ),
        line=Line("length", "teacher's wording", 5, "dash", right=True),
    ),
    StepMetric(
        name="gradient_norm",
        title="Gradient norm",
        help="Global gradient norm before clipping.",
        gauge=True,
        panel=Panel(
            "training",
            "Before clipping. Spikes: look at mismatch and truncated weights; if they stay, lower the learning rate.",
        ),
        line=Line("gradient", "gradient norm", 0),
    ),
    StepMetric(name="learning_rate", title="Learning rate", help="Learning rate of the step's last optimizer update."),
    StepMetric(name="num_groups", title="Groups", help="Groups trained in the step."),
    StepMetric(name="num_rollouts", title="Rollouts", help="Rollouts trained in the step."),
    StepMetric(
        name="num_excluded_rollouts",
        title="Excluded rollouts",
        help="Rollouts excluded because of an infrastructure fault.",
    ),
    StepMetric(
        name="num_masked_rollouts",
        title="Masked rollouts",
        help="Rollouts left out because they were cut at the limit (objective.mask_truncated).",
    ),
    StepMetric(
        name="demonstrations_mean",
        title="Demonstrations",
        help="Mean number of siblings' solutions in the prompts that the teacher read (objective.demonstrations).",
    ),
    StepMetric(
        name="wrong_hint_ratio",
        title="Wrong hints",
        help="Share of the rollouts with a teacher that are contrasted with a wrong hint (objective.wrong_hint).",
        unit="share",
    ),
    StepMetric(
        name="num_uninformative_groups",
        title="Uninformative groups",
        help="Groups left out because they have no signal (objective.skip_uninformative_groups).",
    ),
    StepMetric(name="num_tokens", title="Trained tokens", help="Response tokens trained in the step.", unit="tokens"),
    StepMetric(
        name="num_computed_tokens",
        title="Computed tokens",
        help="Tokens that the learner ran through the models: shared prefixes once, padding included.",
        unit="tokens",
    ),
    StepMetric(
        name="num_teacher_rollouts",
        title="Rollouts with a teacher pass",
        help="Rollouts that needed a teacher pass.",
    ),
    StepMetric(
        name="seconds",
        title="Step time",
        help="Wall-clock time of the step, waiting included.",
        unit="seconds",
        form=".2f",
        part_of=_SECONDS,
        labels=("all",),
        live=("step time", ""),
        column=True,
        compared=("seconds_per_step", 0),
        reported=True,
    ),
    StepMetric(
        name="seconds_wait",
        title="Waiting",
        help="Time spent waiting for groups.",
        unit="seconds",
        form=".2f",
        part_of=_SECONDS,
        labels=("wait",),
        line=Line("time", "wait", 0, kind="bar"),
        live=("step time", "waiting"),
    ),
    StepMetric(
        name="seconds_teacher",
        title="Teacher passes",
        help="Time spent in teacher passes.",
        unit="seconds",
        part_of=_SECONDS,
        labels=("teacher",),
        line=Line("time", "teacher", 1, kind="bar"),
    ),
    StepMetric(
        name="seconds_train",
        title="Training passes",
        help="Time spent in student passes and the optimizer.",
        unit="seconds",
        part_of=_SECONDS,
        labels=("train",),
        line=Line("time", "train", 2, kind="bar"),
    ),
    StepMetric(
        name="seconds_publish",
        title="Publishing",
        help="Time spent publishing weights.",
        unit="seconds",
        part_of=_SECONDS,
        labels=("publish",),
        line=Line("time", "publish", 3, kind="bar"),
    ),
    StepMetric(
        name="seconds_checkpoint",
        title="Saving",
        help="Time that training paused for a checkpoint: copying it, or waiting until an older one was written.",
        unit="seconds",
        part_of=_SECONDS,
        labels=("checkpoint",),
        line=Line("time", "save", 4, kind="bar"),
    ),
    StepMetric(
        name="seconds_turn",
        title="Handing over the GPU",
        help="Time that a shared GPU was in neither's use: the engine falling asleep, and the learner's states moving "
        "to the GPU and back. The engine's waking counts as waiting.",
        unit="seconds",
        optional=True,
        part_of=_SECONDS,
        labels=("turn",),
        line=Line("time", "turn", 5, kind="bar"),
    ),
    StepMetric(
        name="tokens_per_second",
        title="Speed",
        help="Response tokens trained per second of wall-clock time.",
        unit="tokens/s",
        form=".0f",
        watch="tokens/s",
        live=("speed", ""),
        compared=("tokens_per_second", 0),
        reported=True,
    ),
    StepMetric(
        name="learner_peak_memory_gib",
        title="Peak memory of the learner",
        help="The most memory that a rank of the learner has held since it started: what torch has allocated on a GPU, "
        "resident memory on CPU.",
        unit="GiB",
        form=".2f",
        gauge=True,
        panel=Panel(
            "training",
            "The most that a rank of the learner has held. Near what the device has: lower "
            "training.tokens_per_microbatch, or set training.gradient_checkpointing.",
        ),
        line=Line("memory", "largest rank"),
        live=("memory", "learner"),
        compared=("learner_peak_memory_gib", 1),
        reported=True,
    ),
)

STEP_METRICS: Final = {item.name: item for item in CATALOGUE if isinstance(item, StepMetric)}
STEP_HISTOGRAMS: Final = {item.name: item for item in CATALOGUE if isinstance(item, StepHistogram)}


def has_value(name: str, metrics: Mapping[str, float]) -> bool:
    """Whether a step has a value of a metric. The 0 of one that counts over nothing, such as the teacher's entropy in a
    step without a teacher, is none (`Line.only_if`)."""
    metric = STEP_METRICS.get(name)
    only_if = metric.line.only_if if metric is not None and metric.line is not None else ""
    return name in metrics and (not only_if or bool(metrics[name] or metrics.get(only_if)))


def families() -> dict[Family, list[StepMetric]]:
    """Every gauge with the metrics that it shows, in the catalogue's order."""
    found: dict[Family, list[StepMetric]] = {}
    for metric in STEP_METRICS.values():
        if metric.family is not None:
            found.setdefault(metric.family, []).append(metric)
    return found


def lines(chart: Chart) -> list[tuple[StepMetric, Line]]:
    """What a chart shows, in the catalogue's order."""
    return [(metric, metric.line) for metric in STEP_METRICS.values() if metric.line and metric.line.chart == chart.key]
