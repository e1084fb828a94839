"""Reports as pure functions of the results of runs: tables, verdicts on published figures, and one page of both.

* `groups_table`, `attacks_table`, `volatility_table`: groups of seeds as Markdown or for a terminal.
* `by_setup`, `readings`: runs sorted into the catalogue, and the values read from them.
* `figures`, `claims` with `evidence` and `verdicts`: published figures and claims beside their measurements.
* `claims_table`, `answers`: the tables of both, and the answers to the two questions.
* `curves`, `charts`, `protocol`, `page`: the pictures, and the self-contained HTML page.
"""
