// SPDX-License-Identifier: Apache-2.0
/*
 * hog COUNT MIB [option...]: COUNT processes that hold MIB MiB of anonymous memory each.
 *
 * They touch their memory in turns of one chunk, so that the pages of all of them interleave in
 * physical memory, as those of instances that start together do. Each writes "hog INDEX PID" to
 * the output, and the parent "hogs ready" once all is touched. A hog that gets SIGUSR1 checks
 * what it wrote, and says "hog INDEX intact" or "hog INDEX corrupt". When one has ended and its
 * memory is free, the parent says "hog INDEX gone". They end with their parent, and it with them.
 *
 *   chunk=KIB    what one touches at a turn (2048, a huge page)
 *   thp=0        no huge pages
 *   thp=1        huge pages, which it asks for; it fails if there are none
 *   cgroup=BASE  hog N moves itself to the cgroup BASEN first
 */
#include "function.h"

#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/wait.h>

struct plan {
	int count;
	size_t bytes;
	size_t chunk;
	int thp;
	const char *cgroup;
};

/* The most hogs there can be. */
#define MOST 64

/* Huge pages where the kernel likes them. */
#define AS_USUAL -1

/* Shared by all: what each waits for when it is another's turn, and who has touched everything. */
struct progress {
	sem_t turn[MOST];
	atomic_int done;
};

static void join_cgroup(const char *base, int index)
{
	char cgroup[200];

	snprintf(cgroup, sizeof(cgroup), "%s%d", base, index);
	must_join(cgroup);
}

static void touch(char *memory, size_t from, size_t to, int index)
{
	for (size_t at = from; at < to; at += PAGE)
		*(uint64_t *)(memory + at) = mark(index, at / PAGE);
}

static int intact(const char *memory, size_t bytes, int index)
{
	for (size_t at = 0; at < bytes; at += PAGE)
		if (*(const uint64_t *)(memory + at) != mark(index, at / PAGE))
			return 0;
	return 1;
}

static void hog(const struct plan *plan, struct progress *progress, int index)
{
	sigset_t check;
	char *memory;
	int signal;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (plan->cgroup)
		join_cgroup(plan->cgroup, index);
	if (!plan->thp)
		prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
	sigemptyset(&check);
	sigaddset(&check, SIGUSR1);
	sigprocmask(SIG_BLOCK, &check, NULL);
	memory = map_memory(plan->bytes);
	/* Without the wish, Linux has none for who may not use the node of his CPU. */
	if (plan->thp == 1 && madvise(memory, plan->bytes, MADV_HUGEPAGE))
		die("MADV_HUGEPAGE");
	for (size_t at = 0; at < plan->bytes; at += plan->chunk) {
		size_t end = at + plan->chunk;

		while (sem_wait(&progress->turn[index]))
			;
		touch(memory, at, end < plan->bytes ? end : plan->bytes, index);
		sem_post(&progress->turn[(index + 1) % plan->count]);
	}
	if (plan->thp != AS_USUAL)
		must_have_pages(plan->thp, plan->bytes);
	atomic_fetch_add(&progress->done, 1);
	while (sigwait(&check, &signal) == 0) {
		dprintf(1, "hog %d %s\n", index,
			intact(memory, plan->bytes, index) ? "intact" : "corrupt");
	}
	_exit(1);
}

static struct plan parse(int argc, char **argv)
{
	struct plan plan = { .chunk = HUGE_PAGE, .thp = AS_USUAL };

	if (argc < 3) {
		dprintf(2, "usage: hog COUNT MIB [chunk=KIB] [thp=0|1] [cgroup=BASE]\n");
		exit(2);
	}
	plan.count = atoi(argv[1]);
	plan.bytes = (size_t)atol(argv[2]) << 20;
	for (int i = 3; i < argc; i++) {
		if (!strncmp(argv[i], "chunk=", 6))
			plan.chunk = (size_t)atol(argv[i] + 6) << 10;
		else if (!strncmp(argv[i], "thp=", 4))
			plan.thp = atoi(argv[i] + 4);
		else if (!strncmp(argv[i], "cgroup=", 7))
			plan.cgroup = argv[i] + 7;
		else {
			dprintf(2, "hog: unknown option %s\n", argv[i]);
			exit(2);
		}
	}
	if (plan.count < 1 || plan.count > MOST || !plan.bytes || !plan.chunk) {
		dprintf(2, "hog: COUNT (at most %d), MIB and chunk are positive numbers\n", MOST);
		exit(2);
	}
	return plan;
}

int main(int argc, char **argv)
{
	struct plan plan = parse(argc, argv);
	pid_t pid, pids[MOST];
	struct progress *progress = mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE,
					 MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (progress == MAP_FAILED)
		die("mmap");
	for (int i = 0; i < plan.count; i++)
		sem_init(&progress->turn[i], 1, i == 0);
	for (int i = 0; i < plan.count; i++) {
		pids[i] = fork();
		if (pids[i] < 0)
			die("fork");
		if (!pids[i])
			hog(&plan, progress, i);
		dprintf(1, "hog %d %d\n", i, pids[i]);
	}
	while (atomic_load(&progress->done) < plan.count) {
		/* One that fails ends all: nobody waits for its turn. */
		if (waitpid(-1, NULL, WNOHANG) > 0)
			return 1;
		usleep(10000);
	}
	dprintf(1, "hogs ready\n");
	while ((pid = wait(NULL)) > 0)
		for (int i = 0; i < plan.count; i++)
			if (pids[i] == pid)
				dprintf(1, "hog %d gone\n", i);
	return 0;
}
