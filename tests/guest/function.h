/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What programs that play functions have in common: files of the kernel's, cgroups,
 * and memory whose content tells where it belongs.
 */
#ifndef FUNCTION_H
#define FUNCTION_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Newer than the library's headers. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

#define KIB (1UL << 10)
#define MIB (1UL << 20)
#define PAGE (4 * KIB)
#define HUGE_PAGE (2 * MIB)

static inline void die(const char *what)
{
	dprintf(1, "FAIL %s: %s\n", what, strerror(errno));
	_exit(1);
}

/* Writes TEXT to a file of the kernel's; returns 0 or a negative error. */
static inline int put(const char *path, const char *text, int flags)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC | flags);
	int rc;

	if (fd < 0)
		return -errno;
	rc = write(fd, text, strlen(text)) < 0 ? -errno : 0;
	close(fd);
	return rc;
}

/* Reads a file into TEXT, as a string; returns 0 or a negative error. */
static inline int get(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len;

	text[0] = 0;
	if (fd < 0)
		return -errno;
	len = read(fd, text, size - 1);
	close(fd);
	if (len < 0)
		return -errno;
	text[len] = 0;
	return 0;
}

/* The number behind KEY at the start of a line; -1 if there is none. */
static inline long number_of(const char *path, const char *key)
{
	char text[16384];
	size_t len = strlen(key);

	if (get(path, text, sizeof(text)))
		return -1;
	for (char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, key, len) && (line[len] == ' ' || line[len] == ':'))
			return strtol(line + len + 1, NULL, 0);
	}
	return -1;
}

/* The calling process joins a cgroup. */
static inline int join(const char *cgroup)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	return put(path, "0", 0);
}

/* The same, for who can't go on without. */
static inline void must_join(const char *cgroup)
{
	int rc = join(cgroup);

	if (rc) {
		errno = -rc;
		die(cgroup);
	}
}

/* Private memory that begins where a huge page can. */
static inline char *map_memory(size_t size)
{
	char *at = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *start = (char *)(((uintptr_t)at + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1));

	if (at == MAP_FAILED)
		die("mmap");
	if (start > at)
		munmap(at, start - at);
	munmap(start + size, at + HUGE_PAGE - start);
	return start;
}

/*
 * Ends the program unless nearly all of SIZE bytes that it has touched are huge pages, or hardly
 * any (a stack may be one): what it shows would not be what its user takes it for.
 */
static inline void must_have_pages(int huge, size_t size)
{
	long found = number_of("/proc/self/smaps_rollup", "AnonHugePages") * (long)KIB;

	if (huge ? found < (long)(size / 8 * 7) : found > (long)(size / 4)) {
		dprintf(1, "FAIL %ld of %zu bytes are huge pages\n", found, size);
		_exit(1);
	}
}

/* What page NUMBER of hog INDEX begins with: no two pages of any hogs begin alike. */
static inline uint64_t mark(int index, size_t number)
{
	return ((uint64_t)(index + 1) << 40) + number;
}

/* What word INDEX of memory that was filled with SEED holds. */
static inline uint64_t word(uint64_t seed, size_t index)
{
	return (seed + 1) * 0x9e3779b97f4a7c15 + index;
}

static inline void fill(void *memory, size_t size, uint64_t seed)
{
	uint64_t *words = memory;

	for (size_t i = 0; i < size / sizeof(*words); i++)
		words[i] = word(seed, i);
}

/* The first word that is not what fill() wrote; the number of words if there is none. */
static inline size_t first_difference(const void *memory, size_t size, uint64_t seed)
{
	const uint64_t *words = memory;
	size_t i;

	for (i = 0; i < size / sizeof(*words); i++)
		if (words[i] != word(seed, i))
			break;
	return i;
}

/* Opens /proc/kcore, and finds where it has FRAME; *AT stays 0 where it has none. */
static inline int open_kcore(uint64_t frame, off_t *at)
{
	int fd = open("/proc/kcore", O_RDONLY | O_CLOEXEC);
	Elf64_Ehdr header;
	Elf64_Phdr part;

	*at = 0;
	if (fd < 0 || pread(fd, &header, sizeof(header), 0) != sizeof(header))
		die("/proc/kcore");
	for (int i = 0; i < header.e_phnum && !*at; i++) {
		off_t where = header.e_phoff + i * sizeof(part);

		if (pread(fd, &part, sizeof(part), where) != sizeof(part))
			die("/proc/kcore");
		if (part.p_type == PT_LOAD && part.p_paddr != UINT64_MAX &&
		    frame * PAGE - part.p_paddr < part.p_filesz)
			*at = part.p_offset + frame * PAGE - part.p_paddr;
	}
	return fd;
}

/* The first word that is not 0; the number of words if there is none. */
static inline size_t first_nonzero(const void *memory, size_t size)
{
	const uint64_t *words = memory;
	size_t i;

	for (i = 0; i < size / sizeof(*words); i++)
		if (words[i])
			break;
	return i;
}

#endif
