# The driver of the benchmark: what is measured, in which order, and how it is shown.
