// The entry points on AMD: those of newton_schulz.cu.
#include "newton_schulz.cu"
