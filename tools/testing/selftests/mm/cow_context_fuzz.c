// SPDX-License-Identifier: GPL-2.0
/*
 * Random operations on anonymous memory by a family of processes, and a model
 * that knows what each of them must read at every page.
 *
 * All members have an arena at the same fixed address. An operation is a line
 * of numbers: who, what, and up to five arguments. The member that executes it
 * also brings its row of the model, in shared memory, up to date; for that it
 * predicts what the system call returns. What is verified:
 *
 *  - the content of pages: four words of each, which name who wrote it, of
 *    which generation that is, and when; pages never written are zero, or show
 *    the file in private file mappings;
 *  - that what is unmapped, without permission, a guard page or beyond the end
 *    of the file faults, and the rest is in /proc/self/maps as it should be;
 *  - that system calls fail when, and as, they have to.
 *
 * Besides the arena there are stacks that grow down, a heap whose end brk()
 * moves, and private mappings of hugetlb. What does not work on this machine is
 * left out, which is said in the beginning.
 *
 * Rules where the kernel may choose:
 *
 *  - MADV_FREE: old content or zero, until it is written or seen as zero.
 *  - mremap() within several VMAs of equal properties, or across VMAs: -EFAULT
 *    and nothing done, or success.
 *  - mlock() that fails, and MREMAP_DONTUNMAP of locked pages, which unlocks
 *    all of a mapping in some kernels: what is locked is read from smaps.
 *  - A page pinned for reading, as process_vm_readv() does, is unshared first,
 *    and its copy is clean. When that is inherited and one process uses
 *    MADV_FREE, reclaim takes it from all of them. That has nothing to do with
 *    who finds whom, so a family has either MADV_FREE or such reads.
 *  - Failures for want of memory: what is mapped how is read from smaps, the
 *    pages in question are not verified until they are mapped anew.
 *  - Pages that io_uring has pinned to write to them belong to who has pinned
 *    them; a child gets copies. Neither changes any content. They are dirty, so
 *    that MADV_FREE is allowed.
 *  - Who finds no free huge page in hugetlb is killed by SIGBUS, or takes pages
 *    away from its children, which are killed then. So that neither happens a
 *    member maps at most HUGE_MAX of them, unmaps before it maps anew and
 *    before it leaves, and does not pin them for long; what all members can
 *    need at once has to be free in the beginning. --system adds what is
 *    missing, and removes it in the end. No other process may take them. Only
 *    whole mappings are moved or protected.
 *  - A forced write, through /proc/self/mem, to a huge page of hugetlb that may
 *    only be read never returns once the soft-dirty flag of that mapping has
 *    been cleared, neither with contexts nor without: follow_huge_pmd() does
 *    not take an entry that is not soft-dirty, hugetlb_wp() and make_huge_pte()
 *    make it so only where it becomes writable, and __get_user_pages() tries
 *    again and again. Such writes are left out; where others may clear the
 *    flag meanwhile, all forced ones to huge pages that may only be read.
 *  - A hole below a stack is not read to find out whether it is one: reads with
 *    force make it part of the stack, and the kernel complains about others.
 *    mincore() knows.
 *  - brk() that fails does not move the break. malloc() must not use it.
 *  - A hint to mmap() may be ignored, which is undone. mremap() without a
 *    fixed address may move to anywhere, and a second one moves on from there.
 *  - Other advice (cold, pageout, collapse, mergeable, populate ...) changes
 *    no content, whatever it returns.
 *  - MADV_SOFT_OFFLINE, only with --system, takes a page away until the next
 *    boot: SOFT_MAX of them at most.
 *
 * Without --race one operation at a time is executed, in an order that only
 * depends on the seed. What fails is shrunk to few operations and written to
 * ./cow_context_fuzz.fail, with the arguments that matter; --replay repeats it.
 * With --race several members run their own operations at once while others
 * move, reclaim, read, split and merge their pages; what fails there shows the
 * last operations of that member. Now and then all verify all of their pages and
 * rest, and the kernel is asked for what it has counted and what it finds wrong.
 * --replay FILE --disturb has the same others beside a sequence, and --seconds
 * repeats it.
 * --offline also takes blocks of memory away and gives them back, which needs a
 * machine of one's own. Huge pages of hugetlb are left out then, since they do
 * not come back.
 *
 * Who neither answers nor gets on to the next page for minutes fails. On a slow
 * machine --patience N makes these limits, and the time to shrink, N times as
 * long.
 *
 * --self-test shows that the fuzzer can fail: the model forgets what
 * MADV_DONTNEED does, which has to be detected and shrunk to a few lines. Each
 * of 39 more rules, among them what fork() copies, what mremap() moves, what
 * brk() forgets and where a stack stops, has been left out of the model once,
 * which was noticed within 4000 operations.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <malloc.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE	0x100000
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP	4
#endif
#ifndef MADV_COLD
#define MADV_COLD		20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT		21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ	22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE	23
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED	24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE	101
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#endif
#ifndef MADV_GUARD_REMOVE
#define MADV_GUARD_REMOVE	103
#endif
#ifndef __NR_process_madvise
#define __NR_process_madvise	440
#endif
#ifndef __NR_pidfd_open
#define __NR_pidfd_open		434
#endif
#ifndef __NR_io_uring_setup
#define __NR_io_uring_setup	425
#endif
#ifndef __NR_io_uring_register
#define __NR_io_uring_register	427
#endif
#ifndef MAP_HUGE_2MB
#define MAP_HUGE_2MB		(21 << 26)
#endif
#define MPOL_MOVE		2	/* MPOL_MF_MOVE */
#define MPOL_MOVE_ALL		4	/* MPOL_MF_MOVE_ALL */

#define ARRAY_SIZE(array)	(sizeof(array) / sizeof((array)[0]))
#define fallthrough		__attribute__((__fallthrough__))

#define PAGE			4096UL
#define ARENA			0x200000000000UL
#define PMD_PAGES		512
#define NR_PAGES		(4 * PMD_PAGES)

/*
 * The other areas. What is above the one of the stacks must not grow down, or
 * whoever reads a hole with force makes a stack of it.
 */
#define STACK_FIRST		NR_PAGES
#define STACK_PAGES		(2 * PMD_PAGES)
#define STACK_BASE		(ARENA - STACK_PAGES * PAGE)
#define STACK_GAP		256
#define HEAP_FIRST		(STACK_FIRST + STACK_PAGES)
#define HEAP_PAGES		(2 * PMD_PAGES)
#define HUGE_FIRST		(HEAP_FIRST + HEAP_PAGES)
#define HUGE_PAGES		(4 * PMD_PAGES)
#define HUGE_BASE		(ARENA + 2 * NR_PAGES * PAGE)
#define HUGE_MAX		2	/* of one member */
#define ALL_PAGES		(HUGE_FIRST + HUGE_PAGES)
#define FILE_PAGES		1536
#define MAX_PROCS		12
#define MAX_DEPTH		6
#define NR_RECENT		64
#define CHECK_OPS		2000
#define REPLY_SECONDS		180
#define REST_SECONDS		180
#define START_SECONDS		60
#define NR_BLOCKS		64	/* of memory, those that exist */
#define OFFLINE_SECONDS		10
#define SOFT_MAX		1024	/* pages taken away by one run */
#define SOFT_FAMILY		64	/* and of one family */
#define FAIL_FILE		"cow_context_fuzz.fail"
#define ARGS_LINE		"# args:"

/* What a page contains. */
enum { NONE, ZERO, VALUE, CONTENT_OF_FILE };

/* Properties of a page, or rather of the mapping that it belongs to. */
#define F_MAYBE			0x01	/* old content, or what was below */
#define F_GUARD			0x02
#define F_LOCKED		0x04
#define F_WIPE			0x08
#define F_DONTFORK		0x10
#define F_FILE			0x20	/* private mapping of the file */
#define F_UNKNOWN		0x40	/* a call failed half-way */
#define F_GROWS			0x80	/* down, as a stack */
#define F_VMA			(F_LOCKED | F_WIPE | F_DONTFORK | F_FILE | \
				 F_GROWS)

struct page {
	uint64_t value;
	uint32_t index;			/* in the file; of huge pages: whose */
	uint8_t kind;
	uint8_t prot;
	uint8_t flags;
};

enum op_code {
	OP_SPAWN, OP_FORK, OP_EXIT, OP_EXEC, OP_WRITE, OP_VERIFY, OP_PEEK,
	OP_MMAP, OP_MMAP_FILE, OP_MUNMAP, OP_MPROTECT, OP_RESIZE, OP_MOVE,
	OP_DONTUNMAP, OP_MADVISE, OP_MLOCK, OP_MUNLOCK, OP_SOFT_DIRTY,
	OP_MOVE_PAGES, OP_REMOTE, OP_UFFD_MOVE, OP_SPLIT, OP_COMPACT,
	OP_MMAP_STACK, OP_GROW, OP_BRK, OP_MMAP_HUGE, OP_PIN, OP_UNPIN,
	OP_MMAP_HINT, OP_MMAP_NOREPLACE, OP_MAYMOVE, OP_SWAPOFF, OP_IDLE,
	NR_OPS
};

static const char * const op_names[NR_OPS] = {
	[OP_SPAWN]	= "spawn",
	[OP_FORK]	= "fork",
	[OP_EXIT]	= "exit",
	[OP_EXEC]	= "exec",
	[OP_WRITE]	= "write",
	[OP_VERIFY]	= "verify",
	[OP_PEEK]	= "peek",
	[OP_MMAP]	= "mmap",
	[OP_MMAP_FILE]	= "mmap_file",
	[OP_MUNMAP]	= "munmap",
	[OP_MPROTECT]	= "mprotect",
	[OP_RESIZE]	= "mremap_resize",
	[OP_MOVE]	= "mremap_move",
	[OP_DONTUNMAP]	= "mremap_dontunmap",
	[OP_MADVISE]	= "madvise",
	[OP_MLOCK]	= "mlock",
	[OP_MUNLOCK]	= "munlock",
	[OP_SOFT_DIRTY]	= "soft_dirty",
	[OP_MOVE_PAGES]	= "move_pages",
	[OP_REMOTE]	= "process_madvise",
	[OP_UFFD_MOVE]	= "uffd_move",
	[OP_SPLIT]	= "split",
	[OP_COMPACT]	= "compact",
	[OP_MMAP_STACK]	= "mmap_stack",
	[OP_GROW]	= "grow",
	[OP_BRK]	= "brk",
	[OP_MMAP_HUGE]	= "mmap_huge",
	[OP_PIN]	= "pin",
	[OP_UNPIN]	= "unpin",
	[OP_MMAP_HINT]	= "mmap_hint",
	[OP_MMAP_NOREPLACE] = "mmap_noreplace",
	[OP_MAYMOVE]	= "mremap_maymove",
	[OP_SWAPOFF]	= "swapoff",
	[OP_IDLE]	= "idle",
};

struct op {
	uint32_t who;
	uint32_t code;
	uint32_t a[5];
};

struct member {
	uint32_t used;			/* slot taken */
	int32_t pid;
	uint32_t depth;
	uint32_t posted;		/* futex: operations told */
	uint32_t done;			/* futex: operations executed */
	uint32_t paused;		/* the last round that it rested in */
	uint32_t progress;		/* operations and pages, it moves on */
	uint64_t rng;
	struct op op;
	uint32_t nr_recent;
	struct op recent[NR_RECENT];
	uint64_t heap;			/* where it starts, 0: has none */
	uint32_t heap_pages;		/* up to the break */
	struct page pages[ALL_PAGES];
};

struct failure {
	uint32_t taken;
	uint32_t ready;
	uint32_t who;
	struct op op;
	char text[200];
};

struct shared {
	int32_t conductor;
	uint32_t stop;
	uint32_t pause;			/* number of the round, 0: none */
	uint32_t race;
	uint32_t disturb;		/* others act on the members' memory */
	uint32_t system;
	uint32_t offline;
	uint32_t forget;		/* self-test: one update left out */
	uint32_t max_procs;
	uint32_t patience;		/* factor of all time limits */
	uint32_t guards;		/* the kernel knows guard pages */
	uint32_t pins;			/* pin pages to read, no MADV_FREE */
	uint32_t nodes;
	uint32_t stacks;		/* these four: can be tested here */
	uint32_t huge;
	uint32_t rings;
	uint64_t heap;
	uint32_t seq;
	uint64_t ops;
	uint64_t failed;
	uint64_t forks;
	uint64_t exits;
	uint64_t execs;
	uint64_t executed[NR_OPS];
	uint64_t generation[MAX_DEPTH];	/* how many members were of it */
	long ksm_sharing;		/* the most that was seen */
	uint64_t verified;
	uint64_t disturbed;
	uint64_t offlined;
	uint64_t swapoffs;
	uint64_t soft_offlined;
	int32_t soft_left;
	char swap_path[128];
	struct failure failure;
	struct member member[MAX_PROCS];
};

static struct {
	uint64_t seed;
	uint64_t seconds;
	uint64_t max_ops;
	uint64_t procs;
	uint64_t patience;
	const char *replay;
	bool race;
	bool system;
	bool offline;
	bool self_test;
	bool disturb;
} options = { .procs = 8, .patience = 1 };

static struct shared *shm;
static int shm_fd = -1;
static int file_fd = -1;
static int mem_fd = -1;
static int ring_fd = -1;		/* io_uring, keeps what is pinned */
static struct member *me;
static uint32_t my_slot;
static struct op *current_op;
static sigjmp_buf fault_env;
static uint32_t at_page;		/* is accessed right now */

static const unsigned int word_at[4] = { 0, 171, 342, 511 };

