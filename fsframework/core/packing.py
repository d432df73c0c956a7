"""`Packing`: in which precision and where cached values are kept, undone when they are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fsframework.core.site import State
from fsframework.core.transfer import Transfers

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALED = (torch.float16, *FLOAT8)
"""Precisions whose largest number is soon reached: each tensor is stored with the factor that makes its largest fit."""


@dataclass(slots=True)
class Packed:
    """A `State` as it is kept."""

    tensors: State
    scales: tuple[Tensor | None, ...]
    """What to multiply each by, 0-d float32 where it is computed; None: nothing."""
    like: tuple[tuple[torch.dtype, torch.device], ...]
    """The dtype and device each came with."""
    arrived: list[Any] = field(default_factory=list)
    """Events: each tensor's copy to where it is kept, of those that were moved."""
    fetched: tuple[State, list[Any]] | None = None
    """Copies on their way back, in the kept precision, with their events."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors and factors."""
        return sum([t.nbytes for t in self.tensors]) + sum([s.nbytes for s in self.scales if s is not None])


class Packing:
    """Packs values and gives them back in the dtype and on the device they came with.

    `dtype` applies to floating-point tensors. float16 and the two float8 formats are stored with a factor for each tensor:
    the power of two, so that scaling does not round, that brings its largest magnitude just within the format. That costs a
    pass over the value and no host read. A tensor that holds a NaN or an infinity comes back as NaN, so its distance to
    anything is not finite.

    With `device`, values move on streams of their own (`Transfers`): away while the model goes on, and back before they are
    needed where `prefetch` was called. With `copy` every value is cloned, for models whose outputs are overwritten later
    (CUDA graphs).
    """

    def __init__(
        self,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        copy: bool = False,
        transfers: Transfers | None = None,
    ) -> None:
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"cache_dtype={dtype} must be a floating-point type, such as torch.bfloat16")
        self._dtype = dtype
        self._device = device
        self._copy = copy
        self._transfers = transfers
        self.is_plain = dtype is None and device is None and not copy
        """Values are kept as they are."""

    def pack(self, value: State) -> Packed:
        """`value` as it is kept. Waits for nothing."""
        pairs = [self._lower(t) for t in value]
        packed = Packed(
            tuple(t for t, _ in pairs), tuple(s for _, s in pairs), tuple([(t.dtype, t.device) for t in value])
        )
        if self._copy:
            packed.tensors = tuple(t.clone() if t is v else t for t, v in zip(packed.tensors, value))
        if self._device is not None:
            moved = [self._away(t, packed.arrived) for t in packed.tensors]
            packed.tensors = tuple(moved)
        return packed

    def unpack(self, packed: Packed) -> State:
        """The value. Its tensors are those that are kept, where nothing had to be undone."""
        if packed.fetched is None:
            self.prefetch(packed)
        tensors, events = packed.fetched or (packed.tensors, [])
        if self._transfers is not None:
            for tensor, event in zip(tensors, events):
                self._transfers.wait(tensor, event)
        return tuple([_raised(t, s, dtype) for t, s, (dtype, _) in zip(tensors, packed.scales, packed.like)])

    def prefetch(self, packed: Packed) -> None:
        """Begin to bring a value back to where it is computed with. Waits for nothing."""
        if packed.fetched is not None or self._device is None:
            return
        events: list[Any] = []
        back = [self._back(t, device, packed.arrived, events) for t, (_, device) in zip(packed.tensors, packed.like)]
        packed.fetched = (tuple(back), events)

    def release(self, packed: Packed) -> None:
        """Forget what was brought back."""
        packed.fetched = None

    def _lower(self, tensor: Tensor) -> tuple[Tensor, Tensor | None]:
        if self._dtype is None or not tensor.is_floating_point() or tensor.dtype == self._dtype:
            return tensor, None
        if self._dtype not in SCALED or tensor.numel() == 0:
            return tensor.to(self._dtype), None
        low, high = tensor.aminmax()
        largest = torch.maximum(-low, high).float()
        _, exponent = torch.frexp(largest / torch.finfo(self._dtype).max)
        # Converting an infinity to float8_e4m3fn gives its largest number.
        scale = torch.where(largest.isfinite(), torch.exp2(exponent.clamp(-126, 127).float()), largest)
        return (tensor / scale).to(self._dtype), scale

    def _away(self, tensor: Tensor, arrived: list[Any]) -> Tensor:
        assert self._device is not None
        transfers = self._transfers_of(tensor.device)
        if transfers is None:
            return tensor.to(self._device)
        moved, event = transfers.away(tensor, self._device)
        arrived.append(event)
        return moved

    def _back(self, tensor: Tensor, device: torch.device, arrived: list[Any], events: list[Any]) -> Tensor:
        transfers = self._transfers_of(device)
        if transfers is None:
            return tensor.to(device)
        moved, event = transfers.back(tensor, device, arrived)
        events.append(event)
        return moved

    def _transfers_of(self, device: torch.device) -> Transfers | None:
        """What moves values to and from `device`; None where plain copies do, between devices without streams."""
        if self._transfers is None and device.type not in ("cpu", "meta") and device != self._device:
            self._transfers = Transfers(torch.get_device_module(device))
        return self._transfers


def _raised(tensor: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    if tensor.dtype == dtype:
        return tensor
    return tensor.to(dtype) if scale is None else tensor.to(dtype).mul_(scale)
