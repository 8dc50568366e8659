// SPDX-License-Identifier: GPL-2.0
/*
 * CoW contexts: life cycle, fork tree, hooks of the writers.
 *
 * Theory
 * ======
 *
 * An anonymous folio names the context under which all its mappings lie, its
 * owner. Fork is the only way to share an anonymous folio, so its mappings are
 * in the owner's mm and in mms forked below it. In each of them the folio is
 * at the address that its index says, or at one that mremap() and exec
 * recorded (mm/cow_context_remap.c). A walk (mm/cow_context_rmap.c) visits the
 * contexts below the owner, parent before child, one lock at a time.
 *
 * The fork tree is one circular RCU list per family. A context is an enter and
 * a leave marker, everything between them was forked below it:
 *
 *	A( C( ) B( D( ) ) )        A forked B, B forked D, A forked C
 *
 * A child is inserted directly behind the enter marker of the context that
 * forks. Markers never move; the last reference unlinks them. So a plain RCU
 * list walk meets every context that is linked throughout, and a child after
 * its parent.
 *
 * States
 * ======
 *
 *	new	its mm is being set up; a family of its own
 *	linked	forked: behind its parent's enter marker, before the first PTE
 *		is copied
 *	dead	@mm is NULL: all PTEs are gone. Stays linked, because inherited
 *		folios below may name it
 *	freed	nothing refers to it: unlinked, then RCU-freed
 *
 * A dead context is kept by the contexts below it, so a line of processes that
 * fork and exit would grow without bound. But at most COW_OWNERS_MAX owners
 * enclose any context: a context forked deeper shares its parent's owner and
 * is a position in the list only. It goes with its mm, and no more than
 * COW_OWNERS_MAX dead contexts lie above any living one.
 *
 * Races
 * =====
 *
 * A child that is linked behind the walker, while entries are copied:
 *
 *	walker (must find all)		fork P -> C
 *	----------------------		-----------
 *	R(P)
 *	 PTL(P): resolve entry		link C behind P
 *	unlock P			PTL(P): copy entry to C
 *	next = P->enter.next
 *
 * Fork links before it takes the PTL. If it copied the entry before the
 * walker took that PTL, then C was linked before, the walker reads P's next
 * pointer after, and finds C ahead of it. If it copied after, it copied what
 * the walker had resolved.
 *
 * A context that dies under the walker:
 *
 *	walker				exit of C
 *	------				---------
 *	mm = load_acquire(C->mm)
 *					zap all PTEs
 *					W(C): store_release(C->mm, NULL)
 *	trylock R(C), C->mm == NULL	last put: unlink, free after a grace
 *	next (still under RCU)		period
 *
 * While R is held and @mm is set the context cannot be detached, hence not be
 * unlinked. A walker that has to sleep for R pins the context first, and reads
 * the next pointer before it drops the pin. The acquire pairs with the
 * release: who sees NULL also sees the children that C forked before.
 *
 * Lock order
 * ==========
 *
 * See mm/rmap.c: ctx->rwsem ranks with anon_vma->rwsem (directly inside it as
 * long as both exist). Two contexts' locks never nest. cow_context_tree_lock
 * is a leaf.
 */

#include <linux/mm.h>
#include <linux/rculist.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

#include "cow_context.h"
#include "internal.h"

#define CREATE_TRACE_POINTS
#include <trace/events/cow_context.h>

static struct kmem_cache *cow_context_cachep;

/* Serialises changes of all families' lists. */
static DEFINE_SPINLOCK(cow_context_tree_lock);

DEFINE_PER_CPU(long[NR_COW_STATS], cow_context_stats);

/**
 * cow_context_stat_sum - read a counter
 * @stat: Which one.
 *
 * Context: Any. Not a snapshot: CPUs go on counting.
 * Return: The sum over all CPUs.
 */
long cow_context_stat_sum(enum cow_context_stat stat)
{
	long sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu(cow_context_stats[stat], cpu));
	return sum;
}

/**
 * cow_context_cache_init - create the slab cache
 *
 * Context: Boot, before the first mm_alloc(), which can be poking_init()'s.
 */
void __init cow_context_cache_init(void)
{
	cow_context_cachep = KMEM_CACHE(cow_context, SLAB_HWCACHE_ALIGN |
					SLAB_PANIC | SLAB_ACCOUNT);
}

