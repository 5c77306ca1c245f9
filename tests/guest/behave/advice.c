// SPDX-License-Identifier: Apache-2.0
/* Memory that is given up, swapped, reclaimed and locked. The cases with swap want some. */
#include "behave.h"

#include <sys/swap.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

#define SIZE (8 * MIB)
#define HALF (SIZE / 2)

/* Asks for BYTES of a cgroup's memory; that there is less is no error. */
static void reclaim(const char *cgroup, const char *bytes)
{
	char path[256];
	int rc;

	snprintf(path, sizeof(path), "%s/memory.reclaim", cgroup);
	rc = put(path, bytes, 0);
	expect(!rc || rc == -EAGAIN, "memory.reclaim: expected 0 or EAGAIN, found %d", -rc);
}

static void dontneed_body(void)
{
	char *mem = map_memory(2 * SIZE);

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	fill(mem, SIZE, 1);
	fill(mem + SIZE, SIZE, 2);
	expect_in("memory", mem, 2 * SIZE, IN_A);
	madvise(mem + HALF, SIZE, MADV_DONTNEED);
	expect_used_at_most("used after MADV_DONTNEED", FN0, SIZE + SLACK);
	touch(mem + HALF, SIZE);
	expect_zero("what was dropped", mem + HALF, SIZE);
	expect_in("what was dropped", mem + HALF, SIZE, IN_A);
	expect_at_least("equal words of the first half", first_difference(mem, SIZE, 1), HALF / 8);
}

static void dontneed(void)
{
	bind_to(FN0, "");
	in_function(dontneed_body);
	expect_empty("used after its end", FN0);
}

/* Each page that MADV_FREE gave up is whole or gone; what was written since is there. */
static void free_body(void)
{
	char *mem = map_memory(SIZE);
	size_t whole = 0, gone = 0;

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	for (size_t at = 0; at < SIZE; at += PAGE)
		fill(mem + at, PAGE, at / PAGE);
	expect_in("memory", mem, SIZE, IN_A);
	if (madvise(mem, SIZE, MADV_FREE))
		die("MADV_FREE");
	fill(mem, HALF, 1);
	reclaim(FN0, "64M");
	expect_used_at_most("used after reclaim", FN0, HALF + HALF / 2);
	expect_holds("what was written since", mem, HALF, 1);
	for (size_t at = HALF; at < SIZE; at += PAGE) {
		whole += first_difference(mem + at, PAGE, at / PAGE) == PAGE / 8;
		gone += first_nonzero(mem + at, PAGE) == PAGE / 8;
	}
	expect_equal("pages that are whole or gone", whole + gone, HALF / PAGE);
	expect_at_least("pages that are gone", gone, 1);
}

static void madv_free(void)
{
	bind_to(FN0, "");
	in_function(free_body);
	expect_empty("used after its end", FN0);
}

/* Swap: pages leave the partition, and come back to it. */

static void pageout_body(int advice)
{
	char *mem = map_memory(SIZE);

	madvise(mem, SIZE, advice);
	for (int round = 0; round < 2; round++) {
		fill(mem, SIZE, round);
		expect_in("memory", mem, SIZE, IN_A);
		if (madvise(mem, SIZE, MADV_PAGEOUT))
			die("MADV_PAGEOUT");
		expect_at_least("pages in swap", pages_in(mem, SIZE, SWAPPED), SIZE / PAGE * 9 / 10);
		expect_used_at_most("used while they are in swap", FN0, SLACK);
		expect_holds("memory from swap", mem, SIZE, round);
		expect_in("memory from swap", mem, SIZE, IN_A);
	}
}

static void pageout_small_body(void)
{
	pageout_body(MADV_NOHUGEPAGE);
}

static void pageout_huge_body(void)
{
	pageout_body(MADV_HUGEPAGE);
}

static void pageout(void)
{
	bind_to(FN0, "");
	in_function(pageout_small_body);
	expect_empty("used after its end", FN0);
}

static void pageout_huge(void)
{
	bind_to(FN0, "");
	in_function(pageout_huge_body);
	expect_empty("used after its end", FN0);
}

