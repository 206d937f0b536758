/* The pass over points and channels between the products of deform_grad.h, which includes this once for each width of
 * the vectors it is done in; `piece` is the type of these, and PIECE_FMA its multiply-add.
 *
 * A vector never reaches into the next pixel: what is added there would overlap what the next corner reads, and reading
 * what part of a vector has just been written takes longer than all the rest.
 *
 * The pulls of a pixel lie pull_row behind those of the one before, and pull_tap behind those of the tap before. Without
 * `sampled`, only the image's gradient is wanted, and no sample is looked at.
 */

INLINE void FN(PULL)(const deform_grad_words *a, const deform_words *f, const int ndim, const int sampled, FN(deform_grad_work) s,
                     const real *x, int64_t channels, const real *pulls, int64_t pull_row, int64_t pull_tap, int64_t tap,
                     int64_t taps, int64_t pixels)
{
    enum { WIDTH = (int)(sizeof(piece) / sizeof(real)) };
    typedef int_of_real bits __attribute__((vector_size(sizeof(piece))));
    typedef real loose __attribute__((vector_size(sizeof(piece)), aligned(sizeof(real)), may_alias));
    const int corners = 1 << ndim;
    int64_t tile = f->tile, row = a->row, delta[8], last = (channels - 1) / WIDTH * WIDTH;
    int scatter = !sampled || a->gx != 0, columns = sampled && a->gw != 0;
    /* Behind a block's own channels in their last vector, the image is zero and pulls are another tap's. */
    bits own;
    UNROLL(16)
    for (int i = 0; i < WIDTH; i++)
        own[i] = i < channels - last ? -1 : 0;
    for (int corner = 0; corner < corners; corner++)
        delta[corner] = ((corner >> 2 & 1) * f->line_d + (corner >> 1 & 1) * f->line_h + (corner & 1)) * f->width;
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t t = 0; t < taps; t++) {
            int64_t base = s.at.base[(tap + t) * tile + p] * f->width;
            const real *from = sampled ? x + base : 0, *pull = pulls + p * pull_row + t * pull_tap;
            const real *weight = s.at.weight + (tap + t) * corners * tile + p;
            real *to = s.image + base, *column = s.at.columns + p * row + t * channels;
            real mask = s.at.mask[(tap + t) * tile + p];
            piece w[8], dot[8];
            UNROLL(8)
            for (int corner = 0; corner < corners; corner++) {
                w[corner] = weight[corner * tile] - (piece){0};
                dot[corner] = (piece){0};
            }
            for (int64_t c = 0; c <= last; c += WIDTH) {
                piece g = *(const loose *)(pull + c), value = {0};
                if (c == last)
                    g = (piece)((bits)g & own);
                piece moved = g * mask;
                UNROLL(8)
                for (int corner = 0; corner < (sampled ? corners : 0); corner++) {
                    piece v = *(const loose *)(from + delta[corner] + c);
                    dot[corner] = PIECE_FMA(g, v, dot[corner]);
                    value = corner ? PIECE_FMA(w[corner], v, value) : w[0] * v;
                }
                if (scatter) {
                    UNROLL(8)
                    for (int corner = 0; corner < corners; corner++) {
                        loose *q = (loose *)(to + delta[corner] + c);
                        *q = PIECE_FMA(w[corner], moved, *q);
                    }
                }
                if (columns)
                    *(loose *)(column + c) = value * mask;
            }
            if (!sampled)
                continue;
            real *dots = s.dots + t * DOTS_OF(ndim) * tile + p;
            for (int i = 0; i < DOTS_OF(ndim); i += 4) {
                FN(quad) sums[4];
                UNROLL(4)
                for (int j = 0; j < 4; j++) {
                    sums[j] = (FN(quad)){0};
                    if (i + j < corners)
                        sums[j] = QUAD_OF(dot[i + j]);
                }
                TRANSPOSE_QUADS(FN(quad), sums[0], sums[1], sums[2], sums[3]);
                sums[0] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
                UNROLL(4)
                for (int j = 0; j < 4; j++)
                    dots[(i + j) * tile] = sums[0][j];
            }
        }
}

#undef PULL
#undef piece
#undef PIECE_FMA
#undef QUAD_OF
