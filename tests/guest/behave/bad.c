// SPDX-License-Identifier: Apache-2.0
/* Pages that go bad, or are taken out of use before they do. They want a kernel that can. */
#include "behave.h"

#define SIZE (8 * MIB)

/* After the end of the function so many pages are left, and no batch of a CPU holds others. */
static void expect_kept(long pages)
{
	set("/proc/sys/vm/compact_memory", "1");
	expect_used_at_most("used after its end", FN0, pages * PAGE);
	expect_equal("used after its end", used(FN0), pages * PAGE);
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
	expect_kept(1);
}

/* Has Linux take a page out of use: "hard" once it is bad, "soft" before. */
static int offline_page(const char *how, uint64_t frame)
{
	char path[128], text[32];

	snprintf(path, sizeof(path), "/sys/devices/system/memory/%s_offline_page", how);
	snprintf(text, sizeof(text), "%#lx", (unsigned long)(frame * PAGE));
	return put(path, text, 0);
}

static int has_flag(uint64_t frame, int flag)
{
	uint64_t *flags = words_of(PAGE_FLAGS, frame, 1);
	int has = *flags >> flag & 1;

	free(flags);
	return has;
}

/* Unmaps SIZE bytes, FRAME among them, which nobody has then. */
static void give_up(char *mem, uint64_t frame)
{
	munmap(mem, SIZE);
	set("/proc/sys/vm/compact_memory", "1");
	expect(has_flag(frame, KPF_OFFLINE), "a page after munmap: still in use");
}

/* The frame of a page in the middle of SIZE bytes that the function had, and has no more. */
static uint64_t make_free(void)
{
	char *mem = map_memory(SIZE);
	uint64_t frame;

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	fill(mem, SIZE, 1);
	frame = *frames_of(mem + SIZE / 2, PAGE);
	give_up(mem, frame);
	return frame;
}

/* Linux has no way to take it from who keeps it free, and says so. */
static void make_bad(uint64_t frame)
{
	offline_page("hard", frame);
	expect(has_flag(frame, KPF_HWPOISON), "a page that went bad: not marked");
}

static void expect_without(const char *mem, size_t size, uint64_t bad)
{
	uint64_t *frames = frames_of(mem, size);

	for (size_t i = 0; i < size / PAGE; i++)
		expect(frames[i] != bad, "page %zu: expected another than one that was taken", i);
	free(frames);
}

/* One that goes bad while nobody has it: whoever gets to it passes over it, huge page or not. */
static void poison_free_body(void)
{
	size_t size = partition_value(FN0, "size");
	long before = used(FN0);
	uint64_t bad = make_free();
	char *mem;

	make_bad(bad);
	/* Of the huge page that would have had it, the rest stays for small ones. */
	mem = map_memory(SIZE);
	madvise(mem, SIZE, MADV_HUGEPAGE);
	fill(mem, SIZE, 2);
	expect_equal("bytes of huge pages", mapping_value(mem, "AnonHugePages"), SIZE);
	expect_in("huge pages", mem, SIZE, IN_A);
	expect_without(mem, SIZE, bad);
	munmap(mem, SIZE);
	set("/proc/sys/vm/compact_memory", "1");
	expect_used_at_most("used after huge pages", FN0, before + SLACK);

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
	expect_kept(1);
}

/* One that nobody gets to does not keep its partition. */
static void poison_left_body(void)
{
	make_bad(make_free());
}

static void poison_left(void)
{
	bind_to(FN0, "");
	in_function(poison_left_body);
	expect_empty("used after its end", FN0);
}

/*
 * Pages that somebody wants out of use before they go bad. One in use moves out, and is nobody's
 * from then on. One that is free is on no list that Linux could take it from, and stays as it is.
 */

static uint64_t take_used(const char *mem, size_t page)
{
	uint64_t *frames = frames_of(mem, SIZE), frame = frames[page];

	expect_equal("taking a page in use", offline_page("soft", frame), 0);
	expect(has_flag(frame, KPF_HWPOISON), "a page in use that was taken: not marked");
	expect_in("what was on it", mem + page * PAGE, PAGE, OUTSIDE);
	expect_equal("pages that moved", moved_since(mem, SIZE, frames), 1);
	expect_holds("memory", mem, SIZE, 1);
	free(frames);
	return frame;
}

static void soft_offline_body(void)
{
	size_t size = partition_value(FN0, "size");
	char *mem = map_memory(SIZE);
	uint64_t *frames, small, huge, other;

	madvise(mem + SIZE / 2, SIZE / 2, MADV_NOHUGEPAGE);
	fill(mem, SIZE, 1);
	expect_equal("bytes of huge pages", mapping_value(mem, "AnonHugePages"), SIZE / 2);
	expect_in("memory", mem, SIZE, IN_A);
	other = *frames_of(mem + SIZE - PAGE, PAGE);
	small = take_used(mem, SIZE / PAGE * 3 / 4);
	huge = take_used(mem, SIZE / PAGE / 4);

	give_up(mem, other);
	expect_equal("taking a free page", offline_page("soft", other), -EIO);
	expect(!has_flag(other, KPF_HWPOISON), "a free page that was not taken: marked");

	/* Who wants all there is gets this one and not the others. */
	mem = map_memory(size);
	madvise(mem, size, MADV_NOHUGEPAGE);
	fill(mem, size, 2);
	expect_equal("used by who wants all of it", used(FN0), size);
	expect_without(mem, size, small);
	expect_without(mem, size, huge);
	frames = frames_of(mem, size);
	for (size_t i = 0; i < size / PAGE; i++)
		other = frames[i] == other ? 0 : other;
	expect_equal("a free page that nobody got", other, 0);
	expect_holds("memory", mem, size, 2);
}

static void soft_offline(void)
{
	bind_to(FN0, "policy=spill");
	in_function(soft_offline_body);
	expect_kept(2);
}

const struct behaviour bad_cases[] = {
	{ "poison", poison },
	{ "poison-free", poison_free },
	{ "poison-left", poison_left },
	{ "soft-offline", soft_offline },
	{ NULL, NULL },
};
