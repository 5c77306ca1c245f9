// SPDX-License-Identifier: Apache-2.0
/*
 * faults THREADS MIB ROUNDS [cgroup=DIR] [thp=1]: how fast fresh memory comes.
 *
 * Each of THREADS threads maps MIB MiB of its own, touches each page of it, and gives it back
 * with MADV_DONTNEED, ROUNDS times. Only the touching is timed, from when all are ready until the
 * last is done. Pages are of 4 KiB, or huge with thp=1; it fails if they are not. Each is marked
 * first, as what is read first is the kernel's one page of zeroes, and then checked for zero
 * elsewhere.
 *
 * Prints one line "faults NS" a round: nanoseconds for all pages of all threads.
 */
#include "function.h"

#include <pthread.h>
#include <time.h>

#define MOST 64

static pthread_barrier_t turn;
static size_t bytes;
static int rounds;
static int thp;

static uint64_t now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000ULL + at.tv_nsec;
}

static void touch(char *memory)
{
	for (size_t at = 0; at < bytes; at += PAGE) {
		volatile uint64_t *words = (uint64_t *)(memory + at);

		words[0] = at + 1;
		if (words[1] || words[PAGE / 8 - 1]) {
			dprintf(1, "page %zu was not zero\n", at / PAGE);
			exit(1);
		}
	}
}

static void take_turns(void)
{
	pthread_barrier_wait(&turn);
}

static void *worker(void *unused)
{
	char *memory = map_memory(bytes);

	(void)unused;
	if (madvise(memory, bytes, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE))
		die("madvise");
	for (int round = 0; round < rounds; round++) {
		take_turns(); /* ready */
		take_turns();
		touch(memory);
		take_turns();
		take_turns(); /* looked at */
		if (madvise(memory, bytes, MADV_DONTNEED))
			die("MADV_DONTNEED");
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int threads;

	if (argc < 4) {
		dprintf(2, "usage: faults THREADS MIB ROUNDS [cgroup=DIR] [thp=1]\n");
		return 2;
	}
	threads = atoi(argv[1]);
	bytes = atol(argv[2]) * MIB;
	rounds = atoi(argv[3]);
	for (int i = 4; i < argc; i++) {
		if (!strncmp(argv[i], "cgroup=", 7))
			must_join(argv[i] + 7);
		else if (!strncmp(argv[i], "thp=", 4))
			thp = atoi(argv[i] + 4);
	}
	if (threads < 1 || threads > MOST || !bytes || rounds < 1) {
		dprintf(2, "faults: THREADS (at most %d), MIB and ROUNDS are positive numbers\n", MOST);
		return 2;
	}
	pthread_barrier_init(&turn, NULL, threads + 1);
	for (int i = 0; i < threads; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, worker, NULL))
			die("pthread_create");
	}
	for (int round = 0; round < rounds; round++) {
		uint64_t start, stop;

		take_turns();
		start = now();
		take_turns();
		take_turns();
		stop = now();
		must_have_pages(thp, threads * bytes);
		take_turns();
		dprintf(1, "faults %lu\n", (unsigned long)(stop - start));
	}
	return 0;
}
