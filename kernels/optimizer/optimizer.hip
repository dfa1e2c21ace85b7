// The entry points on AMD: those of optimizer.cu.
#include "optimizer.cu"
