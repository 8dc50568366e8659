// SPDX-License-Identifier: GPL-2.0
/*
 * What the reverse mapping of anonymous memory costs, seen from user space.
 *
 *	bench list			the workloads, each with its reason
 *	bench [-iq] [-r N] cost		those for one CPU
 *	bench [-iq] [-r N] contention	those for two
 *	bench [-iq] [-r N] WORKLOAD...
 *
 * -i: the TSC counts instructions (QEMU -icount shift=0), so it is the clock.
 * -r: repetitions of each cost (3). -q: small families, to try the program.
 *
 * Runs as root, on any kernel: nothing here knows which mechanism it measures.
 * The memory is what slabs hold, in objects in use, after the caches in front
 * of them have been emptied. A cost is the time between two readings of the
 * clock while nothing else can run: one CPU, SCHED_FIFO.
 */

#define _GNU_SOURCE
#include "bench.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORKLOAD_SECONDS	600
#define CGROUPS			"/sys/fs/cgroup"

struct shared *shared;
const char *self_path;
size_t page;
int reps = 3;
int ready[2], go[2];

static bool instructions, quick;
static char cgroup[128];

static const struct workload * const groups[] = {
	memory_workloads, call_workloads, walk_workloads, ksm_workloads,
	contend_workloads,
};

static const struct workload *workload(int nr)
{
	const struct workload *w;
	int g;

	for (g = 0; g < ARRAY_SIZE(groups); g++)
		for (w = groups[g]; w->name; w++)
			if (!nr--)
				return w;
	return NULL;
}

/* --- the clock, records, and giving up ----------------------------------- */