/* Memory with another content in each half, nearly all of it in swap. */
static char *map_in_swap(void)
{
	char *mem = map_memory(SIZE);

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	fill(mem, HALF, 1);
	fill(mem + HALF, HALF, 2);
	if (madvise(mem, SIZE, MADV_PAGEOUT))
		die("MADV_PAGEOUT");
	expect_at_least("pages in swap", pages_in(mem, SIZE, SWAPPED), SIZE / PAGE * 9 / 10);
	return mem;
}

/* Swap entries that two processes share are read ahead, which is not the function's. */
static void swap_shared_body(void)
{
	char *mem = map_in_swap();
	int status = 0;
	pid_t child;

	child = fork();
	if (child < 0)
		die("fork");
	expect_holds("memory from swap", mem, HALF, 1);
	expect_holds("memory from swap", mem + HALF, HALF, 2);
	expect_equal("pages neither in A nor outside", pages_in(mem, SIZE, IN_A) +
		     pages_in(mem, SIZE, OUTSIDE), SIZE / PAGE);
	if (!child) {
		fill(mem, HALF, 3);
		expect_holds("what the child wrote", mem, HALF, 3);
		end_function();
	}
	if (waitpid(child, &status, 0) != child)
		die("waitpid");
	expect_equal("status of the child", status, 0);
	expect_holds("memory of the parent", mem, HALF, 1);
	expect_holds("memory of the parent", mem + HALF, HALF, 2);
}

static void swap_shared(void)
{
	bind_to(FN0, "");
	in_function(swap_shared_body);
	expect_empty("used after its end", FN0);
}

/* A function that ends with all of its memory in swap leaves nothing behind. */
static void swap_exit_body(void)
{
	char *mem = map_memory(SIZE);

	fill(mem, SIZE, 1);
	if (madvise(mem, SIZE, MADV_PAGEOUT))
		die("MADV_PAGEOUT");
	expect_at_least("pages in swap", pages_in(mem, SIZE, SWAPPED), SIZE / PAGE * 9 / 10);
}

static void swap_exit(void)
{
	long before = number_of("/proc/meminfo", "SwapFree");

	bind_to(FN0, "");
	in_function(swap_exit_body);
	expect_empty("used after its end", FN0);
	for (int ms = 0; ms < 5000 && number_of("/proc/meminfo", "SwapFree") < before; ms += 10)
		usleep(10000);
	expect_at_least("free swap in KiB after its end", number_of("/proc/meminfo", "SwapFree"),
			before - 512);
}

/* Who takes the device away reads ahead: pages come back elsewhere. */
static void swap_off_body(void)
{
	char *mem = map_in_swap();
	size_t swapped = pages_in(mem, SIZE, SWAPPED);

	if (swapoff("/dev/zram0"))
		die("swapoff");
	expect_equal("pages outside without swap", pages_in(mem, SIZE, OUTSIDE), swapped);
	expect_equal("pages in A without swap", pages_in(mem, SIZE, IN_A), SIZE / PAGE - swapped);
	expect_holds("memory without swap", mem, HALF, 1);
	expect_holds("memory without swap", mem + HALF, HALF, 2);
	if (swapon("/dev/zram0", 0))
		die("swapon");
	madvise(mem, SIZE, MADV_DONTNEED);
	fill(mem, SIZE, 3);
	expect_in("memory that is new", mem, SIZE, IN_A);
}

static void swap_off(void)
{
	bind_to(FN0, "");
	in_function(swap_off_body);
	expect_empty("used after its end", FN0);
}

/* memory.reclaim, with either of Linux' two ways to find cold pages. */
static void reclaim_body(void)
{
	char *mem = map_memory(2 * SIZE);

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	fill(mem, SIZE, 1);
	fill(mem + SIZE, SIZE, 2);
	for (int i = 0; i < 8 && pages_in(mem, 2 * SIZE, SWAPPED) < SIZE / PAGE; i++)
		reclaim(FN0, "8M");
	expect_at_least("pages in swap", pages_in(mem, 2 * SIZE, SWAPPED), SIZE / PAGE);
	expect_used_at_most("used after reclaim", FN0, SIZE + SLACK);
	expect_holds("memory after reclaim", mem, SIZE, 1);
	expect_holds("memory after reclaim", mem + SIZE, SIZE, 2);
	expect_in("memory after reclaim", mem, 2 * SIZE, IN_A);
}

