"""One input channel a group. There is no matrix product to block: what counts is how often a value is moved.

``depthwise_planes`` (channels first) sums strips of eight vectors of pixels, whose halo is made in the
thread's own scratch. ``depthwise_pixels`` (channels last) makes no halo at all: each tap of each pixel has an
address, from three tables, and padding is a row of zeros.
"""

from .epilogue import finish_lanes, finish_row, store_rows
from .halo import fill_row
from .moves import clear, copy
from .simd import (
    INTEGERS,
    WORD,
    address,
    elements_before,
    emit_at,
    emit_first,
    emit_fma,
    emit_get,
    emit_loads,
    emit_loop,
    emit_masked_load,
    emit_out_of_line,
    emit_splat,
    emit_switch,
    emit_totals,
    helper,
    integers,
    lanes,
    ll_reals,
    ll_vector,
    reals,
    records,
    stack_runs,
    stack_vectors,
    verb,
    void,
    word,
    zeros,
)
from .tile import shapes_for

STRIP = 8  # vectors: their sums, a weight and a load fit 16 registers
PIXELS, PIXEL_VECTORS = 4, 4
PIXEL_SUMS = PIXELS * PIXEL_VECTORS


def emit_strip(kind, vectors):
    """Return what emits the sums of a strip of so many vectors."""

    def emit(builder, count, x, x_offsets, w, w_offsets, c, add):
        def step(k, sums):
            x_k, w_k = emit_get(builder, x_offsets, k), emit_get(builder, w_offsets, k)
            weight = emit_splat(builder, ll_vector(kind), emit_get(builder, w, w_k))
            values = emit_loads(builder, kind, emit_at(builder, x, x_k), vectors)
            return [
                emit_fma(builder, weight, value, total) for value, total in zip(values, sums, strict=True)
            ]

        totals = emit_loop(builder, count, zeros(kind, vectors), step)
        emit_totals(builder, kind, totals, [emit_at(builder, c, v * kind.lanes) for v in range(vectors)], add)

    return emit


@verb
def strip(vectors, count, x, x_offsets, w, w_offsets, c, add):
    """c[j] (+)= sum_k w[w_offsets[k]] * x[x_offsets[k] + j], j < vectors * LANES."""

    def emit(builder, vectors, *args):
        def case(v):
            name = f"fastconv_strip_{v}_{x.element}x{x.lanes}"
            return lambda: emit_out_of_line(builder, name, args, emit_strip(x, v))

        emit_switch(builder, vectors, {v: case(v) for v in range(1, STRIP + 1)})

    return void(word, word, x, INTEGERS, w, INTEGERS, c, word), emit


@helper
def band_lines(a, x, first_row, scratch):
    """The band of one channel in line space: in place if the array reaches far enough, else a haloed copy."""
    map_d, map_h, map_w, runs = integers(a.map_d), integers(a.map_h), integers(a.map_w), integers(a.runs)
    lines = min(a.h_lines - first_row, a.band_lines)
    if a.direct:
        reach = (a.lines_d - 1) * a.line_d + (first_row + lines) * a.line_h + STRIP * lanes(x)
        if elements_before(x, a.x_end) >= reach:
            return x + first_row * a.line_h
    for d in range(a.lines_d):
        for p in range(a.h_phases):
            for h in range(lines):
                from_d, from_h = map_d[d], map_h[p * a.h_lines + first_row + h]
                to = scratch + (d * a.line_d + (p * a.band_lines + h) * a.line_h)
                inside = from_d >= 0 and from_h >= 0
                row = x
                if inside:
                    row = x + (from_d * a.x_d + from_h * a.x_h)
                fill_row(to, a.line_phase, row, inside, a.x_w, a.w_phases, a.w_lines, map_w, runs)
    return scratch


