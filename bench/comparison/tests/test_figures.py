import json
import unittest

from comparison import figures
from comparison.figures import LLAMA, OURS, TRANSFORMERS, Sample


def sample(engine, metric, value, others=0.0, precision="bf16", of_limit=None):
    return Sample("tinyllama-1.1b", precision, engine, metric, value, others, of_limit)


class Rows(unittest.TestCase):
    def test_a_ratio_is_of_medians(self):
        samples = [sample(OURS, "prefill", value) for value in (100.0, 300.0, 200.0)]
        samples += [sample(LLAMA, "prefill", value) for value in (100.0, 90.0, 110.0)]
        [row] = figures.rows(samples, 0.1)
        self.assertEqual((row.values[OURS], row.values[LLAMA], row.ratio), (200.0, 100.0, 2.0))
        self.assertEqual((row.target, row.reached), (1.7, True))

    def test_less_is_better_turns_the_ratio_round(self):
        [row] = figures.rows([sample(OURS, "first token", 0.5), sample(LLAMA, "first token", 2.0)], 0.1)
        self.assertEqual((row.ratio, row.target, row.reached), (4.0, None, None))

    def test_disturbed_samples_count_only_where_there_are_no_others(self):
        disturbed = sample(OURS, "decode 1", 1.0, others=0.5)
        [row] = figures.rows([disturbed, sample(OURS, "decode 1", 9.0, others=0.02)], 0.1)
        self.assertEqual((row.values[OURS], row.samples[OURS], row.others), (9.0, 1, 0.02))
        [row] = figures.rows([disturbed], 0.1)
        self.assertEqual((row.values[OURS], row.others), (1.0, 0.5))
        self.assertIn("50%*", figures.table([row], 0.1))

    def test_a_share_of_the_limit_that_is_missed_is_a_miss_whatever_the_ratio(self):
        samples = [sample(OURS, "decode 1", 20.0, of_limit=0.8), sample(LLAMA, "decode 1", 10.0)]
        [row] = figures.rows(samples, 0.1)
        self.assertEqual((row.ratio, row.of_limit, row.of_limit_target, row.reached), (2.0, 0.8, 0.85, False))

    def test_figures_with_a_bound_of_their_own(self):
        cases = [("kept", 0.5, True), ("kept", 0.49, False), ("weights ratio", 1.05, True), ("weights ratio", 1.06, False),
                 ("long bytes", 1.31, False)]
        for metric, value, reached in cases:
            [row] = figures.rows([sample(OURS, metric, value)], 0.1)
            self.assertEqual(row.reached, reached, (metric, value))

    def test_every_target_of_a_precision_is_its_own(self):
        samples = [sample(OURS, "server", 30.0, precision=precision) for precision in ("bf16", "int8", "int4")]
        samples += [sample(LLAMA, "server", 10.0, precision=precision) for precision in ("bf16", "int8", "int4")]
        found = {row.precision: (row.target, row.reached) for row in figures.rows(samples, 0.1)}
        self.assertEqual(found, {"bf16": (2, True), "int8": (4, False), "int4": (3, True)})

    def test_rows_come_in_the_order_of_the_tables(self):
        samples = [sample(OURS, "server", 1.0), sample(TRANSFORMERS, "prefill", 1.0), sample(OURS, "decode 1", 1.0)]
        self.assertEqual([row.metric for row in figures.rows(samples, 0.1)], ["prefill", "decode 1", "server"])

    def test_rows_are_json(self):
        found = figures.rows([sample(OURS, "prefill", 2.0)], 0.1)
        [row] = json.loads(json.dumps(figures.as_json(found)))
        self.assertEqual((row["values"], row["ratio"], row["target"]), ({OURS: 2.0}, None, 1.7))


class Table(unittest.TestCase):
    def test_columns_are_aligned(self):
        text = figures.aligned([("a", "1"), ("long", "1000")], right=(1,))
        self.assertEqual(text, "a        1\nlong  1000")

    def test_numbers_have_three_digits_or_more(self):
        cases = [(1234.4, "tokens/s", "1234"), (123.44, "tokens/s", "123.4"), (1.671, "tokens/s", "1.67"),
                 (0.5, "share", "50%"), (1.049, "x", "1.05"), (None, "s", "-")]
        for value, unit, text in cases:
            self.assertEqual(figures.number(value, unit), text)


if __name__ == "__main__":
    unittest.main()
