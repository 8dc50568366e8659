# SPDX-License-Identifier: GPL-2.0
# One figure of harness/bench.
# In:  name, its plot; dir, where the data is; curves, "SERIES.KERNEL ..."
# Out: dir/name.svg
set terminal svg size 800,500 dynamic background "white"
set output dir."/".name.".svg"
set key left top
set grid
set logscale x
set logscale y

title = name; xlabel = ""; ylabel = "guest instructions"
if (name eq "memory-processes") {
	title = "Reverse mapping of a family with 1000 VMAs each"
	xlabel = "processes"; ylabel = "bytes"
}
if (name eq "memory-vmas") {
	title = "Reverse mapping of a parent and ten children"
	xlabel = "VMAs of each"; ylabel = "bytes"
}
if (name eq "memory-generations") {
	title = "Reverse mapping while generations fork and exit"
	xlabel = "generation"; ylabel = "bytes"
}
if (name eq "contexts-generations") {
	title = "Contexts, or anon_vmas, while generations fork and exit"
	xlabel = "generation"; ylabel = "objects"
}
if (name eq "fork-vmas") { title = "fork()"; xlabel = "anonymous VMAs" }
if (name eq "exit-vmas") { title = "exit()"; xlabel = "anonymous VMAs" }
if (name eq "fork-depth") {
	title = "fork() of 100 VMAs in a chain of living processes"
	xlabel = "depth"
}
if (name eq "walk-children") {
	title = "One reverse mapping walk"; xlabel = "children"
}
if (exists("unit")) { if (ylabel eq "guest instructions") { ylabel = unit } }
set title title
set xlabel xlabel
set ylabel ylabel
plot for [c in curves] dir."/".name.".".c.".dat" using 1:2 \
	with linespoints linewidth 2 title c noenhanced
