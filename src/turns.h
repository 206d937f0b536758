/* Tasks that add to the same sums take turns, in the order of their numbers: so the sums have the same bits whatever
 * thread a task ran on, and no task needs sums of its own in memory. A task tells how far it has come, and waits only for
 * tasks with smaller numbers; a stage whose tasks are handed out one by one in rising order always goes on.
 */
#include <sched.h>

#define SPINS 1000

/* Return when *progress is at least `wanted`; what was written before it was told is then there. */
static void await_progress(const int64_t *progress, int64_t wanted)
{
    for (int64_t spin = 0; __atomic_load_n(progress, __ATOMIC_ACQUIRE) < wanted; spin++) {
        if (spin >= SPINS) /* more threads than cores: who is waited for may not be running */
            sched_yield();
        else
            relax();
    }
}

static void tell_progress(int64_t *progress, int64_t reached) { __atomic_store_n(progress, reached, __ATOMIC_RELEASE); }

#undef SPINS
