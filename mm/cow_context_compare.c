// SPDX-License-Identifier: GPL-2.0
/*
 * CoW contexts: the compare mode. Two reverse mappings, one verdict.
 *
 * Theory
 * ======
 *
 * anon_vma answers; contexts are maintained beside it. At each walk of the
 * anonymous reverse mapping, before it does anything, each VMA that anon_vma
 * knows for the folio is judged, in one section under its context's lock:
 *
 *	mapped here	would be visited	verdict
 *	-----------	----------------	-------
 *	yes		yes			found
 *	yes		no			missed: a bug, reported
 *	no		no			benign
 *	no		yes			nothing
 *
 * "Mapped" is what page_vma_mapped_walk() says, for present entries and for
 * migration entries (whose pfn is the source folio's). "Would be visited" asks
 * the code of the walk: do the records and mm_mt (or the munmap in flight) lead
 * to this VMA, does its origin enclose the folio's owner, is the owner on the
 * chain of parents of the mm, and every context up to it linked? Both answers
 * hold under the same lock, so there is nothing to validate afterwards.
 *
 * Then the real walk runs, and only counts. More visits than anon_vma has VMAs
 * that would be visited are extra: no error, but a cost. If fewer of them are of
 * VMAs that map the folio, the tree walk did not get somewhere, or an mm has gone
 * meanwhile; then each mapped VMA is looked for by a walk of its own, and one that
 * is still mapped afterwards and was not visited is missed too.
 *
 * Ownership
 * =========
 *
 * Which context owns a folio is kept in page_ext, set and moved exactly where
 * folio->mapping is; so the rules of ownership are tested as well. The index is
 * folio->index, which has one meaning for both. Folios of a device have no
 * page_ext. They are counted, not judged, and so is what comes back from a device
 * until its owner is set again.
 *
 * What it cannot show
 * ===================
 *
 * It runs under the root lock of anon_vma, which excludes most races of
 * interest. Therefore, with CONFIG_DEBUG_VM, the same is asserted of each
 * anonymous page table entry when it is installed, copied, moved or zapped, see
 * mm/cow_context_validate.c.
 *
 * Lock order: anon_vma root, then ctx->rwsem, then page table locks. Walks that
 * must not block try the lock, and count what they had to leave out.
 */

#include <linux/hash.h>
#include <linux/hugetlb.h>
#include <linux/mm.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/page_ext.h>
#include <linux/rmap.h>

#include "cow_context.h"
#include "internal.h"

#include <trace/events/cow_context.h>

#undef MODULE_PARAM_PREFIX
#define MODULE_PARAM_PREFIX "cow_context."

static bool panic_on_miss;
module_param(panic_on_miss, bool, 0644);
MODULE_PARM_DESC(panic_on_miss, "Panic when a walk would miss a mapping");

/* Ownership */

/* Whose a device's folio is. */
#define OWNER_UNKNOWN	((struct cow_context *)ERR_PTR(-ENODEV))

static bool need_page_ext(void)
{
	return true;
}

struct page_ext_operations cow_context_page_ext_ops = {
	.size = sizeof(struct cow_context *),
	.need = need_page_ext,
};

static void write_owner(const struct folio *folio, struct cow_context *owner)
{
	struct page_ext *ext = page_ext_get(&folio->page);
	struct cow_context **slot;

	if (!ext)
		return;
	slot = page_ext_data(ext, &cow_context_page_ext_ops);
	WRITE_ONCE(*slot, owner);
	page_ext_put(ext);
}

/**
 * cow_context_folio_owner - which context owns a folio
 * @folio: The folio.
 *
 * It can have been freed if the folio is not mapped: compare the pointer only.
 *
 * Context: Any.
 * Return: The owner as shadowed, NULL if there is none or the folio has no
 * page_ext, an ERR_PTR() if it is a device's, or was.
 */
struct cow_context *cow_context_folio_owner(const struct folio *folio)
{
	struct cow_context *owner, **slot;
	struct page_ext *ext;

	if (folio_is_zone_device(folio))
		return OWNER_UNKNOWN;
	ext = page_ext_get(&folio->page);
	if (!ext)
		return NULL;
	slot = page_ext_data(ext, &cow_context_page_ext_ops);
	owner = READ_ONCE(*slot);
	page_ext_put(ext);
	return owner;
}

