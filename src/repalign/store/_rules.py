"""What may be written into a part: the rules for its rows, layers, extras and names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from repalign.errors import RepalignError, did_you_mean
from repalign.store._manifest import shown
from repalign.store._part import DTYPES


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` (excluded) of every layer: the unit of resume and of distribution."""

    index: int
    start: int
    stop: int

    @property
    def n(self) -> int:
        return self.stop - self.start

    @property
    def file(self) -> str:
        return f"part-{self.index:05d}.safetensors"


def check_layer(model: str, part: Part, ids: Sequence[str], name: str, x: Tensor) -> None:
    """RepalignError unless a layer is (part.n, d), of a dtype that is stored, and finite."""
    where = f"{model}, layer {name!r}"
    check_name(model, name)
    if x.ndim != 2 or x.shape[1] == 0:
        raise RepalignError(
            f"{where}: a layer has two dimensions", expected="shape (rows, d), d > 0", got=tuple(x.shape)
        )
    if x.shape[0] != part.n:
        raise RepalignError(
            f"{where}: wrong number of rows for {part.file}",
            expected=f"{part.n} rows ({part.start} to {part.stop - 1})",
            got=f"{x.shape[0]} rows",
        )
    if x.dtype not in DTYPES:
        raise RepalignError(
            f"{where}: this dtype is not stored",
            expected=", ".join(str(d).removeprefix("torch.") for d in DTYPES),
            got=str(x.dtype).removeprefix("torch."),
        )
    good = torch.isfinite(x).all(dim=1)
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        what = "NaN" if bool(x[row].isnan().any()) else "infinite"
        raise RepalignError(
            f"{where}: the row of id {ids[part.start + row]!r} (row {part.start + row}) is {what}",
            expected="finite numbers",
            got=f"{int((~good).sum())} of {part.n} rows with NaN or infinity",
            remedy="run the model in float32, or bfloat16 in place of float16; then look at its input",
        )


def to_store(model: str, part: Part, name: str, x: Tensor) -> Tensor:
    """An extra as it is stored: one number per row, float64, on the CPU."""
    check_name(model, name)
    if x.shape != (part.n,):
        raise RepalignError(
            f"{model}: the extra {name!r} of {part.file} has the wrong shape",
            expected=f"({part.n},), one number per row",
            got=tuple(x.shape),
        )
    return x.detach().to("cpu", torch.float64)


def check_same_layers(who: str, expected: list[str], got: list[str]) -> None:
    """RepalignError, naming a layer, unless two parts have the same layers in the same order."""
    if got == expected:
        return
    missing = [name for name in expected if name not in got]
    extra = [name for name in got if name not in expected]
    if missing:
        what = f"layer {missing[0]!r} is missing"
    elif extra:
        what = f"layer {extra[0]!r} is not in the other parts"
    else:
        what = "the layers are in another order"
    raise RepalignError(
        f"{who}: {what}",
        expected=f"{len(expected)} layers: {shown(expected)}",
        got=f"{len(got)} layers: {shown(got)}",
        remedy=did_you_mean(missing[0], extra) if missing and extra else None,
    )


def check_name(model: str, name: object) -> None:
    """Any text that UTF-8 can hold is a name; others would make a file that no reader opens."""
    try:
        if isinstance(name, str) and name.encode():
            return
    except UnicodeEncodeError as error:
        raise RepalignError(f"{model}: the name {name!r} is not valid text: {error.reason}") from error
    raise RepalignError(f"{model}: {name!r} is not a name", expected="text that is not empty")
