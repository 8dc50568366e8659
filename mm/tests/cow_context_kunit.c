// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests for CoW contexts: life cycle, fork tree, remaps, tree walk.
 *
 * I1 and so on are the invariants in mm/cow_context.h.
 *
 * The contexts are real, the mms mostly are not: a struct test_mm has what
 * contexts use of an mm (mmap_lock, mm_mt, the pointer to the context) and
 * costs no page table. Each test leaves its family in test->priv; the suite's exit ends
 * every mm in it and then looks whether a context is left.
 *
 * Which deliberate break which test catches (each was tried):
 *
 *	mm/cow_context.c
 *	  fork: no reference to the parent		fork_links_child
 *	  fork: child linked behind its siblings	fork_links_child
 *	  fork: parent is @from though it shares	owners_max
 *	  fork: no limit of owners			owners_max, bounds
 *	  fork: remaps not inherited			remap_cases
 *	  detach: counts a second time			mm_life_cycle
 *	  detach: does not take the lock		races
 *	  mm_free: no put				mm_life_cycle
 *	  put: the parent's reference stays		dead_stay_linked, bounds
 *	  put: leave marker not unlinked		dead_stay_linked
 *	  hide: origins stay				walk_vmas
 *	  hide: the munmap in flight stays		walk_vmas
 *	  prepare: the context, not its owner		first_fault
 *	  move: recorded though in place, or no page	record_of_move
 *	  unmove: nothing is taken back			record_of_move, _of_growth
 *	  grow: the offset wraps, below and above	growth_wraps
 *	  ungrow: nothing is taken back			record_of_growth
 *	  ungrow: takes back what was not announced	record_of_growth
 *	  forget: the record stays			record_goes, reset_hides
 *	  skip: the parent's record goes		record_goes
 *	  wipe: the record, the offset stays		record_goes
 *	  reset: the origin, the record stays		reset_hides
 *	  reset: does not take the lock			reset_hides
 *	mm/mmap.c
 *	  fork: no origin				real_pages
 *	mm/cow_context_rmap.c
 *	  walk: dead contexts are visited		random_tree
 *	  walk: next pointer read before the visit	races
 *	  walk: a contended context is skipped		walk_waits, races
 *	  walk: no pin while it waits for the lock	walk_waits
 *	  walk: try_lock ignored			walk_stops
 *	  walk: ends at the first leave marker		random_tree
 *	  walk: pin of a long one is not put		walk_wide
 *	  walk: contention not told			walk_locks
 *	  walk: gives up without try_lock		walk_locks
 *	  VMA: of another mm				walk_vmas
 *	  VMA: origin deeper than the owner		walk_vmas
 *	  VMA: found from each record that it touches	walk_vmas
 *	  VMA: delta, hugetlb not compared		walk_vmas, walk_hugetlb
 *	  VMA: KSM's looked for where not moved only	walk_vmas
 *	  VMA: only the first one of a place		walk_vmas
 *	  VMA: munmap in flight not searched		walk_vmas
 *	  walk: an mm without users is passed by	random_tree
 *	  place: beyond the last page, not cut there	walk_layouts
 *	  one place: likewise, at an end of a record	walk_layouts
 *	  VMA: in the tree, below the same delta inline	walk_layouts
 *	  VMA: more, though one was enough		walk_layouts
 *	mm/cow_context_filter.c
 *	  add: the last piece is left out		filter, walk_vmas
 *	  add: large VMAs are left out			filter
 *	  unmapped: nothing is added again		walk_vmas
 *	  unmapped: made anew without its count		filter
 *	  unmapped: made anew too early, though empty	filter_made_anew
 *	  publish, move: bits are not set		filter_hooks
 *	mm/cow_context_validate.c
 *	  chain: unlinked ones, the origin ignored	checks_chain
 *	  chain: origin asked before the owner		checks_chain
 *	  VMA: shared, no owner, not around the mm	checks_vma
 *	  VMA: record of the first offset only		checks_vma
 *	  VMA: the temporary stack			checks_vma
 *	mm/cow_context_compare.c
 *	  set_owner: exclusive or not			shadow_owners, real_pages
 *	  copy_owner: of a file's			shadow_owners
 *	  is_mapped: migration entries only		real_pages, real_replaced
 *	  contention, extra visits not counted		real_pages, real_replaced
 *	  judge, search: a miss is not counted		real_missed
 *	  visits of what is not mapped make up for it	real_missed
 *	  KSM: relatives are judged			real_pages
 *	mm/cow_context_remap.c
 *	  add: inline record grows over a gap		remap_cases, model
 *	  add: inline record does not grow		remap_cases, model
 *	  del: trims the inline record at the wrong end	remap_cases, model
 *	  del: makes the hole of an inline record	remap_cases, model
 *	  del: inline record only, not the tree		remap_cases, model
 *	  add: in the tree and inline			remap_cases, model
 *	  set_change: the deltas it had are lost	remap_cases, model
 *	  tree_change: no second reference at a split	remap_sets, model
 *	  tree_change: replaced set is not put		remap_sets, model
 *	  dup: sets not referenced			remap_sets, model
 *	  free: sets not put				remap_sets, model
 *	  visit_remaps: the first delta of a set only	remap_cases, model
 *	  has_remaps: the tree is not asked		remap_cases, model
 *	mm/cow_context_anon.c, with CONFIG=pure
 *	  begin_move: does not take the lock		anon_locks
 *	  owner: swapped in and shared, yet its own	anon_owners
 *	  may_map: climbs beyond the origin		anon_owners
 *	  vma_get: no reference				anon_pins
 *	  walk: what is unmapped is not looked for	anon_walks
 *	  walk: ends at an exclusive page		anon_walks
 *	  walk: keeps its reference			anon_walks
 *	  KSM: no others are visited			anon_walks_addr
 *	  KSM: all in the first pass already		anon_walks_addr
 *	  visit: invalid_vma, done not asked		anon_walks_end
 *	  walk, KSM: contention not told		anon_walks_try
 *	  KSM: goes on in spite of it			anon_walks_try
 *	  get_owner: one without references		anon_pins
 *	  lock_all: in spite of a signal		anon_locks
 *	  prepare: no origin				real_pages
 */

#include <kunit/test.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/mmap_lock.h>
#include <linux/pagemap.h>
#include <linux/prandom.h>
#include <linux/random.h>
#include <linux/rmap.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/uprobes.h>
#include <linux/wait.h>

#include "../cow_context.h"
#include "../internal.h"

/* -------------------------------------------------------------------------
 * Families of mms.
 */

#define NR_SLOTS	2

/**
 * struct test_mm - an mm without address space
 * @node: In family->mms.
 * @ptl: Its page table lock, protects @entry.
 * @entry: Its page table: 0, or the number of the walk that was here last.
 * @visitors: Walkers inside.
 * @gone: Detached.
 * @mm: Last, because it ends in a flexible array.
 */
struct test_mm {
	struct list_head node;
	spinlock_t ptl; /* entry */
	unsigned long entry[NR_SLOTS];
	atomic_t visitors;
	bool gone;
	struct mm_struct mm;
};

/**
 * struct family - the mms of a test
 * @lock: Protects @mms and @nr_mms against the threads of a test.
 * @mms: Living mms.
 * @nr_mms: How many.
 * @root: Context of the first mm; the family keeps a reference.
 */
struct family {
	spinlock_t lock; /* mms, nr_mms */
	struct list_head mms;
	unsigned int nr_mms;
	struct cow_context *root;
};

static struct test_mm *to_test_mm(struct mm_struct *mm)
{
	return container_of(mm, struct test_mm, mm);
}

static struct cow_context *ctx_of(struct test_mm *tm)
{
	return tm->mm.cow_context;
}

/*
 * An mm that is forked from none; NULL if there is no memory. It has no user, as
 * while it exits: its entries count all the same.
 */
static struct test_mm *new_mm(struct family *family)
{
	struct test_mm *tm = kzalloc_obj(*tm);

	if (!tm)
		return NULL;
	spin_lock_init(&tm->ptl);
	init_rwsem(&tm->mm.mmap_lock);
	mm_lock_seqcount_init(&tm->mm);
	mt_init_flags(&tm->mm.mm_mt, MM_MT_FLAGS);
	mt_set_external_lock(&tm->mm.mm_mt, &tm->mm.mmap_lock);
	if (cow_context_mm_alloc(&tm->mm)) {
		kfree(tm);
		return NULL;
	}

	spin_lock(&family->lock);
	list_add_tail(&tm->node, &family->mms);
	family->nr_mms++;
	if (!family->root) {
		family->root = ctx_of(tm);
		cow_context_get(family->root);
	}
	spin_unlock(&family->lock);
	return tm;
}

static void lock_both(struct mm_struct *mm, struct mm_struct *oldmm)
{
	mmap_write_lock(oldmm);
	mmap_write_lock_nested(mm, SINGLE_DEPTH_NESTING);
}

static void unlock_both(struct mm_struct *mm, struct mm_struct *oldmm)
{
	mmap_write_unlock(mm);
	mmap_write_unlock(oldmm);
}

static void detach_mm(struct test_mm *tm)
{
	mmap_write_lock(&tm->mm);
	cow_context_detach(&tm->mm);
	mmap_write_unlock(&tm->mm);
}

/* exit and mmdrop in one; the memory is left to the caller. */
static void exit_mm_nofree(struct family *family, struct test_mm *tm)
{
	detach_mm(tm);
	WRITE_ONCE(tm->gone, true);
	cow_context_mm_free(&tm->mm);

	spin_lock(&family->lock);
	list_del(&tm->node);
	family->nr_mms--;
	spin_unlock(&family->lock);
}

static void exit_mm(struct family *family, struct test_mm *tm)
{
	exit_mm_nofree(family, tm);
	kfree(tm);
}

static struct test_mm *fork_mm(struct family *family, struct test_mm *from)
{
	struct test_mm *tm = new_mm(family);
	int err;

	if (!tm)
		return NULL;
	lock_both(&tm->mm, &from->mm);
	err = cow_context_fork(&tm->mm, &from->mm);
	unlock_both(&tm->mm, &from->mm);
	if (err) {
		exit_mm(family, tm);
		return NULL;
	}
	return tm;
}

static struct test_mm *must_fork(struct kunit *test, struct test_mm *from)
{
	struct test_mm *tm;

	tm = from ? fork_mm(test->priv, from) : new_mm(test->priv);
	KUNIT_ASSERT_NOT_NULL(test, tm);
	return tm;
}

static struct cow_marker *next_marker(struct cow_marker *pos)
{
	return list_next_entry(pos, list);
}

static unsigned int count_contexts(struct cow_context *root)
{
	struct cow_marker *pos;
	unsigned int nr = 0;

	for (pos = &root->enter; pos != &root->leave; pos = next_marker(pos))
		nr += !!pos->ctx;
	return nr;
}

/**
 * struct level - a context that is open at one point of a family's list
 * @ctx: The context.
 * @owner: The level of the innermost owner around whoever is forked from it.
 * @children: Contexts seen so far whose parent it is.
 * @dead: Dead contexts above it.
 */
struct level {
	struct cow_context *ctx;
	unsigned int owner;
	unsigned int children;
	unsigned int dead;
};

static void expect_entered(struct kunit *test, struct level *levels,
			   unsigned int nr, struct cow_context *ctx)
{
	struct level *level = &levels[nr];
	unsigned int depth = 0;

	*level = (struct level){ .ctx = ctx, .owner = nr };
	if (!nr) {
		KUNIT_ASSERT_NULL(test, ctx->parent);
	} else {
		const struct level *outer = &levels[nr - 1];
		struct level *parent = &levels[outer->owner];

		/* The innermost owner around it, however it came to be that. */
		KUNIT_ASSERT_PTR_EQ(test, ctx->parent, parent->ctx);
		parent->children++;
		depth = parent->ctx->depth + 1;
		level->dead = outer->dead + !outer->ctx->mm;
		if (depth >= COW_OWNERS_MAX)
			level->owner = outer->owner;
	}
	KUNIT_ASSERT_EQ(test, ctx->depth, depth);
	KUNIT_ASSERT_PTR_EQ(test, ctx->owner, levels[level->owner].ctx);
	KUNIT_ASSERT_TRUE(test, cow_context_is_linked(ctx));
	if (ctx->mm) {
		KUNIT_ASSERT_PTR_EQ(test, ctx->mm->cow_context, ctx);
		KUNIT_ASSERT_LE(test, level->dead, COW_OWNERS_MAX);
	}
}

/*
 * The whole family: markers nest, and every field follows from where its
 * context is. Returns the number of contexts.
 */
static unsigned int expect_sane(struct kunit *test)
{
	struct family *family = test->priv;
	struct cow_marker *pos = &family->root->enter;
	const unsigned int nr_contexts = count_contexts(family->root);
	unsigned int nr = 0;
	struct level *levels;

	levels = kunit_kcalloc(test, nr_contexts + 1, sizeof(*levels),
			       GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, levels);
	do {
		if (pos->ctx) {
			KUNIT_ASSERT_PTR_EQ(test, pos, &pos->ctx->enter);
			expect_entered(test, levels, nr++, pos->ctx);
		} else {
			const struct level *level;
			struct cow_context *ctx;

			KUNIT_ASSERT_GT(test, nr, 0);
			level = &levels[--nr];
			ctx = level->ctx;
			KUNIT_ASSERT_PTR_EQ(test, pos, &ctx->leave);
			KUNIT_ASSERT_EQ(test, refcount_read(&ctx->refs),
					level->children + !!ctx->mm +
					(ctx == family->root));
		}
		KUNIT_ASSERT_PTR_EQ(test, pos->list.next->prev, &pos->list);
		pos = next_marker(pos);
	} while (pos != &family->root->enter);
	KUNIT_ASSERT_EQ(test, nr, 0);
	kunit_kfree(test, levels);
	return nr_contexts;
}

/* End the family: no context but the pinned root may be left. */
static void end_family(struct kunit *test)
{
	struct family *family = test->priv;
	struct cow_context *root = family->root;
	struct test_mm *tm, *next;

	list_for_each_entry_safe(tm, next, &family->mms, node)
		exit_mm(family, tm);
	if (!root)
		return;

	KUNIT_EXPECT_EQ(test, count_contexts(root), 1);
	KUNIT_EXPECT_PTR_EQ(test, next_marker(&root->enter), &root->leave);
	KUNIT_EXPECT_PTR_EQ(test, next_marker(&root->leave), &root->enter);
	KUNIT_EXPECT_EQ(test, refcount_read(&root->refs), 1);
	KUNIT_EXPECT_EQ(test, cow_context_nr_remaps(root), 0);
	family->root = NULL;
	cow_context_put(root);
}

static int cow_context_test_init(struct kunit *test)
{
	struct family *family;

	family = kunit_kzalloc(test, sizeof(*family), GFP_KERNEL);
	if (!family)
		return -ENOMEM;
	spin_lock_init(&family->lock);
	INIT_LIST_HEAD(&family->mms);
	test->priv = family;
	return 0;
}

static void cow_context_test_exit(struct kunit *test)
{
	if (test->priv)
		end_family(test);
}

/* A number below @max. */
static unsigned int below(struct rnd_state *rnd, unsigned int max)
{
	return prandom_u32_state(rnd) % max;
}

/**
 * struct seed_case - where a random test starts
 * @name: For the log.
 * @seed: 0 for another one each time; printed then.
 * @base: Remaps: lowest offset.
 * @deep: Trees: fork mostly from the youngest.
 */
struct seed_case {
	const char *name;
	u32 seed;
	pgoff_t base;
	bool deep;
};

static void seed_rnd(struct kunit *test, struct rnd_state *rnd)
{
	const struct seed_case *param = test->param_value;
	u32 seed = param && param->seed ? param->seed : get_random_u32();

	kunit_info(test, "seed %#x", seed);
	prandom_seed_state(rnd, seed);
}

/* -------------------------------------------------------------------------
 * The object and its life cycle.
 */

/* Other mms come and go meanwhile, but what leaks stays. */
static void expect_stat(struct kunit *test, enum cow_context_stat stat,
			long expected)
{
	int i;

	for (i = 0; i < 100 && cow_context_stat_sum(stat) != expected; i++)
		msleep(20);
	KUNIT_EXPECT_EQ(test, cow_context_stat_sum(stat), expected);
}

/* Real mms: mm_alloc(), fork's hook, mmput() and mmdrop() leave nothing. */
static void mm_life_cycle(struct kunit *test)
{
	const long contexts = cow_context_stat_sum(COW_STAT_CONTEXTS);
	const long dead = cow_context_stat_sum(COW_STAT_DEAD);
	struct mm_struct *mm, *child;
	struct cow_context *ctx;
	int err;

	mm = mm_alloc();
	KUNIT_ASSERT_NOT_NULL(test, mm);
	ctx = mm->cow_context;
	KUNIT_ASSERT_NOT_NULL(test, ctx);
	KUNIT_EXPECT_PTR_EQ(test, ctx->mm, mm);
	mmdrop(mm);

	mm = mm_alloc();
	child = mm_alloc();
	if (!mm || !child) {
		KUNIT_FAIL(test, "mm_alloc() failed");
		goto out;
	}
	lock_both(child, mm);
	err = cow_context_fork(child, mm);
	unlock_both(child, mm);
	KUNIT_EXPECT_EQ(test, err, 0);

	/* The second time does nothing, nor does exit_mmap()'s after it. */
	ctx = child->cow_context;
	mmap_write_lock(child);
	cow_context_detach(child);
	KUNIT_EXPECT_NULL(test, ctx->mm);
	cow_context_detach(child);
	mmap_write_unlock(child);
	KUNIT_EXPECT_NULL(test, ctx->mm);
	KUNIT_EXPECT_EQ(test, refcount_read(&ctx->refs), 1);
out:
	if (child)
		mmput(child);
	if (mm)
		mmput(mm);
	rcu_barrier();
	expect_stat(test, COW_STAT_CONTEXTS, contexts);
	expect_stat(test, COW_STAT_DEAD, dead);
}

static void new_is_alone(struct kunit *test)
{
	struct test_mm *tm = must_fork(test, NULL);
	struct cow_context *ctx = ctx_of(tm);

	KUNIT_EXPECT_PTR_EQ(test, ctx->mm, &tm->mm);
	KUNIT_EXPECT_PTR_EQ(test, ctx->owner, ctx);
	KUNIT_EXPECT_NULL(test, ctx->parent);
	KUNIT_EXPECT_EQ(test, ctx->depth, 0);
	/* The mm's, and the family's pin. */
	KUNIT_EXPECT_EQ(test, refcount_read(&ctx->refs), 2);
	KUNIT_EXPECT_PTR_EQ(test, ctx->enter.ctx, ctx);
	KUNIT_EXPECT_NULL(test, ctx->leave.ctx);
	KUNIT_EXPECT_PTR_EQ(test, next_marker(&ctx->enter), &ctx->leave);
	KUNIT_EXPECT_PTR_EQ(test, next_marker(&ctx->leave), &ctx->enter);
	KUNIT_EXPECT_TRUE(test, cow_context_is_linked(ctx));
	KUNIT_EXPECT_EQ(test, cow_context_nr_remaps(ctx), 0);
	KUNIT_EXPECT_EQ(test, ctx->unmapping.nr, 0);
	KUNIT_EXPECT_EQ(test, expect_sane(test), 1);
}

/* a( c( ) b( d( ) ) ): a child comes directly behind the enter marker. */
static void fork_links_child(struct kunit *test)
{
	struct cow_context *a, *b, *c, *d;
	struct test_mm *mm_a, *mm_b;
	unsigned int i;

	mm_a = must_fork(test, NULL);
	mm_b = must_fork(test, mm_a);
	a = ctx_of(mm_a);
	b = ctx_of(mm_b);
	c = ctx_of(must_fork(test, mm_a));
	d = ctx_of(must_fork(test, mm_b));

	const struct cow_marker *order[] = {
		&a->enter, &c->enter, &c->leave, &b->enter,
		&d->enter, &d->leave, &b->leave, &a->leave,
	};
	struct cow_marker *pos = &a->enter;

	for (i = 0; i < ARRAY_SIZE(order); i++, pos = next_marker(pos))
		KUNIT_EXPECT_PTR_EQ(test, pos, order[i]);

	KUNIT_EXPECT_PTR_EQ(test, b->parent, a);
	KUNIT_EXPECT_PTR_EQ(test, c->parent, a);
	KUNIT_EXPECT_PTR_EQ(test, d->parent, b);
	KUNIT_EXPECT_PTR_EQ(test, d->owner, d);
	KUNIT_EXPECT_EQ(test, d->depth, 2);
	/* Two children, the mm, the family's pin. */
	KUNIT_EXPECT_EQ(test, refcount_read(&a->refs), 4);
	KUNIT_EXPECT_EQ(test, expect_sane(test), 4);
}

