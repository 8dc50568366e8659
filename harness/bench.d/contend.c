// SPDX-License-Identifier: GPL-2.0
/*
 * Who waits for whom, on two CPUs. Events are counted; times are listed only.
 *
 * A walk that has to wait for a lock sleeps, and nothing else in the loops here
 * does: so the voluntary context switches of the walker count the waits. The
 * tracepoints lock:contention_begin and contention_end, which need no lockdep,
 * tell which of them were for an rwsem as a reader, as a walk is, and how long.
 * They are hit by waits only. The pages are those of one VMA that was split, so
 * that they share an anon_vma. To give up is what folio_referenced() does
 * instead: it only tries the lock. The tracepoint of reclaim counts those, as
 * nr_ref_keep: folios that were kept although no mapping of them had been used.
 */

#define _GNU_SOURCE
#include "bench.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define VMAS		64
#define WALKS		20000
#define CHILDREN	4
#define MOVES		300
#define RECLAIM_PAGES	512
#define RECLAIM_ROUNDS	10
#define LIMIT_NSECS	10000000000ull	/* for one repetition, then enough */
#define IDLE_FILE	"/sys/kernel/mm/page_idle/bitmap"
#define TRACING		"/sys/kernel/tracing/"
#define SHRINK_EVENT	TRACING "events/vmscan/mm_vmscan_lru_shrink_inactive/"
#define BEGIN_EVENT	TRACING "events/lock/contention_begin/"
#define END_EVENT	TRACING "events/lock/contention_end/"

static char *area;

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static bool two_cpus(const char *name)
{
	if (sysconf(_SC_NPROCESSORS_ONLN) > 1)
		return true;
	skipped(name, "one CPU");
	return false;
}

static bool can_walk(const char *name)
{
	if (!access(IDLE_FILE, W_OK))
		return two_cpus(name);
	skipped(name, "no " IDLE_FILE);
	return false;
}

/* As of map_vmas(), but split off one VMA: they share an anon_vma. */
static char *split_vmas(void)
{
	char *p = mmap(NULL, 2 * VMAS * page, RW, MAP_ANON_PRIVATE, -1, 0);
	int i;

	need(p != MAP_FAILED, "mmap");
	madvise(p, 2 * VMAS * page, MADV_NOHUGEPAGE);
	touch_vmas(p, VMAS);
	for (i = 0; i < VMAS; i++)
		need(!mprotect(p + (2 * i + 1) * page, page, PROT_NONE),
		     "mprotect");
	return p;
}

/* What an ordinary process does to its memory, over and over. */
static void stir(void)
{
	char *own;
	pid_t pid;
	int i;

	pin(1);
	while (!shared->stop) {
		own = map_vmas(VMAS);
		touch_vmas(own, VMAS);
		unmap_vmas(own, VMAS);
		/* merge and split of what was inherited */
		for (i = 0; i < VMAS; i += 4)
			mprotect(vma_at(area, i) + page, page, RW);
		for (i = 0; i < VMAS; i += 4)
			mprotect(vma_at(area, i) + page, page, PROT_NONE);
		pid = fork();
		if (!pid) {
			unmap_vmas(area, VMAS / 2);
			_exit(0);
		}
		need(pid > 0 && waitpid(pid, NULL, 0) == pid, "fork");
		__sync_fetch_and_add(&shared->count, 1);
	}
	_exit(0);
}

/* Not in the caller's cgroup: of their memory only what they share is. */
static void start_stirring(void)
{
	int i;

	shared->stop = 0;
	shared->count = 0;
	for (i = 0; i < CHILDREN; i++) {
		pid_t pid = fork();

		need(pid >= 0, "fork");
		if (!pid) {
			leave_cgroup();
			stir();
		}
	}
	while (!shared->count)
		usleep(1000);
}

static void stop_stirring(void)
{
	shared->stop = 1;
	while (waitpid(-1, NULL, 0) > 0)
		;
}

/* What the events in the trace buffer say. */
struct trace {
	long scanned, reclaimed, kept;
	long waits, lost;
	__u64 longest, since;
	char lock[32];		/* being waited for */
};

