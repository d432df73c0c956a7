"""The rectified-flow sampler of Open-Sora 1.2: Euler steps on a straight path, at times shifted by the video's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from torch import Tensor

LATENT_FRAMES_PER_CHUNK, FRAMES_PER_CHUNK = 5, 17


@dataclass
class RFlowSchedulerOutput(BaseOutput):
    """`prev_sample`: the latent one step nearer to data."""

    prev_sample: Tensor


class RFlowScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """From noise at t = 1000 to data at t = 0: z <- z + v (t_i - t_{i+1}) / 1000, where v is data minus noise.

    Args:
        num_train_timesteps: the time of pure noise.
        use_timestep_transform: shift times towards noise for videos with more pixels and frames.
        size_dtype: `float32`, or `bfloat16` to round height, width and number of frames as the released code does when it
            runs in bfloat16 (854 becomes 856), for parity with published runs.
    """

    order = 1

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, use_timestep_transform: bool = True, size_dtype: str = "float32"
    ) -> None:
        if size_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"RFlowScheduler: size_dtype={size_dtype!r} must be 'float32' or 'bfloat16'")
        self.num_train_timesteps = num_train_timesteps
        self.use_timestep_transform = use_timestep_transform
        self.size_dtype = torch.bfloat16 if size_dtype == "bfloat16" else torch.float32
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0)
        self._ends = torch.empty(0)
        self._step_index: int | None = None

    @property
    def step_index(self) -> int | None:
        """Which step comes next; None before the first."""
        return self._step_index

    @property
    def init_noise_sigma(self) -> float:
        """What the first noise is multiplied by."""
        return 1.0

    def scale_model_input(self, sample: Tensor, timestep: Tensor | None = None) -> Tensor:
        """The sample as it is."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        timesteps: Sequence[float] | Tensor | None = None,
    ) -> None:
        """Lay out the times of a video: `timesteps` is then float32 [num_steps], falling, the first 1000.

        Args:
            num_inference_steps: number of steps, at least 1.
            device: where `timesteps` shall be.
            height: of the video in pixels, for the transform; also width and num_frames.
            width: see height.
            num_frames: 1, or at least 17.
            timesteps: times of your own instead, falling, each in (0, 1000]; they are not transformed.

        Raises:
            ValueError: neither or both of number and times, times that are not as said above, a size missing, or 2 to 16
                frames.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("RFlowScheduler.set_timesteps takes either num_inference_steps or timesteps")
        if timesteps is not None:
            times = torch.as_tensor(timesteps, dtype=torch.float32).to("cpu")
            self._check_times(times)
        else:
            assert num_inference_steps is not None
            if num_inference_steps < 1:
                raise ValueError(f"num_inference_steps={num_inference_steps} must be at least 1")
            even = [(1 - i / num_inference_steps) * self.num_train_timesteps for i in range(num_inference_steps)]
            times = torch.tensor(even, dtype=torch.float32)
            if self.use_timestep_transform:
                times = self._transform(times, height, width, num_frames)
        self.timesteps = times.to(device)
        self._ends = torch.cat([times[1:], times.new_zeros(1)]).to(device)
        self.num_inference_steps = len(times)
        self._step_index = None

    def _check_times(self, times: Tensor) -> None:
        if times.ndim != 1 or len(times) == 0:
            raise ValueError(f"timesteps have shape {tuple(times.shape)}; give a list of at least one time")
        inside = (times > 0) & (times <= self.num_train_timesteps)
        if not bool(inside.all()):
            raise ValueError(
                f"timesteps must each be in (0, {self.num_train_timesteps}], from data to pure noise; found "
                f"{times[~inside].tolist()}"
            )
        stays = times[1:] >= times[:-1]
        if bool(stays.any()):
            index = int(stays.nonzero()[0])
            before, after = times[index : index + 2].tolist()
            raise ValueError(
                f"timesteps must fall from each to the next, from noise to data; {before} at {index} is followed by {after}"
            )

    def _transform(self, times: Tensor, height: int | None, width: int | None, num_frames: int | None) -> Tensor:
        """Shift times for a video's size: u' = r u / (1 + (r - 1) u) with r = sqrt(H W / 512^2) sqrt(latent frames)."""
        if height is None or width is None or num_frames is None:
            raise ValueError(
                "RFlowScheduler.set_timesteps needs height, width and num_frames of the video, because its times depend on "
                "its size; or set use_timestep_transform=False"
            )
        check_num_frames(num_frames)
        rows, columns, frames = (torch.tensor([v], dtype=self.size_dtype) for v in (height, width, num_frames))
        latent_frames = frames if num_frames == 1 else frames // FRAMES_PER_CHUNK * LATENT_FRAMES_PER_CHUNK
        ratio = (rows * columns / (512 * 512)).sqrt() * latent_frames.sqrt()
        u = times / self.num_train_timesteps
        shifted = ratio * u / (1 + (ratio - 1) * u) * self.num_train_timesteps
        # Rounded, the first is 1000.0001 for some sizes (136 x 256), and FrameMask would take no frame for begun by then.
        return shifted.clamp(max=self.num_train_timesteps)

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float,
        sample: Tensor,
        frame_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> RFlowSchedulerOutput | tuple[Tensor]:
        """One Euler step.

        Args:
            model_output: the guided velocity [B, C, T, H, W], data minus noise.
            timestep: the current one, from `timesteps`.
            sample: the latent, like `model_output`.
            frame_mask: [B, T] bool; frames where it is False keep their value. None: all move.
            return_dict: give an `RFlowSchedulerOutput` rather than a tuple.

        Returns:
            The next latent, in the wider of the two dtypes (float32 for a float32 velocity, as in the released code).

        Raises:
            ValueError: `set_timesteps` was not called, or all its steps were taken.
        """
        if self.num_inference_steps is None:
            raise ValueError("RFlowScheduler: call set_timesteps before step")
        if self._step_index is None:
            self._step_index = self.index_for_timestep(timestep)
        index = self._step_index
        if index >= self.num_inference_steps:
            raise ValueError(
                f"RFlowScheduler: all {self.num_inference_steps} steps were taken; call set_timesteps for another video"
            )
        length = (self.timesteps[index] - self._ends[index]) / self.num_train_timesteps
        moved = sample + model_output * length.to(sample.device)
        if frame_mask is not None:
            moved = torch.where(frame_mask[:, None, :, None, None], moved, sample)
        self._step_index = index + 1
        return RFlowSchedulerOutput(prev_sample=moved) if return_dict else (moved,)

    def index_for_timestep(self, timestep: Tensor | float) -> int:
        """The index of a value of `timesteps`.

        Raises:
            ValueError: it is not among them.
        """
        found = (self.timesteps == timestep).nonzero()
        if len(found) == 0:
            raise ValueError(f"timestep {timestep} is not one of this scheduler's: {self.timesteps.tolist()}")
        return int(found[0])

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Go from data towards noise: (1 - t / 1000) data + t / 1000 noise, with t of shape [B] or []."""
        share = (timesteps.to(original_samples.device).float() / self.num_train_timesteps).reshape(-1, 1, 1, 1, 1)
        return (1 - share) * original_samples + share * noise

    def __len__(self) -> int:
        return self.num_train_timesteps


def check_num_frames(num_frames: int) -> None:
    """Raise a ValueError for a number of frames that the transform of times can not take."""
    if num_frames < 1 or 1 < num_frames < FRAMES_PER_CHUNK:
        raise ValueError(
            f"Open-Sora 1.2 can not make {num_frames} frames: a video is 1 frame or at least {FRAMES_PER_CHUNK}, best a "
            f"multiple of {FRAMES_PER_CHUNK} (2s is 51). For 2 to 16 its sampling times would be undefined."
        )