/**
 * cow_context_set_owner - a folio becomes anonymous, or moves to another owner
 * @folio: The folio.
 * @vma: The VMA it is or will be mapped in, prepared.
 * @exclusive: No other mm maps it or has a swap entry for it.
 *
 * An exclusive folio can only be shared by fork, below this mm: its owner is
 * the mm's. Otherwise all sharers inherited the VMA from where it was first
 * faulted: its origin.
 *
 * Context: PTL of a new folio, else the folio lock.
 */
void cow_context_set_owner(struct folio *folio, struct vm_area_struct *vma,
			   bool exclusive)
{
	VM_WARN_ON_ONCE_VMA(!vma->origin, vma);
	write_owner(folio, exclusive ? vma->vm_mm->cow_context->owner :
				       vma->origin);
}

/**
 * cow_context_copy_owner - a folio takes over the mappings of another
 * @dst: The new folio: of a split, or a migration.
 * @src: The old one.
 *
 * Context: Both folios locked.
 */
void cow_context_copy_owner(struct folio *dst, const struct folio *src)
{
	if (folio_test_anon(src) && !folio_test_ksm(src))
		write_owner(dst, cow_context_folio_owner(src));
}

/* The comparison */

/**
 * struct compare - one comparison
 * @walk: What the walk looks for.
 * @mapped: The folio whose entries are looked for in page tables.
 * @site: Who walks: its rmap_one().
 * @nr_visits: VMAs of anon_vma that a walk would visit.
 * @nr_found: Of them, those that map the folio.
 * @nr_seen: VMAs that map the folio, of those that the walk visits.
 * @nr_missed: VMAs missed.
 * @nr_contended: VMAs not judged.
 * @pinned: The owner, referenced, once it was seen alive.
 */
struct compare {
	struct cow_context_walk walk;
	struct folio *mapped;
	const void *site;
	unsigned long nr_visits;
	unsigned long nr_found;
	unsigned long nr_seen;
	unsigned int nr_missed;
	unsigned int nr_contended;
	struct cow_context *pinned;
};

/* A miss, as it was seen under the lock. */
static struct {
	struct vm_area_struct *vma;
	unsigned long start, end, addr;
	pgoff_t anon_pgoff;
	const struct cow_context *origin, *owner;
	const char *why;
	unsigned int nr_rows;
	struct {
		const struct cow_context *ctx, *owner;
		const struct mm_struct *mm;
		unsigned int depth;
		bool linked;
	} row[16];
} report;
static DEFINE_MUTEX(report_mutex);

/* One line per call site and folio is enough. */
static bool is_reported(const struct compare *cmp)
{
	static unsigned long seen[256];
	const unsigned long key = (unsigned long)cmp->site ^
		(folio_pfn(cmp->mapped) << 8);

	return xchg(&seen[hash_long(key, 8)], key) == key;
}

static bool begin_report(const struct compare *cmp,
			 const struct cow_context *ctx,
			 struct vm_area_struct *vma, unsigned long addr,
			 const char *why)
{
	unsigned int i;

	if (is_reported(cmp) || !mutex_trylock(&report_mutex))
		return false;

	report.vma = vma;
	report.start = vma->vm_start;
	report.end = vma->vm_end;
	report.addr = addr;
	report.anon_pgoff = vma_start_anon_pgoff(vma);
	report.origin = vma->origin;
	report.owner = cmp->walk.owner;
	report.why = why;
	for (i = 0; ctx && i < ARRAY_SIZE(report.row); ctx = ctx->parent, i++) {
		report.row[i].ctx = ctx;
		report.row[i].owner = ctx->owner;
		report.row[i].mm = ctx->mm;
		report.row[i].depth = ctx->depth;
		report.row[i].linked = cow_context_is_linked(ctx);
	}
	report.nr_rows = i;
	return true;
}