static void die(const char *what)
{
	fprintf(stderr, "cow_context_fuzz: %s: %s\n", what, strerror(errno));
	exit(2);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

/* A limit in seconds, on a machine as slow as this one may be. */
static double time_limit(uint32_t seconds)
{
	return (double)seconds * shm->patience;
}

static uint64_t rnd(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static uint32_t below(uint64_t *state, uint32_t limit)
{
	return rnd(state) % limit;
}

static void add(uint64_t *counter, uint64_t n)
{
	__atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

/* Who does this now and then is slow, and not stuck. */
static void get_on(void)
{
	__atomic_store_n(&me->progress, me->progress + 1, __ATOMIC_RELAXED);
}

static long futex(uint32_t *word, int what, uint32_t value, double timeout)
{
	struct timespec ts = {
		.tv_sec = timeout,
		.tv_nsec = (timeout - (long)timeout) * 1e9,
	};

	return syscall(SYS_futex, word, what, value, &ts, NULL, 0);
}

enum { IN_ARENA, IN_STACKS, IN_HEAP, IN_HUGE, NR_AREAS };

static const struct area {
	uint32_t first;
	uint32_t nr;
} areas[NR_AREAS] = {
	[IN_ARENA]	= { 0, NR_PAGES },
	[IN_STACKS]	= { STACK_FIRST, STACK_PAGES },
	[IN_HEAP]	= { HEAP_FIRST, HEAP_PAGES },
	[IN_HUGE]	= { HUGE_FIRST, HUGE_PAGES },
};

static int area_of(uint32_t i)
{
	int n = NR_AREAS - 1;

	while (i < areas[n].first)
		n--;
	return n;
}

/* Where @m has the page; only the heap is not at the same place in all. */
static unsigned long addr_in(const struct member *m, uint32_t i)
{
	switch (area_of(i)) {
	case IN_ARENA:
		return ARENA + i * PAGE;
	case IN_STACKS:
		return STACK_BASE + (i - STACK_FIRST) * PAGE;
	case IN_HEAP:
		return m->heap + (i - HEAP_FIRST) * PAGE;
	}
	return HUGE_BASE + (i - HUGE_FIRST) * PAGE;
}

static char *page_addr(uint32_t i)
{
	return (char *)addr_in(me, i);
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int ret;

	if (fd < 0)
		return -1;
	ret = write(fd, text, strlen(text)) < 0 ? -1 : 0;
	close(fd);
	return ret;
}

/* The first failure wins; everybody stops. */
static void fail(const char *format, ...)
{
	struct failure *f = &shm->failure;
	va_list ap;

	if (__atomic_exchange_n(&f->taken, 1, __ATOMIC_ACQ_REL))
		return;
	f->who = my_slot;
	if (current_op)
		f->op = *current_op;
	va_start(ap, format);
	vsnprintf(f->text, sizeof(f->text), format, ap);
	va_end(ap);
	__atomic_store_n(&f->ready, 1, __ATOMIC_RELEASE);
	__atomic_store_n(&shm->stop, 1, __ATOMIC_RELEASE);
}

static bool failed(void)
{
	return __atomic_load_n(&shm->failure.taken, __ATOMIC_ACQUIRE);
}

/* The model */

static uint64_t file_word(uint32_t index, int k)
{
	return (0xf11eULL << 48) + ((uint64_t)index << 8) + k;
}

/* Below what was written: the file, or nothing. */
static uint8_t base_kind(const struct page *p)
{
	return p->flags & F_FILE ? CONTENT_OF_FILE : ZERO;
}

static uint64_t base_word(const struct page *p, int k)
{
	return p->flags & F_FILE ? file_word(p->index, k) : 0;
}

static uint64_t expected_word(const struct page *p, int k)
{
	return p->kind == VALUE ? p->value + k : base_word(p, k);
}

/* All of the mapping, but nothing written any more. */
static void drop_content(struct page *p)
{
	p->kind = base_kind(p);
	p->value = 0;
	p->flags &= ~F_MAYBE;
}

static void set_unmapped(struct page *p)
{
	memset(p, 0, sizeof(*p));
}

static bool beyond_file(const struct page *p)
{
	return p->flags & F_FILE && p->index >= FILE_PAGES;
}

/* Nobody can access it, permissions or not. */
static bool dead_page(const struct page *p)
{
	return p->kind == NONE || p->flags & F_GUARD ||
		(p->kind != VALUE && beyond_file(p));
}

/* Can both belong to one VMA? */
static bool same_vma(const struct page *p, const struct page *q, uint32_t n)
{
	if (p->kind == NONE || q->kind == NONE)
		return false;
	if (p->prot != q->prot || ((p->flags ^ q->flags) & F_VMA))
		return false;
	return !(p->flags & F_FILE) || p->index + n == q->index;
}

static bool one_vma(const struct page *p, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++)
		if (!same_vma(p, p + i, i))
			return false;
	return true;
}

static bool any_flag(const struct page *p, uint32_t n, uint8_t flags)
{
	uint32_t i;

	for (i = 0; i < n; i++)
		if (p[i].flags & flags)
			return true;
	return false;
}

static bool any_mapped(const struct page *p, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++)
		if (p[i].kind != NONE)
			return true;
	return false;
}

/* What a child of fork() gets. */
static void inherit(struct page *child, const struct page *parent)
{
	uint32_t i;

	for (i = 0; i < ALL_PAGES; i++) {
		const struct page *p = &parent[i];
		struct page *c = &child[i];

		*c = *p;
		c->flags &= ~F_LOCKED;
		if (p->kind == NONE || p->flags & F_DONTFORK) {
			set_unmapped(c);
		} else if (p->flags & F_WIPE) {
			c->flags &= ~F_GUARD;
			drop_content(c);
		}
	}
}

/*
 * How the pages are mapped according to smaps. Only the locks are taken over
 * from it with @locks_only, otherwise all but the content. All of one area.
 */
static void reread_maps(uint32_t first, uint32_t nr, bool locks_only)
{
	struct page *row = me->pages;
	static char line[512];
	unsigned long start = 0, end = 0, from = 0, to = 0, offset, addr;
	unsigned long base = addr_in(me, first);
	struct page *p;
	char perms[8];
	uint32_t i;
	FILE *f;

	f = fopen("/proc/self/smaps", "re");
	if (!f)
		return;
	for (i = first; i < first + nr; i++) {
		if (locks_only)
			row[i].flags &= ~F_LOCKED;
		else
			set_unmapped(&row[i]);
	}
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx %7s %lx", &start, &end, perms,
			   &offset) == 4) {
			from = start;
			to = end;
			if (from < base)
				from = base;
			if (to > base + nr * PAGE)
				to = base + nr * PAGE;
			if (locks_only)
				continue;
			for (addr = from; addr < to; addr += PAGE) {
				p = &row[first + (addr - base) / PAGE];
				p->flags = F_UNKNOWN;
				if (strstr(line, "memfd:"))
					p->flags |= F_FILE;
				p->kind = base_kind(p);
				p->index = (offset + addr - start) / PAGE;
				p->prot = (perms[0] == 'r' ? PROT_READ : 0) |
					(perms[1] == 'w' ? PROT_WRITE : 0);
			}
		} else if (!strncmp(line, "VmFlags:", 8)) {
			uint8_t flags = 0;

			if (strstr(line, " lo"))
				flags |= F_LOCKED;
			if (strstr(line, " wf") && !locks_only)
				flags |= F_WIPE;
			if (strstr(line, " dc") && !locks_only)
				flags |= F_DONTFORK;
			if (strstr(line, " gd") && !locks_only)
				flags |= F_GROWS;
			for (addr = from; addr < to; addr += PAGE) {
				p = &row[first + (addr - base) / PAGE];
				p->flags |= flags;
			}
		}
	}
	fclose(f);
}

/* Access to the pages */

static void on_fault(int signal, siginfo_t *info, void *context)
{
	unsigned long addr = (unsigned long)info->si_addr;
	uint32_t n;

	(void)context;
	for (n = 0; me && n < NR_AREAS; n++)
		if (addr - addr_in(me, areas[n].first) < areas[n].nr * PAGE)
			siglongjmp(fault_env, signal);
	fail("member %u: signal %d at %#lx, outside of the areas", my_slot,
	     signal, addr);
	_exit(1);
}

static bool pinned_words(pid_t pid, unsigned long addr, uint64_t *words)
{
	struct iovec local[4], remote[4];
	int k;

	for (k = 0; k < 4; k++) {
		local[k].iov_base = &words[k];
		remote[k].iov_base = (void *)(addr + word_at[k] * 8);
		local[k].iov_len = 8;
		remote[k].iov_len = 8;
	}
	return process_vm_readv(pid, local, 4, remote, 4, 0) == 32;
}

/* Reads without any permission, as a debugger does, and does not pin. */
static bool forced_words(int fd, unsigned long addr, uint64_t *words)
{
	int k;

	for (k = 0; k < 4; k++)
		if (pread(fd, &words[k], 8, addr + word_at[k] * 8) != 8)
			return false;
	return true;
}

static bool forced_write(uint32_t i, uint64_t value)
{
	int k;

	for (k = 0; k < 4; k++, value++)
		if (pwrite(mem_fd, &value, 8, addr_in(me, i) +
			   word_at[k] * 8) != 8)
			return false;
	return true;
}

static bool is_mapped(uint32_t i)
{
	unsigned char there;

	return !mincore(page_addr(i), PAGE, &there);
}

static const char *kind_name(const struct page *p)
{
	static const char * const names[] = {
		"unmapped", "zero", "value", "file"
	};

	return p->flags & F_GUARD ? "guard" : names[p->kind];
}

/*
 * Does @words match the model?  A freed page may become empty from one word to
 * the next; seen as empty it stays empty.
 */
static void check_words(uint32_t slot, uint32_t i, const uint64_t *words,
			const char *how)
{
	struct page *p = &shm->member[slot].pages[i];
	bool maybe = p->flags & F_MAYBE, empty = false;
	int k;

	for (k = 0; k < 4; k++) {
		empty = empty || (maybe && words[k] == base_word(p, k));
		if (words[k] == (empty ? base_word(p, k) : expected_word(p, k)))
			continue;
		fail("member %u page %u word %d (%s, flags %#x): expected %s %#llx, got %#llx",
		     slot, i, k, how, p->flags, kind_name(p),
		     (unsigned long long)expected_word(p, k),
		     (unsigned long long)words[k]);
		return;
	}
	if (empty && slot == my_slot)
		drop_content(p);
}

enum { VERIFY_DIRECT, VERIFY_PINNED, VERIFY_PRESENT, VERIFY_FORCED };

static bool read_pagemap(uint32_t i, uint64_t *entry)
{
	static int fd = -1;
	static pid_t owner;

	if (owner != getpid()) {
		if (fd >= 0)
			close(fd);
		fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		owner = getpid();
	}
	return pread(fd, entry, 8, addr_in(me, i) / PAGE * 8) == 8;
}

/* Untouched pages stay as they are, so that huge pages remain possible. */
static bool never_touched(uint32_t i)
{
	uint64_t entry;

	return read_pagemap(i, &entry) && !(entry >> 62);
}

/*
 * See the rules in the beginning. Of hugetlb the pagemap shows the soft-dirty
 * flag of the mapping; others may clear it right after it was read.
 */
static bool forced_write_returns(uint32_t i)
{
	uint64_t entry;

	if (area_of(i) != IN_HUGE || me->pages[i].prot & PROT_WRITE)
		return true;
	return !shm->disturb && read_pagemap(i, &entry) && entry >> 55 & 1;
}

#define MAPPED			0x80

/* MAPPED and the permissions of each page that is. */
static bool read_maps(uint8_t *maps)
{
	unsigned long start, end, addr, base, size;
	char line[512], perms[8];
	uint32_t n, prot;
	FILE *f;

	f = fopen("/proc/self/maps", "re");
	if (!f)
		return false;
	memset(maps, 0, ALL_PAGES);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%lx-%lx %7s", &start, &end, perms) != 3)
			continue;
		prot = (perms[0] == 'r' ? PROT_READ : 0) |
			(perms[1] == 'w' ? PROT_WRITE : 0);
		for (n = 0; n < NR_AREAS; n++) {
			base = addr_in(me, areas[n].first);
			size = areas[n].nr * PAGE;
			addr = start > base ? start : base;
			for (; addr < end && addr - base < size; addr += PAGE)
				maps[areas[n].first + (addr - base) / PAGE] =
					MAPPED | prot;
		}
	}
	fclose(f);
	return true;
}

/* Is everything mapped as the model says? */
static void verify_maps(uint32_t first, uint32_t nr)
{
	static uint8_t maps[ALL_PAGES];
	const struct page *p;
	uint32_t i;

	if (!read_maps(maps))
		return;
	for (i = first; i < first + nr; i++) {
		p = &me->pages[i];
		if (p->flags & F_UNKNOWN || (!me->heap && area_of(i) == IN_HEAP))
			continue;
		if (maps[i] == (p->kind == NONE ? 0 : MAPPED | p->prot))
			continue;
		fail("member %u page %u: in maps %#x, expected %s, permissions %u",
		     my_slot, i, maps[i], kind_name(p), p->prot);
		return;
	}
}

static void verify(uint32_t first, uint32_t nr, uint32_t mode)
{
	const bool many = nr > 64;
	uint32_t i;
	uint64_t words[4];
	uint64_t *w;
	pid_t pid = getpid();
	int k, signal;

	signal = sigsetjmp(fault_env, 1);
	if (signal) {
		fail("member %u page %u: signal %d, expected %s", my_slot,
		     at_page, signal, kind_name(&me->pages[at_page]));
		return;
	}
	if (many)
		verify_maps(first, nr);
	for (i = first; i < first + nr && !failed(); i++) {
		struct page *p = &me->pages[i];

		get_on();
		if (p->flags & F_UNKNOWN || (many && p->kind == NONE))
			continue;
		if (mode == VERIFY_PRESENT && p->kind == ZERO &&
		    !dead_page(p) && never_touched(i))
			continue;
		add(&shm->verified, 1);
		/* the kernel complains about other reads below a stack */
		if (p->kind == NONE && area_of(i) == IN_STACKS) {
			if (is_mapped(i))
				fail("member %u page %u: mapped, expected unmapped",
				     my_slot, i);
			continue;
		}
		if (dead_page(p) || !(p->prot & PROT_READ)) {
			if (pinned_words(pid, addr_in(me, i), words)) {
				fail("member %u page %u: readable, expected %s, permissions %u",
				     my_slot, i, kind_name(p), p->prot);
				return;
			}
			if (!dead_page(p) && mem_fd >= 0 &&
			    forced_words(mem_fd, addr_in(me, i), words))
				check_words(my_slot, i, words, "forced");
			continue;
		}
		if (mode == VERIFY_FORCED && mem_fd >= 0) {
			if (!forced_words(mem_fd, addr_in(me, i), words)) {
				fail("member %u page %u: forced read fails, expected %s",
				     my_slot, i, kind_name(p));
				return;
			}
		} else if (mode == VERIFY_PINNED) {
			if (!pinned_words(pid, addr_in(me, i), words)) {
				fail("member %u page %u: process_vm_readv: %s, expected %s",
				     my_slot, i, strerror(errno),
				     kind_name(p));
				return;
			}
		} else {
			w = (uint64_t *)page_addr(i);
			at_page = i;
			for (k = 0; k < 4; k++)
				words[k] = __atomic_load_n(&w[word_at[k]],
							   __ATOMIC_SEQ_CST);
		}
		check_words(my_slot, i, words, "own");
	}
}

static int open_mem(pid_t pid)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	return open(path, O_RDONLY | O_CLOEXEC);
}

/* What another member has, who must not do anything meanwhile. */
static void peek(uint32_t slot, uint32_t first, uint32_t nr, bool pin)
{
	struct member *m = &shm->member[slot];
	uint64_t words[4];
	uint32_t i;
	bool got;
	int fd;

	if (!m->used || shm->race)
		return;
	fd = open_mem(m->pid);
	if (fd < 0)
		return;
	for (i = first; i < first + nr && !failed(); i++) {
		struct page *p = &m->pages[i];
		bool readable = !dead_page(p) && p->prot & PROT_READ;

		get_on();
		if (p->flags & F_UNKNOWN ||
		    (p->kind == NONE && area_of(i) == IN_STACKS))
			continue;
		add(&shm->verified, 1);
		if (pin || !readable)
			got = pinned_words(m->pid, addr_in(m, i), words);
		else
			got = forced_words(fd, addr_in(m, i), words);
		if (got != readable)
			fail("member %u page %u: %s for others, expected %s, permissions %u",
			     slot, i, readable ? "not readable" : "readable",
			     kind_name(p), p->prot);
		else if (readable)
			check_words(slot, i, words, "remote");
	}
	close(fd);
}

enum { WRITE_DIRECT, WRITE_REMOTE, WRITE_FORCED, NR_WRITE };

/* Who writes, of which generation, and when. */
static uint64_t new_value(uint32_t i, uint32_t seq)
{
	return (uint64_t)(my_slot + 1) << 56 | (uint64_t)me->depth << 52 |
		(uint64_t)seq << 20 | (uint64_t)i << 4;
}

/* All pages of the range that can be written get the value, or one of it. */
static void write_pages(uint32_t first, uint32_t nr, uint32_t mode,
			uint32_t step, uint32_t seq)
{
	struct iovec local, remote;
	uint32_t i;
	uint64_t value, word;
	uint64_t *w;
	int k, signal;

	signal = sigsetjmp(fault_env, 1);
	if (signal) {
		fail("member %u page %u: signal %d writing %s, permissions %u",
		     my_slot, at_page, signal, kind_name(&me->pages[at_page]),
		     me->pages[at_page].prot);
		return;
	}
	for (i = first; i < first + nr; i += step) {
		struct page *p = &me->pages[i];

		get_on();
		/* few values that all have for KSM, or one for every page */
		if (seq & 1 << 31)
			value = 0xc0ULL << 56 | (seq & 0xff) << 4;
		else
			value = new_value(i, seq);
		if (p->flags & F_UNKNOWN || dead_page(p))
			continue;
		if (p->kind != VALUE && p->flags & F_FILE && beyond_file(p))
			continue;
		if (mode == WRITE_FORCED) {
			if (mem_fd < 0 || !forced_write_returns(i) ||
			    !forced_write(i, value))
				continue;
		} else if (!(p->prot & PROT_WRITE)) {
			continue;
		} else if (mode == WRITE_REMOTE) {
			for (k = 0; k < 4; k++) {
				word = value + k;
				local.iov_base = &word;
				local.iov_len = 8;
				remote.iov_base = page_addr(i) +
					word_at[k] * 8;
				remote.iov_len = 8;
				if (process_vm_writev(getpid(), &local, 1,
						      &remote, 1, 0) == 8)
					continue;
				fail("member %u page %u: process_vm_writev: %s, expected %s",
				     my_slot, i, strerror(errno),
				     kind_name(p));
				return;
			}
		} else {
			w = (uint64_t *)page_addr(i);
			at_page = i;
			for (k = 0; k < 4; k++)
				__atomic_store_n(&w[word_at[k]], value + k,
						 __ATOMIC_SEQ_CST);
		}
		p->kind = VALUE;
		p->value = value;
		p->flags &= ~F_MAYBE;
	}
}

