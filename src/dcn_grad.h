/* Gradients of DCNv3 and DCNv4: the pass over points and channels of deform_grad.h, without its products.
 *
 * What a channel's samples pull at is its output's gradient, the same for all points of a pixel. A task is a band of output
 * pixels of one image and one block of channels, as there, and tasks take turns in the same way: a mask's gradient is
 * linear in the dots of a block, through the softmax too, and so the blocks of a group add theirs one after the other.
 * What is pulls there holds gradients of a tile's points here, [tap][axis, axis, mask][tile], and what is columns there,
 * scaled offsets.
 */

/* Gradients through m = softmax(l): dl = m (dm - sum of m dm). */
static void FN(softmax_grad)(const deform_words *f, const real *mask, int64_t taps, int64_t skipped, int64_t pixels, real *grad)
{
    int64_t step = 3 * f->tile;
    for (int64_t p = 0; p < pixels; p += LANES) {
        vec sum = {0};
        for (int64_t t = 0; t < taps; t++)
            if (t != skipped)
                sum = FN(fma)(FN(load)(mask + t * f->tile + p), FN(load)(grad + t * step + p), sum);
        for (int64_t t = 0; t < taps; t++)
            if (t != skipped)
                FN(store)(grad + t * step + p, FN(load)(mask + t * f->tile + p) * (FN(load)(grad + t * step + p) - sum));
    }
}

INLINE void FN(leave_scaled)(real *to, const real *from, real scale, int64_t n, int64_t add)
{
    for (int64_t p = 0; p < n; p += LANES) {
        vec v = FN(load)(from + p) * FN(splat)(scale);
        FN(store_some)(to + p, add ? FN(load_some)(to + p, n - p) + v : v, n - p);
    }
}

/* Add to (or write) the gradients of offsets and masks what a block of channels gives to them, from its dots. */
static void FN(leave_points)(const dcn_words *d, FN(deform_grad_work) s, int64_t pixels, int64_t plane, real *offset, real *mask,
                             int64_t add)
{
    const deform_words *f = (const deform_words *)d;
    int64_t taps = f->kernel_d * f->kernel_h * f->kernel_w, tile = f->tile;
    real *grads = s.pulls;
    double scale;
    memcpy(&scale, &d->scale, sizeof scale);
    for (int64_t t = 0; t < taps; t++, grads += 3 * tile)
        FN(point_grads)(f, 2, s, t, s.dots + t * DOTS_OF(2) * tile, pixels, tile, offset ? grads : 0, mask ? grads + 2 * tile : 0, 0);
    grads = s.pulls;
    if (mask && d->softmax)
        FN(softmax_grad)(f, s.at.mask, taps, d->skipped, pixels, grads + 2 * tile);
    for (int64_t t = 0; t < taps; t++, grads += 3 * tile) {
        if (t == d->skipped)
            continue;
        if (offset) {
            FN(leave_scaled)(offset, grads, (real)scale, pixels, add);
            FN(leave_scaled)(offset + plane, grads + tile, (real)scale, pixels, add);
            offset += 2 * plane;
        }
        if (mask) {
            FN(leave_scaled)(mask, grads + 2 * tile, 1, pixels, add);
            mask += plane;
        }
    }
}

/* A tap that has no sample: its point reads nothing and gives nothing. */
static void FN(skip_tap)(const dcn_words *d, FN(deform_grad_work) s)
{
    const deform_words *f = (const deform_words *)d;
    if (d->skipped >= f->kernel_h * f->kernel_w)
        return;
    for (int64_t p = 0; p < f->tile; p++)
        s.at.base[d->skipped * f->tile + p] = f->outside;
    FN(clear)(s.at.weight + d->skipped * 4 * f->tile, 4 * f->tile);
    FN(clear)(s.at.mask + d->skipped * f->tile, f->tile);
    FN(clear)(s.fractions + d->skipped * 3 * f->tile, 3 * f->tile);
}

static void FN(dcn_grad)(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const deform_grad_words *a = (const deform_grad_words *)words;
    const dcn_words *d = (const dcn_words *)a->geometry;
    const deform_words *f = (const deform_words *)d;
    const grad_block_words *blocks = (const grad_block_words *)a->blocks;
    FN(deform_grad_work) s = FN(deform_grad_scratch)(a, f, thread);
    int64_t taps = f->kernel_h * f->kernel_w, plane = f->out_h * f->out_w, tile = f->tile;
    FN(skip_tap)(d, s);
    for (int64_t task = begin; task < end; task++) {
        const grad_block_words *block = blocks + task % a->block_count;
        int64_t band = task / a->block_count % a->bands, image = task / a->block_count / a->bands;
        int64_t band_begin = band * a->band, band_end = plane - band_begin < a->band ? plane : band_begin + a->band;
        int64_t low = 0, high = band > 0 ? 0 : f->size_h + 2;
        int64_t *progress = (int64_t *)a->progress + task * PROGRESS_STEP, step = 0;
        int64_t points = image * a->mask_image + block->offset_group * d->points * plane;
        const real *x = (const real *)a->x + image * a->x_image + block->x;
        const real *gy = (const real *)a->gy + image * a->gy_image + block->channel;
        const real *offset = (const real *)a->offset + points * 2, *mask = (const real *)a->mask + points;
        real *goffset = a->goffset ? (real *)a->goffset + points * 2 : 0, *gmask = a->gmask ? (real *)a->gmask + points : 0;
        if (a->gx && low < high)
            FN(clear)(s.image, high * f->line_h * f->width);
        for (int64_t at = band_begin; at < band_end; at += tile) {
            int64_t pixels = band_end - at < tile ? band_end - at : tile;
            FN(deform_grid)(f, at, pixels, s.at.grid);
            FN(dcn_points)(d, s.at, offset + at, mask + at, plane, pixels, s.at.columns, s.fractions);
            if (a->gx && band > 0)
                FN(clear_touched)(f, s, 0, taps, pixels, &low, &high);
            FN(deform_pull)(a, f, s, x, block->channels, gy + at * a->gy_row, a->gy_row, 0, 0, taps, pixels);
            if (goffset || gmask) {
                step++;
                if (block->shared)
                    await_progress(progress - PROGRESS_STEP, step);
                FN(leave_points)(d, s, pixels, plane, goffset ? goffset + at : 0, gmask ? gmask + at : 0, block->shared);
                tell_progress(progress, step);
            }
        }
        int64_t done = (a->band + tile - 1) / tile + 1;
        if (a->gx) {
            if (band > 0)
                await_progress(progress - a->block_count * PROGRESS_STEP, done);
            FN(leave_image)(a, f, s, block->channels, low, high, (real *)a->gx + image * a->gx_image + block->channel * a->gx_channel, band > 0);
        }
        tell_progress(progress, done);
    }
}

#undef DOTS_OF
