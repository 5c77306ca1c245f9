// SPDX-License-Identifier: Apache-2.0
/* A function that wants more than there is, and what it has outside of its partition. */
#include "behave.h"

#include <poll.h>
#include <sys/mount.h>
#include <sys/stat.h>

#define SIZE (8 * MIB)

static void outgrow_body(void)
{
	size_t size = partition_value(FN0, "size"), more = size + SIZE;
	char *mem = map_memory(more);

	fill(mem, more, 1);
	expect_holds("memory", mem, more, 1);
	expect_at_least("pages in A", pages_in(mem, more, IN_A), (size - SLACK) / PAGE);
	expect_at_least("pages outside", pages_in(mem, more, OUTSIDE), SIZE / PAGE);
	/* There is room again, and it is taken. */
	munmap(mem, more);
	mem = map_memory(SIZE);
	expect_used_at_most("used after munmap", FN0, SLACK);
	fill(mem, SIZE, 2);
	expect_in("memory after there is room", mem, SIZE, IN_A);
}

static void spill(void)
{
	struct pollfd events = { .events = POLLPRI };
	char text[256];
	pid_t pid;

	bind_to(FN0, "policy=spill");
	events.fd = open(FN0 "/memory.partition.events", O_RDONLY | O_CLOEXEC);
	expect_at_least("bytes read of the events", read(events.fd, text, sizeof(text)), 1);
	expect_equal("events before there was one", poll(&events, 1, 0), 0);
	pid = start(FN0, outgrow_body);
	expect_equal("events for who waits for one", poll(&events, 1, 30000), 1);
	finish(pid, 0);
	close(events.fd);
	expect_at_least("spilled", partition_value(FN0, "spilled"), SIZE);
	expect_at_most("spilled", partition_value(FN0, "spilled"), SIZE + 2 * SLACK);
	expect_equal("events of bindings", event_count(FN0, "bound"), 1);
	expect_at_least("events of spills", event_count(FN0, "spill"), SIZE / PAGE);
	expect_equal("events of OOM", event_count(FN0, "oom"), 0);
	expect_empty("used after its end", FN0);
}

static void strict_body(void)
{
	size_t size = partition_value(FN0, "size") + SIZE;
	char *mem = map_memory(size);

	fill(mem, size, 1);
	expect(0, "outgrowing the partition: expected to be killed, found %zu bytes there", size);
}

static void strict(void)
{
	bind_to(FN0, "policy=strict");
	finish(start(FN0, strict_body), SIGKILL);
	expect_at_least("events of OOM", event_count(FN0, "oom"), 1);
	/* Only what a dying task could not do without. */
	expect_at_most("spilled", partition_value(FN0, "spilled"), MIB);
	expect_empty("used after its end", FN0);
}

/* One of two is killed, and the other one has room. */
static void strict_survivor_body(void)
{
	char *mem = map_memory(SIZE);

	fill(mem, SIZE, 1);
	reach(1);
	await(2);
	expect_holds("memory of the survivor", mem, SIZE, 1);
	expect_in("memory of the survivor", mem, SIZE, IN_A);
}

static void strict_survivor(void)
{
	pid_t survivor, other;

	bind_to(FN0, "policy=strict");
	survivor = start(FN0, strict_survivor_body);
	await(1);
	other = start(FN0, strict_body);
	finish(other, SIGKILL);
	reach(2);
	finish(survivor, 0);
	expect_empty("used after their end", FN0);
}

/*
 * Control groups below have one partition between them: whoever finds it full, who has most of it is
 * killed.
 */
#define SMALL FN0 "/a"
#define LARGE FN0 "/b"

static void make_nested(void)
{
	set(FN0 "/cgroup.subtree_control", "+memory");
	if (mkdir(SMALL, 0755) || mkdir(LARGE, 0755))
		die(FN0);
}

static void end_nested(void)
{
	rmdir(SMALL);
	rmdir(LARGE);
	expect_empty("used after their end", FN0);
}

static void nested_hog_body(void)
{
	size_t size = partition_value(FN0, "size") - SIZE;
	char *mem = map_memory(size);

	/* So that it takes a while to free. */
	madvise(mem, size, MADV_NOHUGEPAGE);
	fill(mem, size, 1);
	expect_in("memory of the large one", mem, size, IN_A);
	reach(1);
	await(2);
}

static void nested_body(void)
{
	char *mem = map_memory(2 * SIZE);

	fill(mem, 2 * SIZE, 2);
	expect_in("memory of the small one", mem, 2 * SIZE, IN_A);
	expect_holds("memory of the small one", mem, 2 * SIZE, 2);
}

