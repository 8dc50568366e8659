// SPDX-License-Identifier: GPL-2.0
/*
 * What if there is no memory? Allocation number n of a system call or of a page
 * fault fails, for n = 1, 2, 3 ... until one succeeds that did not need so many.
 *
 * The test itself maps an arena: anonymous and private file memory, some of it
 * moved, some moved from the same place one after the other. For each n it
 * forks a worker, which inherits all that, writes to half of the pages, arms
 * /proc/self/task/<tid>/fail-nth, and makes the call. If the call fails, all
 * must be as before:
 *
 *  - /proc/self/maps: the same, but for what is said below;
 *  - every page reads as before;
 *  - cow_context/validate finds nothing wrong (not for each n, it is slow), and
 *    MADV_PAGEOUT of everything, which finds out who maps it, loses nothing.
 *
 * The same call is then repeated with memory, and must succeed. In any case the
 * contents must be right afterwards, in the worker and in a child of it. In the
 * end the test still reads what it wrote, the kernel has as many contexts as
 * before, has missed nothing, and kmemleak has nothing new from this program.
 *
 * What a failed call may leave behind, each where it is marked:
 *
 *  - MAY_SPLIT: VMAs that were split before memory ran out: mprotect(),
 *    munmap(), madvise(), and what is unmapped by MAP_FIXED and MREMAP_FIXED.
 *  - MAY_UNMAP: a gap at the destination, of MAP_FIXED and MREMAP_FIXED, which
 *    unmap first.
 *  - MAY_DIE: exec after the point of no return. A page fault without memory
 *    should be retried, but may end in SIGBUS or the OOM killer; or in SIGSEGV
 *    where the kernel writes, as to struct rseq after fork has write-protected
 *    it.
 *
 * mremap() of a part of a VMA may succeed but for splitting the source, which
 * then remains, without pages. It is not looked at.
 *
 * Where CONFIG_FAIL_PAGE_ALLOC is set pages and page tables fail, too.
 *
 * COW_FAIL_DRY=1 needs no fault injection: each scenario is run once with a
 * call that is not made and said to have failed, and once with one that
 * succeeds. COW_FAIL_DRY=lie makes the call and says that it has failed: that
 * must be noticed wherever the call changes anything. COW_FAIL_N=n does that n
 * only. COW_FAIL_LOG=1 has the kernel log what fails.
 */

#define _GNU_SOURCE
#include "kselftest_harness.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cow_context_util.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT	21
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif

/* No call needs more allocations than that. */
#define MAX_NTH		3000
/* The first ones, and then each tenth, are looked at with validate. */
#define VALIDATE_FIRST	5
#define VALIDATE_EACH	10

/* Emulated and instrumented kernels are slow. */
#define TEST_SECONDS	1800
#define SETTLE_MSECS	20000
#define STEADY_MSECS	500
/* kmemleak says nothing of what is younger than 5 s. */
#define LEAK_SECONDS	6

#define NR_SLOTS	64
#define SLOT_PAGES	64
#define NR_PAGES	(NR_SLOTS * SLOT_PAGES)
#define PAGES		16
#define MAX_MAPS	256

#define DEBUGFS		"/sys/kernel/debug/"
#define STATS_FILE	DEBUGFS "cow_context/stats"
#define VALIDATE_FILE	DEBUGFS "cow_context/validate"
#define LEAK_FILE	DEBUGFS "kmemleak"

#define RW		(PROT_READ | PROT_WRITE)
#define ANON_FIXED	(MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)

#define EXEC_CHILD	"--exec-child"
#define EXIT_INJECTED	10

#define MAY_SPLIT	0x1
#define MAY_UNMAP	0x2
#define MAY_DIE		0x4
#define MUST_FAIL	0x8	/* at least once, or nothing has been tested */

#define NOT_MAPPED	0
#define ZERO		1

struct map {
	unsigned long start, end, offset, inode;
	char perms[5];
	char name[32];
};

struct maps {
	int nr;
	struct map map[MAX_MAPS];
};

enum phase { BEFORE, ARMED, AFTER };

/* Written by a worker. */
static struct shared {
	enum phase phase;
	bool injected, failed;
	int error;
	char what[256];
} *shared;

/* Each page of the arena: what it must hold, and whether it can be written. */
static uint64_t model[NR_PAGES];
static bool read_only[NR_PAGES];

static char *arena, program[PATH_MAX];
static size_t page;
static int file = -1, nth_fd = -1;
static bool dry, lie;
static long only_nth, leaks_before;
static const char *skip_reason;
static sigjmp_buf fault;

static char *slot(int nr)
{
	return arena + nr * SLOT_PAGES * page;
}

static long msecs_since(const struct timespec *start)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (now.tv_sec - start->tv_sec) * 1000 +
	       (now.tv_nsec - start->tv_nsec) / 1000000;
}

/* Ends a worker; the test prints why. */
static void __noreturn __printf(1, 2) die(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(shared->what, sizeof(shared->what), fmt, args);
	va_end(args);
	_exit(1);
}

/*
 * Contents
 */

static void put(char *addr, uint64_t value)
{
	char *last = addr + page - sizeof(value);

	__atomic_store_n((uint64_t *)addr, value, __ATOMIC_RELAXED);
	__atomic_store_n((uint64_t *)last, value, __ATOMIC_RELAXED);
}

static bool holds(const char *addr, uint64_t want)
{
	const char *last = addr + page - sizeof(want);

	if (want == ZERO)
		want = 0;
	return __atomic_load_n((uint64_t *)addr, __ATOMIC_RELAXED) == want &&
	       __atomic_load_n((uint64_t *)last, __ATOMIC_RELAXED) == want;
}

static long page_nr(const char *addr)
{
	return (addr - arena) / page;
}

static void expect_all(const char *addr, long nr, uint64_t value)
{
	long i, first = page_nr(addr);

	for (i = first; i < first + nr; i++) {
		model[i] = value;
		read_only[i] = false;
	}
}

static void expect_moved(const char *from, const char *to, long nr)
{
	memmove(model + page_nr(to), model + page_nr(from),
		nr * sizeof(*model));
	memmove(read_only + page_nr(to), read_only + page_nr(from),
		nr * sizeof(*read_only));
	expect_all(from, nr, NOT_MAPPED);
}

