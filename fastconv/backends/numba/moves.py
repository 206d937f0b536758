"""Moving elements from place to place: copies, whole and masked, strided, through a map, and transposed.

Single elements are moved by loops that are emitted as they are, because LLVM takes great pains to unroll and
vectorise them, to no gain.
"""

from collections.abc import Callable
from typing import Any

from .simd import (
    INTEGERS,
    MASKED_BYTES,
    WORD,
    bytes_of,
    emit_at,
    emit_first,
    emit_get,
    emit_load,
    emit_loop,
    emit_masked_load,
    emit_out_of_line,
    emit_shuffle,
    emit_store,
    emit_store_parts,
    evens,
    helper,
    ir,
    lanes,
    load,
    load_part,
    narrow,
    odds,
    shuffle,
    store,
    store_part,
    store_spread,
    thirds,
    verb,
    void,
    word,
    zeros,
    zipped,
)


@helper
def load_some(p, n):
    """A vector, or as much of one as there is."""
    return load(p) if n >= lanes(p) else load_part(p, n)


@helper
def store_some(p, vector, n):
    if n >= lanes(vector):
        store(p, vector)
    else:
        store_part(p, vector, n)


@verb
def copy(y, x, n):
    """Exactly n elements, of arrays that do not overlap."""

    def emit(builder, y_, x_, n):
        size = WORD(y.lanes)

        def step(k, _):
            at = builder.mul(k, size)
            emit_store(builder, y, emit_at(builder, y_, at), emit_load(builder, x, x_, at))
            return []

        whole, rest = builder.udiv(n, size), builder.urem(n, size)
        emit_loop(builder, whole, [], step)
        with builder.if_then(builder.icmp_signed(">", rest, WORD(0))):
            at, mask = builder.mul(whole, size), emit_first(builder, y, rest)
            part = emit_masked_load(builder, x, emit_at(builder, x_, at), mask)
            emit_store_parts(builder, y, [emit_at(builder, y_, at)], [part], rest)

    return void(y, x, word), emit


@verb
def copy_over(y, x, n):
    """As copy, in whole vectors: reads and writes up to a vector less one element more than n."""

    def emit(builder, y_, x_, n):
        def step(k, _):
            at = builder.mul(k, WORD(y.lanes))
            emit_store(builder, y, emit_at(builder, y_, at), emit_load(builder, x, x_, at))
            return []

        emit_loop(builder, builder.udiv(builder.add(n, WORD(y.lanes - 1)), WORD(y.lanes)), [], step)

    return void(y, x, word), emit


@helper
def add_to(y, x, n):
    """y[i] += x[i] for i < n."""
    for i in range(0, n, lanes(y)):
        store_some(y + i, load_some(y + i, n - i) + load_some(x + i, n - i), n - i)


@verb
def clear(y, n):
    """y[i] = 0 for i < n."""

    def emit(builder, y_, n):
        size, (zero,) = WORD(y.lanes), zeros(y, 1)

        def step(k, _):
            emit_store(builder, y, emit_at(builder, y_, builder.mul(k, size)), zero)
            return []

        whole, rest = builder.udiv(n, size), builder.urem(n, size)
        emit_loop(builder, whole, [], step)
        with builder.if_then(builder.icmp_signed(">", rest, WORD(0))):
            last = emit_at(builder, y_, builder.mul(whole, size))
            emit_store_parts(builder, y, [last], [zero], rest)

    return void(y, word), emit


@verb
def copy_strided(y, y_step, x, x_step, n):
    """y[i * y_step] = x[i * x_step] for i < n."""

    def emit(builder, y_, y_step, x_, x_step, n):
        def step(k, _):
            value = emit_get(builder, x_, builder.mul(k, x_step))
            builder.store(value, emit_at(builder, y_, builder.mul(k, y_step)))
            return []

        emit_loop(builder, n, [], step)

    return void(y, word, x, word, word), emit


@verb
def copy_mapped(y, x, x_step, index, n):
    """y[i] = x[index[i] * x_step] for i < n, and 0 where the index is negative; x[0] is read in any case."""

    def emit(builder, y_, x_, x_step, index_, n):
        def step(k, _):
            source = emit_get(builder, index_, k)
            exists = builder.icmp_signed(">=", source, WORD(0))
            safe = builder.select(exists, source, WORD(0))
            value = emit_get(builder, x_, builder.mul(safe, x_step))
            zero = ir.Constant(value.type, 0.0)
            builder.store(builder.select(exists, value, zero), emit_at(builder, y_, k))
            return []

        emit_loop(builder, n, [], step)

    return void(y, x, word, INTEGERS, word), emit


@helper
def load_any(p, n):
    """The first of n elements, if any; nothing behind them is read."""
    return load_some(p, n) if n > 0 else load_part(p, 0)


