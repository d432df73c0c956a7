"""FasterCache: attention carried on from its last two outputs, and the guidance branch from its last difference."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fsframework.core import (
    DISCARD,
    POLICIES,
    RECOMPUTE,
    REUSE,
    Branch,
    Call,
    Decision,
    Entry,
    Part,
    ReusePolicy,
    ReuseWarning,
    Run,
    Site,
    State,
    Synthesize,
)
from fsframework.core.forecast import carry_on_forecast
from fsframework.core.schedule import check_every, count_of, plan


@dataclass
class FasterState:
    """One video and branch."""

    attention: list[Decision]
    """What to do with attention at each step."""
    synthesized: list[bool]
    """Per step, whether the unconditional branch is to be made from the conditional one."""
    measured: list[bool]
    """Per step, whether its difference of the branches will be used."""
    alpha: list[tuple[float, float]]
    """Per step, the factors on the low and the high frequencies."""
    guided: bool
    """Whether both branches are known to be there."""
    mask: Tensor | None = None
    """Low frequencies, bool [H, W // 2 + 1] on the device, made once per size."""


@POLICIES.register("fastercache")
@dataclass(frozen=True)
class FasterCache(ReusePolicy[FasterState]):
    """FasterCache (arXiv:2410.19355): two caches, each of which can be switched off.

    Attention. From `attention_start` on, attention is computed only at steps with s mod `attention_interval` =
    `attention_phase`; at the others it is carried on from its last two outputs A_0, A_1 (text stream included):

        A = A_1 + w(s) (A_1 - A_0),   w(s) = weight * (s - start + 1) / rise,   or weight where rise is 0

    Guidance. From `guidance_start` on, both branches run only at steps with s mod `guidance_interval` = 0, where the
    difference D = e_uncond - e_cond of their predictions is split by a Fourier transform over height and width: low(D) are
    the frequencies within the radius min(H, W) // 5, high(D) = D - low(D). At the other steps only the conditional branch
    runs, and

        e_uncond = e_cond + a_low(s) low(D) + a_high(s) high(D)

    with a_low = alpha before `low_stop`, a_high = alpha from `high_start`, else 1. That is the released IFFT(LF(e_cond) +
    a_low LF(D) + HF(e_cond) + a_high HF(D)), by linearity: the transform is needed at full steps only. Where both branches
    run after a step in which one did, attention is computed too, for it is long since the unconditional half was. This
    half needs both branches in one batch, or the conditional one called first; otherwise both run, the session warns, and
    the trace says `forced`.

    Granularity: sub-module and guidance branch. Caches two values per attention (three per attention under batched guidance,
    where the half batch keeps two of half the size), and two parts of a prediction. Host reads: none. All positions are
    fractions of the steps, which at the published step counts give the published steps.
    """

    paper = "FasterCache, arXiv:2410.19355, github.com/Vchitect/FasterCache; diffusers hooks/faster_cache.py"
    signal = "the step's number"
    deviations = (
        "alpha is applied once; the released code multiplies the cached difference in place at every skipped step, so that it "
        "grows as alpha^k. Attention is computed wherever both branches run after one alone. The settings of models other "
        "than Open-Sora and CogVideoX are those of diffusers, whose timestep windows are turned into fractions of a uniform "
        "schedule; CogVideoX' weight is diffusers' too. Whether the released step counts begin at 0 or 1 is uncertain."
    )
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "opensora": {  # of 30 steps
            "attention_start": 8 / 30, "attention_interval": 2, "attention_phase": 1, "weight": 0.9, "rise": 20 / 30,
            "guidance_start": 12 / 30, "guidance_interval": 5, "alpha": 1.15, "low_stop": 26 / 30, "high_start": 20 / 30,
        },
        "cogvideox": {  # of 50 steps
            "attention_start": 18 / 50, "attention_interval": 3, "attention_phase": 0, "weight": 0.5, "rise": 0,
            "guidance_start": 18 / 50, "guidance_interval": 5, "alpha": 1.1, "low_stop": 41 / 50, "high_start": 30 / 50,
        },
        "": {  # timesteps below 681; 641; above 99; below 301
            "attention_start": 0.32, "attention_interval": 2, "attention_phase": 0, "weight": 0.5, "rise": 0,
            "guidance_start": 0.36, "guidance_interval": 5, "alpha": 1.1, "low_stop": 0.9, "high_start": 0.7,
        },
    }  # fmt: skip
    example = {"alpha": 1.0}
    never = {"attention_interval": 1, "guidance_interval": 1}

    depth = 2

    attention_start: float | int | None = None
    """The first step at which attention may be carried on: a fraction of the steps (float, 0 to 1) or a step (int). Lower
    reuses more. None, here and below: as published for the model, else as in diffusers; here 0.32."""
    attention_interval: int | None = None
    """Attention is computed at one step in so many, >= 1; 1 switches this half off. None: 2."""
    attention_phase: int | None = None
    """Which step of the interval computes attention, 0 to interval - 1. None: 0."""
    weight: float | None = None
    """The weight on the last change: constant, or what it has risen to after `rise` steps. 0 copies. None: 0.5."""
    rise: float | int | None = None
    """Steps over which the weight rises to `weight`, and on beyond: a fraction of the steps or their number; 0 is a
    constant weight. None: 0."""
    guidance_start: float | int | None = None
    """The first step at which the unconditional branch may be made from the other. None: 0.36."""
    guidance_interval: int | None = None
    """Both branches run at one step in so many, >= 1; 1 switches this half off. None: 5."""
    alpha: float | None = None
    """Factor on the cached difference, on its low frequencies early and its high ones late. None: 1.1."""
    low_stop: float | int | None = None
    """From this step on the low frequencies have the factor 1. None: 0.9."""
    high_start: float | int | None = None
    """Before this step the high frequencies have the factor 1. None: 0.7."""

    def __post_init__(self) -> None:
        for name in ("attention_interval", "guidance_interval"):
            if (interval := getattr(self, name)) is not None:
                check_every(interval, name, "fastercache")
        for name in ("attention_start", "rise", "guidance_start", "low_stop", "high_start"):
            value = getattr(self, name)
            if value is not None and (not value >= 0 or (isinstance(value, float) and value > 1)):
                raise ValueError(
                    f"fastercache: {name}={value} must be a fraction of the steps, 0.0 to 1.0, or a number of steps >= 0"
                )
        for name in ("weight", "alpha"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"fastercache: {name}={value} must be a finite number")
        if self.attention_phase is not None and not 0 <= self.attention_phase < (self.attention_interval or math.inf):
            raise ValueError(f"fastercache: attention_phase={self.attention_phase} must be 0 to attention_interval - 1")

    @property
    def parts(self) -> frozenset[Part]:  # type: ignore[override]
        """Attention, and the model, unless switched off. Both off: attention, never reused."""
        parts = set() if self.guidance_interval == 1 else {Part.MODEL}
        return frozenset(parts if parts and self.attention_interval == 1 else parts | {Part.ATTENTION})

    def start(self, run: Run) -> FasterState:
        """Work out all decisions.

        Raises:
            ValueError: the latent has no height and width to transform over.
        """
        synthesized = self._synthesized(run)
        if Part.MODEL in self.parts and run.branch == Branch.JOINT and run.facts.get("guided") is False:
            warnings.warn(
                "fastercache: this run has no guidance and so no unconditional branch to make from the other: its guidance_* "
                "options have no effect",
                ReuseWarning,
                stacklevel=2,
            )
        shape = run.facts.get("latent_shape")
        if self._guided(run) and any(synthesized) and isinstance(shape, tuple) and len(shape) < 4:
            raise ValueError(
                f"fastercache: the latent of this model is {list(shape)}, without axes of height and width, so the guidance "
                f"branch can not be split into frequencies. Set guidance_interval=1 to switch that half off."
            )
        following = [*synthesized[1:], False]
        measured = [not now and after for now, after in zip(synthesized, following)]
        low, high = self._step("low_stop", run), self._step("high_start", run)
        alpha = self.option("alpha", run)
        factors = [(alpha if s < low else 1.0, alpha if s >= high else 1.0) for s in range(run.num_steps)]
        return FasterState(self._attention(run), synthesized, measured, factors, self._guided(run))

    def decide(self, state: FasterState, call: Call, site: Site) -> Decision:
        """By the plan. Where the difference was lost, both branches run; where the unconditional one comes first the engine
        runs it, and marks it forced."""
        step = call.step.index
        if site.part is not Part.MODEL:
            return state.attention[step]
        if not state.synthesized[step] or call.branch not in (Branch.UNCOND, Branch.JOINT):
            return DISCARD
        parts = call.kept(_DIFFERENCE)
        can_be_made = call.branch == Branch.JOINT or Branch.COND in call.predictions()
        if state.guided and can_be_made and parts is None:
            return DISCARD
        low, high = parts or ((), ())
        a_low, a_high = state.alpha[step]

        def add(predictions: Mapping[str, Tensor]) -> Tensor:
            cond = predictions[Branch.COND]
            return (cond + a_low * low + a_high * high).to(cond.dtype)  # type: ignore[operator]

        return Synthesize(add, Branch.UNCOND)

    def observe(self, state: FasterState, call: Call, site: Site, fresh: State, cached: Entry | None) -> bool | None:
        """Where both branches have run, split their difference and keep it. Predictions themselves are not stored. The
        conditional branch has no use for the difference: what comes before it can not be made from it."""
        if site.part is not Part.MODEL:
            return None
        if call.branch == Branch.COND:
            return False
        predictions = call.predictions()
        if state.measured[call.step.index] and Branch.COND in predictions and Branch.UNCOND in predictions:
            difference = predictions[Branch.UNCOND].float() - predictions[Branch.COND].float()
            height, width = difference.shape[-2:]
            if state.mask is None or state.mask.shape != (height, width // 2 + 1):
                state.mask = _low_frequencies(height, width, difference.device)
            low = torch.fft.irfft2(torch.fft.rfft2(difference) * state.mask, s=(height, width))
            call.keep(_DIFFERENCE, (low, difference - low))
        return False

    def schedule(self, run: Run) -> list[bool]:
        """Steps in which the branch runs (of a batch: both) and its attention is computed."""
        attention = self._computed(run) if run.sites_of(Part.ATTENTION) else [True] * run.num_steps
        is_made = self._guided(run) and run.branch != Branch.COND
        synthesized = self._synthesized(run) if is_made else [False] * run.num_steps
        return [computed and not made for computed, made in zip(attention, synthesized)]

    def num_cached(self, run: Run) -> int:
        """The last two values per attention, as far as they will be carried on. The half of a guidance batch that runs alone
        has two of its own, which count half. (A forecast of higher order on top lets the cache hold more, to no use.)"""
        depth = max(self.depth, run.depth)
        alone = self._synthesized(run) if self._guided(run) else [False] * run.num_steps
        is_kept = [decision is RECOMPUTE for decision in self._attention(run)]
        both = sum(kept and not one for kept, one in zip(is_kept, alone))
        cond = sum(kept and one for kept, one in zip(is_kept, alone))
        if run.branch == Branch.JOINT:
            each = min(both, depth) + min(cond, depth) / 2
        else:
            each = float(min(both if run.branch == Branch.UNCOND else both + cond, depth))
        return int(each * len(run.sites_of(Part.ATTENTION)) + 0.5)

    def num_kept(self, run: Run) -> int:
        """The two parts of the difference, in the branch that is made; none are held where that is called first."""
        return 2 if self._guided(run) and run.branch != Branch.COND and any(self._synthesized(run)) else 0

    def _guided(self, run: Run) -> bool:
        return Part.MODEL in self.parts and (run.branch != Branch.JOINT or run.facts.get("guided") is True)

    def _step(self, name: str, run: Run) -> int:
        value = self.option(name, run)
        return count_of(value, run.num_steps)

    def _synthesized(self, run: Run) -> list[bool]:
        """Per step, whether only the conditional branch is to run. Never the first step, nor where there is no guidance."""
        if run.branch == Branch.JOINT and run.facts.get("guided") is False:
            return [False] * run.num_steps
        start, every = max(self._step("guidance_start", run), 1), self.option("guidance_interval", run)
        return [s >= start and s % every != 0 for s in range(run.num_steps)]

    def _computed(self, run: Run) -> list[bool]:
        """Per step, whether attention is computed."""
        start, every = max(self._step("attention_start", run), 1), self.option("attention_interval", run)
        phase = self.option("attention_phase", run) % every
        alone = self._synthesized(run) if self._guided(run) else [False] * run.num_steps
        return [s < start or s % every == phase or (alone[s - 1] and not alone[s]) for s in range(run.num_steps)]

    def _attention(self, run: Run) -> list[Decision]:
        """What to do at each step; of the computed values those that will be one of the last two are kept."""
        start, rise, weight = self._step("attention_start", run), self._step("rise", run), self.option("weight", run)
        decisions = plan(self._computed(run), self.depth)
        for s, decision in enumerate(decisions):
            if decision is REUSE:
                decisions[s] = carry_on_forecast(weight * (s - start + 1) / rise if rise else weight)
        return decisions


def _low_frequencies(height: int, width: int, device: torch.device) -> Tensor:
    """Which of the frequencies of `rfft2` are within the radius min(height, width) // 5."""
    y = torch.fft.fftfreq(height, 1 / height, device=device)[:, None]
    x = torch.fft.rfftfreq(width, 1 / width, device=device)
    return y * y + x * x <= (min(height, width) // 5) ** 2


_DIFFERENCE = "difference"
