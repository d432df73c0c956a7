"""FLOPs counted while a forward runs, for models whose shapes depend on the values they are given."""

from __future__ import annotations

from typing import Any

from torch import nn

from fsframework.core.site import Site
from fsframework.core.visit import ForwardRecord
from fsframework.core.wrap import Slot


class CountingRecord(ForwardRecord):
    """A forward that also counts its FLOPs: enter `counter` around it. Only a video's first forward is one."""

    def __init__(self, *args: Any) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        super().__init__(*args)
        self.counter = FlopCounterMode(display=False)
        self.flops: dict[Site, float] = {}
        """What went by while each block or sub-module ran."""

    @property
    def total_flops(self) -> float:
        """FLOPs so far, of the whole model."""
        return float(self.counter.get_total_flops())

    def visit(self, slot: Slot, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As `ForwardRecord.visit`."""
        before = self.total_flops
        output = super().visit(slot, module, args, kwargs)
        if (key := self._slot_keys.get(slot)) is not None:
            self.flops[key.site] = self.total_flops - before
        return output
