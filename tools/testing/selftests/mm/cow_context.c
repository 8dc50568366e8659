// SPDX-License-Identifier: GPL-2.0
/*
 * Who maps this anonymous page? Sequences that have broken the answer before,
 * or that a reviewer has asked about, seen from user space only.
 *
 * The tests drive a family of processes. The test itself, the conductor, keeps
 * out of it: member 0 is its child, and members fork each other as they are
 * told to. What a member has to do is sent to it as a function to call.
 * Addresses and functions are the same in all of them because nobody execs.
 *
 * Every test looks at two things: the content (each member still reads what it
 * wrote, or inherited) and the placement (the pages have really moved or have
 * been swapped, and all who share a page have been taken along: they have the
 * same pfn, or the same swap entry, in /proc/<pid>/pagemap). A mapping that was
 * overlooked shows as a page that cannot be migrated, as pfns that differ, as
 * a member that sleeps on a migration entry for ever, or as foreign data.
 *
 * The numbers are those of the list of scenarios in
 * Documentation/mm/cow_context.rst.
 *
 * With one NUMA node nothing can be migrated, without swap nothing is swapped,
 * and without memory cgroups nothing that is shared: only the contents are
 * checked then. What there is of these is printed first.
 *
 * A race prints its rounds and, of the whole system meanwhile, how many pages
 * were migrated and so on; see start_race().
 */

#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <mm/gup_test.h>
#include <numa.h>
#include <numaif.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <lib/test_hmm_uapi.h>
#include "cow_context_util.h"
#include "hugepage_settings.h"
#include "vm_util.h"

#ifndef MADV_COLD
#define MADV_COLD	20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT	21
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP	4
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE	101
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#define MADV_GUARD_REMOVE	103
#endif

/*
 * How long both sides of a race are kept busy; longer, but not for ever, where
 * that is too short for RACE_ROUNDS and as many events of each kind that the
 * test is about. RACE_LEAST of each are insisted upon.
 */
#define RACE_MSECS	1000
#define RACE_ROUNDS	8
#define RACE_LEAST	4
#define RACE_MAX_MSECS	240000
#define FIRST_FAULT_MSECS	4000

/* Generations of a chain, and how many will do where that takes too long. */
#define GENERATIONS	1000
#define FEWER_GENERATIONS 250
#define CHAIN_MSECS	40000

/*
 * Emulated and instrumented kernels are slow. Who does not get on at all for
 * REPLY_SECONDS sleeps on something that will not happen.
 */
#define TEST_SECONDS	900
#define REPLY_SECONDS	120
#define SETTLE_MSECS	20000

#define MAX_MEMBERS	8
#define MAX_PAGES	2048
#define NR_AREAS	16
#define LUCKY_TRIES	8
#define PAGES		16

#define MAX_DEAD_CONTEXTS	64
#define MAX_DEPTH		64

/* How often is done what must not leave a record, and how many others may get. */
#define RECORD_ROUNDS	64
#define RECORD_NOISE	16

/* Of which so many have the same content: less than KSM's max_page_sharing. */
#define KSM_VMAS	20000
#define KSM_SHARERS	200
#define KSM_CHUNK	(KSM_VMAS / KSM_SHARERS)

#define ADVERSARY_VMAS	512
#define ADVERSARY_CHILDREN 256

#define VMSTAT_FILE	"/proc/vmstat"
#define STATS_FILE	"/sys/kernel/debug/cow_context/stats"
#define TREE_FILE	"/sys/kernel/debug/cow_context/tree"
#define SPLIT_FILE	"/sys/kernel/debug/split_huge_pages"
#define GUP_TEST_FILE	"/sys/kernel/debug/gup_test"
#define COMPACT_FILE	"/proc/sys/vm/compact_memory"
#define IDLE_FILE	"/sys/kernel/mm/page_idle/bitmap"
#define BALANCING_FILE	"/proc/sys/kernel/numa_balancing"
#define THP_DIR		"/sys/kernel/mm/transparent_hugepage/"
#define KSM_DIR		"/sys/kernel/mm/ksm/"
#define DAMON_DIR	"/sys/kernel/mm/damon/admin/kdamonds/"

#define RW		(PROT_READ | PROT_WRITE)
#define ANON_FIXED	(MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)

/* What a member is told to do. */
typedef long (*op_fn)(char *addr, long a, long b, long c);

struct order {
	op_fn fn;
	char *addr;
	long a, b, c;
};

static struct {
	pid_t pid;
	int sock[2];
} member[MAX_MEMBERS];

/* Seen by everybody. */
static struct shared {
	struct timespec race_end, race_last;
	bool busy;	/* there was enough of what the race is about */
	long rounds;	/* of a race, or generations */
	long bad;
	long to_device;	/* pages that went there */
	bool forking, ready;
	pid_t newest;
	pid_t pid[ADVERSARY_CHILDREN];
} *shared;

static char *areas;
static size_t page, area_size, pmd_size;
static int nodes[2], nr_nodes;
static bool have_swap;
static char cgroup[PATH_MAX];
static int pin_fd = -1;

/* Every area starts on a PMD boundary and is followed by a gap. */
static char *area(int nr)
{
	return areas + nr * area_size;
}

static long msecs_until(const struct timespec *end)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (end->tv_sec - now.tv_sec) * 1000 +
	       (end->tv_nsec - now.tv_nsec) / 1000000;
}

static struct timespec in_msecs(long msecs)
{
	struct timespec end;

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += msecs / 1000;
	end.tv_nsec += msecs % 1000 * 1000000;
	return end;
}

/* The number that follows @key at the start of a line, or -1. */
static long find_count(const char *text, const char *key)
{
	const size_t len = strlen(key);

	for (; text; text = strchr(text, '\n')) {
		text += *text == '\n';
		if (!strncmp(text, key, len) && strchr(" :", text[len]))
			return atol(text + len + 1);
	}
	return -1;
}

/* What the kernel counts, of the whole system. */
enum { MIGRATED, SPLIT, SWAPPED_OUT, WALKS, NR_EVENTS };

#define ABOUT(event)	(1U << (event))

static const char * const event_key[NR_EVENTS] = {
	[MIGRATED]	= "pgmigrate_success",
	[SPLIT]		= "thp_split_page",
	[SWAPPED_OUT]	= "pswpout",
	[WALKS]		= "tree_walks",
};

static long events_before[NR_EVENTS];
static unsigned int race_is_about;

static void count_events(long *count)
{
	static char text[64 * 1024];
	int i;

	for (i = 0; i < NR_EVENTS; i++) {
		if (!i && read_text(VMSTAT_FILE, text, sizeof(text)))
			text[0] = '\0';
		if (i == WALKS && read_text(STATS_FILE, text, sizeof(text)))
			text[0] = '\0';
		count[i] = find_count(text, event_key[i]);
	}
}

static bool happened(long least)
{
	long now[NR_EVENTS];
	int i;

	count_events(now);
	for (i = 0; i < NR_EVENTS; i++)
		if ((race_is_about & ABOUT(i)) && now[i] - events_before[i] < least)
			return false;
	return true;
}

/*
 * @about is what must happen meanwhile, for which the side that does not set the
 * pace has to call other_racing(). What is impossible here is left out.
 */
static void start_race(unsigned int about)
{
	int i;

	if (nr_nodes < 2)
		about &= ~ABOUT(MIGRATED);
	if (!have_swap || !cgroup[0])
		about &= ~ABOUT(SWAPPED_OUT);
	count_events(events_before);
	for (i = 0; i < NR_EVENTS; i++)
		if (events_before[i] < 0)
			about &= ~ABOUT(i);
	race_is_about = about;
	shared->busy = !about;
	shared->rounds = 0;
	shared->race_end = in_msecs(RACE_MSECS);
	shared->race_last = in_msecs(RACE_MAX_MSECS);
}

/* The member that sets the pace counts the rounds, and returns their number. */
static bool racing(void)
{
	if (FORCE_READ(shared->rounds) < RACE_ROUNDS || !FORCE_READ(shared->busy))
		return msecs_until(&shared->race_last) > 0;
	return msecs_until(&shared->race_end) > 0;
}

static bool other_racing(void)
{
	if (!shared->busy)
		shared->busy = happened(RACE_ROUNDS);
	return racing();
}

static void end_race(struct __test_metadata *_metadata, long rounds)
{
	long now[NR_EVENTS], n[NR_EVENTS];
	int i;

	count_events(now);
	for (i = 0; i < NR_EVENTS; i++)
		n[i] = now[i] - events_before[i];
	ksft_print_msg("%ld rounds, %ld migrated, %ld split, %ld swapped out, ",
		       rounds, n[MIGRATED], n[SPLIT], n[SWAPPED_OUT]);
	if (now[WALKS] < 0)
		printf("walks not counted\n");
	else
		printf("%ld walks\n", n[WALKS]);

	ASSERT_GE(rounds, RACE_LEAST);
	if (race_is_about & ABOUT(MIGRATED))
		ASSERT_GE(n[MIGRATED], RACE_LEAST);
	if (race_is_about & ABOUT(SPLIT))
		ASSERT_GE(n[SPLIT], RACE_LEAST);
	if (race_is_about & ABOUT(SWAPPED_OUT))
		ASSERT_GE(n[SWAPPED_OUT], RACE_LEAST);
	if (race_is_about & ABOUT(WALKS))
		ASSERT_GE(n[WALKS], RACE_LEAST);
}

/*
 * Members
 */

static void __noreturn serve(int nr)
{
	struct order o;
	long ret;

	while (recv(member[nr].sock[1], &o, sizeof(o), 0) == sizeof(o)) {
		ret = o.fn(o.addr, o.a, o.b, o.c);
		if (send(member[nr].sock[1], &ret, sizeof(ret), 0) < 0)
			break;
	}
	_exit(1);
}

static int tell(int nr, op_fn fn, char *addr, long a, long b, long c)
{
	struct order o = { .fn = fn, .addr = addr, .a = a, .b = b, .c = c };

	return send(member[nr].sock[0], &o, sizeof(o), 0) == sizeof(o) ? 0 : -1;
}

static long answer(int nr)
{
	long ret, before;

	do {
		before = FORCE_READ(shared->rounds);
		if (recv(member[nr].sock[0], &ret, sizeof(ret), 0) == sizeof(ret))
			return ret;
	} while (errno == EAGAIN && before != FORCE_READ(shared->rounds));

	ksft_print_msg("no word from member %d\n", nr);
	return -ETIMEDOUT;
}

static long call(int nr, op_fn fn, char *addr, long a, long b, long c)
{
	return tell(nr, fn, addr, a, b, c) ? -EPIPE : answer(nr);
}

static long op_fork(char *addr, long nr, long b, long c)
{
	pid_t pid = fork();

	if (!pid)
		serve(nr);
	return pid < 0 ? -errno : pid;
}

static long op_exit(char *addr, long a, long b, long c)
{
	_exit(0);
}

/* Returns 0, or -1 when the member cannot be made. */
static int fork_member(int parent, int nr)
{
	long pid = call(parent, op_fork, NULL, nr, 0, 0);

	if (pid <= 0)
		return -1;
	member[nr].pid = pid;
	return 0;
}

static void join_cgroup(void)
{
	char path[PATH_MAX + 32];

	snprintf(path, sizeof(path), "%s/cgroup.procs", cgroup);
	if (cgroup[0] && write_text(path, "0"))
		_exit(1);
}

/* The first of a family, a child of the conductor. */
static int first_member(void)
{
	pid_t pid = fork();

	if (!pid) {
		/* Members do not wait for those they have forked. */
		signal(SIGCHLD, SIG_IGN);
		join_cgroup();
		serve(0);
	}
	member[0].pid = pid;
	return pid > 0 ? 0 : -1;
}

/* Exits, and its mm is gone when this returns. */
static int exit_member(int nr)
{
	struct timespec end = in_msecs(REPLY_SECONDS * 1000);
	pid_t pid = member[nr].pid;

	if (tell(nr, op_exit, NULL, 0, 0, 0))
		return -1;
	/* Its child or, the parent being gone, its grandchild. */
	do {
		waitpid(pid, NULL, WNOHANG);
		if (kill(pid, 0) && errno == ESRCH) {
			member[nr].pid = 0;
			return 0;
		}
		usleep(1000);
	} while (msecs_until(&end) > 0);
	return -1;
}

/*
 * What members do with their memory
 */

static long op_map(char *addr, long nr, long b, long c)
{
	char *p = mmap(addr, nr * page, RW, ANON_FIXED, -1, 0);

	return p == addr ? 0 : -errno;
}

static long op_map_huge(char *addr, long nr, long b, long c)
{
	if (op_map(addr, nr, 0, 0))
		return -1;
	return madvise(addr, nr * page, MADV_HUGEPAGE);
}

static long op_map_hugetlb(char *addr, long nr, long b, long c)
{
	char *p = mmap(addr, nr * page, RW, ANON_FIXED | MAP_HUGETLB, -1, 0);

	return p == addr ? 0 : -errno;
}

static long op_map_stack(char *addr, long nr, long b, long c)
{
	char *p = mmap(addr, nr * page, RW, ANON_FIXED | MAP_GROWSDOWN, -1, 0);

	return p == addr ? 0 : -errno;
}

static long op_map_file(char *addr, long nr, long fd, long c)
{
	char *p = mmap(addr, nr * page, RW, MAP_PRIVATE | MAP_FIXED, fd, 0);

	return p == addr ? 0 : -errno;
}

static long op_unmap(char *addr, long nr, long b, long c)
{
	return munmap(addr, nr * page);
}

static long op_protect(char *addr, long nr, long prot, long c)
{
	return mprotect(addr, nr * page, prot);
}

static long op_advise(char *addr, long nr, long advice, long c)
{
	return madvise(addr, nr * page, advice) ? -errno : 0;
}

/* What is there: mlock() would copy what is shared. */
static long op_lock(char *addr, long nr, long b, long c)
{
	return mlock2(addr, nr * page, MLOCK_ONFAULT);
}

static long op_unlock(char *addr, long nr, long b, long c)
{
	return munlock(addr, nr * page);
}

static long op_grow(char *addr, long nr, long more, long c)
{
	char *p = mremap(addr, nr * page, (nr + more) * page, 0);

	return p == addr ? 0 : -errno;
}

static long op_move(char *addr, long nr, long to, long flags)
{
	char *p = mremap(addr, nr * page, nr * page,
			 MREMAP_MAYMOVE | MREMAP_FIXED | flags, (char *)to);

	return p == (char *)to ? 0 : -errno;
}

/* Pages 0 to @nr - 1, which are number @first and so on of what is called @seed. */
static long op_fill(char *addr, long nr, long seed, long first)
{
	long i;

	for (i = 0; i < nr; i++) {
		uint64_t *p = (uint64_t *)(addr + i * page);

		p[0] = content(seed, first + i);
		p[page / sizeof(*p) - 1] = content(seed, first + i);
	}
	return 0;
}

/* Returns how many pages hold something else. */
static long op_check(char *addr, long nr, long seed, long first)
{
	long i, bad = 0;

	for (i = 0; i < nr; i++) {
		uint64_t *p = (uint64_t *)(addr + i * page);

		bad += FORCE_READ(p[0]) != content(seed, first + i) ||
		       FORCE_READ(p[page / sizeof(*p) - 1]) != content(seed, first + i);
	}
	return bad;
}

static long op_check_zero(char *addr, long nr, long b, long c)
{
	long i, bad = 0;

	for (i = 0; i < nr; i++)
		bad += FORCE_READ(addr[i * page]) != 0;
	return bad;
}

static long op_is_huge(char *addr, long b, long c, long d)
{
	return check_huge_anon(addr, pmd_size, 1, pmd_size);
}

/*
 * Where pages are: asked and changed from outside
 */

static int __read_pagemap(pid_t pid, char *addr, long pages, uint64_t *entry)
{
	size_t len = pages * sizeof(*entry);
	char path[64];
	ssize_t ret;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return -1;
	ret = pread(fd, entry, len, (uintptr_t)addr / page * sizeof(*entry));
	close(fd);
	return ret == (ssize_t)len ? 0 : -1;
}

static int read_pagemap(int nr, char *addr, long pages, uint64_t *entry)
{
	return __read_pagemap(member[nr].pid, addr, pages, entry);
}

/* How many of the pages have @bit, or -1. */
static long count_pages(int nr, char *addr, long pages, uint64_t bit)
{
	static uint64_t entry[MAX_PAGES];
	long i, n = 0;

	if (read_pagemap(nr, addr, pages, entry))
		return -1;
	for (i = 0; i < pages; i++)
		n += !!(entry[i] & bit);
	return n;
}

/*
 * How many pages are not at one place in the two members (or twice in one):
 * neither the same pfn nor the same swap entry. -1 for errors.
 */
static long count_apart(int a, char *at_a, int b, char *at_b, long pages)
{
	static uint64_t ent_a[MAX_PAGES], ent_b[MAX_PAGES];
	const uint64_t mask = PM_PRESENT | PM_SWAP | (BIT_ULL(55) - 1);
	int tries = 10;
	long i, n;

	/* Something else in the system may be migrating pages. */
	do {
		if (read_pagemap(a, at_a, pages, ent_a) ||
		    read_pagemap(b, at_b, pages, ent_b))
			return -1;
		for (i = n = 0; i < pages; i++)
			n += (ent_a[i] & mask) != (ent_b[i] & mask);
	} while (n && n != pages && --tries && !usleep(1000));
	return n;
}

/* How many are; -1 for errors. */
static long count_together(int a, char *at_a, int b, char *at_b, long pages)
{
	long n = count_apart(a, at_a, b, at_b, pages);

	return n < 0 ? n : pages - n;
}

/*
 * Asks for the nodes of the pages listed (@node = -1), or moves them to @node
 * with all who share them. Returns how many are there now.
 */
static long move_list(pid_t pid, char **list, long n, int node, int *status)
{
	static int target[MAX_PAGES];
	long i, there = 0;

	for (i = 0; i < n; i++) {
		target[i] = node;
		status[i] = -ENOENT;
	}
	if (node >= 0 && move_pages(pid, n, (void **)list, target, status,
				    MPOL_MF_MOVE_ALL) < 0)
		return -1;
	if (move_pages(pid, n, (void **)list, NULL, status, 0) < 0)
		return -1;
	for (i = 0; i < n; i++)
		there += status[i] == node;
	return there;
}

/*
 * Moves every page of the range that is in memory to the other node, with all
 * who share it. Returns how many pages cannot be moved, -1 for errors.
 */
static long __migrate(pid_t pid, char *addr, long pages, size_t stride)
{
	static char *list[MAX_PAGES];
	static int status[MAX_PAGES];
	long i, n = 0, there = 0;
	int target, tries = 50;

	if (nr_nodes < 2)
		return 0;
	for (i = 0; i < pages; i++)
		list[i] = addr + i * stride;
	if (move_list(pid, list, pages, -1, status) < 0)
		return -1;
	for (i = 0, target = -1; i < pages; i++) {
		if (status[i] < 0)
			continue;
		if (target < 0)
			target = nodes[status[i] == nodes[0]];
		list[n++] = list[i];
	}
	/* A page may be busy for a moment, what is mapped nowhere else is not. */
	while (n && tries--) {
		there = move_list(pid, list, n, target, status);
		if (there < 0 || there == n)
			break;
		usleep(2000);
	}
	if (there >= 0 && there != n)
		ksft_print_msg("%ld of %ld pages at %p stay\n", n - there, n, addr);
	return there < 0 ? -1 : n - there;
}

static long migrate(int nr, char *addr, long pages)
{
	return __migrate(member[nr].pid, addr, pages, page);
}

/* The same, but at least @pages must be in memory to begin with. */
static long migrate_all(int nr, char *addr, long pages)
{
	long n = count_pages(nr, addr, pages, PM_PRESENT);

	if (n != pages) {
		ksft_print_msg("%ld of %ld pages at %p in memory\n", n, pages, addr);
		return -1;
	}
	return migrate(nr, addr, pages);
}

/*
 * One side of a race: as long as it lasts moves what it finds at the addresses
 * to and fro. Returns how many were then where they should be.
 */
static long migrate_until_end(int nr, char **list, long n)
{
	static int status[MAX_PAGES];
	long ret, moved = 0;
	int i = 0;

	while (other_racing()) {
		if (nr_nodes < 2) {
			usleep(1000);
			continue;
		}
		ret = move_list(member[nr].pid, list, n, nodes[i++ & 1], status);
		if (ret < 0)
			break;
		moved += ret;
	}
	return moved;
}

/*
 * Has the kernel look up who maps the pages, and change nothing: faster than
 * migration by far, so the walks are many.
 */
static void mark_idle(int nr, char *addr, long pages)
{
	static uint64_t entry[MAX_PAGES];
	const uint64_t all = ~0ULL;
	int fd = open(IDLE_FILE, O_WRONLY);
	uint64_t word, last = -1;
	long i;

	if (fd < 0)
		return;
	if (!read_pagemap(nr, addr, pages, entry)) {
		for (i = 0; i < pages; i++) {
			word = PAGEMAP_PFN(entry[i]) / 64;
			if (!(entry[i] & PM_PRESENT) || word == last)
				continue;
			if (pwrite(fd, &all, sizeof(all), word * sizeof(all)) < 0)
				break;
			last = word;
		}
	}
	close(fd);
}

/* Which of the pages has nobody touched since? Sets @idle, returns how many. */
static long read_idle(int nr, char *addr, long pages, bool *idle)
{
	static uint64_t entry[MAX_PAGES];
	int fd = open(IDLE_FILE, O_RDONLY);
	uint64_t pfn, word;
	long i, n = 0;

	if (fd < 0 || read_pagemap(nr, addr, pages, entry))
		n = -1;
	for (i = 0; i < pages && n >= 0; i++) {
		pfn = PAGEMAP_PFN(entry[i]);
		if (!(entry[i] & PM_PRESENT) ||
		    pread(fd, &word, sizeof(word), pfn / 64 * sizeof(word)) != sizeof(word)) {
			n = -1;
			break;
		}
		idle[i] = word >> pfn % 64 & 1;
		n += idle[i];
	}
	if (fd >= 0)
		close(fd);
	return n;
}

static void list_pages(char **list, char *addr, long n)
{
	long i;

	for (i = 0; i < n; i++)
		list[i] = addr + i * page;
}

/* Splits what huge pages there are. */
static void split(int nr, char *addr, long pages)
{
	char text[128];

	snprintf(text, sizeof(text), "%d,0x%lx,0x%lx,0", member[nr].pid,
		 (unsigned long)addr, (unsigned long)(addr + pages * page));
	write_text(SPLIT_FILE, text);
}

/* Is the page part of something larger? -1 if there is no telling. */
static int __is_large(pid_t pid, char *addr)
{
	int fd = open("/proc/kpageflags", O_RDONLY);
	uint64_t entry, flags;
	int ret = -1;

	if (fd < 0)
		return -1;
	if (!__read_pagemap(pid, addr, 1, &entry) && (entry & PM_PRESENT) &&
	    !pageflags_get(PAGEMAP_PFN(entry), fd, &flags))
		ret = !!(flags & KPF_THP);
	close(fd);
	return ret;
}

static int is_large(int nr, char *addr)
{
	return __is_large(member[nr].pid, addr);
}

