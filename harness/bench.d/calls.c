// SPDX-License-Identifier: GPL-2.0
/*
 * System calls and faults that maintain the reverse mapping, with 10, 100 and
 * 1000 anonymous VMAs. Each cost is of all VMAs together, faults are of one.
 */

#define _GNU_SOURCE
#include "bench.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static const int sizes[] = { 10, 100, 1000 };

/*
 * A repetition is the least of some tries, as in memory.c: interrupts only add,
 * and so does what they run for others. Refills of per-CPU caches count when
 * every try has them. Tries below 0 fill the caches and are not recorded.
 */
#define TRIES	11

static void try_done(int t, __u64 took, const char *name, int n)
{
	static __u64 least[4];
	static const char *names[4];
	int k;

	for (k = 0; names[k] && names[k] != name; k++)
		;
	names[k] = name;
	if (t < 0)
		return;
	if (t % TRIES == 0 || took < least[k])
		least[k] = took;
	if (t % TRIES == TRIES - 1)
		cost(least[k], "%s.%d", name, n);
}

static char *touched_vmas(int n)
{
	char *area = map_vmas(n);

	touch_vmas(area, n);
	return area;
}

static void fork_exit(void)
{
	static const int steps[] = { 1, 3, 10, 30, 100, 300, 1000 };
	__u64 start, forked = 0, end, exited = 0;
	char *area;
	pid_t pid;
	int i, n, t;

	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		n = steps[i];
		area = touched_vmas(n);
		for (t = -TRIES; t < reps * TRIES; t++) {
			start = now();
			pid = fork();
			if (!pid) {
				shared->stamp = now();
				_exit(0);
			}
			forked = now() - start;
			need(pid > 0 && waitpid(pid, NULL, 0) == pid, "fork");
			end = now();
			exited = end - shared->stamp;
			try_done(t, forked, "fork", n);
			try_done(t, exited, "exit", n);
		}
		point("fork-vmas", "fork", n, forked);
		point("exit-vmas", "exit", n, exited);
		unmap_vmas(area, n);
	}
}

/* From execve() to main(): the old mm goes, a small new one comes. */
static void exec(void)
{
	__u64 stamp;
	char *area;
	pid_t pid;
	int i, n, t;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		n = sizes[i];
		area = touched_vmas(n);
		for (t = -TRIES; t < reps * TRIES; t++) {
			pid = fork();
			if (!pid) {
				shared->stamp = now();
				exec_self("stamp");
				_exit(1);
			}
			need(pid > 0 && read(ready[0], &stamp, 8) == 8 &&
			     waitpid(pid, NULL, 0) == pid, "exec");
			try_done(t, stamp - shared->stamp, "exec", n);
		}
		unmap_vmas(area, n);
	}
}

static pid_t vfork_nothing(void)
{
	pid_t pid = vfork();

	if (!pid) {
		execl(self_path, self_path, "nothing", NULL);
		_exit(1);
	}
	return pid;
}

/* Shares the mm until exec: nothing of it may have become more expensive. */
static void vfork_exec(void)
{
	__u64 start;
	char *area;
	pid_t pid;
	int i, n, t;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		n = sizes[i];
		area = touched_vmas(n);
		for (t = -TRIES; t < reps * TRIES; t++) {
			start = now();
			pid = vfork_nothing();
			need(pid > 0 && waitpid(pid, NULL, 0) == pid, "vfork");
			try_done(t, now() - start, "vfork_exec", n);
		}
		unmap_vmas(area, n);
	}
}

static void unmap(void)
{
	__u64 start;
	char *area;
	int i, n, t;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		n = sizes[i];
		for (t = -TRIES; t < reps * TRIES; t++) {
			area = touched_vmas(n);
			start = now();
			unmap_vmas(area, n);
			try_done(t, now() - start, "munmap", n);
		}
	}
}

static void move(void)
{
	__u64 start;
	char *area, *to;
	int i, k, n, t;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		n = sizes[i];
		for (t = -TRIES; t < reps * TRIES; t++) {
			area = touched_vmas(n);
			to = map_vmas(n);
			start = now();
			for (k = 0; k < n; k++)
				need(mremap(vma_at(area, k), page, page,
					    MREMAP_MAYMOVE | MREMAP_FIXED,
					    vma_at(to, k)) != MAP_FAILED,
				     "mremap");
			try_done(t, now() - start, "mremap", n);
			unmap_vmas(to, n);
		}
	}
}

