// SPDX-License-Identifier: Apache-2.0
/*
 * behave CASE A=EXTENTS [B=EXTENTS]: one behaviour of what a function does in a memory partition.
 *
 * EXTENTS is where the partition is: ADDRESS+SIZE[,ADDRESS+SIZE...]. The partitions are plugged and
 * free; that of FN0 has the cookie 1, that of FN1 2. Each case says in its own words what it
 * expects, prints "FAIL ..." with what it found instead, and leaves both partitions unbound.
 *
 * In the end it prints "migrated N": how many pages had been moved when it was about to unbind.
 */
#include "behave.h"

#include <glob.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#define EXTENTS 16
#define PATIENCE_MS 30000

struct extent {
	uint64_t first;
	uint64_t count;
};

static struct extent extents[2][EXTENTS];
static const char *const cgroups[] = { FN0, FN1 };
static long ids[2] = { -1, -1 };
static const char *name = "";
static char **arguments;
static int failed;
static long migrated = -1;
struct shared *shared;

void expect(int holds, const char *format, ...)
{
	char text[512];
	va_list list;

	if (holds)
		return;
	va_start(list, format);
	vsnprintf(text, sizeof(text), format, list);
	va_end(list);
	dprintf(1, "FAIL %s: %s\n", name, text);
	failed++;
}

void expect_equal(const char *what, long found, long expected)
{
	expect(found == expected, "%s: expected %ld, found %ld", what, expected, found);
}

void expect_at_least(const char *what, long found, long least)
{
	expect(found >= least, "%s: expected at least %ld, found %ld", what, least, found);
}

void expect_at_most(const char *what, long found, long most)
{
	expect(found <= most, "%s: expected at most %ld, found %ld", what, most, found);
}

void expect_holds(const char *what, const void *memory, size_t size, uint64_t seed)
{
	size_t at = first_difference(memory, size, seed);

	expect(at == size / 8, "%s: expected %#lx at %#zx, found %#lx", what,
	       (unsigned long)word(seed, at), at * 8,
	       at < size / 8 ? (unsigned long)((const uint64_t *)memory)[at] : 0);
}

void expect_zero(const char *what, const void *memory, size_t size)
{
	size_t at = first_nonzero(memory, size);

	expect(at == size / 8, "%s: expected 0 at %#zx, found %#lx", what, at * 8,
	       at < size / 8 ? (unsigned long)((const uint64_t *)memory)[at] : 0);
}

/* Pages */

enum place place_of_frame(uint64_t frame)
{
	for (int p = 0; p < 2; p++)
		for (int i = 0; i < EXTENTS; i++)
			if (frame - extents[p][i].first < extents[p][i].count)
				return p ? IN_B : IN_A;
	return OUTSIDE;
}

void each_extent_of_a(void (*call)(uint64_t first, uint64_t count))
{
	for (int i = 0; i < EXTENTS && extents[0][i].count; i++)
		call(extents[0][i].first, extents[0][i].count);
}

uint64_t *words_of(const char *file, uint64_t first, uint64_t count)
{
	uint64_t *words = malloc(count * sizeof(*words));
	int fd = open(file, O_RDONLY | O_CLOEXEC);

	if (!words || fd < 0 || pread(fd, words, count * 8, first * 8) != (ssize_t)count * 8)
		die(file);
	close(fd);
	return words;
}

/* Frames of our own address space. */
static uint64_t *page_map(const void *memory, size_t size)
{
	return words_of("/proc/self/pagemap", (uintptr_t)memory / PAGE, size / PAGE);
}

#define PRESENT (1ULL << 63)
#define IN_SWAP (1ULL << 62)
#define FRAME ((1ULL << 55) - 1)

static enum place place_of(uint64_t entry)
{
	if (entry & PRESENT)
		return place_of_frame(entry & FRAME);
	return entry & IN_SWAP ? SWAPPED : NOWHERE;
}

uint64_t *frames_of(const void *memory, size_t size)
{
	uint64_t *entries = page_map(memory, size);

	for (size_t i = 0; i < size / PAGE; i++)
		entries[i] = entries[i] & PRESENT ? entries[i] & FRAME : 0;
	return entries;
}

size_t pages_in(const void *memory, size_t size, enum place place)
{
	uint64_t *entries = page_map(memory, size);
	size_t count = 0;

	for (size_t i = 0; i < size / PAGE; i++)
		count += place_of(entries[i]) == place;
	free(entries);
	return count;
}

