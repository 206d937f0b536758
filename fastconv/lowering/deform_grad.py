"""Gradients of a deformable convolution: what its samples pull at, and the register tile before and behind them."""

import math
from typing import Any

import numpy as np

from ..problem import Problem
from .deform import MOST_POINTS, Bordered, channel_blocks
from .geometry import input_strides
from .program import K_BLOCK, WORDS, Builder, Engines, Operand, Words, round_up
from .weight_grad import add_channels_last

__all__ = ["SampleGradients", "add_images", "bands_of", "lower_deform_grad", "work_words"]

# Output pixels whose columns, and the gradients of these, share L2 with a block's weights.
TILE = 96
# Columns of a pixel: taps are taken together up to so many.
MOST_COLUMNS = 320
# Tasks that keep 64 threads busy, where a task has pixels enough to be worth its weights' way in and out.
ENOUGH_TASKS = 64
LEAST_PIXELS = 96
# Words from the progress of a task to that of the next.
PROGRESS_STEP = 8
TURNED_PIXELS = 64
GFLOPS = 40.0


class SampleGradients:
    """A program for the gradients, called as :class:`fastconv.registry.Executable` says."""

    def __init__(self, program: Any):
        self._program = program
        self.isa, self.tile, self.copies = program.isa, program.tile, program.copies

    def __call__(
        self,
        grads: dict[str, np.ndarray],
        grad_output: np.ndarray,
        input: np.ndarray,
        weight: np.ndarray,
        offset: np.ndarray,
        mask: np.ndarray | None,
        threads: int,
    ) -> None:
        self._program.gradients(grads, grad_output, input, weight, offset, mask, threads)

    def scratch_bytes(self, threads: int = 1) -> int:
        return self._program.scratch_bytes(threads)

    def threads_used(self, images: int, threads: int) -> int:
        return self._program.threads_used(images, threads)


