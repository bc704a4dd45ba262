import json
import unittest

from comparison import figures
from comparison.figures import BEFORE, LLAMA, OURS, TRANSFORMERS, VLLM, Ratio, Sample


def sample(engine, metric, value, others=0.0, precision="bf16", of_limit=None, round=1):
    return Sample("tinyllama-1.1b", precision, engine, metric, value, others, of_limit, round)


class Rows(unittest.TestCase):
    def test_a_ratio_is_of_medians(self):
        samples = [sample(OURS, "prefill", value) for value in (100.0, 300.0, 200.0)]
        samples += [sample(LLAMA, "prefill", value) for value in (100.0, 90.0, 110.0)]
        [row] = figures.rows(samples, 0.1)
        self.assertEqual((row.values[OURS], row.values[LLAMA], row.ratios[LLAMA].median), (200.0, 100.0, 2.0))

    def test_each_peer_has_a_ratio_of_its_own(self):
        samples = [sample(OURS, "server", 60.0), sample(LLAMA, "server", 20.0), sample(VLLM, "server", 40.0)]
        [row] = figures.rows(samples, 0.1)
        self.assertEqual({peer: ratio.median for peer, ratio in row.ratios.items()}, {LLAMA: 3.0, VLLM: 1.5})

    def test_the_spread_is_that_of_rounds(self):
        samples = [sample(OURS, "prefill", value, round=at) for at, value in enumerate((100.0, 200.0, 90.0), 1)]
        samples += [sample(BEFORE, "prefill", value, round=at) for at, value in enumerate((100.0, 160.0, 100.0), 1)]
        [row] = figures.rows(samples, 0.1)
        self.assertEqual(row.ratios[BEFORE], Ratio(1.0, 0.9, 1.25))

    def test_a_round_in_which_one_is_missing_has_no_ratio(self):
        samples = [sample(OURS, "prefill", 100.0, round=1), sample(OURS, "prefill", 100.0, round=2),
                   sample(BEFORE, "prefill", 50.0, round=2)]
        [row] = figures.rows(samples, 0.1)
        self.assertEqual(row.ratios[BEFORE], Ratio(2.0, 2.0, 2.0))

    def test_less_is_better_turns_the_ratio_round(self):
        [row] = figures.rows([sample(OURS, "first token", 0.5), sample(LLAMA, "first token", 2.0)], 0.1)
        self.assertEqual(row.ratios[LLAMA].median, 4.0)

    def test_disturbed_samples_count_only_where_there_are_no_others(self):
        disturbed = sample(OURS, "decode 1", 1.0, others=0.5)
        [row] = figures.rows([disturbed, sample(OURS, "decode 1", 9.0, others=0.02)], 0.1)
        self.assertEqual((row.values[OURS], row.samples[OURS], row.others), (9.0, 1, 0.02))
        [row] = figures.rows([disturbed], 0.1)
        self.assertEqual((row.values[OURS], row.others), (1.0, 0.5))
        self.assertIn("50%*", figures.table([row], 0.1))

    def test_rows_come_in_the_order_of_the_tables(self):
        samples = [sample(OURS, "server", 1.0), sample(TRANSFORMERS, "prefill", 1.0), sample(OURS, "decode 1", 1.0)]
        self.assertEqual([row.metric for row in figures.rows(samples, 0.1)], ["prefill", "decode 1", "server"])

    def test_rows_are_json(self):
        found = figures.rows([sample(OURS, "prefill", 2.0), sample(LLAMA, "prefill", 1.0)], 0.1)
        [row] = json.loads(json.dumps(figures.as_json(found)))
        self.assertEqual((row["values"][OURS], row["ratios"][LLAMA]), (2.0, {"median": 2.0, "least": 2.0, "most": 2.0}))


class Table(unittest.TestCase):
    def test_columns_are_aligned(self):
        text = figures.aligned([("a", "1"), ("long", "1000")], right=(1,))
        self.assertEqual(text, "a        1\nlong  1000")

    def test_who_was_not_measured_has_no_column(self):
        text = figures.table(figures.rows([sample(OURS, "prefill", 2.0), sample(VLLM, "prefill", 4.0)], 0.1), 0.1)
        self.assertIn("to vLLM", text)
        self.assertIn("0.50x", text)
        self.assertNotIn(LLAMA, text)

    def test_numbers_have_three_digits_or_more(self):
        cases = [(1234.4, "tokens/s", "1234"), (123.44, "tokens/s", "123.4"), (1.671, "tokens/s", "1.67"),
                 (0.5, "share", "50%"), (1.049, "x", "1.05"), (None, "s", "-")]
        for value, unit, text in cases:
            self.assertEqual(figures.number(value, unit), text)


class Before(unittest.TestCase):
    def test_a_difference_is_shown_only_where_all_rounds_agree(self):
        cases = [(Ratio(1.0, 0.9, 1.25), 5, "within noise"), (Ratio(1.2, 1.1, 1.3), 5, "better in every round"),
                 (Ratio(1.2, 1.1, 1.3), 4, "better in every round, which are too few to tell"),
                 (Ratio(0.9, 0.8, 0.99), 6, "worse in every round"),
                 (Ratio(0.9, 0.9, 0.9), 1, "one round: nothing is shown"), (Ratio(0.9), 2, "one round: nothing is shown")]
        for ratio, rounds, words in cases:
            self.assertEqual(figures.judged(ratio, rounds), words)

    def test_only_what_was_measured_before_too_is_listed(self):
        samples = [sample(engine, "prefill", value, round=at) for at, pair in enumerate(((10.0, 9.0), (9.0, 10.0)), 1)
                   for engine, value in zip((OURS, BEFORE), pair)]
        text = figures.before_table(figures.rows([*samples, sample(OURS, "server", 1.0)], 0.1))
        self.assertRegex(text, r"bf16 +prefill, 512 tokens +1\.00 +0\.90 +1\.11 +2 +within noise")
        self.assertNotIn("server", text)
        self.assertEqual(figures.before_table(figures.rows([sample(OURS, "server", 1.0)], 0.1)), "")


if __name__ == "__main__":
    unittest.main()
