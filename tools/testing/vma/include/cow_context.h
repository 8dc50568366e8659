/* SPDX-License-Identifier: GPL-2.0 */

#pragma once

/*
 * CoW contexts as mm/vma.c meets them in pure mode.
 *
 * A context is no more than an owner here. What mm/vma.c asks of it is logged,
 * one letter for each call:
 *
 *	L, U	keep rmap walks out, let them in again
 *	l	L, but a VMA had changed its range since U
 *	P, p	a VMA takes over an origin, with and without the lock
 *	m, x	announce a move, take it back
 *	g, u	announce growth, take it back
 *	b, h, f	begin to unmap, hide, forget the records of a VMA
 */
#ifdef CONFIG_COW_CONTEXT

#include <assert.h>

struct cow_context {
	struct cow_context *owner;

	/* Test fields. */
	char log[32];
	bool locked;
	bool fail_alloc;			/* of records */
	unsigned long geometry;			/* of the VMAs in mm_mt at U */
	struct maple_tree *unmapping;
	unsigned long announced;		/* of the first offsets: a filter */
	struct vm_area_struct *published;	/* the last one */
	struct vm_area_struct *faulting;	/* who has its VMA lock for read */
};

/* The context of each mm that was given none. Its own owner. */
extern struct cow_context dummy_cow_context;

static inline struct cow_context *mm_cow_context(struct mm_struct *mm)
{
	if (!mm->cow_context)
		mm->cow_context = &dummy_cow_context;
	return mm->cow_context;
}

static inline void cow_context_log(struct mm_struct *mm, char what)
{
	struct cow_context *ctx = mm_cow_context(mm);
	size_t len = strlen(ctx->log);

	if (len < sizeof(ctx->log) - 1)
		ctx->log[len] = what;
}

/* A number that changes when a VMA in mm_mt changes its place. */
static inline unsigned long cow_context_geometry(struct mm_struct *mm)
{
	struct vm_area_struct *vma;
	unsigned long sum = 0;
	VMA_ITERATOR(vmi, mm, 0);

	for_each_vma(vmi, vma) {
		sum = sum * 31 + vma->vm_start;
		sum = sum * 31 + vma->vm_end;
		sum = sum * 31 + vma->__vm_anon_pgoff_lo;
	}
	return sum;
}

/* Forget what was logged: here begins what a test looks at. */
static inline void cow_context_reset_log(struct mm_struct *mm)
{
	struct cow_context *ctx = mm_cow_context(mm);

	memset(ctx->log, 0, sizeof(ctx->log));
	ctx->geometry = cow_context_geometry(mm);
}

static inline void cow_context_lock(struct mm_struct *mm)
{
	struct cow_context *ctx = mm_cow_context(mm);

	assert(!ctx->locked);
	ctx->locked = true;
	cow_context_log(mm, ctx->geometry == cow_context_geometry(mm) ? 'L' : 'l');
}

static inline void cow_context_unlock(struct mm_struct *mm)
{
	struct cow_context *ctx = mm_cow_context(mm);

	assert(ctx->locked);
	ctx->locked = false;
	ctx->geometry = cow_context_geometry(mm);
	cow_context_log(mm, 'U');
}

/* A bit for each of the first offsets that lies in a range of a VMA. */
static inline unsigned long cow_context_offsets(struct vm_area_struct *vma,
						unsigned long start,
						unsigned long end)
{
	pgoff_t first = linear_anon_page_index(vma, start), i;
	unsigned long bits = 0;

	for (i = first; i < first + PHYS_PFN(end - start) && i < BITS_PER_LONG; i++)
		bits |= BIT(i);
	return bits;
}

/* Entries can come up there, perhaps inherited ones. */
static inline void cow_context_announce(struct vm_area_struct *vma,
					unsigned long start, unsigned long end)
{
	mm_cow_context(vma->vm_mm)->announced |=
		cow_context_offsets(vma, start, end);
}

static inline void cow_context_publish_vma(struct vm_area_struct *vma,
					   struct vm_area_struct *from)
{
	struct cow_context *ctx = mm_cow_context(vma->vm_mm);

	cow_context_announce(vma, vma->vm_start, vma->vm_end);
	if (!from->origin || vma->origin == from->origin)
		return;
	assert(!vma->origin);
	vma->origin = from->origin;
	ctx->published = vma;
	cow_context_log(vma->vm_mm, ctx->locked ? 'P' : 'p');
}

