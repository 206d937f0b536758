"""The transforms of Winograd's algorithms: formulas for one line, emitted for whole squares.

The points are 0, +-1 and infinity for a = 4, where every coefficient is a power of two, so small integers stay
exact; +-1/2, +-6/5 and infinity for a = 5; 0, +-1/sqrt(2), +-sqrt(2) and infinity for a = 6. Numbers have the
element type, so that every product of theirs is rounded as in src/winograd.h.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types

from .simd import (
    INTEGERS,
    WORD,
    Term,
    emit_at,
    emit_call_entry,
    emit_fma,
    emit_function,
    emit_load,
    emit_loop,
    emit_store,
    emit_table,
    ir,
    ll_reals,
    reals_of,
    verb,
    void,
    word,
    zeros,
)

# (m, r) of the algorithms; a = m + r - 1 points.
ALGORITHMS = ((2, 3), (3, 3), (4, 3), (3, 2), (4, 2), (3, 4))
POINTS = (4, 5, 6)

# Along how many axes: rows of a tile are transformed, or rows and columns.
RANKS = (1, 2)

# Algorithms are numbered (rank * ROW_OF_TABLE + m) * ROW_OF_TABLE + r, inputs with a in the place of m and 0 in that of r.
ROW_OF_TABLE = 8

Line = list[Term]


class Points:
    """The points of an element type, and the formulas for one line of a square."""

    def __init__(self, element: Any):
        self.real = real = np.float32 if element is types.float32 else np.float64
        self.root_low, self.root_high = real(0.70710678118654752440), real(1.41421356237309504880)
        self.near, self.far = real(0.5), real(1.2)

    def inputs(self, d: Line) -> Line:
        """Return the inputs of one line at the points."""
        if len(d) == 4:
            return [d[0] - d[2], d[2] + d[1], d[2] - d[1], d[3] - d[1]]
        if len(d) == 5:
            near, far = -self.near * self.near, -self.far * self.far
            odd, even = d[1].times_plus(far, d[3]), self.near * d[0].times_plus(far, d[2])
            odd_2, even_2 = d[1].times_plus(near, d[3]), self.far * d[0].times_plus(near, d[2])
            last = d[0].times_plus(near * far, d[2].times_plus(near + far, d[4]))
            return [odd + even, odd - even, odd_2 + even_2, odd_2 - even_2, last]
        even, odd = d[2].times_plus(-2, d[4]), d[1].times_plus(-2, d[3])
        even_2, odd_2 = d[2].times_plus(-0.5, d[4]), d[1].times_plus(-0.5, d[3])
        return [
            d[2].times_plus(-2.5, d[0] + d[4]),
            odd.times_plus(self.root_low, even),
            odd.times_plus(-self.root_low, even),
            odd_2.times_plus(self.root_high, even_2),
            odd_2.times_plus(-self.root_high, even_2),
            d[3].times_plus(-2.5, d[1] + d[5]),
        ]

    def outputs(self, m: int, p: Line) -> Line:
        """Return the m outputs of one line, each the value of a polynomial at the points."""
        if len(p) == 4:
            y = [p[0] + (p[1] + p[2]), p[1] - p[2], p[1] + p[2]]
        else:
            # Two pairs of opposite points, and 0 before them if there are six.
            low, high = (self.near, self.far) if len(p) == 5 else (self.root_low, self.root_high)
            a, b, c, d = p[-5:-1]
            total, difference = a + b, low * (a - b)
            total_2, difference_2 = c + d, high * (c - d)
            y = [
                total + total_2 if len(p) == 5 else p[0] + total + total_2,
                difference + difference_2,
                total_2.times_plus(high * high, low * low * total),
                difference_2.times_plus(high * high, low * low * difference),
            ]
        return [*y[: m - 1], y[m - 1] + p[-1]]

    def weights(self, points: int, g: Line) -> Line:
        """Return the weights of one line at the points."""
        zero = Term(g[0].builder, g[0].all_lanes(0))
        g0, g1, g2, g3 = [*g, zero, zero][:4]
        if points == 4:
            even, odd = (g0 + g2) * 0.5, (g1 + g3) * 0.5
            return [g0, even + odd, even - odd, g[-1]]
        if points == 5:
            near, far = self.near * self.near, self.far * self.far
            step, low, high = 2 * (near - far), 2 * self.near * (near - far), 2 * self.far * (far - near)
            even, odd = (g0 + near * g2) / low, (g1 + near * g3) / step
            even_2, odd_2 = (g0 + far * g2) / high, (g1 + far * g3) / -step
            return [odd + even, odd - even, odd_2 + even_2, odd_2 - even_2, g[-1]]
        even, odd = g0 + 0.5 * g2, (g1 + 0.5 * g3) * self.root_low
        even_2, odd_2 = g0 + 2 * g2, (g1 + 2 * g3) * self.root_high
        low, high = self.real(-2 / 3), self.real(1 / 6)
        first, second = (even + odd) * low, (even - odd) * low
        return [g0, first, second, (even_2 + odd_2) * high, (even_2 - odd_2) * high, g[-1]]


def on_axes(line: Callable[[Line], Line], rank: int, lines: list[Line]) -> Line:
    """Transform the columns, if the rank is 2, and then the rows; return the result row by row."""
    if rank == 2:
        columns = [line(list(column)) for column in zip(*lines, strict=True)]
        lines = [list(row) for row in zip(*columns, strict=True)]
    return [term for row in lines for term in line(row)]


def emit_lines(builder: Any, kind: Any, x: Any, x_h: Any, x_w: Any, rank: int, size: int) -> list[Line]:
    """Load `size` rows of vectors, or one if the rank is 1; rows and columns are so many elements apart."""
    rows = [emit_at(builder, x, builder.mul(x_h, WORD(i))) for i in range(size if rank == 2 else 1)]
    steps = [builder.mul(x_w, WORD(j)) for j in range(size)]
    return [[Term(builder, emit_load(builder, kind, row, step)) for step in steps] for row in rows]


def emit_vectors(builder: Any, kind: Any, count: Any, start: list, step: Callable) -> list:
    """Emit a loop over the vectors that hold `count` elements; `step` is told where each begins."""
    vectors = builder.udiv(builder.add(count, WORD(kind.lanes - 1)), WORD(kind.lanes))
    return emit_loop(
        builder, vectors, start, lambda k, carried: step(builder.mul(k, WORD(kind.lanes)), carried)
    )


def emit_stores(builder: Any, kind: Any, terms: Line, y: Any, y_step: Any) -> None:
    for i, term in enumerate(terms):
        emit_store(builder, kind, emit_at(builder, y, builder.mul(y_step, WORD(i))), term.value)


def emit_inputs(kind: Any, points: int, rank: int) -> Callable:
    def emit(builder, x, x_h, x_w, channels, v, v_point):
        def step(c, _):
            lines = emit_lines(builder, kind, emit_at(builder, x, c), x_h, x_w, rank, points)
            transformed = on_axes(Points(kind.element).inputs, rank, lines)
            emit_stores(builder, kind, transformed, emit_at(builder, v, c), v_point)
            return []

        emit_vectors(builder, kind, channels, [], step)

    return emit


def emit_outputs(kind: Any, m: int, points: int, rank: int) -> Callable:
    def emit(builder, sums, point, channels, y, y_row, y_pixel):
        (zero,) = zeros(kind, 1)

        def step(o, spoiled):
            row = builder.mul(point, WORD(points))
            lines = emit_lines(builder, kind, emit_at(builder, sums, o), row, point, rank, points)
            pixels = on_axes(lambda line: Points(kind.element).outputs(m, line), rank, lines)
            for i in range(len(pixels) // m):
                to = emit_at(builder, emit_at(builder, y, o), builder.mul(y_row, WORD(i)))
                emit_stores(builder, kind, pixels[i * m : (i + 1) * m], to, y_pixel)
            # 0 * inf is a NaN.
            for pixel in pixels:
                spoiled = [emit_fma(builder, pixel.value, zero, *spoiled)]
            return spoiled

        (spoiled,) = emit_vectors(builder, kind, channels, [zero], step)
        clean = builder.bitcast(builder.fcmp_ordered("==", spoiled, zero), ir.IntType(kind.lanes))
        return builder.zext(builder.icmp_signed("==", clean, clean.type(-1)), WORD)

    return emit


def emit_weights(kind: Any, m: int, kernel: int, rank: int) -> Callable:
    def emit(builder, x, y, y_point, width, channels):
        def channel(c, _):
            x_c = emit_at(builder, x, builder.mul(c, builder.mul(width, WORD(kernel**rank))))
            y_c = emit_at(builder, y, builder.mul(c, width))

            def step(o, _):
                row = builder.mul(width, WORD(kernel))
                lines = emit_lines(builder, kind, emit_at(builder, x_c, o), row, width, rank, kernel)
                transformed = on_axes(
                    lambda line: Points(kind.element).weights(m + kernel - 1, line), rank, lines
                )
                emit_stores(builder, kind, transformed, emit_at(builder, y_c, o), y_point)
                return []

            emit_vectors(builder, kind, width, [], step)
            return []

        emit_loop(builder, channels, [], channel)

    return emit


def emit_transforms(builder: Any, what: str, like: Any, cases: dict[int, Callable]) -> Any:
    """Return the table of transforms that `cases` emit, of one engine."""
    kind, name = transform_type(what, like), f"fastconv_winograd_{what}"
    functions = {
        number: emit_function(builder, f"{name}_{number}_{like.element}x{like.lanes}", kind, emit)
        for number, emit in cases.items()
    }
    return emit_table(builder, name, functions)


def transform_type(what: str, like: Any) -> ir.FunctionType:
    reals = ll_reals(like)
    return {
        "inputs": ir.FunctionType(ir.VoidType(), [reals, WORD, WORD, WORD, reals, WORD]),
        "outputs": ir.FunctionType(WORD, [reals, WORD, WORD, reals, WORD, WORD]),
        "weights": ir.FunctionType(ir.VoidType(), [reals, reals, WORD, WORD, WORD]),
    }[what]


def number(rank: Any, m: Any, r: Any) -> Any:
    return (rank * ROW_OF_TABLE + m) * ROW_OF_TABLE + r


def emit_number(builder: Any, rank: Any, m: Any, r: Any) -> Any:
    row = builder.add(builder.mul(rank, WORD(ROW_OF_TABLE)), m)
    return builder.add(builder.mul(row, WORD(ROW_OF_TABLE)), r)


def each_algorithm(emit: Callable) -> dict[int, Callable]:
    return {number(rank, m, r): emit(m, r, rank) for m, r in ALGORITHMS for rank in RANKS}


@verb
def input_transforms(like):
    kind = reals_of(like)
    cases = {number(rank, a, 0): emit_inputs(kind, a, rank) for a in POINTS for rank in RANKS}
    return INTEGERS(like), lambda builder, _: emit_transforms(builder, "inputs", kind, cases)


@verb
def output_transforms(like):
    kind = reals_of(like)
    cases = each_algorithm(lambda m, r, rank: emit_outputs(kind, m, m + r - 1, rank))
    return INTEGERS(like), lambda builder, _: emit_transforms(builder, "outputs", kind, cases)


@verb
def weight_transforms(like):
    kind = reals_of(like)
    cases = each_algorithm(lambda m, r, rank: emit_weights(kind, m, r, rank))
    return INTEGERS(like), lambda builder, _: emit_transforms(builder, "weights", kind, cases)


@verb
def transform_inputs(transforms, points, rank, x, x_h, x_w, channels, v, v_point):
    """v[point][channel] of one source; point p lies v_point * p behind v."""

    def emit(builder, transforms, points, rank, *args):
        found = emit_number(builder, rank, points, WORD(0))
        emit_call_entry(builder, transforms, found, transform_type("inputs", x), args)

    return void(INTEGERS, word, word, x, word, word, word, v, word), emit


@verb
def transform_outputs(transforms, outputs, kernel, rank, sums, point, channels, y, y_row, y_pixel):
    """One tile's outputs to y + i * y_row + j * y_pixel; returns whether all of them are finite."""

    def emit(builder, transforms, outputs, kernel, rank, *args):
        found = emit_number(builder, rank, outputs, kernel)
        return emit_call_entry(builder, transforms, found, transform_type("outputs", sums), args)

    return word(INTEGERS, word, word, word, sums, word, word, y, word, word), emit


@verb
def transform_weights(transforms, outputs, kernel, rank, x, y, y_point, width, channels):
    """y[point][channel][o] of some input channels."""

    def emit(builder, transforms, outputs, kernel, rank, *args):
        found = emit_number(builder, rank, outputs, kernel)
        emit_call_entry(builder, transforms, found, transform_type("weights", x), args)

    return void(INTEGERS, word, word, word, x, y, word, word, word), emit