/**
 * cow_context_mm_alloc - give a new mm its context
 * @mm: The mm, not yet visible to anyone.
 *
 * The context is a family of its own until cow_context_fork().
 *
 * Context: May sleep.
 * Return: 0, or -ENOMEM.
 */
int cow_context_mm_alloc(struct mm_struct *mm)
{
	struct cow_context *ctx;

	ctx = kmem_cache_zalloc(cow_context_cachep, GFP_KERNEL);
	if (!ctx)
		return -ENOMEM;

	init_rwsem(&ctx->rwsem);
	seqcount_init(&ctx->inherited.seq);
	ctx->mm = mm;
	ctx->owner = ctx;
	refcount_set(&ctx->refs, 1);
	ctx->enter.ctx = ctx;
	INIT_LIST_HEAD(&ctx->enter.list);
	list_add(&ctx->leave.list, &ctx->enter.list);
	cow_context_init_remaps(ctx);

	mm->cow_context = ctx;
	cow_context_count(COW_STAT_CONTEXTS, 1);
	return 0;
}

/**
 * cow_context_put - drop a reference
 * @ctx: The context, or NULL.
 *
 * The last one unlinks the context and drops its reference to its parent: in a
 * loop, a chain of dead contexts can be long.
 *
 * Context: Any; callers may hold RCU, a folio lock, a PTL.
 */
void cow_context_put(struct cow_context *ctx)
{
	while (ctx && refcount_dec_and_test(&ctx->refs)) {
		struct cow_context *parent = ctx->parent;
		unsigned long flags;

		VM_WARN_ON_ONCE(ctx->mm);
		if (parent) {
			spin_lock_irqsave(&cow_context_tree_lock, flags);
			list_del_rcu(&ctx->enter.list);
			list_del_rcu(&ctx->leave.list);
			spin_unlock_irqrestore(&cow_context_tree_lock, flags);
		}
		cow_context_count(COW_STAT_CONTEXTS, -1);
		cow_context_count(COW_STAT_DEAD, -1);
		kfree_rcu(ctx, rcu);
		ctx = parent;
	}
}

/**
 * cow_context_fork - link the context of a forked mm
 * @mm: The new mm; it has no VMA and no PTE yet.
 * @oldmm: The mm it is forked from.
 *
 * From here on a walk finds @mm. Must come before the first VMA of @oldmm is
 * visible in @mm's mm_mt, so that a failure leaves an empty mm behind.
 *
 * Context: Both mmap_locks held for write. May sleep.
 * Return: 0, or -ENOMEM with nothing changed.
 */
int cow_context_fork(struct mm_struct *mm, struct mm_struct *oldmm)
{
	struct cow_context *ctx = mm->cow_context;
	struct cow_context *from = oldmm->cow_context;
	struct cow_context *parent = from->owner == from ? from : from->parent;
	unsigned long flags;
	int err;

	mmap_assert_write_locked(oldmm);
	mmap_assert_write_locked(mm);
	VM_WARN_ON_ONCE(ctx->parent || !from->mm);

	err = cow_context_dup_remaps(ctx, from);
	if (err)
		return err;

	cow_context_get(parent);
	ctx->parent = parent;
	ctx->depth = parent->depth + 1;
	if (ctx->depth >= COW_OWNERS_MAX)
		ctx->owner = parent;

	/* A walker that meets the leave marker alone ignores it. */
	spin_lock_irqsave(&cow_context_tree_lock, flags);
	list_add_rcu(&ctx->leave.list, &from->enter.list);
	list_add_rcu(&ctx->enter.list, &from->enter.list);
	spin_unlock_irqrestore(&cow_context_tree_lock, flags);

	cow_context_count(COW_STAT_FORKS, 1);
	trace_cow_context_fork(ctx, from);
	return 0;
}

static void __cow_context_detach(struct cow_context *ctx)
{
	/* Pairs with the acquire in cow_context_walk_tree(). */
	smp_store_release(&ctx->mm, NULL);
	cow_context_count(COW_STAT_DEAD, 1);
	trace_cow_context_detach(ctx);
}

/**
 * cow_context_detach - the address space of an mm is gone
 * @mm: The mm, all its PTEs zapped.
 *
 * Drains the walkers inside @mm and keeps later ones out, so that page tables,
 * VMAs and mm_mt can be freed without further care. A second call does
 * nothing.
 *
 * Context: mmap_lock held for write. May sleep.
 */
