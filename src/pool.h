/* Threads that help a caller with the tasks of a job.
 *
 * A job is a row of steps, and a step a number of tasks; a step begins when all tasks of the one before are done. Who is
 * there takes the next tasks, the caller among them, so nobody ever waits for a thread that has not begun: on a busy
 * machine a helper may get its core milliseconds late. Whoever has to wait for tasks in hand spins for a moment and then
 * sleeps, which frees its core for whom it waits for. With another process on one of two cores, a 3x3 layer that takes
 * 0.7 ms on one thread took 0.7 ms on two, and 8 to 20 ms between the barriers of OpenMP.
 */

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>

/* About 40 us: steps of good balance end within. */
#define WAIT_SPINS 2000
/* About 100 us, in which a next call often follows, and then 1 to 2 ms in which others may have the core: waking a thread
 * takes 50 us. */
#define IDLE_SPINS 5000
#define IDLE_YIELDS 2000
#define STACK_BYTES (4 << 20)

/* The number of tasks of a step, -1 behind the last one, and whether they are taken one at a time; and doing some of them,
 * as one of the threads. What a thread leaves in `kept`, -1 at first, it finds there for the next task. */
typedef int64_t (*count_fn)(const void *what, int64_t step, int64_t *singly);
typedef void (*work_fn)(const void *what, int64_t step, int64_t begin, int64_t end, int64_t thread, int64_t *kept);

/* Each thread has a share of the tasks of a step, neighbours, and takes others' when there is nothing left of its own: what
 * it wrote in one step, or read in the call before, is then mostly what it reads now. Where threads took tasks as they
 * came, half of that came from the other core: a transposed 4x4 layer of 128 x 32x32 took 146 us on two threads, 97 of
 * them in its two steps timed apart.
 *
 * The cursor of a share holds the lowest bits of the step above the number of its tasks that are taken. Whoever adds to it
 * and then reads tasks and step has got tasks of that step if the bits agree, for it cannot end before they are done;
 * otherwise the step was used up, and nothing was taken. */
enum { TAKEN_BITS = 44, SHARE_PIECES = 8 };
#define TAKEN(cursor) ((int64_t)((cursor) & ((1ULL << TAKEN_BITS) - 1)))
#define CURSOR(step) ((uint64_t)(step) << TAKEN_BITS)

/* A cache line. */
typedef struct {
    uint64_t cursor;
    char rest[64 - sizeof(uint64_t)];
} share;

typedef struct job {
    struct job *next;
    const void *what;
    count_fn count;
    work_fn work;
    int64_t threads, joined, users; /* under the lock */
    int64_t step, tasks, done, singly;
    int64_t waiting; /* asleep until the step changes */
    share shares[];  /* of each thread; tasks that are taken singly are all of the first share */
} job;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t posted, moved;
    job *jobs;
    int64_t helpers, idle; /* idle: asleep */
    int64_t posts;
} pool = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, 0, 0};

/* GOMP_parallel calls a function on a team of OpenMP's threads, the caller among them, and returns when all calls have.
 * The team is of as many as the library uses otherwise where their number is given as 0: another one would end threads. */
typedef void (*team_fn)(void (*member)(void *), void *data, unsigned threads, unsigned flags);
typedef int (*team_size_fn)(void);

/* A team for jobs of no more threads than it has, in place of helpers. Where other work of OpenMP's comes between ours, its
 * threads spin for milliseconds afterwards, and helpers would share the cores with them: a step of training a ResNet-18 took
 * 1.4 times as long. */
static struct {
    team_fn run;
    team_size_fn size;
} team;

/* A forked child has none of the helpers, nor of another library's threads, and makes its own. */
static void pool_after_fork(void)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
    team.run = 0;
    pool.lock = lock;
    pool.posted = pool.moved = cond;
    pool.jobs = 0;
    pool.helpers = pool.idle = 0;
}

static int watch_forks(void) { return pthread_atfork(0, 0, pool_after_fork); }

