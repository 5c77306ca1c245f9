// SPDX-License-Identifier: Apache-2.0
/*
 * stress SECONDS [SEED]: functions come and go in partitions, and each checks all that it has.
 *
 * So many agents as there are slots each run one function after the other, in a cgroup of their
 * own that they bind to a partition and unbind in one way or another. A function maps, writes,
 * gives up, swaps, splits, collapses, moves, shares, pins and locks memory at random, reads all of
 * it back again, and ends by itself or is killed. Somebody else compacts, merges, reclaims, reads
 * and takes offline meanwhile. Whoever provides the partitions may add, resize and remove them.
 *
 * Prints "FAIL ..." for what a function found where it had written something else, and in the end
 * "stress lives N killed N unserved N operations N failures N inside N".
 */
#include "function.h"

#include <linux/io_uring.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

#define SLOTS 6
#define AREAS 12
#define MOST (4 * MIB)
#define OUT "/cg/out"

/* Where the memory of partitions is: behind that of the other device. */
#define FIRST ((4096 + 256) * MIB)
#define ROOM (768 * MIB)

struct area {
	char *mem;
	size_t size;
	uint64_t seed;
};

/* Counted by all processes. */
struct counts {
	/* Those inside have had memory in a partition. */
	atomic_long lives, killed, unserved, operations, failures, inside;
};

static struct counts *counts;
static struct area areas[AREAS];
static uint64_t state;
static long end_ms;

static long now_ms(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000 + at.tv_nsec / 1000000;
}

/* A number below LIMIT. */
static uint64_t chance(uint64_t limit)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % limit;
}

static void fail(const char *what, const struct area *area, size_t at, uint64_t expected)
{
	dprintf(1, "FAIL %s: expected %#lx at %#zx of %#zx, found %#lx\n", what,
		(unsigned long)expected, at * 8, area->size,
		(unsigned long)((uint64_t *)area->mem)[at]);
	atomic_fetch_add(&counts->failures, 1);
	_exit(1);
}

static void check(const char *what, const struct area *area)
{
	size_t at = first_difference(area->mem, area->size, area->seed);

	if (at != area->size / 8)
		fail(what, area, at, word(area->seed, at));
}

static void rewrite(struct area *area)
{
	area->seed = chance(UINT32_MAX);
	fill(area->mem, area->size, area->seed);
}

/* What a function does. Each begins and ends with areas that hold what they should. */

/* What nobody has written since it came reads as zero. */
static void expect_new(const char *what, const struct area *area)
{
	size_t at;

	/* A page that is read first is the kernel's one page of zeroes. */
	for (at = 0; at < area->size; at += PAGE)
		*(volatile char *)(area->mem + at) = 0;
	at = first_nonzero(area->mem, area->size);
	if (at != area->size / 8)
		fail(what, area, at, 0);
}

static void new_area(struct area *area)
{
	static const int advice[] = { MADV_NORMAL, MADV_HUGEPAGE, MADV_NOHUGEPAGE };

	munmap(area->mem, area->size);
	/* Most are small, so that much happens; some have room for huge pages. */
	area->size = (1 + chance(chance(8) ? 8 : MOST / (64 * KIB))) * 64 * KIB;
	area->mem = map_memory(area->size);
	madvise(area->mem, area->size, advice[chance(3)]);
	if (chance(2))
		expect_new("what is new", area);
	rewrite(area);
}

static void drop(struct area *area)
{
	if (madvise(area->mem, area->size, MADV_DONTNEED))
		return;
	expect_new("what was dropped", area);
	rewrite(area);
}

static void give_up(struct area *area)
{
	madvise(area->mem, area->size, MADV_FREE);
	sched_yield();
	rewrite(area);
}

static void swap_out(struct area *area)
{
	madvise(area->mem, area->size, MADV_PAGEOUT);
	if (chance(2))
		check("from swap", area);
}

static void collapse(struct area *area)
{
	madvise(area->mem, area->size, MADV_HUGEPAGE);
	madvise(area->mem, area->size, MADV_COLLAPSE);
	check("collapsed", area);
}

static void shrink(struct area *area)
{
	size_t less = area->size / 2 & ~(PAGE - 1);

	if (less < PAGE)
		return;
	munmap(area->mem + less, area->size - less);
	area->size = less;
}

