"""The largest entries of every row of a matrix that is seen in tiles, never as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Best:
    """The m largest values per row so far, largest first, and their columns; changed in place by `offer`.

    Places not filled yet hold -inf, and entries of -inf are never taken.
    """

    values: Tensor  # (n, m)
    indices: Tensor  # (n, m) int64

    @classmethod
    def of(cls, n: int, m: int, like: Tensor) -> Self:
        """Empty, with the dtype and device of `like`."""
        return cls(like.new_full((n, m), -math.inf), torch.zeros(n, m, dtype=torch.int64, device=like.device))

    def offer(self, row: int, tile: Tensor, column: int) -> None:
        """Take in tile (r, c), whose first entry stands at (row, column); fast for row-major tiles and their transposes.

        A chunk is a set of columns. Of a row only the chunks with the m largest maxima can hold one of its m largest
        entries, and only if these exceed the least value held. So sorting touches a few entries per row.
        """
        m = self.values.shape[1]
        width = _chunk_width(tile.shape[1], m)
        rest = tile.shape[1] % width
        if rest:
            self.offer(row, tile[:, :-rest], column)
            self.offer(row, tile[:, -rest:], column + tile.shape[1] - rest)
            return
        chunks = tile.unflatten(1, (width, -1))  # (r, width, count): chunk j holds the columns j, j + count, ...
        maxima = chunks.permute(1, 2, 0).amax(dim=0).T if tile.stride(0) == 1 else chunks.amax(dim=1)
        hot = (maxima > self.values[row : row + len(tile), -1:]).sum(dim=1)
        most = min(m, int(hot.max()))
        if not most:
            return
        which = torch.nonzero(hot).flatten()
        chosen = maxima[which].topk(most, dim=1).indices  # (h, most)
        self._merge(row + which, chunks[which[:, None], :, chosen], column + chosen, maxima.shape[1])

    def _merge(self, rows: Tensor, values: Tensor, columns: Tensor, step: int) -> None:
        """Candidates (h, most, width), of which entry (i, j, w) stands in column columns[i, j] + w step."""
        m = self.values.shape[1]
        held = self.indices[rows]
        top = torch.cat([self.values[rows], values.flatten(1)], dim=1).topk(m, dim=1)
        place = (top.indices - m).clamp_(min=0)
        width = values.shape[2]
        new = columns.gather(1, place // width) + place % width * step
        self.values[rows] = top.values
        self.indices[rows] = torch.where(top.indices < m, held.gather(1, top.indices.clamp(max=m - 1)), new)


def _chunk_width(columns: int, m: int) -> int:
    """A power of two near sqrt(columns / m): as many maxima to look through as entries of the chosen chunks."""
    return 2 ** max(0, round(math.log2(columns / m) / 2)) if columns > m else 1
