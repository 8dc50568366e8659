// SPDX-License-Identifier: GPL-2.0
/*
 * Walks: who maps this page? To set a page idle is one walk of its reverse
 * mapping and hardly anything else, so its cost is the time of that write less
 * that of a write that names no page. Then migration and reclaim, which walk
 * twice and do much beside.
 */

#define _GNU_SOURCE
#include "bench.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define IDLE_FILE	"/sys/kernel/mm/page_idle/bitmap"
#define NR_PAGES	32
#define ROUNDS		4
#define CHAIN_DEPTH	64
#define REMAPS		64
#define ADVERSARY_VMAS	1000

static char *area;
static __u64 pfns[ADVERSARY_VMAS];

static __u64 set_idle(int fd, __u64 pfn, bool set)
{
	__u64 word = set ? 1ull << (pfn % 64) : 0, start = now();

	need(pwrite(fd, &word, 8, pfn / 64 * 8) == 8, IDLE_FILE);
	return now() - start;
}

/*
 * The mean over the pages of the least of some rounds: an interrupt only adds.
 * False if one of the pages cannot be walked: it is not on an LRU list.
 */
bool walk_pages(const __u64 *pfn, int nr, int rounds, double *walk)
{
	__u64 least, least_none, sum = 0, t, word;
	int fd, i, r;

	fd = open(IDLE_FILE, O_RDWR);
	if (fd < 0)
		return false;
	for (i = 0; i < nr; i++) {
		/* The first walk finds the page young, and clears that. */
		set_idle(fd, pfn[i], true);
		if (!pfn[i] || pread(fd, &word, 8, pfn[i] / 64 * 8) != 8 ||
		    !(word & 1ull << (pfn[i] % 64))) {
			close(fd);
			return false;
		}
		least = -1;
		least_none = -1;
		for (r = 0; r < rounds; r++) {
			t = set_idle(fd, pfn[i], false);
			if (t < least_none)
				least_none = t;
			t = set_idle(fd, pfn[i], true);
			if (t < least)
				least = t;
		}
		sum += least - least_none;
	}
	close(fd);
	*walk = (double)sum / nr;
	return true;
}

static void report_walk(const char *name, int nr)
{
	double walk;
	int r;

	drain_lru();
	for (r = 0; r < reps; r++) {
		if (!walk_pages(pfns, nr, ROUNDS, &walk)) {
			skipped(name, "no page_idle, or a page is not on an LRU list");
			return;
		}
		cost(walk, "%s", name);
	}
}

static bool no_page_idle(const char *name)
{
	if (!access(IDLE_FILE, W_OK))
		return false;
	skipped(name, "no " IDLE_FILE);
	return true;
}

static void find(pid_t pid, int first, int nr)
{
	int i;

	for (i = 0; i < nr; i++)
		pfns[i] = pfn_of(pid, vma_at(area, first + i));
}

/* The median of @nr pages of @pid that are @step VMAs apart. */
static double migrate_to(pid_t pid, char *first, int step, int nr, int node)
{
	__u64 start, took[REMAPS];
	int i;

	for (i = 0; i < nr; i++) {
		start = now();
		need(move_page(pid, vma_at(first, i * step), node) == node,
		     "move_pages");
		took[i] = now() - start;
	}
	return median(took, nr);
}

/* There and back, MPOL_MF_MOVE_ALL: unmap and map again, so two walks. */
static void report_migration(const char *name, pid_t pid, char *first, int step,
			     int nr)
{
	const int node = other_node();
	int r;

	if (node < 0) {
		skipped(name, "one NUMA node");
		return;
	}
	for (r = -1; r < reps; r++) {
		double there = migrate_to(pid, first, step, nr, node);
		double back = migrate_to(pid, first, step, nr, 0);

		if (r >= 0)
			cost((there + back) / 2, "%s", name);
	}
}

static double walk_now(int nr)
{
	double walk = 0;

	drain_lru();
	need(walk_pages(pfns, nr, 2, &walk), "walk");
	return walk;
}

static void alone(void)
{
	area = map_vmas(NR_PAGES);
	touch_vmas(area, NR_PAGES);
	find(0, 0, NR_PAGES);
	report_walk("walk.exclusive", NR_PAGES);
}

static void rewrite(long nr)
{
	(void)nr;
	touch_vmas(area, NR_PAGES);
}

