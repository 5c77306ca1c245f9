// SPDX-License-Identifier: Apache-2.0
/*
 * vmcore ADDRESS+SIZE...: reads all of /proc/vmcore, the memory of a kernel that crashed, and says
 * how many bytes it has, how many pages of these ranges it shows, and how many of the first hog's
 * pages are among them, each counted once.
 */
#include "function.h"

#include <elf.h>

struct range {
	uint64_t start, size;
};

static struct range ranges[64];
static int range_count;
static size_t bytes, shown, marked;
/* Which pages of the hog were seen. */
static char seen[4096 * MIB / PAGE];

static int is_asked_for(uint64_t address)
{
	for (int i = 0; i < range_count; i++)
		if (address - ranges[i].start < ranges[i].size)
			return 1;
	return 0;
}

static void look_at(const char *page)
{
	size_t number = *(const uint64_t *)page - mark(0, 0);

	shown++;
	if (number < sizeof(seen) && !seen[number]) {
		seen[number] = 1;
		marked++;
	}
}

static void read_part(int fd, const Elf64_Phdr *part)
{
	static char chunk[MIB];

	for (size_t at = 0; at < part->p_filesz;) {
		size_t want = part->p_filesz - at < MIB ? part->p_filesz - at : MIB;
		ssize_t got = pread(fd, chunk, want, part->p_offset + at);

		if (got <= 0 || got % PAGE)
			die("/proc/vmcore");
		for (ssize_t page = 0; page < got; page += PAGE) {
			if (is_asked_for(part->p_paddr + at + page))
				look_at(chunk + page);
		}
		at += got;
		bytes += got;
	}
}

int main(int argc, char **argv)
{
	int fd = open("/proc/vmcore", O_RDONLY | O_CLOEXEC);
	Elf64_Ehdr header;
	Elf64_Phdr part;

	for (; range_count < argc - 1 && range_count < 64; range_count++) {
		char *end;

		ranges[range_count].start = strtoul(argv[range_count + 1], &end, 0);
		ranges[range_count].size = *end == '+' ? strtoul(end + 1, NULL, 0) : 0;
	}
	if (fd < 0 || pread(fd, &header, sizeof(header), 0) != sizeof(header))
		die("/proc/vmcore");
	for (int i = 0; i < header.e_phnum; i++) {
		if (pread(fd, &part, sizeof(part), header.e_phoff + i * sizeof(part)) != sizeof(part))
			die("/proc/vmcore");
		if (part.p_type == PT_LOAD)
			read_part(fd, &part);
	}
	printf("vmcore %zu MiB, %zu pages, of a hog %zu\n", bytes / MIB, shown, marked);
	return 0;
}
