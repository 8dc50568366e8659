// SPDX-License-Identifier: GPL-2.0
/*
 * The only program of the guest of harness/prefixes: generations of processes
 * that move, unmap and rewrite what they share, while all memory is compacted.
 * Says "prefix: ok" when every byte is right, and ends the guest.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGES	512
#define DEPTH	4

static long page;

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		printf("prefix: %s: %s\n", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* Pages that do not hold what the generations before @depth wrote last. */
static int wrong(const unsigned char *p, int depth)
{
	int i, bad = 0;

	for (i = 0; i < PAGES; i++)
		bad += p[i * page] != (i % DEPTH < depth ? i % DEPTH + 1 : 0xff);
	return bad;
}

static int generation(unsigned char *p, int depth)
{
	void *to = mmap(NULL, PAGES * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int i, status, bad;

	p = mremap(p, PAGES * page, PAGES * page, MREMAP_MAYMOVE | MREMAP_FIXED, to);
	if (p == MAP_FAILED)
		return 1;
	for (i = depth; i < PAGES; i += DEPTH)
		p[i * page] = depth + 1;
	for (i = 0; i < 2; i++) {
		fflush(stdout);
		if (fork() == 0)
			_exit(depth + 1 < DEPTH ? generation(p, depth + 1) : 0);
	}
	put("/proc/sys/vm/compact_memory", "1");
	madvise(p, PAGES * page, MADV_PAGEOUT);
	bad = wrong(p, depth + 1);
	while (wait(&status) > 0)
		bad += status != 0;
	/* the children are gone: what is left is this process's alone */
	put("/proc/sys/vm/compact_memory", "1");
	bad += wrong(p, depth + 1);
	if (bad)
		printf("prefix: generation %d: %d wrong\n", depth, bad);
	return !!bad;
}

int main(void)
{
	char line[128];
	unsigned char *p;
	FILE *stats;
	int bad;

	page = sysconf(_SC_PAGESIZE);
	mkdir("/proc", 0755);
	mkdir("/debug", 0755);
	mount("none", "/proc", "proc", 0, NULL);
	mount("none", "/debug", "debugfs", 0, NULL);
	p = mmap(NULL, PAGES * page, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(p, 0xff, PAGES * page);
	bad = generation(p, 0);
	stats = fopen("/debug/cow_context/stats", "r");
	while (stats && fgets(line, sizeof(line), stats))
		printf("prefix: %s", line);
	printf("prefix: %s\n", bad ? "not ok" : "ok");
	fflush(stdout);
	sync();
	reboot(RB_AUTOBOOT);
	return 0;
}