static void strict_nested(void)
{
	struct pollfd events = { .events = POLLPRI };
	pid_t large, small;
	char text[256];

	bind_to(FN0, "policy=strict");
	make_nested();
	large = start(LARGE, nested_hog_body);
	await(1);
	events.fd = open(FN0 "/memory.partition.events", O_RDONLY | O_CLOEXEC);
	expect_at_least("bytes read of the events", read(events.fd, text, sizeof(text)), 1);
	expect_equal("events of OOM before there was one", event_count(FN0, "oom"), 0);
	expect_equal("events before there was one", poll(&events, 1, 0), 0);
	small = start(SMALL, nested_body);
	expect_equal("events for who waits for one", poll(&events, 1, 30000), 1);
	finish(small, 0);
	reach(2);
	finish(large, SIGKILL);
	close(events.fd);
	expect_at_least("events of OOM", event_count(FN0, "oom"), 1);
	expect_equal("events of OOM of the small one", event_count(SMALL, "oom"), 0);
	expect_equal("events of OOM of the large one", event_count(LARGE, "oom"), 0);
	expect_at_most("spilled", partition_value(FN0, "spilled"), MIB);
	end_nested();
}

/* Who has another partition makes no room, however much it has beside that. */
static void innocent_body(void)
{
	size_t size = partition_value(SMALL, "size");
	char *mem = map_memory(4 * size);

	fill(mem, 4 * size, 1);
	expect_at_least("pages that were spilled", pages_in(mem, 4 * size, OUTSIDE), size / PAGE);
	reach(1);
	await(2);
	expect_holds("memory of who has another partition", mem, 4 * size, 1);
}

static void strict_innocent(void)
{
	pid_t innocent;
	char text[64];

	bind_to(FN0, "policy=strict");
	bind_to(FN1, "release=manual");
	snprintf(text, sizeof(text), "%ld", partition_value(FN1, "id"));
	unbind(FN1);
	make_nested();
	set(SMALL "/memory.partition", "none");
	set(SMALL "/memory.partition", text);
	innocent = start(SMALL, innocent_body);
	await(1);
	finish(start(LARGE, strict_body), SIGKILL);
	reach(2);
	finish(innocent, 0);
	expect_equal("events of OOM", event_count(FN0, "oom"), 1);
	set(SMALL "/memory.partition", "none");
	end_nested();
}

/* A strict partition has room for all that BODY has at a time, if it is made. */
static void fits_without_a_kill(void (*body)(void))
{
	bind_to(FN0, "policy=strict");
	in_function(body);
	expect_equal("events of OOM", event_count(FN0, "oom"), 0);
	expect_equal("events of spills", event_count(FN0, "spill"), 0);
	expect_equal("spilled", partition_value(FN0, "spilled"), 0);
	expect_empty("used after its end", FN0);
}

/* What nobody uses is given back before anybody is killed: it takes no swap. */
static void strict_unused_body(void)
{
	size_t size = (partition_value(FN0, "size") - SLACK) / HUGE_PAGE * HUGE_PAGE;
	char *mem = map_memory(size), *more = map_memory(size / 2);

	madvise(mem, size, MADV_HUGEPAGE);
	for (size_t at = 0; at < size; at += HUGE_PAGE)
		fill(mem + at, PAGE, at);
	for (size_t at = 0; at < size; at += HUGE_PAGE)
		madvise(mem + at + PAGE, HUGE_PAGE - PAGE, MADV_DONTNEED);
	expect_at_least("used by the rest of huge pages", used(FN0), size);
	fill(more, size / 2, 1);
	expect_holds("in the place of the rest", more, size / 2, 1);
	for (size_t at = 0; at < size; at += HUGE_PAGE)
		expect_holds("a page of a huge page", mem + at, PAGE, at);
	munmap(mem, size);
	munmap(more, size / 2);

	mem = map_memory(size);
	madvise(mem, size, MADV_NOHUGEPAGE);
	fill(mem, size, 2);
	madvise(mem, size, MADV_FREE);
	more = map_memory(size / 2);
	fill(more, size / 2, 3);
	expect_holds("in the place of what was free to go", more, size / 2, 3);
}

static void strict_unused(void)
{
	fits_without_a_kill(strict_unused_body);
}

