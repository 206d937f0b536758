"""Bias, activation and the way out.

Results arrive in a small buffer, are finished there in whole vectors (so that an element at a tail is rounded
like any other) and are then only moved. Every activation hands a NaN on.

The word `activation` is one of the codes below, or else the address of a compiled function that works on an
array in place: silu, gelu and the functions of users cost one small compilation each, and the engines none.
"""

from ...lowering.program import ACTIVATION_CODES
from .moves import copy, copy_spread, copy_strided, load_some, transpose
from .simd import at_least, at_most, bytes_each, call, helper, lanes, load, prefetch, splat, store

LINEAR, RELU, RELU6, HARDSWISH = (ACTIVATION_CODES[name] for name in (None, "relu", "relu6", "hardswish"))
LAST_CODE = max(ACTIVATION_CODES.values())
CACHE_LINE = 64  # bytes


@helper
def activate(v, activation):
    zero, six = splat(v, 0.0), splat(v, 6.0)
    if activation == RELU:
        return at_least(v, zero)
    if activation == RELU6:
        return at_most(at_least(v, zero), six)
    if activation == HARDSWISH:
        return v * at_most(at_least(v + splat(v, 3.0), zero), six) / six
    return v


@helper
def finish_row(c, count, bias, activation):
    """`count` elements (rounded up to whole vectors) that share one bias."""
    for i in range(0, count, lanes(c)):
        store(c + i, activate(load(c + i) + splat(c, bias), activation))
    if activation > LAST_CODE:
        call(activation, c, count)


@helper
def finish_lanes(c, count, bias, has_bias, activation):
    """`count` elements (rounded up to whole vectors), each with its own bias, if there is any."""
    for i in range(0, count, lanes(c)):
        v = load(c + i)
        if has_bias:
            v = v + load_some(bias + i, count - i)
        store(c + i, activate(v, activation))
    if activation > LAST_CODE:
        call(activation, c, count)


@helper
def store_rows(c, c_row, rows, runs, run_count, y, y_channel, y_w):
    """Write a buffer of rows (one a channel) by runs of pixels."""
    if y_w == 1:
        for r in range(rows):
            for s in range(run_count):
                run = runs[s]
                copy(y + (r * y_channel + run.y), c + (r * c_row + run.at), run.count)
    elif y_channel == 1:
        for s in range(run_count):
            run = runs[s]
            transpose(y + run.y, y_w, c + run.at, c_row, rows, run.count)
    else:
        for r in range(rows):
            for s in range(run_count):
                run = runs[s]
                to, source = y + (r * y_channel + run.y), c + (r * c_row + run.at)
                if y_w == 2:
                    copy_spread(to, source, run.count)
                else:
                    copy_strided(to, y_w, source, 1, run.count)


@helper
def expect_rows(rows, runs, run_count, y, y_channel, y_w):
    """Ask for the lines that `rows` rows will be written to, while their sums are made."""
    step = max(CACHE_LINE // bytes_each(y) // y_w, 1)
    for r in range(rows):
        for s in range(run_count):
            run = runs[s]
            to = y + (r * y_channel + run.y)
            for i in range(0, run.count, step):
                prefetch(to + i * y_w)
            prefetch(to + (run.count - 1) * y_w)


@helper
def leave_lanes(
    c, width, pixels, channels, runs, run_count, bias, has_bias, activation, turned, turned_row, y, y_channel, y_w
):  # fmt: skip
    """The way out of [pixel][channel] results: finished in place, then copied, or turned where channels come first."""
    if has_bias or activation:
        for p in range(pixels):
            finish_lanes(c + p * width, channels, bias, has_bias, activation)
    if y_channel == 1:
        for s in range(run_count):
            run = runs[s]
            for i in range(run.count):
                copy(y + (run.y + i * y_w), c + (run.at + i) * width, channels)
    else:
        transpose(turned, turned_row, c, width, pixels, channels)
        store_rows(turned, turned_row, channels, runs, run_count, y, y_channel, y_w)