static void end_report(const struct compare *cmp)
{
	unsigned int i;

	pr_err("cow_context: missed: %ps: folio pfn %lx index %lx order %u %s: %s\n",
	       cmp->site, folio_pfn(cmp->mapped), cmp->walk.first,
	       folio_order(cmp->mapped), cmp->walk.ksm ? "KSM" : "anon",
	       report.why);
	pr_err("cow_context:   anon_vma: vma %p %lx-%lx anon pgoff %lx, mapped at %lx, comm %s pid %d\n",
	       report.vma, report.start, report.end, report.anon_pgoff,
	       report.addr, current->comm, current->pid);
	pr_err("cow_context:   context: origin %p, folio's owner %p\n",
	       report.origin, report.owner);
	for (i = 0; i < report.nr_rows; i++)
		pr_err("cow_context:   %2u: ctx %p depth %u mm %p owner %p%s\n",
		       i, report.row[i].ctx, report.row[i].depth,
		       report.row[i].mm, report.row[i].owner,
		       report.row[i].linked ? "" : " NOT LINKED");
	mutex_unlock(&report_mutex);
}

static bool is_mapped(struct folio *folio, struct vm_area_struct *vma,
		      unsigned long addr)
{
	static const unsigned int flags[] = {
		PVMW_SYNC, PVMW_SYNC | PVMW_MIGRATION,
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		DEFINE_FOLIO_VMA_WALK(pvmw, folio, vma, addr, flags[i]);

		if (page_vma_mapped_walk(&pvmw)) {
			page_vma_mapped_walk_done(&pvmw);
			return true;
		}
	}
	return false;
}

/* A walk that looks for one VMA. */
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

/* Would the walk visit @vma, once it gets to @ctx? Under R of @ctx. */
static bool would_visit(const struct cow_context_walk *walk,
			struct cow_context *ctx, struct vm_area_struct *vma)
{
	struct seek seek = { .walk = *walk, .vma = vma };
	struct cow_filter filter;

	if (!walk->ksm) {
		cow_filter_folio(&filter, walk->first, walk->last);
		if (!cow_filter_meets(ctx, walk->owner, &filter))
			return false;
	}
	seek.walk.visit = seek_visit;
	cow_context_walk_mm(ctx, &seek.walk);
	return seek.found;
}

/* Would the walk visit @vma? NULL if so, else why not. Under R of @ctx. */
static const char *check_visit(struct compare *cmp, struct cow_context *ctx,
			       struct vm_area_struct *vma)
{
	const char *why;

	if (!ctx->mm)
		return "the context is dead";
	if (!vma->origin)
		return "the VMA has no origin";

	why = cow_context_check_chain(ctx, cmp->walk.owner,
				      cmp->walk.ksm ? NULL : vma->origin);
	if (why)
		return why;

	/* The chain of a living mm holds it. */
	if (!cmp->pinned) {
		cow_context_get(cmp->walk.owner);
		cmp->pinned = cmp->walk.owner;
	}
	if (!would_visit(&cmp->walk, ctx, vma))
		return "not found in the mm";
	return NULL;
}

static bool lock_context(struct compare *cmp, struct cow_context *ctx)
{
	if (!cmp->walk.try_lock) {
		down_read(&ctx->rwsem);
		return true;
	}
	if (down_read_trylock(&ctx->rwsem))
		return true;
	cmp->nr_contended++;
	cow_context_count(COW_STAT_CONTENDED, 1);
	return false;
}

static void miss(struct compare *cmp, struct cow_context *ctx,
		 struct vm_area_struct *vma, unsigned long addr,
		 const char *why, bool *reported)
{
	cmp->nr_missed++;
	cow_context_count(COW_STAT_MISSED, 1);
	trace_cow_context_miss(cmp->site, folio_pfn(cmp->mapped),
			       cmp->walk.first, addr);
	*reported = begin_report(cmp, ctx, vma, addr, why);
}

static void unlock_context(struct compare *cmp, struct cow_context *ctx,
			   bool reported)
{
	up_read(&ctx->rwsem);
	if (reported)
		end_report(cmp);
}

/*
 * anon_vma knows two VMAs for the same pages for a moment: a copy before
 * __split_vma() shrinks the original, and one that was merged into another
 * before it is unlinked. A walk visits the one in mm_mt, which covers the other
 * and has the same offsets.
 */
static bool visits_instead(struct compare *cmp, struct cow_context *ctx,
			   struct vm_area_struct *vma, unsigned long addr)
{
	struct vm_area_struct *other;

	if (!ctx->mm)
		return false;

	MA_STATE(mas, &ctx->mm->mm_mt, addr, addr);

