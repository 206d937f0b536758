/* Running a program: its stages one after the other on chunks of images, by the threads of the pool. */

#include <time.h>

#include "pool.h"

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

/* Scratch that is kept between calls; none for the address sanitiser, which sees what lies behind fresh scratch alone. */
#if defined(__SANITIZE_ADDRESS__)
#define KEPT_BYTES 0
#else
#define KEPT_BYTES (1 << 28)
#endif

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

/* A program at work. Its steps are the stages of each chunk of images in turn. */
typedef struct {
    const program_words *p;
    const int64_t *base;
    int64_t images;
    int weights; /* 0 skips the stages that depend on the weights alone, 1 runs all stages, 2 runs only those */
} run_words;

static int64_t program_count(const void *what, int64_t step, int64_t *singly)
{
    const run_words *run = what;
    const program_words *p = run->p;
    if (p->stage_count == 0)
        return -1;
    int64_t first = step / p->stage_count * p->images_per_chunk, left = run->images - first;
    if (left <= 0)
        return -1;
    const stage_words *stage = p->stages + step % p->stage_count;
    *singly = stage->in_turn;
    if (stage->weights_only)
        return run->weights && first == 0 ? stage->tasks : 0;
    int64_t some = left < p->images_per_chunk ? left : p->images_per_chunk;
    return run->weights > 1 ? 0 : (some + stage->images_per_task - 1) / stage->images_per_task * stage->tasks;
}

/* A thread keeps the chunk that its copy of the words is for. */
static void program_work(const void *what, int64_t step, int64_t begin, int64_t end, int64_t thread, int64_t *kept)
{
    const run_words *run = what;
    const program_words *p = run->p;
    int64_t *words = (int64_t *)(run->base[THREAD] + thread * p->thread_bytes), chunk = step / p->stage_count;
    const stage_words *stage = p->stages + step % p->stage_count;
    if (*kept < 0)
        memcpy(words, p->words, p->word_count * sizeof(int64_t));
    if (*kept != chunk) {
        int64_t first = chunk * p->images_per_chunk, left = run->images - first;
        patch(p, words, run->base, first, left < p->images_per_chunk ? left : p->images_per_chunk);
        *kept = chunk;
    }
    stage->run(words + stage->words, begin, end, thread);
}

static void program_run(const program_words *p, const int64_t *base, int64_t images, int weights, int threads)
{
    run_words run = {p, base, images, weights};
    pool_run(&run, program_count, program_work, threads);
}

/* Threads that do the same at once, and meet before and after each round. */
typedef struct {
    limit_fn run;
    char *data;
    int64_t stride, bytes, count, repeats, threads, entered, met;
    double best, used;
} limit_words;

static double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void meet(limit_words *a, int64_t *meetings)
{
    ++*meetings;
    __atomic_add_fetch(&a->met, 1, __ATOMIC_ACQ_REL);
    while (__atomic_load_n(&a->met, __ATOMIC_ACQUIRE) < *meetings * __atomic_load_n(&a->threads, __ATOMIC_ACQUIRE))
        relax();
}

static void *limit_thread(void *words)
{
    limit_words *a = words;
    int64_t thread = __atomic_fetch_add(&a->entered, 1, __ATOMIC_ACQ_REL), meetings = 0;
    char *mine = a->data + thread * a->stride;
    double result = 0;
    memset(mine, 0, a->stride);
    for (int64_t r = 0; r <= a->repeats; r++) { /* the first one warms up */
        meet(a, &meetings);
        double begun = seconds_now();
        result += a->run(mine, a->bytes, a->count);
        meet(a, &meetings);
        double took = seconds_now() - begun;
        if (thread == 0 && r > 0 && took < a->best)
            a->best = took;
    }
    if (thread == 0)
        a->used = result;
    return 0;
}

/* The shortest of `repeats` times that all threads together take to do something `count` times each, on `bytes` of their
 * own; negative without memory or threads. Every page is written first: unwritten ones would all be one page of zeros in
 * L1. */
static double time_limit(limit_fn run, int64_t bytes, int64_t count, int repeats, int threads)
{
    int64_t stride = (bytes + 4095) / 4096 * 4096 + 4096;
    limit_words a = {.run = run, .stride = stride, .bytes = bytes, .count = count, .repeats = repeats, .threads = threads, .best = 1e30};
    pthread_t others[64];
    int started = 0;
    if (threads > 64 || !(a.data = allocate(threads * stride)))
        return -1;
    while (started < threads - 1 && !pthread_create(others + started, 0, limit_thread, &a))
        started++;
    __atomic_store_n(&a.threads, started + 1, __ATOMIC_RELEASE); /* fewer, where the system refuses */
    limit_thread(&a);
    for (int i = 0; i < started; i++)
        pthread_join(others[i], 0);
    free(a.data);
    return started == threads - 1 ? a.best : -1;
}
