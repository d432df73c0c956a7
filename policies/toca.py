"""ToCa and DuCa: sub-module outputs reused in fixed steps, with some tokens recomputed in the steps between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fsframework.core import (
    POLICIES,
    RECOMPUTE,
    REUSE,
    Call,
    Decision,
    Entry,
    Part,
    Partial,
    ReusePolicy,
    Run,
    Site,
    State,
    tokens,
)
from fsframework.core.schedule import check_every, warmup_steps
from fsframework.core.schedule import plan as decisions_of

FULL, SOME, NONE = "full", "some", "none"
"""What a part does in a step: all tokens are recomputed, some are, or none."""

_OPENSORA = {
    "attention_interval": 3, "cross_interval": 6, "mlp_interval": 3, "ratio": 0.1, "cross_factor": 0.0,
    "mlp_factor": 1.495,
}  # fmt: skip
_PIXART = {
    "attention_interval": 3, "cross_interval": 3, "mlp_interval": 3, "ratio": 0.3, "cross_factor": 0.6, "mlp_factor": 1.6,
}  # fmt: skip


@dataclass
class TokenState:
    """One video and branch. What tokens were chosen lies on the device: the ages, kept under each site's name."""

    plan: dict[Part, list[str]]
    """Per part and step: FULL, SOME or NONE."""
    fraction: dict[Part, float]
    """Of the tokens, recomputed in a step of SOME; 0 reuses the part as a whole there."""
    full: dict[Part, list[Decision]]
    """Per part and step, for those of FULL: whether what is computed is kept."""
    interval: dict[Part, int]
    score: str
    map_steps: frozenset[int]
    """Steps whose attention maps a later choice needs."""
    cross: dict[int, Site]
    """The cross-attention of each block that has one."""
    young: set[Site] = field(default_factory=set)
    """Sites not visited on some tokens since they last ran in full: all ages are 0."""
    checked: set[Site] = field(default_factory=set)
    generator: torch.Generator | None = None


