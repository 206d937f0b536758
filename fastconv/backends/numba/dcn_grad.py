"""Gradients of DCNv3 and DCNv4: the pass over points and channels of deform_grad, without its products.

What a channel's samples pull at is its output's gradient, the same for all points of a pixel. A task is a band of
output pixels of one image and one block of channels, as there, and tasks take turns in the same way: a mask's
gradient is linear in the dots of a block, through the softmax too, and so the blocks of a group add theirs one after
the other. What is pulls there holds gradients of a tile's points here, [tap][axis, axis, mask][tile], and what is
columns there, scaled offsets.
"""

from ...lowering.deform_grad import PROGRESS_STEP
from .dcn import CORNERS, dcn_points
from .deform import AXES, deform_grid
from .deform_grad import clear_touched, deform_grad_scratch, deform_pull, dots_of, leave_image, point_grads
from .moves import clear, load_some, store_some
from .simd import double_of, fma, helper, integers, lanes, load, real, reals, records, splat, store
from .turns import await_progress, tell_progress


@helper
def softmax_grad(f, mask, taps, pixels, grad):
    """Gradients through m = softmax(l): dl = m (dm - sum of m dm)."""
    for p in range(0, pixels, lanes(mask)):
        total = splat(mask, 0.0)
        for t in range(taps):
            if t != f.skipped:
                total = fma(load(mask + (t * f.tile + p)), load(grad + (t * AXES * f.tile + p)), total)
        for t in range(taps):
            if t != f.skipped:
                to = grad + (t * AXES * f.tile + p)
                store(to, load(mask + (t * f.tile + p)) * (load(to) - total))


@helper
def leave_scaled(to, source, scale, n, add):
    factor = splat(source, scale)
    for p in range(0, n, lanes(source)):
        v = load(source + p) * factor
        store_some(to + p, load_some(to + p, n - p) + v if add else v, n - p)


@helper
def leave_points(a, f, work, pixels, plane, offset, mask, add):
    """Add to (or write) the gradients of offsets and masks what a block of channels gives to them, from its dots."""
    taps, grads = f.kernel_h * f.kernel_w, work.pulls
    scale = real(offset, double_of(f.scale))
    for t in range(taps):
        to, dots = grads + t * AXES * f.tile, work.dots + t * dots_of(f.ndim) * f.tile
        point_grads(a, f, work, t, dots, pixels, f.tile, to, to + 2 * f.tile, False)
    if a.gmask and f.softmax:
        softmax_grad(f, work.points.mask, taps, pixels, grads + 2 * f.tile)
    for t in range(taps):
        if t != f.skipped:
            source = grads + t * AXES * f.tile
            if a.goffset:
                leave_scaled(offset, source, scale, pixels, add)
                leave_scaled(offset + plane, source + f.tile, scale, pixels, add)
            if a.gmask:
                leave_scaled(mask, source + 2 * f.tile, 1.0, pixels, add)
            offset = offset + 2 * plane
            mask = mask + plane


@helper
def skip_tap(f, work):
    """A tap that has no sample: its point reads nothing and gives nothing."""
    if f.skipped < f.kernel_h * f.kernel_w:
        for p in range(f.tile):
            work.points.base[f.skipped * f.tile + p] = f.outside
        clear(work.points.weight + f.skipped * CORNERS * f.tile, CORNERS * f.tile)
        clear(work.points.mask + f.skipped * f.tile, f.tile)
        clear(work.fractions + f.skipped * AXES * f.tile, AXES * f.tile)


def dcn_grad(a, begin, end, thread):
    """A task is a band of an image and a block of channels: blocks before bands before images."""
    f = records(a, a.geometry, "dcn")[0]
    work = deform_grad_scratch(a, f, thread)
    taps, plane = f.kernel_h * f.kernel_w, f.out_h * f.out_w
    skip_tap(f, work)
    for task in range(begin, end):
        rest = task // a.block_count
        band, image = rest % a.bands, rest // a.bands
        block = records(a, a.blocks, "grad_block")[task % a.block_count]
        band_begin = band * a.band
        band_end = min(band_begin + a.band, plane)
        progress, step = integers(a.progress) + task * PROGRESS_STEP, 0
        points = image * a.mask_image + block.offset_group * f.points * plane
        x = reals(a, a.x) + (image * a.x_image + block.x)
        gy = reals(a, a.gy) + (image * a.gy_image + block.channel)
        offset, goffset = reals(a, a.offset) + points * 2, reals(a, a.goffset) + points * 2
        mask, gmask = reals(a, a.mask) + points, reals(a, a.gmask) + points
        low, high = 0, 0 if band > 0 else f.size_h + 2
        if a.gx and low < high:
            clear(work.image, high * f.line_h * f.width)
        for at in range(band_begin, band_end, f.tile):
            pixels = min(band_end - at, f.tile)
            deform_grid(f, at, pixels, work.points.grid)
            scaled = work.points.columns
            dcn_points(f, work.points, offset + at, mask + at, plane, pixels, scaled, True, work.fractions)
            if a.gx and band > 0:
                low, high = clear_touched(f, work, 0, taps, pixels, low, high)
            deform_pull(a, f, work, x, block.channels, gy + at * a.gy_row, a.gy_row, 0, 0, taps, pixels)
            if a.goffset or a.gmask:
                step += 1
                if block.shared:
                    await_progress(progress + -PROGRESS_STEP, step)
                leave_points(a, f, work, pixels, plane, goffset + at, gmask + at, block.shared != 0)
                tell_progress(progress, step)
        done = (a.band + f.tile - 1) // f.tile + 1
        if a.gx:
            if band > 0:
                await_progress(progress + -a.block_count * PROGRESS_STEP, done)
            gx = reals(a, a.gx) + (image * a.gx_image + block.channel * a.gx_channel)
            leave_image(a, f, work, block.channels, low, high, gx, band > 0)
        tell_progress(progress, done)