static void dead_stay_linked(struct kunit *test)
{
	struct family *family = test->priv;
	struct test_mm *a, *b, *c, *d;
	struct cow_context *ctx_b;

	a = must_fork(test, NULL);
	b = must_fork(test, a);
	c = must_fork(test, b);
	d = must_fork(test, b);
	ctx_b = ctx_of(b);

	exit_mm(family, b);
	KUNIT_EXPECT_NULL(test, ctx_b->mm);
	KUNIT_EXPECT_EQ(test, expect_sane(test), 4);
	exit_mm(family, c);
	KUNIT_EXPECT_EQ(test, expect_sane(test), 3);
	KUNIT_EXPECT_PTR_EQ(test, ctx_of(d)->parent, ctx_b);
	/* A pin alone keeps it linked, too. */
	cow_context_get(ctx_b);
	exit_mm(family, d);
	KUNIT_EXPECT_EQ(test, count_contexts(family->root), 2);
	KUNIT_EXPECT_TRUE(test, cow_context_is_linked(ctx_b));
	cow_context_put(ctx_b);
	KUNIT_EXPECT_EQ(test, expect_sane(test), 1);

	/* A chain that hangs on one mm goes as a whole. */
	b = must_fork(test, a);
	c = must_fork(test, b);
	d = must_fork(test, c);
	exit_mm(family, a);
	exit_mm(family, b);
	exit_mm(family, c);
	KUNIT_EXPECT_EQ(test, expect_sane(test), 4);
	exit_mm(family, d);
	KUNIT_EXPECT_EQ(test, count_contexts(family->root), 1);
}

static void owners_max(struct kunit *test)
{
	struct family *family = test->priv;
	struct test_mm *tm[COW_OWNERS_MAX + 6];
	struct cow_context *last_owner;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(tm); i++)
		tm[i] = must_fork(test, i ? tm[i - 1] : NULL);
	last_owner = ctx_of(tm[COW_OWNERS_MAX - 1]);

	for (i = 1; i < COW_OWNERS_MAX; i++) {
		KUNIT_EXPECT_PTR_EQ(test, ctx_of(tm[i])->owner, ctx_of(tm[i]));
		KUNIT_EXPECT_PTR_EQ(test, ctx_of(tm[i])->parent,
				    ctx_of(tm[i - 1]));
	}
	for (; i < ARRAY_SIZE(tm); i++) {
		struct cow_context *ctx = ctx_of(tm[i]);

		KUNIT_EXPECT_PTR_EQ(test, ctx->owner, last_owner);
		KUNIT_EXPECT_PTR_EQ(test, ctx->parent, last_owner);
		KUNIT_EXPECT_EQ(test, ctx->depth, COW_OWNERS_MAX);
		/* Nested all the same: what it forks is below it. */
		KUNIT_EXPECT_PTR_EQ(test, next_marker(&ctx_of(tm[i - 1])->enter),
				    &ctx->enter);
	}
	KUNIT_EXPECT_EQ(test, expect_sane(test), ARRAY_SIZE(tm));

	/* It goes with its mm, what is nested in it stays. */
	exit_mm(family, tm[COW_OWNERS_MAX + 1]);
	KUNIT_EXPECT_EQ(test, expect_sane(test), ARRAY_SIZE(tm) - 1);
	/* Owners stay. */
	exit_mm(family, tm[COW_OWNERS_MAX - 1]);
	exit_mm(family, tm[COW_OWNERS_MAX - 2]);
	KUNIT_EXPECT_EQ(test, expect_sane(test), ARRAY_SIZE(tm) - 1);
}

/* -------------------------------------------------------------------------
 * How many contexts stay.
 */

struct bound_case {
	const char *name;
	void (*run)(struct kunit *test, unsigned int nr, unsigned int overlap);
	unsigned int nr;
	unsigned int overlap;
	unsigned int contexts;
};

/* @gen forks and exits; its child is returned. */
static struct test_mm *next_generation(struct kunit *test, struct test_mm *gen)
{
	struct test_mm *child = must_fork(test, gen);

	exit_mm(test->priv, gen);
	return child;
}

static void bound_chain(struct kunit *test, unsigned int nr,
			unsigned int overlap)
{
	struct family *family = test->priv;
	struct test_mm *gen = must_fork(test, NULL);
	unsigned int i;

	for (i = 0; i < nr; i++) {
		gen = next_generation(test, gen);
		if (i % 128 == 0)
			KUNIT_ASSERT_LE(test, count_contexts(family->root),
					COW_OWNERS_MAX + 1);
	}
}

/* Each generation leaves a second child, which exits @overlap later. */
static void bound_comb(struct kunit *test, unsigned int nr,
		       unsigned int overlap)
{
	struct test_mm *gen = must_fork(test, NULL);
	struct test_mm **side;
	unsigned int i;

	side = kunit_kcalloc(test, nr, sizeof(*side), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, side);
	for (i = 0; i < nr; i++) {
		side[i] = must_fork(test, gen);
		gen = next_generation(test, gen);
		if (i >= overlap)
			exit_mm(test->priv, side[i - overlap]);
	}
}

/*
 * With no more than @nr living mms: grow a comb, keep its end alive, drop its
 * teeth, and again with what is left.
 */
static void bound_hold(struct kunit *test, unsigned int nr,
		       unsigned int overlap)
{
	struct family *family = test->priv;
	struct test_mm *root = must_fork(test, NULL);
	struct test_mm **side;
	unsigned int k;

	side = kunit_kcalloc(test, nr, sizeof(*side), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, side);
	for (k = nr - 2; k > 1; k--) {
		struct test_mm *gen = must_fork(test, root);
		const int room = nr - family->nr_mms - 2;
		int teeth, i;

		teeth = family->nr_mms + k <= nr ? k - 1 : max(0, room);
		for (i = 0; i < teeth; i++) {
			side[i] = must_fork(test, gen);
			gen = next_generation(test, gen);
			if (family->nr_mms >= nr) {
				i++;
				break;
			}
		}
		while (i--)
			exit_mm(family, side[i]);
		cond_resched();
	}
}

/* All live: nothing is bounded, and nothing may recurse when they exit. */
static void bound_line(struct kunit *test, unsigned int nr,
		       unsigned int overlap)
{
	struct family *family = test->priv;
	struct test_mm *tm = must_fork(test, NULL), *next;
	unsigned int i;

	for (i = 1; i < nr; i++)
		tm = must_fork(test, tm);
	KUNIT_EXPECT_EQ(test, expect_sane(test), nr);

	/* The oldest first: all but the last live below dead ones. */
	list_for_each_entry_safe(tm, next, &family->mms, node) {
		if (list_is_last(&tm->node, &family->mms))
			break;
		exit_mm(family, tm);
	}
}

static const struct bound_case bound_cases[] = {
	{ "chain of 10000", bound_chain, 10000, 0, COW_OWNERS_MAX + 1 },
	{ "line of 10000 living", bound_line, 10000, 0, COW_OWNERS_MAX + 1 },
	{ "comb, overlap 1", bound_comb, 3000, 1, COW_OWNERS_MAX + 2 },
	{ "comb, overlap 2", bound_comb, 3000, 2, COW_OWNERS_MAX + 3 },
	{ "comb, overlap 10", bound_comb, 3000, 10, COW_OWNERS_MAX + 11 },
	/* Computed with a model of the rule. */
	{ "hold and drop, 100 living", bound_hold, 100, 0, 4256 },
	{ "hold and drop, 300 living", bound_hold, 300, 0, 17056 },
};

KUNIT_ARRAY_PARAM_DESC(bound, bound_cases, name);

static void bounds(struct kunit *test)
{
	const struct bound_case *param = test->param_value;

	param->run(test, param->nr, param->overlap);
	KUNIT_EXPECT_EQ(test, expect_sane(test), param->contexts);
}

/* -------------------------------------------------------------------------
 * Random trees against plain arrays.
 */

#define MAX_NODES	160

/**
 * struct model_node - what a context must look like
 * @tm: Its mm while it lives.
 * @ctx: The context, or NULL if the node is free.
 * @parent: Node of its parent, or -1.
 * @depth: Its depth.
 * @refs: Its references.
 * @shares: It is not its own owner.
 * @visited: How often a walk came here.
 */
struct model_node {
	struct test_mm *tm;
	struct cow_context *ctx;
	int parent;
	unsigned int depth;
	int refs;
	bool shares;
	unsigned int visited;
};

/**
 * struct model - what a family must look like
 * @node: Its contexts.
 * @order: Its list: i + 1 where node i begins, -(i + 1) where it ends.
 * @len: Length of @order.
 * @nr_alive: Nodes with an mm.
 * @last_alive: The youngest of them, if it lives.
 * @pos: The walk: where in @order it is.
 * @bad: The walk: it was elsewhere.
 */
struct model {
	struct model_node node[MAX_NODES];
	int order[2 * MAX_NODES];
	int len;
	unsigned int nr_alive;
	int last_alive;
	int pos;
	unsigned int bad;
};

static int model_find(struct model *model, int mark)
{
	int i;

	for (i = 0; i < model->len; i++)
		if (model->order[i] == mark)
			return i;
	return -1;
}

static void model_insert(struct model *model, int at, int mark)
{
	memmove(&model->order[at + 1], &model->order[at],
		(model->len++ - at) * sizeof(model->order[0]));
	model->order[at] = mark;
}

static void model_remove(struct model *model, int mark)
{
	const int at = model_find(model, mark);

	memmove(&model->order[at], &model->order[at + 1],
		(--model->len - at) * sizeof(model->order[0]));
}

/* Returns the new node, or -1 if all are in use. */
static int model_fork(struct model *model, int from)
{
	struct model_node *node, *parent;
	int i, at = 0;

	for (i = 0; i < MAX_NODES && model->node[i].refs; i++)
		;
	if (i == MAX_NODES)
		return -1;
	node = &model->node[i];
	*node = (struct model_node){ .parent = -1, .refs = 1 };
	if (from >= 0) {
		parent = &model->node[from];
		node->parent = parent->shares ? parent->parent : from;
		parent = &model->node[node->parent];
		parent->refs++;
		node->depth = parent->depth + 1;
		node->shares = node->depth >= COW_OWNERS_MAX;
		at = model_find(model, from + 1) + 1;
	}
	model_insert(model, at, -(i + 1));
	model_insert(model, at, i + 1);
	model->nr_alive++;
	model->last_alive = i;
	return i;
}

static void model_exit(struct model *model, int i)
{
	model->node[i].tm = NULL;
	model->nr_alive--;
	for (; i >= 0 && !--model->node[i].refs; i = model->node[i].parent) {
		model_remove(model, i + 1);
		model_remove(model, -(i + 1));
		model->node[i].ctx = NULL;
	}
}

static int model_pick(struct model *model, struct rnd_state *rnd, bool deep)
{
	int i;

	if (deep && model->node[model->last_alive].tm && below(rnd, 8))
		return model->last_alive;
	do {
		i = below(rnd, MAX_NODES);
	} while (!model->node[i].tm);
	return i;
}

static void expect_order(struct kunit *test, struct model *model)
{
	struct family *family = test->priv;
	struct cow_marker *pos = &family->root->enter;
	int i;

	for (i = 0; i < model->len; i++, pos = next_marker(pos)) {
		const int mark = model->order[i];
		const struct model_node *node = &model->node[abs(mark) - 1];
		struct cow_context *ctx = node->ctx;

		KUNIT_ASSERT_PTR_EQ(test, pos,
				    mark > 0 ? &ctx->enter : &ctx->leave);
		if (mark < 0)
			continue;
		KUNIT_ASSERT_PTR_EQ(test, ctx->mm,
				    node->tm ? &node->tm->mm : NULL);
		KUNIT_ASSERT_PTR_EQ(test, ctx->parent, node->parent < 0 ? NULL :
				    model->node[node->parent].ctx);
		KUNIT_ASSERT_EQ(test, ctx->depth, node->depth);
		KUNIT_ASSERT_PTR_EQ(test, ctx->owner,
				    node->shares ? ctx->parent : ctx);
		KUNIT_ASSERT_EQ(test, refcount_read(&ctx->refs), node->refs);
	}
	KUNIT_ASSERT_PTR_EQ(test, pos, &family->root->enter);
}

/* The next context in the model's order that has an mm must be this one. */
static bool visit_model(struct cow_context *ctx, void *arg)
{
	struct model *model = arg;

	for (; model->pos < model->len; model->pos++) {
		const int mark = model->order[model->pos];

		if (mark > 0 && model->node[mark - 1].tm)
			break;
	}
	if (model->pos >= model->len ||
	    model->node[model->order[model->pos] - 1].ctx != ctx) {
		model->bad++;
		return false;
	}
	model->node[model->order[model->pos++] - 1].visited++;
	return true;
}

/* Below a node, the walk visits each living one once, in order. */
static void expect_walk(struct kunit *test, struct model *model, int top)
{
	int i, end = model_find(model, -(top + 1));

	for (i = 0; i < MAX_NODES; i++)
		model->node[i].visited = 0;
	model->pos = model_find(model, top + 1);
	i = model->pos;
	KUNIT_ASSERT_TRUE(test, cow_context_walk_tree(model->node[top].ctx,
						      false, NULL, visit_model,
						      model));
	KUNIT_ASSERT_EQ(test, model->bad, 0);
	KUNIT_ASSERT_LE(test, model->pos, end);
	for (; i < end; i++) {
		const int mark = model->order[i];

		if (mark > 0)
			KUNIT_ASSERT_EQ(test, model->node[mark - 1].visited,
					!!model->node[mark - 1].tm);
	}
}

static const struct seed_case tree_cases[] = {
	{ .name = "bushy, seed 1", .seed = 1 },
	{ .name = "bushy, random seed" },
	{ .name = "deep, seed 2", .seed = 2, .deep = true },
	{ .name = "deep, random seed", .deep = true },
};

KUNIT_ARRAY_PARAM_DESC(tree, tree_cases, name);

static void random_tree(struct kunit *test)
{
	const struct seed_case *param = test->param_value;
	struct family *family = test->priv;
	unsigned int step, target = 40;
	struct rnd_state rnd;
	struct model *model;
	int i, from;

	seed_rnd(test, &rnd);
	model = kunit_kzalloc(test, sizeof(*model), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, model);

	i = model_fork(model, -1);
	model->node[i].tm = must_fork(test, NULL);
	model->node[i].ctx = family->root;
	/* The family's pin. */
	model->node[i].refs++;

	for (step = 0; step < 4000; step++) {
		if (step % 256 == 0)
			target = 2 + below(&rnd, MAX_NODES - 2);
		i = -1;
		if (model->nr_alive < 2 || below(&rnd, target) >=
					   below(&rnd, 2 * model->nr_alive)) {
			from = model_pick(model, &rnd, param->deep);
			i = model_fork(model, from);
			if (i >= 0) {
				struct test_mm *tm;

				tm = must_fork(test, model->node[from].tm);
				model->node[i].tm = tm;
				model->node[i].ctx = ctx_of(tm);
			}
		}
		if (i < 0 && model->nr_alive > 1) {
			i = model_pick(model, &rnd, false);
			exit_mm(family, model->node[i].tm);
			model_exit(model, i);
		}
		expect_order(test, model);

		do {
			i = below(&rnd, MAX_NODES);
		} while (!model->node[i].ctx);
		expect_walk(test, model, i);
	}
	expect_sane(test);
}

/* -------------------------------------------------------------------------
 * The walk: ends, locks.
 */

/**
 * struct visits - what a walk did
 * @nr: Contexts visited.
 * @max: End the walk at so many.
 * @ctx: The contexts.
 */
struct visits {
	unsigned int nr;
	unsigned int max;
	struct cow_context *ctx[8];
};

static bool visit(struct cow_context *ctx, void *arg)
{
	struct visits *visits = arg;

	visits->ctx[visits->nr++] = ctx;
	return visits->nr < visits->max;
}

/**
 * struct job - something that another thread does once
 * @run: What.
 * @test: The test it belongs to.
 * @tm: The mm it is about.
 * @try_lock: For a walk.
 * @visits: Likewise.
 * @result: What the walk returned.
 * @done: It is done.
 */
struct job {
	void (*run)(struct job *job);
	struct kunit *test;
	struct test_mm *tm;
	bool try_lock;
	struct visits visits;
	bool result;
	struct completion done;
};

static int job_thread(void *arg)
{
	struct job *job = arg;

	job->run(job);
	complete(&job->done);
	return 0;
}

/* Created, not started: nothing is allocated while a context is locked. */
static struct task_struct *create_job(struct kunit *test, struct job *job)
{
	struct task_struct *task;

	init_completion(&job->done);
	job->test = test;
	task = kthread_create(job_thread, job, "cow_context_job");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, task);
	return task;
}

static void job_exit(struct job *job)
{
	exit_mm(job->test->priv, job->tm);
}

static void job_walk(struct job *job)
{
	struct family *family = job->test->priv;

	job->result = cow_context_walk_tree(family->root, job->try_lock, NULL,
					    visit, &job->visits);
}

/* false if it takes longer than it ever should. */
static bool wait_for_refs(struct cow_context *ctx, unsigned int refs)
{
	int i;

	for (i = 0; i < 500 && refcount_read(&ctx->refs) != refs; i++)
		msleep(20);
	return refcount_read(&ctx->refs) == refs;
}

static bool wait_for_waiter(struct rw_semaphore *rwsem)
{
	int i;

	for (i = 0; i < 500 && !rwsem_is_contended(rwsem); i++)
		msleep(20);
	return rwsem_is_contended(rwsem);
}

static void walk_stops(struct kunit *test)
{
	struct visits visits = { .max = 2 };
	struct test_mm *a, *b, *c;
	struct task_struct *task;
	struct job *job;
	bool ended;

	a = must_fork(test, NULL);
	c = must_fork(test, a);
	b = must_fork(test, a);

	/* @fn ends it: that is not contention. */
	KUNIT_EXPECT_TRUE(test, cow_context_walk_tree(ctx_of(a), true, NULL,
						      visit, &visits));
	KUNIT_EXPECT_EQ(test, visits.nr, 2);
	KUNIT_EXPECT_PTR_EQ(test, visits.ctx[0], ctx_of(a));
	KUNIT_EXPECT_PTR_EQ(test, visits.ctx[1], ctx_of(b));

	/* A contended lock ends it with try_lock, a reader's does not. */
	job = kunit_kzalloc(test, sizeof(*job), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, job);
	job->run = job_walk;
	job->try_lock = true;
	job->visits.max = 8;
	task = create_job(test, job);
	mmap_write_lock(&b->mm);
	cow_context_lock(&b->mm);
	wake_up_process(task);
	ended = wait_for_completion_timeout(&job->done, 10 * HZ);
	visits = (struct visits){ .max = 8 };
	KUNIT_EXPECT_TRUE(test, cow_context_walk_tree(ctx_of(c), true, NULL,
						      visit, &visits));
	KUNIT_EXPECT_EQ(test, visits.nr, 1);
	cow_context_unlock(&b->mm);
	mmap_write_unlock(&b->mm);
	if (!ended)
		wait_for_completion(&job->done);
	KUNIT_EXPECT_TRUE(test, ended);
	KUNIT_EXPECT_FALSE(test, job->result);
	KUNIT_EXPECT_EQ(test, job->visits.nr, 1);

	visits = (struct visits){ .max = 8 };
	KUNIT_EXPECT_TRUE(test, cow_context_walk_tree(ctx_of(a), true, NULL,
						      visit, &visits));
	KUNIT_EXPECT_EQ(test, visits.nr, 3);
	KUNIT_EXPECT_PTR_EQ(test, visits.ctx[2], ctx_of(c));
}

/*
 *	this thread	exit of b		walk of a( b( ) c( ) )
 *	-----------	---------		-----------------------
 *	R(b)
 *			detach: waits for W(b)
 *						visit a
 *						b contended: pin, wait
 *	unlock b
 *			b->mm = NULL, put
 *						R(b): no mm
 *						next, last put: unlink b
 *						visit c
 */
static void walk_waits(struct kunit *test)
{
	struct family *family = test->priv;
	struct task_struct *exit_task, *walk_task;
	struct job *exit_job, *walk_job;
	struct test_mm *a, *b, *c;
	struct cow_context *ctx_b;
	bool waits, pinned = false;

	a = must_fork(test, NULL);
	c = must_fork(test, a);
	b = must_fork(test, a);
	ctx_b = ctx_of(b);
	/* Only the walker's pin shall hold it in the end. */
	KUNIT_ASSERT_EQ(test, refcount_read(&ctx_b->refs), 1);

	exit_job = kunit_kzalloc(test, sizeof(*exit_job), GFP_KERNEL);
	walk_job = kunit_kzalloc(test, sizeof(*walk_job), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, exit_job);
	KUNIT_ASSERT_NOT_NULL(test, walk_job);
	exit_job->run = job_exit;
	exit_job->tm = b;
	walk_job->run = job_walk;
	walk_job->visits.max = 8;
	exit_task = create_job(test, exit_job);
	walk_task = create_job(test, walk_job);

	down_read(&ctx_b->rwsem);
	wake_up_process(exit_task);
	waits = wait_for_waiter(&ctx_b->rwsem);
	wake_up_process(walk_task);
	if (waits)
		pinned = wait_for_refs(ctx_b, 2);
	up_read(&ctx_b->rwsem);
	wait_for_completion(&exit_job->done);
	wait_for_completion(&walk_job->done);

	KUNIT_EXPECT_TRUE(test, waits);
	KUNIT_EXPECT_TRUE(test, pinned);
	KUNIT_EXPECT_TRUE(test, walk_job->result);
	KUNIT_EXPECT_EQ(test, walk_job->visits.nr, 2);
	KUNIT_EXPECT_PTR_EQ(test, walk_job->visits.ctx[0], ctx_of(a));
	KUNIT_EXPECT_PTR_EQ(test, walk_job->visits.ctx[1], ctx_of(c));
	KUNIT_EXPECT_EQ(test, count_contexts(family->root), 2);
	expect_sane(test);

	/* And one that is still there when its lock is free is visited. */
	b = must_fork(test, a);
	walk_job->visits = (struct visits){ .max = 8 };
	walk_task = create_job(test, walk_job);
	mmap_write_lock(&b->mm);
	cow_context_lock(&b->mm);
	wake_up_process(walk_task);
	pinned = wait_for_refs(ctx_of(b), 2);
	cow_context_unlock(&b->mm);
	mmap_write_unlock(&b->mm);
	wait_for_completion(&walk_job->done);
	KUNIT_EXPECT_TRUE(test, pinned);
	KUNIT_EXPECT_EQ(test, walk_job->visits.nr, 3);
	KUNIT_EXPECT_PTR_EQ(test, walk_job->visits.ctx[1], ctx_of(b));
	expect_sane(test);
}