/* All children keep all; then what only one process of them has. */
static void family(void)
{
	static const int steps[] = { 10, 100, 1000 };
	char name[32];
	pid_t pid = 0;
	int i, n = 0;

	if (no_page_idle("walk.shared_100"))
		return;
	area = map_vmas(2 * NR_PAGES);
	touch_vmas(area, 2 * NR_PAGES);
	for (i = 0; i < 3 && steps[i] <= sized(1000, 100); i++) {
		for (; n < steps[i]; n++)
			pid = member(NULL, 0);
		find(0, 0, NR_PAGES);
		snprintf(name, sizeof(name), "walk.shared_%d", n);
		report_walk(name, NR_PAGES);
		point("walk-children", "shared", n, walk_now(NR_PAGES));

		/* New pages of the parent, shared with no child yet. */
		touch_vmas(area + 2 * page * NR_PAGES, NR_PAGES);
		find(0, NR_PAGES, NR_PAGES);
		snprintf(name, sizeof(name), "walk.parents_own_%d", n);
		report_walk(name, NR_PAGES);
		point("walk-children", "parents-own", n, walk_now(NR_PAGES));
	}
	pid = member(rewrite, 0);
	find(pid, 0, NR_PAGES);
	report_walk("walk.childs_own", NR_PAGES);
}

/* Scenario 25: each child keeps one VMA of 1000. */
static void keep_one(long nr)
{
	char *keep = vma_at(area, nr % ADVERSARY_VMAS);
	size_t before = keep - area;
	size_t after = 2 * page * ADVERSARY_VMAS - before - 2 * page;

	need(!before || !munmap(area, before), "munmap");
	need(!after || !munmap(keep + 2 * page, after), "munmap");
}

static void keep_one_each(void)
{
	static const int steps[] = { 10, 100, 300, 1000 };
	int i, k, n = 0;

	if (no_page_idle("walk.adversary"))
		return;
	area = map_vmas(ADVERSARY_VMAS);
	touch_vmas(area, ADVERSARY_VMAS);
	for (i = 0; i < 4 && steps[i] <= sized(1000, 100); i++) {
		for (; n < steps[i]; n++)
			member(keep_one, n);
		for (k = 0; k < NR_PAGES; k++)
			pfns[k] = pfn_of(0, vma_at(area, k * n / NR_PAGES));
		point("walk-children", "adversary", n, walk_now(NR_PAGES));
	}
	report_walk("walk.adversary", NR_PAGES);
	report_migration("migrate.adversary", 0, area, n / NR_PAGES, NR_PAGES);
}

static void deeper(long depth)
{
	if (depth < CHAIN_DEPTH)
		member(deeper, depth + 1);
	else
		touch_vmas(area, NR_PAGES);
	if (depth == CHAIN_DEPTH)
		shared->nr = getpid();
}

static void chain(void)
{
	area = map_vmas(2 * NR_PAGES);
	touch_vmas(area, 2 * NR_PAGES);
	deeper(1);
	find(0, NR_PAGES, NR_PAGES);
	report_walk("walk.chain_root", NR_PAGES);
	report_migration("migrate.chain_root", 0, vma_at(area, NR_PAGES), 1,
			 NR_PAGES);
	find(shared->nr, 0, NR_PAGES);
	report_walk("walk.chain_leaf", NR_PAGES);
}

static void map_again(long nr)
{
	(void)nr;
	unmap_vmas(area, NR_PAGES);
	map_vmas_at(area, NR_PAGES);
	touch_vmas(area, NR_PAGES);
}

/* What all children have put their own memory in the place of. */
static void mapped_over(void)
{
	int i;

	area = map_vmas(NR_PAGES);
	touch_vmas(area, NR_PAGES);
	for (i = 0; i < 100; i++)
		member(map_again, 0);
	find(0, 0, NR_PAGES);
	report_walk("walk.mapped_again", NR_PAGES);
	report_migration("migrate.mapped_again", 0, area, 1, NR_PAGES);
}

/* Scenario 18: fault, move away, map again; 64 pages of one page offset. */
static void moved_away(void)
{
	char *from = map_vmas(1), *to = map_vmas(REMAPS);
	int i;

	for (i = 0; i < REMAPS; i++) {
		touch(from, 1);
		need(mremap(from, page, page, MREMAP_MAYMOVE | MREMAP_FIXED,
			    vma_at(to, i)) != MAP_FAILED, "mremap");
		map_vmas_at(from, 1);
	}
	for (i = 0; i < REMAPS; i++)
		pfns[i] = pfn_of(0, vma_at(to, i));
	report_walk("walk.remaps", REMAPS);
	report_migration("migrate.remaps", 0, to, 1, REMAPS);
}