static void advise_pageout(int nr, char *addr, long pages)
{
	struct iovec vec = { .iov_base = addr, .iov_len = pages * page };
	int fd = syscall(__NR_pidfd_open, member[nr].pid, 0);

	if (fd < 0)
		return;
	syscall(__NR_process_madvise, fd, &vec, 1, MADV_PAGEOUT, 0);
	close(fd);
}

/* From the family's cgroup. */
static int write_reclaim(const char *what)
{
	char path[PATH_MAX + 32];

	snprintf(path, sizeof(path), "%s/memory.reclaim", cgroup);
	return cgroup[0] ? write_text(path, what) : -ENOENT;
}

/* The same, of anonymous memory only. */
static void take_back(const char *amount)
{
	char text[64];

	snprintf(text, sizeof(text), "%s swappiness=max", amount);
	if (write_reclaim(text) == -EINVAL)
		write_reclaim(amount);
}

/*
 * Swaps out, for all who share the pages. What is mapped once goes by
 * MADV_PAGEOUT, which leaves alone what is shared; that goes by reclaim of the
 * family's cgroup. Returns how many pages stay, -1 for errors.
 */
static long page_out(int nr, char *addr, long pages)
{
	int tries = 20;
	long n;

	if (!have_swap)
		return 0;
	do {
		advise_pageout(nr, addr, pages);
		n = count_pages(nr, addr, pages, PM_PRESENT);
		if (n <= 0)
			return n;
		if (!cgroup[0])
			return 0;
		take_back("4M");
		/* What MADV_FREE was told of is where the pages of files are. */
		if (tries < 10)
			write_reclaim("4M");
		n = count_pages(nr, addr, pages, PM_PRESENT);
	} while (n > 0 && --tries);
	if (n)
		ksft_print_msg("%ld of %ld pages at %p not swapped\n", n, pages, addr);
	return n;
}

static long find_vma(pid_t pid, char *addr, const char *name,
		     char **start, char **end)
{
	unsigned long first, last;
	char line[512];
	long ret = -1;
	FILE *maps;

	snprintf(line, sizeof(line), "/proc/%d/maps", pid);
	maps = fopen(line, "r");
	if (!maps)
		return -1;
	while (ret && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx", &first, &last) != 2)
			continue;
		if (name ? !strstr(line, name) :
		    (unsigned long)addr < first || (unsigned long)addr >= last)
			continue;
		*start = (char *)first;
		*end = (char *)last;
		ret = 0;
	}
	fclose(maps);
	return ret;
}

static bool is_one_vma(int nr, char *addr, long pages)
{
	char *start, *end;

	return !find_vma(member[nr].pid, addr, NULL, &start, &end) &&
	       start <= addr && end >= addr + pages * page;
}

/* -1 if the kernel does not count it. */
static long read_stat(const char *name)
{
	char text[4096];

	return read_text(STATS_FILE, text, sizeof(text)) ? -1 :
		find_count(text, name);
}

static long nr_contexts(void)
{
	return read_stat("contexts");
}

/* What is to be found is found by contexts: they are there, and not compared. */
static bool walks_use_contexts(void)
{
	return nr_contexts() >= 0 && read_stat("missed") < 0;
}

/* Contexts are freed a little later than processes. Returns the last count. */
static long wait_contexts(long most)
{
	struct timespec end = in_msecs(SETTLE_MSECS);
	long n;

	do {
		visit_cpus();
		n = nr_contexts();
		if (n <= most)
			break;
		usleep(20000);
	} while (msecs_until(&end) > 0);
	return n;
}

/* madvise() by the member, again while it says that a page is busy. */
static long advise_patiently(int nr, char *addr, long pages, long advice)
{
	int tries = 50;
	long ret;

	/* As with migration: a page may be busy for a moment. */
	do {
		ret = call(nr, op_advise, addr, pages, advice, 0);
	} while ((ret == -EBUSY || ret == -EAGAIN) && --tries && !usleep(2000));
	return ret;
}

/*
 * The member has a page replaced, for all who share it. Returns 0 when it was, or
 * where the kernel does not know how to.
 */
static long soft_offline(int nr, char *addr, long pages)
{
	long ret = advise_patiently(nr, addr, pages, MADV_SOFT_OFFLINE);

	if (ret == -EINVAL || ret == -EOPNOTSUPP) {
		ksft_print_msg("no MADV_SOFT_OFFLINE\n");
		return 0;
	}
	return ret;
}

/*
 * Setup
 */

static void make_cgroup(void)
{
	char line[PATH_MAX + 256], root[PATH_MAX], path[2 * PATH_MAX];
	FILE *mounts = fopen("/proc/mounts", "r");
	bool found = false;

	while (mounts && !found && fgets(line, sizeof(line), mounts))
		found = sscanf(line, "%*s %4095s cgroup2", root) == 1 &&
			strstr(line, " cgroup2 ");
	if (mounts)
		fclose(mounts);
	if (!found)
		return;
	snprintf(path, sizeof(path), "%s/cgroup.subtree_control", root);
	if (write_text(path, "+memory"))
		return;
	snprintf(path, sizeof(path), "%s/cow_context.%d", root, getpid());
	if (strlen(path) >= sizeof(cgroup) || (mkdir(path, 0755) && errno != EEXIST))
		return;
	snprintf(cgroup, sizeof(cgroup), "%.*s", (int)sizeof(cgroup) - 1, path);
	snprintf(path, sizeof(path), "%s/memory.reclaim", cgroup);
	if (access(path, W_OK)) {
		rmdir(cgroup);
		cgroup[0] = '\0';
	}
}

static void find_nodes(void)
{
	int node;

	if (numa_available() < 0)
		return;
	for (node = 0; node <= numa_max_node() && nr_nodes < 2; node++)
		if (numa_node_size64(node, NULL) > 0)
			nodes[nr_nodes++] = node;
}

/* Children, and theirs: with the parent gone they are the conductor's. */
static void kill_family(void)
{
	char path[64], text[4096], *p;
	long pid;
	int i;

	for (i = 0; i < MAX_MEMBERS; i++)
		if (member[i].pid > 0)
			kill(member[i].pid, SIGKILL);
	snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
	do {
		if (read_text(path, text, sizeof(text)))
			break;
		for (p = text; (pid = strtol(p, &p, 10)) > 0; )
			kill(pid, SIGKILL);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		usleep(1000);
	} while (text[0]);
}

static char balancing[8];

static void setup_family(struct __test_metadata *_metadata)
{
	struct timeval timeout = { .tv_sec = REPLY_SECONDS };
	char text[4096];
	int i;

	if (geteuid())
		SKIP(return, "needs root: pagemap, MPOL_MF_MOVE_ALL");

	page = psize();
	pmd_size = read_pmd_pagesize();
	area_size = 4 * (pmd_size ? pmd_size : 2UL << 20);
	find_nodes();
	have_swap = !read_text("/proc/swaps", text, sizeof(text)) &&
		    strchr(text, '\n') && strchr(text, '\n')[1];
	make_cgroup();
	ksft_print_msg("%s, %s, %s%s%s\n",
		       nr_nodes < 2 ? "one node" : "two nodes",
		       have_swap ? "swap" : "no swap",
		       cgroup[0] ? "memory cgroup" : "no memory cgroup",
		       access(SPLIT_FILE, W_OK) ? ", no " SPLIT_FILE : "",
		       access(IDLE_FILE, W_OK) ? ", no " IDLE_FILE : "");

	/* Pages are to stay where the tests put them. */
	if (read_text(BALANCING_FILE, balancing, sizeof(balancing)))
		balancing[0] = '\0';
	write_text(BALANCING_FILE, "0");

	shared = mmap(NULL, sizeof(*shared), RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(shared, MAP_FAILED);
	areas = mmap(NULL, (NR_AREAS + 1) * area_size, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(areas, MAP_FAILED);
	areas += area_size - (uintptr_t)areas % area_size;

	ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
	for (i = 0; i < MAX_MEMBERS; i++) {
		ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, member[i].sock), 0);
		ASSERT_EQ(setsockopt(member[i].sock[0], SOL_SOCKET, SO_RCVTIMEO,
				     &timeout, sizeof(timeout)), 0);
	}
	ASSERT_EQ(first_member(), 0);
}

static void teardown_family(void)
{
	kill_family();
	if (balancing[0])
		write_text(BALANCING_FILE, balancing);
	if (cgroup[0])
		rmdir(cgroup);
}

/* Which of these fails says it all; they need no text. */
#define OK(expr)		ASSERT_EQ(0, expr)
#define FILL(nr, addr, n, seed)	OK(call(nr, op_fill, addr, n, seed, 0))
#define CHECK(nr, addr, n, seed) OK(call(nr, op_check, addr, n, seed, 0))
#define CHECK_FROM(nr, addr, n, seed, first) \
	OK(call(nr, op_check, addr, n, seed, first))
#define TOGETHER(a, at_a, b, at_b, n)	OK(count_apart(a, at_a, b, at_b, n))
#define APART(a, at_a, b, at_b, n)	OK(count_together(a, at_a, b, at_b, n))
#define MOVE(nr, addr, n, to, flags) \
	OK(call(nr, op_move, addr, n, (long)(to), flags))

FIXTURE(cow_context) {};

FIXTURE_SETUP(cow_context)
{
	setup_family(_metadata);
}

FIXTURE_TEARDOWN(cow_context)
{
	teardown_family();
}

/*
 * Scenario 1: a middle generation dies while its child lives, and the ranges
 * that were dropped are mapped, faulted and merged again (CVE-2022-42703).
 */
FIXTURE(cow_context_reuse) {};

FIXTURE_VARIANT(cow_context_reuse)
{
	int dropper;
};

FIXTURE_VARIANT_ADD(cow_context_reuse, parent) { .dropper = 0, };
FIXTURE_VARIANT_ADD(cow_context_reuse, child) { .dropper = 1, };

FIXTURE_SETUP(cow_context_reuse)
{
	setup_family(_metadata);
}

FIXTURE_TEARDOWN(cow_context_reuse)
{
	teardown_family();
}

TEST_F_TIMEOUT(cow_context_reuse, leaf, TEST_SECONDS)
{
	const int dropper = variant->dropper, keeper = !dropper;
	char *a = area(0), *hole = a + 4 * page;
	int last;

	/*
	 *      |----|----|--------|
	 * 0    | 1  | 1  |   1    |   dropper: | 1  | 2  |   1    |
	 *      |----|----|--------|
	 */
	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 1);
	OK(fork_member(0, 1));
	OK(call(dropper, op_unmap, hole, 4, 0, 0));
	OK(fork_member(1, 2));
	OK(call(dropper, op_map, hole, 4, 0, 0));
	OK(call(dropper, op_fill, hole, 4, 2, 0));
	OK(migrate_all(dropper, a, PAGES));
	CHECK(keeper, a, PAGES, 1);
	TOGETHER(0, a, 1, a, 4);
	APART(0, hole, 1, hole, 4);

	/* The middle goes, and below it a generation is added. */
	OK(fork_member(2, 3));
	OK(exit_member(1));
	OK(fork_member(2, 4));
	OK(fork_member(0, 5));
	for (last = 2; last <= 4; last++) {
		TOGETHER(0, a, last, a, 4);
		TOGETHER(0, a + 8 * page, last, a + 8 * page, 8);
	}
	OK(migrate_all(4, a, 4));
	OK(migrate_all(4, a + 8 * page, 8));
	TOGETHER(0, a, 4, a, 4);
	TOGETHER(3, a, 4, a, 4);

	/* What the child of the dropper lacks it maps for itself. */
	if (dropper == 1) {
		OK(call(2, op_map, hole, 4, 0, 0));
		OK(call(2, op_fill, hole, 4, 3, 0));
		OK(migrate_all(2, a, PAGES));
		OK(call(2, op_check, hole, 4, 3, 0));
	}
	OK(exit_member(0));
	OK(page_out(3, a, 4));
	OK(page_out(3, a + 8 * page, 8));
	for (last = 2; last <= 5; last++) {
		CHECK(last, a, 4, 1);
		CHECK_FROM(last, a + 8 * page, 8, 1, 8);
	}
	OK(call(5, op_check, hole, 4, dropper ? 1 : 2, dropper ? 4 : 0));
	OK(migrate_all(5, a, PAGES));
	OK(migrate_all(2, a, 4));
	for (last = 3; last <= 5; last++)
		TOGETHER(2, a, last, a, 4);
}

/*
 * Scenario 2: a faulted VMA is moved back next to unfaulted ones and merges
 * with them (CVE-2026-23077).
 */
FIXTURE(cow_context_merge) {};

FIXTURE_VARIANT(cow_context_merge)
{
	bool prev, next;
};

FIXTURE_VARIANT_ADD(cow_context_merge, prev) { .prev = true, };
FIXTURE_VARIANT_ADD(cow_context_merge, next) { .next = true, };
FIXTURE_VARIANT_ADD(cow_context_merge, both) { .prev = true, .next = true, };

FIXTURE_SETUP(cow_context_merge)
{
	setup_family(_metadata);
}

FIXTURE_TEARDOWN(cow_context_merge)
{
	teardown_family();
}

TEST_F_TIMEOUT(cow_context_merge, after_mremap, TEST_SECONDS)
{
	char *a = area(0), *b = a + PAGES * page, *c = b + PAGES * page;
	char *away = area(1);
	char *first = variant->prev ? a : b;
	long n = PAGES * (1 + variant->prev + variant->next);
	int nr;

	/*
	 *            |----------------------|
	 *            v                      |
	 *  |-------|.......|-------|    |-------|
	 *  |   A   | hole  |   C   |    |   B   |
	 *  |-------|.......|-------|    |-------|
	 *  unfaulted        unfaulted    faulted
	 */
	OK(call(0, op_map, b, PAGES, 0, 0));
	FILL(0, b, PAGES, 1);
	OK(fork_member(0, 1));
	for (nr = 0; nr < 2; nr++) {
		MOVE(nr, b, PAGES, away, 0);
		OK(migrate_all(nr, away, PAGES));
		if (variant->prev)
			OK(call(nr, op_map, a, PAGES, 0, 0));
		if (variant->next)
			OK(call(nr, op_map, c, PAGES, 0, 0));
		MOVE(nr, away, PAGES, b, MREMAP_DONTUNMAP);
		if (nr == 0)
			ASSERT_TRUE(is_one_vma(nr, first, n));
		CHECK(nr, b, PAGES, 1);
		OK(call(nr, op_unmap, away, PAGES, 0, 0));
		/* Now all of it is faulted, and is split and merged. */
		OK(migrate_all(nr, b, PAGES));
		TOGETHER(0, b, 1, b, PAGES);
		if (variant->prev)
			FILL(nr, a, PAGES, 10 + nr);
		if (variant->next)
			FILL(nr, c, PAGES, 20 + nr);
		OK(call(nr, op_protect, b + 4 * page, 4, PROT_READ, 0));
		OK(migrate_all(nr, first, n));
		OK(fork_member(nr, 2 + nr));
		OK(call(nr, op_protect, b + 4 * page, 4, RW, 0));
		OK(migrate_all(2 + nr, first, n));
		TOGETHER(nr, first, 2 + nr, first, n);
	}
	TOGETHER(0, b, 1, b, PAGES);
	OK(page_out(0, b, PAGES));
	OK(exit_member(0));
	for (nr = 1; nr < 4; nr++) {
		CHECK(nr, b, PAGES, 1);
		if (variant->prev)
			CHECK(nr, a, PAGES, 10 + nr % 2);
		if (variant->next)
			CHECK(nr, c, PAGES, 20 + nr % 2);
	}
	OK(migrate_all(1, first, n));
	OK(migrate_all(2, first, n));
	TOGETHER(1, first, 3, first, n);
	TOGETHER(1, b, 2, b, PAGES);
}

/*
 * VMAs that were faulted apart become one when what is between them is mapped: their
 * origins are equal. anon_vma would have to have the same for both. In a child they
 * are inherited, and what is mapped there is its own.
 */
TEST_F_TIMEOUT(cow_context, faulted_apart_merge, TEST_SECONDS)
{
	char *a = area(0), *b = a + PAGES * page, *c = b + PAGES * page;
	int nr;

	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 1);
	OK(call(0, op_map, c, PAGES, 0, 0));
	FILL(0, c, PAGES, 2);
	OK(fork_member(0, 1));
	for (nr = 0; nr < 2; nr++) {
		OK(call(nr, op_map, b, PAGES, 0, 0));
		/* Without the file nobody tells which kernel it is. */
		if (nr == 1 || nr_contexts() >= 0)
			ASSERT_EQ(is_one_vma(nr, a, 3 * PAGES),
				  nr == 0 && walks_use_contexts());
		FILL(nr, b, PAGES, 3 + nr);
	}
	TOGETHER(0, a, 1, a, PAGES);
	TOGETHER(0, c, 1, c, PAGES);
	OK(migrate_all(1, a, 3 * PAGES));
	OK(page_out(0, a, 3 * PAGES));
	for (nr = 0; nr < 2; nr++) {
		CHECK(nr, a, PAGES, 1);
		CHECK(nr, b, PAGES, 3 + nr);
		CHECK(nr, c, PAGES, 2);
	}
}

/*
 * Scenario 3: what the parent allocated and both have in swap is faulted in by
 * the child first.
 */
TEST_F_TIMEOUT(cow_context, child_swaps_in_first, TEST_SECONDS)
{
	char *a = area(0);

	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 1);
	OK(fork_member(0, 1));
	OK(page_out(0, a, PAGES));
	TOGETHER(0, a, 1, a, PAGES);

	CHECK(1, a, PAGES / 2, 1);
	CHECK(0, a, PAGES, 1);
	CHECK(1, a, PAGES, 1);
	OK(migrate_all(1, a, PAGES));
	OK(exit_member(1));
	OK(migrate_all(0, a, PAGES));
	OK(page_out(0, a, PAGES));
	CHECK(0, a, PAGES, 1);

	/* Once more, and the child writes to what it swaps in. */
	OK(fork_member(0, 1));
	OK(page_out(0, a, PAGES));
	OK(call(1, op_fill, a, PAGES / 2, 2, 0));
	CHECK(0, a, PAGES, 1);
	CHECK(1, a, PAGES / 2, 2);
	CHECK_FROM(1, a + PAGES / 2 * page, PAGES / 2, 1, PAGES / 2);
	OK(migrate_all(1, a, PAGES));
	OK(migrate_all(0, a, PAGES));
	APART(0, a, 1, a, PAGES / 2);
	OK(exit_member(0));
	OK(page_out(1, a, PAGES));
	CHECK(1, a, PAGES / 2, 2);
	CHECK_FROM(1, a + PAGES / 2 * page, PAGES / 2, 1, PAGES / 2);
	OK(migrate_all(1, a, PAGES));
}

/*
 * Scenario 4: endless fork chains. Of every line one process is left, and what
 * the dead have left behind must not grow with the number of generations.
 */
FIXTURE(cow_context_chain) {};

FIXTURE_VARIANT(cow_context_chain)
{
	op_fn grow;
	long generations;
};

/* The parent exits, the child goes on: the caller comes back as the child. */
static void next_generation(char *addr, long gen)
{
	pid_t pid = fork();

	if (pid) {
		if (pid < 0)
			shared->bad++;
		_exit(0);
	}
	/* One page of its own and others from several generations above. */
	shared->bad += op_check(addr + (gen + 1) % PAGES * page, 1,
				gen + 1 < PAGES ? 1 : 0,
				gen + 1 < PAGES ? gen + 1 : gen + 1 - PAGES);
	op_fill(addr + gen % PAGES * page, 1, 0, gen);
	shared->rounds++;
}

static bool another(long gen, long generations)
{
	return gen < generations && (gen < FEWER_GENERATIONS ||
				     msecs_until(&shared->race_end) > 0);
}

/* A child that lives until there is something to read. */
static void side_child(char *addr, int fd)
{
	char c;

	switch (fork()) {
	case -1:
		shared->bad++;
		break;
	case 0:
		op_fill(addr, 1, 3, 0);
		if (read(fd, &c, 1) < 0)
			shared->bad++;
		_exit(0);
	}
}

static long op_chain(char *addr, long generations, long b, long c)
{
	long gen;

	for (gen = 0; another(gen, generations); gen++)
		next_generation(addr, gen);
	return getpid();
}

/* The side child of each generation exits one generation late. */
static long op_comb(char *addr, long generations, long b, long c)
{
	int pipes[2][2];
	long gen;

	if (pipe(pipes[0]) || pipe(pipes[1]))
		return -1;
	for (gen = 0; another(gen, generations); gen++) {
		side_child(addr, pipes[gen & 1][0]);
		if (gen && write(pipes[!(gen & 1)][1], "", 1) != 1)
			shared->bad++;
		next_generation(addr, gen);
	}
	if (write(pipes[!(gen & 1)][1], "", 1) != 1)
		shared->bad++;
	return getpid();
}

/* Hold some side children along the line, drop them, and hold one less. */
static long op_hold_and_drop(char *addr, long generations, long b, long c)
{
	long gen = 0, hold, i;
	int pipes[2];

	if (pipe(pipes))
		return -1;
	for (hold = 1; hold * (hold + 1) / 2 < generations; hold++)
		;
	for (; hold > 0 && another(gen, generations + hold); hold--) {
		for (i = 0; i < hold; i++) {
			side_child(addr, pipes[0]);
			next_generation(addr, gen++);
		}
		for (i = 0; i < hold; i++)
			if (write(pipes[1], "", 1) != 1)
				shared->bad++;
	}
	return getpid();
}

FIXTURE_VARIANT_ADD(cow_context_chain, line)
{
	.grow = op_chain,
	.generations = GENERATIONS,
};

FIXTURE_VARIANT_ADD(cow_context_chain, comb)
{
	.grow = op_comb,
	.generations = GENERATIONS / 2,
};

FIXTURE_VARIANT_ADD(cow_context_chain, hold_and_drop)
{
	.grow = op_hold_and_drop,
	.generations = GENERATIONS / 2,
};

FIXTURE_SETUP(cow_context_chain)
{
	setup_family(_metadata);
}

FIXTURE_TEARDOWN(cow_context_chain)
{
	teardown_family();
}

TEST_F_TIMEOUT(cow_context_chain, generations, TEST_SECONDS)
{
	long before, ret, i;
	char *a = area(0);

	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 1);
	visit_cpus();
	before = nr_contexts();

	/* The last generation answers in the name of the first. */
	shared->race_end = in_msecs(CHAIN_MSECS);
	ret = call(0, variant->grow, a, variant->generations, 0, 0);
	ASSERT_GT(ret, 0);
	member[0].pid = ret;
	ASSERT_GE(shared->rounds, FEWER_GENERATIONS);
	ASSERT_EQ(shared->bad, 0);
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
	if (before < 0) {
		ksft_print_msg("contexts are not counted, their bound not checked\n");
	} else {
		ret = wait_contexts(before + MAX_DEAD_CONTEXTS);
		ksft_print_msg("%ld contexts, %ld after %ld generations\n",
			       before, ret, shared->rounds);
		ASSERT_LE(ret, before + MAX_DEAD_CONTEXTS);
	}

	/* Each page was written by another generation. */
	OK(migrate_all(0, a, PAGES));
	OK(fork_member(0, 1));
	OK(migrate_all(1, a, PAGES));
	OK(page_out(0, a, PAGES));
	for (i = shared->rounds - PAGES; i < shared->rounds; i++) {
		OK(call(0, op_check, a + i % PAGES * page, 1, 0, i));
		OK(call(1, op_check, a + i % PAGES * page, 1, 0, i));
	}
	OK(migrate_all(1, a, PAGES));
	TOGETHER(0, a, 1, a, PAGES);

	OK(exit_member(1));
	OK(exit_member(0));
	if (before >= 0)
		ASSERT_LE(wait_contexts(before - 1), before - 1);
}

