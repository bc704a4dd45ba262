import unittest

from comparison import prepare
from comparison.session import tasks

BF16, INT8, INT4 = (prepare.PRECISIONS[name] for name in prepare.DEFAULT)


class Tasks(unittest.TestCase):
    def test_every_precision_is_measured_once_before_any_is_measured_again(self):
        order = list(tasks({"speed": None, "server": None}, [BF16, INT8, INT4], 3))
        self.assertEqual(order[:3], [("speed", precision, 1) for precision in (BF16, INT8, INT4)])
        self.assertEqual(order[3:6], [("server", precision, 1) for precision in (BF16, INT8, INT4)])
        self.assertEqual(order[6:9], [("speed", precision, 2) for precision in (BF16, INT8, INT4)])
        self.assertEqual(sum(part == "speed" for part, _, _ in order), 9)
        self.assertEqual(sum(part == "server" for part, _, _ in order), 6)

    def test_a_part_may_be_of_some_precisions(self):
        order = list(tasks({"long": ("int8",), "sharing": ("bf16", "int4")}, [BF16, INT8, INT4], 2))
        self.assertEqual(order, [("sharing", BF16, 1), ("sharing", INT4, 1), ("long", INT8, 1)])


if __name__ == "__main__":
    unittest.main()
