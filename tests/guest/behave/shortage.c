// SPDX-License-Identifier: Apache-2.0
/* The whole machine is short of memory, or has none left. */
#include "behave.h"

#define SIZE (8 * MIB)

/*
 * BODY has its memory in KEEPER while TAKER takes what the machine has, in the other cgroup, and
 * ends by SIGNAL. FN0 is one of the two, and bound.
 */
static void beside(const char *keeper, void (*body)(void), const char *other, void (*taker)(void),
		   int signal)
{
	pid_t pid = start(keeper, body);

	await(1);
	finish(start(other, taker), signal);
	reach(2);
	finish(pid, 0);
	expect_empty("used after its end", FN0);
}

static long kills(void)
{
	return number_of("/proc/vmstat", "oom_kill");
}

/* What the whole machine is short of is not to be had from a partition. */
static void shortage_body(void)
{
	size_t size = partition_value(FN0, "size") - 3 * SIZE;
	char *mem = map_memory(size);

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	fill(mem, size, 1);
	reach(1);
	await(2);
	expect_in("memory of a function while others lack some", mem, size, IN_A);
	expect_holds("memory of a function while others lack some", mem, size, 1);
}

/* Takes memory until much of it is in swap. */
static void take_until_swapping(void)
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

static void shortage(void)
{
	bind_to(FN0, "");
	beside(FN0, shortage_body, OUT, take_until_swapping, 0);
}

/* Where the machine has no more, who took it is killed, and nobody in a partition. */
static void take_all(void)
{
	size_t most = number_of("/proc/meminfo", "MemAvailable") * KIB + 256 * MIB;

	/* A function's partition is no part of what is available. */
	most += partition_value(FN0, "size");
	memset(map_memory(most), 1, most);
	expect(0, "taking more than there is: expected to be killed, found %zu bytes there", most);
}

static void oom(void)
{
	long killed = kills();

	bind_to(FN0, "");
	beside(FN0, shortage_body, OUT, take_all, SIGKILL);
	expect_equal("tasks killed", kills() - killed, 1);
}

/* A function that took it is, for what it has outside, and not who has as much as any outside. */
static void bystander_body(void)
{
	size_t size = number_of("/proc/meminfo", "MemAvailable") * KIB / 4;
	char *mem = map_memory(size);

	fill(mem, size, 1);
	reach(1);
	await(2);
	expect_holds("memory of who stood by", mem, size, 1);
}

static void oom_spilled(void)
{
	long killed = kills();

	bind_to(FN0, "policy=spill");
	beside(OUT, bystander_body, FN0, take_all, SIGKILL);
	expect_at_least("bytes that were spilled", partition_value(FN0, "spilled"), SIZE);
	expect_equal("tasks killed", kills() - killed, 1);
}

const struct behaviour shortage_cases[] = {
	{ "shortage", shortage },
	{ "oom", oom },
	{ "oom-spilled", oom_spilled },
	{ NULL, NULL },
};
