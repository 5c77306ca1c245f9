// SPDX-License-Identifier: Apache-2.0
/* The life of control groups: what they inherit, who moves, and races of their removal. */
#include "behave.h"

#include <glob.h>
#include <sys/stat.h>
#include <time.h>

#define SIZE (8 * MIB)
#define NESTED FN0 "/nested"
#define WAITING "/cg/waiting"
#define RACE "/cg/race"

static void hold_body(void)
{
	char *mem = map_memory(SIZE);

	fill(mem, SIZE, 1);
	expect_in("memory", mem, SIZE, IN_A);
	reach(1);
	for (;;)
		pause();
}

static void kill_function(void)
{
	pid_t pid;

	bind_to(FN0, "");
	pid = start(FN0, hold_body);
	await(1);
	kill(pid, SIGKILL);
	finish(pid, SIGKILL);
}

/* Killed, not ended. */
static void killed(void)
{
	kill_function();
	expect_empty("used after its end", FN0);
}

/* Without "none": the removal of the control group is enough. */
static void removed(void)
{
	kill_function();
	expect_equal("rmdir", rmdir(FN0) ? errno : 0, 0);
	expect_gone("A after its control group was removed", FN0);
}

/* A control group below has the partition too, and loses it with the one above. */
static void nested_body(void)
{
	char *mem = map_memory(SIZE);

	fill(mem, SIZE, 1);
	expect_in("memory of a control group below", mem, SIZE, IN_A);
	reach(1);
	await(2);
	fill(mem, SIZE, 2);
	mem = map_memory(SIZE);
	fill(mem, SIZE, 3);
	expect_in("memory after the control group above was unbound", mem, SIZE, OUTSIDE);
}

static void inherited(void)
{
	pid_t pid;

	bind_to(FN0, "");
	set(FN0 "/cgroup.subtree_control", "+memory");
	if (mkdir(NESTED, 0755))
		die(NESTED);
	expect_equal("partition of a control group below", partition_value(NESTED, "id"),
		     partition_value(FN0, "id"));
	pid = start(NESTED, nested_body);
	await(1);
	unbind(FN0);
	expect_equal("partition of a control group below, unbound", partition_value(NESTED, "id"),
		     -1);
	expect_at_least("in use of A by what was there", draining(FN0), SIZE);
	reach(2);
	finish(pid, 0);
	expect_gone("A after its end", FN0);
	rmdir(NESTED);
}

/* How many partitions have ATTRIBUTE so, and the NUMBER of one of them. */
static int partitions_with(const char *attribute, const char *wanted, long *number)
{
	char pattern[128], text[64];
	glob_t found;
	int count = 0;

	snprintf(pattern, sizeof(pattern), PARTITIONS "*/%s", attribute);
	if (glob(pattern, 0, NULL, &found))
		return 0;
	for (size_t i = 0; i < found.gl_pathc; i++) {
		get(found.gl_pathv[i], text, sizeof(text));
		text[strcspn(text, "\n")] = 0;
		if (strcmp(text, wanted))
			continue;
		count++;
		if (number)
			*number = atol(strstr(found.gl_pathv[i], "/partitions/") + 12);
	}
	globfree(&found);
	return count;
}

/* They are free a moment after their last user has gone, or the control group was removed. */
static void expect_free(int count)
{
	for (int ms = 0; ms < 10000 && partitions_with("state", "idle", NULL) < count; ms += 10)
		usleep(10000);
	expect_equal("partitions that are free", partitions_with("state", "idle", NULL), count);
}

/* One that has a partition of its own keeps it, whatever becomes of the one above. */
static void nested_own_body(void)
{
	char *mem = map_memory(SIZE);

	await(1);
	fill(mem, SIZE, 1);
	expect_in("memory while the control group above has another partition", mem, SIZE, IN_B);
	reach(2);
	await(3);
	mem = map_memory(SIZE);
	fill(mem, SIZE, 2);
	expect_in("memory after the control group above was unbound", mem, SIZE, IN_B);
}

