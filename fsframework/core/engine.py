"""`ReuseEngine`: wrap, ask, recompute or reuse, observe, record, unwrap. Knows no policy and no model by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fsframework.core import wrap
from fsframework.core.adapter import BoundModel
from fsframework.core.cache import ReuseCache
from fsframework.core.decision import Forecast, Recompute, Reuse, Synthesize
from fsframework.core.flops import count_flops, to_meta
from fsframework.core.meter import Meter
from fsframework.core.policy import ReusePolicy
from fsframework.core.site import Branch, Part, Run, Site, Step
from fsframework.core.trace import FORECAST, RECOMPUTE, REUSE, SYNTHESIZE, Trace
from fsframework.core.visit import BlockKey, ForwardRecord, PartKey


class ReuseWarning(UserWarning):
    """Something a researcher should know about a run: nothing reused, a distance that is not finite, ..."""


class _Video:
    """State of the video in progress."""

    def __init__(self, engine: ReuseEngine, number: int, timesteps: Sequence[float]) -> None:
        self.timesteps = timesteps
        self.step = 0
        self.forward_seen = False
        self.seen: set[str] = set()
        self.states: dict[str, Any] = {}
        self.runs: dict[str, Run] = {}
        self.predictions: dict[str, Tensor] = {}
        self.trace = Trace(number, engine.sites, timesteps, engine.policy.parts)


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
        cache_dtype, cache_device: store cached values in another precision or place.
        group: the process group of the ranks that share one video.
        facts: what the run is known by (model, sampler, ...), for policies that check artifacts.

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
        group: Any = None,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        if not isinstance(policy, ReusePolicy):
            raise TypeError(f"policy must be a ReusePolicy object such as Foresight(gamma=0.5); got {policy!r}")
        if (scheduler is None) == (timesteps is None):
            raise ValueError("give either the sampler's scheduler or the timesteps of your own loop")
        self.bound = bound
        self.policy = policy
        self.timing = timing
        self.facts = dict(facts or {})
        self.sites = bound.sites(policy)
        self.forward_record: ForwardRecord | None = None
        self._get_scheduler: Callable[[], Any] | None = None
        if scheduler is not None:
            self._get_scheduler = scheduler if callable(scheduler) else lambda: scheduler
        self._own_timesteps = None if timesteps is None else [float(t) for t in torch.as_tensor(timesteps).tolist()]
        self._record = record
        self._group = group
        self._halves = {}
        if Part.MODEL in policy.parts:
            self._halves = {name: (i, 2) for i, name in enumerate(bound.adapter.batch_order)}
        device = None if cache_device is None else torch.device(cache_device)
        self.cache = ReuseCache(policy.depth, cache_dtype, device, self._halves)
        self.meter = Meter(group)
        self._video: _Video | None = None
        self._last: _Video | None = None
        self._pending = False
        self._context: list[str] = []
        self._explicit_step: int | None = None
        self._num_videos = 0
        self._num_forwards = 0
        self._warned: set[str] = set()
        self._keys: list[BlockKey] = []
        self._installed: list[tuple[Any, str]] = []
        self._scheduler: Any = None
        self._actives: list[wrap.Active] = []
        self._flops: dict[str, dict[Site, float]] = {}

    # Session.

    def __enter__(self) -> ReuseEngine:
        model = self.bound.transformer
        if model.__dict__.get("_compiled_call_impl") is not None or hasattr(model, "_orig_mod"):
            raise ValueError(
                f"{type(model).__name__} was compiled as a whole, so its blocks can no longer be intercepted and reuse "
                f"would silently do nothing. Compile its blocks instead, for instance `for b in model.transformer_blocks: "
                f"b.compile()`, before opening the session."
            )
        active = wrap.shared_active(model, "forward")
        if active.get():
            raise ValueError(
                f"this {type(model).__name__} is already in a reuse session; leave that one first, sessions do not nest"
            )
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
        if exc[0] is None and self._num_forwards == 0:
            self._warn(
                "idle",
                "the reuse session ended without seeing a single forward of the model. Was the pipeline called outside "
                "the `with` block, with another model, or in a thread that does not inherit this one's context?",
            )
        if exc[0] is None and self._last is not None:
            self._review(self._last)

    def attach(self) -> ReuseEngine:
        """Open the session without a `with` block, say in a notebook; `detach` closes it."""
        return self.__enter__()

    def detach(self) -> None:
        """Close a session opened with `attach`."""
        self.__exit__(None, None, None)

    def _install(self, model: nn.Module, active: wrap.Active) -> None:
        regions = [site for site in self.sites if site.part in (Part.TRUNK, Part.SPAN)]
        regions.sort(key=lambda site: -site.stop)
        asked = Part.BLOCK in self.policy.parts
        self._positions = [wrap.positions(block.module) for block in self.bound.blocks]
        self._keys = []
        self._actives = [active]
        self._put_in(model, wrap.MODEL, active, None)
        if hasattr(type(model), "cache_context"):
            self._put_in(model, wrap.CONTEXT, active, None)
        for index, block in enumerate(self.bound.blocks):
            site = next(
                (s for s in self.sites if s.part is Part.BLOCK and s.start == index), self.bound.block_site(index)
            )
            here = tuple(s for s in regions if s.start == index)
            key = BlockKey(block, index, site, asked, here, self._positions[index])
            self._keys.append(key)
            self._put_in(block.module, wrap.BLOCK, active, key)
            for part_site in [s for s in self.sites if s.part.inside_block and s.start == index]:
                name = block.facts.submodule(part_site.part)
                assert name is not None
                self._put_in(getattr(block.module, name), wrap.BLOCK, active, PartKey(key, part_site))
        if self._get_scheduler is not None:
            self._scheduler = self._get_scheduler()
            clock = wrap.shared_active(self._scheduler, "step")
            self._actives.append(clock)
            self._put_in(self._scheduler, wrap.SET_TIMESTEPS, clock, None)
            self._put_in(self._scheduler, wrap.STEP, clock, None)
            # set_timesteps may have been called just before the session, as in a loop of one's own.
            self._pending = getattr(self._scheduler, "num_inference_steps", None) is not None

    def _put_in(self, owner: Any, what: tuple[str, Callable[..., Any]], active: wrap.Active, key: Any) -> None:
        wrap.install(owner, what, active, key)
        self._installed.append((owner, what[0]))

    def _uninstall(self) -> None:
        while self._installed:
            wrap.uninstall(*self._installed.pop())

    # Time.

    def on_set_timesteps(self) -> None:
        """The scheduler was given new timesteps: the next forward begins a video."""
        self._pending = True

    def on_scheduler_step(self) -> None:
        """The scheduler took a step; it is ours if our model ran since the last one."""
        video = self._video
        if video is None or not video.forward_seen:
            return
        video.forward_seen = False
        video.seen.clear()
        video.predictions.clear()
        video.step += 1
        if video.step == len(video.timesteps):
            self._finish_video()

    def step(self, index: int) -> None:
        """In a loop of your own: the next forward belongs to step `index` (0-based); 0 begins a new video."""
        if self._own_timesteps is None:
            raise ValueError("this session takes its steps from the scheduler; session.step is for timesteps=...")
        if not 0 <= index < len(self._own_timesteps):
            raise ValueError(f"step {index} is outside the {len(self._own_timesteps)} timesteps of this session")
        self._explicit_step = index

    def new_video(self) -> None:
        """In a loop of your own: forget the video in progress; the next forward begins another."""
        self._finish_video()
        self._pending = True

    def enter_context(self, name: str) -> None:
        """diffusers' `cache_context` names the guidance branch."""
        self._context.append(self.bound.adapter.contexts.get(name, name))

    def leave_context(self) -> None:
        """End of a `cache_context`."""
        self._context.pop()

    def branch(self, name: str) -> _BranchContext:
        """In a loop of your own with one call per guidance branch: `with session.branch("cond"): model(...)`."""
        return _BranchContext(self, name)

    def _begin_video(self, timesteps: Sequence[float]) -> _Video:
        self._finish_video()
        if not timesteps:
            raise ValueError("the sampler has no timesteps; call scheduler.set_timesteps(num_steps) before the model")
        self._pending = False
        self.cache = ReuseCache(self.policy.depth, self.cache._dtype, self.cache._device, self._halves)
        self.meter = Meter(self._group)
        self._video = _Video(self, self._num_videos, timesteps)
        self._num_videos += 1
        return self._video

    def _finish_video(self) -> None:
        if self._video is not None:
            self.cache.clear()
            self._last, self._video = self._video, None
            self._last.states.clear()
            self._last.predictions.clear()

    def _now(self, arguments: Mapping[str, Any], branch: str) -> _Video:
        video = self._video
        if self._own_timesteps is not None:
            return self._now_by_timestep(arguments, branch)
        assert self._get_scheduler is not None
        if self._get_scheduler() is not self._scheduler:
            raise RuntimeError(
                "pipe.scheduler was replaced inside the reuse session, so its steps are not seen. Set the scheduler first, "
                "then open the session."
            )
        if self._pending:
            begin = getattr(self._scheduler, "begin_index", None) or 0
            return self._begin_video([float(t) for t in self._scheduler.timesteps[begin:].tolist()])
        if video is None:
            raise RuntimeError(
                "the model was called outside a denoising loop: no scheduler.set_timesteps since the session began or the "
                "last video ended. For a loop without a diffusers scheduler open the session with timesteps=[...]."
            )
        return video

    def _now_by_timestep(self, arguments: Mapping[str, Any], branch: str) -> _Video:
        timesteps = self._own_timesteps
        assert timesteps is not None
        index, self._explicit_step = self._explicit_step, None
        if index is None:
            index = self._find_step(arguments[self.bound.adapter.timestep_input], timesteps)
        video = self._video
        again = video is not None and index == 0 and (video.step > 0 or branch in video.seen)
        if video is None or self._pending or again:
            video = self._begin_video(timesteps)
        if index != video.step:
            video.seen.clear()
            video.predictions.clear()
            video.step = index
        return video

    def _find_step(self, timestep: Any, timesteps: Sequence[float]) -> int:
        if isinstance(timestep, Tensor):
            first = timestep.reshape(-1)[:1]
            value = first.tolist()[0] if first.device.type == "cpu" else self.meter.fetch(first)[0]
        else:
            value = float(timestep)
        nearest = min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - value))
        spacing = max(abs(timesteps[0] - timesteps[-1]) / max(len(timesteps) - 1, 1), 1e-6)
        if abs(timesteps[nearest] - value) > 0.25 * spacing:
            raise ValueError(
                f"the model was called with timestep {value:g}, which is none of the {len(timesteps)} of this session "
                f"(nearest: {timesteps[nearest]:g}). Give the session the timesteps your loop uses."
            )
        return nearest

    # A forward of the model.

    def model_forward(self, slot: wrap.Slot, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called by the wrapper of the model."""
        if self.forward_record is not None:
            return slot.call(model, args, kwargs)
        if torch.is_grad_enabled() and not self.policy.differentiable:
            self._warn(
                "grad",
                f"gradients are enabled, so {type(self.policy).__name__} is bypassed and everything is computed. "
                f"Generate under torch.no_grad().",
            )
            self._num_forwards += 1
            return slot.call(model, args, kwargs)
        arguments = {**dict(zip(wrap.positions(model), args)), **kwargs}
        branch = self._context[-1] if self._context else Branch.JOINT.value
        video = self._now(arguments, branch)
        if branch in video.seen:
            raise RuntimeError(
                f"two forwards in step {video.step} for guidance branch {branch!r}. If your loop calls the model once per "
                f'branch, name them: `with session.branch("cond"): ...` and `with session.branch("uncond"): ...`. If it '
                f"does not call scheduler.step, open the session with timesteps=[...]."
            )
        video.seen.add(branch)
        video.forward_seen = True
        self._num_forwards += 1
        if video.trace.count_flops is None:
            call = (to_meta(args), to_meta(kwargs))
            video.trace.count_flops = lambda: self._site_flops(call)
        if branch not in video.states:
            run = Run(len(video.timesteps), video.timesteps, self.sites, branch, self._run_facts(arguments))
            video.states[branch], video.runs[branch] = self.policy.start(run), run
        step = Step(video.step, len(video.timesteps), video.timesteps[video.step])
        self.bound.num_samples = arguments[self.bound.adapter.latent_input].shape[0]
        record = ForwardRecord(self, video.runs[branch], step, branch, video.states[branch], arguments)
        self.policy.begin_forward(record.state, record)
        if self.policy.eliminate_dead and self.policy.storage == "output":
            record.plan(self._keys)
        try:
            if Part.MODEL in self.policy.parts:
                output = self._ask_model(record, video, slot, model, args, kwargs, arguments)
            else:
                output = self._run_model(record, video, 1.0, slot, model, args, kwargs)
        finally:
            self.forward_record = None
        self.policy.end_forward(record.state, record)
        return output

    def _run_model(
        self,
        record: ForwardRecord,
        video: _Video,
        batch_share: float,
        slot: wrap.Slot,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        trace = video.trace
        trace.forwards.append((video.step, record.branch, batch_share))
        first = len(trace)
        self.forward_record = record
        output = slot.call(model, args, kwargs)
        self.forward_record = None
        if batch_share != 1.0:
            trace.batch_share.update((row, batch_share) for row in range(first, len(trace)))
        if not record.visited:
            raise RuntimeError(
                f"none of the {len(self._keys)} blocks of {type(model).__name__} came by in a forward: their wrappers are no "
                f"longer in place. Removing an offload hook that was installed before the session does this; open a new "
                f"session after changing hooks."
            )
        if len(record.visited) < len(self._keys):
            missing = [key.site.name for key in self._keys if key.index not in record.visited]
            self._warn(
                "missing", f"{len(missing)} blocks were not run by the model itself: {', '.join(missing[:4])} ..."
            )
        return output

    def _ask_model(
        self,
        record: ForwardRecord,
        video: _Video,
        slot: wrap.Slot,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        arguments: Mapping[str, Any],
    ) -> Any:
        site = self.sites[0]
        record._streams = (arguments[self.bound.adapter.latent_input],)
        row = record._record(site, RECOMPUTE, 0)
        decision = self.policy.decide(record.state, record, site)
        history = self.cache.history(record.branch, site)
        if isinstance(decision, (Reuse, Forecast)):
            if history:
                reuse = isinstance(decision, Reuse)
                value = history[-1].value if isinstance(decision, Reuse) else decision.fn(history, record.step)
                prediction = value[0] + record._streams[0] if self.policy.storage == "residual" else value[0]
                record._amend(row, REUSE if reuse else FORECAST, video.step - history[-1].step)
                video.trace.forwards.append((video.step, record.branch, 0.0))
                video.predictions[record.branch] = prediction
                return self._as_model_output(prediction, arguments)
            record._force(row)
        elif isinstance(decision, Synthesize):
            output = self._synthesize(decision, record, row, video, slot, model, args, kwargs, arguments)
            if output is not None:
                return output
            record._force(row)
        elif not isinstance(decision, Recompute):
            raise TypeError(
                f"{type(self.policy).__name__}.decide({site}) gave {decision!r}; the model takes Recompute, Reuse, "
                f"Forecast or Synthesize"
            )
        latent = record._streams
        output = self._run_model(record, video, 1.0, slot, model, args, kwargs)
        prediction = self._prediction(output)
        record._row, record._streams = row, latent
        self.policy.observe(record.state, record, site, (prediction,), self.cache.last(record.branch, site))
        record._store(site, (prediction,), latent)
        video.predictions[record.branch] = prediction
        return output

    def _synthesize(
        self,
        decision: Synthesize,
        record: ForwardRecord,
        row: int,
        video: _Video,
        slot: wrap.Slot,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        arguments: Mapping[str, Any],
    ) -> Any:
        """The output with one branch made from the others; None where what it needs is absent."""
        if record.branch == decision.branch:
            if not video.predictions:
                return None
            prediction = decision.fn(dict(video.predictions))
            record._amend(row, SYNTHESIZE, 0)
            video.trace.forwards.append((video.step, record.branch, 0.0))
            return self._as_model_output(prediction, arguments)
        order = self.bound.adapter.batch_order
        if record.branch != Branch.JOINT or decision.branch not in order:
            return None
        other = order[1 - order.index(decision.branch)]
        half = order.index(other)
        batch = record._streams[0].shape[0]
        if batch % 2:
            return None
        rows = slice(half * batch // 2, (half + 1) * batch // 2)
        names = wrap.positions(model)
        cut = {n: arguments[n][rows] for n in self.bound.adapter.batched_inputs if isinstance(arguments.get(n), Tensor)}
        some_args = tuple(cut.get(name, value) for name, value in zip(names, args))
        some_kwargs = {name: cut.get(name, value) for name, value in kwargs.items()}
        record.branch = other
        self.bound.num_samples = batch // 2
        output = self._run_model(record, video, 0.5, slot, model, some_args, some_kwargs)
        record.branch = Branch.JOINT.value
        self.bound.num_samples = batch
        own = self._prediction(output)
        made = decision.fn({other: own})
        record._amend(row, SYNTHESIZE, 0)
        return self._as_model_output(torch.cat([own, made] if half == 0 else [made, own]), arguments, like=output)

    def _prediction(self, output: Any) -> Tensor:
        if isinstance(output, tuple):
            self._output_type: Any = tuple
            return output[0]
        if isinstance(output, Tensor):
            self._output_type = Tensor
            return output
        self._output_type = type(output)
        prediction: Tensor = next(iter(output.values()))
        return prediction

    def _as_model_output(self, prediction: Tensor, arguments: Mapping[str, Any], like: Any = None) -> Any:
        if like is not None:
            self._prediction(like)
        if self._output_type is Tensor:
            return prediction
        if arguments.get("return_dict") is False or self._output_type is tuple:
            return (prediction,)
        return self._output_type(prediction)

    # For the records.

    @property
    def recording(self) -> Trace | None:
        """The trace being written, if any."""
        return self._video.trace if self._record and self._video is not None else None

    def state_of(self, branch: str) -> object | None:
        """The policy's state for another branch of this video."""
        return None if self._video is None else self._video.states.get(branch)

    def block_positions(self, index: int) -> dict[str, int]:
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
        """The last video in numbers: the trace's summary, the peak of the cache in bytes, and host reads per step."""
        trace = self.trace
        return {
            **trace.summary(),
            "cache_bytes_peak": float(self.cache.peak_bytes),
            "host_reads_per_step": self.meter.num_reads / len(trace.timesteps),
        }

    def _site_flops(self, call: tuple[Any, Any]) -> dict[Site, float]:
        """FLOPs of one full visit of every block and sub-module site, and of the model under a MODEL site."""
        key = repr(_shapes(call))
        if key not in self._flops:
            self._flops[key] = self._count_flops(call)
        return self._flops[key]

    def _count_flops(self, call: tuple[Any, Any]) -> dict[Site, float]:
        try:
            by_path = count_flops(self.bound.transformer, *call)
        except Exception as error:
            self._warn("flops", f"FLOPs of {type(self.bound.transformer).__name__} could not be counted: {error!r}")
            return {}
        out = {Site(Part.MODEL, self.bound._kind(0, len(self._keys)), 0, len(self._keys)): by_path[""]}
        for index, block in enumerate(self.bound.blocks):
            path = f"{block.facts.path}.{block.ordinal}"
            out[self.bound.block_site(index)] = by_path.get(path, 0.0)
            for site in self.bound.part_sites(index, frozenset(Part)):
                out[site] = by_path.get(f"{path}.{block.facts.submodule(site.part)}", 0.0)
        return out

    def _run_facts(self, arguments: Mapping[str, Any]) -> dict[str, object]:
        latent = arguments[self.bound.adapter.latent_input]
        return {"device": latent.device, "latent_shape": tuple(latent.shape), **self.facts}

    def _review(self, video: _Video) -> None:
        """Warn about what a researcher would want to know before believing the numbers."""
        trace = video.trace
        if not self._record or not len(trace):
            return
        distances, thresholds = trace.column("distance"), trace.column("threshold")
        logged = [(row, d) for row, d in trace._values("distance").items()]
        broken = [(trace.site[row].name, trace.step[row], d) for row, d in logged if not math.isfinite(d)]
        if broken:
            name, step, value = broken[0]
            self._warn(
                "finite",
                f"{len(broken)} of {len(logged)} distances are not finite; first: {value} at {name}, step {step}. Such "
                f"blocks are recomputed. The activations themselves overflow; try bfloat16 or float32.",
            )
        schedule = self.policy.schedule(next(iter(video.runs.values()))) if video.runs else None
        if all(d == RECOMPUTE for d in trace.decision) and not (schedule and all(schedule)):
            finite = [d for d in distances if math.isfinite(d)]
            lines = [t for t in thresholds if math.isfinite(t)]
            measured = f" Smallest distance {min(finite):.3g}" if finite else ""
            measured += f", largest threshold {max(lines):.3g}." if finite and lines else ""
            self._warn(
                "nothing", f"{type(self.policy).__name__} reused nothing in {len(trace.timesteps)} steps.{measured}"
            )

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, ReuseWarning, stacklevel=3)


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return [_shapes(v) for v in value]
    if isinstance(value, dict):
        return {k: _shapes(v) for k, v in value.items()}
    return value


class _BranchContext:
    def __init__(self, engine: ReuseEngine, name: str) -> None:
        self._engine, self._name = engine, name

    def __enter__(self) -> None:
        self._engine.enter_context(self._name)

    def __exit__(self, *exc: object) -> None:
        self._engine.leave_context()