static void rewrite_and_fork(long nr)
{
	rewrite(nr);
	member(NULL, 0);
}

/*
 * A child's own pages, shared with its child, swapped out and in again. An
 * anon_vma is found again only as that of the VMA that swaps in, or its root.
 */
static void lost_owner(void)
{
	char path[64], c;
	int fd, i, left = 0;
	pid_t pid;

	if (!own_cgroup("swapped-in")) {
		skipped("walk.swapped_in", "no memory cgroup");
		return;
	}
	area = map_vmas(NR_PAGES);
	touch_vmas(area, NR_PAGES);
	for (i = 0; i < 100; i++)
		member(NULL, 0);
	pid = member(rewrite_and_fork, 0);
	drain_lru();
	for (i = 0; i < 20; i++) {
		reclaim_anon("64M");
		find(pid, 0, NR_PAGES);
		for (left = 0; left < NR_PAGES && !pfns[left]; left++)
			;
		if (left == NR_PAGES)
			break;
	}
	if (left < NR_PAGES) {
		skipped("walk.swapped_in", "the pages cannot be swapped out");
		return;
	}
	/* ptrace's access swaps in for the process, and does not write. */
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDONLY);
	need(fd >= 0, path);
	for (i = 0; i < NR_PAGES; i++)
		need(pread(fd, &c, 1, (uintptr_t)vma_at(area, i)) == 1,
		     "swap in");
	close(fd);
	find(pid, 0, NR_PAGES);
	report_walk("walk.swapped_in", NR_PAGES);
	report_migration("migrate.swapped_in", pid, area, 1, NR_PAGES);
}

static void migration(void)
{
	static const int steps[] = { 0, 10, 100, 1000 };
	char *own, name[32];
	int i, n = 0;

	area = map_vmas(2 * NR_PAGES);
	own = vma_at(area, NR_PAGES);
	touch_vmas(area, 2 * NR_PAGES);
	for (i = 0; i < 4 && steps[i] <= sized(1000, 100); i++) {
		for (; n < steps[i]; n++)
			member(NULL, 0);
		snprintf(name, sizeof(name), "migrate.shared_%d", n);
		report_migration(name, 0, area, 1, NR_PAGES);
		if (!n)
			continue;
		/* New pages of the parent: who is to be mapped again? */
		touch_vmas(own, NR_PAGES);
		snprintf(name, sizeof(name), "migrate.parents_own_%d", n);
		report_migration(name, 0, own, 1, NR_PAGES);
	}
}

/* Of pages that are the parent's own, without and with 100 children. */
static void page_out(void)
{
	const int n = 256;
	__u64 start, took[256];
	int family, i, r;

	area = map_vmas(n);
	for (family = 0; family < 2; family++) {
		for (i = 0; i < 100 * family; i++)
			member(NULL, 0);
		for (r = -1; r < reps; r++) {
			touch_vmas(area, n);
			drain_lru();
			for (i = 0; i < n; i++) {
				start = now();
				need(!madvise(vma_at(area, i), page,
					      MADV_PAGEOUT), "MADV_PAGEOUT");
				took[i] = now() - start;
			}
			for (i = 0; i < n && !pfn_of(0, vma_at(area, i)); i++)
				;
			if (i < n) {
				skipped("pageout", "no swap, or not all went out");
				return;
			}
			if (r >= 0)
				cost(median(took, n), "%s",
				     family ? "pageout.parents_own_100" :
				     "pageout.exclusive");
		}
	}
}

const struct workload walk_workloads[] = {
	{ "exclusive", COST, alone,
	  "most pages of a system: one process, one mapping" },
	{ "family", COST, family,
	  "shared by all children, and the own pages of one in a family" },
	{ "adversary", COST, keep_one_each,
	  "1000 VMAs, 1000 children that keep one each: tree against interval tree" },
	{ "deep", COST, chain,
	  "a page of the root and one of the leaf of 64 generations" },
	{ "again", COST, mapped_over,
	  "same address, other memory: no child may cost a visit" },
	{ "remaps", COST, moved_away,
	  "64 pages of one offset, each moved away" },
	{ "swapped-in", COST, lost_owner,
	  "swap-in forgets the owner: how wide is the walk then" },
	{ "migrate", COST, migration,
	  "walks as migration does them: unmap, map again" },
	{ "pageout", COST, page_out,
	  "walks as reclaim does them" },
	{ }
};