static void write_page(long nr, uint64_t value)
{
	put(arena + nr * page, value);
	model[nr] = value;
}

static void fill(char *addr, long nr, long seed)
{
	long i, first = page_nr(addr);

	for (i = 0; i < nr; i++)
		write_page(first + i, content(seed, i));
}

/* -1 or the number of a page that holds something else. */
static long wrong_page(void)
{
	long i;

	for (i = 0; i < NR_PAGES; i++)
		if (model[i] != NOT_MAPPED && !holds(arena + i * page, model[i]))
			return i;
	return -1;
}

static void check_contents(const char *when)
{
	long i = wrong_page();

	if (i >= 0)
		die("%s: page %ld of slot %ld holds %llx, not %llx", when,
		    i % SLOT_PAGES, i / SLOT_PAGES,
		    *(unsigned long long *)(arena + i * page),
		    (unsigned long long)model[i]);
}

/*
 * Mappings. Nothing here may allocate: the heap is compared, too.
 */

static void read_maps(struct maps *maps)
{
	static char text[64 * 1024];
	char *p = text, *name, *end;

	maps->nr = 0;
	if (read_text("/proc/self/maps", text, sizeof(text)))
		die("cannot read /proc/self/maps");
	while (*p) {
		struct map *map = &maps->map[maps->nr];

		if (++maps->nr == MAX_MAPS)
			die("too many mappings");
		memset(map, 0, sizeof(*map));
		map->start = strtoul(p, &p, 16);
		map->end = strtoul(p + 1, &p, 16);
		memcpy(map->perms, p + 1, 4);
		map->offset = strtoul(p + 6, &p, 16);
		p = strchr(p + 1, ' ');
		map->inode = strtoul(p, &name, 10);
		name += strspn(name, " ");
		end = strchr(name, '\n');
		memcpy(map->name, name, end - name < 31 ? end - name : 31);
		p = end + 1;
	}
}

static bool adjacent(const struct map *a, const struct map *b)
{
	return a->end == b->start && a->inode == b->inode &&
	       !strcmp(a->perms, b->perms) && !strcmp(a->name, b->name) &&
	       (!a->inode || a->offset + (a->end - a->start) == b->offset);
}

/* As if nothing was split. */
static void join(struct maps *maps)
{
	int i, j = 0;

	for (i = 1; i < maps->nr; i++) {
		if (adjacent(&maps->map[j], &maps->map[i]))
			maps->map[j].end = maps->map[i].end;
		else
			maps->map[++j] = maps->map[i];
	}
	maps->nr = j + 1;
}

/* As if @start to @end was unmapped. */
static void cut(struct maps *maps, unsigned long start, unsigned long end)
{
	static struct maps out;
	int i;

	out.nr = 0;
	for (i = 0; i < maps->nr; i++) {
		const struct map *map = &maps->map[i];
		struct map *piece;

		if (map->start < start) {
			piece = &out.map[out.nr++];
			*piece = *map;
			if (piece->end > start)
				piece->end = start;
		}
		if (map->end > end) {
			piece = &out.map[out.nr++];
			*piece = *map;
			if (piece->start < end) {
				piece->start = end;
				if (piece->inode)
					piece->offset += end - map->start;
			}
		}
		if (out.nr > MAX_MAPS - 2)
			die("too many mappings");
	}
	*maps = out;
}

/* -1 or the number of the first mapping that differs. */
static int maps_differ(const struct maps *a, const struct maps *b)
{
	int i;

	for (i = 0; i < a->nr && i < b->nr; i++)
		if (memcmp(&a->map[i], &b->map[i], sizeof(a->map[i])))
			return i;
	return a->nr == b->nr ? -1 : i;
}

static const char *map_text(const struct maps *maps, int nr, char *buf,
			    size_t size)
{
	const struct map *map = &maps->map[nr];

	if (nr >= maps->nr)
		return "nothing";
	snprintf(buf, size, "%lx-%lx %s %lx %s", map->start, map->end,
		 map->perms, map->offset, map->name);
	return buf;
}

/*
 * What the kernel says of itself
 */

/* -1 if the kernel does not count it. */
static long stat_value(const char *name)
{
	char text[4096], *p = text;
	size_t len = strlen(name);

	if (read_text(STATS_FILE, text, sizeof(text)))
		return -1;
	while (p) {
		if (!strncmp(p, name, len) && p[len] == ':')
			return atol(p + len + 1);
		p = strchr(p, '\n');
		if (p)
			p++;
	}
	return -1;
}

/* How much is wrong; the first complaint is in @text. 0 if nobody looks. */
static long validate(char *text, size_t size)
{
	char *p;

	if (read_text(VALIDATE_FILE, text, size))
		return 0;
	p = strstr(text, "wrong: ");
	/* If that was cut off there are more complaints than fit. */
	return p ? atol(p + strlen("wrong: ")) : 1;
}

static void check_validate(const char *when)
{
	static char text[64 * 1024];
	long wrong = validate(text, sizeof(text));

	if (wrong)
		die("%s: validate: wrong: %ld: %.150s", when, wrong, text);
}

/* Not more than when those that are on their way out are gone. */
static long least_contexts(void)
{
	struct timespec start, steady;
	long n, least = LONG_MAX;

	clock_gettime(CLOCK_MONOTONIC, &start);
	steady = start;
	do {
		visit_cpus();
		n = stat_value("contexts");
		if (n < least) {
			least = n;
			clock_gettime(CLOCK_MONOTONIC, &steady);
		}
		usleep(20000);
	} while (n >= 0 && msecs_since(&steady) < STEADY_MSECS &&
		 msecs_since(&start) < SETTLE_MSECS);
	return least;
}

/* Contexts are freed a little later than processes. Returns the last count. */
static long wait_contexts(long most)
{
	struct timespec start;
	long n;

	clock_gettime(CLOCK_MONOTONIC, &start);
	do {
		visit_cpus();
		n = stat_value("contexts");
		if (n <= most)
			break;
		usleep(20000);
	} while (msecs_since(&start) < SETTLE_MSECS);
	return n;
}