static void reclaim_generations(void)
{
	bind_to(FN0, "");
	in_function(reclaim_body);
	expect_empty("used after its end", FN0);
}

static void reclaim_lists(void)
{
	bind_to(FN0, "");
	set("/sys/kernel/mm/lru_gen/enabled", "n");
	in_function(reclaim_body);
	set("/sys/kernel/mm/lru_gen/enabled", "y");
	expect_empty("used after its end", FN0);
}

/* The two ways change places while the pages are on their lists. */
static void reclaim_switch_body(void)
{
	char *mem = map_memory(SIZE);
	size_t swapped = 0;

	fill(mem, SIZE, 1);
	for (int i = 0; i < 4; i++) {
		set("/sys/kernel/mm/lru_gen/enabled", i % 2 ? "y" : "n");
		reclaim(FN0, "4M");
		swapped += pages_in(mem, SIZE, SWAPPED);
		expect_holds("memory after reclaim", mem, SIZE, 1);
		expect_in("memory after reclaim", mem, SIZE, IN_A);
	}
	/* The first time Linux finds nothing, in or outside of partitions. */
	expect_at_least("pages that went to swap", swapped, 2 * MIB / PAGE);
}

static void reclaim_switch(void)
{
	bind_to(FN0, "");
	in_function(reclaim_switch_body);
	expect_empty("used after its end", FN0);
}

/* Nobody sees what another had in a partition that was kept. */
static void leave_body(void)
{
	size_t size = partition_value(FN0, "size");

	fill(map_memory(size), size, 1);
	expect_at_least("used by who wants all of it", used(FN0), size);
}

static void find_body(void)
{
	size_t size = partition_value(FN0, "size") - SLACK;
	char *mem = map_memory(size);

	madvise(mem, size / 2, MADV_NOHUGEPAGE);
	touch(mem, size);
	expect_in("memory that another had", mem, size, IN_A);
	expect_zero("memory that another had", mem, size);
}

static void kept_zero(void)
{
	bind_to(FN0, "release=manual");
	bind_to(FN1, "");
	in_function(leave_body);
	unbind(FN0);
	bind_to(FN0, "");
	in_function(find_body);
}

/* Memory that is locked is in the partition, and nothing moves it. */
static void mlock_body(void)
{
	char *mem = map_memory(2 * SIZE);
	uint64_t *frames;

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	fill(mem, SIZE, 1);
	fill(mem + SIZE, SIZE, 2);
	if (mlock(mem, 2 * SIZE))
		die("mlock");
	expect_in("locked memory", mem, 2 * SIZE, IN_A);
	frames = frames_of(mem, 2 * SIZE);
	reclaim(FN0, "64M");
	set("/proc/sys/vm/compact_memory", "1");
	expect_unmoved("locked memory", mem, 2 * SIZE, frames);
	expect_holds("locked memory", mem, SIZE, 1);
	expect_holds("locked memory", mem + SIZE, SIZE, 2);
	if (munlock(mem, 2 * SIZE))
		die("munlock");
	for (int i = 0; i < 8 && !pages_in(mem, 2 * SIZE, SWAPPED); i++)
		reclaim(FN0, "8M");
	expect_at_least("pages in swap when it is not locked", pages_in(mem, 2 * SIZE, SWAPPED), 1);
	/* The function ends with its memory locked. */
	if (mlock(mem, 2 * SIZE))
		die("mlock");
	expect_in("locked memory from swap", mem, 2 * SIZE, IN_A);
	expect_holds("locked memory from swap", mem, SIZE, 1);
}

static void lock(void)
{
	bind_to(FN0, "");
	in_function(mlock_body);
	expect_empty("used after its end", FN0);
}

const struct behaviour advice_cases[] = {
	{ "dontneed", dontneed },
	{ "madv-free", madv_free },
	{ "pageout", pageout },
	{ "pageout-huge", pageout_huge },
	{ "swap-shared", swap_shared },
	{ "swap-exit", swap_exit },
	{ "swap-off", swap_off },
	{ "reclaim", reclaim_generations },
	{ "reclaim-lists", reclaim_lists },
	{ "reclaim-switch", reclaim_switch },
	{ "kept-zero", kept_zero },
	{ "mlock", lock },
	{ NULL, NULL },
};