static void nested_own(void)
{
	long number = -1;
	char text[64];
	pid_t pid;

	set(FN0 "/cgroup.subtree_control", "+memory");
	if (mkdir(NESTED, 0755))
		die(NESTED);
	expect_equal("partitions with the cookie 2", partitions_with("cookie", "2", &number), 1);
	snprintf(text, sizeof(text), "%ld release=manual", number);
	set(NESTED "/memory.partition", text);
	pid = start(NESTED, nested_own_body);
	bind_to(FN0, "");
	expect_equal("partition of the control group below", partition_value(NESTED, "id"), number);
	expect_equal("binding one when none is free, without a wait",
		     put(OUT "/memory.partition", "auto", O_NONBLOCK), -EAGAIN);
	reach(1);
	await(2);
	unbind(FN0);
	expect_gone("A, which nobody has used", FN0);
	expect_equal("partition of the control group below, alone", partition_value(NESTED, "id"),
		     number);
	reach(3);
	finish(pid, 0);
	set(NESTED "/memory.partition", "none");
	rmdir(NESTED);
	expect_free(1);
}

/* A process that moves leaves its memory where it is, and takes more from where it is now. */
static void moved_body(void)
{
	char *old = map_memory(SIZE), *new = map_memory(SIZE);
	uint64_t *frames;

	fill(old, SIZE, 1);
	frames = frames_of(old, SIZE);
	must_join(FN1);
	fill(new, SIZE, 2);
	expect_in("memory since it moved", new, SIZE, IN_B);
	expect_unmoved("memory of before", old, SIZE, frames);
	must_join(OUT);
	new = map_memory(SIZE);
	fill(new, SIZE, 3);
	expect_in("memory since it moved to no partition", new, SIZE, OUTSIDE);
	expect_unmoved("memory of before", old, SIZE, frames);
	expect_holds("memory of before", old, SIZE, 1);
}

static void moved(void)
{
	bind_to(FN0, "");
	bind_to(FN1, "");
	in_function(moved_body);
	expect_empty("used of A after its end", FN0);
	expect_empty("used of B after its end", FN1);
}

/* Until a process sleeps in a wait that a signal ends. */
static void await_sleep(pid_t pid)
{
	char path[64], text[512] = "";

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	for (int ms = 0; ms < 30000; ms++) {
		get(path, text, sizeof(text));
		if (strstr(text, ") S "))
			return;
		usleep(1000);
	}
	expect(0, "a process that waits: expected it to sleep, found %s", text);
}

/* A process that waits for a partition of WAITING's, and expects that the wait ends with ERROR. */
static pid_t start_waiting(int error)
{
	pid_t pid;
	int rc;

	if (mkdir(WAITING, 0755))
		die(WAITING);
	pid = fork();
	if (!pid) {
		reach(1);
		rc = put(WAITING "/memory.partition", "auto", 0);
		expect_equal("the end of the wait", -rc, error);
		end_function();
	}
	await(1);
	await_sleep(pid);
	return pid;
}

/* Who waits for a partition does not hold up the removal of its control group. */
static void waiting(void)
{
	pid_t pid;

	bind_to(FN0, "");
	bind_to(FN1, "");
	pid = start_waiting(ENODEV);
	expect_equal("rmdir", rmdir(WAITING) ? errno : 0, 0);
	finish(pid, 0);
	expect_equal("used of A", used(FN0), 0);
}

/* Who waits gets the partition that is free first. */
static void woken(void)
{
	pid_t pid;

	bind_to(FN0, "release=manual");
	bind_to(FN1, "");
	pid = start_waiting(0);
	unbind(FN0);
	finish(pid, 0);
	expect_equal("cookie of the partition that was waited for",
		     partition_value(WAITING, "cookie"), 1);
	set(WAITING "/memory.partition", "none");
	rmdir(WAITING);
	expect_gone("A after its end", FN0);
}