/* Pins that last */

static int ring_register(uint32_t what, void *arg, uint32_t nr)
{
	return syscall(__NR_io_uring_register, ring_fd, what, arg, nr);
}

static int new_ring(void)
{
	uint32_t params[30] = { 0 };	/* struct io_uring_params */

	return syscall(__NR_io_uring_setup, 1, params);
}

static void do_unpin(void)
{
	if (ring_fd >= 0 && ring_register(1, NULL, 0))
		add(&shm->failed, 1);
}

/* System calls and what they do to the model */

static bool for_want_of_memory(int error)
{
	return error == ENOMEM || error == EAGAIN || error == EINTR;
}

/*
 * Compares what a call returned with what was predicted. False when the model
 * must not follow: the range is read from smaps instead.
 */
static bool as_predicted(const char *what, int got, int predicted,
			 uint32_t first, uint32_t nr)
{
	if (got)
		add(&shm->failed, 1);
	if (got == predicted)
		return true;
	if (for_want_of_memory(got)) {
		reread_maps(first, nr, false);
		return false;
	}
	fail("member %u: %s of %u pages at page %u: returned %d (%s), expected %d (%s)",
	     my_slot, what, nr, first, got, strerror(got), predicted,
	     strerror(predicted));
	return false;
}

#define MAP_POPULATED		1
#define MAP_HUGE_PAGES		2
#define MAP_STACKS		4
#define MAP_AT_HINT		8
#define MAP_NOREPLACE		16

/* Anonymous memory, or the file @from a page on. */
static void do_mmap(uint32_t first, uint32_t nr, int prot, int how, int from)
{
	struct page *row = me->pages;
	bool used = any_mapped(&row[first], nr);
	int flags = MAP_PRIVATE | MAP_NORESERVE;
	int error = 0, predicted = 0;
	uint32_t i;
	void *p;

	if (how & MAP_NOREPLACE)
		flags |= MAP_FIXED_NOREPLACE;
	else if (!(how & MAP_AT_HINT))
		flags |= MAP_FIXED;
	if (how & MAP_NOREPLACE && used)
		predicted = EEXIST;
	if (how & MAP_POPULATED)
		flags |= MAP_POPULATE;
	if (how & MAP_STACKS)
		flags |= MAP_GROWSDOWN;
	if (from < 0)
		p = mmap(page_addr(first), nr * PAGE, prot,
			 flags | MAP_ANONYMOUS, -1, 0);
	else
		p = mmap(page_addr(first), nr * PAGE, prot, flags, file_fd,
			 from * PAGE);
	if (p == MAP_FAILED) {
		error = errno;
	} else if (p != page_addr(first)) {
		munmap(p, nr * PAGE);
		if (!(how & MAP_AT_HINT))
			fail("member %u: mmap of %u pages at page %u: at %p",
			     my_slot, nr, first, p);
		return;
	} else if (how & MAP_AT_HINT && used) {
		fail("member %u: mmap of %u pages at page %u: a hint replaced what was there",
		     my_slot, nr, first);
		return;
	}
	if (!as_predicted("mmap", error, predicted, first, nr) || error)
		return;
	if (how & MAP_HUGE_PAGES)
		madvise(p, nr * PAGE, MADV_HUGEPAGE);
	for (i = first; i < first + nr; i++) {
		set_unmapped(&row[i]);
		row[i].prot = prot;
		if (from >= 0) {
			row[i].flags = F_FILE;
			row[i].index = from + i - first;
		}
		if (how & MAP_STACKS)
			row[i].flags = F_GROWS;
		row[i].kind = base_kind(&row[i]);
	}
}

static void do_munmap(uint32_t first, uint32_t nr)
{
	int error = munmap(page_addr(first), nr * PAGE) ? errno : 0;
	uint32_t i;

	if (!as_predicted("munmap", error, 0, first, nr))
		return;
	for (i = first; i < first + nr; i++)
		set_unmapped(&me->pages[i]);
}

static void do_mprotect(uint32_t first, uint32_t nr, int prot)
{
	struct page *row = me->pages;
	int error = mprotect(page_addr(first), nr * PAGE, prot) ? errno : 0;
	int predicted = 0;
	uint32_t i, end;

	/* up to the first hole */
	for (end = first; end < first + nr && row[end].kind != NONE; end++)
		;
	if (end < first + nr)
		predicted = ENOMEM;
	if (!as_predicted("mprotect", error, predicted, first, nr))
		return;
	for (i = first; i < end; i++)
		row[i].prot = prot;
}

/* Moved with all that is in it. */
static void move_page(struct page *to, struct page *from)
{
	*to = *from;
	set_unmapped(from);
}

/* What is appended to the mapping of @like, which begins @i pages before. */
static void extend(struct page *p, const struct page *like, uint32_t i)
{
	*p = *like;
	p->index += i;
	p->flags &= F_VMA;
	drop_content(p);
}

/* mremap() returned the same address, or @error. */
static void resized(uint32_t first, uint32_t nr, uint32_t new_nr, int error)
{
	struct page *p = &me->pages[first];
	uint32_t i;

	if (p->kind == NONE) {
		as_predicted("mremap", error, EFAULT, first, nr);
		return;
	}
	if (new_nr <= nr) {
		if (!as_predicted("shrinking mremap", error, 0, first, nr))
			return;
		for (i = new_nr; i < nr; i++)
			set_unmapped(&p[i]);
		return;
	}
	if (error) {
		/* cannot, is not one VMA, or no memory: nothing happened */
		add(&shm->failed, 1);
		if (error != ENOMEM && error != EFAULT && error != EAGAIN)
			fail("member %u: mremap of page %u from %u to %u pages: %s",
			     my_slot, first, nr, new_nr, strerror(error));
		return;
	}
	if (!one_vma(p, nr) || any_mapped(p + nr, new_nr - nr)) {
		fail("member %u: mremap of page %u grew from %u to %u pages",
		     my_slot, first, nr, new_nr);
		return;
	}
	for (i = nr; i < new_nr; i++)
		extend(&p[i], p, i);
}

/* In place, to @new_nr pages. */
static void do_resize(uint32_t first, uint32_t nr, uint32_t new_nr)
{
	void *p = mremap(page_addr(first), nr * PAGE, new_nr * PAGE, 0);

	resized(first, nr, new_nr, p == MAP_FAILED ? errno : 0);
}

/*
 * In place, or where the kernel likes; from there it goes on to page @to. No
 * pages at all are refused: a private mapping is not to be had twice.
 */
static void do_maymove(uint32_t first, uint32_t nr, uint32_t to,
		       uint32_t new_nr)
{
	static struct page moved[NR_PAGES];
	struct page *row = me->pages;
	int error = 0;
	uint32_t i;
	void *p;

	p = mremap(page_addr(first), nr * PAGE, new_nr * PAGE, MREMAP_MAYMOVE);
	if (p == MAP_FAILED)
		error = errno;
	if (!nr) {
		as_predicted("mremap", error, row[first].kind == NONE ?
			     EFAULT : EINVAL, first, nr);
		return;
	}
	if (error || p == page_addr(first)) {
		resized(first, nr, new_nr, error);
		return;
	}
	if (new_nr <= nr || !one_vma(&row[first], nr)) {
		fail("member %u: mremap of page %u from %u to %u pages moved it",
		     my_slot, first, nr, new_nr);
		return;
	}
	memcpy(moved, &row[first], nr * sizeof(*moved));
	for (i = first; i < first + nr; i++)
		set_unmapped(&row[i]);
	if (mremap(p, new_nr * PAGE, new_nr * PAGE, MREMAP_MAYMOVE |
		   MREMAP_FIXED, page_addr(to)) == MAP_FAILED) {
		error = errno;
		munmap(p, new_nr * PAGE);
		as_predicted("second mremap", error, 0, to, new_nr);
		return;
	}
	memcpy(&row[to], moved, nr * sizeof(*moved));
	for (i = nr; i < new_nr; i++)
		extend(&row[to + i], &row[to], i);
}

/* To another place, with another size maybe. */
static void do_move(uint32_t first, uint32_t nr, uint32_t to, uint32_t new_nr,
		    bool keep)
{
	struct page *row = me->pages;
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED;
	uint32_t copied = nr < new_nr ? nr : new_nr;
	bool overlap = first < to + new_nr && to < first + nr;
	struct page like;
	bool locked;
	int error = 0;
	uint32_t i;
	void *p;

	if (keep) {
		flags |= MREMAP_DONTUNMAP;
		new_nr = nr;
	}
	p = mremap(page_addr(first), nr * PAGE, new_nr * PAGE, flags,
		   page_addr(to));
	if (p == MAP_FAILED)
		error = errno;
	if (overlap || row[first].kind == NONE) {
		as_predicted("mremap", error, overlap ? EINVAL : EFAULT,
			     first, nr);
		return;
	}
	if (error) {
		add(&shm->failed, 1);
		if (for_want_of_memory(error)) {
			reread_maps(first, nr, false);
			reread_maps(to, new_nr, false);
			return;
		}
		if (error == EFAULT && copied > 1)
			return;
		fail("member %u: mremap of %u pages at page %u to %u: %s",
		     my_slot, nr, first, to, strerror(error));
		return;
	}
	if (nr != new_nr && !one_vma(&row[first], copied)) {
		fail("member %u: mremap of %u pages at page %u to %u pages: succeeded across VMAs",
		     my_slot, nr, first, new_nr);
		return;
	}
	like = row[first];
	locked = keep && any_flag(&row[first], nr, F_LOCKED);
	for (i = 0; i < copied; i++) {
		/* between VMAs nothing is moved, and nothing unmapped */
		if (row[first + i].kind == NONE)
			continue;
		move_page(&row[to + i], &row[first + i]);
		if (!keep)
			continue;
		row[first + i] = row[to + i];
		row[first + i].flags &= F_VMA & ~F_LOCKED;
		drop_content(&row[first + i]);
		if (row[to + i].flags & F_UNKNOWN)
			row[first + i].flags |= F_UNKNOWN;
	}
	for (i = new_nr; i < nr; i++)
		set_unmapped(&row[first + i]);
	for (i = copied; i < new_nr; i++)
		extend(&row[to + i], &like, i);
	if (locked)
		reread_maps(areas[area_of(first)].first,
			    areas[area_of(first)].nr, true);
}

/* One page: the error that stops madvise() there, or what it does to it. */
static int advise_page(struct page *p, int advice, bool commit)
{
	switch (advice) {
	case MADV_DONTNEED:
		if (p->flags & F_LOCKED)
			return -EINVAL;
		fallthrough;
	case MADV_DONTNEED_LOCKED:
		if (commit && !(p->flags & F_UNKNOWN) && !shm->forget)
			drop_content(p);
		return 0;
	case MADV_FREE:
		if (p->flags & (F_LOCKED | F_FILE))
			return -EINVAL;
		if (commit && p->kind == VALUE)
			p->flags |= F_MAYBE;
		return 0;
	case MADV_GUARD_INSTALL:
		if (p->flags & F_LOCKED)
			return -EINVAL;
		if (commit) {
			drop_content(p);
			p->flags |= F_GUARD;
		}
		return 0;
	case MADV_GUARD_REMOVE:
		if (commit)
			p->flags &= ~F_GUARD;
		return 0;
	case MADV_WIPEONFORK:
		if (p->flags & F_FILE)
			return -EINVAL;
		if (commit)
			p->flags |= F_WIPE;
		return 0;
	case MADV_KEEPONFORK:
		if (commit)
			p->flags &= ~F_WIPE;
		return 0;
	case MADV_DONTFORK:
		if (commit)
			p->flags |= F_DONTFORK;
		return 0;
	case MADV_DOFORK:
		if (commit)
			p->flags &= ~F_DONTFORK;
		return 0;
	}
	return 0;
}

/* Holes are skipped, and reported in the end. */
static int advise_range(uint32_t first, uint32_t nr, int advice, bool commit)
{
	int error, hole = 0;
	uint32_t i;

	for (i = first; i < first + nr; i++) {
		struct page *p = &me->pages[i];

		if (p->kind == NONE) {
			hole = -ENOMEM;
			continue;
		}
		error = advise_page(p, advice, commit);
		if (error)
			return error;
	}
	return hole;
}

/* Of a page that is mapped; 0: does not say. */
static uint64_t page_frame(pid_t pid, unsigned long addr)
{
	uint64_t entry = 0;
	char path[40];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	if (pread(fd, &entry, 8, addr / PAGE * 8) != 8)
		entry = 0;
	close(fd);
	return entry >> 63 ? entry & ((1ULL << 55) - 1) : 0;
}

#define HUGE_FLAGS		0x420000UL	/* KPF_HUGE and KPF_THP */

/*
 * Moves what is in one small page elsewhere; nobody gets that page any more, so
 * there are not many of them.
 */
static void soft_offline(uint32_t i)
{
	const struct page *p = &me->pages[i];
	uint64_t frame, flags = HUGE_FLAGS;
	int fd;

	if (!shm->system || shm->offline || area_of(i) == IN_HUGE ||
	    p->kind != VALUE || p->flags & (F_MAYBE | F_UNKNOWN))
		return;
	if (shm->soft_left < 1 || shm->soft_offlined >= SOFT_MAX)
		return;
	do_unpin();
	frame = page_frame(getpid(), addr_in(me, i));
	fd = frame ? open("/proc/kpageflags", O_RDONLY | O_CLOEXEC) : -1;
	if (fd < 0)
		return;
	if (pread(fd, &flags, 8, frame * 8) != 8)
		flags = HUGE_FLAGS;
	close(fd);
	if (flags & HUGE_FLAGS)
		return;
	if (madvise(page_addr(i), PAGE, MADV_SOFT_OFFLINE)) {
		add(&shm->failed, 1);
		return;
	}
	add(&shm->soft_offlined, 1);
	__atomic_fetch_sub(&shm->soft_left, 1, __ATOMIC_RELAXED);
}

static void do_madvise(uint32_t first, uint32_t nr, int advice)
{
	int predicted = -advise_range(first, nr, advice, false);
	int error;

	if (advice == MADV_SOFT_OFFLINE) {
		soft_offline(first);
		return;
	}
	error = madvise(page_addr(first), nr * PAGE, advice) ? errno : 0;
	switch (advice) {
	case MADV_NORMAL:
	case MADV_RANDOM:
	case MADV_SEQUENTIAL:
	case MADV_DONTDUMP:
	case MADV_DODUMP:
	case MADV_DONTNEED:
	case MADV_DONTNEED_LOCKED:
	case MADV_FREE:
	case MADV_GUARD_INSTALL:
	case MADV_GUARD_REMOVE:
	case MADV_WIPEONFORK:
	case MADV_KEEPONFORK:
	case MADV_DONTFORK:
	case MADV_DOFORK:
		if (as_predicted("madvise", error, predicted, first, nr))
			advise_range(first, nr, advice, true);
		break;
	default:
		if (error)
			add(&shm->failed, 1);
	}
}

static void do_mlock(uint32_t first, uint32_t nr, bool lock, bool on_fault)
{
	uint32_t i, end;
	int error;

	if (!lock)
		error = munlock(page_addr(first), nr * PAGE);
	else if (on_fault)
		error = syscall(SYS_mlock2, page_addr(first), nr * PAGE, 1);
	else
		error = mlock(page_addr(first), nr * PAGE);
	for (end = first; end < first + nr; end++)
		if (me->pages[end].kind == NONE)
			break;
	if (error) {
		add(&shm->failed, 1);
		reread_maps(first, nr, true);
		return;
	}
	if (end < first + nr) {
		fail("member %u: mlock of %u pages at page %u succeeded, page %u is a hole",
		     my_slot, nr, first, end);
		return;
	}
	for (i = first; i < end; i++) {
		me->pages[i].flags &= ~F_LOCKED;
		if (lock)
			me->pages[i].flags |= F_LOCKED;
	}
}

struct uffd_api {
	uint64_t api;
	uint64_t features;
	uint64_t ioctls;
};

