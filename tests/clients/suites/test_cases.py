"""The lists of what fails, and the documents that are made from them."""

import json
import tempfile
import unittest
from pathlib import Path

import cases
import json_schema
import page

JUNIT = """<testsuites><testsuite>
<testcase classname="unit.test_basic" name="test_passes" />
<testcase classname="unit.test_basic.TestGroup" name="test_fails[a-b[c]]"><failure message="assert 404 == 200
 + where" /></testcase>
<testcase classname="unit.test_basic" name="test_breaks"><error message="died" /></testcase>
<testcase classname="unit.test_other" name="test_skipped"><skipped /></testcase>
<testcase file="not.json" name="not: any value" variant="strict"><failure message="accepted true, valid false" /></testcase>
</testsuite></testsuites>"""

LIST = """of = "a suite"
passed = 1
skipped = 1

[[reason]]
name = "routes"
why = "404"

[reason.cases."unit/test_basic.py"]
"TestGroup::test_fails" = ["a-b[c]"]
test_breaks = []

[[reason]]
name = "keywords"
why = "ignored"

[reason.cases."not.json"]
"not: any value" = ["strict"]
"""


class Lists(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        (self.folder / "run.xml").write_text(JUNIT)
        self.run_ = cases.results(self.folder / "run.xml")

    def known(self, text=LIST):
        (self.folder / "suite.toml").write_text(text)
        return cases.expected("suite", self.folder)

    def test_a_run_that_is_as_listed_differs_in_nothing(self):
        self.assertEqual(cases.differences(self.run_, self.known()), [])

    def test_a_failure_that_is_not_listed_is_named_with_its_message(self):
        text = LIST.replace('"TestGroup::test_fails" = ["a-b[c]"]\n', "")
        [found] = cases.differences(self.run_, self.known(text))
        name = "unit/test_basic.py::TestGroup::test_fails[a-b[c]]"
        self.assertEqual(found, f"fails and is not listed: {name}: assert 404 == 200 + where")

    def test_a_listed_case_that_passes_or_is_not_there_is_named(self):
        text = LIST.replace("test_breaks = []", "test_breaks = []\ntest_passes = []\ntest_gone = []")
        found = cases.differences(self.run_, self.known(text))
        self.assertEqual(
            found,
            [
                "is listed (routes) and does not exist: unit/test_basic.py::test_gone",
                "is listed (routes) and passed: unit/test_basic.py::test_passes",
            ],
        )

    def test_of_some_files_only_their_cases_are_expected(self):
        run = {case: result for case, result in self.run_.items() if "other" in case.file}
        self.assertEqual(cases.differences(run, self.known(), ["test_other"]), [])

    def test_cases_that_pass_no_more_because_they_are_gone_are_counted(self):
        text = LIST.replace("passed = 1", "passed = 2")
        self.assertEqual(cases.differences(self.run_, self.known(text)), ["1 passed, the list says 2"])

    def test_without_a_list_nothing_may_fail(self):
        self.assertEqual(len(cases.differences(self.run_, None)), 3)

    def test_a_case_has_one_reason(self):
        with self.assertRaisesRegex(ValueError, r"not\.json::not: any value\[strict\] is listed twice"):
            self.known(LIST + LIST[LIST.index('[[reason]]\nname = "keywords"') :].replace("keywords", "others"))

    def test_a_reason_has_cases(self):
        with self.assertRaisesRegex(ValueError, "no case fails for the reason routes"):
            self.known(LIST.replace('"TestGroup::test_fails" = ["a-b[c]"]\ntest_breaks = []\n', ""))


class Verdicts(unittest.TestCase):
    def test_lines_belong_to_the_row_that_they_stand_by(self):
        printed = """| folder | mode | schemas |
| --- | --- | --- |
strict case.json: 1: accepted false, valid true
| 000000 | strict | 1 |
| 000000 | lenient | 1 |
| 000001 | strict | 1 |
strict refused 1: the keyword `not` is not supported: at #
| 000001 | lenient | 1 |"""
        found = json_schema.verdicts(printed.splitlines(), 2)
        self.assertEqual(found[0, "strict"], {"refused": None, "wrong": ["strict case.json: 1: accepted false, valid true"]})
        self.assertEqual(found[0, "lenient"], {"refused": None, "wrong": []})
        self.assertEqual(found[1, "strict"]["refused"], "the keyword `not` is not supported: at #")

    def test_a_schema_without_a_verdict_is_an_error(self):
        with self.assertRaises(SystemExit):
            json_schema.verdicts(["| 000000 | strict | 1 |"], 1)

    def test_names_that_are_given_twice_get_a_number(self):
        with tempfile.TemporaryDirectory() as folder:
            schema = {"description": "a", "schema": True, "tests": []}
            Path(folder, "twice.json").write_text(json.dumps([schema, schema]))
            found = [(file, name) for file, name, _ in json_schema.schemas(Path(folder))]
        self.assertEqual(found, [("twice.json", "a"), ("twice.json", "a (2)")])


class Documents(unittest.TestCase):
    def test_every_list_is_in_the_documents(self):
        self.assertEqual(sorted(page.ORDER), cases.suites())

    def test_the_documents_are_what_page_py_writes(self):
        self.assertEqual(page.PAGE.read_text(), page.page(), "tests/clients/suites/page.py writes it")
        self.assertEqual(page.SUMMARY.read_text(), page.summary(page.SUMMARY.read_text()), "tests/clients/suites/page.py writes it")

    def test_a_bar_in_a_name_ends_no_cell(self):
        self.assertEqual(page.code("(a|b)"), r"`(a\|b)`")
        self.assertEqual(page.code("a `b` c"), "`` a `b` c ``")


if __name__ == "__main__":
    unittest.main()