/* With swap nobody has to be killed. */
static void strict_swap_body(void)
{
	size_t size = partition_value(FN0, "size") + SIZE;
	char *mem = map_memory(size);

	for (size_t at = 0; at < size; at += MIB)
		fill(mem + at, MIB, at / MIB);
	expect_at_least("pages in swap", pages_in(mem, size, SWAPPED), SIZE / PAGE);
	for (size_t at = 0; at < size; at += MIB)
		expect_holds("memory", mem + at, MIB, at / MIB);
	expect_equal("pages outside", pages_in(mem, size, OUTSIDE), 0);
}

static void strict_swap(void)
{
	fits_without_a_kill(strict_swap_body);
}

/* Its memory is on the way to a disk when it ends. */
static void swap_left_body(void)
{
	char *mem = map_memory(4 * SIZE);

	madvise(mem, 4 * SIZE, MADV_NOHUGEPAGE);
	fill(mem, 4 * SIZE, 1);
	if (madvise(mem, 4 * SIZE, MADV_PAGEOUT))
		die("MADV_PAGEOUT");
	kill(getpid(), SIGKILL);
}

static void swap_left(void)
{
	long before = number_of("/proc/vmstat", "pswpout");

	bind_to(FN0, "");
	finish(start(FN0, swap_left_body), SIGKILL);
	expect_at_least("pages written to swap", number_of("/proc/vmstat", "pswpout") - before,
			SIZE / PAGE);
	unbind(FN0);
	expect_gone("A, whose function was being written to swap", FN0);
}

/* So does each of many, while the others take the room that it makes. */
#define CROWD 16

static void strict_crowd_body(void)
{
	size_t size = (partition_value(FN0, "size") + 4 * SIZE) / CROWD & ~(PAGE - 1);
	char *mem = map_memory(size);

	for (int round = 0; round < 3; round++) {
		for (size_t at = 0; at < size; at += PAGE)
			fill(mem + at, PAGE, at / PAGE + round);
		for (size_t at = 0; at < size; at += PAGE)
			expect_holds("memory", mem + at, PAGE, at / PAGE + round);
	}
}

static void strict_crowd(void)
{
	pid_t pids[CROWD];

	bind_to(FN0, "policy=strict");
	for (int i = 0; i < CROWD; i++)
		pids[i] = start(FN0, strict_crowd_body);
	for (int i = 0; i < CROWD; i++)
		finish(pids[i], 0);
	expect_equal("events of OOM", event_count(FN0, "oom"), 0);
	expect_equal("events of spills", event_count(FN0, "spill"), 0);
	expect_empty("used after their end", FN0);
}

/* The limit of the cgroup is below the partition's size: it comes first. */
static void memory_max_body(void)
{
	char *mem = map_memory(5 * SIZE);

	fill(mem, 5 * SIZE, 1);
	expect(0, "outgrowing memory.max: expected to be killed, found all of it there");
}

static void outgrow_memory_max(const char *options)
{
	bind_to(FN0, options);
	set(FN0 "/memory.max", "33554432");
	finish(start(FN0, memory_max_body), SIGKILL);
	expect_at_least("oom_kill", number_of(FN0 "/memory.events", "oom_kill"), 1);
	expect_equal("events of OOM of the partition", event_count(FN0, "oom"), 0);
	expect_equal("events of spills", event_count(FN0, "spill"), 0);
	expect_at_most("peak", partition_value(FN0, "peak"), 32 * MIB + SLACK);
	expect_empty("used after its end", FN0);
}

static void memory_max(void)
{
	outgrow_memory_max("");
}

/* So it does with policy=strict, until it is above. */
static void strict_max(void)
{
	long hits;

	outgrow_memory_max("policy=strict");
	hits = number_of(FN0 "/memory.events", "max");
	set(FN0 "/memory.max", "134217728");
	finish(start(FN0, strict_body), SIGKILL);
	expect_at_least("events of OOM of the partition", event_count(FN0, "oom"), 1);
	expect_equal("hits of memory.max", number_of(FN0 "/memory.events", "max"), hits);
	expect_at_most("spilled", partition_value(FN0, "spilled"), MIB);
	expect_empty("used after its end", FN0);
}

/* What spills is the cgroup's own, and memory.max ends that. */
static void spill_max(void)
{
	char most[32];

	bind_to(FN0, "policy=spill");
	snprintf(most, sizeof(most), "%ld", partition_value(FN0, "size") + (long)SIZE / 2);
	set(FN0 "/memory.max", most);
	finish(start(FN0, strict_body), SIGKILL);
	expect_at_least("oom_kill", number_of(FN0 "/memory.events", "oom_kill"), 1);
	expect_equal("events of OOM of the partition", event_count(FN0, "oom"), 0);
	expect_at_least("spilled", partition_value(FN0, "spilled"), SIZE / 2 - SLACK);
	expect_at_most("spilled", partition_value(FN0, "spilled"), SIZE / 2 + SLACK);
	expect_empty("used after its end", FN0);
}