/*
 * Fault injection
 */

struct setting {
	const char *path, *value;
	bool needed;
	char old[32];
};

static struct setting settings[] = {
	{ DEBUGFS "failslab/ignore-gfp-wait", "N", true, "" },
	{ DEBUGFS "failslab/cache-filter", "N", true, "" },
	{ DEBUGFS "failslab/probability", "0", true, "" },
	{ DEBUGFS "failslab/verbose", "0", false, "" },
	{ DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N", false, "" },
	{ DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N", false, "" },
	{ DEBUGFS "fail_page_alloc/min-order", "0", false, "" },
	{ DEBUGFS "fail_page_alloc/probability", "0", false, "" },
	{ DEBUGFS "fail_page_alloc/verbose", "0", false, "" },
};

static void change_settings(void)
{
	unsigned int i;

	if (access("/proc/self/fail-nth", W_OK)) {
		skip_reason = "no /proc/self/fail-nth (CONFIG_FAULT_INJECTION)";
		return;
	}
	for (i = 0; i < ARRAY_SIZE(settings); i++) {
		struct setting *s = &settings[i];

		if (getenv("COW_FAIL_LOG") && strstr(s->path, "verbose"))
			continue;
		if (read_text(s->path, s->old, sizeof(s->old)) ||
		    write_text(s->path, s->value)) {
			s->old[0] = '\0';
			if (s->needed)
				skip_reason = "cannot set failslab/* in debugfs";
		}
	}
}

static void restore_settings(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(settings); i++)
		if (settings[i].old[0])
			write_text(settings[i].path, settings[i].old);
}

static void open_nth(void)
{
	char path[64];

	if (dry)
		return;
	snprintf(path, sizeof(path), "/proc/self/task/%ld/fail-nth",
		 (long)syscall(SYS_gettid));
	/* Also for who is executed. */
	nth_fd = open(path, O_RDWR);
	if (nth_fd < 0)
		die("%s: %s", path, strerror(errno));
}

static void arm(long nth)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%ld", nth);

	shared->phase = ARMED;
	if (!dry && write(nth_fd, text, len) != len)
		die("fail-nth: %s", strerror(errno));
}

/* Returns whether something failed since. */
static bool disarm(int fd)
{
	char text[16] = "";
	bool injected;

	if (fd < 0)
		return false;
	/* If copying to user space is what fails, the call was over. */
	injected = pread(fd, text, sizeof(text) - 1, 0) > 0 && !atol(text);
	return pwrite(fd, "0", 1, 0) == 1 && injected;
}

/*
 * The arena, inherited by the workers
 */

static char *must_map(char *addr, long nr, int prot, int flags, int fd)
{
	char *p = mmap(addr, nr * page, prot, flags, fd, 0);

	if (p != addr)
		die("mmap: %s", strerror(errno));
	return p;
}

static char *map_filled(char *addr, long nr, long seed)
{
	must_map(addr, nr, RW, ANON_FIXED, -1);
	fill(addr, nr, seed);
	return addr;
}

static long move(char *from, char *to, long nr, int flags)
{
	char *p = mremap(from, nr * page, nr * page,
			 MREMAP_MAYMOVE | MREMAP_FIXED | flags, to);

	return p == to ? 0 : -errno;
}

static void must_move(char *from, char *to, long nr)
{
	if (move(from, to, nr, 0))
		die("mremap: %s", strerror(errno));
	expect_moved(from, to, nr);
}

static void map_file(char *addr, long nr)
{
	long i;

	must_map(addr, nr, RW, MAP_PRIVATE | MAP_FIXED, file);
	for (i = 0; i < nr; i++)
		model[page_nr(addr) + i] = content(100, i);
}

static void make_file(void)
{
	char *buf = calloc(1, page);
	long i;

	file = memfd_create("cow_context_fail", 0);
	for (i = 0; buf && i < PAGES; i++) {
		put(buf, content(100, i));
		if (pwrite(file, buf, page, i * page) != (ssize_t)page)
			die("memfd: %s", strerror(errno));
	}
	free(buf);
}

/*
 * 0	anonymous
 * 2	anonymous, moved from 1
 * 3	private file, every other page written
 * 4-6	anonymous, 5 and 6 moved from 4
 * 7	anonymous, read-only in the middle
 * 8	anonymous, not faulted
 * 9	anonymous, the middle moved to 10
 *
 * Without @moves only what was never moved.
 */
static void build(bool moves)
{
	long i;

	map_filled(slot(0), PAGES, 1);
	map_file(slot(3), PAGES);
	for (i = 0; i < PAGES; i += 2)
		write_page(page_nr(slot(3)) + i, content(3, i));
	map_filled(slot(7), PAGES, 7);
	if (mprotect(slot(7) + 4 * page, 8 * page, PROT_READ))
		die("mprotect: %s", strerror(errno));
	for (i = 4; i < 12; i++)
		read_only[page_nr(slot(7)) + i] = true;
	must_map(slot(8), PAGES, RW, ANON_FIXED, -1);
	expect_all(slot(8), PAGES, ZERO);
	if (!moves)
		return;

	must_move(map_filled(slot(1), PAGES, 2), slot(2), PAGES);
	must_move(map_filled(slot(4), PAGES, 5), slot(5), PAGES);
	must_move(map_filled(slot(4), PAGES, 6), slot(6), PAGES);
	map_filled(slot(4), PAGES, 4);
	map_filled(slot(9), PAGES, 9);
	must_move(slot(9) + 6 * page, slot(10), 4);
}

/* The worker's own, beside those it shares with the test. */
static void write_odd_pages(long seed)
{
	long i;

	for (i = 1; i < NR_PAGES; i += 2)
		if (model[i] != NOT_MAPPED && model[i] != ZERO && !read_only[i])
			write_page(i, content(seed, i));
}

/*
 * Calls that may fail. They return 0 or a negative error, and do nothing else
 * that could allocate. What they do to the contents is said by their after_*().
 */

/* Private memory of a worker between its functions. */
static pid_t forked;
static char *moved_to;
static unsigned long old_brk;