__u64 now(void)
{
	struct timespec ts;

#ifdef __x86_64__
	if (instructions)
		return __builtin_ia32_rdtsc();
#endif
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

const char *cost_unit(void)
{
	return instructions ? "insn" : "ns";
}

int sized(int full, int small)
{
	return quick ? small : full;
}

static void print_value(const char *unit, double v, const char *fmt, va_list ap)
{
	char name[64];

	vsnprintf(name, sizeof(name), fmt, ap);
	printf("@v %s %s %.10g\n", name, unit, v);
}

void value(const char *unit, double v, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	print_value(unit, v, fmt, ap);
	va_end(ap);
}

void cost(double v, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	print_value(cost_unit(), v, fmt, ap);
	va_end(ap);
}

void point(const char *plot, const char *series, double x, double y)
{
	printf("@p %s %s %.10g %.10g\n", plot, series, x, y);
}

void skipped(const char *name, const char *why)
{
	printf("@skip %s %s\n", name, why);
}

/* Whatever does not work out ends the workload: half a result misleads. */
void need(bool ok, const char *what)
{
	if (ok)
		return;
	dprintf(STDOUT_FILENO, "@fail %s %s: %s\n",
		program_invocation_short_name, what, strerror(errno));
	kill(0, SIGKILL);
}

bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	bool ok;

	if (fd < 0)
		return false;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

/* The number after @key, or the first one when @key is NULL; -1 if absent. */
long read_counter(const char *path, const char *key)
{
	FILE *f = fopen(path, "r");
	char line[512], word[256];
	long v, ret = -1;

	if (!f)
		return -1;
	while (ret < 0 && fgets(line, sizeof(line), f)) {
		if (!key)
			ret = strtol(line, NULL, 10);
		else if (sscanf(line, "%255s %ld", word, &v) == 2 &&
			 !strcmp(word, key))
			ret = v;
	}
	fclose(f);
	return ret;
}

static int compare(const void *a, const void *b)
{
	const __u64 *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

__u64 median(__u64 *v, int nr)
{
	qsort(v, nr, sizeof(*v), compare);
	return v[nr / 2];
}

/* --- processes ----------------------------------------------------------- */

/*
 * From here on, in all that is forked from this process: one CPU, and nothing
 * but interrupts comes between. Members have the same priority, so a new one
 * does not run before its parent sleeps.
 */
void undisturbed(void)
{
	struct sched_param sp = { .sched_priority = 10 };
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(0, &set);
	sched_setaffinity(0, sizeof(set), &set);
	sched_setscheduler(0, SCHED_FIFO, &sp);
}

void tell_ready(void)
{
	need(write(ready[1], "", 1) == 1, "ready");
}

void wait_ready(void)
{
	char c;

	need(read(ready[0], &c, 1) == 1, "wait");
}

/* A child that calls @setup and then sleeps until end_members(). */
pid_t member(void (*setup)(long nr), long nr)
{
	pid_t pid = fork();

	need(pid >= 0, "fork");
	if (!pid) {
		signal(SIGUSR1, SIG_DFL);
		if (setup)
			setup(nr);
		tell_ready();
		for (;;)
			pause();
	}
	wait_ready();
	return pid;
}

/* All of them, however deep: the conductor is their reaper. */
void end_members(void)
{
	kill(0, SIGUSR1);
	while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
		;
}

long exec_self(const char *verb)
{
	char fd[16];

	snprintf(fd, sizeof(fd), "%d", ready[1]);
	return execl(self_path, self_path, instructions ? "-i" : "-n", verb, fd,
		     NULL);
}

/* --- VMAs ---------------------------------------------------------------- */

/* A gap keeps two VMAs from being merged, and from sharing an anon_vma. */
char *vma_at(char *area, int nr)
{
	return area + 2 * page * nr;
}

char *map_vmas_at(char *at, int nr)
{
	int i;

	for (i = 0; i < nr; i++)
		need(mmap(vma_at(at, i), page, RW,
			  MAP_ANON_PRIVATE | MAP_FIXED_NOREPLACE, -1, 0) ==
		     vma_at(at, i), "mmap");
	return at;
}

char *map_vmas(int nr)
{
	size_t len = 2 * page * nr;
	char *at = mmap(NULL, len, PROT_NONE, MAP_ANON_PRIVATE, -1, 0);

	need(at != MAP_FAILED, "mmap");
	munmap(at, len);
	return map_vmas_at(at, nr);
}

void touch_vmas(char *area, int nr)
{
	int i;

	for (i = 0; i < nr; i++)
		touch(vma_at(area, i), i + 1);
}

void unmap_vmas(char *area, int nr)
{
	need(!munmap(area, 2 * page * nr), "munmap");
}

/* --- slabs --------------------------------------------------------------- */

static const char * const cache_names[NR_CACHES] = {
	[ANON_VMA]	 = "anon_vma",
	[ANON_VMA_CHAIN] = "anon_vma_chain",
	[COW_CONTEXT]	 = "cow_context",
	[MAPLE_NODE]	 = "maple_node",
	[VM_AREA]	 = "vm_area_struct",
	[MM_STRUCT]	 = "mm_struct",
};

static void read_slabinfo(struct memory *m)
{
	FILE *f = fopen("/proc/slabinfo", "r");
	char line[512], name[128];
	long objects, size;
	int i;

	memset(m, 0, sizeof(*m));
	need(f, "/proc/slabinfo");
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%127s %ld %*d %ld", name, &objects,
			   &size) != 3)
			continue;
		for (i = 0; i < NR_CACHES; i++) {
			if (strcmp(name, cache_names[i]))
				continue;
			m->objects[i] = objects;
			m->size[i] = size;
		}
	}
	fclose(f);
}

/*
 * Free objects count as used while kfree_rcu() collects them (it has a shrinker
 * to hurry it), wait for a grace period, or lie in a per-CPU sheaf. So empty
 * all those until the numbers no longer change.
 */
void memory_read(struct memory *m)
{
	struct memory last;
	char path[128];
	int i, round, same = 0;

	memset(&last, 0, sizeof(last));
	write_text("/proc/sys/vm/drop_caches", "2");
	for (round = 0; round < 100 && same < 3; round++) {
		syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
		for (i = 0; i < NR_CACHES; i++) {
			snprintf(path, sizeof(path), "/sys/kernel/slab/%s/shrink",
				 cache_names[i]);
			write_text(path, "1");
		}
		usleep(20000);
		read_slabinfo(m);
		same = memcmp(m, &last, sizeof(last)) ? 0 : same + 1;
		last = *m;
	}
}

static long used(const struct memory *m, const struct memory *before, int i)
{
	return (m->objects[i] - (before ? before->objects[i] : 0)) * m->size[i];
}

long memory_rmap(const struct memory *m, const struct memory *before)
{
	return used(m, before, ANON_VMA) + used(m, before, ANON_VMA_CHAIN) +
	       used(m, before, COW_CONTEXT);
}