/*
 * Scenarios 6 and 8: page tables are moved to and fro, in extents of a PTE, PMD,
 * and PUD, and of a huge PMD, while the pages are migrated or reclaimed. A child
 * shares them.
 */
FIXTURE(cow_context_mremap) {};

struct shuttle {
	char *home, *away;
	long pages;
	bool huge;
};

FIXTURE_VARIANT(cow_context_mremap)
{
	size_t size;	/* 0: of a PTE, otherwise also the alignment */
	bool huge;
};

FIXTURE_VARIANT_ADD(cow_context_mremap, pte) { .size = 0, };
FIXTURE_VARIANT_ADD(cow_context_mremap, pmd) { .size = 2UL << 20, };
FIXTURE_VARIANT_ADD(cow_context_mremap, huge) { .size = 2UL << 20, .huge = true, };
FIXTURE_VARIANT_ADD(cow_context_mremap, pud) { .size = 1UL << 30, };

FIXTURE_SETUP(cow_context_mremap)
{
	setup_family(_metadata);
}

FIXTURE_TEARDOWN(cow_context_mremap)
{
	teardown_family();
}

/* @nr pages in all: there, and back. The first @nr_read are then looked at. */
static long op_shuttle(char *home, long nr, long away, long nr_read)
{
	while (racing()) {
		if (op_move(home, nr, away, 0) ||
		    op_move((char *)away, nr, (long)home, 0) ||
		    op_check(home, nr_read, 1, 0))
			return -1;
		shared->rounds++;
	}
	return shared->rounds;
}

/* Sets @s, has member 0 fill the pages, and forks member 1. */
static void prepare_shuttle(struct __test_metadata *_metadata, struct shuttle *s,
			    size_t extent, bool huge)
{
	size_t size = extent ? extent : PAGES * page;
	char *home;

	/* Room for two, each on its boundary. */
	home = mmap(NULL, 3 * size, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(home, MAP_FAILED);
	if (extent)
		home += size - (uintptr_t)home % size;
	s->home = home;
	s->away = home + size;
	s->pages = size / page;
	s->huge = huge;
	OK(munmap(home, 2 * size));

	OK(exit_member(0));
	OK(first_member());
	OK(call(0, huge ? op_map_huge : op_map, home, s->pages, 0, 0));
	FILL(0, home, PAGES, 1);
	if (huge)
		ASSERT_TRUE(call(0, op_is_huge, home, 0, 0, 0));
	OK(fork_member(0, 1));
}

/* Each page is found in both, wherever member 0 has it. */
static void check_shuttle(struct __test_metadata *_metadata, struct shuttle *s)
{
	char *home = s->home, *away = s->away;

	CHECK(0, home, PAGES, 1);
	CHECK(1, home, PAGES, 1);
	TOGETHER(0, home, 1, home, PAGES);
	OK(migrate_all(0, home, PAGES));
	TOGETHER(0, home, 1, home, PAGES);
	MOVE(0, home, s->pages, away, 0);
	OK(migrate_all(0, away, PAGES));
	TOGETHER(0, away, 1, home, PAGES);
	OK(migrate_all(1, home, PAGES));
	TOGETHER(0, away, 1, home, PAGES);
	CHECK(0, away, PAGES, 1);
	if (s->huge) {
		split(1, home, s->pages);
		OK(migrate_all(0, away, PAGES));
		TOGETHER(0, away, 1, home, PAGES);
	}
	OK(page_out(0, away, PAGES));
	CHECK(1, home, PAGES, 1);
	CHECK(0, away, PAGES, 1);
}

TEST_F_TIMEOUT(cow_context_mremap, race_migration, TEST_SECONDS)
{
	char *list[2 * PAGES];
	struct shuttle s;

	if (variant->huge && (pmd_size != variant->size || !thp_is_enabled()))
		SKIP(return, "no huge pages of this size");

	prepare_shuttle(_metadata, &s, variant->size, variant->huge);
	list_pages(list, s.home, PAGES);
	list_pages(list + PAGES, s.away, PAGES);
	start_race(ABOUT(MIGRATED) | ABOUT(WALKS));
	OK(tell(0, op_shuttle, s.home, s.pages, (long)s.away, 2));
	migrate_until_end(0, list, 2 * PAGES);
	end_race(_metadata, answer(0));
	check_shuttle(_metadata, &s);
}

/* Scenario 8: the same while they are swapped, and come back. */
TEST_F_TIMEOUT(cow_context_mremap, race_reclaim, TEST_SECONDS)
{
	struct shuttle s;

	if (variant->huge && (pmd_size != variant->size || !thp_is_enabled()))
		SKIP(return, "no huge pages of this size");
	if (!have_swap || !cgroup[0])
		SKIP(return, "needs swap and a memory cgroup");

	prepare_shuttle(_metadata, &s, variant->size, variant->huge);
	start_race(ABOUT(SWAPPED_OUT) | ABOUT(WALKS));
	OK(tell(0, op_shuttle, s.home, s.pages, (long)s.away, PAGES));
	while (other_racing()) {
		advise_pageout(0, s.home, PAGES);
		advise_pageout(0, s.away, PAGES);
		take_back("256K");
	}
	end_race(_metadata, answer(0));
	check_shuttle(_metadata, &s);
}

/*
 * Scenario 7, and the stack: exec fills a stack, and then moves it. What is
 * executed is this program: see main().
 */
#define EXEC_CHILD	"executed-by-the-test"
#define NR_BIG_ARGS	8
#define BIG_ARG		(32 * 1024)

#define NR_STEPS	4

/* The new program and its child each read from one of @in. */
static void execute(const int *in, int out)
{
	static char big[NR_BIG_ARGS][BIG_ARG], fds[32];
	char *argv[NR_BIG_ARGS + 4] = { "cow_context", EXEC_CHILD, fds };
	int i;

	snprintf(fds, sizeof(fds), "%d,%d,%d", in[0], in[1], out);
	for (i = 0; i < NR_BIG_ARGS; i++) {
		memset(big[i], 'a' + i, BIG_ARG - 1);
		argv[3 + i] = big[i];
	}
	execv("/proc/self/exe", argv);
	_exit(1);
}

static int check_args(int argc, char **argv)
{
	int i, j;

	if (argc != NR_BIG_ARGS + 3)
		return 1;
	for (i = 0; i < NR_BIG_ARGS; i++) {
		if (strlen(argv[3 + i]) != BIG_ARG - 1)
			return 1;
		for (j = 0; j < BIG_ARG - 1; j++)
			if (argv[3 + i][j] != 'a' + i)
				return 1;
	}
	return 0;
}

/* Lets the stack grow by about a MiB and more than it did before. */
static int grow_stack(int depth)
{
	char frame[8 * 1024];
	size_t i;

	memset(frame, depth, sizeof(frame));
	/* The compiler knows neither what is in there nor who has changed it. */
	asm volatile("" : : "r" (frame) : "memory");
	if (depth && grow_stack(depth - 1))
		return 1;
	asm volatile("" : : "r" (frame) : "memory");
	for (i = 0; i < sizeof(frame); i++)
		if (frame[i] != (char)depth)
			return 1;
	return 0;
}

/* In the new program: says so, and goes on when told to. */
static int executed(int argc, char **argv)
{
	int in[2], out, step, status = 0;
	pid_t pid;
	char c;

	if (sscanf(argv[2], "%d,%d,%d", &in[0], &in[1], &out) != 3)
		return 1;
	if (in[0] < 0)
		return check_args(argc, argv);

	pid = fork();
	if (pid < 0)
		return 1;
	for (step = 0; step < NR_STEPS; step++) {
		if (write(out, &pid, sizeof(pid)) != sizeof(pid) ||
		    read(in[!pid], &c, 1) != 1)
			return 1;
		if (check_args(argc, argv) || grow_stack(64 * step))
			return 1;
	}
	if (pid && (waitpid(pid, &status, 0) != pid || status))
		return 1;
	return check_args(argc, argv);
}

/* Returns how often, or -1 for a program that does not find its arguments. */
static long op_exec_loop(char *addr, long b, long c, long d)
{
	const int none[2] = { -1, -1 };
	int status;
	pid_t pid;

	signal(SIGCHLD, SIG_DFL);
	while (racing()) {
		pid = fork();
		if (!pid) {
			shared->newest = getpid();
			execute(none, -1);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			return -1;
		shared->rounds++;
	}
	return shared->rounds;
}

/* Everywhere, or on the first node. */
static int compact_nodes(void)
{
	char path[64];

	if (!write_text(COMPACT_FILE, "1"))
		return 0;
	snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/compact",
		 nodes[0]);
	return write_text(path, "1");
}

TEST_F_TIMEOUT(cow_context, exec_race_migration, TEST_SECONDS)
{
	unsigned long here, there;
	long compacted = 0, asked = 0, i;

	start_race(ABOUT(MIGRATED) | ABOUT(WALKS));
	OK(tell(0, op_exec_loop, NULL, 0, 0, 0));
	for (i = 0; other_racing(); i++) {
		pid_t pid = FORCE_READ(shared->newest);

		/* A stack that is being filled has no other way to be moved. */
		compacted += !compact_nodes();
		if (pid && nr_nodes > 1) {
			here = 1UL << nodes[i & 1];
			there = 1UL << nodes[!(i & 1)];
			asked += migrate_pages(pid, 8 * sizeof(here),
					       &here, &there) >= 0;
		}
		usleep(20000);
	}
	ksft_print_msg("%ld times compacted, %ld processes migrated\n",
		       compacted, asked);
	end_race(_metadata, answer(0));
}

/* The stack of a new program and of its child: moved by exec, grown later. */
TEST_F_TIMEOUT(cow_context, stack, TEST_SECONDS)
{
	const long len = 8 * BIG_ARG, n = len / page - 2;
	int to[2][2], from[2], in[2], status, step, i;
	char *start, *end, *strings;
	pid_t got;

	for (i = 0; i < 2; i++) {
		OK(pipe(to[i]));
		in[i] = to[i][0];
	}
	OK(pipe(from));
	member[1].pid = fork();
	if (!member[1].pid) {
		join_cgroup();
		execute(in, from[1]);
	}
	ASSERT_GT(member[1].pid, 0);
	for (step = 0; step < NR_STEPS; step++) {
		for (i = 0; i < 2; i++) {
			ASSERT_EQ(read(from[0], &got, sizeof(got)), sizeof(got));
			if (got)
				member[2].pid = got;
		}
		for (i = 0; i < 4; i++) {
			OK(find_vma(member[1 + i % 2].pid, NULL, "[stack]", &start, &end));
			ASSERT_LE((end - start) / page, MAX_PAGES);
			OK(migrate(1 + i % 2, start, (end - start) / page));
		}
		/* The strings lie at the end: nobody writes to them. */
		strings = end - len;
		ASSERT_EQ(count_pages(1, strings, n, PM_PRESENT), n);
		TOGETHER(1, strings, 2, strings, n);
		OK(page_out(1, strings, n));
		TOGETHER(1, strings, 2, strings, n);
		for (i = 0; i < 2; i++)
			ASSERT_EQ(write(to[i][1], "x", 1), 1);
	}
	ASSERT_EQ(waitpid(member[1].pid, &status, 0), member[1].pid);
	member[1].pid = 0;
	member[2].pid = 0;
	OK(status);

	/* And the stack of the family, which was moved long ago. */
	OK(fork_member(0, 3));
	for (i = 0; i < 4; i++) {
		OK(find_vma(member[i & 1 ? 3 : 0].pid, NULL, "[stack]", &start, &end));
		OK(migrate(i & 1 ? 3 : 0, start, (end - start) / page));
	}
	TOGETHER(0, end - page, 3, end - page, 1);
	/* They still have one to stand on. */
	CHECK(0, NULL, 0, 0);
	CHECK(3, NULL, 0, 0);
}

/*
 * Scenario 9: small pages become a huge one, which is moved, while they are
 * migrated, split, and read. A child that shares them keeps the small ones.
 * khugepaged makes large ones of smaller sizes, too, of what is not shared: then
 * the child comes after.
 */
#define COLLAPSE_MSECS	2000

FIXTURE(cow_context_collapse)
{
	bool have_thp;
};

FIXTURE_VARIANT(cow_context_collapse)
{
	bool khugepaged;
	long size;	/* 0: of a PMD */
};

FIXTURE_VARIANT_ADD(cow_context_collapse, madvise) { .size = 0, };
FIXTURE_VARIANT_ADD(cow_context_collapse, khugepaged) { .khugepaged = true, };
FIXTURE_VARIANT_ADD(cow_context_collapse, khugepaged_mthp)
{
	.khugepaged = true,
	.size = 64 * 1024,
};

FIXTURE_SETUP(cow_context_collapse)
{
	unsigned long orders, i;
	struct thp_settings settings;

	setup_family(_metadata);
	self->have_thp = pmd_size && thp_is_enabled();
	if (!self->have_thp || !variant->khugepaged)
		return;
	thp_save_settings();
	thp_read_settings(&settings);
	orders = thp_supported_orders();
	for (i = 0; i < NR_ORDERS; i++)
		if (orders & 1UL << i)
			settings.hugepages[i].enabled =
				page << i == (variant->size ?: pmd_size) ?
				THP_MADVISE : THP_NEVER;
	settings.khugepaged.defrag = true;
	settings.khugepaged.alloc_sleep_millisecs = 10;
	settings.khugepaged.scan_sleep_millisecs = 10;
	settings.khugepaged.max_ptes_none = pmd_size / page - 1;
	settings.khugepaged.pages_to_scan = 8 * pmd_size / page;
	thp_write_settings(&settings);
}

FIXTURE_TEARDOWN(cow_context_collapse)
{
	teardown_family();
	thp_restore_settings();
}

static struct {
	char *addr;
	long nr, bad, reads;
	bool stop;
} reader;

/* Reads what is there, if it is: the fault is the kernel's, not a signal. */
static void *read_thread(void *arg)
{
	struct iovec to, from;
	uint64_t value;
	long i;

	for (i = 0; !FORCE_READ(reader.stop); i = (i + 7) % reader.nr) {
		to = (struct iovec){ &value, sizeof(value) };
		from = (struct iovec){ reader.addr + i * page, sizeof(value) };
		if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) != sizeof(value))
			continue;
		reader.reads++;
		reader.bad += value && value != content(1, i);
		sched_yield();
	}
	return NULL;
}

enum { BY_MADVISE, BY_KHUGEPAGED, BY_KHUGEPAGED_UNSHARED };

static bool collapse(char *addr, bool by_khugepaged)
{
	struct timespec end = in_msecs(COLLAPSE_MSECS);

	if (!by_khugepaged)
		return !madvise(addr, pmd_size, MADV_COLLAPSE);
	while (racing() && msecs_until(&end) > 0) {
		if (__is_large(getpid(), addr) > 0)
			return true;
		usleep(1000);
	}
	return false;
}

/* A huge page, of which @nr small ones are used. Without a collapse no round. */
static long op_collapse_loop(char *home, long nr, long away, long how)
{
	const long all = pmd_size / page;
	const size_t size = pmd_size;
	bool collapsed = false;
	pthread_t thread;
	long ret = -1;

	signal(SIGCHLD, SIG_DFL);
	memset(&reader, 0, sizeof(reader));
	reader.addr = home;
	reader.nr = nr;
	if (pthread_create(&thread, NULL, read_thread, NULL))
		return -1;
	while (racing()) {
		int status;
		pid_t pid;

		if (madvise(home, size, MADV_NOHUGEPAGE) ||
		    madvise(home, size, MADV_DONTNEED))
			goto out;
		op_fill(home, nr, 1, 0);
		if (how == BY_KHUGEPAGED_UNSHARED) {
			if (madvise(home, size, MADV_HUGEPAGE))
				goto out;
			collapsed = collapse(home, true);
		}
		pid = fork();
		if (!pid)
			_exit(!!op_check(home, nr, 1, 0));
		if (pid < 0 || madvise(home, size, MADV_HUGEPAGE))
			goto out;
		if (how != BY_KHUGEPAGED_UNSHARED)
			collapsed = collapse(home, how == BY_KHUGEPAGED);
		if (op_move(home, all, away, 0) ||
		    op_check((char *)away, nr, 1, 0) ||
		    op_move((char *)away, all, (long)home, 0) ||
		    op_check(home, nr, 1, 0) ||
		    waitpid(pid, &status, 0) != pid || status)
			goto out;
		shared->rounds += collapsed;
	}
	ret = shared->rounds;
out:
	reader.stop = true;
	pthread_join(thread, NULL);
	shared->bad += reader.bad;
	return reader.reads ? ret : -1;
}

/* A kernel whose khugepaged knows the size counts what it does. */
static bool collapses_to(long size)
{
	char path[128];

	snprintf(path, sizeof(path), THP_DIR "hugepages-%ldkB/stats/collapse_alloc",
		 size / 1024);
	return !access(path, R_OK);
}

TEST_F_TIMEOUT(cow_context_collapse, race_migration, TEST_SECONDS)
{
	const long how = !variant->khugepaged ? BY_MADVISE :
			 variant->size ? BY_KHUGEPAGED_UNSHARED : BY_KHUGEPAGED;
	char *a = area(0), *b = area(1), *list[4 * PAGES];
	const long used = 2 * PAGES;
	static int status[4 * PAGES];
	long pages = pmd_size / page, i;

	if (!self->have_thp)
		SKIP(return, "no huge pages");
	if (how == BY_KHUGEPAGED_UNSHARED && !collapses_to(variant->size))
		SKIP(return, "khugepaged makes huge pages only");
	OK(call(0, op_map, a, pages, 0, 0));
	FILL(0, a, PAGES, 1);
	if (call(0, op_advise, a, pages, MADV_COLLAPSE, 0) == -EINVAL)
		SKIP(return, "no MADV_COLLAPSE");

	list_pages(list, a, used);
	list_pages(list + used, b, used);
	start_race(ABOUT(MIGRATED) | ABOUT(WALKS));
	OK(tell(0, op_collapse_loop, a, used, (long)b, how));
	for (i = 0; other_racing(); i++) {
		if (nr_nodes > 1)
			move_list(member[0].pid, list, 2 * used, nodes[i & 1], status);
		mark_idle(0, i & 2 ? a : b, used);
		/* A page that is isolated or locked is in the way of collapse. */
		usleep(1000);
	}
	end_race(_metadata, answer(0));
	ASSERT_EQ(shared->bad, 0);

	/* Once more in peace. */
	thp_restore_settings();
	OK(advise_patiently(0, a, pages, MADV_COLLAPSE));
	ASSERT_TRUE(call(0, op_is_huge, a, 0, 0, 0));
	CHECK(0, a, used, 1);
	OK(fork_member(0, 1));
	MOVE(1, a, pages, b, 0);
	OK(migrate_all(0, a, pages));
	TOGETHER(0, a, 1, b, pages);
	split(1, b, pages);
	OK(migrate_all(1, b, pages));
	TOGETHER(0, a, 1, b, pages);
	/* What is all zeroes is the zero page's once it was split. */
	OK(page_out(0, a, used));
	CHECK(1, b, used, 1);
	CHECK(0, a, used, 1);
}

/*
 * Scenario 10: UFFDIO_MOVE to and fro while the pages are migrated, marked idle,
 * and swapped.
 */
FIXTURE(cow_context_uffd) {};

FIXTURE_VARIANT(cow_context_uffd)
{
	bool huge, swap;
};

FIXTURE_VARIANT_ADD(cow_context_uffd, small) {};
FIXTURE_VARIANT_ADD(cow_context_uffd, swapped) { .swap = true, };
FIXTURE_VARIANT_ADD(cow_context_uffd, huge) { .huge = true, };

FIXTURE_SETUP(cow_context_uffd)
{
	setup_family(_metadata);
}

FIXTURE_TEARDOWN(cow_context_uffd)
{
	teardown_family();
}

static int uffd = -1;

static long op_open_uffd(char *addr, long b, long c, long d)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MOVE };

	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0)
		return -errno;
	return ioctl(uffd, UFFDIO_API, &api) ? -errno : 0;
}

static long op_close_uffd(char *addr, long b, long c, long d)
{
	return close(uffd);
}

/*
 * Returns 0 or -errno. EBUSY is for pages that may be shared, too: one that came
 * back from swap while it was still written there, until it is written to.
 */
static int uffd_move(char *to, char *from, size_t len)
{
	struct timespec end = in_msecs(REPLY_SECONDS * 1000 / 4);

	while (len) {
		struct uffdio_move m = {
			.dst = (uintptr_t)to,
			.src = (uintptr_t)from,
			.len = len,
			.mode = UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES,
		};

		if (!ioctl(uffd, UFFDIO_MOVE, &m))
			break;
		if ((errno != EAGAIN && errno != EBUSY) || msecs_until(&end) < 0)
			return -errno;
		if (errno == EBUSY)
			__atomic_fetch_add((uint64_t *)from, 0, __ATOMIC_RELAXED);
		if (m.move > 0) {
			to += m.move;
			from += m.move;
			len -= m.move;
		} else {
			usleep(10);
		}
	}
	return 0;
}

/* Mapped anew in each round: only without a page table can a huge page go there. */
static long op_uffd_shuttle(char *home, long nr, long to, long swap)
{
	op_fn map = nr > PAGES ? op_map_huge : op_map;
	char *away = (char *)to;
	int i, ret;

	while (racing()) {
		if (map(home, nr, 0, 0) || map(away, nr, 0, 0))
			return -1;
		op_fill(home, PAGES, 1, 0);
		/* Half of it is then in the swap cache. */
		if (swap && (madvise(home, nr * page, MADV_PAGEOUT) ||
			     op_check(home, PAGES / 2, 1, 0)))
			return -1;
		if (uffd_register(uffd, home, nr * page, true, false, false) ||
		    uffd_register(uffd, away, nr * page, true, false, false))
			return -1;
		for (i = 0; i < 3; i++) {
			char *dst = i & 1 ? home : away, *src = i & 1 ? away : home;

			ret = uffd_move(dst, src, nr * page);
			if (ret)
				return ret;
			if (op_check(dst, PAGES, 1, 0))
				return -1;
		}
		if (uffd_unregister(uffd, home, nr * page) ||
		    uffd_unregister(uffd, away, nr * page))
			return -1;
		shared->rounds++;
	}
	return shared->rounds;
}

