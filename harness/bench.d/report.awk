# SPDX-License-Identifier: GPL-2.0
# The table of harness/bench.
# In:  bench.d/goals, then the records of "kernel=base" and "kernel=pure".
#      limit: per cent by which repetitions of a cost may differ.
#      json, dir: where to write; only: not empty when little was measured.
# Out: the table; json; dir/PLOT.SERIES.KERNEL.dat.  Exit status 1 when a goal
#      is missed, was not measured, or cannot be told from the noise.

function seen(name) {
	if (!(name in known)) {
		known[name] = 1
		order[++rows] = name
	}
}

# sorted, then low, middle and high of it
function summarize(k, name,	n, i, j, t, v) {
	n = count[k, name]
	for (i = 1; i <= n; i++)
		v[i] = val[k, name, i]
	for (i = 2; i <= n; i++)
		for (j = i; j > 1 && v[j] < v[j - 1]; j--) {
			t = v[j]; v[j] = v[j - 1]; v[j - 1] = t
		}
	low[k] = high[k] = mid[k] = 0
	if (!n)
		return 0
	low[k] = v[1]
	high[k] = v[n]
	mid[k] = n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
	return n
}

function spread(k) {
	return mid[k] ? 100 * (high[k] - low[k]) / mid[k] : 0
}

function number(v) {
	return v == int(v) || v >= 1000 ? sprintf("%.0f", v) : sprintf("%.3g", v)
}

function list(k, name,	i, s) {
	for (i = 1; i <= count[k, name]; i++)
		s = s (i > 1 ? ", " : "") sprintf("%.10g", val[k, name, i])
	return "[" s "]"
}

function string(s) {
	gsub(/\\/, "\\\\", s)
	gsub(/"/, "\\\"", s)
	return "\"" s "\""
}

# met, missed, noise, unmeasured; "-" without a goal
function judge(name, nb, np,	g, l, least, most) {
	if (!(name in goal))
		return "-"
	g = goal[name]
	l = g
	sub(/^[a-z]*<=/, "", l)
	l += 0
	if (!np || (g ~ /^ratio/ && !nb))
		return "unmeasured"
	if (g ~ /^pure/) {
		least = low["pure"]
		most = high["pure"]
		v = mid["pure"]
	} else if (!mid["base"]) {
		# nothing can be a multiple of nothing
		return high["pure"] > 0 ? "missed" : "met"
	} else {
		least = high["base"] ? low["pure"] / high["base"] : 0
		most = low["base"] ? high["pure"] / low["base"] : 2 * l + 1
		v = mid["pure"] / mid["base"]
	}
	if (most <= l)
		return "met"
	if (least > l)
		return "missed"
	return v <= l ? "met, in noise" : "missed, in noise"
}

FNR == 1 { file++ }

