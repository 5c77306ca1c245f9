// SPDX-License-Identifier: Apache-2.0
/* Who goes over all memory: KSM, compaction, NUMA balancing, offlining, readers of frames. */
#include "behave.h"

#include <sched.h>

#define SIZE (4 * MIB)
#define KSM "/sys/kernel/mm/ksm/"
#define PAGE_COUNTS "/proc/kpagecount"
#define BLOCKS "/sys/devices/system/memory/"

/* Whether memory that KSM may merge is to be in huge pages. */
static int advice;

/* Pages with one content all, which KSM may merge. */
static char *map_equal(void)
{
	char *mem = map_memory(SIZE);

	madvise(mem, SIZE, advice);
	for (size_t at = 0; at < SIZE; at += PAGE)
		fill(mem + at, PAGE, 1);
	expect_equal("bytes of huge pages", mapping_value(mem, "AnonHugePages"),
		     advice == MADV_HUGEPAGE ? SIZE : 0);
	if (madvise(mem, SIZE, MADV_MERGEABLE))
		die("MADV_MERGEABLE");
	return mem;
}

static long ksm_scans(void)
{
	char text[64];

	if (get(KSM "full_scans", text, sizeof(text)))
		die("full_scans");
	return atol(text);
}

/* KSM finds the pages outside, and leaves those of a partition alone. */
static void ksm_body(void)
{
	char *mem = map_equal();
	uint64_t *frames = frames_of(mem, SIZE);
	long huge = mapping_value(mem, "AnonHugePages");

	reach(1);
	await(2);
	expect_equal("bytes merged", mapping_value(mem, "KSM"), 0);
	expect_equal("bytes of huge pages after KSM", mapping_value(mem, "AnonHugePages"), huge);
	expect_unmoved("mergeable memory", mem, SIZE, frames);
	expect_in("mergeable memory", mem, SIZE, IN_A);
	expect_holds("mergeable memory", mem, PAGE, 1);
	expect_holds("mergeable memory", mem + SIZE - PAGE, PAGE, 1);
}

static void scan_by_ksm(void)
{
	char *mem = map_equal();
	long scans;
	pid_t pid;

	bind_to(FN0, "");
	pid = start(FN0, ksm_body);
	await(1);
	set(KSM "sleep_millisecs", "1");
	set(KSM "pages_to_scan", "10000");
	set(KSM "run", "1");
	for (int ms = 0; ms < 20000 && mapping_value(mem, "KSM") < (long)SIZE / 2; ms += 20)
		usleep(20000);
	expect_at_least("bytes merged outside", mapping_value(mem, "KSM"), SIZE / 2);
	/* It looks at each page twice before it merges. */
	scans = ksm_scans();
	for (int ms = 0; ms < 20000 && ksm_scans() < scans + 3; ms += 20)
		usleep(20000);
	expect_at_least("scans of all memory since", ksm_scans() - scans, 3);
	reach(2);
	finish(pid, 0);
	set(KSM "run", "2");
	set(KSM "run", "0");
	expect_empty("used after its end", FN0);
}

static void ksm(void)
{
	advice = MADV_NOHUGEPAGE;
	scan_by_ksm();
}

/* Outside it splits huge pages in order to merge them. */
static void ksm_huge(void)
{
	advice = MADV_HUGEPAGE;
	scan_by_ksm();
}

/* Compaction gets nothing from a partition, and does not try. */
static void compact_body(void)
{
	long before = number_of("/proc/vmstat", "compact_migrate_scanned");
	char *mem = map_memory(2 * SIZE);
	uint64_t *frames;

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	for (size_t at = 0; at < 2 * SIZE; at += PAGE)
		fill(mem + at, PAGE, at / PAGE);
	/* Every other page, as compaction likes it. */
	for (size_t at = 0; at < SIZE; at += 2 * PAGE)
		madvise(mem + at, PAGE, MADV_DONTNEED);
	frames = frames_of(mem, 2 * SIZE);
	for (int i = 0; i < 2; i++)
		set("/proc/sys/vm/compact_memory", "1");
	expect_at_least("pages that compaction looked at",
			number_of("/proc/vmstat", "compact_migrate_scanned") - before, SIZE / PAGE);
	expect_unmoved("memory", mem, 2 * SIZE, frames);
	for (size_t at = PAGE; at < 2 * SIZE; at += at < SIZE ? 2 * PAGE : PAGE)
		expect_holds("memory", mem + at, PAGE, at / PAGE);
}

static void compact(void)
{
	bind_to(FN0, "");
	in_function(compact_body);
	expect_empty("used after its end", FN0);
}

/* NUMA balancing takes a function's pages to the node that it runs on, and none of its partition. */