def depthwise_planes(a, begin, end, thread):
    """A task is a band of rows of one channel."""
    bias = reals(a, a.b)
    c, run = stack_vectors(a, STRIP), stack_runs(a, 1)
    strip_pixels = STRIP * lanes(a)
    for task in range(begin, end):
        first_row, rest = task % a.bands * a.band, task // a.bands
        channel, image = rest % a.channels, rest // a.channels
        plane = reals(a, a.x) + (image * a.x_image + channel * a.x_channel)
        lines = band_lines(a, plane, first_row, reals(a, a.work + thread * a.work_stride))
        for s in range(a.sum_count):
            part = records(a, a.sums, "sum")[s]
            x_offsets, w_offsets = integers(part.x_offsets), integers(part.w_offsets)
            rows = min(part.n_h - first_row, a.band)
            if rows <= 0:
                continue
            # All rows of the band are one strip of line space: what lies between two rows is computed and
            # dropped, so that narrow images fill the vectors too.
            length = (rows - 1) * part.x_h + part.n_w
            for o in range(channel * a.multiplier, (channel + 1) * a.multiplier):
                w = reals(a, a.w) + o * a.kernel_taps
                b = bias[o] if a.b else 0.0
                for d in range(part.n_d):
                    x = lines + (part.x + d * part.x_d)
                    y_at = image * a.y_image + o * a.y_channel + part.y + d * part.y_d + first_row * part.y_h
                    y = reals(a, a.y) + y_at
                    h, left = 0, 0  # the row at `at`, and how much of it has been written
                    for at in range(0, length, strip_pixels):
                        count = min(length - at, strip_pixels)
                        vectors = (count + lanes(a) - 1) // lanes(a)
                        k_blocks = max((part.taps + a.k_block - 1) // a.k_block, 1)
                        for kb in range(k_blocks):
                            k = kb * a.k_block
                            taps = min(part.taps - k, a.k_block)
                            strip(vectors, taps, x + at, x_offsets + k, w, w_offsets + k, c, kb)
                        if a.b or a.activation:
                            finish_row(c, count, b, a.activation)
                        while h < rows:
                            run.at = h * part.x_h + left - at
                            if run.at >= count:
                                break
                            run.count = min(part.n_w - left, count - run.at)
                            run.y = h * part.y_h + left * part.y_w
                            store_rows(c, 0, 1, run, 1, y, 0, part.y_w)
                            left += run.count
                            if left < part.n_w:
                                break
                            left = 0
                            h += 1


def emit_pixels(kind, vectors, masked):
    """Return what emits the sums of PIXELS pixels by so many vectors of channels, or a part of one vector."""

    def emit(builder, part, count, taps, channel, w, w_offsets, c, add):
        def load_pixel(tap):
            pixel = emit_at(builder, builder.inttoptr(tap, ll_reals(kind)), channel)
            if masked:
                return [emit_masked_load(builder, kind, pixel, emit_first(builder, kind, part))]
            return emit_loads(builder, kind, pixel, vectors)

        def step(k, sums):
            weights = emit_loads(builder, kind, emit_at(builder, w, emit_get(builder, w_offsets, k)), vectors)
            k_taps = emit_at(builder, taps, builder.mul(k, WORD(PIXELS)))
            values = [value for r in range(PIXELS) for value in load_pixel(emit_get(builder, k_taps, r))]
            factors = zip(weights * PIXELS, values, sums, strict=True)
            return [emit_fma(builder, weight, value, total) for weight, value, total in factors]

        totals = emit_loop(builder, count, zeros(kind, PIXELS * vectors), step)
        numbers = [r * PIXEL_VECTORS + v for r in range(PIXELS) for v in range(vectors)]
        emit_totals(builder, kind, totals, [emit_at(builder, c, n * kind.lanes) for n in numbers], add)

    return emit


@verb
def pixels(vectors, part, count, taps, channel, w, w_offsets, c, add):
    """c[r][j] (+)= sum_k w[w_offsets[k] + j] * taps[k][r][channel + j]; `vectors` is 0 for a part of one."""

    def emit(builder, vectors, *args):
        def case(v):
            name = f"fastconv_pixels_{v}_{w.element}x{w.lanes}"
            return lambda: emit_out_of_line(builder, name, args, emit_pixels(w, max(v, 1), masked=v == 0))

        emit_switch(builder, vectors, {v: case(v) for v in (0, 1, 2, 4)})

    return void(word, word, word, INTEGERS, word, w, INTEGERS, c, word), emit


@verb
def most_vectors(like):
    """Vectors of channels that PIXELS pixels have registers for."""
    return word(like), lambda builder, _: WORD(shapes_for(like)[1][1])


def depthwise_pixels(a, begin, end, thread):
    """A task is a row of pixels."""
    w, bias = reals(a, a.w), reals(a, a.b)
    zeros = reals(a, a.work + thread * a.work_stride)
    taps = integers(address(zeros + a.w_stride))
    c = stack_vectors(a, PIXEL_SUMS)
    clear(zeros, a.w_stride)
    for task in range(begin, end):
        image, rest = task // a.tasks, task % a.tasks
        sums, s = records(a, a.sums, "pixel_sum"), a.sum_count - 1
        while sums[s].task_begin > rest:
            s -= 1
        part = sums[s]
        rest -= part.task_begin
        h, d, count = rest % part.n_h, rest // part.n_h, part.taps_d * part.taps_h * part.taps_w
        map_d, map_h, map_w = integers(part.map_d), integers(part.map_h), integers(part.map_w)
        w_offsets = integers(part.w_offsets)
        x = reals(a, a.x) + image * a.x_image
        y = reals(a, a.y) + (image * a.y_image + part.y + d * part.y_d + h * part.y_h)
        for p in range(0, part.n_w, PIXELS):
            here = min(part.n_w - p, PIXELS)
            # Fewer pixels than PIXELS run as PIXELS: the addresses of the last repeat.
            tap = 0
            for i in range(part.taps_d):
                for j in range(part.taps_h):
                    at_d, at_h = map_d[i * part.n_d + d], map_h[j * part.n_h + h]
                    for k in range(part.taps_w):
                        for r in range(PIXELS):
                            at_w = map_w[k * part.n_w + p + min(r, here - 1)]
                            if at_d < 0 or at_h < 0 or at_w < 0:
                                taps[tap] = address(zeros)
                            else:
                                taps[tap] = address(x + (at_d + at_h + at_w))
                            tap += 1
            channel = 0
            while channel < a.channels:
                left = a.channels - channel
                vectors = left // lanes(a)
                if vectors >= most_vectors(a):
                    vectors = most_vectors(a)
                elif vectors >= 2:
                    vectors = 2
                done = vectors * lanes(a) if vectors else left
                k_blocks = max((count + a.k_block - 1) // a.k_block, 1)
                for kb in range(k_blocks):
                    k = kb * a.k_block
                    some = min(count - k, a.k_block)
                    pixels(vectors, done, some, taps + k * PIXELS, channel, w + channel, w_offsets + k, c, kb)
                for r in range(here):
                    c_r = c + r * PIXEL_VECTORS * lanes(a)
                    if a.b or a.activation:
                        finish_lanes(c_r, done, bias + channel, a.b != 0, a.activation)
                    copy(y + ((p + r) * part.y_w + channel), c_r, done)
                channel += done
