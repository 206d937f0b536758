"""Gradients of DCNv3 and DCNv4: what the samples pull at, without the products of a deformable convolution."""

import math

from ..problem import Problem
from .dcn import SAMPLE_FLOPS, dcn_words, tile_of
from .deform import GFLOPS, Bordered, channel_blocks
from .deform_grad import SampleGradients, add_images, bands_of, work_words
from .program import WORDS, Builder, Engines

__all__ = ["lower_dcn_grad"]


def lower_dcn_grad(problem: Problem, engines: Engines) -> SampleGradients:
    """Return what computes any of the gradients of sums of samples."""
    p, b = problem, Builder(problem, engines)
    bordered = Bordered.of(b, channel_blocks(p, by_weights=False, even=True))
    tile, blocks = tile_of(b), len(bordered.blocks)
    pixels = math.prod(p.output_size)
    band, bands = bands_of(pixels, blocks, tile)

    words = add_images(b, bordered, bands * blocks)
    words |= work_words(b, bordered, tile, p.taps, 3 * p.taps, 0)
    words |= dict(
        geometry=b.records("dcn", [dict.fromkeys(WORDS["dcn"], 0) | dcn_words(p, bordered, tile)]),
        blocks=b.records("grad_block", _records(p, bordered)),
        band=band,
        bands=bands,
    )
    b.stage("dcn_grad", bands * blocks, words, in_turn=True)
    work_ns = 4 * pixels * p.taps * p.in_channels * SAMPLE_FLOPS / GFLOPS
    return SampleGradients(b.finish(work_ns, f"{tile} points of blocks of {bordered.most_channels} channels"))


def _records(p: Problem, bordered: Bordered) -> list[dict[str, int]]:
    records: list[dict[str, int]] = []
    for i, (first, count) in enumerate(bordered.blocks):
        group = first // (p.in_channels // p.offset_groups)
        shared = bool(records) and records[-1]["offset_group"] == group
        records.append(
            {"x": i * bordered.image.size, "channel": first, "channels": count, "group": 0, "w": 0}
            | {"offset_group": group, "shared": int(shared)}
        )
    return records
