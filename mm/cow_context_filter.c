// SPDX-License-Identifier: GPL-2.0
/*
 * CoW contexts: which contexts a walk need not lock.
 *
 * Theory
 * ======
 *
 * A walk meets all contexts below the folio's owner. In most of a wide family
 * the memory of a common ancestor is gone: children unmap it, or replace it by
 * their own. What is theirs is not inherited, and what is inherited only gets
 * less: an mm maps folios of an owner other than its own at offsets of VMAs that
 * it got at fork, or where such a VMA grew.
 *
 * So each context has a small superset of the anonymous page offsets of its VMAs
 * whose origin is not its own owner: a Bloom filter with one hash. A walk for
 * a folio of another owner passes by a context whose filter has none of the
 * folio's bits, with a few loads and no lock.
 *
 * Small VMAs set a bit for each piece of 16 pages, of 128 bits. Large ones, of
 * more than 128 pages, would set too many; they set one for each 8192 pages, of
 * 32 bits of their own.
 *
 * Bits are set before a VMA can have an inherited entry at these offsets: at
 * fork, before a VMA is moved or grows, and when it takes in an unfaulted one.
 * They are cleared all together, by reading all VMAs again, when as many VMAs
 * were unmapped since the last time as are left: so a munmap pays for a VMA or
 * two, for each that it takes away. What MAP_FIXED replaces is not counted.
 *
 * Races
 * =====
 *
 * Writers hold mmap_lock for write, or are the munmap in flight. A walk reads
 * without a lock. A bit that is set too long costs a visit.
 *
 *	walker (must find F)		fork P -> C
 *	--------------------		-----------
 *	R(P)				link C, set bits of C
 *	 PTL(P): resolve entry		PTL(P): copy entry to C
 *	next: C; read its bits
 *
 * If the entry was copied before the walker had the PTL, the bits were set
 * before. If P has no entry any more, its VMA was hidden under W, and the walker
 * saw that under R, or that P is detached (mm/cow_context.c), or:
 *
 *	walker				munmap in P
 *	------				-----------
 *					all PTEs are zapped
 *					seq odd; bits of P; seq even
 *	seq, bits of P, same seq:
 *	pass by P
 *	next: C; read its bits
 *
 * Who sees the bits as they were made anew sees what P forked before, and its
 * bits.
 *
 * A VMA that was merged, split or has grown can have other bits when they are
 * made anew: then it has the old ones or the new ones, but a walk that reads
 * words of both could find none. Hence the sequence count. A walk does not wait
 * for it: a filter that is being made anew costs a visit. Setting bits takes none
 * away, and needs no count.
 *
 * A VMA that grows can get an inherited folio at new offsets from swap: an entry
 * that the mm shares with its own child names the VMA's origin when it comes
 * back. That happens under the folio lock, which a walk of that folio holds, or
 * will get after the bits were set.
 */

#include <linux/bitmap.h>
#include <linux/hash.h>
#include <linux/mm.h>

#include "cow_context.h"

#define SMALL_SHIFT	4
#define SMALL_PIECES	8
#define LARGE_SHIFT	13

/* Walks may read @filter meanwhile, each word once. */

static void add_small(struct cow_filter *filter, pgoff_t first, pgoff_t last)
{
	pgoff_t piece;

	for (piece = first >> SMALL_SHIFT; piece <= last >> SMALL_SHIFT; piece++) {
		const unsigned int bit = hash_long(piece, ilog2(COW_FILTER_SMALL));
		unsigned long *word = &filter->small[BIT_WORD(bit)];

		WRITE_ONCE(*word, *word | BIT_MASK(bit));
	}
}

static void add_large(struct cow_filter *filter, pgoff_t first, pgoff_t last)
{
	u32 bits = filter->large;
	pgoff_t piece;

	first >>= LARGE_SHIFT;
	last >>= LARGE_SHIFT;
	if (last - first >= COW_FILTER_LARGE)
		bits = ~0;
	else
		for (piece = first; piece <= last; piece++)
			bits |= BIT(hash_long(piece, ilog2(COW_FILTER_LARGE)));
	WRITE_ONCE(filter->large, bits);
}

