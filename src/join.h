/* Two engines in turn on a band of rows, whose results in between stay in L2: see JOIN_WORDS. */

static void join(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const join_words *a = (const join_words *)words;
    int64_t *mine = (int64_t *)words, panel = a->panel + thread * a->work_stride; /* a thread has words of its own */
    for (int64_t task = begin; task < end; task++) {
        int64_t image = task / a->bands, band = task % a->bands;
        int64_t first = band * a->first_band, second = band * a->second_band;
        int64_t first_end = first + a->first_band < a->first_tasks ? first + a->first_band : a->first_tasks;
        int64_t second_end = second + a->second_band < a->second_tasks ? second + a->second_band : a->second_tasks;
        mine[a->first_y] = panel - band * a->band_bytes;
        mine[a->second_x] = panel - band * a->x_bytes;
        ((engine_fn)a->first)(words + a->first_words, image * a->first_tasks + first, image * a->first_tasks + first_end, thread);
        ((engine_fn)a->second)(words + a->second_words, image * a->second_tasks + second, image * a->second_tasks + second_end, thread);
    }
}
