// Entry points of `muster bench memory`.
#include "memory.h"

DEV_KERNEL(memory_copy, memory::THREADS, 4, MusterMemoryArgs) { memory::copy(args); }

DEV_KERNEL(memory_read, memory::THREADS, 4, MusterMemoryArgs) { memory::read(args); }

DEV_KERNEL(memory_write, memory::THREADS, 4, MusterMemoryArgs) { memory::write(args); }