@POLICIES.register("toca")
@dataclass(frozen=True)
class ToCa(ReusePolicy[TokenState]):
    """ToCa (arXiv:2410.05317): between full steps the outputs of sub-modules are reused, except for the tokens that matter.

    With an interval N for each part, step s is full for it iff s < `warmup` or s % N = 0. In the other steps
    self-attention is reused as a whole, and of cross-attention and MLP the k = floor(ratio * factor * num_tokens) video
    tokens with the highest

        score = importance / |importance|_2 + age_weight * age / N

    are recomputed and put into the cached value. The age of a token at a site counts the partial visits since it was last
    computed there. The importance is, by `score`:

    - `attention` (the paper's for text-to-video): 1 + the entropy of the token's cross-attention weights (mean over heads)
      when its block's cross-attention last ran in full. The weights are worked out once more from queries and keys, as fused
      attention gives none; the trace does not count that. For families whose adapter has the probe `attention_map` (Open-Sora,
      Wan, PixArt; Latte's spatial blocks, alone through `combine` and `only`), and for no model of joint attention.
    - `norm` (an option of the released code): the norm of the token as it enters the sub-module, at the step itself.
    - `random`: uniform in 0..1, not normalised, from a generator on the device.

    Granularity: tokens of a sub-module. Caches one output per sub-module (before the gate), 2 hidden states per block, 3
    with cross-attention, and keeps the ages (and with `attention` one score per token and block), which are small. k depends
    on shapes only and the choice stays on the device. Host reads: none. A part with fewer than 1 / (ratio * factor) tokens
    per row (the frames of a short temporal block, say) is reused as a whole. Text tokens beside the video are always
    recomputed with the chosen ones.
    """

    paper = "ToCa, arXiv:2410.05317, github.com/Shenyi-Z/ToCa"
    signal = "the step's number, and for which tokens a score on the device, known when the sub-module is entered"
    deviations = (
        "The released changes of the ratio over layers and steps are left out (they are 0 for Open-Sora), and the paper's "
        "bonus for spatial spread, which the release does not call. Weights of the guidance halves are not averaged before "
        "the entropy but the entropies after; with the release's masks, where the halves see different text, the order is "
        "the same. Maps are not updated by partial visits of cross-attention. The age is relative to the part's own "
        "interval. PixArt's settings are for its 20 steps; only Open-Sora's are for video. Joint attention (CogVideoX, FLUX) has "
        "no score here: its weights are over video and text together, and to work out all of them would cost as much as the "
        "attention that is saved."
    )
    never = {"attention_interval": 1, "cross_interval": 1, "mlp_interval": 1}
    example: ClassVar[Mapping[str, Any]] = {"ratio": 0.3, "shared": False}
    parts = frozenset({Part.ATTENTION, Part.CROSS_ATTENTION, Part.MLP})
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "opensora": {**_OPENSORA, "score": "attention"},
        "pixart": {**_PIXART, "score": "norm"},
        "": {**_OPENSORA, "score": "norm"},
    }

    attention_interval: int | None = None
    """N of self-attention (joint attention), >= 1: its full steps. 1 always recomputes it. Published: 3."""
    cross_interval: int | None = None
    """N of attention to the text. Published: 6 for Open-Sora, 3 for PixArt."""
    mlp_interval: int | None = None
    """N of the feed-forward. Published: 3."""
    warmup: float | int = 3
    """Leading full steps: a fraction of the steps (float) or a number of steps (int), at least 1. 3 for Open-Sora."""
    ratio: float | None = None
    """Share of tokens to recompute between full steps, 0 to 1, before the part's factor. Higher is closer to the reference
    and slower; 0 reuses everything. Published: 0.1 for Open-Sora, 0.3 for PixArt."""
    cross_factor: float | None = None
    """The ratio's factor in cross-attention, >= 0. 0 reuses it as a whole: Open-Sora's (1 - 0.67 * 1.5 is below 0)."""
    mlp_factor: float | None = None
    """The ratio's factor in the MLP, >= 0. 0 reuses it as a whole. Published: 1 + 0.33 * 1.5 for Open-Sora."""
    age_weight: float = 0.25
    """Weight of a token's age over the interval, >= 0. Higher takes turns among the tokens."""
    score: str | None = None
    """The importance of a token: `attention`, `norm` or `random`. Published: `attention` for Open-Sora; else `norm`."""
    shared: bool = True
    """One choice for all samples of a batch, by the mean of their importances, so that both guidance halves recompute the
    same tokens (the release). False: each sample its own."""
    seed: int = 0
    """Of the random choice; a video's choices are the same whenever it is made."""

    def __post_init__(self) -> None:
        name = type(self).__name__.lower()
        for option in ("attention_interval", "cross_interval", "mlp_interval"):
            if (interval := getattr(self, option)) is not None:
                check_every(interval, option, name)
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise ValueError(f"{name}: ratio={self.ratio} must be 0 to 1, a share of the tokens")
        for option in ("cross_factor", "mlp_factor", "age_weight"):
            if (value := getattr(self, option)) is not None and not value >= 0:
                raise ValueError(f"{name}: {option}={value} must be >= 0")
        if self.score not in (None, "attention", "norm", "random"):
            raise ValueError(f"{name}: score={self.score!r} must be one of attention, norm, random")

    def start(self, run: Run) -> TokenState:
        """The plan of the run; no token has an age."""
        plan, fraction, score = self._plan(run), self._fractions(run), self.option("score", run)
        cross = {site.start: site for site in run.sites_of(Part.CROSS_ATTENTION)}
        map_steps: frozenset[int] = frozenset()
        if score == "attention":
            without = [site for site in run.sites if fraction[site.part] and site.start not in cross]
            if without:
                raise ValueError(
                    f"{self._name}: score='attention' takes importance from a block's cross-attention, and the block of "
                    f"{without[0]} has none. Use score='norm' or 'random', or leave such blocks to another policy (combine, with "
                    f"only)."
                )
            map_steps = self._map_steps(plan, fraction)
        full = {part: _full_steps(steps, run.depth) for part, steps in plan.items()}
        return TokenState(plan, fraction, full, self._intervals(run), score, map_steps, cross)

    def decide(self, state: TokenState, call: Call, site: Site) -> Decision:
        """By the plan; the tokens of a partial step are chosen from scores on the device."""
        plan, step, fraction = state.plan[site.part], call.step.index, state.fraction[site.part]
        if plan[step] == FULL:
            if fraction and site not in state.checked:
                self._video_tokens(call, site)  # raises in the first forward, not at the first partial step
                state.checked.add(site)
            state.young.add(site)
            return state.full[site.part][step]
        if plan[step] == NONE or not fraction:
            return REUSE
        index = self._choose(state, call, site, fraction)
        return REUSE if index is None else Partial(index)

    def observe(self, state: TokenState, call: Call, site: Site, fresh: State, cached: Entry | None) -> None:
        """Cross-attention that ran in full: keep each token's importance, if a later choice needs it."""
        if site.part is not Part.CROSS_ATTENTION or call.step.index not in state.map_steps:
            return
        try:
            weights = call.probe("attention_map")
        except ValueError as error:
            raise ValueError(
                f"{self._name}: score='attention' needs the weights of cross-attention: {error} Use score='norm' or 'random'."
            ) from error
        call.keep(f"importance of {site}", (tokens.unit_scores(self._shared(call, 1 + tokens.entropy(weights))),))

    def schedule(self, run: Run) -> list[bool]:
        """Which steps are full in all parts the model has."""
        plan = self._plan(run)
        present = {site.part for site in run.sites}
        return [all(plan[part][s] == FULL for part in present) for s in range(run.num_steps)]

    def num_cached(self, run: Run) -> int:
        """One output per sub-module, of the parts that are reused in some step; of a forecast, several. A step in which some
        tokens are computed stores a whole output too."""
        plan, fraction = self._plan(run), self._fractions(run)
        stored = {
            part: _full_steps(steps, run.depth).count(RECOMPUTE) + (steps.count(SOME) if fraction[part] else 0)
            for part, steps in plan.items()
        }
        return sum(min(stored[site.part], run.depth) for site in run.sites)

    def num_kept(self, run: Run) -> int:
        """The ages of each sub-module that runs on some tokens, and the importances in each block's cross-attention."""
        fraction = self._fractions(run)
        ages = sum(fraction[site.part] > 0 for site in run.sites)
        maps = self.option("score", run) == "attention" and self._map_steps(self._plan(run), fraction)
        return ages + (len(run.sites_of(Part.CROSS_ATTENTION)) if maps else 0)

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()

    def _intervals(self, run: Run) -> dict[Part, int]:
        return {part: self.option(f"{name}_interval", run) for part, name in _OPTIONS.items()}

    def _plan(self, run: Run) -> dict[Part, list[str]]:
        warmup = warmup_steps(self.warmup, run.num_steps, 1, self._name)
        return {
            part: [FULL if s < warmup or s % interval == 0 else SOME for s in range(run.num_steps)]
            for part, interval in self._intervals(run).items()
        }

    def _fractions(self, run: Run) -> dict[Part, float]:
        """0 where a part has no partial step."""
        plan, ratio = self._plan(run), self.option("ratio", run)
        factors = {part: self.option(f"{_OPTIONS[part]}_factor", run) for part in (Part.CROSS_ATTENTION, Part.MLP)}
        return {part: ratio * factors.get(part, 0.0) if SOME in plan[part] else 0.0 for part in plan}

    def _map_steps(self, plan: dict[Part, list[str]], fraction: dict[Part, float]) -> frozenset[int]:
        """Steps in which cross-attention runs in full and after which, before it does again, some tokens are chosen."""
        needed, steps = False, []
        for s in reversed(range(len(plan[Part.MLP]))):
            needed = needed or any(share and plan[part][s] == SOME for part, share in fraction.items())
            if needed and plan[Part.CROSS_ATTENTION][s] == FULL:
                needed = False
                steps.append(s)
        return frozenset(steps)

    def _video_tokens(self, call: Call, site: Site) -> Tensor:
        try:
            return call.video_tokens(site)
        except ValueError as error:
            option = f"{_OPTIONS[site.part]}_factor"
            raise ValueError(f"{self._name}: {error} Or set {option}=0 to reuse that part as a whole.") from error

    def _shared(self, call: Call, importance: Tensor) -> Tensor:
        """[rows, N] as it is, or its mean over the samples."""
        return tokens.over_samples(importance, call.num_samples) if self.shared else importance

    def _choose(self, state: TokenState, call: Call, site: Site, fraction: float) -> Tensor | None:
        """The tokens to recompute at a site now, which become 0 visits old; None if that is not one token, or if what the
        choice rests on is lost (the inputs changed their shapes, so the engine recomputes)."""
        x = self._video_tokens(call, site)
        k = tokens.num_chosen(fraction, x.shape[1])
        importance = self._importance(state, call, site, x) if k else None
        if importance is None:
            return None
        kept = None if site in state.young else call.kept(f"ages of {site}")
        ages = torch.zeros_like(importance, dtype=torch.int32) if kept is None else kept[0]
        index = tokens.highest(importance + self.age_weight / state.interval[site.part] * ages, k)
        state.young.discard(site)
        call.keep(f"ages of {site}", (tokens.aged(ages, index),))
        return tokens.for_rows(index, len(x))

    def _importance(self, state: TokenState, call: Call, site: Site, x: Tensor) -> Tensor | None:
        """[R, N] float32 for the tokens `x` [rows, N, C]."""
        if state.score == "attention":
            kept = call.kept(f"importance of {state.cross[site.start]}")
            return None if kept is None else kept[0]
        if state.score == "norm":
            return tokens.unit_scores(self._shared(call, torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32)))
        if state.generator is None:
            state.generator = torch.Generator(device=x.device).manual_seed(self.seed)
        rows = len(x) // call.num_samples if self.shared else len(x)
        return torch.rand(rows, x.shape[1], generator=state.generator, device=x.device)


