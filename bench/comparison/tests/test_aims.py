import unittest

from comparison import aims, figures
from comparison.aims import Situation, Verdict
from comparison.figures import BEFORE, LLAMA, OURS, VLLM

CPUINFO = """processor\t: 0
model name\t: Some Processor
flags\t\t: fpu avx512f {}
bugs\t\t: spectre_v1
"""


def verdicts(metric, precision="bf16", ours=1.0, ratios=None, of_limit=None, situation=Situation(tiles=True)):
    return aims.verdicts(situation, figures.METRICS[metric], precision, ours, ratios or {}, of_limit)


class Aims(unittest.TestCase):
    def test_each_peer_and_precision_has_its_own(self):
        found = verdicts("server", "bf16", ratios={LLAMA: 2.6, VLLM: 1.4})
        self.assertEqual(found, [Verdict(LLAMA, 2.6, 2.5, True), Verdict(VLLM, 1.4, 1.5, False)])
        self.assertEqual(verdicts("server", "int8", ratios={LLAMA: 3.9, VLLM: 9.0}), [Verdict(LLAMA, 3.9, 4, False)])

    def test_the_same_gguf_file_has_the_same_aims_on_any_processor(self):
        for tiles in (True, False):
            found = verdicts("decode 1", "Q4_K_M", ratios={LLAMA: 1.3, VLLM: 1.0}, situation=Situation(tiles=tiles))
            self.assertEqual(found, [Verdict(LLAMA, 1.3, 1.2, True)])
            self.assertEqual(verdicts("server", "Q8_0", ratios={LLAMA: 9.0}, situation=Situation(tiles=tiles)), [])

    def test_an_aim_that_is_just_met_is_met(self):
        [verdict] = verdicts("decode 1", "int4", ratios={LLAMA: 1.8})
        self.assertTrue(verdict.reached)

    def test_without_tiles_other_aims_hold_and_none_to_vllm(self):
        found = verdicts("prefill", "bf16", ratios={LLAMA: 1.8, VLLM: 0.3}, situation=Situation(tiles=False))
        self.assertEqual(found, [Verdict(LLAMA, 1.8, 1.7, True)])
        self.assertEqual(verdicts("decode 16", ratios={LLAMA: 1.0}, situation=Situation(tiles=False)), [])

    def test_exact_products_have_their_own_aim_and_none_to_vllm(self):
        found = verdicts("prefill", ratios={LLAMA: 2.6, VLLM: 0.6}, situation=Situation(tiles=True, exact=True))
        self.assertEqual(found, [Verdict(LLAMA, 2.6, 2.5, True)])

    def test_a_share_of_the_limit_is_an_aim_beside_the_ratio(self):
        found = verdicts("decode 1", ratios={LLAMA: 2.0}, of_limit=0.84)
        self.assertEqual([(verdict.to, verdict.reached) for verdict in found], [(LLAMA, True), ("its limit", False)])

    def test_figures_with_a_bound_of_their_own(self):
        cases = [("kept", 0.5, True), ("kept", 0.49, False), ("weights ratio", 1.05, True), ("weights ratio", 1.06, False),
                 ("long bytes", 1.31, False)]
        for metric, value, reached in cases:
            [verdict] = verdicts(metric, ours=value)
            self.assertEqual((verdict.found, verdict.reached), (value, reached), metric)

    def test_nothing_is_aimed_at_against_before(self):
        self.assertEqual(verdicts("prefill", ratios={BEFORE: 0.5}), [])

    def test_every_aim_is_of_a_figure_that_is_measured(self):
        named = {metric for situation in (Situation(True), Situation(True, True), Situation(False))
                 for of_peer in situation.ratios().values() for metric in of_peer}
        self.assertLessEqual(named | set(aims.OF_LIMIT) | set(aims.AT_LEAST) | set(aims.AT_MOST), set(figures.METRICS))

    def test_the_summary_counts_them(self):
        samples = [figures.Sample("s", "int4", OURS, "decode 1", 18.0, of_limit=0.8),
                   figures.Sample("s", "int4", LLAMA, "decode 1", 10.0)]
        [row] = figures.rows(samples, 0.1)
        row.verdicts = verdicts("decode 1", "int4", 18.0, {LLAMA: 1.8}, row.of_limit)
        text = figures.aims_table([row])
        self.assertTrue(text.startswith("1 of 2 aims reached\n"), text)
        self.assertRegex(text, r"decode, 1 sequence +llama\.cpp +1\.80 +1\.80 +reached")
        self.assertRegex(text, r"decode, 1 sequence +its limit +80% +85% +MISSED")


class Tiles(unittest.TestCase):
    def test_all_three_flags_are_needed(self):
        for flags, tiles in [("amx_bf16 amx_tile amx_int8", True), ("amx_tile amx_int8", False), ("", False)]:
            self.assertEqual(aims.has_tiles(CPUINFO.format(flags)), tiles, flags)
        self.assertFalse(aims.has_tiles(""))


if __name__ == "__main__":
    unittest.main()
