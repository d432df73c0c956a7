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
from fsframework.core.clock import Clock, Context
from fsframework.core.flops import shapes, site_flops, to_meta
from fsframework.core.keys import BlockKey, PartKey
from fsframework.core.lifetime import Lifetime
from fsframework.core.live_count import CountingRecord
from fsframework.core.meter import Meter
from fsframework.core.model_site import ModelCall
from fsframework.core.packing import Packing
from fsframework.core.policy import ReusePolicy
from fsframework.core.review import ReuseWarning, review
from fsframework.core.site import Part, Run, Site, Step
from fsframework.core.trace import Trace
from fsframework.core.video import VideoInProgress
from fsframework.core.visit import ForwardRecord


class ReuseEngine:
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
        self.bound = bound
        self.policy = policy
        self.timing = timing
        self.sites = bound.sites(policy)
        self.forward_record: ForwardRecord | None = None
        self.predictions: dict[str, Tensor] = {}
        self.num_predictions = 1
        """How many tensors the model predicts at once (LTX-2: video and audio)."""
        self.output_types: dict[bool, Any] = {}
        """What the model returns, by whether a plain tuple was asked for (`return_dict=False`)."""
        self._record = record
        self._group = group
        self._facts = dict(facts or {})
        self._guided = guided
        halves = (
            {name: (i, 2) for i, name in enumerate(bound.adapter.batch_order)} if Part.MODEL in policy.parts else None
        )
        device = None if cache_device is None else torch.device(cache_device)
        depths = {site: policy.depth_of(site) for site in self.sites}
        self.residual_sites = {site for site in self.sites if policy.storage_of(site) == "residual"}
        packing = Packing(cache_dtype, device, cache_copy)
        self._new_cache = lambda: ReuseCache(policy.depth, packing, halves, depths)
        self.cache = self._new_cache()
        self.meter = Meter(group)
        self._clock = Clock(scheduler, timesteps, in_stage)
        self._context = Context(bound.adapter.contexts)
        self._video: VideoInProgress | None = None
        self._last: VideoInProgress | None = None
        self.num_videos = 0
        self.num_started = 0
        """How often the scheduler was given new timesteps."""
        self.video_started = 0
        """`num_started` when the newest video began."""
        self.num_forwards = 0
        self.may_idle = False
        """Seeing no forward needs no warning."""
        self._warned: set[str] = set()
        self._first_compiled: object = None
        """What the first block calls in place of its forward, if it was compiled."""
        self._keys: list[BlockKey] = []
        self._positions = [wrap.positions(block.module) for block in bound.blocks]
        self._model_positions = wrap.positions(bound.transformer)
        self.slot_keys: dict[wrap.Slot, BlockKey | PartKey] = {}
        self.ordinary_keys: dict[wrap.Slot, BlockKey] = {}
        """Of the blocks that the policy is asked about and at which no region begins."""
        self.has_part_sites = any(site.part.inside_block for site in self.sites)
        self.rows_per_forward = len(bound.blocks) + sum(site.part is not Part.BLOCK for site in self.sites)
        """Rows of the trace for one forward: each block, and whatever else the policy is asked about."""
        self._calls = bound.adapter.calls()
        self._installed: list[tuple[Any, tuple[str, Callable[..., Any]], wrap.Slot]] = []
        self._actives: list[wrap.Active] = []
        self._flops: dict[str, dict[Site, float]] = {}
        self._live = False
        """Count the FLOPs of the forward now."""

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
        try:
            self._install(model, active)
        except BaseException:
            self._uninstall()
            raise
        for var in self._actives:
            var.set((*var.get(), self))
        return self

    def __exit__(self, *exc: object) -> None:
        for var in self._actives:
            var.set(tuple(e for e in var.get() if e is not self))
        self._uninstall()
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

    def _install(self, model: nn.Module, active: wrap.Active) -> None:
        regions = [site for site in self.sites if site.part in (Part.TRUNK, Part.SPAN)]
        regions.sort(key=lambda site: -site.stop)
        asked = {site.start: site for site in self.sites if site.part is Part.BLOCK}
        self._keys, self._actives, self.slot_keys, self.ordinary_keys = [], [active], {}, {}
        self._put_in(model, wrap.MODEL, active)
        if hasattr(type(model), "cache_context"):
            self._put_in(model, wrap.CONTEXT, active)
        for index, block in enumerate(self.bound.blocks):
            site = asked.get(index, self.bound.block_site(index))
            here = tuple(s for s in regions if s.start == index)
            key = BlockKey(
                block, index, site, index in asked, here, self._positions[index], site in self.residual_sites
            )
            self._keys.append(key)
            self._put_in(block.module, wrap.block_wrapper(block.module), active, key)
            for part_site in [s for s in self.sites if s.part.inside_block and s.start == index]:
                name = block.facts.submodule(part_site.part)
                assert name is not None
                self._check_inside(block.module, part_site)
                part = block.module.get_submodule(name)
                self._put_in(part, wrap.block_wrapper(part), active, PartKey(key, part_site))
        self._first_compiled = wrap.compiled_call(self.bound.blocks[0].module)
        scheduler = self._clock.open()
        if scheduler is not None:
            clock = wrap.shared_active(scheduler, "step")
            self._actives.append(clock)
            self._put_in(scheduler, wrap.SET_TIMESTEPS, clock)
            self._put_in(scheduler, wrap.STEP, clock)

    def _put_in(
        self,
        owner: Any,
        what: tuple[str, Callable[..., Any]],
        active: wrap.Active,
        key: BlockKey | PartKey | None = None,
    ) -> None:
        slot = wrap.install(owner, what, active)
        self._installed.append((owner, what, slot))
        if key is not None:
            self.slot_keys[slot] = key
        if isinstance(key, BlockKey) and key.asked and not key.regions:
            self.ordinary_keys[slot] = key

    def _check_inside(self, block: nn.Module, site: Site) -> None:
        """Raise if a sub-module site lies in a compiled block."""
        if wrap.compiled_call(block) is None:
            return
        kind = type(block).__name__
        raise ValueError(
            f"{type(self.policy).__name__} asks about {site}, inside a {kind} that is compiled, where nothing can be "
            f"intercepted. Compile the sub-modules that it asks about instead of the blocks ({site.part.value}: "
            f"`block.{self.bound.blocks[site.start].facts.submodule(site.part)}.compile()`), or use a policy about blocks."
        )

    def _follow_compilation(self) -> None:
        """Blocks or sub-modules were compiled since they were wrapped, or are no longer: wrap what is called now.

        Otherwise a compiled block would have the wrapper inside its graph, which would then be another one per block.
        """
        for i, (owner, what, slot) in enumerate(self._installed):
            key = self.slot_keys.get(slot)
            if key is None:
                continue
            if isinstance(key, PartKey):
                self._check_inside(key.block.bound.module, key.site)
            now = wrap.block_wrapper(owner)
            if now is what:
                wrap.restore_lost(owner, what, slot)
                continue
            wrap.uninstall(owner, what[0])
            moved = wrap.install(owner, now, slot.active)
            self._installed[i] = (owner, now, moved)
            self.slot_keys[moved] = self.slot_keys.pop(slot)
            if slot in self.ordinary_keys:
                self.ordinary_keys[moved] = self.ordinary_keys.pop(slot)
        self._first_compiled = wrap.compiled_call(self.bound.blocks[0].module)

    def _uninstall(self) -> None:
        while self._installed:
            owner, what, _ = self._installed.pop()
            wrap.uninstall(owner, what[0])

    # Time.

    def on_set_timesteps(self) -> None:
        """The scheduler was given new timesteps: the next forward begins a video.

        Pipelines with model offloading remove all hooks at the end of a call and set them anew, which takes along
        whatever was put over them; so look at the beginning of each video whether all wrappers are still in place.
        """
        self._clock.pending = True
        self.num_started += 1
        for owner, what, slot in self._installed:
            wrap.restore_lost(owner, what, slot)

    def on_scheduler_step(self) -> None:
        """The scheduler took a step; it is ours if our model ran since the last one."""
        video = self._video
        if video is None or not video.ran:
            return
        video.go_to(video.step + 1)
        self.predictions.clear()
        if video.step == len(video.trace.timesteps):
            self._finish_video()

    def enter_context(self, name: str) -> None:
        """diffusers' `cache_context` names the guidance branch."""
        self._context.enter(name)

    def leave_context(self) -> None:
        """End of a `cache_context`."""
        self._context.leave()

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

    def _now(self, arguments: Mapping[str, Any], named: str | None) -> VideoInProgress:
        """The video in progress, at the step this forward belongs to."""
        own_step: int | None = None
        if self._clock.own is not None:
            own_step = self._clock.own_step(arguments.get(self.bound.adapter.timestep_input), self.meter)
            video = self._video
            if video is not None and (own_step < video.step or (own_step == 0 and self._branch(named, video) is None)):
                self._clock.pending = True
        first = arguments.get(self.bound.adapter.timestep_input)
        timesteps = self._clock.new_timesteps(running=self._video is not None, first=first)
        if timesteps is not None:
            self._finish_video()
            self._follow_compilation()
            self.cache, self.meter = self._new_cache(), Meter(self._group)
            self._video = VideoInProgress(Trace(self.num_videos, self.sites, timesteps, self.policy.parts))
            self.num_videos += 1
            self.video_started = self.num_started
        video = self._video
        assert video is not None
        if own_step is not None and own_step != video.step:
            video.go_to(own_step)
            self.predictions.clear()
        return video

    def _branch(self, named: str | None, video: VideoInProgress) -> str | None:
        """The branch of a forward at the video's step: its name if it has one, else the next of the family's calls that
        did not come yet; None if there is none left in this step."""
        if named is not None:
            return None if named in video.seen else named
        return next((name for name in self._calls if name not in video.seen), None)

    def _finish_video(self) -> None:
        self.predictions.clear()
        if self._video is not None:
            self.cache.clear()
            self._last, self._video = self._video, None
            self._last.states.clear()

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
        if wrap.compiled_call(self.bound.blocks[0].module) is not self._first_compiled:
            self._follow_compilation()
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
        self._live = False
        if branch not in trace.count_flops:
            self._prepare_count(trace, branch, args, kwargs)
        self._check_shapes(video, branch, arguments)
        self.bound.num_samples = len(arguments[self.bound.adapter.latent_input])
        if branch not in video.states:
            run = Run(len(trace.timesteps), trace.timesteps, self.sites, branch, self._run_facts(arguments))
            video.states[branch], video.runs[branch] = self.policy.start(run), run
            video.lifetimes[branch] = Lifetime(self.policy, run)
        self.cache.begin_step(branch, video.step, video.lifetimes[branch])
        step = Step(video.step, len(trace.timesteps), trace.timesteps[video.step])
        kind = CountingRecord if self._live else ForwardRecord
        record = kind(self, video.runs[branch], step, branch, video.states[branch], arguments)
        try:
            self.policy.begin_forward(record.state, record)
            if self.policy.eliminate_dead and not self.residual_sites and not self.bound.keeps_aside:
                record.plan(self._keys)
            if Part.MODEL in self.policy.parts:
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

    def _check_shapes(self, video: VideoInProgress, branch: str, arguments: Mapping[str, Any]) -> None:
        """Drop what a branch has cached when its inputs change their shapes in the middle of a video: nothing fits."""
        names = self.bound.adapter.batched_inputs
        found = {name: shapes(arguments[name]) for name in names if arguments.get(name) is not None}
        known = video.shapes.get(branch)
        video.shapes[branch] = found
        if known is None or known == found:
            return
        self.cache.drop(branch)
        changed = [
            f"{name} from {known.get(name)} to {found.get(name)}"
            for name in names
            if known.get(name) != found.get(name)
        ]
        self._warn(
            "shapes",
            f"the inputs of branch {branch!r} changed their shapes at step {video.step} ({'; '.join(changed)}), so nothing "
            f"cached fits and everything is recomputed.",
        )

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
        first = record.num_rows
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
        num_missing = record.visited.count(0)
        if num_missing == len(self._keys):
            raise RuntimeError(
                f"none of the {len(self._keys)} blocks of {type(model).__name__} came by in a forward: their wrappers are "
                f"no longer in place. Removing an offload hook that was installed before the session does this; open a "
                f"new session after changing hooks."
            )
        record.check_restored()
        if num_missing:
            missing = [key.site.name for key in self._keys if not record.visited[key.index]]
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
        trace = self.trace
        trace.forwards.append((record.step.index, record.branch, batch_share, self.bound.denoiser))
        return trace

    # For policies and for the records.

    @property
    def recording(self) -> Trace | None:
        """The trace being written, if any."""
        return self._video.trace if self._record and self._video is not None else None

    def state_of(self, branch: str) -> object | None:
        """The policy's state for another branch of this video."""
        return None if self._video is None else self._video.states.get(branch)

    def block_positions(self, index: int) -> Mapping[str, int]:
        """Argument name -> position for a block."""
        return self._positions[index]

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

    def _prepare_count(self, trace: Trace, branch: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Have the FLOPs of a branch's forwards counted: when asked for, or by its first forward, which now begins."""
        self._live = self.bound.adapter.counted_live
        if not self._live:
            call = (to_meta(args), to_meta(kwargs))
            trace.count_flops[branch] = lambda: self._site_flops(call)

    def _site_flops(self, call: tuple[Any, Any]) -> dict[Site, float]:
        key = repr(shapes(call))
        if key not in self._flops:
            try:
                self._flops[key] = site_flops(self.bound, *call)
            except Exception as error:
                self._flops[key] = {}
                name = type(self.bound.transformer).__name__
                self._warn(
                    "flops",
                    f"FLOPs of {name} could not be counted from shapes (counted_live = True may help): {error!r}",
                )
        return self._flops[key]

    def _run_facts(self, arguments: Mapping[str, Any]) -> dict[str, object]:
        latent = arguments[self.bound.adapter.latent_input]
        shape = (len(latent), *latent[0].shape)
        guided = self._known_guided() if Part.MODEL in self.policy.parts else None
        return {"device": latent[0].device, "latent_shape": shape, "guided": guided, **self._facts}

    def share_warnings(self, other: ReuseEngine) -> None:
        """Say once what `other` and this engine would both say."""
        self._warned = other._warned

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, ReuseWarning, stacklevel=3)


class BranchContext:
    """Names the guidance branch of the forwards inside it."""

    def __init__(self, engine: ReuseEngine, name: str) -> None:
        self._engine, self._name = engine, name

    def __enter__(self) -> None:
        self._engine.enter_context(self._name)

    def __exit__(self, *exc: object) -> None:
        self._engine.leave_context()
