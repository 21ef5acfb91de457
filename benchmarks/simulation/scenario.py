"""What one simulated ring is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

SECONDS_AN_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """Sizes, speeds and faults. Times are virtual seconds."""

    servers: int = 64
    verifiers: int = 8
    prompts_per_step: int = 512
    max_staleness: int = 1
    steps: int = 10
    checkpoint_every: int = 5
    group_size: int = 8
    max_num_seqs: int = 256
    """Sequences that one server decodes at once."""
    median_tokens: float = 800.0
    """Response lengths are log-normal, cut at `max_tokens`; sigma 1 makes the mean 1.5 times the median."""
    sigma: float = 1.0
    max_tokens: int = 8192
    decode_base_seconds: float = 0.012
    """A decoding step takes base + per_sequence * running sequences."""
    decode_per_sequence_seconds: float = 0.00006
    learner_share: float = 1.0
    """The learner's tokens a second, relative to what all servers together can decode."""
    publish_seconds: float = 2.0
    push_seconds: float = 1.0
    """Pause of a server for one weight update."""
    verify_seconds: float = 0.2
    """Mean time to judge one rollout, exponentially distributed."""
    failures_an_hour: float = 0.0
    """Crashes of one server in an hour, at random times."""
    restart_seconds: float = 60.0
    gone_share: float = 0.5
    """Share of the crashes after which the server stays away for ten times as long: others take its work over."""
    learner_crashes: tuple[int, ...] = ()
    """Steps at whose end, before anything of them is durable, the learner dies."""
    payload_scale: float = 1 / 16
    """Messages carry this share of the tokens that were timed, so that a run fits this machine's memory."""
    seed: int = 0

    @property
    def mean_tokens(self) -> float:
        """Expected tokens of a response, cut included."""
        cut, mu, sigma = math.log(self.max_tokens), math.log(self.median_tokens), self.sigma

        def below(x: float) -> float:
            return 0.5 * (1 + math.erf(x / math.sqrt(2)))

        whole = math.exp(mu + sigma**2 / 2)
        return whole * below((cut - mu) / sigma - sigma) + self.max_tokens * (1 - below((cut - mu) / sigma))

    @property
    def rollout_tokens_a_second(self) -> float:
        """All servers with every slot taken: the rollout side alone."""
        step = self.decode_base_seconds + self.decode_per_sequence_seconds * self.max_num_seqs
        return self.servers * self.max_num_seqs / step

    @property
    def learner_tokens_a_second(self) -> float:
        """The learner alone."""
        return self.rollout_tokens_a_second * self.learner_share

    @property
    def groups_in_flight(self) -> int:
        """Groups that the feeder's credit allows at once."""
        return self.prompts_per_step * (self.max_staleness + 1)
