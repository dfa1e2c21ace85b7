// The entry points on AMD: those of memory.cu.
#include "memory.cu"