void cow_context_detach(struct mm_struct *mm)
{
	struct cow_context *ctx = mm->cow_context;

	mmap_assert_write_locked(mm);
	if (!ctx->mm)
		return;

	/* Up to here walks read it. */
	VM_WARN_ON_ONCE(!mt_in_rcu(&mm->mm_mt));
	down_write(&ctx->rwsem);
	__cow_context_detach(ctx);
	up_write(&ctx->rwsem);

	cow_context_free_remaps(ctx);
}

/**
 * cow_context_mm_free - drop the context of an mm_struct that is freed
 * @mm: The mm_struct; nobody else knows it any more.
 *
 * Context: Any that may call mmdrop(), atomic ones included.
 */
void cow_context_mm_free(struct mm_struct *mm)
{
	struct cow_context *ctx = mm->cow_context;

	/* Never ran exit_mmap(): it had no VMA either, and no walk is in it. */
	if (ctx->mm) {
		VM_WARN_ON_ONCE(cow_context_nr_remaps(ctx));
		__cow_context_detach(ctx);
	}
	mm->cow_context = NULL;
	cow_context_put(ctx);
}

/**
 * cow_context_lock - keep walkers out of an mm
 * @mm: The mm.
 *
 * Waits for the walkers inside @mm, and forgets the VMA they found last. The
 * holder may change the range of VMAs, take VMAs out of mm_mt, move page tables;
 * who only has the rwsem may not. It must not allocate with a gfp mask that may
 * enter direct reclaim: that walks.
 *
 * Context: mmap_lock held. May sleep.
 */
void cow_context_lock(struct mm_struct *mm)
{
	struct cow_context *ctx = mm->cow_context;

	down_write(&ctx->rwsem);
	if (!ctx->unmapping.nr)
		ctx->unmapping.last_found = NULL;
}

/**
 * cow_context_unlock - let walkers in again
 * @mm: The mm.
 */
void cow_context_unlock(struct mm_struct *mm)
{
	up_write(&mm->cow_context->rwsem);
}

/**
 * cow_context_lock_all - keep walkers out for mm_take_all_locks()
 * @mm: The mm, whose VMAs stay as they are.
 *
 * Context: mmap_lock held for write, which the lock nests in.
 */
void cow_context_lock_all(struct mm_struct *mm)
{
	down_write_nest_lock(&mm->cow_context->rwsem, &mm->mmap_lock);
}

/**
 * cow_context_prepare_vma - first anonymous fault in a VMA
 * @vma: The VMA.
 *
 * Racing faults store the same value. The first anonymous PTE comes after it,
 * so the PTL orders it for everyone who finds that PTE.
 *
 * Context: mmap_lock held, read is enough; in pure mode the VMA lock does
 * instead. Does not sleep.
 */
void cow_context_prepare_vma(struct vm_area_struct *vma)
{
	vma_assert_stabilised(vma);
	/* Unfaulted VMAs are linear: the first fault needs no record (I6). */
	VM_WARN_ON_ONCE_VMA(cow_context_vma_delta(vma) &&
			    !vma_is_temporary_stack(vma), vma);

	/* Pairs with the acquire in is_candidate(). */
	smp_store_release(&vma->origin, vma->vm_mm->cow_context->owner);
}

/**
 * cow_context_publish_vma - let walkers see a VMA that continues another
 * @vma: The new or grown VMA, in mm_mt or about to be in the same W section.
 * @from: The VMA it was copied, split or forked from, or that it absorbs; @vma
 *	if that is unfaulted. Then it adds no more than offsets to the filter.
 *
 * vm_area_dup() leaves the origin NULL, so an origin seen under R means that
 * the VMA is attached or being unmapped. A copy that is thrown away must not
 * have one: a walker may still have a pointer to what was freed and is that
 * copy now.
 *
 * Context: mmap_lock of both held for write; W if a walk may already have found
 * @vma with entries: if it grew, or was faulted.
 */
void cow_context_publish_vma(struct vm_area_struct *vma,
			     struct vm_area_struct *from)
{
	struct cow_context *origin = from->origin;