static void move(struct area *area)
{
	char *to = map_memory(area->size);

	if (mremap(area->mem, area->size, area->size, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to)
		die("mremap");
	area->mem = to;
	check("moved", area);
}

static void protect(struct area *area)
{
	size_t from = chance(area->size / PAGE) * PAGE;

	mprotect(area->mem + from, PAGE, PROT_READ);
	check("protected", area);
	mprotect(area->mem + from, PAGE, PROT_READ | PROT_WRITE);
}

/* A child sees all of it as it was, and writes; it may outlive us, elsewhere. */
static void share(struct area *area)
{
	int outlives = chance(8) == 0, status = 0;
	pid_t child = fork();

	if (child < 0)
		return;
	if (!child) {
		if (chance(3) == 0)
			join(OUT);
		for (int i = 0; i < AREAS; i++)
			if (areas[i].mem && chance(2))
				check("of a parent", &areas[i]);
		rewrite(area);
		if (outlives)
			usleep(chance(60000));
		for (int i = 0; i < AREAS; i++)
			if (areas[i].mem)
				check("of a child", &areas[i]);
		_exit(0);
	}
	if (outlives)
		return;
	/* Parent and child write at the same time. */
	for (size_t at = 0; at < area->size; at += PAGE)
		*(volatile char *)(area->mem + at) = area->mem[at];
	if (waitpid(child, &status, 0) != child)
		die("waitpid");
	check("after a child", area);
}

static void pipe_through(struct area *area)
{
	size_t size = area->size < 16 * PAGE ? area->size : 16 * PAGE;
	struct iovec some = { area->mem, size };
	static char copy[16 * PAGE];
	struct area piped = { copy, size, area->seed };
	int ends[2];

	if (pipe(ends))
		die("pipe");
	if (vmsplice(ends[1], &some, 1, 0) == (ssize_t)size) {
		if (chance(4) && read(ends[0], copy, size) == (ssize_t)size)
			check("from a pipe", &piped);
	}
	close(ends[0]);
	close(ends[1]);
}

static void pin(struct area *area)
{
	struct io_uring_params parameters = { 0 };
	int ring = syscall(SYS_io_uring_setup, 2, &parameters);
	struct iovec whole = { area->mem, area->size };

	if (ring < 0)
		return;
	syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &whole, 1);
	check("pinned", area);
	if (chance(2))
		rewrite(area);
	close(ring);
}

static void lock(struct area *area)
{
	mlock(area->mem, area->size);
	check("locked", area);
	/* Some end with it. */
	if (chance(8))
		munlock(area->mem, area->size);
}

static void merge(struct area *area)
{
	madvise(area->mem, area->size, MADV_MERGEABLE);
	if (chance(2))
		rewrite(area);
}

static void look(struct area *area)
{
	check("as it was", area);
}

static void live(void)
{
	static void (*const operations[])(struct area *) = {
		new_area, new_area, new_area, drop, give_up, swap_out, collapse, shrink, move,
		protect, share, share, pipe_through, pin, lock, merge, look, look, rewrite,
	};
	/* As many in a slow kernel, where a life is as long as that takes. */
	int left = 1 + chance(40);

	do {
		struct area *area = &areas[chance(AREAS)];

		if (area->mem)
			operations[chance(sizeof(operations) / sizeof(*operations))](area);
		else
			new_area(area);
		atomic_fetch_add(&counts->operations, 1);
	} while (--left && now_ms() < end_ms);
	for (int i = 0; i < AREAS; i++)
		if (areas[i].mem)
			check("in the end", &areas[i]);
	_exit(0);
}

/* Agents */

static void wake(int signal)
{
	(void)signal;
}

/* Waits for a partition, but not for ever. One that was left bound is not bound again. */
static int bind_to(const char *cgroup, int strict)
{
	char path[128];
	int rc;

	snprintf(path, sizeof(path), "%s/memory.partition", cgroup);
	alarm(1);
	rc = put(path, strict ? "auto policy=strict" : "auto", chance(4) ? 0 : O_NONBLOCK);
	alarm(0);
	if (rc == -EBUSY)
		put(path, "none", 0);
	return rc;
}

static void one_life(const char *cgroup)
{
	int strict = chance(3) == 0, kills = chance(3) == 0, status = 0;
	char path[128];
	pid_t pid;

	mkdir(cgroup, 0755);
	if (bind_to(cgroup, strict)) {
		atomic_fetch_add(&counts->unserved, 1);
		usleep(10000);
		return;
	}
	pid = fork();
	if (!pid) {
		if (join(cgroup))
			_exit(2);
		live();
	}
	if (pid < 0)
		die("fork");
	if (kills) {
		usleep(chance(300000));
		kill(pid, SIGKILL);
	}
	if (waitpid(pid, &status, 0) != pid)
		die("waitpid");
	atomic_fetch_add(&counts->lives, 1);
	/* A strict partition may take one that is too large; others only we do. */
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && (kills || strict)) {
		atomic_fetch_add(&counts->killed, 1);
	} else if (status) {
		dprintf(1, "FAIL a function ended with status %#x, strict %d\n", status, strict);
		atomic_fetch_add(&counts->failures, 1);
	}
	snprintf(path, sizeof(path), "%s/memory.partition", cgroup);
	if (number_of(path, "peak") > 0)
		atomic_fetch_add(&counts->inside, 1);
	if (chance(4))
		put(path, "none", 0);
	if (chance(2))
		rmdir(cgroup);
}

