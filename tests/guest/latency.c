// SPDX-License-Identifier: Apache-2.0
/*
 * latency SECONDS [cgroup=DIR]: a function that answers requests, and how long each took.
 *
 * Every 10 ms a request falls due. To answer it the function takes 64 KiB of fresh memory, fills it,
 * sums it up and gives it back, as an interpreter does: page faults, the page allocator and the CPU
 * are all in it. A request's time runs from when it fell due, so that one that had to wait for
 * the CPU, or behind a late one, counts as late.
 *
 * Prints "ready", and in the end "requests N p50 US p99 US max US", in microseconds.
 */
#include "function.h"

#include <time.h>

#define PERIOD_NS 10000000ULL
#define WORK (64 * KIB)

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ULL + at.tv_nsec;
}

static void sleep_until(uint64_t ns)
{
	struct timespec at = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL))
		;
}

static uint64_t answer(uint64_t seed)
{
	uint64_t *words = mmap(NULL, WORK, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint64_t sum = 0;

	if (words == MAP_FAILED)
		die("mmap");
	for (size_t i = 0; i < WORK / sizeof(*words); i++)
		words[i] = seed + i;
	for (size_t i = 0; i < WORK / sizeof(*words); i++)
		sum += words[i] * i;
	munmap(words, WORK);
	return sum;
}

static int ascending(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	unsigned long most, count = 0;
	volatile uint64_t sink = 0;
	uint64_t due, end;
	uint32_t *times;

	if (argc < 2 || atol(argv[1]) < 1) {
		dprintf(2, "usage: latency SECONDS [cgroup=DIR]\n");
		return 2;
	}
	if (argc > 2 && !strncmp(argv[2], "cgroup=", 7))
		must_join(argv[2] + 7);
	most = atol(argv[1]) * 1000000000ULL / PERIOD_NS;
	times = calloc(most, sizeof(*times));
	if (!times)
		die("calloc");
	/* No page fault of the bookkeeping's own later. */
	memset(times, 1, most * sizeof(*times));
	dprintf(1, "ready\n");
	due = now();
	end = due + atol(argv[1]) * 1000000000ULL;
	while (count < most && due < end) {
		sleep_until(due);
		sink += answer(due);
		times[count++] = (now() - due) / 1000;
		due += PERIOD_NS;
	}
	qsort(times, count, sizeof(*times), ascending);
	dprintf(1, "requests %lu p50 %u p99 %u max %u\n", count, times[count / 2],
		times[count * 99 / 100], times[count - 1]);
	return 0;
}