/* Every other page becomes read-only, then writable again. */
static void split(void)
{
	__u64 start, middle, end;
	size_t len;
	char *p;
	int i, k, n, t;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		n = sizes[i];
		len = (2 * n + 1) * page;
		for (t = -TRIES; t < reps * TRIES; t++) {
			p = mmap(NULL, len, RW, MAP_ANON_PRIVATE, -1, 0);
			need(p != MAP_FAILED, "mmap");
			madvise(p, len, MADV_NOHUGEPAGE);
			for (k = 0; k <= 2 * n; k++)
				p[k * page] = 1;
			start = now();
			for (k = 0; k < n; k++)
				need(!mprotect(p + (2 * k + 1) * page, page,
					       PROT_READ), "mprotect");
			middle = now();
			for (k = 0; k < n; k++)
				need(!mprotect(p + (2 * k + 1) * page, page,
					       RW), "mprotect");
			end = now();
			munmap(p, len);
			try_done(t, middle - start, "split", n);
			try_done(t, end - middle, "merge", n);
		}
	}
}

/* As above, for names without a number and costs of one of @n faults. */
static void fault_done(int t, __u64 took, int n, const char *name)
{
	static __u64 least[2];
	static const char *first;
	__u64 *v;

	if (!first)
		first = name;
	if (t < 0)
		return;
	v = &least[name != first];
	if (t % TRIES == 0 || took < *v)
		*v = took;
	if (t % TRIES == TRIES - 1)
		cost((double)*v / n, "%s", name);
}

/* The first page of a VMA, which makes the anon_vma, and the second. */
static void touch_pages(void)
{
	const int n = 1000;
	__u64 start, middle, end;
	char *area, *p;
	int k, t;

	for (t = -1; t < reps * TRIES; t++) {
		area = map_vmas(n);
		start = now();
		touch_vmas(area, n);
		middle = now();
		unmap_vmas(area, n);
		fault_done(t, middle - start, n, "touch.first");

		p = mmap(NULL, (n + 1) * page, RW, MAP_ANON_PRIVATE, -1, 0);
		need(p != MAP_FAILED, "mmap");
		madvise(p, (n + 1) * page, MADV_NOHUGEPAGE);
		touch(p, 1);
		start = now();
		for (k = 1; k <= n; k++)
			touch(p + k * page, 1);
		end = now();
		munmap(p, (n + 1) * page);
		fault_done(t, end - start, n, "touch.second");
	}
}

/* A page that parent and child share, written to by the one or the other. */
static void cow_faults(void)
{
	const int n = 1000;
	__u64 start, end;
	char *area;
	pid_t pid;
	int t;

	for (t = -1; t < reps * TRIES; t++) {
		area = touched_vmas(n);
		member(NULL, 0);
		start = now();
		touch_vmas(area, n);
		end = now();
		end_members();
		fault_done(t, end - start, n, "cow.parent");

		pid = fork();
		if (!pid) {
			start = now();
			touch_vmas(area, n);
			shared->cost = now() - start;
			_exit(0);
		}
		need(pid > 0 && waitpid(pid, NULL, 0) == pid, "fork");
		unmap_vmas(area, n);
		fault_done(t, shared->cost, n, "cow.child");
	}
}

const struct workload call_workloads[] = {
	{ "fork", COST, fork_exit,
	  "fork links, exit unlinks every VMA: where anon_vma pays most" },
	{ "exec", COST, exec,
	  "exec tears an mm down and moves a stack" },
	{ "vfork", COST, vfork_exec,
	  "shares the mm: must not change" },
	{ "munmap", COST, unmap,
	  "unlinking; here walks must be kept from freed VMAs" },
	{ "mremap", COST, move,
	  "a context records moves, an anon_vma only a new VMA" },
	{ "mprotect", COST, split,
	  "split and merge clone and free chains; a context does neither" },
	{ "touch", COST, touch_pages,
	  "the first fault of a VMA sets up the reverse mapping" },
	{ "cow", COST, cow_faults,
	  "a copied page gets the owner of the process that wrote" },
	{ }
};