struct uffd_register {
	uint64_t start;
	uint64_t len;
	uint64_t mode;
	uint64_t ioctls;
};

struct uffd_move {
	uint64_t dst;
	uint64_t src;
	uint64_t len;
	uint64_t mode;
	int64_t move;
};

#define UFFD_API_IOCTL		_IOWR(0xaa, 0x3f, struct uffd_api)
#define UFFD_REGISTER_IOCTL	_IOWR(0xaa, 0x00, struct uffd_register)
#define UFFD_MOVE_IOCTL		_IOWR(0xaa, 0x05, struct uffd_move)
#define UFFD_FEATURE_MOVE	0x10000

/*
 * Moves pages, not mappings. Holes are skipped; which of the pages that hold
 * zeroes are holes is not known, and makes no difference.
 */
static void do_uffd_move(uint32_t first, uint32_t nr, uint32_t to)
{
	struct page *row = me->pages;
	struct uffd_api api = { .api = 0xaa };
	struct uffd_register reg = {
		.start = ARENA + to * PAGE,
		.len = nr * PAGE,
		.mode = 1,
	};
	struct uffd_move move = {
		.dst = ARENA + to * PAGE,
		.src = ARENA + first * PAGE,
		.len = nr * PAGE,
		.mode = 2,
	};
	uint32_t i, moved;
	int fd;

	if (first < to + nr && to < first + nr)
		return;
	if (any_flag(&row[first], nr, F_MAYBE | F_GUARD | F_UNKNOWN) ||
	    any_flag(&row[to], nr, F_MAYBE | F_GUARD | F_UNKNOWN))
		return;
	/* it does not replace what is there */
	do_madvise(to, nr, MADV_DONTNEED);
	fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1);
	if (fd < 0)
		return;
	api.features = UFFD_FEATURE_MOVE;
	if (ioctl(fd, UFFD_API_IOCTL, &api) ||
	    ioctl(fd, UFFD_REGISTER_IOCTL, &reg)) {
		add(&shm->failed, 1);
		close(fd);
		return;
	}
	if (ioctl(fd, UFFD_MOVE_IOCTL, &move))
		add(&shm->failed, 1);
	close(fd);
	moved = move.move > 0 ? move.move / PAGE : 0;
	if (moved > nr) {
		fail("member %u: UFFDIO_MOVE moved %u of %u pages", my_slot,
		     moved, nr);
		return;
	}
	for (i = 0; i < moved; i++) {
		struct page *from = &row[first + i], *p = &row[to + i];

		if (from->kind != VALUE)
			continue;
		p->kind = VALUE;
		p->value = from->value;
		drop_content(from);
	}
}

static void remote_advice(pid_t pid, unsigned long addr, uint32_t nr,
			  int advice)
{
	struct iovec range = {
		.iov_base = (void *)addr,
		.iov_len = nr * PAGE,
	};
	int fd = syscall(__NR_pidfd_open, pid, 0);

	if (fd < 0)
		return;
	if (syscall(__NR_process_madvise, fd, &range, 1, advice, 0) < 0)
		add(&shm->failed, 1);
	close(fd);
}

#define MOVE_BATCH		64

static void move_to_node(pid_t pid, unsigned long addr, uint32_t nr, int node)
{
	void *pages[MOVE_BATCH];
	int nodes[MOVE_BATCH], status[MOVE_BATCH];
	uint32_t i, n;

	for (; nr; addr += n * PAGE, nr -= n) {
		n = nr < MOVE_BATCH ? nr : MOVE_BATCH;
		for (i = 0; i < n; i++) {
			pages[i] = (void *)(addr + i * PAGE);
			nodes[i] = node;
		}
		if (!syscall(SYS_move_pages, pid, n, pages, nodes, status,
			     MPOL_MOVE_ALL) || errno != EPERM)
			continue;
		syscall(SYS_move_pages, pid, n, pages, nodes, status,
			MPOL_MOVE);
	}
}

static void split_huge(pid_t pid, unsigned long addr, uint32_t nr)
{
	char text[80];

	snprintf(text, sizeof(text), "%d,0x%lx,0x%lx", pid, addr,
		 addr + nr * PAGE);
	write_file("/sys/kernel/debug/split_huge_pages", text);
}

/* The whole system */

static void find_swap(void)
{
	char line[256];
	FILE *f = fopen("/proc/swaps", "re");

	if (f && fgets(line, sizeof(line), f) && fgets(line, sizeof(line), f))
		sscanf(line, "%127s", shm->swap_path);
	if (f)
		fclose(f);
}

/* Reads all that was swapped out. */
static void swap_off_and_on(void)
{
	if (!shm->system || !shm->swap_path[0] ||
	    syscall(SYS_swapoff, shm->swap_path))
		return;
	add(&shm->swapoffs, 1);
	syscall(SYS_swapon, shm->swap_path, 0);
}

/* Marks the page idle in the bitmap of all, and reads what it says. */
static void touch_idle_bitmap(pid_t pid, unsigned long addr)
{
	uint64_t bits = ~0ULL, entry = page_frame(pid, addr);
	int fd;

	if (!entry)
		return;
	fd = open("/sys/kernel/mm/page_idle/bitmap", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return;
	if (pwrite(fd, &bits, 8, entry / 64 * 8) != 8 ||
	    pread(fd, &bits, 8, entry / 64 * 8) != 8)
		add(&shm->failed, 1);
	close(fd);
}

/* Stacks, to the page below which they have been touched. */

static bool store_words(uint32_t i, uint64_t value)
{
	const uint64_t words[] = { value, value + 1, value + 2, value + 3 };
	uint64_t *w = (uint64_t *)page_addr(i);
	int k;

	if (sigsetjmp(fault_env, 1))
		return false;
	for (k = 0; k < 4; k++)
		__atomic_store_n(&w[word_at[k]], words[k], __ATOMIC_SEQ_CST);
	return true;
}

static bool load_word(uint32_t i)
{
	if (sigsetjmp(fault_env, 1))
		return false;
	__atomic_load_n((uint64_t *)page_addr(i), __ATOMIC_SEQ_CST);
	return true;
}

/* Does what is next above grow, and can it, to page @i? */
static bool stack_grows(const struct page *row, uint32_t i, uint32_t next)
{
	uint32_t prev = i;

	if (next == STACK_FIRST + STACK_PAGES || !(row[next].flags & F_GROWS))
		return false;
	while (prev > STACK_FIRST && row[prev - 1].kind == NONE)
		prev--;
	if (prev == STACK_FIRST)
		return true;
	return row[prev - 1].flags & F_GROWS || !row[prev - 1].prot ||
		i - prev >= STACK_GAP;
}

/* It grows before permissions are looked at. */
static void do_grow(uint32_t i, bool read, uint32_t seq)
{
	uint64_t value = new_value(i, seq);
	struct page *row = me->pages;
	uint32_t k, next = i;
	bool grows, touched, good;

	if (!shm->stacks || area_of(i) != IN_STACKS || row[i].kind != NONE ||
	    any_flag(&row[STACK_FIRST], STACK_PAGES, F_UNKNOWN))
		return;
	while (next < STACK_FIRST + STACK_PAGES && row[next].kind == NONE)
		next++;
	grows = stack_grows(row, i, next);
	good = grows && row[next].prot & (read ? PROT_READ : PROT_WRITE);
	touched = read ? load_word(i) : store_words(i, value);
	if (touched != good || is_mapped(i) != grows) {
		if (grows && row[next].flags & F_LOCKED) {
			/* as much may not be locked */
			add(&shm->failed, 1);
			reread_maps(i, next - i, false);
			return;
		}
		fail("member %u page %u: %s, %s; expected that the stack above, of page %u, %s",
		     my_slot, i, touched ? "no signal" : "a signal",
		     is_mapped(i) ? "mapped" : "unmapped", next,
		     grows ? "grows" : "does not grow");
		return;
	}
	if (!grows)
		return;
	for (k = i; k < next; k++) {
		row[k] = row[next];
		row[k].flags &= F_VMA;
		drop_content(&row[k]);
	}
	if (good && !read) {
		row[i].kind = VALUE;
		row[i].value = value;
	}
}

/* Moves the break. What is above it must not come back when it does. */
static void do_brk(uint32_t nr)
{
	unsigned long got, before = me->heap + me->heap_pages * PAGE;
	struct page *row = &me->pages[HEAP_FIRST];
	uint32_t i;

	if (!me->heap || nr > HEAP_PAGES)
		return;
	if ((unsigned long)syscall(SYS_brk, 0) != before) {
		fail("member %u: the break is not at heap page %u", my_slot,
		     me->heap_pages);
		return;
	}
	got = syscall(SYS_brk, me->heap + nr * PAGE);
	if (got != me->heap + nr * PAGE) {
		/* no memory, or MADV_DONTFORK left nothing to be unmapped */
		add(&shm->failed, 1);
		if (got != before)
			fail("member %u: brk from heap page %u to %u: at %#lx",
			     my_slot, me->heap_pages, nr, got);
		return;
	}
	for (i = nr; i < me->heap_pages; i++)
		set_unmapped(&row[i]);
	for (i = me->heap_pages; i < nr; i++) {
		set_unmapped(&row[i]);
		row[i].kind = ZERO;
		row[i].prot = PROT_READ | PROT_WRITE;
	}
	me->heap_pages = nr;
}

/* Pages of hugetlb */

/* Is this all of one mapping? */
static bool whole_mapping(const struct page *row, uint32_t first, uint32_t nr)
{
	uint32_t i, end = first + nr;

	for (i = first; i < end; i++)
		if (row[i].kind == NONE || row[i].flags & F_UNKNOWN ||
		    row[i].index != row[first].index)
			return false;
	if (first > HUGE_FIRST && row[first - 1].kind != NONE &&
	    row[first - 1].index == row[first].index)
		return false;
	return end == ALL_PAGES || row[end].kind == NONE ||
		row[end].index != row[first].index;
}

/* What depends on where mappings end is only done with whole ones. */
static bool huge_allowed(const struct op *op)
{
	const uint32_t *a = op->a;

	if (!shm->huge)
		return false;
	if (op->code == OP_WRITE || op->code == OP_VERIFY ||
	    op->code == OP_PEEK || op->code == OP_MOVE_PAGES)
		return true;
	if (!a[1] || a[0] % PMD_PAGES || a[1] % PMD_PAGES ||
	    a[0] + a[1] > ALL_PAGES)
		return false;
	if (op->code == OP_MMAP_HUGE || op->code == OP_MUNMAP ||
	    (op->code == OP_MADVISE && a[2] == MADV_DONTNEED))
		return true;
	if (!whole_mapping(me->pages, a[0], a[1]))
		return false;
	if (op->code == OP_MOVE)
		return a[3] == a[1] && a[2] >= HUGE_FIRST &&
			!(a[2] % PMD_PAGES) && a[2] + a[3] <= ALL_PAGES;
	/* Some kernels refuse MADV_DOFORK: mapping anew undoes it, too. */
	return op->code == OP_MPROTECT ||
		(op->code == OP_MADVISE && a[2] == MADV_DONTFORK);
}

static void do_mmap_huge(uint32_t first, uint32_t nr, int prot, uint32_t id)
{
	struct page *row = me->pages;
	uint32_t i, used = 0;
	int error = 0;

	for (i = HUGE_FIRST; i < ALL_PAGES; i += PMD_PAGES)
		used += row[i].kind != NONE && (i < first || i >= first + nr);
	if (used + nr / PMD_PAGES > HUGE_MAX)
		return;
	/* otherwise the new ones are reserved before the old ones are free */
	do_munmap(first, nr);
	if (mmap(page_addr(first), nr * PAGE, prot, MAP_PRIVATE | MAP_FIXED |
		 MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB, -1,
		 0) == MAP_FAILED)
		error = errno;
	if (!as_predicted("mmap of huge pages", error, 0, first, nr))
		return;
	for (i = first; i < first + nr; i++) {
		set_unmapped(&row[i]);
		row[i].prot = prot;
		row[i].kind = ZERO;
		row[i].index = id;
	}
}

/* To write to them: all have to be writable. No content changes. */
static void do_pin(uint32_t first, uint32_t nr)
{
	struct iovec range = {
		.iov_base = page_addr(first),
		.iov_len = nr * PAGE,
	};
	const struct page *row = me->pages;
	bool good = true;
	uint32_t i;

	if (!shm->rings)
		return;
	if (ring_fd < 0)
		ring_fd = new_ring();
	else
		do_unpin();
	if (ring_fd < 0) {
		add(&shm->failed, 1);
		return;
	}
	for (i = first; i < first + nr; i++)
		if (dead_page(&row[i]) || !(row[i].prot & PROT_WRITE))
			good = false;
	if (!ring_register(0, &range, 1)) {
		if (!good && !any_flag(&row[first], nr, F_UNKNOWN))
			fail("member %u: %u pages at page %u pinned, not all are writable",
			     my_slot, nr, first);
		return;
	}
	add(&shm->failed, 1);
	if (errno == EFAULT && good && !any_flag(&row[first], nr, F_UNKNOWN))
		fail("member %u: %u writable pages at page %u cannot be pinned",
		     my_slot, nr, first);
}

static void clear_soft_dirty(pid_t pid)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d/clear_refs", pid);
	write_file(path, "4");
}

/* Members */

static void become(uint32_t slot)
{
	my_slot = slot;
	me = &shm->member[slot];
	if (mem_fd >= 0)
		close(mem_fd);
	mem_fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	/* what the parent has pinned is not for the child */
	if (ring_fd >= 0)
		close(ring_fd);
	ring_fd = -1;
	__atomic_store_n(&me->pid, getpid(), __ATOMIC_RELEASE);
}