static inline void cow_context_begin_unmap(struct mm_struct *mm,
					   struct maple_tree *detached,
					   unsigned long nr)
{
	struct cow_context *ctx = mm_cow_context(mm);

	assert(ctx->locked && !ctx->unmapping);
	ctx->unmapping = detached;
	cow_context_log(mm, 'b');
}

static inline void cow_context_hide_vmas(struct ma_state *mas,
					 struct vm_area_struct *vma,
					 unsigned long reset, unsigned long end)
{
	struct cow_context *ctx = mm_cow_context(vma->vm_mm);
	MA_STATE(it, mas->tree, reset, reset);

	cow_context_log(vma->vm_mm, 'h');
	if (!ctx->unmapping)
		for (; vma; vma = mas_find(&it, end - 1))
			vma->origin = NULL;
	ctx->unmapping = NULL;
}

/* A macro, because struct unmap_desc is not known yet. */
#define cow_context_hide(unmap)						\
	cow_context_hide_vmas((unmap)->mas, (unmap)->first,		\
			      (unmap)->tree_reset, (unmap)->tree_end)

static inline int cow_context_move_vma(struct vm_area_struct *vma,
				       pgoff_t first, unsigned long nr_pages,
				       unsigned long addr)
{
	assert(!mm_cow_context(vma->vm_mm)->locked);
	if (mm_cow_context(vma->vm_mm)->fail_alloc)
		return -ENOMEM;
	cow_context_log(vma->vm_mm, 'm');
	return 0;
}

static inline void cow_context_unmove_vma(struct vm_area_struct *vma,
					  pgoff_t first,
					  unsigned long nr_pages,
					  unsigned long addr)
{
	cow_context_log(vma->vm_mm, 'x');
}

static inline int cow_context_grow_vma(struct vm_area_struct *vma,
				       unsigned long start, unsigned long end)
{
	assert(!mm_cow_context(vma->vm_mm)->locked);
	if (mm_cow_context(vma->vm_mm)->fail_alloc)
		return -ENOMEM;
	cow_context_announce(vma, start, end);
	cow_context_log(vma->vm_mm, 'g');
	return 0;
}

static inline void cow_context_ungrow_vma(struct vm_area_struct *vma,
					  unsigned long start, unsigned long end)
{
	assert(!mm_cow_context(vma->vm_mm)->locked);
	if (start < end)
		cow_context_log(vma->vm_mm, 'u');
}

static inline void cow_context_forget_vma(struct mm_struct *mm,
					  const struct vm_area_struct *vma)
{
	assert(!mm_cow_context(mm)->unmapping);
	cow_context_log(mm, 'f');
}

/* A fault goes on beside mmap_lock until someone wants the VMA lock. */
static inline void vma_finish_fault(struct vm_area_struct *vma)
{
	struct cow_context *ctx = mm_cow_context(vma->vm_mm);

	if (ctx->faulting == vma) {
		ctx->faulting = NULL;
		vma->origin = ctx->owner;
	}
}

/* The anon_rmap interface, as mm/internal.h and mm/cow_context_anon.c have it. */

static inline void vma_anon_freeze(struct vm_area_struct *vma)
{
	if (IS_ENABLED(CONFIG_COW_CONTEXT_ANON_RMAP) && !vma_anon_faulted(vma))
		vma_start_write(vma);
}

static inline int __vma_anon_prepare(struct vm_area_struct *vma)
{
	vma->origin = mm_cow_context(vma->vm_mm)->owner;
	return 0;
}

static inline bool vma_anon_is_fork_child(const struct vm_area_struct *vma)
{
	return vma->origin && vma->origin != mm_cow_context(vma->vm_mm)->owner;
}

static inline int anon_rmap_dup_vma(struct vm_area_struct *dst,
				    struct vm_area_struct *src,
				    enum vma_operation operation)
{
	return 0;
}

static inline void anon_rmap_unlink_vma(struct vm_area_struct *vma)
{
}

/* struct vma_prepare is not known yet either. */
#define anon_rmap_begin_adjust(vp)	cow_context_lock((vp)->vma->vm_mm)
#define anon_rmap_end_adjust(vp)	cow_context_unlock((vp)->vma->vm_mm)

#endif /* CONFIG_COW_CONTEXT */
