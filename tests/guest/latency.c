// SPDX-License-Identifier: Apache-2.0
/*
 * latency SECONDS [cgroup=DIR]: a function that answers requests, and how long each took.
 * latency clock: what its clock says now, once for each line that it is sent.
 *
 * Every 10 ms a request falls due. To answer it the function takes 64 KiB of fresh memory, fills it,
 * sums it up and gives it back, as an interpreter does: page faults, the page allocator and the CPU
 * are all in it. A request's time runs from when it fell due, so that one that had to wait for
 * the CPU, or behind a late one, counts as late.
 *
 * Prints "ready", and in the end "from NS every NS took US US ...": when the first fell due, on the
 * clock that "latency clock" tells as "at NS", how far apart they were, and how long each took.
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

static int tell_time(void)
{
	char line[64];

	dprintf(1, "ready\n");
	while (fgets(line, sizeof(line), stdin))
		dprintf(1, "at %lu\n", (unsigned long)now());
	return 0;
}

int main(int argc, char **argv)
{
	unsigned long most, count = 0;
	volatile uint64_t sink = 0;
	uint64_t first, due, end;
	uint32_t *times;

	if (argc == 2 && !strcmp(argv[1], "clock"))
		return tell_time();
	if (argc < 2 || atol(argv[1]) < 1) {
		dprintf(2, "usage: latency SECONDS [cgroup=DIR] | latency clock\n");
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
	first = due = now();
	end = due + atol(argv[1]) * 1000000000ULL;
	while (count < most && due < end) {
		sleep_until(due);
		sink += answer(due);
		times[count++] = (now() - due) / 1000;
		due += PERIOD_NS;
	}
	printf("from %lu every %lu took", (unsigned long)first, (unsigned long)PERIOD_NS);
	for (unsigned long i = 0; i < count; i++)
		printf(" %u", times[i]);
	printf("\n");
	return 0;
}
