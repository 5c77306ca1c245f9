// SPDX-License-Identifier: Apache-2.0
/* Huge pages of both kinds, and memory that moves in the address space. */
#include "behave.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

#define THP "/sys/kernel/mm/transparent_hugepage/"
#define SIZE (8 * MIB)

static char *map_with(size_t size, int advice)
{
	char *mem = map_memory(size);

	if (madvise(mem, size, advice))
		die("madvise");
	return mem;
}

static void fill_blocks(char *mem, size_t size, size_t block)
{
	for (size_t at = 0; at < size; at += block)
		fill(mem + at, block, at / block);
}

static void expect_blocks(const char *what, const char *mem, size_t from, size_t to, size_t block)
{
	for (size_t at = from; at < to; at += block)
		expect_holds(what, mem + at, block, at / block);
}

static void expect_huge(const char *what, const char *mem, long bytes)
{
	expect_equal(what, mapping_value(mem, "AnonHugePages"), bytes);
}

/* Groups of COUNT pages follow each other in physical memory, from a multiple of COUNT on. */
static void expect_folios(const char *what, const char *mem, size_t size, size_t count)
{
	uint64_t *frames = frames_of(mem, size);
	size_t apart = 0;

	for (size_t i = 0; i < size / PAGE; i++)
		apart += frames[i] % count != i % count ||
			 (i % count && frames[i] != frames[i - 1] + 1);
	expect_equal(what, apart, 0);
	free(frames);
}

static void thp_body(void)
{
	char *mem = map_with(SIZE, MADV_HUGEPAGE);

	/* The second time they are not as the host gave them. */
	for (int round = 0; round < 3; round++) {
		touch(mem, SIZE);
		expect_zero("huge pages that are new", mem, SIZE);
		expect_huge("bytes of huge pages", mem, SIZE);
		expect_folios("pages out of line", mem, SIZE, HUGE_PAGE / PAGE);
		expect_in("huge pages", mem, SIZE, IN_A);
		fill(mem, SIZE, round);
		expect_holds("huge pages", mem, SIZE, round);
		madvise(mem, SIZE, MADV_DONTNEED);
		expect_used_at_most("used after MADV_DONTNEED", FN0, SLACK);
	}
}

static void thp(void)
{
	bind_to(FN0, "");
	in_function(thp_body);
	expect_empty("used after its end", FN0);
}

/* Each huge page is split in a way of its own, and what is left of it stays where it was. */
static void split_body(void)
{
	char *mem = map_with(SIZE, MADV_HUGEPAGE);
	uint64_t *frames;

	fill_blocks(mem, SIZE, 64 * KIB);
	expect_in("memory", mem, SIZE, IN_A);
	expect_huge("bytes of huge pages", mem, SIZE);
	frames = frames_of(mem, SIZE);
	mprotect(mem + 64 * KIB, 64 * KIB, PROT_READ);
	munmap(mem + 3 * MIB, MIB);
	madvise(mem + 4 * MIB + 64 * KIB, 64 * KIB, MADV_DONTNEED);
	expect_blocks("before what was unmapped", mem, 0, 3 * MIB, 64 * KIB);
	expect_blocks("before what was dropped", mem, 4 * MIB, 4 * MIB + 64 * KIB, 64 * KIB);
	expect_blocks("behind what was dropped", mem, 4 * MIB + 128 * KIB, SIZE, 64 * KIB);
	expect_unmoved("before what was unmapped", mem, 3 * MIB, frames);
	expect_unmoved("behind what was dropped", mem + 4 * MIB + 128 * KIB,
		       SIZE - 4 * MIB - 128 * KIB, frames + (4 * MIB + 128 * KIB) / PAGE);
	expect_huge("bytes of huge pages of the last one", mem + SIZE - PAGE, 2 * MIB);
	touch(mem + 4 * MIB + 64 * KIB, 64 * KIB);
	expect_zero("what was dropped", mem + 4 * MIB + 64 * KIB, 64 * KIB);
	expect_in("what was dropped", mem + 4 * MIB + 64 * KIB, 64 * KIB, IN_A);
}

static void thp_split(void)
{
	bind_to(FN0, "");
	in_function(split_body);
	expect_empty("used after its end", FN0);
}