void expect_in(const char *what, const void *memory, size_t size, enum place place)
{
	static const char *const names[] = { "nowhere", "in swap", "outside", "in A", "in B" };
	uint64_t *entries = page_map(memory, size);
	long counts[PLACES] = { 0 };
	char text[256] = "";

	for (size_t i = 0; i < size / PAGE; i++)
		counts[place_of(entries[i])]++;
	for (int p = 0; p < PLACES; p++)
		if (counts[p])
			snprintf(text + strlen(text), sizeof(text) - strlen(text), " %ld %s",
				 counts[p], names[p]);
	expect(counts[place] == (long)(size / PAGE), "%s: expected all of %zu pages %s, found%s",
	       what, size / PAGE, names[place], text);
	free(entries);
}

size_t moved_since(const void *memory, size_t size, const uint64_t *frames)
{
	uint64_t *now = frames_of(memory, size);
	size_t moved = 0;

	for (size_t i = 0; i < size / PAGE; i++)
		moved += now[i] != frames[i];
	free(now);
	return moved;
}

void expect_unmoved(const char *what, const void *memory, size_t size, const uint64_t *frames)
{
	size_t moved = moved_since(memory, size, frames);

	expect(!moved, "%s: expected no page moved, found %zu of %zu elsewhere", what, moved,
	       size / PAGE);
}

/*
 * Makes pages of zeroes be there. It must not read first: what is read before it was ever written
 * is the kernel's one page of zeroes.
 */
void touch(void *memory, size_t size)
{
	for (size_t at = 0; at < size; at += PAGE)
		*((volatile char *)memory + at) = 0;
}

long mapping_value(const void *at, const char *key)
{
	FILE *file = fopen("/proc/self/smaps", "re");
	unsigned long from, to, kib;
	char line[512], found[64];
	int inside = 0;
	long value = -1;

	if (!file)
		die("smaps");
	while (value < 0 && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			inside = (uintptr_t)at >= from && (uintptr_t)at < to;
		else if (inside && sscanf(line, "%63[^:]: %lu kB", found, &kib) == 2 &&
			 !strcmp(found, key))
			value = kib * KIB;
	}
	fclose(file);
	return value;
}

/* Functions */

pid_t start(const char *cgroup, void (*body)(void))
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid)
		return pid;
	failed = 0;
	if (join(cgroup))
		die("cgroup.procs");
	body();
	end_function();
}

void end_function(void)
{
	_exit(failed != 0);
}

void finish(pid_t pid, int signal)
{
	int status = 0;

	if (waitpid(pid, &status, 0) != pid)
		die("waitpid");
	if (signal)
		expect(WIFSIGNALED(status) && WTERMSIG(status) == signal,
		       "the function: expected its end by signal %d, found status %#x", signal, status);
	else
		expect(status == 0, "the function: expected its end without a failure, found status %#x",
		       status);
}

void in_function(void (*body)(void))
{
	finish(start(FN0, body), 0);
}

void adopt(pid_t pid)
{
	for (int i = 0; i < 8; i++)
		if (!shared->pids[i]) {
			shared->pids[i] = pid;
			return;
		}
}

void reach(int step)
{
	shared->step = step;
}

void await(int step)
{
	for (int ms = 0; ms < PATIENCE_MS; ms++) {
		if (shared->step >= step)
			return;
		usleep(1000);
	}
	expect(0, "step %d: not reached, found step %d", step, shared->step);
	end_function();
}

/* Partitions */

static int number_of_cgroup(const char *cgroup)
{
	return strcmp(cgroup, FN0) != 0;
}

long partition_value(const char *cgroup, const char *key)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/memory.partition", cgroup);
	return number_of(path, key);
}

long event_count(const char *cgroup, const char *key)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/memory.partition.events", cgroup);
	return number_of(path, key);
}

long used(const char *cgroup)
{
	return partition_value(cgroup, "used");
}

void bind_to(const char *cgroup, const char *options)
{
	char path[256], text[128];
	int rc;

	snprintf(path, sizeof(path), "%s/memory.partition", cgroup);
	snprintf(text, sizeof(text), "auto %s", options);
	rc = put(path, text, O_NONBLOCK);
	if (rc)
		expect(0, "binding %s: expected a free partition, found error %d", cgroup, -rc);
	else
		expect_equal("cookie of the partition", partition_value(cgroup, "cookie"),
			     number_of_cgroup(cgroup) + 1);
	ids[number_of_cgroup(cgroup)] = partition_value(cgroup, "id");
}

void unbind(const char *cgroup)
{
	char path[256];

	if (migrated < 0)
		migrated = number_of("/proc/vmstat", "pgmigrate_success");
	snprintf(path, sizeof(path), "%s/memory.partition", cgroup);
	set(path, "none");
	expect_equal("a partition after \"none\"", partition_value(cgroup, "id"), -1);
}