/* Files, shared memory and pipes of a function are not in its partition, and outlive it. */

#define FILE_PATH "/tmp/behave/file"

static void outside_body(void)
{
	int fd = open(FILE_PATH, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	long before = used(FN0);
	char *file, *private, *common, *mem;

	if (fd < 0 || ftruncate(fd, SIZE))
		die(FILE_PATH);
	file = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	private = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	common = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (file == MAP_FAILED || private == MAP_FAILED || common == MAP_FAILED)
		die("mmap");
	fill(file, SIZE, 1);
	fill(common, SIZE, 2);
	expect_holds("a private view of the file", private, SIZE, 1);
	expect_in("pages of the file", file, SIZE, OUTSIDE);
	expect_in("pages of the file, in a private view", private, SIZE, OUTSIDE);
	expect_in("shared memory", common, SIZE, OUTSIDE);
	expect_equal("MADV_COLLAPSE", madvise(common, SIZE, MADV_COLLAPSE) ? errno : 0, 0);
	expect_equal("bytes of huge pages", mapping_value(common, "ShmemPmdMapped"), SIZE);
	expect_in("shared memory in huge pages", common, SIZE, OUTSIDE);
	expect_at_most("used, for all of that", used(FN0) - before, MIB);
	/* A copy is the function's own. */
	fill(private, SIZE / 2, 3);
	expect_in("what was written to a private view", private, SIZE / 2, IN_A);
	expect_holds("the file", file, SIZE, 1);
	mem = map_memory(SIZE);
	expect_equal("bytes read from the file", pread(fd, mem, SIZE, 0), SIZE);
	expect_in("memory that was read from a file", mem, SIZE, IN_A);
	expect_holds("memory that was read from a file", mem, SIZE, 1);
}

static void files(void)
{
	char *mem = map_memory(SIZE);
	int fd;

	mkdir("/tmp/behave", 0700);
	if (mount("behave", "/tmp/behave", "tmpfs", 0, NULL))
		die("mount");
	bind_to(FN0, "");
	in_function(outside_body);
	expect_empty("used after its end", FN0);
	unbind(FN0);
	expect_gone("A while the file is there", FN0);
	fd = open(FILE_PATH, O_RDONLY | O_CLOEXEC);
	expect_equal("bytes of the file", pread(fd, mem, SIZE, 0), SIZE);
	expect_holds("the file", mem, SIZE, 1);
	close(fd);
	umount("/tmp/behave");
}

/* What a function reads from a disk is cached outside, for all. */
static void page_cache_body(void)
{
	int fd = open("/dev/zram0", O_RDWR | O_CLOEXEC);
	char *mem = map_memory(MIB);
	long before;

	if (fd < 0)
		die("/dev/zram0");
	fill(mem, MIB, 1);
	before = used(FN0);
	for (int i = 0; i < 8; i++)
		expect_equal("bytes written to the disk", pwrite(fd, mem, MIB, i * MIB), MIB);
	for (int i = 0; i < 8; i++)
		expect_equal("bytes read from the disk", pread(fd, mem, MIB, i * MIB), MIB);
	expect_at_most("used, for the page cache", used(FN0) - before, MIB);
	expect_holds("what was read from the disk", mem, MIB, 1);
	/* Kept open, so that the cache stays. */
	reach(1);
	await(2);
}

static void page_cache(void)
{
	long before = number_of("/proc/meminfo", "Buffers");
	pid_t pid;

	bind_to(FN0, "");
	pid = start(FN0, page_cache_body);
	await(1);
	expect_at_least("KiB of page cache", number_of("/proc/meminfo", "Buffers") - before,
			8 * MIB / KIB);
	reach(2);
	finish(pid, 0);
	expect_empty("used after its end", FN0);
}

const struct behaviour limit_cases[] = {
	{ "spill", spill },
	{ "strict", strict },
	{ "strict-survivor", strict_survivor },
	{ "strict-nested", strict_nested },
	{ "strict-innocent", strict_innocent },
	{ "strict-unused", strict_unused },
	{ "strict-swap", strict_swap },
	{ "strict-crowd", strict_crowd },
	{ "swap-left", swap_left },
	{ "memory-max", memory_max },
	{ "strict-max", strict_max },
	{ "spill-max", spill_max },
	{ "files", files },
	{ "page-cache", page_cache },
	{ NULL, NULL },
};
