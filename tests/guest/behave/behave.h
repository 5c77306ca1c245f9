/* SPDX-License-Identifier: Apache-2.0 */
/* What the cases of behave have in common. */
#ifndef BEHAVE_H
#define BEHAVE_H

#include "../function.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/types.h>
#include <sys/wait.h>

/* The cgroups of two functions, bound to partitions A and B, and of one that is in none. */
#define FN0 "/cg/fn0"
#define FN1 "/cg/fn1"
#define OUT "/cg/out"

/*
 * What a function uses beside the memory that a case is about: its stack, its data, and pages that
 * CPUs hold in batches.
 */
#define SLACK (3 * MIB)

/* What the driver says of its partitions; a pattern. */
#define PARTITIONS "/sys/bus/virtio/drivers/virtio_mem/virtio*/partitions/"

/* Where a page is. */
enum place { NOWHERE, SWAPPED, OUTSIDE, IN_A, IN_B, PLACES };

/* The words of all pages' flags, and bits of them. */
#define PAGE_FLAGS "/proc/kpageflags"
#define KPF_ANON 12
#define KPF_HWPOISON 19
#define KPF_OFFLINE 23

/* What the processes of a case share, outside of all partitions. */
struct shared {
	atomic_int step;
	_Atomic pid_t pids[8];
	_Atomic uintptr_t address;
	atomic_long value;
};

extern struct shared *shared;

struct behaviour {
	const char *name;
	void (*run)(void);
};

/* The tables of the files; each ends with an entry without a name. */
extern const struct behaviour share_cases[], huge_cases[], advice_cases[], pin_cases[],
	scan_cases[], limit_cases[], group_cases[], shortage_cases[], bad_cases[], send_cases[];

/* What a case expects, and what it says when it finds something else. The cases go on. */
void expect(int holds, const char *format, ...) __attribute__((format(printf, 2, 3)));
void expect_equal(const char *what, long found, long expected);
void expect_at_least(const char *what, long found, long least);
void expect_at_most(const char *what, long found, long most);
void expect_holds(const char *what, const void *memory, size_t size, uint64_t seed);
void expect_zero(const char *what, const void *memory, size_t size);
/* All pages are there. */
void expect_in(const char *what, const void *memory, size_t size, enum place place);
/* All pages are where they were. */
void expect_unmoved(const char *what, const void *memory, size_t size, const uint64_t *frames);

/* Functions: processes that join CGROUP and run BODY. finish() expects how it ended. */
pid_t start(const char *cgroup, void (*body)(void));
void finish(pid_t pid, int signal);
void in_function(void (*body)(void));
void end_function(void) __attribute__((noreturn));
void adopt(pid_t pid);

/* Steps of a case, in turns of its processes. */
void reach(int step);
void await(int step);

/* Partitions. bind() takes a free one, and expects that it is the cgroup's own. */
void bind_to(const char *cgroup, const char *options);
void unbind(const char *cgroup);
long partition_value(const char *cgroup, const char *key);
long event_count(const char *cgroup, const char *key);
long used(const char *cgroup);
void expect_used_at_most(const char *what, const char *cgroup, long most);
/* Nothing of it is in use any more, nor held in batches, while it is bound. */
void expect_empty(const char *what, const char *cgroup);
/* What is in use of a partition that was unbound; -1 when it is gone. */
long draining(const char *cgroup);
/* It comes to so many bytes, or to its end. */
void expect_draining(const char *what, const char *cgroup, long bytes);
void expect_gone(const char *what, const char *cgroup);

/* Pages. */
void touch(void *memory, size_t size);
uint64_t *frames_of(const void *memory, size_t size);
/* How many pages are in other frames now. */
size_t moved_since(const void *memory, size_t size, const uint64_t *frames);
size_t pages_in(const void *memory, size_t size, enum place place);
/* COUNT words of a file of the kernel's that has one for each page or frame. */
uint64_t *words_of(const char *file, uint64_t first, uint64_t count);
enum place place_of_frame(uint64_t frame);
/* The frames of partition A: calls with each of its extents. */
void each_extent_of_a(void (*call)(uint64_t first, uint64_t count));
/* A value of the mapping that holds AT, in bytes. */
long mapping_value(const void *at, const char *key);

/* Writes to a file of the kernel's that must be there. */
void set(const char *path, const char *text);
char **context(void);
int failures(void);

#endif
