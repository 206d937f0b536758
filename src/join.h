/* Two engines in turn on a band of rows, whose results in between stay in L2: see JOIN_WORDS. Rows that the band before has
 * left in the panel are not made again. */

static void join(const int64_t *words, int64_t begin, int64_t end, int64_t thread)
{
    const join_words *a = (const join_words *)words;
    const join_band_words *bands = (const join_band_words *)a->bands, *from = 0; /* where the panel begins */
    int64_t *mine = (int64_t *)words, panel = a->panel + thread * a->work_stride; /* a thread has words of its own */
    int64_t made = 0;
    for (int64_t task = begin; task < end; task++) {
        int64_t image = task / a->band_count, first = image * a->first_tasks, second = image * a->second_tasks;
        const join_band_words *band = bands + task % a->band_count;
        if (!from || band == bands || band->first < from->first || band->first > made || band->first_end - from->first > a->room) {
            from = band;
            made = band->first;
            mine[a->first_y] = panel - from->y_bytes;
            mine[a->second_x] = panel - from->x_bytes;
        }
        if (made < band->first_end)
            ((engine_fn)a->first_engine)(words + a->first_words, first + made, first + band->first_end, thread);
        made = made < band->first_end ? band->first_end : made;
        ((engine_fn)a->second_engine)(words + a->second_words, second + band->second, second + band->second_end, thread);
    }
}