static bool take_slot(uint32_t slot, uint32_t depth, uint64_t rng)
{
	struct member *m = &shm->member[slot];
	uint32_t unused = 0;

	if (slot >= shm->max_procs ||
	    !__atomic_compare_exchange_n(&m->used, &unused, 1, false,
					 __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
		return false;
	m->depth = depth;
	m->posted = 0;
	m->done = 0;
	m->paused = 0;
	m->rng = rng;
	m->nr_recent = 0;
	m->heap = shm->heap;
	m->heap_pages = 0;
	memset(m->pages, 0, sizeof(m->pages));
	return true;
}

static void release_slot(struct member *m)
{
	/* who sees the slot in use again must not take this for its process */
	__atomic_store_n(&m->pid, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&m->used, 0, __ATOMIC_RELEASE);
}

static void do_fork(uint32_t slot)
{
	double deadline = now() + time_limit(START_SECONDS);
	struct member *child;
	pid_t pid;

	if (me->depth + 1 >= MAX_DEPTH ||
	    !take_slot(slot, me->depth + 1, rnd(&me->rng)))
		return;
	child = &shm->member[slot];
	child->heap = me->heap;
	child->heap_pages = me->heap_pages;
	inherit(child->pages, me->pages);
	pid = fork();
	if (!pid) {
		become(slot);
		add(&shm->generation[me->depth], 1);
		return;
	}
	if (pid < 0) {
		add(&shm->failed, 1);
		release_slot(child);
		return;
	}
	add(&shm->forks, 1);
	while (!shm->race && !__atomic_load_n(&child->pid, __ATOMIC_ACQUIRE) &&
	       now() < deadline)
		usleep(20);
}

/* The next member with the slot may need them before this one has ended. */
static void give_huge_pages_back(void)
{
	if (shm->huge)
		munmap((void *)HUGE_BASE, HUGE_PAGES * PAGE);
}

static void leave(void)
{
	add(&shm->exits, 1);
	give_huge_pages_back();
	if (shm->race)
		release_slot(me);
	_exit(0);
}

static void do_exec(void)
{
	char slot[12], shm_arg[12], file_arg[12];

	snprintf(slot, sizeof(slot), "%u", my_slot);
	snprintf(shm_arg, sizeof(shm_arg), "%d", shm_fd);
	snprintf(file_arg, sizeof(file_arg), "%d", file_fd);
	execl("/proc/self/exe", "cow_context_fuzz", "--member", slot, shm_arg,
	      file_arg, NULL);
	add(&shm->failed, 1);
}

/* Not what another machine has left out, nor what the areas are not for. */
static bool may_execute(const struct op *op)
{
	if (op->code == OP_MMAP_STACK)
		return shm->stacks && area_of(op->a[0]) == IN_STACKS;
	if (!op->a[1])
		return true;
	if (area_of(op->a[0]) == IN_HUGE)
		return huge_allowed(op);
	return me->heap || area_of(op->a[0]) != IN_HEAP;
}

static void execute(struct op *op)
{
	uint32_t *a = op->a;
	struct member *other;
	unsigned long addr = 0;
	pid_t pid = 0;

	current_op = op;
	add(&shm->ops, 1);
	if (op->code == OP_MOVE_PAGES || op->code == OP_REMOTE ||
	    op->code == OP_SPLIT || op->code == OP_IDLE) {
		other = &shm->member[a[3] % MAX_PROCS];
		if (__atomic_load_n(&other->used, __ATOMIC_ACQUIRE))
			pid = other->pid;
		if (!pid)
			return;
		addr = addr_in(other, a[0]);
	}
	if (!may_execute(op))
		return;
	add(&shm->executed[op->code], 1);
	switch (op->code) {
	case OP_FORK:
		do_fork(a[0]);
		break;
	case OP_EXIT:
		leave();
		break;
	case OP_EXEC:
		do_exec();
		break;
	case OP_WRITE:
		write_pages(a[0], a[1], a[2], a[3], a[4]);
		break;
	case OP_VERIFY:
		verify(a[0], a[1], a[2]);
		break;
	case OP_PEEK:
		peek(a[3] % MAX_PROCS, a[0], a[1], a[2]);
		break;
	case OP_MMAP:
		do_mmap(a[0], a[1], a[2], a[3], -1);
		break;
	case OP_MMAP_FILE:
		do_mmap(a[0], a[1], a[2], 0, a[3]);
		break;
	case OP_MUNMAP:
		do_munmap(a[0], a[1]);
		break;
	case OP_MPROTECT:
		do_mprotect(a[0], a[1], a[2]);
		break;
	case OP_RESIZE:
		do_resize(a[0], a[1], a[2]);
		break;
	case OP_MOVE:
		do_move(a[0], a[1], a[2], a[3], false);
		break;
	case OP_DONTUNMAP:
		do_move(a[0], a[1], a[2], a[1], true);
		break;
	case OP_MADVISE:
		do_madvise(a[0], a[1], a[2]);
		break;
	case OP_MLOCK:
		do_mlock(a[0], a[1], true, a[2]);
		break;
	case OP_MUNLOCK:
		do_mlock(a[0], a[1], false, false);
		break;
	case OP_SOFT_DIRTY:
		clear_soft_dirty(getpid());
		break;
	case OP_MOVE_PAGES:
		move_to_node(pid, addr, a[1], a[2]);
		break;
	case OP_REMOTE:
		remote_advice(pid, addr, a[1], a[2]);
		break;
	case OP_UFFD_MOVE:
		do_uffd_move(a[0], a[1], a[2]);
		break;
	case OP_SPLIT:
		split_huge(pid, addr, a[1]);
		break;
	case OP_COMPACT:
		write_file("/proc/sys/vm/compact_memory", "1");
		break;
	case OP_MMAP_STACK:
		do_mmap(a[0], a[1], a[2], MAP_STACKS, -1);
		break;
	case OP_GROW:
		do_grow(a[0], a[2], a[4]);
		break;
	case OP_BRK:
		do_brk(a[0]);
		break;
	case OP_MMAP_HUGE:
		do_mmap_huge(a[0], a[1], a[2], a[4]);
		break;
	case OP_PIN:
		do_pin(a[0], a[1]);
		break;
	case OP_UNPIN:
		do_unpin();
		break;
	case OP_MMAP_HINT:
		do_mmap(a[0], a[1], a[2], a[3] | MAP_AT_HINT, -1);
		break;
	case OP_MMAP_NOREPLACE:
		do_mmap(a[0], a[1], a[2], a[3] | MAP_NOREPLACE, -1);
		break;
	case OP_MAYMOVE:
		do_maymove(a[0], a[1], a[2], a[3]);
		break;
	case OP_SWAPOFF:
		swap_off_and_on();
		break;
	case OP_IDLE:
		if (shm->system)
			touch_idle_bitmap(pid, addr);
		break;
	}
}

/* Which operation comes next? */

struct choice {
	int what;
	uint32_t weight;
};

static const struct choice codes[] = {
	{ OP_FORK, 60 },	{ OP_EXIT, 60 },	{ OP_EXEC, 6 },
	{ OP_WRITE, 240 },	{ OP_VERIFY, 90 },	{ OP_PEEK, 30 },
	{ OP_MMAP, 45 },	{ OP_MMAP_FILE, 12 },	{ OP_MUNMAP, 15 },
	{ OP_MPROTECT, 45 },	{ OP_RESIZE, 25 },	{ OP_MOVE, 80 },
	{ OP_DONTUNMAP, 30 },	{ OP_MADVISE, 200 },	{ OP_MLOCK, 10 },
	{ OP_MUNLOCK, 12 },	{ OP_SOFT_DIRTY, 3 },	{ OP_MOVE_PAGES, 50 },
	{ OP_REMOTE, 30 },	{ OP_UFFD_MOVE, 25 },	{ OP_SPLIT, 15 },
	{ OP_COMPACT, 1 },	{ OP_MMAP_STACK, 15 },	{ OP_GROW, 45 },
	{ OP_BRK, 30 },		{ OP_MMAP_HUGE, 20 },	{ OP_PIN, 15 },
	{ OP_UNPIN, 6 },	{ OP_MMAP_HINT, 20 },	{ OP_MMAP_NOREPLACE, 15 },
	{ OP_MAYMOVE, 40 },	{ OP_SWAPOFF, 2 },	{ OP_IDLE, 15 },
};

#define ALSO(area)		(1 << IN_##area)
#define ALSO_SMALL		(ALSO(STACKS) | ALSO(HEAP))

/* What is not only for the arena. Nothing but brk maps or unmaps the heap. */
static const uint8_t also_in[NR_OPS] = {
	[OP_WRITE]	= ALSO_SMALL | ALSO(HUGE),
	[OP_VERIFY]	= ALSO_SMALL | ALSO(HUGE),
	[OP_PEEK]	= ALSO_SMALL | ALSO(HUGE),
	[OP_MMAP]	= ALSO(STACKS),
	[OP_MUNMAP]	= ALSO(STACKS) | ALSO(HUGE),
	[OP_MPROTECT]	= ALSO_SMALL | ALSO(HUGE),
	[OP_RESIZE]	= ALSO(STACKS),
	[OP_MOVE]	= ALSO(STACKS) | ALSO(HUGE),
	[OP_DONTUNMAP]	= ALSO(STACKS),
	[OP_MADVISE]	= ALSO_SMALL | ALSO(HUGE),
	[OP_MLOCK]	= ALSO_SMALL,
	[OP_MUNLOCK]	= ALSO_SMALL,
	[OP_MOVE_PAGES]	= ALSO_SMALL | ALSO(HUGE),
	[OP_REMOTE]	= ALSO_SMALL,
	[OP_SPLIT]	= ALSO_SMALL,
	[OP_PIN]	= ALSO(HEAP),
	[OP_IDLE]	= ALSO_SMALL,
};

static const struct choice advices[] = {
	{ MADV_DONTNEED, 30 },		{ MADV_DONTNEED_LOCKED, 8 },
	{ MADV_FREE, 25 },		{ MADV_COLD, 10 },
	{ MADV_PAGEOUT, 40 },		{ MADV_HUGEPAGE, 20 },
	{ MADV_NOHUGEPAGE, 5 },		{ MADV_COLLAPSE, 25 },
	{ MADV_MERGEABLE, 15 },		{ MADV_UNMERGEABLE, 8 },
	{ MADV_POPULATE_READ, 6 },	{ MADV_POPULATE_WRITE, 12 },
	{ MADV_GUARD_INSTALL, 15 },	{ MADV_GUARD_REMOVE, 20 },
	{ MADV_WIPEONFORK, 8 },		{ MADV_KEEPONFORK, 10 },
	{ MADV_DONTFORK, 8 },		{ MADV_DOFORK, 12 },
	{ MADV_WILLNEED, 4 },		{ MADV_NORMAL, 8 },
	{ MADV_RANDOM, 5 },		{ MADV_SEQUENTIAL, 4 },
	{ MADV_DONTDUMP, 6 },		{ MADV_DODUMP, 9 },
	{ MADV_SOFT_OFFLINE, 3 },
};

/*
 * Most happens around the border of two page tables, so that operations meet;
 * some of it to huge pages, or to most of the arena.
 */
static void random_range(uint64_t *rng, int area, uint32_t *first,
			 uint32_t *nr)
{
	uint32_t what = below(rng, 100);
	uint32_t from = 0, window = areas[area].nr;

	if (what < 55)
		*nr = 1 + below(rng, 8);
	else if (what < 80)
		*nr = 1 + below(rng, 64);
	else if (what < 88)
		*nr = 1 + below(rng, 600);
	else
		*nr = PMD_PAGES;
	if (*nr <= 64 && below(rng, 100) < 75) {
		from = PMD_PAGES - 80;
		window = 160;
	}
	if (what >= 88 && what < 97)
		*first = below(rng, window / PMD_PAGES) * PMD_PAGES;
	else
		*first = from + below(rng, window - *nr + 1);
	*first += areas[area].first;
}

static int random_area(uint64_t *rng, uint32_t code)
{
	uint32_t r = below(rng, 100);
	int area = r < 62 ? IN_ARENA : r < 75 ? IN_STACKS :
		r < 86 ? IN_HEAP : IN_HUGE;

	if ((area == IN_STACKS && !shm->stacks) ||
	    (area == IN_HEAP && !shm->heap) || (area == IN_HUGE && !shm->huge))
		return IN_ARENA;
	return also_in[code] >> area & 1 ? area : IN_ARENA;
}

static uint32_t random_prot(uint64_t *rng)
{
	uint32_t r = below(rng, 12);

	return r < 8 ? PROT_READ | PROT_WRITE : r < 10 ? PROT_READ : PROT_NONE;
}

static int random_used_slot(uint64_t *rng)
{
	uint32_t i, slot = below(rng, shm->max_procs);

	for (i = 0; i < shm->max_procs; i++) {
		if (__atomic_load_n(&shm->member[slot].used, __ATOMIC_ACQUIRE))
			return slot;
		slot = (slot + 1) % shm->max_procs;
	}
	return -1;
}

static int free_slot(void)
{
	uint32_t i;

	for (i = 0; i < shm->max_procs; i++)
		if (!__atomic_load_n(&shm->member[i].used, __ATOMIC_ACQUIRE))
			return i;
	return -1;
}

static uint32_t nr_members(void)
{
	uint32_t i, n = 0;

	for (i = 0; i < MAX_PROCS; i++)
		n += !!__atomic_load_n(&shm->member[i].used, __ATOMIC_ACQUIRE);
	return n;
}

static int draw(uint64_t *rng, const struct choice *choice, uint32_t nr)
{
	uint32_t i, sum = 0;

	for (i = 0; i < nr; i++)
		sum += choice[i].weight;
	sum = below(rng, sum);
	for (i = 0; sum >= choice[i].weight; i++)
		sum -= choice[i].weight;
	return choice[i].what;
}

static bool barely_mapped(const struct member *m)
{
	uint32_t i, n = 0;

	for (i = 0; i < NR_PAGES; i += 16)
		n += m->pages[i].kind != NONE;
	return n < NR_PAGES / 16 / 3;
}

/* Changes the range to one that can grow. */
static void before_hole(const struct member *m, uint32_t *a)
{
	const struct area *area = &areas[area_of(a[0])];
	uint32_t end = area->first + area->nr;
	const struct page *row = m->pages;
	uint32_t i, start;

	for (i = a[0] + 1; i < end; i++)
		if (row[i].kind == NONE && row[i - 1].kind != NONE)
			break;
	if (i == end)
		return;
	for (start = i - 1; start > area->first && i - start < 8; start--)
		if (!one_vma(&row[start - 1], i - start + 1))
			break;
	a[0] = start;
	a[1] = i - start;
	for (; i < end && i - start < 40 && row[i].kind == NONE; i++)
		;
	a[2] = i - start;
}

/* Changes the range to one that is not mapped, if there is one. */
static void into_hole(const struct member *m, uint32_t *a)
{
	const struct page *row = m->pages;
	uint32_t i, end;

	for (i = a[0]; i < NR_PAGES && row[i].kind != NONE; i++)
		;
	if (i == NR_PAGES)
		return;
	for (end = i; end < NR_PAGES && end - i < a[1]; end++)
		if (row[end].kind != NONE)
			break;
	a[0] = i;
	a[1] = end - i;
}

/* A page below a stack, often where it comes near to what is below. */
static bool below_stack(uint64_t *rng, const struct member *m, uint32_t *a)
{
	const struct page *row = m->pages;
	uint32_t i, k, prev, start;

	start = below(rng, STACK_PAGES);
	for (k = 0; k < STACK_PAGES; k++) {
		i = STACK_FIRST + (start + k) % STACK_PAGES;
		if (i > STACK_FIRST && row[i].flags & F_GROWS &&
		    row[i - 1].kind == NONE)
			break;
	}
	if (k == STACK_PAGES)
		return false;
	for (prev = i; prev > STACK_FIRST && row[prev - 1].kind == NONE;)
		prev--;
	a[0] = prev + below(rng, i - prev);
	if (!below(rng, 3) && prev + STACK_GAP + 2 < i)
		a[0] = prev + STACK_GAP - 2 + below(rng, 4);
	else if (below(rng, 4) && i - a[0] > 8)
		a[0] = i - 1 - below(rng, 8);
	return true;
}

/* Where @op, whose range is random, is allowed for huge pages. */
static bool fit_huge(uint64_t *rng, const struct member *m, struct op *op)
{
	const struct page *row = m->pages;
	uint32_t *a = op->a;
	uint32_t k, start = below(rng, HUGE_PAGES / PMD_PAGES);

	for (k = 0; k < HUGE_PAGES / PMD_PAGES; k++, start++) {
		a[0] = HUGE_FIRST + start % (HUGE_PAGES / PMD_PAGES) *
			PMD_PAGES;
		if (row[a[0]].kind != NONE)
			break;
	}
	if (row[a[0]].kind == NONE)
		return false;
	if (op->code == OP_WRITE || op->code == OP_VERIFY ||
	    op->code == OP_PEEK) {
		if (a[1] > PMD_PAGES)
			a[1] = PMD_PAGES;
		a[0] += below(rng, PMD_PAGES - a[1] + 1);
		return true;
	}
	a[1] = PMD_PAGES;
	if (op->code == OP_MADVISE && below(rng, 2))
		op->code = below(rng, 3) ? OP_MOVE : OP_MUNMAP;
	if (op->code == OP_MOVE_PAGES) {
		a[1] = 1;
		return true;
	}
	if (op->code == OP_MADVISE)
		a[2] = below(rng, 8) ? MADV_DONTNEED : MADV_DONTFORK;
	if ((op->code == OP_MUNMAP || a[2] == MADV_DONTNEED) && below(rng, 2))
		return true;
	if (!whole_mapping(row, a[0], a[1])) {
		a[1] += PMD_PAGES;
		if (a[0] > HUGE_FIRST &&
		    row[a[0] - 1].index == row[a[0]].index)
			a[0] -= PMD_PAGES;
	}
	if (op->code == OP_MOVE) {
		/* to the other half, or so that they overlap */
		a[3] = a[1];
		a[2] = HUGE_FIRST + PMD_PAGES *
			below(rng, (HUGE_PAGES - a[1]) / PMD_PAGES + 1);
		if (below(rng, 4))
			a[2] = a[0] < HUGE_FIRST + HUGE_PAGES / 2 ?
				ALL_PAGES - a[1] : HUGE_FIRST;
	}
	return true;
}

/* One page to be moved away from. */
static bool find_written(const struct member *m, uint32_t *a)
{
	const struct area *area = &areas[area_of(a[0])];
	uint32_t i;

	for (i = a[0]; i < area->first + area->nr; i++)
		if (m->pages[i].kind == VALUE)
			break;
	a[0] = i;
	a[1] = 1;
	return shm->system && !shm->offline && i < area->first + area->nr;
}

/* An operation for @who; false when this one does not make sense. */
static bool generate(uint64_t *rng, uint32_t who, struct op *op)
{
	struct member *m = &shm->member[who];
	const struct area *area;
	uint32_t *a = op->a;
	int slot;

	memset(op, 0, sizeof(*op));
	op->who = who;
	if (barely_mapped(m) && below(rng, 2)) {
		op->code = OP_MMAP;
		a[0] = below(rng, 2) * PMD_PAGES;
		a[1] = NR_PAGES - a[0];
		a[2] = PROT_READ | PROT_WRITE;
		a[3] = below(rng, 4);
		return true;
	}
	op->code = draw(rng, codes, ARRAY_SIZE(codes));
	slot = random_area(rng, op->code);
	random_range(rng, slot, &a[0], &a[1]);
	area = &areas[slot];
	if (slot == IN_HUGE && (op->code == OP_MUNMAP || op->code == OP_MOVE ||
				op->code == OP_MADVISE))
		return fit_huge(rng, m, op);
	if (slot == IN_HUGE && !fit_huge(rng, m, op))
		return false;
	switch (op->code) {
	case OP_FORK:
		slot = free_slot();
		if (slot < 0 || m->depth + 1 >= MAX_DEPTH)
			return false;
		memset(a, 0, sizeof(op->a));
		a[0] = slot;
		break;
	case OP_EXIT:
		if (nr_members() < 3 + below(rng, shm->max_procs))
			return false;
		fallthrough;
	case OP_EXEC:
	case OP_SOFT_DIRTY:
		memset(a, 0, sizeof(op->a));
		break;
	case OP_WRITE:
		a[2] = below(rng, 8);
		a[2] = a[2] < 6 ? WRITE_DIRECT : a[2] - 5;
		a[3] = below(rng, 4) ? 1 : 1 + below(rng, 7);
		a[4] = __atomic_add_fetch(&shm->seq, 1, __ATOMIC_RELAXED);
		if (!below(rng, 4))
			a[4] = 1U << 31 | below(rng, 4);
		break;
	case OP_VERIFY:
		if (!below(rng, 8)) {
			a[0] = 0;
			a[1] = ALL_PAGES;
		}
		a[2] = below(rng, VERIFY_FORCED + 1);
		if (a[2] == VERIFY_PINNED && !shm->pins)
			a[2] = VERIFY_DIRECT;
		break;
	case OP_PEEK:
	case OP_MOVE_PAGES:
	case OP_REMOTE:
	case OP_SPLIT:
	case OP_IDLE:
		slot = random_used_slot(rng);
		if (slot < 0 || (!shm->system && (op->code == OP_SPLIT ||
						  op->code == OP_IDLE)))
			return false;
		a[3] = slot;
		if (op->code == OP_PEEK)
			a[2] = shm->pins;
		else if (op->code == OP_MOVE_PAGES)
			a[2] = below(rng, shm->nodes);
		else if (op->code == OP_REMOTE)
			a[2] = below(rng, 4) ? MADV_PAGEOUT :
				below(rng, 2) ? MADV_COLLAPSE : MADV_COLD;
		break;
	case OP_MMAP:
		/* what limits a stack */
		if (slot == IN_STACKS) {
			a[1] = 1 + below(rng, 4);
			if (!below_stack(rng, m, a) ||
			    a[0] + a[1] > area->first + area->nr)
				return false;
		}
		a[2] = random_prot(rng);
		a[3] = below(rng, 4);
		break;
	case OP_MMAP_HINT:
	case OP_MMAP_NOREPLACE:
		if (below(rng, 4))
			into_hole(m, a);
		a[2] = random_prot(rng);
		a[3] = below(rng, 4);
		break;
	case OP_MMAP_STACK:
		if (!shm->stacks)
			return false;
		a[1] = 1 + below(rng, 8);
		a[0] = STACK_FIRST + PMD_PAGES - 80 + below(rng, 160);
		if (below(rng, 2))
			a[0] += STACK_GAP;
		a[2] = random_prot(rng);
		break;
	case OP_GROW:
		memset(a, 0, sizeof(op->a));
		if (!below_stack(rng, m, a))
			return false;
		a[2] = !below(rng, 4);
		a[4] = __atomic_add_fetch(&shm->seq, 1, __ATOMIC_RELAXED);
		break;
	case OP_BRK:
		if (!m->heap)
			return false;
		slot = below(rng, 4);
		memset(a, 0, sizeof(op->a));
		if (slot < 2)
			a[0] = m->heap_pages + below(rng, 33) - 16;
		else if (slot < 3)
			a[0] = PMD_PAGES - 80 + below(rng, 160);
		else
			a[0] = below(rng, HEAP_PAGES + 1);
		return a[0] <= HEAP_PAGES;
	case OP_MMAP_HUGE:
		if (!shm->huge)
			return false;
		a[1] = (1 + below(rng, HUGE_MAX)) * PMD_PAGES;
		a[0] = HUGE_FIRST + PMD_PAGES *
			below(rng, (HUGE_PAGES - a[1]) / PMD_PAGES + 1);
		a[2] = random_prot(rng);
		a[4] = __atomic_add_fetch(&shm->seq, 1, __ATOMIC_RELAXED);
		break;
	case OP_PIN:
		return shm->rings;
	case OP_UNPIN:
		memset(a, 0, sizeof(op->a));
		return shm->rings;
	case OP_MMAP_FILE:
		a[2] = random_prot(rng);
		a[3] = below(rng, FILE_PAGES - 100);
		break;
	case OP_MPROTECT:
		a[2] = random_prot(rng);
		break;
	case OP_RESIZE:
		a[2] = 1 + below(rng, a[1] * 2);
		if (below(rng, 2))
			before_hole(m, a);
		if (a[2] == a[1] || a[0] + a[2] > area->first + area->nr)
			return false;
		break;
	case OP_MOVE:
		a[3] = a[1];
		if (!below(rng, 4))
			a[3] = 1 + below(rng, a[1] * 2);
		if (a[3] > area->nr)
			return false;
		a[2] = area->first + below(rng, area->nr - a[3] + 1);
		if (a[3] == PMD_PAGES && below(rng, 4))
			a[2] -= a[2] % PMD_PAGES;
		break;
	case OP_MAYMOVE:
		a[3] = 1 + below(rng, a[1] * 2);
		if (below(rng, 4))
			a[3] = a[1] + 1 + below(rng, 16);
		a[2] = below(rng, NR_PAGES - a[3] + 1);
		if (!below(rng, 16))
			a[1] = 0;
		/* or it grows in place, out of the arena */
		return a[0] + a[3] <= NR_PAGES;
	case OP_UFFD_MOVE:
		/* within one mapping each, and nothing shared */
		if (below(rng, 4))
			a[1] = 1 + below(rng, a[1] < 8 ? a[1] : 8);
		fallthrough;
	case OP_DONTUNMAP:
		a[2] = area->first + below(rng, area->nr - a[1] + 1);
		if (a[1] == PMD_PAGES && below(rng, 4))
			a[2] -= a[2] % PMD_PAGES;
		break;
	case OP_MADVISE:
		a[2] = draw(rng, advices, ARRAY_SIZE(advices));
		if (a[2] == MADV_FREE && shm->pins)
			a[2] = MADV_DONTNEED;
		if (!shm->guards && (a[2] == MADV_GUARD_INSTALL ||
				     a[2] == MADV_GUARD_REMOVE))
			return false;
		if (a[2] == MADV_SOFT_OFFLINE)
			return find_written(m, a);
		break;
	case OP_MLOCK:
		a[2] = below(rng, 2);
		break;
	case OP_SWAPOFF:
		/* racing, the disturbers do that */
		if (shm->race)
			return false;
		fallthrough;
	case OP_COMPACT:
		if (!shm->system)
			return false;
		memset(a, 0, sizeof(op->a));
		break;
	}
	return true;
}

static bool stopped(void)
{
	return __atomic_load_n(&shm->stop, __ATOMIC_ACQUIRE);
}

static void acknowledge(struct member *m)
{
	__atomic_store_n(&m->done, m->posted, __ATOMIC_RELEASE);
	futex(&m->done, FUTEX_WAKE, INT_MAX, 0);
}

static void execute_recorded(struct op *op)
{
	me->recent[me->nr_recent % NR_RECENT] = *op;
	me->nr_recent++;
	get_on();
	execute(op);
}

/* Who rests has verified all of its pages before. */
static void race_round(void)
{
	uint32_t pause = __atomic_load_n(&shm->pause, __ATOMIC_ACQUIRE);
	struct op op = {
		.who = my_slot,
		.code = OP_VERIFY,
		.a = { 0, ALL_PAGES, VERIFY_PRESENT },
	};

	if (pause && me->paused == pause) {
		usleep(1000);
	} else if (pause) {
		execute_recorded(&op);
		__atomic_store_n(&me->paused, pause, __ATOMIC_RELEASE);
	} else if (generate(&me->rng, my_slot, &op)) {
		execute_recorded(&op);
	}
}

static void member_loop(void)
{
	struct member *m;
	uint32_t done;

	while (!stopped()) {
		if (kill(shm->conductor, 0))
			_exit(1);
		if (shm->race) {
			race_round();
			continue;
		}
		m = me;
		done = m->done;
		if (__atomic_load_n(&m->posted, __ATOMIC_ACQUIRE) == done) {
			futex(&m->posted, FUTEX_WAIT, done, 1);
			continue;
		}
		execute(&m->op);
		if (me == m)
			acknowledge(m);
	}
	give_huge_pages_back();
	_exit(0);
}

/* Disturbers: what they do to the members changes no content. */

static void read_smaps(pid_t pid)
{
	char path[40], buffer[4096];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	while (read(fd, buffer, sizeof(buffer)) > 0)
		;
	close(fd);
}

/* Faults in what is not there. */
static void read_pages(pid_t pid, unsigned long addr, uint32_t nr)
{
	int fd = open_mem(pid);
	uint64_t words[4];

	for (; fd >= 0 && nr; nr--, addr += PAGE) {
		if (shm->pins)
			pinned_words(pid, addr, words);
		else
			forced_words(fd, addr, words);
	}
	if (fd >= 0)
		close(fd);
}

static void on_alarm(int sig)
{
	(void)sig;
}

/*
 * Takes a block of memory away, which moves all that is in it, and gives it
 * back. What is pinned holds that up until a signal arrives; one that arrives
 * while the write only waits for another restarts it.
 */
static void offline_block(uint64_t *rng)
{
	struct itimerval timer = { { 1, 0 }, { time_limit(OFFLINE_SECONDS), 0 } };
	struct sigaction sa = { .sa_handler = on_alarm };
	char path[60];
	bool away;
	int tries;

	snprintf(path, sizeof(path), "/sys/devices/system/memory/memory%u/state",
		 below(rng, NR_BLOCKS));
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
	away = !write_file(path, "offline");
	timer = (struct itimerval) {};
	setitimer(ITIMER_REAL, &timer, NULL);
	if (!away)
		return;
	add(&shm->offlined, 1);
	for (tries = 0; write_file(path, "online"); tries++) {
		if (tries == 20) {
			fail("%s does not come back: %s", path,
			     strerror(errno));
			break;
		}
		usleep(100000);
	}
}

static void disturb_system(uint64_t *rng, pid_t pid, unsigned long addr,
			   uint32_t nr)
{
	uint32_t r = below(rng, 1000);

	if (r < 400)
		split_huge(pid, addr, nr);
	else if (r < 950)
		touch_idle_bitmap(pid, addr);
	else if (r < 995)
		write_file("/proc/sys/vm/compact_memory", "1");
	else
		swap_off_and_on();
}

static void disturb(uint64_t *rng)
{
	int slot = random_used_slot(rng);
	pid_t pid = slot < 0 ? 0 : shm->member[slot].pid;
	uint32_t first, nr, r = below(rng, 100);
	unsigned long addr;
	int area = IN_ARENA;

	if (!pid || shm->pause) {
		usleep(1000);
		return;
	}
	/* reads make a stack grow; huge pages are few */
	if ((r < 65 || r >= 84) && !below(rng, 4))
		area = below(rng, 2) ? IN_STACKS : IN_HEAP;
	random_range(rng, area, &first, &nr);
	addr = addr_in(&shm->member[slot], first);
	add(&shm->disturbed, 1);
	if (shm->offline && !below(rng, 200))
		offline_block(rng);
	else if (r < 40)
		move_to_node(pid, addr, nr, below(rng, shm->nodes));
	else if (r < 55)
		remote_advice(pid, addr, nr, MADV_PAGEOUT);
	else if (r < 60)
		remote_advice(pid, addr, nr, MADV_COLD);
	else if (r < 65)
		remote_advice(pid, addr, nr, MADV_COLLAPSE);
	else if (r < 80)
		read_pages(pid, addr, nr);
	else if (r < 82)
		clear_soft_dirty(pid);
	else if (r < 84)
		read_smaps(pid);
	else if (shm->system)
		disturb_system(rng, pid, addr, nr);
}

static void start_disturber(uint64_t rng)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork");
	if (pid)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	while (!stopped())
		disturb(&rng);
	_exit(0);
}

/* Disturbers end on their own; a swapoff may take a while. */
static void wait_for_children(void)
{
	double deadline = now() + time_limit(REPLY_SECONDS);
	pid_t pid;

	do {
		pid = waitpid(-1, NULL, WNOHANG);
		usleep(1000);
	} while ((pid >= 0 || errno == EINTR) && now() < deadline);
	if (pid >= 0)
		fail("a disturber does not end");
}

/* The conductor */

static uint32_t shrink_seconds = 60;
static uint32_t epoch_ops = 4000;
static bool unresponsive;

static bool gone(pid_t pid)
{
	return kill(pid, 0) && errno == ESRCH;
}

static void spawn(uint32_t slot, uint64_t rng)
{
	double deadline = now() + time_limit(START_SECONDS);
	struct member *m = &shm->member[slot];
	pid_t pid;

	if (!take_slot(slot, 0, rng))
		return;
	pid = fork();
	if (pid < 0)
		die("fork");
	if (!pid) {
		become(slot);
		member_loop();
	}
	/* racing, it may have left again, and all others after it */
	while (!shm->race && !__atomic_load_n(&m->pid, __ATOMIC_ACQUIRE)) {
		if (now() > deadline) {
			errno = ETIMEDOUT;
			die("a new member does not start");
		}
		usleep(20);
	}
}

static void print_file(const char *path, int lines)
{
	char line[256];
	FILE *f = fopen(path, "re");

	while (f && lines-- && fgets(line, sizeof(line), f))
		printf("# %s", line);
	if (f)
		fclose(f);
}

/* Where it sleeps; if it runs, the kernel's log says where. */
static void show_stack(pid_t pid)
{
	char path[40];

	snprintf(path, sizeof(path), "/proc/%d/stack", pid);
	print_file(path, 30);
	if (shm->system)
		write_file("/proc/sysrq-trigger", "l");
}

/* Lets @m execute @op and waits for it. */
static void tell(struct member *m, const struct op *op)
{
	double start = now(), since = start;
	uint32_t progress, seen = 0;
	pid_t pid = m->pid;

	m->op = *op;
	__atomic_store_n(&m->posted, m->posted + 1, __ATOMIC_RELEASE);
	futex(&m->posted, FUTEX_WAKE, INT_MAX, 0);
	while (__atomic_load_n(&m->done, __ATOMIC_ACQUIRE) != m->posted) {
		if (op->code == OP_EXIT)
			usleep(50);
		else
			futex(&m->done, FUTEX_WAIT, m->posted - 1, 0.2);
		if (gone(pid)) {
			if (op->code != OP_EXIT)
				fail("member %u (%d) has died",
				     (uint32_t)(m - shm->member), pid);
			release_slot(m);
			return;
		}
		if (failed() && now() > start + 5)
			return;
		progress = __atomic_load_n(&m->progress, __ATOMIC_RELAXED);
		if (progress != seen) {
			seen = progress;
			since = now();
		} else if (now() > since + time_limit(REPLY_SECONDS)) {
			unresponsive = true;
			fail("member %u (%d) does not answer for %.0f s",
			     (uint32_t)(m - shm->member), pid,
			     now() - since);
			show_stack(pid);
			return;
		}
	}
}

static void tell_op(const struct op *op)
{
	struct member *m;

	if (op->who >= MAX_PROCS || op->code >= NR_OPS)
		return;
	my_slot = op->who;
	current_op = (struct op *)op;
	m = &shm->member[op->who];
	if (op->code == OP_SPAWN)
		spawn(op->who, 0);
	else if (m->used)
		tell(m, op);
}

static void end_family(void)
{
	double start = now();
	uint32_t i, left;
	struct member *m;
	pid_t pid;

	__atomic_store_n(&shm->stop, 1, __ATOMIC_RELEASE);
	do {
		left = 0;
		for (i = 0; i < MAX_PROCS; i++) {
			m = &shm->member[i];
			futex(&m->posted, FUTEX_WAKE, INT_MAX, 0);
			if (!m->used)
				continue;
			pid = __atomic_load_n(&m->pid, __ATOMIC_ACQUIRE);
			if (pid && gone(pid)) {
				release_slot(m);
				continue;
			}
			left++;
			if (pid && now() > start + time_limit(10))
				kill(pid, SIGKILL);
		}
		usleep(left ? 500 : 0);
	} while (left && now() < start + time_limit(REPLY_SECONDS));
	if (left) {
		unresponsive = true;
		fail("%u members do not end", left);
	}
}

static void new_family(void)
{
	memset(&shm->failure, 0, sizeof(shm->failure));
	shm->stop = 0;
	shm->pause = 0;
	shm->soft_left = SOFT_FAMILY;
}

/* One number of a file of "name: value" lines; -1 when there is none. */
static long read_number(const char *path, const char *name)
{
	char line[256];
	long value = -1;
	size_t len = strlen(name);
	FILE *f = fopen(path, "re");

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, name, len) &&
		    (line[len] == ':' || line[len] == ' '))
			value = atol(line + len + 1);
	if (f)
		fclose(f);
	return value;
}

