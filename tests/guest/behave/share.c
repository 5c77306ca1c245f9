// SPDX-License-Identifier: Apache-2.0
/* Whose memory it is: fork and copy on write, exec, threads, memory shared and remote. */
#include "behave.h"

#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#define SIZE (8 * MIB)
#define HALF (SIZE / 2)

static void use_body(void)
{
	char *mem = map_memory(2 * SIZE);

	touch(mem, 2 * SIZE);
	expect_zero("memory that is new", mem, 2 * SIZE);
	fill(mem, 2 * SIZE, 1);
	expect_in("memory", mem, 2 * SIZE, IN_A);
	expect_at_least("used", used(FN0), 2 * SIZE);
	expect_holds("memory", mem, 2 * SIZE, 1);
	munmap(mem, 2 * SIZE);
	expect_used_at_most("used after munmap", FN0, SLACK);
}

static void use(void)
{
	bind_to(FN0, "");
	expect_equal("used before", used(FN0), 0);
	in_function(use_body);
	expect_at_least("peak", partition_value(FN0, "peak"), 2 * SIZE);
	expect_empty("used after its end", FN0);
}

/* Each half has a pattern of its own, so that it can be checked alone. */
static void fill_halves(char *mem, uint64_t first, uint64_t second)
{
	fill(mem, HALF, first);
	fill(mem + HALF, HALF, second);
}

static void fork_body(void)
{
	char *mem = map_memory(SIZE);
	int status = 0;
	pid_t child;

	fill_halves(mem, 1, 2);
	child = fork();
	if (!child) {
		fill(mem, HALF, 3);
		reach(1);
		await(2);
		expect_holds("what the child wrote", mem, HALF, 3);
		expect_holds("what the parent wrote over", mem + HALF, HALF, 2);
		expect_in("the child's memory", mem, SIZE, IN_A);
		end_function();
	}
	if (child < 0)
		die("fork");
	await(1);
	fill(mem + HALF, HALF, 4);
	reach(2);
	expect_holds("what the child wrote over", mem, HALF, 1);
	expect_holds("what the parent wrote", mem + HALF, HALF, 4);
	expect_in("the parent's memory", mem, SIZE, IN_A);
	if (waitpid(child, &status, 0) != child)
		die("waitpid");
	expect_equal("status of the child", status, 0);
}

static void fork_same(void)
{
	bind_to(FN0, "");
	in_function(fork_body);
	expect_empty("used after its end", FN0);
}

/* A child in another cgroup: what it writes is its own, what it only reads keeps A in use. */
static void fork_other_body(int advice)
{
	char *mem = map_memory(SIZE);
	uint64_t *frames;
	pid_t child;

	madvise(mem, SIZE, advice);
	fill_halves(mem, 1, 2);
	expect_in("the parent's memory", mem, SIZE, IN_A);
	frames = frames_of(mem, SIZE);
	child = fork();
	if (child < 0)
		die("fork");
	if (child) {
		adopt(child);
		await(1);
		expect_unmoved("the parent's memory", mem, SIZE, frames);
		expect_holds("the parent's first half", mem, HALF, 1);
		expect_holds("the parent's second half", mem + HALF, HALF, 2);
		return;
	}
	must_join(FN1);
	fill(mem, HALF, 3);
	expect_in("what the child wrote", mem, HALF, IN_B);
	expect_unmoved("what the child did not write", mem + HALF, HALF, frames + HALF / PAGE);
	reach(1);
	await(2);
	expect_holds("what the child wrote", mem, HALF, 3);
	expect_holds("what the child did not write", mem + HALF, HALF, 2);
	expect_unmoved("what the child did not write", mem + HALF, HALF, frames + HALF / PAGE);
	end_function();
}

static void fork_other_small_body(void)
{
	fork_other_body(MADV_NOHUGEPAGE);
}

static void fork_other_huge_body(void)
{
	fork_other_body(MADV_HUGEPAGE);
}

static void fork_other_with(void (*body)(void))
{
	bind_to(FN0, "");
	bind_to(FN1, "");
	finish(start(FN0, body), 0);
	unbind(FN0);
	usleep(100000);
	expect_at_least("in use of A by the other function", draining(FN0), HALF);
	expect_at_most("in use of A by the other function", draining(FN0), HALF + SLACK);
	reach(2);
	finish(shared->pids[0], 0);
	shared->pids[0] = 0;
	expect_gone("A after both have ended", FN0);
	expect_empty("used of B after both have ended", FN1);
}

