"""Groups of relabellings whose scores are circular correlations: exact draws for all cells at once, by FFT."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from repalign.errors import RepalignError
from repalign.measures.measure import DenseRelation, GraphRelation, Measure, Relation, State, TwoRoles
from repalign.measures.numerics.precision import CACHED_BYTES, full_precision
from repalign.measures.numerics.rows import blocks, empty
from repalign.null.groups import Groups
from repalign.null.null import ONE_SIDE, Joint, Null, Prepared, Scored, Streams, by_role, must_be_bilinear
from repalign.workers import at_once, each, in_parts


@dataclass(frozen=True)
class Cyclic(Null):
    """All cyclic shifts after one seeded random relabelling, for bilinear measures, by FFT.

    With A, B relabelled by the same random sigma, T(s) = sum_ij A_ij B_{i+s,j+s} for all shifts s at once is a sum
    over wrapped diagonals of circular cross-correlations: one FFT per layer, kept, and one small complex matrix
    product per frequency and pair of models. The shifts form a group, so that p = #{s: T(s) >= T(0)} / n is exact
    (Hemerik & Goeman 2018). Other measures need `Permutations`.

    relabellings : r > 1 gives some r n - 1 draws. The maps i -> h i + b (mod n) with h in a subgroup H of the units
        modulo n form a group of n |H| relabellings, again exact without any rule to combine p-values; H is a small
        subgroup with r members or more, one FFT of every layer for each.
    groups : whole groups of one size change places: the shifts by multiples of that size after a random order of the
        groups. Shuffles within groups need `Permutations`.
    """

    name: ClassVar[str] = "cyclic"
    help: ClassVar[str] = "all cyclic shifts after a random order, an exact group, for measures that are inner products"
    meaning: ClassVar[str] = "all cyclic shifts of the pairing after one random relabelling, an exact group"
    seed: int = 0
    relabellings: int = 1
    groups: Groups | None = None

    def check_groups(self, groups: Groups) -> None:
        if groups.shuffle != "whole" or groups.equal_size is None:
            got = f"shuffle={groups.shuffle!r}, sizes {sorted({len(m) for m in groups.members})}"
            raise RepalignError(
                "the cyclic null cannot honour these groups", expected="whole groups of one size", got=got,
                remedy="use null='permutation' with these groups",
            )  # fmt: skip
        if self.relabellings > 1:
            raise RepalignError(
                "several relabellings and groups do not go together", expected="relabellings=1 with groups",
                got=f"relabellings={self.relabellings}", remedy="use null='permutation' with these groups for more draws",
            )  # fmt: skip

    def count(self, n: int) -> int:
        places = n if self.groups is None else len(self.groups.members)
        return len(units(n, self.relabellings)) * places - 1

    def order(self, n: int) -> np.ndarray:
        """The random relabelling sigma, groups kept together."""
        generator = np.random.Generator(np.random.PCG64(self.seed))
        if self.groups is None:
            return generator.permutation(n)
        self.groups.check_n(n)
        return np.concatenate([self.groups.members[g] for g in generator.permutation(len(self.groups.members))])

    def prepare(self, measure: Measure, states: Sequence[State]) -> Prepared:
        """One spectrum per layer and map h; the relations themselves are released.

        Where a layer has two roles there are spectra of both, first those of the first.
        """
        must_be_bilinear(measure, "the cyclic null does not apply")
        n = states[0].n
        sigma = self.order(n)
        maps = units(n, self.relabellings)
        orders = [torch.from_numpy(sigma[h * np.arange(n) % n]) for h in maps]
        spectra = [[_spectra(role, order) for order in orders] for role in by_role(states)]
        return Prepared(map(_released, states), spectra, sum(s.nbytes for of_role in spectra for s in of_role))

    def draws(self, measure: Measure, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE) -> np.ndarray:
        return self.scored(measure, a, b, streams)[1]

    def scored(self, measure: Any, a: Prepared, b: Prepared, streams: Streams = ONE_SIDE) -> Scored:  # noqa: ARG002
        """The observed scores are those of the shift by 0."""
        counts = all(isinstance(s, GraphRelation) and s.values is None for s in (*a.states, *b.states))
        step = 1 if self.groups is None else self.groups.equal_size or 1  # shifts by multiples of it keep groups together
        first, second = a.extra[0][0], b.extra[-1]
        shape = len(a.states), len(b.states)
        # A score is affine in the inner product: two of them tell the line of every cell.
        ends = torch.stack([torch.zeros(shape), torch.ones(shape)]).to(torch.float64)
        zero, one = measure.closeness(measure.scale(ends, a.states, b.states)).numpy()[..., None]
        out = np.empty((*shape, len(second), a.n // step))  # the draws of a pair of layers side by side
        for h, right in enumerate(second):
            correlated = cross_spectra(first, right)

            def put(some: slice, h: int = h, correlated: Tensor = correlated) -> None:
                inner = torch.fft.irfft(correlated[some], n=a.n)[..., ::step]
                scores = out[some, :, h]
                np.multiply((inner.round_() if counts else inner).cpu().numpy(), (one - zero)[some], out=scores)  # counts of edges
                scores += zero[some]

            in_parts(put, len(a.states))
        out = out.reshape(*shape, -1)
        by_draw = np.moveaxis(out, -1, 0)
        return np.ascontiguousarray(by_draw[0]), by_draw[1:]

    def joint(self, streams: Sequence[Streams], n: int) -> Joint:
        """Draws aligned across pairs.

        K random elements of the product group are taken, one of the group's maps i -> h i + b per model: the pair (x, y) then
        sees the map of y after the inverse of that of x, whose score is there already.
        """
        multipliers, size = np.array(units(n, self.relabellings)), self.count(n) + 1
        places = size // len(multipliers)  # stimuli, or whole groups
        inverse = np.array([pow(h, -1, places) if places > 1 else 0 for h in multipliers.tolist()])
        position = np.zeros(max(multipliers) + 1, int)
        position[multipliers] = np.arange(len(multipliers))
        generator = np.random.Generator(np.random.PCG64([self.seed, 1]))
        at = {s: i for i, s in enumerate(sorted({s for pair in streams for s in pair}))}
        h, b = (np.array([generator.integers(top, size=size - 1) for _ in at]) for top in (len(multipliers), places))

        def aligned(observed: np.ndarray, draws: np.ndarray, streams: Sequence[Streams], k: slice) -> np.ndarray:
            scores = np.concatenate([observed[:, None], draws], axis=1)  # by h, then by the shift b / h, as in `scored`
            x, y = np.array([[at[s] for s in pair] for pair in streams]).T
            ratio = multipliers[h[y, k]] * inverse[h[x, k]] % places  # g_y after the inverse of g_x: i -> r i + (b_y - r b_x)
            index = position[ratio]
            shift = (b[y, k] - ratio * b[x, k]) * inverse[index] % places
            return np.take_along_axis(scores, index * places + shift, axis=1)

        return aligned


def _released(state: Any) -> Any:
    """A state without its n x n matrices, with all else that a score is scaled by."""
    if isinstance(state, TwoRoles):
        return replace(state, first=_released(state.first), second=_released(state.second))
    if isinstance(state, DenseRelation):
        return replace(state, matrix=state.matrix.new_empty(state.n, 0), factor=None)
    return state


def units(n: int, at_least: int) -> list[int]:
    """A small subgroup of the units modulo n with `at_least` members, from 1 on; all units if none has so many.

    The units form a commutative group: a chain of subgroups, each grown by the element that multiplies its order by the
    smallest factor, reaches all of them.
    """
    group = [1 % n] if n > 1 else [0]
    everything = [u for u in range(1, n) if math.gcd(u, n) == 1] if at_least > 1 else []
    while len(group) < at_least and len(group) < len(everything):
        there = set(group)
        best: list[int] | None = None
        for u in everything:
            if u in there:
                continue
            powers, power = [1], u
            while power not in there:
                powers.append(power)
                power = power * u % n
            if best is None or len(powers) < len(best):
                best = powers
            if len(powers) == 2:
                break
        assert best is not None
        group = [g * p % n for p in best for g in group]
    return group


def _spectra(relations: Sequence[Relation], order: Tensor) -> Tensor:
    """The spectra of all layers, relabelled by `order`: (layers, real and imaginary part, n // 2 + 1 frequencies, diagonals).

    A spectrum is the FFT along the wrapped diagonals of a relation, A[o(i), o(i + d)] for diagonal d. A symmetric one needs only
    diagonals 0 to n / 2; those in between count twice, which goes into the spectrum as sqrt(2) on either side.
    """
    n, first, symmetric = len(order), relations[0], relations[0].symmetric
    order = order.to(first.device)
    at, diagonals = torch.arange(n, device=first.device)[:, None], torch.arange(n // 2 + 1 if symmetric else n, device=first.device)
    is_graph = isinstance(first, GraphRelation)
    dtype = torch.float32 if is_graph and first.values is None else (first.values if is_graph else first.matrix).dtype
    weight = torch.where((diagonals == 0) | (2 * diagonals == n), 1.0, torch.tensor(2, dtype=dtype).sqrt())
    # Of a dense relation, in the order (i, d): o(i) n + o(i + d).
    behind = torch.cat([order, order]).unfold(0, len(diagonals), 1)[:n]
    entries = None if is_graph else torch.add(behind, order[:, None], alpha=n).flatten()
    # Rows that begin at multiples of a large power of two drive each other out of the processor's cache.
    width = len(diagonals) + 16 * (len(diagonals) % 128 == 0)
    out = empty((len(relations), 2, n // 2 + 1, width), dtype, first.device)[..., : len(diagonals)]
    some = blocks(len(diagonals), n * dtype.itemsize, CACHED_BYTES)  # whose spectra are moved while they are in the cache

    def put(i: int) -> None:
        relation: Any = relations[i]
        if entries is None:  # few entries are soonest put where a row is a diagonal
            moved = relation.permute(order)
            place = ((moved.indices - at) % n * n + at).flatten()
            values = torch.ones((), device=place.device) if moved.values is None else moved.values.flatten()
            wrapped = empty((n, n), dtype, place.device).zero_()
            wrapped.view(-1)[place] = values
            for b in some:
                _put(out[i, ..., b], torch.fft.rfft(wrapped[b], dim=1).T)
        else:  # one gather, row after row, in the place of rows, columns and diagonals
            wrapped = relation.matrix.flatten().index_select(0, entries).view(n, -1)
            _put(out[i], torch.fft.rfft(wrapped.mul_(weight) if symmetric else wrapped, dim=0))

    for _ in each(put, range(len(relations)), at_once(len(relations), 16 * n * n, first.device.type)):
        pass
    return out


def _put(out: Tensor, found: Tensor) -> None:
    """The real and the imaginary part of a spectrum where they belong, (2, frequencies, diagonals)."""
    if found.device.type == "cpu":  # by numpy, in a third of the time
        out[0].numpy()[...], out[1].numpy()[...] = found.numpy().real, found.numpy().imag
    else:
        out.copy_(torch.view_as_real(found).movedim(2, 0))


def cross_spectra(a: Tensor, b: Tensor) -> Tensor:
    """Of all layers by all layers from their spectra, (la, lb, frequencies): the spectra of T(s) over all shifts s.

    One matrix product per frequency.
    """
    dtype = torch.promote_types(a.dtype, b.dtype)  # the two sides may come in different precision
    la, lb = len(a), len(b)
    a, b = (v.to(dtype).flatten(0, 1).movedim(1, 0) for v in (a, b))  # (frequencies, layers and parts, diagonals)
    found = a.new_empty(la, lb, len(a), 2)

    def multiply(some: slice) -> None:
        # The parts as so many more layers: one product of real matrices, where one of complex ones takes half as long again.
        with full_precision():
            parts = torch.bmm(a[some], b[some].mT).unflatten(2, (lb, 2)).unflatten(1, (la, 2))
        real, imaginary = parts.unbind(2)  # of a; (frequencies, la, lb, parts of b)
        out = found[:, :, some].movedim(2, 0)
        torch.add(real[..., 0], imaginary[..., 1], out=out[..., 0])
        torch.sub(real[..., 1], imaginary[..., 0], out=out[..., 1])

    # On a CPU a thread for some frequencies each is sooner done than all threads for each product.
    in_parts(multiply, len(a), None if a.device.type == "cpu" else len(a))
    return torch.view_as_complex(found)