static long sysfs_read(const char *path)
{
	long value = 0;
	FILE *f = fopen(path, "re");

	if (f) {
		if (fscanf(f, "%ld", &value) != 1)
			value = 0;
		fclose(f);
	}
	return value;
}

static long ksm_read(const char *name)
{
	char path[60];

	snprintf(path, sizeof(path), "/sys/kernel/mm/ksm/%s", name);
	return sysfs_read(path);
}

#define COW_DIR			"/sys/kernel/debug/cow_context/"

static long stats_before[2];

/* The kernel's own opinion, where it has one. */
static void check_kernel(bool first)
{
	static const char * const names[] = { "missed", "unfindable" };
	long value;
	int i;

	for (i = 0; i < 2; i++) {
		value = read_number(COW_DIR "stats", names[i]);
		if (value > 0 && value > stats_before[i])
			fail("%sstats: %s: %ld%s", COW_DIR, names[i], value,
			     first ? " before the first operation" : "");
		stats_before[i] = value;
	}
	value = read_number(COW_DIR "validate", "wrong");
	if (value > 0) {
		fail("%svalidate: wrong: %ld", COW_DIR, value);
		print_file(COW_DIR "validate", 20);
	}
	/* the kernel does not count what it has merged */
	value = ksm_read("pages_sharing");
	if (value > shm->ksm_sharing)
		shm->ksm_sharing = value;
}