/* What of a huge page is not mapped any more comes back when the huge page is split. */
static void split_free(char *mem, size_t folio)
{
	const size_t half = folio / 2;
	char range[128];
	uint64_t *frames;

	fill_blocks(mem, 2 * SIZE, half);
	expect_in("memory", mem, 2 * SIZE, IN_A);
	expect_folios("pages out of line", mem, 2 * SIZE, folio / PAGE);
	frames = frames_of(mem, 2 * SIZE);
	for (size_t at = half; at < 2 * SIZE; at += folio)
		munmap(mem + at, half);
	for (size_t at = 0; at < 2 * SIZE; at += folio) {
		snprintf(range, sizeof(range), "%d,%#lx,%#lx", getpid(),
			 (unsigned long)(mem + at), (unsigned long)(mem + at + half));
		set("/sys/kernel/debug/split_huge_pages", range);
	}
	expect_used_at_most("used after the split", FN0, SIZE + SLACK);
	for (size_t at = 0; at < 2 * SIZE; at += folio) {
		expect_holds("what is mapped", mem + at, half, at / half);
		expect_unmoved("what is mapped", mem + at, half, frames + at / PAGE);
	}
}

static void split_free_body(void)
{
	split_free(map_with(2 * SIZE, MADV_HUGEPAGE), HUGE_PAGE);
}

static void thp_split_free(void)
{
	bind_to(FN0, "");
	in_function(split_free_body);
	expect_empty("used after its end", FN0);
}

static char *small_pages(size_t size)
{
	char *mem = map_with(size, MADV_NOHUGEPAGE);

	fill(mem, size, 1);
	expect_huge("bytes of huge pages", mem, 0);
	madvise(mem, size, MADV_HUGEPAGE);
	return mem;
}

static void expect_collapsed(const char *mem)
{
	expect_huge("bytes of huge pages", mem, SIZE);
	expect_holds("huge pages", mem, SIZE, 1);
	expect_in("huge pages", mem, SIZE, IN_A);
	expect_used_at_most("used, without the small pages", FN0, SIZE + SLACK);
}

static void collapse_body(void)
{
	char *mem = small_pages(SIZE);

	expect_equal("MADV_COLLAPSE", madvise(mem, SIZE, MADV_COLLAPSE) ? errno : 0, 0);
	expect_collapsed(mem);
}

static void collapse(void)
{
	bind_to(FN0, "");
	in_function(collapse_body);
	expect_empty("used after its end", FN0);
}

/* What finds no room for a huge page in the partition stays as it is, and in there. */
static void collapse_full_body(void)
{
	size_t size = partition_value(FN0, "size");
	char *mem = map_with(size, MADV_NOHUGEPAGE);
	uint64_t *frames;
	long spilled;

	for (size_t at = 0; at < size; at += SIZE)
		fill(mem + at, SIZE, 1);
	expect_at_least("used", used(FN0), size - PAGE);
	expect_in("memory", mem, SIZE, IN_A);
	frames = frames_of(mem, SIZE);
	spilled = partition_value(FN0, "spilled");
	madvise(mem, SIZE, MADV_HUGEPAGE);
	expect_equal("MADV_COLLAPSE", madvise(mem, SIZE, MADV_COLLAPSE) ? errno : 0, EBUSY);
	expect_huge("bytes of huge pages", mem, 0);
	expect_unmoved("small pages", mem, SIZE, frames);
	expect_holds("small pages", mem, SIZE, 1);
	/* What the function needs to find that out may spill. */
	expect_at_most("spilled", partition_value(FN0, "spilled"), spilled + MIB);
}

static void collapse_full(void)
{
	bind_to(FN0, "policy=spill");
	in_function(collapse_full_body);
	expect_empty("used after its end", FN0);
}

static void khugepaged_body(void)
{
	char *mem = small_pages(SIZE);

	for (int ms = 0; ms < 20000 && mapping_value(mem, "AnonHugePages") < (long)SIZE; ms += 50)
		usleep(50000);
	expect_collapsed(mem);
}

static void khugepaged(void)
{
	bind_to(FN0, "");
	set(THP "khugepaged/scan_sleep_millisecs", "10");
	set(THP "khugepaged/pages_to_scan", "16384");
	in_function(khugepaged_body);
	set(THP "khugepaged/scan_sleep_millisecs", "1000000");
	set(THP "khugepaged/pages_to_scan", "4096");
	expect_empty("used after its end", FN0);
}