static void __noreturn check_in_child(void)
{
	long i;

	if (wrong_page() >= 0)
		_exit(1);
	for (i = 0; i < NR_PAGES; i++)
		if (model[i] != NOT_MAPPED && !read_only[i])
			write_page(i, content(200, i));
	_exit(wrong_page() >= 0);
}

static void wait_forked(const char *when)
{
	int status;

	if (waitpid(forked, &status, 0) != forked || status)
		die("%s: a child of the worker: status %x", when, status);
}

static long call_fork(void)
{
	forked = fork();
	if (!forked)
		check_in_child();
	return forked < 0 ? -errno : 0;
}

static void after_fork(void)
{
	wait_forked("fork");
}

static int watch_fd = -1;

/* fork() waits for this. */
static void *drop_events(void *arg)
{
	struct uffd_msg msg;

	while (read(watch_fd, &msg, sizeof(msg)) == sizeof(msg))
		if (msg.event == UFFD_EVENT_FORK)
			close(msg.arg.fork.ufd);
	return NULL;
}

/* Who else wants to know of a fork: userfaultfd, KSM, and khugepaged. */
static void prepare_fork_watched(void)
{
	struct uffdio_api api = {
		.api = UFFD_API,
		.features = UFFD_FEATURE_EVENT_FORK,
	};
	struct uffdio_register reg = {
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	static const int watched[] = { 0, 2, 6 };
	pthread_t thread;
	size_t i;

	watch_fd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (watch_fd < 0 || ioctl(watch_fd, UFFDIO_API, &api))
		die("userfaultfd: %s", strerror(errno));
	for (i = 0; i < ARRAY_SIZE(watched); i++) {
		char *p = slot(watched[i]);

		if (madvise(p, PAGES * page, MADV_MERGEABLE) ||
		    madvise(p, PAGES * page, MADV_HUGEPAGE))
			die("madvise: %s", strerror(errno));
		reg.range.start = (unsigned long)p;
		reg.range.len = PAGES * page;
		if (ioctl(watch_fd, UFFDIO_REGISTER, &reg))
			die("UFFDIO_REGISTER: %s", strerror(errno));
	}
	if (pthread_create(&thread, NULL, drop_events, NULL))
		die("no thread");
	/* Some of it is swapped. */
	madvise(slot(2), PAGES / 2 * page, MADV_PAGEOUT);
}

static long call_move(void)
{
	return move(slot(0), slot(20), PAGES, 0);
}

static void after_move(void)
{
	expect_moved(slot(0), slot(20), PAGES);
}

static void prepare_second_move(void)
{
	must_move(map_filled(slot(12), PAGES, 12), slot(13), PAGES);
}

static long call_third_delta(void)
{
	return move(slot(4), slot(20), PAGES, 0);
}

static void after_third_delta(void)
{
	expect_moved(slot(4), slot(20), PAGES);
}

/* To where its offset says, so that there is one record less. */
static void prepare_move_back(void)
{
	munmap(slot(4), PAGES * page);
	expect_all(slot(4), PAGES, NOT_MAPPED);
}

static long call_move_back(void)
{
	return move(slot(5), slot(4), PAGES, 0);
}

static void after_move_back(void)
{
	expect_moved(slot(5), slot(4), PAGES);
}

static long call_move_middle(void)
{
	return move(slot(0) + 4 * page, slot(20), 8, 0);
}

static void after_move_middle(void)
{
	expect_moved(slot(0) + 4 * page, slot(20), 8);
}

static long call_move_middle_again(void)
{
	return move(slot(5) + 4 * page, slot(20), 8, 0);
}

static void after_move_middle_again(void)
{
	expect_moved(slot(5) + 4 * page, slot(20), 8);
}

/* It cannot grow where it is: something is in the way. */
static void prepare_move_grow(void)
{
	map_filled(slot(0) + PAGES * page, 1, 20);
	read_only[page_nr(slot(0)) + PAGES] = true;
	if (mprotect(slot(0) + PAGES * page, page, PROT_READ))
		die("mprotect: %s", strerror(errno));
}

static long call_move_grow(void)
{
	moved_to = mremap(slot(0), PAGES * page, 2 * PAGES * page,
			  MREMAP_MAYMOVE);
	return moved_to == MAP_FAILED ? -errno : 0;
}

static void after_move_grow(void)
{
	long i;

	for (i = 0; i < 2 * PAGES; i++)
		if (!holds(moved_to + i * page, i < PAGES ?
			   model[page_nr(slot(0)) + i] : ZERO))
			die("page %ld is wrong after the move", i);
	expect_all(slot(0), PAGES, NOT_MAPPED);
}

static long call_move_over(void)
{
	return move(slot(0), slot(5), 8, 0);
}

static void after_move_over(void)
{
	expect_moved(slot(0), slot(5), 8);
}

/* Both ends of a mapping, two that differ, and a gap. */
static void prepare_move_over_several(void)
{
	map_filled(slot(5) + 24 * page, 8, 21);
}

static long call_move_over_several(void)
{
	return move(slot(4), slot(5) + 12 * page, PAGES, 0);
}

static void after_move_over_several(void)
{
	expect_moved(slot(4), slot(5) + 12 * page, PAGES);
}

static long call_dontunmap(void)
{
	return move(slot(4), slot(20), PAGES, MREMAP_DONTUNMAP);
}

static void after_dontunmap(void)
{
	expect_moved(slot(4), slot(20), PAGES);
	expect_all(slot(4), PAGES, ZERO);
}

/* One mapping with a gap that is to be filled. */
static void prepare_grow_merge(void)
{
	map_filled(slot(30), 32, 30);
	munmap(slot(30) + PAGES * page, 8 * page);
	expect_all(slot(30) + PAGES * page, 8, NOT_MAPPED);
}

static long grow(char *addr, long from, long to)
{
	char *p = mremap(addr, from * page, to * page, 0);

	return p == addr ? 0 : -errno;
}

static long call_grow_merge(void)
{
	return grow(slot(30), PAGES, PAGES + 8);
}

static void after_grow_merge(void)
{
	expect_all(slot(30) + PAGES * page, 8, ZERO);
}

static long call_grow_moved(void)
{
	return grow(slot(5), PAGES, PAGES + 8);
}

static void after_grow_moved(void)
{
	expect_all(slot(5) + PAGES * page, 8, ZERO);
	fill(slot(5) + PAGES * page, 8, 31);
}

static void now_read_only(char *addr)
{
	long i;

	for (i = 0; i < 8; i++)
		read_only[page_nr(addr) + i] = true;
}

static long call_protect(void)
{
	return mprotect(slot(0) + 4 * page, 8 * page, PROT_READ) ? -errno : 0;
}

static void after_protect(void)
{
	now_read_only(slot(0) + 4 * page);
}

static long call_protect_moved(void)
{
	return mprotect(slot(5) + 4 * page, 8 * page, PROT_READ) ? -errno : 0;
}

static void after_protect_moved(void)
{
	now_read_only(slot(5) + 4 * page);
}

/* Split and faulted by the worker, or they would not merge. */
static void prepare_protect_merge(void)
{
	map_filled(slot(30), PAGES, 30);
	if (mprotect(slot(30) + 4 * page, 8 * page, PROT_READ))
		die("mprotect: %s", strerror(errno));
}

static long call_protect_merge(void)
{
	return mprotect(slot(30) + 4 * page, 8 * page, RW) ? -errno : 0;
}

static void after_protect_merge(void)
{
	fill(slot(30), PAGES, 31);
}

static long call_unmap(void)
{
	return munmap(slot(0) + 4 * page, 8 * page) ? -errno : 0;
}

static void after_unmap(void)
{
	expect_all(slot(0) + 4 * page, 8, NOT_MAPPED);
}

static long call_unmap_moved(void)
{
	return munmap(slot(5) + 4 * page, 8 * page) ? -errno : 0;
}

static void after_unmap_moved(void)
{
	expect_all(slot(5) + 4 * page, 8, NOT_MAPPED);
}

static long map_over(char *addr, int flags, int fd)
{
	char *p = mmap(addr, 8 * page, RW, MAP_PRIVATE | MAP_FIXED | flags,
		       fd, 0);

	return p == addr ? 0 : -errno;
}

static long call_map_over(void)
{
	return map_over(slot(0) + 4 * page, MAP_ANONYMOUS, -1);
}

static void after_map_over(void)
{
	expect_all(slot(0) + 4 * page, 8, ZERO);
}

static long call_map_over_moved(void)
{
	return map_over(slot(5) + 4 * page, MAP_ANONYMOUS, -1);
}

static void after_map_over_moved(void)
{
	expect_all(slot(5) + 4 * page, 8, ZERO);
}

static long call_map_file_over(void)
{
	return map_over(slot(5) + 4 * page, 0, file);
}

static void after_map_file_over(void)
{
	long i;

	for (i = 0; i < 8; i++)
		model[page_nr(slot(5)) + 4 + i] = content(100, i);
}

static long call_advise_huge(void)
{
	return madvise(slot(0) + 4 * page, 8 * page, MADV_HUGEPAGE) ? -errno : 0;
}

static long call_advise_dontdump(void)
{
	return madvise(slot(5) + 4 * page, 8 * page, MADV_DONTDUMP) ? -errno : 0;
}

/* Where there is no memory for a fault it is repeated, or ends here. */
static void on_fault(int sig)
{
	(void)sig;
	siglongjmp(fault, 1);
}

static long touch(char *addr)
{
	if (sigsetjmp(fault, 0))
		return -EFAULT;
	__atomic_store_n(addr, 0, __ATOMIC_RELAXED);
	return 0;
}

static void prepare_fault_anon(void)
{
	must_map(slot(30), PAGES, RW, ANON_FIXED, -1);
	expect_all(slot(30), PAGES, ZERO);
}

static long call_fault_anon(void)
{
	return touch(slot(30) + 4 * page + 100);
}

static void prepare_fault_file(void)
{
	map_file(slot(30), PAGES);
}

static long call_fault_cow(void)
{
	return touch(slot(2) + 4 * page + 100);
}

static long call_exec(void)
{
	char fd[16];
	char *const argv[] = { program, EXEC_CHILD, fd, NULL };
	char *const envp[] = { NULL };

	snprintf(fd, sizeof(fd), "%d", nth_fd);
	execve(program, argv, envp);
	return -errno;
}

static long call_stack(void)
{
	uintptr_t sp = (uintptr_t)__builtin_frame_address(0);

	return touch((char *)(sp - 64 * page));
}

/* Below it there is room, even for the guard gap. */
static void prepare_growsdown(void)
{
	must_map(slot(40), PAGES, RW, ANON_FIXED | MAP_GROWSDOWN, -1);
	fill(slot(40), PAGES, 40);
	must_move(slot(40), slot(56), PAGES);
}

static long call_growsdown(void)
{
	return touch(slot(56) - 8 * page);
}

static void after_growsdown(void)
{
	expect_all(slot(56) - 8 * page, 8, ZERO);
	fill(slot(56) - 8 * page, 8, 41);
}

static unsigned long set_brk(unsigned long addr)
{
	return syscall(SYS_brk, addr);
}

static void prepare_brk(void)
{
	old_brk = (set_brk(0) + page - 1) & -page;
	if (set_brk(old_brk) != old_brk)
		die("brk: %s", strerror(errno));
}

static long call_brk(void)
{
	unsigned long now = old_brk + PAGES * page;

	return set_brk(now) == now ? 0 : -ENOMEM;
}

static void after_brk(void)
{
	char *p = (char *)old_brk;
	long i;

	for (i = 0; i < PAGES; i++) {
		if (!holds(p + i * page, ZERO))
			die("page %ld of the heap is not zero", i);
		put(p + i * page, content(50, i));
	}
	for (i = 0; i < PAGES; i++)
		if (!holds(p + i * page, content(50, i)))
			die("page %ld of the heap is wrong", i);
}

static void prepare_brk_shrink(void)
{
	prepare_brk();
	if (call_brk())
		die("brk: %s", strerror(errno));
	after_brk();
}

static long call_brk_shrink(void)
{
	unsigned long now = old_brk + 4 * page;

	return set_brk(now) == now ? 0 : -ENOMEM;
}

static void after_brk_shrink(void)
{
	long i;

	for (i = 0; i < 4; i++)
		if (!holds((char *)old_brk + i * page, content(50, i)))
			die("page %ld of the heap is wrong", i);
}

/*
 * Scenarios
 */

FIXTURE(cow_context_fail)
{
	long contexts, missed, unfindable;
};

/*
 * @prepare: What the worker does before the first look, or NULL.
 * @call: What may fail.
 * @after: Says what is in the arena when it has succeeded, or NULL.
 * @hole: First page of what MAY_UNMAP is about, from the start of a slot.
 * @hole_slot: That slot.
 * @hole_pages: Its length.
 */
FIXTURE_VARIANT(cow_context_fail)
{
	bool plain;
	unsigned int flags;
	void (*prepare)(void);
	long (*call)(void);
	void (*after)(void);
	int hole_slot, hole, hole_pages;
};

#define VARIANT FIXTURE_VARIANT(cow_context_fail)

FIXTURE_VARIANT_ADD(cow_context_fail, fork)
{
	.flags = MUST_FAIL | MAY_DIE,
	.call = call_fork,
	.after = after_fork,
};

/* Scenario 11. */
FIXTURE_VARIANT_ADD(cow_context_fail, fork_watched)
{
	.flags = MUST_FAIL | MAY_DIE,
	.prepare = prepare_fork_watched,
	.call = call_fork,
	.after = after_fork,
};

FIXTURE_VARIANT_ADD(cow_context_fail, move_first)
{
	.plain = true,
	.flags = MUST_FAIL,
	.call = call_move,
	.after = after_move,
};

FIXTURE_VARIANT_ADD(cow_context_fail, move_second)
{
	.plain = true,
	.flags = MUST_FAIL,
	.prepare = prepare_second_move,
	.call = call_move,
	.after = after_move,
};

FIXTURE_VARIANT_ADD(cow_context_fail, move_third_delta)
{
	.flags = MUST_FAIL,
	.call = call_third_delta,
	.after = after_third_delta,
};

FIXTURE_VARIANT_ADD(cow_context_fail, move_back)
{
	.flags = MUST_FAIL,
	.prepare = prepare_move_back,
	.call = call_move_back,
	.after = after_move_back,
};

FIXTURE_VARIANT_ADD(cow_context_fail, move_middle)
{
	.flags = MUST_FAIL,
	.call = call_move_middle,
	.after = after_move_middle,
};

FIXTURE_VARIANT_ADD(cow_context_fail, move_middle_again)
{
	.flags = MUST_FAIL,
	.call = call_move_middle_again,
	.after = after_move_middle_again,
};

FIXTURE_VARIANT_ADD(cow_context_fail, move_grow)
{
	.flags = MUST_FAIL,
	.prepare = prepare_move_grow,
	.call = call_move_grow,
	.after = after_move_grow,
};

FIXTURE_VARIANT_ADD(cow_context_fail, move_over)
{
	.flags = MUST_FAIL | MAY_SPLIT | MAY_UNMAP,
	.call = call_move_over,
	.after = after_move_over,
	.hole_slot = 5, .hole_pages = 8,
};

FIXTURE_VARIANT_ADD(cow_context_fail, move_over_several)
{
	.flags = MUST_FAIL | MAY_SPLIT | MAY_UNMAP,
	.prepare = prepare_move_over_several,
	.call = call_move_over_several,
	.after = after_move_over_several,
	.hole_slot = 5, .hole = 12, .hole_pages = PAGES,
};

FIXTURE_VARIANT_ADD(cow_context_fail, move_dontunmap)
{
	.flags = MUST_FAIL,
	.call = call_dontunmap,
	.after = after_dontunmap,
};

FIXTURE_VARIANT_ADD(cow_context_fail, grow_merge)
{
	.prepare = prepare_grow_merge,
	.call = call_grow_merge,
	.after = after_grow_merge,
};

FIXTURE_VARIANT_ADD(cow_context_fail, grow_moved)
{
	.call = call_grow_moved,
	.after = after_grow_moved,
};

FIXTURE_VARIANT_ADD(cow_context_fail, protect_split)
{
	.flags = MUST_FAIL | MAY_SPLIT,
	.call = call_protect,
	.after = after_protect,
};

FIXTURE_VARIANT_ADD(cow_context_fail, protect_split_moved)
{
	.flags = MUST_FAIL | MAY_SPLIT,
	.call = call_protect_moved,
	.after = after_protect_moved,
};

FIXTURE_VARIANT_ADD(cow_context_fail, protect_merge)
{
	.prepare = prepare_protect_merge,
	.call = call_protect_merge,
	.after = after_protect_merge,
};

FIXTURE_VARIANT_ADD(cow_context_fail, unmap_middle)
{
	.flags = MUST_FAIL | MAY_SPLIT,
	.call = call_unmap,
	.after = after_unmap,
};

FIXTURE_VARIANT_ADD(cow_context_fail, unmap_middle_moved)
{
	.flags = MUST_FAIL | MAY_SPLIT,
	.call = call_unmap_moved,
	.after = after_unmap_moved,
};

FIXTURE_VARIANT_ADD(cow_context_fail, map_over)
{
	.flags = MUST_FAIL | MAY_SPLIT | MAY_UNMAP,
	.call = call_map_over,
	.after = after_map_over,
	.hole_slot = 0, .hole = 4, .hole_pages = 8,
};

FIXTURE_VARIANT_ADD(cow_context_fail, map_over_moved)
{
	.flags = MUST_FAIL | MAY_SPLIT | MAY_UNMAP,
	.call = call_map_over_moved,
	.after = after_map_over_moved,
	.hole_slot = 5, .hole = 4, .hole_pages = 8,
};

FIXTURE_VARIANT_ADD(cow_context_fail, map_file_over)
{
	.flags = MUST_FAIL | MAY_SPLIT | MAY_UNMAP,
	.call = call_map_file_over,
	.after = after_map_file_over,
	.hole_slot = 5, .hole = 4, .hole_pages = 8,
};

FIXTURE_VARIANT_ADD(cow_context_fail, advise_huge)
{
	.flags = MUST_FAIL | MAY_SPLIT,
	.call = call_advise_huge,
};

FIXTURE_VARIANT_ADD(cow_context_fail, advise_dontdump)
{
	.flags = MUST_FAIL | MAY_SPLIT,
	.call = call_advise_dontdump,
};

FIXTURE_VARIANT_ADD(cow_context_fail, fault_anon)
{
	.flags = MAY_DIE,
	.prepare = prepare_fault_anon,
	.call = call_fault_anon,
};

FIXTURE_VARIANT_ADD(cow_context_fail, fault_file)
{
	.flags = MAY_DIE,
	.prepare = prepare_fault_file,
	.call = call_fault_anon,
};

FIXTURE_VARIANT_ADD(cow_context_fail, fault_cow)
{
	.flags = MAY_DIE,
	.call = call_fault_cow,
};

FIXTURE_VARIANT_ADD(cow_context_fail, exec)
{
	.flags = MUST_FAIL | MAY_DIE,
	.call = call_exec,
};

FIXTURE_VARIANT_ADD(cow_context_fail, stack)
{
	.flags = MAY_DIE,
	.call = call_stack,
};

FIXTURE_VARIANT_ADD(cow_context_fail, growsdown_moved)
{
	.flags = MAY_DIE,
	.prepare = prepare_growsdown,
	.call = call_growsdown,
	.after = after_growsdown,
};

FIXTURE_VARIANT_ADD(cow_context_fail, brk)
{
	.prepare = prepare_brk,
	.call = call_brk,
	.after = after_brk,
};

FIXTURE_VARIANT_ADD(cow_context_fail, brk_shrink)
{
	.flags = MAY_SPLIT,
	.prepare = prepare_brk_shrink,
	.call = call_brk_shrink,
	.after = after_brk_shrink,
};

/*
 * Workers
 */

/* Rmap walks, if there is swap, for what only this process maps. */
static void page_out(void)
{
	static struct maps maps;
	int i;

	read_maps(&maps);
	for (i = 0; i < maps.nr; i++) {
		char *start = (char *)maps.map[i].start;

		if (start >= arena && start < slot(NR_SLOTS))
			madvise(start, maps.map[i].end - maps.map[i].start,
				MADV_PAGEOUT);
	}
}

/* Is all as before, or as far from it as @variant allows? */
static void check_maps(const VARIANT *variant, struct maps *before)
{
	static struct maps now;
	char a[128], b[128], *hole;
	struct maps *was = before;
	int i;

	read_maps(&now);
	i = maps_differ(was, &now);
	if (i >= 0 && (variant->flags & MAY_SPLIT)) {
		join(was);
		join(&now);
		i = maps_differ(was, &now);
	}
	if (i >= 0 && (variant->flags & MAY_UNMAP)) {
		hole = slot(variant->hole_slot) + variant->hole * page;
		cut(was, (unsigned long)hole,
		    (unsigned long)hole + variant->hole_pages * page);
		i = maps_differ(was, &now);
		if (i < 0)
			expect_all(hole, variant->hole_pages, NOT_MAPPED);
	}
	if (i >= 0)
		die("%d: was %s, is %s", shared->error,
		    map_text(was, i, a, sizeof(a)),
		    map_text(&now, i, b, sizeof(b)));
}

static void prepare_worker(void)
{
	/* Room to return to if the stack cannot grow, and for what we do. */
	static char alternative[64 * 1024];
	stack_t stack = {
		.ss_sp = alternative,
		.ss_size = sizeof(alternative),
	};
	struct sigaction action = {
		.sa_handler = on_fault,
		.sa_flags = SA_ONSTACK | SA_NODEFER,
	};
	struct rlimit none = { 0, 0 };
	char deep[64 * 1024];

	memset(deep, 0, sizeof(deep));
	asm volatile("" : : "r" (deep) : "memory");
	setrlimit(RLIMIT_CORE, &none);
	sigaltstack(&stack, NULL);
	open_nth();
	write_odd_pages(60);
	/* Whatever else signals is not the call. */
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
}

static void __noreturn work(const VARIANT *variant, long nth)
{
	const bool look = nth <= VALIDATE_FIRST || nth % VALIDATE_EACH == 0;
	static struct maps before;
	static long ret;	/* siglongjmp() does not undo it */

	if (sigsetjmp(fault, 0)) {
		if (!dry && (variant->flags & MAY_DIE) &&
		    shared->phase == ARMED)
			_exit(EXIT_INJECTED);
		die("a fault that nobody expects, in phase %d", shared->phase);
	}
	prepare_worker();
	if (variant->prepare)
		variant->prepare();
	check_contents("before");
	read_maps(&before);

	arm(nth);
	if (dry && nth == 1 && !lie) {
		ret = -ENOMEM;
		shared->injected = true;
	} else {
		ret = variant->call();
		shared->injected = disarm(nth_fd);
		if (lie && nth == 1) {
			ret = -ENOMEM;
			shared->injected = true;
		}
	}
	shared->phase = AFTER;
	if (sigsetjmp(fault, 0))
		die("a fault after a call that returned %ld", ret);

	if (ret) {
		shared->failed = true;
		shared->error = -ret;
		if (!shared->injected)
			die("failed with no fault injected: %s",
			    strerror(-ret));
		check_maps(variant, &before);
		check_contents("failed");
		if (look) {
			check_validate("failed");
			page_out();
			check_contents("failed and paged out");
		}
		ret = variant->call();
		if (ret)
			die("failed with %d, and then with memory: %s",
			    shared->error, strerror(-ret));
		if (sigsetjmp(fault, 0))
			die("a fault when it has been repeated");
	}
	if (variant->after)
		variant->after();
	check_contents("succeeded");
	if (call_fork())
		die("fork: %s", strerror(errno));
	wait_forked("in the end");
	if (look) {
		check_validate("succeeded");
		page_out();
	}
	check_contents("in the end");
	_exit(0);
}

/* The image that was executed. */
static int executed(int fd)
{
	return disarm(fd) ? EXIT_INJECTED : 0;
}

/*
 * Tests
 */

FIXTURE_SETUP(cow_context_fail)
{
	if (skip_reason)
		SKIP(return, "%s", skip_reason);

	shared = mmap(NULL, sizeof(*shared), RW, MAP_SHARED | MAP_ANONYMOUS,
		      -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)shared);
	/* Unmapped again: most of it are gaps. */
	arena = mmap(NULL, NR_PAGES * page, PROT_NONE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, arena);
	ASSERT_EQ(0, munmap(arena, NR_PAGES * page));
	make_file();
	build(!variant->plain);
	self->contexts = least_contexts();
	self->missed = stat_value("missed");
	self->unfindable = stat_value("unfindable");
}