static void run_on(int cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one))
		die("sched_setaffinity");
}

static char *map_small_pages(uint64_t seed)
{
	char *mem = map_memory(SIZE);

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	fill(mem, SIZE, seed);
	return mem;
}

/* One process has both, so both are looked at in the same rounds. */
static void balance_body(void)
{
	uint64_t *outside_frames, *frames;
	char *outside, *mem;
	size_t moved = 0;

	run_on(0);
	must_join(OUT);
	outside = map_small_pages(1);
	must_join(FN0);
	mem = map_small_pages(2);
	outside_frames = frames_of(outside, SIZE);
	frames = frames_of(mem, SIZE);
	run_on(1);
	for (int round = 0; round < 20000 && moved < SIZE / PAGE * 9 / 10; round++) {
		expect_holds("memory outside", outside, SIZE, 1);
		expect_holds("memory", mem, SIZE, 2);
		moved = moved_since(outside, SIZE, outside_frames);
	}
	expect_at_least("pages outside that moved", moved, SIZE / PAGE * 9 / 10);
	expect_unmoved("memory", mem, SIZE, frames);
	expect_in("memory", mem, SIZE, IN_A);
}

static void balance(void)
{
	bind_to(FN0, "");
	set("/proc/sys/kernel/numa_balancing", "1");
	in_function(balance_body);
	/* It moves pages of others too, which must not count for the release. */
	set("/proc/sys/kernel/numa_balancing", "0");
	expect_empty("used after its end", FN0);
}

/* Memory blocks of partitions do not go offline, in use or not. */

static uint64_t block_size;

/* A file of a memory block refuses OFF, and reads ON after that. */
static void expect_refusal(uint64_t block, const char *file, const char *off, const char *on)
{
	char path[128], state[64];
	int rc;

	snprintf(path, sizeof(path), BLOCKS "memory%lu/%s", (unsigned long)block, file);
	rc = put(path, off, 0);
	expect(rc < 0, "%s: expected it to refuse \"%s\", found it written", path, off);
	get(path, state, sizeof(state));
	expect(!strcmp(state, on), "%s: expected %s, found %s", path, on, state);
}

static void refuse_offline(uint64_t first, uint64_t count)
{
	uint64_t from = first * PAGE / block_size, to = (first + count) * PAGE / block_size;

	for (uint64_t block = from; block <= to; block++) {
		if (block == to && (first + count) * PAGE % block_size == 0)
			break;
		expect_refusal(block, "state", "offline", "online\n");
		expect_refusal(block, "online", "0", "1\n");
	}
}

static void offline_body(void)
{
	char *mem = map_memory(2 * SIZE);
	uint64_t *frames;

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	fill(mem, SIZE, 1);
	fill(mem + SIZE, SIZE, 2);
	frames = frames_of(mem, 2 * SIZE);
	each_extent_of_a(refuse_offline);
	expect_unmoved("memory", mem, 2 * SIZE, frames);
	expect_holds("memory", mem, SIZE, 1);
	expect_holds("memory", mem + SIZE, SIZE, 2);
	fill(mem, 2 * SIZE, 3);
	expect_in("memory", mem, 2 * SIZE, IN_A);
}

static void offline(void)
{
	char text[64];

	if (get(BLOCKS "block_size_bytes", text, sizeof(text)))
		die("block_size_bytes");
	block_size = strtoull(text, NULL, 16);
	each_extent_of_a(refuse_offline);
	bind_to(FN0, "");
	in_function(offline_body);
	each_extent_of_a(refuse_offline);
	expect_empty("used after its end", FN0);
	unbind(FN0);
	expect_gone("A after its end", FN0);
	each_extent_of_a(refuse_offline);
}

/* What /proc says of page frames: those in use as anywhere, those that are free as offline. */

static long frames_used, frames_free, frames_odd;

static void count_frames(uint64_t first, uint64_t count)
{
	uint64_t *flags = words_of(PAGE_FLAGS, first, count);
	uint64_t *counts = words_of(PAGE_COUNTS, first, count);

	for (uint64_t i = 0; i < count; i++) {
		int anonymous = flags[i] >> KPF_ANON & 1, offline = flags[i] >> KPF_OFFLINE & 1;

		frames_used += anonymous && counts[i] && !offline;
		frames_free += offline && !anonymous && !counts[i];
		frames_odd += anonymous == offline;
	}
	free(flags);
	free(counts);
}

static void frames_body(void)
{
	char *mem = map_memory(2 * SIZE);

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	fill(mem, 2 * SIZE, 1);
	reach(1);
	await(2);
	expect_holds("memory", mem, 2 * SIZE, 1);
}

