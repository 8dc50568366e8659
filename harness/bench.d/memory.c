// SPDX-License-Identifier: GPL-2.0
/*
 * What the reverse mapping occupies: the bytes in the slabs of anon_vma and its
 * chains, or of contexts. Maple nodes and VMAs are listed beside it.
 */

#define _GNU_SOURCE
#include "bench.h"
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHAIN_DEPTH	64
#define CHAIN_VMAS	100
#define TOUCHED		8

static char *area;

static void after_boot(void)
{
	struct memory m;

	memory_report("idle", NULL);
	memory_read(&m);
	value("count", m.objects[MM_STRUCT], "memory.idle.mms");
}

static void shell(long nr)
{
	(void)nr;
	exec_self("shell");
	need(false, "exec");
}

static void exec_shells(void)
{
	const int steps[] = { sized(100, 10), sized(1000, 20) };
	struct memory before;
	int i, n = 0;

	memory_read(&before);
	for (i = 0; i < 2; i++) {
		for (; n < steps[i]; n++)
			member(shell, n);
		memory_report(i ? "shells_1000" : "shells_100", &before);
	}
}

static void fork_once_more(long nr)
{
	(void)nr;
	member(NULL, 0);
}

/* 1000 VMAs, and more and more children that have them all. */
static void siblings(void)
{
	static const int steps[] = { 1, 10, 25, 50, 100 };
	const int vmas = sized(1000, 50);
	struct memory before, m;
	int i;
	int n = 0;

	memory_read(&before);
	area = map_vmas(vmas);
	touch_vmas(area, vmas);
	memory_read(&m);
	point("memory-processes", "rmap", 1, memory_rmap(&m, &before));
	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		for (; n < steps[i]; n++)
			member(NULL, 0);
		memory_read(&m);
		point("memory-processes", "rmap", n + 1,
		      memory_rmap(&m, &before));
	}
	memory_report("wide", &before);
}

static void wide_twice(void)
{
	const int vmas = sized(1000, 50);
	struct memory before;
	int i;

	memory_read(&before);
	area = map_vmas(vmas);
	touch_vmas(area, vmas);
	for (i = 0; i < 100; i++)
		member(fork_once_more, 0);
	memory_report("wide_twice", &before);
}

/* Ten children, and more and more VMAs. */
static void vary_vmas(void)
{
	static const int steps[] = { 1, 10, 30, 100, 300, 1000 };
	struct memory before, m;
	int i;
	int n;

	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		memory_read(&before);
		area = map_vmas(steps[i]);
		touch_vmas(area, steps[i]);
		for (n = 0; n < 10; n++)
			member(NULL, 0);
		memory_read(&m);
		point("memory-vmas", "rmap", steps[i],
		      memory_rmap(&m, &before));
		end_members();
		unmap_vmas(area, steps[i]);
	}
}

static double fork_cost(void)
{
	__u64 start = now(), end;
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	end = now();
	need(pid > 0 && waitpid(pid, NULL, 0) == pid, "fork");
	return end - start;
}

static bool is_power_of_two(long nr)
{
	return !(nr & (nr - 1));
}

/* Each is the child of the one before, all live; depth 1 was not forked. */
static void deeper(long depth)
{
	static double first;
	double c, least = 0;
	int i, t;

	/* Interrupts only add: the least of some tries has none in it. */
	for (i = 0; i < reps && is_power_of_two(depth); i++) {
		least = fork_cost();
		for (t = 0; t < 4; t++) {
			c = fork_cost();
			if (c < least)
				least = c;
		}
		if (depth == 1)
			first = least;
		if (depth == 1 || depth == CHAIN_DEPTH)
			cost(least, "chain.fork_%ld", depth);
		if (depth == CHAIN_DEPTH)
			value("x", least / first, "chain.fork_64_to_1");
		if (!i)
			point("fork-depth", "fork", depth, least);
	}
	fflush(stdout);
	if (depth < CHAIN_DEPTH)
		member(deeper, depth + 1);
}

static void fork_chain(void)
{
	struct memory before;

	memory_read(&before);
	area = map_vmas(CHAIN_VMAS);
	touch_vmas(area, CHAIN_VMAS);
	deeper(1);
	memory_report("chain", &before);
}

static bool is_sample(long generation)
{
	long n;

	for (n = 1; n < generation; n *= 10)
		if (generation == 2 * n || generation == 5 * n)
			return true;
	return generation == n;
}

/*
 * Fork, and exit in the parent. The child writes to one page of eight, so that
 * what it inherits comes from the last eight generations and from the first.
 */
static void fork_and_exit(void)
{
	const long last = sized(10000, 100);
	struct memory before, m;
	long nr;
	pid_t pid;
	char c;

	signal(SIGCHLD, SIG_IGN);
	area = map_vmas(2 * TOUCHED);
	touch_vmas(area, 2 * TOUCHED);
	memory_read(&before);
	pid = fork();
	need(pid >= 0, "fork");
	for (nr = 1; !pid; nr++) {
		signal(SIGUSR1, SIG_DFL);
		touch(vma_at(area, nr % TOUCHED), nr);
		if (is_sample(nr)) {
			shared->nr = nr;
			tell_ready();
			need(read(go[0], &c, 1) == 1, "go");
		}
		if (nr == last)
			for (;;)
				pause();
		pid = fork();
		need(pid >= 0, "fork");
		if (pid)
			_exit(0);
	}
	do {
		wait_ready();
		memory_read(&m);
		nr = shared->nr;
		point("contexts-generations", "objects", nr,
		      m.objects[ANON_VMA] - before.objects[ANON_VMA] +
		      m.objects[COW_CONTEXT] - before.objects[COW_CONTEXT]);
		point("memory-generations", "rmap", nr,
		      memory_rmap(&m, &before));
		if (nr == last) {
			value("count", m.objects[ANON_VMA] -
			      before.objects[ANON_VMA] +
			      m.objects[COW_CONTEXT] -
			      before.objects[COW_CONTEXT],
			      "generations.contexts");
			memory_report("generations", &before);
		}
		need(write(go[1], "", 1) == 1, "go");
	} while (nr < last);
}

const struct workload memory_workloads[] = {
	{ "idle", COST, after_boot,
	  "what a system pays that does nothing; runs first" },
	{ "shells", COST, exec_shells,
	  "the usual process: exec, libraries, heap, nobody forked further" },
	{ "wide", COST, siblings,
	  "anon_vma's worst ordinary shape: every child links every VMA" },
	{ "wide_twice", COST, wide_twice,
	  "the same one generation deeper: chains grow with the depth" },
	{ "vmas", COST, vary_vmas,
	  "memory against the number of VMAs" },
	{ "chain", COST, fork_chain,
	  "each generation links all above it: quadratic in anon_vma" },
	{ "generations", COST, fork_and_exit,
	  "a daemon that forks and exits for ever must not leave a trail" },
	{ }
};
