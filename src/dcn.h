/* DCNv3 and DCNv4: each channel is the sum of its own samples, weighted by the masks of its group.
 *
 * A task is a tile of output pixels of one group of channels: points as for a deformable convolution, then the sums in
 * registers, over all points of a pixel. There is no matrix to multiply by, so no samples are written down. The scratch is
 * the deformable convolution's, with the sums of a group in place of output channels; what is columns there holds
 * offsets here.
 */

/* The offsets of one tap as deform_points takes them: the grid around its middle is scaled with them. */
static const real *FN(dcn_offsets)(const dcn_words *d, const deform_words *a, real scale, const real *offset, int64_t plane,
                                   int64_t tap, int64_t pixels, real *scaled)
{
    int64_t at[3] = {tap / (a->kernel_w * a->kernel_h), tap / a->kernel_w % a->kernel_h, tap % a->kernel_w};
    int64_t dilation[3] = {a->dil_d, a->dil_h, a->dil_w}, middle[3] = {d->middle_d, d->middle_h, d->middle_w};
    for (int64_t axis = 3 - a->ndim, i = 0; axis < 3; axis++, i++) {
        real grid = (scale - 1) * (real)(at[axis] * dilation[axis] - middle[axis]);
        for (int64_t p = 0; p < pixels; p += LANES) {
            int64_t n = pixels - p;
            vec v = n >= LANES ? FN(load)(offset + i * plane + p) : FN(load_part)(offset + i * plane + p, n);
            FN(store)(scaled + i * a->tile + p, FN(fma)(FN(splat)(scale), v, FN(splat)(grid)));
        }
    }
    return scaled;
}

/* Offsets or masks of a tile with channels first, as they are if that is how they come. `plane` becomes their stride. */
INLINE const real *FN(dcn_turned)(const real *x, int64_t pixel, int64_t channels, int64_t first, int64_t pixels, int64_t tile, real *turned,
                                  int64_t *plane)
{
    if (pixel == 1)
        return x + first;
    FN(transpose)(turned, tile, x + first * pixel, pixel, pixels, channels);
    *plane = tile;
    return turned;
}

/* Masks become exp(l) over its sum over the points of a pixel; the largest is subtracted first. */
static void FN(dcn_softmax)(const deform_words *a, real *mask, int64_t taps, int64_t skipped, int64_t pixels)
{
    for (int64_t p = 0; p < pixels; p += LANES) {
        vec most = FN(load)(mask + (skipped == 0 ? a->tile : 0) + p), sum = {0};
        for (int64_t t = 0; t < taps; t++)
            if (t != skipped) {
                vec l = FN(load)(mask + t * a->tile + p);
                most = FN(select)(l > most, l, most);
            }
        for (int64_t t = 0; t < taps; t++)
            if (t != skipped) {
                vec power = FN(exp_vec)(FN(load)(mask + t * a->tile + p) - most);
                sum += power;
                FN(store)(mask + t * a->tile + p, power);
            }
        for (int64_t t = 0; t < taps; t++)
            if (t != skipped)
                FN(store)(mask + t * a->tile + p, FN(load)(mask + t * a->tile + p) / sum);
    }
}

/* All points of a tile; `scaled` is room for its offsets, once they are scaled, and `fractions` is 0 but for gradients. */
static void FN(dcn_points)(const dcn_words *d, FN(deform_work) s, const real *offset, const real *mask, int64_t plane, int64_t pixels,
                           real *scaled, real *fractions)
{
    const deform_words *a = (const deform_words *)d;
    int64_t taps = a->kernel_d * a->kernel_h * a->kernel_w;
    double scale;
    memcpy(&scale, &d->scale, sizeof scale);
    for (int64_t t = 0; t < taps; t++) {
        if (t == d->skipped)
            continue;
        if (fractions)
            s.fraction = fractions + t * 3 * a->tile;
        if (scale == 1)
            FN(deform_points)(a, s, offset, plane, mask, t, pixels, fractions != 0);
        else
            FN(deform_points)(a, s, FN(dcn_offsets)(d, a, (real)scale, offset, plane, t, pixels, scaled), a->tile, mask, t, pixels, fractions != 0);
        offset += 2 * plane;
        mask += plane;
    }
    if (d->softmax)
        FN(dcn_softmax)(a, s.mask, taps, d->skipped, pixels);
}