static void frames(void)
{
	long size;
	pid_t pid;

	bind_to(FN0, "");
	size = partition_value(FN0, "size");
	each_extent_of_a(count_frames);
	expect_equal("frames that are offline while nothing is in use", frames_free, size / PAGE);
	pid = start(FN0, frames_body);
	await(1);
	frames_used = frames_free = 0;
	each_extent_of_a(count_frames);
	expect_at_least("frames in use", frames_used, 2 * SIZE / PAGE);
	expect_at_most("frames in use", frames_used, (2 * SIZE + SLACK) / PAGE);
	expect_at_least("frames that are offline", frames_free,
			(size - 2 * SIZE - SLACK) / PAGE);
	expect_equal("frames in use and offline, or neither", frames_odd, 0);
	reach(2);
	finish(pid, 0);
	expect_empty("used after its end", FN0);
	frames_free = 0;
	each_extent_of_a(count_frames);
	expect_equal("frames that are offline after its end", frames_free, size / PAGE);
}

/*
 * Readers of frames, while their state changes: nobody stumbles. A frame may change from one word of
 * it to the next, so what they read is nothing to count.
 */
static void read_frames(uint64_t first, uint64_t count)
{
	free(words_of(PAGE_FLAGS, first, count));
	free(words_of(PAGE_COUNTS, first, count));
}

static void churn_body(void)
{
	for (int round = 0; shared->step < 2; round++) {
		char *mem = map_memory(2 * SIZE);

		madvise(mem, SIZE, MADV_NOHUGEPAGE);
		fill(mem, 2 * SIZE, round);
		expect_holds("memory under readers", mem, 2 * SIZE, round);
		munmap(mem, 2 * SIZE);
		shared->value = round + 1;
	}
}

static void frames_churn(void)
{
	pid_t pid;

	bind_to(FN0, "");
	pid = start(FN0, churn_body);
	while (shared->value < 6)
		each_extent_of_a(read_frames);
	reach(2);
	finish(pid, 0);
	expect_empty("used after its end", FN0);
}

/* /proc/kcore: the content of frames in use, and zeroes for those that are free. */

static int must_open_kcore(uint64_t frame, off_t *at)
{
	int fd = open_kcore(frame, at);

	expect(*at, "/proc/kcore: expected a part with frame %#lx, found none",
	       (unsigned long)frame);
	return fd;
}

static size_t kcore_zero, kcore_other;

static void read_kcore(uint64_t first, uint64_t count)
{
	char page[PAGE];
	off_t at = 0;
	int fd = must_open_kcore(first, &at);

	for (uint64_t i = 0; i < count && at; i++) {
		if (pread(fd, page, PAGE, at + i * PAGE) != (ssize_t)PAGE)
			die("/proc/kcore");
		if (first_nonzero(page, PAGE) == PAGE / 8)
			kcore_zero++;
		else
			kcore_other++;
	}
	close(fd);
}

static void kcore_body(void)
{
	char *mem = map_memory(SIZE), page[PAGE];
	uint64_t *frames;
	off_t at = 0;
	int fd;

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	for (size_t offset = 0; offset < SIZE; offset += PAGE)
		fill(mem + offset, PAGE, offset / PAGE);
	frames = frames_of(mem, SIZE);
	for (size_t i = 0; i < SIZE / PAGE; i += 61) {
		fd = must_open_kcore(frames[i], &at);
		if (pread(fd, page, PAGE, at) != (ssize_t)PAGE)
			die("/proc/kcore");
		expect_holds("a page in /proc/kcore", page, PAGE, i);
		close(fd);
	}
	reach(1);
	await(2);
}

static void kcore(void)
{
	pid_t pid;

	bind_to(FN0, "");
	pid = start(FN0, kcore_body);
	await(1);
	each_extent_of_a(read_kcore);
	expect_at_least("pages with content", kcore_other, SIZE / PAGE);
	expect_at_most("pages with content", kcore_other, (SIZE + SLACK) / PAGE);
	reach(2);
	finish(pid, 0);
	expect_empty("used after its end", FN0);
	kcore_other = kcore_zero = 0;
	each_extent_of_a(read_kcore);
	expect_equal("pages with content after its end", kcore_other, 0);
	expect_equal("pages of zeroes after its end", kcore_zero,
		     partition_value(FN0, "size") / PAGE);
}

const struct behaviour scan_cases[] = {
	{ "ksm", ksm },
	{ "ksm-huge", ksm_huge },
	{ "compact", compact },
	{ "balance", balance },
	{ "offline", offline },
	{ "frames", frames },
	{ "frames-churn", frames_churn },
	{ "kcore", kcore },
	{ NULL, NULL },
};
