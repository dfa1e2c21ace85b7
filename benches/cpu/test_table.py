#!/usr/bin/env python3
"""Checks table.py on measurements that were made up."""

import unittest

from table import tables

MEASURED = """\
small\tmuster\tmuster\t30
small\tpeer\teager\t10
small\tpeer\tcompile\t20
small\tpeer\teager, bf16\t60
large\tmuster\tmuster\t5
small\tmuster\tmuster\t50
small\tpeer\teager\t100
small\tpeer\tcompile\t20
small\tmuster\tmuster\t40
small\tpeer\teager\t11
small\tpeer\tcompile\t21
"""


class Table(unittest.TestCase):
    def test_the_best_median_of_the_same_type_counts(self):
        small, large = tables(MEASURED.splitlines()).split("\n\nlarge:")
        self.assertIn("| muster | 30.0, 50.0, 40.0 | 40.0 | 2.00 |", small)
        self.assertIn("| compile, the best peer | 20.0, 20.0, 21.0 | 20.0 | 1.00 |", small)
        self.assertIn("| eager | 10.0, 100.0, 11.0 | 11.0 | 0.55 |", small)
        self.assertIn("| eager, bf16 | 60.0 | 60.0 | 3.00 |", small)
        self.assertIn("| muster | 5.0 | 5.0 |  |", large)


if __name__ == "__main__":
    unittest.main()