FIXTURE_TEARDOWN(cow_context_fail)
{
}

/* How the worker ended, if it should not have: NULL if that is fine. */
static const char *bad_end(const VARIANT *variant, int status)
{
	static char text[64];

	if (shared->what[0])
		return shared->what;
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return NULL;
	if (variant->call == call_exec && WIFEXITED(status) &&
	    WEXITSTATUS(status) == EXIT_INJECTED)
		return NULL;
	/* Also an image that has got no memory, while it started. */
	if ((variant->flags & MAY_DIE) && shared->phase == ARMED && !dry)
		return NULL;
	snprintf(text, sizeof(text), "the worker ended with status %x in phase %d",
		 status, shared->phase);
	return text;
}

TEST_F_TIMEOUT(cow_context_fail, each_allocation, TEST_SECONDS)
{
	long nth, injected = 0, failed = 0, died = 0;
	static char text[64 * 1024];

	if (variant->call == call_advise_huge &&
	    madvise(shared, page, MADV_HUGEPAGE) && errno == EINVAL)
		SKIP(return, "no MADV_HUGEPAGE");

	for (nth = only_nth ? only_nth : 1; nth <= MAX_NTH; nth++) {
		bool was_injected, was_killed;
		const char *bad;
		int status;
		pid_t pid;

		memset(shared, 0, sizeof(*shared));
		fflush(NULL);
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid)
			work(variant, nth);
		ASSERT_EQ(pid, waitpid(pid, &status, 0));

		bad = bad_end(variant, status);
		EXPECT_EQ(NULL, bad) {
			TH_LOG("allocation %ld: %s", nth, bad);
			break;
		}
		was_killed = status && !(WIFEXITED(status) &&
					 WEXITSTATUS(status) == EXIT_INJECTED);
		was_injected = shared->injected || status;
		injected += was_injected;
		failed += shared->failed;
		died += was_killed;
		if (!was_injected || only_nth)
			break;
	}
	ksft_print_msg("%ld faults injected%s, %ld calls failed, %ld died\n",
		       injected, dry ? " (not really)" : "", failed, died);
	EXPECT_LE(nth, MAX_NTH)
		TH_LOG("each of %d calls was short of memory", MAX_NTH);
	if (variant->flags & MUST_FAIL && !dry && !only_nth) {
		EXPECT_LT(0, injected);
		EXPECT_LT(0, failed + died);
	}

	EXPECT_EQ(-1, wrong_page())
		TH_LOG("the parent of the workers has lost something");
	EXPECT_EQ(0, validate(text, sizeof(text)))
		TH_LOG("%.1000s", text);
	EXPECT_EQ(self->missed, stat_value("missed"));
	EXPECT_EQ(self->unfindable, stat_value("unfindable"));
	EXPECT_GE(self->contexts, wait_contexts(self->contexts))
		TH_LOG("contexts are left");
}