TEST_F_TIMEOUT(cow_context_uffd, race_migration, TEST_SECONDS)
{
	long pages = variant->huge ? pmd_size / page : PAGES, i;
	unsigned int about = ABOUT(MIGRATED) | ABOUT(WALKS);
	char *a = area(0), *b = area(1), *list[2 * PAGES];
	static int status[2 * PAGES];

	if (variant->huge && (!pmd_size || !thp_is_enabled()))
		SKIP(return, "no huge pages");
	if (variant->swap && !have_swap)
		SKIP(return, "needs swap");
	if (call(0, op_open_uffd, NULL, 0, 0, 0))
		SKIP(return, "no UFFDIO_MOVE");
	if (!variant->huge)
		about |= ABOUT(SWAPPED_OUT);

	list_pages(list, a, PAGES);
	list_pages(list + PAGES, b, PAGES);
	start_race(about);
	OK(tell(0, op_uffd_shuttle, a, pages, (long)b, variant->swap));
	for (i = 0; other_racing(); i++) {
		if (nr_nodes > 1)
			move_list(member[0].pid, list, 2 * PAGES, nodes[i & 1], status);
		mark_idle(0, a, PAGES);
		mark_idle(0, b, PAGES);
		if (!variant->huge)
			advise_pageout(0, i & 2 ? a : b, PAGES);
	}
	end_race(_metadata, answer(0));

	/* What was moved is found, in a child as well. */
	OK(call(0, op_close_uffd, NULL, 0, 0, 0));
	CHECK(0, b, PAGES, 1);
	OK(migrate_all(0, b, PAGES));
	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 2);
	OK(fork_member(0, 1));
	MOVE(1, b, PAGES, area(2), 0);
	OK(migrate_all(0, b, PAGES));
	TOGETHER(0, b, 1, area(2), PAGES);
	OK(migrate_all(1, area(2), PAGES));
	TOGETHER(0, b, 1, area(2), PAGES);
	OK(page_out(0, b, PAGES));
	CHECK(1, area(2), PAGES, 1);
	CHECK(0, b, PAGES, 1);
	CHECK(1, a, PAGES, 2);
}

/*
 * Scenario 12: a page that is pinned for long is copied at fork, into a VMA
 * that has no page of its own.
 */
static long op_pin(char *addr, long nr, long b, long c)
{
	struct pin_longterm_test args = {
		.addr = (uintptr_t)addr,
		.size = nr * page,
		.flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE,
	};

	pin_fd = open(GUP_TEST_FILE, O_RDWR);
	if (pin_fd < 0)
		return -errno;
	return ioctl(pin_fd, PIN_LONGTERM_TEST_START, &args) ? -errno : 0;
}

/* Do the pinned pages hold what this process sees? */
static long op_check_pinned(char *addr, long nr, long b, long c)
{
	char *buf = malloc(nr * page);
	__u64 to = (uintptr_t)buf;
	long ret = -1;

	if (buf && !ioctl(pin_fd, PIN_LONGTERM_TEST_READ, &to))
		ret = !!memcmp(buf, addr, nr * page);
	free(buf);
	return ret;
}

static long op_unpin(char *addr, long b, long c, long d)
{
	int ret = ioctl(pin_fd, PIN_LONGTERM_TEST_STOP);

	close(pin_fd);
	return ret;
}

TEST_F_TIMEOUT(cow_context, pinned_at_fork, TEST_SECONDS)
{
	char *a = area(0);

	if (access(GUP_TEST_FILE, R_OK | W_OK))
		SKIP(return, "needs CONFIG_GUP_TEST and debugfs");

	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, 4, 1);
	OK(call(0, op_pin, a, 4, 0, 0));
	OK(fork_member(0, 1));
	APART(0, a, 1, a, 4);
	CHECK(1, a, 4, 1);
	OK(migrate_all(1, a, 4));
	CHECK(1, a, 4, 1);
	OK(page_out(1, a, 4));

	/* The pin and its owner see the same, the child what there was. */
	FILL(0, a, 4, 2);
	OK(call(0, op_check_pinned, a, 4, 0, 0));
	CHECK(1, a, 4, 1);
	OK(fork_member(1, 2));
	TOGETHER(1, a, 2, a, 4);
	OK(migrate_all(2, a, 4));
	TOGETHER(1, a, 2, a, 4);
	OK(call(0, op_unpin, a, 0, 0, 0));
	OK(migrate_all(0, a, 4));
	CHECK(0, a, 4, 2);
	CHECK(2, a, 4, 1);
}

/*
 * Scenarios 13 to 15, 29, and 30: families come and go, unmap, and take all locks
 * of an mm, while what they share is migrated, split, and reclaimed.
 */
FIXTURE(cow_context_family)
{
	bool loaded_hmm;
};

FIXTURE_VARIANT(cow_context_family)
{
	op_fn live;
	long how;
	bool huge;
	bool brk;
	bool hmm;
};

#define FORKS_EACH	2
#define FORK_DEPTH	4

/* A tree of processes all of which read everything. Returns what is wrong. */
static int fork_tree(char *addr, long nr, int depth)
{
	int status, bad = 0, i;
	pid_t pid;

	for (i = 0; i < FORKS_EACH; i++) {
		pid = fork();
		if (pid < 0)
			return 1;
		if (pid)
			continue;
		bad = !!op_check(addr, nr, 1, 0);
		if (depth > 1)
			bad |= fork_tree(addr, nr, depth - 1);
		_exit(bad | !!op_check(addr, nr, 1, 0));
	}
	while (wait(&status) > 0)
		bad |= !!status;
	return bad;
}

/* New pages; a huge one, which was split, if @huge pages are one. */
static long fill_anew(char *addr, long nr, long huge)
{
	if (huge ? op_map_huge(addr, huge, 0, 0) :
		   madvise(addr, nr * page, MADV_DONTNEED))
		return -1;
	return op_fill(addr, nr, 1, 0);
}

/* Scenario 13: four generations at a time. */
static long op_fork_storm(char *addr, long nr, long huge, long c)
{
	signal(SIGCHLD, SIG_DFL);
	while (racing()) {
		if (fill_anew(addr, nr, huge))
			return -1;
		if (fork_tree(addr, nr, FORK_DEPTH))
			return -1;
		shared->rounds++;
	}
	return shared->rounds;
}

/* Scenario 14: children exit early, late, and after their own children. */
static long op_exit_storm(char *addr, long nr, long huge, long c)
{
	int status, bad, i;
	pid_t pid;

	signal(SIGCHLD, SIG_DFL);
	while (racing()) {
		if (fill_anew(addr, nr, huge))
			return -1;
		for (i = 0; i < 8; i++) {
			pid = fork();
			if (pid < 0)
				return -1;
			if (pid)
				continue;
			usleep(i * 300);
			if (i & 1 && fork() > 0)
				_exit(0);
			bad = op_check(addr + i * page, nr / 2, 1, i);
			if (bad)
				shared->bad++;
			if (i & 2)
				op_fill(addr, 4, 2, 0);
			_exit(!!bad);
		}
		for (i = 0; i < 8; i++)
			if (wait(&status) < 0 || status)
				return -1;
		shared->rounds++;
	}
	return shared->rounds;
}

enum { UNMAP, OVERMAP, SHRINK_BRK };

/* A child for each round: 0 there; here how many there were, -1 if one failed. */
static long fork_rounds(void)
{
	int status;
	pid_t pid;

	signal(SIGCHLD, SIG_DFL);
	while (racing()) {
		pid = fork();
		if (!pid)
			return 0;
		if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
			return -1;
		shared->rounds++;
	}
	return shared->rounds ?: -1;
}

/* Scenario 15: children unmap a range of many VMAs at once. */
static long op_unmap_storm(char *addr, long nr, long how, long c)
{
	long rounds = fork_rounds();
	int i;

	if (rounds)
		return rounds;
	if (op_check(addr, PAGES, 1, 0))
		_exit(1);
	for (i = 0; i < 2; i++) {
		switch (how) {
		case UNMAP:
			if (op_unmap(addr, nr, 0, 0))
				_exit(2);
			break;
		case OVERMAP:
			if (op_map(addr, nr, 0, 0))
				_exit(3);
			break;
		case SHRINK_BRK:
			if (!i && brk(addr))
				_exit(4);
			break;
		}
		/* Own memory in its place, which nobody may touch. */
		if (op_map(addr, 2 * PAGES, 0, 0))
			_exit(5);
		op_fill(addr, 2 * PAGES, 4, 0);
		if (op_check(addr, 2 * PAGES, 4, 0))
			_exit(6);
	}
	_exit(0);
}

/* Opening it registers an MMU notifier, the first of the mm. */
static char hmm_device[64];

static int make_hmm_device(bool *loaded)
{
	char text[4096], *at = NULL;
	int i;

	for (i = 0; i < 2 && !at; i++) {
		if (i && system("modprobe -q test_hmm"))
			return -1;
		*loaded = i;
		if (!read_text("/proc/devices", text, sizeof(text)))
			at = strstr(text, " HMM_DMIRROR");
	}
	if (!at)
		return -1;
	while (at > text && at[-1] != '\n')
		at--;
	snprintf(hmm_device, sizeof(hmm_device), "/tmp/cow_context.%d", getpid());
	return mknod(hmm_device, S_IFCHR | 0600, makedev(atoi(at), 0));
}

/*
 * The pages of who opened @fd. Returns how many went; -1 is also for less than all,
 * when they are to go to the device.
 */
static long device_migrate(int fd, unsigned long request, char *addr, long nr)
{
	static char *copy;
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)addr,
		.npages = nr,
	};

	/* What went is copied to where it does not have to come back for that. */
	if (!copy)
		copy = mmap(NULL, nr * page, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	cmd.ptr = (uintptr_t)copy;
	return ioctl(fd, request, &cmd) ? -1 : (long)cmd.cpages;
}

/*
 * Scenario 29: children exit, early, late, and after their own children, while
 * the pages that they share go to a device and come back.
 */
static long op_device_storm(char *addr, long nr, long b, long c)
{
	int fd = open(hmm_device, O_RDWR), status;
	long rounds, n;
	pid_t pid;

	if (fd < 0)
		return -1;
	pid = fork();
	while (!pid) {
		device_migrate(fd, HMM_DMIRROR_MIGRATE_TO_DEV, addr, nr);
		n = device_migrate(fd, HMM_DMIRROR_MIGRATE_TO_SYS, addr, nr);
		if (n > 0)
			shared->to_device += n;
	}
	rounds = pid > 0 ? op_exit_storm(addr, nr, 0, 0) : -1;
	if (pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
	}
	/* The last to close it, while nothing migrates. */
	close(fd);
	return shared->to_device < RACE_LEAST ? -1 : rounds;
}

/*
 * The same, but all who map the pages, and whose they are, exit while the device
 * gives them back: it does when anyone closes it. Nobody may migrate to it then.
 */
static void __noreturn evicted_child(char *addr, long nr)
{
	int fd = open(hmm_device, O_RDWR);
	long n;

	if (fd < 0)
		_exit(1);
	op_fill(addr, nr, 1, 0);
	n = device_migrate(fd, HMM_DMIRROR_MIGRATE_TO_DEV, addr, nr);
	if (n > 0)
		shared->to_device += n;
	if (!fork()) {
		usleep(shared->rounds % 8 * 200);
		_exit(shared->rounds & 8 && op_check(addr, 2, 1, 0));
	}
	shared->ready = true;
	usleep(shared->rounds % 5 * 300);
	_exit(0);
}