static bool count_visit(struct cow_context *ctx, void *arg)
{
	unsigned int *nr = arg;

	++*nr;
	return true;
}

/* So many that the walk pins one now and then, to let others have the CPU. */
static void walk_wide(struct kunit *test)
{
	struct test_mm *a = must_fork(test, NULL);
	const unsigned int children = 600;
	struct cow_filter filter;
	unsigned int i, nr = 0;

	for (i = 0; i < children; i++)
		must_fork(test, a);
	KUNIT_EXPECT_TRUE(test, cow_context_walk_tree(ctx_of(a), false, NULL,
						      count_visit, &nr));
	KUNIT_EXPECT_EQ(test, nr, children + 1);

	/* They inherited nothing: it passes by. */
	nr = 0;
	cow_filter_folio(&filter, 1, 1);
	KUNIT_EXPECT_TRUE(test, cow_context_walk_tree(ctx_of(a), false, &filter,
						      count_visit, &nr));
	KUNIT_EXPECT_EQ(test, nr, 1);
	KUNIT_EXPECT_EQ(test, expect_sane(test), children + 1);
}

static void job_walk_one(struct job *job)
{
	struct cow_context_walk walk = {
		.owner = ctx_of(job->tm),
		.try_lock = job->try_lock,
	};

	cow_context_walk(&walk);
	job->result = !walk.contended;
}

/* What is not a walk of the tree alone. */
static void walk_locks(struct kunit *test)
{
	struct test_mm *tm = must_fork(test, NULL);
	struct cow_context_walk walk = {
		.owner = ctx_of(tm),
		.try_lock = true,
	};
	struct task_struct *task;
	struct job *job;
	bool waits;

	job = kunit_kzalloc(test, sizeof(*job), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, job);
	job->run = job_walk_one;
	job->tm = tm;
	task = create_job(test, job);

	mmap_write_lock(&tm->mm);
	cow_context_lock(&tm->mm);
	cow_context_walk(&walk);
	KUNIT_EXPECT_TRUE(test, walk.contended);
	/* Without try_lock it waits. */
	wake_up_process(task);
	waits = wait_for_waiter(&ctx_of(tm)->rwsem);
	cow_context_unlock(&tm->mm);
	mmap_write_unlock(&tm->mm);
	wait_for_completion(&job->done);
	KUNIT_EXPECT_TRUE(test, waits);
	KUNIT_EXPECT_TRUE(test, job->result);

	walk.contended = false;
	cow_context_walk(&walk);
	KUNIT_EXPECT_FALSE(test, walk.contended);

	/* Nobody is there any more. */
	detach_mm(tm);
	cow_context_walk(&walk);
	KUNIT_EXPECT_FALSE(test, walk.contended);
	KUNIT_EXPECT_EQ(test, walk.nr_vmas, 0);
}

/* -------------------------------------------------------------------------
 * Remaps, case by case.
 */

#define FAR	((long)BIT(BITS_PER_LONG - 14))

enum remap_op { ADD, DEL };

/**
 * struct remap_change - one change of a context's records
 * @op: Add or remove.
 * @remap: What.
 */
struct remap_change {
	enum remap_op op;
	struct cow_remap remap;
};

/**
 * struct remap_case - changes of a context without records, and the result
 * @name: For the log.
 * @change: Up to a record with delta 0.
 * @inline_remap: The inline record; delta 0 if none.
 * @tree: The tree's, up to a record with delta 0.
 */
struct remap_case {
	const char *name;
	struct remap_change change[8];
	struct cow_remap inline_remap;
	struct cow_remap tree[10];
};

static const struct remap_case remap_case_table[] = {
	{
		.name = "nothing",
	}, {
		.name = "nothing to remove",
		.change = { { DEL, { 1, 9, 5 } } },
	}, {
		.name = "the first is inline",
		.change = { { ADD, { 10, 19, 5 } } },
		.inline_remap = { 10, 19, 5 },
	}, {
		.name = "inline, negative, far away",
		.change = { { ADD, { FAR + 3, FAR + 3, -FAR } } },
		.inline_remap = { FAR + 3, FAR + 3, -FAR },
	}, {
		.name = "inline grows down by what touches it",
		.change = { { ADD, { 10, 19, -5 } }, { ADD, { 8, 9, -5 } } },
		.inline_remap = { 8, 19, -5 },
	}, {
		.name = "inline grows up by what touches it",
		.change = { { ADD, { 10, 19, -5 } }, { ADD, { 20, 29, -5 } } },
		.inline_remap = { 10, 29, -5 },
	}, {
		.name = "inline grows by what overlaps it",
		.change = { { ADD, { 10, 19, 5 } }, { ADD, { 4, 12, 5 } },
			    { ADD, { 15, 24, 5 } } },
		.inline_remap = { 4, 24, 5 },
	}, {
		.name = "inline takes what it holds, and what holds it",
		.change = { { ADD, { 10, 19, 5 } }, { ADD, { 12, 14, 5 } },
			    { ADD, { 9, 29, 5 } } },
		.inline_remap = { 9, 29, 5 },
	}, {
		.name = "a gap: to the tree",
		.change = { { ADD, { 10, 19, 5 } }, { ADD, { 21, 29, 5 } },
			    { ADD, { 2, 8, 5 } } },
		.inline_remap = { 10, 19, 5 },
		.tree = { { 2, 8, 5 }, { 21, 29, 5 } },
	}, {
		.name = "touches, with another delta: to the tree",
		.change = { { ADD, { 10, 19, 5 } }, { ADD, { 20, 29, 6 } } },
		.inline_remap = { 10, 19, 5 },
		.tree = { { 20, 29, 6 } },
	}, {
		.name = "inline trimmed at both ends",
		.change = { { ADD, { 10, 19, 5 } }, { DEL, { 10, 11, 5 } },
			    { DEL, { 17, 30, 5 } } },
		.inline_remap = { 12, 16, 5 },
	}, {
		.name = "inline trimmed beyond its ends",
		.change = { { ADD, { 10, 19, 5 } }, { DEL, { 2, 12, 5 } },
			    { DEL, { 19, 19, 5 } } },
		.inline_remap = { 13, 18, 5 },
	}, {
		.name = "inline removed",
		.change = { { ADD, { 10, 19, 5 } }, { DEL, { 10, 19, 5 } } },
	}, {
		.name = "inline removed by more than it has",
		.change = { { ADD, { 10, 19, 5 } }, { DEL, { 0, 30, 5 } } },
	}, {
		.name = "inline removed in two pieces",
		.change = { { ADD, { 10, 19, 5 } }, { DEL, { 10, 14, 5 } },
			    { DEL, { 15, 19, 5 } } },
	}, {
		.name = "a hole: inline stays wider than needed",
		.change = { { ADD, { 10, 19, 5 } }, { DEL, { 14, 15, 5 } } },
		.inline_remap = { 10, 19, 5 },
	}, {
		.name = "inline: other delta, other range",
		.change = { { ADD, { 10, 19, 5 } }, { DEL, { 10, 19, -5 } },
			    { DEL, { 0, 9, 5 } }, { DEL, { 20, 29, 5 } } },
		.inline_remap = { 10, 19, 5 },
	}, {
		.name = "inline is used again, the tree stays",
		.change = { { ADD, { 10, 19, 5 } }, { ADD, { 10, 19, 6 } },
			    { DEL, { 10, 19, 5 } }, { ADD, { 30, 39, 7 } } },
		.inline_remap = { 30, 39, 7 },
		.tree = { { 10, 19, 6 } },
	}, {
		.name = "inline grows over what the tree has: not in both",
		.change = { { ADD, { 0, 3, 5 } }, { ADD, { 8, 9, 5 } },
			    { ADD, { 4, 8, 5 } } },
		.inline_remap = { 0, 8, 5 },
		.tree = { { 9, 9, 5 } },
	}, {
		.name = "inline is used again for what the tree has",
		.change = { { ADD, { 0, 3, 5 } }, { ADD, { 10, 19, 6 } },
			    { DEL, { 0, 3, 5 } }, { ADD, { 12, 29, 6 } } },
		.inline_remap = { 12, 29, 6 },
		.tree = { { 10, 11, 6 } },
	}, {
		.name = "removed from both",
		.change = { { ADD, { 0, 3, 5 } }, { ADD, { 8, 9, 5 } },
			    { ADD, { 4, 8, 5 } }, { DEL, { 7, 9, 5 } } },
		.inline_remap = { 0, 6, 5 },
	}, {
		.name = "tree at offset 0 alone",
		.change = { { ADD, { 10, 19, 5 } }, { ADD, { 0, 0, 5 } },
			    { ADD, { 0, 0, 4 } } },
		.inline_remap = { 10, 19, 5 },
		.tree = { { 0, 0, 4 }, { 0, 0, 5 } },
	}, {
		.name = "tree, negative, far away",
		.change = { { ADD, { 1, 1, 1 } }, { ADD, { FAR, FAR, -FAR } },
			    { ADD, { 7, 8, FAR } }, { ADD, { FAR, FAR, -1 } } },
		.inline_remap = { 1, 1, 1 },
		.tree = { { 7, 8, FAR }, { FAR, FAR, -FAR },
			  { FAR, FAR, -1 } },
	}, {
		.name = "tree: several deltas",
		.change = { { ADD, { 1, 1, 1 } }, { ADD, { 5, 9, 3 } },
			    { ADD, { 5, 9, -3 } }, { ADD, { 5, 9, 8 } },
			    { ADD, { 5, 9, -8 } }, { ADD, { 5, 9, 1 } } },
		.inline_remap = { 1, 1, 1 },
		.tree = { { 5, 9, -8 }, { 5, 9, -3 }, { 5, 9, 1 }, { 5, 9, 3 },
			  { 5, 9, 8 } },
	}, {
		.name = "tree: the same again changes nothing",
		.change = { { ADD, { 1, 1, 1 } }, { ADD, { 5, 9, 3 } },
			    { ADD, { 5, 9, 4 } }, { ADD, { 5, 9, 3 } },
			    { ADD, { 6, 7, 4 } } },
		.inline_remap = { 1, 1, 1 },
		.tree = { { 5, 9, 3 }, { 5, 9, 4 } },
	}, {
		.name = "tree: ranges that overlap are split",
		.change = { { ADD, { 1, 1, 1 } }, { ADD, { 10, 19, 3 } },
			    { ADD, { 15, 24, -4 } } },
		.inline_remap = { 1, 1, 1 },
		.tree = { { 10, 14, 3 }, { 15, 19, -4 }, { 15, 19, 3 },
			  { 20, 24, -4 } },
	}, {
		.name = "tree: a set in the middle",
		.change = { { ADD, { 1, 1, 1 } }, { ADD, { 10, 19, 3 } },
			    { ADD, { 13, 15, -4 } } },
		.inline_remap = { 1, 1, 1 },
		.tree = { { 10, 12, 3 }, { 13, 15, -4 }, { 13, 15, 3 },
			  { 16, 19, 3 } },
	}, {
		.name = "tree: over ranges and gaps",
		.change = { { ADD, { 1, 1, 1 } }, { ADD, { 10, 11, 3 } },
			    { ADD, { 14, 15, 4 } }, { ADD, { 9, 16, 2 } } },
		.inline_remap = { 1, 1, 1 },
		.tree = { { 9, 9, 2 }, { 10, 11, 2 }, { 10, 11, 3 },
			  { 12, 13, 2 }, { 14, 15, 2 }, { 14, 15, 4 },
			  { 16, 16, 2 } },
	}, {
		.name = "tree: removed over ranges and gaps",
		.change = { { ADD, { 1, 1, 1 } }, { ADD, { 10, 11, 3 } },
			    { ADD, { 14, 15, 4 } }, { ADD, { 9, 16, 2 } },
			    { DEL, { 0, 30, 2 } } },
		.inline_remap = { 1, 1, 1 },
		.tree = { { 10, 11, 3 }, { 14, 15, 4 } },
	}, {
		.name = "tree: one of two",
		.change = { { ADD, { 1, 1, 1 } }, { ADD, { 10, 19, 3 } },
			    { ADD, { 10, 19, -4 } }, { DEL, { 10, 19, 3 } } },
		.inline_remap = { 1, 1, 1 },
		.tree = { { 10, 19, -4 } },
	}, {
		.name = "tree: one of three, in the middle",
		.change = { { ADD, { 1, 1, 1 } }, { ADD, { 10, 19, 3 } },
			    { ADD, { 10, 19, -4 } }, { ADD, { 10, 19, 7 } },
			    { DEL, { 12, 13, 3 } } },
		.inline_remap = { 1, 1, 1 },
		.tree = { { 10, 11, -4 }, { 10, 11, 3 }, { 10, 11, 7 },
			  { 12, 13, -4 }, { 12, 13, 7 },
			  { 14, 19, -4 }, { 14, 19, 3 }, { 14, 19, 7 } },
	}, {
		.name = "tree: a hole is made",
		.change = { { ADD, { 1, 1, 1 } }, { ADD, { 10, 19, 3 } },
			    { DEL, { 14, 15, 3 } } },
		.inline_remap = { 1, 1, 1 },
		.tree = { { 10, 13, 3 }, { 16, 19, 3 } },
	}, {
		.name = "tree: other delta, other range",
		.change = { { ADD, { 1, 1, 1 } }, { ADD, { 10, 19, 3 } },
			    { DEL, { 10, 19, -3 } }, { DEL, { 0, 9, 3 } },
			    { DEL, { 20, 29, 3 } } },
		.inline_remap = { 1, 1, 1 },
		.tree = { { 10, 19, 3 } },
	}, {
		.name = "tree: the largest deltas there are",
		.change = { { ADD, { 1, 1, 1 } }, { ADD, { 10, 19, LONG_MAX } },
			    { ADD, { 10, 19, LONG_MIN } },
			    { DEL, { 12, 13, LONG_MAX } },
			    { DEL, { 16, 19, LONG_MIN } } },
		.inline_remap = { 1, 1, 1 },
		.tree = { { 10, 11, LONG_MIN }, { 10, 11, LONG_MAX },
			  { 12, 13, LONG_MIN }, { 14, 15, LONG_MIN },
			  { 14, 15, LONG_MAX }, { 16, 19, LONG_MAX } },
	}, {
		.name = "all removed",
		.change = { { ADD, { 1, 1, 1 } }, { ADD, { 10, 19, 3 } },
			    { ADD, { 12, 13, -4 } }, { DEL, { 10, 14, 3 } },
			    { DEL, { 1, 1, 1 } }, { DEL, { 12, 13, -4 } },
			    { DEL, { 15, 19, 3 } } },
	},
};

KUNIT_ARRAY_PARAM_DESC(remap, remap_case_table, name);

static bool has_remap(struct cow_context *ctx, pgoff_t index, long delta)
{
	return cow_context_has_remaps(ctx, index, index, delta);
}

static void expect_remap(struct kunit *test, const struct cow_remap *remap,
			 const struct cow_remap *expected)
{
	KUNIT_EXPECT_EQ(test, remap->first, expected->first);
	KUNIT_EXPECT_EQ(test, remap->last, expected->last);
	KUNIT_EXPECT_EQ(test, remap->delta, expected->delta);
}

/* The records of a context: the inline one, then the tree's, sorted. */
#define MAX_RECORDS	512

struct record_list {
	unsigned int nr;
	struct cow_remap remap[MAX_RECORDS];
};

static bool list_record(const struct cow_remap *remap, void *arg)
{
	struct record_list *list = arg;

	if (list->nr == MAX_RECORDS)
		return false;
	list->remap[list->nr++] = *remap;
	return true;
}

static int compare_records(const void *a, const void *b)
{
	const struct cow_remap *x = a, *y = b;

	return x->first != y->first ? cmp_int(x->first, y->first) :
				      cmp_int(x->delta, y->delta);
}

/* @has_first: The first one is to be the inline one. */
static struct record_list *list_records(struct kunit *test,
					struct cow_context *ctx, pgoff_t first,
					pgoff_t last, bool has_first)
{
	struct record_list *list = kunit_kzalloc(test, sizeof(*list), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, list);
	KUNIT_ASSERT_TRUE(test, cow_context_visit_remaps(ctx, first, last,
							 list_record, list));
	KUNIT_ASSERT_GE(test, list->nr, has_first);
	sort(list->remap + has_first, list->nr - has_first,
	     sizeof(*list->remap), compare_records, NULL);
	return list;
}

static void expect_case(struct kunit *test, struct cow_context *ctx,
			const struct remap_case *param)
{
	const struct cow_remap *remap = &param->inline_remap;
	struct record_list *list;
	unsigned int nr = 0;

	KUNIT_EXPECT_EQ(test, ctx->remap.delta, remap->delta);
	list = list_records(test, ctx, 0, ULONG_MAX, remap->delta);
	if (remap->delta)
		expect_remap(test, &list->remap[nr++], remap);
	for (remap = param->tree; remap->delta; remap++, nr++) {
		KUNIT_ASSERT_LT(test, nr, list->nr);
		expect_remap(test, &list->remap[nr], remap);

		KUNIT_EXPECT_TRUE(test, has_remap(ctx, remap->first,
						  remap->delta));
		KUNIT_EXPECT_TRUE(test, has_remap(ctx, remap->last,
						  remap->delta));
		KUNIT_EXPECT_FALSE(test, has_remap(ctx, remap->first,
						   remap->delta + FAR / 2));
	}
	KUNIT_EXPECT_EQ(test, list->nr, nr);
	KUNIT_EXPECT_EQ(test, cow_context_nr_remaps(ctx), nr);
	kunit_kfree(test, list);
}

static void remap_cases(struct kunit *test)
{
	const struct remap_case *param = test->param_value;
	static const struct remap_case nothing;
	struct test_mm *tm = must_fork(test, NULL), *child;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(param->change); i++) {
		const struct cow_remap *remap = &param->change[i].remap;

		if (!remap->delta)
			break;
		if (param->change[i].op == DEL)
			cow_context_del_remap(ctx_of(tm), remap->first,
					      remap->last, remap->delta);
		else
			KUNIT_ASSERT_EQ(test, 0,
					cow_context_add_remap(ctx_of(tm),
							      remap->first,
							      remap->last,
							      remap->delta));
	}
	expect_case(test, ctx_of(tm), param);

	/* The child has the same, and of its own. */
	child = must_fork(test, tm);
	expect_case(test, ctx_of(child), param);
	cow_context_free_remaps(ctx_of(tm));
	expect_case(test, ctx_of(tm), &nothing);
	expect_case(test, ctx_of(child), param);
	detach_mm(child);
	expect_case(test, ctx_of(child), &nothing);
}

static void *entry_at(struct cow_context *ctx, pgoff_t index)
{
	MA_STATE(mas, &ctx->remaps, index, index);
	void *entry;

	rcu_read_lock();
	entry = mas_walk(&mas);
	rcu_read_unlock();
	return entry;
}

/*
 * The references of a set: the first member of struct cow_remap_set, which is
 * private to mm/cow_context_remap.c.
 */
static int set_refs(const void *set)
{
	return refcount_read((const refcount_t *)set);
}

/* Each range of each context that points to a set has a reference. */
static void remap_sets(struct kunit *test)
{
	struct test_mm *tm = must_fork(test, NULL), *child;
	struct cow_context *ctx = ctx_of(tm);
	void *set, *set_2;

	KUNIT_ASSERT_EQ(test, 0, cow_context_add_remap(ctx, 1, 1, 1));
	KUNIT_ASSERT_EQ(test, 0, cow_context_add_remap(ctx, 10, 19, 3));
	KUNIT_ASSERT_EQ(test, 0, cow_context_add_remap(ctx, 10, 19, -4));
	set = entry_at(ctx, 10);
	KUNIT_EXPECT_EQ(test, set_refs(set), 1);

	/* Cut at an end, then in the middle. */
	cow_context_del_remap(ctx, 10, 10, 3);
	KUNIT_EXPECT_PTR_EQ(test, entry_at(ctx, 11), set);
	KUNIT_EXPECT_EQ(test, set_refs(set), 1);
	cow_context_del_remap(ctx, 14, 15, 3);
	KUNIT_EXPECT_PTR_NE(test, entry_at(ctx, 14), set);
	KUNIT_EXPECT_EQ(test, set_refs(entry_at(ctx, 14)), 1);
	KUNIT_EXPECT_PTR_EQ(test, entry_at(ctx, 13), set);
	KUNIT_EXPECT_PTR_EQ(test, entry_at(ctx, 16), set);
	KUNIT_EXPECT_EQ(test, set_refs(set), 2);

	/* Fork shares it, a change replaces it. */
	child = must_fork(test, tm);
	KUNIT_EXPECT_PTR_EQ(test, entry_at(ctx_of(child), 13), set);
	KUNIT_EXPECT_EQ(test, set_refs(set), 4);
	KUNIT_ASSERT_EQ(test, 0, cow_context_add_remap(ctx_of(child),
						       16, 19, 8));
	set_2 = entry_at(ctx_of(child), 16);
	KUNIT_EXPECT_PTR_NE(test, set_2, set);
	KUNIT_EXPECT_EQ(test, set_refs(set_2), 1);
	KUNIT_EXPECT_EQ(test, set_refs(set), 3);
	KUNIT_EXPECT_FALSE(test, has_remap(ctx, 16, 8));

	/* What goes with one mm stays the other's. */
	detach_mm(tm);
	KUNIT_EXPECT_EQ(test, set_refs(set), 1);
	KUNIT_EXPECT_PTR_EQ(test, entry_at(ctx_of(child), 11), set);
	KUNIT_EXPECT_TRUE(test, has_remap(ctx_of(child), 13, 3));
	KUNIT_EXPECT_TRUE(test, has_remap(ctx_of(child), 13, -4));

	/* The last range puts it; RCU keeps it a while. */
	rcu_read_lock();
	cow_context_free_remaps(ctx_of(child));
	KUNIT_EXPECT_EQ(test, set_refs(set), 0);
	KUNIT_EXPECT_EQ(test, set_refs(set_2), 0);
	rcu_read_unlock();
}