static void agent(int slot)
{
	struct sigaction action = { .sa_handler = wake };
	char cgroup[64], path[128];

	sigaction(SIGALRM, &action, NULL);
	snprintf(cgroup, sizeof(cgroup), "/cg/stress%d", slot);
	while (now_ms() < end_ms) {
		one_life(cgroup);
		state += 0x9e3779b97f4a7c15;
	}
	snprintf(path, sizeof(path), "%s/memory.partition", cgroup);
	put(path, "none", 0);
	rmdir(cgroup);
	_exit(0);
}

/* Who goes over all memory. Whatever is refused is well refused. */

static void read_frames(const char *path)
{
	static uint64_t flags[1 << 15];
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (pread(fd, flags, sizeof(flags), FIRST / PAGE * 8 + chance(6) * sizeof(flags)) < 0)
		usleep(1000);
	close(fd);
}

/* The content of partitions, which may be given back meanwhile. */
static void read_content(void)
{
	static char some[MIB];
	off_t at = 0;
	int fd = open_kcore((FIRST + chance(ROOM)) / PAGE, &at);

	if (at && pread(fd, some, sizeof(some), at) < 0)
		usleep(1000);
	close(fd);
}

/* One that was just about to be trimmed may go offline by our hand, and is gone then. */
static int stays_offline(const char *path)
{
	char state[32];

	for (int ms = 0; ms < 10000; ms += 10) {
		if (get(path, state, sizeof(state)) || strncmp(state, "offline", 7))
			return 0;
		usleep(10000);
	}
	return 1;
}

static void disturb_once(void)
{
	char path[128];

	switch (chance(12)) {
	case 0:
		put("/proc/sys/vm/compact_memory", "1", 0);
		break;
	case 1:
		put("/sys/kernel/mm/ksm/run", chance(2) ? "1" : "0", 0);
		break;
	case 2:
		put("/sys/kernel/mm/lru_gen/enabled", chance(2) ? "y" : "n", 0);
		break;
	case 3:
		read_frames("/proc/kpageflags");
		break;
	case 4:
		read_frames("/proc/kpagecount");
		break;
	case 5:
		snprintf(path, sizeof(path), "/sys/devices/system/memory/memory%lu/state",
			 (FIRST + chance(ROOM)) / (128 * MIB));
		if (!put(path, "offline", 0) && stays_offline(path)) {
			dprintf(1, "FAIL %s: memory of partitions went offline\n", path);
			atomic_fetch_add(&counts->failures, 1);
		}
		break;
	case 6:
		put("/proc/sys/vm/drop_caches", "1", 0);
		break;
	case 7:
	case 8:
	case 9:
		read_content();
		break;
	default:
		snprintf(path, sizeof(path), "/cg/stress%d/memory.reclaim", (int)chance(SLOTS));
		put(path, "4M", 0);
	}
}

static void disturb(void)
{
	while (now_ms() < end_ms) {
		disturb_once();
		usleep(20000 + chance(50000));
	}
	put("/sys/kernel/mm/ksm/run", "2", 0);
	put("/sys/kernel/mm/ksm/run", "0", 0);
	put("/sys/kernel/mm/lru_gen/enabled", "y", 0);
	_exit(0);
}

int main(int argc, char **argv)
{
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;

	if (argc < 2) {
		dprintf(2, "usage: stress SECONDS [SEED]\n");
		return 2;
	}
	end_ms = now_ms() + atol(argv[1]) * 1000;
	counts = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (counts == MAP_FAILED)
		die("mmap");
	mkdir(OUT, 0755);
	for (int i = 0; i <= SLOTS; i++) {
		pid_t pid = fork();

		if (pid < 0)
			die("fork");
		state = (seed + i + 1) * 0x9e3779b97f4a7c15;
		if (!pid && i == SLOTS)
			disturb();
		if (!pid)
			agent(i);
	}
	while (wait(NULL) > 0)
		;
	dprintf(1, "stress lives %ld killed %ld unserved %ld operations %ld failures %ld inside %ld\n",
		counts->lives, counts->killed, counts->unserved, counts->operations,
		counts->failures, counts->inside);
	return counts->failures != 0;
}