/* Go to the next step that has tasks; only for who did the last task of the one before. */
static void next_step(job *j)
{
    int64_t step = j->step, tasks, singly = 0;
    do
        tasks = j->count(j->what, ++step, &singly);
    while (tasks == 0);
    __atomic_store_n(&j->step, step, __ATOMIC_RELAXED);
    __atomic_store_n(&j->singly, singly, __ATOMIC_RELEASE);
    __atomic_store_n(&j->tasks, tasks, __ATOMIC_RELEASE);
    __atomic_store_n(&j->done, 0, __ATOMIC_RELAXED);
    for (int64_t i = j->threads; i-- > 0;) /* the first share has a task, so that the step does not end before this does */
        __atomic_store_n(&j->shares[i].cursor, CURSOR(step), __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&j->waiting, __ATOMIC_SEQ_CST)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.moved);
        pthread_mutex_unlock(&pool.lock);
    }
}

/* Wait until a thread's cursor is at another step. */
static void await_step(job *j, const uint64_t *at, uint64_t cursor)
{
    for (int i = 0; i < WAIT_SPINS; i++, relax())
        if (__atomic_load_n(at, __ATOMIC_ACQUIRE) >> TAKEN_BITS != cursor >> TAKEN_BITS)
            return;
    pthread_mutex_lock(&pool.lock);
    __atomic_add_fetch(&j->waiting, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(at, __ATOMIC_SEQ_CST) >> TAKEN_BITS == cursor >> TAKEN_BITS)
        pthread_cond_wait(&pool.moved, &pool.lock);
    __atomic_sub_fetch(&j->waiting, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&pool.lock);
}

/* The first task of a share and the number of its tasks, as far as is known: the step may end meanwhile. */
static int64_t share_of(const job *j, int64_t number, int64_t *size)
{
    int64_t tasks = __atomic_load_n(&j->tasks, __ATOMIC_ACQUIRE), singly = __atomic_load_n(&j->singly, __ATOMIC_ACQUIRE);
    int64_t shares = singly ? 1 : j->threads, first = (tasks * number + shares - 1) / shares;
    *size = tasks > 0 && number < shares ? (tasks * (number + 1) + shares - 1) / shares - first : 0;
    return first;
}

/* Do some tasks of a share; returns whether there were any. */
static int take_some(job *j, int64_t number, int64_t thread, int64_t *kept)
{
    uint64_t *at = &j->shares[number].cursor, cursor = __atomic_load_n(at, __ATOMIC_ACQUIRE);
    int64_t size, piece = 1;
    share_of(j, number, &size);
    if (TAKEN(cursor) >= size)
        return 0;
    if (!__atomic_load_n(&j->singly, __ATOMIC_RELAXED)) /* ever smaller ones, so that all threads end at about the same time */
        piece = (size - TAKEN(cursor) + SHARE_PIECES - 1) / SHARE_PIECES;
    cursor = __atomic_fetch_add(at, (uint64_t)piece, __ATOMIC_ACQ_REL);
    int64_t first = share_of(j, number, &size); /* before the step, which is written first */
    int64_t begin = TAKEN(cursor), step = __atomic_load_n(&j->step, __ATOMIC_ACQUIRE);
    if (CURSOR(step) >> TAKEN_BITS != cursor >> TAKEN_BITS || begin >= size)
        return 0;
    int64_t end = begin + piece < size ? begin + piece : size, tasks = __atomic_load_n(&j->tasks, __ATOMIC_RELAXED);
    j->work(j->what, step, first + begin, first + end, thread, kept);
    if (__atomic_add_fetch(&j->done, end - begin, __ATOMIC_ACQ_REL) == tasks)
        next_step(j);
    return 1;
}

/* Take tasks until there are none left. */
static void take_tasks(job *j, int64_t thread)
{
    int64_t kept = -1;
    for (;;) {
        const uint64_t *at = &j->shares[thread].cursor;
        uint64_t cursor = __atomic_load_n(at, __ATOMIC_ACQUIRE);
        if (__atomic_load_n(&j->tasks, __ATOMIC_ACQUIRE) < 0)
            return;
        for (int64_t i = 0; i < j->threads;)
            i = take_some(j, (thread + i) % j->threads, thread, &kept) ? 0 : i + 1;
        await_step(j, at, cursor);
    }
}

static void leave(job *j)
{
    if (--j->users == 0)
        free(j);
}

