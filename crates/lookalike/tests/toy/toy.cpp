// A module made by hand, without the simulator: what the device layer needs of one, and no more.
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "sim_abi.h"

struct ScaleAdd { uint64_t x; uint32_t n; float a, b; uint32_t reserved; };
struct Shape { uint64_t out; };

static bool live(const MusterSimLaunch* launch, uint64_t start, uint64_t bytes) {
  for (uint64_t i = 0; i < launch->range_count; i++) {
    const MusterSimRange& range = launch->ranges[i];
    if (start >= range.start && start + bytes <= range.start + range.bytes) return true;
  }
  return false;
}

static int fault(char* message, size_t bytes, uint64_t address) {
  snprintf(message, bytes, "access to %#llx, which is in no live buffer",
           (unsigned long long)address);
  return MUSTER_SIM_FAULT;
}

// x[i] = a·x[i] + b
static int scale_add(const MusterSimLaunch* launch, char* message, size_t message_bytes) {
  ScaleAdd args;
  memcpy(&args, launch->args, sizeof args);
  if (!live(launch, args.x, 4ull * args.n)) return fault(message, message_bytes, args.x);
  float* x = reinterpret_cast<float*>(args.x);
  uint64_t threads = uint64_t(launch->grid[0]) * launch->block[0];
  for (uint64_t i = 0; i < args.n && i < threads; i++) x[i] = args.a * x[i] + args.b;
  return MUSTER_SIM_OK;
}

// Writes the extents, shared bytes and seed of the launch.
static int shape(const MusterSimLaunch* launch, char* message, size_t message_bytes) {
  Shape args;
  memcpy(&args, launch->args, sizeof args);
  uint32_t out[5] = {launch->grid[0], launch->block[1], launch->cluster[0], launch->shared_bytes,
                     uint32_t(launch->seed)};
  if (!live(launch, args.out, sizeof out)) return fault(message, message_bytes, args.out);
  memcpy(reinterpret_cast<void*>(args.out), out, sizeof out);
  return MUSTER_SIM_OK;
}

// Never ends.
static int hang() {
  for (;;) pause();
}

static const MusterSimKernel kernels[] = {
    {"scale_add", 256, sizeof(ScaleAdd)},
    {"shape", 1024, sizeof(Shape)},
    {"hang", 1024, sizeof(Shape)},
};

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED const char* muster_sim_arch(void) { return TOY_ARCH; }

EXPORTED int muster_sim_kernel(uint32_t index, MusterSimKernel* kernel) {
  if (index >= sizeof kernels / sizeof *kernels) return 0;
  *kernel = kernels[index];
  return 1;
}

EXPORTED int muster_sim_launch(const MusterSimLaunch* launch, char* message, size_t message_bytes) {
  if (!strcmp(launch->kernel, "scale_add")) return scale_add(launch, message, message_bytes);
  if (!strcmp(launch->kernel, "hang")) return hang();
  if (!strcmp(launch->kernel, "shape")) return shape(launch, message, message_bytes);
  snprintf(message, message_bytes, "no kernel of this name");
  return MUSTER_SIM_REFUSED;
}