static void verify_all(void)
{
	struct op op = { .code = OP_VERIFY, .a = { 0, ALL_PAGES } };

	for (op.who = 0; op.who < MAX_PROCS && !failed(); op.who++)
		tell_op(&op);
}

static void report_failure(const char *what, uint64_t seed, long nr)
{
	struct failure *f = &shm->failure;
	int i;

	for (i = 0; i < 1000 && !f->ready; i++)
		usleep(1000);
	printf("# %s: seed %llu operation %ld: %u %s %u %u %u %u %u: %s\n",
	       what, (unsigned long long)seed, nr, f->who,
	       op_names[f->op.code], f->op.a[0], f->op.a[1], f->op.a[2],
	       f->op.a[3], f->op.a[4], f->text);
	fflush(stdout);
}

/* A new family executes @nr operations: does it fail? */
static bool replay(const struct op *ops, uint32_t nr, uint32_t *failed_at)
{
	static uint32_t disturbers;
	uint32_t i;
	bool ret;

	new_family();
	for (i = 0; options.disturb && i < 2; i++)
		start_disturber(options.seed + disturbers++);
	for (i = 0; i < nr && !failed(); i++)
		tell_op(&ops[i]);
	if (failed_at)
		*failed_at = i;
	if (!failed())
		verify_all();
	shm->pause = 1;
	if (!failed())
		check_kernel(false);
	ret = failed();
	end_family();
	if (options.disturb)
		wait_for_children();
	return ret || failed();
}

static void print_op(FILE *f, const struct op *op)
{
	fprintf(f, "%u %s %u %u %u %u %u\n", op->who, op_names[op->code],
		op->a[0], op->a[1], op->a[2], op->a[3], op->a[4]);
}

/* With what it has to be repeated, too. */
static void save(const struct op *ops, uint32_t nr, uint64_t seed,
		 const char *text)
{
	FILE *f = fopen(FAIL_FILE, "we");
	uint32_t i;

	if (!f) {
		printf("# cannot write ./%s: %s\n", FAIL_FILE, strerror(errno));
		return;
	}
	fprintf(f, "# seed %llu: %s\n", (unsigned long long)seed, text);
	fprintf(f, ARGS_LINE " --max-procs %u%s%s\n", shm->max_procs,
		options.system ? " --system" : "",
		options.self_test ? " --self-test" : "");
	for (i = 0; i < nr; i++)
		print_op(f, &ops[i]);
	fclose(f);
}

/* Is @trial enough to fail?  Then it replaces what is in @ops. */
static bool accept_trial(struct op *ops, uint32_t *nr, const struct op *trial,
			 uint32_t n)
{
	if (!replay(trial, n, NULL))
		return false;
	memcpy(ops, trial, n * sizeof(*ops));
	*nr = n;
	return true;
}

static bool shrunk_enough(double deadline)
{
	return now() > deadline || unresponsive;
}

/* All that single members do. */
static void drop_members(struct op *ops, uint32_t *nr, struct op *trial,
			 double deadline)
{
	uint32_t who, i, n;

	for (who = 0; who < MAX_PROCS && !shrunk_enough(deadline); who++) {
		for (i = n = 0; i < *nr; i++)
			if (ops[i].who != who)
				trial[n++] = ops[i];
		if (n < *nr)
			accept_trial(ops, nr, trial, n);
	}
}

/* Chunk by chunk. */
static void drop_chunks(struct op *ops, uint32_t *nr, struct op *trial,
			uint32_t chunk, double deadline)
{
	uint32_t start = 0, n;

	while (start < *nr && !shrunk_enough(deadline)) {
		n = *nr - start < chunk ? *nr - start : chunk;
		memcpy(trial, ops, start * sizeof(*ops));
		memcpy(trial + start, ops + start + n,
		       (*nr - start - n) * sizeof(*ops));
		if (!accept_trial(ops, nr, trial, *nr - n))
			start += n;
	}
}

/* Forks after which the parent might as well do what the child does. */
static void drop_forks(struct op *ops, uint32_t *nr, struct op *trial,
		       double deadline)
{
	uint32_t i = 0, k;

	while (i < *nr && !shrunk_enough(deadline)) {
		if (ops[i].code != OP_FORK) {
			i++;
			continue;
		}
		memcpy(trial, ops, i * sizeof(*ops));
		for (k = i + 1; k < *nr; k++) {
			trial[k - 1] = ops[k];
			if (ops[k].who == ops[i].a[0])
				trial[k - 1].who = ops[i].who;
		}
		if (!accept_trial(ops, nr, trial, *nr - 1))
			i++;
	}
}

/* Leaves out what is not needed to fail; returns how much is left. */
static uint32_t shrink(struct op *ops, uint32_t nr)
{
	struct op *trial = malloc(nr * sizeof(*ops));
	double deadline = now() + time_limit(shrink_seconds);
	uint32_t chunk, before;

	if (!trial)
		return nr;
	drop_members(ops, &nr, trial, deadline);
	for (chunk = (nr + 1) / 2; chunk > 1; chunk /= 2)
		drop_chunks(ops, &nr, trial, chunk, deadline);
	do {
		before = nr;
		drop_chunks(ops, &nr, trial, 1, deadline);
		drop_forks(ops, &nr, trial, deadline);
	} while (nr < before);
	free(trial);
	return nr;
}

/* Returns the number of operations left. */
static uint32_t shrink_and_save(struct op *ops, uint32_t nr, uint64_t seed)
{
	char text[sizeof(shm->failure.text)];
	uint32_t i, failed_at;

	memcpy(text, shm->failure.text, sizeof(text));
	save(ops, nr, seed, text);
	if (unresponsive || !shrink_seconds) {
		printf("# not shrunk, %u operations in ./%s\n", nr, FAIL_FILE);
		return nr;
	}
	if (!replay(ops, nr, NULL)) {
		printf("# not reproduced; %u operations in ./%s\n", nr,
		       FAIL_FILE);
		return nr;
	}
	nr = shrink(ops, nr);
	if (!unresponsive && replay(ops, nr, &failed_at)) {
		report_failure("shrunk", seed, failed_at);
		memcpy(text, shm->failure.text, sizeof(text));
	}
	save(ops, nr, seed, text);
	printf("# %u operations are left, also in ./%s:\n", nr, FAIL_FILE);
	for (i = 0; i < nr; i++) {
		printf("#   ");
		print_op(stdout, &ops[i]);
	}
	fflush(stdout);
	return nr;
}

/* Chooses the next operation of the whole family. */
static void choose(uint64_t *rng, struct op *op)
{
	int who = random_used_slot(rng);

	if (who < 0 || (!below(rng, 200) && free_slot() >= 0)) {
		memset(op, 0, sizeof(*op));
		op->code = OP_SPAWN;
		op->who = free_slot();
		return;
	}
	while (!generate(rng, who, op))
		;
}

/*
 * One operation after the other; now and then with a new family, so that not
 * too many operations are recorded. Returns what is left of a failing sequence.
 */
static uint32_t run_ordered(uint64_t seed, double end, uint64_t max_ops)
{
	struct op *ops = malloc(epoch_ops * sizeof(*ops));
	uint32_t n = 0, left;
	uint64_t total = 0;
	uint64_t rng = seed;

	if (!ops)
		die("malloc");
	while (now() < end && total < max_ops && !failed()) {
		new_family();
		shm->seq = 0;
		shm->pins = below(&rng, 2);
		for (n = 0; n < epoch_ops && total < max_ops; n++, total++) {
			if (now() > end || failed())
				break;
			choose(&rng, &ops[n]);
			tell_op(&ops[n]);
			if (n % CHECK_OPS == CHECK_OPS - 1)
				check_kernel(false);
		}
		if (!failed())
			verify_all();
		if (!failed())
			check_kernel(false);
		end_family();
	}
	if (!failed()) {
		free(ops);
		return 0;
	}
	report_failure("failed", seed, total);
	left = shrink_and_save(ops, n, seed);
	shm->failure.taken = 1;
	free(ops);
	return left;
}

/* "who operation arguments", one a line; # starts a comment. */
static struct op *load(const char *path, uint32_t *nr)
{
	FILE *f = fopen(path, "re");
	struct op *ops = NULL, *op;
	char line[256], name[32];
	uint32_t code;

	if (!f)
		die(path);
	*nr = 0;
	while (fgets(line, sizeof(line), f)) {
		if (line[0] == '#' || line[0] == '\n')
			continue;
		ops = realloc(ops, (*nr + 1) * sizeof(*ops));
		if (!ops)
			die("realloc");
		op = &ops[*nr];
		memset(op, 0, sizeof(*op));
		if (sscanf(line, "%u %31s %u %u %u %u %u", &op->who, name,
			   &op->a[0], &op->a[1], &op->a[2], &op->a[3],
			   &op->a[4]) < 2) {
			fprintf(stderr, "%s: not understood: %s", path, line);
			exit(2);
		}
		for (code = 0; code < NR_OPS; code++)
			if (!strcmp(name, op_names[code]))
				break;
		if (code == NR_OPS || op->who >= MAX_PROCS) {
			fprintf(stderr, "%s: not understood: %s", path, line);
			exit(2);
		}
		op->code = code;
		(*nr)++;
	}
	fclose(f);
	return ops;
}

/* What follows is about the member, and what it did last. */
static void talk_of(uint32_t slot)
{
	struct member *m = &shm->member[slot];

	my_slot = slot;
	current_op = m->nr_recent ?
		&m->recent[(m->nr_recent - 1) % NR_RECENT] : NULL;
}

static void check_deaths(void)
{
	uint32_t i;

	for (i = 0; i < MAX_PROCS; i++) {
		struct member *m = &shm->member[i];
		pid_t pid = __atomic_load_n(&m->pid, __ATOMIC_ACQUIRE);

		if (!m->used || !pid || !gone(pid))
			continue;
		if (m->used && m->pid == pid && !failed()) {
			talk_of(i);
			fail("member %u (%d) has died", i, pid);
		}
	}
}

static uint32_t rounds_checked, rounds_unchecked;

/*
 * Lets all members verify their pages and rest, to ask the kernel whether all
 * is as it should be.
 */
static void check_paused(void)
{
	uint32_t i, busy, round = rounds_checked + rounds_unchecked + 1;
	double deadline = now() + time_limit(REST_SECONDS);
	const struct member *m;

	__atomic_store_n(&shm->pause, round, __ATOMIC_RELEASE);
	do {
		usleep(1000);
		check_deaths();
		for (i = busy = 0; i < MAX_PROCS; i++) {
			m = &shm->member[i];
			busy += __atomic_load_n(&m->used, __ATOMIC_ACQUIRE) &&
				__atomic_load_n(&m->paused,
						__ATOMIC_ACQUIRE) != round;
		}
	} while (busy && now() < deadline && !failed());
	if (busy) {
		rounds_unchecked++;
	} else {
		check_kernel(false);
		rounds_checked++;
	}
	__atomic_store_n(&shm->pause, 0, __ATOMIC_RELEASE);
	if (!rounds_checked && rounds_unchecked > 1)
		fail("%u rounds, and in none all members came to rest within %.0f s",
		     rounds_unchecked, time_limit(REST_SECONDS));
}

/* Members that neither rest nor get on sleep on something that never comes. */
static void check_progress(void)
{
	static uint32_t seen[MAX_PROCS];
	static double since[MAX_PROCS];
	uint32_t i;

	for (i = 0; i < MAX_PROCS; i++) {
		struct member *m = &shm->member[i];

		if (!m->used || shm->pause || m->progress != seen[i] ||
		    !since[i]) {
			seen[i] = m->progress;
			since[i] = now();
		} else if (now() > since[i] + time_limit(REPLY_SECONDS) &&
			   !failed()) {
			talk_of(i);
			fail("member %u (%d) does not get on for %.0f s", i,
			     m->pid, now() - since[i]);
			show_stack(m->pid);
		}
	}
}

static void print_recent(const struct member *m)
{
	uint32_t n = m->nr_recent < NR_RECENT ? m->nr_recent : NR_RECENT;

	if (shm->failure.op.code == OP_SPAWN || !n)
		return;
	printf("# the last %u operations of that member:\n", n);
	for (; n; n--) {
		printf("#   ");
		print_op(stdout, &m->recent[(m->nr_recent - n) % NR_RECENT]);
	}
}

static void run_race(uint64_t seed, double end, uint64_t max_ops)
{
	double next_check = now() + 2, checked;
	uint64_t rng = seed;
	int slot;

	new_family();
	shm->race = 1;
	shm->pins = below(&rng, 2);
	start_disturber(rnd(&rng));
	start_disturber(rnd(&rng));
	while (now() < end && shm->ops < max_ops && !failed()) {
		slot = free_slot();
		if (slot >= 0 && (nr_members() < 3 || !below(&rng, 500)))
			spawn(slot, rnd(&rng));
		usleep(2000);
		check_deaths();
		check_progress();
		if (now() > next_check) {
			checked = now();
			check_paused();
			next_check = now() + 2 + 10 * (now() - checked);
		}
	}
	if (!failed())
		check_paused();
	end_family();
	wait_for_children();
	if (!failed())
		check_kernel(false);
	printf("# rounds with all verified and the kernel checked %u, without %u\n",
	       rounds_checked, rounds_unchecked);
	if (failed()) {
		report_failure("failed", seed, shm->ops);
		print_recent(&shm->member[shm->failure.who]);
	}
}

