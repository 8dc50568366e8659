/* SPDX-License-Identifier: GPL-2.0 */
#ifndef BENCH_H
#define BENCH_H

/*
 * What the workloads share. The program prints one record a line:
 *
 *	@v NAME UNIT VALUE	once for each repetition
 *	@p PLOT SERIES X Y	a point of a plot
 *	@slab NAME CACHE OBJECTS SIZE
 *	@skip NAME WHY		not possible on this machine
 *	@fail WORKLOAD WHY
 *	@i KEY VALUE		about the machine
 *	@took WORKLOAD COST
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <linux/types.h>
#include <sys/types.h>

enum group {
	COST,		/* one CPU; memory, instructions */
	CONTENTION,	/* two CPUs; events */
};

/* Each runs in a process of its own that has just called exec. */
struct workload {
	const char *name;
	enum group group;
	void (*run)(void);
	const char *why;
};

extern const struct workload memory_workloads[];
extern const struct workload call_workloads[];
extern const struct workload walk_workloads[];
extern const struct workload ksm_workloads[];
extern const struct workload contend_workloads[];

enum cache {
	ANON_VMA, ANON_VMA_CHAIN, COW_CONTEXT, MAPLE_NODE, VM_AREA, MM_STRUCT,
	NR_CACHES
};

struct memory {
	long objects[NR_CACHES];
	long size[NR_CACHES];
};

/* Seen by the whole family. */
struct shared {
	__u64 stamp, cost;
	long count, stop, nr;
};

extern struct shared *shared;
extern const char *self_path;
extern size_t page;
extern int reps;
extern int ready[2], go[2];

#define ARRAY_SIZE(a)	 ((int)(sizeof(a) / sizeof((a)[0])))
#define MAP_ANON_PRIVATE (MAP_PRIVATE | MAP_ANONYMOUS)
#define RW		 (PROT_READ | PROT_WRITE)

static inline void touch(void *p, long v)
{
	__atomic_store_n((long *)p, v, __ATOMIC_RELAXED);
}

/* bench.c: the clock, records, and giving up */
__u64 now(void);
const char *cost_unit(void);
int sized(int full, int quick);
[[gnu::format(printf, 3, 4)]]
void value(const char *unit, double v, const char *fmt, ...);
[[gnu::format(printf, 2, 3)]]
void cost(double v, const char *fmt, ...);
void point(const char *plot, const char *series, double x, double y);
void skipped(const char *name, const char *why);
__u64 median(__u64 *v, int nr);
void need(bool ok, const char *what);
bool write_text(const char *path, const char *text);
long read_counter(const char *path, const char *key);

/* bench.c: processes */
void undisturbed(void);
pid_t member(void (*setup)(long nr), long nr);
void tell_ready(void);
void wait_ready(void);
void end_members(void);
long exec_self(const char *verb);

/* bench.c: VMAs of one page each, with a gap of one page behind each */
char *map_vmas(int nr);
char *map_vmas_at(char *at, int nr);
char *vma_at(char *area, int nr);
void touch_vmas(char *area, int nr);
void unmap_vmas(char *area, int nr);

/* bench.c: slabs */
void memory_read(struct memory *m);
long memory_rmap(const struct memory *m, const struct memory *before);
void memory_report(const char *name, const struct memory *before);

/* bench.c: pages */
__u64 pfn_of(pid_t pid, const void *addr);
void drain_lru(void);
long move_page(pid_t pid, void *addr, int node);
int other_node(void);
bool own_cgroup(const char *name);
void leave_cgroup(void);
bool reclaim_anon(const char *amount);

/* walk.c */
bool walk_pages(const __u64 *pfns, int nr, int rounds, double *walk);

#endif
