import unittest

from comparison.front import ALONE, FRONT, HEADER, summary


def pair(alone, front, first_alone=0.100, first_front=0.105, others=0.02):
    def sample(speed, first):
        return {"tokens_per_second": speed, "first_token": first, "others": others}

    return {ALONE: sample(alone, first_alone), FRONT: sample(front, first_front)}


class Summary(unittest.TestCase):
    def row(self, *pairs):
        return dict(zip(HEADER, summary(8, list(pairs)), strict=True))

    def test_ratios_are_those_of_pairs(self):
        # The machine was half as fast in the second pair: the ratio of medians would say nothing of the front.
        row = self.row(pair(100, 98), pair(50, 49.5), pair(100, 97))
        self.assertEqual(row["ratio"], "0.980 (0.970 to 0.990)")
        self.assertEqual((row["vLLM tokens/s"], row["front tokens/s"]), ("100.0", "97.0"))
        self.assertEqual(row["aims met"], "yes")

    def test_both_aims_count(self):
        self.assertEqual(self.row(pair(100, 96))["aims met"], "no")
        late = self.row(pair(100, 100, 0.100, 0.112))
        self.assertEqual((late["later by ms"], late["aims met"]), ("+12.0 (+12.0 to +12.0)", "no"))

    def test_the_busiest_sample_is_told(self):
        self.assertEqual(self.row(pair(100, 99), pair(100, 99, others=0.31))["others"], "31%")


if __name__ == "__main__":
    unittest.main()