/* Folios of 64 KiB: where no 2 MiB fit. */
static void mthp_body(void)
{
	char *mem = map_memory(HUGE_PAGE) + 64 * KIB;
	size_t size = MIB;

	for (int round = 0; round < 3; round++) {
		touch(mem, size);
		expect_zero("large folios that are new", mem, size);
		/* In the first there was a hole, which may be a mapping of its own now. */
		expect_folios("pages out of line", mem + 64 * KIB, size - 64 * KIB, 16);
		expect_in("large folios", mem, size, IN_A);
		fill_blocks(mem, size, 16 * KIB);
		munmap(mem + 32 * KIB, 16 * KIB);
		expect_blocks("large folios", mem, 0, 32 * KIB, 16 * KIB);
		expect_blocks("large folios", mem, 48 * KIB, size, 16 * KIB);
		madvise(mem, size, MADV_DONTNEED);
		if (mmap(mem + 32 * KIB, 16 * KIB, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
			die("mmap");
	}
}

static long mthp_faults(void)
{
	char text[64];

	if (get(THP "hugepages-64kB/stats/anon_fault_alloc", text, sizeof(text)))
		die("anon_fault_alloc");
	return atol(text);
}

static void with_mthp(void (*body)(void), long faults)
{
	long before = mthp_faults();

	bind_to(FN0, "");
	set(THP "enabled", "madvise");
	set(THP "hugepages-64kB/enabled", "always");
	in_function(body);
	set(THP "hugepages-64kB/enabled", "never");
	set(THP "enabled", "always");
	expect_at_least("faults with large folios", mthp_faults() - before, faults);
	expect_empty("used after its end", FN0);
}

static void mthp(void)
{
	with_mthp(mthp_body, 3 * 15);
}

static void mthp_split_body(void)
{
	split_free(map_memory(2 * SIZE), 64 * KIB);
}

static void mthp_split(void)
{
	with_mthp(mthp_split_body, 2 * SIZE / (64 * KIB));
}

static void mthp_collapse_body(void)
{
	char *mem = map_memory(SIZE);

	fill(mem, SIZE, 1);
	expect_folios("pages out of line", mem, SIZE, 16);
	madvise(mem, SIZE, MADV_HUGEPAGE);
	expect_equal("MADV_COLLAPSE", madvise(mem, SIZE, MADV_COLLAPSE) ? errno : 0, 0);
	expect_collapsed(mem);
}

static void mthp_collapse(void)
{
	with_mthp(mthp_collapse_body, SIZE / (64 * KIB));
}

/* Memory that moves in the address space stays where it is. */
static void move_body(int advice)
{
	char *mem = map_with(SIZE, advice), *to = map_memory(2 * SIZE), *now;
	uint64_t *frames;

	fill(mem, SIZE, 1);
	frames = frames_of(mem, SIZE);
	now = mremap(mem, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	expect(now == to, "mremap: expected %p, found %p", to, now);
	expect_unmoved("memory with a new address", to, SIZE, frames);
	expect_holds("memory with a new address", to, SIZE, 1);
	/* The old mapping stays, and is empty. */
	now = mremap(to, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
	if (now == MAP_FAILED)
		die("mremap");
	expect_unmoved("memory that left its mapping behind", now, SIZE, frames);
	expect_holds("memory that left its mapping behind", now, SIZE, 1);
	touch(to, SIZE);
	expect_zero("the mapping left behind", to, SIZE);
	expect_in("the mapping left behind", to, SIZE, IN_A);
	now = mremap(now, SIZE, 2 * SIZE, MREMAP_MAYMOVE);
	if (now == MAP_FAILED)
		die("mremap");
	fill(now + SIZE, SIZE, 2);
	expect_unmoved("memory that has grown", now, SIZE, frames);
	expect_holds("memory that has grown", now, SIZE, 1);
	expect_in("what has grown on it", now + SIZE, SIZE, IN_A);
}

static void move_small_body(void)
{
	move_body(MADV_NOHUGEPAGE);
}

static void move_huge_body(void)
{
	move_body(MADV_HUGEPAGE);
}

static void mremap_small(void)
{
	bind_to(FN0, "");
	in_function(move_small_body);
	expect_empty("used after its end", FN0);
}

static void mremap_huge(void)
{
	bind_to(FN0, "");
	in_function(move_huge_body);
	expect_empty("used after its end", FN0);
}

const struct behaviour huge_cases[] = {
	{ "thp", thp },
	{ "thp-split", thp_split },
	{ "thp-split-free", thp_split_free },
	{ "collapse", collapse },
	{ "collapse-full", collapse_full },
	{ "khugepaged", khugepaged },
	{ "mthp", mthp },
	{ "mthp-split", mthp_split },
	{ "mthp-collapse", mthp_collapse },
	{ "mremap", mremap_small },
	{ "mremap-huge", mremap_huge },
	{ NULL, NULL },
};
