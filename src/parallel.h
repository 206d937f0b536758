/* Running a program: its stages one after the other on chunks of images, inside one OpenMP region. */

#include <omp.h>
#include <pthread.h>

enum {
    INPUT, WEIGHT, BIAS, OFFSET, MASK, OUTPUT, GRAD_INPUT, GRAD_OFFSET, GRAD_WEIGHT, GRAD_MASK, SCRATCH, PACKED, THREAD, INPUT_END,
    IMAGES, THREAD_STRIDE, FIRST_IMAGE, OPERANDS
};

/* Tasks of a stage `in_turn` may wait for those before them, and are handed out singly. */
typedef struct {
    engine_fn run;
    int64_t words, tasks, images_per_task, weights_only, in_turn;
} stage_words;

/* words[word] = address of the operand + first image of the chunk * image_bytes + offset; 0 if the operand is absent. */
typedef struct {
    int64_t word, operand, image_bytes, offset;
} patch_words;

typedef struct {
    const stage_words *stages;
    const patch_words *patches;
    const int64_t *words;
    int64_t stage_count, patch_count, word_count, images_per_chunk, thread_bytes;
} program_words;

/* A child forked after OpenMP has made its threads does not have them and would wait for them for ever. */
static volatile int pool_started, pool_lost;

static void after_fork(void) { pool_lost = pool_started; }

static int watch_forks(void) { return pthread_atfork(0, 0, after_fork); }

/* Scratch on cache lines; what follows the arena is never touched. */
static void *allocate(int64_t size)
{
    void *at = 0;
    return size < 0 || posix_memalign(&at, 64, (size_t)(size + 64)) ? 0 : at;
}

static void patch(const program_words *p, int64_t *words, const int64_t *base, int64_t first, int64_t images)
{
    for (int64_t i = 0; i < p->patch_count; i++) {
        const patch_words *q = p->patches + i;
        if (q->operand == IMAGES)
            words[q->word] = images;
        else if (q->operand == THREAD_STRIDE)
            words[q->word] = p->thread_bytes;
        else if (q->operand == FIRST_IMAGE)
            words[q->word] = first;
        else
            words[q->word] = base[q->operand] ? base[q->operand] + first * q->image_bytes + q->offset : 0;
    }
}

/* What one thread does. Steps are separated by barriers; `next` hands out tasks, and the counter of a step is reset
 * two steps before it is used, when no thread can be looking at it. */
static void program_thread(const program_words *p, const int64_t *base, int64_t images, int weights, int threads, int thread,
                           int64_t *next)
{
    int64_t *words = (int64_t *)(base[THREAD] + thread * p->thread_bytes), step = 0;
    memcpy(words, p->words, p->word_count * sizeof(int64_t));
    for (int64_t first = 0; first < images; first += p->images_per_chunk) {
        int64_t some = images - first < p->images_per_chunk ? images - first : p->images_per_chunk;
        patch(p, words, base, first, some);
        for (int64_t s = 0; s < p->stage_count; s++) {
            const stage_words *stage = p->stages + s;
            if (stage->weights_only ? !weights || first > 0 : weights > 1)
                continue;
            int64_t groups = stage->weights_only ? 1 : (some + stage->images_per_task - 1) / stage->images_per_task;
            int64_t tasks = groups * stage->tasks;
            if (threads == 1) {
                stage->run(words + stage->words, 0, tasks, 0);
                continue;
            }
            if (step > 0) {
#pragma omp barrier
            }
            int64_t *counter = next + step % 3, piece = stage->in_turn ? 1 : tasks / (threads * 8);
            if (thread == 0)
                __atomic_store_n(next + (step + 1) % 3, 0, __ATOMIC_RELAXED);
            if (piece < 1)
                piece = 1;
            for (;;) {
                int64_t begin = __atomic_fetch_add(counter, piece, __ATOMIC_RELAXED);
                if (begin >= tasks)
                    break;
                stage->run(words + stage->words, begin, begin + piece < tasks ? begin + piece : tasks, thread);
            }
            step++;
        }
    }
}

/* weights: 0 skips the stages that depend on the weights alone, 1 runs all stages, 2 runs only those. */
static void program_run(const program_words *p, const int64_t *base, int64_t images, int weights, int threads)
{
    int64_t next[3] = {0, 0, 0};
    if (threads <= 1 || pool_lost) {
        program_thread(p, base, images, weights, 1, 0, next);
        return;
    }
    pool_started = 1;
#pragma omp parallel num_threads(threads)
    program_thread(p, base, images, weights, omp_get_num_threads(), omp_get_thread_num(), next);
}

/* The shortest of `repeats` times that all threads together take to do something `count` times each, on `bytes` of their
 * own; negative without memory. Every page is written first: unwritten ones would all be one page of zeros in L1. */
static double time_limit(limit_fn run, int64_t bytes, int64_t count, int repeats, int threads)
{
    int64_t stride = (bytes + 4095) / 4096 * 4096 + 4096;
    char *data = allocate(threads * stride);
    double best = 1e30, begun = 0;
    volatile double used = 0;
    if (!data)
        return -1;
    threads = pool_lost ? 1 : threads;
    pool_started |= threads > 1;
#pragma omp parallel num_threads(threads)
    {
        char *mine = data + omp_get_thread_num() * stride;
        double result = 0;
        memset(mine, 0, stride);
        for (int r = 0; r <= repeats; r++) { /* the first one warms up */
#pragma omp barrier
#pragma omp master
            begun = omp_get_wtime();
#pragma omp barrier
            result += run(mine, bytes, count);
#pragma omp barrier
#pragma omp master
            {
                double took = omp_get_wtime() - begun;
                if (r > 0 && took < best)
                    best = took;
            }
        }
#pragma omp atomic
        used += result;
    }
    free(data);
    return best;
}