	if (!origin)
		return;
	VM_WARN_ON_ONCE_VMA(!mt_in_rcu(&vma->vm_mm->mm_mt), vma);
	VM_WARN_ON_ONCE_VMA(vma->origin && vma->origin != origin, vma);
	WRITE_ONCE(vma->origin, origin);
	cow_filter_add_vma(vma);
}

/**
 * cow_context_wipe_vma - a VMA whose contents are not inherited at fork
 * @vma: The child's VMA, private anonymous, not in mm_mt yet.
 *
 * The parent's may have been moved. The child's is unfaulted, so it must be
 * linear, or its first fault would need a record. The inherited one goes.
 *
 * Context: The child's mmap_lock held for write. May sleep.
 */
void cow_context_wipe_vma(struct vm_area_struct *vma)
{
	const pgoff_t pgoff = vma->vm_start >> PAGE_SHIFT;

	VM_WARN_ON_ONCE_VMA(vma->vm_file, vma);
	cow_context_forget_vma(vma->vm_mm, vma);
	vma_set_anon_pgoff(vma, pgoff);
	vma_set_pgoff(vma, pgoff);
}

/**
 * cow_context_reset_vma - a VMA whose pages were all moved away
 * @vma: The VMA; stays in mm_mt.
 *
 * Context: mmap_lock held for write, VMA write-locked. May sleep.
 */
void cow_context_reset_vma(struct vm_area_struct *vma)
{
	cow_context_lock(vma->vm_mm);
	WRITE_ONCE(vma->origin, NULL);
	cow_context_unlock(vma->vm_mm);
	cow_context_forget_vma(vma->vm_mm, vma);
}

/**
 * cow_context_begin_unmap - VMAs leave mm_mt with PTEs still to be zapped
 * @mm: The mm.
 * @detached: The VMAs, at 0 .. @nr - 1 in address order.
 * @nr: How many there are.
 *
 * The caller takes them out of mm_mt in the same W section, so that a walker
 * finds each in exactly one place. cow_context_hide() ends it. There is one
 * munmap in flight at most: it holds mmap_lock to its end.
 *
 * Context: mmap_lock held for write, W.
 */
void cow_context_begin_unmap(struct mm_struct *mm, struct maple_tree *detached,
			     unsigned long nr)
{
	struct cow_context *ctx = mm->cow_context;

	mmap_assert_write_locked(mm);
	lockdep_assert_held_write(&ctx->rwsem);
	VM_WARN_ON_ONCE(!nr || ctx->unmapping.nr);

	ctx->unmapping.tree = detached;
	ctx->unmapping.nr = nr;
}

/* What MAP_FIXED replaces is still in mm_mt. */
static void clear_origins(struct unmap_desc *unmap)
{
	MA_STATE(mas, unmap->mas->tree, unmap->tree_reset, unmap->tree_reset);
	struct vm_area_struct *vma = unmap->first;

	for (; vma; vma = mas_find(&mas, unmap->tree_end - 1))
		WRITE_ONCE(vma->origin, NULL);
}

/**
 * cow_context_hide - VMAs whose PTEs are zapped
 * @unmap: Describes them.
 *
 * Drains the walkers that may be inside them. After it their page tables may
 * be freed, and so may they, even if they are still in mm_mt (MAP_FIXED).
 *
 * Context: mmap_lock held, read is enough for the munmap in flight. May sleep.
 */
void cow_context_hide(struct unmap_desc *unmap)
{
	struct mm_struct *mm = unmap->first->vm_mm;
	struct cow_context *ctx = mm->cow_context;
	const unsigned long nr = ctx->unmapping.nr;

	mmap_assert_locked(mm);
	cow_context_lock(mm);
	if (nr)
		ctx->unmapping = (struct cow_unmapping) {};
	else
		clear_origins(unmap);
	cow_context_unlock(mm);
	/*
	 * What MAP_FIXED replaces does not count, and mm_mt of a failed fork is not
	 * complete.
	 */
	if (nr)
		cow_filter_unmapped(ctx, nr);
}

/**
 * cow_context_move_vma - announce where anonymous pages will be
 * @vma: A VMA of the mm, the source of the move.
 * @first: First anonymous page offset.
 * @nr_pages: How many.
 * @addr: User address at which @first will be. Nothing is mapped there.
 *
 * Comes before the first PTE is moved. A record that turns out not to be
 * needed costs a lookup in a walk and can do no harm.
 *
 * Context: mmap_lock held for write, W not held. May sleep.
 * Return: 0, or -ENOMEM, also if the offsets wrap. Then there is no record of it,
 * unless there was no memory to take back a part of one either.
 */