file == 1 {
	if ($0 ~ /^#/ || NF < 2)
		next
	goal[$1] = $2
	if ($2 !~ /^(ratio|pure)<=[0-9.]+$/) {
		print "goals: bad goal '" $2 "' of " $1 > "/dev/stderr"
		failed = 1
		exit 2
	}
	what[$1] = $0
	sub(/^[^ \t]+[ \t]+[^ \t]+[ \t]+/, "", what[$1])
	goals[++nr_goals] = $1
	next
}

$1 == "@v" && NF == 4 {
	seen($2)
	unit[$2] = $3
	val[kernel, $2, ++count[kernel, $2]] = $4 + 0
}

$1 == "@slab" && NF == 5 {
	if (!(($2, $3) in slab_known)) {
		slab_known[$2, $3] = 1
		slabs[++nr_slabs] = $2 SUBSEP $3
	}
	objects[kernel, $2, $3] = $4
	size[kernel, $2, $3] = $5
}
$1 == "@p" {
	# of several boots the last
	if (from[kernel, $2, $3] != begun[kernel])
		points[kernel, $2, $3] = ""
	from[kernel, $2, $3] = begun[kernel]
	points[kernel, $2, $3] = points[kernel, $2, $3] $4 " " $5 "\n"
}
$1 == "@i" && $2 == "unit" { if (!cost_unit) cost_unit = $3 }
$1 == "@i" && $2 == "quick" { quick = 1 }
$1 == "@skip" || $1 == "@fail" { note[++notes] = kernel ": " substr($0, 2) }
$1 == "@fail" { trouble++ }
$1 == "@i" && $2 == "repetitions" { begun[kernel]++ }
$1 == "@done" { done[kernel]++ }

END {
	if (failed)
		exit 2
	for (i = 1; i <= nr_goals; i++)
		if (!only)
			seen(goals[i])
	for (i = 1; i <= 2; i++) {
		k = i == 1 ? "base" : "pure"
		if (!begun[k] || done[k] != begun[k]) {
			note[++notes] = k ": the program did not end, its last figures are missing"
			trouble++
		}
	}
	printf "# quantity: median of the repetitions; spread: the larger of both kernels, per cent%s\n",
		quick ? "\n# SMALL SIZES: figures to try the program, not results" : ""
	printf "%-30s %-6s %14s %14s %9s %7s  %-14s %s\n", "workload", "unit",
		"base", "pure", "ratio", "spread", "goal", "verdict"
	printf "{\n  \"unit\": %s,\n  \"quick\": %s,\n  \"rows\": [\n",
		string(cost_unit), quick ? "true" : "false" > json
	for (i = 1; i <= rows; i++) {
		name = order[i]
		nb = summarize("base", name)
		np = summarize("pure", name)
		s = spread("base")
		if (spread("pure") > s)
			s = spread("pure")
		ratio = nb && np && mid["base"] ? mid["pure"] / mid["base"] : ""
		verdict = judge(name, nb, np)
		if (verdict != "-")
			tally[verdict]++
		wide = (unit[name] == "insn" && s > limit)
		noisy += wide
		printf "%-30s %-6s %14s %14s %9s %6s%1s  %-14s %s\n", name, unit[name],
			nb ? number(mid["base"]) : "-", np ? number(mid["pure"]) : "-",
			ratio == "" ? "-" : sprintf("%.4g", ratio),
			(nb + np > 1) ? sprintf("%.2f", s) : "-", wide ? "!" : "",
			(name in goal) ? goal[name] : "-", verdict
		printf "    {\"name\": %s, \"unit\": %s, \"base\": %s, \"pure\": %s, \"ratio\": %s, \"spread\": %.3f, \"goal\": %s, \"verdict\": %s, \"what\": %s}%s\n",
			string(name), string(unit[name]), list("base", name),
			list("pure", name), ratio == "" ? "null" : sprintf("%.6g", ratio),
			s, (name in goal) ? string(goal[name]) : "null", string(verdict),
			string(what[name]), i < rows ? "," : "" > json
	}
	print "  ],\n  \"slabs\": [" > json
	for (i = 1; i <= nr_slabs; i++) {
		split(slabs[i], p, SUBSEP)
		printf "    {\"name\": %s, \"cache\": %s, \"base\": [%d, %d], \"pure\": [%d, %d]}%s\n",
			string(p[1]), string(p[2]),
			objects["base", p[1], p[2]], size["base", p[1], p[2]],
			objects["pure", p[1], p[2]], size["pure", p[1], p[2]],
			i < nr_slabs ? "," : "" > json
	}
	print "  ],\n  \"notes\": [" > json
	for (i = 1; i <= notes; i++)
		printf "    %s%s\n", string(note[i]), i < notes ? "," : "" > json
	print "  ]\n}" > json

	for (key in points) {
		split(key, p, SUBSEP)
		f = dir "/" p[2] "." p[3] "." p[1] ".dat"
		printf "%s", points[key] > f
		close(f)
	}

	if (nr_slabs) {
		printf "\n%-16s %-16s %24s %24s\n", "memory", "cache",
			"base, objects x size", "pure, objects x size"
		for (i = 1; i <= nr_slabs; i++) {
			split(slabs[i], p, SUBSEP)
			nb = objects["base", p[1], p[2]]
			np = objects["pure", p[1], p[2]]
			if (nb || np)
				printf "%-16s %-16s %16d x %5d %16d x %5d\n",
					p[1], p[2], nb, size["base", p[1], p[2]],
					np, size["pure", p[1], p[2]]
		}
	}

	if (notes) {
		print "\nnotes:"
		for (i = 1; i <= notes; i++)
			print "  " note[i]
	}
	met = tally["met"] + tally["met, in noise"]
	missed = tally["missed"] + tally["missed, in noise"]
	near = tally["met, in noise"] + tally["missed, in noise"]
	printf "\n%d goals met, %d missed, %d not measured; %d within the noise; %d costs spread by more than %s %% (!)\n",
		met, missed, tally["unmeasured"], near, noisy, limit
	exit missed || tally["unmeasured"] || near || trouble
}