static long op_evict_storm(char *addr, long nr, long b, long c)
{
	int status, fd;
	pid_t pid;

	signal(SIGCHLD, SIG_DFL);
	/* Grandchildren become children, whose end can be waited for. */
	if (prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
		return -1;
	while (racing()) {
		const long before = shared->to_device;

		if (fill_anew(addr, nr, 0))
			return -1;
		shared->ready = false;
		pid = fork();
		if (!pid)
			evicted_child(addr, nr);
		while (!FORCE_READ(shared->ready))
			if (waitpid(pid, &status, WNOHANG) && !FORCE_READ(shared->ready))
				return -1;
		fd = open(hmm_device, O_RDWR);
		if (fd < 0)
			return -1;
		close(fd);
		while (wait(&status) > 0)
			if (status)
				return -1;
		shared->rounds += shared->to_device != before;
	}
	return shared->rounds;
}

/* Scenario 30: children take the locks of all VMAs at once. */
static long op_notifier_storm(char *addr, long nr, long b, long c)
{
	long rounds = fork_rounds();

	if (rounds)
		return rounds;
	_exit(open(hmm_device, O_RDWR) < 0 || op_check(addr, nr, 1, 0));
}

FIXTURE_VARIANT_ADD(cow_context_family, fork) { .live = op_fork_storm, };
FIXTURE_VARIANT_ADD(cow_context_family, fork_huge)
{
	.live = op_fork_storm,
	.huge = true,
};

FIXTURE_VARIANT_ADD(cow_context_family, exit) { .live = op_exit_storm, };
FIXTURE_VARIANT_ADD(cow_context_family, exit_huge)
{
	.live = op_exit_storm,
	.huge = true,
};

FIXTURE_VARIANT_ADD(cow_context_family, munmap)
{
	.live = op_unmap_storm,
	.how = UNMAP,
};

FIXTURE_VARIANT_ADD(cow_context_family, map_fixed)
{
	.live = op_unmap_storm,
	.how = OVERMAP,
};

FIXTURE_VARIANT_ADD(cow_context_family, brk)
{
	.live = op_unmap_storm,
	.how = SHRINK_BRK,
	.brk = true,
};

FIXTURE_VARIANT_ADD(cow_context_family, device)
{
	.live = op_device_storm,
	.hmm = true,
};

FIXTURE_VARIANT_ADD(cow_context_family, device_evict)
{
	.live = op_evict_storm,
	.hmm = true,
};

FIXTURE_VARIANT_ADD(cow_context_family, notifier)
{
	.live = op_notifier_storm,
	.hmm = true,
};

FIXTURE_SETUP(cow_context_family)
{
	if (variant->hmm && (geteuid() || make_hmm_device(&self->loaded_hmm)))
		SKIP(return, "needs root and test_hmm");
	setup_family(_metadata);
}

FIXTURE_TEARDOWN(cow_context_family)
{
	teardown_family();
	if (variant->hmm)
		unlink(hmm_device);
	if (self->loaded_hmm && system("modprobe -q -r test_hmm"))
		ksft_print_msg("test_hmm stays loaded\n");
}

/* Returns where the new pages are. */
static long op_grow_brk(char *addr, long nr, long b, long c)
{
	uintptr_t top = (uintptr_t)sbrk(0);

	if (sbrk((page - top % page) % page) == (void *)-1)
		return -1;
	return (long)sbrk(nr * page);
}

TEST_F_TIMEOUT(cow_context_family, race_migration, TEST_SECONDS)
{
	const bool many_vmas = variant->live == op_unmap_storm ||
			       variant->live == op_notifier_storm;
	unsigned int about = ABOUT(MIGRATED) | ABOUT(WALKS);
	const long huge = variant->huge ? pmd_size / page : 0;
	long pages = many_vmas ? 512 : 2 * PAGES, i;
	static char *list[512];
	char *a = area(0);

	if (!many_vmas)
		about |= ABOUT(SWAPPED_OUT);

	if (variant->huge && (!huge || !thp_is_enabled()))
		SKIP(return, "no huge pages");
	if (huge && !access(SPLIT_FILE, W_OK))
		about |= ABOUT(SPLIT);

	if (variant->brk) {
		a = (char *)call(0, op_grow_brk, NULL, pages, 0, 0);
		ASSERT_NE(a, (char *)-1);
	} else if (huge) {
		OK(call(0, op_map_huge, a, huge, 0, 0));
	} else {
		OK(call(0, op_map, a, pages, 0, 0));
	}
	FILL(0, a, pages, 1);
	if (many_vmas)
		for (i = 8; i < pages; i += 16)
			OK(call(0, op_protect, a + i * page, 8, PROT_READ, 0));

	list_pages(list, a, pages);
	start_race(about);
	OK(tell(0, variant->live, a, pages, huge ?: variant->how, 0));
	while (other_racing()) {
		static int status[512];

		for (i = 0; i < 4 && nr_nodes > 1; i++) {
			/* The tail of many VMAs is zapped last. */
			long n = many_vmas && i & 2 ? 32 : pages;

			move_list(member[0].pid, list + pages - n, n,
				  nodes[i & 1], status);
		}
		for (i = 0; i < 8 && racing(); i++)
			mark_idle(0, a, pages);
		if (huge)
			split(0, a, pages);
		if (!many_vmas) {
			/* What is shared goes by reclaim only. */
			advise_pageout(0, a, pages);
			take_back("128K");
		}
	}
	end_race(_metadata, answer(0));
	if (shared->to_device)
		ksft_print_msg("%ld pages went to a device\n", shared->to_device);
	ASSERT_EQ(shared->bad, 0);

	CHECK(0, a, pages, 1);
	OK(fork_member(0, 1));
	OK(migrate_all(0, a, pages));
	TOGETHER(0, a, 1, a, pages);
	OK(page_out(0, a, PAGES));
	CHECK(1, a, pages, 1);
	CHECK(0, a, pages, 1);
}

/*
 * Scenario 17: one large folio in many VMAs.
 */
TEST_F_TIMEOUT(cow_context, folio_over_several_vmas, TEST_SECONDS)
{
	char *a = area(0), *away = area(1), *piece;
	long pages = pmd_size / page;
	bool is_split;
	int nr;

	if (!pmd_size || !thp_is_enabled())
		SKIP(return, "no huge pages");

	/*
	 *  0      16     32              128    160                 |
	 *  |------|------|---------------|......|-------------------|
	 *  |  rw  |  r   |      rw       | away |        rw         |
	 *  |------|------|---------------|......|-------------------|
	 */
	piece = a + 128 * page;
	OK(call(0, op_map_huge, a, pages, 0, 0));
	FILL(0, a, pages, 1);
	ASSERT_TRUE(call(0, op_is_huge, a, 0, 0, 0));
	OK(migrate_all(0, a, pages));
	OK(call(0, op_protect, a + 16 * page, 16, PROT_READ, 0));
	OK(migrate_all(0, a, pages));
	MOVE(0, piece, 32, away, 0);
	OK(fork_member(0, 1));
	/* Half of the piece is back home in the child, half stays. */
	MOVE(1, away, 16, piece, 0);
	OK(call(1, op_unmap, a + 200 * page, 8, 0, 0));

	OK(migrate_all(0, a, 128));
	TOGETHER(0, a, 1, a, 128);
	TOGETHER(0, away, 1, piece, 16);
	TOGETHER(0, away + 16 * page, 1, away + 16 * page, 16);
	OK(migrate_all(1, a + 160 * page, 40));
	TOGETHER(0, a + 160 * page, 1, a + 160 * page, 40);

	/* In single pages each has to be found. */
	split(0, a, 128);
	is_split = is_large(0, a) == 0;
	for (nr = 0; nr < 2; nr++) {
		OK(migrate_all(nr, a, 128));
		OK(migrate_all(nr, nr ? piece : away, 16));
		OK(migrate_all(nr, away + 16 * page, 16));
		OK(migrate_all(nr, a + 160 * page, 40));
		TOGETHER(0, a, 1, a, 128);
		TOGETHER(0, away, 1, piece, 16);
		TOGETHER(0, away + 16 * page, 1, away + 16 * page, 16);
		TOGETHER(0, a + 160 * page, 1, a + 160 * page, 40);
	}
	if (is_split)
		OK(soft_offline(0, away + page, 1));
	CHECK_FROM(0, away, 32, 1, 128);
	CHECK_FROM(1, piece, 16, 1, 128);
	CHECK_FROM(1, away + 16 * page, 16, 1, 144);

	OK(page_out(0, a, 32));
	OK(page_out(1, piece, 16));
	OK(page_out(0, away, 32));
	for (nr = 0; nr < 2; nr++) {
		CHECK(nr, a, 128, 1);
		CHECK_FROM(nr, a + 160 * page, 40, 1, 160);
		CHECK_FROM(nr, a + 208 * page, pages - 208, 1, 208);
	}
	CHECK_FROM(0, away, 32, 1, 128);
	CHECK_FROM(1, piece, 16, 1, 128);
	if (!is_split)
		SKIP(return, "the large folio was not split");
}

/*
 * Scenario 18: many VMAs with the same page offset in one process, and in its
 * children at other places.
 */
TEST_F_TIMEOUT(cow_context, one_offset_many_places, TEST_SECONDS)
{
	const long n = 4, places = 64;
	char *home = area(0), *away = area(1), *far = area(2);
	long i, nr;

	for (i = 0; i < places; i++) {
		OK(call(0, op_map, home, n, 0, 0));
		FILL(0, home, n, i);
		MOVE(0, home, n, away + 2 * i * n * page, 0);
	}
	for (i = 0; i < places; i += 7) {
		char *p = away + 2 * i * n * page;

		OK(migrate_all(0, p, n));
		CHECK(0, p, n, i);
	}
	OK(fork_member(0, 1));
	OK(fork_member(1, 2));

	/* The child moves some: elsewhere, in part, home, leaving a VMA behind. */
	for (i = 0; i < places; i += 8) {
		char *p = away + 2 * i * n * page, *q = far + 2 * i * n * page;

		MOVE(1, p, n, q, 0);
		MOVE(1, p + 2 * n * page, n / 2, q + 2 * n * page, 0);
		MOVE(1, p + 4 * n * page, n, q + 4 * n * page, MREMAP_DONTUNMAP);
		MOVE(1, p + 6 * n * page, n, q + 6 * n * page, 0);
		MOVE(1, q + 6 * n * page, n, p + 6 * n * page, 0);
	}
	MOVE(1, away + 2 * 4 * n * page, n, home, 0);
	MOVE(2, away + 2 * 5 * n * page, n, home, 0);

	for (nr = 0; nr < 2; nr++) {
		for (i = 0; i < places; i += 8) {
			char *p = away + 2 * i * n * page;
			char *q = far + 2 * i * n * page;

			OK(migrate_all(nr, nr ? q : p, n));
			TOGETHER(0, p, 1, q, n);
			TOGETHER(0, p, 2, p, n);

			p += 2 * n * page;
			q += 2 * n * page;
			OK(migrate_all(nr, nr ? q : p, n / 2));
			TOGETHER(0, p, 1, q, n / 2);
			OK(migrate_all(nr, p + n / 2 * page, n / 2));
			TOGETHER(0, p + n / 2 * page, 1, p + n / 2 * page, n / 2);
			TOGETHER(0, p, 2, p, n);

			p += 2 * n * page;
			q += 2 * n * page;
			OK(migrate_all(nr, nr ? q : p, n));
			TOGETHER(0, p, 1, q, n);
			OK(count_pages(1, p, n, PM_PRESENT | PM_SWAP));

			p += 2 * n * page;
			OK(migrate_all(nr, p, n));
			TOGETHER(0, p, 1, p, n);
		}
	}
	OK(migrate_all(1, home, n));
	TOGETHER(1, home, 0, away + 2 * 4 * n * page, n);
	OK(migrate_all(2, home, n));
	TOGETHER(2, home, 0, away + 2 * 5 * n * page, n);

	for (i = 0; i < places; i++)
		OK(page_out(0, away + 2 * i * n * page, n));
	OK(exit_member(1));
	for (i = 0; i < places; i++) {
		CHECK(0, away + 2 * i * n * page, n, i);
		if (i != 5)
			CHECK(2, away + 2 * i * n * page, n, i);
	}
	CHECK(2, home, n, 5);
}

/*
 * Scenario 19: copies of private file pages, whose page offsets say nothing
 * about the address, beside anonymous memory with the same offset.
 */
TEST_F_TIMEOUT(cow_context, private_file, TEST_SECONDS)
{
	char *a = area(0), *b = area(1), *c = area(2), *d, *p;
	int fd, i, nr;

	fd = memfd_create("cow_context", 0);
	ASSERT_GE(fd, 0);
	OK(ftruncate(fd, 2 * PAGES * page));
	p = mmap(NULL, 2 * PAGES * page, RW, MAP_SHARED, fd, 0);
	ASSERT_NE(p, MAP_FAILED);
	op_fill(p, 2 * PAGES, 9, 0);
	OK(exit_member(0));
	OK(first_member());

	/* Twice the same file, and right behind anonymous memory. */
	d = a + PAGES * page;
	OK(call(0, op_map_file, a, PAGES, fd, 0));
	OK(call(0, op_map_file, b, PAGES, fd, 0));
	OK(call(0, op_map, d, PAGES, 0, 0));
	FILL(0, d, PAGES, 3);
	for (i = 0; i < PAGES; i += 2) {
		OK(call(0, op_fill, a + i * page, 1, 1, i));
		OK(call(0, op_fill, b + (i + 1) * page, 1, 2, i + 1));
	}
	OK(migrate(0, a, PAGES));
	OK(migrate(0, b, PAGES));
	MOVE(0, a + 4 * page, 4, c, 0);
	OK(fork_member(0, 1));
	MOVE(1, b, PAGES, c + PAGES * page, 0);
	MOVE(1, c, 2, a + 4 * page, 0);
	OK(call(1, op_map, b, PAGES, 0, 0));
	FILL(1, b, PAGES, 4);

	for (nr = 0; nr < 2; nr++) {
		OK(migrate(nr, a, 4));
		OK(migrate(nr, nr ? a + 4 * page : c, 2));
		OK(migrate(nr, c + 2 * page, 2));
		OK(migrate(nr, nr ? c + PAGES * page : b, PAGES));
		OK(migrate_all(nr, d, PAGES));
		TOGETHER(0, a, 1, a, 4);
		TOGETHER(0, c, 1, a + 4 * page, 2);
		TOGETHER(0, c + 2 * page, 1, c + 2 * page, 2);
		TOGETHER(0, b, 1, c + PAGES * page, PAGES);
		TOGETHER(0, d, 1, d, PAGES);
		APART(0, b, 1, b, PAGES);
	}
	for (i = 0; i < 4; i += 2)
		OK(page_out(0, a + i * page, 1));
	OK(page_out(0, b + page, 1));
	OK(page_out(0, d, PAGES));
	for (nr = 0; nr < 2; nr++) {
		char *at_b = nr ? c + PAGES * page : b;

		for (i = 0; i < PAGES; i++) {
			char *at_a = i < 4 || i >= 8 ? a + i * page :
				     nr && i < 6 ? a + i * page : c + (i - 4) * page;

			CHECK_FROM(nr, at_a, 1, i & 1 ? 9 : 1, i);
			CHECK_FROM(nr, at_b + i * page, 1, i & 1 ? 2 : 9, i);
		}
		CHECK(nr, d, PAGES, 3);
	}
	CHECK(1, b, PAGES, 4);
	close(fd);
}

/*
 * Scenario 20: a large folio that the child has for itself once its parent has
 * gone; it was not copied, so its owner may still be the dead one.
 */
FIXTURE(cow_context_large)
{
	char path[128], enabled[128], ksm_run[16];
};

FIXTURE_VARIANT(cow_context_large)
{
	long size;	/* 0: of a PMD */
};

FIXTURE_VARIANT_ADD(cow_context_large, pmd) { .size = 0, };
FIXTURE_VARIANT_ADD(cow_context_large, mthp) { .size = 64 * 1024, };

FIXTURE_SETUP(cow_context_large)
{
	setup_family(_metadata);
	snprintf(self->path, sizeof(self->path), THP_DIR "hugepages-%ldkB/enabled",
		 variant->size / 1024);
	if (!variant->size || read_text(self->path, self->enabled,
					sizeof(self->enabled)))
		self->path[0] = '\0';
	else
		write_text(self->path, "madvise");
}

FIXTURE_TEARDOWN(cow_context_large)
{
	char *end, *start = strchr(self->enabled, '[');

	teardown_family();
	if (self->path[0] && start) {
		end = strchr(start, ']');
		if (end)
			*end = '\0';
		write_text(self->path, start + 1);
	}
	if (self->ksm_run[0])
		write_text(KSM_DIR "run", self->ksm_run);
}

TEST_F_TIMEOUT(cow_context_large, reused_by_child, TEST_SECONDS)
{
	size_t size = variant->size ? (size_t)variant->size : pmd_size;
	long pages = size / page, copied;
	uint64_t before, after;
	char *a = area(0);

	if (!pmd_size || !thp_is_enabled() || (variant->size && !self->path[0]))
		SKIP(return, "no huge pages of this size");

	OK(call(0, op_map_huge, a, pages, 0, 0));
	FILL(0, a, pages, 1);
	if (!is_large(0, a))
		SKIP(return, "no large folio allocated");
	OK(fork_member(0, 1));
	OK(migrate_all(1, a, pages));
	TOGETHER(0, a, 1, a, pages);
	OK(exit_member(0));

	OK(read_pagemap(1, a, 1, &before));
	FILL(1, a, pages, 2);
	OK(read_pagemap(1, a, 1, &after));
	copied = PAGEMAP_PFN(before) != PAGEMAP_PFN(after);
	ksft_print_msg("%s\n", copied ? "copied" : "reused");

	OK(migrate_all(1, a, pages));
	CHECK(1, a, pages, 2);
	OK(fork_member(1, 2));
	OK(migrate_all(2, a, pages));
	TOGETHER(1, a, 2, a, pages);
	split(1, a, pages);
	OK(migrate_all(1, a, pages));
	TOGETHER(1, a, 2, a, pages);
	OK(call(2, op_fill, a, 4, 3, 0));
	OK(migrate_all(1, a, pages));
	OK(exit_member(1));
	OK(page_out(2, a, pages));
	CHECK(2, a, 4, 3);
	CHECK_FROM(2, a + 4 * page, pages - 4, 2, 4);
	OK(migrate_all(2, a, pages));
}

/* KSM merges what is at @a in member @m with the same in member @n. */
static int merge(int m, char *a, int n, char *b, long pages)
{
	struct timespec end = in_msecs(REPLY_SECONDS * 1000);

	if (call(m, op_advise, a, pages, MADV_MERGEABLE, 0) ||
	    call(n, op_advise, b, pages, MADV_MERGEABLE, 0) ||
	    write_text(KSM_DIR "run", "1"))
		return -1;
	while (count_apart(m, a, n, b, pages) && msecs_until(&end) > 0)
		usleep(20000);
	return write_text(KSM_DIR "run", "0") || count_apart(m, a, n, b, pages) ?
		-1 : 0;
}

/*
 * What is at @a in member @m is merged with the same in member @n, and all of it
 * is swapped: to one slot for both. Neighbouring slots are then read back to @to,
 * where @m moves its memory, as large folios. Returns how many pages are in such;
 * -1 for errors.
 */
static long merge_and_swap(int m, char *a, int n, char *b, char *to, long pages,
			   size_t size)
{
	long i, large = 0;
	uint64_t entry;

	if (merge(m, a, n, b, pages) || page_out(m, a, pages) ||
	    count_apart(m, a, n, b, pages))
		return -1;
	/*
	 * Addresses and slots must be aligned alike; that slots are in order is
	 * luck. An entry of pagemap has five bits of the type below the offset.
	 */
	if (read_pagemap(m, a, 1, &entry))
		return -1;
	to += (PAGEMAP_PFN(entry) >> 5) % (size / page) * page;
	if (call(m, op_move, a, pages, (long)to, 0) ||
	    call(m, op_advise, to, pages, MADV_HUGEPAGE, 0) ||
	    call(m, op_check, to, pages, 1, 0))
		return -1;
	for (i = 0; i < pages; i++)
		large += is_large(m, to + i * page) == 1;
	ksft_print_msg("%ld of %ld pages in large folios\n", large, pages);
	return large;
}

/* Why the two tests below cannot run, or NULL. Saves what they change of KSM. */
static const char *lacks_merging(const char *size_path, char *ksm_run, size_t size)
{
	if (!size_path[0])
		return "not for this size";
	if (!have_swap || !cgroup[0])
		return "needs swap and a memory cgroup";
	return read_text(KSM_DIR "run", ksm_run, size) ? "no KSM" : NULL;
}

/*
 * The sharers of the slots do not descend from each other: the large folios
 * belong to one of them, and the other must not map them.
 */
TEST_F_TIMEOUT(cow_context_large, merged_and_swapped, TEST_SECONDS)
{
	const long pages = variant->size / page * 4;
	char *a = area(0), *b = area(1);
	const char *why = lacks_merging(self->path, self->ksm_run,
					sizeof(self->ksm_run));
	int tries = LUCKY_TRIES;
	long large;

	if (why)
		SKIP(return, "%s", why);
	OK(fork_member(0, 1));
	OK(fork_member(0, 2));
	do {
		OK(call(1, op_map, a, pages, 0, 0));
		OK(call(2, op_map, b, pages, 0, 0));
		FILL(1, a, pages, 1);
		FILL(2, b, pages, 1);
		large = merge_and_swap(1, a, 2, b, area(2), pages, variant->size);
		ASSERT_GE(large, 0);
	} while (!large && --tries);
	CHECK(2, b, pages, 1);
	OK(migrate_all(2, b, pages));
	OK(exit_member(1));
	OK(migrate_all(2, b, pages));
	OK(page_out(2, b, pages));
	CHECK(2, b, pages, 1);
	if (!large)
		SKIP(return, "no large folio read back");
}

/*
 * They are one process, which has them at one offset, and for anon_vma one
 * anon_vma, that of the memory below: the large folios may be mapped at both
 * places. A part of each is unmapped, so that the sum of mapcounts does not tell.
 * What is written must not appear at the other place.
 */
TEST_F_TIMEOUT(cow_context_large, merged_with_itself, TEST_SECONDS)
{
	const long pages = variant->size / page * 4;
	char *below = area(0), *a = below + pages * page;
	char *b = area(1), *c = area(2), *d = area(4);
	const char *why = lacks_merging(self->path, self->ksm_run,
					sizeof(self->ksm_run));
	int tries = LUCKY_TRIES;
	char *to, *end;
	long i, large;

	if (why)
		SKIP(return, "%s", why);
	do {
		OK(call(0, op_map, below, 2 * pages, 0, 0));
		FILL(0, a, pages, 1);
		MOVE(0, a, pages, b, 0);
		OK(call(0, op_map, a, pages, 0, 0));
		FILL(0, a, pages, 1);
		MOVE(0, a, pages, c, 0);
		large = merge_and_swap(0, b, 0, c, d, pages, variant->size);
		ASSERT_GE(large, 0);
	} while (!large && --tries);
	CHECK(0, c, pages, 1);
	OK(find_vma(member[0].pid, d + pages / 2 * page, NULL, &to, &end));
	for (i = 0; i < pages; i++) {
		if (i % 2)
			OK(call(0, op_unmap, to + i * page, 1, 0, 0));
		if (i % 4)
			OK(call(0, op_unmap, c + i * page, 1, 0, 0));
	}
	for (i = 0; i < pages; i += 4) {
		FILL(0, to + i * page, 1, 2);
		CHECK_FROM(0, c + i * page, 1, 1, i);
		FILL(0, c + i * page, 1, 3);
		CHECK(0, to + i * page, 1, 2);
		OK(migrate_all(0, to + i * page, 1));
		OK(migrate_all(0, c + i * page, 1));
		CHECK(0, to + i * page, 1, 2);
		CHECK(0, c + i * page, 1, 3);
	}
	if (!large)
		SKIP(return, "no large folio read back");
}

/*
 * Scenario 21: a VMA that was moved is wiped on fork. What the child faults
 * there is its own.
 */
TEST_F_TIMEOUT(cow_context, wipe_on_fork, TEST_SECONDS)
{
	char *a = area(0), *b = area(1), *c = area(2);

	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 1);
	MOVE(0, a, PAGES, b, 0);
	OK(call(0, op_advise, b, PAGES, MADV_WIPEONFORK, 0));
	OK(fork_member(0, 1));
	OK(call(1, op_check_zero, b, PAGES, 0, 0));
	OK(call(1, op_map, a, PAGES, 0, 0));
	FILL(1, a, PAGES, 3);
	FILL(1, b, PAGES, 2);
	OK(call(1, op_protect, b + 4 * page, 4, PROT_READ, 0));
	MOVE(1, b + 8 * page, 4, c, 0);
	OK(call(1, op_advise, b, 8, MADV_KEEPONFORK, 0));
	OK(fork_member(1, 2));
	OK(call(2, op_check_zero, c, 4, 0, 0));

	OK(migrate_all(1, b, 8));
	OK(migrate_all(1, c, 4));
	OK(migrate_all(1, a, PAGES));
	OK(migrate_all(0, b, PAGES));
	APART(0, b, 1, b, PAGES);
	TOGETHER(1, b, 2, b, 8);
	OK(migrate_all(2, b, 8));
	TOGETHER(1, b, 2, b, 8);
	OK(page_out(1, b, 8));
	OK(page_out(0, b, PAGES));
	CHECK(0, b, PAGES, 1);
	CHECK(1, b, 8, 2);
	CHECK_FROM(1, c, 4, 2, 8);
	CHECK(1, a, PAGES, 3);
	CHECK(2, b, 8, 2);
	CHECK(2, a, PAGES, 3);
}

/*
 * Scenario 22: private hugetlb memory, and ordinary memory at the address it
 * has elsewhere in the family.
 */
FIXTURE(cow_context_hugetlb)
{
	unsigned long nr_before;
	bool set;
};

FIXTURE_SETUP(cow_context_hugetlb)
{
	setup_family(_metadata);
	if (hugetlb_available()) {
		self->nr_before = hugetlb_nr_default_pages();
		hugetlb_set_nr_default_pages(self->nr_before + 24);
		self->set = true;
	}
}

FIXTURE_TEARDOWN(cow_context_hugetlb)
{
	teardown_family();
	if (self->set)
		hugetlb_set_nr_default_pages(self->nr_before);
}

/* Why the tests below cannot run, or NULL. */
static const char *lacks_hugetlb(void)
{
	const size_t size = default_huge_page_size();

	if (!size || 2 * size / page > MAX_PAGES || 2 * size > area_size)
		return "no huge pages, or too large ones";
	return hugetlb_free_default_pages() < 20 ? "20 huge pages cannot be had" :
						   NULL;
}

TEST_F_TIMEOUT(cow_context_hugetlb, private, TEST_SECONDS)
{
	size_t size = default_huge_page_size();
	char *a = area(0), *b = area(1);
	long one = size / page, n = 2 * one;
	const char *why = lacks_hugetlb();
	pid_t *pid = &member[0].pid;
	int nr;

	if (why)
		SKIP(return, "%s", why);

	OK(call(0, op_map_hugetlb, a, n, 0, 0));
	FILL(0, a, n, 1);
	OK(__migrate(*pid, a, 2, size));
	OK(fork_member(0, 1));
	TOGETHER(0, a, 1, a, n);
	OK(__migrate(member[1].pid, a, 2, size));
	TOGETHER(0, a, 1, a, n);

	/* Moved in the child, which has ordinary memory in the old place. */
	MOVE(1, a, n, b, 0);
	OK(call(1, op_map, a, PAGES, 0, 0));
	FILL(1, a, PAGES, 2);
	for (nr = 0; nr < 2; nr++) {
		OK(__migrate(member[nr].pid, nr ? b : a, 2, size));
		TOGETHER(0, a, 1, b, n);
		CHECK(0, a, n, 1);
		CHECK(1, b, n, 1);
	}
	OK(migrate_all(1, a, PAGES));
	APART(0, a, 1, a, PAGES);
	CHECK(1, a, PAGES, 2);

	/* And the reverse: huge pages where its child has ordinary ones. */
	OK(fork_member(1, 2));
	OK(call(2, op_unmap, a, PAGES, 0, 0));
	OK(call(2, op_map_hugetlb, a, one, 0, 0));
	FILL(2, a, one, 3);
	OK(migrate_all(1, a, PAGES));
	OK(__migrate(member[2].pid, a, 1, size));
	OK(__migrate(member[2].pid, b, 2, size));
	TOGETHER(0, a, 2, b, n);
	TOGETHER(0, a, 1, b, n);
	OK(page_out(1, a, PAGES));

	/* A write copies, for the writer. */
	OK(call(1, op_fill, b, one, 4, 0));
	OK(__migrate(member[1].pid, b, 2, size));
	OK(soft_offline(0, a + size, 1));
	CHECK(0, a, n, 1);
	CHECK(1, a, PAGES, 2);
	CHECK(1, b, one, 4);
	CHECK_FROM(1, b + size, one, 1, one);
	CHECK(2, a, one, 3);
	CHECK(2, b, n, 1);
}

/*
 * The parent has huge pages where its child still has what both had before, and
 * the reverse. Who looks for pages of the one kind must not take a VMA of the
 * other for theirs.
 */
TEST_F_TIMEOUT(cow_context_hugetlb, replaced, TEST_SECONDS)
{
	size_t size = default_huge_page_size();
	char *a = area(0), *b = area(1);
	const char *why = lacks_hugetlb();
	long one = size / page;
	int i;

	if (why)
		SKIP(return, "%s", why);

	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 1);
	OK(call(0, op_map_hugetlb, b, one, 0, 0));
	FILL(0, b, one, 2);
	OK(fork_member(0, 1));
	OK(call(0, op_unmap, a, PAGES, 0, 0));
	OK(call(0, op_map_hugetlb, a, one, 0, 0));
	FILL(0, a, one, 3);
	OK(call(0, op_unmap, b, one, 0, 0));
	OK(call(0, op_map, b, PAGES, 0, 0));
	FILL(0, b, PAGES, 4);
	OK(fork_member(0, 2));

	for (i = 0; i < 2; i++) {
		OK(__migrate(member[2 * i].pid, a, 1, size));
		OK(migrate_all(2 * i, b, PAGES));
		OK(migrate_all(1, a, PAGES));
		OK(__migrate(member[1].pid, b, 1, size));
		TOGETHER(0, a, 2, a, one);
		TOGETHER(0, b, 2, b, PAGES);
		APART(0, a, 1, a, PAGES);
		APART(0, b, 1, b, PAGES);
	}
	OK(page_out(1, a, PAGES));
	OK(page_out(2, b, PAGES));
	CHECK(0, a, one, 3);
	CHECK(0, b, PAGES, 4);
	CHECK(1, a, PAGES, 1);
	CHECK(1, b, one, 2);
	CHECK(2, a, one, 3);
	CHECK(2, b, PAGES, 4);
}

/* They are moved to and fro while they are migrated. */
TEST_F_TIMEOUT(cow_context_hugetlb, race_migration, TEST_SECONDS)
{
	size_t size = default_huge_page_size();
	char *a = area(0), *b = area(1), *list[4];
	const char *why = lacks_hugetlb();
	long n = 2 * size / page;
	int i;

	if (why)
		SKIP(return, "%s", why);

	for (i = 0; i < 4; i++)
		list[i] = (i < 2 ? a : b) + i % 2 * size;
	OK(call(0, op_map_hugetlb, a, n, 0, 0));
	FILL(0, a, n, 1);
	OK(fork_member(0, 1));
	start_race(ABOUT(MIGRATED) | ABOUT(WALKS));
	OK(tell(0, op_shuttle, a, n, (long)b, 2));
	migrate_until_end(0, list, 4);
	end_race(_metadata, answer(0));

	OK(__migrate(member[0].pid, a, 2, size));
	TOGETHER(0, a, 1, a, n);
	MOVE(1, a, n, b, 0);
	OK(__migrate(member[0].pid, a, 2, size));
	OK(__migrate(member[1].pid, b, 2, size));
	TOGETHER(0, a, 1, b, n);
	CHECK(0, a, n, 1);
	CHECK(1, b, n, 1);
}

/*
 * Scenario 23: the child unmaps what it shares and maps its own memory there.
 * That does not belong to the parent's pages, nor they to it.
 */
TEST_F_TIMEOUT(cow_context, unmap_and_map_again, TEST_SECONDS)
{
	uint64_t before[PAGES], after[PAGES];
	char *a = area(0);
	int other, nr;

	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 1);
	OK(fork_member(0, 1));
	OK(fork_member(1, 2));
	OK(call(1, op_unmap, a, PAGES, 0, 0));
	OK(call(1, op_map, a, PAGES, 0, 0));
	FILL(1, a, PAGES, 2);
	APART(0, a, 1, a, PAGES);
	TOGETHER(0, a, 2, a, PAGES);

	for (nr = 0; nr < 3; nr++) {
		other = nr == 1 ? 0 : 1;
		OK(read_pagemap(other, a, PAGES, before));
		OK(migrate_all(nr, a, PAGES));
		OK(read_pagemap(other, a, PAGES, after));
		OK(memcmp(before, after, sizeof(before)));
		TOGETHER(0, a, 2, a, PAGES);
	}
	OK(read_pagemap(1, a, PAGES, before));
	OK(fork_member(1, 3));
	OK(migrate_all(0, a, PAGES));
	TOGETHER(1, a, 3, a, PAGES);
	OK(migrate_all(3, a, PAGES));
	TOGETHER(1, a, 3, a, PAGES);
	OK(exit_member(0));
	OK(page_out(2, a, PAGES));
	CHECK(2, a, PAGES, 1);
	OK(migrate_all(2, a, PAGES));
	CHECK(1, a, PAGES, 2);
	CHECK(3, a, PAGES, 2);
}

/*
 * Scenario 24: A forks B forks C. A page of A that nobody copied, one that B
 * copied before it forked C; C moves both.
 */
TEST_F_TIMEOUT(cow_context, three_generations, TEST_SECONDS)
{
	char *x = area(0), *y = area(1);
	int nr;

	OK(call(0, op_map, x, 2, 0, 0));
	FILL(0, x, 2, 1);
	OK(fork_member(0, 1));
	OK(call(1, op_fill, x + page, 1, 2, 1));
	OK(fork_member(1, 2));
	MOVE(2, x, 2, y, 0);

	for (nr = 0; nr < 3; nr++) {
		char *at = nr == 2 ? y : x;
		uint64_t own, now;

		OK(read_pagemap(0, x + page, 1, &own));
		OK(migrate_all(nr, at, 1));
		TOGETHER(0, x, 1, x, 1);
		TOGETHER(0, x, 2, y, 1);
		OK(migrate_all(nr, at + page, 1));
		TOGETHER(1, x + page, 2, y + page, 1);
		APART(0, x + page, 1, x + page, 1);
		OK(read_pagemap(0, x + page, 1, &now));
		if (nr)
			ASSERT_EQ(own, now);
	}
	OK(page_out(2, y, 2));
	TOGETHER(0, x, 2, y, 1);
	TOGETHER(1, x + page, 2, y + page, 1);
	CHECK(2, y, 1, 1);
	CHECK_FROM(2, y + page, 1, 2, 1);
	CHECK(1, x, 1, 1);
	CHECK_FROM(1, x + page, 1, 2, 1);
	CHECK(0, x, 2, 1);

	/* The middle dies: its page now belongs to C alone. */
	OK(exit_member(1));
	OK(migrate_all(2, y, 2));
	TOGETHER(0, x, 2, y, 1);
	OK(call(2, op_fill, y + page, 1, 5, 1));
	OK(migrate_all(2, y, 2));
	OK(exit_member(0));
	OK(page_out(2, y, 2));
	CHECK(2, y, 1, 1);
	CHECK_FROM(2, y + page, 1, 5, 1);
}