static void fork_other(void)
{
	fork_other_with(fork_other_small_body);
}

static void fork_other_huge(void)
{
	fork_other_with(fork_other_huge_body);
}

/* A child in no partition: what it writes is outside. */
static void fork_outside_body(void)
{
	char *mem = map_memory(SIZE);
	int status = 0;
	pid_t child;

	fill_halves(mem, 1, 2);
	child = fork();
	if (!child) {
		must_join(OUT);
		fill(mem, HALF, 3);
		expect_in("what the child wrote", mem, HALF, OUTSIDE);
		expect_holds("what the child did not write", mem + HALF, HALF, 2);
		end_function();
	}
	if (child < 0 || waitpid(child, &status, 0) != child)
		die("fork");
	expect_equal("status of the child", status, 0);
	expect_in("the parent's memory", mem, SIZE, IN_A);
	expect_holds("the parent's memory", mem, HALF, 1);
}

static void fork_outside(void)
{
	bind_to(FN0, "");
	in_function(fork_outside_body);
	expect_empty("used after its end", FN0);
}

/* exec: the stack with the arguments, data, and what comes after are the function's. */

#define EXEC_ARGUMENTS 200
#define EXEC_LENGTH 500

static void exec_body(void)
{
	static char text[EXEC_ARGUMENTS][EXEC_LENGTH];
	static char *argv[EXEC_ARGUMENTS + 8];
	char **own = context();
	int count = 0;

	argv[count++] = own[0];
	argv[count++] = "after-exec";
	for (int i = 2; own[i]; i++)
		argv[count++] = own[i];
	argv[count++] = "--";
	for (int i = 0; i < EXEC_ARGUMENTS; i++) {
		memset(text[i], 'a' + i % 26, EXEC_LENGTH - 1);
		argv[count++] = text[i];
	}
	execv("/proc/self/exe", argv);
	die("execv");
}

static int data_page[PAGE] __attribute__((aligned(PAGE))) = { 1 };

int after_exec(int argc, char **argv)
{
	char *last = argv[argc - 1] + EXEC_LENGTH - 1, *first;
	char *heap = malloc(64 * KIB);
	int at = 2;

	while (at < argc && strcmp(argv[at], "--"))
		at++;
	first = argv[++at];
	expect_equal("arguments", argc - at, EXEC_ARGUMENTS);
	for (int i = at; i < argc; i++)
		for (int c = 0; c < EXEC_LENGTH - 1; c++)
			if (argv[i][c] != 'a' + (i - at) % 26) {
				expect(0, "argument %d: expected %c, found %c", i - at,
				       'a' + (i - at) % 26, argv[i][c]);
				break;
			}
	first = (char *)((uintptr_t)first & ~(PAGE - 1));
	last = (char *)(((uintptr_t)last + PAGE - 1) & ~(PAGE - 1));
	expect_in("the arguments", first, last - first, IN_A);
	expect_in("the stack", (void *)((uintptr_t)&at & ~(PAGE - 1)), PAGE, IN_A);
	data_page[0]++;
	expect_in("data that was written", data_page, PAGE, IN_A);
	if (!heap)
		die("malloc");
	memset(heap, 1, 64 * KIB);
	heap = (char *)(((uintptr_t)heap + PAGE - 1) & ~(PAGE - 1));
	expect_in("the heap", heap, 60 * KIB, IN_A);
	return failures() != 0;
}

static void exec(void)
{
	bind_to(FN0, "");
	in_function(exec_body);
	expect_empty("used after its end", FN0);
}

/* Threads that fault at the same time. */

#define THREADS 4
#define ROUNDS 6

static void *thread(void *number)
{
	size_t size = 3 * MIB;

	for (int round = 0; round < ROUNDS; round++) {
		uint64_t seed = (uintptr_t)number * ROUNDS + round;
		char *mem = map_memory(size);

		touch(mem, size);
		expect_zero("a thread's memory that is new", mem, size);
		fill(mem, size, seed);
		sched_yield();
		expect_holds("a thread's memory", mem, size, seed);
		expect_in("a thread's memory", mem, size, IN_A);
		munmap(mem, size);
	}
	return NULL;
}

