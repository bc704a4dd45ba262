import unittest

from comparison import check, engines
from comparison.processes import Failed

# As llama-bench of llama-cpp-python 0.3.36 prints it, shortened to the fields that say what was measured.
LLAMA_BENCH = """[
  {"n_batch": 2048, "n_threads": 2, "n_prompt": 512, "n_gen": 0, "n_depth": 0, "avg_ns": 6540000000, "avg_ts": 78.287462,
   "samples_ts": [ 78.2875 ]},
  {"n_batch": 2048, "n_threads": 2, "n_prompt": 0, "n_gen": 32, "n_depth": 0, "avg_ns": 3200000000, "avg_ts": 10.0,
   "samples_ts": [ 10.0 ]}
]"""
BATCHED_BENCH = """
some line of its log
{"n_kv_max": 4096, "n_batch": 2048, "n_ubatch": 512, "flash_attn": -1, "is_pp_shared": 1, "n_gpu_layers": -1, \
"n_threads": 2, "n_threads_batch": 2, "pp": 128, "tg": 32, "pl": 8, "n_kv": 384, "t_pp": 1.6, "speed_pp": 80.0, \
"t_tg": 7.5, "speed_tg": 34.1, "t": 9.1, "speed": 42.0}
llama_perf_context_print: load time = 1.0 ms
"""


def row(**fields):
    return {"tokens_per_second": 10.0, "others": None, "failures": [], **fields}


class Reports(unittest.TestCase):
    def test_llama_bench(self):
        self.assertEqual(engines.llama_bench(LLAMA_BENCH, 0.1), [("prefill", 78.287462, 0.1), ("decode 1", 10.0, 0.1)])

    def test_batched_bench_among_its_log(self):
        self.assertEqual(engines.batched_bench(BATCHED_BENCH, 0.0), [("decode 8", 34.1, 0.0)])
        with self.assertRaises(Failed):
            engines.batched_bench("nothing", 0.0)

    def test_what_llama_cpp_says_of_the_processor(self):
        log = ("build: 1\n0.00.031 I cmn  common_param: system_info: n_threads = 2 (n_threads_batch = 2) / 2 | CPU : SSE3 = 1 | AVX512 = 1 | AMX_INT8 = 1 "
               "| OPENMP = 1 | REPACK = 1 | \nmain: done\n")
        system = engines.system_info(log)
        self.assertEqual((system["SSE3"], system["AMX_INT8"]), ("1", "1"))
        self.assertTrue(engines.tiles(system).startswith("with AMX"))
        self.assertEqual(engines.tiles({"AVX512": "1"}), "without AMX")
        self.assertIn("did not say", engines.tiles(engines.system_info("main: done\n")))

    def test_a_rate_that_is_none_is_refused(self):
        for text in ("inf", "nan", "0"):
            with self.assertRaises(Failed):
                engines.finite(text, "llama-bench")

    def test_our_report(self):
        report = {"prefill": [row(tokens_per_second=200.0, others=0.3, fraction_of_peak=0.7)],
                  "decode": [row(batch_size=1, fraction_of_bandwidth=0.9), row(batch_size=8, fraction_of_bandwidth=None)]}
        expected = [("prefill", 200.0, 0.3, 0.7), ("decode 1", 10.0, 0.05, 0.9), ("decode 8", 10.0, 0.05, None)]
        self.assertEqual(engines.kaito_speed(report, 0.05), expected)

    def test_a_row_without_a_rate_says_why(self):
        report = {"prefill": [], "decode": [row(batch_size=1, tokens_per_second=None,
                                                failures=[{"cause": "out of pages", "count": 2}])]}
        with self.assertRaisesRegex(Failed, "out of pages"):
            engines.kaito_speed(report, 0.0)

    def test_both_servers_must_have_done_what_was_asked(self):
        whole = {"completed": 16, "input_tokens": 2048, "output_tokens": 2048}
        self.assertEqual(engines.check_clients(whole, 16, 128, 128), [])
        short = {**whole, "completed": 15, "output_tokens": 1920}
        problems = engines.check_clients(short, 16, 128, 128)
        self.assertEqual(problems, ["15 of 16 requests were completed", "1920 output tokens instead of 2048"])


class Agreement(unittest.TestCase):
    def test_share_before_the_first_difference(self):
        cases = [(["abcd"], ["abcd"], 1.0), (["abXd"], ["abcd"], 0.5), ([[1, 2], [9]], [[1, 2], [3, 4]], 0.5),
                 (["abcdef"], ["abcd"], 1.0), ([""], ["abcd"], 0.0)]
        for answers, expected, share in cases:
            self.assertEqual(check.agreement(answers, expected), share, answers)

    def test_an_answer_too_few_is_an_error(self):
        with self.assertRaises(ValueError):
            check.agreement(["a"], ["a", "b"])


if __name__ == "__main__":
    unittest.main()
