"""Running a module on some tokens only, for `Partial`, and choosing which. `index` is int64, [k] for all rows or [B, k]."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fsframework.core.site import Site

if TYPE_CHECKING:
    from fsframework.core.adapter import BlockList, Tokens


def take_tokens(x: Tensor, index: Tensor) -> Tensor:
    """[B, N, C] -> [B, k, C]."""
    if index.ndim == 1:
        return x.index_select(1, index)
    return x.gather(1, index[..., None].expand(*index.shape, x.shape[-1]))


def put_tokens(whole: Tensor, few: Tensor, index: Tensor) -> Tensor:
    """A copy of `whole` [B, N, C] with the tokens at `index` replaced by `few` [B, k, C]."""
    if index.ndim == 1:
        return whole.index_copy(1, index, few)
    return whole.scatter(1, index[..., None].expand(*index.shape, whole.shape[-1]), few)


def num_chosen(fraction: float, num_tokens: int) -> int:
    """How many of `num_tokens` a fraction (in 0..1, else the nearer end) is, rounded down: known without a device."""
    return int(min(max(fraction, 0.0), 1.0) * num_tokens + 1e-9)


def unit_scores(score: Tensor) -> Tensor:
    """Scores [R, N] >= 0 in float32, each row divided by its L2 norm, so that rows of any scale and length compare."""
    return torch.nn.functional.normalize(score.float(), dim=-1)


def entropy(weights: Tensor) -> Tensor:
    """[R, N]: -sum p log p over the last axis of attention weights [R, N, L], in nats; 0 log 0 is 0."""
    return torch.special.entr(weights.float()).sum(dim=-1)


def over_samples(score: Tensor, num_samples: int) -> Tensor:
    """The mean over the batch of scores [(B F), N], B outermost: [F, N], one row for each row folded into a sample."""
    return score.unflatten(0, (num_samples, -1)).mean(dim=0)


def highest(score: Tensor, k: int) -> Tensor:
    """[R, k]: the places of the k highest scores of each row of [R, N]; NaN counts as highest. Not sorted."""
    return score.topk(k, dim=-1, sorted=False).indices


def aged(ages: Tensor, index: Tensor) -> Tensor:
    """Ages [R, N] one visit later: 0 at `index` [R, k], elsewhere 1 more."""
    return (ages + 1).scatter_(-1, index, 0)


def for_rows(index: Tensor, num_rows: int) -> Tensor:
    """An index [F, k] as `Partial` takes it, for an input of [(B F), N, C]: [k] where F is 1, else repeated B times."""
    if index.shape[0] == 1:
        return index[0]
    return index.repeat(num_rows // index.shape[0], 1)


def video_tokens(streams: Iterable[Tensor], order: Tokens, num_video: int) -> Tensor:
    """The video tokens in a sub-module's first [B, N, C] input: what the index of a `Partial` counts."""
    x = next((t for t in streams if t.ndim == 3), None)
    if x is None:
        raise ValueError("Partial needs a sub-module with a [B, N, C] input")
    if order == "video":
        return x
    return x[:, x.shape[1] - num_video :] if order == "text+video" else x[:, :num_video]


def cut_first(
    args: tuple[Any, ...], kwargs: dict[str, Any], index: Tensor, order: Tokens, num_video: int
) -> tuple[Tensor, int, tuple[Any, ...], dict[str, Any]]:
    """A sub-module's arguments with only some tokens of its first [B, N, C] tensor.

    `index` counts video tokens, of which there are `num_video`; all text tokens beside them stay. Gives the index along
    the input's own token axis, its N, and the arguments.
    """
    listed, named = list(args), dict(kwargs)
    places: list[tuple[int | str, Any]] = [*enumerate(listed), *named.items()]
    for place, value in places:
        if isinstance(value, Tensor) and value.ndim == 3:
            num_tokens = value.shape[1]
            own = _with_text(index, order, num_video, num_tokens - num_video)
            if isinstance(place, int):
                listed[place] = take_tokens(value, own)
            else:
                named[place] = take_tokens(value, own)
            return own, num_tokens, tuple(listed), named
    raise ValueError("Partial needs a sub-module with a [B, N, C] input")


def _with_text(index: Tensor, order: Tokens, num_video: int, num_text: int) -> Tensor:
    if order == "video" or num_text == 0:
        return index
    first = 0 if order == "text+video" else num_video
    text = torch.arange(first, first + num_text, device=index.device).expand(*index.shape[:-1], num_text)
    return torch.cat([text, index + num_text] if order == "text+video" else [index, text], dim=-1)


def cut_tables(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    where: Mapping[str, int],
    names: Iterable[str],
    index: Tensor,
    num_video: int,
    site: Site,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with only some rows of the tables that have one per video token (rotary embeddings).

    `where` is the position of each argument by name. A table's token axis is the first of the right size.
    """
    listed, named = list(args), dict(kwargs)
    for name in names:
        position = where.get(name, len(listed))
        table = named.get(name) if name in named else listed[position] if position < len(listed) else None
        if table is None:
            continue
        if index.ndim != 1:
            raise ValueError(
                f"{site} has a table per token ({name}): Partial needs the same tokens for the whole batch"
            )
        cut = _cut_table(table, index, num_video)
        if name in named:
            named[name] = cut
        else:
            listed[position] = cut
    return tuple(listed), named


def _cut_table(table: Any, index: Tensor, num_video: int) -> Any:
    if isinstance(table, (tuple, list)):
        return type(table)(_cut_table(part, index, num_video) for part in table)
    if isinstance(table, Tensor) and num_video in table.shape:
        return table.index_select(table.shape.index(num_video), index)
    return table


def check_partial(facts: BlockList, site: Site, policy: str) -> Tokens:
    """What tokens the site's input holds; an error where it can not run on some of them."""
    order = facts.partial.get(site.part)
    if order is None:
        able = ", ".join(part.value for part in facts.partial) or "no part of it"
        raise ValueError(
            f"{policy}.decide({site}) gave Partial, but the {site.part.value} of {facts.path!r} can not run on some tokens "
            f"(possible: {able}). If it can, its adapter says so in BlockList.partial."
        )
    return order