/* What has been added since @before, or all there is. */
void memory_report(const char *name, const struct memory *before)
{
	struct memory m;
	int i;

	memory_read(&m);
	for (i = 0; i < NR_CACHES; i++)
		printf("@slab %s %s %ld %ld\n", name, cache_names[i],
		       m.objects[i] - (before ? before->objects[i] : 0),
		       m.size[i]);
	value("bytes", memory_rmap(&m, before), "memory.%s.rmap", name);
	value("bytes", used(&m, before, MAPLE_NODE), "memory.%s.maple", name);
	value("bytes", used(&m, before, VM_AREA), "memory.%s.vma", name);
}

/* --- pages --------------------------------------------------------------- */

__u64 pfn_of(pid_t pid, const void *addr)
{
	__u64 entry = 0;
	char path[64];
	int fd;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	else
		snprintf(path, sizeof(path), "/proc/self/pagemap");
	fd = open(path, O_RDONLY);
	need(fd >= 0, path);
	need(pread(fd, &entry, 8, (uintptr_t)addr / page * 8) == 8, path);
	close(fd);
	return entry >> 63 ? entry & ((1ull << 55) - 1) : 0;
}

/* MPOL_MF_MOVE_ALL; the node the page is on then, or a negative error. */
long move_page(pid_t pid, void *addr, int node)
{
	int status = -ENOENT;

	if (syscall(SYS_move_pages, pid, 1ul, &addr, &node, &status, 4))
		return -errno;
	return status;
}

/* What was faulted last is not on an LRU list yet; to move a page puts it. */
void drain_lru(void)
{
	char *p = mmap(NULL, page, RW, MAP_ANON_PRIVATE, -1, 0);

	need(p != MAP_FAILED, "mmap");
	touch(p, 1);
	if (move_page(0, p, 0) < 0)
		mlock(p, page);
	munmap(p, page);
}

int other_node(void)
{
	return access("/sys/devices/system/node/node1", F_OK) ? -1 : 1;
}

/* Moves the caller, and so what it forks, into a memory cgroup of its own. */
bool own_cgroup(const char *name)
{
	char path[160];

	write_text(CGROUPS "/cgroup.subtree_control", "+memory");
	snprintf(cgroup, sizeof(cgroup), CGROUPS "/bench-%s-%d", name,
		 getpid());
	if (mkdir(cgroup, 0755))
		return false;
	snprintf(path, sizeof(path), "%s/memory.reclaim", cgroup);
	if (access(path, W_OK))
		return false;
	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	return write_text(path, "0");
}

/* The caller alone, and what it maps from now on. */
void leave_cgroup(void)
{
	if (*cgroup)
		write_text(CGROUPS "/cgroup.procs", "0");
}

/* Anonymous pages only, as far as the kernel gets. */
bool reclaim_anon(const char *amount)
{
	char path[160], text[64];

	snprintf(path, sizeof(path), "%s/memory.reclaim", cgroup);
	snprintf(text, sizeof(text), "%s swappiness=max", amount);
	return write_text(path, text) || errno == EAGAIN;
}

/* --- one workload, or all ------------------------------------------------ */

/* A shell with its libraries, heap and a few buffers; see memory.c. */
static void shell(int fd)
{
	int file = open(self_path, O_RDONLY);
	char *p;
	int i;

	need(file >= 0, self_path);
	for (i = 0; i < 4; i++) {
		p = mmap(NULL, 4 * page, PROT_READ, MAP_PRIVATE, file, 0);
		need(p != MAP_FAILED, "mmap");
		need(!mprotect(p + 2 * page, 2 * page, RW), "mprotect");
		p[2 * page] = 1;
		p = mmap(NULL, 2 * page, RW, MAP_ANON_PRIVATE, -1, 0);
		need(p != MAP_FAILED, "mmap");
		*p = 1;
		/* Nothing is merged with what follows. */
		mmap(NULL, page, PROT_NONE, MAP_ANON_PRIVATE, -1, 0);
	}
	p = sbrk(16 * page);
	need(p != (void *)-1, "sbrk");
	for (i = 0; i < 8; i++)
		p[i * page] = 1;
	signal(SIGUSR1, SIG_DFL);
	need(write(fd, "", 1) == 1, "ready");
	for (;;)
		pause();
}

