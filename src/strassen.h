/* A product of matrices from seven products of their quarters in place of eight (Strassen's, in Winograd's form):
 *
 *     s1 = a21 + a22   t1 = b12 - b11    p1 = a11 b11   p5 = s1 t1    c11 = p1 + p2
 *     s2 = s1 - a11    t2 = b22 - t1     p2 = a12 b21   p6 = s2 t2    c12 = u + p5 + p3
 *     s3 = a11 - a21   t3 = b22 - b12    p3 = s4 b22    p7 = s3 t3    c21 = u + p7 - p4
 *     s4 = a12 - s2    t4 = t2 - b21     p4 = a22 t4    u = p1 + p6   c22 = u + p7 + p5
 *
 * Rows of A are pixels, columns of B output channels, and k is cut anew in each block of it: products are linear, so each of
 * the seven is summed over the blocks, and only the sums are put together. B's sums are made once, A's for each tile.
 * One such step costs a digit of accuracy at most: 7e-7 of the largest result, where eight products leave 2e-7. Sums of
 * quarters spread a NaN or inf over pixels and output channels to which it does not belong: whoever finds one in the
 * result sums the tile again by eight products.
 */

/* t1 ... t4 of a piece of k and two blocks of output channels, of which one is in the first half: see STRASSEN_WORDS. */
static void FN(strassen_weights)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const strassen_words *a = (const strassen_words *)words;
    (void)thread;
    for (int64_t task = begin; task < end; task++) {
        int64_t pair = task / a->piece_count, piece = task % a->piece_count;
        int64_t at = ((const int64_t *)a->places)[piece], size = ((const int64_t *)a->sizes)[piece] / 2;
        const real *b11 = (const real *)a->x + pair * a->block + at, *b12 = b11 + a->pairs * a->block;
        real *t = (real *)a->y + 2 * (pair * a->block + at);
        for (int64_t i = 0; i < size; i += LANES) {
            vec b22 = FN(load)(b12 + size + i), t1 = FN(load)(b12 + i) - FN(load)(b11 + i), t2 = b22 - t1;
            FN(store)(t + i, t1);
            FN(store)(t + size + i, t2);
            FN(store)(t + 2 * size + i, b22 - FN(load)(b12 + i));
            FN(store)(t + 3 * size + i, t2 - FN(load)(b11 + size + i));
        }
    }
}

/* s1 ... s4 of one row of each half, `row` apart each. */
INLINE void FN(strassen_rows)(const real *upper, const real *lower, int64_t depth, real *s, int64_t row)
{
    for (int64_t k = 0; k < depth; k += LANES) {
        vec a11 = FN(load)(upper + k), a21 = FN(load)(lower + k), s1 = a21 + FN(load)(lower + depth + k), s2 = s1 - a11;
        FN(store)(s + k, s1);
        FN(store)(s + row + k, s2);
        FN(store)(s + 2 * row + k, a11 - a21);
        FN(store)(s + 3 * row + k, FN(load)(upper + depth + k) - s2);
    }
}

/* c11, c12, c21, c22 of some elements, in the places of p1, p3, p4 and p7. Returns whether all are finite. */
INLINE int FN(strassen_join)(real *p1, const real *p2, real *p3, real *p4, const real *p5, const real *p6, real *p7, int64_t count)
{
    vec spoiled = {0};
    for (int64_t i = 0; i < count; i += LANES) {
        vec first = FN(load)(p1 + i), fifth = FN(load)(p5 + i), u = first + FN(load)(p6 + i), v = u + FN(load)(p7 + i);
        vec c11 = first + FN(load)(p2 + i), c12 = u + fifth + FN(load)(p3 + i), c21 = v - FN(load)(p4 + i), c22 = v + fifth;
        FN(store)(p1 + i, c11);
        FN(store)(p3 + i, c12);
        FN(store)(p4 + i, c21);
        FN(store)(p7 + i, c22);
        spoiled += ((c11 - c11) + (c12 - c12)) + ((c21 - c21) + (c22 - c22));
    }
    for (int64_t i = 0; i < LANES; i++)
        if (spoiled[i] != 0)
            return 0;
    return 1;
}
