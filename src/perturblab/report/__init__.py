"""Reports as pure functions of what runs have left: tables, verdicts on published figures, and one page of both.

* `groups_table`, `attacks_table`, `volatility_table`: runs that differ in the seed only, as Markdown or for a terminal.
* `by_setup`, `figures`, `claims`: runs sorted into the catalogue; figures and claims beside them, with verdicts.
* `readings`, `answers`, `claims_table`: the two questions, from the claims.
* `curves`, `charts`, `protocol`, `page`: the pictures, and the self-contained HTML page.
"""