def lower_deform_grad(problem: Problem, engines: Engines, *, of_input_alone: bool = False) -> SampleGradients:
    """Return what computes any of the gradients of any deformable convolution, or of its input alone, unseen."""
    p, b = problem, Builder(problem, engines)
    lanes, outputs = b.lanes, p.out_channels // p.groups
    # A task of few channels would wait for its neighbour of many at each tile.
    bordered = Bordered.of(b, channel_blocks(p, even=True))
    pixels, corners = math.prod(p.output_size), 1 << p.ndim

    blocks = len(bordered.blocks)
    tile = max(min(TILE, MOST_POINTS // p.taps, pixels), 1)
    tile = -(-pixels // -(-pixels // tile))
    band, bands = bands_of(pixels, blocks, tile)
    parts = -(-p.taps * bordered.most_channels // MOST_COLUMNS)
    tap_block = -(-p.taps // min(parts, p.taps))
    row = odd_vectors(tap_block * bordered.most_channels, lanes)
    tile_rows, tile_vectors = engines.tile
    # Either the weights are turned for each band, or what is multiplied with them for each pixel.
    as_given = tap_block == p.taps and band < outputs

    words = add_images(b, bordered, bands * blocks, of_input_alone)
    kept = outputs * row * blocks * -(-p.taps // tap_block) if p.batch * bands > 1 else 0
    words |= work_words(
        b, bordered, tile, tap_block, row, outputs, p.taps * bordered.most_channels * as_given
    )
    words |= dict(
        geometry=b.records("deform", [dict.fromkeys(WORDS["deform"], 0) | bordered.words(p, tile)]),
        w=Operand("weight"),
        gw=Operand("grad_weight"),
        kept=b.scratch_of_all_chunks(kept),
        w_row=p.in_channels // p.groups * p.taps,
        blocks=b.records("grad_block", _records(p, bordered)),
        band=band,
        bands=bands,
        as_given=int(as_given),
        k_block=K_BLOCK,
    )
    b.stage("deform_grad", bands * blocks, words, in_turn=True)
    work_ns = (2 * p.flops / max(p.batch, 1) + 4 * pixels * p.taps * p.in_channels * corners) / GFLOPS
    return SampleGradients(
        b.finish(work_ns, f"{tile} points, {tile_rows} rows x {tile_vectors * lanes} columns")
    )


def bands_of(pixels: int, blocks: int, tile: int) -> tuple[int, int]:
    """Cut the output pixels into bands of whole tiles: the pixels of one, and how many there are."""
    bands = max(min(-(-ENOUGH_TASKS // blocks), pixels // LEAST_PIXELS), 1)
    band = round_up(-(-pixels // bands), tile)
    return band, -(-pixels // band)


def add_images(b: Builder, bordered: Bordered, tasks: int, of_input_alone: bool = False) -> Words:
    """Add the stages before the gradients of samples, and return the words about what they make, and the gradients.

    These are the bordered input, unless its gradient does not depend on it, the output's gradient and the progress of
    tasks.
    """
    p = b.problem
    pixels, gy_row = math.prod(p.output_size), odd_vectors(p.out_channels, b.lanes)
    b.chunked((bordered.elements + pixels * gy_row) * b.itemsize)
    gx_image, gx_channel, gx_d, gx_h, gx_w = input_strides(p)
    words: Words = dict.fromkeys(WORDS["deform_grad"], 0)
    return words | dict(
        x=0 if of_input_alone else bordered.add(b),
        gy=add_channels_last(b, "output", [0, p.out_channels], gy_row, pixels * gy_row, b.lanes),
        offset=b.operand("offset"),
        mask=b.operand("mask"),
        gx=b.operand("grad_input"),
        goffset=b.operand("grad_offset"),
        gmask=b.operand("grad_mask"),
        progress=_add_progress(b, tasks),
        images=Operand("images"),
        first_image=Operand("first_image"),
        batch=p.batch,
        x_image=bordered.elements,
        gy_image=pixels * gy_row,
        gy_row=gy_row,
        mask_image=math.prod(p.mask_shape[1:]),
        gx_image=gx_image,
        gx_channel=gx_channel,
        gx_d=gx_d,
        gx_h=gx_h,
        gx_w=gx_w,
        block_count=len(bordered.blocks),
    )


def work_words(
    b: Builder, bordered: Bordered, tile: int, tap_block: int, row: int, outputs: int, turned: int = 0
) -> Words:
    """Reserve a thread's scratch, and return the words about it: so many columns a pixel, and weights of outputs."""
    p, lanes = b.problem, b.lanes
    int64s, corners = 8 // b.itemsize, 1 << p.ndim
    turned = max((TURNED_PIXELS + lanes) * bordered.width, turned)
    work = (
        p.taps * tile * (int64s + corners + 1 + 3)
        + 3 * tile
        + tile * tap_block * max(corners, 4)
        + turned
        + 2 * (tile + outputs) * row
        + 4 * lanes
        + bordered.image.size
        + 2 * lanes
    )
    return dict(
        work=b.thread(work),
        work_stride=Operand("thread_stride"),
        channels=outputs,
        tap_block=tap_block,
        row=row,
        turned=turned,
        turned_pixels=TURNED_PIXELS,
    )


def odd_vectors(elements: int, lanes: int) -> int:
    """Round up to an odd number of vectors: rows a power of two apart would all fall into the same cache sets."""
    return (-(-elements // lanes) | 1) * lanes


def _records(p: Problem, bordered: Bordered) -> list[dict[str, int]]:
    per_group, per_offset = p.in_channels // p.groups, p.in_channels // p.offset_groups
    row = per_group * p.taps
    records: list[dict[str, int]] = []
    for i, (first, count) in enumerate(bordered.blocks):
        group, offset_group = first // per_group, first // per_offset
        shared = bool(records) and records[-1]["offset_group"] == offset_group
        w = group * (p.out_channels // p.groups) * row + (first - group * per_group) * p.taps
        records.append(
            {"x": i * bordered.image.size, "channel": first, "channels": count, "group": group}
            | {"offset_group": offset_group, "shared": int(shared), "w": w}
        )
    return records


def _add_progress(b: Builder, tasks: int) -> Operand:
    """Add the stage that sets the progress of every task to zero: a row that is all padding."""
    elements = tasks * PROGRESS_STEP * (8 // b.itemsize)
    y = b.scratch(elements, 0)
    words: Words = dict.fromkeys(WORDS["halo"], 0)
    words |= dict(y=y, images=Operand("images"), y_image=elements, repeat=1, blocks=1, rows_d=1, rows_h=1)
    words |= dict(h_phases=1, band=1)
    nowhere = b.table([-1])
    words |= dict(w_phases=1, w_lines=elements, map_d=nowhere, map_h=nowhere, starts=b.table([0, 1]))
    b.stage("halo_planes", 1, words)
    return y