	rcu_read_lock();
	other = mas_walk(&mas);
	rcu_read_unlock();
	return other && other != vma && other->vm_mm == vma->vm_mm &&
		other->vm_start <= vma->vm_start &&
		other->vm_end >= vma->vm_end &&
		cow_context_vma_delta(other) == cow_context_vma_delta(vma) &&
		!check_visit(cmp, ctx, other);
}

/* Judge a VMA that anon_vma visits. */
static void judge(struct compare *cmp, struct vm_area_struct *vma,
		  unsigned long addr)
{
	struct cow_context *ctx = vma->vm_mm->cow_context;
	bool mapped, reported = false;
	const char *why;

	cond_resched();
	if (!lock_context(cmp, ctx))
		return;

	mapped = is_mapped(cmp->mapped, vma, addr);
	why = check_visit(cmp, ctx, vma);
	if (!why) {
		cmp->nr_visits++;
		cmp->nr_found += mapped;
	} else if (mapped && visits_instead(cmp, ctx, vma, addr)) {
		why = NULL;
	}

	if (mapped && why)
		miss(cmp, ctx, vma, addr, why, &reported);
	else if (mapped)
		cow_context_count(COW_STAT_FOUND, 1);
	else if (why)
		cow_context_count(COW_STAT_BENIGN, 1);

	unlock_context(cmp, ctx, reported);
}

/* The walk visited fewer VMAs that map the folio than it should have: which? */
static void search(struct compare *cmp, struct vm_area_struct *vma,
		   unsigned long addr)
{
	struct cow_context *ctx = vma->vm_mm->cow_context;
	struct seek seek = { .walk = cmp->walk, .vma = vma };
	bool reported = false, mapped;

	down_read(&ctx->rwsem);
	mapped = ctx->mm && is_mapped(cmp->mapped, vma, addr) &&
		!check_visit(cmp, ctx, vma);
	up_read(&ctx->rwsem);
	if (!mapped)
		return;

	seek.walk.visit = seek_visit;
	cow_context_walk(&seek.walk);
	if (seek.found)
		return;

	down_read(&ctx->rwsem);
	if (ctx->mm && is_mapped(cmp->mapped, vma, addr) &&
	    !check_visit(cmp, ctx, vma))
		miss(cmp, ctx, vma, addr, "the tree walk does not get there",
		     &reported);
	unlock_context(cmp, ctx, reported);
}

static bool see_visit(struct cow_context_walk *walk, struct vm_area_struct *vma)
{
	struct compare *cmp = container_of(walk, struct compare, walk);

	cmp->nr_seen += is_mapped(cmp->mapped, vma,
				  vma_anon_address(vma, walk->first,
						   walk->last - walk->first + 1));
	return true;
}

/* Count what the walk itself visits. Returns true if that is too little. */
static bool compare_visits(struct compare *cmp)
{
	struct cow_context_walk *walk = &cmp->walk;

	/* Nothing here lies below the owner, so nothing keeps it alive. */
	if (!cmp->pinned)
		return false;

	/* With try_lock nothing is searched for afterwards. */
	if (!walk->try_lock)
		walk->visit = see_visit;
	cow_context_walk(walk);
	if (walk->contended || cmp->nr_contended || cmp->nr_missed)
		return false;
	if (walk->nr_vmas > cmp->nr_visits) {
		const unsigned long nr = walk->nr_vmas - cmp->nr_visits;

		cow_context_count(COW_STAT_EXTRA, nr);
		if (walk->ksm)
			cow_context_count(COW_STAT_EXTRA_KSM, nr);
		else
			cow_context_count(COW_STAT_EXTRA_OVERLAP,
					  min(nr, walk->nr_overlap));
		trace_cow_context_extra(cmp->site, folio_pfn(cmp->mapped),
					walk->first, nr);
	}
	return cmp->nr_seen < cmp->nr_found && !walk->try_lock;
}

static void end_compare(struct compare *cmp)
{
	cow_context_put(cmp->pinned);
	if (cmp->nr_missed && panic_on_miss)
		panic("cow_context: a walk would miss a mapping\n");
}