/* Who knows which partition is meant says its number. */
static void by_number(void)
{
	char text[64];
	long number = -1;

	bind_to(FN0, "");
	expect_equal("partitions with the cookie 2", partitions_with("cookie", "2", &number), 1);
	snprintf(text, sizeof(text), "%ld release=manual", number);
	set(FN1 "/memory.partition", text);
	expect_equal("number of the partition", partition_value(FN1, "id"), number);
	expect_equal("cookie of the partition", partition_value(FN1, "cookie"), 2);
	expect_equal("binding one that is bound", put(OUT "/memory.partition", text, 0), -EBUSY);
	expect_equal("binding one that there is not",
		     put(OUT "/memory.partition", "4000000000", 0), -ENOENT);
	set(FN1 "/memory.partition", "none");
	expect_equal("partitions that are free", partitions_with("state", "idle", NULL), 1);
}

/*
 * Functions begin and end in one control group that is made, bound, unbound and removed without
 * regard to them, by several at once.
 */
static long now_ms(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000 + at.tv_nsec / 1000000;
}

/* A cgroup is anybody's to have, a partition is not. */
static void delegated_body(void)
{
	if (setgid(65534) || setuid(65534))
		die("setuid");
	expect_equal("binding one's own cgroup", put(FN1 "/memory.partition", "auto", O_NONBLOCK),
		     -EPERM);
	expect_equal("unbinding it", put(FN1 "/memory.partition", "none", 0), -EPERM);
}

static void delegated(void)
{
	bind_to(FN0, "");
	if (chown(FN1 "/memory.partition", 65534, 65534))
		die("chown");
	in_function(delegated_body);
	expect_equal("partitions that are free", partitions_with("state", "idle", NULL), 1);
	expect_empty("used after its end", FN0);
}

static void race_body(void)
{
	long end = now_ms() + 3000, bound = 0;

	/* A kernel that is slow takes longer. */
	for (int round = 0; now_ms() < end || shared->value < 30; round++) {
		char *mem;

		/* Whatever of this fails is the race's. */
		mkdir(RACE, 0755);
		bound += !put(RACE "/memory.partition", "auto release=manual", O_NONBLOCK);
		join(RACE);
		mem = map_memory(MIB);
		fill(mem, MIB, round);
		if (round % 3 == 0)
			put(RACE "/memory.partition", "none", 0);
		expect_holds("memory in the race", mem, MIB, round);
		munmap(mem, MIB);
		join(OUT);
		if (round % 2)
			rmdir(RACE);
		atomic_fetch_add(&shared->value, 1);
	}
	expect_at_least("binds of one of them", bound, 1);
}

static void raced(void)
{
	pid_t pids[3];

	for (int i = 0; i < 3; i++)
		pids[i] = start(OUT, race_body);
	for (int i = 0; i < 3; i++)
		finish(pids[i], 0);
	put(RACE "/memory.partition", "none", 0);
	rmdir(RACE);
	expect_free(2);
	bind_to(FN0, "");
	bind_to(FN1, "");
	expect_empty("used of A", FN0);
	expect_empty("used of B", FN1);
}

/* Fills, checks and drops memory for as long as its caller lets it. */
static void churn_body(void)
{
	for (int round = 0; access("/tmp/stop", F_OK); round++) {
		char *mem = map_memory(2 * SIZE);

		madvise(mem, SIZE, MADV_NOHUGEPAGE);
		fill(mem, 2 * SIZE, round);
		expect_holds("memory", mem, 2 * SIZE, round);
		expect_in("memory", mem, 2 * SIZE, IN_A);
		munmap(mem, 2 * SIZE);
		if (!round)
			dprintf(1, "ready\n");
		shared->value = round + 1;
	}
}

/* The caller does something meanwhile, until it makes the file /tmp/stop. */
static void churn(void)
{
	unlink("/tmp/stop");
	bind_to(FN0, "");
	in_function(churn_body);
	expect_at_least("rounds", shared->value, 1);
	expect_empty("used after its end", FN0);
}

const struct behaviour group_cases[] = {
	{ "killed", killed },
	{ "removed", removed },
	{ "inherited", inherited },
	{ "nested-own", nested_own },
	{ "moved", moved },
	{ "waiting", waiting },
	{ "woken", woken },
	{ "by-number", by_number },
	{ "delegated", delegated },
	{ "raced", raced },
	{ "churn", churn },
	{ NULL, NULL },
};