/* -------------------------------------------------------------------------
 * Remaps, model check against plain arrays.
 */

#define NR_OFFSETS	64
#define NR_DELTAS	8
#define NR_CONTEXTS	4
#define NR_STEPS	3000

static const long model_deltas[NR_DELTAS] = {
	-FAR, -64, -3, -1, 1, 2, 70, FAR,
};

/**
 * struct model_remaps - what a context must have recorded
 * @tm: Its mm, or NULL.
 * @wanted: Deltas by offset, one bit each: added and not removed since.
 * @tree: Likewise, what the tree has.
 * @first: The inline record's range.
 * @last: Its last offset.
 * @delta: Its delta's number, -1 if there is none.
 */
struct model_remaps {
	struct test_mm *tm;
	u8 wanted[NR_OFFSETS];
	u8 tree[NR_OFFSETS];
	unsigned int first;
	unsigned int last;
	int delta;
};

/**
 * struct remap_model - a model check
 * @test: The test.
 * @rnd: Where it is.
 * @base: The lowest offset.
 * @root: All contexts are forked below this one, which has no record.
 * @remaps: The contexts.
 */
struct remap_model {
	struct kunit *test;
	struct rnd_state rnd;
	pgoff_t base;
	struct test_mm *root;
	struct model_remaps remaps[NR_CONTEXTS];
};

static bool model_inline(const struct model_remaps *remaps, unsigned int i,
			 int delta)
{
	return remaps->delta == delta && i >= remaps->first &&
		i <= remaps->last;
}

static void model_add(struct model_remaps *remaps, unsigned int first,
		      unsigned int last, int delta)
{
	unsigned int i;

	for (i = first; i <= last; i++)
		remaps->wanted[i] |= BIT(delta);

	/* Not in both. */
	for (i = first; i <= last; i++)
		remaps->tree[i] &= ~BIT(delta);
	if (remaps->delta < 0) {
		remaps->delta = delta;
		remaps->first = first;
		remaps->last = last;
	} else if (remaps->delta == delta && first <= remaps->last + 1 &&
		   remaps->first <= last + 1) {
		remaps->first = min(remaps->first, first);
		remaps->last = max(remaps->last, last);
	} else {
		for (i = first; i <= last; i++)
			remaps->tree[i] |= BIT(delta);
	}
}

static void model_del(struct model_remaps *remaps, unsigned int first,
		      unsigned int last, int delta)
{
	unsigned int i;

	for (i = first; i <= last; i++) {
		remaps->wanted[i] &= ~BIT(delta);
		remaps->tree[i] &= ~BIT(delta);
	}
	if (remaps->delta != delta)
		return;

	/* The inline record has no holes: only its ends can go. */
	while (remaps->first <= remaps->last &&
	       first <= remaps->first && remaps->first <= last)
		remaps->first++;
	while (remaps->first <= remaps->last &&
	       first <= remaps->last && remaps->last <= last)
		remaps->last--;
	if (remaps->first > remaps->last)
		remaps->delta = -1;
}

/* Change a context and its model. */
static void change_remaps(struct remap_model *model,
			  struct model_remaps *remaps)
{
	struct cow_context *ctx = ctx_of(remaps->tm);
	struct rnd_state *rnd = &model->rnd;
	const int delta = below(rnd, NR_DELTAS);
	unsigned int first, last;
	int err;

	first = below(rnd, NR_OFFSETS);
	last = first + below(rnd, below(rnd, 4) ? 8 : NR_OFFSETS);
	last = min(last, NR_OFFSETS - 1U);

	if (below(rnd, 16) < 9) {
		err = cow_context_add_remap(ctx, model->base + first,
					    model->base + last,
					    model_deltas[delta]);
		KUNIT_ASSERT_EQ(model->test, err, 0);
		model_add(remaps, first, last, delta);
	} else {
		cow_context_del_remap(ctx, model->base + first,
				      model->base + last,
				      model_deltas[delta]);
		model_del(remaps, first, last, delta);
	}
}

static int delta_number(struct kunit *test, long delta)
{
	int i;

	for (i = 0; i < NR_DELTAS && model_deltas[i] != delta; i++)
		;
	KUNIT_ASSERT_LT(test, i, NR_DELTAS);
	return i;
}

/* has_remap() of everything. */
static void expect_records(struct remap_model *model,
			   const struct model_remaps *remaps)
{
	struct cow_context *ctx = ctx_of(remaps->tm);
	struct kunit *test = model->test;
	unsigned int i;
	int delta;

	for (i = 0; i < NR_OFFSETS; i++) {
		for (delta = 0; delta < NR_DELTAS; delta++) {
			const bool wanted = remaps->wanted[i] & BIT(delta);
			const bool in_tree = remaps->tree[i] & BIT(delta);
			const bool first = model_inline(remaps, i, delta);
			bool has;

			has = has_remap(ctx, model->base + i,
					model_deltas[delta]);
			KUNIT_ASSERT_EQ(test, has, in_tree || first);
			/* Never missing; too wide only the inline record. */
			if (wanted)
				KUNIT_ASSERT_TRUE(test, has);
			else
				KUNIT_ASSERT_FALSE(test, in_tree);
		}
	}
	/* Just outside, and with deltas that nobody has. */
	KUNIT_ASSERT_FALSE(test, has_remap(ctx, model->base + NR_OFFSETS, -1));
	i = below(&model->rnd, NR_OFFSETS);
	KUNIT_ASSERT_FALSE(test, has_remap(ctx, model->base + i, -2));
	/* A whole range. */
	for (delta = 0; delta < NR_DELTAS; delta++) {
		const unsigned int first = below(&model->rnd, NR_OFFSETS);
		const unsigned int last = first +
			below(&model->rnd, NR_OFFSETS - first);
		bool all = true;

		for (i = first; i <= last; i++)
			if (!has_remap(ctx, model->base + i,
				       model_deltas[delta]))
				all = false;
		KUNIT_ASSERT_EQ(test, all,
				cow_context_has_remaps(ctx,
						       model->base + first,
						       model->base + last,
						       model_deltas[delta]));
	}
}

/* A random range gives each record once. */
static void expect_iteration(struct remap_model *model,
			     const struct model_remaps *remaps)
{
	struct cow_context *ctx = ctx_of(remaps->tm);
	struct kunit *test = model->test;
	const struct cow_remap *remap;
	u8 seen[NR_OFFSETS] = {};
	struct record_list *list;
	unsigned int i, first, last;
	bool has_first;
	int delta;

	first = below(&model->rnd, NR_OFFSETS);
	last = first + below(&model->rnd, NR_OFFSETS - first);
	has_first = remaps->delta >= 0 && remaps->first <= last &&
		remaps->last >= first;
	list = list_records(test, ctx, model->base + first, model->base + last,
			    has_first);
	remap = list->remap;
	if (has_first) {
		KUNIT_ASSERT_EQ(test, remap->first, model->base + remaps->first);
		KUNIT_ASSERT_EQ(test, remap->last, model->base + remaps->last);
		KUNIT_ASSERT_EQ(test, remap->delta, model_deltas[remaps->delta]);
		remap++;
	}

	for (; remap < list->remap + list->nr; remap++) {
		KUNIT_ASSERT_LE(test, remap->first, remap->last);
		KUNIT_ASSERT_LE(test, remap->first, model->base + last);
		KUNIT_ASSERT_GE(test, remap->last, model->base + first);

		delta = delta_number(test, remap->delta);
		for (i = first; i <= last; i++) {
			const pgoff_t index = model->base + i;

			if (index < remap->first || index > remap->last)
				continue;
			KUNIT_ASSERT_TRUE(test, remaps->tree[i] & BIT(delta));
			KUNIT_ASSERT_FALSE(test, seen[i] & BIT(delta));
			seen[i] |= BIT(delta);
		}
	}
	for (i = first; i <= last; i++)
		KUNIT_ASSERT_EQ(test, remaps->tree[i] & ~seen[i], 0);
	kunit_kfree(test, list);
}

/* Every set has as many references as ranges that point to it. */
static void expect_set_refs(struct remap_model *model)
{
	struct {
		void *set;
		int refs;
	} *sets;
	struct kunit *test = model->test;
	unsigned int i, j, nr = 0;
	void *entry;

	sets = kunit_kcalloc(test, NR_CONTEXTS * NR_OFFSETS, sizeof(*sets),
			     GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, sets);
	for (i = 0; i < NR_CONTEXTS; i++) {
		if (!model->remaps[i].tm)
			continue;

		MA_STATE(mas, &ctx_of(model->remaps[i].tm)->remaps, 0, 0);

		rcu_read_lock();
		mas_for_each(&mas, entry, ULONG_MAX) {
			for (j = 0; j < nr && sets[j].set != entry; j++)
				;
			nr += j == nr;
			sets[j].set = entry;
			sets[j].refs++;
		}
		rcu_read_unlock();
	}
	for (j = 0; j < nr; j++)
		KUNIT_ASSERT_EQ(test, set_refs(sets[j].set), sets[j].refs);
	kunit_kfree(test, sets);
}

static void change_contexts(struct remap_model *model)
{
	struct model_remaps *to, *from;

	to = &model->remaps[below(&model->rnd, NR_CONTEXTS)];
	from = &model->remaps[below(&model->rnd, NR_CONTEXTS)];
	if (to == from)
		return;
	if (to->tm) {
		exit_mm(model->test->priv, to->tm);
		*to = (struct model_remaps){ .delta = -1 };
	} else {
		struct test_mm *tm;

		tm = must_fork(model->test, from->tm ?: model->root);
		if (from->tm)
			*to = *from;
		to->tm = tm;
		expect_records(model, to);
	}
}

static const struct seed_case model_cases[] = {
	{ .name = "from offset 0, seed 1", .seed = 1 },
	{ .name = "from offset 0, random seed" },
	{ .name = "seed 2", .seed = 2, .base = FAR + 4096 },
	{ .name = "seed 3", .seed = 3, .base = 100 },
	{ .name = "random seed", .base = FAR + 4096 },
};

KUNIT_ARRAY_PARAM_DESC(model, model_cases, name);

static void remap_model(struct kunit *test)
{
	const struct seed_case *param = test->param_value;
	struct model_remaps *remaps;
	struct remap_model *model;
	unsigned int step, i;

	model = kunit_kzalloc(test, sizeof(*model), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, model);
	seed_rnd(test, &model->rnd);
	model->test = test;
	model->base = param->base;
	model->root = must_fork(test, NULL);
	for (i = 0; i < NR_CONTEXTS; i++)
		model->remaps[i].delta = -1;

	for (step = 0; step < NR_STEPS; step++) {
		remaps = &model->remaps[below(&model->rnd, NR_CONTEXTS)];
		if (!remaps->tm || !below(&model->rnd, 64)) {
			change_contexts(model);
			continue;
		}
		change_remaps(model, remaps);
		expect_records(model, remaps);
		expect_iteration(model, remaps);
		if (step % 16 == 0)
			expect_set_refs(model);
		cond_resched();
	}
	for (i = 0; i < NR_CONTEXTS; i++)
		if (model->remaps[i].tm)
			expect_records(model, &model->remaps[i]);
}

/* -------------------------------------------------------------------------
 * VMAs that a walk visits, against all VMAs that the mm has.
 */

#define NR_VMAS		24
#define VMA_PAGES	128
#define FIRST_PAGE	0x10000UL

/**
 * struct vma_model - an mm with VMAs, forked from two without
 * @test: The test.
 * @rnd: Where it is.
 * @tm: The mms, each forked from the one before; the last has VMAs.
 * @vma: They, in address order.
 * @visits: How often each was visited.
 * @nr: How many there are.
 * @removed: One that mm_mt had before, or NULL.
 * @first: The first one of the munmap in flight.
 * @last: The last one, exclusive.
 * @detached: The side tree of the munmap.
 * @strange: Visits of something else.
 * @unmoved: Nothing was moved: one lookup is all for a page.
 */
struct vma_model {
	struct kunit *test;
	struct rnd_state rnd;
	struct test_mm *tm[3];
	struct vm_area_struct *vma[NR_VMAS];
	unsigned int visits[NR_VMAS];
	unsigned int nr;
	struct vm_area_struct *removed;
	unsigned int first;
	unsigned int last;
	struct maple_tree detached;
	unsigned int strange;
	bool unmoved;
};

/* The walk as @visit gets it. */
struct vma_walk {
	struct cow_context_walk walk;
	struct vma_model *model;
};

static bool visit_vma(struct cow_context_walk *walk, struct vm_area_struct *vma)
{
	struct vma_model *model;
	unsigned int i;

	model = container_of(walk, struct vma_walk, walk)->model;
	for (i = 0; i < model->nr && model->vma[i] != vma; i++)
		;
	if (i < model->nr)
		model->visits[i]++;
	else
		model->strange++;
	return true;
}

static struct mm_struct *model_mm(struct vma_model *model)
{
	return &model->tm[2]->mm;
}

/* A VMA at random, faulted or not; moved ones have their record. */
static void add_vma(struct vma_model *model, unsigned long page,
		    unsigned long nr_pages)
{
	static const long deltas[] = { 0, 0, 0, 1, -7, -64, 64 };
	struct rnd_state *rnd = &model->rnd;
	struct kunit *test = model->test;
	struct vm_area_struct *vma;
	vm_flags_t flags = VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE;
	struct mm_struct *mm = model_mm(model);
	pgoff_t first = page;
	long delta;
	int err = 0;

	/* A half-forked child's mm_mt holds its parent's VMAs. */
	if (!below(rnd, 12))
		mm = &model->tm[1]->mm;
	if (IS_ENABLED(CONFIG_HUGETLB_PAGE) && !below(rnd, 4))
		flags |= VM_HUGETLB;

	vma = vm_area_alloc(mm);
	KUNIT_ASSERT_NOT_NULL(test, vma);
	vma_set_anonymous(vma);
	vm_flags_init(vma, flags);
	vma->vm_start = page << PAGE_SHIFT;
	vma->vm_end = (page + nr_pages) << PAGE_SHIFT;
	if (below(rnd, 6)) {
		delta = deltas[below(rnd, ARRAY_SIZE(deltas))];
		if (model->unmoved)
			delta = 0;
		first = page - delta;
		vma->origin = ctx_of(model->tm[below(rnd, 3)]);
		if (delta)
			err = cow_context_add_remap(ctx_of(model->tm[2]), first,
						    first + nr_pages - 1,
						    delta);
	}
	KUNIT_EXPECT_EQ(test, err, 0);
	vma->vm_pgoff = first;
	mmap_write_lock(mm);
	vma_set_anon_pgoff(vma, first);
	cow_filter_add_vma(vma);
	mmap_write_unlock(mm);
	model->vma[model->nr++] = vma;
}

static void store_vma(struct vma_model *model, struct maple_tree *tree,
		      unsigned long first, unsigned long last, void *entry)
{
	MA_STATE(mas, tree, first, last);

	KUNIT_ASSERT_EQ(model->test, 0,
			mas_store_gfp(&mas, entry, GFP_KERNEL));
}

static void setup_vmas(struct vma_model *model)
{
	struct rnd_state *rnd = &model->rnd;
	struct mm_struct *mm = model_mm(model);
	unsigned long page = below(rnd, 4);
	unsigned int i;

	model->nr = 0;
	model->unmoved = below(rnd, 2);
	while (page < VMA_PAGES && model->nr < NR_VMAS) {
		const unsigned long nr_pages = 1 + below(rnd, 10);

		add_vma(model, FIRST_PAGE + page, nr_pages);
		page += nr_pages + (below(rnd, 2) ? 0 : below(rnd, 6));
	}
	/* Stale and too wide records do no harm. */
	if (!model->unmoved)
		KUNIT_ASSERT_EQ(model->test, 0,
				cow_context_add_remap(mm->cow_context,
						      FIRST_PAGE + below(rnd, 64),
						      FIRST_PAGE + 64 + below(rnd, 64),
						      below(rnd, 2) ? -7 : 9));

	mmap_write_lock(mm);
	for (i = 0; i < model->nr; i++)
		store_vma(model, &mm->mm_mt, model->vma[i]->vm_start,
			  model->vma[i]->vm_end - 1, model->vma[i]);
	mmap_write_unlock(mm);
}

/*
 * One leaves mm_mt as it is, as when another takes it in: the one that a walk found
 * last, if there is.
 */
static void take_out_vma(struct vma_model *model)
{
	unsigned int i = below(&model->rnd, model->nr), n;
	struct mm_struct *mm = model_mm(model);
	struct vm_area_struct *vma;

	for (n = 0; n < model->nr; n++)
		if (model->vma[n] == mm->cow_context->unmapping.last_found)
			i = n;
	vma = model->vma[i];
	mmap_write_lock(mm);
	store_vma(model, &mm->mm_mt, vma->vm_start, vma->vm_end - 1, NULL);
	cow_context_lock(mm);
	cow_context_unlock(mm);
	mmap_write_unlock(mm);
	model->removed = vma;
	model->nr--;
	memmove(&model->vma[i], &model->vma[i + 1],
		(model->nr - i) * sizeof(model->vma[0]));
}

/* Some neighbours leave mm_mt for the side tree of a munmap. */
static void begin_unmap(struct vma_model *model)
{
	struct mm_struct *mm = model_mm(model);
	unsigned int i;

	model->first = below(&model->rnd, model->nr);
	model->last = model->first + 1 +
		below(&model->rnd, model->nr - model->first);
	mt_init_flags(&model->detached, MT_FLAGS_LOCK_EXTERN);
	mt_on_stack(model->detached);

	mmap_write_lock(mm);
	for (i = model->first; i < model->last; i++)
		store_vma(model, &model->detached, i - model->first,
			  i - model->first, model->vma[i]);
	for (i = model->first; i < model->last; i++)
		store_vma(model, &mm->mm_mt, model->vma[i]->vm_start,
			  model->vma[i]->vm_end - 1, NULL);
	cow_context_lock(mm);
	cow_context_begin_unmap(mm, &model->detached,
				model->last - model->first);
	cow_context_unlock(mm);
	mmap_write_unlock(mm);
}

/* Their PTEs are zapped. Without begin_unmap() they are still in mm_mt. */
static void hide_vmas(struct vma_model *model)
{
	MA_STATE(mas, &model_mm(model)->mm_mt, 0, 0);
	struct vm_area_struct *vma = model->vma[model->first];
	struct mm_struct *mm = model_mm(model);
	struct unmap_desc unmap = {
		.mas = &mas,
		.first = vma,
		.tree_reset = vma->vm_end,
		.tree_end = model->vma[model->last - 1]->vm_end,
	};

	mmap_write_lock(mm);
	mas_set(&mas, unmap.tree_reset);
	cow_context_hide(&unmap);
	mmap_write_unlock(mm);
}

static void free_vmas(struct vma_model *model)
{
	struct mm_struct *mm = model_mm(model);

	mmap_write_lock(mm);
	__mt_destroy(&mm->mm_mt);
	mmap_write_unlock(mm);
	while (model->nr)
		vm_area_free(model->vma[--model->nr]);
	if (model->removed)
		vm_area_free(model->removed);
	model->removed = NULL;
}

/* What the walk must do with one VMA, without looking for it. */
static bool is_expected(struct vma_model *model, unsigned int i, bool hidden,
			const struct cow_context_walk *walk)
{
	const struct vm_area_struct *vma = model->vma[i];
	const pgoff_t first = vma_start_anon_pgoff(vma);
	const pgoff_t last = first + vma_pages(vma) - 1;

	if (vma->vm_mm != model_mm(model) || !vma->origin)
		return false;
	if (hidden && i >= model->first && i < model->last)
		return false;
	/* The origin encloses the owner; all three contexts enclose the mm. */
	if (!walk->ksm && vma->origin->depth > walk->owner->depth)
		return false;
	if (!!(vma->vm_flags & VM_HUGETLB) != walk->hugetlb)
		return false;
	return first <= walk->last && last >= walk->first;
}

/**
 * struct seek - is a VMA among those that are visited?
 * @walk: The walk.
 * @vma: The VMA.
 * @found: It is.
 */
struct seek {
	struct cow_context_walk walk;
	const struct vm_area_struct *vma;
	bool found;
};

static bool seek_visit(struct cow_context_walk *walk,
		       struct vm_area_struct *vma)
{
	struct seek *seek = container_of(walk, struct seek, walk);

