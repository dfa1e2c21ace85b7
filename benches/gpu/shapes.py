"""The shapes that the programs of this directory measure, Muster's and its peers' alike."""

# M×N×K of products.
GEMM = ["4096x4096x4096", "8192x8192x8192", "16x2048x2048x2048", "4096x4096x14336"]
# X·Xᵀ, of which Muster computes one triangle.
SYMMETRIC = [
    "8x2048x2048x2048", "16x2048x2048x7168", "8x4096x4096x4096", "8192x8192x8192",
    "24x768x768x3072", "64x1024x1024x2816",
]
# Batches that are orthogonalized: experts, attention, and the largest set of a published model.
NEWTON_SCHULZ = [
    "24x768x3072", "64x1024x2816", "16x2048x2048", "4x4096x4096", "8x4096x14336", "8192x8192",
    "216x2048x7168",
]

QUICK_GEMM = ["128x128x128", "2x128x128x256"]
QUICK_SYMMETRIC = ["2x128x128x128"]
QUICK_NEWTON_SCHULZ = ["2x64x192", "1x128x128"]


def extents(shape):
    """The numbers of `24x768x3072`."""
    return [int(word) for word in shape.split("x")]


def product(shape):
    """(count, m, n, k) of a product."""
    numbers = extents(shape)
    return tuple([1] * (4 - len(numbers)) + numbers)


def batch(shape):
    """(count, rows, columns) of a batch."""
    numbers = extents(shape)
    return tuple([1] * (3 - len(numbers)) + numbers)


if __name__ == "__main__":
    import sys

    print(",".join(globals()[sys.argv[1]]))