int cow_context_move_vma(struct vm_area_struct *vma, pgoff_t first,
			 unsigned long nr_pages, unsigned long addr)
{
	const long delta = (addr >> PAGE_SHIFT) - first;

	mmap_assert_write_locked(vma->vm_mm);
	if (!nr_pages)
		return 0;
	/*
	 * That takes a file's private pages that are grown, moved and cut at the
	 * front for hours. Other offsets are the file's, too: mremap() asks.
	 */
	if (first + nr_pages < first)
		return -ENOMEM;
	cow_filter_add_range(vma, first, first + nr_pages - 1);
	if (!delta)
		return 0;
	return cow_context_add_remap(vma->vm_mm->cow_context, first,
				     first + nr_pages - 1, delta);
}

/**
 * cow_context_unmove_vma - take back cow_context_move_vma()
 * @vma: As there.
 * @first: As there.
 * @nr_pages: As there.
 * @addr: As there.
 *
 * Context: The same mmap_lock section.
 */
void cow_context_unmove_vma(struct vm_area_struct *vma, pgoff_t first,
			    unsigned long nr_pages, unsigned long addr)
{
	const long delta = (addr >> PAGE_SHIFT) - first;

	mmap_assert_write_locked(vma->vm_mm);
	if (delta && nr_pages)
		cow_context_del_remap(vma->vm_mm->cow_context, first,
				      first + nr_pages - 1, delta);
}

/**
 * cow_context_grow_vma - announce that a VMA will grow
 * @vma: The VMA.
 * @start: First user address it will also cover.
 * @end: End of that range, exclusive.
 *
 * Context: mmap_lock held for write, W not held. May sleep.
 * Return: 0, or -ENOMEM, as cow_context_move_vma().
 */
int cow_context_grow_vma(struct vm_area_struct *vma, unsigned long start,
			 unsigned long end)
{
	const long delta = cow_context_vma_delta(vma);
	const pgoff_t first = (start >> PAGE_SHIFT) - delta;

	mmap_assert_write_locked(vma->vm_mm);
	/* The offset wraps: the caller is about to refuse that. */
	if (start < vma->vm_start && first > vma_start_anon_pgoff(vma))
		return 0;
	return cow_context_move_vma(vma, first, (end - start) >> PAGE_SHIFT,
				    start);
}

/**
 * cow_context_ungrow_vma - take back cow_context_grow_vma()
 * @vma: The VMA, which did not grow.
 * @start: As there.
 * @end: As there; nothing was announced if it is not above @start.
 *
 * Nobody else would: what is unmapped takes the records of its own range along.
 *
 * Context: The same mmap_lock section, W not held. May sleep.
 */
void cow_context_ungrow_vma(struct vm_area_struct *vma, unsigned long start,
			    unsigned long end)
{
	const pgoff_t first = (start >> PAGE_SHIFT) - cow_context_vma_delta(vma);

	if (start >= end ||
	    (start < vma->vm_start && first > vma_start_anon_pgoff(vma)))
		return;
	cow_context_unmove_vma(vma, first, (end - start) >> PAGE_SHIFT, start);
}

/**
 * cow_context_forget_vma - remove the records of a VMA
 * @mm: The VMA's mm; or a child of it that does not inherit the VMA.
 * @vma: The VMA; in its own mm it is hidden from walkers.
 *
 * Belongs into the mmap_lock section that removed the VMA: until it ends
 * nothing else can be mapped where the records point. A child has inherited them,
 * and would hand them on for ever. Tried once; a record for which there is no
 * memory to remove it stays, and does no harm.
 *
 * Context: mmap_lock of @mm held for write, or read by the munmap in flight. May
 * sleep.
 */
void cow_context_forget_vma(struct mm_struct *mm,
			    const struct vm_area_struct *vma)
{
	const pgoff_t first = vma_start_anon_pgoff(vma);
	const long delta = cow_context_vma_delta(vma);

	mmap_assert_locked(mm);
	if (delta)
		cow_context_del_remap(mm->cow_context, first,
				      first + vma_pages(vma) - 1, delta);
}