static void threads_body(void)
{
	pthread_t threads[THREADS];

	for (uintptr_t i = 0; i < THREADS; i++)
		if (pthread_create(&threads[i], NULL, thread, (void *)i))
			die("pthread_create");
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	expect_used_at_most("used after munmap", FN0, SLACK);
}

static void threads(void)
{
	bind_to(FN0, "");
	in_function(threads_body);
	expect_empty("used after its end", FN0);
}

/*
 * Two processes with one memory, in two cgroups: what is new is the owner's, who is charged for it,
 * and the owner is who began it, for as long as it lives.
 */
static char *common[2];

static int other_process(void *unused)
{
	pid_t parent = getppid();

	(void)unused;
	must_join(FN1);
	fill(common[0], SIZE, 1);
	expect_in("memory of the owner", common[0], SIZE, IN_A);
	reach(1);
	while (getppid() == parent)
		usleep(1000);
	await(2);
	fill(common[1], SIZE, 2);
	expect_in("memory of the next owner", common[1], SIZE, IN_B);
	expect_holds("memory of the first owner", common[0], SIZE, 1);
	expect_in("memory of the first owner", common[0], SIZE, IN_A);
	_exit(failures() != 0);
}

static void one_memory_body(void)
{
	char *stack = map_memory(HUGE_PAGE);
	pid_t child;

	common[0] = map_memory(SIZE);
	common[1] = map_memory(SIZE);
	child = clone(other_process, stack + HUGE_PAGE, CLONE_VM | SIGCHLD, NULL);
	if (child < 0)
		die("clone");
	adopt(child);
	await(1);
	expect_holds("what the other wrote", common[0], SIZE, 1);
	end_function();
}

static void one_memory(void)
{
	bind_to(FN0, "");
	bind_to(FN1, "");
	finish(start(FN0, one_memory_body), 0);
	reach(2);
	finish(shared->pids[0], 0);
	shared->pids[0] = 0;
	expect_empty("used of A after both have ended", FN0);
	expect_empty("used of B after both have ended", FN1);
}

/* Others that reach into a function's memory: what they make be there is the function's. */
static void remote_body(void)
{
	char *mem = map_memory(SIZE);
	uint64_t *frames;

	madvise(mem, SIZE, MADV_NOHUGEPAGE);
	fill(mem, HALF, 1);
	frames = frames_of(mem, HALF);
	shared->address = (uintptr_t)mem;
	reach(1);
	await(2);
	expect_holds("what was written from outside", mem, HALF, 2);
	expect_unmoved("what was written from outside", mem, HALF, frames);
	expect_holds("what came to be by a write from outside", mem + HALF, HALF, 3);
	expect_in("what came to be by a write from outside", mem + HALF, HALF, IN_A);
}

static void remote(void)
{
	char *copy = map_memory(HALF), path[64];
	struct iovec here = { copy, HALF }, there;
	pid_t pid;
	int fd;

	bind_to(FN0, "");
	pid = start(FN0, remote_body);
	await(1);
	there = (struct iovec){ (void *)shared->address, HALF };
	expect_equal("bytes read from outside", process_vm_readv(pid, &here, 1, &there, 1, 0),
		     HALF);
	expect_holds("what was read from outside", copy, HALF, 1);
	expect_in("the copy", copy, HALF, OUTSIDE);
	fill(copy, HALF, 2);
	expect_equal("bytes written from outside", process_vm_writev(pid, &here, 1, &there, 1, 0),
		     HALF);
	fill(copy, HALF, 3);
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDWR | O_CLOEXEC);
	expect_equal("bytes written to its file mem",
		     pwrite(fd, copy, HALF, shared->address + HALF), HALF);
	close(fd);
	reach(2);
	finish(pid, 0);
	expect_empty("used after its end", FN0);
}

const struct behaviour share_cases[] = {
	{ "use", use },
	{ "fork", fork_same },
	{ "fork-other", fork_other },
	{ "fork-other-huge", fork_other_huge },
	{ "fork-outside", fork_outside },
	{ "exec", exec },
	{ "threads", threads },
	{ "one-memory", one_memory },
	{ "remote", remote },
	{ NULL, NULL },
};