/*
 * Of this program; a process that was executed has the same name. Prints them,
 * if wanted, with the lines that follow. -1 if nobody looks.
 */
static long count_leaks(bool print)
{
	FILE *leaks = fopen(LEAK_FILE, "r");
	char line[256], object[256] = "", comm[32];
	bool ours = false;
	long nr = 0;

	if (!leaks)
		return -1;
	snprintf(comm, sizeof(comm), "comm \"%.15s\"",
		 strrchr(program, '/') + 1);
	while (fgets(line, sizeof(line), leaks)) {
		if (!strncmp(line, "unreferenced object", 19)) {
			memcpy(object, line, sizeof(object));
			ours = false;
		}
		if (strstr(line, comm)) {
			nr++;
			ours = true;
			if (print)
				ksft_print_msg("%s", object);
		}
		if (print && ours)
			ksft_print_msg("%s", line);
	}
	fclose(leaks);
	return nr;
}

FIXTURE(cow_context_leaks)
{
};

FIXTURE_SETUP(cow_context_leaks)
{
}

FIXTURE_TEARDOWN(cow_context_leaks)
{
}

/* Of all tests above. */
TEST_F_TIMEOUT(cow_context_leaks, kmemleak, TEST_SECONDS)
{
	long leaks = 0;
	int i;

	if (skip_reason)
		SKIP(return, "%s", skip_reason);
	if (leaks_before < 0)
		SKIP(return, "no " LEAK_FILE " (CONFIG_DEBUG_KMEMLEAK)");

	/* What is suspected once may be found by the next scan. */
	for (i = 0; i < 3; i++) {
		sleep(LEAK_SECONDS);
		if (write_text(LEAK_FILE, "scan"))
			SKIP(return, "kmemleak is off");
		leaks = count_leaks(false);
		if (i && leaks <= leaks_before)
			break;
	}
	EXPECT_LE(leaks, leaks_before)
		count_leaks(true);
}

int main(int argc, char **argv)
{
	const char *how = getenv("COW_FAIL_DRY"), *nth = getenv("COW_FAIL_N");
	ssize_t len;
	int ret;

	if (argc == 3 && !strcmp(argv[1], EXEC_CHILD))
		return executed(atoi(argv[2]));

	page = sysconf(_SC_PAGESIZE);
	len = readlink("/proc/self/exe", program, sizeof(program) - 1);
	if (len < 0)
		ksft_exit_fail_msg("cannot read /proc/self/exe\n");
	dry = how;
	lie = how && !strcmp(how, "lie");
	only_nth = nth ? atol(nth) : 0;
	if (!dry)
		change_settings();
	leaks_before = skip_reason ? -1 : count_leaks(false);
	ret = test_harness_run(argc, argv);
	if (!dry)
		restore_settings();
	return ret;
}
