"""`ReuseEngine`: wrap, ask, recompute or reuse, observe, record, unwrap. Knows no policy and no model by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import wrap
from fsframework.core.bound import BoundModel
from fsframework.core.cache import ReuseCache
from fsframework.core.clock import Clock
from fsframework.core.flops import ShapeFlops
from fsframework.core.installed import Installed
from fsframework.core.lifetime import Lifetime
from fsframework.core.live_count import CountingRecord
from fsframework.core.meter import Meter
from fsframework.core.model_site import ModelCall
from fsframework.core.packing import Packing
from fsframework.core.policy import ReusePolicy
from fsframework.core.review import ReuseWarning, review
from fsframework.core.session_time import BranchContext, SessionTime
from fsframework.core.site import Part, Run, Step
from fsframework.core.trace import Trace
from fsframework.core.visit import ForwardRecord


class ReuseEngine(SessionTime):
    """A reuse session on one model: a context manager, the only place that replaces a forward.

    Inside the session every call of the model goes through `policy`; at exit, also after an exception, the model is as
    it was. A session may see any number of videos, of any number of steps, size and batch; state is new for each.

    Time comes from the sampler: with `scheduler`, its `set_timesteps` begins a video and its `step` ends a step. For a
    loop of your own give `timesteps` instead; the step is then found from the model's timestep argument (one host read
    per forward if that lives on a GPU; `session.step(i)` saves it).

    Args:
        bound: the model, from `ModelAdapter.bind`.
        policy: what decides.
        scheduler: the pipeline's scheduler, or a function giving it (to notice that it was replaced).
        timesteps: the timesteps of your loop, in order.
        timing: measure host seconds per block visit.
        record: keep a trace. Without it only the counters remain.
        cache_dtype: store cached values in another precision.
        cache_device: store cached values on another device.
        cache_copy: store copies, for models that overwrite what they returned (CUDA graphs).
        group: the process group of the ranks that share one video.
        guided: whether a joint batch is two guidance halves, or a function that knows; None is unknown, and then no
            branch is made from the other (`Synthesize`).
        facts: what the run is known by (model, sampler, ...), for policies that check artifacts.
        in_stage: whether a timestep is this model's, where several denoisers share the steps (`StagedSession`).

    Raises:
        ValueError: the model is compiled as a whole, is in another session, or has no site the policy asks about.
    """

    def __init__(
        self,
        bound: BoundModel,
        policy: ReusePolicy[Any],
        scheduler: Any = None,
        timesteps: Sequence[float] | Tensor | None = None,
        timing: bool = False,
        record: bool = True,
        cache_dtype: torch.dtype | None = None,
        cache_device: torch.device | str | None = None,
        cache_copy: bool = False,
        group: Any = None,
        guided: Callable[[], bool | None] | bool | None = None,
        facts: Mapping[str, object] | None = None,
        in_stage: Callable[[float], bool] | None = None,
    ) -> None:
        if not isinstance(policy, ReusePolicy):
            raise TypeError(f"policy must be a ReusePolicy object such as Foresight(gamma=0.5); got {policy!r}")
        super().__init__(Clock(scheduler, timesteps, in_stage), bound.adapter)
        self.bound = bound
        self.policy = policy
        self.timing = timing
        self.sites = bound.sites(policy)
        self.residual_sites = {site for site in self.sites if policy.storage_of(site) == "residual"}
        self.installed = Installed(bound, self.sites, self.residual_sites, type(policy).__name__)
        self.forward_record: ForwardRecord | None = None
        self.observe = policy.observe if type(policy).observe is not ReusePolicy.observe else None
        """None where the policy does not want to see what was computed."""
        self.has_ordinary_visits = not bound.has_concatenated and not (timing and record)
        self.num_predictions = 1
        """How many tensors the model predicts at once (LTX-2: video and audio)."""
        self.output_types: dict[bool, Any] = {}
        """What the model returns, by whether a plain tuple was asked for (`return_dict=False`)."""
        self._asks_model = Part.MODEL in policy.parts
        halves = {name: (i, 2) for i, name in enumerate(bound.adapter.batch_order)} if self._asks_model else None
        device = None if cache_device is None else torch.device(cache_device)
        depths = {site: policy.depth_of(site) for site in self.sites}
        packing = Packing(cache_dtype, device, cache_copy)
        self._new_cache = lambda: ReuseCache(policy.depth, packing, halves, depths)
        self.cache = self._new_cache()
        self.meter = Meter(group)
        self.num_forwards = 0
        self.may_idle = False
        """Seeing no forward needs no warning."""
        self.rows_per_forward = len(bound.blocks) + sum(site.part is not Part.BLOCK for site in self.sites)
        """Rows of the trace for one forward: each block, and whatever else the policy is asked about."""
        self._record = record
        self._group = group
        self._facts = dict(facts or {})
        self._guided = guided
        self._warned: set[str] = set()
        self._model_positions = wrap.positions(bound.transformer)
        self._flops = ShapeFlops(bound)

    # The session.

    def __enter__(self) -> ReuseEngine:
        model = self.bound.transformer
        if model.__dict__.get("_compiled_call_impl") is not None or hasattr(model, "_orig_mod"):
            raise ValueError(
                f"{type(model).__name__} was compiled as a whole, so its blocks can no longer be intercepted and reuse "
                f"would silently do nothing. Compile its blocks instead (`for block in model.transformer_blocks: "
                f"block.compile()`) before opening the session."
            )
        active = wrap.shared_active(model, "forward")
        if active.get():
            raise ValueError(
                f"this {type(model).__name__} is already in a reuse session; leave that one first, sessions do not nest"
            )
        self.num_forwards, self._last = 0, None
        self.installed.put_in(active, self._clock.open())
        self.installed.activate(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self.installed.deactivate(self)
        self.installed.take_out()
        self._finish_video()
        if exc[0] is not None:
            return
        if self.num_forwards == 0 and not self.may_idle:
            self._warn(
                "idle",
                "the reuse session ended without seeing a single forward of the model. Was the pipeline called outside "
                "the `with` block, with another model, or in a thread that does not inherit this one's context?",
            )
        if self._record and self._last is not None:
            run = next(iter(self._last.runs.values()), None)
            for key, message in review(self._last.trace, self.policy, run).items():
                self._warn(key, message)

    def attach(self) -> ReuseEngine:
        """Open the session without a `with` block, say in a notebook; `detach` closes it."""
        return self.__enter__()

    def detach(self) -> None:
        """Close a session opened with `attach`."""
        self.__exit__(None, None, None)

    # Time; see also `SessionTime`.

    def step(self, index: int) -> None:
        """In a loop of your own: the next forward belongs to step `index` (0-based); 0 begins a new video."""
        self._clock.tell(index)

    def new_video(self) -> None:
        """In a loop of your own: forget the video in progress; the next forward begins another."""
        self._finish_video()
        self._clock.pending = True

    def branch(self, name: str) -> BranchContext:
        """In a loop of your own with one call per guidance branch: `with session.branch("cond"): model(...)`."""
        return BranchContext(self, name)

    def on_set_timesteps(self) -> None:
        """As of `SessionTime`. Pipelines with model offloading set their hooks anew for every video, so see what is left."""
        super().on_set_timesteps()
        self.installed.restore_lost()

    def _begin_video(self, timesteps: list[float]) -> Trace:
        self.installed.follow_compilation()
        self.cache, self.meter = self._new_cache(), Meter(self._group)
        return Trace(self.num_videos, self.sites, timesteps, self.policy.parts)

    def _finish_video(self) -> None:
        if self._video is not None:
            self.cache.clear()
        super()._finish_video()

    # A forward of the model.

    def model_forward(self, slot: wrap.Slot, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called by the wrapper of the model."""
        self.num_forwards += 1
        if self.forward_record is not None:
            return slot.call(model, args, kwargs)
        if torch.is_grad_enabled() and not self.policy.differentiable:
            name = type(self.policy).__name__
            self._warn(
                "grad",
                f"gradients are enabled, so {name} is bypassed and everything is computed. Generate under torch.no_grad().",
            )
            return slot.call(model, args, kwargs)
        arguments = {**dict(zip(self._model_positions, args)), **kwargs}
        named = self._context.branch
        video = self._now(arguments, named)
        if not self.installed.is_compilation_known():
            self.installed.follow_compilation()
        branch = self._branch(named, video)
        if branch is None:
            raise RuntimeError(
                f"two forwards in step {video.step} for guidance branch {named or self._calls[-1]!r}. If your "
                f'loop calls the model once per branch, name them: `with session.branch("cond"): ...` and `with '
                f'session.branch("uncond"): ...`. If it does not call scheduler.step, open the session with timesteps=[...].'
            )
        video.seen.add(branch)
        video.ran = True
        trace = video.trace
        kind: type[ForwardRecord] = ForwardRecord
        if branch not in trace.count_flops:  # have them counted when asked for, or by this forward
            if self.bound.adapter.counted_live:
                kind = CountingRecord
            else:
                trace.count_flops[branch] = self._flops.counter(args, kwargs, self._warn)
        if changed := video.changed_shapes(branch, self.bound.adapter.batched_inputs, arguments):
            self.cache.drop(branch)
            self._warn(
                "shapes",
                f"the inputs of branch {branch!r} changed their shapes at step {video.step} ({'; '.join(changed)}), so "
                f"nothing cached fits and everything is recomputed.",
            )
        self.bound.num_samples = len(arguments[self.bound.adapter.latent_input])
        if branch not in video.states:
            run = Run(len(trace.timesteps), trace.timesteps, self.sites, branch, self._run_facts(arguments))
            video.states[branch], video.runs[branch] = self.policy.start(run), run
            video.lifetimes[branch] = Lifetime(self.policy, run)
        self.cache.begin_step(branch, video.step, video.lifetimes[branch])
        step = Step(video.step, len(trace.timesteps), trace.timesteps[video.step])
        record = kind(self, video.runs[branch], step, branch, video.states[branch], arguments)
        try:
            self.policy.begin_forward(record.state, record)
            if self.policy.eliminate_dead and not self.residual_sites and not self.bound.keeps_aside:
                record.plan(self.installed.keys)
            if self._asks_model:
                output = ModelCall(self, record, slot, model, args, kwargs, arguments).run()
            else:
                output = self.run_model(record, 1.0, slot, model, args, kwargs)
        except BaseException:
            video.seen.discard(branch)  # so that trying again is no second forward of the step
            raise
        finally:
            self.forward_record = None
            record.close()
        self.policy.end_forward(record.state, record)
        trace.note_cache(video.step, self.cache.num_bytes, self.cache.step_peak_bytes)
        return output

    def run_model(
        self,
        record: ForwardRecord,
        batch_share: float,
        slot: wrap.Slot,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Let the model run, its blocks going through `record`. `batch_share`: the part of the full batch given to it."""
        trace = self.note_forward(record, batch_share)
        first = record.num_rows if batch_share != 1.0 else 0
        record.enter_blocks()
        self.forward_record = record
        if isinstance(record, CountingRecord) and batch_share == 1.0:
            with record.counter:
                output = slot.call(model, args, kwargs)
            counted = {self.bound.model_site(): record.total_flops, **record.flops}
            trace.count_flops[record.branch] = lambda: counted
        else:
            output = slot.call(model, args, kwargs)
        self.forward_record = None
        if batch_share != 1.0:
            trace.batch_share.update((row, batch_share) for row in range(first, record.num_rows))
        keys, num_missing = self.installed.keys, record.visited.count(0)
        if num_missing == len(keys):
            raise RuntimeError(
                f"none of the {len(keys)} blocks of {type(model).__name__} came by in a forward: their wrappers are "
                f"no longer in place. Removing an offload hook that was installed before the session does this; open a "
                f"new session after changing hooks."
            )
        record.check_restored()
        if num_missing:
            missing = [key.site.name for key in keys if not record.visited[key.index]]
            self._warn(
                "missing", f"{num_missing} blocks were not run by the model itself: {', '.join(missing[:4])} ..."
            )
        return output

    def is_guided(self) -> bool:
        """Whether a joint batch is known to be two guidance halves. Unknown is no, with a warning."""
        known = self._known_guided()
        if known is None:
            self._warn(
                "guided",
                "the policy makes one guidance branch from the other, but it is not known whether this batch is two "
                "guidance halves; everything is run. Say so with guided=True.",
            )
        return bool(known)

    def _known_guided(self) -> bool | None:
        return self._guided() if callable(self._guided) else self._guided

    def note_forward(self, record: ForwardRecord, batch_share: float) -> Trace:
        """Count a forward of the model, of which `batch_share` was run."""
        assert self._video is not None
        trace = self._video.trace
        trace.forwards.append((record.step.index, record.branch, batch_share, self.bound.denoiser))
        return trace

    # For policies and for the records.

    @property
    def recording(self) -> Trace | None:
        """The trace being written, if any."""
        return self._video.trace if self._record and self._video is not None else None

    def block_positions(self, index: int) -> Mapping[str, int]:
        """Argument name -> position for a block."""
        return self.installed.positions[index]

    @property
    def trace(self) -> Trace:
        """The trace of the last video, or of the one in progress."""
        video = self._video or self._last
        if video is None:
            raise RuntimeError("no video was generated in this session yet, so there is no trace")
        return video.trace

    def summary(self) -> dict[str, float]:
        """The last video in numbers: the trace's summary, the peak of the cache in bytes, and host reads per step.

        Without a trace (`record=False`) what it would tell is NaN.
        """
        trace = self.trace
        return {
            **self.recorded(trace),
            "cache_bytes_peak": float(self.cache.peak_bytes),
            "host_reads_per_step": self.meter.num_reads / len(trace.timesteps),
        }

    def recorded(self, trace: Trace) -> dict[str, float]:
        """`trace.summary()`, or NaN for what was not recorded."""
        numbers = trace.summary()
        if self._record:
            return numbers
        return {name: value if name == "num_steps" else math.nan for name, value in numbers.items()}

    def _run_facts(self, arguments: Mapping[str, Any]) -> dict[str, object]:
        latent = arguments[self.bound.adapter.latent_input]
        shape = (len(latent), *latent[0].shape)
        guided = self._known_guided() if self._asks_model else None
        return {"device": latent[0].device, "latent_shape": shape, "guided": guided, **self._facts}

    def share_warnings(self, other: ReuseEngine) -> None:
        """Say once what `other` and this engine would both say."""
        self._warned = other._warned

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, ReuseWarning, stacklevel=3)
