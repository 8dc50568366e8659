// SPDX-License-Identifier: GPL-2.0
/*
 * Who waits for whom, on two CPUs. Events are counted; times are listed only.
 *
 * A walk that has to wait for a lock sleeps, and nothing else in the loops here
 * does: so the voluntary context switches of the walker count the waits. The
 * pages are those of one VMA that was split, so that they share an anon_vma. To
 * give up is what folio_referenced() does instead: it only tries the lock. The
 * tracepoint of reclaim counts those, as nr_ref_keep: folios that were kept
 * although no mapping of them had been used.
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

static void start_stirring(void)
{
	int i;

	shared->stop = 0;
	shared->count = 0;
	for (i = 0; i < CHILDREN; i++) {
		pid_t pid = fork();

		need(pid >= 0, "fork");
		if (!pid)
			stir();
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

/* Walks of the pages of @area, and how often, and how long, one waited. */
static void walk_meanwhile(const char *name)
{
	struct rusage before, after;
	__u64 pfns[VMAS], word, start, took, longest = 0, begin = now();
	long rounds = shared->count;
	int fd, i;

	drain_lru();
	for (i = 0; i < VMAS; i++)
		pfns[i] = pfn_of(0, vma_at(area, i));
	fd = open(IDLE_FILE, O_RDWR);
	need(fd >= 0, IDLE_FILE);
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
	close(fd);
	value("count", after.ru_nvcsw - before.ru_nvcsw, "contention.%s.waits",
	      name);
	value("count", i, "contention.%s.walks", name);
	value("ns", longest, "contention.%s.longest", name);
	value("count", shared->count - rounds, "contention.%s.rounds", name);
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

static void stop_churn(pthread_t thread, const char *name)
{
	shared->stop = 1;
	pthread_join(thread, NULL);
	value("count", shared->count, "contention.%s.rounds", name);
}

struct shrunk {
	long scanned, reclaimed, kept;
};

/* Empties the trace buffer. */
static void read_trace(struct shrunk *s)
{
	int fd = open(TRACING "trace_pipe", O_RDONLY | O_NONBLOCK);
	static char buf[1 << 16];
	char *line, *p, *save;
	size_t have = 0;
	ssize_t len;

	memset(s, 0, sizeof(*s));
	if (fd < 0)
		return;
	while ((len = read(fd, buf + have, sizeof(buf) - 1 - have)) > 0) {
		have += len;
		buf[have] = '\0';
		p = strrchr(buf, '\n');
		if (!p)
			continue;
		*p++ = '\0';
		for (line = strtok_r(buf, "\n", &save); line;
		     line = strtok_r(NULL, "\n", &save)) {
			long v[3] = { 0 };
			char *f;

			f = strstr(line, "nr_scanned=");
			if (!f || sscanf(f, "nr_scanned=%ld nr_reclaimed=%ld",
					 &v[0], &v[1]) != 2)
				continue;
			f = strstr(line, "nr_ref_keep=");
			if (f)
				v[2] = atol(f + strlen("nr_ref_keep="));
			s->scanned += v[0];
			s->reclaimed += v[1];
			s->kept += v[2];
		}
		have = strlen(p);
		memmove(buf, p, have + 1);
	}
	close(fd);
}

/*
 * Reclaims pages of one mapping that nobody uses while a thread of the process
 * maps and unmaps. @apart: far away, so not in the same anon_vma.
 */
static void give_up(const char *name, bool apart)
{
	const size_t len = RECLAIM_PAGES * page;
	struct shrunk sum, s;
	pthread_t thread;
	__u64 start;
	size_t k;
	char *p;
	int i, r;

	p = mmap(NULL, 2 * len, PROT_NONE, MAP_ANON_PRIVATE, -1, 0);
	need(p != MAP_FAILED, "mmap");
	need(mmap(p, len, RW, MAP_ANON_PRIVATE | MAP_FIXED, -1, 0) == p,
	     "mmap");
	madvise(p, 2 * len, MADV_NOHUGEPAGE);
	if (!apart)
		munmap(p + len, len);
	thread = start_churn(apart ? p + len + len / 2 : p + len);
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
			read_trace(&s);
			need(write_text(TRACING "tracing_on", "1"), "trace");
			reclaim_anon("1M");
			reclaim_anon("1M");
			write_text(TRACING "tracing_on", "0");
			read_trace(&s);
			sum.scanned += s.scanned;
			sum.reclaimed += s.reclaimed;
			sum.kept += s.kept;
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
	stop_churn(thread, name);
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
	write_text(TRACING "tracing_on", "0");
	pin(0);
	give_up("beside", false);
	give_up("apart", true);
	write_text(SHRINK_EVENT "enable", "0");
	write_text(TRACING "tracing_on", "1");
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
	stop_churn(thread, "first_touch");
}

const struct workload contend_workloads[] = {
	{ "own", CONTENTION, own_pages,
	  "walks of the parent's own pages must not wait for its children" },
	{ "shared", CONTENTION, shared_pages,
	  "walks of what the children share, while they fork, unmap and exit" },
	{ "moved", CONTENTION, moved_pages,
	  "migration of it: how often must it give up" },
	{ "give-ups", CONTENTION, give_ups,
	  "one lock per mm: reclaim beside a thread that maps and unmaps" },
	{ "first-touch", CONTENTION, first_touches,
	  "first faults beside a thread that maps and unmaps far away" },
	{ }
};