	seek->found = vma == seek->vma;
	return !seek->found;
}

/* Does a walk visit @vma when it gets to its mm? Under R of @ctx. */
static bool is_visited(const struct cow_context_walk *walk,
		       struct cow_context *ctx,
		       const struct vm_area_struct *vma)
{
	struct seek seek = { .walk = *walk, .vma = vma };

	seek.walk.visit = seek_visit;
	cow_context_walk_mm(ctx, &seek.walk);
	return seek.found;
}

static void expect_visits_once(struct vma_model *model, bool hidden)
{
	struct rnd_state *rnd = &model->rnd;
	struct cow_context *ctx = ctx_of(model->tm[2]);
	struct kunit *test = model->test;
	struct vma_walk *walk;
	unsigned int i, nr = 0;

	walk = kunit_kzalloc(test, sizeof(*walk), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, walk);
	memset(model->visits, 0, sizeof(model->visits));
	walk->model = model;
	walk->walk = (struct cow_context_walk){
		.owner = ctx_of(model->tm[below(rnd, 3)]),
		.first = FIRST_PAGE - 64 + below(rnd, VMA_PAGES + 128),
		.try_lock = below(rnd, 2),
		.hugetlb = IS_ENABLED(CONFIG_HUGETLB_PAGE) && !below(rnd, 4),
		.ksm = !below(rnd, 4),
		.visit = visit_vma,
	};
	if (model->removed && below(rnd, 2))
		walk->walk.first = vma_start_anon_pgoff(model->removed);
	walk->walk.last = walk->walk.first;
	if (walk->walk.ksm) {
		walk->walk.owner = ctx->owner;
		walk->walk.hugetlb = false;
	} else {
		walk->walk.last += below(rnd, below(rnd, 2) ? 1 : 64);
	}
	cow_context_walk(&walk->walk);

	KUNIT_ASSERT_FALSE(test, walk->walk.contended);
	KUNIT_ASSERT_EQ(test, model->strange, 0);
	down_read(&ctx->rwsem);
	for (i = 0; i < model->nr; i++) {
		const bool expected = is_expected(model, i, hidden,
						  &walk->walk);

		nr += expected;
		KUNIT_EXPECT_EQ(test, model->visits[i], expected);
		KUNIT_EXPECT_EQ(test, expected,
				is_visited(&walk->walk, ctx, model->vma[i]));
	}
	up_read(&ctx->rwsem);
	KUNIT_ASSERT_EQ(test, walk->walk.nr_vmas, nr);
	KUNIT_ASSERT_EQ(test, walk->walk.nr_overlap, nr ? nr - 1 : 0);
	kunit_kfree(test, walk);
}

static void expect_visits(struct vma_model *model, bool hidden)
{
	unsigned int i;

	for (i = 0; i < 12; i++)
		expect_visits_once(model, hidden);
}

static const struct seed_case vma_cases[] = {
	{ .name = "seed 1", .seed = 1 },
	{ .name = "seed 2", .seed = 2 },
	{ .name = "random seed" },
};

KUNIT_ARRAY_PARAM_DESC(vma, vma_cases, name);

static void walk_vmas(struct kunit *test)
{
	struct vma_model *model;
	unsigned int round;
	bool unmap;

	model = kunit_kzalloc(test, sizeof(*model), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, model);
	seed_rnd(test, &model->rnd);
	model->test = test;
	model->tm[0] = must_fork(test, NULL);
	model->tm[1] = must_fork(test, model->tm[0]);

	for (round = 0; round < 100; round++) {
		model->tm[2] = must_fork(test, model->tm[1]);
		setup_vmas(model);
		expect_visits(model, false);
		if (model->nr > 1) {
			take_out_vma(model);
			expect_visits(model, false);
		}

		unmap = below(&model->rnd, 2);
		if (unmap) {
			begin_unmap(model);
			expect_visits(model, false);
		} else {
			model->first = below(&model->rnd, model->nr);
			model->last = model->nr;
		}
		if (model->vma[model->first]->vm_mm == model_mm(model)) {
			hide_vmas(model);
			expect_visits(model, true);
		}
		if (unmap) {
			model_mm(model)->cow_context->unmapping =
				(struct cow_unmapping) {};
			__mt_destroy(&model->detached);
		}
		free_vmas(model);
		exit_mm(test->priv, model->tm[2]);
	}
}

/* -------------------------------------------------------------------------
 * Walks while other threads fork, exit and change geometry.
 *
 * An mm has two page table entries, one for each of two folios. An entry is
 * the number of the last walk that found it. Fork copies it, under both PTLs,
 * after the child is linked; exit zaps it before the mm is detached. A walk
 * raises the entries of its folio to its own number. After it, no living mm
 * has a lower one: neither has one that was forked meanwhile, whether it
 * copied the entry before or after the walk came to its parent.
 */

#define RACE_WORKERS	4
#define RACE_MMS	48
#define RACE_MIN_WALKS	60
#define RACE_MAX_WALKS	2000
#define RACE_SECONDS	2

/**
 * struct race - a walking thread, and others in its way
 * @test: The test.
 * @family: Its family.
 * @world: Read: something is going on. Write: all stand still.
 * @turn: Threads that let others run.
 * @lock: Protects @idle, @nr_idle and @graveyard.
 * @idle: Mms that no thread has claimed.
 * @nr_idle: How many.
 * @graveyard: Mms that are gone; a walker that should not might be inside.
 * @stop: Workers shall end.
 * @forks: Forks done.
 * @exits: Exits done.
 * @intruders: A walker was where W or a detach had kept it out.
 * @strays: A walk visited an mm that is gone.
 * @enomem: A fork failed.
 * @seed: Of the workers.
 */
struct race {
	struct kunit *test;
	struct family *family;
	struct rw_semaphore world;
	wait_queue_head_t turn;
	spinlock_t lock; /* idle, nr_idle, graveyard */
	struct test_mm *idle[RACE_MMS];
	unsigned int nr_idle;
	struct list_head graveyard;
	bool stop;
	atomic_t forks;
	atomic_t exits;
	atomic_t intruders;
	atomic_t strays;
	atomic_t enomem;
	u32 seed;
};

/**
 * struct race_worker - a thread that forks and exits
 * @race: The race.
 * @rnd: Its own.
 * @done: It has ended.
 */
struct race_worker {
	struct race *race;
	struct rnd_state rnd;
	struct completion done;
};

/**
 * struct race_walk - a walk
 * @race: The race.
 * @rnd: The walker's.
 * @slot: The folio.
 * @number: The number of the walk.
 * @visits: Contexts visited.
 */
struct race_walk {
	struct race *race;
	struct rnd_state rnd;
	unsigned int slot;
	unsigned long number;
	unsigned long visits;
};

/* Sometimes: let the others run, on one CPU too. */
static void let_others(struct race *race, struct rnd_state *rnd)
{
	DEFINE_WAIT(wait);

	if (below(rnd, 3))
		return;
	wake_up_all(&race->turn);
	prepare_to_wait(&race->turn, &wait, TASK_UNINTERRUPTIBLE);
	/* All others may be waiting for a lock that this one holds. */
	schedule_timeout(1);
	finish_wait(&race->turn, &wait);
}

static struct test_mm *race_claim(struct race *race, struct rnd_state *rnd)
{
	struct test_mm *tm = NULL;

	spin_lock(&race->lock);
	if (race->nr_idle) {
		const unsigned int i = below(rnd, race->nr_idle);

		tm = race->idle[i];
		race->idle[i] = race->idle[--race->nr_idle];
	}
	spin_unlock(&race->lock);
	return tm;
}

static void race_release(struct race *race, struct test_mm *tm)
{
	spin_lock(&race->lock);
	race->idle[race->nr_idle++] = tm;
	spin_unlock(&race->lock);
}

static void race_exit(struct race *race, struct rnd_state *rnd,
		      struct test_mm *tm)
{
	unsigned int slot;

	for (slot = 0; slot < NR_SLOTS; slot++) {
		spin_lock(&tm->ptl);
		tm->entry[slot] = 0;
		spin_unlock(&tm->ptl);
		let_others(race, rnd);
	}
	exit_mm_nofree(race->family, tm);
	if (atomic_read(&tm->visitors))
		atomic_inc(&race->intruders);

	spin_lock(&race->lock);
	list_add(&tm->node, &race->graveyard);
	spin_unlock(&race->lock);
	atomic_inc(&race->exits);
}

/* false: it failed on the way, as dup_mmap() can, and the child exits. */
static bool race_copy(struct race *race, struct rnd_state *rnd,
		      struct test_mm *child, struct test_mm *from)
{
	unsigned int slot;

	for (slot = 0; slot < NR_SLOTS; slot++) {
		let_others(race, rnd);
		spin_lock(&from->ptl);
		spin_lock_nested(&child->ptl, SINGLE_DEPTH_NESTING);
		child->entry[slot] = from->entry[slot];
		spin_unlock(&child->ptl);
		spin_unlock(&from->ptl);
		if (!below(rnd, 16))
			return false;
	}
	return true;
}

static void race_fork(struct race *race, struct rnd_state *rnd,
		      struct test_mm *from)
{
	struct test_mm *child = new_mm(race->family);
	bool ok = false;

	if (!child) {
		atomic_inc(&race->enomem);
		return;
	}
	lock_both(&child->mm, &from->mm);
	if (!cow_context_fork(&child->mm, &from->mm))
		ok = race_copy(race, rnd, child, from);
	else
		atomic_inc(&race->enomem);
	unlock_both(&child->mm, &from->mm);
	atomic_inc(&race->forks);

	if (ok)
		race_release(race, child);
	else
		race_exit(race, rnd, child);
}

/* Entries on the move are in no page table: W keeps walkers out. */
static void race_move(struct race *race, struct rnd_state *rnd,
		      struct test_mm *tm)
{
	unsigned long entry[NR_SLOTS];

	mmap_write_lock(&tm->mm);
	cow_context_lock(&tm->mm);
	spin_lock(&tm->ptl);
	memcpy(entry, tm->entry, sizeof(entry));
	memset(tm->entry, 0, sizeof(entry));
	spin_unlock(&tm->ptl);

	let_others(race, rnd);
	if (atomic_read(&tm->visitors))
		atomic_inc(&race->intruders);

	spin_lock(&tm->ptl);
	memcpy(tm->entry, entry, sizeof(entry));
	spin_unlock(&tm->ptl);
	cow_context_unlock(&tm->mm);
	mmap_write_unlock(&tm->mm);
}

static void race_step(struct race *race, struct rnd_state *rnd)
{
	const unsigned int nr_mms = READ_ONCE(race->family->nr_mms);
	struct test_mm *tm = race_claim(race, rnd);
	unsigned int dice = below(rnd, 16);

	if (!tm)
		return;
	/* Each worker may have one more in hand than the others know of. */
	if (dice < 8 && nr_mms < RACE_MMS - RACE_WORKERS) {
		race_fork(race, rnd, tm);
		race_release(race, tm);
	} else if (dice < 13 && nr_mms > RACE_WORKERS + 1) {
		race_exit(race, rnd, tm);
	} else {
		race_move(race, rnd, tm);
		race_release(race, tm);
	}
}

static int race_worker(void *arg)
{
	struct race_worker *worker = arg;
	struct race *race = worker->race;

	while (!READ_ONCE(race->stop)) {
		down_read(&race->world);
		race_step(race, &worker->rnd);
		up_read(&race->world);
		let_others(race, &worker->rnd);
		cond_resched();
	}
	complete(&worker->done);
	return 0;
}

static bool race_visit(struct cow_context *ctx, void *arg)
{
	struct test_mm *tm = to_test_mm(ctx->mm);
	struct race_walk *walk = arg;
	struct race *race = walk->race;

	atomic_inc(&tm->visitors);
	walk->visits++;
	if (READ_ONCE(tm->gone))
		atomic_inc(&race->strays);
	let_others(race, &walk->rnd);

	spin_lock(&tm->ptl);
	if (tm->entry[walk->slot])
		tm->entry[walk->slot] = walk->number;
	spin_unlock(&tm->ptl);

	let_others(race, &walk->rnd);
	if (READ_ONCE(tm->gone))
		atomic_inc(&race->strays);
	atomic_dec(&tm->visitors);
	return true;
}

/*
 * Where the next walk starts. Folio 0 is the root's. Folio 1 is a new one each
 * time: of the owner of some mm, and mapped there alone.
 */
static struct cow_context *race_top(struct race_walk *walk)
{
	struct family *family = walk->race->family;
	struct cow_context *top = family->root;
	struct test_mm *tm;
	unsigned int i;

	down_write(&walk->race->world);
	if (walk->slot) {
		i = below(&walk->rnd, family->nr_mms);
		list_for_each_entry(tm, &family->mms, node) {
			tm->entry[walk->slot] = 0;
			if (!i--) {
				tm->entry[walk->slot] = walk->number - 1;
				top = ctx_of(tm)->owner;
			}
		}
	}
	cow_context_get(top);
	up_write(&walk->race->world);
	return top;
}

/* Nothing moves: whom did the walk miss? Returns how many living mms. */
static unsigned int race_missed(struct race_walk *walk)
{
	struct race *race = walk->race;
	struct test_mm *tm, *next;
	unsigned int missed = 0;

	list_for_each_entry(tm, &race->family->mms, node) {
		const unsigned long entry = tm->entry[walk->slot];

		missed += entry && entry != walk->number;
	}
	list_for_each_entry_safe(tm, next, &race->graveyard, node) {
		list_del(&tm->node);
		kfree(tm);
	}
	return missed;
}

static void race_walks(struct kunit *test, struct race *race,
		       struct race_walk *walk)
{
	const unsigned long end = jiffies + RACE_SECONDS * HZ;
	unsigned int forks_inside = 0, exits_inside = 0;
	unsigned int nr, missed = 0;

	for (nr = 0; nr < RACE_MAX_WALKS; nr++) {
		unsigned int forks, exits;
		struct cow_context *top;

		if (nr >= RACE_MIN_WALKS && time_after(jiffies, end))
			break;
		walk->number += 2;
		walk->slot = nr % NR_SLOTS;
		top = race_top(walk);
		forks = atomic_read(&race->forks);
		exits = atomic_read(&race->exits);
		if (!cow_context_walk_tree(top, false, NULL, race_visit, walk))
			KUNIT_FAIL(test, "a walk without try_lock gave up");
		forks_inside += atomic_read(&race->forks) - forks;
		exits_inside += atomic_read(&race->exits) - exits;

		down_write(&race->world);
		missed += race_missed(walk);
		cow_context_put(top);
		up_write(&race->world);
		if (missed)
			break;
	}
	KUNIT_EXPECT_EQ(test, missed, 0);
	/* It raced at all. */
	KUNIT_EXPECT_GT(test, forks_inside, nr / 4);
	KUNIT_EXPECT_GT(test, exits_inside, nr / 4);
	KUNIT_EXPECT_GT(test, walk->visits, nr);
	kunit_info(test, "%u walks, %lu visits, meanwhile %u forks, %u exits",
		   nr, walk->visits, forks_inside, exits_inside);
}

static unsigned int race_start(struct race *race, struct race_worker *workers)
{
	unsigned int i;

	for (i = 0; i < RACE_WORKERS; i++) {
		struct task_struct *task;

		workers[i].race = race;
		init_completion(&workers[i].done);
		prandom_seed_state(&workers[i].rnd, race->seed + i);
		task = kthread_run(race_worker, &workers[i],
				   "cow_context_race/%u", i);
		if (IS_ERR(task))
			break;
	}
	return i;
}

/*
 * As long as all stand still after a walk, nothing may be asserted that ends
 * the test: the workers need its memory.
 */
static void races(struct kunit *test)
{
	struct race_worker *workers;
	struct race_walk *walk;
	unsigned int i, started;
	struct test_mm *tm;
	struct race *race;

	race = kunit_kzalloc(test, sizeof(*race), GFP_KERNEL);
	walk = kunit_kzalloc(test, sizeof(*walk), GFP_KERNEL);
	workers = kunit_kcalloc(test, RACE_WORKERS, sizeof(*workers),
				GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, race);
	KUNIT_ASSERT_NOT_NULL(test, walk);
	KUNIT_ASSERT_NOT_NULL(test, workers);

	race->test = test;
	race->family = test->priv;
	init_rwsem(&race->world);
	init_waitqueue_head(&race->turn);
	spin_lock_init(&race->lock);
	INIT_LIST_HEAD(&race->graveyard);
	walk->race = race;
	seed_rnd(test, &walk->rnd);
	race->seed = prandom_u32_state(&walk->rnd);

	tm = must_fork(test, NULL);
	tm->entry[0] = 1;
	race_release(race, tm);
	for (i = 0; i < RACE_MMS / 4; i++) {
		tm = must_fork(test, tm);
		tm->entry[0] = 1;
		race_release(race, tm);
	}

	started = race_start(race, workers);
	KUNIT_EXPECT_EQ(test, started, RACE_WORKERS);
	if (started)
		race_walks(test, race, walk);
	WRITE_ONCE(race->stop, true);
	for (i = 0; i < started; i++)
		wait_for_completion(&workers[i].done);

	race_missed(walk);
	KUNIT_EXPECT_EQ(test, atomic_read(&race->intruders), 0);
	KUNIT_EXPECT_EQ(test, atomic_read(&race->strays), 0);
	KUNIT_EXPECT_EQ(test, atomic_read(&race->enomem), 0);
	expect_sane(test);
}

/* -------------------------------------------------------------------------
 * Which contexts inherited what?
 */

static struct vm_area_struct *inherited_vma(struct kunit *test,
					    struct test_mm *tm,
					    struct test_mm *from,
					    unsigned long page,
					    unsigned long nr_pages)
{
	struct vm_area_struct *vma = vm_area_alloc(&tm->mm);

	KUNIT_ASSERT_NOT_NULL(test, vma);
	vma_set_anonymous(vma);
	vm_flags_init(vma, VM_READ | VM_WRITE | VM_MAYREAD | VM_MAYWRITE);
	vma->vm_start = page << PAGE_SHIFT;
	vma->vm_end = (page + nr_pages) << PAGE_SHIFT;
	vma->vm_pgoff = page;
	vma->origin = from ? ctx_of(from) : NULL;
	mmap_write_lock(&tm->mm);
	vma_set_anon_pgoff(vma, page);
	cow_filter_add_vma(vma);
	mmap_write_unlock(&tm->mm);
	return vma;
}

/* It was first faulted at page @first and moved to @page. */
static struct vm_area_struct *moved_vma(struct kunit *test, struct test_mm *tm,
					struct test_mm *from, pgoff_t first,
					unsigned long nr_pages,
					unsigned long page)
{
	struct vm_area_struct *vma = inherited_vma(test, tm, from, first,
						   nr_pages);

	mmap_write_lock(&tm->mm);
	KUNIT_EXPECT_EQ(test, 0, cow_context_move_vma(vma, first, nr_pages,
						      page << PAGE_SHIFT));
	mmap_write_unlock(&tm->mm);
	vma->vm_start = page << PAGE_SHIFT;
	vma->vm_end = (page + nr_pages) << PAGE_SHIFT;
	return vma;
}

static void attach_vma(struct kunit *test, struct vm_area_struct *vma)
{
	struct mm_struct *mm = vma->vm_mm;
	MA_STATE(mas, &mm->mm_mt, vma->vm_start, vma->vm_end - 1);

	mmap_write_lock(mm);
	KUNIT_EXPECT_EQ(test, 0, mas_store_gfp(&mas, vma, GFP_KERNEL));
	mmap_write_unlock(mm);
}

/* Nothing is in mm_mt any more. The VMAs are the caller's. */
static void detach_vmas(struct test_mm *tm)
{
	mmap_write_lock(&tm->mm);
	cow_context_lock(&tm->mm);
	__mt_destroy(&tm->mm.mm_mt);
	cow_context_unlock(&tm->mm);
	mmap_write_unlock(&tm->mm);
}

static bool meets(struct test_mm *tm, pgoff_t first, pgoff_t last)
{
	struct cow_filter filter;

	cow_filter_folio(&filter, first, last);
	return cow_filter_meets(ctx_of(tm), NULL, &filter);
}

/* Every overlap is seen, from one page to gigabytes; a bit says little else. */
static void filter(struct kunit *test)
{
	struct test_mm *root = must_fork(test, NULL), *tm;
	unsigned int round, i, seq, hits = 0, others = 0;
	struct vm_area_struct *vma;
	struct rnd_state rnd;

	seed_rnd(test, &rnd);
	for (round = 0; round < 200; round++) {
		const unsigned long page = below(&rnd, 1U << 31);
		const unsigned long nr = 1 + below(&rnd, 1U << below(&rnd, 22));

		/* What is the mm's own needs no bit. */
		tm = must_fork(test, root);
		vma = inherited_vma(test, tm, tm, page, nr);
		KUNIT_EXPECT_FALSE(test, meets(tm, page, page));
		vm_area_free(vma);

		vma = inherited_vma(test, tm, root, page, nr);
		for (i = 0; i < 20; i++) {
			const pgoff_t in = page + below(&rnd, nr);
			const pgoff_t far = page ^ 1UL << 31 ^
				(pgoff_t)below(&rnd, 1U << 20) << 9;

			KUNIT_ASSERT_TRUE(test, meets(tm, in, in));
			KUNIT_ASSERT_TRUE(test, meets(tm, in - in % 512,
						      in | 511));
			if (nr < 128) {
				hits += meets(tm, far, far);
				others++;
			}
		}

		/* What is being made anew says nothing. */
		raw_write_seqcount_begin(&ctx_of(tm)->inherited.seq);
		KUNIT_EXPECT_TRUE(test, meets(tm, ~page, ~page));
		raw_write_seqcount_end(&ctx_of(tm)->inherited.seq);

		/* Gone with the VMA: nothing is left in mm_mt, and readers are told. */
		seq = raw_read_seqcount(&ctx_of(tm)->inherited.seq);
		mmap_write_lock(&tm->mm);
		cow_filter_unmapped(ctx_of(tm), 1);
		mmap_write_unlock(&tm->mm);
		KUNIT_EXPECT_NE(test, seq,
				raw_read_seqcount(&ctx_of(tm)->inherited.seq));
		KUNIT_EXPECT_FALSE(test, meets(tm, page, page));
		vm_area_free(vma);
	}
	KUNIT_EXPECT_GT(test, others, 0);
	KUNIT_EXPECT_LT(test, hits, others / 10);
}

