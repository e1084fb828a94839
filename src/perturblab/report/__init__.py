"""Reports as pure functions of what runs have left: tables, verdicts on published figures, and one page of both.

* `measured`: reads records, metrics and points of attacks from a folder.
* `tables`, `attacks`, `volatility`: runs that differ in the seed only, as Markdown or for a terminal.
* `places`, `published`, `claims`: runs sorted into the catalogue; figures and claims beside them, with verdicts.
* `answers`: the two questions, from the claims.
* `charts`, `page`: the pictures, and the self-contained HTML page.
"""
