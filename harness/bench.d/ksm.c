// SPDX-License-Identifier: GPL-2.0
/*
 * Two shapes from the field: KSM over one mapping that has been split into
 * 20 000 VMAs, and a zygote whose family is reclaimed.
 */

#define _GNU_SOURCE
#include "bench.h"
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SPLITS		20000
#define PAIRS		16
#define KSM		"/sys/kernel/mm/ksm/"
#define ZYGOTE_VMAS	2000
#define ZYGOTE_CHILDREN	200

static char *area;

/*
 * Pairs of equal pages, far apart, each in a VMA of its own. Scenario 16: all
 * VMAs share an anon_vma, and a KSM page does not say which of them has it.
 */
static void equal_pages(void)
{
	const int splits = sized(SPLITS, 1000);
	const size_t len = 2 * splits * page;
	__u64 pfns[2 * PAIRS];
	double walk;
	char *p;
	int i, r;

	p = mmap(NULL, len, RW, MAP_ANON_PRIVATE, -1, 0);
	need(p != MAP_FAILED, "mmap");
	madvise(p, len, MADV_NOHUGEPAGE);
	if (madvise(p, len, MADV_MERGEABLE)) {
		skipped("ksm.walk", "no KSM");
		return;
	}
	for (i = 0; i < 2 * PAIRS; i++) {
		char *q = p + len / (2 * PAIRS) * i / page * page;

		memset(q, 1 + i % PAIRS, page);
		touch(q, 0x12345678 + i % PAIRS);
	}
	for (i = 0; i < splits; i++)
		need(!mprotect(p + (2 * i + 1) * page, page, PROT_READ),
		     "mprotect");
	write_text(KSM "sleep_millisecs", "1");
	write_text(KSM "pages_to_scan", "1000");
	write_text(KSM "smart_scan", "0");
	need(write_text(KSM "run", "1"), KSM "run");
	for (i = 0; i < 2000 && read_counter(KSM "pages_sharing", NULL) <
	     PAIRS; i++)
		usleep(10000);
	write_text(KSM "run", "0");
	if (read_counter(KSM "pages_sharing", NULL) < PAIRS) {
		skipped("ksm.walk", "nothing was merged");
		goto out;
	}
	for (i = 0; i < 2 * PAIRS; i++)
		pfns[i] = pfn_of(0, p + len / (2 * PAIRS) * i / page * page);
	need(pfns[0] == pfns[PAIRS] && pfns[0] != pfns[1], "merge");
	drain_lru();
	for (r = 0; r < reps; r++) {
		if (!walk_pages(pfns, PAIRS, 5, &walk)) {
			skipped("ksm.walk", "a page is not on an LRU list");
			break;
		}
		cost(walk, "ksm.walk");
	}
out:
	write_text(KSM "run", "2");
}

static void touch_twentieth(long nr)
{
	int i;

	for (i = nr % 20; i < ZYGOTE_VMAS; i += 20)
		touch(vma_at(area, i), nr);
}

static void family(void)
{
	const int children = sized(ZYGOTE_CHILDREN, 10);
	const long pages = ZYGOTE_VMAS + children * (ZYGOTE_VMAS / 20);
	struct memory before;
	long out = 0, last, start_out;
	__u64 start, end;
	int i, idle, r;

	if (!own_cgroup("zygote")) {
		skipped("zygote.reclaim", "no memory cgroup");
		return;
	}
	memory_read(&before);
	area = map_vmas(ZYGOTE_VMAS);
	touch_vmas(area, ZYGOTE_VMAS);
	for (i = 0; i < children; i++)
		member(touch_twentieth, i);
	memory_report("zygote", &before);
	drain_lru();

	/*
	 * All that can go goes, in as many steps as it takes. What is shared
	 * goes when no mapping of it has been used since the step before.
	 */
	start_out = read_counter("/proc/vmstat", "pswpout");
	start = now();
	for (r = 0, idle = 0; r < 100 && idle < 3; r++) {
		last = out;
		if (!reclaim_anon("256M"))
			break;
		out = read_counter("/proc/vmstat", "pswpout") - start_out;
		if (out >= pages)
			break;
		idle = out > last ? 0 : idle + 1;
	}
	end = now();
	if (out < pages / 2) {
		skipped("zygote.reclaim", "hardly anything was swapped out");
		return;
	}
	cost((double)(end - start) / out, "zygote.reclaim");
	value("count", out, "zygote.swapped_out");
}

const struct workload ksm_workloads[] = {
	{ "ksm", COST, equal_pages,
	  "a KSM page names no VMA: anon_vma once searched all 20 000" },
	{ "zygote", COST, family,
	  "the phone: one parent, many children that write to little" },
	{ }
};
