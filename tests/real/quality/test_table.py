"""python3 -m unittest test_table"""

import unittest

import table

DOCUMENT = """
Before.

| weights, activations | bits, layers | divergence | same token | perplexity |
| --- | --- | --- | --- | --- |
| in 32 bits | 32 | 0 | 100% | 28.68 |
| bf16, `--compute exact` | 16 | 0.00015 ± 0.00001 | 99.2% | 28.72 |
| int8 | 8.125 | 0.0030 ± 0.0002 | 96.5% | 28.82 |
| *Q8_0* | 8.5 | 0.0049 ± 0.0003 | 95.2% | 28.96 |

| int4 | of another table |
"""

MEASURED = {
    "in 32 bits": table.Figures(32, 0, 0, 100, 28.678),
    "bf16, --compute exact": table.Figures(16, 0.00015, 0.00001, 99.2, 28.718),
    "int8": table.Figures(8.125, 0.00304, 0.0002, 96.5, 28.819),
    "Q8_0": table.Figures(8.5, 0.00486, 0.00027, 95.2, 28.955),
}


class Reading(unittest.TestCase):
    def test_rows_have_their_names_without_marks(self):
        self.assertEqual(list(table.read(DOCUMENT)), list(MEASURED))

    def test_a_document_without_the_table_is_refused(self):
        with self.assertRaisesRegex(ValueError, "no table has the columns"):
            table.read(DOCUMENT.replace("perplexity", "surprise"))

    def test_a_cell_that_is_no_number_is_named(self):
        with self.assertRaisesRegex(ValueError, "'many' is not a number"):
            table.read(DOCUMENT.replace("28.82", "many"))


class Differences(unittest.TestCase):
    def found(self, whole=True, **changed):
        measured = {name: row for name, row in MEASURED.items() if changed.get("without") != name}
        if "figures" in changed:
            measured["int8"] = measured["int8"]._replace(**changed["figures"])
        return table.differences(measured, table.read(DOCUMENT), whole)

    def test_what_was_measured_is_what_the_document_says(self):
        self.assertEqual(self.found(), [])

    def test_each_figure_beyond_its_tolerance_is_named_with_both_numbers(self):
        for figures in ({"bits": 8.25}, {"divergence": 0.0033}, {"interval": 0.0004}, {"same": 95.9}, {"perplexity": 29.0}):
            [[name, value]] = figures.items()
            [line] = self.found(figures=figures)
            self.assertRegex(line, rf"^int8: the document says {name} .*, measured was {value:.6g}$")

    def test_what_another_machine_may_measure_is_no_difference(self):
        for figures in ({"divergence": 0.00318}, {"same": 96.95}, {"perplexity": 28.95}):
            self.assertEqual(self.found(figures=figures), [])

    def test_a_row_that_was_not_measured_is_named_unless_few_were_asked_for(self):
        self.assertEqual(self.found(without="int8"), ["int8: the document has this row, and it was not measured"])
        self.assertEqual(self.found(without="int8", whole=False), [])


class Conclusions(unittest.TestCase):
    def test_they_hold(self):
        self.assertEqual(table.untrue(MEASURED), [])

    def test_a_format_that_is_worse_than_that_of_llama_cpp_is_named(self):
        worse = dict(MEASURED, int8=MEASURED["int8"]._replace(divergence=0.0054))
        self.assertEqual(table.untrue(worse), ["int8 has a divergence of 0.0054, and Q8_0 only 0.00486"])

    def test_activations_that_cost_more_than_weights_are_named(self):
        costly = dict(MEASURED, **{"bf16, --compute bf16": table.Figures(16, 0.00031, 0.00001, 98.0, 28.7)})
        [line] = table.untrue(costly)
        self.assertTrue(line.startswith("activations in bf16 cost more than weights"), line)