static void shrink_event(struct trace *t, const char *line)
{
	const char *f = strstr(line, "nr_scanned="), *kept;
	long scanned, reclaimed;

	if (!f || sscanf(f, "nr_scanned=%ld nr_reclaimed=%ld", &scanned,
			 &reclaimed) != 2)
		return;
	kept = strstr(f, "nr_ref_keep=");
	if (kept)
		t->kept += atol(kept + strlen("nr_ref_keep="));
	t->scanned += scanned;
	t->reclaimed += reclaimed;
}

/*
 * "SECONDS.MICROSECONDS: contention_begin: LOCK (flags=READ)" is that of an
 * rwsem; while it waits, the task may contend for spinlocks.
 */
static void wait_event(struct trace *t, const char *line)
{
	const char *f = strstr(line, ": contention_");
	char what[8], lock[32], how[32];
	unsigned long sec, usec;
	__u64 time;

	while (f && f > line && f[-1] != ' ')
		f--;
	if (!f || sscanf(f, "%lu.%lu: contention_%7[a-z]: %31s (%31[^)]", &sec,
			 &usec, what, lock, how) != 5)
		return;
	time = sec * 1000000000ull + usec * 1000;
	if (!strcmp(how, "flags=READ")) {
		t->waits++;
		t->since = time;
		strcpy(t->lock, lock);
	} else if (!strcmp(what, "end") && !strcmp(lock, t->lock)) {
		if (time - t->since > t->longest)
			t->longest = time - t->since;
		t->lock[0] = '\0';
	}
}

/* Empties the trace buffer. */
static void read_trace(struct trace *t)
{
	int fd = open(TRACING "trace_pipe", O_RDONLY | O_NONBLOCK);
	static char buf[1 << 16];
	char *line, *p, *save;
	size_t have = 0;
	ssize_t len;

	need(fd >= 0, "trace_pipe");
	memset(t, 0, sizeof(*t));
	while ((len = read(fd, buf + have, sizeof(buf) - 1 - have)) > 0) {
		have += len;
		buf[have] = '\0';
		p = strrchr(buf, '\n');
		if (!p)
			continue;
		*p++ = '\0';
		for (line = strtok_r(buf, "\n", &save); line;
		     line = strtok_r(NULL, "\n", &save)) {
			shrink_event(t, line);
			wait_event(t, line);
			/* "CPU:0 [LOST 1 EVENTS]": overwritten */
			t->lost += !!strstr(line, " EVENTS]");
		}
		have = strlen(p);
		memmove(buf, p, have + 1);
	}
	close(fd);
}

static void start_trace(void)
{
	struct trace before;

	write_text(TRACING "tracing_on", "0");
	read_trace(&before);
	need(write_text(TRACING "tracing_on", "1"), "trace");
}

static void stop_trace(struct trace *t)
{
	write_text(TRACING "tracing_on", "0");
	read_trace(t);
	write_text(TRACING "tracing_on", "1");
	need(!t->lost, "the trace buffer was too small");
}

/*
 * Waits of this thread. It stays on CPU 0, so that CPU's clock and buffer do:
 * "local", the default trace clock, and room for seven waits in each walk.
 */
static bool enable_waits(void)
{
	char filter[32];

	snprintf(filter, sizeof(filter), "common_pid == %d", gettid());
	return write_text(BEGIN_EVENT "filter", filter) &&
	       write_text(END_EVENT "filter", filter) &&
	       write_text(BEGIN_EVENT "enable", "1") &&
	       write_text(END_EVENT "enable", "1") &&
	       write_text(TRACING "per_cpu/cpu0/buffer_size_kb", "8192");
}

static void disable_waits(void)
{
	write_text(BEGIN_EVENT "enable", "0");
	write_text(END_EVENT "enable", "0");
	write_text(BEGIN_EVENT "filter", "0");
	write_text(END_EVENT "filter", "0");
}

