/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM cow_context

#if !defined(_TRACE_COW_CONTEXT_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_COW_CONTEXT_H

#include <linux/tracepoint.h>
#include <linux/types.h>

struct cow_context;
struct folio;

TRACE_EVENT(cow_context_fork,

	TP_PROTO(const struct cow_context *ctx, const struct cow_context *from),

	TP_ARGS(ctx, from),

	TP_STRUCT__entry(
		__field(const void *, ctx)
		__field(const void *, from)
		__field(const void *, owner)
		__field(unsigned int, depth)
	),

	TP_fast_assign(
		__entry->ctx = ctx;
		__entry->from = from;
		__entry->owner = ctx->owner;
		__entry->depth = ctx->depth;
	),

	TP_printk("ctx=%p from=%p owner=%p depth=%u",
		  __entry->ctx, __entry->from, __entry->owner, __entry->depth)
);

TRACE_EVENT(cow_context_detach,

	TP_PROTO(const struct cow_context *ctx),

	TP_ARGS(ctx),

	TP_STRUCT__entry(
		__field(const void *, ctx)
		__field(unsigned int, depth)
	),

	TP_fast_assign(
		__entry->ctx = ctx;
		__entry->depth = ctx->depth;
	),

	TP_printk("ctx=%p depth=%u", __entry->ctx, __entry->depth)
);

DECLARE_EVENT_CLASS(cow_context_remap,

	TP_PROTO(const struct cow_context *ctx, pgoff_t first, pgoff_t last,
		 long delta),

	TP_ARGS(ctx, first, last, delta),

	TP_STRUCT__entry(
		__field(const void *, ctx)
		__field(pgoff_t, first)
		__field(pgoff_t, last)
		__field(long, delta)
	),

	TP_fast_assign(
		__entry->ctx = ctx;
		__entry->first = first;
		__entry->last = last;
		__entry->delta = delta;
	),

	TP_printk("ctx=%p pgoff=%lx-%lx delta=%ld",
		  __entry->ctx, __entry->first, __entry->last, __entry->delta)
);

DEFINE_EVENT(cow_context_remap, cow_context_remap_add,
	TP_PROTO(const struct cow_context *ctx, pgoff_t first, pgoff_t last,
		 long delta),
	TP_ARGS(ctx, first, last, delta));

DEFINE_EVENT(cow_context_remap, cow_context_remap_del,
	TP_PROTO(const struct cow_context *ctx, pgoff_t first, pgoff_t last,
		 long delta),
	TP_ARGS(ctx, first, last, delta));

TRACE_EVENT(cow_context_walk,

	TP_PROTO(const struct cow_context *owner, pgoff_t first,
		 unsigned long nr_vmas, bool contended),

	TP_ARGS(owner, first, nr_vmas, contended),

	TP_STRUCT__entry(
		__field(const void *, owner)
		__field(pgoff_t, first)
		__field(unsigned long, nr_vmas)
		__field(bool, contended)
	),

	TP_fast_assign(
		__entry->owner = owner;
		__entry->first = first;
		__entry->nr_vmas = nr_vmas;
		__entry->contended = contended;
	),

	TP_printk("owner=%p pgoff=%lx vmas=%lu contended=%d",
		  __entry->owner, __entry->first, __entry->nr_vmas,
		  __entry->contended)
);

TRACE_EVENT(cow_context_miss,

	TP_PROTO(const void *site, unsigned long pfn, pgoff_t index,
		 unsigned long addr),

	TP_ARGS(site, pfn, index, addr),

	TP_STRUCT__entry(
		__field(const void *, site)
		__field(unsigned long, pfn)
		__field(pgoff_t, index)
		__field(unsigned long, addr)
	),

	TP_fast_assign(
		__entry->site = site;
		__entry->pfn = pfn;
		__entry->index = index;
		__entry->addr = addr;
	),

	TP_printk("site=%pS pfn=%lx pgoff=%lx addr=%lx",
		  __entry->site, __entry->pfn, __entry->index, __entry->addr)
);

TRACE_EVENT(cow_context_extra,

	TP_PROTO(const void *site, unsigned long pfn, pgoff_t index,
		 unsigned long nr),

	TP_ARGS(site, pfn, index, nr),

	TP_STRUCT__entry(
		__field(const void *, site)
		__field(unsigned long, pfn)
		__field(pgoff_t, index)
		__field(unsigned long, nr)
	),

	TP_fast_assign(
		__entry->site = site;
		__entry->pfn = pfn;
		__entry->index = index;
		__entry->nr = nr;
	),

	TP_printk("site=%pS pfn=%lx pgoff=%lx nr=%lu",
		  __entry->site, __entry->pfn, __entry->index, __entry->nr)
);

#endif /* _TRACE_COW_CONTEXT_H */

#include <trace/define_trace.h>
