"""A product of matrices from seven products of their quarters in place of eight (Strassen's, in Winograd's form).

s1 = a21 + a22   t1 = b12 - b11    p1 = a11 b11   p5 = s1 t1    c11 = p1 + p2
s2 = s1 - a11    t2 = b22 - t1     p2 = a12 b21   p6 = s2 t2    c12 = u + p5 + p3
s3 = a11 - a21   t3 = b22 - b12    p3 = s4 b22    p7 = s3 t3    c21 = u + p7 - p4
s4 = a12 - s2    t4 = t2 - b21     p4 = a22 t4    u = p1 + p6   c22 = u + p7 + p5

Rows of A are pixels, columns of B output channels, and k is cut anew in each block of it: products are linear, so each
of the seven is summed over the blocks, and only the sums are put together. Sums of quarters spread a NaN or inf over
pixels and output channels to which it does not belong: whoever finds one in the result sums the tile again by eight
products.
"""

from .simd import helper, integers, lanes, load, reals, splat, stack_vectors, store


def strassen_weights(a, begin, end, thread):
    """t1 ... t4 of a piece of k and two blocks of output channels, of which one is in the first half."""
    for task in range(begin, end):
        pair, piece = task // a.piece_count, task % a.piece_count
        at, size = integers(a.places)[piece], integers(a.sizes)[piece] // 2
        b11 = reals(a, a.x) + (pair * a.block + at)
        b12 = b11 + a.pairs * a.block
        t = reals(a, a.y) + 2 * (pair * a.block + at)
        for i in range(0, size, lanes(a)):
            b22, t1 = load(b12 + (size + i)), load(b12 + i) - load(b11 + i)
            t2 = b22 - t1
            store(t + i, t1)
            store(t + (size + i), t2)
            store(t + (2 * size + i), b22 - load(b12 + i))
            store(t + (3 * size + i), t2 - load(b11 + (size + i)))


@helper
def strassen_rows(upper, lower, depth, s, row):
    """s1 ... s4 of one row of each half, `row` apart each."""
    for k in range(0, depth, lanes(s)):
        a11, a21 = load(upper + k), load(lower + k)
        s1 = a21 + load(lower + (depth + k))
        s2 = s1 - a11
        store(s + k, s1)
        store(s + (row + k), s2)
        store(s + (2 * row + k), a11 - a21)
        store(s + (3 * row + k), load(upper + (depth + k)) - s2)


@helper
def strassen_join(p1, p2, p3, p4, p5, p6, p7, count):
    """c11, c12, c21, c22 of some elements, in the places of p1, p3, p4 and p7. Returns whether all are finite."""
    spoiled = splat(p1, 0.0)
    for i in range(0, count, lanes(p1)):
        first, fifth = load(p1 + i), load(p5 + i)
        u = first + load(p6 + i)
        v = u + load(p7 + i)
        c11, c12, c21, c22 = (
            first + load(p2 + i),
            u + fifth + load(p3 + i),
            v - load(p4 + i),
            v + fifth,
        )
        store(p1 + i, c11)
        store(p3 + i, c12)
        store(p4 + i, c21)
        store(p7 + i, c22)
        spoiled = spoiled + (((c11 - c11) + (c12 - c12)) + ((c21 - c21) + (c22 - c22)))
    lane = stack_vectors(p1, 1)
    store(lane, spoiled)
    finite = True
    for i in range(lanes(p1)):
        finite = finite and lane[i] == 0
    return finite