static void add_pieces(struct cow_filter *filter, pgoff_t first, pgoff_t last)
{
	if (last - first < SMALL_PIECES << SMALL_SHIFT)
		add_small(filter, first, last);
	else
		add_large(filter, first, last);
}

/**
 * cow_filter_folio - what a walk looks for
 * @filter: Set to the bits of all VMAs that can map the folio.
 * @first: First anonymous page offset of the folio.
 * @last: Last one, inclusive.
 *
 * Context: Any.
 */
void cow_filter_folio(struct cow_filter *filter, pgoff_t first, pgoff_t last)
{
	*filter = (struct cow_filter) {};
	/* What many pieces leave out is not worth their hashes: 1 GiB has 16384. */
	if (last - first < 8 * COW_FILTER_SMALL << SMALL_SHIFT)
		add_small(filter, first, last);
	else
		bitmap_fill(filter->small, COW_FILTER_SMALL);
	add_large(filter, first, last);
}

static bool is_inherited(const struct cow_context *ctx,
			 const struct vm_area_struct *vma)
{
	const struct cow_context *origin = READ_ONCE(vma->origin);

	return origin && origin != ctx->owner;
}

/**
 * cow_filter_add_range - offsets at which a VMA is about to have entries
 * @vma: A VMA of the mm. Nothing is done if its memory is not inherited.
 * @first: First anonymous page offset.
 * @last: Last one, inclusive.
 *
 * Context: mmap_lock held for write.
 */
void cow_filter_add_range(const struct vm_area_struct *vma, pgoff_t first,
			  pgoff_t last)
{
	struct cow_context *ctx = vma->vm_mm->cow_context;

	if (is_inherited(ctx, vma))
		add_pieces(&ctx->inherited, first, last);
}

/**
 * cow_filter_add_vma - cow_filter_add_range() for all offsets of a VMA
 * @vma: The VMA, its origin set.
 *
 * Context: mmap_lock held for write.
 */
void cow_filter_add_vma(const struct vm_area_struct *vma)
{
	const pgoff_t first = vma_start_anon_pgoff(vma);

	cow_filter_add_range(vma, first, first + vma_pages(vma) - 1);
}

static void make_anew(struct cow_context *ctx)
{
	struct cow_filter *filter = &ctx->inherited;
	VMA_ITERATOR(vmi, ctx->mm, 0);
	struct cow_filter new = {};
	struct vm_area_struct *vma;
	unsigned int i;

	for_each_vma(vmi, vma) {
		const pgoff_t first = vma_start_anon_pgoff(vma);

		if (is_inherited(ctx, vma))
			add_pieces(&new, first, first + vma_pages(vma) - 1);
	}
	raw_write_seqcount_begin(&filter->seq);
	WRITE_ONCE(filter->large, new.large);
	for (i = 0; i < ARRAY_SIZE(new.small); i++)
		WRITE_ONCE(filter->small[i], new.small[i]);
	raw_write_seqcount_end(&filter->seq);
	ctx->nr_unmapped = 0;
}

/**
 * cow_filter_unmapped - VMAs were unmapped
 * @ctx: The context of the mm.
 * @nr: How many.
 *
 * Context: mmap_lock held for write, or for read by the munmap in flight, whose
 * VMAs are hidden.
 */
void cow_filter_unmapped(struct cow_context *ctx, unsigned long nr)
{
	if (!ctx->inherited.large &&
	    bitmap_empty(ctx->inherited.small, COW_FILTER_SMALL))
		return;
	ctx->nr_unmapped = min(ctx->nr_unmapped + nr, U16_MAX);
	if (ctx->nr_unmapped >= min(ctx->mm->map_count, U16_MAX))
		make_anew(ctx);
}
