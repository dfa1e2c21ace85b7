// The entry points on AMD: those of ordered_sum.cu.
#include "ordered_sum.cu"