/* Walks of the pages of @area, and how often, and how long, one waited. */
static void walk_meanwhile(const char *name)
{
	struct rusage before, after;
	__u64 pfns[VMAS], word, start, took, longest = 0, begin = now();
	const bool traced = enable_waits();
	long rounds = shared->count;
	struct trace trace;
	char row[64];
	int fd, i;

	drain_lru();
	for (i = 0; i < VMAS; i++)
		pfns[i] = pfn_of(0, vma_at(area, i));
	fd = open(IDLE_FILE, O_RDWR);
	need(fd >= 0, IDLE_FILE);
	if (traced)
		start_trace();
	getrusage(RUSAGE_THREAD, &before);
	for (i = 0; i < sized(WALKS, 1000) &&
	     now() - begin < LIMIT_NSECS; i++) {
		word = 1ull << (pfns[i % VMAS] % 64);
		start = now();
		need(pwrite(fd, &word, 8, pfns[i % VMAS] / 64 * 8) == 8,
		     "page_idle");
		took = now() - start;
		if (took > longest)
			longest = took;
	}
	getrusage(RUSAGE_THREAD, &after);
	if (traced)
		stop_trace(&trace);
	disable_waits();
	close(fd);
	value("count", after.ru_nvcsw - before.ru_nvcsw, "contention.%s.waits",
	      name);
	value("count", i, "contention.%s.walks", name);
	value("ns", longest, "contention.%s.longest", name);
	value("count", shared->count - rounds, "contention.%s.rounds", name);
	if (!traced) {
		snprintf(row, sizeof(row), "contention.%s.lock_waits", name);
		skipped(row, "no tracepoints of lock contention");
		return;
	}
	value("count", trace.waits, "contention.%s.lock_waits", name);
	value("ns", trace.longest, "contention.%s.lock_longest", name);
}

/* The parent's own pages: no child maps them, so none may be waited for. */
static void own_pages(void)
{
	int r;

	if (!can_walk("contention.own.waits"))
		return;
	pin(0);
	area = split_vmas();
	for (r = 0; r < reps; r++) {
		start_stirring();
		touch_vmas(area, VMAS);
		walk_meanwhile("own");
		stop_stirring();
	}
}

/* Pages all children have: their VMAs are looked up, and may be busy. */
static void shared_pages(void)
{
	int r;

	if (!can_walk("contention.shared.waits"))
		return;
	pin(0);
	area = split_vmas();
	for (r = 0; r < reps; r++) {
		start_stirring();
		walk_meanwhile("shared");
		stop_stirring();
	}
}

static void moved_pages(void)
{
	const int node = other_node();
	int i, failed, moves = sized(MOVES, 100), r;
	long ret;

	if (!two_cpus("contention.move.failed"))
		return;
	if (node < 0) {
		skipped("contention.move.failed", "one NUMA node");
		return;
	}
	pin(0);
	area = split_vmas();
	for (r = 0; r < reps; r++) {
		start_stirring();
		for (i = 0, failed = 0; i < moves; i++) {
			ret = move_page(0, vma_at(area, i % VMAS),
					i / VMAS & 1 ? 0 : node);
			failed += ret < 0;
		}
		stop_stirring();
		value("count", failed, "contention.move.failed");
	}
}

/* Maps, touches and unmaps beside or within the pages that are reclaimed. */
static void *churn(void *arg)
{
	char *at = arg;

	pin(1);
	while (!shared->stop) {
		if (mmap(at, 8 * page, RW, MAP_ANON_PRIVATE | MAP_FIXED, -1,
			 0) != at)
			break;
		touch_vmas(at, 4);
		munmap(at, 8 * page);
		__sync_fetch_and_add(&shared->count, 1);
	}
	return NULL;
}

static pthread_t start_churn(char *at)
{
	pthread_t thread;

	shared->stop = 0;
	shared->count = 0;
	need(!pthread_create(&thread, NULL, churn, at), "pthread_create");
	return thread;
}

/* The rounds it has made. */
static long stop_churn(pthread_t thread)
{
	shared->stop = 1;
	pthread_join(thread, NULL);
	return shared->count;
}

enum disturber {
	BESIDE,		/* a thread that maps and unmaps next to the pages */
	APART,		/* one far away, so not in the same anon_vma */
	AMONG,		/* children that have the pages, too */
};