/**
 * cow_context_compare - compare a walk of an anonymous folio
 * @anon_vma: Where anon_vma's walk looks; its root is locked.
 * @folio: The folio.
 * @rwc: What walks.
 *
 * Context: Folio lock, anon_vma root lock. May sleep; with rwc->try_lock, not
 * for a lock.
 */
void cow_context_compare(struct anon_vma *anon_vma, struct folio *folio,
			 struct rmap_walk_control *rwc)
{
	const unsigned long nr_pages = folio_nr_pages(folio);
	struct anon_vma_chain *avc;
	struct compare cmp = {
		.walk = {
			.owner = cow_context_folio_owner(folio),
			.first = folio_pgoff(folio),
			.last = folio_pgoff(folio) + nr_pages - 1,
			.hugetlb = folio_test_hugetlb(folio),
			.try_lock = rwc->try_lock,
		},
		.mapped = rwc->src ?: folio,
		.site = rwc->rmap_one,
	};

	if (IS_ERR_OR_NULL(cmp.walk.owner)) {
		cow_context_count(cmp.walk.owner ? COW_STAT_DEVICE :
						   COW_STAT_UNJUDGED, 1);
		return;
	}
	cow_context_count(COW_STAT_WALKS, 1);

	anon_rmap_tree_foreach(avc, anon_vma, cmp.walk.first, cmp.walk.last)
		judge(&cmp, avc->vma, vma_anon_address(avc->vma, cmp.walk.first,
						       nr_pages));
	if (compare_visits(&cmp)) {
		anon_rmap_tree_foreach(avc, anon_vma, cmp.walk.first,
				       cmp.walk.last)
			search(&cmp, avc->vma,
			       vma_anon_address(avc->vma, cmp.walk.first,
						nr_pages));
	}
	end_compare(&cmp);
}

static bool vma_covers(const struct vm_area_struct *vma, unsigned long addr)
{
	return addr >= vma->vm_start && addr < vma->vm_end;
}

static bool ksm_covers(const struct compare *cmp, struct vm_area_struct *vma,
		       unsigned long addr)
{
	const struct cow_context *ctx;

	if (!vma_covers(vma, addr))
		return false;
	if (linear_anon_page_index(vma, addr) == cmp->walk.first)
		for (ctx = vma->vm_mm->cow_context; ctx; ctx = ctx->parent)
			if (ctx == cmp->walk.owner)
				return true;
	return false;
}

/**
 * cow_context_compare_ksm - compare a walk for one rmap_item of a KSM folio
 * @anon_vma: Where anon_vma's walk looks; its root is locked.
 * @folio: The folio.
 * @mm: The rmap_item's mm, which may be torn down.
 * @index: Its anonymous page offset.
 * @addr: Its user address.
 * @rwc: What walks.
 *
 * A walk for this item covers the owner of @mm and what is below. anon_vma's
 * can also reach a relative of @mm, because of a reused anon_vma: that one has
 * an item of its own, or is below an mm that has one.
 *
 * Context: Folio lock, anon_vma root lock. May sleep; with rwc->try_lock, not
 * for a lock.
 */
void cow_context_compare_ksm(struct anon_vma *anon_vma, struct folio *folio,
			     struct mm_struct *mm, pgoff_t index,
			     unsigned long addr, struct rmap_walk_control *rwc)
{
	struct anon_vma_chain *avc;
	struct compare cmp = {
		.walk = {
			.owner = mm->cow_context->owner,
			.first = index,
			.last = index,
			.ksm = true,
			.try_lock = rwc->try_lock,
		},
		.mapped = rwc->src ?: folio,
		.site = rwc->rmap_one,
	};

	cow_context_count(COW_STAT_WALKS, 1);
	cow_context_count(COW_STAT_WALKS_KSM, 1);

	anon_rmap_tree_foreach(avc, anon_vma, index, index) {
		if (ksm_covers(&cmp, avc->vma, addr))
			judge(&cmp, avc->vma, addr);
		else if (vma_covers(avc->vma, addr))
			/* It was merged, or forked from what was: another item's. */
			cow_context_count(COW_STAT_KSM_FOREIGN, 1);
	}
	if (compare_visits(&cmp)) {
		anon_rmap_tree_foreach(avc, anon_vma, index, index)
			if (ksm_covers(&cmp, avc->vma, addr))
				search(&cmp, avc->vma, addr);
	}
	end_compare(&cmp);
}