/*
 * Scenario 25: many VMAs, and many children that keep one of them each. Who looks
 * for a page has all of them in the way, and must find the one.
 */
static int adversary_pipe[2];

/* @children of them, which live until the pipe is closed. */
static long op_adversary(char *addr, long vmas, long children, long c)
{
	char *end = addr + 2 * vmas * page;
	int status;
	long i;

	signal(SIGCHLD, SIG_DFL);
	if (pipe(adversary_pipe))
		return -errno;
	for (i = 0; i < children; i++) {
		const long kept = i * vmas / children;
		char *keep = addr + 2 * kept * page;
		pid_t pid = fork();

		if (pid < 0)
			return -errno;
		if (pid) {
			shared->pid[i] = pid;
			continue;
		}
		close(adversary_pipe[1]);
		if ((keep > addr && munmap(addr, keep - addr)) ||
		    munmap(keep + page, end - keep - page))
			_exit(1);
		__atomic_add_fetch(&shared->rounds, 1, __ATOMIC_SEQ_CST);
		if (read(adversary_pipe[0], &status, 1))
			_exit(1);
		_exit(!!op_check(keep, 1, 1, kept));
	}
	while (FORCE_READ(shared->rounds) < children) {
		if (waitpid(-1, &status, WNOHANG))
			return -1;
		usleep(1000);
	}
	return 0;
}

/* Returns how many have found something else. */
static long op_end_adversary(char *addr, long b, long c, long d)
{
	long bad = 0;
	int status;

	close(adversary_pipe[1]);
	while (wait(&status) > 0)
		bad += !!status;
	return bad;
}

TEST_F_TIMEOUT(cow_context, adversary, TEST_SECONDS)
{
	const long vmas = ADVERSARY_VMAS, children = ADVERSARY_CHILDREN;
	static uint64_t entry[2 * ADVERSARY_VMAS];
	long walks[NR_EVENTS], after[NR_EVENTS], apart, i, side;
	struct timespec start;
	char *a = area(0);
	uint64_t theirs;

	OK(call(0, op_map, a, 2 * vmas, 0, 0));
	for (i = 0; i < vmas; i++) {
		OK(call(0, op_unmap, a + (2 * i + 1) * page, 1, 0, 0));
		OK(call(0, op_fill, a + 2 * i * page, 1, 1, i));
	}
	shared->rounds = 0;
	OK(call(0, op_adversary, a, vmas, children, 0));
	ASSERT_EQ(shared->rounds, children);

	count_events(walks);
	start = in_msecs(0);
	OK(__migrate(member[0].pid, a, vmas, 2 * page));
	count_events(after);
	ksft_print_msg("%ld VMAs, %ld children: %ld us a page, %ld walks\n", vmas,
		       children, -msecs_until(&start) * 1000 / vmas,
		       after[WALKS] - walks[WALKS]);

	/* Then from the side of some children. */
	for (side = 0; side < 2; side++) {
		for (i = 0; side && i < children; i += 16)
			OK(__migrate(shared->pid[i],
				     a + 2 * (i * vmas / children) * page, 1, page));
		OK(read_pagemap(0, a, 2 * vmas, entry));
		for (i = apart = 0; i < children; i++) {
			const long at = 2 * (i * vmas / children);

			OK(__read_pagemap(shared->pid[i], a + at * page, 1, &theirs));
			apart += PAGEMAP_PFN(entry[at]) != PAGEMAP_PFN(theirs);
		}
		OK(apart);
	}
	OK(page_out(0, a, 2 * vmas));
	OK(call(0, op_end_adversary, NULL, 0, 0, 0));
	for (i = 0; i < vmas; i++)
		OK(call(0, op_check, a + 2 * i * page, 1, 1, i));
	OK(__migrate(member[0].pid, a, vmas, 2 * page));
}

/*
 * Scenario 26: of those who map a page each gets its signal, which says where.
 */
FIXTURE(cow_context_poison)
{
	char ksm_run[16];
};

FIXTURE_VARIANT(cow_context_poison)
{
	bool ksm;
};

FIXTURE_VARIANT_ADD(cow_context_poison, generations) {};
FIXTURE_VARIANT_ADD(cow_context_poison, ksm) { .ksm = true, };

FIXTURE_SETUP(cow_context_poison)
{
	setup_family(_metadata);
}

FIXTURE_TEARDOWN(cow_context_poison)
{
	teardown_family();
	if (self->ksm_run[0])
		write_text(KSM_DIR "run", self->ksm_run);
}

static struct {
	sigjmp_buf env;
	bool touching;
	long count;
	char *addr;
} poison;

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	poison.count++;
	poison.addr = info->si_addr;
	if (poison.touching)
		siglongjmp(poison.env, 1);
}

/* The member and its children want to be told early. */
static long op_expect_poison(char *addr, long b, long c, long d)
{
	struct sigaction sa = {
		.sa_sigaction = on_sigbus,
		.sa_flags = SA_SIGINFO | SA_RESTART,
	};

	if (sigaction(SIGBUS, &sa, NULL))
		return -errno;
	return prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) ?
		-errno : 0;
}

/* How many signals were for this page; -1 if one was for another. */
static long op_poisoned(char *addr, long b, long c, long d)
{
	if (poison.count && addr != poison.addr - (uintptr_t)poison.addr % page)
		return -1;
	return poison.count;
}

/* Is the page poisoned? */
static long op_touch(char *addr, long b, long c, long d)
{
	long ret = sigsetjmp(poison.env, 1);

	if (!ret) {
		poison.touching = true;
		asm volatile("" : : : "memory");
		FORCE_READ(*addr);
		asm volatile("" : : : "memory");
	}
	poison.touching = false;
	return ret;
}

TEST_F_TIMEOUT(cow_context_poison, signals, TEST_SECONDS)
{
	/* Where they have the page, the first of whom may not have it. */
	char *a = area(0), *b = area(1), *at[4] = { a, a, b, a };
	const long bad = 3, rest = PAGES - bad - 1;
	const int first = variant->ksm ? 1 : 0;
	uint64_t entry;
	long ret;
	int nr;

	if (variant->ksm && read_text(KSM_DIR "run", self->ksm_run,
				      sizeof(self->ksm_run)))
		SKIP(return, "no KSM");
	if (call(0, op_expect_poison, NULL, 0, 0, 0))
		SKIP(return, "no PR_MCE_KILL");

	/* The last has its own memory, and in the case of KSM the first. */
	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, variant->ksm ? 4 : 1);
	OK(fork_member(0, 1));
	if (variant->ksm) {
		OK(call(1, op_map, a, PAGES, 0, 0));
		FILL(1, a, PAGES, 1);
	}
	OK(fork_member(1, 2));
	MOVE(2, a, PAGES, b, 0);
	if (variant->ksm) {
		FILL(2, b, PAGES, 1);
		APART(1, a, 2, b, PAGES);
		OK(merge(1, a, 2, b, PAGES));
	}
	/* It shares nothing, or in the case of KSM nothing any more. */
	OK(fork_member(variant->ksm, 3));
	if (!variant->ksm)
		OK(call(3, op_map, a, PAGES, 0, 0));
	FILL(3, a, PAGES, 3);
	for (nr = first; nr < 2; nr++)
		TOGETHER(nr, a, 2, b, PAGES);

	OK(read_pagemap(2, b + bad * page, 1, &entry));
	ret = call(2, op_advise, b + bad * page, 1, MADV_HWPOISON, 0);
	if (ret == -EINVAL || ret == -EPERM)
		SKIP(return, "MADV_HWPOISON: %s", strerror(-ret));
	OK(ret);
	for (nr = 0; nr < 4; nr++) {
		const bool has_it = nr >= first && nr < 3;

		ASSERT_EQ(has_it, call(nr, op_poisoned, at[nr] + bad * page, 0, 0, 0));
		ASSERT_EQ(has_it, call(nr, op_touch, at[nr] + bad * page, 0, 0, 0));
	}
	for (nr = 0; nr < 4; nr++) {
		const long seed = nr == 3 ? 3 : nr < first ? 4 : 1;
		char *p = at[nr] + (bad + 1) * page;

		CHECK(nr, at[nr], bad, seed);
		CHECK_FROM(nr, p, rest, seed, bad + 1);
		OK(migrate_all(nr, p, rest));
		if (nr >= first && nr < 2)
			TOGETHER(nr, p, 2, b + (bad + 1) * page, rest);
	}
	for (nr = 3; nr >= 0; nr--)
		OK(exit_member(nr));
	unpoison_memory(PAGEMAP_PFN(entry));
}

/*
 * Scenario 17: one page of a large folio that several VMAs map, some of it moved.
 */
TEST_F_TIMEOUT(cow_context_poison, folio_over_several_vmas, TEST_SECONDS)
{
	char *a = area(0), *b = area(1);
	long pages = pmd_size / page;
	const long from = 64, bad = 70, to = 96;
	uint64_t entry;
	long ret;
	int nr;

	if (variant->ksm)
		SKIP(return, "KSM has no large folios");
	if (!pmd_size || !thp_is_enabled())
		SKIP(return, "no huge pages");
	if (call(0, op_expect_poison, NULL, 0, 0, 0))
		SKIP(return, "no PR_MCE_KILL");

	OK(call(0, op_map_huge, a, pages, 0, 0));
	FILL(0, a, pages, 1);
	ASSERT_TRUE(call(0, op_is_huge, a, 0, 0, 0));
	OK(call(0, op_protect, a + 16 * page, 16, PROT_READ, 0));
	OK(fork_member(0, 1));
	MOVE(1, a + from * page, to - from, b, 0);
	OK(fork_member(1, 2));
	OK(call(2, op_unmap, b, to - from, 0, 0));
	TOGETHER(0, a + from * page, 1, b, to - from);

	OK(read_pagemap(0, a + bad * page, 1, &entry));
	ret = call(0, op_advise, a + bad * page, 1, MADV_HWPOISON, 0);
	if (ret == -EINVAL || ret == -EPERM)
		SKIP(return, "MADV_HWPOISON: %s", strerror(-ret));
	OK(ret);
	/* Who has it is not told before: the folio is split first. */
	ASSERT_EQ(1, call(0, op_touch, a + bad * page, 0, 0, 0));
	ASSERT_EQ(1, call(1, op_touch, b + (bad - from) * page, 0, 0, 0));

	for (nr = 0; nr < 3; nr++) {
		CHECK(nr, a, from, 1);
		CHECK_FROM(nr, a + to * page, pages - to, 1, to);
		OK(migrate_all(nr, a, from));
		TOGETHER(0, a, nr, a, from);
	}
	CHECK_FROM(1, b, bad - from, 1, from);
	CHECK_FROM(1, b + (bad + 1 - from) * page, to - bad - 1, 1, bad + 1);
	for (nr = 2; nr >= 0; nr--)
		OK(exit_member(nr));
	unpoison_memory(PAGEMAP_PFN(entry));
}

/*
 * Scenario 27, and 26 as far as it concerns pages that are to be replaced: who
 * else asks who maps a page. It is shared by three generations, of which the last
 * has it at another address; member 0 has others for itself, moved.
 */
FIXTURE(cow_context_callers)
{
	char *at[3], *own;
};

FIXTURE_SETUP(cow_context_callers)
{
	char *a, *b;

	setup_family(_metadata);
	a = area(0);
	b = area(1);
	self->at[0] = a;
	self->at[1] = a;
	self->at[2] = b;
	self->own = area(3);
	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 1);
	OK(fork_member(0, 1));
	OK(fork_member(1, 2));
	MOVE(2, a, PAGES, b, 0);
	OK(call(0, op_map, area(2), PAGES, 0, 0));
	FILL(0, area(2), PAGES, 2);
	MOVE(0, area(2), PAGES, self->own, 0);
}

FIXTURE_TEARDOWN(cow_context_callers)
{
	teardown_family();
}

static long count_all_apart(char **at, long pages)
{
	return count_apart(0, at[0], 1, at[1], pages) +
	       count_apart(0, at[0], 2, at[2], pages);
}

#define ALL_TOGETHER(pages)	OK(count_all_apart(self->at, pages))

/* Has the access of each generation been seen? */
TEST_F_TIMEOUT(cow_context_callers, idle, TEST_SECONDS)
{
	static int status[PAGES];
	char *list[PAGES];
	bool idle[PAGES];
	long i, nr;

	if (access(IDLE_FILE, R_OK | W_OK))
		SKIP(return, "no " IDLE_FILE);
	if (!nr_nodes)
		SKIP(return, "no NUMA");
	ALL_TOGETHER(PAGES);
	list_pages(list, self->at[0], PAGES);
	for (nr = 0; nr < 3; nr++) {
		/* Not on their way to the LRU, where they would be overlooked. */
		ASSERT_GE(move_list(member[0].pid, list, PAGES, nodes[0], status), 0);
		mark_idle(nr, self->at[nr], PAGES);
		ASSERT_EQ(PAGES, read_idle(0, self->at[0], PAGES, idle));
		/* No CPU may remember the entry as accessed. */
		OK(call(nr, op_protect, self->at[nr], PAGES, PROT_READ, 0));
		OK(call(nr, op_check, self->at[nr], PAGES / 2, 1, 0));
		ASSERT_EQ(PAGES / 2, read_idle(0, self->at[0], PAGES, idle));
		for (i = 0; i < PAGES; i++)
			ASSERT_EQ(idle[i], i >= PAGES / 2);
	}
	ALL_TOGETHER(PAGES);
}

/* Who has it locked? Reclaim must not take it away. */
TEST_F_TIMEOUT(cow_context_callers, mlock, TEST_SECONDS)
{
	struct timespec end;
	int nr;

	if (!have_swap || !cgroup[0])
		SKIP(return, "needs swap and a memory cgroup");
	for (nr = 0; nr < 3; nr++) {
		OK(call(nr, op_lock, self->at[nr], PAGES / 2, 0, 0));
		ALL_TOGETHER(PAGES);
		end = in_msecs(SETTLE_MSECS);
		while (count_pages(nr, self->at[nr] + PAGES / 2 * page, PAGES / 2,
				   PM_PRESENT) && msecs_until(&end) > 0)
			take_back("4M");
		ASSERT_EQ(PAGES / 2, count_pages(nr, self->at[nr], PAGES, PM_PRESENT));
		ASSERT_EQ(PAGES / 2,
			  count_pages(nr, self->at[nr], PAGES / 2, PM_PRESENT));
		OK(migrate_all(nr, self->at[nr], PAGES / 2));
		ALL_TOGETHER(PAGES);
		OK(call(nr, op_unlock, self->at[nr], PAGES / 2, 0, 0));
		OK(page_out(0, self->at[0], PAGES));
		CHECK(2, self->at[2], PAGES, 1);
		CHECK(1, self->at[1], PAGES, 1);
		CHECK(0, self->at[0], PAGES, 1);
	}
}

/* What is written after MADV_FREE stays, what others share too. */
TEST_F_TIMEOUT(cow_context_callers, free_cold_pageout, TEST_SECONDS)
{
	const long half = PAGES / 2;
	long i, kept;

	/* Alone, and moved. */
	OK(call(0, op_advise, self->own, PAGES, MADV_COLD, 0));
	CHECK(0, self->own, PAGES, 2);
	OK(migrate_all(0, self->own, PAGES));
	if (have_swap) {
		OK(call(0, op_advise, self->own, PAGES, MADV_PAGEOUT, 0));
		OK(page_out(0, self->own, PAGES));
	}
	CHECK(0, self->own, PAGES, 2);
	FILL(0, self->own, PAGES, 2);
	OK(call(0, op_advise, self->own, PAGES, MADV_FREE, 0));
	OK(migrate_all(0, self->own, PAGES));
	FILL(0, self->own, half, 3);
	/* A child that shares the rest. */
	OK(fork_member(0, 3));
	MOVE(3, self->own, PAGES, area(4), 0);
	OK(page_out(0, self->own, PAGES));
	OK(page_out(3, area(4), PAGES));
	CHECK(0, self->own, half, 3);
	CHECK(3, area(4), half, 3);
	for (i = half, kept = 0; i < PAGES; i++) {
		const bool zero = !call(0, op_check_zero, self->own + i * page, 1, 0, 0);

		kept += !zero;
		if (!zero)
			CHECK_FROM(0, self->own + i * page, 1, 2, i);
		if (!zero || call(3, op_check_zero, area(4) + i * page, 1, 0, 0))
			CHECK_FROM(3, area(4) + i * page, 1, 2, i);
	}
	ksft_print_msg("%ld of %ld freed pages kept\n", kept, half);
	OK(migrate_all(3, area(4), half));
	TOGETHER(0, self->own, 3, area(4), half);

	/* Shared: what one of them does not need the others do. */
	OK(call(2, op_advise, self->at[2], PAGES, MADV_COLD, 0));
	OK(call(2, op_advise, self->at[2], PAGES, MADV_FREE, 0));
	OK(page_out(1, self->at[1], PAGES));
	CHECK(1, self->at[1], PAGES, 1);
	CHECK(0, self->at[0], PAGES, 1);
	TOGETHER(0, self->at[0], 1, self->at[1], PAGES);
	OK(migrate_all(0, self->at[0], PAGES));
	TOGETHER(0, self->at[0], 1, self->at[1], PAGES);
}

/* A guard takes the place of what it had, not of what others have. */
TEST_F_TIMEOUT(cow_context_callers, guard, TEST_SECONDS)
{
	const long half = PAGES / 2, size = half * page;
	char *left = self->at[2], *right = left + size;

	if (call(2, op_advise, right, half, MADV_GUARD_INSTALL, 0))
		SKIP(return, "no guard regions");
	ALL_TOGETHER(half);
	OK(migrate_all(0, self->at[0], PAGES));
	ALL_TOGETHER(half);
	TOGETHER(0, self->at[0], 1, self->at[1], PAGES);
	OK(fork_member(2, 3));
	MOVE(3, left, PAGES, area(4), 0);
	OK(migrate_all(3, area(4), half));
	ALL_TOGETHER(half);
	TOGETHER(2, left, 3, area(4), half);
	OK(call(2, op_advise, right, half, MADV_GUARD_REMOVE, 0));
	OK(call(3, op_advise, area(4) + size, half, MADV_GUARD_REMOVE, 0));
	OK(call(2, op_check_zero, right, half, 0, 0));
	OK(call(2, op_fill, right, half, 5, half));
	OK(call(3, op_check_zero, area(4) + size, half, 0, 0));
	OK(migrate_all(2, left, PAGES));
	OK(page_out(0, self->at[0], PAGES));
	OK(page_out(2, right, half));
	CHECK(0, self->at[0], PAGES, 1);
	CHECK(1, self->at[1], PAGES, 1);
	CHECK(2, left, half, 1);
	CHECK_FROM(2, right, half, 5, half);
	CHECK(3, area(4), half, 1);
}

/* Migration keeps it, in each for itself. */
TEST_F_TIMEOUT(cow_context_callers, soft_dirty, TEST_SECONDS)
{
	const long half = PAGES / 2;
	char path[64];
	int nr, from;

	if (!softdirty_supported())
		SKIP(return, "no soft-dirty bits");
	for (nr = 0; nr < 3; nr++) {
		snprintf(path, sizeof(path), "/proc/%d/clear_refs", member[nr].pid);
		OK(write_text(path, "4"));
	}
	/* Dirty and alone; or dirty and shared, because it was moved. */
	OK(call(1, op_fill, self->at[1], half, 4, 0));
	MOVE(2, self->at[2], half, area(4), 0);
	for (from = 0; from < 3; from++) {
		OK(migrate_all(from, from == 2 ? area(4) : self->at[from], half));
		OK(migrate_all(from, self->at[from] + half * page, half));
		OK(count_pages(0, self->at[0], PAGES, PM_SOFT_DIRTY));
		ASSERT_EQ(half, count_pages(1, self->at[1], half, PM_SOFT_DIRTY));
		OK(count_pages(1, self->at[1] + half * page, half, PM_SOFT_DIRTY));
		ASSERT_EQ(half, count_pages(2, area(4), half, PM_SOFT_DIRTY));
		OK(count_pages(2, self->at[2] + half * page, half, PM_SOFT_DIRTY));
		TOGETHER(0, self->at[0], 2, area(4), half);
	}
}

/* A page is replaced in all who have it, or in none. */
TEST_F_TIMEOUT(cow_context_callers, soft_offline, TEST_SECONDS)
{
	uint64_t before[PAGES], after[PAGES];
	long nr, at;

	ALL_TOGETHER(PAGES);
	for (nr = 0; nr < 3; nr++) {
		at = 2 + 4 * nr;
		OK(read_pagemap(0, self->at[0], PAGES, before));
		if (call(nr, op_advise, self->at[nr] + at * page, 0,
			 MADV_SOFT_OFFLINE, 0) == -EINVAL)
			SKIP(return, "no MADV_SOFT_OFFLINE");
		OK(soft_offline(nr, self->at[nr] + at * page, 1));
		OK(read_pagemap(0, self->at[0], PAGES, after));
		ASSERT_NE(PAGEMAP_PFN(before[at]), PAGEMAP_PFN(after[at]));
		ALL_TOGETHER(PAGES);
		CHECK(0, self->at[0], PAGES, 1);
		CHECK(1, self->at[1], PAGES, 1);
		CHECK(2, self->at[2], PAGES, 1);
		unpoison_memory(PAGEMAP_PFN(before[at]));
	}
	OK(soft_offline(0, self->own, 1));
	CHECK(0, self->own, PAGES, 2);
	OK(migrate_all(2, self->at[2], PAGES));
	ALL_TOGETHER(PAGES);
}

/*
 * Scenario 27: DAMON asks the mappings of physical memory who has touched it.
 */
FIXTURE(cow_context_damon)
{
	bool on;
};

static int damon(const char *file, const char *text)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), DAMON_DIR "%s", file);
	return write_text(path, text);
}

FIXTURE_SETUP(cow_context_damon)
{
	setup_family(_metadata);
}

FIXTURE_TEARDOWN(cow_context_damon)
{
	if (self->on) {
		damon("0/state", "off");
		damon("nr_kdamonds", "0");
	}
	teardown_family();
}