/* Bits are set where a VMA comes to have inherited entries, before it has. */
static void filter_hooks(struct kunit *test)
{
	const unsigned long page = 0x10000, nr = 16, more = 64, size = more << PAGE_SHIFT;
	struct test_mm *root = must_fork(test, NULL), *tm = must_fork(test, root);
	struct vm_area_struct *from, *vma;
	unsigned long i;

	/* Fork: it continues the parent's. */
	from = inherited_vma(test, root, root, page, nr);
	vma = inherited_vma(test, tm, NULL, page, nr);
	KUNIT_EXPECT_FALSE(test, meets(tm, page, page + nr - 1));
	mmap_write_lock(&tm->mm);
	cow_context_publish_vma(vma, from);
	mmap_write_unlock(&tm->mm);
	KUNIT_EXPECT_PTR_EQ(test, vma->origin, ctx_of(root));
	for (i = page; i < page + nr; i++)
		KUNIT_EXPECT_TRUE(test, meets(tm, i, i));

	/* It grows, down as stacks do, and up. It was not moved: no record. */
	KUNIT_EXPECT_FALSE(test, meets(tm, page - more, page - 1));
	KUNIT_EXPECT_FALSE(test, meets(tm, page + nr, page + nr + more - 1));
	mmap_write_lock(&tm->mm);
	KUNIT_EXPECT_EQ(test, 0, cow_context_grow_vma(vma, vma->vm_start - size,
						      vma->vm_start));
	KUNIT_EXPECT_EQ(test, 0, cow_context_grow_vma(vma, vma->vm_end,
						      vma->vm_end + size));
	mmap_write_unlock(&tm->mm);
	for (i = page - more; i < page + nr + more; i++)
		KUNIT_EXPECT_TRUE(test, meets(tm, i, i));
	KUNIT_EXPECT_EQ(test, cow_context_nr_remaps(ctx_of(tm)), 0);

	/* It takes in what was never faulted: publishes no origin but its size. */
	vma->vm_end += 4 * size;
	i = page + nr + 2 * more;
	KUNIT_EXPECT_FALSE(test, meets(tm, i, i + 2 * more - 1));
	mmap_write_lock(&tm->mm);
	cow_context_publish_vma(vma, vma);
	mmap_write_unlock(&tm->mm);
	for (; i < page + nr + 4 * more; i++)
		KUNIT_EXPECT_TRUE(test, meets(tm, i, i));

	/* All that is nothing to whose own it is. */
	KUNIT_EXPECT_FALSE(test, meets(root, page - more, page + nr + 4 * more));
	vm_area_free(vma);
	vm_area_free(from);
}

/*
 * I7 where VMAs go: a filter is made anew when as many were unmapped as are left, not
 * before, and what is left keeps its bits. One that is empty is left alone.
 */
static void filter_made_anew(struct kunit *test)
{
	struct test_mm *root = must_fork(test, NULL), *tm = must_fork(test, root);
	const unsigned long page = 0x10000, left = 0x20000, nr = 16;
	struct cow_context *ctx = ctx_of(tm);
	struct vm_area_struct *vma[2];
	unsigned int seq, i;

	seq = raw_read_seqcount(&ctx->inherited.seq);
	mmap_write_lock(&tm->mm);
	cow_filter_unmapped(ctx, 8);
	mmap_write_unlock(&tm->mm);
	KUNIT_EXPECT_EQ(test, seq, raw_read_seqcount(&ctx->inherited.seq));
	KUNIT_EXPECT_EQ(test, ctx->nr_unmapped, 0);

	vma[0] = inherited_vma(test, tm, root, page, nr);
	vma[1] = inherited_vma(test, tm, root, left, nr);
	attach_vma(test, vma[1]);
	tm->mm.map_count = 3;
	for (i = 1; i <= 3; i++) {
		mmap_write_lock(&tm->mm);
		cow_filter_unmapped(ctx, 1);
		mmap_write_unlock(&tm->mm);
		KUNIT_EXPECT_EQ(test, meets(tm, page, page + nr - 1), i < 3);
		KUNIT_EXPECT_TRUE(test, meets(tm, left, left));
		KUNIT_EXPECT_TRUE(test, meets(tm, left + nr - 1, left + nr - 1));
		KUNIT_EXPECT_EQ(test, ctx->nr_unmapped, i % 3);
	}
	detach_vmas(tm);
	vm_area_free(vma[1]);
	vm_area_free(vma[0]);
}

/* -------------------------------------------------------------------------
 * Origins and records, where VMAs are faulted, moved, grow and go.
 */

#define HOME		0x1000UL
#define AWAY		0x5000UL

/* The offsets of a hugetlb VMA are no offsets of other memory, and the reverse. */
static void walk_hugetlb(struct kunit *test)
{
	struct test_mm *tm = must_fork(test, NULL);
	struct vm_area_struct *vma = inherited_vma(test, tm, tm, HOME, 8);
	struct cow_context_walk small = {
		.owner = ctx_of(tm),
		.first = HOME,
		.last = HOME,
	};
	struct cow_context_walk huge = small;

	huge.hugetlb = true;
	attach_vma(test, vma);
	cow_context_walk(&small);
	KUNIT_EXPECT_EQ(test, small.nr_vmas, 1);
	cow_context_walk(&huge);
	KUNIT_EXPECT_EQ(test, huge.nr_vmas, 0);

	/* And the other way to look. */
	mmap_write_lock(&tm->mm);
	KUNIT_EXPECT_EQ(test, 0, cow_context_add_remap(ctx_of(tm), AWAY, AWAY, 1));
	mmap_write_unlock(&tm->mm);
	small.nr_vmas = 0;
	cow_context_walk(&small);
	KUNIT_EXPECT_EQ(test, small.nr_vmas, 1);
	cow_context_walk(&huge);
	KUNIT_EXPECT_EQ(test, huge.nr_vmas, 0);
	detach_vmas(tm);
	vm_area_free(vma);
}

/**
 * struct record_case - where the record of a moved VMA comes to be
 * @name: For the log.
 * @in_tree: In the tree, because the inline record is in use.
 */
struct record_case {
	const char *name;
	bool in_tree;
};

static const struct record_case record_cases[] = {
	{ .name = "inline" },
	{ .name = "in the tree", .in_tree = true },
};

KUNIT_ARRAY_PARAM_DESC(record, record_cases, name);

static struct test_mm *mm_for_records(struct kunit *test)
{
	const struct record_case *param = test->param_value;
	struct test_mm *tm = must_fork(test, NULL);

	if (param->in_tree)
		KUNIT_ASSERT_EQ(test, 0, cow_context_add_remap(ctx_of(tm),
							       1, 1, 1));
	return tm;
}

static bool count_offsets(const struct cow_remap *remap, void *arg)
{
	unsigned long *nr = arg;

	*nr += remap->last - remap->first + 1;
	return true;
}

/* Recorded are @nr_pages from @first on, @others elsewhere, and no more. */
static void expect_recorded(struct kunit *test, struct test_mm *tm,
			    pgoff_t first, unsigned long nr_pages, long delta,
			    unsigned long others)
{
	const struct record_case *param = test->param_value;
	struct cow_context *ctx = ctx_of(tm);
	unsigned long nr = 0;

	cow_context_visit_remaps(ctx, 0, ULONG_MAX, count_offsets, &nr);
	KUNIT_EXPECT_EQ(test, nr, nr_pages + others + param->in_tree);
	if (nr_pages)
		KUNIT_EXPECT_TRUE(test, cow_context_has_remaps(ctx, first,
							       first + nr_pages - 1,
							       delta));
}

/* I1: the first fault gives the mm's owner for an origin; others take it over. */
static void first_fault(struct kunit *test)
{
	struct test_mm *tm = must_fork(test, NULL);
	struct vm_area_struct *vma, *next;
	struct cow_context *owner;
	unsigned int i;

	for (i = 0; i < COW_OWNERS_MAX; i++)
		tm = must_fork(test, tm);
	owner = ctx_of(tm)->owner;
	KUNIT_ASSERT_PTR_NE(test, owner, ctx_of(tm));
	vma = inherited_vma(test, tm, NULL, HOME, 4);
	next = inherited_vma(test, tm, NULL, HOME + 4, 4);

	mmap_write_lock(&tm->mm);
	cow_context_publish_vma(next, vma);
	KUNIT_EXPECT_NULL(test, next->origin);
	cow_context_prepare_vma(vma);
	KUNIT_EXPECT_PTR_EQ(test, vma->origin, owner);
	KUNIT_EXPECT_NULL(test, cow_context_check_vma(vma));
	cow_context_publish_vma(next, vma);
	KUNIT_EXPECT_PTR_EQ(test, next->origin, owner);
	mmap_write_unlock(&tm->mm);
	/* Their own: nothing was inherited. */
	KUNIT_EXPECT_FALSE(test, meets(tm, HOME, HOME + 7));
	vm_area_free(next);
	vm_area_free(vma);
}

/*
 * I6: each offset that will be moved, and no other, is recorded until that is taken
 * back. What stays in its place needs no record.
 */
static void record_of_move(struct kunit *test)
{
	const unsigned long at = AWAY << PAGE_SHIFT;
	const long delta = AWAY - HOME - 2;
	struct test_mm *tm = mm_for_records(test);
	struct vm_area_struct *vma = inherited_vma(test, tm, tm, HOME, 8);

	mmap_write_lock(&tm->mm);
	KUNIT_EXPECT_EQ(test, 0, cow_context_move_vma(vma, HOME, 8,
						      vma->vm_start));
	KUNIT_EXPECT_EQ(test, 0, cow_context_move_vma(vma, HOME, 0, at));
	expect_recorded(test, tm, 0, 0, 0, 0);

	KUNIT_EXPECT_EQ(test, 0, cow_context_move_vma(vma, HOME + 2, 4, at));
	expect_recorded(test, tm, HOME + 2, 4, delta, 0);
	cow_context_unmove_vma(vma, HOME, 8, vma->vm_start);
	cow_context_unmove_vma(vma, HOME + 2, 0, at);
	expect_recorded(test, tm, HOME + 2, 4, delta, 0);
	cow_context_unmove_vma(vma, HOME + 2, 4, at);
	expect_recorded(test, tm, 0, 0, 0, 0);
	mmap_write_unlock(&tm->mm);
	vm_area_free(vma);
}

/*
 * I6 where a moved VMA grows: what it will also cover is recorded before, and not
 * any more if it did not grow. What else was moved as far keeps its record.
 */
static void record_of_growth(struct kunit *test)
{
	const unsigned long size = 4 << PAGE_SHIFT;
	const long delta = AWAY - HOME;
	struct test_mm *tm = mm_for_records(test);
	struct vm_area_struct *vma = moved_vma(test, tm, tm, HOME, 8, AWAY);
	struct vm_area_struct *other = moved_vma(test, tm, tm, HOME + 64, 8,
						 AWAY + 64);
	const unsigned long start = vma->vm_start, end = vma->vm_end;

	mmap_write_lock(&tm->mm);
	expect_recorded(test, tm, HOME, 8, delta, 8);
	KUNIT_EXPECT_EQ(test, 0, cow_context_grow_vma(vma, end, end + size));
	expect_recorded(test, tm, HOME, 12, delta, 8);
	cow_context_ungrow_vma(vma, end, end + size);
	expect_recorded(test, tm, HOME, 8, delta, 8);

	KUNIT_EXPECT_EQ(test, 0, cow_context_grow_vma(vma, start - size, start));
	expect_recorded(test, tm, HOME - 4, 12, delta, 8);
	cow_context_ungrow_vma(vma, start - size, start);
	expect_recorded(test, tm, HOME, 8, delta, 8);

	/* It covers that already: nothing was announced. */
	cow_context_ungrow_vma(vma, end, end);
	cow_context_ungrow_vma(vma, end, end - size);
	cow_context_ungrow_vma(vma, start + size, start);
	expect_recorded(test, tm, HOME, 8, delta, 8);
	expect_recorded(test, tm, HOME + 64, 8, delta, 8);
	mmap_write_unlock(&tm->mm);
	vm_area_free(other);
	vm_area_free(vma);
}

/* I6 where offsets end at 0 and addresses do not: it will not grow beyond. */
static void growth_wraps(struct kunit *test)
{
	struct test_mm *tm = mm_for_records(test);
	struct vm_area_struct *vma = moved_vma(test, tm, tm, 2, 8, AWAY);
	const unsigned long start = vma->vm_start;
	unsigned long end;

	mmap_write_lock(&tm->mm);
	KUNIT_EXPECT_EQ(test, 0, cow_context_grow_vma(vma, start - 3 * PAGE_SIZE,
						      start));
	expect_recorded(test, tm, 2, 8, AWAY - 2, 0);
	cow_context_ungrow_vma(vma, start - 3 * PAGE_SIZE, start);
	expect_recorded(test, tm, 2, 8, AWAY - 2, 0);

	KUNIT_EXPECT_EQ(test, 0, cow_context_grow_vma(vma, start - 2 * PAGE_SIZE,
						      start));
	expect_recorded(test, tm, 0, 10, AWAY - 2, 0);
	cow_context_ungrow_vma(vma, start - 2 * PAGE_SIZE, start);
	expect_recorded(test, tm, 2, 8, AWAY - 2, 0);
	cow_context_forget_vma(&tm->mm, vma);
	mmap_write_unlock(&tm->mm);
	vm_area_free(vma);

	/* Up, to the last offset but one, and beyond. */
	vma = moved_vma(test, tm, tm, -12UL, 8, AWAY);
	end = vma->vm_end;
	mmap_write_lock(&tm->mm);
	KUNIT_EXPECT_EQ(test, -ENOMEM, cow_context_grow_vma(vma, end, end +
							    4 * PAGE_SIZE));
	expect_recorded(test, tm, -12UL, 8, AWAY + 12, 0);
	KUNIT_EXPECT_EQ(test, 0, cow_context_grow_vma(vma, end, end +
						      3 * PAGE_SIZE));
	expect_recorded(test, tm, -12UL, 11, AWAY + 12, 0);
	cow_context_ungrow_vma(vma, end, end + 3 * PAGE_SIZE);
	expect_recorded(test, tm, -12UL, 8, AWAY + 12, 0);
	mmap_write_unlock(&tm->mm);
	vm_area_free(vma);
}

/*
 * No record stays when its VMA goes: it is that mm's which has not got the VMA, or its
 * contents. The same offsets elsewhere, and other mms, keep theirs (I6).
 */
static void record_goes(struct kunit *test)
{
	const long delta = AWAY - HOME, far = delta + 64;
	struct test_mm *tm = mm_for_records(test), *child;
	struct vm_area_struct *vma, *other, *home;

	vma = moved_vma(test, tm, tm, HOME, 8, AWAY);
	other = moved_vma(test, tm, tm, HOME, 8, AWAY + 64);
	home = inherited_vma(test, tm, tm, HOME, 8);
	mmap_write_lock(&tm->mm);
	cow_context_forget_vma(&tm->mm, home);
	expect_recorded(test, tm, HOME, 8, delta, 8);
	cow_context_forget_vma(&tm->mm, vma);
	expect_recorded(test, tm, HOME, 8, far, 0);
	mmap_write_unlock(&tm->mm);

	/* Fork, but not of this VMA. */
	child = must_fork(test, tm);
	expect_recorded(test, child, HOME, 8, far, 0);
	mmap_write_lock(&child->mm);
	cow_context_forget_vma(&child->mm, home);
	expect_recorded(test, child, HOME, 8, far, 0);
	cow_context_forget_vma(&child->mm, other);
	expect_recorded(test, child, 0, 0, 0, 0);
	mmap_write_unlock(&child->mm);
	expect_recorded(test, tm, HOME, 8, far, 0);
	vm_area_free(home);
	vm_area_free(vma);

	/* Fork, but not of its contents: linear, as its first fault needs it. */
	child = must_fork(test, tm);
	vma = inherited_vma(test, child, NULL, HOME, 8);
	vma->vm_start = other->vm_start;
	vma->vm_end = other->vm_end;
	expect_recorded(test, child, HOME, 8, far, 0);
	mmap_write_lock(&child->mm);
	cow_context_wipe_vma(vma);
	expect_recorded(test, child, 0, 0, 0, 0);
	KUNIT_EXPECT_EQ(test, cow_context_vma_delta(vma), 0);
	KUNIT_EXPECT_EQ(test, vma->vm_pgoff, AWAY + 64);
	cow_context_prepare_vma(vma);
	KUNIT_EXPECT_PTR_EQ(test, vma->origin, ctx_of(child));
	mmap_write_unlock(&child->mm);
	expect_recorded(test, tm, HOME, 8, far, 0);
	vm_area_free(vma);
	vm_area_free(other);
}

/* A VMA that another thread resets. */
struct reset_job {
	struct job job;
	struct vm_area_struct *vma;
};

static void job_reset(struct job *job)
{
	struct vm_area_struct *vma = container_of(job, struct reset_job,
						  job)->vma;

	mmap_write_lock(vma->vm_mm);
	cow_context_reset_vma(vma);
	mmap_write_unlock(vma->vm_mm);
}

/*
 * I5: a VMA whose pages were all moved away is hidden when no walk is inside the
 * mm. It stays in mm_mt, but no walk gets to it, nor is its place recorded.
 */
static void reset_hides(struct kunit *test)
{
	struct test_mm *tm = mm_for_records(test);
	struct cow_context *ctx = ctx_of(tm);
	struct cow_context_walk walk = {
		.owner = ctx,
		.first = HOME,
		.last = HOME,
	};
	struct task_struct *task;
	struct reset_job *reset;
	bool waits, visible;

	reset = kunit_kzalloc(test, sizeof(*reset), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, reset);
	reset->job.run = job_reset;
	reset->vma = moved_vma(test, tm, tm, HOME, 8, AWAY);
	attach_vma(test, reset->vma);
	cow_context_walk(&walk);
	KUNIT_EXPECT_EQ(test, walk.nr_vmas, 1);

	task = create_job(test, &reset->job);
	down_read(&ctx->rwsem);
	wake_up_process(task);
	waits = wait_for_waiter(&ctx->rwsem);
	visible = READ_ONCE(reset->vma->origin);
	up_read(&ctx->rwsem);
	wait_for_completion(&reset->job.done);
	KUNIT_EXPECT_TRUE(test, waits);
	KUNIT_EXPECT_TRUE(test, visible);

	KUNIT_EXPECT_NULL(test, reset->vma->origin);
	expect_recorded(test, tm, 0, 0, 0, 0);
	walk.nr_vmas = 0;
	cow_context_walk(&walk);
	KUNIT_EXPECT_EQ(test, walk.nr_vmas, 0);
	detach_vmas(tm);
	vm_area_free(reset->vma);
}

/* -------------------------------------------------------------------------
 * VMAs in chosen places, and every walk around them.
 */

#define MAX_PLACED	3

/* The last page whose end is an address, as for walks; and one more than there are. */
#define LAST_PAGE	((ULONG_MAX >> PAGE_SHIFT) - 1)
#define NR_ALL_PAGES	BIT(BITS_PER_LONG - PAGE_SHIFT)

/**
 * struct layout_case - the VMAs of an mm
 * @name: For the log.
 * @vma: They, in the order in which they get their records.
 * @vma.first: First anonymous page offset.
 * @vma.nr: How many pages; 0 ends the list.
 * @vma.page: Page number of the address.
 */
struct layout_case {
	const char *name;
	struct {
		pgoff_t first;
		unsigned long nr;
		unsigned long page;
	} vma[MAX_PLACED];
};

static const struct layout_case layout_cases[] = {
	{
		.name = "one moved, one around its old place",
		.vma = { { HOME + 8, 8, AWAY }, { HOME, 24, HOME } },
	}, {
		.name = "moved as far: inline, and below and above it",
		.vma = { { HOME + 32, 8, AWAY + 32 }, { HOME, 8, AWAY },
			 { HOME + 64, 8, AWAY + 64 } },
	}, {
		.name = "the same offsets in three places",
		.vma = { { HOME, 8, AWAY }, { HOME + 4, 8, AWAY + 64 },
			 { HOME - 4, 24, HOME - 4 } },
	}, {
		.name = "offsets beyond all pages, one at what they would wrap to",
		.vma = { { NR_ALL_PAGES + HOME, 8, AWAY },
			 { HOME - 4, 24, HOME - 4 } },
	}, {
		.name = "offsets around the last page, one there",
		.vma = { { LAST_PAGE - 1, 4, AWAY },
			 { LAST_PAGE - 1, 2, LAST_PAGE - 1 } },
	},
};