/* Reclaims pages of one mapping that nobody uses, while others are busy. */
static void give_up(const char *name, enum disturber who)
{
	const size_t len = RECLAIM_PAGES * page;
	struct trace sum, t;
	pthread_t thread = 0;
	__u64 start;
	long rounds = 0;
	size_t k;
	char *p;
	int i, r;

	p = mmap(NULL, 2 * len, PROT_NONE, MAP_ANON_PRIVATE, -1, 0);
	need(p != MAP_FAILED, "mmap");
	need(mmap(p, len, RW, MAP_ANON_PRIVATE | MAP_FIXED, -1, 0) == p,
	     "mmap");
	madvise(p, 2 * len, MADV_NOHUGEPAGE);
	if (who == BESIDE)
		munmap(p + len, len);
	if (who == AMONG)
		area = p;
	else
		thread = start_churn(p + len + (who == APART ? len / 2 : 0));
	for (r = 0; r < reps; r++) {
		memset(&sum, 0, sizeof(sum));
		start = now();
		for (i = 0; i < sized(RECLAIM_ROUNDS, 2) &&
		     now() - start < LIMIT_NSECS; i++) {
			for (k = 0; k < len; k += page)
				touch(p + k, k + 1);
			/*
			 * Not used since, so these are only kept for a lock.
			 * The few pages of the other thread may be in use.
			 */
			madvise(p, len, MADV_COLD);
			drain_lru();
			/* Only now: what is shared does not become cold. */
			if (who == AMONG)
				start_stirring();
			start_trace();
			reclaim_anon("1M");
			reclaim_anon("1M");
			stop_trace(&t);
			if (who == AMONG) {
				stop_stirring();
				rounds += shared->count;
			}
			sum.scanned += t.scanned;
			sum.reclaimed += t.reclaimed;
			sum.kept += t.kept;
		}
		if (!sum.reclaimed) {
			skipped(name, "nothing was reclaimed");
			break;
		}
		value("count", sum.kept, "contention.%s.gave_up", name);
		value("count", sum.scanned, "contention.%s.scanned", name);
		value("x", (double)(sum.reclaimed + sum.kept) / sum.reclaimed,
		      "contention.%s.tries", name);
	}
	if (who != AMONG)
		rounds = stop_churn(thread);
	value("count", rounds, "contention.%s.rounds", name);
	munmap(p, 2 * len);
}

static void give_ups(void)
{
	if (!two_cpus("contention.beside.tries"))
		return;
	if (!own_cgroup("give-ups")) {
		skipped("contention.beside.tries", "no memory cgroup");
		return;
	}
	if (!write_text(SHRINK_EVENT "enable", "1")) {
		skipped("contention.beside.tries", "no tracepoint");
		return;
	}
	pin(0);
	give_up("beside", BESIDE);
	give_up("apart", APART);
	give_up("children", AMONG);
	write_text(SHRINK_EVENT "enable", "0");
}

/* Faults that had to be tried again with mmap_lock, since boot. */
static long faults_again(void)
{
	return read_counter("/proc/vmstat", "vma_lock_retry") +
		read_counter("/proc/vmstat", "vma_lock_abort") +
		read_counter("/proc/vmstat", "vma_lock_miss");
}

/*
 * First faults while a thread of the process maps and unmaps far away. With the
 * VMA lock alone none has to be tried again with mmap_lock.
 */
static void first_touches(void)
{
	const char *name = "contention.first_touch.again";
	char *own, *far;
	pthread_t thread;
	int i, r;

	if (!two_cpus(name))
		return;
	if (read_counter("/proc/vmstat", "vma_lock_success") < 0) {
		skipped(name, "no PER_VMA_LOCK_STATS");
		return;
	}
	pin(0);
	far = mmap(NULL, 64 * page, PROT_NONE, MAP_ANON_PRIVATE, -1, 0);
	need(far != MAP_FAILED, "mmap");
	thread = start_churn(far + 8 * page);
	while (!shared->count)
		usleep(1000);
	for (r = 0; r < reps; r++) {
		long sum = 0, rounds = sized(100, 5);

		for (i = 0; i < rounds; i++) {
			own = map_vmas(VMAS);
			sum -= faults_again();
			touch_vmas(own, VMAS);
			sum += faults_again();
			unmap_vmas(own, VMAS);
		}
		value("count", sum, "%s", name);
		value("count", rounds * VMAS, "contention.first_touch.faults");
	}
	value("count", stop_churn(thread), "contention.first_touch.rounds");
}

const struct workload contend_workloads[] = {
	{ "own", CONTENTION, own_pages,
	  "walks of the parent's own pages must not wait for its children" },
	{ "shared", CONTENTION, shared_pages,
	  "walks of what the children share, while they fork, unmap and exit" },
	{ "moved", CONTENTION, moved_pages,
	  "migration of it: how often must it give up" },
	{ "give-ups", CONTENTION, give_ups,
	  "one lock per mm: reclaim beside a thread that maps, among children" },
	{ "first-touch", CONTENTION, first_touches,
	  "first faults beside a thread that maps and unmaps far away" },
	{ }
};