@POLICIES.register("duca")
@dataclass(frozen=True)
class DuCa(ToCa):
    """DuCa (arXiv:2412.18911): ToCa in which every second step between full ones reuses everything, tokens chosen at random.

    A cycle of N steps is one full step, then an aggressive step (everything reused) and a ToCa step in turns, as `first`
    says which comes first. N is the smallest of the parts' intervals above 1; a part with a longer one does in between what
    the others do, and in their full steps it takes a ToCa step. Everything else is as in ToCa, the ages too: they count
    visits on some tokens and not aggressive steps. The random choice needs no attention map, and the paper finds it as good
    as others.

    Granularity: tokens of a sub-module. Memory is ToCa's, without scores to keep. Host reads: none. Source: the paper's
    abstract; the order of steps as in the code its authors share among their methods (`cal_type`).
    """

    paper = "DuCa, arXiv:2412.18911, github.com/Shenyi-Z/DuCa"
    signal = "the step's number; which tokens, a random number on the device"
    deviations = (
        "The released settings for Open-Sora could not be read; intervals, ratio and factors are ToCa's. That intervals may "
        "differ between parts, and what a part with a longer one does then, is ours. The paper's first version chose tokens "
        "by the norms of attention values, which is not here."
    )
    example = {"ratio": 0.3}
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "opensora": {**_OPENSORA, "score": "random"},
        "pixart": {**_PIXART, "score": "random"},
        "": {**_OPENSORA, "score": "random"},
    }

    first: str = "aggressive"
    """What follows a full step: `aggressive` (the authors' code), which ends a cycle of 3 with a ToCa step, or `toca`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.first not in ("aggressive", "toca"):
            raise ValueError(f"duca: first={self.first!r} must be aggressive or toca")

    def _plan(self, run: Run) -> dict[Part, list[str]]:
        plan, intervals = super()._plan(run), self._intervals(run)
        shortest = min(intervals, key=lambda part: (intervals[part] == 1, intervals[part]))
        since, odd, even = 0, *((NONE, SOME) if self.first == "aggressive" else (SOME, NONE))
        for s, kind in enumerate(list(plan[shortest])):
            since = 0 if kind == FULL else since + 1
            for part in plan:
                if plan[part][s] != FULL and since:
                    plan[part][s] = odd if since % 2 else even
        return plan


def _full_steps(steps: Sequence[str], depth: int) -> list[Decision]:
    """Of a part's steps, which full ones keep what they compute: the newest `depth` before one that is not full."""
    return decisions_of([kind == FULL for kind in steps], depth)


_OPTIONS = {Part.ATTENTION: "attention", Part.CROSS_ATTENTION: "cross", Part.MLP: "mlp"}