KUNIT_ARRAY_PARAM_DESC(layout, layout_cases, name);

static bool visit_and_end(struct cow_context_walk *walk,
			  struct vm_area_struct *vma)
{
	return false;
}

/* A walk visits each VMA that has one of the offsets, once, and no other. */
static void expect_found(struct kunit *test, struct test_mm *tm,
			 struct vm_area_struct **vma, unsigned int nr,
			 pgoff_t first, pgoff_t last)
{
	struct cow_context *ctx = ctx_of(tm);
	struct cow_context_walk walk = {
		.owner = ctx,
		.first = first,
		.last = last,
	};
	unsigned int i, wanted = 0;

	down_read(&ctx->rwsem);
	for (i = 0; i < nr; i++) {
		const pgoff_t start = vma_start_anon_pgoff(vma[i]);
		const bool has = start <= last &&
			start + vma_pages(vma[i]) - 1 >= first;

		wanted += has;
		KUNIT_EXPECT_EQ_MSG(test, has,
				    is_visited(&walk, ctx, vma[i]),
				    "VMA %u, offsets %lx-%lx", i, first, last);
	}
	up_read(&ctx->rwsem);

	cow_context_walk(&walk);
	KUNIT_EXPECT_EQ_MSG(test, walk.nr_vmas, wanted, "offsets %lx-%lx",
			    first, last);
	KUNIT_EXPECT_EQ(test, walk.nr_overlap, wanted ? wanted - 1 : 0);

	/* Who has enough is not given more. */
	walk.nr_vmas = 0;
	walk.visit = visit_and_end;
	cow_context_walk(&walk);
	KUNIT_EXPECT_EQ(test, walk.nr_vmas, min(wanted, 1U));
}

/* I6: nothing is missed at the ends of a record, nor of all pages. */
static void walk_layouts(struct kunit *test)
{
	const struct layout_case *param = test->param_value;
	static const unsigned int lengths[] = { 1, 2, 3, 8, 40 };
	struct test_mm *tm = must_fork(test, NULL);
	struct vm_area_struct *vma[MAX_PLACED];
	unsigned int nr, i, j;
	pgoff_t first;

	for (nr = 0; nr < MAX_PLACED && param->vma[nr].nr; nr++) {
		vma[nr] = moved_vma(test, tm, tm, param->vma[nr].first,
				    param->vma[nr].nr, param->vma[nr].page);
		attach_vma(test, vma[nr]);
	}
	for (i = 0; i < nr; i++) {
		first = param->vma[i].first - 3;
		for (; first < param->vma[i].first + param->vma[i].nr + 3; first++)
			for (j = 0; j < ARRAY_SIZE(lengths); j++)
				expect_found(test, tm, vma, nr, first,
					     first + lengths[j] - 1);
	}
	detach_vmas(tm);
	while (nr)
		vm_area_free(vma[--nr]);
}

/* -------------------------------------------------------------------------
 * Real mms: pages that are faulted in, forked, copied and unmapped.
 */

#define NR_REAL		2
#define REAL_SIZE	(2 * PAGE_SIZE)

/**
 * struct real - a page of an mm and its child
 * @mm: They.
 * @addr: Where it is.
 * @visits: How often each was visited.
 * @strange: Visits of something else, or elsewhere.
 */
struct real {
	struct mm_struct *mm[NR_REAL];
	unsigned long addr;
	unsigned int visits[NR_REAL];
	unsigned int strange;
};

static bool visit_real(struct folio *folio, struct vm_area_struct *vma,
		       unsigned long addr, void *arg)
{
	struct real *real = arg;
	unsigned int i;

	for (i = 0; i < NR_REAL && real->mm[i] != vma->vm_mm; i++)
		;
	if (i < NR_REAL && addr == real->addr)
		real->visits[i]++;
	else
		real->strange++;
	return true;
}

/* The page that the mm writes to there, locked. */
static struct folio *write_real(struct kunit *test, struct real *real,
				unsigned int i)
{
	struct page *page = NULL;
	long nr;

	mmap_read_lock(real->mm[i]);
	nr = get_user_pages_remote(real->mm[i], real->addr, 1, FOLL_WRITE, &page,
				   NULL);
	mmap_read_unlock(real->mm[i]);
	KUNIT_ASSERT_EQ(test, nr, 1);
	folio_lock(page_folio(page));
	return page_folio(page);
}

static void put_real(struct folio *folio)
{
	folio_unlock(folio);
	folio_put(folio);
}

/* Who is visited for the page, as the digits of a number. */
static unsigned int __walk_real(struct kunit *test, struct real *real,
				struct folio *folio)
{
	struct rmap_walk_control rwc = {
		.rmap_one = visit_real,
		.arg = real,
		.need_mapped = true,
	};

	memset(real->visits, 0, sizeof(real->visits));
	real->strange = 0;
	rmap_walk_anon(folio, &rwc, false);
	KUNIT_EXPECT_EQ(test, real->strange, 0);
	return 10 * real->visits[0] + real->visits[1];
}

static unsigned int walk_real(struct kunit *test, struct real *real,
			      struct folio *folio)
{
	const long found = cow_context_stat_sum(COW_STAT_FOUND);
	const long missed = cow_context_stat_sum(COW_STAT_MISSED);
	const unsigned int visits = __walk_real(test, real, folio);

	/* Beside anon_vma's answer: each entry that there is, and no less. */
	KUNIT_EXPECT_EQ(test, cow_context_stat_sum(COW_STAT_MISSED), missed);
	if (!IS_ENABLED(CONFIG_COW_CONTEXT_ANON_RMAP))
		KUNIT_EXPECT_EQ(test, cow_context_stat_sum(COW_STAT_FOUND) - found,
				folio_mapcount(folio));
	return visits;
}

static int map_real(struct real *real)
{
	return vm_mmap(NULL, real->addr, REAL_SIZE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, 0) != real->addr;
}

static int unmap_real(struct real *real)
{
	return vm_munmap(real->addr, REAL_SIZE);
}

/* The mm is this thread's, and goes with it. */
static struct real *begin_real(struct kunit *test)
{
	struct real *real = kunit_kzalloc(test, sizeof(*real), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, real);
	real->addr = kunit_vm_mmap(test, NULL, 0, REAL_SIZE,
				   PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, 0);
	KUNIT_ASSERT_NE(test, real->addr, 0);
	KUNIT_ASSERT_LT(test, real->addr, TASK_SIZE);
	real->mm[0] = current->mm;
	return real;
}

static int fork_real(struct real *real)
{
	int err;

	real->mm[1] = mm_alloc();
	if (!real->mm[1])
		return -ENOMEM;
	uprobe_start_dup_mmap();
	err = dup_mmap(real->mm[1], real->mm[0]);
	uprobe_end_dup_mmap();
	return err;
}

#ifndef CONFIG_COW_CONTEXT_ANON_RMAP
/* The page is mapped in both mms: what the comparison says of it, and counts. */
static void compare_real(struct kunit *test, struct real *real,
			 struct folio *folio)
{
	struct rmap_walk_control rwc = {
		.rmap_one = visit_real,
		.arg = real,
	};
	const long contended = cow_context_stat_sum(COW_STAT_CONTENDED);
	const long foreign = cow_context_stat_sum(COW_STAT_KSM_FOREIGN);
	const long missed = cow_context_stat_sum(COW_STAT_MISSED);
	const long ksm = cow_context_stat_sum(COW_STAT_WALKS_KSM);
	long found = cow_context_stat_sum(COW_STAT_FOUND);
	struct anon_vma *anon_vma;
	unsigned int i;

	mmap_read_lock(real->mm[0]);
	anon_vma = vma_lookup(real->mm[0], real->addr)->anon_vma;
	mmap_read_unlock(real->mm[0]);

	/* KSM's items: the parent's is about both, the child's about itself. */
	for (i = 0; i < NR_REAL; i++) {
		down_read(&anon_vma->root->rwsem);
		cow_context_compare_ksm(anon_vma, folio, real->mm[i],
					folio->index, real->addr, &rwc);
		up_read(&anon_vma->root->rwsem);
		found += NR_REAL - i;
		KUNIT_EXPECT_EQ(test, cow_context_stat_sum(COW_STAT_FOUND), found);
		KUNIT_EXPECT_EQ(test, cow_context_stat_sum(COW_STAT_KSM_FOREIGN),
				foreign + i);
		KUNIT_EXPECT_EQ(test, cow_context_stat_sum(COW_STAT_WALKS_KSM),
				ksm + i + 1);
	}

	/* Of an mm that is locked a walk that must not wait says nothing. */
	rwc.try_lock = true;
	mmap_write_lock(real->mm[1]);
	cow_context_lock(real->mm[1]);
	rmap_walk_anon(folio, &rwc, false);
	cow_context_unlock(real->mm[1]);
	mmap_write_unlock(real->mm[1]);
	KUNIT_EXPECT_EQ(test, cow_context_stat_sum(COW_STAT_CONTENDED),
			contended + 1);
	KUNIT_EXPECT_EQ(test, cow_context_stat_sum(COW_STAT_FOUND), found + 1);
	KUNIT_EXPECT_EQ(test, cow_context_stat_sum(COW_STAT_MISSED), missed);
}

/* I2: a folio is the mm's own or its VMA's origin's, and another takes that over. */
static void shadow_owners(struct kunit *test)
{
	struct test_mm *root = must_fork(test, NULL), *tm = must_fork(test, root);
	struct vm_area_struct *vma = inherited_vma(test, tm, root, HOME, 4);
	struct folio *folio = folio_alloc(GFP_KERNEL, 0);
	struct folio *other = folio_alloc(GFP_KERNEL, 0);

	KUNIT_ASSERT_NOT_NULL(test, folio);
	KUNIT_ASSERT_NOT_NULL(test, other);
	cow_context_set_owner(folio, vma, true);
	KUNIT_EXPECT_PTR_EQ(test, cow_context_folio_owner(folio), ctx_of(tm));
	cow_context_set_owner(other, vma, false);
	KUNIT_EXPECT_PTR_EQ(test, cow_context_folio_owner(other), ctx_of(root));

	/* A file's has none to give away. */
	cow_context_copy_owner(other, folio);
	KUNIT_EXPECT_PTR_EQ(test, cow_context_folio_owner(other), ctx_of(root));
	folio->mapping = (void *)FOLIO_MAPPING_ANON;
	cow_context_copy_owner(other, folio);
	KUNIT_EXPECT_PTR_EQ(test, cow_context_folio_owner(other), ctx_of(tm));
	folio->mapping = NULL;
	folio_put(other);
	folio_put(folio);
	vm_area_free(vma);
}
#else
static void compare_real(struct kunit *test, struct real *real,
			 struct folio *folio)
{
}
#endif

/*
 * I2 and I8, with the code of mm/memory.c and mm/mmap.c: a page is its mm's, a child
 * shares it, what the child writes is the child's own. Walks visit who has it.
 */
static void real_pages(struct kunit *test)
{
	struct real *real = begin_real(test);
	struct folio *folio, *copy;
	struct vm_area_struct *vma;

	folio = write_real(test, real, 0);
	KUNIT_EXPECT_PTR_EQ(test, cow_context_folio_owner(folio),
			    real->mm[0]->cow_context);
	KUNIT_EXPECT_EQ(test, folio->index, real->addr >> PAGE_SHIFT);
	KUNIT_EXPECT_EQ(test, walk_real(test, real, folio), 10);

	KUNIT_ASSERT_EQ(test, fork_real(real), 0);
	KUNIT_EXPECT_EQ(test, folio_mapcount(folio), 2);
	KUNIT_EXPECT_EQ(test, walk_real(test, real, folio), 11);
	compare_real(test, real, folio);
	mmap_read_lock(real->mm[1]);
	vma = vma_lookup(real->mm[1], real->addr);
	KUNIT_EXPECT_PTR_EQ(test, vma->origin, real->mm[0]->cow_context);
	KUNIT_EXPECT_NULL(test, cow_context_check_vma(vma));
	mmap_read_unlock(real->mm[1]);

	/* What the child writes is not looked for above it. */
	put_real(folio);
	copy = write_real(test, real, 1);
	KUNIT_EXPECT_PTR_NE(test, copy, folio);
	KUNIT_EXPECT_PTR_EQ(test, cow_context_folio_owner(copy),
			    real->mm[1]->cow_context);
	KUNIT_EXPECT_EQ(test, walk_real(test, real, copy), 1);
	put_real(copy);
	/* The child's VMA could have the parent's page. */
	folio = write_real(test, real, 0);
	KUNIT_EXPECT_EQ(test, folio_mapcount(folio), 1);
	KUNIT_EXPECT_EQ(test, walk_real(test, real, folio), 11);

	/* Nobody has it any more; the child's stays. */
	KUNIT_EXPECT_EQ(test, unmap_real(real), 0);
	KUNIT_EXPECT_EQ(test, walk_real(test, real, folio), 0);
	put_real(folio);
	copy = write_real(test, real, 1);
	KUNIT_EXPECT_EQ(test, walk_real(test, real, copy), 1);
	put_real(copy);
	mmput(real->mm[1]);
}

/*
 * Where the parent replaces what the child still has, both VMAs have the same origin
 * and offsets. Each is visited for the other's page, and that is counted as extra.
 */
static void real_replaced(struct kunit *test)
{
	const bool pure = IS_ENABLED(CONFIG_COW_CONTEXT_ANON_RMAP);
	const long extra = cow_context_stat_sum(COW_STAT_EXTRA);
	struct real *real = begin_real(test);
	struct folio *folio, *other;

	folio = write_real(test, real, 0);
	KUNIT_ASSERT_EQ(test, fork_real(real), 0);
	KUNIT_ASSERT_EQ(test, unmap_real(real), 0);
	KUNIT_EXPECT_EQ(test, walk_real(test, real, folio), 1);
	KUNIT_ASSERT_EQ(test, map_real(real), 0);
	KUNIT_EXPECT_EQ(test, walk_real(test, real, folio), 1);
	KUNIT_EXPECT_EQ(test, cow_context_stat_sum(COW_STAT_EXTRA), extra);

	other = write_real(test, real, 0);
	KUNIT_EXPECT_PTR_NE(test, other, folio);
	KUNIT_EXPECT_EQ(test, walk_real(test, real, folio), pure ? 11 : 1);
	KUNIT_EXPECT_EQ(test, walk_real(test, real, other), pure ? 11 : 10);
	if (!pure)
		KUNIT_EXPECT_EQ(test, cow_context_stat_sum(COW_STAT_EXTRA),
				extra + 2);
	put_real(other);
	put_real(folio);
	mmput(real->mm[1]);
}

#ifndef CONFIG_COW_CONTEXT_ANON_RMAP
/*
 * A mapping is missed that contexts would not come to: its VMA has no origin, or the
 * tree walk passes by its context; also if the walk comes to something else instead.
 */
static void real_missed(struct kunit *test)
{
	const long missed = cow_context_stat_sum(COW_STAT_MISSED);
	struct real *real = begin_real(test);
	struct cow_context *origin, *ctx;
	struct folio *folio, *other;
	struct vm_area_struct *vma;
	struct list_head *before;

	folio = write_real(test, real, 0);
	KUNIT_ASSERT_EQ(test, fork_real(real), 0);
	ctx = real->mm[1]->cow_context;
	before = ctx->enter.list.prev;
	KUNIT_EXPECT_EQ(test, walk_real(test, real, folio), 11);

	mmap_read_lock(real->mm[1]);
	vma = vma_lookup(real->mm[1], real->addr);
	mmap_read_unlock(real->mm[1]);
	origin = vma->origin;
	WRITE_ONCE(vma->origin, NULL);
	KUNIT_EXPECT_EQ(test, __walk_real(test, real, folio), 11);
	KUNIT_EXPECT_EQ(test, cow_context_stat_sum(COW_STAT_MISSED), missed + 1);
	WRITE_ONCE(vma->origin, origin);
	KUNIT_EXPECT_EQ(test, walk_real(test, real, folio), 11);

	WRITE_ONCE(before->next, ctx->leave.list.next);
	KUNIT_EXPECT_EQ(test, __walk_real(test, real, folio), 11);
	KUNIT_EXPECT_EQ(test, cow_context_stat_sum(COW_STAT_MISSED), missed + 2);
	WRITE_ONCE(before->next, &ctx->enter.list);
	KUNIT_EXPECT_EQ(test, walk_real(test, real, folio), 11);

	/* The parent has other memory there, which is visited too. */
	KUNIT_ASSERT_EQ(test, unmap_real(real), 0);
	KUNIT_ASSERT_EQ(test, map_real(real), 0);
	other = write_real(test, real, 0);
	KUNIT_EXPECT_EQ(test, walk_real(test, real, folio), 1);
	WRITE_ONCE(before->next, ctx->leave.list.next);
	KUNIT_EXPECT_EQ(test, __walk_real(test, real, folio), 1);
	KUNIT_EXPECT_EQ(test, cow_context_stat_sum(COW_STAT_MISSED), missed + 3);
	WRITE_ONCE(before->next, &ctx->enter.list);
	put_real(other);
	put_real(folio);
	mmput(real->mm[1]);
}
#endif

#ifdef CONFIG_COW_CONTEXT_ANON_RMAP
/* -------------------------------------------------------------------------
 * Without anon_vma: what mm/rmap.c, mm/ksm.c and others ask.
 */

#define NR_SHARERS	3

/**
 * struct sharing - a page that an mm, its child and grandchild may map
 * @tm: The mms.
 * @vma: A VMA in each, at the same address, inherited from the first.
 * @folio: The folio, locked, of the first mm; at the second page of each VMA.
 * @addr: Where it is in all of them.
 * @visits: How often each was visited.
 * @strange: Visits of something else, or elsewhere.
 */
struct sharing {
	struct test_mm *tm[NR_SHARERS];
	struct vm_area_struct *vma[NR_SHARERS];
	struct folio *folio;
	unsigned long addr;
	unsigned int visits[NR_SHARERS];
	unsigned int strange;
};

static void own_folio(struct sharing *s, unsigned int i)
{
	s->folio->mapping = (void *)ctx_of(s->tm[i]) + FOLIO_MAPPING_ANON;
}

/* As if there was an entry for it somewhere, or not. */
static void map_folio(struct sharing *s, bool mapped)
{
	atomic_set(&s->folio->_mapcount, mapped ? 0 : -1);
}

static unsigned int refs_of(struct sharing *s, unsigned int i)
{
	return refcount_read(&ctx_of(s->tm[i])->refs);
}

/* The mm unmaps it. */
static void unshare_mm(struct sharing *s, unsigned int i)
{
	detach_vmas(s->tm[i]);
	vm_area_free(s->vma[i]);
	s->vma[i] = NULL;
}

static void end_sharing(struct sharing *s)
{
	unsigned int i;

	for (i = 0; i < NR_SHARERS; i++)
		if (s->vma[i])
			unshare_mm(s, i);
	map_folio(s, false);
	own_folio(s, 0);
	ClearPageAnonExclusive(&s->folio->page);
	s->folio->mapping = NULL;
	folio_unlock(s->folio);
	folio_put(s->folio);
}

static struct sharing *begin_sharing(struct kunit *test)
{
	const unsigned long page = 0x10000, nr = 4;
	struct sharing *s = kunit_kzalloc(test, sizeof(*s), GFP_KERNEL);
	unsigned int i;

	KUNIT_ASSERT_NOT_NULL(test, s);
	s->addr = (page + 1) << PAGE_SHIFT;
	for (i = 0; i < NR_SHARERS; i++) {
		s->tm[i] = must_fork(test, i ? s->tm[i - 1] : NULL);
		s->vma[i] = inherited_vma(test, s->tm[i], s->tm[0], page, nr);
		attach_vma(test, s->vma[i]);
	}
	s->folio = folio_alloc(GFP_KERNEL, 0);
	KUNIT_ASSERT_NOT_NULL(test, s->folio);
	KUNIT_EXPECT_TRUE(test, folio_trylock(s->folio));
	s->folio->index = page + 1;
	own_folio(s, 0);
	return s;
}

/* Who was visited since the last time, as the digits of a number. */
static unsigned int visited(struct kunit *test, struct sharing *s)
{
	const unsigned int sum = 100 * s->visits[0] + 10 * s->visits[1] +
		s->visits[2];

	KUNIT_EXPECT_EQ(test, s->strange, 0);
	memset(s->visits, 0, sizeof(s->visits));
	s->strange = 0;
	return sum;
}

static bool visit_sharer(struct folio *folio, struct vm_area_struct *vma,
			 unsigned long addr, void *arg)
{
	struct sharing *s = arg;
	unsigned int i;

	for (i = 0; i < NR_SHARERS && s->vma[i] != vma; i++)
		;
	if (i < NR_SHARERS && folio == s->folio && addr == s->addr)
		s->visits[i]++;
	else
		s->strange++;
	return true;
}

static bool visit_one_sharer(struct folio *folio, struct vm_area_struct *vma,
			     unsigned long addr, void *arg)
{
	visit_sharer(folio, vma, addr, arg);
	return false;
}

