// SPDX-License-Identifier: Apache-2.0
/*
 * hog COUNT MIB [option...]: COUNT processes that hold MIB MiB of anonymous memory each.
 *
 * They touch their memory in turns of one chunk, so that the pages of all of them interleave in
 * physical memory, as those of instances that start together do. Each writes "hog INDEX PID" to
 * the output, and the parent "hogs ready" once all is touched. A hog that gets SIGUSR1 checks
 * what it wrote, and says "hog INDEX intact" or "hog INDEX corrupt". They end with their parent.
 *
 *   chunk=KIB    what one touches at a turn (2048, a huge page)
 *   thp=0        no huge pages
 *   cgroup=BASE  hog N moves itself to the cgroup BASEN first
 */
#include "function.h"

#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/prctl.h>

struct plan {
	int count;
	size_t bytes;
	size_t chunk;
	int thp;
	const char *cgroup;
};

/* The most hogs there can be. */
#define MOST 64

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

/* What page NUMBER of hog INDEX holds: no two pages of any hogs hold the same. */
static uint64_t mark(int index, size_t number)
{
	return ((uint64_t)(index + 1) << 40) + number;
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
	for (size_t at = 0; at < plan->bytes; at += plan->chunk) {
		size_t end = at + plan->chunk;

		while (sem_wait(&progress->turn[index]))
			;
		touch(memory, at, end < plan->bytes ? end : plan->bytes, index);
		sem_post(&progress->turn[(index + 1) % plan->count]);
	}
	atomic_fetch_add(&progress->done, 1);
	while (sigwait(&check, &signal) == 0) {
		dprintf(1, "hog %d %s\n", index,
			intact(memory, plan->bytes, index) ? "intact" : "corrupt");
	}
	_exit(1);
}

static struct plan parse(int argc, char **argv)
{
	struct plan plan = { .chunk = HUGE_PAGE, .thp = 1 };

	if (argc < 3) {
		dprintf(2, "usage: hog COUNT MIB [chunk=KIB] [thp=0] [cgroup=BASE]\n");
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
	struct progress *progress = mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE,
					 MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	if (progress == MAP_FAILED)
		die("mmap");
	for (int i = 0; i < plan.count; i++)
		sem_init(&progress->turn[i], 1, i == 0);
	/* One that was killed leaves nothing behind. */
	signal(SIGCHLD, SIG_IGN);
	for (int i = 0; i < plan.count; i++) {
		pid_t pid = fork();

		if (pid < 0)
			die("fork");
		if (!pid)
			hog(&plan, progress, i);
		dprintf(1, "hog %d %d\n", i, pid);
	}
	while (atomic_load(&progress->done) < plan.count)
		usleep(10000);
	dprintf(1, "hogs ready\n");
	for (;;)
		pause();
}