void expect_used_at_most(const char *what, const char *cgroup, long most)
{
	long found = -1;

	for (int ms = 0; ms < PATIENCE_MS / 3; ms += 10) {
		found = used(cgroup);
		if (found >= 0 && found <= most)
			return;
		usleep(10000);
	}
	/* -1: it is not bound. */
	expect(0, "%s: expected at most %ld, found %ld", what, most, found);
}

void expect_empty(const char *what, const char *cgroup)
{
	long most = 0;

	/* This flushes the batches, but moves pages too, which must not count for the release. */
	if (migrated < 0)
		set("/proc/sys/vm/compact_memory", "1");
	else
		most = SLACK;
	expect_used_at_most(what, cgroup, most);
}

long draining(const char *cgroup)
{
	char pattern[128], text[64];
	long found = -1;
	glob_t matches;

	snprintf(pattern, sizeof(pattern), PARTITIONS "%ld/used", ids[number_of_cgroup(cgroup)]);
	if (glob(pattern, 0, NULL, &matches))
		return -1;
	/* It may go while we look. */
	if (!get(matches.gl_pathv[0], text, sizeof(text)) && text[0])
		found = strtol(text, NULL, 0);
	globfree(&matches);
	return found;
}

void expect_draining(const char *what, const char *cgroup, long bytes)
{
	long found = -1;

	for (int ms = 0; ms < PATIENCE_MS / 3; ms += 10) {
		found = draining(cgroup);
		if (found == bytes)
			return;
		usleep(10000);
	}
	/* -1: there is no such partition any more. */
	expect(0, "%s: expected %ld bytes in use, found %ld", what, bytes, found);
}

void expect_gone(const char *what, const char *cgroup)
{
	expect_draining(what, cgroup, -1);
}

void set(const char *path, const char *text)
{
	int rc = put(path, text, 0);

	expect(!rc, "writing \"%s\" to %s: found error %d", text, path, -rc);
}

char **context(void)
{
	return arguments;
}

int failures(void)
{
	return failed;
}

/* Start and end */

static void parse_extents(struct extent *into, const char *text)
{
	for (int i = 0; i < EXTENTS && *text; i++) {
		char *end;

		into[i].first = strtoull(text, &end, 0) / PAGE;
		if (*end++ != '+')
			break;
		into[i].count = strtoull(end, &end, 0) / PAGE;
		text = end + (*end == ',');
	}
}

static void prepare(void)
{
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	if (shared == MAP_FAILED)
		die("mmap");
	/* So that what a function leaves behind is ours to wait for. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	for (int i = 0; i < 2; i++) {
		rmdir(cgroups[i]);
		if (mkdir(cgroups[i], 0755))
			die(cgroups[i]);
	}
	mkdir(OUT, 0755);
}

static void end(void)
{
	for (int i = 0; i < 8 && shared->pids[i]; i++)
		finish(shared->pids[i], 0);
	/* One that was not needed goes in the same way. */
	if (ids[1] < 0)
		bind_to(FN1, "");
	if (migrated < 0)
		migrated = number_of("/proc/vmstat", "pgmigrate_success");
	for (int i = 0; i < 2; i++)
		if (partition_value(cgroups[i], "id") >= 0)
			unbind(cgroups[i]);
	dprintf(1, "migrated %ld\n", migrated);
}

static const struct behaviour *find(const char *wanted)
{
	static const struct behaviour *const tables[] = { share_cases, huge_cases, advice_cases,
							  pin_cases, scan_cases, limit_cases,
							  group_cases, shortage_cases,
							  bad_cases, send_cases };

	for (size_t i = 0; i < sizeof(tables) / sizeof(*tables); i++)
		for (const struct behaviour *one = tables[i]; one->name; one++)
			if (!strcmp(one->name, wanted))
				return one;
	return NULL;
}

/* The second half of the case "exec": what it runs. */
int after_exec(int argc, char **argv);

int main(int argc, char **argv)
{
	const struct behaviour *behaviour = argc > 1 ? find(argv[1]) : NULL;

	arguments = argv;
	if (argc > 1)
		name = argv[1];
	for (int i = 2; i < argc; i++)
		if (argv[i][1] == '=' && (argv[i][0] == 'A' || argv[i][0] == 'B'))
			parse_extents(extents[argv[i][0] - 'A'], argv[i] + 2);
	if (argc > 1 && !strcmp(argv[1], "after-exec"))
		return after_exec(argc, argv);
	if (!behaviour || !extents[0][0].count) {
		dprintf(1, "FAIL usage: behave CASE A=ADDRESS+SIZE[,...] [B=...]\n");
		return 2;
	}
	prepare();
	behaviour->run();
	end();
	return failed != 0;
}