/* Who looks for entries of migration finds those of what is not mapped. */
static void anon_walks(struct kunit *test)
{
	struct sharing *s = begin_sharing(test);
	struct rmap_walk_control must = { .rmap_one = visit_sharer, .arg = s };
	struct rmap_walk_control may = must;
	unsigned int i, refs;

	may.need_mapped = true;
	rmap_walk_anon(s->folio, &must, false);
	KUNIT_EXPECT_EQ(test, visited(test, s), 111);
	rmap_walk_anon(s->folio, &may, false);
	KUNIT_EXPECT_EQ(test, visited(test, s), 0);

	map_folio(s, true);
	refs = refs_of(s, 0);
	for (i = 0; i < 3; i++) {
		rmap_walk_anon(s->folio, &may, false);
		KUNIT_EXPECT_EQ(test, visited(test, s), 111);
	}
	KUNIT_EXPECT_EQ(test, refs_of(s, 0), refs);
	rmap_walk_anon(s->folio, &must, false);
	KUNIT_EXPECT_EQ(test, visited(test, s), 111);
	KUNIT_EXPECT_EQ(test, refs_of(s, 0), refs);

	must.rmap_one = visit_one_sharer;
	rmap_walk_anon(s->folio, &must, false);
	KUNIT_EXPECT_EQ(test, visited(test, s), 100);
	must.rmap_one = visit_sharer;
	expect_sane(test);

	/* What a child reuses stays its ancestor's, who may be dead. */
	SetPageAnonExclusive(&s->folio->page);
	rmap_walk_anon(s->folio, &may, false);
	KUNIT_EXPECT_EQ(test, visited(test, s), 111);
	unshare_mm(s, 0);
	detach_mm(s->tm[0]);
	rmap_walk_anon(s->folio, &may, false);
	KUNIT_EXPECT_EQ(test, visited(test, s), 11);
	rmap_walk_anon(s->folio, &must, false);
	KUNIT_EXPECT_EQ(test, visited(test, s), 11);
	end_sharing(s);
}

static bool is_first_sharer(struct vm_area_struct *vma, void *arg)
{
	const struct sharing *s = arg;

	return vma == s->vma[0];
}

static int is_done(struct folio *folio)
{
	return 1;
}

static int is_not_done(struct folio *folio)
{
	return 0;
}

/* Who asks is given no VMA that he calls invalid, and none when he has done. */
static void anon_walks_end(struct kunit *test)
{
	struct sharing *s = begin_sharing(test);
	struct rmap_walk_control rwc = { .rmap_one = visit_sharer, .arg = s };

	rwc.invalid_vma = is_first_sharer;
	rmap_walk_anon(s->folio, &rwc, false);
	KUNIT_EXPECT_EQ(test, visited(test, s), 11);
	rwc.done = is_not_done;
	rmap_walk_anon(s->folio, &rwc, false);
	KUNIT_EXPECT_EQ(test, visited(test, s), 11);
	/* Not asked after what was left out. */
	rwc.done = is_done;
	rmap_walk_anon(s->folio, &rwc, false);
	KUNIT_EXPECT_EQ(test, visited(test, s), 10);
	rwc.invalid_vma = NULL;
	rmap_walk_anon(s->folio, &rwc, false);
	KUNIT_EXPECT_EQ(test, visited(test, s), 100);
	end_sharing(s);
}

/* A walk that must not wait ends where it would have to, and says so. */
static void anon_walks_try(struct kunit *test)
{
	struct sharing *s = begin_sharing(test);
	struct rmap_walk_control rwc = {
		.rmap_one = visit_sharer,
		.arg = s,
		.try_lock = true,
	};
	struct mm_struct *mm = &s->tm[1]->mm;

	mmap_write_lock(mm);
	cow_context_lock(mm);
	rmap_walk_anon(s->folio, &rwc, false);
	KUNIT_EXPECT_TRUE(test, rwc.contended);
	KUNIT_EXPECT_EQ(test, visited(test, s), 100);
#ifdef CONFIG_KSM
	struct anon_rmap_addr ara = {
		.rmap = vma_get_anon_rmap(s->vma[0]),
		.mm = mm,
		.index = s->folio->index,
		.addr = s->addr,
	};

	rwc.contended = false;
	KUNIT_EXPECT_FALSE(test, anon_rmap_walk_addr(&ara, s->folio, &rwc));
	KUNIT_EXPECT_TRUE(test, rwc.contended);
	KUNIT_EXPECT_EQ(test, visited(test, s), 0);
	ara.mm = &s->tm[2]->mm;
	ara.others = true;
	rwc.contended = false;
	KUNIT_EXPECT_FALSE(test, anon_rmap_walk_addr(&ara, s->folio, &rwc));
	KUNIT_EXPECT_TRUE(test, rwc.contended);
	KUNIT_EXPECT_EQ(test, visited(test, s), 100);
	anon_rmap_put(ara.rmap);
#endif
	cow_context_unlock(mm);
	mmap_write_unlock(mm);

	rwc.contended = false;
	rmap_walk_anon(s->folio, &rwc, false);
	KUNIT_EXPECT_FALSE(test, rwc.contended);
	KUNIT_EXPECT_EQ(test, visited(test, s), 111);
	end_sharing(s);
}

#ifdef CONFIG_KSM
/* One mm; in a second pass all others that may have it. */
static void anon_walks_addr(struct kunit *test)
{
	struct sharing *s = begin_sharing(test);
	struct rmap_walk_control rwc = { .rmap_one = visit_sharer, .arg = s };
	struct anon_rmap_addr ara = {
		.index = s->folio->index,
		.addr = s->addr,
	};
	unsigned int i;

	for (i = 0; i < NR_SHARERS; i++) {
		static const unsigned int first[] = { 100, 10, 1 };
		static const unsigned int others[] = { 11, 1, 0 };

		ara.rmap = vma_get_anon_rmap(s->vma[i]);
		ara.mm = &s->tm[i]->mm;
		ara.others = false;
		KUNIT_EXPECT_TRUE(test, anon_rmap_walk_addr(&ara, s->folio, &rwc));
		KUNIT_EXPECT_EQ(test, visited(test, s), first[i]);
		ara.others = true;
		KUNIT_EXPECT_TRUE(test, anon_rmap_walk_addr(&ara, s->folio, &rwc));
		KUNIT_EXPECT_EQ(test, visited(test, s), others[i]);
		anon_rmap_put(ara.rmap);
	}

	/* Who has another page offset there is not visited, and enough is enough. */
	ara.rmap = vma_get_anon_rmap(s->vma[0]);
	ara.mm = &s->tm[0]->mm;
	mmap_write_lock(&s->tm[1]->mm);
	vma_set_anon_pgoff(s->vma[1], s->folio->index);
	vma_set_pgoff(s->vma[1], s->folio->index);
	mmap_write_unlock(&s->tm[1]->mm);
	KUNIT_EXPECT_TRUE(test, anon_rmap_walk_addr(&ara, s->folio, &rwc));
	KUNIT_EXPECT_EQ(test, visited(test, s), 1);
	rwc.rmap_one = visit_one_sharer;
	KUNIT_EXPECT_FALSE(test, anon_rmap_walk_addr(&ara, s->folio, &rwc));
	KUNIT_EXPECT_EQ(test, visited(test, s), 1);

	/* Of an mm that is gone nobody is visited, nor below it. */
	ara.others = false;
	rwc.rmap_one = visit_sharer;
	unshare_mm(s, 0);
	detach_mm(s->tm[0]);
	KUNIT_EXPECT_TRUE(test, anon_rmap_walk_addr(&ara, s->folio, &rwc));
	KUNIT_EXPECT_EQ(test, visited(test, s), 0);
	anon_rmap_put(ara.rmap);
	end_sharing(s);
}
#endif

/* The owner of what is mapped lies between the mm and the origin of its VMA. */
static void anon_owners(struct kunit *test)
{
	struct sharing *s = begin_sharing(test);
	unsigned int mm, origin, owner;

	for (mm = 0; mm < NR_SHARERS; mm++) {
		struct vm_area_struct *vma = s->vma[mm];

		for (origin = 0; origin <= mm; origin++) {
			vma->origin = ctx_of(s->tm[origin]);
			KUNIT_EXPECT_EQ(test, vma_anon_is_fork_child(vma), origin < mm);
			KUNIT_EXPECT_PTR_EQ(test, vma_anon_owner(vma, true),
					    (void *)ctx_of(s->tm[mm]));
			KUNIT_EXPECT_PTR_EQ(test, vma_anon_owner(vma, false),
					    (void *)ctx_of(s->tm[origin]));
			for (owner = 0; owner < NR_SHARERS; owner++) {
				own_folio(s, owner);
				KUNIT_EXPECT_EQ(test, folio_anon_may_map(s->folio, vma),
						origin <= owner && owner <= mm);
			}
		}

		/* Unfaulted, or not an anonymous folio. */
		vma->origin = NULL;
		own_folio(s, 0);
		KUNIT_EXPECT_FALSE(test, folio_anon_may_map(s->folio, vma));
		KUNIT_EXPECT_FALSE(test, vma_anon_is_fork_child(vma));
		mmap_read_lock(vma->vm_mm);
		KUNIT_EXPECT_EQ(test, __vma_anon_prepare(vma), 0);
		mmap_read_unlock(vma->vm_mm);
		KUNIT_EXPECT_PTR_EQ(test, vma->origin, ctx_of(s->tm[mm]));
		vma->origin = ctx_of(s->tm[0]);
		s->folio->mapping = NULL;
		KUNIT_EXPECT_FALSE(test, folio_anon_may_map(s->folio, vma));
	}
	end_sharing(s);
}

/* Each pin is a reference, which goes with it. */
static void anon_pins(struct kunit *test)
{
	struct sharing *s = begin_sharing(test);
	struct cow_context *ctx;
	struct anon_rmap *rmap;
	unsigned int i, refs;

	for (i = 0; i < NR_SHARERS; i++) {
		own_folio(s, i);
		refs = refs_of(s, i);
		KUNIT_EXPECT_NULL(test, folio_get_anon_rmap(s->folio));
		KUNIT_EXPECT_NULL(test, folio_anon_split_begin(s->folio));
		KUNIT_EXPECT_EQ(test, refs_of(s, i), refs);

		map_folio(s, true);
		rmap = folio_get_anon_rmap(s->folio);
		KUNIT_EXPECT_PTR_EQ(test, rmap, folio_anon_rmap(s->folio));
		KUNIT_ASSERT_EQ(test, refs_of(s, i), refs + 1);
		anon_rmap_put(rmap);
		KUNIT_EXPECT_EQ(test, refs_of(s, i), refs);

		rmap = folio_anon_split_begin(s->folio);
		KUNIT_EXPECT_PTR_EQ(test, rmap, folio_anon_rmap(s->folio));
		KUNIT_ASSERT_EQ(test, refs_of(s, i), refs + 1);
		folio_anon_split_end(rmap);
		KUNIT_EXPECT_EQ(test, refs_of(s, i), refs);
		map_folio(s, false);

		/* The mm's owner, whatever the VMA's origin. */
		rmap = vma_get_anon_rmap(s->vma[i]);
		KUNIT_EXPECT_PTR_EQ(test, rmap, folio_anon_rmap(s->folio));
		KUNIT_ASSERT_EQ(test, refs_of(s, i), refs + 1);
		anon_rmap_put(rmap);
		KUNIT_EXPECT_EQ(test, refs_of(s, i), refs);
	}
	expect_sane(test);

	/* Nor is one whose last reference is gone, and only RCU keeps it. */
	ctx = ctx_of(s->tm[NR_SHARERS - 1]);
	map_folio(s, true);
	unshare_mm(s, NR_SHARERS - 1);
	cow_context_get(ctx);
	exit_mm(test->priv, s->tm[NR_SHARERS - 1]);
	rcu_read_lock();
	cow_context_put(ctx);
	KUNIT_EXPECT_NULL(test, folio_get_anon_rmap(s->folio));
	KUNIT_EXPECT_EQ(test, refcount_read(&ctx->refs), 0);
	rcu_read_unlock();
	s->folio->mapping = NULL;
	KUNIT_EXPECT_NULL(test, folio_get_anon_rmap(s->folio));
	expect_sane(test);
	end_sharing(s);
}

/* Who changes ranges or moves entries keeps walks out of that mm. */
static void anon_locks(struct kunit *test)
{
	struct sharing *s = begin_sharing(test);
	struct vm_area_struct *vma = s->vma[1];
	struct vma_prepare vp = { .vma = vma };
	struct rw_semaphore *rwsem = &ctx_of(s->tm[1])->rwsem;
	int err;

	mmap_write_lock(vma->vm_mm);
	anon_rmap_begin_move(vma, false);
	KUNIT_EXPECT_TRUE(test, rwsem_is_locked(rwsem));
	anon_rmap_end_move(vma, false);
	KUNIT_EXPECT_FALSE(test, rwsem_is_locked(rwsem));

	anon_rmap_begin_adjust(&vp);
	KUNIT_EXPECT_TRUE(test, rwsem_is_locked(rwsem));
	anon_rmap_end_adjust(&vp);
	KUNIT_EXPECT_FALSE(test, rwsem_is_locked(rwsem));

	KUNIT_EXPECT_EQ(test, anon_rmap_lock_all(vma->vm_mm), 0);
	KUNIT_EXPECT_TRUE(test, rwsem_is_locked(rwsem));
	anon_rmap_unlock_all(vma->vm_mm);
	KUNIT_EXPECT_FALSE(test, rwsem_is_locked(rwsem));
	KUNIT_EXPECT_FALSE(test, rwsem_is_locked(&ctx_of(s->tm[0])->rwsem));

	/* Whom a signal waits for gets no lock. */
	set_thread_flag(TIF_SIGPENDING);
	err = anon_rmap_lock_all(vma->vm_mm);
	clear_thread_flag(TIF_SIGPENDING);
	KUNIT_EXPECT_EQ(test, err, -EINTR);
	KUNIT_EXPECT_FALSE(test, rwsem_is_locked(rwsem));
	if (!err)
		anon_rmap_unlock_all(vma->vm_mm);
	mmap_write_unlock(vma->vm_mm);
	end_sharing(s);
}
#endif /* CONFIG_COW_CONTEXT_ANON_RMAP */

/* -------------------------------------------------------------------------
 * What the assertions say of what is broken.
 */

static void checks_chain(struct kunit *test)
{
	struct cow_context *ctx_a, *ctx_b, *ctx_c, *ctx_d, *ctx;
	struct family *family = test->priv;
	struct test_mm *a, *b, *tm;

	a = must_fork(test, NULL);
	b = must_fork(test, a);
	ctx_a = ctx_of(a);
	ctx_b = ctx_of(b);
	ctx_c = ctx_of(must_fork(test, b));
	ctx_d = ctx_of(must_fork(test, a));

	KUNIT_EXPECT_NULL(test, cow_context_check_chain(ctx_c, ctx_c, NULL));
	KUNIT_EXPECT_NULL(test, cow_context_check_chain(ctx_c, ctx_a, NULL));
	KUNIT_EXPECT_NULL(test, cow_context_check_chain(ctx_c, ctx_a, ctx_a));
	KUNIT_EXPECT_NULL(test, cow_context_check_chain(ctx_c, ctx_b, ctx_a));
	KUNIT_EXPECT_STREQ(test, cow_context_check_chain(ctx_c, ctx_a, ctx_b),
			   "the origin does not enclose the owner");
	KUNIT_EXPECT_STREQ(test, cow_context_check_chain(ctx_c, ctx_d, NULL),
			   "the owner does not enclose the mm");
	KUNIT_EXPECT_STREQ(test, cow_context_check_chain(ctx_a, ctx_b, NULL),
			   "the owner does not enclose the mm");

	/* It has a parent, but fork did not link it. */
	tm = must_fork(test, NULL);
	ctx = ctx_of(tm);
	ctx->parent = ctx_a;
	KUNIT_EXPECT_STREQ(test, cow_context_check_chain(ctx, ctx_a, NULL),
			   "a context is not linked");
	ctx->parent = NULL;
	KUNIT_EXPECT_NULL(test, cow_context_check_chain(ctx, ctx, NULL));

	/* It is unlinked, and only RCU keeps it. */
	tm = must_fork(test, b);
	ctx = ctx_of(tm);
	cow_context_get(ctx);
	exit_mm(family, tm);
	KUNIT_EXPECT_NULL(test, cow_context_check_chain(ctx, ctx_a, NULL));
	rcu_read_lock();
	cow_context_put(ctx);
	KUNIT_EXPECT_STREQ(test, cow_context_check_chain(ctx, ctx_a, NULL),
			   "a context is not linked");
	rcu_read_unlock();
}

static void checks_vma(struct kunit *test)
{
	struct test_mm *a, *b, *c, *d, *shares;
	const unsigned long page = 0x1000;
	struct vm_area_struct *vma;
	unsigned int i;

	a = must_fork(test, NULL);
	b = must_fork(test, a);
	c = must_fork(test, b);
	d = must_fork(test, a);
	shares = c;
	for (i = 0; i < COW_OWNERS_MAX; i++)
		shares = must_fork(test, shares);
	KUNIT_ASSERT_PTR_NE(test, ctx_of(shares)->owner, ctx_of(shares));

	vma = inherited_vma(test, c, a, page, 8);
	KUNIT_EXPECT_NULL(test, cow_context_check_vma(vma));
	vma->origin = NULL;
	KUNIT_EXPECT_NULL(test, cow_context_check_vma(vma));
	vma->origin = ctx_of(d);
	KUNIT_EXPECT_STREQ(test, cow_context_check_vma(vma),
			   "the origin does not enclose the mm");
	vma->origin = ctx_of(shares);
	KUNIT_EXPECT_STREQ(test, cow_context_check_vma(vma),
			   "the origin is no owner");
	vma->origin = ctx_of(c);
	KUNIT_EXPECT_NULL(test, cow_context_check_vma(vma));

	/* Moved: each of its offsets needs the record. */
	vma->vm_start += 5 * PAGE_SIZE;
	vma->vm_end += 5 * PAGE_SIZE;
	KUNIT_EXPECT_STREQ(test, cow_context_check_vma(vma),
			   "the VMA was moved and has no record");
	/* Nothing is asked of the temporary stack of exec. */
	vm_flags_init(vma, VM_GROWSDOWN | VM_STACK_INCOMPLETE_SETUP);
	KUNIT_EXPECT_NULL(test, cow_context_check_vma(vma));
	vm_flags_init(vma, VM_GROWSDOWN);
	KUNIT_ASSERT_EQ(test, 0, cow_context_add_remap(ctx_of(c), page,
						       page + 6, 5));
	KUNIT_EXPECT_STREQ(test, cow_context_check_vma(vma),
			   "the VMA was moved and has no record");
	KUNIT_ASSERT_EQ(test, 0, cow_context_add_remap(ctx_of(c), page + 7,
						       page + 7, 5));
	KUNIT_EXPECT_NULL(test, cow_context_check_vma(vma));

	vm_flags_init(vma, VM_SHARED);
	KUNIT_EXPECT_STREQ(test, cow_context_check_vma(vma),
			   "a shared VMA has an origin");
	vm_area_free(vma);
}

static struct kunit_case cow_context_cases[] = {
	KUNIT_CASE(mm_life_cycle),
	KUNIT_CASE(new_is_alone),
	KUNIT_CASE(fork_links_child),
	KUNIT_CASE(dead_stay_linked),
	KUNIT_CASE(owners_max),
	KUNIT_CASE_PARAM(bounds, bound_gen_params),
	KUNIT_CASE_PARAM(random_tree, tree_gen_params),
	KUNIT_CASE(walk_stops),
	KUNIT_CASE(walk_hugetlb),
	KUNIT_CASE(walk_waits),
	KUNIT_CASE(walk_wide),
	KUNIT_CASE(walk_locks),
	KUNIT_CASE_PARAM(remap_cases, remap_gen_params),
	KUNIT_CASE(remap_sets),
	KUNIT_CASE_PARAM(remap_model, model_gen_params),
	KUNIT_CASE_PARAM(walk_vmas, vma_gen_params),
	KUNIT_CASE(filter),
	KUNIT_CASE(filter_hooks),
	KUNIT_CASE(filter_made_anew),
	KUNIT_CASE(first_fault),
	KUNIT_CASE_PARAM(record_of_move, record_gen_params),
	KUNIT_CASE_PARAM(record_of_growth, record_gen_params),
	KUNIT_CASE_PARAM(growth_wraps, record_gen_params),
	KUNIT_CASE_PARAM(record_goes, record_gen_params),
	KUNIT_CASE_PARAM(reset_hides, record_gen_params),
	KUNIT_CASE_PARAM(walk_layouts, layout_gen_params),
	KUNIT_CASE(real_pages),
	KUNIT_CASE(real_replaced),
#ifndef CONFIG_COW_CONTEXT_ANON_RMAP
	KUNIT_CASE(real_missed),
#endif
#ifndef CONFIG_COW_CONTEXT_ANON_RMAP
	KUNIT_CASE(shadow_owners),
#else
	KUNIT_CASE(anon_walks),
	KUNIT_CASE(anon_walks_end),
	KUNIT_CASE(anon_walks_try),
#ifdef CONFIG_KSM
	KUNIT_CASE(anon_walks_addr),
#endif
	KUNIT_CASE(anon_owners),
	KUNIT_CASE(anon_pins),
	KUNIT_CASE(anon_locks),
#endif
	KUNIT_CASE(checks_chain),
	KUNIT_CASE(checks_vma),
	KUNIT_CASE(races),
	{}
};

static struct kunit_suite cow_context_suite = {
	.name = "cow_context",
	.init = cow_context_test_init,
	.exit = cow_context_test_exit,
	.test_cases = cow_context_cases,
};

kunit_test_suite(cow_context_suite);
