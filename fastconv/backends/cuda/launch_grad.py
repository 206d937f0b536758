"""Executables of gradients: what is launched, in which order, for NumPy arrays and for arrays of the device."""

from typing import Any

import numpy as np

from ...lowering.geometry import input_strides, output_strides
from ...problem import Problem
from .deform_grad import ordered_scatter, sample_grad, sample_grad_shared_bytes
from .entry import OF_SAMPLES, OF_WEIGHT, Entry
from .gather import corners_of
from .launch import (
    OnEachDevice,
    deform_form,
    empty,
    ends,
    flat_grid,
    keep,
    packed,
    registers_of,
    run,
    simulated,
    upload,
    warn_of_copies,
    zeros,
)
from .tables import tables_of
from .tiles import sample_grad_tile, weight_grad_tile
from .weight_grad import add_parts, weight_grad, weight_grad_shared_bytes

__all__ = [
    "DeformGrad",
    "WeightGrad",
    "build_atomic",
    "build_ordered",
    "build_weight_grad",
]

# Blocks that keep every multiprocessor of a large GPU busy, and slabs that make a part worth its gradient.
BLOCKS_WANTED = 512
SLABS_LEAST = 8


class WeightGrad:
    """The gradient with respect to the weight, of any gather."""

    def __init__(self, problem: Problem):
        self.problem = problem
        self.tile = weight_grad_tile(simulated())
        self.isa = "simulator" if simulated() else "cuda"
        self.tables = tables_of(problem)
        self.corners = corners_of(problem.variant, problem.ndim)
        self.kernel = weight_grad(problem.dtype, self.tile, self.corners, problem.layout == "NHWC")
        self.shared_bytes = weight_grad_shared_bytes(self.tile, self.corners, problem.dtype)
        sums = self.tables.sums[0]
        cg, og = problem.in_channels // problem.groups, problem.out_channels // problem.groups
        tiles = -(-og // self.tile.pixels) * -(-cg // self.tile.channels)
        self.blocks_each = int(sums[0] * sums[5] * sums[10]) * tiles * problem.groups
        slabs = problem.batch * -(-self.tables.counts[0] // self.tile.depth)
        wanted = 2 if simulated() else -(-BLOCKS_WANTED // max(self.blocks_each, 1))
        self.parts = max(1, min(wanted, slabs // (1 if simulated() else SLABS_LEAST)))
        self.uploaded = OnEachDevice(self.tables.words, self.tables.sums, deform_form(problem, False))

    @property
    def launched(self) -> str:
        """The grid, for ``explain``."""
        return f"{self.blocks_each * self.parts} blocks of {self.tile.threads} threads, {self.shared_bytes} B shared memory each"

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The kernel that does the work, to be compiled."""
        return (Entry(self.kernel, OF_WEIGHT, self.problem.dtype, self.tile.threads, self.shared_bytes),)

    @property
    def registers(self) -> str:
        """Registers and occupancy, for ``explain``."""
        return registers_of(self.entries, build_weight_grad, self.problem)

    def scratch_bytes(self, threads: int) -> int:
        """Return the bytes of the parts' gradients."""
        return self.parts * int(np.prod(self.problem.weight_shape)) * self.problem.dtype.itemsize

    def __call__(self, grad_weight, input, grad_output, bias, offset, mask, threads) -> None:
        """Run on NumPy arrays."""
        dtype = self.problem.dtype
        warn_of_copies(self.problem)
        arrays = [upload(array, dtype) for array in (grad_output, input, offset, mask)]
        total = empty(grad_weight.size, dtype)
        self.launch(total, *arrays)
        grad_weight.reshape(-1)[:] = total.copy_to_host()

    def launch(self, total: Any, gy: Any, x: Any, offset: Any, mask: Any, stream: Any = 0) -> None:
        """Run on flat arrays of the device; offset and mask are channels first."""
        p, parts = self.problem, self.parts
        words, sums, form = self.uploaded()
        grads = zeros(parts * total.size, p.dtype, stream)  # taps that meet no pixel stay so
        run(
            self.kernel, self.blocks_each * parts, self.tile.threads, stream,
            grads, gy, x, offset, mask, words, sums, form, p.batch, parts, p.groups, max(p.offset_groups, 1),
            p.in_channels // p.groups, p.out_channels // p.groups, p.taps,
            *ends(input_strides(p)), *ends(output_strides(p)),
        )  # fmt: skip
        run(add_parts(), *flat_grid(total.size), stream, total, grads, parts)
        keep(stream, grads)


class DeformGrad:
    """All gradients of a deformable convolution: samples first, then the weight."""

    def __init__(self, problem: Problem, ordered: bool):
        self.problem = problem
        self.ordered = ordered
        self.tile = sample_grad_tile(problem, simulated())
        self.isa = "simulator" if simulated() else "cuda"
        self.tables = tables_of(problem)
        self.kernel = sample_grad(problem.dtype, self.tile, problem.ndim, problem.layout == "NHWC", ordered)
        self.shared_bytes = sample_grad_shared_bytes(self.tile, problem.ndim, problem.dtype)
        self.of_weight = WeightGrad(problem)
        tiles = -(-self.tables.counts[0] // self.tile.pixels)
        self.blocks = problem.batch * problem.offset_groups * problem.taps * tiles

    @property
    def launched(self) -> str:
        """The grids, for ``explain``."""
        mine = (
            f"{self.blocks} blocks of {self.tile.threads} threads, {self.shared_bytes} B shared memory each"
        )
        return f"{mine}; then {self.of_weight.launched}"

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The two kernels that do the work, to be compiled."""
        mine = Entry(self.kernel, OF_SAMPLES, self.problem.dtype, self.tile.threads, self.shared_bytes)
        return (mine, *self.of_weight.entries)

    @property
    def registers(self) -> str:
        """Registers and occupancy, for ``explain``."""
        build = build_ordered if self.ordered else build_atomic
        return registers_of(self.entries, build, self.problem)

    def scratch_bytes(self, threads: int) -> int:
        """Return the bytes of the samples' gradients, if they are stored, and of the weights and their parts."""
        p = self.problem
        packed_bytes = int(np.prod(p.weight_shape)) * p.dtype.itemsize
        samples = p.batch * p.taps * p.in_channels * self.tables.counts[0] * p.dtype.itemsize
        return packed_bytes + self.ordered * samples + self.of_weight.scratch_bytes(threads)

    def __call__(self, grads, grad_output, input, weight, offset, mask, threads) -> None:
        """Run on NumPy arrays."""
        dtype = self.problem.dtype
        warn_of_copies(self.problem)
        gy, x, w, shifts, factors = (
            upload(array, dtype) for array in (grad_output, input, weight, offset, mask)
        )
        found = {}
        if set(grads) - {"weight"}:
            found = self.launch_samples(gy, x, w, shifts, factors)
        if "weight" in grads:
            found["weight"] = empty(w.size, dtype)
            self.of_weight.launch(found["weight"], gy, x, shifts, factors)
        for name, grad in grads.items():
            grad.reshape(-1)[:] = found[name].copy_to_host()

    def launch_samples(
        self, gy: Any, x: Any, weight: Any, offset: Any, mask: Any, stream: Any = 0
    ) -> dict[str, Any]:
        """Return the gradients of input, offset and mask, from flat arrays of the device."""
        p = self.problem
        words, sums, form = self.of_weight.uploaded()
        weight = packed(p, weight, stream)
        grad_input = zeros(x.size, p.dtype, stream)
        grad_offset, grad_mask = empty(offset.size, p.dtype), empty(mask.size, p.dtype)
        count = self.tables.counts[0]
        target = empty(p.batch * p.taps * p.in_channels * count, p.dtype) if self.ordered else grad_input
        run(
            self.kernel, self.blocks, self.tile.threads, stream,
            target, grad_offset, grad_mask, gy, x, weight, offset, mask, words, sums, form,
            p.groups, p.offset_groups, p.in_channels // p.groups, p.out_channels // p.groups, p.taps,
            *ends(input_strides(p)), *ends(output_strides(p)),
        )  # fmt: skip
        if self.ordered:
            run(
                ordered_scatter(p.dtype, p.ndim), *flat_grid(p.batch * p.in_channels), stream,
                grad_input, target, offset, mask, words, sums, form,
                p.batch, p.in_channels, p.offset_groups, p.taps, *ends(input_strides(p)),
            )  # fmt: skip
        keep(stream, weight, target)
        return {"input": grad_input, "offset": grad_offset, "mask": grad_mask}


def build_weight_grad(problem: Problem) -> WeightGrad:
    """Return the executable of a convolution's gradient with respect to its weight."""
    return WeightGrad(problem)


def build_atomic(problem: Problem) -> DeformGrad:
    """Return the executable that adds samples to pixels as they come."""
    return DeformGrad(problem, ordered=False)


def build_ordered(problem: Problem) -> DeformGrad:
    """Return the executable that adds samples to pixels in their order."""
    return DeformGrad(problem, ordered=True)