static void run_one(const struct workload *w)
{
	__u64 start = now();

	program_invocation_short_name = (char *)w->name;
	setpgid(0, 0);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGUSR1, SIG_IGN);
	alarm(WORKLOAD_SECONDS);
	need(!pipe(ready) && !pipe(go), "pipe");
	shared = mmap(NULL, page, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	need(shared != MAP_FAILED, "mmap");
	if (w->group == COST)
		undisturbed();
	w->run();
	end_members();
	printf("@took %s %.10g\n", w->name, (double)(now() - start));
	fflush(stdout);
	if (*cgroup) {
		leave_cgroup();
		rmdir(cgroup);
	}
}

/* A process of its own, without a past. False: it failed, and has said so. */
static bool run_apart(const struct workload *w, char **options, int nr)
{
	char *argv[16] = { (char *)self_path };
	int i, status;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (!pid) {
		for (i = 0; i < nr && i < 12; i++)
			argv[i + 1] = options[i];
		argv[i + 1] = "one";
		argv[i + 2] = (char *)w->name;
		execv(self_path, argv);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return false;
	/* What it leaves, whoever its parent is now. */
	kill(-pid, SIGKILL);
	while (waitpid(-1, NULL, 0) > 0)
		;
	if (status)
		printf("@fail %s ended with status %#x\n", w->name, status);
	return !status;
}

static void print_object_size(const char *cache)
{
	char path[128];
	long size;

	snprintf(path, sizeof(path), "/sys/kernel/slab/%s/object_size", cache);
	size = read_counter(path, NULL);
	if (size > 0)
		value("bytes", size, "size.%s", cache);
}

static int print_usage(void)
{
	fprintf(stderr, "usage: bench [-iq] [-r N] list|cost|contention|WORKLOAD...\n");
	return 2;
}

int main(int argc, char **argv)
{
	__u64 start;
	const struct workload *w;
	char self[256];
	int c, g, i, bad = 0, ran = 0, options;
	ssize_t len;

	page = sysconf(_SC_PAGESIZE);
	while ((c = getopt(argc, argv, "+inqr:")) >= 0) {
		switch (c) {
		case 'i':
			instructions = true;
			break;
		case 'n':
			instructions = false;
			break;
		case 'q':
			quick = true;
			break;
		case 'r':
			reps = atoi(optarg);
			break;
		default:
			return print_usage();
		}
	}
	start = now();
	if (optind >= argc || reps < 1)
		return print_usage();
	options = optind - 1;
	if (!strcmp(argv[optind], "stamp") && optind + 2 == argc)
		return write(atoi(argv[optind + 1]), &start, sizeof(start)) !=
		       sizeof(start);
	if (!strcmp(argv[optind], "nothing"))
		return 0;

	len = readlink("/proc/self/exe", self, sizeof(self) - 1);
	if (len <= 0)
		return print_usage();
	self[len] = '\0';
	self_path = self;
	if (!strcmp(argv[optind], "shell") && optind + 2 == argc)
		shell(atoi(argv[optind + 1]));
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(argv[optind], "list")) {
		for (g = 0; (w = workload(g)); g++)
			printf("%-12s %-10s %s\n", w->name,
			       w->group == COST ? "cost" : "contention",
			       w->why);
		return 0;
	}
	if (!strcmp(argv[optind], "one")) {
		for (g = 0; (w = workload(g)); g++)
			if (!strcmp(w->name, argv[optind + 1]))
				run_one(w);
		return 0;
	}

	if (geteuid()) {
		fprintf(stderr, "bench: error: needs root, for pagemap and page_idle\n");
		return 2;
	}
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	write_text("/proc/sys/kernel/numa_balancing", "0");
	printf("@i unit %s\n", cost_unit());
	printf("@i repetitions %d\n", reps);
	printf("@i cpus %ld\n", sysconf(_SC_NPROCESSORS_ONLN));
	if (quick)
		printf("@i quick 1\n");
	print_object_size("vm_area_struct");
	print_object_size("cow_context");
	print_object_size("anon_vma");
	print_object_size("anon_vma_chain");

	for (i = optind; i < argc; i++) {
		for (g = 0; (w = workload(g)); g++) {
			if (strcmp(argv[i], w->name) &&
			    (strcmp(argv[i], "cost") || w->group != COST) &&
			    (strcmp(argv[i], "contention") ||
			     w->group != CONTENTION))
				continue;
			ran++;
			bad += !run_apart(w, argv + 1, options);
		}
	}
	if (!ran)
		return print_usage();
	printf("@done %d\n", ran);
	return !!bad;
}