/* Counters and the rest */

#define VMSTAT			"/proc/vmstat"
#define KHUGEPAGED		"/sys/kernel/mm/transparent_hugepage/khugepaged/"

/*
 * A line of a file, or a file of a directory. Those of contexts: all of them in
 * one kernel, some in another, none without contexts.
 */
static const struct counter {
	const char *path;
	const char *name;
} counters[] = {
	{ VMSTAT, "pgmigrate_success" },	{ VMSTAT, "thp_migration_success" },
	{ VMSTAT, "compact_isolated" },		{ VMSTAT, "pswpin" },
	{ VMSTAT, "pswpout" },			{ VMSTAT, "thp_split_page" },
	{ VMSTAT, "thp_split_pmd" },		{ VMSTAT, "thp_collapse_alloc" },
	{ KHUGEPAGED, "pages_collapsed" },	{ VMSTAT, "cow_ksm" },
	{ VMSTAT, "ksm_swpin_copy" },		{ COW_DIR "stats", "walks" },
	{ COW_DIR "stats", "tree_walks" },	{ COW_DIR "stats", "missed" },
	{ COW_DIR "stats", "unfindable" },
};

#define NR_COUNTERS		ARRAY_SIZE(counters)

static void read_counters(long *values)
{
	const struct counter *c;
	char path[100];
	uint32_t i;

	for (i = 0; i < NR_COUNTERS; i++) {
		c = &counters[i];
		if (c->path[strlen(c->path) - 1] != '/') {
			values[i] = read_number(c->path, c->name);
			continue;
		}
		snprintf(path, sizeof(path), "%s%s", c->path, c->name);
		values[i] = access(path, R_OK) ? -1 : sysfs_read(path);
	}
}

static void print_counters(const long *before)
{
	long after[NR_COUNTERS];
	uint32_t i;

	printf("# executed:");
	for (i = 0; i < NR_OPS; i++)
		if (shm->executed[i])
			printf(" %s %llu", op_names[i],
			       (unsigned long long)shm->executed[i]);
	printf("\n# forked to generation");
	for (i = 1; i < MAX_DEPTH; i++)
		printf(" %u: %llu", i, (unsigned long long)shm->generation[i]);
	read_counters(after);
	printf("\n# ops %llu failed %llu forks %llu exits %llu execs %llu",
	       (unsigned long long)shm->ops, (unsigned long long)shm->failed,
	       (unsigned long long)shm->forks, (unsigned long long)shm->exits,
	       (unsigned long long)shm->execs);
	printf(" verified %llu disturbed %llu offlined %llu soft_offlined %llu",
	       (unsigned long long)shm->verified,
	       (unsigned long long)shm->disturbed,
	       (unsigned long long)shm->offlined,
	       (unsigned long long)shm->soft_offlined);
	printf(" swapoffs %llu ksm_sharing %ld",
	       (unsigned long long)shm->swapoffs, shm->ksm_sharing);
	for (i = 0; i < NR_COUNTERS; i++)
		if (after[i] >= 0)
			printf(" %s %ld", counters[i].name,
			       after[i] - before[i]);
	printf("\n");
}

/* A file whose pages say which they are. */
static void make_file(void)
{
	static uint64_t page[PAGE / 8];
	uint32_t i;
	int k;

	file_fd = syscall(SYS_memfd_create, "cow_context_fuzz_file", 0);
	if (file_fd < 0)
		die("memfd_create");
	for (i = 0; i < FILE_PAGES; i++) {
		for (k = 0; k < 4; k++)
			page[word_at[k]] = file_word(i, k);
		if (write(file_fd, page, PAGE) != (ssize_t)PAGE)
			die("write to the memfd");
	}
}

static void make_shared(void)
{
	shm_fd = syscall(SYS_memfd_create, "cow_context_fuzz", 0);
	if (shm_fd < 0 || ftruncate(shm_fd, sizeof(*shm)))
		die("memfd_create");
}

static void map_shared(void)
{
	shm = mmap(NULL, sizeof(*shm), PROT_READ | PROT_WRITE, MAP_SHARED,
		   shm_fd, 0);
	if (shm == MAP_FAILED)
		die("mmap of the shared area");
}

static void catch_faults(void)
{
	struct sigaction sa = {
		.sa_sigaction = on_fault,
		.sa_flags = SA_SIGINFO,
	};

	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
}

static uint32_t count_nodes(void)
{
	char path[60];
	uint32_t n = 0;

	do
		snprintf(path, sizeof(path), "/sys/devices/system/node/node%u",
			 ++n);
	while (!access(path, F_OK));
	return n;
}

static bool have_guards(void)
{
	char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool ret = !madvise(p, PAGE, MADV_GUARD_INSTALL);

	munmap(p, PAGE);
	return ret;
}

/* Where one can begin, if all of it can be had, and returned. */
static uint64_t find_heap(void)
{
	unsigned long before = syscall(SYS_brk, 0);
	unsigned long start = (before + PMD_PAGES * PAGE - 1) &
		~(PMD_PAGES * PAGE - 1);
	unsigned long end = start + HEAP_PAGES * PAGE;

	if ((unsigned long)syscall(SYS_brk, end) != end)
		start = before;
	if ((unsigned long)syscall(SYS_brk, start) != start || start == before)
		return 0;
	return start;
}

/* Does a stack grow, up to the gap that the model knows, and no further? */
static bool have_stacks(void)
{
	bool ret = false;
	void *p;

	me = &shm->member[0];
	me->heap = shm->heap;
	p = mmap(page_addr(STACK_FIRST + STACK_PAGES - 1), PAGE,
		 PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS |
		 MAP_FIXED | MAP_GROWSDOWN, -1, 0);
	if (p != MAP_FAILED &&
	    mmap(page_addr(STACK_FIRST), PAGE, PROT_READ, MAP_PRIVATE |
		 MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED &&
	    !store_words(STACK_FIRST + STACK_GAP, 1) &&
	    store_words(STACK_FIRST + STACK_GAP + 1, 1)) {
		munmap(page_addr(STACK_FIRST), PAGE);
		ret = store_words(STACK_FIRST, 1);
	}
	munmap(page_addr(STACK_FIRST), STACK_PAGES * PAGE);
	me = NULL;
	return ret;
}

static bool have_rings(void)
{
	char *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct iovec range = { .iov_base = p, .iov_len = PAGE };
	bool ret;

	ring_fd = new_ring();
	ret = ring_fd >= 0 && !ring_register(0, &range, 1);
	if (ring_fd >= 0)
		close(ring_fd);
	ring_fd = -1;
	munmap(p, PAGE);
	return ret;
}

#define HUGE_DIR		"/sys/kernel/mm/hugepages/hugepages-2048kB/"

static long huge_before = -1;

static void set_huge_pages(long nr)
{
	char text[24];

	snprintf(text, sizeof(text), "%ld", nr);
	write_file(HUGE_DIR "nr_hugepages", text);
}

static void restore_huge_pages(void)
{
	if (huge_before >= 0)
		set_huge_pages(huge_before);
	huge_before = -1;
}

static long free_huge_pages(void)
{
	return sysfs_read(HUGE_DIR "free_hugepages") -
		sysfs_read(HUGE_DIR "resv_hugepages");
}

/* Can they be moved, and emptied?  Older kernels do not. */
static bool huge_pages_work(void)
{
	size_t size = PMD_PAGES * PAGE;
	char *p = mmap((void *)HUGE_BASE, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_HUGETLB |
		       MAP_HUGE_2MB, -1, 0);
	bool ret;

	if (p == MAP_FAILED)
		return false;
	__atomic_store_n(p, 1, __ATOMIC_SEQ_CST);
	ret = mremap(p, size, size, MREMAP_MAYMOVE | MREMAP_FIXED,
		     p + size) == p + size &&
		!madvise(p + size, size, MADV_DONTNEED) &&
		!__atomic_load_n(p + size, __ATOMIC_SEQ_CST);
	munmap(p, 2 * size);
	return ret;
}

static bool have_huge_pages(void)
{
	/* one more of each that copies, and two of each that migrates */
	long need = shm->max_procs * (HUGE_MAX + 1) + 4;
	long missing = need - free_huge_pages();

	if (shm->offline) {
		printf("# huge pages are left out: they would go with the memory\n");
		return false;
	}
	if (missing > 0 && shm->system) {
		huge_before = sysfs_read(HUGE_DIR "nr_hugepages");
		set_huge_pages(huge_before + missing);
	}
	if (free_huge_pages() >= need && huge_pages_work())
		return true;
	printf("# huge pages are left out: %ld are free, %ld needed\n",
	       free_huge_pages(), need);
	restore_huge_pages();
	return false;
}

/* What the machine does not have is left out. */
static void look_around(void)
{
	shm->nodes = count_nodes();
	shm->guards = have_guards();
	shm->heap = find_heap();
	shm->stacks = have_stacks();
	shm->rings = have_rings();
	shm->huge = have_huge_pages();
	if (shm->system)
		find_swap();
	if (!shm->heap)
		printf("# brk is left out: it does not grow\n");
	if (!shm->stacks)
		printf("# stacks are left out: they do not grow as expected\n");
	if (!shm->rings)
		printf("# pins are left out: no buffers for io_uring\n");
}

static long ksm_before[2];

static void ksm_write(const char *name, long value)
{
	char path[60], text[24];

	snprintf(path, sizeof(path), "/sys/kernel/mm/ksm/%s", name);
	snprintf(text, sizeof(text), "%ld", value);
	write_file(path, text);
}

static void start_ksm(void)
{
	ksm_before[0] = ksm_read("run");
	ksm_before[1] = ksm_read("sleep_millisecs");
	ksm_write("sleep_millisecs", 10);
	ksm_write("run", 1);
}

static void restore_ksm(void)
{
	ksm_write("sleep_millisecs", ksm_before[1]);
	ksm_write("run", ksm_before[0]);
}

static void show_help(void)
{
	fprintf(stderr,
		"usage: cow_context_fuzz [--seed S] [--seconds N] [--ops N] [--race]\n"
		"       [--system] [--offline] [--max-procs N] [--shrink-seconds N]\n"
		"       [--patience N] [--replay FILE [--disturb]] [--self-test]\n");
	exit(2);
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t value;

	if (!text)
		show_help();
	value = strtoull(text, &end, 0);
	if (*end || end == text)
		show_help();
	return value;
}

static void parse(char **argv);

/* The arguments that the sequence in the file was found with. */
static void parse_file(const char *path)
{
	char *argv[16], line[256], *rest;
	FILE *f = fopen(path, "re");
	uint32_t n;

	if (!f)
		die(path);
	while (fgets(line, sizeof(line), f)) {
		if (strncmp(line, ARGS_LINE, strlen(ARGS_LINE)))
			continue;
		rest = line + strlen(ARGS_LINE);
		for (n = 0; n < ARRAY_SIZE(argv) - 1; n++) {
			argv[n] = strtok_r(rest, "\n ", &rest);
			if (!argv[n])
				break;
		}
		argv[n] = NULL;
		parse(argv);
	}
	fclose(f);
}

static void parse(char **argv)
{
	for (; *argv; argv++) {
		if (!strcmp(*argv, "--seed"))
			options.seed = number(*++argv);
		else if (!strcmp(*argv, "--seconds"))
			options.seconds = number(*++argv);
		else if (!strcmp(*argv, "--ops"))
			options.max_ops = number(*++argv);
		else if (!strcmp(*argv, "--max-procs"))
			options.procs = number(*++argv);
		else if (!strcmp(*argv, "--patience"))
			options.patience = number(*++argv);
		else if (!strcmp(*argv, "--shrink-seconds"))
			shrink_seconds = number(*++argv);
		else if (!strcmp(*argv, "--race"))
			options.race = true;
		else if (!strcmp(*argv, "--system"))
			options.system = true;
		else if (!strcmp(*argv, "--offline"))
			options.offline = true;
		else if (!strcmp(*argv, "--self-test"))
			options.self_test = true;
		else if (!strcmp(*argv, "--disturb"))
			options.disturb = true;
		else if (!strcmp(*argv, "--replay") && argv[1])
			options.replay = *++argv;
		else
			show_help();
	}
}

int main(int argc, char **argv)
{
	struct rlimit rlimit = { RLIM_INFINITY, RLIM_INFINITY };
	const char *mode = "ordered";
	long before[NR_COUNTERS];
	uint32_t left = 0, nr;
	struct op *ops;
	bool repeat, ok;
	double end;

	/* the break is for the members: malloc() has to use mmap() */
	mallopt(M_MMAP_THRESHOLD, 0);
	mallopt(M_TOP_PAD, 0);
	/* a member that has executed itself */
	if (argc == 5 && !strcmp(argv[1], "--member")) {
		shm_fd = atoi(argv[3]);
		file_fd = atoi(argv[4]);
		map_shared();
		catch_faults();
		my_slot = atoi(argv[2]);
		me = &shm->member[my_slot];
		memset(me->pages, 0, sizeof(me->pages));
		me->depth = 0;
		me->heap = shm->heap ? find_heap() : 0;
		me->heap_pages = 0;
		become(my_slot);
		add(&shm->execs, 1);
		if (!shm->race)
			acknowledge(me);
		member_loop();
	}
	if (syscall(SYS_getrandom, &options.seed, 4, 0) != 4)
		options.seed = time(NULL);
	parse(argv + 1);
	/* what was given now comes last, and overrides */
	if (options.replay) {
		parse_file(options.replay);
		parse(argv + 1);
	}
	repeat = options.replay && options.seconds;
	if (options.procs < 1 || options.procs > MAX_PROCS ||
	    options.patience < 1 || options.patience > 1000 ||
	    (options.race && (options.self_test || options.replay)) ||
	    (options.offline && !options.race) ||
	    (options.disturb && !options.replay))
		show_help();
	if (!options.seconds)
		options.seconds = options.max_ops ? UINT32_MAX : 20;
	if (!options.max_ops)
		options.max_ops = UINT64_MAX;

	/* members end unnoticed, orphans too */
	signal(SIGCHLD, SIG_IGN);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	setrlimit(RLIMIT_MEMLOCK, &rlimit);
	rlimit.rlim_cur = 0;
	rlimit.rlim_max = 0;
	setrlimit(RLIMIT_CORE, &rlimit);
	catch_faults();
	make_file();
	make_shared();
	map_shared();
	shm->conductor = getpid();
	shm->disturb = options.race || options.disturb;
	shm->system = options.system;
	shm->offline = options.offline;
	shm->max_procs = options.procs;
	shm->patience = options.patience;
	shm->forget = options.self_test;
	printf("TAP version 13\n1..1\n");
	look_around();
	read_counters(before);
	if (options.system)
		start_ksm();
	if (options.race)
		mode = "race";
	if (options.replay)
		mode = "replay";
	printf("# %s, seed %llu, %u members, %u nodes, guard pages %u%s\n",
	       mode, (unsigned long long)options.seed, shm->max_procs, shm->nodes,
	       shm->guards, options.system ? ", system" : "");
	fflush(stdout);

	check_kernel(true);
	end = now() + options.seconds;
	if (failed()) {
		report_failure("failed", options.seed, 0);
	} else if (options.replay) {
		ops = load(options.replay, &nr);
		do
			replay(ops, nr, &left);
		while (repeat && !failed() && now() < end);
		if (failed())
			report_failure("failed", options.seed, left);
		free(ops);
	} else if (options.race) {
		run_race(options.seed, end, options.max_ops);
	} else {
		left = run_ordered(options.seed, end, options.max_ops);
	}
	if (options.system)
		restore_ksm();
	/* who turned it off may have been killed */
	if (shm->swap_path[0])
		syscall(SYS_swapon, shm->swap_path, 0);
	restore_huge_pages();
	print_counters(before);
	ok = !failed();
	if (options.self_test) {
		ok = failed() && left && left <= 8;
		printf("%sok 1 self-test: %s, %u operations left\n",
		       ok ? "" : "not ", failed() ? "detected" : "undetected",
		       left);
	} else {
		printf("%sok 1 cow_context_fuzz %s seed %llu\n",
		       ok ? "" : "not ", mode, (unsigned long long)options.seed);
	}
	return ok ? 0 : 1;
}
