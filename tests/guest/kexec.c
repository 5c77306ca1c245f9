// SPDX-License-Identifier: Apache-2.0
/*
 * kexec KERNEL INITRD COMMAND-LINE: goes to another kernel at once.
 * kexec -p KERNEL INITRD COMMAND-LINE: has it start when this one panics, and returns.
 */
#include "function.h"

#include <linux/kexec.h>
#include <linux/reboot.h>
#include <sys/syscall.h>

static int file(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		die(path);
	return fd;
}

int main(int argc, char **argv)
{
	int crash = argc > 1 && !strcmp(argv[1], "-p");
	char **words = argv + 1 + crash;

	if (argc - crash != 4) {
		dprintf(2, "usage: kexec [-p] KERNEL INITRD COMMAND-LINE\n");
		return 2;
	}
	if (syscall(SYS_kexec_file_load, file(words[0]), file(words[1]), strlen(words[2]) + 1,
		    words[2], crash ? KEXEC_FILE_ON_CRASH : 0))
		die("kexec_file_load");
	if (crash)
		return 0;
	syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, 0);
	die("reboot");
}