/* It counts how often it has found that something of the range was touched. */
static int start_damon(uint64_t start, uint64_t end)
{
	static const char * const steps[][2] = {
		{ "0/contexts/nr_contexts", "1" },
		{ "0/contexts/0/operations", "paddr" },
		{ "0/contexts/0/monitoring_attrs/intervals/sample_us", "10000" },
		{ "0/contexts/0/monitoring_attrs/intervals/aggr_us", "100000" },
		{ "0/contexts/0/targets/nr_targets", "1" },
		{ "0/contexts/0/targets/0/regions/nr_regions", "1" },
		{ "0/contexts/0/schemes/nr_schemes", "1" },
		{ "0/contexts/0/schemes/0/action", "stat" },
		{ "0/contexts/0/schemes/0/access_pattern/sz/max", "1073741824" },
		{ "0/contexts/0/schemes/0/access_pattern/nr_accesses/min", "1" },
		{ "0/contexts/0/schemes/0/access_pattern/nr_accesses/max", "1000000" },
		{ "0/contexts/0/schemes/0/access_pattern/age/max", "1000000" },
	};
	char text[32];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(steps); i++)
		if (damon(steps[i][0], steps[i][1]))
			return -1;
	snprintf(text, sizeof(text), "%llu", (unsigned long long)start);
	if (damon("0/contexts/0/targets/0/regions/0/start", text))
		return -1;
	snprintf(text, sizeof(text), "%llu", (unsigned long long)end);
	if (damon("0/contexts/0/targets/0/regions/0/end", text))
		return -1;
	return damon("0/state", "on");
}

static long damon_touched(void)
{
	char text[32];

	if (damon("0/state", "update_schemes_stats") ||
	    read_text(DAMON_DIR "0/contexts/0/schemes/0/stats/nr_tried", text,
		      sizeof(text)))
		return -1;
	return atol(text);
}

/* Touches all pages for so long; no CPU remembers them as touched. */
static long op_use(char *addr, long nr, long msecs, long c)
{
	struct timespec end = in_msecs(msecs);

	do {
		if (op_protect(addr, nr, PROT_READ, 0) || op_check(addr, nr, 1, 0) ||
		    op_protect(addr, nr, RW, 0))
			return -1;
		usleep(5000);
	} while (msecs_until(&end) > 0);
	return 0;
}

/* Does DAMON find that memory is touched, or that it is not, before long? */
static int damon_finds(int nr, char *addr, long pages, bool touched)
{
	struct timespec end = in_msecs(SETTLE_MSECS);
	long before, now;

	do {
		before = damon_touched();
		if (touched) {
			if (call(nr, op_use, addr, pages, 500, 0))
				return -1;
		} else {
			usleep(500000);
		}
		now = damon_touched();
		if (before < 0 || now < 0)
			return -1;
		if (touched ? now > before : now == before)
			return 0;
	} while (msecs_until(&end) > 0);
	ksft_print_msg("member %d: DAMON does not see that it %s\n", nr,
		       touched ? "touches its pages" : "touches nothing");
	return -1;
}

TEST_F_TIMEOUT(cow_context_damon, touched, TEST_SECONDS)
{
	char *a = area(0), *at[3] = { a, a, area(1) };
	long pages = pmd_size / page;
	uint64_t entry;
	int nr;

	if (!pmd_size || !thp_is_enabled())
		SKIP(return, "no huge pages");
	if (damon("nr_kdamonds", "1"))
		SKIP(return, "no DAMON, or it is busy");
	self->on = true;

	/* One large folio: physical memory in one piece. */
	OK(call(0, op_map_huge, a, pages, 0, 0));
	FILL(0, a, pages, 1);
	ASSERT_TRUE(call(0, op_is_huge, a, 0, 0, 0));
	OK(fork_member(0, 1));
	OK(fork_member(1, 2));
	MOVE(2, a, pages, at[2], 0);
	OK(migrate_all(0, a, 1));
	TOGETHER(0, a, 2, at[2], pages);
	OK(read_pagemap(0, a, 1, &entry));
	OK(start_damon(PAGEMAP_PFN(entry) * page, (PAGEMAP_PFN(entry) + pages) * page));

	/* Of each, as long as it is there. The last has the moved pages alone. */
	for (nr = 0; nr < 3; nr++) {
		OK(damon_finds(nr, at[nr], pages, false));
		OK(damon_finds(nr, at[nr], pages, true));
		OK(damon_finds(2, at[2], pages, false));
		OK(damon_finds(2, at[2], pages, true));
		if (nr < 2)
			OK(exit_member(nr));
	}
	OK(read_pagemap(2, at[2], 1, &entry));
	ASSERT_TRUE(entry & PM_PRESENT);
}

/*
 * Scenario 28: swap goes while it has what several generations share, and some of
 * them have gone.
 */
struct swap_area {
	char path[256];
	int priority;
	bool off;
};

FIXTURE(cow_context_swapoff)
{
	struct swap_area swap;
};

FIXTURE_SETUP(cow_context_swapoff)
{
	setup_family(_metadata);
}

static int swap_on(struct swap_area *swap)
{
	int flags = swap->priority < 0 ? 0 : SWAP_FLAG_PREFER | swap->priority;

	if (swap->off && swapon(swap->path, flags))
		return -1;
	swap->off = false;
	return 0;
}

static int swap_off(struct swap_area *swap)
{
	if (swapoff(swap->path))
		return -1;
	swap->off = true;
	return 0;
}

FIXTURE_TEARDOWN(cow_context_swapoff)
{
	teardown_family();
	swap_on(&self->swap);
}

/* Why swap cannot be taken away, or NULL. */
static const char *keeps_swap(struct swap_area *swap)
{
	char text[4096], *line;
	long used;

	if (!have_swap || read_text("/proc/swaps", text, sizeof(text)))
		return "needs swap";
	line = strchr(text, '\n') + 1;
	if (strchr(line, '\n') != line + strlen(line) - 1)
		return "several swap areas";
	if (sscanf(line, "%255s %*s %*d %ld %d", swap->path, &used,
		   &swap->priority) != 3 || used > 64 * 1024)
		return "swap is in use";
	return NULL;
}

TEST_F_TIMEOUT(cow_context_swapoff, generations, TEST_SECONDS)
{
	char *a = area(0), *b = area(1), *at[4] = { a, a, a, b };
	const char *why = keeps_swap(&self->swap);
	const long rest = PAGES - 8;
	int nr;

	if (why)
		SKIP(return, "%s", why);

	/*
	 *      0      4      8             16
	 *      |------|------|-------------|
	 *  0   |  1   |  1   |      1      |
	 *  1   |  2   |  1   |      1      |  exits
	 *  2   |  2   |  3   |      1      |
	 *  3   |  2   |  3   |      1      |  elsewhere
	 *      |------|------|-------------|
	 */
	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 1);
	OK(fork_member(0, 1));
	OK(call(1, op_fill, a, 4, 2, 0));
	OK(fork_member(1, 2));
	OK(call(2, op_fill, a + 4 * page, 4, 3, 4));
	OK(fork_member(2, 3));
	MOVE(3, a, PAGES, b, 0);
	for (nr = 0; nr < 4; nr++)
		OK(page_out(nr, at[nr], PAGES));
	OK(exit_member(1));
	OK(swap_off(&self->swap));

	for (nr = 0; nr < 4; nr++)
		if (nr != 1)
			ASSERT_EQ(PAGES, count_pages(nr, at[nr], PAGES, PM_PRESENT));
	for (nr = 0; nr < 4; nr++) {
		if (nr == 1)
			continue;
		OK(migrate_all(nr, at[nr], PAGES));
		TOGETHER(2, a, 3, b, PAGES);
		TOGETHER(0, a + 8 * page, 2, a + 8 * page, rest);
		APART(0, a, 2, a, 8);
	}
	CHECK(0, a, PAGES, 1);
	for (nr = 2; nr < 4; nr++) {
		CHECK(nr, at[nr], 4, 2);
		CHECK_FROM(nr, at[nr] + 4 * page, 4, 3, 4);
		CHECK_FROM(nr, at[nr] + 8 * page, rest, 1, 8);
	}

	/* And once more, with the first gone, and one that came back first. */
	OK(swap_on(&self->swap));
	OK(page_out(2, a, PAGES));
	OK(page_out(0, a, PAGES));
	OK(exit_member(0));
	CHECK_FROM(3, b + 8 * page, rest / 2, 1, 8);
	OK(swap_off(&self->swap));
	ASSERT_EQ(PAGES, count_pages(2, a, PAGES, PM_PRESENT));
	TOGETHER(2, a, 3, b, PAGES);
	OK(migrate_all(3, b, PAGES));
	TOGETHER(2, a, 3, b, PAGES);
	OK(exit_member(2));
	OK(migrate_all(3, b, PAGES));
	CHECK(3, b, 4, 2);
	CHECK_FROM(3, b + 4 * page, 4, 3, 4);
	CHECK_FROM(3, b + 8 * page, rest, 1, 8);
	OK(swap_on(&self->swap));
	OK(page_out(3, b, PAGES));
	CHECK(3, b, 4, 2);
}

/*
 * Scenario 11: who forks is killed half-way, with what is told of forks; then swap
 * goes.
 */
static void *drop_fork_events(void *arg)
{
	int fd = (long)arg;
	struct uffd_msg msg;

	while (read(fd, &msg, sizeof(msg)) == sizeof(msg))
		if (msg.event == UFFD_EVENT_FORK)
			close(msg.arg.fork.ufd);
	return NULL;
}

static void watch_forks(char *addr, long nr)
{
	struct uffdio_register reg = {
		.range = { (uintptr_t)addr, nr * page },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_EVENT_FORK,
	};
	long fd = syscall(__NR_userfaultfd, O_CLOEXEC);
	pthread_t thread;

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		return;
	if (ioctl(fd, UFFDIO_REGISTER, &reg) ||
	    pthread_create(&thread, NULL, drop_fork_events, (void *)fd))
		_exit(1);
}

static void __noreturn fork_until_killed(char *addr, long nr)
{
	pid_t pid;

	watch_forks(addr, nr);
	for (;;) {
		shared->forking = true;
		pid = fork();
		if (!pid) {
			if (op_check(addr, nr, 1, 0))
				shared->bad++;
			_exit(0);
		}
		shared->forking = false;
		waitpid(pid, NULL, 0);
	}
}

/* Only what was killed in fork is a round. */
static long op_kill_forks(char *addr, long nr, long b, long c)
{
	struct timespec start;
	long i, usecs;
	int status;
	pid_t pid;

	signal(SIGCHLD, SIG_DFL);
	for (i = 0; racing(); i++) {
		/* Back from swap. */
		if (op_check(addr, nr, 1, 0))
			return -1;
		shared->forking = false;
		clock_gettime(CLOCK_MONOTONIC, &start);
		pid = fork();
		if (!pid)
			fork_until_killed(addr, nr);
		if (pid < 0)
			return -1;
		/* As long as that took, the next will. */
		usecs = -msecs_until(&start) * 1000;
		while (!FORCE_READ(shared->forking))
			if (waitpid(pid, &status, WNOHANG))
				return -1;
		usleep((usecs ?: 500) * (i % 16) / 16);
		kill(pid, SIGKILL);
		if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status))
			return -1;
		shared->rounds += shared->forking;
	}
	signal(SIGCHLD, SIG_IGN);
	return shared->rounds;
}

TEST_F_TIMEOUT(cow_context_swapoff, killed_forks, TEST_SECONDS)
{
	const char *why = keeps_swap(&self->swap);
	static int status[512];
	static char *list[512];
	const long pages = 512;
	char *a = area(0);
	long i, contexts;

	if (why)
		SKIP(return, "%s", why);

	visit_cpus();
	contexts = nr_contexts();
	OK(call(0, op_map, a, pages, 0, 0));
	FILL(0, a, pages, 1);
	/* Each may be unknown. */
	call(0, op_advise, a, pages, MADV_MERGEABLE, 0);
	call(0, op_advise, a, pages, MADV_HUGEPAGE, 0);
	for (i = 1; i < pages; i += 2)
		OK(call(0, op_protect, a + i * page, 1, PROT_READ, 0));

	list_pages(list, a, pages);
	start_race(ABOUT(MIGRATED) | ABOUT(SWAPPED_OUT) | ABOUT(WALKS));
	OK(tell(0, op_kill_forks, a, pages, 0, 0));
	for (i = 0; other_racing(); i++) {
		if (nr_nodes > 1)
			move_list(member[0].pid, list, pages, nodes[i & 1], status);
		mark_idle(0, a, pages);
		if (i % 4 == 3)
			take_back("128K");
	}
	end_race(_metadata, answer(0));
	ASSERT_EQ(shared->bad, 0);

	OK(page_out(0, a, pages));
	OK(fork_member(0, 1));
	OK(call(1, op_check, a, pages / 2, 1, 0));
	OK(swap_off(&self->swap));
	ASSERT_EQ(pages, count_pages(0, a, pages, PM_PRESENT));
	TOGETHER(0, a, 1, a, pages);
	OK(migrate_all(1, a, pages));
	TOGETHER(0, a, 1, a, pages);
	CHECK(0, a, pages, 1);
	CHECK(1, a, pages, 1);

	/* Nothing is left of those that were killed, nor of the family. */
	OK(exit_member(1));
	OK(exit_member(0));
	if (contexts >= 0)
		ASSERT_LE(wait_contexts(contexts - 1), contexts - 1);
}

/*
 * Scenario 31: parent and child have the same at the same address, not inherited
 * but mapped anew and merged; it goes to swap, and one of them comes back first.
 */
FIXTURE(cow_context_ksm)
{
	char run[16], pages_to_scan[16];
};

FIXTURE_VARIANT(cow_context_ksm)
{
	int first;
};

FIXTURE_VARIANT_ADD(cow_context_ksm, parent_first) { .first = 0, };
FIXTURE_VARIANT_ADD(cow_context_ksm, child_first) { .first = 1, };

FIXTURE_SETUP(cow_context_ksm)
{
	setup_family(_metadata);
}

FIXTURE_TEARDOWN(cow_context_ksm)
{
	teardown_family();
	if (self->run[0])
		write_text(KSM_DIR "run", self->run);
	if (self->pages_to_scan[0])
		write_text(KSM_DIR "pages_to_scan", self->pages_to_scan);
}

TEST_F_TIMEOUT(cow_context_ksm, unmapped_and_merged, TEST_SECONDS)
{
	const int first = variant->first, second = !first;
	char *a = area(0);
	int nr;

	if (read_text(KSM_DIR "run", self->run, sizeof(self->run)))
		SKIP(return, "no KSM");

	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 1);
	OK(fork_member(0, 1));
	OK(call(1, op_unmap, a, PAGES, 0, 0));
	OK(call(1, op_map, a, PAGES, 0, 0));
	FILL(1, a, PAGES, 1);
	APART(0, a, 1, a, PAGES);
	OK(merge(0, a, 1, a, PAGES));
	OK(fork_member(1, 2));
	for (nr = 0; nr < 3; nr++) {
		OK(migrate_all(nr, a, PAGES));
		TOGETHER(0, a, 1, a, PAGES);
		TOGETHER(1, a, 2, a, PAGES);
	}
	OK(page_out(0, a, PAGES));
	TOGETHER(0, a, 1, a, PAGES);
	TOGETHER(1, a, 2, a, PAGES);

	CHECK(first, a, PAGES, 1);
	OK(migrate_all(first, a, PAGES));
	CHECK(second, a, PAGES, 1);
	OK(migrate_all(second, a, PAGES));
	CHECK(2, a, PAGES, 1);
	OK(migrate_all(2, a, PAGES));
	for (nr = 0; nr < 3; nr++)
		CHECK(nr, a, PAGES, 1);
	for (nr = 0; nr < 3; nr++)
		OK(page_out(nr, a, PAGES));
	for (nr = 0; nr < 3; nr++)
		CHECK(nr, a, PAGES, 1);

	/* Each its own again. */
	OK(call(first, op_fill, a, 4, 2, 0));
	CHECK(second, a, PAGES, 1);
	CHECK(2, a, PAGES, 1);
	OK(call(first, op_fill, a, 4, 1, 0));
	OK(merge(0, a, 1, a, PAGES));
	OK(call(first, op_advise, a, PAGES, MADV_UNMERGEABLE, 0));
	APART(0, a, 1, a, PAGES);
	for (nr = 0; nr < 3; nr++)
		OK(migrate_all(nr, a, PAGES));
	APART(0, a, 1, a, PAGES);
	FILL(first, a, PAGES, 3);
	OK(page_out(0, a, PAGES));
	OK(page_out(1, a, PAGES));
	CHECK(first, a, PAGES, 3);
	CHECK(second, a, PAGES, 1);
	CHECK(2, a, PAGES, 1);
	OK(migrate_all(first, a, PAGES));
	OK(migrate_all(second, a, PAGES));
}

/*
 * KSM makes what it meets second its page, in place, even if that is shared with a
 * child. The child is not mergeable, so that mremap() moves the page as it is: to
 * where nobody merged anything. Before that, or after it (child_first).
 */
TEST_F_TIMEOUT(cow_context_ksm, shared_and_moved, TEST_SECONDS)
{
	char *same = area(0), *a = area(1), *b = area(2);

	if (read_text(KSM_DIR "run", self->run, sizeof(self->run)))
		SKIP(return, "no KSM");

	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 1);
	OK(fork_member(0, 1));
	OK(call(0, op_map, same, PAGES, 0, 0));
	FILL(0, same, PAGES, 1);
	if (variant->first == 1)
		MOVE(1, a, PAGES, b, 0);
	OK(merge(0, same, 0, a, PAGES));
	if (variant->first == 0)
		MOVE(1, a, PAGES, b, 0);
	if (count_apart(0, a, 1, b, PAGES))
		SKIP(return, "KSM replaced the page that is shared");
	CHECK(0, same, PAGES, 1);
	CHECK(0, a, PAGES, 1);
	CHECK(1, b, PAGES, 1);

	if (walks_use_contexts()) {
		OK(migrate_all(1, b, PAGES));
		TOGETHER(0, a, 1, b, PAGES);
		OK(page_out(0, a, PAGES));
		TOGETHER(0, a, 1, b, PAGES);
	} else {
		ksft_print_msg("anon_vma does not find what was moved\n");
		migrate(1, b, PAGES);
	}
	CHECK(1, b, PAGES, 1);
	CHECK(0, a, PAGES, 1);
	CHECK(0, same, PAGES, 1);
	OK(call(1, op_fill, b, PAGES, 2, 0));
	CHECK(0, a, PAGES, 1);
	OK(exit_member(0));
	CHECK(1, b, PAGES, 2);
	OK(migrate_all(1, b, PAGES));
}

/* Pages of the chunks that are not those of the first. */
static long chunks_apart(int nr, char *a, char *at)
{
	long i, n = 0;

	for (i = 0; i < KSM_VMAS; i += KSM_CHUNK)
		n += count_apart(0, a, nr, at + i * page, KSM_CHUNK);
	return n;
}

/* -ETIME: a kernel that looks at all VMAs of an mm when one has changed. */
static long op_many_vmas(char *a, long nr, long b, long c)
{
	struct timespec end = in_msecs(REPLY_SECONDS * 1000 / 2);
	long i;

	for (i = 0; i < nr; i += 2) {
		if (op_protect(a + i * page, 1, PROT_READ, 0))
			return -errno;
		if (msecs_until(&end) < 0)
			return -ETIME;
	}
	return 0;
}

static long op_check_chunks(char *a, long b, long c, long d)
{
	long i, bad = 0;

	for (i = 0; i < KSM_VMAS; i += KSM_CHUNK)
		bad += op_check(a + i * page, KSM_CHUNK, 1, 0);
	return bad;
}

static int merge_chunks(char *a)
{
	struct timespec end = in_msecs(REPLY_SECONDS * 1000);

	if (write_text(KSM_DIR "run", "1"))
		return -1;
	while (chunks_apart(0, a, a) && msecs_until(&end) > 0)
		usleep(500000);
	return write_text(KSM_DIR "run", "0") || chunks_apart(0, a, a) ? -1 : 0;
}

/*
 * Scenario 16: what was one VMA is many, and KSM has merged what is in them. Some
 * move, and are merged again (child_first).
 */
TEST_F_TIMEOUT(cow_context_ksm, many_vmas, TEST_SECONDS)
{
	const long chunk = KSM_CHUNK;
	char *a = area(0), *b = area(12);
	long i;

	if (read_text(KSM_DIR "run", self->run, sizeof(self->run)))
		SKIP(return, "no KSM");

	/* It would sleep most of the time. */
	OK(read_text(KSM_DIR "pages_to_scan", self->pages_to_scan,
		     sizeof(self->pages_to_scan)));
	OK(write_text(KSM_DIR "pages_to_scan", "5000"));
	OK(call(0, op_map, a, KSM_VMAS, 0, 0));
	for (i = 0; i < KSM_VMAS; i += chunk)
		FILL(0, a + i * page, chunk, 1);
	OK(call(0, op_advise, a, KSM_VMAS, MADV_MERGEABLE, 0));
	i = call(0, op_many_vmas, a, KSM_VMAS, 0, 0);
	if (i == -ETIME)
		SKIP(return, "too slow for so many VMAs: DEBUG_VM_MAPLE_TREE?");
	OK(i);
	ASSERT_FALSE(is_one_vma(0, a, 2));
	OK(merge_chunks(a));
	if (variant->first == 1) {
		for (i = 0; i < chunk; i++) {
			MOVE(0, a + i * page, 1, b, 0);
			MOVE(0, b, 1, a + i * page, 0);
		}
		OK(merge_chunks(a));
	}
	OK(fork_member(0, 1));
	OK(migrate_all(0, a, chunk));
	OK(chunks_apart(0, a, a));
	OK(chunks_apart(1, a, a));
	OK(page_out(0, a, chunk));
	OK(call(0, op_check_chunks, a, 0, 0, 0));
	/* What moves is no longer KSM's. */
	OK(call(1, op_protect, a, chunk, PROT_READ, 0));
	MOVE(1, a, chunk, b, 0);

	/* Each its own again. */
	OK(call(0, op_advise, a, KSM_VMAS, MADV_UNMERGEABLE, 0));
	for (i = chunk; i < KSM_VMAS; i += 16 * chunk)
		APART(0, a, 0, a + i * page, chunk);
	OK(call(0, op_check_chunks, a, 0, 0, 0));
	CHECK(1, b, chunk, 1);
	for (i = 0; i < KSM_VMAS; i += 16 * chunk)
		OK(migrate_all(0, a + i * page, chunk));
	OK(migrate_all(1, b, chunk));
	CHECK(1, b, chunk, 1);
}

/*
 * Scenario 32: mapped before fork, faulted afterwards, by each for itself; the
 * last generation swaps in first.
 */