@helper
def copy_evens(y, x, n):
    """y[i] = x[2 * i] for i < n; nothing behind the last of them is read."""
    i = 0
    while i + lanes(y) < n:
        store(y + i, evens(load(x + 2 * i), load(x + (2 * i + lanes(y)))))
        i += lanes(y)
    rest = 2 * (n - i) - 1
    if rest > lanes(y):
        store_part(y + i, evens(load(x + 2 * i), load_part(x + (2 * i + lanes(y)), rest - lanes(y))), n - i)
    elif rest > 0:
        first = load_part(x + 2 * i, rest)
        store_part(y + i, evens(first, first), n - i)


@helper
def copy_thirds(y, x, n):
    """y[i] = x[3 * i] for i < n; nothing behind the last of them is read."""
    i, size = 0, lanes(y)
    while i + size < n:
        from_i = x + 3 * i
        store(y + i, thirds(load(from_i), load(from_i + size), load(from_i + 2 * size), 0))
        i += size
    rest, from_i = 3 * (n - i) - 2, x + 3 * i
    if rest > 0:
        a, b = load_any(from_i, rest), load_any(from_i + size, rest - size)
        store_part(y + i, thirds(a, b, load_any(from_i + 2 * size, rest - 2 * size), 0), n - i)


@helper
def split(y, odd, x, n):
    """Every second one of n elements goes to y, and the others to odd; whole vectors are written."""
    for i in range(0, n, 2 * lanes(y)):
        a, b = load_any(x + i, n - i), load_any(x + (i + lanes(y)), n - i - lanes(y))
        store(y + i // 2, evens(a, b))
        store(odd + i // 2, odds(a, b))


@helper
def split_in_three(y, second, third, x, n):
    """Each of n elements goes to y, second and third in turn; whole vectors are written."""
    for i in range(0, n, 3 * lanes(y)):
        a, b = load_any(x + i, n - i), load_any(x + (i + lanes(y)), n - i - lanes(y))
        c = load_any(x + (i + 2 * lanes(y)), n - i - 2 * lanes(y))
        store(y + i // 3, thirds(a, b, c, 0))
        store(second + i // 3, thirds(a, b, c, 1))
        store(third + i // 3, thirds(a, b, c, 2))


@verb
def masks_are_fast(like):
    """Whether stores of some lanes cost no more than stores of all (AVX-512)."""
    return word(like), lambda builder, _: WORD(int(like.lanes * bytes_of(like.element) == MASKED_BYTES))


@helper
def copy_spread(y, x, n):
    """y[2 * i] = x[i] for i < n."""
    i = 0
    if masks_are_fast(y):
        while i + lanes(y) <= n:
            store_spread(y + 2 * i, load(x + i))
            i += lanes(y)
    copy_strided(y + 2 * i, 2, x + i, 1, n - i)


@helper
def copy_zipped(y, a, b, n):
    """y[2 * i] = a[i] and y[2 * i + 1] = b[i] for i < n."""
    i = 0
    while i + lanes(y) <= n:
        store(y + 2 * i, zipped(load(a + i), load(b + i), 0))
        store(y + (2 * i + lanes(y)), zipped(load(a + i), load(b + i), 1))
        i += lanes(y)
    copy_strided(y + 2 * i, 2, a + i, 1, n - i)
    copy_strided(y + (2 * i + 1), 2, b + i, 1, n - i)


def _offset(builder: Any, to: Any, to_: Any, j: Any) -> Any:
    """How far column j of a transpose goes: `to` is a stride, or a table of places."""
    return emit_get(builder, to_, j) if to == INTEGERS else builder.mul(to_, j)


@verb
def column(y, to, j):
    """Where column j of a transpose goes."""
    kind = INTEGERS if to == INTEGERS else word
    return y(y, kind, word), lambda builder, y_, to_, j: emit_at(builder, y_, _offset(builder, kind, to_, j))


@helper
def transpose_few(y, to, x, x_stride, rows, columns):
    """As transpose, where rows do not fill a vector: by 4 x 4, so that both sides move in short vectors."""
    whole_rows, whole_columns = rows & ~3, columns & ~3
    for i in range(0, whole_rows, 4):
        y_i, x_i = narrow(y + i, 4), narrow(x + i * x_stride, 4)
        for j in range(0, whole_columns, 4):
            a, b, c, d = (
                load(x_i + j),
                load(x_i + (x_stride + j)),
                load(x_i + (2 * x_stride + j)),
                load(x_i + (3 * x_stride + j)),
            )
            ab0, ab1 = shuffle(a, b, 0, 4, 1, 5), shuffle(a, b, 2, 6, 3, 7)
            cd0, cd1 = shuffle(c, d, 0, 4, 1, 5), shuffle(c, d, 2, 6, 3, 7)
            store(column(y_i, to, j), shuffle(ab0, cd0, 0, 1, 4, 5))
            store(column(y_i, to, j + 1), shuffle(ab0, cd0, 2, 3, 6, 7))
            store(column(y_i, to, j + 2), shuffle(ab1, cd1, 0, 1, 4, 5))
            store(column(y_i, to, j + 3), shuffle(ab1, cd1, 2, 3, 6, 7))
        for j in range(whole_columns, columns):
            copy_strided(column(y + i, to, j), 1, x + (i * x_stride + j), x_stride, 4)
    for j in range(columns):
        copy_strided(
            column(y + whole_rows, to, j), 1, x + (whole_rows * x_stride + j), x_stride, rows - whole_rows
        )


def emit_turn(builder: Any, rows: list) -> list:
    """The columns of a square of vectors in place of its rows, by zips; LLVM finds what takes the fewest instructions."""
    half = len(rows) // 2
    zips = [[side + i // 2 + i % 2 * len(rows) for i in range(len(rows))] for side in (0, half)]
    for _ in range(half.bit_length()):
        pairs = zip(rows[:half], rows[half:], strict=True)
        rows = [emit_shuffle(builder, a, b, chosen) for a, b in pairs for chosen in zips]
    return rows


@verb
def turn_block(y, to, j, x, x_stride, columns):
    """As transpose, of as many rows as a vector has lanes and no more columns; they go where column j does and on."""
    kind = INTEGERS if to == INTEGERS else word

    def emit(builder, y_, to_, j, x_, x_stride, columns):
        def block(whole: bool) -> Callable:
            def emit(builder, y_, to_, j, x_, x_stride, columns):
                places = [emit_at(builder, x_, builder.mul(WORD(i), x_stride)) for i in range(x.lanes)]
                mask = None if whole else emit_first(builder, x, columns)
                rows = [
                    emit_load(builder, x, place) if whole else emit_masked_load(builder, x, place, mask)
                    for place in places
                ]
                for number, turned in enumerate(emit_turn(builder, rows)):
                    with builder.if_then(
                        ir.IntType(1)(1) if whole else builder.icmp_signed("<", WORD(number), columns)
                    ):
                        offset = _offset(builder, kind, to_, builder.add(j, WORD(number)))
                        emit_store(builder, y, emit_at(builder, y_, offset), turned)

            return emit

        name = f"turn_{'places' if kind == INTEGERS else 'stride'}_{y.lanes}_{bytes_of(y.element)}"
        args = [y_, to_, j, x_, x_stride, columns]
        with builder.if_else(builder.icmp_signed("==", columns, WORD(x.lanes))) as (all_columns, some):
            with all_columns:
                emit_out_of_line(builder, name, args, block(True))
            with some:
                emit_out_of_line(builder, f"{name}_part", args, block(False))

    return void(y, kind, word, x, word, word), emit


@verb
def fill_square(y, y_stride, x, x_stride, index):
    """y[c * y_stride + i] = x[index[i] * x_stride + c] for as many i and c as a vector has lanes, 0 where the index is negative."""

    def emit(builder, y_, y_stride, x_, x_stride, index_):
        (zero,), rows = zeros(x, 1), []
        for i in range(x.lanes):
            source = emit_get(builder, index_, i)
            exists = builder.icmp_signed(">=", source, WORD(0))
            place = builder.mul(builder.select(exists, source, WORD(0)), x_stride)
            rows.append(builder.select(exists, emit_load(builder, x, emit_at(builder, x_, place)), zero))
        for c, turned in enumerate(emit_turn(builder, rows)):
            emit_store(builder, y, emit_at(builder, y_, builder.mul(y_stride, WORD(c))), turned)

    return void(y, word, x, word, INTEGERS), emit


@helper
def transpose(y, to, x, x_stride, rows, columns):
    """y[j * to][i] = x[i][j] for i < rows, j < columns, or y[to[j]][i] if `to` is a table of places.

    By squares of whole vectors, the last ones overlapping those before them.
    """
    size = lanes(y)
    if rows < size:
        transpose_few(y, to, x, x_stride, rows, columns)
        return
    for begin in range(0, rows, size):
        i = min(begin, rows - size)
        for next_column in range(0, columns, size):
            j = max(min(next_column, columns - size), 0)
            turn_block(y + i, to, j, x + (i * x_stride + j), x_stride, min(columns, size))


@helper
def merge(y, x, x_row, count, n):
    """y[i * count + k] = x[k * x_row + i] for i * count + k < n. Each row of x goes on for a vector."""
    whole = n // count
    transpose(y, count, x, x_row, count, whole)
    copy_strided(y + whole * count, 1, x + whole, x_row, n - whole * count)
