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

/* What the whole machine is short of is not to be had from a partition. */
static void shortage_body(void)
{
	char *mem = map_memory(5 * SIZE);

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	fill(mem, 5 * SIZE, 1);
	reach(1);
	await(2);
	expect_in("memory of a function while others lack some", mem, 5 * SIZE, IN_A);
	expect_holds("memory of a function while others lack some", mem, 5 * SIZE, 1);
}

/* Takes memory until much of it is in swap. */
static void shortage_outside(void)
{
	const long enough = 160 * MIB / PAGE;
	size_t most = number_of("/proc/meminfo", "MemAvailable") * KIB + 256 * MIB;
	long before = number_of("/proc/vmstat", "pswpout"), swapped = 0;
	char *mem = map_memory(most);

	for (size_t at = 0; at < most && swapped < enough; at += MIB) {
		memset(mem + at, 1, MIB);
		swapped = number_of("/proc/vmstat", "pswpout") - before;
	}
	expect_at_least("pages written to swap", swapped, enough);
}

/* A function has its memory while OUTSIDE takes that of the machine, and ends by SIGNAL. */
static void run_short(void (*outside)(void), int signal)
{
	pid_t pid;

	bind_to(FN0, "");
	pid = start(FN0, shortage_body);
	await(1);
	finish(start(OUT, outside), signal);
	reach(2);
	finish(pid, 0);
	expect_empty("used after its end", FN0);
}

static void shortage(void)
{
	run_short(shortage_outside, 0);
}

/* Where the machine has no more, who took it is killed, and nobody in a partition. */
static void oom_outside(void)
{
	size_t most = number_of("/proc/meminfo", "MemAvailable") * KIB + 256 * MIB;

	memset(map_memory(most), 1, most);
	expect(0, "taking more than there is: expected to be killed, found %zu bytes there", most);
}

static void oom(void)
{
	long killed = number_of("/proc/vmstat", "oom_kill");

	run_short(oom_outside, SIGKILL);
	expect_equal("tasks killed", number_of("/proc/vmstat", "oom_kill") - killed, 1);
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

/* A page that goes bad: the function is told, and nobody gets the page again. */

static void poison_body(void)
{
	char *mem = map_memory(SIZE);

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	fill(mem, SIZE, 1);
	expect_in("memory", mem, SIZE, IN_A);
	madvise(mem + 16 * PAGE, PAGE, MADV_HWPOISON);
	expect(0, "expected to be killed, was not");
}

static void poison(void)
{
	bind_to(FN0, "");
	finish(start(FN0, poison_body), SIGBUS);
	expect_used_at_most("used after its end", FN0, PAGE);
	expect_equal("used after its end", used(FN0), PAGE);
}

/* One that goes bad while nobody has it: whoever gets to it passes over it, huge page or not. */

static int has_flag(uint64_t frame, int flag)
{
	uint64_t *flags = words_of(PAGE_FLAGS, frame, 1);
	int has = *flags >> flag & 1;

	free(flags);
	return has;
}

static void expect_without(const char *mem, size_t size, uint64_t bad)
{
	uint64_t *frames = frames_of(mem, size);

	for (size_t i = 0; i < size / PAGE; i++)
		expect(frames[i] != bad, "page %zu: expected another than the bad one", i);
	free(frames);
}

static void poison_free_body(void)
{
	size_t size = partition_value(FN0, "size");
	char *mem = map_memory(SIZE), text[32];
	uint64_t bad;

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	fill(mem, SIZE, 1);
	bad = frames_of(mem, SIZE)[16];
	munmap(mem, SIZE);
	set("/proc/sys/vm/compact_memory", "1");
	expect(has_flag(bad, KPF_OFFLINE), "a page after munmap: still in use");
	/* Linux has no way to take it from who keeps it free, and says so. */
	snprintf(text, sizeof(text), "%#lx", (unsigned long)(bad * PAGE));
	put("/sys/devices/system/memory/hard_offline_page", text, 0);
	expect(has_flag(bad, KPF_HWPOISON), "a page that went bad: not marked");

	/* Of the huge page that would have had it, the rest stays for small ones. */
	mem = map_memory(SIZE);
	madvise(mem, SIZE, MADV_HUGEPAGE);
	fill(mem, SIZE, 2);
	expect_equal("bytes of huge pages", mapping_value(mem, "AnonHugePages"), SIZE);
	expect_in("huge pages", mem, SIZE, IN_A);
	expect_without(mem, SIZE, bad);
	munmap(mem, SIZE);
	set("/proc/sys/vm/compact_memory", "1");
	expect_used_at_most("used after huge pages", FN0, PAGE);

	mem = map_memory(size);
	madvise(mem, size, MADV_NOHUGEPAGE);
	fill(mem, size, 3);
	expect_at_least("used by who wants all of it", used(FN0), size);
	expect_without(mem, size, bad);
	expect_holds("memory", mem, size, 3);
}

static void poison_free(void)
{
	bind_to(FN0, "policy=spill");
	in_function(poison_free_body);
	expect_used_at_most("used after its end", FN0, PAGE);
	expect_equal("used after its end", used(FN0), PAGE);
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
	{ "shortage", shortage },
	{ "oom", oom },
	{ "mlock", lock },
	{ "poison", poison },
	{ "poison-free", poison_free },
	{ NULL, NULL },
};