/* sums[c] of one pixel for up to DCN_VECTORS vectors of channels. */
INLINE void FN(dcn_sum)(const deform_words *a, FN(deform_work) s, const int vectors, const real *x, const int64_t *delta,
                        int64_t taps, int64_t skipped, int64_t p, real *sums)
{
    vec sum[DCN_VECTORS];
    UNROLL(4)
    for (int v = 0; v < vectors; v++)
        sum[v] = (vec){0};
    for (int64_t t = 0; t < taps; t++) {
        if (t == skipped)
            continue;
        const real *from = x + s.base[t * a->tile + p] * a->width, *weight = s.weight + t * 4 * a->tile + p;
        vec w[4], mask = FN(splat)(s.mask[t * a->tile + p]);
        UNROLL(4)
        for (int corner = 0; corner < 4; corner++)
            w[corner] = FN(splat)(weight[corner * a->tile]);
        UNROLL(4)
        for (int v = 0; v < vectors; v++) {
            vec value = w[0] * FN(load)(from + v * LANES);
            UNROLL(3)
            for (int corner = 1; corner < 4; corner++)
                value = FN(fma)(w[corner], FN(load)(from + delta[corner] + v * LANES), value);
            sum[v] = FN(fma)(value, mask, sum[v]);
        }
    }
    UNROLL(4)
    for (int v = 0; v < vectors; v++)
        FN(store)(sums + v * LANES, sum[v]);
}

static void FN(dcn)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const dcn_words *d = (const dcn_words *)words;
    const deform_words *a = (const deform_words *)words;
    FN(deform_work) s = FN(deform_scratch)(a, thread);
    int64_t taps = a->kernel_d * a->kernel_h * a->kernel_w, plane = a->out_d * a->out_h * a->out_w;
    int64_t delta[4] = {0, a->width, a->line_h * a->width, (a->line_h + 1) * a->width};
    for (int64_t task = begin; task < end; task++) {
        int64_t tile = task % a->tiles, group = task / a->tiles % a->groups, image = task / a->tiles / a->groups;
        int64_t first = tile * a->tile, pixels = plane - first < a->tile ? plane - first : a->tile;
        int64_t step = plane, channel = d->offset_pixel == 1 ? plane : 1;
        const real *offset = (const real *)a->offset + image * a->offset_image + group * d->points * 2 * channel;
        const real *mask = (const real *)a->mask + image * a->mask_image + group * d->points * channel;
        real *room = s.columns + 2 * a->tile;
        mask = FN(dcn_turned)(mask, d->mask_pixel, d->points, first, pixels, a->tile, room, &step);
        offset = FN(dcn_turned)(offset, d->offset_pixel, 2 * d->points, first, pixels, a->tile, room + d->points * a->tile, &step);
        FN(deform_grid)(a, first, pixels, s.grid);
        FN(dcn_points)(d, s, offset, mask, step, pixels, s.columns, 0);
        const real *x = (const real *)a->x + image * a->x_image + group * d->x_group;
        for (int64_t p = 0; p < pixels; p++)
            for (int64_t c = 0; c < a->channels; c += DCN_VECTORS * LANES) {
                real *sums = s.sums + p * a->w_width + c;
                switch ((a->channels - c + LANES - 1) / LANES) {
                case 1:
                    FN(dcn_sum)(a, s, 1, x + c, delta, taps, d->skipped, p, sums);
                    break;
                case 2:
                    FN(dcn_sum)(a, s, 2, x + c, delta, taps, d->skipped, p, sums);
                    break;
                case 3:
                    FN(dcn_sum)(a, s, 3, x + c, delta, taps, d->skipped, p, sums);
                    break;
                default:
                    FN(dcn_sum)(a, s, DCN_VECTORS, x + c, delta, taps, d->skipped, p, sums);
                }
            }
        FN(deform_finish)(a, s, group, pixels, 0, 1, (real *)a->y + image * a->y_image + first * a->y_w);
    }
}