TEST_F_TIMEOUT(cow_context, unfaulted_at_fork, TEST_SECONDS)
{
	char *a = area(0), *b = area(1);
	int nr;

	OK(call(0, op_map, a, PAGES, 0, 0));
	OK(fork_member(0, 1));
	FILL(0, a, PAGES, 1);
	FILL(1, a, PAGES, 2);
	OK(fork_member(0, 2));
	OK(fork_member(1, 3));
	OK(fork_member(3, 4));
	APART(0, a, 1, a, PAGES);
	OK(migrate_all(4, a, PAGES));
	OK(migrate_all(2, a, PAGES));
	TOGETHER(1, a, 4, a, PAGES);
	TOGETHER(0, a, 2, a, PAGES);

	OK(page_out(0, a, PAGES));
	OK(page_out(1, a, PAGES));
	CHECK(4, a, PAGES, 2);
	MOVE(4, a, PAGES, b, 0);
	OK(migrate_all(4, b, PAGES));
	CHECK(2, a, PAGES, 1);
	for (nr = 0; nr < 4; nr++)
		CHECK(nr, a, PAGES, nr & 1 ? 2 : 1);
	TOGETHER(3, a, 4, b, PAGES);
	OK(exit_member(3));
	OK(migrate_all(1, a, PAGES));
	TOGETHER(1, a, 4, b, PAGES);
	OK(exit_member(1));
	OK(migrate_all(4, b, PAGES));
	OK(page_out(4, b, PAGES));
	CHECK(4, b, PAGES, 2);
	CHECK(0, a, PAGES, 1);
	CHECK(2, a, PAGES, 1);
	OK(migrate_all(0, a, PAGES));
	TOGETHER(0, a, 2, a, PAGES);
}

/* Records of moved memory, or -1. */
static long nr_records(void)
{
	FILE *file = fopen(TREE_FILE, "r");
	char line[256], *found;
	long sum = 0;

	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file)) {
		found = strstr(line, " remaps ");
		sum += found ? atol(found + strlen(" remaps ")) : 0;
	}
	fclose(file);
	return sum;
}

/* Processes go a little later than they exit. Returns the last count. */
static long wait_records(long most)
{
	struct timespec end = in_msecs(SETTLE_MSECS);
	long n;

	do {
		n = nr_records();
	} while (n > most && msecs_until(&end) > 0 && !usleep(20000));
	return n;
}

/* Memory is moved to a place of its own, may not grow there, and goes. */
static long op_refused_growth(char *addr, long place, long b, long c)
{
	const int fd = open("/dev/zero", O_RDONLY);
	struct rlimit old, one;
	char *to;
	long i;

	if (fd < 0 || getrlimit(RLIMIT_STACK, &old))
		return -errno;
	one = old;
	one.rlim_cur = page;
	for (i = 0; i < RECORD_ROUNDS; i++) {
		to = (char *)place + i * page;
		if (mmap(addr, page, RW, ANON_FIXED | MAP_GROWSDOWN, -1,
			 0) != addr)
			return -errno;
		*addr = 1;
		if (op_move(addr, 1, (long)to, 0) ||
		    setrlimit(RLIMIT_STACK, &one))
			return -errno;
		if (read(fd, to - 1, 1) != -1 || errno != EFAULT)
			return -EINVAL;
		if (setrlimit(RLIMIT_STACK, &old) || op_unmap(to, 1, 0, 0))
			return -errno;
	}
	return close(fd);
}

/* Each generation moves memory that the next does not get, or empty. */
static long op_skip_line(char *addr, long generations, long b, long c)
{
	long gen;
	char *to;
	pid_t pid;

	for (gen = 0; gen < generations; gen++) {
		to = addr + (gen + 1) * 2 * page;
		if (op_map(addr, 1, 0, 0))
			return -errno;
		*addr = 1;
		if (op_move(addr, 1, (long)to, 0) ||
		    op_advise(to, 1, gen % 2 ? MADV_WIPEONFORK : MADV_DONTFORK, 0))
			return -errno;
		pid = fork();
		if (pid) {
			if (pid < 0)
				shared->bad++;
			_exit(0);
		}
		if (gen % 2 && op_unmap(to, 1, 0, 0))
			shared->bad++;
	}
	return getpid();
}

/*
 * No record of moved memory stays when there is no memory any more that it could
 * be about: walks would look there, and children inherit it.
 */
TEST_F_TIMEOUT(cow_context, records_go, TEST_SECONDS)
{
	char *a = area(0), *far = area(1) + MAX_PAGES / 2 * page;
	const long before = nr_records();
	long ret;

	OK(call(0, op_refused_growth, a, (long)far, 0, 0));
	if (before >= 0)
		ASSERT_LE(wait_records(before + RECORD_NOISE),
			  before + RECORD_NOISE);

	ret = call(0, op_skip_line, a, RECORD_ROUNDS, 0, 0);
	ASSERT_GT(ret, 0);
	member[0].pid = ret;
	ASSERT_EQ(shared->bad, 0);
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
	if (before >= 0)
		ASSERT_LE(wait_records(before + RECORD_NOISE),
			  before + RECORD_NOISE);
	OK(exit_member(0));
}

/*
 * What is in the new part of a VMA that was inherited and has grown goes to swap,
 * is inherited, and comes back as shared: then it is nobody's own.
 */
static void check_grown(struct __test_metadata *_metadata, int nr, char *part,
			long pages)
{
	OK(page_out(nr, part, pages));
	OK(fork_member(nr, nr + 1));
	CHECK(nr + 1, part, pages, 2);
	CHECK(nr, part, pages, 2);
	TOGETHER(nr, part, nr + 1, part, pages);
	OK(migrate_all(nr, part, pages));
	TOGETHER(nr, part, nr + 1, part, pages);
	OK(migrate_all(nr + 1, part, pages));
	TOGETHER(nr, part, nr + 1, part, pages);
	OK(page_out(nr + 1, part, pages));
	CHECK(nr, part, pages, 2);
	CHECK(nr + 1, part, pages, 2);
}

/* The second child's grows by a little, up to memory that was never touched. */
TEST_F_TIMEOUT(cow_context, inherited_grows, TEST_SECONDS)
{
	char *a = area(0), *b = a + PAGES * page;
	int nr;

	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 1);
	for (nr = 1; nr < 5; nr += 2) {
		const long more = nr == 1 ? 32 * PAGES : 5 * PAGES;
		const long gap = nr == 1 ? more : PAGES;

		OK(fork_member(0, nr));
		OK(call(nr, op_unmap, b, more, 0, 0));
		if (gap < more)
			OK(call(nr, op_map, b + gap * page, more - gap, 0, 0));
		OK(call(nr, op_grow, a, PAGES, gap, 0));
		ASSERT_TRUE(is_one_vma(nr, a, PAGES + more));
		FILL(nr, b, more, 2);
		check_grown(_metadata, nr, b, more);
	}
	CHECK(0, a, PAGES, 1);
}

/* One like a stack grows by itself, to the lowest page that is touched. */
TEST_F_TIMEOUT(cow_context, inherited_stack_grows, TEST_SECONDS)
{
	char *a = area(1);
	int nr;

	OK(call(0, op_map_stack, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 1);
	for (nr = 1; nr < 5; nr += 2) {
		const long more = nr == 1 ? 32 * PAGES : 5 * PAGES;
		char *low = a - more * page;

		OK(fork_member(0, nr));
		OK(call(nr, op_unmap, low, more, 0, 0));
		FILL(nr, low, more, 2);
		ASSERT_TRUE(is_one_vma(nr, low, more + PAGES));
		check_grown(_metadata, nr, low, more);
	}
	CHECK(0, a, PAGES, 1);
}

/*
 * A thread touches VMAs for the first time while another fills the gaps before
 * them, so that they become one with what is before the gaps. What mmap() thinks
 * was never touched, a fork does not copy.
 *
 *	i    i + 1    i + 2    i + 3
 *	map  map now  touch    nothing
 */
static struct {
	char *addr;
	long nr, round, at, done;
	bool stop;
} first_fault;

static long load(long *p)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static void store(long *p, long value)
{
	__atomic_store_n(p, value, __ATOMIC_RELEASE);
}

static void *first_fault_thread(void *arg)
{
	long round, i;

	for (round = 1; ; round++) {
		while (load(&first_fault.round) < round)
			if (FORCE_READ(first_fault.stop))
				return NULL;
		for (i = 0; i < first_fault.nr; i += 4) {
			while (load(&first_fault.at) < i)
				if (FORCE_READ(first_fault.stop))
					return NULL;
			*(uint64_t *)(first_fault.addr + (i + 2) * page) =
				content(round, i);
		}
		store(&first_fault.done, round);
	}
}

/* In the child: what the thread wrote, and zeroes before. */
static bool first_fault_lost(long round)
{
	long i;

	for (i = 0; i < first_fault.nr; i++)
		if (i % 4 != 3 &&
		    *(uint64_t *)(first_fault.addr + i * page) !=
		    (i % 4 == 2 ? content(round, i - 2) : 0))
			return true;
	return false;
}

static long op_first_faults(char *addr, long nr, long b, long c)
{
	long round, i, lost = -1;
	pthread_t thread;

	signal(SIGCHLD, SIG_DFL);
	memset(&first_fault, 0, sizeof(first_fault));
	first_fault.addr = addr;
	first_fault.nr = nr;
	if (pthread_create(&thread, NULL, first_fault_thread, NULL))
		return -1;
	for (round = 1; racing(); round++) {
		int status;
		pid_t pid;

		if (op_map(addr, nr, 0, 0))
			goto out;
		for (i = 1; i < nr; i += 2)
			if (munmap(addr + i * page, page))
				goto out;
		store(&first_fault.at, -1);
		store(&first_fault.round, round);
		for (i = 0; i < nr; i += 4) {
			store(&first_fault.at, i);
			if (op_map(addr + (i + 1) * page, 1, 0, 0))
				goto out;
		}
		while (load(&first_fault.done) < round)
			;
		pid = fork();
		if (!pid)
			_exit(first_fault_lost(round));
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			goto out;
		if (status)
			shared->bad++;
		shared->rounds = round;
	}
	lost = shared->bad;
out:
	first_fault.stop = true;
	pthread_join(thread, NULL);
	return lost;
}

TEST_F_TIMEOUT(cow_context, first_fault_race_merge, TEST_SECONDS)
{
	char *a = area(0);

	/* In each round both threads wait for each other 64 times. */
	start_race(0);
	shared->race_end = in_msecs(FIRST_FAULT_MSECS);
	OK(call(0, op_first_faults, a, 256, 0, 0));
	end_race(_metadata, shared->rounds);
}

/*
 * What is read in debugfs: see Documentation/mm/cow_context.rst, Counters.
 */

#define MAX_CONTEXTS	1024

/* A line of TREE_FILE. */
struct tree_line {
	char ctx[32];
	int indent, depth, refs;
	long remaps, vmas;
	bool shares, dead, busy;
};

/* The family of a process. */
struct tree {
	int nr;
	struct tree_line line[MAX_CONTEXTS];
};

static struct tree tree, tree_before;
static char ctx_of[MAX_MEMBERS][32];

/* Returns 0, or -1 if it is not as documented. */
static int parse_tree_line(const char *text, struct tree_line *line)
{
	int len = 0;

	memset(line, 0, sizeof(*line));
	line->indent = strspn(text, " ");
	text += line->indent;
	if (sscanf(text, "%31s depth %d%n", line->ctx, &line->depth, &len) != 2)
		return -1;
	text += len;
	if (!strncmp(text, " shares ", strlen(" shares "))) {
		line->shares = true;
		text += strlen(" shares");
	}
	len = 0;
	if (sscanf(text, " refs %d%n", &line->refs, &len) != 1)
		return -1;
	text += len;
	line->dead = !strcmp(text, " dead\n");
	/* Nothing follows if it has just died. */
	line->busy = !strcmp(text, " busy\n") || !strcmp(text, "\n");
	if (line->dead || line->busy)
		return 0;
	len = 0;
	if (sscanf(text, " mm %*s vmas %ld remaps %ld unmapping %*d%n",
		   &line->vmas, &line->remaps, &len) != 2)
		return -1;
	return len && !strcmp(text + len, "\n") ? 0 : -1;
}

/*
 * The family whose first process is @pid. Returns the number of its contexts, 0 if
 * there is no such family, or -1 if the file is not as documented.
 */
static int read_tree(struct tree *t, pid_t pid)
{
	FILE *file = fopen(TREE_FILE, "r");
	bool here = false;
	char line[256];

	t->nr = 0;
	if (!file)
		return 0;
	while (fgets(line, sizeof(line), file)) {
		const char *paren = strrchr(line, '(');

		if (!strncmp(line, "family of ", strlen("family of "))) {
			here = paren && atol(paren + 1) == pid;
			continue;
		}
		if (!here)
			continue;
		if (t->nr == MAX_CONTEXTS ||
		    parse_tree_line(line, &t->line[t->nr])) {
			ksft_print_msg("not understood: %s", line);
			t->nr = -1;
			break;
		}
		t->nr++;
	}
	fclose(file);
	return t->nr;
}

/* Who was executed: from there on this family has only forked. 0 if not found. */
static pid_t tree_root(void)
{
	char path[64], text[512];
	int pid = getpid();
	const char *paren;

	while (pid > 0) {
		if (read_tree(&tree, pid))
			return pid;
		snprintf(path, sizeof(path), "/proc/%d/stat", pid);
		if (read_text(path, text, sizeof(text)))
			return 0;
		paren = strrchr(text, ')');
		if (!paren || sscanf(paren + 1, " %*c %d", &pid) != 1)
			return 0;
	}
	return 0;
}

static int find_context(const struct tree *t, const char *ctx)
{
	int i;

	for (i = 0; i < t->nr; i++)
		if (!strcmp(t->line[i].ctx, ctx))
			return i;
	return -1;
}

/* The line of the innermost context that line @i is in, or -1. */
static int find_parent(const struct tree *t, int i)
{
	int j = i;

	while (--j >= 0)
		if (t->line[j].depth < t->line[i].depth)
			return j;
	return -1;
}

/* Forks, and finds out which contexts are the members'. 0, or -1. */
static int fork_context(pid_t root, int parent, int nr)
{
	int i, found = -1;

	if (read_tree(&tree_before, root) <= 0 || fork_member(parent, nr) ||
	    read_tree(&tree, root) <= 0)
		return -1;
	for (i = 0; i < tree.nr; i++) {
		if (find_context(&tree_before, tree.line[i].ctx) >= 0)
			continue;
		if (found >= 0)
			return -1;
		found = i;
	}
	if (found < 0)
		return -1;
	strcpy(ctx_of[nr], tree.line[found].ctx);
	if (!ctx_of[parent][0] && find_parent(&tree, found) >= 0)
		strcpy(ctx_of[parent],
		       tree.line[find_parent(&tree, found)].ctx);
	return 0;
}

/* VMAs of a member, without the gate, which is nobody's. */
static long count_vmas(int nr)
{
	char line[512];
	FILE *maps;
	long n = 0;

	snprintf(line, sizeof(line), "/proc/%d/maps", member[nr].pid);
	maps = fopen(line, "r");
	while (maps && fgets(line, sizeof(line), maps))
		n += strchr(line, '\n') && !strstr(line, "[vsyscall]") &&
			!strstr(line, "[vectors]");
	if (maps)
		fclose(maps);
	return n;
}

/*
 * What is wrong with the line of a member, which @parent forked and which forked
 * @children that have a context yet; NULL if nothing is. @remaps: -1 if it is dead.
 */
static const char *check_context(int nr, int parent, int children, long remaps)
{
	const int i = find_context(&tree, ctx_of[nr]);
	const struct tree_line *line = &tree.line[i];
	int above;

	if (i < 0)
		return "it is not there";
	above = find_parent(&tree, i);
	if (line->busy)
		return "it is busy";
	if (line->indent != 2 * line->depth)
		return "it is not indented by its depth";
	if (above < 0 || line->depth != tree.line[above].depth + 1)
		return "it is not one deeper than what it is below";
	if (parent >= 0 && strcmp(tree.line[above].ctx, ctx_of[parent]))
		return "it is not below its parent's";
	if (line->shares)
		return "it shares an owner";
	if (line->dead && remaps >= 0)
		return "it is dead";
	if (!line->dead && remaps < 0)
		return "it is not dead";
	/* Its mm's, and its children's. */
	if (line->refs != children + !line->dead)
		return "refs";
	if (line->dead)
		return NULL;
	if (line->remaps != remaps)
		return "remaps";
	return line->vmas == count_vmas(nr) ? NULL : "vmas";
}

/* The same, once processes have gone and walks are over. */
static const char *wait_context(pid_t root, int nr, int parent, int children,
				long remaps)
{
	struct timespec end = in_msecs(SETTLE_MSECS);
	const char *why;

	do {
		visit_cpus();
		if (read_tree(&tree, root) <= 0)
			return "the tree cannot be read";
		why = check_context(nr, parent, children, remaps);
	} while (why && msecs_until(&end) > 0 && !usleep(20000));
	if (why)
		ksft_print_msg("context %s of member %d: %s\n", ctx_of[nr], nr, why);
	return why;
}

/* Returns 0 when no line is about the member any more. */
static int wait_gone(pid_t root, int nr)
{
	struct timespec end = in_msecs(SETTLE_MSECS);

	do {
		visit_cpus();
		if (read_tree(&tree, root) <= 0)
			return -1;
		if (find_context(&tree, ctx_of[nr]) < 0)
			return 0;
	} while (msecs_until(&end) > 0 && !usleep(20000));
	return -1;
}

#define SHOWN(nr, parent, children, remaps) \
	ASSERT_TRUE(!wait_context(root, nr, parent, children, remaps))
#define GONE(nr)	OK(wait_gone(root, nr))

/*
 * debugfs shows this family as it is: who forked whom, who has moved memory, who is
 * dead and stays because of whom he forked. The members map memory, so that no two of
 * the first four have the same number of VMAs. That is I6 and I8 of mm/cow_context.h,
 * as far as user space can see them.
 *
 *	0 -> 1 -> 2 -> 4
 *	 `-> 3
 */
TEST_F_TIMEOUT(cow_context, shown, TEST_SECONDS)
{
	static const char * const always[] = {
		"contexts", "dead", "forks", "remaps_added", "remaps_removed",
		"remaps_kept", "tree_walks", "tree_contexts", "unfindable",
	};
	static const int parent[] = { -1, 0, 1, 0 }, maps[] = { 0, 1, 2, 5 };
	char *a = area(0), *b = area(1), *c = area(2);
	long forks, added, removed, base, walks, visits;
	unsigned int i;
	pid_t root;
	int nr, n;

	if (access(TREE_FILE, R_OK) || access(STATS_FILE, R_OK))
		SKIP(return, "no " TREE_FILE);
	root = tree_root();
	if (!root)
		SKIP(return, "in another pid namespace than debugfs");
	ASSERT_GT(tree.nr, 0);
	if (strchr(tree.line[0].ctx, '('))
		SKIP(return, "pointers cannot be told apart yet");

	for (i = 0; i < ARRAY_SIZE(always); i++)
		ASSERT_GE(read_stat(always[i]), 0)
			TH_LOG("%s is not counted", always[i]);
	/* No walk missed a mapping; without a comparison that is not counted. */
	ASSERT_LE(read_stat("missed"), 0);
	ASSERT_EQ(read_stat("unfindable"), 0);

	forks = read_stat("forks");
	added = read_stat("remaps_added");
	removed = read_stat("remaps_removed");

	/* The tree is that of the forks. */
	memset(ctx_of, 0, sizeof(ctx_of));
	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 1);
	for (nr = 1; nr < 4; nr++) {
		OK(fork_context(root, parent[nr], nr));
		for (n = 0; n < maps[nr]; n++)
			OK(call(nr, op_map, c + (2 * n + 20 * nr) * page, 1, 0, 0));
	}
	ASSERT_GE(read_stat("forks"), forks + 3);
	ASSERT_GE(read_stat("contexts"), tree.nr);
	/* That of the stack, since exec; perhaps more of who started this. */
	base = tree.line[find_context(&tree, ctx_of[0])].remaps;
	SHOWN(0, -1, 2, base);
	SHOWN(1, 0, 1, base);
	SHOWN(2, 1, 0, base);
	SHOWN(3, 0, 0, base);

	/* A record is of who moves memory, and of who is forked afterwards. */
	MOVE(2, a, PAGES, b, 0);
	SHOWN(2, 1, 0, base + 1);
	ASSERT_GE(read_stat("remaps_added"), added + 1);
	OK(fork_context(root, 2, 4));
	SHOWN(4, 2, 0, base + 1);
	SHOWN(2, 1, 1, base + 1);
	SHOWN(1, 0, 1, base);
	SHOWN(3, 0, 0, base);
	/* It goes with that memory. */
	OK(call(2, op_unmap, b, PAGES, 0, 0));
	ASSERT_GE(read_stat("remaps_removed"), removed + 1);
	SHOWN(2, 1, 1, base);
	SHOWN(4, 2, 0, base + 1);

	/* Who asks for a page visits all who have it, at least. */
	walks = read_stat("tree_walks");
	visits = read_stat("tree_contexts");
	OK(migrate_all(0, a, PAGES));
	if (nr_nodes > 1) {
		ASSERT_GE(read_stat("tree_walks"), walks + 2);
		ASSERT_GE(read_stat("tree_contexts"), visits + 2 * 4);
	}

	/* The dead stay as long as there is one below them, and no longer. */
	OK(exit_member(1));
	SHOWN(1, 0, 1, -1);
	SHOWN(2, 1, 1, base);
	ASSERT_GE(read_stat("dead"), 1);
	OK(exit_member(2));
	SHOWN(2, 1, 1, -1);
	SHOWN(4, 2, 0, base + 1);
	OK(exit_member(3));
	GONE(3);
	SHOWN(0, -1, 1, base);
	CHECK(4, b, PAGES, 1);
	OK(exit_member(4));
	for (nr = 1; nr < 5; nr++)
		GONE(nr);
	SHOWN(0, -1, 0, base);
	CHECK(0, a, PAGES, 1);
	ASSERT_LE(read_stat("missed"), 0);
	ASSERT_EQ(read_stat("unfindable"), 0);
}

/*
 * Who is forked deeper than COW_OWNERS_MAX, which mm/cow_context.h has, shares the
 * innermost owner, and is no deeper than one below it.
 */
TEST_F_TIMEOUT(cow_context, shown_deep, TEST_SECONDS)
{
	char *a = area(0);
	pid_t root;
	long ret;
	int i, nr;

	if (access(TREE_FILE, R_OK))
		SKIP(return, "no " TREE_FILE);
	root = tree_root();
	if (!root)
		SKIP(return, "in another pid namespace than debugfs");

	OK(call(0, op_map, a, PAGES, 0, 0));
	FILL(0, a, PAGES, 1);
	shared->race_end = in_msecs(CHAIN_MSECS);
	ret = call(0, op_chain, a, MAX_DEPTH + PAGES, 0, 0);
	ASSERT_GT(ret, 0);
	member[0].pid = ret;
	ASSERT_EQ(shared->bad, 0);
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;

	/* There is one of each depth, and the last generation. */
	ASSERT_GT(read_tree(&tree, root), MAX_DEPTH);
	for (i = 0, nr = 0; i < tree.nr; i++) {
		ASSERT_LE(tree.line[i].depth, MAX_DEPTH);
		ASSERT_EQ(tree.line[i].shares, tree.line[i].depth == MAX_DEPTH);
		nr += tree.line[i].shares && !tree.line[i].dead;
	}
	ASSERT_GE(nr, 1);
	OK(exit_member(0));
}

int main(int argc, char **argv)
{
	if (argc > 3 && !strcmp(argv[1], EXEC_CHILD))
		return executed(argc, argv);
	return test_harness_run(argc, argv);
}