/* A job with room for another thread; the caller holds the lock. */
static job *find_job(int64_t *thread)
{
    for (job *j = pool.jobs; j; j = j->next)
        if (j->joined < j->threads) {
            *thread = j->joined++;
            j->users++;
            return j;
        }
    return 0;
}

static void *help(void *unused)
{
    for (;;) {
        int64_t thread = 0, seen = __atomic_load_n(&pool.posts, __ATOMIC_ACQUIRE);
        pthread_mutex_lock(&pool.lock);
        job *j = find_job(&thread);
        pthread_mutex_unlock(&pool.lock);
        if (j) {
            take_tasks(j, thread);
            pthread_mutex_lock(&pool.lock);
            leave(j);
            pthread_mutex_unlock(&pool.lock);
            continue;
        }
        for (int i = 0; i < IDLE_SPINS + IDLE_YIELDS && __atomic_load_n(&pool.posts, __ATOMIC_ACQUIRE) == seen; i++)
            if (i < IDLE_SPINS)
                relax();
            else
                sched_yield();
        pthread_mutex_lock(&pool.lock);
        pool.idle++;
        while (pool.posts == seen)
            pthread_cond_wait(&pool.posted, &pool.lock);
        pool.idle--;
        pthread_mutex_unlock(&pool.lock);
    }
    return unused;
}

/* Have helpers for a job of so many threads; fewer, where the system refuses to start them. The caller holds the lock. */
static void hire(int64_t threads)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    if (pool.helpers >= threads - 1 || pthread_attr_init(&attributes))
        return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    sigfillset(&all); /* signals are the interpreter's */
    pthread_sigmask(SIG_BLOCK, &all, &before);
    for (pthread_t thread; pool.helpers < threads - 1 && !pthread_create(&thread, &attributes, help, 0);)
        pool.helpers++;
    pthread_sigmask(SIG_SETMASK, &before, 0);
    pthread_attr_destroy(&attributes);
}

static void post(job *j)
{
    pthread_mutex_lock(&pool.lock);
    hire(j->threads);
    j->next = pool.jobs;
    pool.jobs = j;
    __atomic_add_fetch(&pool.posts, 1, __ATOMIC_RELEASE);
    for (int64_t i = pool.idle < j->threads - 1 ? pool.idle : j->threads - 1; i > 0; i--)
        pthread_cond_signal(&pool.posted);
    pthread_mutex_unlock(&pool.lock);
}

static void withdraw(job *j)
{
    pthread_mutex_lock(&pool.lock);
    job **at = &pool.jobs;
    while (*at != j)
        at = &(*at)->next;
    *at = j->next;
    leave(j);
    pthread_mutex_unlock(&pool.lock);
}

/* The size comes first for whoever reads `run`. */
static void use_team(team_fn run, team_size_fn size)
{
    __atomic_store_n(&team.size, size, __ATOMIC_RELEASE);
    __atomic_store_n(&team.run, run, __ATOMIC_RELEASE);
}

static void join_job(void *at)
{
    job *j = at;
    int64_t thread = __atomic_fetch_add(&j->joined, 1, __ATOMIC_RELAXED);
    if (thread < j->threads)
        take_tasks(j, thread);
}

/* Do all tasks of a job on at most so many threads. Helpers may look at a job after its end, so it outlives this call. */
static void pool_run(const void *what, count_fn count, work_fn work, int64_t threads)
{
    team_fn run_team = __atomic_load_n(&team.run, __ATOMIC_ACQUIRE);
    job *j = threads > 1 ? malloc(sizeof *j + threads * sizeof(share)) : 0;
    if (!j) {
        int64_t kept = -1, tasks, singly;
        for (int64_t step = 0; (tasks = count(what, step, &singly)) >= 0; step++)
            if (tasks)
                work(what, step, 0, tasks, 0, &kept);
        return;
    }
    *j = (job){.what = what, .count = count, .work = work, .threads = threads, .users = 1, .step = -1};
    next_step(j);
    if (run_team && threads <= team.size()) {
        run_team(join_job, j, 0, 0);
        free(j);
        return;
    }
    j->joined = 1;
    post(j);
    take_tasks(j, 0);
    withdraw(j);
}
