/* SPDX-License-Identifier: GPL-2.0 */
/* What cow_context and cow_context_fail have in common. */
#ifndef COW_CONTEXT_UTIL_H
#define COW_CONTEXT_UTIL_H

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

/* The whole file, as far as @buf holds it. */
static inline int read_text(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY);
	size_t len = 0;
	ssize_t ret;

	if (fd < 0)
		return -errno;
	do {
		ret = read(fd, buf + len, size - 1 - len);
		if (ret > 0)
			len += ret;
	} while (ret > 0 && len < size - 1);
	close(fd);
	if (ret < 0)
		return -EIO;
	buf[len] = '\0';
	return 0;
}

static inline int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) < 0)
		ret = -errno;
	close(fd);
	return ret;
}

/* What page @nr of an area that was filled with @seed holds. */
static inline uint64_t content(long seed, long nr)
{
	return (seed + 1) * 0x9e3779b97f4a7c15ULL + nr;
}

/*
 * Idle CPUs borrow the mm that ran there last, which keeps its context and all
 * above it. Have something else run there.
 */
static inline void visit_cpus(void)
{
	cpu_set_t all, one;
	int cpu;

	if (sched_getaffinity(0, sizeof(all), &all))
		return;
	for (cpu = 0; cpu < CPU_SETSIZE; cpu++) {
		if (!CPU_ISSET(cpu, &all))
			continue;
		CPU_ZERO(&one);
		CPU_SET(cpu, &one);
		sched_setaffinity(0, sizeof(one), &one);
	}
	sched_setaffinity(0, sizeof(all), &all);
}

#endif /* COW_CONTEXT_UTIL_H */
